"""A start of forked processes in which none can be caught by what another one does to their parent.

As a process connects to torch's store, a thread of the store's process looks up its address, and for that moment holds a lock of
the C library. A process that is forked in this moment finds the lock taken for ever, and hangs as it connects itself: of 106
launches of four processes on a busy machine, one did. So none connects before all of the store's machine are forked.
"""

import multiprocessing
import threading

from lora_kit.system.meeting import Others

LONGER = 10  # seconds that the others of a machine wait for the one that hears machine 0, so that it is the one to say what is wrong


class Start:
    """What the forked processes of a machine share: made before the first fork. machine_rank: 0 has the store.

    limit: seconds that a process waits for the others.
    """

    def __init__(self, num_processes: int, machine_rank: int, others: Others, limit: float) -> None:
        self._here = multiprocessing.get_context("fork").Barrier(num_processes, timeout=limit)
        self._first, self._others, self._limit = machine_rank == 0, others, limit

    @property
    def waiting(self) -> int:
        """How many processes of this machine wait for the others."""
        return self._here.n_waiting

    def wait(self) -> None:
        """In each forked process: return when all are there. Raises TimeoutError where one doesn't come."""
        try:
            chosen = self._here.wait() == 0  # one of them speaks for all
            if self._first:
                if chosen:
                    self._others.tell(forked=True)
                return
            if chosen:
                self._others.hear("forked", self._limit)
            self._here.wait(self._limit + LONGER)
        except threading.BrokenBarrierError:
            raise TimeoutError(
                f"the processes of a launch were not all started within ddp_timeout {self._limit:g} s"
            ) from None
