"""What several test files need to run things: commands, processes, kernels, and what they leave."""

import atexit
import contextlib
import ctypes
import importlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from lora_kit.output.metrics import METRICS
from lora_kit.system.devices import available_devices
from lora_kit.system.files import file_digest
from lora_kit.system.imports import OF_EVERY_RUN

CPU_ONLY = pytest.mark.skipif(
    available_devices()[0] > 0, reason="two gloo processes need a machine without accelerator"
)


PATIENCE = (
    600  # seconds after which an event is taken for one that never comes; no test depends on how long things take
)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def wait_for(event, process=None):
    """The first true value of `event()`; AssertionError where the process that it is awaited of ends without it."""
    end = time.monotonic() + PATIENCE
    while not (value := event()):
        assert process is None or process.poll() is None or event(), (
            f"ended with {process.returncode}, without the event"
        )
        assert time.monotonic() < end, "the event never came"
        time.sleep(0.02)
    return value


def alive(number):
    """Whether a process runs; one that has ended and that nobody has asked after doesn't."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_command(command, timeout=PATIENCE, **environment):
    """A command to its end, with one thread a process: `subprocess.run`'s result. No child is left after a time-out."""
    environment = os.environ | ENVIRONMENT | environment
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    with subprocess.Popen([sys.executable, *map(str, command)], **pipes) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its workers, which have sessions of their own
            out, err = process.communicate(timeout=PATIENCE)
            raise AssertionError(f"no end after {timeout} s: {err[-2000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@contextlib.contextmanager
def full_disk(largest):
    """A block in which no file of this process can grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# Of a short run nearly all is importing. So one process imports everything, and each program is a fork of it.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["lora_kit.training", "lora_kit.launch", *OF_EVERY_RUN, "torch.distributed.launcher.api", "tqdm"]
)


def _mount(folder, size):
    """From here on `folder` is a disk of so many bytes, for this process alone; OSError where that isn't allowed."""
    libc, own_mounts, own_users, private = ctypes.CDLL(None, use_errno=True), 0x20000, 0x10000000, 0x44000
    user, group = os.getuid(), os.getgid()
    done = libc.unshare(own_mounts | own_users)
    if not done:
        for name, text in (("uid_map", f"0 {user} 1"), ("setgroups", "deny"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
        done = libc.mount(b"none", b"/", None, private, None) or libc.mount(
            b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()
        )
    if done:
        raise OSError(ctypes.get_errno(), "no disk of its own for this process")


def can_mount():
    """Whether a process may have a disk of its own here."""
    process = FORKS.Process(target=_mount, args=(tempfile.gettempdir(), 4096))
    process.start()
    process.join()
    return process.exitcode == 0


def _program(module, argv, environment, out, err, largest, disk):
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may let a command in the background ignore them
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # to be chosen anew, by this environment
    if disk:
        _mount(*disk)
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    status = None
    try:
        importlib.import_module(module).main(argv)
    except SystemExit as end:
        status = end.code
    sys.exit(status)  # only here, as a progress bar that the exception holds is closed before


class Program:
    """`python -m module *argv` without the imports, running: `pid`, `poll`, `returncode`, and `end`, its result.

    largest: bytes beyond which its files can't grow, as on a full disk. disk: (a folder, the bytes of a disk that it is for this
    program alone); the test sees it as `seen(path)`. environment: what differs from the test's.
    """

    def __init__(self, module, *argv, largest=None, disk=None, **environment):
        own = {name: os.environ.get(name) for name in ENVIRONMENT}
        os.environ |= ENVIRONMENT  # libraries read these as they are imported
        try:
            forkserver.ensure_running()
        finally:
            for name, value in own.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name, name) for name in ("out", "err")]
        environment = dict(os.environ) | ENVIRONMENT | environment
        arguments = (module, list(map(str, argv)), environment, *map(str, self._files), largest, disk)
        self._process = FORKS.Process(target=_program, args=arguments)
        self._process.start()
        self.pid = self._process.pid
        atexit.register(self._kill)  # where a test failed before its end, which would else be waited for

    def _kill(self):
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.join()

    def seen(self, path):
        """A path as the program sees it, while it runs."""
        return Path(f"/proc/{self.pid}/root{path}")

    @property
    def returncode(self):
        return self._process.exitcode

    poll = returncode.fget

    def said(self):
        """What it has written to stdout so far."""
        return self._files[0].read_text() if self._files[0].exists() else ""

    def end(self):
        """A `CompletedProcess`, when the program is done. Nothing of it is left after a time-out."""
        self._process.join(PATIENCE)
        self._kill()
        out, err = (path.read_text() if path.exists() else "" for path in self._files)
        self._folder.cleanup()
        return subprocess.CompletedProcess([], self.returncode, out, err)


def program(module, *argv, **how):
    """A `Program` to its end."""
    return Program(module, *argv, **how).end()


def fingerprint(path):
    """The digest of a LoRA's file: equal settings give the same file to the bit."""
    return file_digest(path)


def torchrun(*command):
    """The same in two processes, which meet at a port that their launcher holds from the start."""
    return run_command(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *command])


def records(folder):
    """All records of a run's metrics."""
    return [json.loads(line) for line in Path(folder, METRICS).read_text().splitlines()]


def updates(folder):
    """The records of a run's updates, without their times."""
    lines = [record for record in records(folder) if "update" in record]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def children(process):
    """Processes forked by `process`, with the same command line as itself (so not Python's own helpers)."""

    def command(number):
        try:
            return Path(f"/proc/{number}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None

    found = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return [int(one) for one in " ".join(found).split() if command(one) == command(process)]


class Kernel:
    """A fresh Jupyter kernel; `run` gives a cell's outputs."""

    def __init__(self):
        from jupyter_client.manager import KernelManager

        environment = os.environ | ENVIRONMENT | {"MPLBACKEND": "agg"}
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(env=environment)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)

    def run(self, code, meanwhile=None, timeout=PATIENCE):
        outputs, number = [], self.client.execute(code)
        if meanwhile:
            meanwhile()
        while True:
            message = self.client.get_iopub_msg(timeout=timeout)
            if message["parent_header"].get("msg_id") != number:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return outputs
            outputs.append((message["msg_type"], message["content"]))


def stdout(outputs):
    return "".join(content["text"] for kind, content in outputs if kind == "stream" and content["name"] == "stdout")


def errors(outputs):
    return [content["ename"] + ": " + content["evalue"] for kind, content in outputs if kind == "error"]
