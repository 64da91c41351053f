"""The pictures of a run, counted first, and encoded for all processes of a machine when a batch first asks for them."""

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_kit.config import TrainingConfig
from lora_kit.data.batches import TrainingPictures, collate, cut_captions
from lora_kit.data.cache import EncodingCache
from lora_kit.data.encoding import (
    EncodedPictures,
    Plan,
    batch_sizes,
    distinct_captions,
    encode_captions,
    encode_pictures,
)
from lora_kit.data.file_index import FileIndex
from lora_kit.data.folder import local_folder
from lora_kit.data.identity import data_identity
from lora_kit.data.images import load_images
from lora_kit.data.records import SealedRecords
from lora_kit.loss import normal_like
from lora_kit.models import load_models
from lora_kit.system.checks import shown
from lora_kit.system.files import same_disk
from lora_kit.system.signals import outlive
from lora_kit.system.turns import first_of_machine

if TYPE_CHECKING:
    import torch

LOOK_THROUGH = "looking through the pictures"
ENCODERS = ("tokenizer", "text_encoder", "vae")


class Pictures:
    """The pictures that a configuration names, known from the cache or loaded, so that `len(pictures)` and their `identity` are
    known.

    seed: for the choice of max_train_samples. dtype: of the encoders.
    """

    def __init__(self, config: TrainingConfig, accelerator: Any, seed: int, dtype: "torch.dtype"):
        self.config, self.accelerator, self.seed, self.dtype = config, accelerator, seed, dtype
        self.images = self.plan = self.cache = None
        with first_of_machine(accelerator, LOOK_THROUGH, config.ddp_timeout):
            folder = local_folder(config)
            self.index = FileIndex(folder) if folder else None
            if config.no_cache or (config.style is None and folder is None):
                self.images = load_images(config, seed, self.index)
            self.identity = data_identity(config, self.images, self.index)
            if not config.no_cache:
                self.cache = EncodingCache(
                    config, seed, accelerator.num_processes, dtype, accelerator.device, self.identity,
                    self.images and self.images.fingerprint,
                )  # fmt: skip
                self.plan = self.cache.read()
            if self.plan is None:
                self.images = self.images or load_images(config, seed, self.index)

    def __len__(self) -> int:
        return len(self.images if self.plan is None else self.plan.captions)

    def prepare(self, least: int = 0, most: int = 0) -> "PreparedPictures":
        """The data set that a loop reads. Nothing is encoded yet, but what is wrong with the encoders or the disk is known.

        least, most: bytes that the run itself will write into output_dir, which may be on the same disk.
        """
        config, accelerator, seed = self.config, self.accelerator, self.seed
        encoders = Encoders(config, accelerator.device, self.dtype)
        if config.no_cache:
            (tokenizer,) = encoders.get("tokenizer")
            dataset = TrainingPictures.of(config, self.images, tokenizer, seed)
            with first_of_machine(accelerator, LOOK_THROUGH, config.ddp_timeout):
                if accelerator.is_local_main_process:
                    dataset.all_square()  # names one that is broken
                    texts, _ = distinct_captions(self.images)
                    cut = cut_captions(texts, tokenizer)
                    _warn_of_cut(
                        len(cut), len(texts), tokenizer.model_max_length, max(cut.values(), key=len, default="")
                    )
            return PreparedPictures(dataset, encoders, encoders.get("vae")[0].config.scaling_factor)
        with first_of_machine(accelerator, LOOK_THROUGH, config.ddp_timeout):
            self.plan = self.plan or self.cache.read()  # by now the first process may have written it
            if self.plan is None:
                sizes = batch_sizes(config, len(self), accelerator.num_processes)
                self.plan = Plan.of(config, self.images, *encoders.get(*ENCODERS), sizes)
                self.cache.write(self.plan)
        least, most = (least, most) if same_disk(config.output_dir, self.cache.path) else (0, 0)
        hidden, posteriors = self.cache.open(self.plan, least, most, accelerator.print)
        if accelerator.is_local_main_process:
            _warn_of_cut(self.plan.cut, *self.plan.caption_shape[:2], self.plan.dropped)
        load = partial(load_images, config, seed)
        by_workers = config.dataloader_num_workers and posteriors and (posteriors.missing() or hidden.missing())
        if posteriors is None or by_workers:  # random crops are encoded as they come; each worker would load for itself
            self.images = self.images or load()
        kept = dict(hidden=hidden, posteriors=posteriors, load=load)
        kept["unchanged"] = self.index and self.index.unchanged
        dataset = EncodedPictures.of(config, self.images, self.plan, seed, **kept)
        return PreparedPictures(dataset, encoders, self.plan.scaling_factor)


def _warn_of_cut(cut, count, length, dropped):
    """Say how many captions are cut, and what of one isn't read."""
    if cut:
        print(
            f"warning: {cut} of {count} captions are longer than the {length} tokens that the text encoder reads; of one it drops "
            f"{shown(dropped)}"
        )


class Encoders:
    """The parts of a base model that encode, each in memory from when it is first asked for until it is let go."""

    def __init__(self, config: TrainingConfig, device: "torch.device", dtype: "torch.dtype"):
        self.config, self.device, self.dtype, self._loaded = config, device, dtype, {}

    def get(self, *parts: str) -> list[Any]:
        """These parts, on the run's device. Loading draws nothing from the run's generators."""
        missing = tuple(part for part in parts if part not in self._loaded)
        if missing:
            import torch

            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                models = load_models(self.config, self.dtype, missing)
            for part in missing:
                model = getattr(models, part)
                self._loaded[part] = model if part == "tokenizer" else model.to(self.device)
        return [self._loaded[part] for part in parts]

    def loaded(self) -> set[str]:
        """The parts that are in memory."""
        return set(self._loaded)

    def let_go(self, *parts: str) -> None:
        """Free the memory of these parts."""
        for part in parts:
            self._loaded.pop(part, None)


class PreparedPictures:
    """`dataset`, for torch's DataLoader, and what turns its batches into the UNet's inputs.

    What isn't encoded yet is encoded when it comes in a batch, and kept.
    """

    def __init__(self, dataset: TrainingPictures, encoders: Encoders, scaling_factor: float):
        self.dataset, self.encoders, self.scaling_factor = dataset, encoders, scaling_factor
        self.needed = {"tokenizer": True, "vae": True}  # in the epoch before
        self.full = False  # a disk that took no more

    def set_epoch(self, epoch: int) -> None:
        """Makes the next reads those of `epoch`. An encoder leaves memory when all is encoded, or nothing was in an epoch."""
        self.dataset.set_epoch(epoch)
        if not isinstance(self.dataset, EncodedPictures):
            return
        for records, parts in (
            (self.dataset.hidden, ("tokenizer", "text_encoder")),
            (self.dataset.posteriors, ("vae",)),
        ):
            if records and not (self.needed[parts[0]] and records.missing()):
                records.finish()
                self.encoders.let_go(*parts)
            self.needed[parts[0]] = False

    def loader(self, config: TrainingConfig, seed: int) -> "torch.utils.data.DataLoader":
        """Shuffled batches of train_batch_size."""
        import torch

        # its own generator: else each epoch that is begun, or begun again after a stop, would draw from the global one
        own = torch.Generator().manual_seed(seed) if config.behaviour.draws_from_seed else None
        return torch.utils.data.DataLoader(
            self.dataset,
            shuffle=True,
            generator=own,
            collate_fn=collate,
            batch_size=config.train_batch_size,
            num_workers=config.dataloader_num_workers,
            worker_init_fn=outlive,
            timeout=min(config.ddp_timeout, 10**6) if config.dataloader_num_workers else 0,  # poll takes no 2**31 ms
        )

    def inputs(
        self, batch: dict[str, "torch.Tensor"], generator: "torch.Generator | None"
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """(latents drawn from each picture's distribution and scaled, the captions' hidden states) of a batch."""
        import torch

        self.encode_new_captions(batch)
        self.encode_new_pictures(batch)
        with torch.no_grad():
            if "posterior" in batch:
                mean, std = batch["posterior"].unbind(1)
            else:
                (vae,) = self.encoders.get("vae")
                posterior = vae.encode(batch["pixel_values"].to(vae.dtype)).latent_dist
                mean, std = posterior.mean, posterior.std
            latents = (mean + std * normal_like(mean, generator).to(mean.dtype)) * self.scaling_factor
            hidden = batch.get("encoder_hidden_states")
            if hidden is None:
                (text_encoder,) = self.encoders.get("text_encoder")
                hidden = text_encoder(batch["input_ids"], return_dict=False)[0]
        return latents, hidden

    def encode_new_captions(self, batch: dict[str, Any]) -> None:
        """Encode the captions of a batch that aren't yet, put them in, and keep them."""
        if new := batch.get("new_captions"):
            self.needed["tokenizer"] = True
            texts = {place: text for _, place, text in new}
            encoders = self.encoders.get("tokenizer", "text_encoder")
            encoded = encode_captions(list(texts.values()), *encoders, self.dataset.plan.batch_sizes[0])
            encoded = dict(zip(texts, encoded, strict=True))
            for row, place, _ in new:
                batch["encoder_hidden_states"][row] = encoded[place]
            for place, record in encoded.items():
                self.keep(self.dataset.hidden, place, record)

    def encode_new_pictures(self, batch: dict[str, Any]) -> None:
        """Encode the pictures of a batch that aren't yet, as they are and, where they are flipped, mirrored; and keep them."""
        if new := batch.get("new_pictures"):
            self.needed["vae"] = True
            plan, together = self.dataset.plan, len(batch["posterior"])
            size = together if together in plan.batch_sizes else plan.batch_sizes[0]
            (vae,) = self.encoders.get("vae")
            for flip in range(plan.picture_shape[1]):
                pixels = batch["new_pixels"].flip(-1) if flip else batch["new_pixels"]
                for (row, wanted, index), record in zip(new, encode_pictures(pixels, vae, size), strict=True):
                    self.keep(self.dataset.posteriors, self.dataset.place(together, flip, index), record)
                    if flip == wanted:
                        batch["posterior"][row] = record

    def keep(self, records: SealedRecords, place: int, record: "torch.Tensor") -> None:
        """Write a record, as long as the disk takes it: a run can do without."""
        if not self.full:
            try:
                records.write(place, record)
            except OSError as error:
                self.full = True
                print(
                    f"warning: the cache {records.path} can't be written: {error.strerror}; the run goes on, and encodes what "
                    "isn't kept each time it is needed",
                    file=sys.stderr,
                )
