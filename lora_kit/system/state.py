"""What a run changes outside itself, put back as it was."""

import contextlib
from collections.abc import Iterator
from typing import Any

from lora_kit.system.imports import quiet_imports
from lora_kit.system.world import launched, no_launcher


@contextlib.contextmanager
def own_accelerate_state() -> Iterator[None]:
    """A block that begins without accelerate's state and leaves none, unless a launcher set up the process."""
    quiet_imports()
    from accelerate.state import AcceleratorState

    if launched():
        yield
        return
    with no_launcher():
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            yield
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """A block in which matrix products may use TF32, if `allowed`; else all stays as it is."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    if allowed:
        torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextlib.contextmanager
def undisturbed(model: Any, device: Any) -> Iterator[None]:
    """A block that may draw from torch's generators and set the model's mode: afterwards the generators are as they were, and
    the model trains."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    model.train()
