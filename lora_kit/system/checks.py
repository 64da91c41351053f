"""Checks of single values, each with a message that names the field, quotes the value and says what would be right."""

import difflib
import math
import numbers
import os
from collections.abc import Iterable
from typing import Any

from lora_kit.system.secret import HIDDEN, Secret


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` was probably meant to be; None where nothing is near."""
    lower = {name.lower(): name for name in known}  # the case alone may be wrong
    close = difflib.get_close_matches(word.lower(), lower, 1)
    return lower[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """ "did you mean 'to_q'?", or `otherwise` where nothing is near."""
    close = nearest(word, known)
    return f"did you mean {close!r}?" if close else otherwise


LARGEST = 2**63 - 1  # what torch and NumPy can count to


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number: an int, or NumPy's; a bool is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # a whole number of more than 308 digits
        return False


def whole_number(name: str, value: Any, low: int = 1, error: type[Exception] = ValueError) -> int:
    """`value` as an int of at least `low` that can be counted to; raises `error` (ValueError) for anything else."""
    if not is_whole(value) or value < low:
        raise error(f"{name} {shown(value)} is not a whole number of at least {low}")
    check_count(name, value, error)
    return int(value)


def check_count(name: str, value: Any, error: type[Exception] = ValueError) -> None:
    """`error` (ValueError) for a whole number beyond what torch and NumPy can count to, above or below."""
    if is_whole(value) and abs(int(value)) > LARGEST:
        raise error(f"{name} {shown(value)} is more than can be counted: at most {LARGEST}")


def shown(value: Any) -> str:
    """A value as a message quotes it: its repr, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an int of more than 4,300 digits has no text
        text = f"a number of about {value.bit_length() * 0.30103:.0f} digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def checked(
    name: str,
    value: Any,
    kind: type,
    optional: bool = False,
    low: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    path: bool = False,
) -> Any:
    """`value` as its kind (bool, int, float, tuple of texts, str, Secret), if it is within its bounds.

    optional: None is allowed. low <= value, above < value, value < below. path: `~` becomes the home folder. Raises ValueError.
    """
    if value is None:
        if optional:
            return None
        raise ValueError(f"{name} None: a value is needed")
    if kind is Secret and str(value) == HIDDEN and not isinstance(value, Secret):
        raise ValueError(f"{name} '{HIDDEN}' is what stands for a hidden one: give the text itself, or leave it out")
    wanted = {
        bool: (isinstance(value, bool), "True or False"),
        int: (is_whole(value), "a whole number"),
        float: (is_number(value), "a finite number"),
        tuple: (isinstance(value, list | tuple) and all(isinstance(item, str) for item in value), "a list of names"),
        str: ((isinstance(value, str) and value != "") or hasattr(value, "__fspath__"), "a text"),
        Secret: (isinstance(value, str | Secret) and value != "", "a text"),
    }
    right, words = wanted[kind]
    if not right:
        raise ValueError(f"{name} {HIDDEN if kind is Secret and value else shown(value)} is not {words}")
    for text in value if kind is tuple else [str(value)] if kind in (str, Secret) else []:
        check_text(name, text, HIDDEN if kind is Secret else shown(text))
    if choices and value not in choices:
        hint = did_you_mean(value, choices)
        raise ValueError(
            f"{name} {shown(value)} is unknown; {hint + ' ' if hint else ''}It must be one of {', '.join(choices)}"
        )
    for bound, broken, words in (
        (low, lambda: value < low, "at least"),
        (above, lambda: value <= above, "greater than"),
        (below, lambda: value >= below, "less than"),
    ):
        if bound is not None and broken():
            raise ValueError(f"{name} {shown(value)} must be {words} {bound if is_whole(bound) else f'{bound:g}'}")
    check_count(name, value)
    return with_home(name, kind(value)) if path else kind(value)


def check_text(name: str, text: str, quoted: str) -> None:
    """ValueError for what no file and no page can hold: bytes of a command line that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} {quoted} is not in UTF-8, as files and logs must be: use a plainer name") from None


def with_home(name: str, path: str) -> str:
    """A path with the home folder in place of a leading `~`. Raises ValueError where there is none."""
    expanded = os.path.expanduser(path)
    if expanded == path and (path == "~" or path.startswith("~/")):
        raise ValueError(
            f"{name} {shown(path)}: this user has no home folder; set HOME, or give {name} a path without ~"
        )
    return expanded
