"""What can be turned, as plain data: each control with its word, its help, its ends, and its values in words. No widgets."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_kit import memory
from lora_kit.config import FIELDS, TARGET_MODULES, kind_of
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.state import COUNTS, RULES
from lora_kit.lr_settings import LR_SCHEDULERS
from lora_kit.steps import AXES
from lora_kit.system.checks import shown
from lora_kit.trainers.known import TRAINERS

TARGET_SETS = {
    "attention": " ".join(TARGET_MODULES),
    "attention and feed-forward": "to_k to_q to_v to_out.0 ff.net.0.proj ff.net.2",
    "everything": "to_k to_q to_v to_out.0 ff.net.0.proj ff.net.2 proj_in proj_out conv1 conv2 conv_shortcut conv_in conv_out",
}
OTHER_SET = "as typed"
KINDS = {"accelerate": "accelerate launch", "diffusers": "diffusers' script", "python": "Python", "yaml": "YAML"}
PANELS = {  # name: heading
    "picture": "The learning rate",
    "findings": "What the doctor says",
    "atlas": "What it draws",
    "map": "The loss over rate and rank",
    "command": "To run it",
    "notes": "The same words in other trainers",
    "steps": "Steps and optimizer",
    "memory": "What training keeps in memory",
}
BUTTONS = {  # the name of what it does: what stands on it, and its help
    "read": ("Read what is pasted", "Take the settings of the text above."),
    "pin": ("Pin", "Keep this curve in the picture while the settings change; three at most."),
    "unpin": ("Unpin all", "Take the kept curves out of the picture."),
    "mend": ("Nothing to mend", "Take the settings that cure the worst of what the doctor found."),
}
NOTCH = 0.05  # of a logarithmic slider, as a power of ten


@dataclass(frozen=True)
class Control:
    """Something to turn.

    name: of the setting, as the flag has it. word: the same in plain words. group: a key of `GROUPS`. kind: "logarithmic" or
    "slider", both with a field for any number beside them; "number", a field alone; "choice", of which "several" takes more
    than one; "switch"; "text". low, high: the usual ends, as values; a value beyond them moves them. step: of a logarithmic
    slider as a power of ten. options: (words, value) of a choice; of a text, values to choose from.

    >>> CONTROLS["learning_rate"].said(1e-4), CONTROLS["scale_lr"].said(False), CONTROLS["mixed_precision"].said("")
    ('0.0001', 'off', 'left to the launcher')
    """

    name: str
    word: str
    group: str
    kind: str
    help: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def said(self, value: Any) -> str:
        """A value in words, for whoever hears the page."""
        if self.kind == "switch":
            return "on" if value else "off"
        if self.kind == "choice":
            return next((words for words, option in self.options if option == value), str(value))
        return written(value) or "left out"

    def ends(self, *values: float) -> tuple[float, float]:
        """The ends of a slider that has room for these values, too.

        >>> CONTROLS["learning_rate"].ends(2e-9), CONTROLS["rank"].ends(300)
        ((1e-09, 1.0), (1, 300))
        """
        low, high = min(self.low, *values), max(self.high, *values)
        if self.kind != "logarithmic":
            return low, high
        low = 10.0 ** math.floor(math.log10(low)) if 0 < low < self.low else self.low
        return low, 10.0 ** math.ceil(math.log10(high)) if high > self.high else self.high


def _models() -> tuple[tuple[str, str], ...]:
    return tuple((title, name) for name, title in memory.MODELS.items())


def _all(names):
    return tuple((name, name) for name in names)


PRECISIONS = (("left to the launcher", ""), *_all(("no", "fp16", "bf16")))
_SETTINGS: dict[str, tuple] = {
    "Learning rate": (
        ("learning_rate", "learning rate", "logarithmic", dict(low=1e-6, high=1.0, step=NOTCH)),
        ("lr_scheduler", "schedule", "choice", dict(options=_all(LR_SCHEDULERS))),
        ("lr_warmup_steps", "warm-up", "slider", dict(low=0, high=1000, step=1)),
        ("lr_num_cycles", "restarts", "slider", dict(low=1, high=10, step=1)),
        ("lr_power", "power", "slider", dict(low=0.1, high=5.0, step=0.1)),
        ("lr_step_rules", "steps of the rate", "text", {}),
        ("scale_lr", "rate times batch", "switch", {}),
    ),
    "LoRA and model": (
        ("rank", "rank", "slider", dict(low=1, high=128, step=1)),
        ("target_modules", "layers", "text", dict(options=tuple(TARGET_SETS.items()))),
        ("pretrained_model_name_or_path", "model", "choice", dict(options=_models())),
        ("mixed_precision", "precision", "choice", dict(options=PRECISIONS)),
    ),
    "Length and batches": (
        ("num_examples", "pictures", "number", dict(low=1)),
        ("train_batch_size", "batch size", "slider", dict(low=1, high=32, step=1)),
        ("gradient_accumulation_steps", "accumulation", "slider", dict(low=1, high=16, step=1)),
        ("num_processes", "processes", "slider", dict(low=1, high=16, step=1)),
        ("num_train_epochs", "epochs", "slider", dict(low=1, high=100, step=1)),
        ("max_train_steps", "updates", "number", dict(low=0)),
    ),
    "Optimizer": (
        ("adam_beta1", "memory of gradients", "slider", dict(low=0.0, high=0.99, step=0.01)),
        ("adam_beta2", "memory of squares", "slider", dict(low=0.9, high=0.9999, step=0.0001)),
        ("adam_weight_decay", "weight decay", "slider", dict(low=0.0, high=0.5, step=0.005)),
        ("adam_epsilon", "epsilon", "logarithmic", dict(low=1e-12, high=1e-2, step=NOTCH)),
        ("max_grad_norm", "clipping", "slider", dict(low=0.0, high=5.0, step=0.1)),
        ("use_8bit_adam", "8-bit Adam", "switch", {}),
    ),
}
_OWN_HELP = {
    "num_examples": "Pictures in the data set.",
    "num_processes": "Processes that train together, one on each GPU.",
    "max_train_steps": "Optimizer updates in all; at 0 num_train_epochs decides.",
}
GROUPS = {title: tuple(name for name, *_ in rows) for title, rows in _SETTINGS.items()}
CONTROLS = {
    name: Control(name, word, title, kind, _OWN_HELP.get(name) or FIELDS[name].metadata["help"], **more)
    for title, rows in _SETTINGS.items()
    for name, word, kind, more in rows
}
_START, _SEEN = "Start", "The picture"
LOOKS = {  # what changes no setting
    control.name: control
    for control in (
        Control("preset", "preset", _START, "choice", "A configuration to start from.",
                options=(("start from …", ""), *_all(PRESETS))),
        Control("pasted", "or paste a command line, Python or YAML", _START, "text", "A text to take the settings of."),
        Control("axis", "over", _SEEN, "choice", "What the picture is drawn over.",
                options=tuple((words, name) for name, words in AXES.items())),
        Control("log", "logarithmic", _SEEN, "switch", "Rates on a logarithmic scale."),
        Control("cursor", "read at update", _SEEN, "slider",
                "Moves the line in the picture; the rates there stand below it.", 0, 1, 1),
        Control("kind", "as", PANELS["command"], "choice", "The text to copy.",
                options=tuple((words, name) for name, words in KINDS.items())),
        Control("trainers", "trainers", PANELS["notes"], "several", "What the same words mean to other trainers.",
                options=tuple((trainer.name, key) for key, trainer in TRAINERS.items())),
    )
}  # fmt: skip
HIDEABLE = (*CONTROLS, *LOOKS, *PANELS, "train")


def for_knob(name: str, values: Mapping[str, Any]) -> Any:
    """The value of a setting as its knob holds it: a text, a number or a switch, never None. values: of `State.values`."""
    value = values[name]
    if name == "target_modules":
        return " ".join(value)
    if name == "lr_step_rules":  # where they are needed, the knob shows none that the run doesn't have
        return value or ("" if values["lr_scheduler"] == "piecewise_constant" else RULES)
    return {"max_train_steps": 0, "mixed_precision": ""}[name] if value is None else value


def meaning(name: str, text: str) -> Any:
    """What a text means as the value of a setting or of a count. Raises ValueError where it is no number, or no switch.

    >>> meaning("rank", "1e3"), meaning("learning_rate", "2e-4"), meaning("scale_lr", "on"), meaning("max_train_steps", "0")
    (1000, 0.0002, True, None)
    """
    kind, optional = (int, False) if name in COUNTS else kind_of(name)
    if kind is bool:
        if text.lower() not in (switch := {"true": True, "on": True, "false": False, "off": False}):
            raise ValueError(f"{name} {shown(text)} is neither on nor off")
        return switch[text.lower()]
    if optional and not text:
        return None
    if kind in (int, float):
        value = _number(name, text, kind is int)
        return None if name == "max_train_steps" and value == 0 else value
    return tuple(text.split()) if kind is tuple else text


def as_meant(name: str, value: Any, before: Any) -> Any:
    """A slider's number without the rounding errors of the browser, which reports 0.9 as 0.9000000000000001.

    >>> as_meant("learning_rate", 10**-3.05, 1e-3)
    0.000891
    """
    if not isinstance(value, float):
        return value
    if isinstance(before, int | float) and math.isclose(value, before, rel_tol=1e-9):
        return before
    if name in CONTROLS and CONTROLS[name].kind == "logarithmic" and 0 < value < math.inf:
        notches = math.log10(value) / NOTCH
        if math.isclose(notches, round(notches), abs_tol=1e-6):
            return float(f"{value:.3g}")
    return float(f"{value:.10g}")


def written(value: Any) -> str:
    """A value as a field, and a sentence, show it; "" for None.

    >>> written(8.91e-4), written(("to_q", "to_v")), written(None)
    ('0.000891', 'to_q to_v', '')
    """
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _number(name, text, whole):
    """The number that was typed, also a whole one as 1e3; ValueError for what is none."""
    with contextlib.suppress(ValueError):
        return int(text) if whole else float(text)
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} {shown(text)} is no number") from None
    return int(value) if value.is_integer() else value
