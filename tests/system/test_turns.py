"""The first process of each machine goes ahead; the others wait as long as it lives, and no longer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from running import wait_for
from torch.distributed import HashStore, distributed_c10d

from lora_kit.system import turns
from lora_kit.system.turns import first_of_machine

SILENCE = 0.4  # seconds
PER_MACHINE = 2


@pytest.fixture
def store(monkeypatch):
    store = HashStore()
    monkeypatch.setattr(distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(turns, "POLL", 0.01)
    return store


def process(rank, total):
    """What an Accelerator says of itself."""
    local = rank % PER_MACHINE
    return SimpleNamespace(
        num_processes=total, process_index=rank, local_process_index=local, is_local_main_process=local == 0
    )


def signs_of_life(store, rank):
    return store.add(f"reading 1: {rank} lives", 0)


def test_who_waits_does_so_for_as_long_as_the_first_lives(store, monkeypatch, capsys):
    """Process 0 is ten signs of life in the block, which is more than twice the time of silence; machine 1 has no such work."""
    monkeypatch.setattr(turns, "TELL", 0)
    order = []

    def run(rank):
        with first_of_machine(process(rank, 4), "reading", SILENCE):
            if rank == 0:
                wait_for(lambda: signs_of_life(store, 0) >= 10 and len(order) == 2)
            order.append(rank)
        order.append(f"{rank} goes on")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert order[:4] == [2, 3, 0, 1] and sorted(order[4:]) == [f"{rank} goes on" for rank in range(4)]
    assert "reading: process 0 isn't done; process 1 waits for it, 0 s so far\n" in capsys.readouterr().out


def test_a_second_turn_is_another(store):
    order = []

    def run(rank):
        for number in range(2):
            with first_of_machine(process(rank, 2), "reading", SILENCE):
                order.append((number, rank))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    assert order == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(("rank", "other"), [(1, 0), (0, 1)])  # neither the first of its machine nor the other is there
def test_who_is_dead_is_given_up(rank, other, store):
    threads = threading.active_count()
    with pytest.raises(TimeoutError, match=f"reading: process {other} gave no sign of life for 0.4 s"):
        with first_of_machine(process(rank, 2), "reading", SILENCE):
            pass
    assert threading.active_count() == threads


def test_who_fails_is_not_waited_for(store):
    """Of four on two machines: process 0 fails, and so all the others end at once."""

    def run(rank):
        with first_of_machine(process(rank, 4), "reading", 600):
            if rank == 0:
                raise ValueError("broken on purpose")

    with ThreadPoolExecutor(4) as pool:
        failures = [future.exception() for future in [pool.submit(run, rank) for rank in range(4)]]
    assert str(failures[0]) == "broken on purpose"
    assert all(isinstance(failure, ConnectionError) for failure in failures[1:])
    assert str(failures[1]) == "reading: connection closed by peer: process 0 failed; see what it said"


def test_one_process_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(distributed_c10d, "_get_default_store", lambda: pytest.fail("there is no store"))
    with first_of_machine(process(0, 1), "reading", SILENCE):
        pass
