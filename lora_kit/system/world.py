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
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
MPI_SETS = (  # mpirun and srun, which accelerate follows on a CPU
    *MPI_SIZES, "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE",
)  # fmt: skip


def _first_of(names):
    return next((int(os.environ[name]) for name in names if name in os.environ), 1)


def world_size() -> int:
    """How many processes the launcher of this one started, as accelerate reads it; 1 where there was none."""
    return _first_of(("WORLD_SIZE", *MPI_SIZES))


def launched() -> bool:
    """Whether a launcher set up this process. In a notebook only one that forked it did: variables alone are left over there."""
    sized = "WORLD_SIZE" in os.environ or world_size() > 1  # srun gives a shell a world of 1
    return sized and ("ipykernel" not in sys.modules or "TORCHELASTIC_RUN_ID" in os.environ)


@contextlib.contextmanager
def no_launcher() -> Iterator[None]:
    """A block without what a launcher would have set, such as WORLD_SIZE; says what it sets aside and puts it back."""
    names = LAUNCHER_SETS + (MPI_SETS if _first_of(MPI_SIZES) > 1 else ())
    aside = {name: os.environ.pop(name) for name in names if name in os.environ}
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
    """ValueError unless `expected` processes answer each other, each under its own rank."""
    import torch

    ranks = accelerator.gather(torch.tensor([accelerator.process_index], device=accelerator.device)).tolist()
    if sorted(ranks) != list(range(expected)):
        raise ValueError(
            f"asked for {expected} process(es), but those that answer have the ranks {ranks}: start all of them with one launcher, "
            "such as lora_kit.launch or torchrun"
        )


def leave_process_group() -> None:
    """End the process group in order, if there is one; else some CPU processes abort at exit, after all is done."""
    import torch.distributed

    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        gc.collect()
