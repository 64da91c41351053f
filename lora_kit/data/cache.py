"""Encodings on disk: found again by what they were made of, and read only where the file is whole."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lora_kit.config import TrainingConfig
from lora_kit.data.emoji import cache_dir
from lora_kit.data.encoding import Encoded, encoding_batch
from lora_kit.data.identity import text_digest
from lora_kit.models import model_path
from lora_kit.system.checks import checked, shown

if TYPE_CHECKING:
    import torch

FORMAT = 2  # of the file; a new one makes every stored file unknown
STALE_PART_SECONDS = 24 * 3600
UNUSED_DAYS = 30
CACHE_GB = 50  # at most, if LORA_KIT_CACHE_GB names no other number


class EncodingCache:
    """The file that holds the encodings of one data set by one model.

    Made from the same settings it finds the same file; another data set, model or setting is another key. `read` gives
    None where there is none or it is not whole; `write` stores under a temporary name, renames it, and makes room (`evict`).

    seed: what max_train_samples are chosen with. num_processes, dtype, device: of the run that encodes. identity: the data's.
    fingerprint: what the Hub's library knows pictures by that aren't files of this machine.
    """

    def __init__(
        self,
        config: TrainingConfig,
        seed: int | None,
        num_processes: int,
        dtype: "torch.dtype",
        device: "torch.device",
        identity: str,
        fingerprint: str | None = None,
    ) -> None:
        cache_limit()  # before anything is encoded
        ways = config.behaviour
        known = {
            "format": FORMAT,
            "model": _model_files(config),
            "data": [identity, fingerprint],
            "columns": [config.image_column, config.caption_column],
            "samples": config.max_train_samples and [config.max_train_samples, seed],
            "pictures": [config.resolution, config.center_crop, config.random_flip, config.image_interpolation_mode],
            "checked": ways.refuses_bad_fit,  # the encodings of pictures that a run refuses aren't for it
            "batches": encoding_batch(config),
            "last batch": ways.largest_encoding_batch is None and min(num_processes, 2),  # on several it is filled up
            "computed": [str(dtype), device.type],
        }
        self.key = text_digest(known)
        self.path = cache_dir() / f"encoded-{self.key[:32]}.safetensors"

    def read(self) -> Encoded | None:
        """`Encoded`, its tensors mapped from the file and so shared between processes, or None."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, ValueError, SafetensorError):  # ValueError: a header of other types
            return None
        if about.get("key") != self.key or about.get("digest") != _content_digest(tensors, about.get("rest", "")):
            return None
        with contextlib.suppress(OSError):
            os.utime(self.path)  # when it was last used
        rest = json.loads(about["rest"])
        rest["batch_sizes"] = tuple(rest["batch_sizes"])
        return Encoded(posterior=tensors.get("posterior"), hidden=tensors["hidden"], **rest)

    def write(self, encoded: Encoded) -> Encoded:
        """Store `encoded` and return it as `read` does. Raises ValueError where the disk does not take it."""
        from safetensors.torch import save_file

        tensors = {"posterior": encoded.posterior, "hidden": encoded.hidden}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        rest = {name: getattr(encoded, name) for name in ("captions", "scaling_factor", "batch_sizes", "cut")}
        about = {"key": self.key, "rest": json.dumps(rest)}
        about["digest"] = _content_digest(tensors, about["rest"])
        part = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata=about)
            part.chmod(0o444)
            os.replace(part, self.path)
        except Exception as error:  # safetensors raises its own for a full disk
            with contextlib.suppress(OSError):
                part.unlink()
            raise ValueError(
                f"the cache {self.path} can't be written: {error}. Set LORA_KIT_CACHE to a folder with room, or use "
                "no_cache"
            ) from error
        evict(self.path.parent, self.path)
        return self.read() or encoded


def _content_digest(tensors, rest):
    """Of all that is read: names, shapes, numbers, and what stands beside them."""
    import torch

    digest = hashlib.sha256(rest.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _listing(folder):
    """Name, size and time of every file under `folder`: what changes when a file does, without reading it."""
    files = [(path, path.stat()) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return [[str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns] for path, stat in files]


def _model_files(config):
    path = model_path(config.pretrained_model_name_or_path)
    if Path(path).is_dir():
        return [_listing(Path(path, part)) for part in ("vae", "text_encoder", "tokenizer")]
    from huggingface_hub import try_to_load_from_cache

    stored = [  # a path that holds the commit; not the file's, whose content the commit names
        try_to_load_from_cache(path, f"{part}/config.json", cache_dir=config.cache_dir, revision=config.revision)
        for part in ("vae", "text_encoder")
    ]
    return [path, config.revision, config.variant, *map(str, stored)]


def cache_limit() -> float:
    """The bytes that all encodings together may take. Raises ValueError for a LORA_KIT_CACHE_GB that is no number."""
    text = os.environ.get("LORA_KIT_CACHE_GB") or str(CACHE_GB)
    try:
        return checked("LORA_KIT_CACHE_GB", float(text), float, low=0.0) * 1e9
    except ValueError:
        raise ValueError(f"LORA_KIT_CACHE_GB {shown(text)} is not a number of at least 0, such as {CACHE_GB}") from None


def evict(folder: Path, kept: Path | None = None) -> None:
    """Remove encodings that nobody has used for `UNUSED_DAYS`, then the longest unused beyond `CACHE_GB`, but for `kept`; and
    half-written files of a day ago."""
    sizes, now, room = {}, time.time(), cache_limit()
    for path in folder.glob("encoded-*"):
        with contextlib.suppress(OSError):  # another run may remove it meanwhile
            stat = path.stat()
            sizes[path] = (now - stat.st_mtime, stat.st_size)
    for path, (age, size) in sorted(sizes.items(), key=lambda item: item[1]):  # the one last used comes first
        room -= size
        over = room < 0 or age > UNUSED_DAYS * 86_400
        if path != kept and (age > STALE_PART_SECONDS if path.suffix == ".part" else over):
            with contextlib.suppress(OSError):
                path.unlink()
