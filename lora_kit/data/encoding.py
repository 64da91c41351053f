"""Encode once what never changes: pictures through the VAE, captions through the text encoder.

A picture's latents are drawn anew each epoch from a normal distribution; its mean and standard deviation never change
unless the picture does, so these are kept, and each epoch still draws a fresh sample. Everything is found by the
picture and by the caption, never by its place in a shuffled epoch (diffusers#14430 paired latents with other captions
so). It is encoded when a batch first asks for it.
Where pictures are cropped at random only the captions are kept, and the VAE goes on encoding pictures as they come.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_kit.config import TrainingConfig
from lora_kit.data.batches import TrainingPictures, cut_captions, tokenize
from lora_kit.data.images import CaptionedImages
from lora_kit.data.records import SealedRecords
from lora_kit.system.files import json_digest

if TYPE_CHECKING:
    import torch


CHANGED = "the pictures or their captions have changed since the run began: begin it again"


class Plan(NamedTuple):
    """What there is to encode of a data set of N pictures with M different captions.

    captions: for each picture the index of its caption among the M, or a list of them. caption_shape: (M, tokens, width).
    picture_shape: (V, F, N, 2, 4, h, w): mean and standard deviation of the latents; F is 2 (as it is, mirrored) where
    pictures are flipped at random, else 1; V counts `batch_sizes`; None where pictures are cropped at random.
    scaling_factor: the VAE's, which latents are multiplied by. batch_sizes: how many pictures are encoded together: a
    convolution may round differently for another number of them. cut: how many of the M captions are longer than the text
    encoder reads. dropped: the longest end that it doesn't read. digest: of the captions.
    """

    captions: list[int | list[int]]
    caption_shape: tuple[int, ...]
    picture_shape: tuple[int, ...] | None
    scaling_factor: float
    batch_sizes: tuple[int, ...]
    cut: int
    dropped: str
    digest: str

    @classmethod
    def of(
        cls,
        config: TrainingConfig,
        images: CaptionedImages,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        sizes: Sequence[int],
    ) -> "Plan":
        """The plan for `images` and these encoders. sizes: the `batch_sizes`."""
        pictures = TrainingPictures.of(config, images, tokenizer)
        texts, captions = distinct_captions(images)
        shape = None
        square = pictures.all_square()  # always asked, so that a broken picture is named now
        if config.center_crop or square:
            about = vae.config
            side = config.resolution >> len(about.block_out_channels) - 1
            flips = 2 if config.random_flip else 1
            shape = (len(sizes), flips, len(images), 2, about.latent_channels, side, side)
        hidden = (len(texts), tokenizer.model_max_length, text_encoder.config.hidden_size)
        cut = cut_captions(texts, tokenizer)
        digest = json_digest([texts, captions])
        longest = max(cut.values(), key=len, default="")
        return cls(captions, hidden, shape, float(vae.config.scaling_factor), tuple(sizes), len(cut), longest, digest)


def distinct_captions(images: CaptionedImages) -> tuple[list[str], list[int | list[int]]]:
    """(the M different captions, in the order in which they come; for each picture its caption's index, or a list of them)."""
    groups = [images.captions(index) for index in range(len(images))]
    texts = {text: 0 for group in groups for text in ([group] if isinstance(group, str) else group)}
    texts = {text: place for place, text in enumerate(texts)}
    captions = [texts[group] if isinstance(group, str) else [texts[text] for text in group] for group in groups]
    return list(texts), captions


class EncodedPictures(TrainingPictures):
    """A data set for torch that makes whole batches, {"posterior": (batch, 2, 4, h, w), "encoder_hidden_states":
    (batch, tokens, width)}, or "pixel_values" instead of the former where pictures are cropped at random.

    What isn't encoded yet stands in the batch as it is: under "new_captions" [(row, its index, text)], under
    "new_pictures" [(row, its index)] and their pixels under "new_pixels".
    Captions, crops and flips are drawn as `TrainingPictures` draws them. images: loaded by `load` if something has to be
    encoded and they weren't. plan, hidden, posteriors: see `Plan`, and where the encodings are kept. unchanged: whether a picture,
    by its name, is still the one that the encodings are kept for. settings: those of `TrainingPictures`.
    """

    def __init__(
        self,
        images: CaptionedImages | None,
        plan: Plan,
        hidden: SealedRecords,
        posteriors: SealedRecords | None,
        load: Callable[[], CaptionedImages],
        unchanged: Callable[[str], bool] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(images, None, **settings)
        self.plan, self.hidden, self.posteriors, self.load, self._texts = plan, hidden, posteriors, load, None
        self.unchanged = unchanged

    def __len__(self) -> int:
        return len(self.plan.captions)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        import torch

        captions, flips, pixels = [], [], []
        for index in indices:
            generator = self.generator(index)
            captions.append(self.choose(self.plan.captions[index], generator))
            if self.posteriors is None:
                pixels.append(self.pixels(index, generator))
            else:
                flips.append(int(self.flipped(generator)))
        batch = {}
        batch["encoder_hidden_states"], missing = self.hidden.gather(captions)
        if missing:
            batch["new_captions"] = [(row, captions[row], self.texts()[captions[row]]) for row in missing]
        if pixels:
            return {"pixel_values": torch.stack(pixels), **batch}
        places = [self.place(len(indices), flip, index) for flip, index in zip(flips, indices, strict=True)]
        batch["posterior"], missing = self.posteriors.gather(places)
        if missing:
            self.texts()  # which sees to it that the pictures are there
            batch["new_pictures"] = [(row, flips[row], indices[row]) for row in missing]
            batch["new_pixels"] = torch.stack([self.pixels(indices[row], flip=False) for row in missing])
            for name in (self.images.name(indices[row]) for row in missing):
                if self.unchanged and not self.unchanged(name):
                    raise ValueError(f"{CHANGED}; picture {name} is no longer the same")
        return batch

    def place(self, together: int, flip: int, index: int) -> int:
        """Where the encoding of picture `index` stands, of a batch of so many, as it is (flip 0) or mirrored (1)."""
        sizes, (_, flips, count, *_) = self.plan.batch_sizes, self.plan.picture_shape
        variant = sizes.index(together) if together in sizes else 0
        return (variant * flips + flip) * count + index

    def texts(self) -> list[str]:
        """The different captions."""
        if self._texts is None:
            self.images = self.images or self.load()
            self._texts, captions = distinct_captions(self.images)
            if json_digest([self._texts, captions]) != self.plan.digest:
                raise ValueError(CHANGED)
        return self._texts


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


def encode_pictures(pixels: "torch.Tensor", vae: Any, size: int) -> "torch.Tensor":
    """(N, 2, 4, h, w), mean and standard deviation of the latents of N pictures, from pixels (N, 3, R, R) in [-1, 1].

    size: how many are encoded together, always; the last batch is filled up. On the VAE's device, in its dtype.
    """
    import torch

    encoded = []
    with torch.no_grad():
        for new, batch in _batches(pixels, size):
            latents = vae.encode(batch.to(vae.device, vae.dtype)).latent_dist
            encoded.append(torch.stack([latents.mean, latents.std], dim=1)[:new])
    return torch.cat(encoded)


def encode_captions(captions: Sequence[str], tokenizer: Any, encoder: Any, size: int) -> "torch.Tensor":
    """(M, tokens, width), the text encoder's output for M captions, `size` of them at a time, as `encode_pictures` does it."""
    import torch

    ids = torch.stack([tokenize(tokenizer, text) for text in captions])
    with torch.no_grad():
        return torch.cat(
            [encoder(batch.to(encoder.device), return_dict=False)[0][:new] for new, batch in _batches(ids, size)]
        )


def _batches(items, size):
    """(how many are new, `size` items): the last batch is filled up from the start, so that all have one size."""
    for start in range(0, len(items), size):
        yield min(size, len(items) - start), items[[place % len(items) for place in range(start, start + size)]]
