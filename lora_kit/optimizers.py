"""AdamW in 32 or 8 bits, and what its state costs: measured, and foretold from the shapes alone."""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lora_kit.config import TrainingConfig
from lora_kit.system.imports import needed_by

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer

MIN_8BIT_ELEMENTS = 4096  # bitsandbytes' min_8bit_size: smaller tensors keep 32-bit state
BLOCK = 256  # elements that share one scale (absmax) in 8-bit state
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def make_optimizer(
    parameters: "Sequence[Parameter]", config: TrainingConfig, learning_rate: float | None = None, fused: bool = True
) -> "Optimizer":
    """torch's AdamW, or bitsandbytes' AdamW8bit where config.use_8bit_adam, over a list of parameters.

    learning_rate is the peak; left out: `config.peak_learning_rate()`, which with scale_lr is for one process. Fused
    means one kernel for all tensors, where every parameter's device and dtype allow it. Pass fused=False with an fp16
    GradScaler: a fused step decides inside its kernel whether to skip, so accelerate can't see that it was skipped and
    steps the schedule all the same. bitsandbytes has no such choice.

    Raises TypeError for an iterator, which is empty after the optimizer has read it, so that clipping has nothing to
    clip; ValueError for an empty list or a frozen parameter, and where bitsandbytes can't be imported. Warns of
    16-bit parameters, in which small updates round away.

    Source: Loshchilov & Hutter 2017 (arXiv:1711.05101); Dettmers et al. 2021 (arXiv:2110.02861).
    """
    if not isinstance(parameters, (list, tuple)):
        raise TypeError(
            f"parameters is a {type(parameters).__name__}, not a list. An iterator is empty once it has been read, "
            "and clipping then silently does nothing; pass trainable_parameters(unet)"
        )
    if not parameters:
        raise ValueError("parameters [] leaves nothing to train: call add_lora(unet) and pass what it returns")
    if frozen := sum(not parameter.requires_grad for parameter in parameters):
        raise ValueError(f"{frozen} of {len(parameters)} parameters are frozen: pass trainable_parameters(unet)")
    if small := {str(parameter.dtype) for parameter in parameters if parameter.element_size() < 4}:
        message = f"parameters in {', '.join(sorted(small))}: small updates round away; keep trained weights in float32"
        warnings.warn(message, stacklevel=2)
    rate = config.peak_learning_rate() if learning_rate is None else learning_rate
    betas, epsilon, decay = (config.adam_beta1, config.adam_beta2), config.adam_epsilon, config.adam_weight_decay
    settings = dict(lr=rate, betas=betas, eps=epsilon, weight_decay=decay)
    if config.use_8bit_adam:
        return needed_by("use_8bit_adam").AdamW8bit(parameters, **settings)
    import torch

    if fused and all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters):
        return torch.optim.AdamW(parameters, fused=True, **settings)
    # on a CPU torch would loop over the tensors; foreach gives the same bits in half the time
    return torch.optim.AdamW(parameters, foreach=True if parameters[0].device.type == "cpu" else None, **settings)


def state_bytes(optimizer: "Optimizer") -> list[dict[str, Any]]:
    """What the optimizer's state takes, as records, one per parameter tensor.

    Each record: shape, elements, bits (of its two moments), bytes, bytes_per_element. Take them after the first
    `step()`, which makes the state; before it this raises ValueError.

    Counted: every tensor in `optimizer.state`: the moments, torch's 4-byte step counter a parameter, the 8-bit scales.
    Not counted: bitsandbytes' step, a Python number. The two maps from 8 bits to numbers are shared by all 8-bit
    tensors: they are the last record, whose shape is "shared maps", so that the bytes of all records are the total.
    """
    if not optimizer.state:
        raise ValueError("this optimizer has no state yet: the first step() after a backward pass makes it")
    rows, maps = [], {}
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        state = {name: value for name, value in optimizer.state.get(parameter, {}).items() if hasattr(value, "nbytes")}
        maps |= {value.data_ptr(): value.nbytes for name, value in state.items() if name.startswith("qmap")}
        own = [value for name, value in state.items() if not name.startswith("qmap")]
        size, elements = sum(value.nbytes for value in own), parameter.numel()
        bits = next((8 * value.element_size() for value in own if value.shape == parameter.shape), None)
        rows.append((tuple(parameter.shape), elements, bits, size, size / elements))
    if maps:
        rows.append(("shared maps", 0, None, sum(maps.values()), None))
    names = ("shape", "elements", "bits", "bytes", "bytes_per_element")
    return [dict(zip(names, row, strict=True)) for row in rows]


def expected_state_bytes(shapes: Iterable[Sequence[int]], use_8bit_adam: bool = False) -> int:
    """The bytes that `state_bytes` will measure in all, for float32 parameters of these shapes.

    32 bits: 8 an element (two float32 moments) and 4 a tensor (its step counter). 8 bits: a tensor under 4,096 elements
    has 8 an element; a larger one 2 an element and two float32 scales a block of 256; and once, where any tensor is so
    large, two maps of 256 float32 numbers.

    >>> expected_state_bytes([(4, 320)]), expected_state_bytes([(4, 320)], use_8bit_adam=True)
    (10244, 10240)

    Source: bitsandbytes, optim/optimizer.py (`Optimizer2State.init_state`); torch, optim/adamw.py.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if not use_8bit_adam:
        return sum(8 * size + 4 for size in sizes)
    large = [size for size in sizes if size >= MIN_8BIT_ELEMENTS]
    total = 8 * (sum(sizes) - sum(large)) + sum(2 * size + 2 * 4 * math.ceil(size / BLOCK) for size in large)
    return total + (2 * 256 * 4 if large else 0)
