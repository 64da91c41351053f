"""A state of the explorer as the end of an address, and back: `learning_rate=0.0001&rank=16` is all that differs from its start.

What no address has: a token, curves that were pinned, and the name of a preset.
"""

import functools
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from lora_kit.command_line.shell import LONGEST
from lora_kit.config import FIELDS, TrainingConfig, check_setting
from lora_kit.explorer.controls import CONTROLS, HIDEABLE, KINDS, PANELS, meaning, written
from lora_kit.explorer.state import COUNTS, PICTURES, REFUSED, START, State
from lora_kit.steps import AXES
from lora_kit.system.checks import check_text, did_you_mean, shown, whole_number
from lora_kit.trainers.known import TRAINERS

MOST = 1_000  # parts of an address
SECRET = "hub_token"
EMBEDDABLE = (*PANELS, "train")


def to_address(state: State, kind: str = "accelerate", hidden: tuple[str, ...] = (), embedded: str = "") -> str:
    """All that differs from the explorer's start, as `name=value` with & between them; "" for the start itself.

    kind: of the command that is shown. hidden: names of `HIDEABLE`. embedded: the panel that is shown alone.

    >>> to_address(State(START | {"learning_rate": 1e-4, "target_modules": ("to_q", "to_v")}))
    'target_modules=to_q%20to_v&learning_rate=0.0001'
    """
    start, total = _start() | dict(num_examples=PICTURES, num_processes=1), state.summary["total_updates"]
    parts = {name: _text(value) for name, value in state.values.items() if value != start[name] and name != SECRET}
    looks = {
        "axis": (state.axis, "updates"),
        "log": (_text(state.log), "off"),
        "trainers": (",".join(state.trainers), ""),
        "cursor": (_text(state.cursor), _text(total // 2 if total else None)),
        "script": (state.script or "", ""),
        "kind": (kind, "accelerate"),
        "hide": (",".join(hidden), ""),
        "embed": (embedded, ""),
    }
    parts |= {name: text for name, (text, usual) in looks.items() if text != usual}
    return urlencode(parts, quote_via=quote, safe=",:/")


def read_address(text: str) -> tuple[dict[str, Any], list[str]]:
    """What an address asks for, and sentences about what of it is not taken. Raises nothing, whatever the text.

    The dict has settings, num_examples, num_processes, axis, log, trainers, cursor, script, kind, hidden and embedded, each
    checked by itself; what the address doesn't say is as at the start. A leading # or ? is none of it.

    >>> asked, sentences = read_address("#rank=8&rnak=4&hide=memory")
    >>> asked["settings"]["rank"], asked["hidden"], sentences
    (8, ('memory',), ["'rnak' is nothing that can be set: did you mean 'rank'?"])
    """
    asked = dict(num_examples=PICTURES, num_processes=1, axis="updates", log=False, trainers=(), cursor=None)
    asked |= dict(script=None, kind="accelerate", hidden=(), embedded="", settings=dict(START))
    sentences: list[str] = []
    try:
        if len(text) > LONGEST:
            raise ValueError(f"an address of {len(text):,} characters is too long to read; at most {LONGEST:,} are")
        pairs = parse_qsl(text.lstrip("#?"), keep_blank_values=True, max_num_fields=MOST, errors="strict")
    except ValueError as error:
        return asked, [f"the address can't be read: {error}"]
    for name, value in pairs:
        try:
            _take(asked, name, value, sentences)
        except REFUSED as error:
            sentences.append(str(error))
    return asked, sentences


def _take(asked, name, text, sentences):
    """One part of an address, checked, into what is asked for."""
    if name in COUNTS:
        asked[name] = whole_number(name, meaning(name, text))
    elif name in FIELDS and name != SECRET:
        asked["settings"][name] = check_setting(name, meaning(name, text))
    elif name == "cursor":
        asked[name] = whole_number(name, meaning(COUNTS[0], text), 0)
    elif name == "log":
        asked[name] = meaning("scale_lr", text)
    elif name == "script":
        check_text(name, text, shown(text))
        asked[name] = text[:100] or None
    elif name in ("axis", "kind"):
        asked[name] = _known(name, text, AXES if name == "axis" else KINDS)
    elif name == "embed":
        asked["embedded"] = _known(name, text, EMBEDDABLE)
    elif name in ("hide", "trainers"):
        chosen = []
        for word in filter(None, text.split(",")):
            try:
                chosen.append(_known(name, word, HIDEABLE if name == "hide" else TRAINERS))
            except ValueError as error:
                sentences.append(str(error))
        asked["hidden" if name == "hide" else name] = tuple(dict.fromkeys(chosen))
    else:
        known = (*CONTROLS, *FIELDS, "axis", "log", "trainers", "cursor", "kind", "hide", "embed")
        hint = did_you_mean(name, known, "it may be the name of a setting, hide or embed")
        raise ValueError(f"{shown(name)} is nothing that can be set: {hint}")


def _known(name, word, known):
    if word not in known:
        hint = did_you_mean(word, known, f"it may be {', '.join(known)}")
        raise ValueError(f"{name} {shown(word)} is unknown; {hint}")
    return word


@functools.cache
def _start():
    return vars(TrainingConfig.draft(**START))


def _text(value):
    """A value as an address has it, exact: a number with all its digits."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return repr(value) if isinstance(value, float) else written(value)
