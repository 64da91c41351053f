"""The parameter filter: freeze the base, add the LoRA, and hold what is left to train as a list."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_kit.config import TARGET_MODULES
from lora_kit.system.checks import checked, whole_number
from lora_kit.system.imports import quiet_imports
from lora_kit.system.modules import check_targets, module_kind

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import nn


def add_lora(
    unet: "UNet2DConditionModel",
    rank: int = 4,
    target_modules: str | Sequence[str] = TARGET_MODULES,
    lora_alpha: int | None = None,
    upcast: bool = True,
) -> "list[nn.Parameter]":
    """Freeze `unet`, give it a LoRA, and get its parameters as a list: A (rank, in) and B (out, rank) per module.

    A starts as noise of standard deviation 1 / rank and B as zeros, so the output is unchanged until the first update.
    B A is scaled by lora_alpha / rank; None means rank. The LoRA is float32 on any base, since in bfloat16
    most small updates round away: move the base to its dtype BEFORE this call. (upcast=False leaves the LoRA in the
    base's dtype, as diffusers' script does with bfloat16.) A target is the end of a module's name, as peft reads it.
    Raises ValueError for a rank or lora_alpha that is no whole number from 1 on, for a target that matches nothing, or
    nothing that LoRA adapts, and for a UNet that has a LoRA already.

    >>> import torch
    >>> from diffusers import UNet2DConditionModel
    >>> with torch.device("meta"):  # shapes without numbers; the defaults are Stable Diffusion 1.5's
    ...     lora = add_lora(UNet2DConditionModel(cross_attention_dim=768), rank=4)
    >>> len(lora), lora[0].shape  # two for each of 128 projections
    (256, torch.Size([4, 320]))

    Source: Hu et al. 2021 (arXiv:2106.09685); peft's LoraConfig; diffusers' `add_adapter`.
    """
    quiet_imports()
    import torch
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    if "default" in getattr(unet, "peft_config", {}):
        raise ValueError(
            "this UNet already has the adapter 'default': a second one would train beside the first; "
            "load the model afresh, or call unet.delete_adapters('default')"
        )
    rank = whole_number("rank", rank)
    alpha = rank if lora_alpha is None else whole_number("lora_alpha", lora_alpha)
    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    check_targets(unet, checked("target_modules", targets, tuple), TARGET_MODULES)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets))
    if upcast:
        cast_training_params(unet, dtype=torch.float32)
    return trainable_parameters(unet)


def trainable_parameters(model: "nn.Module") -> "list[nn.Parameter]":
    """The parameters of `model` that require gradients, as a list.

    A list, not `filter(...)`: an optimizer reads its argument once, and an iterator is empty from then on, so that
    clipping would be given nothing to clip and would say nothing. Raises TypeError for what is no module, ValueError
    where nothing is to be trained.
    """
    if not hasattr(model, "named_parameters"):
        raise TypeError(f"a {type(model).__name__} is no module: pass the model itself, such as the UNet")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"nothing in this {type(model).__name__} is to be trained: call add_lora(unet) first")
    return trainable


def parameter_table(model: "nn.Module") -> list[dict[str, Any]]:
    """What is trained, as records by kind of module, then the rows "trained" (their sum) and "frozen".

    Each record: module ("attn1.to_q" stands for all modules whose names end so, and can be a target of `add_lora`),
    tensors, parameters (numbers), bytes (of the weights, without gradients and optimizer state), dtype.

    >>> import torch
    >>> from diffusers import UNet2DConditionModel
    >>> with torch.device("meta"):
    ...     unet = UNet2DConditionModel(cross_attention_dim=768)
    ...     lora = add_lora(unet, target_modules=["attn2.to_k", "proj"])
    >>> [(row["module"], row["tensors"], row["parameters"]) for row in parameter_table(unet)[:2]]
    [('attn2.to_k', 32, 99072), ('ff.net.0.proj', 32, 449280)]
    """
    trainable_parameters(model)
    groups, trained, frozen = {}, [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = name.split(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0] or name
            groups.setdefault(module_kind(module), []).append(parameter)
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
