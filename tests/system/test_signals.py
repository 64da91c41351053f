"""What a signal does to a block that holds it, and to one that doesn't."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from lora_kit.system import signals
from lora_kit.system.signals import Interrupted, StopSignals

ALONE = SimpleNamespace(num_processes=1)


@pytest.mark.parametrize("number", signals.HEARD)
def test_the_first_is_noted_and_the_second_ends_at_once(number, monkeypatch):
    before = [signal.getsignal(one) for one in signals.HEARD]
    with StopSignals() as stop:
        stop.hold()
        assert stop.agreed(ALONE) == 0
        os.kill(os.getpid(), number)
        assert stop.agreed(ALONE) == number
        os.kill(os.getpid(), number)  # the launcher's echo
        monkeypatch.setattr(signals, "ECHO", -1.0)
        with pytest.raises(Interrupted, match="ended at once") as error:
            os.kill(os.getpid(), number)
        assert error.value.number == number
    assert [signal.getsignal(one) for one in signals.HEARD] == before


def test_what_is_let_go_ends_at_once():
    with StopSignals() as stop:
        stop.hold()
        stop.hold(False)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", signals.HEARD)
def test_before_anything_is_worth_keeping_the_first_ends_at_once(number):
    with StopSignals(), pytest.raises(Interrupted):
        os.kill(os.getpid(), number)


def test_another_thread_hears_nothing():
    before = signal.getsignal(signal.SIGTERM)

    def look():
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen = []
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


def test_all_processes_agree():
    class Several:
        num_processes, device = 2, "cpu"

        def gather(self, tensor):
            import torch

            return torch.cat([tensor, torch.tensor([signal.SIGTERM])])

    assert StopSignals().agreed(Several()) == signal.SIGTERM
