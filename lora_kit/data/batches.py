"""The data set that a training loop reads from captioned pictures, and the batches that it makes of its items.

Transforms and their order follow diffusers' examples/text_to_image/train_text_to_image_lora.py; they are torchvision's,
without torchvision. One thing differs, unless the run matches that script: what is random about an item (crop, flip,
which caption) depends on the seed, the epoch and the index alone, so a resumed epoch repeats exactly.
"""

import hashlib
import math
import random
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lora_kit.config import TrainingConfig
from lora_kit.data.images import CaptionedImages

if TYPE_CHECKING:
    from typing import Self

    import torch
    from PIL.Image import Image as Picture


def resize_and_crop(
    image: "Picture",
    resolution: int,
    center_crop: bool,
    interpolation: str = "lanczos",
    generator: "torch.Generator | None" = None,
) -> "Picture":
    """`image` with its shorter edge resized to `resolution`, then cropped to a square: at its centre or at random.

    The longer edge becomes int(resolution * long / short), as torchvision's Resize has it; a random crop draws its top,
    then its left, as RandomCrop does, and draws nothing where the picture is a square. generator: where that comes
    from; None is torch's global one. interpolation: one of the configuration's image_interpolation_mode.

    >>> from PIL import Image
    >>> resize_and_crop(Image.new("RGB", (640, 480)), 512, center_crop=True).size
    (512, 512)
    """
    import torch
    from PIL import Image

    size = _resized(image.size, resolution)
    if size != image.size:
        image = image.resize(size, Image.Resampling[interpolation.upper().removesuffix("_EXACT")])
    spare = [edge - resolution for edge in size]
    if center_crop or spare == [0, 0]:
        left, top = (round(edge / 2) for edge in spare)
    else:
        top, left = (int(torch.randint(edge + 1, (1,), generator=generator)) for edge in reversed(spare))
    return image.crop((left, top, left + resolution, top + resolution))


def _resized(size, resolution):
    short = min(size)
    return tuple(resolution if edge == short else int(resolution * edge / short) for edge in size)


class TrainingPictures:
    """A map-style data set for torch: {"pixel_values": float32 (3, R, R) in [-1, 1], "input_ids": int64 (tokens,)}.

    images: `CaptionedImages`. tokenizer: the base model's. resolution: R. center_crop, random_flip,
    image_interpolation_mode: as in the configuration. seed: None takes torch's own. global_draws: see below.

    Call `set_epoch` before each epoch: with (seed, epoch, i) it decides the caption, crop and flip of item i. With
    global_draws they come from Python's and torch's global generators instead, one item after the other, as in
    diffusers' script.
    """

    def __init__(
        self,
        images: CaptionedImages | None,
        tokenizer: Any,
        resolution: int,
        center_crop: bool,
        random_flip: bool,
        image_interpolation_mode: str = "lanczos",
        seed: int | None = None,
        global_draws: bool = False,
    ) -> None:
        import torch

        self.images, self.tokenizer, self.resolution = images, tokenizer, resolution
        self.center_crop, self.random_flip, self.interpolation = center_crop, random_flip, image_interpolation_mode
        self.seed = torch.initial_seed() if seed is None else seed
        self.global_draws = global_draws
        self.epoch = 0

    @classmethod
    def of(
        cls, config: TrainingConfig, images: CaptionedImages | None, encoder: Any, seed: int | None = None, **more: Any
    ) -> "Self":
        """This data set with the settings of a `TrainingConfig`; `encoder` is what the class takes second; more: goes to it."""
        return cls(
            images,
            encoder,
            resolution=config.resolution,
            center_crop=config.center_crop,
            random_flip=config.random_flip,
            image_interpolation_mode=config.image_interpolation_mode,
            seed=seed,
            global_draws=not config.behaviour.draws_from_seed,
            **more,
        )

    def set_epoch(self, epoch: int) -> None:
        """Makes the next reads those of `epoch` (0 is the first)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> "dict[str, torch.Tensor]":
        generator = self.generator(index)
        caption = self.choose(self.images.captions(index), generator)
        return {"pixel_values": self.pixels(index, generator), "input_ids": tokenize(self.tokenizer, caption)}

    def generator(self, index: int) -> "torch.Generator | None":
        """Where item `index` of this epoch draws from; None stands for the global generators."""
        import torch

        if self.global_draws:
            return None
        digest = hashlib.sha256(f"{self.seed} {self.epoch} {index}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def choose(self, captions: Any, generator: "torch.Generator | None" = None) -> Any:
        """One of a list of captions; what is no list is returned as it is, and nothing is drawn for it."""
        import torch

        if not isinstance(captions, list):
            return captions
        if generator is None:
            return random.choice(captions)
        return captions[int(torch.randint(len(captions), (), generator=generator))]

    def flipped(self, generator: "torch.Generator | None" = None) -> bool:
        """Whether this read is mirrored."""
        import torch

        return self.random_flip and bool(torch.rand(1, generator=generator) < 0.5)

    def all_square(self) -> bool:
        """Whether no picture needs a crop once it is resized. ValueError names one that is broken, or too long to be resized."""
        from PIL import Image

        square = True
        for index in range(len(self.images)):
            size = self.images.size(index)
            width, height = _resized(size, self.resolution)
            if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(
                    f"picture {self.images.name(index)} is {size[0]:,} x {size[1]:,}: at resolution {self.resolution} it would "
                    f"become {width:,} x {height:,} pixels; crop it"
                )
            square &= width == height
        return square

    def pixels(
        self, index: int, generator: "torch.Generator | None" = None, flip: bool | None = None
    ) -> "torch.Tensor":
        """Picture `index` as float32 (3, R, R) in [-1, 1]: cropped, and mirrored unless `flip` says whether."""
        import numpy as np
        import torch
        from PIL import Image

        image = self.images.image(index)
        image = resize_and_crop(image, self.resolution, self.center_crop, self.interpolation, generator)
        if self.flipped(generator) if flip is None else flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
        return (pixels - 0.5) / 0.5


def tokenize(tokenizer: Any, caption: str) -> "torch.Tensor":
    """A caption as int64 (tokens,), padded or cut to the tokenizer's length."""
    options = dict(padding="max_length", truncation=True, return_tensors="pt")
    return tokenizer(caption, max_length=tokenizer.model_max_length, **options).input_ids[0]


def cut_captions(texts: Iterable[str], tokenizer: Any) -> dict[str, str]:
    """{caption: what is dropped of it} for those that are longer than the text encoder reads.

    A token is a letter at least, so short captions aren't looked at. The dropped end is text again, spaced and in small letters as
    the tokenizer has it.
    """
    most = tokenizer.model_max_length
    long = [text for text in texts if len(text) > most - 2]  # two tokens mark the start and the end
    if not long:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = tokenizer(long, truncation=False, add_special_tokens=False, verbose=False).input_ids
    return {
        text: tokenizer.decode(own[most - 2 :], skip_special_tokens=True)
        for text, own in zip(long, ids, strict=True)
        if len(own) > most - 2
    }


def collate(examples: "list[dict[str, torch.Tensor]] | dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """One batch of items: {"pixel_values": float32 (batch, 3, R, R), "input_ids": int64 (batch, tokens)}.

    A data set that makes whole batches has made it already.
    """
    import torch

    if isinstance(examples, dict):
        return examples
    return {
        key: torch.stack([example[key] for example in examples]).contiguous() for key in ("pixel_values", "input_ids")
    }
