"""The explorer's page: knobs beside what they do, and buttons that train with it. `Explorer` lays it out and paints it.

`lora_kit.explorer.state` holds what it shows, `summary` works out what a configuration does, `panels` says it as HTML. Nothing
but a real run, in a process of its own, needs torch.
"""

import html
from collections.abc import Callable
from typing import Any

from lora_kit.explorer.knobs import Knobs, as_meant, written
from lora_kit.explorer.panels import (
    command_html,
    findings_html,
    linked,
    memory_html,
    notes_html,
    picture_html,
    steps_html,
)
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.runs import Runs
from lora_kit.explorer.state import REFUSED, State
from lora_kit.explorer.widgets import BUTTON, COLUMN, NARROW_LABEL, ROW, STYLE_SHEET, Quiet, heading, labelled, show
from lora_kit.steps import AXES
from lora_kit.system.html import page
from lora_kit.trainers.known import TRAINERS

KINDS = [
    ("accelerate launch", "accelerate"),
    ("diffusers' script", "diffusers"),
    ("Python", "python"),
    ("YAML", "yaml"),
]


class Explorer:
    """The page. `knobs`: the widgets by the names of the settings; `numbers`: beside a slider, the text field that shows its
    value and takes any other; `state`; `summary`: what `summarize` says of it; `runs`: the real trainings; `box`: the widget
    that holds all."""

    def __init__(self, state: State):
        import ipywidgets

        self.state, self.refused, self.quiet = state, {}, Quiet()
        self.controls = Knobs(self.quiet, self._turn, self._refuse)
        self.knobs, self.numbers, self.hints = self.controls.widgets, self.controls.numbers, self.controls.hints
        self.runs = Runs(state, self.quiet)
        names = ("picture", "findings", "notes", "steps", "memory", "command")
        self.parts = {name: ipywidgets.HTML() for name in names}
        # where both don't fit side by side the picture stands above the knobs
        above = {"flex_flow": "row wrap-reverse", "align_items": "flex-end", "justify_content": "flex-start"}
        below = {"flex_flow": "row wrap", "align_items": "flex-start"}
        self.box = ipywidgets.VBox(
            [
                ipywidgets.HTML(STYLE_SHEET, layout={"display": "none"}),
                ipywidgets.HBox([self._knob_column(), self._picture_column()], layout=above),
                ipywidgets.HBox([self._text_column(), self._table_column()], layout=below),
                self.runs.box,
            ],
            layout={"width": "100%"},
        )
        self.box.add_class("lora-kit")
        self.draw()

    def _ipython_display_(self) -> None:
        show(self.box)

    @property
    def summary(self) -> dict:
        return self.state.summary

    # the widgets

    def _hear(self, action, *widgets):
        for widget in widgets:
            widget.observe(self.quiet.hears(action), "value")

    def _knob_column(self):
        import ipywidgets

        presets = [("start from …", ""), *((name, name) for name in PRESETS)]
        self.preset = labelled(
            ipywidgets.Dropdown, "preset", "A configuration to start from.", options=presets, style=NARROW_LABEL
        )
        self._hear(self._take_preset, self.preset)
        self.pasted = ipywidgets.Textarea(
            placeholder="or paste a command line, Python or YAML", layout=ROW | {"height": "4em"}
        )
        self.read = ipywidgets.Button(description="Read what is pasted", layout=BUTTON)
        self.read.on_click(self.quiet.hears(self._take_pasted))
        self.reply = ipywidgets.HTML(layout=ROW)
        start = [heading("Start"), self.preset, self.pasted, self.read, self.reply]
        column = ipywidgets.VBox(
            [*start, heading("Settings"), self.controls.box],
            layout={"flex": "1 1 26em", "max_width": "36em", "padding": "0 14px 0 0"},
        )
        column.add_class("lora-kit-rows")
        return column

    def _picture_column(self):
        import ipywidgets

        self.axis = labelled(
            ipywidgets.Dropdown, "over", "What the picture is drawn over.", style=NARROW_LABEL, layout={"width": "24em"},
            options=[(words, name) for name, words in AXES.items()],
        )  # fmt: skip
        self.log = labelled(
            ipywidgets.Checkbox, "logarithmic", "Rates on a logarithmic scale.", style=NARROW_LABEL, layout={"width": "8em"},
            indent=False,
        )  # fmt: skip
        text = "Moves the line in the picture; the rates there stand below it."
        self.cursor = labelled(ipywidgets.IntSlider, "read at update", text, style=NARROW_LABEL, max=1)
        self.pin, self.unpin = (ipywidgets.Button(description=words, layout=BUTTON) for words in ("Pin", "Unpin all"))
        self.pin.tooltip = "Keep this curve in the picture while the settings change; three at most."
        self.mend = ipywidgets.Button(layout=BUTTON)
        for button, action in ((self.pin, self._pin), (self.unpin, self._unpin), (self.mend, self._mend)):
            button.on_click(self.quiet.hears(action))
        self._hear(self._look, self.axis, self.log, self.cursor)
        buttons = ipywidgets.HBox([self.axis, self.log, self.pin, self.unpin], layout={"flex_flow": "row wrap"})
        picture = [heading("The learning rate as applied"), self.parts["picture"], buttons, self.cursor]
        return ipywidgets.VBox(
            [*picture, heading("What the doctor says"), self.parts["findings"], self.mend], layout=COLUMN
        )

    def _text_column(self):
        import ipywidgets

        self.kind = labelled(
            ipywidgets.Dropdown, "as", "The text to copy.", options=KINDS, style=NARROW_LABEL, layout={"width": "18em"}
        )
        text = "What the same words mean to other trainers; several with Ctrl or Shift."
        self.trainers = labelled(
            ipywidgets.SelectMultiple, "the same words in", text, rows=len(TRAINERS), style=NARROW_LABEL,
            options=[(trainer.name, key) for key, trainer in TRAINERS.items()],
            layout={"width": "100%", "max_width": "32em"},
        )  # fmt: skip
        self.trainers.add_class("lora-kit-above")
        self._hear(self._look, self.kind, self.trainers)
        others = heading("Other trainers (Ctrl and a click adds one, or takes it away)")
        column = ipywidgets.VBox(
            [heading("To run it"), self.kind, self.parts["command"], others, self.trainers, self.parts["notes"]],
            layout=COLUMN,
        )
        column.add_class("lora-kit-rows")
        return column

    def _table_column(self):
        import ipywidgets

        steps = [heading("Steps and optimizer"), self.parts["steps"]]
        memory = [heading("What training keeps in memory"), self.parts["memory"]]
        return ipywidgets.VBox([*steps, *memory], layout=COLUMN | {"flex": "1 1 36em"})

    # from the state to the widgets

    def draw(self) -> None:
        """Show the state."""
        state, summary = self.state, self.summary
        with self.quiet:
            self.controls.show(state, self.refused)
            self.cursor.max = max(summary["total_updates"] - 1, state.cursor, 1)
            self.axis.value, self.log.value, self.cursor.value = state.axis, state.log, state.cursor
            self.trainers.value = state.trainers
            cursor = state.cursor if summary["curves"] else None
            self._paint("picture", picture_html, summary, state.axis, state.log, cursor, state.pinned)
            self._paint("findings", findings_html, summary)
            self._paint("notes", notes_html, summary)
            self._paint("steps", steps_html, summary)
            self._paint("memory", memory_html, summary["memory"], state.values["use_8bit_adam"])
            self._paint("command", command_html, summary, self.kind.value)
            words = ", ".join(f"{name} {value}" for name, value in state.change.items())
            self.mend.description = f"Mend it: {words}" if words else "Nothing to mend"
            self.mend.disabled = not words
            self.runs.paint()

    def _paint(self, name: str, make: Callable[..., str], *arguments: Any) -> None:
        """A part of the page; what can't be drawn takes no other part with it."""
        try:
            self.parts[name].value = make(*arguments)
        except REFUSED as error:
            self.parts[name].value = page(f"<b>✗</b> This can't be drawn: {html.escape(str(error))}")

    # from the widgets to the state

    def _turn(self, name, value):
        """A knob was turned, or a number typed."""
        started = self.state.started
        try:
            self.state.turn(name, as_meant(name, value, self.state.values[name]))
        except REFUSED as error:
            self._refuse(name, error)
            return
        self._say_changed(started)
        self.refused = {}
        self.draw()

    def _refuse(self, name, error):
        """What a knob was given can't be: that is said, and nothing changes."""
        value = self.state.values[name]
        before = 0 if name == "max_train_steps" and value is None else value
        self.refused = {name: f"{error}: it stays {written(before)}"}
        self.draw()

    def _say_changed(self, started):
        """The settings are no longer those of the preset, or of what was pasted."""
        if started and not self.state.started:
            with self.quiet:
                self.preset.value = ""
            self.reply.value = page(f"Started from <b>{html.escape(started)}</b>; changed since.")

    def _look(self, change):
        """It is to be looked at otherwise."""
        if change["owner"] in (self.axis, self.log):
            self.state.look(axis=self.axis.value, log=self.log.value)
        elif change["owner"] in (self.cursor, self.trainers):
            self.state.look(cursor=self.cursor.value, trainers=tuple(self.trainers.value))
        self.draw()

    def _take_preset(self, change):
        if change["new"]:
            self._take(self.state.take_preset, change["new"])

    def _take_pasted(self, _button):
        if self._take(self.state.take, self.pasted.value):
            with self.quiet:
                self.preset.value = self.pasted.value = ""

    def _take(self, take, text):
        """Read a text; returns whether it could be read. What can't be read changes nothing."""
        try:
            sentences = take(text)
        except REFUSED as error:
            self.reply.value = page(f"<b>✗ Not read:</b> {html.escape(str(error))}")
            return False
        self.reply.value = page("<b>✓ Read.</b> ", linked(". ".join(sentences)))
        self.refused = {}
        self.draw()
        return True

    def _pin(self, _button):
        self.state.pin()
        self.draw()

    def _unpin(self, _button):
        self.state.pinned.clear()
        self.draw()

    def _mend(self, _button):
        started = self.state.started
        self.state.mend()
        self._say_changed(started)
        self.refused = {}
        self.draw()
