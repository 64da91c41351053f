"""The parameter filter: freeze the base, add the LoRA, and hold what is left to train as a list."""

from lora_kit.config import TARGET_MODULES
from lora_kit.system.imports import quiet_imports


def add_lora(unet, rank=4, target_modules=TARGET_MODULES, lora_alpha=None, upcast=True):
    """Freeze `unet`, give it a LoRA, and get its parameters as a list: A (rank, in) and B (out, rank) per module.

    A starts as noise of standard deviation 1 / rank and B as zeros, so the output is unchanged until the first update.
    B A is scaled by lora_alpha / rank; None means rank. The LoRA is float32 on any base, since in bfloat16
    most small updates round away: move the base to its dtype BEFORE this call. (upcast=False leaves the LoRA in the
    base's dtype, as diffusers' script does with bfloat16.) A target is the end of a
    module's name, as peft reads it. Raises ValueError for a target that matches nothing, or nothing that LoRA adapts,
    and for a UNet that has a LoRA already.

    >>> lora = add_lora(unet, rank=4)  # doctest: +SKIP
    >>> len(lora)  # two for each of the 128 projections of Stable Diffusion 1.5  # doctest: +SKIP
    256

    Source: Hu et al. 2021 (arXiv:2106.09685); peft's LoraConfig; diffusers' `add_adapter`.
    """
    quiet_imports()
    import torch
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if "default" in getattr(unet, "peft_config", {}):
        raise ValueError(
            "this UNet already has the adapter 'default': a second one would train beside the first; "
            "load the model afresh, or call unet.delete_adapters('default')"
        )
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"rank {rank!r}: a whole number from 1 on is needed")
    _check_targets(unet, targets)
    unet.requires_grad_(False)
    alpha = rank if lora_alpha is None else lora_alpha
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets))
    if upcast:
        cast_training_params(unet, dtype=torch.float32)
    return trainable_parameters(unet)


def _check_targets(model, targets):
    from torch import nn

    adaptable = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    modules = dict(model.named_modules())
    # a module that holds, or has held, another adapter is wrapped by peft: its base_layer counts
    able = [name for name, module in modules.items() if isinstance(getattr(module, "base_layer", module), adaptable)]
    if not targets:
        raise ValueError(f"target_modules is empty: name modules such as {TARGET_MODULES}")
    for target in targets:
        found = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not found:
            ends = {".".join(name.split(".")[-length:]) for name in able for length in (1, 2)}
            ends = [end for end in sorted(ends) if not end.isdigit()]
            close = difflib.get_close_matches(target, ends, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"the usual ones are {TARGET_MODULES}"
            raise ValueError(f"no module matched {target!r}; {hint}")
        for name in found:
            if name not in able:
                inside = [one[len(name) - len(target) :] for one in able if one.startswith(f"{name}.")]
                hint = f"did you mean {inside[0]!r}?" if inside else f"the usual ones are {TARGET_MODULES}"
                kind = type(modules[name]).__name__
                raise ValueError(
                    f"{target!r} matched {kind} modules, but a LoRA adapts linear and convolution ones; {hint}"
                )


def trainable_parameters(model):
    """The parameters of `model` that require gradients, as a list.

    A list, not `filter(...)`: an optimizer reads its argument once, and an iterator is empty from then on, so that
    clipping would be given nothing to clip and would say nothing. Raises ValueError where nothing is to be trained.
    """
    if not hasattr(model, "named_parameters"):
        raise TypeError(f"a {type(model).__name__} is no module: pass the model itself, such as the UNet")
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise ValueError(f"nothing in this {type(model).__name__} is to be trained: call add_lora(unet) first")
    return found


def parameter_table(model):
    """What is trained, as records by kind of module, then the rows "trained" (their sum) and "frozen".

    Each record: module ("attn1.to_q" stands for all modules whose names end so, whatever their block), tensors,
    parameters (numbers), bytes (of the weights, without gradients and optimizer state), dtype.

    >>> print(format_table(parameter_table(unet)))  # doctest: +SKIP
    """
    trainable_parameters(model)
    groups, trained, frozen = {}, [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(_kind(name), []).append(parameter)
            trained.append(parameter)
        else:
            frozen.append(parameter)
    rows = [*groups.items(), ("trained", trained), ("frozen", frozen)]
    return [
        {
            "module": kind,
            "tensors": len(tensors),
            "parameters": sum(tensor.numel() for tensor in tensors),
            "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            "dtype": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
        }
        for kind, tensors in rows
    ]


def _kind(name):
    """ "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.lora_A.default.weight" -> "attn1.to_out.0"."""
    parts = name.split(".lora_")[0].split(".")
    if ".lora_" not in name:
        parts = parts[:-1] or parts
    index = "" if not parts[-1].isdigit() else f".{parts[-1]}"
    return ".".join([part for part in parts if not part.isdigit()][-2:]) + index


def format_table(rows):
    """A list of records as text: a header, a line for each record, numbers to the right with thousands separated."""

    def text(value):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
        return "" if value is None else str(value)

    lines = [[name.replace("_", " ") for name in rows[0]], *([text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [any(isinstance(row[name], (int, float)) for row in rows) for name in rows[0]]
    cells = ([c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in cells)
