"""Turns of the processes that train together: the first of each machine goes ahead, and all the others wait while it lives."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

POLL, LIVES, TELL = 0.05, 10, 60  # seconds between two looks, signs of life, and sentences on who is waited for


@contextlib.contextmanager
def first_of_machine(accelerator: Any, what: str, silence: float) -> Iterator[None]:
    """A block that the first process of each machine goes through before the machine's others, and that all leave together.

    However long it takes: a collective would end after ddp_timeout, so the rest look into the process group's store. what: what is
    done in the block, as a noun. silence: seconds without a sign of life after which a process is given up, with TimeoutError.
    """
    if accelerator.num_processes == 1:
        yield
        return
    from torch.distributed import distributed_c10d

    turn = _Turn(distributed_c10d._get_default_store(), accelerator, what, silence)
    first = accelerator.process_index - accelerator.local_process_index
    with turn.alive():
        try:
            if not accelerator.is_local_main_process:
                turn.wait_for(first, tells=accelerator.local_process_index == 1)
            yield
        except BaseException:
            turn.sign("failed")
            raise
        turn.sign("done")
        for other in range(accelerator.num_processes):
            turn.wait_for(other, tells=accelerator.is_local_main_process)


class _Turn:
    """One process in a turn: the signs that it gives in the store, and its looks at those of others."""

    def __init__(self, store, accelerator, what, silence):
        self.store, self.rank, self.what, self.silence = store, accelerator.process_index, what, silence
        self.number = store.add(f"{what}: turns of {self.rank}", 1)  # the same for all, who take as many

    def key(self, rank, sign):
        return f"{self.what} {self.number}: {rank} {sign}"

    def sign(self, what):
        with contextlib.suppress(RuntimeError):  # a store that is gone
            self.store.set(self.key(self.rank, what), "yes")

    @contextlib.contextmanager
    def alive(self):
        over = threading.Event()

        def lives():
            with contextlib.suppress(RuntimeError):  # a store that is gone
                while not over.wait(min(self.silence / 4, LIVES)):
                    self.store.add(self.key(self.rank, "lives"), 1)

        thread = threading.Thread(target=lives, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def wait_for(self, rank, tells):
        signs, seen = None, 0.0
        began = told = time.monotonic()
        while not self.store.check([self.key(rank, "done")]):
            if self.store.check([self.key(rank, "failed")]):
                raise ConnectionError(
                    f"{self.what}: connection closed by peer: process {rank} failed; see what it said"
                )
            now = time.monotonic()
            before, signs = signs, self.store.add(self.key(rank, "lives"), 0)
            if signs != before:
                seen = now
            elif now - seen > self.silence:
                raise TimeoutError(
                    f"{self.what}: process {rank} gave no sign of life for {self.silence:g} s; see what it said last"
                )
            if tells and now - told > TELL:
                told = now
                print(
                    f"{self.what}: process {rank} isn't done; process {self.rank} waits for it, {now - began:.0f} s so far"
                )
            time.sleep(POLL)
