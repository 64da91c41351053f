"""Encode once what never changes: pictures through the VAE, captions through the text encoder.

A picture's latents are drawn anew each epoch from a normal distribution; its mean and standard deviation never change
unless the picture does, so these are kept, and each epoch still draws a fresh sample. Everything is found by the
picture and by the caption, never by its place in a shuffled epoch (diffusers#14430 paired latents with other captions
so).
Where pictures are cropped at random only the captions are kept, and the VAE goes on encoding pictures as they come.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_kit.config import TrainingConfig
from lora_kit.data.batches import TrainingPictures, cut_captions
from lora_kit.data.images import CaptionedImages
from lora_kit.models import Models

if TYPE_CHECKING:
    import torch


class Encoded(NamedTuple):
    """The encodings of a data set of N pictures with M different captions.

    posterior: (V, F, N, 2, 4, h, w): mean and standard deviation of the latents; F is 2 (as it is, mirrored) where
    pictures are flipped at random, else 1; V counts `batch_sizes`; None where pictures are cropped at random.
    hidden: (M, tokens, width), the text encoder's output. captions: for each picture the index of its caption in
    `hidden`, or a list of them. scaling_factor: the VAE's, which latents are multiplied by. batch_sizes: how many
    pictures were encoded together: a convolution may round differently for another number of them. cut: how many of the M
    captions are longer than the text encoder reads.
    """

    posterior: "torch.Tensor | None"
    hidden: "torch.Tensor"
    captions: list[int | list[int]]
    scaling_factor: float
    batch_sizes: tuple[int, ...]
    cut: int = 0


class EncodedPictures(TrainingPictures):
    """A data set for torch that makes whole batches, {"posterior": (batch, 2, 4, h, w), "encoder_hidden_states":
    (batch, tokens, width)}, or "pixel_values" instead of the former where pictures are cropped at random.

    Captions, crops and flips are drawn as `TrainingPictures` draws them. images: needed where pictures are cropped at
    random. settings: those of `TrainingPictures`.
    """

    def __init__(self, images: CaptionedImages | None, encoded: Encoded, **settings: Any) -> None:
        super().__init__(images, None, **settings)
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded.captions)

    def __getitems__(self, indices: list[int]) -> "dict[str, torch.Tensor]":
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


def encoding_batch(config: TrainingConfig) -> int:
    """How many pictures are encoded together: train_batch_size, unless the run's behaviour has a limit below it."""
    limit = config.behaviour.largest_encoding_batch
    return config.train_batch_size if limit is None else min(config.train_batch_size, limit)


def batch_sizes(config: TrainingConfig, num_examples: int, num_processes: int = 1) -> tuple[int, ...]:
    """The sizes of the batches in which pictures are encoded, each of which needs encodings of its own.

    One where the run's behaviour has a limit. Else the batches of its loop, the last one included; on several processes
    accelerate fills that one up.

    >>> config = TrainingConfig(style="outlined", learning_rate=1e-3, match_diffusers=True, lr_warmup_steps=0)
    >>> batch_sizes(config, num_examples=399)  # 24 batches of 16, and one of 15
    (16, 15)
    """
    size = encoding_batch(config)
    if config.behaviour.largest_encoding_batch is not None:
        return (size,)
    whole = num_examples >= size or num_processes > 1
    rest = num_examples % size if num_processes == 1 else 0
    return tuple(dict.fromkeys([*([size] if whole else []), *([rest] if rest else [])]))


def encode(
    config: TrainingConfig, images: CaptionedImages, models: Models, sizes: Sequence[int], progress: bool = False
) -> Encoded:
    """`Encoded` for `CaptionedImages`, by the VAE and text encoder of `models`, on their device, in their dtype.

    sizes: the `batch_sizes`. progress: whether a bar is shown.
    """
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
    total = len(texts) + (count * flips * len(sizes) if fixed else 0)
    with torch.no_grad(), tqdm(desc="Encoding once", total=total, disable=not progress, leave=False) as bar:
        hidden, done = None, 0
        for new, batch in _batches(list(texts), sizes[0]):
            ids = torch.stack([pictures.input_ids(text) for text in batch]).to(text_encoder.device)
            output = text_encoder(ids, return_dict=False)[0][:new].cpu()
            hidden = torch.empty(len(texts), *output.shape[1:], dtype=output.dtype) if hidden is None else hidden
            hidden[done : done + new] = output
            done += new
            bar.update(new)
        for variant, size in enumerate(sizes if fixed else ()):
            done = 0
            for new, batch in _batches(range(count), size):
                plain = torch.stack([pictures.pixels(index, flip=False) for index in batch])
                for flip in range(flips):
                    pixels = plain.flip(-1) if flip else plain
                    latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
                    both = torch.stack([latents.mean, latents.std], dim=1)[:new].cpu()
                    if posterior is None:
                        posterior = torch.empty(len(sizes), flips, count, *both.shape[1:], dtype=both.dtype)
                    posterior[variant, flip, done : done + new] = both
                    bar.update(new)
                done += new
    cut = len(cut_captions(texts, models.tokenizer))
    return Encoded(posterior, hidden, captions, float(vae.config.scaling_factor), tuple(sizes), cut)


def _batches(items, size):
    """(how many are new, `size` items): the last batch is filled up from the start, so that all have one size."""
    for start in range(0, len(items), size):
        yield min(size, len(items) - start), [items[place % len(items)] for place in range(start, start + size)]
