"""Which base model a LoRA belongs to, by content: exchanged weights are noticed, and a moved folder is still the same model."""

import json
from pathlib import Path
from typing import Any

from lora_kit.config import TrainingConfig
from lora_kit.data.file_index import FileIndex
from lora_kit.models import model_path
from lora_kit.system.files import json_digest

SHA_256 = 64  # hexadecimal digits


def base_identity(config: TrainingConfig) -> dict[str, str]:
    """{name of a file of the UNet: digest of what it says}, of the weights that a run loads and of their description.

    Weights in a folder are read once, then known by size and times; the Hub's cache names them by their digest. {} where there
    is nothing that can be read.
    """
    try:
        folder = _unet_folder(config)
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        loaded = [path for path in weights if _variant(path) == (config.variant or "")] or weights
        stored = {path.name: path.resolve() for path in loaded}
        named = {
            name: blob.name
            for name, blob in stored.items()
            if blob.parent.name == "blobs" and len(blob.name) == SHA_256
        }
        # without diffusers' version and the name
        own = {name: value for name, value in sorted(about.items()) if not name.startswith("_")}
        read = FileIndex(folder).digests([path for path in loaded if path.name not in named])
        return {"config.json": json_digest(own), **named, **dict(read)}
    except (OSError, ValueError, AttributeError):  # AttributeError: a description that is no mapping
        return {}


def _unet_folder(config):
    path = model_path(config.pretrained_model_name_or_path)
    if Path(path).is_dir():
        return Path(path, "unet")
    from huggingface_hub import try_to_load_from_cache

    stored = try_to_load_from_cache(path, "unet/config.json", cache_dir=config.cache_dir, revision=config.revision)
    return Path(str(stored)).parent  # where it isn't stored, that is no folder


def _variant(path):
    """ "fp16" of diffusion_pytorch_model.fp16.safetensors, or of one of its shards."""
    return path.stem.partition(".")[2].partition("-")[0]


def exchanged(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The files that two identities both have and that differ: other files say nothing, such as those of another variant."""
    return [name for name, digest in before.items() if now.get(name, digest) != digest]
