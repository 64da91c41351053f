"""Files that are whole or not there: every write may fail, and then says why and leaves what stood there before."""

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STALE_PART_SECONDS = 24 * 3600  # after which a temporary file is taken for one that a killed process left
REMOVALS = 10  # of a folder by other processes, while a file is written into it
UNUSED_DAYS = 30  # after which what a cache holds is removed
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # what a disk answers that takes no more
CAN_T_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM)  # what some disks answer


class NotWritten(ValueError):
    """A file can't be written; the text names it, and says why."""


def write_whole(path: str | Path, write: Callable[[Path], Any], cure: str = "", mode: int = 0) -> Path:
    """Write a whole file and return its path; by then it is on the disk even if the power fails.

    write: called with a temporary name in the same folder, which is this call's own and ends with ".part". cure: what the reader
    can do where the disk doesn't take it. mode: of the file, such as 0o444, if not the usual one. The folder is made if it is
    missing. Raises NotWritten, whatever went wrong in `write` or on the disk: what stood under the path is then as it was.

    >>> write_whole("/dev/null/a.txt", lambda part: part.write_text("a"), "choose a folder")
    Traceback (most recent call last):
    lora_kit.system.files.NotWritten: /dev/null/a.txt can't be written: NotADirectoryError Not a directory; choose a folder
    """
    path, handled = Path(path), sys.exc_info()[1]
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")

    def make():
        part.touch()
        usual = part.stat().st_mode
        part.unlink()
        write(part)
        try:
            part.chmod(mode or usual)  # safetensors lets nobody else read its files
        except OSError as error:
            if error.errno not in CAN_T_SYNC:
                raise
        sync(part)
        put_in_place(part, path)

    try:
        made_in(path.parent, make)
    except Exception as error:  # each library has its own for a full disk
        raise NotWritten(f"{path} can't be written: {reason(error, handled)}" + (cure and f"; {cure}")) from error
    finally:  # also where the user interrupts
        with contextlib.suppress(OSError):
            part.unlink()
    for other in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > STALE_PART_SECONDS:
                other.unlink()
    return path


def made_in(folder: Path, make: Callable[[], Any]) -> Any:
    """What `make` returns, called with the folder there, and again where another process removes that meanwhile."""
    for left in reversed(range(REMOVALS)):
        try:
            with contextlib.suppress(FileExistsError):  # where that is a file, writing says so better
                folder.mkdir(parents=True)
            return make()
        except FileNotFoundError as error:
            if not left or not str(error.filename).startswith(str(folder)):
                raise


def disk_failed(error: BaseException | None) -> bool:
    """Whether an error is a disk's: full, broken or not to be written."""
    return isinstance(error, NotWritten) or (isinstance(error, OSError) and error.errno in FULL)


def json_digest(value: object) -> str:
    """The SHA-256 of a value that JSON can write, in hexadecimal."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """A record with None for each number that is not finite, for which JSON has no word.

    >>> finite({"loss": float("nan"), "lr": 0.1})
    {'loss': None, 'lr': 0.1}
    """
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }


def write_sealed(path: Path, value: object, cure: str = "") -> None:
    """Write a value as JSON with its digest, for `read_sealed`. Raises NotWritten, as `write_whole` does."""
    text = json.dumps({"value": value, "seal": json_digest(value)})
    write_whole(path, lambda part: part.write_text(text), cure)


def read_sealed(path: Path) -> Any:
    """What `write_sealed` wrote, or None where there is nothing, or nothing that is as it was written."""
    try:
        stored = json.loads(path.read_text())
        return stored["value"] if stored["seal"] == json_digest(stored["value"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def put_in_place(part: Path, final: Path) -> None:
    """Give a finished file or folder its name; after this call it is there even if the power fails."""
    os.replace(part, final)
    sync(Path(final).parent)


def sync(path: str | Path) -> None:
    """Have the system write what it holds back of a file or folder."""
    try:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in CAN_T_SYNC:
            raise


def remove_unused(folder: Path, pattern: str) -> None:
    """Remove the files of a folder that fit the pattern and whose time, that of their last use, is `UNUSED_DAYS` ago."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may remove it meanwhile
            if time.time() - path.stat().st_mtime > UNUSED_DAYS * 86_400:
                path.unlink()


def free_bytes(path: str | Path) -> int:
    """The bytes that the disk still takes on which `path` stands or would be made. Raises OSError where it can't be asked."""
    usage = shutil.disk_usage(_standing(path))
    if not usage.total:
        raise OSError(f"the disk of {path} doesn't say how large it is")
    return usage.free


def same_disk(path: str | Path, other: str | Path) -> bool:
    """Whether both paths stand, or would be made, on one disk."""
    return _standing(path).stat().st_dev == _standing(other).stat().st_dev


def _standing(path):
    """The path, or the innermost folder above it, that is there."""
    path = Path(path).absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def in_bytes(size: float) -> str:
    """A size as people read it.

    >>> in_bytes(203_656), in_bytes(1_234_567_890)
    ('0.2 MB', '1.2 GB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def reason(error: BaseException, handled: BaseException | None = None) -> str:
    """What an error comes down to: the innermost one's kind and message, without its path.

    handled: an older error, which was being handled when this one arose; it is no part of it.
    """
    while error is not None and error is not handled:
        inner, error = error, error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return f"{type(inner).__name__} {getattr(inner, 'strerror', None) or inner}".strip()
