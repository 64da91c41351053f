"""What a notebook's kernel must be like to start processes: checked, and mended where that is possible."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from lora_kit.system.checks import is_whole
from lora_kit.system.devices import available_devices


class LaunchError(RuntimeError):
    """A launch that could not start, or a process that failed; the message says which, why and what to do."""


class PortTaken(LaunchError):
    """The processes could not meet at their port."""


def in_process_reason(num_processes: int) -> str | None:
    """Why the launcher will run in this kernel, in one process, whatever was asked for; None where it will not."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if "google.colab" in str(shell) and available_devices()[0] < 2:
        return "Colab with fewer than two GPUs: notebook_launcher runs one process, in this kernel"
    if num_processes == 1:
        return "one process: notebook_launcher runs it in this kernel"
    return None


def check_port(port: int | None, num_machines: int, machine_rank: int) -> None:
    """LaunchError for a port that is taken, or that several machines were not given."""
    if port is None:
        if num_machines > 1:
            raise LaunchError("port None: several machines need one that all of them are given, such as 29500")
        return
    if not is_whole(port) or not 1 <= port <= 65535:
        raise LaunchError(f"port {port!r} is not a port from 1 to 65535; 0 would make the launcher hang")
    if machine_rank == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                raise PortTaken(
                    f"port {port} is in use ({error.strerror}): choose another, or leave port out"
                ) from None


def check_kernel(kind: str) -> None:
    """Mend what would make a launch of several processes fail or run apart; LaunchError for what only a restart mends."""
    import torch
    from accelerate.state import AcceleratorState

    if kind != "cpu":
        cure = (
            "Restart the kernel and launch before any other cell touches a GPU, asks torch.cuda.is_available() or imports "
            "peft or diffusers."
        )
        if kind == "cuda" and (torch.cuda.is_initialized() or children_lose_cuda()):
            raise LaunchError(f"CUDA is already in use in this kernel, and can't be used again in its children. {cure}")
        if "bitsandbytes" in sys.modules:
            raise LaunchError(f"bitsandbytes is imported in this kernel (peft and diffusers models do it). {cure}")
    # an Accelerator or PartialState left in the kernel would be inherited: refused, or two runs that don't know each other
    AcceleratorState._reset_state(reset_partial_state=True)


def children_lose_cuda() -> bool:
    """Whether CUDA has been started in this process, if only by a question, so that a forked child can't use it."""
    import torch

    child = os.fork()
    if child == 0:
        os._exit(torch.cuda._is_in_bad_fork())
    return os.waitpid(child, 0)[1] != 0


@contextlib.contextmanager
def set_aside(package: str) -> Iterator[dict[str, Any]]:
    """A block in which a package's modules are not in sys.modules; yields them, for a forked child to put back.

    Only used on machines without an accelerator, where importing bitsandbytes has initialised nothing that a fork breaks.
    """
    aside = {name: module for name, module in sys.modules.items() if name == package or name.startswith(f"{package}.")}
    for name in aside:
        del sys.modules[name]
    try:
        yield aside
    finally:
        sys.modules.update(aside)


def renew_locks() -> None:
    """A lock of a kernel's stream that another thread held as the process forked would never be let go in the child."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if hasattr(stream, "_buffer_lock"):
            stream._buffer_lock = threading.RLock()
