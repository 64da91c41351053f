"""The explorer's knobs as widgets: one for each control, beside a slider the field for its number, under it what was refused."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from lora_kit.explorer.controls import CONTROLS, GROUPS, OTHER_SET, Control, as_meant
from lora_kit.explorer.widgets import NARROW_LABEL, ROW, SLIDER, Quiet, labelled

WITH_NUMBER = ("slider", "logarithmic")
HIDDEN = {True: "none", False: None}


class Knobs:
    """The knobs in their groups, of which one is open.

    widgets, numbers, hints, rows: by the setting's name, its knob, the text field beside a slider, what stands under it, and all
    that is put away with it. sets: the usual sets of target_modules. group, groups, unused, box: the choice of a group, each
    group, the line about what is put away in it, and all of it. turned(name, value) and typed(name, text) are called when the
    reader has turned a knob, and typed beside it.
    """

    def __init__(self, quiet: Quiet, turned: Callable[[str, Any], None], typed: Callable[[str, str], None]):
        import ipywidgets

        self.quiet, self._turned, self._typed = quiet, turned, typed
        self.widgets, self.numbers, self.hints, self.rows, self.groups, self.unused = {}, {}, {}, {}, {}, {}
        self.group = ipywidgets.ToggleButtons(
            options=list(GROUPS), style={"button_width": "calc(50% - 4px)"}, layout=ROW,
            tooltips=[", ".join(CONTROLS[name].word for name in names) for names in GROUPS.values()],
        )  # fmt: skip
        self.group.observe(self._open_group, "value")
        targets = CONTROLS["target_modules"]
        self.sets = labelled(
            ipywidgets.Dropdown, "usual sets", "Usual sets of target_modules.",
            options=[*(words for words, _ in targets.options), OTHER_SET],
        )  # fmt: skip
        self.sets.observe(quiet.hears(lambda change: self._take_set(dict(targets.options).get(change["new"]))), "value")
        for title, names in GROUPS.items():
            self.unused[title] = ipywidgets.HTML(layout=ROW)
            self.groups[title] = ipywidgets.VBox([*map(self._row, names), self.unused[title]])
        self._open_group()
        self.box = ipywidgets.VBox([self.group, *self.groups.values()])

    def show(self, view: Mapping[str, Any]) -> None:
        """Set every knob to what a view shows, as exactly as it is."""
        with self.quiet:
            for name, shown in view["controls"].items():
                put(self.widgets[name], CONTROLS[name], shown)
                for widget in (self.widgets[name], self.numbers.get(name, self.widgets[name])):
                    widget.disabled = shown["disabled"]
                if name in self.numbers:
                    self.numbers[name].value = shown["written"]
                self.hints[name].value, self.hints[name].layout.display = shown["hint"], HIDDEN[not shown["hint"]]
                self.rows[name].layout.display = HIDDEN[name in view["folded"]]
            for title, line in view["unused"].items():
                self.unused[title].value, self.unused[title].layout.display = line, HIDDEN[not line]
            self.sets.value = view["controls"]["target_modules"]["chosen"]

    def shown(self) -> dict[str, dict[str, Any]]:
        """What stands on the widgets: {name: {value, written, disabled, hint, folded}}."""
        return {
            name: {
                "value": widget.value,
                "written": str(self.numbers.get(name, widget).value),
                "disabled": widget.disabled,
                "hint": self.hints[name].value,
                "folded": self.rows[name].layout.display == "none",
            }
            for name, widget in self.widgets.items()
        }

    def _row(self, name):
        """A knob, beside a slider the field for its number, and under it the hint."""
        import ipywidgets

        control = CONTROLS[name]
        knob = line = self.widgets[name] = widget_of(control, description=_label(control))
        knob.observe(self.quiet.hears(lambda change: self._turned(name, change["new"])), "value")
        if control.kind in WITH_NUMBER:
            number = self.numbers[name] = labelled(
                ipywidgets.Text, "", f"{name}: any number, also beyond the slider's ends.",
                placeholder=name, continuous_update=False, layout={"width": "6.5em", "flex": "0 0 auto"},
            )  # fmt: skip
            number.observe(self.quiet.hears(lambda change: self._typed(name, change["new"])), "value")
            line = ipywidgets.HBox([knob, number], layout=ROW)
        hint = self.hints[name] = ipywidgets.HTML(layout=ROW)
        self.rows[name] = ipywidgets.VBox([line, *([self.sets] if name == "target_modules" else []), hint])
        return self.rows[name]

    def _take_set(self, words):
        if words:
            self._turned("target_modules", words)

    def _open_group(self, _change=None):
        for title, group in self.groups.items():
            group.layout.display = HIDDEN[title != self.group.value]


def widget_of(control: Control, **look: Any) -> Any:
    """The widget of a control, with its word before it. look: traits that are to be otherwise."""
    import ipywidgets

    kind, whole = control.kind, isinstance(control.low, int)
    if kind == "logarithmic":
        make, more = ipywidgets.FloatLogSlider, dict(_ends(control, control.low, control.high), value=control.low)
    elif kind == "slider":
        make, more = (
            (ipywidgets.IntSlider if whole else ipywidgets.FloatSlider),
            _ends(control, control.low, control.high),
        )
        more |= (
            {} if whole else {"readout_format": ".6g"}
        )  # not shown, but read out: two digits would make 1.00 of a beta
    elif kind == "number":
        make, more = ipywidgets.IntText, dict(value=control.low)
    elif kind == "several":
        make, more = ipywidgets.SelectMultiple, dict(options=control.options, rows=len(control.options))
    elif kind == "choice":
        make, more = ipywidgets.Dropdown, dict(options=control.options)
    elif kind == "switch":
        make, more = ipywidgets.Checkbox, dict(style=NARROW_LABEL)
    else:
        make, more = ipywidgets.Text, dict(continuous_update=False)
    if kind in WITH_NUMBER:
        more |= dict(step=control.step, readout=False, layout=SLIDER)
    return labelled(make, **dict(name=control.word, text=control.help) | more | look)


def put(widget: Any, control: Control, shown: Mapping[str, Any]) -> None:
    """Give a widget what a view shows of its control. A slider's ends only ever move outwards, and what already means the value
    stays as it is: nothing jumps under the hand that drags it."""
    if control.kind == "choice" and [list(option) for option in widget.options] != shown["options"]:
        widget.options = [tuple(option) for option in shown["options"]]
    if "low" in shown:
        ends = _ends(control, shown["low"], shown["high"])
        widget.min, widget.max = min(widget.min, ends["min"]), max(widget.max, ends["max"])
    if as_meant(control.name, widget.value, shown["value"]) != shown["value"]:
        widget.value = shown["value"]


def _ends(control, low, high):
    """The ends of a slider as its widget has them: of a logarithmic one as powers of ten."""
    if control.kind == "logarithmic":
        low, high = round(math.log10(low)), round(math.log10(high))
    return {"min": low, "max": high}


def _label(control):
    """The plain word, and under it the name of the flag, where it is another."""
    return control.word if control.word == control.name else f"{control.word}\n{control.name}"
