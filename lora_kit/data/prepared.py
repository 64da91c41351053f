"""The pictures of a run, counted first and then encoded once for all processes of a machine."""

from typing import TYPE_CHECKING, Any

from lora_kit.config import TrainingConfig
from lora_kit.data.batches import TrainingPictures, collate
from lora_kit.data.cache import EncodingCache
from lora_kit.data.encoding import EncodedPictures, batch_sizes, encode
from lora_kit.data.identity import data_identity
from lora_kit.data.images import load_images, local_folder
from lora_kit.loss import normal_like
from lora_kit.models import Models, load_models
from lora_kit.system.signals import outlive

if TYPE_CHECKING:
    import torch

ENCODERS = ("tokenizer", "text_encoder", "vae")
NONE = Models(*[None] * len(Models._fields))


class Pictures:
    """The pictures that a configuration names, found in the cache or loaded, so that `len(pictures)` and their `identity`
    are known.

    seed: for the choice of max_train_samples. dtype: of the encoders.
    """

    def __init__(self, config: TrainingConfig, accelerator: Any, seed: int, dtype: "torch.dtype"):
        self.config, self.accelerator, self.seed, self.dtype = config, accelerator, seed, dtype
        self.images = self.encoded = self.cache = None
        with accelerator.local_main_process_first():
            if config.no_cache or (config.style is None and local_folder(config) is None):
                self.images = load_images(config, seed)
            self.identity = data_identity(config, self.images)
            if not config.no_cache:
                self.cache = EncodingCache(
                    config, seed, accelerator.num_processes, dtype, accelerator.device, self.identity,
                    self.images and self.images.fingerprint,
                )  # fmt: skip
                self.encoded = self.cache.read()
            if self.encoded is None:
                self.images = self.images or load_images(config, seed)

    def __len__(self) -> int:
        return len(self.images if self.encoded is None else self.encoded.captions)

    def encode(self, progress: bool = False) -> "PreparedPictures":
        """The data set that a loop reads; VAE and text encoder stay in memory only where each micro-step needs them."""
        config, accelerator = self.config, self.accelerator
        if config.no_cache:
            encoders = self.load(ENCODERS)
            dataset = TrainingPictures.of(config, self.images, encoders.tokenizer, self.seed)
            return PreparedPictures(dataset, encoders, encoders.vae.config.scaling_factor)
        with accelerator.local_main_process_first():
            self.encoded = self.encoded or self.cache.read()  # by now the first process may have written it
            if self.encoded is None:
                sizes = batch_sizes(config, len(self), accelerator.num_processes)
                bar = progress and accelerator.is_local_main_process
                self.encoded = self.cache.write(encode(config, self.images, self.load(ENCODERS), sizes, bar))
        if self.encoded.cut:
            accelerator.print(
                f"warning: {self.encoded.cut} of {len(self.encoded.hidden)} captions are longer than the "
                f"{self.encoded.hidden.shape[1]} tokens that the text encoder reads: what comes after is dropped"
            )
        encoders = NONE
        if self.encoded.posterior is None:  # random crops: the VAE encodes pictures as they come
            self.images = self.images or load_images(config, self.seed)
            encoders = self.load(("vae",))
        dataset = EncodedPictures.of(config, self.images, self.encoded, self.seed)
        return PreparedPictures(dataset, encoders, self.encoded.scaling_factor)

    def load(self, parts: tuple[str, ...]) -> Models:
        """These parts of the base model, the encoders among them on this process's device."""
        models = load_models(self.config, self.dtype, parts)
        for encoder in filter(None, (models.vae, models.text_encoder)):
            encoder.to(self.accelerator.device)
        return models


class PreparedPictures:
    """`dataset`, for torch's DataLoader, and what turns its batches into the UNet's inputs."""

    def __init__(self, dataset: TrainingPictures, encoders: Models, scaling_factor: float):
        self.dataset, self.vae, self.text_encoder = dataset, encoders.vae, encoders.text_encoder
        self.scaling_factor = scaling_factor

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
        )

    def inputs(
        self, batch: dict[str, "torch.Tensor"], generator: "torch.Generator | None"
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """(latents drawn from each picture's distribution and scaled, the captions' hidden states) of a batch."""
        import torch

        with torch.no_grad():
            if "posterior" in batch:
                mean, std = batch["posterior"].unbind(1)
            else:
                posterior = self.vae.encode(batch["pixel_values"].to(self.vae.dtype)).latent_dist
                mean, std = posterior.mean, posterior.std
            latents = (mean + std * normal_like(mean, generator).to(mean.dtype)) * self.scaling_factor
            hidden = batch.get("encoder_hidden_states")
            if hidden is None:
                hidden = self.text_encoder(batch["input_ids"], return_dict=False)[0]
        return latents, hidden
