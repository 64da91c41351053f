"""Processes that are forked one after the other, and none of which may go on before all are there."""

import multiprocessing
import socket

import pytest
from running import PATIENCE, wait_for

from lora_kit.system.forks import Start
from lora_kit.system.meeting import Others, meet
from lora_kit.system.world import free_port

CONTEXT = multiprocessing.get_context("fork")


def _go(start, path):
    start.wait()
    path.touch()


def _forked(start, path):
    process = CONTEXT.Process(target=_go, args=(start, path))
    process.start()
    return process


def _ended(*processes):
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def test_none_goes_on_before_all_are_forked(tmp_path):
    start, paths = Start(3, 0, Others(), PATIENCE), [tmp_path / f"{number}" for number in range(3)]
    early = [_forked(start, path) for path in paths[:2]]
    wait_for(lambda: start.waiting == 2)
    assert not any(path.exists() for path in paths)
    assert _ended(*early, _forked(start, paths[2])) == [0, 0, 0] and all(path.exists() for path in paths)


def test_the_other_machines_wait_for_the_first(tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        port, path = free_port(), tmp_path / "there"
        with meet("localhost", port, 1, 0, 2, PATIENCE) as alone:  # nobody to wait for
            alone.tell(forked=True)
        messages = iter([{"forked": True}])
        other = Start(1, 1, Others(heard=_after(ours, messages)), PATIENCE)
        process = _forked(other, path)
        wait_for(lambda: theirs.recv(1))  # it asks for the first one's word
        assert not path.exists()
        theirs.sendall(b".")
        assert _ended(process) == [0] and path.exists()


def _after(connection, messages):
    """The messages, after a word in the other direction and one back."""
    connection.sendall(b".")
    connection.recv(1)
    yield from messages


def test_the_first_tells_when_its_own_are_there(tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        start = Start(2, 0, Others([ours]), PATIENCE)
        processes = [_forked(start, tmp_path / f"{number}") for number in range(2)]
        assert theirs.recv(100) == b'{"forked": true}\n'
        assert _ended(*processes) == [0, 0]


def test_a_wait_ends():
    with pytest.raises(TimeoutError, match="were not all started within ddp_timeout 0.01 s"):
        Start(2, 0, Others(), 0.01).wait()
    with pytest.raises(TimeoutError, match="machine 0 has not started its processes within ddp_timeout 0 s"):
        Start(1, 1, Others(heard=({} for _ in range(10**9))), 0).wait()
    Start(1, 1, Others(heard=[{}]), PATIENCE).wait()  # the first one is gone, which others will say
