"""A model's modules by name: what equal ones share, and which of them a LoRA's target means."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lora_kit.system.checks import did_you_mean

if TYPE_CHECKING:
    from torch import nn

# what peft makes of a module that holds, or has held, an adapter, under the module's own name
INSIDE_WRAPPER = re.compile(r"(^|\.)(base_layer$|lora_)")


def module_kind(name: str) -> str:
    """What equal modules of all blocks share: a module's name behind the last block's number. It is a target for peft.

    >>> module_kind("down_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj")
    'ff.net.0.proj'
    """
    return re.sub(r"^(.*\.)?\w+s\.(\d+|\*)\.", "", name)  # blocks have a plural: attentions.1, but net.0 and to_out.0


def nearest_kind(target: str, names: Iterable[str], usual: Sequence[str]) -> str:
    """ "did you mean 'to_q'?" for a target that matched none of the modules' names, or which ones are usual.

    >>> nearest_kind("net.proj", ["down_blocks.0.ff.net.0.proj", "conv_in"], usual=("to_q",))
    "did you mean 'net.0.proj'?"
    """
    kinds = [module_kind(name).split(".") for name in names]
    ends = {".".join(parts[start:]) for parts in kinds for start in range(len(parts)) if not parts[start].isdigit()}
    last = did_you_mean(target.rpartition(".")[2], sorted(ends), f"the usual ones are {tuple(usual)}")
    return did_you_mean(target, sorted(ends), last)


def is_meant(name: str, target: str) -> bool:
    """Whether a target means a module: it is the module's whole name or its end from a dot on, as peft reads it.

    >>> is_meant("down_blocks.0.attn1.to_q", "to_q"), is_meant("down_blocks.0.attn1.to_q", "q")
    (True, False)
    """
    return f".{name}".endswith(f".{target}")


def check_targets(model: "nn.Module", targets: Sequence[str], usual: Sequence[str]) -> None:
    """Raises ValueError, saying which is meant, for a target that matches no module, or one that LoRA can't adapt.

    A target is a module's whole name or its end from a dot on, as peft reads it.
    """
    from torch import nn

    adaptable = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    modules = {name: module for name, module in model.named_modules() if not INSIDE_WRAPPER.search(name)}
    able = [name for name, module in modules.items() if isinstance(getattr(module, "base_layer", module), adaptable)]
    if not targets:
        raise ValueError(f"target_modules is empty: name modules such as {tuple(usual)}")
    for target in targets:
        matches = [name for name in modules if is_meant(name, target)]
        if not matches:
            raise ValueError(f"no module matched {target!r}; {nearest_kind(target, able, usual)}")
        for name in matches:
            if name not in able:
                inside = [part[len(name) - len(target) :] for part in able if part.startswith(f"{name}.")]
                hint = f"did you mean {inside[0]!r}?" if inside else f"the usual ones are {tuple(usual)}"
                kind = type(modules[name]).__name__
                raise ValueError(
                    f"{target!r} matched {kind} modules, but a LoRA adapts linear and convolution ones; {hint}"
                )
