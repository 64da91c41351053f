"""Checks of the model's objects: the base's description, the LoRA in the UNet, and the list that an optimizer is given."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_kit.config import TrainingConfig
from lora_kit.doctor.base import base_model
from lora_kit.doctor.case import Case
from lora_kit.doctor.environment import Precision
from lora_kit.doctor.findings import Finding, check
from lora_kit.models import empty_unet, model_path
from lora_kit.parameters import add_lora

PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")


def describe(config: TrainingConfig) -> tuple[Any, list[Finding]]:
    """(the UNet without weights, with its LoRA, or None; findings). Of the base model only its description is read."""
    import torch

    if other := base_model(Case(config)):
        return None, other
    name = config.pretrained_model_name_or_path
    value = f"pretrained_model_name_or_path {name!r}"
    try:
        unet = _empty_unet(config)
    except Exception as error:  # of each library its own: it would end the run as well
        cure = "a folder in diffusers format with all its parts, or the name of a model that is downloaded or reachable"
        return None, [base_model.error(value, str(error) or type(error).__name__, cure)]
    size = _numbers(unet.parameters())  # counted before the LoRA is added
    torch.nn.Module.to(unet, Precision.of(config).dtype)  # diffusers' own warns of what it doesn't keep in float32
    upcast = config.behaviour.float32_lora(config.mixed_precision)
    try:
        add_lora(unet, config.rank, config.target_modules, config.lora_alpha, upcast)
    except ValueError as error:
        value = f"target_modules {config.target_modules!r}"
        return None, [trainable_parameters.error(value, str(error), "names of modules that the UNet has")]
    except RuntimeError:  # torch's, for a tensor whose size can't be counted
        reason = "matrices of that size can't be had"
        return None, [trainable_parameters.error(f"rank {config.rank}", reason, "a rank such as 4 to 128")]
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet, [base_model.fine(value, f"a UNet of {size} parameters")]


def _empty_unet(config):
    path = Path(model_path(config.pretrained_model_name_or_path))
    missing = [part for part in PARTS if path.is_dir() and not any((path / part).glob("*.json"))]
    if missing:
        raise ValueError(f"the folder has no {', '.join(missing)}")
    return empty_unet(config)


def trained_shapes(unet: Any) -> list[tuple[int, ...]]:
    """The shapes of a module's tensors that require gradients."""
    return [tuple(parameter.shape) for parameter in _trained(unet).values()]


def _trained(unet):
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def _numbers(parameters: Iterable) -> str:
    return f"{sum(parameter.numel() for parameter in parameters):,}"


@check("trainable parameters", needs=("unet",), see=("01_parameters.ipynb", "The LoRA in three lines"))
def trainable_parameters(case: Case) -> list[Finding]:
    """Whether the LoRA's matrices require gradients."""
    trained = _trained(case.unet)
    if not trained:
        cure = "add_lora(unet) after the last requires_grad_(False)"
        return [trainable_parameters.error("0", "no parameter requires a gradient", cure)]
    lora = [parameter for name, parameter in trained.items() if "lora_" in name]
    value = f"{len(lora)} tensors, {_numbers(lora)} numbers"
    return [trainable_parameters.fine(value, "the LoRA's matrices require gradients")] if lora else []


@check("frozen base", needs=("unet",), see=("01_parameters.ipynb", "Freezing"))
def frozen_base(case: Case) -> list[Finding]:
    """Whether nothing but the LoRA does."""
    trained = _trained(case.unet)
    base = [name for name in trained if "lora_" not in name]
    value = f"{len(base)} tensors of the base"
    if base:
        reason = f"the base itself is trained, for example {base[0]}: it would move, and is not saved with the LoRA"
        cure = "unet.requires_grad_(False) before add_adapter, as add_lora does"
        return [frozen_base.error(value, reason, cure)]
    return [frozen_base.fine(value, "only the LoRA is trained")] if trained else []


@check("LoRA dtype", needs=("unet",), see=("01_parameters.ipynb", "Bytes: why the LoRA is kept in float32"))
def lora_dtype(case: Case) -> list[Finding]:
    """Whether what is trained is kept in float32."""
    trained = _trained(case.unet).values()
    small = sorted({str(parameter.dtype) for parameter in trained if parameter.element_size() < 4})
    if not trained:
        return []
    if not small:
        return [lora_dtype.fine("torch.float32", "small updates are kept")]
    reason = "most small updates round away in 16 bits"
    if "torch.float16" in small:
        reason = "the gradient scaler refuses 16-bit weights: 'Attempting to unscale FP16 gradients'"
    cure = "diffusers.training_utils.cast_training_params(unet, torch.float32) after add_adapter, as add_lora does"
    if not case.config.behaviour.keeps_lora_in_float32:
        cure = "leave out match_diffusers, which brings this back (D2)"
    return [lora_dtype.error(", ".join(small), reason, cure)]


@check("parameter list", needs=("parameters",), see=("01_parameters.ipynb", "The filter: a list, not an iterator"))
def parameter_list(case: Case) -> list[Finding]:
    """Whether the optimizer is given a list of all that is trainable, and of nothing else."""
    groups, cure = case.parameters, "trainable_parameters(unet)"
    if not isinstance(groups, (list, tuple)):
        reason = "an optimizer reads an iterator once; clipping is then handed an empty one, and silently does nothing"
        return [parameter_list.error(type(groups).__name__, reason, f"list(...), or {cure}")]
    parameters = [
        parameter for group in groups for parameter in (group["params"] if isinstance(group, dict) else [group])
    ]
    trained = [] if case.unet is None else _trained(case.unet).values()
    left_out = len({id(parameter) for parameter in trained} - {id(parameter) for parameter in parameters})
    frozen = sum(not parameter.requires_grad for parameter in parameters)
    value = f"{len(parameters)} tensors"
    if not parameters:
        return [parameter_list.error(value, "the optimizer has nothing to train", cure)]
    if frozen:
        return [parameter_list.error(value, f"{frozen} of them are frozen", cure)]
    if left_out:
        reason = f"{left_out} of the model's {len(trained)} trainable tensors are not among them, and would never move"
        return [parameter_list.error(value, reason, cure)]
    return [parameter_list.fine(value, "a list of all that is trainable")]


@check("gradient checkpointing", needs=("unet",), see=("01_parameters.ipynb", "The LoRA in three lines"))
def gradient_checkpointing(case: Case) -> list[Finding]:
    """Ask the model's own checkpointing function: does an input without gradient come out with one?"""
    import torch

    functions = [
        module._gradient_checkpointing_func
        for module in case.unet.modules()
        if getattr(module, "gradient_checkpointing", False) is True and hasattr(module, "_gradient_checkpointing_func")
    ]
    if not functions:
        return [gradient_checkpointing.fine("off", "activations are kept")]
    layer, still = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cut = [function for function in functions if not function(layer, still).requires_grad]
    if cut:
        reason = (
            f"{len(cut)} of {len(functions)} blocks checkpoint with use_reentrant=True: the input of a frozen UNet "
        )
        reason += "has no gradient, so the LoRA inside gets none"
        cure = "unet.enable_gradient_checkpointing(), which takes use_reentrant=False"
        return [gradient_checkpointing.error("use_reentrant=True", reason, cure)]
    reason = f"{len(functions)} blocks, through which a frozen input still gives the LoRA a gradient"
    return [gradient_checkpointing.fine("use_reentrant=False", reason)]
