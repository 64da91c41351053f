"""torchvision.transforms for PIL pictures: the same results, and random numbers drawn in the same order.

Source of the behaviour: torchvision, transforms/transforms.py and transforms/_functional_pil.py.
"""

from enum import Enum

import numpy as np
import torch
from PIL import Image


class InterpolationMode(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize:
    """The shorter edge becomes `size`, the longer one int(size * long / short)."""

    def __init__(self, size, interpolation=InterpolationMode.BILINEAR):
        self.size, self.mode = size, interpolation

    def __call__(self, image):
        width, height = image.size
        short, long = sorted((width, height))
        longer = int(self.size * long / short)
        size = (self.size, longer) if width <= height else (longer, self.size)
        if size == image.size:
            return image
        return image.resize(size, Image.Resampling[self.mode.name.removesuffix("_EXACT")])


def _crop(image, top, left, size):
    return image.crop((left, top, left + size, top + size))


class CenterCrop:
    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        width, height = image.size
        return _crop(image, round((height - self.size) / 2.0), round((width - self.size) / 2.0), self.size)


class RandomCrop:
    """Draws top, then left, from torch's global generator; nothing where the picture has the size already."""

    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        width, height = image.size
        if (width, height) == (self.size, self.size):
            return _crop(image, 0, 0, self.size)
        top = int(torch.randint(0, height - self.size + 1, size=(1,)).item())
        left = int(torch.randint(0, width - self.size + 1, size=(1,)).item())
        return _crop(image, top, left, self.size)


class RandomHorizontalFlip:
    def __init__(self, p=0.5):
        self.p = p

    def __call__(self, image):
        if torch.rand(1) < self.p:
            return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


class Lambda:
    def __init__(self, function):
        self.function = function

    def __call__(self, image):
        return self.function(image)


class ToTensor:
    def __call__(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.get_default_dtype()).div(255)


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, tensor):
        return tensor.clone().sub_(self.mean).div_(self.std)
