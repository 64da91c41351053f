"""Imports of large libraries: quietly, without what isn't needed, and without a pause for collecting garbage."""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from lora_kit.system.devices import available_devices
from lora_kit.system.files import reason

NEEDED = {  # a setting, the module that it needs, and what to do where that can't be had
    "enable_xformers_memory_efficient_attention": (
        "xformers.ops",
        "install it, or leave the setting out: torch's own attention is fused too",
    ),
    "use_8bit_adam": ("bitsandbytes.optim", "`pip install bitsandbytes`, or leave the setting out"),
}


def quiet_imports() -> None:
    """Keep diffusers and bitsandbytes from reporting two optional packages that nothing here uses; call it first.

    torchvision: diffusers' IP-Adapter code asks for image processors, and transformers says that it takes the PIL ones.
    No LoRA keys: this kit trains the UNet only, so its files have none for the text encoder.
    kernels: on CPUs with AVX512-BF16 bitsandbytes looks for a 4-bit kernel. Every other message still comes through.

    Raises ValueError for an ACCELERATE_LOG_LEVEL that accelerate, which peft imports, could not be imported with.
    """
    level = os.environ.get("ACCELERATE_LOG_LEVEL")
    if level is not None and not isinstance(logging.getLevelName(level.upper()), int):
        raise ValueError(
            f"ACCELERATE_LOG_LEVEL {level!r} in the environment is no level: give DEBUG, INFO, WARNING, ERROR or CRITICAL, or unset it"
        )
    for name, words in (
        ("transformers.utils.import_utils", "requires torchvision (not installed)"),
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),
        ("diffusers.loaders.lora_base", "No LoRA keys associated to CLIPTextModel"),
    ):
        logger = logging.getLogger(name)
        if not any(getattr(item, "words", None) == words for item in logger.filters):
            logger.addFilter(_Without(words))


OF_EVERY_RUN = (
    "accelerate", "accelerate.tracking", "datasets", "diffusers.models.autoencoders.autoencoder_kl", "diffusers.optimization",
    "diffusers.models.unets.unet_2d_condition", "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.schedulers.scheduling_ddpm", "diffusers.training_utils", "peft.utils", "safetensors.torch",
    "transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip",
)  # fmt: skip


def import_early(num_processes: int) -> None:
    """Import what every run imports, before several processes are forked, which then share it; `quiet_imports` in any case.

    Not on a machine with a GPU: peft imports bitsandbytes, which begins to use it, and then no fork could.
    """
    quiet_imports()
    if num_processes > 1 and not available_devices()[0]:
        for name in OF_EVERY_RUN:
            import_module(name)


class _Without:
    def __init__(self, words):
        self.words = words

    def filter(self, record):
        return self.words not in str(record.msg)


def needed_by(setting: str) -> ModuleType:
    """The module that a setting of `NEEDED` needs. Raises ValueError, with a cure, where it can't be imported."""
    module, cure = NEEDED[setting]
    quiet_imports()
    try:
        return import_module(module)
    except Exception as error:  # one that was built for another torch or CUDA has its own
        package = module.partition(".")[0]
        raise ValueError(f"{setting}: {package} can't be imported ({reason(error)}); {cure}") from error


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """A block in which bitsandbytes can't be found, which diffusers and peft import, for a second, where it can.

    For a process that only trains: what diffusers has imported so can't load a quantized model any more.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    sys.modules["bitsandbytes"] = None
    try:
        yield
    finally:
        sys.modules.pop("bitsandbytes", None)


@contextmanager
def collecting_later() -> Iterator[Callable[..., None]]:
    """Garbage is collected only once what this yields is called, or the block ends: libraries make a million objects that
    stay, and looking through them again and again takes a sixth of the time to import them."""
    enabled = gc.isenabled()
    gc.disable()

    def collect(*ignored):
        gc.freeze()
        if enabled:
            gc.enable()

    try:
        yield collect
    finally:
        if enabled:
            gc.enable()


@contextmanager
def bars_for_downloads_only(path: str) -> Iterator[None]:
    """No progress bars while a local folder is read, which takes a moment; a download keeps its own."""
    from pathlib import Path

    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = [diffusers.utils.logging, transformers.utils.logging] if Path(path).is_dir() else []
    libraries = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
