"""The processes that train together: a port to meet at, proof that all of them are there, and an orderly end."""

import gc
import socket
from typing import Any


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now. Port "0" would make accelerate's launcher hang."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
