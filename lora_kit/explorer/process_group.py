"""A program in a session of its own, which ends with all that it has started."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE = 3.0  # seconds for a program that was asked to end
LIMIT = 30.0  # seconds for one that was killed: only a broken disk or driver holds it longer


class ProcessGroup:
    """A running program; `pid` is its own, and its session's. command: its words. log: the file for what it writes."""

    def __init__(self, command: Sequence[str], log: Path):
        with open(log, "w") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        self.pid, self._left = self._process.pid, None

    def poll(self) -> int | None:
        """The program's exit status; None while it runs."""
        status = self._process.poll()
        if status is not None and self._left is None:
            self._left = self._session()  # from now on the numbers may be given to strangers
        return status

    def members(self) -> list[Any]:
        """The `psutil.Process` of the program and of all that it has started, whatever group they are in, while they live."""
        import psutil

        processes = set(self._session() if self.poll() is None else self._left)
        for process in list(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                processes.update(process.children(recursive=True))
        return [process for process in processes if _lives(process)]

    def end(self) -> None:
        """End them: the program is asked, and what is left after a moment is not. Returns when all of them are gone.

        Raises RuntimeError where one lives on for `LIMIT` seconds after it was killed.
        """
        import psutil

        left = set(self.members())
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
        limit = time.monotonic() + LIMIT
        while left := {process for process in left.union(self.members()) if _lives(process)}:
            if time.monotonic() > limit:
                raise RuntimeError(f"processes {sorted(process.pid for process in left)} can't be ended")
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.poll()
            time.sleep(0.01)

    def _session(self):
        import psutil

        processes = []
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if os.getsid(pid) == self.pid:
                    processes.append(psutil.Process(pid))
        return processes


def _lives(process):
    """Whether a process has not ended; one that has, and which nobody has asked for its status, has."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
