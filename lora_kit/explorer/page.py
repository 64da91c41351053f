"""The explorer: turn a knob of the training configuration and see at once what it does; at the end, the command to run.

`lora_kit.summary` works out what a configuration does, `lora_kit.panels` shows it; here widgets are put in front, and
nothing but a real run ("Train this", in a process of its own) needs torch.
"""

import dataclasses
import html
import math
import threading
import time

from lora_kit import commands, drawing, memory
from lora_kit.config import LR_SCHEDULERS, TrainingConfig, checked
from lora_kit.explorer.panels import (
    command_html,
    findings_html,
    hint_html,
    linked,
    memory_html,
    notes_html,
    picture_html,
    running_html,
    runs_html,
    steps_html,
)
from lora_kit.explorer.presets import PRESETS
from lora_kit.trainers.rosetta import TRAINERS
from lora_kit.explorer.summary import AXES, summarize

RULES = "1:100,0.1:200,0.01"  # stands in the knob until one is given
TARGET_SETS = {
    "attention": "to_k to_q to_v to_out.0",
    "attention and feed-forward": "to_k to_q to_v to_out.0 ff.net.0.proj ff.net.2",
    "everything": "to_k to_q to_v to_out.0 ff.net.0.proj ff.net.2 proj_in proj_out conv1 conv2 conv_shortcut conv_in conv_out",
}
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
STEPS = {"lr_power": 0.1, "adam_beta1": 0.01, "adam_beta2": 0.0001, "adam_weight_decay": 0.005, "max_grad_norm": 0.1}
LOGARITHMIC = {"learning_rate": (-6, 0), "adam_epsilon": (-12, -2)}
NOTCH = 0.05  # of a logarithmic slider, as a power of ten
OWN_HELP = {
    "num_examples": "Pictures in the data set.",
    "num_processes": "Processes that train together, one on each GPU.",
    "max_train_steps": "Optimizer updates in all; at 0 num_train_epochs decides.",
}
START = dict(learning_rate=1e-3, lr_scheduler="cosine", train_batch_size=4, num_train_epochs=12)
PINS = 3
ROW = {"width": "calc(100% - 4px)", "max_width": "34em"}
# where the page is narrow tables are broken; where it is as narrow as a phone, a knob's name stands above it, and the pictures' texts are larger
NARROW = """<style>
.lora-kit {container-type: inline-size}
.lora-kit-above {flex-wrap: wrap}
.lora-kit-above > .widget-label {width: 100% !important; text-align: left}
@container (max-width: 70em) {
  .lora-kit td {white-space: normal !important}
}
@container (max-width: 30em) {
  .lora-kit-rows .widget-inline-hbox {flex-wrap: wrap; height: auto}
  .lora-kit-rows .widget-inline-hbox > .widget-label {width: 100% !important; text-align: left}
  .lora-kit-rows .widget-inline-hbox > :not(.widget-label) {min-height: 28px; align-content: center}
  .lora-kit-rows .widget-hbox {align-items: flex-end}
  .lora-kit svg[role=img] {font-size: 14px}
}
</style>"""
COLUMN = {"flex": "1 1 28em", "min_width": "0", "max_width": "680px", "padding": "0 14px 0 0"}
SLIDER = {"flex": "1 1 auto", "width": "auto"}
BUTTON = {"width": "auto", "align_self": "flex-start"}


@dataclasses.dataclass
class State:
    """All that the page shows follows from this."""

    settings: dict
    num_examples: int
    num_processes: int
    axis: str = "updates"
    log: bool = False
    cursor: int = 0
    trainers: tuple = ()
    pinned: list = dataclasses.field(default_factory=list)


def explorer(num_examples=400, num_processes=1, **settings):
    """Knobs over the training configuration beside a page that follows them. Returns an `Explorer`; the last value of a cell
    shows itself.

    settings: fields of `TrainingConfig`; those without a knob stay as given. Raises ValueError for a value that no run
    could have, TypeError for a name that is no setting.

    >>> page = explorer(num_examples=400, lr_scheduler="cosine", lr_warmup_steps=100)
    >>> page.knobs["lr_warmup_steps"].value = 200
    """
    return Explorer(State(_checked(START | settings), num_examples, num_processes))


class Explorer:
    """The page. `knobs`: the widgets by the names of the settings; `numbers`: beside a slider, the text field that shows its
    value and takes any other; `state`; `summary`: what `summarize` says of it; `box`: the widget that holds all."""

    def __init__(self, state):
        import ipywidgets

        self.widgets, self.state, self.trials, self.following = ipywidgets, state, None, None
        self.knobs, self.numbers, self.hints, self.typed, self.quiet, self.past = {}, {}, {}, {}, False, {}
        self.started = None  # the preset, or what was pasted, that the settings still are
        parts = ("picture", "findings", "notes", "steps", "memory", "command", "runs", "sweep")
        self.parts = {name: ipywidgets.HTML() for name in parts}
        # where both don't fit side by side the picture stands above the knobs
        above = {"flex_flow": "row wrap-reverse", "align_items": "flex-end", "justify_content": "flex-start"}
        below = {"flex_flow": "row wrap", "align_items": "flex-start"}
        self.box = ipywidgets.VBox(
            [
                ipywidgets.HTML(NARROW, layout={"display": "none"}),
                ipywidgets.HBox([self._knob_column(), self._picture_column()], layout=above),
                ipywidgets.HBox(self._lower_columns(), layout=below),
                ipywidgets.VBox(self._training_rows(), layout={"max_width": "1100px"}),
            ],
            layout={"width": "100%"},
        )
        self.box.add_class("lora-kit")
        self.show(state.settings, state.num_examples, state.num_processes)

    def _ipython_display_(self):
        from IPython.display import display

        display(self.box)

    # the widgets

    def _labelled(self, make, name, text, **look):
        """A widget with its name before it and its help as a tooltip."""
        look = {"description": name, "style": {"description_width": "14.8em"}, "layout": ROW} | look
        widget = make(**look)
        setattr(widget, "description_tooltip" if widget.has_trait("description_tooltip") else "tooltip", text)
        return widget

    def _knob(self, name):
        widgets = self.widgets
        rules = next((one.metadata for one in dataclasses.fields(TrainingConfig) if one.name == name), None)
        text = OWN_HELP.get(name) or rules["help"]
        if name in LOGARITHMIC:
            low, high = LOGARITHMIC[name]
            look = dict(min=low, max=high, step=NOTCH, readout=False, layout=SLIDER, value=10.0**low)
            return self._labelled(widgets.FloatLogSlider, name, text, **look)
        if name in SLIDERS:
            low, high = SLIDERS[name]
            whole = isinstance(low, int)
            look = dict(min=low, max=high, readout=False, layout=SLIDER)
            if not whole:
                look |= dict(step=STEPS[name])
            return self._labelled(widgets.IntSlider if whole else widgets.FloatSlider, name, text, **look)
        if name in ("num_examples", "max_train_steps"):
            return self._labelled(widgets.IntText, name, text, value=1)
        if name == "lr_scheduler":
            return self._labelled(widgets.Dropdown, name, text, options=LR_SCHEDULERS)
        if name == "mixed_precision":
            options = [("as accelerate is configured", ""), *((one, one) for one in ("no", "fp16", "bf16"))]
            return self._labelled(widgets.Dropdown, name, text, options=options)
        if name == "pretrained_model_name_or_path":
            return self._labelled(widgets.Dropdown, "model", text, options=_model_options())
        if rules["kind"] is bool:
            return self._labelled(widgets.Checkbox, name, text, style={"description_width": "initial"})
        return self._labelled(widgets.Text, name, text, continuous_update=False)

    def _row(self, name):
        """A knob, and beside a slider the field for its number."""
        knob = self.knobs[name] = self._knob(name)
        knob.observe(self._follow, "value")
        if name not in SLIDERS and name not in LOGARITHMIC:
            return knob
        number = self.numbers[name] = self._labelled(
            self.widgets.Text, "", f"{name}: any number, also beyond the slider's ends.",
            placeholder=name, continuous_update=False, layout={"width": "6.5em", "flex": "0 0 auto"},
        )  # fmt: skip
        number.observe(self._take_number, "value")
        return self.widgets.HBox([knob, number], layout=ROW)

    def _knob_column(self):
        widgets, narrow = self.widgets, {"description_width": "initial"}
        presets = [("start from …", ""), *((name, name) for name in PRESETS)]
        self.preset = self._labelled(
            widgets.Dropdown, "preset", "A configuration to start from.", options=presets, style=narrow
        )
        self.preset.observe(self._take_preset, "value")
        self.pasted = widgets.Textarea(
            placeholder="or paste a command line, Python or YAML", layout=ROW | {"height": "4em"}
        )
        self.read = widgets.Button(description="Read what is pasted", layout=BUTTON)
        self.read.on_click(self._take_pasted)
        self.told = widgets.HTML(layout=ROW)
        rows = [
            _heading(widgets, "Start"),
            self.preset,
            self.pasted,
            self.read,
            self.told,
            _heading(widgets, "Settings"),
        ]
        self.group = widgets.ToggleButtons(
            options=list(GROUPS), style={"button_width": "calc(50% - 4px)"}, layout=ROW,
            tooltips=[", ".join(names) for names in GROUPS.values()],
        )  # fmt: skip
        self.group.observe(self._open_group, "value")
        self.groups = {}
        for title, names in GROUPS.items():
            group = []
            for name in names:
                group.append(self._row(name))
                if name == "target_modules":
                    options = [*TARGET_SETS, "as typed above"]
                    self.sets = self._labelled(
                        widgets.Dropdown, "usual sets", "Usual sets of target_modules.", options=options
                    )
                    self.sets.observe(self._take_set, "value")
                    group.append(self.sets)
                self.hints[name] = widgets.HTML(layout=ROW)
                group.append(self.hints[name])
            self.groups[title] = widgets.VBox(group)
        self._open_group()
        column = widgets.VBox(
            [*rows, self.group, *self.groups.values()],
            layout={"flex": "1 1 26em", "max_width": "36em", "padding": "0 14px 0 0"},
        )
        column.add_class("lora-kit-rows")
        return column

    def _open_group(self, _change=None):
        for title, group in self.groups.items():
            group.layout.display = None if title == self.group.value else "none"

    def _picture_column(self):
        widgets, parts = self.widgets, self.parts
        narrow = {"description_width": "initial"}
        self.axis = self._labelled(
            widgets.Dropdown, "over", "What the picture is drawn over.", style=narrow, layout={"width": "24em"},
            options=[(words, name) for name, words in AXES.items()],
        )  # fmt: skip
        self.log = self._labelled(
            widgets.Checkbox, "logarithmic", "Rates on a logarithmic scale.", style=narrow, layout={"width": "8em"}, indent=False
        )  # fmt: skip
        text = "Moves the line in the picture; the rates there stand below it. A pointer that rests on the picture reads them, too."
        self.cursor = self._labelled(widgets.IntSlider, "read at update", text, style=narrow, max=1)
        self.pin, self.unpin = (widgets.Button(description=text, layout=BUTTON) for text in ("Pin", "Unpin all"))
        self.pin.tooltip = "Keep this curve in the picture while the settings change; three at most."
        self.pin.on_click(self._pin)
        self.unpin.on_click(self._unpin)
        self.mend = widgets.Button(layout=BUTTON)
        self.mend.on_click(self._mend)
        for widget in (self.axis, self.log, self.cursor):
            widget.observe(self._look, "value")
        return widgets.VBox(
            [
                _heading(widgets, "The learning rate as applied"),
                parts["picture"],
                widgets.HBox([self.axis, self.log, self.pin, self.unpin], layout={"flex_flow": "row wrap"}),
                self.cursor,
                _heading(widgets, "What the doctor says"),
                parts["findings"],
                self.mend,
            ],
            layout=COLUMN,
        )

    def _lower_columns(self):
        widgets, parts, narrow = self.widgets, self.parts, {"description_width": "initial"}
        kinds = [
            ("accelerate launch", "accelerate"),
            ("diffusers' script", "diffusers"),
            ("Python", "python"),
            ("YAML", "yaml"),
        ]
        self.kind = self._labelled(
            widgets.Dropdown, "as", "The text to copy.", options=kinds, style=narrow, layout={"width": "18em"}
        )
        text = "What the same words mean to other trainers; several with Ctrl or Shift."
        self.trainers = self._labelled(
            widgets.SelectMultiple, "the same words in", text, options=[(one.name, key) for key, one in TRAINERS.items()],
            rows=len(TRAINERS), style=narrow, layout={"width": "100%", "max_width": "32em"},
        )  # fmt: skip
        self.trainers.add_class("lora-kit-above")
        for widget in (self.kind, self.trainers):
            widget.observe(self._look, "value")
        left = [
            _heading(widgets, "To run it"), self.kind, parts["command"],
            _heading(widgets, "Other trainers (Ctrl and a click adds one, or takes it away)"), self.trainers, parts["notes"],
        ]  # fmt: skip
        right = [
            _heading(widgets, "Steps and optimizer"), parts["steps"],
            _heading(widgets, "What training keeps in memory"), parts["memory"],
        ]  # fmt: skip
        columns = [widgets.VBox(left, layout=COLUMN), widgets.VBox(right, layout=COLUMN | {"flex": "1 1 36em"})]
        columns[0].add_class("lora-kit-rows")
        return columns

    def _training_rows(self):
        widgets = self.widgets
        text = "Updates of each run; the warm-up keeps its share."
        self.length = self._labelled(
            widgets.IntSlider, "updates of a run", text, style={"description_width": "initial"},
            min=10, max=400, step=10, value=100,
        )  # fmt: skip
        self.train, self.stop, self.clear, self.sweep = (
            widgets.Button(description=text, layout=BUTTON)
            for text in ("Train this", "Stop", "Forget the runs", "Sweep")
        )
        look = {"style": {"description_width": "initial"}, "layout": {"width": "20em"}}
        self.rates = self._labelled(
            widgets.Text, "learning rates", "The sweep's columns.", value="3e-4 1e-3 3e-3", **look
        )
        self.ranks = self._labelled(widgets.Text, "ranks", "The sweep's rows.", value="1 4 16", **look)
        for button, action in (
            (self.train, self._train), (self.stop, self._stop), (self.clear, self._forget), (self.sweep, self._sweep),
        ):  # fmt: skip
            button.on_click(action)
        self.running = widgets.HTML()
        self.results = widgets.VBox([self.parts["runs"], self.parts["sweep"]])
        row = {"flex_flow": "row wrap"}
        return [
            _heading(widgets, "Train the embedded model with it"),
            widgets.HTML(
                drawing.page(
                    "<i>Train this</i> makes one run with the settings of this page, and lays it over the runs before. <i>Sweep</i> makes "
                    "one for each pair of the rates and ranks beside it. The model learns the style of the settings, on the CPU."
                )
            ),
            self.length,
            widgets.HBox([self.train, self.stop, self.clear], layout=row),
            widgets.HBox([self.rates, self.ranks, self.sweep], layout=row),
            self.running,
            self.results,
        ]

    # from the state to the widgets

    def show(self, settings, num_examples, num_processes):
        """Set every knob to these settings, as exactly as they are, and draw. A data set is made up where none is named."""
        state, defaults = self.state, {one.name: one.default for one in dataclasses.fields(TrainingConfig)}
        if not {"style", "dataset_name", "train_data_dir"} & settings.keys():
            settings = settings | {"style": "outlined"}
        state.settings, state.num_examples, state.num_processes = dict(settings), num_examples, num_processes
        self.quiet = True
        self.typed.clear()
        for name, knob in self.knobs.items():
            value = (
                getattr(state, name)
                if name in ("num_examples", "num_processes")
                else settings.get(name, defaults[name])
            )
            if name == "lr_step_rules":
                value = value or RULES
            if name == "target_modules":
                value = " ".join(value)
            if name == "pretrained_model_name_or_path" and value not in dict(_model_options()).values():
                knob.options = [*_model_options(), (value, value)]
            if name == "max_train_steps":
                value = value or 0
            if name == "mixed_precision":
                value = value or ""
            if name == "learning_rate" and value is dataclasses.MISSING:
                value = 1e-4
                state.settings[name] = value
            _set(knob, value, name in LOGARITHMIC)
        self.quiet = False
        self.draw()
        self.cursor.value = self.summary["total_updates"] // 2

    def draw(self):
        """Work out the summary of the state and show it."""
        state = self.state
        summary = summarize(state.settings, state.num_examples, state.num_processes, state.trainers, state.cursor)
        last = max(summary["total_updates"] - 1, 0)
        if state.cursor > last:
            state.cursor = last
            summary = summarize(state.settings, state.num_examples, state.num_processes, state.trainers, state.cursor)
        self.summary = summary
        self.quiet = True
        self.cursor.max, self.cursor.value = max(last, 1), state.cursor
        warmup = self.knobs["lr_warmup_steps"]
        warmup.max = max(warmup.max, last)
        chosen = " ".join(state.settings.get("target_modules", TARGET_SETS["attention"].split()))
        self.sets.value = next((name for name, words in TARGET_SETS.items() if words == chosen), "as typed above")
        for name, hint in self.hints.items():
            reason = summary["ignored"].get(name, "")
            self.knobs[name].disabled = bool(reason)
            if name in self.numbers:
                self.numbers[name].disabled = bool(reason)
            hint.value = hint_html(self.typed.get(name), reason)
            hint.layout.display = None if hint.value else "none"
        self.quiet = False
        self._paint()

    def _paint(self):
        """The parts of the page, from the summary and the state."""
        state, summary, parts = self.state, self.summary, self.parts
        cursor = state.cursor if summary["curves"] else None
        parts["picture"].value = picture_html(summary, state.axis, state.log, cursor, state.pinned)
        self.quiet = True
        for name, number in self.numbers.items():
            number.value = self._written(name)
        self.quiet = False
        parts["findings"].value = findings_html(summary)
        parts["notes"].value = notes_html(summary)
        parts["steps"].value = steps_html(summary)
        parts["memory"].value = memory_html(summary["memory"], state.settings.get("use_8bit_adam", False))
        parts["command"].value = command_html(summary, self.kind.value)
        change = _change(summary)
        words = ", ".join(f"{name} {value}" for name, value in (change or {}).items())
        self.mend.description = f"Mend it: {words}" if change else "Nothing to mend"
        self.mend.disabled = not change
        embedded = self.knobs["pretrained_model_name_or_path"].value == "embedded"
        able = embedded and not summary["errors"] and not self.following
        self.train.disabled = self.sweep.disabled = not able
        self.stop.disabled = not self.following
        if not self.following:
            self.running.value = "" if embedded else drawing.page("Only the embedded model is trained from this page.")

    # from the widgets to the state

    def _follow(self, change):
        """A knob was turned."""
        if self.quiet:
            return
        state, name = self.state, next(name for name, knob in self.knobs.items() if knob is change["owner"])
        value = change["new"]
        self.typed.clear()
        if name in ("num_examples", "max_train_steps"):
            try:
                _check_number(name, value)
            except ValueError as error:
                before = state.num_examples if name == "num_examples" else state.settings.get(name) or 0
                self.typed[name] = f"{error}: it stays {before}"
                self.quiet, change["owner"].value = True, before
                self.draw()
                return
        if isinstance(value, float):
            value = _as_meant(value, state.settings.get(name), name in LOGARITHMIC)
            if value == state.settings.get(name):
                return
        if name in ("num_examples", "num_processes"):
            setattr(state, name, value)
        elif name == "target_modules":
            state.settings[name] = tuple(value.split())
        elif name in ("max_train_steps", "mixed_precision"):
            state.settings[name] = value or None
        else:
            state.settings[name] = value
        if state.settings.get("lr_scheduler") == "piecewise_constant":
            state.settings["lr_step_rules"] = self.knobs["lr_step_rules"].value or None
        elif state.settings.get("lr_step_rules") == RULES:
            del state.settings["lr_step_rules"]
        self._leave_start()
        self.draw()

    def _written(self, name):
        """A slider's value as its text field shows it."""
        value = self.knobs[name].value
        return f"{_as_meant(value, self.state.settings.get(name), name in LOGARITHMIC) if isinstance(value, float) else value:.10g}"

    def _take_number(self, change):
        """A number was typed beside a slider: one beyond its ends moves them; what can't be is said, and nothing changes."""
        if self.quiet:
            return
        name = next(name for name, number in self.numbers.items() if number is change["owner"])
        knob = self.knobs[name]
        try:
            value = _number(name, change["new"], isinstance(knob.value, int))
        except ValueError as error:
            self.typed = {name: f"{error}: it stays {self._written(name)}"}
            self.draw()
            return
        self.typed.clear()
        if value == knob.value:
            self.draw()
        else:
            _set(knob, value, name in LOGARITHMIC)

    def _leave_start(self):
        """The settings are no longer those of the preset, or of what was pasted."""
        if self.started:
            self.quiet, self.preset.value = True, ""
            self.told.value = drawing.page(f"Started from <b>{html.escape(self.started)}</b>; changed since.")
            self.quiet, self.started = False, None

    def _look(self, change):
        """What the picture shows was changed."""
        if self.quiet:
            return
        state = self.state
        state.axis, state.log = self.axis.value, self.log.value
        state.cursor, state.trainers = self.cursor.value, tuple(self.trainers.value)
        if change["owner"] in (self.axis, self.log, self.kind):
            self._paint()
        else:
            self.draw()

    def _take_preset(self, change):
        if change["new"] and not self.quiet:
            preset = PRESETS[change["new"]]
            self._take(preset.text, preset.num_examples, f"Source: {preset.source}")
            self.started = change["new"]

    def _take_pasted(self, _button):
        self._take(self.pasted.value, self.state.num_examples)

    def _take(self, text, num_examples, source=None):
        try:
            found = commands.read(text)
            settings = _checked(found["settings"])
        except (TypeError, ValueError) as error:
            self.told.value = drawing.page(f"<b>✗ Not read:</b> {html.escape(str(error))}")
            return
        self.quiet, self.preset.value = True, self.preset.value if source else ""
        self.quiet, self.started = False, "what was pasted"
        if not source:
            self.pasted.value = ""
        said = [*found["said"], *([source] if source else [])]
        if not source and not found["num_examples"]:
            said.append(f"How many pictures it has the text doesn't say: num_examples stays {num_examples}")
        self.told.value = drawing.page("<b>✓ Read.</b> ", linked(". ".join(said)))
        self.show(settings, found["num_examples"] or num_examples, found["num_processes"])

    def _take_set(self, change):
        if not self.quiet and change["new"] in TARGET_SETS:
            self.knobs["target_modules"].value = TARGET_SETS[change["new"]]

    def _pin(self, _button):
        state = self.state
        if self.summary["curves"] and len(state.pinned) < PINS:
            label = _label(state.settings, state.num_processes)
            state.pinned.append((f"pinned {'ABC'[len(state.pinned)]}: {label}", self.summary["curves"][0]))
            self._paint()

    def _unpin(self, _button):
        self.state.pinned.clear()
        self._paint()

    def _mend(self, _button):
        self._leave_start()
        self.show(self.state.settings | _change(self.summary), self.state.num_examples, self.state.num_processes)

    # real runs

    def _train(self, _button):
        from lora_kit.explorer.trials import trial_settings

        try:
            made, _ = trial_settings(self._whole(), self.length.value)
        except ValueError as error:
            self.running.value = drawing.page(f"<b>✗</b> {html.escape(str(error))}")
            return
        self._start({f"run {len(self.past) + 1}: {_label(made)}": self._whole()})

    def _whole(self):
        """The settings with the length of the run, of which a trial's warm-up keeps its share."""
        return self.state.settings | {"max_train_steps": self.summary["total_updates"]}

    def _sweep(self, _button):
        from lora_kit.explorer.trials import sweep

        words = f"learning rates {self.rates.value!r} and ranks {self.ranks.value!r}"
        try:
            rates = [float(word) for word in self.rates.value.replace(",", " ").split()]
            ranks = [int(word) for word in self.ranks.value.replace(",", " ").split()]
            trials = sweep(self._whole(), ("learning_rate", rates), ("rank", ranks))
        except ValueError as error:
            self.running.value = drawing.page(f"<b>✗</b> {html.escape(f'{words}: {error}')}")
            return
        self._start(trials, (ranks, rates))

    def _start(self, trials, grid=None):
        from lora_kit.explorer.trials import Trials

        self.trials = self.trials or Trials()
        try:
            said = self.trials.start(trials, updates=self.length.value)
        except (ValueError, RuntimeError) as error:
            self.running.value = drawing.page(f"<b>✗</b> {html.escape(str(error))}")
            return
        said = "; ".join(next(iter(said.values())))
        latest = ("sweep", "runs") if grid else ("runs", "sweep")
        self.results.children = [self.parts[name] for name in latest]
        self.following = threading.Thread(target=self._watch, args=(grid, said), daemon=True)
        self._paint()
        self.following.start()

    def _watch(self, grid, said):
        """Show what the runs have done, three times a second, until they end. Single runs are laid over earlier ones, and a
        sweep has a place of its own."""
        while True:
            progress = self.trials.progress()
            shown = progress["trials"] if grid else self.past | progress["trials"]
            line, runs = running_html(progress, said), runs_html(shown, grid)
            self.running.value, self.parts["sweep" if grid else "runs"].value = line, runs
            if not progress["running"]:
                break
            time.sleep(0.3)
        if not grid:
            self.past = {name: one for name, one in shown.items() if one["updates"]}
        self.following = None
        self._paint()
        self.running.value = line

    def _stop(self, _button):
        self.trials.stop()

    def _forget(self, _button):
        if not self.following and self.trials:
            self.trials.close()
            self.trials, self.past = None, {}
            self.parts["runs"].value = self.parts["sweep"].value = self.running.value = ""


def _label(settings, num_processes=1):
    """The settings that most often make the difference, in a line."""
    parts = [settings.get("lr_scheduler", "constant"), f"rate {settings['learning_rate']:.3g}"]
    parts += [f"warm-up {settings['lr_warmup_steps']}"] if settings.get("lr_warmup_steps") else []
    parts += [f"rank {settings.get('rank', 4)}"]
    parts += [f"{num_processes} processes"] if num_processes > 1 else []
    return ", ".join(parts)


def _number(name, text, whole):
    """The number that was typed for a setting; ValueError for what is none, or can't be."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} {text!r} is no number") from None
    if whole and value.is_integer():
        value = int(value)
    return _check_number(name, value, whole)


def _check_number(name, value, whole=True):
    rules = next((one.metadata for one in dataclasses.fields(TrainingConfig) if one.name == name), None)
    if name == "max_train_steps" and value == 0:
        return value
    if rules:
        return checked(name, value, rules)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} {value!r} is not a whole number of at least 1")
    return value


def _checked(settings):
    """The settings, each as its field's type; TypeError for a name that is none, ValueError for a value that can't be."""
    rules = {one.name: one.metadata for one in dataclasses.fields(TrainingConfig)}
    for name in settings:
        if name not in rules:
            raise TypeError(f"{name!r} is not a setting: see `python -m lora_kit.training --help` for all of them")
    return {name: checked(name, value, rules[name]) for name, value in settings.items()}


def _heading(widgets, text):
    return widgets.HTML(drawing.page(f'<div style="font-weight: bold; padding-top: 0.6em">{text}</div>'))


def _model_options():
    return [(title, name) for name, title in memory.MODELS.items()]


def _set(knob, value, logarithmic):
    """Give a knob a value, moving the ends of its slider where it lies beyond them."""
    if logarithmic and value > 0:
        knob.min, knob.max = min(knob.min, math.floor(math.log10(value))), max(knob.max, math.ceil(math.log10(value)))
    elif knob.has_trait("max") and not logarithmic:
        knob.min, knob.max = min(knob.min, value), max(knob.max, value)
    knob.value = value


def _as_meant(value, before, logarithmic):
    """A slider's number without the rounding errors of the browser, which reports 0.9 as 0.9000000000000001."""
    if before is not None and math.isclose(value, before, rel_tol=1e-9):
        return before
    if (
        logarithmic
        and value > 0
        and math.isclose(math.log10(value) / NOTCH, round(math.log10(value) / NOTCH), abs_tol=1e-6)
    ):
        return float(f"{value:.3g}")
    return float(f"{value:.10g}")


def _change(summary):
    """The settings that cure the worst of what the doctor found, or None."""
    return next((one["change"] for one in summary["findings"] if one["status"] != "fine" and one["change"]), None)
