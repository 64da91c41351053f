"""torch's elastic launcher, which notebook_launcher uses: cleaning up after it, and a start that the latter lacks."""

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_kit.system.signals import HEARD, kept_handlers

OURS = ("result.json", "error-*.json", "pytorch-errorfile-*", "torchelastic_*")  # files of a launch, and torch's of it
LOGGERS = (
    "torch.distributed.elastic",
    "torch.multiprocessing.spawn",
)  # 25 lines on who failed last, and one on each other
PATIENCE = ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")  # seconds, from a signal on, for an update and its checkpoint


_streams = []  # kept: `print` in another thread may be at one when the block ends, and in Python 3.11 holds no reference to it


class _OtherThreads:
    """A stream that drops what the thread that made it writes, and passes on what others do."""

    def __init__(self, stream):
        self._stream, self._deaf = stream, threading.get_ident()

    def write(self, text):
        return len(text) if threading.get_ident() == self._deaf else self._stream.write(text)

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextlib.contextmanager
def nothing_printed() -> Iterator[None]:
    """A block in which this thread prints nothing; what other threads print comes through."""
    _streams.append(_OtherThreads(sys.stdout))
    with contextlib.redirect_stdout(_streams[-1]):
        yield


@contextlib.contextmanager
def elastic_launcher() -> Iterator[list[int]]:
    """A block that may start elastic's processes: its log is silent, a signal leaves them time for a checkpoint, and what was set
    comes back as it was. Yields the signals that are ignored, as by nohup: elastic would hear them, and its processes too."""
    from torch.distributed.elastic.multiprocessing import api

    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    ignored = [number for number in HEARD if signal.getsignal(number) == signal.SIG_IGN]
    end, unset = getattr(api, "_terminate_process_handler", None), PATIENCE[0] not in os.environ
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        os.environ.setdefault(*PATIENCE)
        api._terminate_process_handler = lambda number, frame: None if number in ignored else end(number, frame)
        with kept_handlers():
            yield ignored
    finally:
        api._terminate_process_handler = end
        if unset:
            del os.environ[PATIENCE[0]]
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def launch_folder() -> Iterator[Path]:
    """A new folder for what processes report, in which torch's temporary files go too; gone after the block.

    Temporary files that another thread makes meanwhile stay in it.
    """
    before, folder = tempfile.gettempdir(), Path(tempfile.mkdtemp(prefix="lora_kit-"))
    tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        for path in (path for pattern in OURS for path in folder.glob(pattern)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def start_one(
    worker: Callable[..., Any],
    arguments: tuple[Any, ...],
    address: str,
    port: int,
    machines: int,
    rank: int,
    limit: int,
) -> None:
    """One process of this machine in a world of several machines, where notebook_launcher would forget the others.

    limit: seconds for the machines to meet.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    from torch.numa.binding import AffinityMode, NumaOptions

    config = LaunchConfig(
        min_nodes=machines,
        max_nodes=machines,
        nproc_per_node=1,
        run_id="none",
        rdzv_backend="static",
        rdzv_endpoint=f"{address}:{port}",
        rdzv_configs={"rank": rank, "timeout": limit},
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
        numa_options=NumaOptions(AffinityMode.NODE),
    )
    config.numa_options = None  # None above would have torch start CUDA to ask for GPUs: see available_devices
    elastic_launch(config, worker)(*arguments)
