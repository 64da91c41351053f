"""What a signal does to a block that holds it, and to one that doesn't."""

import contextlib
import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from lora_kit.config import TrainingConfig
from lora_kit.data.prepared import PreparedPictures
from lora_kit.system import signals
from lora_kit.system.elastic import elastic_launcher
from lora_kit.system.signals import Interrupted, StopSignals
from lora_kit.training import train

ALONE = SimpleNamespace(num_processes=1)


@pytest.fixture(autouse=True)
def heard():
    """None is ignored, as SIGINT is in a test run in the background."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (*signals.HEARD, signal.SIGALRM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    with StopSignals(), pytest.raises(Interrupted, match="before the first update: there is nothing new to keep"):
        os.kill(os.getpid(), number)


def test_what_a_library_swallows_ends_the_run_all_the_same():
    with StopSignals() as stop:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher's echo
        with pytest.raises(Interrupted, match="before the first update") as error:
            stop.hold()
        assert error.value.number == signal.SIGTERM


def test_a_signal_is_heard_while_libraries_are_imported(monkeypatch):
    monkeypatch.setattr("lora_kit.training.own_accelerate_state", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt) as error:
        train(TrainingConfig(style="outlined", learning_rate=1e-3))
    assert isinstance(error.value, Interrupted)


@pytest.mark.parametrize("number", signals.HEARD)
def test_what_is_ignored_stays_so(number):
    """As nohup has it, also where torch's launcher would hear it."""
    from torch.distributed.elastic.multiprocessing import api

    signal.signal(number, signal.SIG_IGN)
    with StopSignals() as stop, elastic_launcher() as ignored:
        signals.outlive(0)
        assert signal.getsignal(number) == signal.SIG_IGN and ignored == [number]
        for heard in signals.HEARD:
            signal.signal(heard, api._terminate_process_handler)
            with contextlib.nullcontext() if heard == number else pytest.raises(api.SignalException):
                os.kill(os.getpid(), heard)
        assert stop.number == 0
    assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.parametrize("asked", [None, "7"])
def test_two_processes_have_time_for_a_checkpoint(asked, monkeypatch):
    from torch.distributed.launcher.api import LaunchConfig

    name = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    monkeypatch.delenv(name, raising=False)
    if asked:
        monkeypatch.setenv(name, asked)
    with elastic_launcher():
        assert LaunchConfig(1, 1, 1).shutdown_timeout == int(asked or 300)
    assert os.environ.get(name) == asked


def test_a_worker_waits_for_no_lock_of_a_thread_that_it_lacks(monkeypatch):
    """A kernel's stream has a lock, which another of its threads may hold as the worker is forked."""

    class Stream:
        def __init__(self):
            self._buffer_lock = threading.RLock()

        def write(self, text):
            with self._buffer_lock:
                return len(text)

        def flush(self):
            pass

    class Says(list):
        def __getitem__(self, index):
            print("a worker's", file=sys.stderr)
            return dict(input_ids=torch.tensor([0]), pixel_values=torch.zeros(3, 1, 1))

    import torch

    monkeypatch.setattr(sys, "stderr", Stream())
    held, forked = threading.Event(), threading.Event()

    def hold():
        with sys.stderr._buffer_lock:
            held.set()
            forked.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    config = TrainingConfig(style="outlined", learning_rate=1e-3, dataloader_num_workers=1, ddp_timeout=60)
    loader = PreparedPictures(Says([0]), None, 1.0).loader(config, 0)
    assert loader.timeout == 60
    try:
        assert len(list(loader)) == 1
    finally:
        forked.set()
        thread.join()


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
