"""What a reader does to the explorer, and all that a page of it then shows: the same for every skin, a notebook's or the web's.

A skin calls the methods of a `Session`, and places what its `view()` gives: it makes no text and no number of its own.
"""

import dataclasses
import html
from typing import Any

from lora_kit.config import FIELDS
from lora_kit.explorer.address import read_address, to_address
from lora_kit.explorer.controls import CONTROLS, KINDS, as_meant, for_knob, meaning
from lora_kit.explorer.panels import linked
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.state import COUNTS, FIRST, PICTURES, REFUSED, START, State
from lora_kit.explorer.view import view_of
from lora_kit.steps import AXES
from lora_kit.system.checks import checked, did_you_mean, shown
from lora_kit.system.html import page


@dataclasses.dataclass
class Session:
    """A reader at the explorer: what was turned, pasted and looked at, and what is said of it.

    state: what is shown. refused: {name: why what it was given was not taken}, until something is. reply: what became of the
    latest text, as HTML. kind: of the command that is shown, a key of `KINDS`. hidden: names of controls, panels and "train"
    that a page leaves out. embedded: the panel that it shows alone, or "". The methods raise nothing for what a reader can give:
    they say it, and change nothing.

    >>> session = Session.start()
    >>> session.type("learning_rate", "1e-4")
    >>> session.view()["address"], session.view()["controls"]["learning_rate"]["said"]
    ('learning_rate=0.0001', '0.0001')
    >>> session.turn("rank", 0)
    >>> session.refused
    {'rank': 'rank 0 must be at least 1: it stays 16'}
    """

    state: State
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    reply: str = ""
    kind: str = "accelerate"
    hidden: tuple[str, ...] = ()
    embedded: str = ""

    @classmethod
    def start(cls, num_examples: int = PICTURES, num_processes: int = 1, **settings: Any) -> "Session":
        """The explorer's start, notebook 05's run, but for these settings; its length gives way to num_train_epochs.

        Raises ValueError for a value that no run could have, TypeError for a name that is no setting.
        """
        length = {"max_train_steps": None} if settings.get("num_train_epochs") else {}
        state = State(START | length | settings, num_examples, num_processes)
        if not settings and (num_examples, num_processes) == (PICTURES, 1):
            state.started = FIRST
        return cls(state)

    @classmethod
    def from_address(cls, text: str) -> "Session":
        """What an address of `to_address` asks for; its reply says what of it can't be."""
        asked, sentences = read_address(text)
        own = {name: asked.pop(name) for name in ("kind", "hidden", "embedded")}
        try:
            state = State(**asked)
        except REFUSED as error:
            sentences.append(str(error))
            state = State(dict(START))
        if not to_address(state):
            state.started = FIRST
        said = (
            page("<b>✗ Not all of the address is taken:</b> ", html.escape("; ".join(sentences))) if sentences else ""
        )
        return cls(state, reply=said, **own)

    # what a reader does

    def turn(self, name: str, value: Any) -> None:
        """A knob was turned: a setting, or one of `COUNTS`, gets a value."""
        self._change(name, lambda: self.state.turn(name, as_meant(name, value, self.state.values.get(name))))

    def type(self, name: str, text: str) -> None:
        """A text was typed as the value of a setting: any number, also beyond a slider's ends."""
        known = name in FIELDS or name in COUNTS
        self._change(name, lambda: self.state.turn(name, meaning(name, text) if known else text))

    def look(self, **how: Any) -> None:
        """It is to be looked at otherwise: axis, log, cursor, trainers, as in `State`, and kind."""
        try:
            for name, known in (("axis", AXES), ("kind", KINDS)):
                if name in how and how[name] not in known:
                    raise ValueError(f"{name} {shown(how[name])} is unknown; it must be one of {', '.join(known)}")
            checked("log", how.get("log", False), bool)
            if unknown := how.keys() - {"axis", "kind", "log", "cursor", "trainers"}:
                raise ValueError(f"{shown(min(unknown))} is nothing that it can be looked at by")
            kind = how.pop("kind", self.kind)
            self.state.look(**how | ({"trainers": tuple(how["trainers"])} if "trainers" in how else {}))
            self.kind = kind
        except REFUSED as error:
            self._cross(error)

    def take_preset(self, name: str) -> bool:
        """Become a configuration of `PRESETS`; returns whether there is one of that name. "" changes nothing."""
        if name and name not in PRESETS:
            self._cross(f"preset {shown(name)} is unknown; {did_you_mean(name, PRESETS, 'choose one of the list')}")
        return name in PRESETS and self._take(lambda: self.state.take_preset(name))

    def read(self, text: str) -> bool:
        """Become what a command line, Python or YAML asks for; returns whether the text could be read."""
        return self._take(lambda: self.state.take(text))

    def pin(self) -> None:
        """Keep the curve of these settings beside those to come, while there is room."""
        self.state.pin()

    def unpin(self) -> None:
        """Take the kept curves away."""
        self.state.pinned.clear()

    def mend(self) -> None:
        """Take the settings that cure the worst of what the doctor found."""
        started = self.state.started
        self.state.mend()
        self._changed(started)

    def _change(self, name, change):
        """Do it, or say why it can't be."""
        started = self.state.started
        try:
            change()
        except REFUSED as error:
            if name in CONTROLS:
                stays = CONTROLS[name].said(for_knob(name, self.state.values))
                self.refused = {name: f"{error}: it stays {stays}"}
            else:
                self._cross(error)
        else:
            self._changed(started)

    def _cross(self, refusal):
        self.reply = page(f"<b>✗</b> {html.escape(str(refusal))}")

    def _changed(self, started):
        """What was refused is forgotten; the settings are no longer those of the preset, or of what was pasted."""
        self.refused = {}
        if started and not self.state.started:
            self.reply = page(f"Started from <b>{html.escape(started)}</b>; changed since.")

    def _take(self, take):
        try:
            sentences = take()
        except REFUSED as error:
            self.reply = page(f"<b>✗ Not read:</b> {html.escape(str(error))}")
            return False
        self.reply, self.refused = page("<b>✓ Read.</b> ", linked(". ".join(sentences))), {}
        return True

    # what is then to be seen

    def view(self) -> dict[str, Any]:
        """Everything that a page shows, as values that JSON can hold: those of `view_of`, and these.

        reply: HTML. address: as of `to_address`. hidden: what the page leaves out. embedded: the panel that it shows alone, or "".
        """
        return view_of(self.state, self.refused, self.kind) | dict(
            reply=self.reply,
            address=to_address(self.state, self.kind, self.hidden, self.embedded),
            hidden=list(self.hidden),
            embedded=self.embedded,
        )
