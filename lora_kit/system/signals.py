"""Ctrl-C, SIGTERM and a lost terminal while a run trains: the update ends, and what was learned is kept."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from lora_kit.system.kernel import renew_locks

ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")  # Windows has only the first two
HEARD = tuple(getattr(signal, name) for name in ENDING[:3] if hasattr(signal, name))
NOTHING_NEW = "interrupted before the first update: there is nothing new to keep"
LAST_SECONDS = 30  # that a process which loads pictures is there for the end of an update
ECHO = 1.0  # seconds: a terminal's Ctrl-C reaches a process and its launcher, which then passes it on


class Interrupted(KeyboardInterrupt):
    """A run was asked to end, by a signal: `number` of it. The text says what was kept, and how to go on."""

    def __init__(self, text: str, number: int = signal.SIGINT) -> None:
        super().__init__(text)
        self.number = number


class StopSignals:
    """Inside `with`, the first SIGINT, SIGTERM or SIGHUP after `hold` is only noted, in `number`; a second one, or one before
    `hold`, raises `Interrupted` at once.

    A signal that was ignored before, as nohup has it, stays so. The handlers that were there come back at the end. Outside the
    main thread, where Python allows none, nothing is heard.
    """

    def __init__(self) -> None:
        self.number, self.holds, self._before, self._first = 0, None, {}, 0.0

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in HEARD if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _put_back(self._before)

    def hold(self, holds: bool = True) -> None:
        """From here on the first signal waits until somebody looks at `number`; with False none waits any more.

        Raises `Interrupted` where a library has swallowed the one that came before.
        """
        if holds and self.number:
            raise Interrupted(NOTHING_NEW, self.number)
        self.holds = holds

    def _hear(self, number: int, frame: FrameType | None) -> None:
        first = not self.number
        if first:
            self.number, self._first = number, time.monotonic()
        if not self.holds if first else time.monotonic() - self._first > ECHO:
            raise Interrupted(NOTHING_NEW if self.holds is None else "ended at once", number)

    def agreed(self, accelerator: Any) -> int:
        """The signal that any process has noted, or 0: the same answer for all of them, which must all ask."""
        if accelerator.num_processes == 1:
            return self.number
        import torch

        numbers = accelerator.gather(torch.tensor([self.number], device=accelerator.device))
        return int(numbers.max())


def _put_back(handlers):
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    """A block that may set handlers of the signals that ask a process to end: those that were there come back."""
    if threading.current_thread() is not threading.main_thread():  # Python allows none there
        yield
        return
    numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        _put_back(before)


def outlive(worker: int) -> None:
    """For a process that loads pictures: a signal that its whole group gets ends it only after `LAST_SECONDS`, since the update
    that is to end may still need it. It ends before when its loader says so, and waits for no lock of a thread that it lacks."""
    renew_locks()
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))  # torch takes another status for a failure
    for number in HEARD:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: signal.alarm(LAST_SECONDS))
