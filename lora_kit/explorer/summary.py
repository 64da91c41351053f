"""What a configuration will do, as plain numbers: the explorer's page before it is drawn. No torch, no widgets, no files."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from lora_kit import memory
from lora_kit.command_line.texts import write
from lora_kit.config import TrainingConfig, check_setting, quiet_config
from lora_kit.doctor import ERROR, examine_settings
from lora_kit.doctor.case import plan
from lora_kit.explorer.curves import AS_APPLIED, run_curve, trainer_curve
from lora_kit.lr_settings import LR_SCHEDULERS, READ_BY, problem_of
from lora_kit.steps import Steps
from lora_kit.system.checks import whole_number
from lora_kit.trainers.known import TRAINERS


def summarize(
    settings: TrainingConfig | Mapping[str, Any],
    num_examples: int,
    num_processes: int = 1,
    trainers: Iterable[str] = (),
    cursor: int | None = None,
) -> dict[str, Any]:
    """What a run with these settings will do, as a plain dict; settings that can't work are an error in it, not raised.

    settings: a `TrainingConfig` or its fields. trainers: keys of `lora_kit.trainers.known.TRAINERS`, for the curves that the
    same words give there. cursor: an update whose rate is wanted as well. Keys of the dict:

    errors: a list of sentences.
    findings: the doctor's records, worst first.
    sentences: what processes and accumulation do to the run.
    ignored: {setting: why it does nothing here}.
    steps: the rows of `Steps.rows()`.
    total_updates, warmup, updates_per_epoch: in updates.
    peak: the highest learning rate that the schedule is made for.
    optimizer: what AdamW's settings mean, in rows like those of steps.
    curves: see `lora_kit.explorer.curves`; the first is the run's. Where a warm-up is too long it is what would happen.
    updates, rates: those of the first curve.
    memory: as of `lora_kit.memory.memory`; None for a model that is not known there.
    commands: as of `lora_kit.command_line.texts.write`; empty with errors.

    Raises TypeError for settings that are neither, ValueError for a key that is no trainer and a cursor that is no update.

    >>> summarize({"style": "outlined", "learning_rate": 1e-3, "train_batch_size": 2, "num_train_epochs": 1}, 20)["updates"]
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    summary = dict(errors=[], findings=[], sentences=[], ignored={}, steps=[], total_updates=0, warmup=0)
    summary |= dict(
        updates_per_epoch=0, peak=0.0, optimizer=[], curves=[], updates=[], rates=[], memory=None, commands={}
    )
    settings = settings.changes() if isinstance(settings, TrainingConfig) else dict(settings)
    trainers = tuple(trainers)
    for key in trainers:
        if key not in TRAINERS:
            raise ValueError(f"trainer {key!r} is unknown; it must be one of {', '.join(TRAINERS)}")
    if cursor is not None:
        whole_number("cursor", cursor, 0)
    summary["ignored"] = ignored(settings)
    try:
        summary["memory"], shapes = _memory(settings)
    except ValueError as error:
        return summary | dict(errors=[str(error)])
    try:
        findings = examine_settings(settings, num_examples, num_processes, shapes)
        summary["findings"] = findings.records()
        summary["errors"] = [f"{finding.value}: {finding.reason}" for finding in findings if finding.status == ERROR]
        summary |= _course(_drawable(settings), num_examples, num_processes, trainers, cursor)
        if not summary["errors"]:
            summary["commands"] = write(quiet_config(settings), int(num_processes), int(num_examples))
    except (TypeError, ValueError) as error:
        summary["errors"] = summary["errors"] or [str(error)]
    return summary


def ignored(settings: Mapping[str, Any]) -> dict[str, str]:
    """{setting: why it changes nothing as the others stand}. settings: fields of `TrainingConfig`."""
    scheduler, reasons = settings.get("lr_scheduler", "constant"), {}
    if scheduler in LR_SCHEDULERS:
        for name, readers in READ_BY.items():
            if scheduler not in readers:
                alone = f"only {readers[0]} reads it"
                reasons[name] = f"{scheduler} has no warm-up" if name == "lr_warmup_steps" else alone
    if settings.get("max_train_steps"):
        reasons["num_train_epochs"] = "max_train_steps decides"
    return reasons


def _drawable(settings):
    """The settings; without their warm-up where that is no number of updates at all, such as 0.1."""
    if "lr_warmup_steps" in settings:
        if problem_of(lambda: check_setting("lr_warmup_steps", settings["lr_warmup_steps"])):
            return settings | dict(lr_warmup_steps=0)
    return settings


def _memory(settings):
    """(what `lora_kit.memory` says, the LoRA's shapes); (None, None) for a model that is not known there."""
    names = ("pretrained_model_name_or_path", "rank", "target_modules", "mixed_precision")
    chosen = {name: check_setting(name, settings[name]) for name in names if name in settings}
    model, precision = chosen.pop("pretrained_model_name_or_path", "embedded"), chosen.pop("mixed_precision", None)
    if model not in memory.MODELS:
        return None, None
    return memory.memory(model, **chosen, mixed_precision=precision or "no"), memory.lora_shapes(model, **chosen)


def _course(settings, num_examples, num_processes, trainers, cursor):
    """The part of a summary that says how the run goes: its steps, curves, optimizer and sentences."""
    run = plan(settings, num_examples, num_processes)
    steps, sentences = run.steps, []
    curves = [run_curve(AS_APPLIED, "run", run, cursor)]
    if steps.num_processes > 1 or steps.gradient_accumulation_steps > 1:
        alone = plan(settings | dict(gradient_accumulation_steps=1), num_examples, 1)
        expected = run_curve("one process, no accumulation", "expected", alone, cursor)
        if any(expected[key] != curves[0][key] for key in ("updates", "rates", "passed")):
            curves.append(expected)
        sentences = _sentences(run.config, steps, alone.steps)
    curves += [trainer_curve(key, run.config, steps, curves[0]) for key in trainers]
    return dict(
        sentences=sentences, steps=steps.rows(), total_updates=steps.total_updates, warmup=run.config.warmup_updates,
        updates_per_epoch=steps.updates_per_epoch, peak=run.schedule.peak, optimizer=_optimizer(run.config, curves[0]),
        curves=curves, updates=curves[0]["updates"], rates=curves[0]["rates"],
    )  # fmt: skip


def _optimizer(config, run):
    """What AdamW's settings mean in this run, as (quantity, value, how it comes about)."""
    return [
        ("largest step of a weight, about", f"{max(run['rates']):.3g}", "the highest rate"),
        ("gradients averaged over about", f"{1 / (1 - config.adam_beta1):,.4g} updates", "1 / (1 - beta1)"),
        ("their squares over about", f"{1 / (1 - config.adam_beta2):,.4g} updates", "1 / (1 - beta2)"),
        ("a weight without gradient keeps", _share_left(config.adam_weight_decay, run), "times 1 - rate x decay"),
    ]


def _share_left(decay, run):
    """What weight decay leaves of a weight over a run, in words."""
    counts = [after - before for before, after in itertools.pairwise([*run["updates"], run["ends"]["updates"]])]
    try:
        left = math.prod((1 - rate * decay) ** count for rate, count in zip(run["rates"], counts, strict=True))
    except OverflowError:
        left = math.inf
    return f"{left:.2%}" if abs(left) <= 1 else "more than 100%"


def _sentences(config: TrainingConfig, steps: Steps, alone: Steps) -> list[str]:
    """What several processes and accumulation do to a run, in sentences."""
    names = {"processes": steps.num_processes, "accumulation steps": steps.gradient_accumulation_steps}
    parts = " x ".join(f"{count} {name}" for name, count in names.items() if count > 1)
    size = f"{parts}: an update takes {steps.total_batch_size} images instead of {steps.train_batch_size}"
    fewer = steps.total_updates != alone.total_updates
    if fewer:
        epochs, updates = steps.num_train_epochs, f"{steps.total_updates:,} updates, not {alone.total_updates:,}"
        sentences = [f"{size}, so the same {epochs} epochs make {updates}"]
    else:
        epochs = f"{steps.epochs:,} epochs, not {alone.epochs:,}"
        sentences = [f"{size}, so the same {steps.total_updates:,} updates are {epochs}"]
    warmup = steps.lr_warmup_steps
    if warmup and fewer:
        inside = warmup < steps.total_updates
        share = f"{warmup / steps.total_updates:.0%} of this run" if inside else "longer than this run"
        rest = f"{warmup / alone.total_updates:.0%} of that one"
        sentences.append(f"the warm-up is counted in updates: {warmup} are {share}, and {rest}")
    if config.scale_lr:
        sentences.append(f"scale_lr multiplies the rate by {steps.total_batch_size}, not by {alone.total_batch_size}")
    return sentences
