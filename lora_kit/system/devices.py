"""What this machine computes on, asked without touching it."""

import platform
from typing import Any


def available_devices() -> tuple[int, str]:
    """(number, kind) of the accelerators here, such as (2, "cuda"); (0, "cpu") where there are none. Touches none.

    torch.accelerator.is_available() would: it starts CUDA's driver, which no process that is forked later can then use.
    """
    import torch

    device = torch.accelerator.current_accelerator(check_available=False)
    number = torch.get_device_module(device).device_count() if device else 0
    return (number, device.type) if number else (0, "cpu")


def device_name(device: Any) -> str:
    """The true name of a `torch.device`: the GPU's, or the processor's with the threads that torch uses."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    return str(device)
