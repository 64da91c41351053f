"""Start the training loop from a notebook: on every GPU there is, else as real gloo processes on the CPU.

The work is accelerate's `notebook_launcher`. What stands here meets its traps before it starts, checks in every child that
the world is the one that was asked for, and shows the exception of the process that failed first. Sources: accelerate,
launchers.py; torch, distributed/launcher/api.py.
"""

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path

_parent = {}  # what a forked child takes over: the real stdout, and modules that were set aside for the launcher's check
_DISCONNECTS = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "socket closed", "heartbeat")


class LaunchError(RuntimeError):
    """A launch that could not start, or a process that failed; the message says which, why and what to do."""


def available_devices():
    """(number, kind) of the accelerators here, such as (2, "cuda"); (0, "cpu") where there are none. Touches none."""
    import torch

    if not torch.accelerator.is_available():
        return 0, "cpu"
    return torch.accelerator.device_count(), torch.accelerator.current_accelerator(check_available=False).type


def in_process_reason(num_processes):
    """Why the launcher will run in this kernel, in one process, whatever was asked for; None where it will not."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if "google.colab" in str(shell) and available_devices()[0] < 2:
        return "Colab with fewer than two GPUs: notebook_launcher runs one process, in this kernel"
    if num_processes == 1:
        return "one process: notebook_launcher runs it in this kernel"
    return None


def launch(config, num_processes=None, live=None, port=None):
    """Train as `config` says on `num_processes` processes of this machine, through accelerate's notebook_launcher.

    num_processes: by default one for each GPU, or two where there are none. live: draw loss and learning rate while it
    trains; by default in a notebook only. port: for the processes to meet; by default a free one.
    Returns the `TrainingResult` of the main process. Raises LaunchError where a launch can't work, with the cure, and
    where a process failed, with the exception of the one that failed first; KeyboardInterrupt when interrupted.
    """
    from lora_kit.plots import LiveMetrics
    from lora_kit.training import METRICS, TrainingResult

    devices, kind = available_devices()
    if num_processes is None:
        num_processes = devices or 2
    if not isinstance(num_processes, int) or isinstance(num_processes, bool) or num_processes < 1:
        raise LaunchError(f"num_processes {num_processes!r} is not a whole number of at least 1")
    if devices and num_processes > devices:
        raise LaunchError(
            f"num_processes {num_processes!r} is more than the {devices} {kind} device(s) of this machine"
        )
    reason = in_process_reason(num_processes)
    expected = 1 if reason else num_processes
    if reason and num_processes > 1:
        print(f"{reason}; num_processes {num_processes} is not used.")
    if expected > 1:
        _check_kernel(kind)
    in_kernel = "ipykernel" in sys.modules
    live = in_kernel if live is None else live
    with tempfile.TemporaryDirectory(prefix="lora_kit-") as folder:
        args = (config, folder, expected, not live and not in_kernel)
        view = LiveMetrics(Path(config.output_dir) / METRICS) if live else contextlib.nullcontext()
        with view:
            _start(args, num_processes, port or free_port(), expected)
        path = Path(folder, "result.json")
        if not path.exists():
            raise LaunchError("the launcher returned, but no process finished the training")
        result = TrainingResult(**json.loads(path.read_text()))
    print(
        f"{result.num_processes} process(es) trained on {result.device}: {result.updates} updates in {result.seconds:.1f} s"
    )
    return result


def free_port():
    """A TCP port of 127.0.0.1 that is free now. Port "0" would make the launcher hang."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _check_kernel(kind):
    """Mend what would make a launch of several processes fail or run apart; LaunchError for what only a restart mends."""
    import torch
    from accelerate.state import AcceleratorState

    if kind != "cpu":
        cure = "Restart the kernel and launch before any other cell touches a GPU or imports peft or diffusers models."
        if kind == "cuda" and torch.cuda.is_initialized():
            raise LaunchError(f"CUDA is already in use in this kernel, and can't be used again in its children. {cure}")
        if "bitsandbytes" in sys.modules:
            raise LaunchError(f"bitsandbytes is imported in this kernel (peft and diffusers models do it). {cure}")
    # an Accelerator or PartialState left in the kernel would be inherited: refused, or two runs that don't know each other
    AcceleratorState._reset_state(reset_partial_state=True)


@contextlib.contextmanager
def _set_aside(prefix):
    """Take the modules of a package out of sys.modules for a while; `_worker` puts them back in the child.

    Only used on machines without an accelerator, where importing bitsandbytes has initialised nothing that a fork breaks.
    """
    aside = {name: one for name, one in sys.modules.items() if name == prefix or name.startswith(prefix + ".")}
    _parent["modules"] = aside
    for name in aside:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update(aside)


def _start(args, num_processes, port, expected):
    from accelerate import notebook_launcher

    config, folder = args[0], args[1]
    _parent["stdout"] = sys.stdout
    # 25 lines about the process that failed last, and one for each that is then ended; ours names the first
    loggers = [logging.getLogger(f"torch.{name}") for name in ("distributed.elastic", "multiprocessing.spawn")]
    with contextlib.ExitStack() as stack:
        # it announces "2 CUDAs" on a CPU; the true device is printed by the children's own report
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if expected > 1:
            stack.enter_context(_set_aside("bitsandbytes"))
            for logger in loggers:
                stack.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.CRITICAL)
        try:
            notebook_launcher(
                _worker,
                args,
                num_processes=num_processes,
                mixed_precision=config.mixed_precision or "no",
                use_port=str(port),
            )
        except KeyboardInterrupt:
            raise
        except Exception as error:
            if type(error).__name__ == "SignalException":
                raise KeyboardInterrupt("training was interrupted; its processes have ended") from None
            if expected == 1:
                raise
            raise LaunchError(_explain(error, folder, port)) from None


def _worker(config, folder, expected, progress):
    """What each process runs. A forked child must limit OpenMP before it is used, or its first step can hang."""
    rank = int(os.environ.get("RANK", 0))
    sys.stdout = _parent.get("stdout", sys.stdout)
    if expected > 1:
        sys.modules.update(_parent.get("modules", {}))
        import torch

        if not torch.accelerator.is_available():
            threads = max((os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", expected)), 1)
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else accelerate sets it, and warns
            torch.set_num_threads(threads)
    try:
        from lora_kit.training import leave_process_group, train

        def check_world(accelerator):
            if accelerator.num_processes != expected:
                raise LaunchError(f"asked for {expected} processes, but accelerate sees {accelerator.num_processes}")

        result = train(config, progress=progress, on_start=check_world)
        if rank == 0:
            Path(folder, "result.json").write_text(json.dumps(asdict(result)))
    except BaseException as error:
        report = dict(
            rank=rank, time=time.time(), error=f"{type(error).__name__}: {error}", trace=traceback.format_exc()
        )
        Path(folder, f"error-{rank}.json").write_text(json.dumps(report))
        raise
    if expected > 1:
        leave_process_group()


def _explain(error, folder, port):
    """The first failure that is no mere loss of contact with a process that failed before, in about ten lines."""
    reports = [json.loads(path.read_text()) for path in Path(folder).glob("error-*.json")]
    reports.sort(key=lambda report: (any(word in report["error"].lower() for word in _DISCONNECTS), report["time"]))
    killed = [
        f"process {failure.local_rank} ended with exit code {failure.exitcode}"
        for failure in getattr(error, "failures", {}).values()
        if failure.exitcode < 0 and not Path(folder, f"error-{failure.local_rank}.json").exists()
    ]
    killed = [line for line in killed if not line.endswith("code -15")]  # SIGTERM: the launcher ending the others
    if killed:
        return f"{'; '.join(killed)}: it was killed from outside (-9 is often: out of memory)"
    if not reports:
        hint = " The port is in use: choose another, or leave port out." if "EADDRINUSE" in str(error) else ""
        return f"the processes could not be started on port {port}: {str(error)[-400:]}{hint}"
    first = reports[0]
    tail = "\n".join(first["trace"].strip().splitlines()[-7:])
    return f"process {first['rank']} failed first: {first['error']}\n{tail}"
