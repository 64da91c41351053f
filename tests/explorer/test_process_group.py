"""A program that ends with all that it has started, whatever these processes do."""

import os
import signal
import sys

import psutil
import pytest
from waiting import wait_until

from lora_kit.explorer.process_group import ProcessGroup

# a family of four: the program, a child, a grandchild in a session of its own, and one that turned deaf to SIGTERM
FAMILY = """
import os, signal, subprocess, sys, time
deaf = "deaf" in sys.argv
if deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import os, time; print('up', os.getpid(), flush=True); time.sleep(600)"]
children = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("up", os.getpid(), flush=True)
    time.sleep(600)
if "ends" not in sys.argv:
    time.sleep(600)
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts a family and waits until all are up; what a test leaves of it is killed."""
    log = tmp_path / "log.txt"

    def start(*words):
        group = ProcessGroup([sys.executable, "-c", FAMILY, *words], log)
        wait_until(lambda: log.read_text().count("\n") == 3)
        return group

    yield start
    for line in log.read_text().splitlines():
        if lives(pid := int(line.split()[1])):
            os.kill(pid, signal.SIGKILL)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("words", [(), ("deaf",)])
def test_end_returns_when_all_are_gone(start, words):
    group = start(*words)
    pids = [process.pid for process in group.members()]
    assert len(pids) == 4 and group.pid in pids and all(map(lives, pids)) and group.poll() is None
    group.end()
    assert not any(map(lives, pids)) and group.members() == []
    assert group.poll() == (-9 if words else -15)
    group.end()  # once more


def test_what_a_program_leaves_behind_ends_too(start):
    """The child of its session; one that has left it is nobody's once the program has ended."""
    group = start("ends")
    wait_until(lambda: group.poll() is not None)
    left = [process.pid for process in group.members()]
    assert len(left) == 2 and group.poll() == 0
    group.end()
    assert not any(map(lives, left))


def test_a_program_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        ProcessGroup([str(tmp_path / "nothing")], tmp_path / "log.txt")
