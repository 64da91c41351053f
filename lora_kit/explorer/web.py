"""The explorer behind a web page: a `Session` that is asked and answers in JSON. The page's script only places what it says."""

import dataclasses
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
    ['buttons', 'controls', 'groups', 'looks', 'panels', 'view']
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
        """Begin anew with what an address asks for: what can be turned, pressed and seen, and the view of a `Session`."""
        self._begin(Session.from_address(address))
        return json.dumps(
            {
                "groups": GROUPS,
                "controls": {name: _plain(control) for name, control in CONTROLS.items()},
                "looks": {name: _plain(control) for name, control in LOOKS.items()},
                "panels": PANELS,
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


def _plain(control: Control) -> dict[str, Any]:
    return dataclasses.asdict(control)
