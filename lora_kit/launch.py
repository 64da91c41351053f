"""Start the training loop from a notebook: on every GPU there is, else as real gloo processes on the CPU.

The work is accelerate's `notebook_launcher`. What stands here meets its traps before it starts, checks in every child that
the world is the one that was asked for, and shows the exception of the process that failed first. Sources: accelerate,
launchers.py; torch, distributed/launcher/api.py.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lora_kit.command_line.endings import one_line
from lora_kit.command_line.flags import parse_launch_args
from lora_kit.command_line.texts import launch_lines
from lora_kit.config import TrainingConfig
from lora_kit.system.checks import whole_number
from lora_kit.system.devices import available_devices
from lora_kit.system.elastic import elastic_launcher, launch_folder, nothing_printed, start_one
from lora_kit.system.forks import Start
from lora_kit.system.imports import import_early
from lora_kit.system.kernel import (
    LaunchError,
    PortTaken,
    check_kernel,
    check_port,
    in_process_reason,
    renew_locks,
    set_aside,
)
from lora_kit.system.meeting import RDZV_TIMEOUT, meet
from lora_kit.system.signals import Interrupted
from lora_kit.system.world import free_port, leave_process_group, no_launcher, prove_world
from lora_kit.training import TrainingResult, train

# what a forked child takes over: the real stdout and folder of temporary files, modules that were set aside for the
# launcher's check, whether nothing was computed before, as on the command line, and its start together with the others
_parent = {}
LATE = 30  # seconds after which a child that has done all, and yet doesn't end, shows its stacks and is ended
_DISCONNECTS = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "socket closed", "heartbeat")


def launch(
    config: TrainingConfig,
    num_processes: int | None = None,
    port: int | None = None,
    num_machines: int = 1,
    machine_rank: int = 0,
    main_process_ip: str = "127.0.0.1",
    rdzv_timeout: int = RDZV_TIMEOUT,
) -> TrainingResult:
    """Train as `config` says on `num_processes` processes of this machine, through accelerate's notebook_launcher.

    num_processes: of THIS machine; by default one for each GPU, or two where there are none.
    port: for the processes to meet; by default a free one.
    num_machines, machine_rank (0 is the first), main_process_ip (the first machine's): for several machines, each of which
    makes this call with its own rank and the same port, number of processes and output_dir, on a disk that they share.
    rdzv_timeout: seconds that a machine waits for the others, saying which are missing.

    Returns the result of this machine's first process. Raises LaunchError where a launch can't work, with the cure, and
    where a process failed, with the exception of the one that failed first; KeyboardInterrupt when interrupted.
    In a notebook `with LiveMetrics(...)` around it draws the run meanwhile.
    """
    devices, kind = available_devices()
    num_processes = num_processes if num_processes is not None else devices or 2
    for name, value, low in (
        ("num_processes", num_processes, 1),
        ("num_machines", num_machines, 1),
        ("machine_rank", machine_rank, 0),
        ("rdzv_timeout", rdzv_timeout, 1),
    ):
        whole_number(name, value, low, LaunchError)
    if machine_rank >= num_machines:
        raise LaunchError(
            f"machine_rank {machine_rank!r} must be less than num_machines {num_machines!r}: 0 is the first"
        )
    if devices and num_processes > devices:
        raise LaunchError(
            f"num_processes {num_processes!r} is more than the {devices} {kind} device(s) of this machine"
        )
    reason = in_process_reason(num_processes)
    if reason and num_machines > 1 and num_processes > 1:
        raise LaunchError(f"{reason}; it can't be one of {num_machines} machines")
    expected = (1 if reason else num_processes) * num_machines
    if reason and num_processes > 1:
        print(f"{reason}; num_processes {num_processes} is not used.")
    import_early(expected)
    if expected > 1:
        check_kernel(kind)
        check_port(port, num_machines, machine_rank)
    machines = (num_machines, machine_rank, main_process_ip, rdzv_timeout)
    meeting = meet(main_process_ip, port, num_machines, machine_rank, num_processes, rdzv_timeout)
    _parent["tempdir"] = tempfile.gettempdir()
    with meeting as others, no_launcher(), launch_folder() as folder:
        arguments = (config, folder, expected, "ipykernel" not in sys.modules)
        for tries_left in (2, 1, 0):
            _parent["start"] = Start(num_processes, machine_rank, others, config.ddp_timeout) if expected > 1 else None
            try:
                _start(arguments, num_processes, port or free_port(), *machines)
                break
            except PortTaken:  # between the choice and the start
                if port is not None or not tries_left:
                    raise
        path = folder / "result.json"
        if not path.exists():
            raise LaunchError("the launcher returned, but no process finished the training")
        result = TrainingResult(**json.loads(path.read_text()))
    print(
        f"{result.num_processes} process(es) trained on {result.device}: {result.updates} updates in {result.seconds:.1f} s"
    )
    return result


def _start(arguments, num_processes, port, num_machines, machine_rank, main_process_ip, rdzv_timeout):
    from accelerate import notebook_launcher

    config, folder, expected, _ = arguments
    _parent["stdout"] = sys.stdout
    sys.stdout.flush()  # a forked child would write what is waiting a second time
    with contextlib.ExitStack() as stack:
        # it announces "2 CUDAs" on a CPU; the true device is printed by the children's own report
        stack.enter_context(nothing_printed())
        if expected > 1:
            _parent["ignored"] = stack.enter_context(elastic_launcher())
            _parent["modules"] = stack.enter_context(set_aside("bitsandbytes"))
        try:
            if num_processes == 1 and num_machines > 1:
                start_one(_worker, arguments, main_process_ip, port, num_machines, machine_rank, rdzv_timeout)
                return
            notebook_launcher(
                _worker,
                arguments,
                num_processes=num_processes,
                mixed_precision=config.mixed_precision or "no",
                use_port=str(port),
                num_nodes=num_machines,
                node_rank=machine_rank,
                master_addr=main_process_ip,
                rdzv_conf={"timeout": rdzv_timeout},
            )
        except Exception as error:
            if type(error).__name__ == "SignalException":
                told = f"training was interrupted; its processes have ended{_kept(folder)}"
                raise Interrupted(told, error.sigval) from None
            if expected == 1:
                raise
            if Path(folder, "result.json").exists() and not list(Path(folder).glob("error-*.json")):
                ended = f"a process did not end within {LATE} s and was ended"
                print(f"warning: training was done, but {ended}", file=sys.stderr)  # stdout is silent here
                return
            kind = PortTaken if "EADDRINUSE" in str(error) else LaunchError
            raise kind(_explain(error, folder, port)) from None


def _worker(config, folder, expected, progress):
    """What each process runs. A forked child must limit OpenMP before it is used, or its first step can hang."""
    rank = int(os.environ.get("RANK", 0))
    sys.stdout, tempfile.tempdir = _parent.get("stdout", sys.stdout), _parent.get("tempdir", tempfile.tempdir)
    if expected > 1:
        sys.modules.update(_parent.get("modules", {}))
        renew_locks()
        for number in _parent.get("ignored", []):  # elastic has set handlers of its own
            signal.signal(number, signal.SIG_IGN)
        import torch

        if not torch.accelerator.is_available():
            share = max((os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", expected)), 1)
            # a caller may have used OpenMP, whose threads a fork does not take along: a second one would be waited for
            threads = os.environ.get("OMP_NUM_THREADS", str(share)) if _parent.get("fresh") else "1"
            os.environ["OMP_NUM_THREADS"] = threads  # else accelerate sets it, and warns
            torch.set_num_threads(int(threads))
    try:
        if start := _parent.get("start"):  # none where the launcher has spawned its processes
            start.wait()
        result = train(config, progress=progress, on_start=lambda accelerator: prove_world(accelerator, expected))
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            Path(folder, "result.json").write_text(json.dumps(asdict(result)))
    except BaseException as error:
        raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = (
            isinstance(error, (ValueError, OSError)) and Path(__file__).parent in raised.parents
        )  # it says what to do
        trace = "" if ours else traceback.format_exc()
        report = dict(rank=rank, time=time.time(), error=f"{type(error).__name__}: {error}", trace=trace)
        try:
            Path(folder, f"error-{rank}.json").write_text(json.dumps(report))
        except OSError:  # a full disk, of which this is what is known
            print(f"process {rank}: {report['error']}", file=sys.__stderr__)
        raise
    if expected > 1:
        faulthandler.dump_traceback_later(LATE, exit=True, file=sys.__stderr__)  # all that counts is done
        leave_process_group()


def _kept(folder):
    """What the children said of the checkpoint that they wrote."""
    errors = sorted(report["error"] for report in _reports(folder))
    return next((f": {error.partition(': ')[2]}" for error in errors if error.startswith("Interrupted: stopped")), "")


def _reports(folder):
    """What the children said of their failures, as far as the disk took it."""
    reports = []
    for path in Path(folder).glob("error-*.json"):
        with contextlib.suppress(ValueError):
            reports.append(json.loads(path.read_text()))
    return reports


def _explain(error, folder, port):
    """The first failure that is no mere loss of contact with a process that failed before, in about ten lines."""
    reports = _reports(folder)
    reports.sort(key=lambda report: (any(word in report["error"].lower() for word in _DISCONNECTS), report["time"]))
    killed = [
        f"process {failure.local_rank} ended with exit code {failure.exitcode}"
        for failure in getattr(error, "failures", {}).values()
        if failure.exitcode < 0 and not Path(folder, f"error-{failure.local_rank}.json").exists()
    ]
    killed = [line for line in killed if not line.endswith("code -15")]  # SIGTERM: the launcher ending the others
    if killed:
        return f"{'; '.join(killed)}: it was killed from outside (-9 often means out of memory)"
    if not reports and list(Path(folder).glob("error-*.json")):
        return f"a process failed, and its report could not be written to {folder}: see its message above"
    if not reports:
        hint = " The port is in use: choose another, or leave port out." if "EADDRINUSE" in str(error) else ""
        return f"the processes could not be started on port {port}: {str(error)[-400:]}{hint}"
    first = reports[0]
    tail = "\n".join(first["trace"].strip().splitlines()[-7:])
    return f"process {first['rank']} failed first: {first['error']}\n{tail}".strip()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. The exit status is 1 with the reason where it can't be done, and 130 on Ctrl-C."""
    with one_line("lora_kit.launch"):
        options, config = parse_launch_args(argv)
        num_processes = options.num_processes if options.num_processes is not None else available_devices()[0] or 2
        world = {name: getattr(options, name) for name in ("num_machines", "machine_rank", "main_process_ip")}
        whole_number("num_processes", num_processes)
        lines = launch_lines(config, num_processes, **world, port=options.main_process_port or 29500)
        print("the same with\n  " + "\n  ".join(lines.values()), flush=True)
        if options.print_only:
            return
        _parent["fresh"] = True
        result = launch(
            config, num_processes, port=options.main_process_port, rdzv_timeout=options.rdzv_timeout, **world
        )
    print(result.lora_path)


if __name__ == "__main__":
    main()
