"""The settings of trials: a run made short, and the combinations of a sweep."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lora_kit.config import DATA_SOURCES, TrainingConfig, quiet_config
from lora_kit.data.emoji import count_style
from lora_kit.lr_settings import parse_step_rules
from lora_kit.steps import Steps
from lora_kit.system.checks import whole_number

SIDE = 64  # pixels, of the embedded model


def trial_settings(settings: Mapping[str, Any], updates: int) -> tuple[dict[str, Any], list[str]]:
    """(settings of the trial, sentences) for a dict of `TrainingConfig` fields and a number of optimizer updates.

    The trial learns one of the kit's styles ("outlined" unless one is given) at 64 pixels for `updates` updates. The
    warm-up, and the boundaries of piecewise_constant, keep their share of the run that `settings` describe; without
    max_train_steps that is num_train_epochs passes over the trial's pictures. The seed is 0 unless one is given. There
    are no checkpoints, trackers, uploads, validation or compilation. All else stays. The sentences say what differs and
    why. Raises ValueError for settings that can't work, among them another model than the embedded one.

    >>> trial_settings({"learning_rate": 1e-3, "lr_warmup_steps": 30, "max_train_steps": 300, "lr_scheduler": "linear"}, 50)[0]["lr_warmup_steps"]
    5
    """
    whole_number("updates", updates)
    config = trial_config(settings)
    model, rules = config.pretrained_model_name_or_path, config.lr_step_rules
    if model != "embedded":
        raise ValueError(
            f"pretrained_model_name_or_path {model!r}: a trial trains the embedded model only; use train() or launch()"
        )
    style = config.style or "outlined"
    share = updates / Steps.of(config, config.max_train_samples or count_style(style, "lora")).total_updates
    if config.lr_scheduler == "piecewise_constant":
        rules = _scaled(rules, share)
    warmup = min(round(config.lr_warmup_steps * share), updates - 1)
    own_pictures = "a trial trains on the kit's own pictures"
    changes = {
        "style": (style, own_pictures),
        "dataset_name": (None, own_pictures),
        "train_data_dir": (None, own_pictures),
        "resolution": (SIDE, "it is what the embedded model draws"),
        "max_train_steps": (updates, "a trial is a short run"),
        "lr_warmup_steps": (warmup, "the warm-up keeps its share of the run"),
        "lr_step_rules": (rules, "the rules keep their share of the run"),
        "seed": (config.seed or 0, "trials are to differ in their settings, not in their noise"),
        "checkpointing_steps": (max(config.checkpointing_steps, updates + 1), "a trial writes no checkpoints"),
        "resume_from_checkpoint": (None, "a trial starts anew"),
        "validation_prompt": (None, "a trial draws pictures of its own"),
        "report_to": ("none", "the page draws the curves"),
        "push_to_hub": (False, "a trial uploads nothing"),
        "torch_compile": (False, "compiling takes longer than the trial"),
    }
    sentences = [
        f"{name} {getattr(config, name)!r} is {value!r} here: {why}"
        for name, (value, why) in changes.items()
        if value != getattr(config, name)
    ]
    trial = {**settings, "hub_token": None, **{name: value for name, (value, _) in changes.items()}}
    trial_config(trial)
    return trial, sentences


def sweep(
    base_settings: Mapping[str, Any],
    first: tuple[str, Iterable[Any]],
    second: tuple[str, Iterable[Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """{name: settings} for every combination of one or two fields' values, for `Trials.start`.

    base_settings: a dict of `TrainingConfig` fields. first, second: a field and its values. Raises ValueError for a field
    that is none, or given twice, and for a value that can't work.

    >>> list(sweep({}, ("learning_rate", [1e-3]), ("rank", [1, 4])))
    ['learning_rate 0.001, rank 1', 'learning_rate 0.001, rank 4']
    """
    axes = [axis for axis in (first, second) if axis is not None]
    if second is not None and first[0] == second[0]:
        raise ValueError(f"first and second are both {first[0]!r}: sweep over two different settings")
    trials = {}
    for chosen in itertools.product(*([(field, value) for value in values] for field, values in axes)):
        name = ", ".join(f"{field} {value}" for field, value in chosen)
        trials[name] = {**base_settings, **dict(chosen)}
        naming(name, trial_config, trials[name])
    return trials


def trial_config(settings: Mapping[str, Any]) -> TrainingConfig:
    """The `TrainingConfig` of settings, of which those without a data set learn "outlined"; ValueError where they can't work."""
    made_up = {} if any(settings.get(source) for source in DATA_SOURCES) else {"style": "outlined"}
    try:
        return quiet_config({**settings, **made_up})
    except TypeError as error:  # a name that is no setting, or no learning_rate
        raise ValueError(str(error)) from None


def naming(trial: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns; a ValueError of it names the trial."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"trial {trial!r}: {error}") from None


def _scaled(rules, share):
    """The rules of piecewise_constant with their boundaries times `share`, each still above the one before."""
    pairs, last = parse_step_rules(rules)
    scaled, before = [], 0
    for boundary, factor in pairs:
        before = max(round(boundary * share), before + 1)
        scaled.append(f"{factor:g}:{before}")
    return ",".join([*scaled, f"{last:g}"])
