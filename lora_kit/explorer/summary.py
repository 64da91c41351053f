"""What a configuration will do, as plain numbers: the explorer's page before it is drawn. No torch, no widgets, no files."""

import dataclasses
import itertools
import math
import warnings
from types import SimpleNamespace

from lora_kit import memory, rosetta
from lora_kit.command_line.texts import write
from lora_kit.config import IGNORES_WARMUP, ConfigWarning, TrainingConfig
from lora_kit.doctor.examine import ERROR, examine_settings
from lora_kit.schedules import check_step_rules, learning_rates
from lora_kit.steps import Steps

SAMPLES = 400
AXES = {  # what a picture can be drawn over: the name in `Steps.passed`, and in words
    "updates": "optimizer updates (0 is the first)",
    "micro_steps": "micro-steps of each process",
    "epochs": "epochs",
    "images": "images seen, by all processes",
}
READERS = {"lr_num_cycles": "cosine_with_restarts", "lr_power": "polynomial", "lr_step_rules": "piecewise_constant"}


def summarize(settings, num_examples, num_processes=1, trainers=(), cursor=None):
    """What a run with these settings will do, as a plain dict; settings that can't work are an error in it, not raised.

    settings: a `TrainingConfig` or a dict of its fields. trainers: keys of `rosetta.TRAINERS`, for the curves that the same
    words give there. cursor: an update whose rate is wanted as well. Keys:

    errors, a list of sentences; findings, the doctor's records, worst first; said, what processes and accumulation do to the
    run; ignored, {setting: why it does nothing here}; steps, the rows of `Steps.rows()`; total_updates; warmup, in updates;
    updates_per_epoch; peak; optimizer, rows like those of steps; curves, a list of which the first is the run's; updates and rates, of that curve; memory, as of
    `lora_kit.memory`, None for a model that is not known there; commands, as of `lora_kit.commands.write`, empty with errors.

    A curve is a dict: label, kind ("run", "expected" or a trainer's key), note, updates (about 400 of them, 0 the first and
    both ends included), rates, the learning rate each of them uses, passed, the positions of these updates on each of `AXES`,
    and ends, the positions where the run is over. Where a warm-up is too long the curve is what would happen.

    >>> summarize({"style": "outlined", "learning_rate": 1e-3, "train_batch_size": 2, "num_train_epochs": 1}, 20)["updates"]
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    summary = dict(
        errors=[], findings=[], said=[], ignored={}, steps=[], total_updates=0, warmup=0, updates_per_epoch=0
    )
    summary |= dict(peak=0.0, optimizer=[], curves=[], updates=[], rates=[], memory=None, commands={})
    if isinstance(settings, TrainingConfig):
        settings = {**settings.changes(matched=False), "match_diffusers": settings.match_diffusers}
    settings = dict(settings)
    summary["ignored"] = ignored(settings)
    kept, shapes = _memory(settings)
    if isinstance(kept, str):
        return summary | dict(errors=[kept])
    try:
        findings = examine_settings(settings, num_examples, num_processes, shapes)
        errors = [f"{one.value}: {one.reason}" for one in findings if one.status == ERROR]
        summary |= dict(memory=kept, findings=findings.records(), errors=errors)
        config, steps = _config(settings, num_examples, num_processes)
    except (TypeError, ValueError) as error:
        return summary | dict(errors=summary["errors"] or [str(error)])
    curves = [_curve("as applied", "run", "", config, steps, learning_rates, cursor)]
    said = []
    if steps.num_processes > 1 or steps.gradient_accumulation_steps > 1:
        config_alone, alone = _config(settings | dict(gradient_accumulation_steps=1), num_examples, 1)
        expected = _curve("one process, no accumulation", "expected", "", config_alone, alone, learning_rates, cursor)
        if any(expected[key] != curves[0][key] for key in ("updates", "rates", "passed")):
            curves.append(expected)
        said = _said(config, steps, alone)
    for key in trainers:
        curves.append(_trainer_curve(key, config, steps, cursor, curves[0]))
    summary |= dict(said=said, steps=steps.rows(), total_updates=steps.total_updates)
    summary |= dict(warmup=steps.lr_warmup_steps, updates_per_epoch=steps.updates_per_epoch, curves=curves)
    summary |= dict(peak=config.peak_learning_rate(num_processes), optimizer=_optimizer(config, curves[0]))
    summary |= dict(updates=curves[0]["updates"], rates=curves[0]["rates"])
    if not errors:
        summary["commands"] = write(_quietly(**settings), num_processes, num_examples)
    return summary


def ignored(settings):
    """{setting: why it changes nothing as the others stand}. `settings`: a dict of `TrainingConfig` fields."""
    scheduler = settings.get("lr_scheduler", "constant")
    found = {name: f"only {reader} reads it" for name, reader in READERS.items() if reader != scheduler}
    if scheduler in IGNORES_WARMUP:
        found["lr_warmup_steps"] = f"{scheduler} has no warm-up"
    if settings.get("max_train_steps"):
        found["num_train_epochs"] = "max_train_steps decides"
    return found


def _quietly(**settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)  # told by the doctor
        return TrainingConfig(**settings)


def _config(settings, num_examples, num_processes):
    """(a `TrainingConfig` without its warm-up, the `Steps` with it, however long it is)."""
    warmup = settings.get("lr_warmup_steps", 0)
    config = _quietly(**settings | dict(lr_warmup_steps=0))
    steps = Steps.of(config, num_examples, num_processes)
    if config.lr_scheduler in IGNORES_WARMUP:
        warmup = 0
    # match_diffusers takes a warm-up that is longer than the run
    return config, dataclasses.replace(steps, lr_warmup_steps=warmup, match_diffusers=True)


def _memory(settings):
    """(what `lora_kit.memory` says, the LoRA's shapes); (None, None) for another model; (an error, None)."""
    model = settings.get("pretrained_model_name_or_path", "embedded")
    chosen = {name: settings[name] for name in ("rank", "target_modules") if name in settings}
    if model not in memory.MODELS:
        return None, None
    try:
        shapes = memory.lora_shapes(model, **chosen)
    except (TypeError, ValueError) as error:
        return str(error), None
    more = dict(use_8bit_adam=settings.get("use_8bit_adam", False))
    return memory.memory(model, **chosen, **more, mixed_precision=settings.get("mixed_precision") or "no"), shapes


def _sampled(config, steps, cursor):
    """About `SAMPLES` updates of a run: evenly spread, and all at which the rate has a corner or a jump."""
    last = steps.total_updates - 1
    found = {round(index * last / (SAMPLES - 1)) for index in range(SAMPLES)}
    warmup, corners = steps.lr_warmup_steps, [steps.lr_warmup_steps]
    if config.lr_scheduler == "piecewise_constant":
        corners += [boundary for boundary, _ in check_step_rules(config.lr_step_rules)[0]]
    if config.lr_scheduler == "cosine_with_restarts":
        part = (steps.total_updates - warmup) / config.lr_num_cycles
        corners += [math.ceil(warmup + part * cycle) for cycle in range(1, config.lr_num_cycles)]
    found |= {update for corner in corners for update in (corner - 1, corner)}
    found |= {cursor if cursor is not None else 0}
    return sorted(update for update in found if 0 <= update <= last)


def _curve(label, kind, note, config, steps, rates, cursor, updates=None):
    updates = _sampled(config, steps, cursor) if updates is None else updates
    found = [steps.passed(update) for update in updates]
    passed = {axis: [one[axis] for one in found] for axis in AXES}
    try:
        values = list(rates(config, steps, updates))
    except ZeroDivisionError:  # polynomial with a warm-up as long as its total
        values = [0.0] * len(updates)
    return dict(
        label=label, kind=kind, note=note, updates=updates, rates=values, passed=passed, ends=steps.passed(steps.total_updates)
    )  # fmt: skip


def _trainer_curve(key, config, steps, cursor, run):
    """The curve of another trainer; where it has no such schedule, one without points. Its note says how it differs from
    `run`, this kit's curve, and what is to be known of that trainer."""
    trainer = rosetta.TRAINERS[key]
    asked = SimpleNamespace(
        **{name: getattr(config, name) for name in config.__dataclass_fields__ if name != "lr_warmup_steps"},
        lr_warmup_steps=steps.lr_warmup_steps,
        peak_learning_rate=config.peak_learning_rate,
    )
    about = f"{trainer.note} Source: {trainer.source}, read {trainer.read}."

    def rates(config, steps, updates):
        return rosetta.trainer_rates(key, config, steps, updates)

    try:
        curve = _curve(trainer.name, key, about, asked, steps, rates, cursor)
        return curve | dict(note=f"{_compared(curve, run)} {about}")
    except ValueError as error:
        return _curve(trainer.name, key, f"{error}. {about}", asked, steps, lambda *nothing: [], cursor, updates=[])


def _compared(curve, run):
    """How another trainer's rates differ from those of this kit in the run at hand, in a sentence. Both at the same updates."""
    high = max(run["rates"])
    if all(
        math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3 * high)
        for one, other in zip(curve["rates"], run["rates"], strict=True)
    ):
        return "In this run: the same rates as here."

    def about(one):
        top = max(one["rates"])
        return one["updates"][one["rates"].index(top)], top, one["rates"][-1]

    (first, top, last), (first_here, top_here, last_here) = about(curve), about(run)
    return (
        f"In this run: at most {top:.3g}, first at update {first:,}, and {last:.3g} at the last; "
        f"here at most {top_here:.3g}, first at update {first_here:,}, and {last_here:.3g} at the last."
    )


def _optimizer(config, run):
    """What AdamW's settings mean in this run, as (quantity, value, how it comes about)."""
    updates, rates = [*run["updates"], run["ends"]["updates"]], run["rates"]
    counts = [after - before for before, after in itertools.pairwise(updates)]
    left = math.prod((1 - rate * config.adam_weight_decay) ** count for rate, count in zip(rates, counts, strict=True))
    return [
        (
            "largest step of a weight, about",
            f"{max(rates):.3g}",
            "the highest rate",
        ),
        ("gradients averaged over about", f"{1 / (1 - config.adam_beta1):,.4g} updates", "1 / (1 - beta1)"),
        ("their squares over about", f"{1 / (1 - config.adam_beta2):,.4g} updates", "1 / (1 - beta2)"),
        (
            "a weight without gradient keeps",
            f"{left:.2%}",
            "times 1 - rate x decay",
        ),
    ]


def _said(config, steps, alone):
    """What several processes and accumulation do to a run, in sentences."""
    parts = []
    if steps.num_processes > 1:
        parts.append(f"{steps.num_processes} processes")
    if steps.gradient_accumulation_steps > 1:
        parts.append(f"{steps.gradient_accumulation_steps} accumulation steps")
    found = [
        f"{' x '.join(parts)}: an update takes {steps.total_batch_size} images instead of {steps.train_batch_size}"
    ]
    if steps.total_updates != alone.total_updates:
        found[0] += (
            f", so the same {steps.num_train_epochs} epochs make {steps.total_updates:,} updates, not {alone.total_updates:,}"
        )
    else:
        found[0] += f", so the same {steps.total_updates:,} updates are {steps.epochs:,} epochs, not {alone.epochs:,}"
    warmup = steps.lr_warmup_steps
    if warmup and steps.total_updates != alone.total_updates:
        share = (
            f"{warmup / steps.total_updates:.0%} of this run"
            if warmup < steps.total_updates
            else "longer than this run"
        )
        found.append(
            f"the warm-up is counted in updates: {warmup} are {share}, and {warmup / alone.total_updates:.0%} of that one"
        )
    if config.scale_lr:
        factor = steps.total_batch_size
        found.append(f"scale_lr multiplies the rate by {factor}, not by {alone.total_batch_size}")
    return found
