"""What earlier runs read of a folder's files, so that a file is read again only where it may have changed."""

import contextlib
import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_kit.data.emoji import cache_dir
from lora_kit.data.pictures import check_picture
from lora_kit.system.files import file_digest, json_digest, read_sealed, remove_unused, write_sealed

KEPT_EVERY = 60  # seconds: what a run has read by then is known to the next, even if it is killed


class FileIndex:
    """What is known of a folder's files: size, times and inode number of each, the digest of its content, and how it was checked.

    It is kept beside the encodings. Replacing a file changes its inode number or its change time, which no copying program sets.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.states, self.changed, self.kept = folder, {}, False, time.monotonic()

    @cached_property
    def path(self) -> Path:
        """Where it is kept. ValueError without a home."""
        return cache_dir() / f"files-{json_digest(str(self.folder))[:20]}.json"

    @cached_property
    def known(self) -> dict[str, list[Any]]:
        """{name: [its size, times and inode number, digest or None, the any_kind it was checked with or None]}."""
        with contextlib.suppress(OSError):
            os.utime(self.path)  # when it was last used
        return read_sealed(self.path) or {}

    def digests(self, files: Sequence[Path]) -> list[list[str]]:
        """[[name within the folder, digest of the content]] of the files that make the data; others are forgotten."""
        found = {}
        for path in files:
            state, digest, checked = self._about(path)
            if digest is None:
                digest = file_digest(path)
                self._learn(path, state, digest, checked)
            found[self._name(path)] = digest
            self.states[self._name(path)] = state, digest
        for name in self.known.keys() - found.keys():
            del self.known[name]
            self.changed = True
        self.keep()
        return [[name, digest] for name, digest in sorted(found.items())]

    def check(self, path: Path, any_kind: bool) -> None:
        """`check_picture`, unless that found nothing wrong with this very file before."""
        try:
            state, digest, checked = self._about(path)
        except OSError:
            return check_picture(path, any_kind)  # which says what is wrong
        if checked is None or (checked and not any_kind):
            check_picture(path, any_kind)
            self._learn(path, state, digest, any_kind)

    def unchanged(self, name: str) -> bool:
        """Whether a file has the content that it had when its digest was asked for; True for any other file."""
        path = Path(name)
        before, digest = self.states.get(self._name(path), (None, None))
        try:
            now = before and _state(path)
            if now != before:  # perhaps only its permissions or the number of its links
                if file_digest(path) != digest:
                    return False
                self.states[self._name(path)] = now, digest
        except OSError:
            return False
        return True

    def keep(self) -> None:
        """Write what is new. On a full disk everything is read again the next time."""
        self.kept = time.monotonic()
        if self.changed:
            with contextlib.suppress(ValueError):
                write_sealed(self.path, self.known)
                remove_unused(self.path.parent, "files-*.json")
        self.changed = False

    def _name(self, path):
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path)

    def _about(self, path):
        """(state, digest, the any_kind it was checked with) of a file as it is now."""
        now = _state(path)
        *before, digest, checked = self.known.get(self._name(path)) or [None, None]
        return (now, digest, checked) if before == now else (now, None, None)

    def _learn(self, path, state, digest, checked):
        self.known[self._name(path)] = [*state, digest, checked]
        self.changed = True
        if time.monotonic() - self.kept >= KEPT_EVERY:
            self.keep()


def _state(path):
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
