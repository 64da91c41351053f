"""The explorer's knobs: a widget for each setting, beside a slider the field for its number, under it what is to be said."""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from lora_kit import memory
from lora_kit.config import FIELDS, TARGET_MODULES, kind_of
from lora_kit.explorer.panels import hint_html
from lora_kit.explorer.state import RULES, State
from lora_kit.explorer.widgets import ROW, Quiet, labelled
from lora_kit.lr_settings import LR_SCHEDULERS
from lora_kit.system.checks import shown

TARGET_SETS = {
    "attention": " ".join(TARGET_MODULES),
    "attention and feed-forward": "to_k to_q to_v to_out.0 ff.net.0.proj ff.net.2",
    "everything": "to_k to_q to_v to_out.0 ff.net.0.proj ff.net.2 proj_in proj_out conv1 conv2 conv_shortcut conv_in conv_out",
}
OTHER_SET = "as typed above"
GROUPS = {
    "Learning rate": (
        "learning_rate", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "lr_step_rules", "scale_lr",
    ),
    "Length and batches": (
        "num_examples", "train_batch_size", "gradient_accumulation_steps", "num_processes", "num_train_epochs",
        "max_train_steps",
    ),
    "Optimizer": (
        "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm", "use_8bit_adam",
    ),
    "LoRA and model": ("pretrained_model_name_or_path", "rank", "target_modules", "mixed_precision"),
}  # fmt: skip
SLIDERS = {  # the usual ends; a value beyond them moves them
    "lr_warmup_steps": (0, 1000), "lr_num_cycles": (1, 10), "train_batch_size": (1, 32), "rank": (1, 128),
    "gradient_accumulation_steps": (1, 16), "num_processes": (1, 16), "num_train_epochs": (1, 100),
    "lr_power": (0.1, 5.0), "adam_beta1": (0.0, 0.99), "adam_beta2": (0.9, 0.9999), "adam_weight_decay": (0.0, 0.5),
    "max_grad_norm": (0.0, 5.0),
}  # fmt: skip
NOTCHES = {"lr_power": 0.1, "adam_beta1": 0.01, "adam_beta2": 0.0001, "adam_weight_decay": 0.005, "max_grad_norm": 0.1}
LOGARITHMIC = {"learning_rate": (-6, 0), "adam_epsilon": (-12, -2)}
NOTCH = 0.05  # of a logarithmic slider, as a power of ten
OWN_HELP = {
    "num_examples": "Pictures in the data set.",
    "num_processes": "Processes that train together, one on each GPU.",
    "max_train_steps": "Optimizer updates in all; at 0 num_train_epochs decides.",
}
SLIDER = {"flex": "1 1 auto", "width": "auto"}


class Knobs:
    """The knobs in their groups, of which one is open.

    widgets, numbers, hints: by the setting's name, its knob, the text field beside a slider, and what stands under it. sets:
    the usual sets of target_modules. group, groups, box: the choice of a group, each group, and all of it. turned(name,
    value) is called when the reader has turned a knob, and refused(name, why) when what was typed beside it is no number.
    """

    def __init__(self, quiet: Quiet, turned: Callable[[str, Any], None], refused: Callable[[str, Exception], None]):
        import ipywidgets

        self.quiet, self._turned, self._refused = quiet, turned, refused
        self.widgets, self.numbers, self.hints, self.groups = {}, {}, {}, {}
        self.group = ipywidgets.ToggleButtons(
            options=list(GROUPS), style={"button_width": "calc(50% - 4px)"}, layout=ROW,
            tooltips=[", ".join(names) for names in GROUPS.values()],
        )  # fmt: skip
        self.group.observe(self._open_group, "value")
        self.sets = labelled(
            ipywidgets.Dropdown, "usual sets", "Usual sets of target_modules.", options=[*TARGET_SETS, OTHER_SET]
        )
        self.sets.observe(quiet.hears(self._take_set), "value")
        for title, names in GROUPS.items():
            rows = []
            for name in names:
                self.hints[name] = ipywidgets.HTML(layout=ROW)
                rows += [self._row(name), *([self.sets] if name == "target_modules" else []), self.hints[name]]
            self.groups[title] = ipywidgets.VBox(rows)
        self._open_group()
        self.box = ipywidgets.VBox([self.group, *self.groups.values()])

    def show(self, state: State, refused: Mapping[str, str]) -> None:
        """Set every knob to the state, as exactly as it is. refused: {name: why what the reader gave it was not taken}."""
        values = state.values
        with self.quiet:
            for name, knob in self.widgets.items():
                value = _for_knob(name, values)
                if name == "pretrained_model_name_or_path" and value not in dict(_models()).values():
                    knob.options = [*_models(), (value, value)]
                if as_meant(name, knob.value, value) != value:  # else the slider would jump under the reader's hand
                    _put(knob, value, name in LOGARITHMIC)
            warmup = self.widgets["lr_warmup_steps"]
            warmup.max = max(warmup.max, state.summary["total_updates"] - 1)
            chosen = " ".join(values["target_modules"])
            self.sets.value = next((name for name, words in TARGET_SETS.items() if words == chosen), OTHER_SET)
            for name, number in self.numbers.items():
                number.value = written(values[name])
            for name, hint in self.hints.items():
                reason = state.summary["ignored"].get(name, "")
                for widget in (self.widgets[name], self.numbers.get(name, self.widgets[name])):
                    widget.disabled = bool(reason)
                hint.value = hint_html(refused.get(name), reason)
                hint.layout.display = None if hint.value else "none"

    def _row(self, name):
        """A knob, and beside a slider the field for its number."""
        import ipywidgets

        knob = self.widgets[name] = _knob(name)
        knob.observe(self.quiet.hears(lambda change: self._turned(name, change["new"])), "value")
        if name not in SLIDERS and name not in LOGARITHMIC:
            return knob
        number = self.numbers[name] = labelled(
            ipywidgets.Text, "", f"{name}: any number, also beyond the slider's ends.",
            placeholder=name, continuous_update=False, layout={"width": "6.5em", "flex": "0 0 auto"},
        )  # fmt: skip
        number.observe(self.quiet.hears(lambda change: self._take_number(name, change["new"])), "value")
        return ipywidgets.HBox([knob, number], layout=ROW)

    def _take_number(self, name, text):
        """A number was typed beside a slider: one beyond its ends moves them."""
        try:
            value = _number(name, text, isinstance(self.widgets[name].value, int))
        except ValueError as error:
            self._refused(name, error)
        else:
            self._turned(name, value)

    def _take_set(self, change):
        if change["new"] in TARGET_SETS:
            self._turned("target_modules", TARGET_SETS[change["new"]])

    def _open_group(self, _change=None):
        for title, group in self.groups.items():
            group.layout.display = None if title == self.group.value else "none"


def as_meant(name: str, value: Any, before: Any) -> Any:
    """A slider's number without the rounding errors of the browser, which reports 0.9 as 0.9000000000000001."""
    if not isinstance(value, float):
        return value
    if before is not None and math.isclose(value, before, rel_tol=1e-9):
        return before
    if name in LOGARITHMIC and 0 < value < math.inf:
        notches = math.log10(value) / NOTCH
        if math.isclose(notches, round(notches), abs_tol=1e-6):
            return float(f"{value:.3g}")
    return float(f"{value:.10g}")


def written(value: Any) -> str:
    """A value as the field beside a slider, and a sentence, show it."""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _knob(name):
    import ipywidgets

    text = OWN_HELP.get(name) or FIELDS[name].metadata["help"]
    if name in LOGARITHMIC:
        low, high = LOGARITHMIC[name]
        look = dict(min=low, max=high, step=NOTCH, readout=False, layout=SLIDER, value=10.0**low)
        return labelled(ipywidgets.FloatLogSlider, name, text, **look)
    if name in SLIDERS:
        low, high = SLIDERS[name]
        look = dict(min=low, max=high, readout=False, layout=SLIDER)
        if isinstance(low, int):
            return labelled(ipywidgets.IntSlider, name, text, **look)
        look["readout_format"] = ".6g"  # not shown, but read out: two digits would make 1.00 of a beta
        return labelled(ipywidgets.FloatSlider, name, text, **look, step=NOTCHES[name])
    if name in ("num_examples", "max_train_steps"):
        return labelled(ipywidgets.IntText, name, text, value=1)
    if name == "lr_scheduler":
        return labelled(ipywidgets.Dropdown, name, text, options=LR_SCHEDULERS)
    if name == "mixed_precision":
        options = [("left to the launcher", ""), *((choice, choice) for choice in ("no", "fp16", "bf16"))]
        return labelled(ipywidgets.Dropdown, name, text, options=options)
    if name == "pretrained_model_name_or_path":
        return labelled(ipywidgets.Dropdown, "model", text, options=_models())
    if kind_of(name)[0] is bool:
        return labelled(ipywidgets.Checkbox, name, text, style={"description_width": "initial"})
    return labelled(ipywidgets.Text, name, text, continuous_update=False)


def _for_knob(name, values):
    """The value of a setting as its knob holds it."""
    value = values[name]
    if name == "target_modules":
        return " ".join(value)
    if name == "lr_step_rules":  # where they are needed, the knob shows none that the run doesn't have
        return value or ("" if values["lr_scheduler"] == "piecewise_constant" else RULES)
    return {"max_train_steps": 0, "mixed_precision": ""}[name] if value is None else value


def _put(knob, value, logarithmic):
    """Give a knob a value, moving the ends of its slider where it lies beyond them."""
    if logarithmic and value > 0:
        knob.min, knob.max = min(knob.min, math.floor(math.log10(value))), max(knob.max, math.ceil(math.log10(value)))
    elif knob.has_trait("max") and not logarithmic:
        knob.min, knob.max = min(knob.min, value), max(knob.max, value)
    knob.value = value


def _number(name, text, whole):
    """The number that was typed, also a whole one as 1e3; ValueError for what is none."""
    with contextlib.suppress(ValueError):
        return int(text) if whole else float(text)
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} {shown(text)} is no number") from None
    return int(value) if value.is_integer() else value


def _models():
    return [(title, name) for name, title in memory.MODELS.items()]
