"""The explorer behind a web page: a `Session` that is asked and answers in JSON. The page's script only places what it says."""

import dataclasses
import html
import json
from collections.abc import Callable
from typing import Any

from lora_kit.explorer.controls import BUTTONS, CONTROLS, GROUPS, LOOKS, PANELS, Control
from lora_kit.explorer.session import Session

NESTED = ("controls", "panels", "unused")  # of which only the entries that changed are said


class Page:
    """A reader's page. source: where it finds the atlas's pictures, an address that ends with "/".

    >>> page = Page()
    >>> sorted(json.loads(page.start("rank=8")))
    ['buttons', 'controls', 'looks', 'view']
    >>> changed = json.loads(page.act('{"do": "type", "name": "learning_rate", "text": "1e-4"}'))
    >>> changed["controls"]["learning_rate"]["written"], "rank" in changed["controls"]
    ('0.0001', False)
    """

    def __init__(self, source: str = "") -> None:
        self.source = source
        self._begin(Session.start())

    def _begin(self, session):
        session.source = self.source
        self.session, self._shown = session, session.view()

    def start(self, address: str = "") -> str:
        """Begin anew with what an address asks for: what can be turned and pressed, and the view of a `Session`."""
        self._begin(Session.from_address(address))
        return json.dumps(
            {
                "controls": {name: _plain(control) for name, control in CONTROLS.items()},
                "looks": {name: _plain(control) for name, control in LOOKS.items()},
                "buttons": BUTTONS,
                "view": self._shown,
            }
        )

    def act(self, event: str) -> str:
        """Do what the reader did; the entries of the view that are otherwise now.

        event: {"do": a method's name, and what it is given}, such as {"do": "turn", "name": "rank", "value": 8}. Raises ValueError
        for what no reader can do.
        """
        given: dict[str, Any] = json.loads(event)
        actions: dict[str, Callable[..., Any]] = {
            name: getattr(self.session, name)
            for name in ("turn", "type", "look", "take_preset", "read", "pin", "unpin", "mend")
        }
        if (name := given.pop("do", None)) not in actions:
            raise ValueError(f"do {name!r} is unknown; it must be one of {', '.join(actions)}")
        actions[name](**given)
        before, self._shown = self._shown, self.session.view()
        changed = {name: value for name, value in self._shown.items() if value != before[name]}
        for name in changed.keys() & set(NESTED):
            changed[name] = {key: value for key, value in changed[name].items() if value != before[name][key]}
        return json.dumps(changed)


def parts() -> dict[str, str]:
    """What stands on the page and never changes, as HTML: {name: text}, for the places of that name in its index.html.

    "groups": all knobs, without their values. "kind", "trainers": what is chosen there. "NAME.word", "NAME.help": of `LOOKS` and
    `BUTTONS`. "NAME.title": the heading of a panel.

    >>> parts()["cursor.word"], '<div class="knob slider" data-name="rank"' in parts()["groups"]
    ('read at update', True)
    """
    texts = {f"{name}.{part}": getattr(look, part) for name, look in LOOKS.items() for part in ("word", "help")}
    texts |= {f"{name}.help": words for name, (_, words) in BUTTONS.items()}
    texts |= {f"{name}.title": heading for name, heading in PANELS.items()}
    made = {name: html.escape(text) for name, text in texts.items()}
    return made | {"groups": "".join(map(_group, GROUPS)), **{name: _options(name) for name in ("kind", "trainers")}}


def _options(name):
    one = "radio" if LOOKS[name].kind == "choice" else "checkbox"
    return "".join(
        f'<label><input type="{one}" name="{name}" value="{value}"><span>{html.escape(words)}</span></label>'
        for words, value in LOOKS[name].options
    )


def _group(title):
    opened = "" if title == "Optimizer" else " open"
    knobs = "".join(_knob(CONTROLS[name]) for name in GROUPS[title])
    head = f'<details class="group" data-group="{title}"{opened}><summary><h2>{title}</h2></summary>'
    return f'{head}{knobs}<div class="unused"></div></details>'


def _knob(control):
    """A row: the plain word and the flag's name, what is turned, and room for a hint."""
    name, word, kind = control.name, html.escape(control.word), control.kind
    typed, field = f'id="knob-{name}"', 'autocomplete="off" spellcheck="false"'
    flag = "" if word == name else f" <code>{name.replace('_', '_<wbr>')}</code>"
    inputs = {
        "choice": f"<select {typed}></select>",
        "switch": f'<input {typed} type="checkbox" role="switch">',
        "text": f'<input {typed} inputmode="text" {field}>',
        "number": f'<input {typed} inputmode="numeric" {field}>',
    }
    beside = f'<input class="number" aria-label="{word} {name}, as a number" inputmode="decimal" {field}>'
    input = inputs.get(kind, f'{beside}<input {typed} type="range">')
    if kind == "text" and control.options:
        input += f'<select class="sets" aria-label="usual sets of {name}"></select>'
    label = f'<label for="knob-{name}"><span class="word">{word}</span>{flag}</label>'
    title = html.escape(control.help)
    return f'<div class="knob {kind}" data-name="{name}" title="{title}">{label}{input}<div class="hint"></div></div>'


def _plain(control: Control) -> dict[str, Any]:
    return dataclasses.asdict(control)
