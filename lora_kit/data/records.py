"""A file of equal records, each with a seal of its own: what is there is whole, and the rest is added when it is made."""

import contextlib
import errno
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.system.files import made_in

if TYPE_CHECKING:
    import torch

SEAL = 16  # bytes of SHA-256


class SealedRecords:
    """`count` tensors of one `shape` and `dtype` in a file: first the seals of all, then the tensors, in order.

    A seal is the digest of `key`, the record's place and its bytes. So a record that was cut short, damaged, or written for
    something else isn't there for a reader, and it doesn't matter who writes when, or where one breaks off. The file is as long as
    all of them from the start, but takes up only what was written; nothing but the records that are asked for is read.

    Raises OSError where the file can't be made. In a forked process it goes on as it is.
    """

    def __init__(self, path: Path, key: str, count: int, shape: Sequence[int], dtype: "torch.dtype") -> None:
        self.path, self.key, self.count, self.shape, self.dtype = path, key.encode(), count, tuple(shape), dtype
        self.size = math.prod(self.shape) * dtype.itemsize
        length = count * (SEAL + self.size)
        self.number = _open(path, length)
        if os.fstat(self.number).st_size != length:
            os.close(self.number)
            path.unlink(missing_ok=True)  # cut short, or another's
            self.number = _open(path, length)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "number": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.number = _open(self.path, self.count * (SEAL + self.size))

    def __del__(self) -> None:
        if getattr(self, "number", None) is not None:
            os.close(self.number)

    def gather(self, places: Sequence[int]) -> "tuple[torch.Tensor, list[int]]":
        """(the records at `places`, stacked; which of these, counted from 0, aren't there, and have any numbers)."""
        import torch

        records = torch.empty(len(places), *self.shape, dtype=self.dtype)
        missing = []
        for row, place in enumerate(places):
            content = _bytes(records[row])
            read = os.preadv(self.number, [content], self.count * SEAL + place * self.size)
            if read != self.size or os.pread(self.number, SEAL, place * SEAL) != self._seal(place, content):
                missing.append(row)
        return records, missing

    def write(self, place: int, record: "torch.Tensor") -> None:
        """Add a record, or mend it. Raises OSError where the disk doesn't take it; what is there stays whole."""
        content = _bytes(record.detach().cpu().to(self.dtype).contiguous())
        self._write(content, self.count * SEAL + place * self.size)
        self._write(self._seal(place, content), place * SEAL)

    def _write(self, content, offset):
        try:
            written = os.pwrite(self.number, content, offset)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile: then it is made anew
                self.path.chmod(0o644)  # it was opened for reading, since all was there
            number, self.number = self.number, _open(self.path, self.count * (SEAL + self.size))
            os.close(number)
            written = os.pwrite(self.number, content, offset)
        if written != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _seal(self, place, content):
        digest = hashlib.sha256(self.key)
        digest.update(place.to_bytes(8, "little"))
        digest.update(content)
        return digest.digest()[:SEAL]

    def finish(self) -> None:
        """Make the file read-only if all records are there."""
        if not self.missing():
            with contextlib.suppress(OSError):  # another user's, or gone meanwhile
                os.fchmod(self.number, 0o444)

    def missing(self) -> int:
        """How many records were never written."""
        import numpy as np

        seals = np.frombuffer(os.pread(self.number, self.count * SEAL, 0), dtype=np.uint64)
        return self.count - int(seals.reshape(-1, SEAL // 8).any(axis=1).sum())

    def room(self) -> int:
        """The bytes that the missing records will take."""
        return self.missing() * (self.size + SEAL)


def _open(path, length):
    """The number of the open file, made as long as that where it is new."""
    try:
        number = made_in(path.parent, lambda: os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and path.exists():
            return os.open(path, os.O_RDONLY)  # finished, or another user's
        raise
    try:
        if os.fstat(number).st_size == 0:
            os.ftruncate(number, length)
    except OSError:
        os.close(number)
        raise
    return number


def _bytes(tensor):
    """The memory of a contiguous tensor."""
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
