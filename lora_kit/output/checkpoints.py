"""Checkpoints that are whole or not there.

A checkpoint is a folder that `accelerate` writes, with checkpoint.json, written last: the size and digest of each file,
the settings, and the world that wrote it, under a seal of its own. Without it, or where a file is not what it says, the folder
is broken.
"""

import contextlib
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from lora_kit.config import TrainingConfig
from lora_kit.system.files import (
    NotWritten,
    file_digest,
    finite,
    free_bytes,
    in_bytes,
    json_digest,
    put_in_place,
    reason,
    sync,
)

MANIFEST, FORMAT = "checkpoint.json", 2
NAME = re.compile("checkpoint-[1-9][0-9]*")


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whole or not. Copies under other names are not among them."""
    return [path for path in called_checkpoints(output_dir) if path.is_dir()]


def called_checkpoints(output_dir: str | Path) -> list[Path]:
    """All that has a checkpoint's name, oldest first, be it the folder, a link, or somebody's file."""
    return sorted((path for path in Path(output_dir).glob("checkpoint-*") if NAME.fullmatch(path.name)), key=number)


def number(folder: Path) -> int:
    """How many updates had been made when the checkpoint was written."""
    return int(folder.name.removeprefix("checkpoint-"))


def seal(folder: str | Path, config: TrainingConfig, **about: Any) -> None:
    """Write checkpoint.json, which records all files of `folder`, and have the system bring everything to the disk.

    about: what else to record, such as update, num_processes, num_examples.
    """
    folder = Path(folder)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "hub_token"}
    files = {}
    for path in sorted(path for path in folder.iterdir() if path.name != MANIFEST):
        files[path.name] = _digest(path)
        sync(path)
    manifest, record = folder / MANIFEST, {"format": FORMAT, **finite(about), "files": files, "config": settings}
    manifest.write_text(json.dumps(record | {"seal": _seal_of(record)}, indent=1))
    sync(manifest)
    sync(folder)


def _seal_of(record):
    """The digest of all that a record says, but for its seal."""
    return json_digest({**record, "seal": None})


def _digest(path):
    return [path.stat().st_size, file_digest(path)]


def read(folder: str | Path) -> dict[str, Any]:
    """The record of a whole checkpoint, as a dict. Raises ValueError, with the file's name, for one that is not whole."""
    folder = Path(folder)
    try:
        record = json.loads((folder / MANIFEST).read_text())
        if record["format"] != FORMAT:
            raise ValueError(f"{folder} is a checkpoint of format {record['format']!r}; this version reads {FORMAT}")
        if record["seal"] != _seal_of(record):
            raise ValueError(f"{folder / MANIFEST} is not as it was written: it is damaged, or another program's")
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {MANIFEST}, which is written last: it was not finished") from None
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{folder / MANIFEST} can't be read: {type(error).__name__} {error}") from None
    for name, digest in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        try:
            whole = _digest(path) == digest
        except OSError as error:
            raise ValueError(f"{path} can't be read: {reason(error)}") from error
        if not whole:
            raise ValueError(f"{path} is not as it was written: it is cut short or damaged")
    return record


def newest_whole(output_dir: str | Path) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """(the newest whole checkpoint, its record, what is wrong with newer ones); (None, None, [...]) where none is whole."""
    problems = []
    for folder in reversed(checkpoints(output_dir)):
        try:
            return folder, read(folder), problems
        except ValueError as error:
            problems.append(str(error))
    return None, None, problems


def remove(folder: Path) -> None:
    """Remove a checkpoint; of a link, which somebody laid, the link alone."""
    folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)


def write_checkpoint(
    accelerator: Any, output_dir: Path, config: TrainingConfig, update: int, about: dict[str, Any]
) -> None:
    """Write checkpoint-N under a temporary name, rename it, and only then remove what is over checkpoints_total_limit.

    Every process must call it. about: what checkpoint.json records; of those whose "finite" is not false, the newest always
    stays. Raises NotWritten where the disk doesn't take it.
    """
    final = output_dir / f"checkpoint-{update}"
    part = output_dir / f"{final.name}.part"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process or config.behaviour.keeps_every_random_state:
            accelerator.save_state(str(part))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            world = dict(num_processes=accelerator.num_processes, mixed_precision=accelerator.mixed_precision)
            seal(part, config, update=update, **world, **about)
            if final.exists() or final.is_symlink():
                remove(final)
            put_in_place(part, final)
    except BaseException as error:  # each library has its own for a full disk; or a signal that ends all at once
        if not accelerator.is_main_process:  # it writes little itself, and is left alone where the first process fails
            raise
        free = ""
        with contextlib.suppress(OSError):
            free = f" ({in_bytes(free_bytes(output_dir))} were free)"
        shutil.rmtree(part, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        raise NotWritten(f"{final} can't be written: {reason(error)}{free}") from error
    if accelerator.is_main_process and config.checkpoints_total_limit:
        all_of_them = checkpoints(output_dir)
        kept = next((folder for folder in reversed(all_of_them) if is_finite(folder)), None)
        for old in all_of_them[: -config.checkpoints_total_limit]:
            if old != kept:
                try:
                    remove(old)
                except OSError as error:
                    print(f"warning: {old} can't be removed: {reason(error)}; the run goes on", file=sys.stderr)
    accelerator.wait_for_everyone()


def is_finite(folder: Path) -> bool:
    """Whether a checkpoint says of its LoRA that it was finite; one that can't be read doesn't."""
    try:
        return json.loads((folder / MANIFEST).read_text()).get("finite", True)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
