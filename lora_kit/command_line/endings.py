"""How a command ends that can't do what it was asked for, or that is interrupted."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from lora_kit.system.kernel import LaunchError
from lora_kit.system.signals import NOTHING_NEW


@contextlib.contextmanager
def one_line(program: str) -> Iterator[None]:
    """A block that ends the process in one line on stderr: status 1 for what can't be done, 128 and the signal's number for what
    was interrupted."""
    try:
        yield
    except (LaunchError, ValueError, OSError) as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):  # a terminal that is gone
            print(f"{program}: {str(error) or NOTHING_NEW}", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
