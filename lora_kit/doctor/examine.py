"""Examine a configuration, and the objects of your own loop: every check of numbers, model and machine, in one list."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lora_kit.config import FIELDS, TrainingConfig, check_setting, kind_of
from lora_kit.doctor.case import Case, plan
from lora_kit.doctor.environment import environment
from lora_kit.doctor.findings import CHECKS, Check, Finding, Findings
from lora_kit.doctor.machine import count_pictures
from lora_kit.doctor.model import describe, trained_shapes
from lora_kit.doctor.numbers import unusable_warm_up
from lora_kit.lr_settings import LR_END, problem_of
from lora_kit.schedules import Schedule
from lora_kit.system.checks import is_number, is_whole, shown, whole_number
from lora_kit.system.imports import quiet_imports
from lora_kit.system.secret import Secret

# modules of checks, in the order in which they are asked
OF_NUMBERS = ("lora_kit.doctor.base", "lora_kit.doctor.numbers")
OF_EVERYTHING = ("lora_kit.doctor.model", *OF_NUMBERS, "lora_kit.doctor.environment", "lora_kit.doctor.machine")
SETTINGS = Check("settings", see=("00_start_here.ipynb", "What a wrong value says"))


def examine(
    settings: TrainingConfig | Mapping[str, Any],
    num_processes: int = 1,
    num_examples: int | None = None,
    unet: Any = None,
    parameters: Any = None,
    num_training_steps: float | None = None,
    num_warmup_steps: float | None = None,
) -> Findings:
    """Examine a configuration and, where given, the objects of your own loop. Returns `Findings`, worst first.

    No picture is drawn and no weights are read: of the base model only its description.

    settings: a `TrainingConfig` or a dict of its fields, which may be wrong. num_processes: on how many it will run.
    num_examples: pictures; left out, they are counted. unet: your model with its LoRA; left out, the base model's shape,
    without weights, with the LoRA that the settings ask for. parameters: what you hand to the optimizer.
    num_training_steps: what you tell get_scheduler, in its own steps; left out, what `lora_kit` tells it.
    num_warmup_steps: the same for the warm-up.

    What is wrong with a setting is found, not raised; ValueError is for the other four numbers alone.

    >>> settings = {"style": "outlined", "learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 0.1}
    >>> [(finding.check, finding.status) for finding in examine(settings, num_examples=400)][0]
    ('warm-up', 'error')
    """
    num_processes = whole_number("num_processes", num_processes)
    num_examples = num_examples if num_examples is None else whole_number("num_examples", num_examples)
    loop = _loop_numbers(num_training_steps=num_training_steps, num_warmup_steps=num_warmup_steps)
    config, unusable, findings = _read(settings)
    if config is None:
        return Findings(findings)
    try:
        quiet_imports()
    except ValueError as error:  # then no library can be asked
        return Findings([environment.error("variables of accelerate", str(error), "unset it")])
    if num_examples is None:
        num_examples, more = count_pictures(config)
        findings += more
    if unet is None:
        unet, more = describe(config)
        findings += more
    case = Case(config, num_processes, unet=unet, parameters=parameters)
    if unet is not None:
        case = dataclasses.replace(case, shapes=trained_shapes(unet))
    if num_examples:
        case = _with_plan(case, num_examples, loop)
    return _findings(case, unusable, findings, OF_EVERYTHING)


def examine_settings(
    settings: TrainingConfig | Mapping[str, Any],
    num_examples: int,
    num_processes: int = 1,
    shapes: list[tuple[int, ...]] | None = None,
) -> Findings:
    """What `examine` says of the numbers alone: no file, model or torch is touched, so that a page can ask at every change.

    settings, num_processes: as of `examine`. num_examples: pictures. shapes: those of the LoRA's tensors, as of
    `lora_kit.memory.lora_shapes`; left out, nothing is said of 8-bit Adam. Raises ValueError as `examine` does.

    >>> str(examine_settings({"style": "outlined", "learning_rate": 1.0}, num_examples=400)[0].change)
    "{'learning_rate': 0.0001, 'scale_lr': False}"
    """
    num_examples, num_processes = (
        whole_number("num_examples", num_examples),
        whole_number("num_processes", num_processes),
    )
    config, unusable, findings = _read(settings)
    if config is None:
        return Findings(findings)
    case = _with_plan(Case(config, num_processes, shapes=shapes), num_examples, {})
    return _findings(case, unusable, findings, OF_NUMBERS)


def _loop_numbers(**numbers_told: float | None) -> dict[str, float]:
    """What a loop of one's own tells get_scheduler, as Python's numbers, without what it leaves to the settings."""
    wrong = [
        name for name, value in numbers_told.items() if value is not None and not (is_number(value) and value >= 0)
    ]
    if wrong:
        raise ValueError(f"{wrong[0]} {shown(numbers_told[wrong[0]])} is not a number of at least 0")
    known = {name: value for name, value in numbers_told.items() if value is not None}
    return {name: int(value) if is_whole(value) else float(value) for name, value in known.items()}


def _read(settings) -> tuple[TrainingConfig | None, list[Any], list[Finding]]:
    """(a draft, or None; a warm-up that can't be, in whose place the draft has 0, or nothing; what is wrong with the rest)."""
    settings, unusable = dict(vars(settings) if isinstance(settings, TrainingConfig) else settings), []
    if "lr_warmup_steps" in settings:
        warmup = settings["lr_warmup_steps"]
        if problem_of(lambda: check_setting("lr_warmup_steps", warmup)):
            settings["lr_warmup_steps"], unusable = 0, [warmup]
    try:
        config = TrainingConfig.draft(**settings)
        for problem in _problems(config):
            raise ValueError(problem)
    except (TypeError, ValueError) as error:
        return None, [], [_wrong_setting(settings, str(error))]
    return config, unusable, []


def _problems(config: TrainingConfig) -> list[str]:
    """What can't work together, without what the checks of warm-up and polynomial say."""
    fitting = {"lr_warmup_steps": 0, "learning_rate": max(config.learning_rate, 2 * LR_END)}
    return TrainingConfig.draft(**vars(config) | fitting).problems()


def _wrong_setting(settings, message):
    named = [name for name in settings if message.startswith((f"{name} ", f"{name!r} "))]
    first = message.split()[0].strip("'")
    value = first if first in FIELDS else message.split(":")[0]
    if named:  # the value of an unknown name doesn't matter, and it may be a token
        kind = kind_of(named[0])[0] if named[0] in FIELDS else Secret
        value = (named[0] or "''") if kind is Secret else f"{named[0]} {shown(settings[named[0]])}"
    return SETTINGS.error(value, message, "`python -m lora_kit.training --help` says what each flag takes")


def _with_plan(case: Case, num_examples: int, loop: dict[str, float]) -> Case:
    made = plan(case.config, num_examples, case.num_processes)
    loop_schedule: Schedule | None = dataclasses.replace(made.schedule, **loop) if loop else None
    return dataclasses.replace(case, steps=made.steps, schedule=made.schedule, loop_schedule=loop_schedule)


def _findings(case: Case, unusable: list[Any], findings: list[Finding], modules: Iterable[str]) -> Findings:
    findings = findings + [unusable_warm_up(warmup, case.steps) for warmup in unusable]
    answered = {finding.check for finding in findings}
    for module in modules:
        for name, check in CHECKS.items():
            if check.look and check.look.__module__ == module and name not in answered:
                findings += check(case)
    return Findings(findings)
