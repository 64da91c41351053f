"""How a command ends when it is interrupted or can't do what it was asked."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from lora_kit.system.kernel import LaunchError
from lora_kit.system.signals import NOTHING_NEW


@contextlib.contextmanager
def one_line(program: str) -> Iterator[None]:
    """A block whose failure ends the process with one line on stderr: status 1 for what can't be done, 128 plus the signal's number
    for an interruption."""
    try:
        yield
    except (LaunchError, ValueError, OSError) as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):  # a terminal that is gone
            print(f"{program}: {str(error) or NOTHING_NEW}", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
