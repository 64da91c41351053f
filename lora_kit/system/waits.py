"""What a run waits for, and for how long: where it waits in vain, it says so, and shows where every process stands."""

import contextlib
import faulthandler
import re
import sys
from collections.abc import Callable, Iterator

LATE_PROCESS = re.compile("Timed out waiting [0-9]+ms|timeout caused pair closure|collective operation timeout")
LATE_PICTURES = "DataLoader timed out"


@contextlib.contextmanager
def bounded_waits(rank: int, num_processes: int, seconds: int) -> Iterator[Callable[[], None]]:
    """A block in which waiting `seconds` in vain raises a TimeoutError that says for what; call what it yields at each step.

    Of several processes, each that makes no step for so long shows its stacks on stderr.
    """

    def step():
        if num_processes > 1:
            faulthandler.dump_traceback_later(seconds, file=sys.__stderr__)

    step()
    try:
        yield step
    except RuntimeError as error:
        if LATE_PICTURES in str(error):
            raise TimeoutError(
                f"process {rank} waited ddp_timeout {seconds} s for pictures of a worker process: give a larger ddp_timeout, or "
                "dataloader_num_workers 0 to do without workers"
            ) from error
        if LATE_PROCESS.search(str(error)):
            raise TimeoutError(
                f"process {rank} of {num_processes} waited ddp_timeout {seconds} s for another: the stacks above show where each of "
                "them was; give a larger ddp_timeout where one only needs longer"
            ) from error
        raise
    finally:
        if num_processes > 1:
            faulthandler.cancel_dump_traceback_later()
