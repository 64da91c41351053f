"""Work as a number that no busy machine changes: the calls that an action makes."""

import sys


def calls(action):
    """The calls that an action makes, of Python and of C, and what it refuses to do: a ValueError or TypeError, or None."""
    count, refusal = 0, None

    def called(_frame, event, _argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        action()
    except (TypeError, ValueError) as error:
        refusal = error
    finally:
        sys.setprofile(None)
    return count, refusal
