"""Waiting for an event, and looking at processes, for the tests of the explorer's real runs."""

import os
import time

import psutil


def wait_until(event, seconds=300):
    """Return once `event` is true; the seconds are far more than it takes, so only a fault reaches them."""
    end = time.monotonic() + seconds
    while not event():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def session(number):
    """The processes of a session that have not ended."""
    alive = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return alive
