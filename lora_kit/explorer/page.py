"""The explorer's page in a notebook: widgets that place what a `Session` gives, and buttons that train with it.

It makes no text and no number of its own but for the trainings, which are in processes of their own and alone need torch.
"""

from collections.abc import Callable
from typing import Any

from lora_kit.explorer.controls import BUTTONS, LOOKS, PANELS
from lora_kit.explorer.knobs import HIDDEN, Knobs, widget_of
from lora_kit.explorer.runs import Runs
from lora_kit.explorer.session import Session
from lora_kit.explorer.state import State
from lora_kit.explorer.widgets import BUTTON, COLUMN, NARROW_LABEL, ROW, STYLE_SHEET, Quiet, heading_html, show, titled
from lora_kit.system.html import page

SIZES = {"axis": "24em", "log": "8em", "kind": "18em"}
MAY_BE_EMPTY = ("atlas", "map")  # panels that are put away with their headings


class Explorer:
    """The page. `session`, `state`, `summary`: what it shows; `knobs`: the widgets by the names of the settings; `numbers`: beside
    a slider, the text field that shows its value and takes any other; `looks`, `buttons`: the widgets by the names in `LOOKS` and
    `BUTTONS`; `parts`: the texts; `runs`: the real trainings; `box`: the widget that holds all."""

    def __init__(self, session: Session):
        import ipywidgets

        self.session, self.quiet = session, Quiet()
        self.controls = Knobs(self.quiet, self._doing(session.turn), self._doing(session.type))
        self.knobs, self.numbers, self.hints = self.controls.widgets, self.controls.numbers, self.controls.hints
        self.runs = Runs(session.state, self.quiet, self._doing(session.turn))
        self.parts = {name: ipywidgets.HTML() for name in ("rate", "answer", "reply", "title", *PANELS)}
        self._make_looks()
        self._make_buttons()
        self.titled = {name: titled(PANELS[name], self.parts[name]) for name in MAY_BE_EMPTY}
        # where both don't fit side by side the picture stands above the knobs
        above = {"flex_flow": "row wrap-reverse", "align_items": "flex-end", "justify_content": "flex-start"}
        below = {"flex_flow": "row wrap", "align_items": "flex-start"}
        answer = ipywidgets.HBox(
            [self.parts["rate"], self.parts["answer"]], layout=below | {"align_items": "baseline", "grid_gap": "0 2em"}
        )
        self.parts["answer"].add_class("lora-kit-live")
        self.box = ipywidgets.VBox(
            [
                ipywidgets.HTML(STYLE_SHEET, layout={"display": "none"}),
                answer,
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
    def state(self) -> State:
        return self.session.state

    @property
    def summary(self) -> dict:
        return self.state.summary

    # the widgets

    def _make_looks(self):
        """What changes no setting, and what is heard of it."""
        import ipywidgets

        self.looks = {
            name: widget_of(control, style=NARROW_LABEL, layout={"width": SIZES[name]} if name in SIZES else ROW)
            for name, control in LOOKS.items()
            if name != "pasted"
        }
        pasted = LOOKS["pasted"].word
        self.looks["pasted"] = ipywidgets.Textarea(placeholder=pasted, layout=ROW | {"height": "4em"})
        self.looks["log"].indent, self.looks["cursor"].readout = False, True
        self.looks["trainers"].layout = {"width": "100%", "max_width": "32em"}
        self.looks["trainers"].description += "\n(Ctrl and a click adds one, or takes it away)"
        self.looks["trainers"].add_class("lora-kit-above")
        for name in ("axis", "log", "cursor", "trainers", "kind"):
            look = self._doing(lambda value, name=name: self.session.look(**{name: value}))
            self.looks[name].observe(self.quiet.hears(lambda change, look=look: look(change["new"])), "value")
        take = self._doing(self.session.take_preset)
        self.looks["preset"].observe(self.quiet.hears(lambda change: take(change["new"])), "value")

    def _make_buttons(self):
        import ipywidgets

        actions = {"read": self._read, "pin": self.session.pin, "unpin": self.session.unpin, "mend": self.session.mend}
        self.buttons = {}
        for name, (words, help) in BUTTONS.items():
            self.buttons[name] = ipywidgets.Button(description=words, tooltip=help, layout=BUTTON)
            press = self._doing(actions[name])
            self.buttons[name].on_click(self.quiet.hears(lambda _, press=press: press()))

    def _knob_column(self):
        import ipywidgets

        looks = [self.looks["preset"], self.looks["pasted"], self.buttons["read"], self.parts["reply"]]
        column = ipywidgets.VBox(
            [titled("Start", *looks), titled("Settings", self.controls.box)],
            layout={"flex": "1 1 26em", "max_width": "36em", "padding": "0 14px 0 0"},
        )
        column.add_class("lora-kit-rows")
        return column

    def _picture_column(self):
        import ipywidgets

        row = [self.looks["axis"], self.looks["log"], self.buttons["pin"], self.buttons["unpin"]]
        picture = [self.parts["title"], self.parts["picture"], ipywidgets.HBox(row, layout={"flex_flow": "row wrap"})]
        doctor = [titled(PANELS["findings"], self.parts["findings"]), self.buttons["mend"]]
        pictures = [self.titled["atlas"], self.titled["map"]]
        return ipywidgets.VBox([*picture, self.looks["cursor"], *pictures, *doctor], layout=COLUMN)

    def _text_column(self):
        import ipywidgets

        column = ipywidgets.VBox(
            [
                titled(PANELS["command"], self.looks["kind"], self.parts["command"]),
                titled(PANELS["notes"], self.looks["trainers"], self.parts["notes"]),
            ],
            layout=COLUMN,
        )
        column.add_class("lora-kit-rows")
        return column

    def _table_column(self):
        import ipywidgets

        tables = [titled(PANELS[name], self.parts[name]) for name in ("steps", "memory")]
        return ipywidgets.VBox(tables, layout=COLUMN | {"flex": "1 1 36em"})

    # from the session to the widgets, and back

    def draw(self) -> None:
        """Show what the session says."""
        view = self.session.view()
        texts = view["panels"] | {"answer": view["answer"], "reply": view["reply"]}
        texts["title"] = heading_html(view["title"])
        texts["rate"] = page(f'<span class="lora-kit-rate">{view["rate"]}</span> {view["cursor"]["said"]}')
        with self.quiet:
            self.controls.show(view)
            for name, text in texts.items():
                self.parts[name].value = text
            for name, box in self.titled.items():
                box.layout.display = HIDDEN[not self.parts[name].value]
            self.looks["cursor"].max = view["cursor"]["max"]
            for name in ("axis", "log", "kind", "preset"):
                self.looks[name].value = view[name]
            self.looks["cursor"].value, self.looks["trainers"].value = view["cursor"]["value"], tuple(view["trainers"])
            self.buttons["mend"].description = view["mend"] or BUTTONS["mend"][0]
            self.buttons["mend"].disabled = not view["mend"]
            self.runs.paint()

    def shown(self) -> dict[str, Any]:
        """What stands on the widgets: the texts by the names in `parts`, the words on the buttons, the line under each group, and
        `controls`, as of `Knobs.shown`. Where a page shows the same state, all of it is the same."""
        texts = {name: part.value for name, part in self.parts.items()}
        words = {name: button.description for name, button in self.buttons.items()}
        unused = {title: line.value for title, line in self.controls.unused.items()}
        return texts | {"buttons": words, "unused": unused, "controls": self.controls.shown()}

    def _doing(self, action: Callable[..., Any]) -> Callable[..., None]:
        """The action of a session, and then the page that shows what came of it."""

        def does(*arguments):
            action(*arguments)
            self.draw()

        return does

    def _read(self):
        if self.session.read(self.looks["pasted"].value):
            with self.quiet:
                self.looks["pasted"].value = ""
