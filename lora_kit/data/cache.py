"""Encodings on disk: found again by what they were made of, and read only where they are whole."""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.config import TrainingConfig
from lora_kit.data.emoji import cache_dir
from lora_kit.data.encoding import Plan, encoding_batch
from lora_kit.data.records import SealedRecords
from lora_kit.models import model_path
from lora_kit.system.checks import checked, shown
from lora_kit.system.files import UNUSED_DAYS, free_bytes, in_bytes, json_digest, read_sealed, reason, write_sealed

if TYPE_CHECKING:
    import torch

FORMAT = 3  # of the folder; a new one makes every stored folder unknown
CACHE_GB = 50  # at most, if LORA_KIT_CACHE_GB names no other number
TUPLES = ("caption_shape", "picture_shape", "batch_sizes")  # of a plan, which are lists in JSON
CURE = "set LORA_KIT_CACHE to a folder with room, or use no_cache"


class EncodingCache:
    """The folder that holds the encodings of one data set by one model: plan.json, and a file of `SealedRecords` each for
    captions and pictures.

    Made from the same settings it finds the same folder; another data set, model or setting is another key. Several runs may fill
    it at once: each writes the same.

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
        self.key, self.dtype = json_digest(known), dtype
        self.path = cache_dir() / f"encoded-{self.key[:32]}"

    def read(self) -> Plan | None:
        """The plan that was written, or None where there is none or it is not whole."""
        key, plan = read_sealed(self.path / "plan.json") or (None, {})
        if key != self.key or list(plan) != list(Plan._fields):
            return None
        with contextlib.suppress(OSError):
            os.utime(self.path / "plan.json")  # when it was last used
        return Plan(**{name: tuple(plan[name]) if name in TUPLES and plan[name] else plan[name] for name in plan})

    def write(self, plan: Plan) -> None:
        """Keep `plan`. Raises ValueError where the disk does not take it."""
        write_sealed(self.path / "plan.json", [self.key, plan._asdict()], CURE)

    def open(
        self, plan: Plan, least: int = 0, most: int = 0, say: Callable[[str], Any] = print
    ) -> tuple[SealedRecords, SealedRecords | None]:
        """(captions, pictures) as far as they are encoded; None where pictures aren't kept. What is missing is made room for (`evict`).

        least, most: bytes that the run will write elsewhere on this disk. Raises ValueError where the encodings can't be written,
        and, with both figures, where the disk has no room for what is missing and `least`; says where it has none for `most`.
        """
        try:
            count, *shape = plan.caption_shape
            captions = SealedRecords(self.path / "captions", f"{self.key} captions", count, shape, self.dtype)
            pictures = None
            if plan.picture_shape is not None:
                count, shape = math.prod(plan.picture_shape[:3]), plan.picture_shape[3:]
                pictures = SealedRecords(self.path / "pictures", f"{self.key} pictures", count, shape, self.dtype)
        except OSError as error:
            raise ValueError(f"the cache {self.path} can't be written: {reason(error)}; {CURE}") from error
        need = captions.room() + (pictures.room() if pictures else 0)
        if need:
            evict(self.path.parent, self.path, need)
        free = math.inf
        with contextlib.suppress(OSError):  # a disk that doesn't say
            free = free_bytes(self.path)
        fatal = need + least > free
        written = least if fatal else most
        if need and need + written > free and (fatal or free >= most):  # else the run's own check has said so
            beside = (
                f", and what the run writes into output_dir on the same disk needs {in_bytes(written)}"
                if written
                else ""
            )
            problem = (
                f"the encodings of {len(plan.captions):,} pictures and {plan.caption_shape[0]:,} captions need {in_bytes(need)} "
                f"more{beside}, but the disk of {self.path.parent} has {in_bytes(free)} free; {CURE}"
            )
            if fatal:
                raise ValueError(problem)
            say(f"warning: {problem}")
        return captions, pictures


def _listing(folder):
    """Name, size and time of every file under `folder`: what changes when a file does, without reading it."""
    files = [(path, path.stat()) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return [[str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns] for path, stat in files]


def _model_files(config):
    path = model_path(config.pretrained_model_name_or_path)
    if Path(path).is_dir():
        return [_listing(Path(path, part)) for part in ("vae", "text_encoder", "tokenizer")]
    stored = [_stored(path, f"{part}/config.json", config) for part in ("vae", "text_encoder")]
    return [path, config.revision, config.variant, *stored]


def _stored(path, file, config):
    """Where a small file of a Hub model is: a path that holds the commit, which names the content of all its files."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    place = dict(cache_dir=config.cache_dir, revision=config.revision)
    stored = try_to_load_from_cache(path, file, **place)
    if not isinstance(stored, str):
        with contextlib.suppress(Exception):  # loading the model says what is wrong
            stored = hf_hub_download(path, file, **place)
    return str(stored)


def cache_limit() -> float:
    """The bytes that all encodings together may take. Raises ValueError for a LORA_KIT_CACHE_GB that is no number."""
    text = os.environ.get("LORA_KIT_CACHE_GB") or str(CACHE_GB)
    try:
        return checked("LORA_KIT_CACHE_GB", float(text), float, low=0.0) * 1e9
    except ValueError:
        raise ValueError(f"LORA_KIT_CACHE_GB {shown(text)} is not a number of at least 0, such as {CACHE_GB}") from None


def evict(folder: Path, kept: Path | None = None, coming: int = 0) -> None:
    """Remove encodings that nobody has used for `UNUSED_DAYS`, then the longest unused beyond `CACHE_GB`, but for `kept`.

    coming: bytes that will be written.
    """
    sizes, now, room = {}, time.time(), cache_limit() - coming
    for path in folder.glob("encoded-*"):
        with contextlib.suppress(OSError):  # another run may remove it meanwhile
            stats = [file.stat() for file in (path.iterdir() if path.is_dir() else [path])]
            used = max((stat.st_mtime for stat in stats), default=0.0)
            sizes[path] = (now - used, sum(512 * stat.st_blocks for stat in stats))
    for path, (age, size) in sorted(sizes.items(), key=lambda item: item[1]):  # the one last used comes first
        room -= size
        if path != kept and (room < 0 or age > UNUSED_DAYS * 86_400):
            with contextlib.suppress(OSError):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()  # of an earlier version
