"""The explorer: turn a knob of the training configuration and see at once what it does; at the end, the command to run.

`lora_kit.summary` works out what a configuration does, `lora_kit.drawing` draws it; here widgets are put in front, and
nothing but a real run ("Train this", in a process of its own) needs torch.
"""

import dataclasses
import html
import math
import threading
import time

from lora_kit import commands, drawing, memory
from lora_kit.config import LR_SCHEDULERS, TrainingConfig, checked
from lora_kit.presets import PRESETS
from lora_kit.rosetta import TRAINERS
from lora_kit.summary import AXES, summarize

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
    "Length and size of updates": (
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
KNOBS_HEIGHT = "46em"
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
    """The page. `knobs`: the widgets by the names of the settings; `state`; `summary`: what `summarize` says of it; `box`:
    the widget that holds all."""

    def __init__(self, state):
        import ipywidgets

        self.widgets, self.state, self.trials, self.following = ipywidgets, state, None, None
        self.knobs, self.hints, self.quiet, self.past = {}, {}, False, {}
        self.parts = {name: ipywidgets.HTML() for name in ("picture", "findings", "steps", "memory", "command", "runs")}
        controls, page = self._knob_column(), self._page_column()
        layout = {"flex_flow": "row wrap", "align_items": "flex-start"}
        self.box = ipywidgets.HBox([controls, page], layout=layout)
        self.show(state.settings, state.num_examples, state.num_processes)

    def _ipython_display_(self):
        from IPython.display import display

        display(self.box)

    # the widgets

    def _labelled(self, make, name, text, **look):
        """A widget with its name before it and its help as a tooltip."""
        look = {"description": name, "style": {"description_width": "14.8em"}, "layout": {"width": "28em"}} | look
        widget = make(**look)
        setattr(widget, "description_tooltip" if widget.has_trait("description_tooltip") else "tooltip", text)
        return widget

    def _knob(self, name):
        widgets = self.widgets
        rules = next((one.metadata for one in dataclasses.fields(TrainingConfig) if one.name == name), None)
        text = OWN_HELP.get(name) or rules["help"]
        if name in LOGARITHMIC:
            low, high = LOGARITHMIC[name]
            look = dict(min=low, max=high, step=NOTCH, readout_format=".2e", value=10.0**low)
            return self._labelled(widgets.FloatLogSlider, name, text, **look)
        if name in SLIDERS:
            low, high = SLIDERS[name]
            whole = isinstance(low, int)
            look = dict(min=low, max=high)
            if not whole:
                look |= dict(step=STEPS[name], readout_format=f".{-math.floor(math.log10(STEPS[name]))}f")
            return self._labelled(widgets.IntSlider if whole else widgets.FloatSlider, name, text, **look)
        if name in ("num_examples", "max_train_steps"):
            return self._labelled(widgets.BoundedIntText, name, text, min=int(name == "num_examples"), max=10**9)
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

    def _knob_column(self):
        widgets = self.widgets
        presets = [("start from …", ""), *((name, name) for name in PRESETS)]
        self.preset = self._labelled(widgets.Dropdown, "preset", "A configuration to start from.", options=presets)
        self.preset.observe(self._take_preset, "value")
        self.pasted = widgets.Textarea(
            placeholder="a command line, Python or YAML", layout={"width": "28em", "height": "5em"}
        )
        self.read = widgets.Button(description="Read what is pasted", layout=BUTTON)
        self.read.on_click(self._take_pasted)
        self.told = widgets.HTML()
        rows = [_heading(widgets, "Start"), self.preset, self.pasted, self.read, self.told]
        for title, names in GROUPS.items():
            rows.append(_heading(widgets, title))
            for name in names:
                self.knobs[name] = self._knob(name)
                self.knobs[name].observe(self._follow, "value")
                rows.append(self.knobs[name])
                if name == "target_modules":
                    options = [*TARGET_SETS, "as typed above"]
                    self.sets = self._labelled(
                        widgets.Dropdown, "usual sets", "Usual sets of target_modules.", options=options
                    )
                    self.sets.observe(self._take_set, "value")
                    rows.append(self.sets)
                self.hints[name] = widgets.HTML()
                rows.append(self.hints[name])
        # it scrolls beside the picture, which so stays in sight
        whole = widgets.VBox(rows, layout={"flex": "0 0 auto", "overflow": "visible"})
        return widgets.VBox([whole], layout={"width": "30em", "height": KNOBS_HEIGHT, "overflow": "auto"})

    def _page_column(self):
        widgets, parts = self.widgets, self.parts
        narrow = {"description_width": "initial"}
        self.axis = self._labelled(
            widgets.Dropdown, "over", "What the picture is drawn over.", style=narrow, layout={"width": "19em"},
            options=[(words, name) for name, words in AXES.items()],
        )  # fmt: skip
        self.log = self._labelled(
            widgets.Checkbox, "logarithmic", "Rates on a logarithmic scale.", style=narrow, layout={"width": "8em"}, indent=False
        )  # fmt: skip
        self.cursor = self._labelled(
            widgets.IntSlider, "read at update", "Moves the line in the picture; the rates there stand below it.",
            style=narrow, layout={"width": "26em"}, max=1,
        )  # fmt: skip
        self.pin, self.unpin = (widgets.Button(description=text, layout=BUTTON) for text in ("Pin", "Unpin all"))
        self.pin.on_click(self._pin)
        self.unpin.on_click(self._unpin)
        text = "What the same words mean to other trainers; several with Ctrl or Shift."
        self.trainers = self._labelled(
            widgets.SelectMultiple, "the same words in", text, options=[(one.name, key) for key, one in TRAINERS.items()],
            rows=len(TRAINERS), style=narrow,
        )  # fmt: skip
        self.mend = widgets.Button(layout=BUTTON)
        self.mend.on_click(self._mend)
        kinds = [
            ("accelerate launch", "accelerate"),
            ("diffusers' script", "diffusers"),
            ("Python", "python"),
            ("YAML", "yaml"),
        ]
        self.kind = self._labelled(
            widgets.Dropdown, "as", "The text to copy.", options=kinds, style=narrow, layout={"width": "18em"}
        )
        for widget in (self.axis, self.log, self.cursor, self.trainers, self.kind):
            widget.observe(self._look, "value")
        row = {"flex_flow": "row wrap"}
        return widgets.VBox(
            [
                _heading(widgets, "The learning rate as applied"),
                parts["picture"],
                widgets.HBox([self.axis, self.log, self.pin, self.unpin], layout=row),
                self.cursor,
                _heading(widgets, "What the doctor says"),
                parts["findings"],
                self.mend,
                _heading(widgets, "Other trainers (Ctrl and a click adds one, or takes it away)"),
                self.trainers,
                _heading(widgets, "Steps and optimizer"),
                parts["steps"],
                _heading(widgets, "What training keeps in memory"),
                parts["memory"],
                _heading(widgets, "To run it"),
                self.kind,
                parts["command"],
                *self._training_rows(),
            ],
            layout={"flex": "1 1 26em", "min_width": "26em", "max_width": "680px"},
        )

    def _training_rows(self):
        widgets = self.widgets
        text = "Updates of each run; the warm-up keeps its share."
        self.length = self._labelled(widgets.IntSlider, "updates of a run", text, min=10, max=400, step=10, value=100)
        self.train, self.stop, self.clear, self.sweep = (
            widgets.Button(description=text, layout=BUTTON)
            for text in ("Train this", "Stop", "Forget the runs", "Sweep")
        )
        self.rates = self._labelled(widgets.Text, "learning rates", "The sweep's columns.", value="3e-4 1e-3 3e-3")
        self.ranks = self._labelled(widgets.Text, "ranks", "The sweep's rows.", value="1 4 16")
        for button, action in (
            (self.train, self._train), (self.stop, self._stop), (self.clear, self._forget), (self.sweep, self._sweep),
        ):  # fmt: skip
            button.on_click(action)
        self.running = widgets.HTML()
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
            self.parts["runs"],
        ]

    # from the state to the widgets

    def show(self, settings, num_examples, num_processes):
        """Set every knob to these settings, as exactly as they are, and draw. A data set is made up where none is named."""
        state, defaults = self.state, {one.name: one.default for one in dataclasses.fields(TrainingConfig)}
        if not {"style", "dataset_name", "train_data_dir"} & settings.keys():
            settings = settings | {"style": "outlined"}
        state.settings, state.num_examples, state.num_processes = dict(settings), num_examples, num_processes
        self.quiet = True
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
            hint.value = (
                f'<div style="text-align: right; width: 28em; font-style: italic">{reason}</div>' if reason else ""
            )
            hint.layout.display = None if reason else "none"
        self.quiet = False
        self._paint()

    def _paint(self):
        """The parts of the page, from the summary and the state."""
        state, summary, parts = self.state, self.summary, self.parts
        cursor = state.cursor if summary["curves"] else None
        parts["picture"].value = picture_html(summary, state.axis, state.log, cursor, state.pinned)
        parts["findings"].value = findings_html(summary)
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
        self.draw()

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
        if change["new"]:
            preset = PRESETS[change["new"]]
            self._take(preset.text, preset.num_examples, f"Source: {preset.source}")

    def _take_pasted(self, _button):
        self._take(self.pasted.value, self.state.num_examples)

    def _take(self, text, num_examples, source=None):
        try:
            found = commands.read(text)
            settings = _checked(found["settings"])
        except (TypeError, ValueError) as error:
            self.told.value = drawing.page(f"<b>✗ Not read:</b> {html.escape(str(error))}")
            return
        said = [*found["said"], *([source] if source else [])]
        if not source and not found["num_examples"]:
            said.append(f"How many pictures it has the text doesn't say: num_examples stays {num_examples}")
        self.told.value = drawing.page("<b>✓ Read.</b> ", html.escape(". ".join(said)))
        self.show(settings, found["num_examples"] or num_examples, found["num_processes"])

    def _take_set(self, change):
        if not self.quiet and change["new"] in TARGET_SETS:
            self.knobs["target_modules"].value = TARGET_SETS[change["new"]]

    def _pin(self, _button):
        state = self.state
        if self.summary["curves"] and len(state.pinned) < PINS:
            state.pinned.append((f"pinned {'ABC'[len(state.pinned)]}: {self._label()}", self.summary["curves"][0]))
            self._paint()

    def _unpin(self, _button):
        self.state.pinned.clear()
        self._paint()

    def _mend(self, _button):
        self.show(self.state.settings | _change(self.summary), self.state.num_examples, self.state.num_processes)

    def _label(self):
        """The settings that most often make the difference, in a line."""
        settings = self.state.settings
        parts = [settings.get("lr_scheduler", "constant"), f"rate {settings['learning_rate']:.3g}"]
        parts += [f"warm-up {settings['lr_warmup_steps']}"] if settings.get("lr_warmup_steps") else []
        parts += [f"rank {settings.get('rank', 4)}"]
        parts += [f"{self.state.num_processes} processes"] if self.state.num_processes > 1 else []
        return ", ".join(parts)

    # real runs

    def _train(self, _button):
        self._start({f"run {len(self.past) + 1}: {self._label()}": self._whole()})

    def _whole(self):
        """The settings with the length of the run, of which a trial's warm-up keeps its share."""
        return self.state.settings | {"max_train_steps": self.summary["total_updates"]}

    def _sweep(self, _button):
        from lora_kit.trials import sweep

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
        from lora_kit.trials import Trials

        self.trials = self.trials or Trials()
        try:
            said = self.trials.start(trials, updates=self.length.value)
        except (ValueError, RuntimeError) as error:
            self.running.value = drawing.page(f"<b>✗</b> {html.escape(str(error))}")
            return
        said = "; ".join(next(iter(said.values())))
        self.following = threading.Thread(target=self._watch, args=(grid, said), daemon=True)
        self._paint()
        self.following.start()

    def _watch(self, grid, said):
        """Show what the runs have done, three times a second, until they end. Single runs are laid over earlier ones."""
        while True:
            progress = self.trials.progress()
            shown = progress["trials"] if grid else self.past | progress["trials"]
            line, runs = running_html(progress, said), runs_html(shown, grid)
            self.running.value, self.parts["runs"].value = line, runs
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
            self.parts["runs"].value = self.running.value = ""


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


# the parts of the page, as HTML


def picture_html(summary, axis="updates", log=False, cursor=None, pinned=()):
    """The curves, and in words what processes, accumulation and other trainers do to them."""
    said = [f"<li>{html.escape(one)}</li>" for one in summary["said"]]
    said += [
        f"<li><b>{html.escape(curve['label'])}</b>: {html.escape(curve['note'])}</li>"
        for curve in summary["curves"]
        if curve["note"]
    ]
    picture = drawing.svg_learning_rates(summary, axis, log, cursor, pinned)
    return drawing.page(picture, f"<ul>{''.join(said)}</ul>" if said else "")


def findings_html(summary):
    """The doctor's errors and warnings in words; one line where there are none."""
    signs = {"error": "✗", "warning": "!"}
    found = [one for one in summary["findings"] if one["status"] in signs]
    lines = []
    for one in found:
        cure = f" <i>Cure: {html.escape(one['cure'])}.</i>" if one["cure"] else ""
        text = html.escape(f"{one['value']}: {one['reason']}.")
        lines.append(
            f"<li><b>{signs[one['status']]} {one['status']}, {html.escape(one['check'])}.</b> {text}{cure}</li>"
        )
    if not lines and summary["errors"]:
        lines = [f"<li><b>✗ error.</b> {html.escape(one)}</li>" for one in summary["errors"]]
    fine = [one["check"] for one in summary["findings"] if one["status"] == "fine"]
    checked = f"<div>✓ fine: {html.escape(', '.join(dict.fromkeys(fine)))}</div>" if fine else ""
    listed = f'<ul style="list-style: none; padding-left: 0; margin: 0">{"".join(lines)}</ul>' if lines else ""
    return drawing.page(listed, checked)


def steps_html(summary):
    """The arithmetic of the steps, and what Adam's settings mean."""
    return drawing.page(drawing.table([*summary["steps"], *summary["optimizer"]])) if summary["steps"] else ""


def memory_html(kept, use_8bit_adam=False):
    """Bars, and which tensors 8-bit Adam leaves in 32 bits."""
    if kept is None:
        return drawing.page("The shapes of this model are not known here.")
    small = (
        f"{kept['small_tensors']:,} of the LoRA's {kept['tensors']:,} tensors ({kept['parameters']:,} numbers) have fewer than "
        f"4,096 elements: 8-bit Adam keeps their state in 32 bits. It {'saves' if use_8bit_adam else 'would save'} "
        f"{drawing.megabytes(kept['adam_32'] - kept['adam_8'])} of {drawing.megabytes(kept['adam_32'])}."
    )
    left_out = "Activations, VAE and text encoder are not counted."
    rows = [
        (" x ".join(map(str, shape)), count, math.prod(shape), each_32, each_8, 32 if each_8 == each_32 - 4 else 8)
        for shape, count, each_32, each_8 in sorted(kept["rows"], key=lambda row: -math.prod(row[0]))
    ]
    head = ("shape", "tensors", "elements", "bytes of state of each, 32-bit", "8-bit Adam", "bits there")
    shapes = f"<details><summary>Tensor by tensor</summary>{drawing.table(rows, head)}</details>"
    return drawing.page(drawing.svg_memory(kept, use_8bit_adam), f"<div>{small} {left_out}</div>", shapes)


def command_html(summary, kind):
    """The text to copy; a click selects all of it."""
    if not summary["commands"]:
        return drawing.page("No command while there is an error: it would stop with it.")
    style = "white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere; font-family: monospace; color: inherit; user-select: all; border: 1px solid; padding: 6px; margin: 0"
    return drawing.page(f'<pre style="{style}">{html.escape(summary["commands"][kind])}</pre>')


def running_html(progress, said=""):
    """Where the runs are, in a line, what is otherwise than on the page, and what failed."""
    states = [one["state"] for one in progress["trials"].values()]
    done = sum(len(one["updates"]) for one in progress["trials"].values())
    total = sum(one["total_updates"] for one in progress["trials"].values())
    share = done / total if total else 0.0
    bar = (
        f'<div role="progressbar" aria-valuenow="{share:.0%}" style="border: 1px solid; width: 20em; height: 0.8em; '
        f'display: inline-block"><div style="background: {drawing.LOOKS[0][0]}; height: 100%; width: {share:.1%}"></div></div>'
    )
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    errors = [
        f"<div>✗ {html.escape(name)}: {html.escape(one['error'])}</div>"
        for name, one in progress["trials"].items()
        if one["error"]
    ]
    about = f'<div style="font-style: italic">{html.escape(said)}</div>' if said else ""
    return drawing.page(bar, f" {done} of {total} updates; runs: {counts}", *errors, about)


def runs_html(trials, grid=None):
    """Curves, pictures and, for a sweep, the heat map of the runs so far. trials: as of `Trials.progress`."""
    import base64
    from pathlib import Path

    ends = [len(one["updates"]) if one["state"] == "stopped" else one["total_updates"] for one in trials.values()]
    end = max(ends, default=1) or 1
    parts = []
    if grid:
        ranks, rates = grid
        last = {
            (rank, rate): next(
                (one["fixed"][-1][1] for name, one in trials.items() if name == f"learning_rate {rate}, rank {rank}" and one["state"] == "done"),
                None,
            )
            for rank in ranks
            for rate in rates
        }  # fmt: skip
        title = "loss on fixed pictures, noise and timesteps after each run (★: the lowest)"
        parts.append(drawing.html_heat_map(ranks, rates, last, "rank", "learning_rate", title))
    lines = {
        "loss on fixed pictures, noise and timesteps: comparable": [
            (name, one["fixed"]) for name, one in trials.items()
        ],
        "training loss: other pictures, noise and timesteps in each update": _series(trials, "loss"),
        "learning rate": _series(trials, "lr"),
        "norm of the gradient, before clipping": _series(trials, "grad_norm"),
    }
    for title, curves in lines.items():
        parts.append(drawing.svg_lines(curves, title, "optimizer updates", end, from_zero="loss" not in title))
    if not grid:
        for name, one in trials.items():
            for update, path in one["samples"]:
                data = base64.b64encode(Path(path).read_bytes()).decode()
                words = f"pictures after {update} updates: {name}"
                parts.append(
                    f'<figure style="margin: 4px 0"><img alt="{html.escape(words)}" src="data:image/png;base64,{data}" '
                    f'style="max-width: 100%"><figcaption>{html.escape(words)}</figcaption></figure>'
                )
    return drawing.page(*parts)


def _series(trials, key):
    return [(name, [*zip(one["updates"], one[key], strict=True)]) for name, one in trials.items()]
