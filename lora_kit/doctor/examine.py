"""The doctor: what is wrong with a configuration, before it costs a night, and with a run, after its first updates.

    python -m lora_kit.doctor --train_data_dir pictures --learning_rate 1e-4 ... [--num_processes 4] [--try_updates 5]

Each check gives a `Finding`: error, warning or fine, with the value, the reason, the cure and the place in the notebooks
that explains it. Nothing heavy is loaded: of the base model only its description is read.
"""

import argparse
import dataclasses
import html
import json
import math
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_kit.config import (
    IGNORES_WARMUP,
    MATCHED_DEFAULTS,
    USUAL_LEARNING_RATES,
    ConfigWarning,
    TrainingConfig,
    build_parser,
    check_step_rules,
    nearest_flags,
)
from lora_kit.schedules import LR_END
from lora_kit.steps import Steps

ERROR, WARNING, FINE = STATUSES = ("error", "warning", "fine")
SYMBOLS = {ERROR: "✗", WARNING: "!", FINE: "✓"}
IGNORES_TOTAL = ("constant", "constant_with_warmup", "piecewise_constant")
PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
TINY = 1e-3  # how near to max_grad_norm a clipped norm lies, relative to it

PLACES = {  # check: the notebook and the section that explain it
    "settings": ("00_start_here.ipynb", "What a wrong value says"),
    "data": ("00_start_here.ipynb", "The settings"),
    "base model": ("00_start_here.ipynb", "A LoRA run on one page"),
    "trainable parameters": ("01_parameters.ipynb", "The LoRA in three lines"),
    "frozen base": ("01_parameters.ipynb", "Freezing"),
    "parameter list": ("01_parameters.ipynb", "The filter: a list, not an iterator"),
    "LoRA dtype": ("01_parameters.ipynb", "Bytes: why the LoRA is kept in float32"),
    "gradient checkpointing": ("01_parameters.ipynb", "The LoRA in three lines"),
    "8-bit Adam": ("02_optimizers.ipynb", "What does 8 bit save?"),
    "learning rate": ("02_optimizers.ipynb", "`scale_lr`: the rate that the optimizer is given"),
    "warm-up": ("03_schedules.ipynb", "`constant` and `constant_with_warmup`"),
    "restarts": ("03_schedules.ipynb", "`cosine_with_restarts`"),
    "polynomial": ("03_schedules.ipynb", "`polynomial`"),
    "step rules": ("03_schedules.ipynb", "`piecewise_constant`"),
    "scheduler total": ("03_schedules.ipynb", "On several processes: who ticks?"),
    "accumulation": ("04_steps.ipynb", "Ask accelerate"),
    "images": ("04_steps.ipynb", "When it doesn't divide: repeated pictures"),
    "precision": ("07_multi_gpu.ipynb", "The run, for one process and for many"),
    "noise of each process": ("07_multi_gpu.ipynb", "What a second process changes"),
    "output folder": ("05_train.ipynb", "The settings"),
    "gradients": ("01_parameters.ipynb", "B = 0 changes nothing, at first"),
    "movement": ("02_optimizers.ipynb", "On a real LoRA"),
    "clipping": ("01_parameters.ipynb", "The filter: a list, not an iterator"),
}


@dataclass(frozen=True)
class Finding:
    """What one check found. `status`: "error" (the run would fail, or not do what was asked), "warning" or "fine"."""

    check: str
    status: str
    value: str
    reason: str
    cure: str = ""
    change: dict | None = dataclasses.field(default=None, hash=False)  # the cure as settings, where it is one

    @property
    def link(self):
        """The notebook's path in the repository, and the heading that explains the finding."""
        notebook, section = PLACES[self.check]
        return f"notebooks/{notebook}#{section.replace('`', '').replace(' ', '-')}"


class Findings(list):
    """A list of `Finding`, worst first; in a notebook it shows itself as a table."""

    def __init__(self, findings):
        super().__init__(sorted(findings, key=lambda one: STATUSES.index(one.status)))

    @property
    def status(self):
        """The worst status in the list; "fine" where it is empty."""
        return self[0].status if self else FINE

    def records(self):
        """Plain dicts: check, status, value, reason, cure, change (settings that are the cure, or None), link."""
        return [{**dataclasses.asdict(one), "link": one.link} for one in self]

    def __str__(self):
        lines = []
        for one in self:
            lines.append(f"{SYMBOLS[one.status]} {one.check}: {one.value}. {one.reason}")
            if one.cure:
                lines.append(f"    cure: {one.cure}")
            if one.status != FINE:
                lines.append(f"    explained in {one.link}")
        counts = [sum(one.status == status for one in self) for status in STATUSES]
        return "\n".join([*lines, "{} error(s), {} warning(s), {} fine".format(*counts)])

    def _repr_html_(self):
        def cell(content, look=""):
            return f'<td style="text-align: left; vertical-align: top{look}">{content}</td>'

        def text(words):  # a long name may break where a word of it ends
            return html.escape(words).replace("_", "_<wbr>")

        def row(one):
            name = one.link.split("/")[1].split(".")[0]
            link = f'<a href="{html.escape(one.link.removeprefix("notebooks/"))}">{html.escape(name)}</a>'
            cure = f"<br><strong>cure:</strong> {text(one.cure)}" if one.cure else ""
            more = "" if one.status == FINE else f"<br>explained in {link}"
            return (
                cell(f"{SYMBOLS[one.status]} {one.status}", "; white-space: nowrap")
                + cell(f"<strong>{text(one.check)}</strong><br>{text(one.value)}")
                + cell(text(one.reason) + cure + more)
            )

        head = "".join(
            f'<th style="text-align: left">{name}</th>' for name in ("", "check and value", "reason and cure")
        )
        body = "".join(f"<tr>{row(one)}</tr>" for one in self)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class _Case:
    """What the checks look at. config has no warm-up: `warmup` is what was asked for, whatever it is."""

    config: TrainingConfig
    warmup: Any
    num_processes: int
    steps: Steps | None
    unet: Any = None
    shapes: Any = None
    parameters: Any = None
    num_training_steps: int | None = None
    num_warmup_steps: int | None = None

    @property
    def warmup_updates(self):
        """The warm-up where it is a number of updates that the run can have; else 0."""
        whole = isinstance(self.warmup, int) and not isinstance(self.warmup, bool) and self.warmup >= 0
        return self.warmup if whole and self.config.lr_scheduler not in IGNORES_WARMUP else 0


def examine(
    settings,
    num_processes=1,
    num_examples=None,
    unet=None,
    parameters=None,
    num_training_steps=None,
    num_warmup_steps=None,
):
    """Examine a configuration and, where given, the objects of your own loop. Returns `Findings`, worst first.

    settings: a `TrainingConfig` or a dict of its fields, which may be wrong. num_examples: pictures; left out, they are
    counted. unet: your model with its LoRA; left out, the base model's shape, without weights, with the LoRA that the
    settings ask for. parameters: what you hand to the optimizer. num_training_steps, num_warmup_steps: what you tell
    get_scheduler, in its own steps; left out, what `lora_kit` tells it. What is wrong with a setting is found, not raised;
    ValueError is for num_processes and num_examples alone.

    >>> settings = {"style": "outlined", "learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 0.1}
    >>> [(one.check, one.status) for one in examine(settings, num_examples=400)][0]
    ('warm-up', 'error')
    """
    for name, value in (("num_processes", num_processes), ("num_examples", num_examples)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} {value!r} is not a whole number of at least 1")
    config, warmup, findings = _read_settings(settings)
    if config is None:
        return Findings(findings)
    count, found = (num_examples, []) if num_examples else _count(config)
    findings += found
    if unet is None:
        unet, found = _shape(config)
        findings += found
    steps = Steps.of(config, count, num_processes) if count else None
    shapes = None if unet is None else [tuple(one.shape) for one in unet.parameters() if one.requires_grad]
    case = _Case(config, warmup, num_processes, steps, unet, shapes, parameters, num_training_steps, num_warmup_steps)
    return Findings(findings + _examine(case, CHECKS))


def examine_settings(settings, num_examples, num_processes=1, shapes=None):
    """What `examine` says of the numbers alone: no file, model or torch is touched, so that a page can ask at every change.

    settings: as of `examine`. shapes: those of the LoRA's tensors, as of `lora_kit.memory.lora_shapes`. Returns `Findings`.
    """
    config, warmup, findings = _read_settings(settings)
    if config is None:
        return Findings(findings)
    case = _Case(config, warmup, num_processes, Steps.of(config, num_examples, num_processes), shapes=shapes)
    return Findings(findings + _examine(case, NUMBER_CHECKS))


def _examine(case, checks):
    able = [check for check, needs in checks if all(getattr(case, need) is not None for need in needs)]
    return [finding for check in able for finding in check(case)]


def _read_settings(settings):
    """(a `TrainingConfig` without warm-up, or None; the warm-up asked for; findings)."""
    if isinstance(settings, TrainingConfig):
        settings = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings)}
    settings, findings = dict(settings), []
    defaults = MATCHED_DEFAULTS if settings.get("match_diffusers") else {}
    warmup = settings.pop("lr_warmup_steps", defaults.get("lr_warmup_steps", 0))
    rate = settings.get("learning_rate", defaults.get("learning_rate"))
    if settings.get("lr_scheduler") == "polynomial" and isinstance(rate, (int, float)) and 0 < rate <= LR_END:
        reason = f"polynomial ends at {LR_END:g}, so a peak that is not above it is refused by get_scheduler"
        cure, change = "a learning_rate such as 1e-4", {"learning_rate": 1e-4}
        findings.append(Finding("polynomial", ERROR, f"learning_rate {rate!r}", reason, cure, change))
        settings["lr_scheduler"] = "constant"  # so that the other checks can go on
    try:
        return _quietly(TrainingConfig, **settings, lr_warmup_steps=0), warmup, findings
    except (TypeError, ValueError) as error:
        name = str(error).split()[0].strip("'")
        value = f"{name} {settings[name]!r}" if name in settings else name
        cure = "`python -m lora_kit.training --help` says what each flag takes"
        return None, warmup, [*findings, Finding("settings", ERROR, value, str(error), cure)]


def _quietly(make, *args, **settings):
    """A `TrainingConfig`, without its warnings: each of them is a finding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        return make(*args, **settings)


def _count(config):
    """(the number of pictures, findings)."""
    from lora_kit.data.images import load_images

    source = next(name for name in ("style", "train_data_dir", "dataset_name") if getattr(config, name) is not None)
    value = f"{source} {getattr(config, source)!r}"
    try:
        count = len(load_images(config, 0))
    except Exception as error:  # whatever a reader of files raises: it would end the run as well
        return None, [Finding("data", ERROR, value, str(error), "data that `lora_kit.data.load_images` can read")]
    return count, [Finding("data", FINE, value, f"{count} pictures with captions")]


def _shape(config):
    """(the UNet without weights, with its LoRA, or None; findings)."""
    from lora_kit.models import model_path, quiet_imports
    from lora_kit.parameters import add_lora

    quiet_imports()
    import torch
    from diffusers import UNet2DConditionModel

    name = config.pretrained_model_name_or_path
    value = f"pretrained_model_name_or_path {name!r}"
    try:
        path = Path(model_path(name))
        missing = [part for part in PARTS if path.is_dir() and not any((path / part).glob("*.json"))]
        if missing:
            raise ValueError(f"the folder has no {', '.join(missing)}")
        about = UNet2DConditionModel.load_config(
            str(path) if path.is_dir() else name, subfolder="unet", cache_dir=config.cache_dir, revision=config.revision
        )
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(about)
    except (OSError, ValueError, TypeError) as error:
        cure = "a folder in diffusers format with all its parts, or the name of a model that is downloaded or reachable"
        return None, [Finding("base model", ERROR, value, str(error), cure)]
    size, used = _numbers(unet.parameters()), _Precision.of(config).used  # counted before the LoRA is added
    if used != "no":
        unet.to({"fp16": torch.float16, "bf16": torch.bfloat16}[used])
    upcast = not config.match_diffusers or config.mixed_precision == "fp16"
    try:
        add_lora(unet, config.rank, config.target_modules, config.lora_alpha, upcast)
    except ValueError as error:
        value = f"target_modules {config.target_modules!r}"
        return None, [Finding("trainable parameters", ERROR, value, str(error), "names of modules that the UNet has")]
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet, [Finding("base model", FINE, value, f"a UNet of {size} parameters")]


def _numbers(parameters):
    return f"{sum(parameter.numel() for parameter in parameters):,}"


# checks of a configuration: each takes a _Case and returns a list of findings


def _check_trainable(case):
    trained = {name: one for name, one in case.unet.named_parameters() if one.requires_grad}
    base = [name for name in trained if "lora_" not in name]
    if not trained:
        cure = "add_lora(unet) after the last requires_grad_(False)"
        return [Finding("trainable parameters", ERROR, "0", "no parameter requires a gradient", cure)]
    findings = []
    if len(base) < len(trained):
        lora = [one for name, one in trained.items() if "lora_" in name]
        value = f"{len(lora)} tensors, {_numbers(lora)} numbers"
        findings.append(Finding("trainable parameters", FINE, value, "the LoRA's matrices require gradients"))
    if base:
        reason = f"the base itself is trained, for example {base[0]}: it would move, and is not saved with the LoRA"
        cure = "unet.requires_grad_(False) before add_adapter, as add_lora does"
        return [*findings, Finding("frozen base", ERROR, f"{len(base)} tensors of the base", reason, cure)]
    return [*findings, Finding("frozen base", FINE, "0 tensors of the base", "only the LoRA is trained")]


def _check_dtype(case):
    trained = [one for one in case.unet.parameters() if one.requires_grad]
    small = sorted({str(one.dtype) for one in trained if one.element_size() < 4})
    if not trained:
        return []
    if not small:
        return [Finding("LoRA dtype", FINE, "torch.float32", "small updates are kept")]
    reason = "most small updates round away in 16 bits"
    if "torch.float16" in small:
        reason = "the gradient scaler refuses 16-bit weights: 'Attempting to unscale FP16 gradients'"
    cure = "diffusers.training_utils.cast_training_params(unet, torch.float32) after add_adapter, as add_lora does"
    if case.config.match_diffusers:
        cure = "leave out match_diffusers, which brings this back (D2)"
    return [Finding("LoRA dtype", ERROR, ", ".join(small), reason, cure)]


def _check_parameter_list(case):
    given = case.parameters
    if not isinstance(given, (list, tuple)):
        reason = "an optimizer reads an iterator once; clipping is then handed an empty one, and silently does nothing"
        return [
            Finding("parameter list", ERROR, type(given).__name__, reason, "list(...), or trainable_parameters(unet)")
        ]
    given = [one for group in given for one in (group["params"] if isinstance(group, dict) else [group])]
    trained = [] if case.unet is None else [one for one in case.unet.parameters() if one.requires_grad]
    left_out = len({id(one) for one in trained} - {id(one) for one in given})
    frozen = sum(not one.requires_grad for one in given)
    value = f"{len(given)} tensors"
    if not given:
        return [
            Finding("parameter list", ERROR, value, "the optimizer has nothing to train", "trainable_parameters(unet)")
        ]
    if frozen:
        reason = f"{frozen} of them are frozen"
        return [Finding("parameter list", ERROR, value, reason, "trainable_parameters(unet)")]
    if left_out:
        reason = f"{left_out} of the model's {len(trained)} trainable tensors are not among them, and would never move"
        return [Finding("parameter list", ERROR, value, reason, "trainable_parameters(unet)")]
    return [Finding("parameter list", FINE, value, "a list of all that is trainable")]


def _check_gradient_checkpointing(case):
    """Ask the model's own checkpointing function: does an input without gradient come out with one?"""
    import torch

    functions = [
        module._gradient_checkpointing_func
        for module in case.unet.modules()
        if getattr(module, "gradient_checkpointing", False) is True and hasattr(module, "_gradient_checkpointing_func")
    ]
    if not functions:
        return [Finding("gradient checkpointing", FINE, "off", "activations are kept")]
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
        return [Finding("gradient checkpointing", ERROR, "use_reentrant=True", reason, cure)]
    reason = f"{len(functions)} blocks, through which a frozen input still gives the LoRA a gradient"
    return [Finding("gradient checkpointing", FINE, "use_reentrant=False", reason)]


def _check_8bit(case):
    from lora_kit.optimizers import MIN_8BIT_ELEMENTS, expected_state_bytes

    shapes = case.shapes
    if not case.config.use_8bit_adam or not shapes:
        return []
    full, small = expected_state_bytes(shapes), expected_state_bytes(shapes, use_8bit_adam=True)
    kept = sum(math.prod(shape) < MIN_8BIT_ELEMENTS for shape in shapes)
    reason = f"{kept} of {len(shapes)} tensors have fewer than {MIN_8BIT_ELEMENTS:,} elements and keep 32-bit state: "
    reason += f"{full / 1e6:.2f} MB become {small / 1e6:.2f} MB"
    value = f"rank {case.config.rank}"
    if kept == len(shapes):
        cure = "leave use_8bit_adam out at this rank: it saves nothing"
        return [Finding("8-bit Adam", WARNING, value, reason, cure, {"use_8bit_adam": False})]
    return [Finding("8-bit Adam", FINE, value, reason)]


def _check_learning_rate(case):
    config, (low, high) = case.config, USUAL_LEARNING_RATES
    peak, factor = config.peak_learning_rate(case.num_processes), config.total_batch_size(case.num_processes)
    value = f"{config.learning_rate:g}" + (f" x {factor} = {peak:g}" if config.scale_lr else "")
    usual = f"{low:g}..{high:g}, where LoRA usually trains"
    if low <= peak <= high:
        return [Finding("learning rate", FINE, value, f"within {usual}")]
    if config.scale_lr and low <= config.learning_rate <= high:
        reason = (
            f"scale_lr multiplies it by batch x accumulation x processes, to outside {usual}: was it already scaled?"
        )
        cure = f"leave scale_lr out, or give the rate of one picture, learning_rate {config.learning_rate / factor:.3g}"
        return [Finding("learning rate", WARNING, value, reason, cure, {"scale_lr": False})]
    cure, change = "1e-4 is diffusers' default for LoRA", {"learning_rate": 1e-4, "scale_lr": False}
    return [Finding("learning rate", WARNING, value, f"outside {usual}", cure, change)]


def _check_warmup(case):
    config, warmup, total = case.config, case.warmup, case.steps.total_updates
    value, tenth = f"lr_warmup_steps {warmup!r}", total // 10
    change = {"lr_warmup_steps": tenth}
    number = isinstance(warmup, (int, float)) and not isinstance(warmup, bool)
    if number and 0 < warmup < 1:
        reason = "a number under 1 is no part of the run here: the first step has a rate of 0, the second the full rate"
        cure = f"updates: lr_warmup_steps {round(warmup * total)} is {warmup:.0%} of {total}"
        change = {"lr_warmup_steps": round(warmup * total)}
    elif not number or warmup < 0 or warmup != int(warmup):
        reason, cure = "not a whole number of updates of at least 0", f"lr_warmup_steps {tenth}, a tenth, is usual"
    elif warmup and config.lr_scheduler in IGNORES_WARMUP:
        reason = f"lr_scheduler {config.lr_scheduler!r} ignores it: the first update has the full rate"
        cure, change = (
            "lr_scheduler constant_with_warmup, or lr_warmup_steps 0",
            {"lr_scheduler": "constant_with_warmup"},
        )
        change |= {} if warmup < total else {"lr_warmup_steps": tenth}
        return [Finding("warm-up", WARNING, value, reason, cure, change)]
    elif warmup and warmup >= total:
        reason = f"the run has {total} updates, so the rate never reaches its peak"
        cure = f"lr_warmup_steps {tenth}, about a tenth"
    elif warmup > total / 2:
        reason = f"that is {warmup / total:.0%} of the {total} updates: most of the run is warm-up"
        return [Finding("warm-up", WARNING, value, reason, f"lr_warmup_steps {tenth}, about a tenth", change)]
    else:
        reason = f"of {total} updates" if warmup else "the first update has the full rate"
        return [Finding("warm-up", FINE, value, reason)]
    return [Finding("warm-up", ERROR, value, reason, cure, change)]


def _check_restarts(case):
    config = case.config
    value = f"lr_num_cycles {config.lr_num_cycles}"
    if config.lr_scheduler != "cosine_with_restarts":
        return []
    if config.lr_num_cycles == 1:
        reason = "with one cycle nothing restarts: it is the schedule 'cosine'"
        return [
            Finding("restarts", WARNING, value, reason, "lr_num_cycles 3, or lr_scheduler cosine", {"lr_num_cycles": 3})
        ]
    return [Finding("restarts", FINE, value, f"{config.lr_num_cycles - 1} restart(s)")]


def _check_rules(case):
    config = case.config
    if config.lr_scheduler != "piecewise_constant":
        return []
    rules, _ = check_step_rules(config.lr_step_rules)
    late = [boundary for boundary, _ in rules if boundary >= case.steps.total_updates]
    value = f"lr_step_rules {config.lr_step_rules!r}"
    if late:
        reason = f"boundary {late[0]} is not inside the {case.steps.total_updates} updates of the run: no change there"
        return [Finding("step rules", WARNING, value, reason, "boundaries are updates from the run's start")]
    return [Finding("step rules", FINE, value, f"{len(rules)} change(s) of the rate")]


def _check_scheduler(case):
    """What get_scheduler is told, against what accelerate will tick."""
    steps, name, processes = case.steps, case.config.lr_scheduler, case.num_processes
    findings = []
    if case.num_warmup_steps is not None and name not in IGNORES_WARMUP:
        wanted = case.warmup_updates * processes
        if case.num_warmup_steps != wanted:
            value = f"num_warmup_steps {case.num_warmup_steps}"
            reason = (
                f"that is {case.num_warmup_steps / processes:g} updates of {processes} process(es), not {case.warmup}"
            )
            cure = f"num_warmup_steps={wanted}: a prepared scheduler ticks once a process in each update"
            findings.append(Finding("warm-up", ERROR, value, reason, cure))
    told, wanted = case.num_training_steps, steps.num_training_steps_for_scheduler
    told = wanted if told is None else told
    value = f"num_training_steps {told}"
    if told == wanted or name in IGNORES_TOTAL:
        reason = f"{steps.total_updates} updates x {processes} process(es)"
        reason = reason if told == wanted else f"lr_scheduler {name!r} doesn't read it"
        return [*findings, Finding("scheduler total", FINE, value, reason)]
    cure = f"num_training_steps={wanted}: {steps.total_updates} updates x {processes} process(es); plot_schedule shows both"
    last = told_learning_rates(case.config, steps, told, case.num_warmup_steps)[-1] / _peak(case)
    if told > wanted:
        reason = f"the run ends in the middle of the schedule, at {last:.0%} of the peak"
    elif name == "cosine":
        lowest = told // processes
        reason = f"the cosine reaches 0 at update {lowest} of {steps.total_updates} and RISES again, to {last:.0%} of the peak"
    else:
        reason = f"the schedule is over at update {told // processes} of {steps.total_updates}; from there on nothing is learned"
    return [*findings, Finding("scheduler total", ERROR, value, reason, cure)]


def _peak(case):
    return case.config.peak_learning_rate(case.num_processes)


def _check_accumulation(case):
    full, last = case.steps.gradient_accumulation_steps, case.steps.micro_steps_in_last_update
    value = f"gradient_accumulation_steps {full}"
    if last == full:
        return [Finding("accumulation", FINE, value, "every update has all its micro-steps")]
    reason = (
        f"an epoch's {case.steps.batches_per_process} micro-steps leave {last} for its last update, whose gradient is "
    )
    reason += f"divided by {full} all the same: {last / full:.0%} of its size"
    count = case.steps.batches_per_process
    change = {"gradient_accumulation_steps": max(one for one in range(1, full + 1) if count % one == 0)}
    return [Finding("accumulation", WARNING, value, reason, f"a number that divides {count}", change)]


def _check_images(case):
    steps = case.steps
    value, whole = f"{steps.num_examples} pictures", steps.total_batch_size
    if steps.num_examples >= whole:
        return [Finding("images", FINE, value, f"at least one update of {whole}")]
    reason = f"one update asks for {whole} (train_batch_size x gradient_accumulation_steps x processes)"
    if steps.num_examples < steps.train_batch_size * steps.num_processes:
        reason += ", and the processes' first batches already repeat some"
    batch = max(steps.num_examples // (whole // steps.train_batch_size), 1)
    cure = f"a train_batch_size of at most {batch}, or more pictures"
    return [Finding("images", WARNING, value, reason, cure, {"train_batch_size": batch})]


@dataclass(frozen=True)
class _Precision:
    """Where mixed precision is set, and which setting counts."""

    flag: str | None
    launcher: str | None
    used: str

    @classmethod
    def of(cls, config):
        from accelerate.commands.config.config_args import default_config_file

        launcher = os.environ.get("ACCELERATE_MIXED_PRECISION")
        if launcher is None and Path(default_config_file).is_file():
            from accelerate.commands.config.config_args import load_config_from_file

            launcher = load_config_from_file(None).mixed_precision
        launcher = launcher and str(launcher).lower()
        return cls(config.mixed_precision, launcher, config.mixed_precision or launcher or "no")


def _check_precision(case):
    import torch

    found = _Precision.of(case.config)
    value = f"mixed_precision {found.flag!r}" + (f", accelerate's {found.launcher!r}" if found.launcher else "")
    launched = os.environ.get("MIXED_PRECISION")
    if found.used == "fp16" and not torch.accelerator.is_available():
        return [Finding("precision", ERROR, value, "fp16 needs a GPU, and there is none", "bf16 or no")]
    if found.flag is None and found.launcher not in (None, "no"):
        if case.config.match_diffusers:
            reason = "diffusers' script reads the flag alone where it keeps the LoRA in float32 (D3)"
            cure = f"mixed_precision {found.launcher}"
            return [Finding("precision", ERROR if found.launcher == "fp16" else WARNING, value, reason, cure)]
        reason = "set in accelerate's configuration only; lora_kit takes it from there, other scripts may not"
        return [
            Finding("precision", WARNING, value, reason, f"say it in both places: mixed_precision {found.launcher}")
        ]
    if found.flag and found.launcher and found.flag != found.launcher:
        return [Finding("precision", WARNING, value, "two places disagree; the flag counts", "the same in both places")]
    if launched and launched.lower() not in ("no", found.used):
        reason = f"MIXED_PRECISION={launched} is in the environment, as notebook_launcher sets it, and nothing reads it"
        return [Finding("precision", WARNING, value, reason, f"mixed_precision {launched.lower()}")]
    return [Finding("precision", FINE, value, f"computed in {found.used if found.used != 'no' else 'fp32'}")]


def _check_noise(case):
    config = case.config
    value = f"seed {config.seed!r}, {case.num_processes} process(es)"
    if config.match_diffusers and config.seed is not None and case.num_processes > 1:
        reason = (
            "with match_diffusers every process draws the same noise and timesteps (D4): less variety than it seems"
        )
        change = {"match_diffusers": False}
        return [Finding("noise of each process", WARNING, value, reason, "leave out match_diffusers", change)]
    return [Finding("noise of each process", FINE, value, "each process draws its own")]


def _check_clipping_asked(case):
    config = case.config
    value = f"max_grad_norm {config.max_grad_norm:g}"
    if config.match_diffusers and config.max_grad_norm:
        reason = "with match_diffusers clipping is handed an exhausted iterator and does nothing (D1)"
        cure = "leave out match_diffusers, or max_grad_norm 0"
        return [Finding("clipping", WARNING, value, reason, cure, {"match_diffusers": False})]
    return [
        Finding("clipping", FINE, value, "gradients are clipped" if config.max_grad_norm else "no clipping asked for")
    ]


def _check_output(case):
    from lora_kit.output.checkpoints import checkpoints, newest_whole
    from lora_kit.training import LORA, METRICS

    config, folder = case.config, Path(case.config.output_dir)
    value = f"output_dir {config.output_dir!r}"
    parent = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not parent.is_dir():
        return [Finding("output folder", ERROR, value, f"{parent} is a file", "a folder")]
    if not os.access(parent, os.W_OK):
        return [Finding("output folder", ERROR, value, f"{parent} can't be written", "a folder of your own")]
    stored = [path.name for path in checkpoints(folder)]
    there = [name for name in (METRICS, LORA) if (folder / name).exists()] + stored
    wanted = config.resume_from_checkpoint
    if wanted is None and there:
        reason = f"it holds another run ({', '.join(there[:3])}), which will be moved to earlier-N inside it"
        cure = "another output_dir, or resume_from_checkpoint latest to go on with it"
        return [Finding("output folder", WARNING, value, reason, cure)]
    if wanted == "latest" and not stored:
        reason = "resume_from_checkpoint 'latest', but it holds no checkpoint: the run would start anew"
        return [Finding("output folder", WARNING, value, reason, "the output_dir of the run to go on with")]
    newest, _, broken = newest_whole(folder) if wanted == "latest" else (None, None, [])
    if broken:
        outcome = f"goes on with {newest.name}" if newest else "none is whole"
        cure = f"{newest.name} is whole and will be taken" if newest else "leave resume_from_checkpoint out"
        return [Finding("output folder", WARNING if newest else ERROR, value, f"{broken[0]}; {outcome}", cure)]
    if wanted not in (None, "latest") and Path(wanted).name not in stored:
        reason = f"resume_from_checkpoint {wanted!r} is not among its checkpoints: {', '.join(stored) or 'none'}"
        return [Finding("output folder", ERROR, value, reason, "one of them, or latest")]
    return [
        Finding("output folder", FINE, value, f"goes on with {newest.name if newest else wanted}" if wanted else "free")
    ]


NUMBER_CHECKS = (  # the check, and what must be known for it
    (_check_8bit, ("shapes",)),
    (_check_learning_rate, ()),
    (_check_warmup, ("steps",)),
    (_check_restarts, ()),
    (_check_rules, ("steps",)),
    (_check_scheduler, ("steps",)),
    (_check_accumulation, ("steps",)),
    (_check_images, ("steps",)),
    (_check_noise, ()),
    (_check_clipping_asked, ()),
)
CHECKS = (
    (_check_trainable, ("unet",)),
    (_check_dtype, ("unet",)),
    (_check_parameter_list, ("parameters",)),
    (_check_gradient_checkpointing, ("unet",)),
    *NUMBER_CHECKS,
    (_check_precision, ()),
    (_check_output, ()),
)


def told_learning_rates(config, steps, num_training_steps, num_warmup_steps=None):
    """The rate of each update if get_scheduler is told these numbers, in its own steps: float64, steps.total_updates."""
    from types import SimpleNamespace

    from lora_kit.schedules import applied_learning_rates

    told = SimpleNamespace(
        num_processes=steps.num_processes,
        total_updates=steps.total_updates,
        num_training_steps_for_scheduler=num_training_steps,
        num_warmup_steps_for_scheduler=(
            steps.num_warmup_steps_for_scheduler if num_warmup_steps is None else num_warmup_steps
        ),
    )
    return applied_learning_rates(config, told)


def plot_schedule(config, num_examples, num_processes, num_training_steps, num_warmup_steps=None, axes=None):
    """What would happen if get_scheduler were told these numbers, beside what was meant. Returns the matplotlib axes.

    num_training_steps, num_warmup_steps: in the scheduler's own steps, of which a prepared one makes num_processes an
    update.
    """
    from lora_kit.plots import plot_learning_rates
    from lora_kit.schedules import applied_learning_rates

    steps = Steps.of(config, num_examples, num_processes)
    meant, told = (
        applied_learning_rates(config, steps),
        told_learning_rates(config, steps, num_training_steps, num_warmup_steps),
    )
    labels = f"as meant: {steps.num_training_steps_for_scheduler}", f"as told: {num_training_steps}"
    return plot_learning_rates(dict(zip(labels, (meant, told), strict=True)), axes, steps)


# a run


class Watch:
    """Looks at every step that an optimizer makes inside the `with`, of your loop or of this kit's, and then says what
    it saw: parameters that never had a gradient, weights that did not move, clipping that always or never bites.

    max_grad_norm: what gradients are clipped to, if they are. A LoRA's A has a gradient from the second update with a
    rate above 0 on, since B starts at 0: watch four updates or more.

    >>> with Watch(unet, max_grad_norm=1.0) as watch:  # doctest: +SKIP
    ...     for batch in batches: ...
    >>> watch.findings()  # doctest: +SKIP
    """

    def __init__(self, unet=None, max_grad_norm=None):
        self.max_grad_norm, self.norms, self.updates = max_grad_norm, [], 0
        self.parameters = {}
        if unet is not None:
            self.begin(unet)

    def begin(self, unet):
        """Take the model's trainable weights as they are now for the start."""
        self.parameters = {name: one for name, one in unet.named_parameters() if one.requires_grad}
        self.before = {name: one.detach().clone() for name, one in self.parameters.items()}
        self.pushed = set()

    def __enter__(self):
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self.handle = register_optimizer_step_pre_hook(self.look)
        return self

    def __exit__(self, *exception):
        self.handle.remove()

    def look(self, optimizer, args, kwargs):
        import torch

        gradients = {name: one.grad for name, one in self.parameters.items() if one.grad is not None}
        self.pushed |= {name for name, gradient in gradients.items() if bool((gradient != 0).any())}
        norms = [torch.linalg.vector_norm(gradient.float()) for gradient in gradients.values()]
        self.norms.append(float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0)
        self.updates += 1

    def findings(self):
        """`Findings` about the updates so far."""
        import torch

        names = list(self.parameters)
        if not self.updates:
            reason = "no optimizer has made a step inside the `with`"
            return Findings([Finding("movement", ERROR, "0 updates", reason, "loss.backward(); optimizer.step()")])
        still = [name for name in names if name not in self.pushed]
        unmoved = [name for name, one in self.parameters.items() if torch.equal(one.detach(), self.before[name])]
        seen = f"in {self.updates} updates"
        return Findings(
            [
                self._all("gradients", still, f"had a gradient {seen}", f"had no gradient {seen}", "is the part used? Is it cut off by gradient checkpointing or detach()?"),
                self._all("movement", unmoved, f"moved {seen}", f"did not move {seen}", "is it in the optimizer's list? Is its rate above 0, and its dtype float32?"),
                *self._clipping(),
            ]
        )  # fmt: skip

    def _all(self, check, bad, good_words, bad_words, cure):
        total = len(self.parameters)
        if not bad:
            return Finding(check, FINE, f"{total} of {total} tensors", good_words)
        return Finding(check, ERROR, f"{len(bad)} of {total} tensors", f"{bad_words}, for example {bad[0]}", cure)

    def _clipping(self):
        limit = self.max_grad_norm
        if not limit:
            return []
        value = f"max_grad_norm {limit:g}, norms {min(self.norms):.3g} to {max(self.norms):.3g}"
        over = sum(norm > limit * (1 + TINY) for norm in self.norms)
        at = sum(abs(norm - limit) <= limit * TINY for norm in self.norms)
        if over:
            reason = f"{over} of {self.updates} updates had a larger norm: clipping does nothing"
            return [Finding("clipping", ERROR, value, reason, "clip a list, not an iterator, before optimizer.step()")]
        if at == self.updates:
            reason = "every update was clipped: the size of the gradient has no say any more"
            return [Finding("clipping", WARNING, value, reason, "a larger max_grad_norm, or a look at the data")]
        return [Finding("clipping", FINE, value, f"{at} of {self.updates} updates were clipped")]


def try_run(config, updates=5):
    """Make a few updates of the real run, at its full rate and in a temporary folder, and say what they show.

    config: a `TrainingConfig`. In this process only. Returns `Findings`. Raises what `train` raises.
    """
    from lora_kit.training import train

    watch = Watch(max_grad_norm=config.max_grad_norm)
    with tempfile.TemporaryDirectory(prefix="lora_kit-") as folder:
        short = _quietly(
            replace,
            config,
            output_dir=folder,
            max_train_steps=updates,
            lr_scheduler="constant",
            lr_warmup_steps=0,
            lr_num_cycles=1,
            lr_power=1.0,
            lr_step_rules=None,
            checkpointing_steps=updates + 1,
            resume_from_checkpoint=None,
            validation_prompt=None,
            report_to="none",
            push_to_hub=False,
        )
        with watch:
            train(short, progress=False, on_ready=watch.begin)
    return watch.findings()


# the command line


def _value(text):
    """A number where it is one; what is wrong with it is then a finding, not argparse's error."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _count_of(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _read_argv(argv):
    """(settings, doctor's own options, findings) of a command line; what is wrong with a setting is a finding."""
    own = argparse.ArgumentParser(
        prog="python -m lora_kit.doctor",
        description="Say what is wrong with a run before it is started. All other flags are those of "
        "python -m lora_kit.training.",
        allow_abbrev=False,
    )
    own.add_argument("--num_processes", type=_count_of, default=1, help="On how many it will run. Default: 1.")
    own.add_argument("--num_examples", type=_count_of, help="Instead of counting the pictures.")
    own.add_argument("--try_updates", type=_count_of, help="Make so many updates of the real run, and look at them.")
    own.add_argument("--json", action="store_true", help="Print records instead of text.")
    options, rest = own.parse_known_args(argv)
    parser = build_parser(number=_value)
    settings, unknown = parser.parse_known_args(rest)
    lists = "`python -m lora_kit.training --help` lists all flags"
    findings = [
        Finding("settings", ERROR, word, "no such flag", hint.lstrip(", ") or lists)
        for word, hint in nearest_flags(unknown)
    ]
    return vars(settings), options, findings


def main(argv=None):
    """Print the findings; the exit status is 1 where one is an error, else 0."""
    settings, options, findings = _read_argv(argv)
    findings = Findings(findings + examine(settings, options.num_processes, options.num_examples))
    if options.try_updates and findings.status != ERROR:
        config = _quietly(TrainingConfig, **settings)
        findings = Findings([*findings, *try_run(config, options.try_updates)])
    print(json.dumps(findings.records(), indent=1, ensure_ascii=False) if options.json else findings)
    return int(findings.status == ERROR)


if __name__ == "__main__":
    sys.exit(main())
