"""The processes that train together: a port to meet at, proof that all of them are there, and an orderly end."""

import contextlib
import errno
import gc
import os
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAUNCHER_SETS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "MASTER_ADDR",
    "MASTER_PORT",
)  # fmt: skip


def launched() -> bool:
    """Whether a launcher set up this process. In a notebook only one that forked it did: variables alone are left over there."""
    return "WORLD_SIZE" in os.environ and ("ipykernel" not in sys.modules or "TORCHELASTIC_RUN_ID" in os.environ)


@contextlib.contextmanager
def no_launcher() -> Iterator[None]:
    """A block without what a launcher would have set, such as WORLD_SIZE; says what it sets aside and puts it back."""
    aside = {name: os.environ.pop(name) for name in LAUNCHER_SETS if name in os.environ}
    if aside:
        named = ", ".join(f"{name} {value!r}" for name, value in aside.items())
        print(f"warning: {named} in the environment: set aside, since no launcher started this process")
    try:
        yield
    finally:
        os.environ.update(aside)


def free_port() -> int:
    """A TCP port that is free now, and that the system gives to nobody by itself until it is used.

    Port "0" would make accelerate's launcher hang. Raises OSError where no port is free.
    """
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])  # of those it gives out
    except OSError:
        lowest = 49152  # as the standard has it (RFC 6335)
    choose = random.SystemRandom()  # seeds stay as they are
    for port in (choose.randrange(10_000, max(lowest, 10_100)) for _ in range(100)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError(errno.EADDRINUSE, "no free port in 100 tries")


def prove_world(accelerator: Any, expected: int) -> None:
    """RuntimeError unless `expected` processes answer each other, each under its own rank."""
    import torch

    ranks = accelerator.gather(torch.tensor([accelerator.process_index], device=accelerator.device)).tolist()
    if sorted(ranks) != list(range(expected)):
        raise RuntimeError(
            f"asked for {expected} process(es), but those that answer have the ranks {ranks}: start all of them with one launcher"
        )


def leave_process_group() -> None:
    """End the process group in order, if there is one; else some CPU processes abort at exit, after all is done."""
    import torch.distributed

    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        gc.collect()
