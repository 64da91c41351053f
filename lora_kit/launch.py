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

# what a forked child takes over: the real stdout, modules that were set aside for the launcher's check, and whether nothing
# was computed before, as on the command line
_parent = {}
_DISCONNECTS = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "socket closed", "heartbeat")


class LaunchError(RuntimeError):
    """A launch that could not start, or a process that failed; the message says which, why and what to do."""


def available_devices():
    """(number, kind) of the accelerators here, such as (2, "cuda"); (0, "cpu") where there are none. Touches none.

    torch.accelerator.is_available() would: it starts CUDA's driver, which no process that is forked later can then use.
    """
    import torch

    device = torch.accelerator.current_accelerator(check_available=False)
    number = torch.get_device_module(device).device_count() if device else 0
    return (number, device.type) if number else (0, "cpu")


def in_process_reason(num_processes):
    """Why the launcher will run in this kernel, in one process, whatever was asked for; None where it will not."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if "google.colab" in str(shell) and available_devices()[0] < 2:
        return "Colab with fewer than two GPUs: notebook_launcher runs one process, in this kernel"
    if num_processes == 1:
        return "one process: notebook_launcher runs it in this kernel"
    return None


def launch(
    config, num_processes=None, live=None, port=None, num_machines=1, machine_rank=0, main_process_ip="127.0.0.1"
):
    """Train as `config` says on `num_processes` processes of this machine, through accelerate's notebook_launcher.

    num_processes: of THIS machine; by default one for each GPU, or two where there are none. live: draw loss and learning
    rate while it trains; by default in a notebook only. port: for the processes to meet; by default a free one.
    num_machines, machine_rank (0 is the first), main_process_ip (the first machine's): for several machines, each of which
    makes this call with its own rank and the same port, number of processes and output_dir, on a disk that they share.
    Returns the `TrainingResult` of this machine's first process. Raises LaunchError where a launch can't work, with the
    cure, and where a process failed, with the exception of the one that failed first; KeyboardInterrupt when interrupted.
    """
    from lora_kit.plots import LiveMetrics
    from lora_kit.training import METRICS, TrainingResult

    devices, kind = available_devices()
    if num_processes is None:
        num_processes = devices or 2
    _check_numbers(num_processes, num_machines, machine_rank, devices, kind)
    reason = in_process_reason(num_processes)
    if reason and num_machines > 1 and num_processes > 1:
        raise LaunchError(f"{reason}; it can't be one of {num_machines} machines")
    here = 1 if reason else num_processes
    expected = here * num_machines
    if reason and num_processes > 1:
        print(f"{reason}; num_processes {num_processes} is not used.")
    if expected > 1:
        _check_kernel(kind)
        _check_port(port, num_machines, machine_rank)
    in_kernel = "ipykernel" in sys.modules
    live = in_kernel if live is None else live
    with tempfile.TemporaryDirectory(prefix="lora_kit-") as folder:
        args = (config, folder, expected, not live and not in_kernel)
        view = LiveMetrics(Path(config.output_dir) / METRICS) if live else contextlib.nullcontext()
        with view:
            _start(args, num_processes, port or free_port(), expected, num_machines, machine_rank, main_process_ip)
        path = Path(folder, "result.json")
        if not path.exists():
            raise LaunchError("the launcher returned, but no process finished the training")
        result = TrainingResult(**json.loads(path.read_text()))
    print(
        f"{result.num_processes} process(es) trained on {result.device}: {result.updates} updates in {result.seconds:.1f} s"
    )
    return result


def _check_numbers(num_processes, num_machines, machine_rank, devices, kind):
    for name, value, low in (
        ("num_processes", num_processes, 1),
        ("num_machines", num_machines, 1),
        ("machine_rank", machine_rank, 0),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise LaunchError(f"{name} {value!r} is not a whole number of at least {low}")
    if machine_rank >= num_machines:
        raise LaunchError(
            f"machine_rank {machine_rank!r} must be less than num_machines {num_machines!r}: 0 is the first"
        )
    if devices and num_processes > devices:
        raise LaunchError(
            f"num_processes {num_processes!r} is more than the {devices} {kind} device(s) of this machine"
        )


def _check_port(port, num_machines, machine_rank):
    """LaunchError for a port that is taken, or that the machines were not told."""
    import socket

    if port is None:
        if num_machines > 1:
            raise LaunchError("port None: several machines need one that all of them are told, such as 29500")
        return
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise LaunchError(f"port {port!r} is not a port from 1 to 65535; 0 would make the launcher hang")
    if machine_rank == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                raise LaunchError(
                    f"port {port} is in use ({error.strerror}): choose another, or leave port out"
                ) from None


def command_lines(config, num_processes, num_machines=1, machine_rank=0, main_process_ip="127.0.0.1", port=29500):
    """The lines that start the same run from a shell, {"accelerate": ..., "torchrun": ...}; arguments as of `launch`.

    `num_processes` is of each machine here and in torchrun; accelerate counts all machines' together.
    """
    import shlex

    training = ["-m", "lora_kit.training", *config.to_argv()]
    total = num_processes * num_machines
    accelerate = ["accelerate", "launch", "--num_processes", total]
    torchrun = ["torchrun", "--nproc_per_node", num_processes]
    if total > 1:
        accelerate.insert(2, "--multi_gpu")  # also without GPUs: --cpu would start one process only, and say nothing
    if num_machines > 1:
        accelerate += ["--num_machines", num_machines, "--machine_rank", machine_rank]
        accelerate += ["--main_process_ip", main_process_ip, "--main_process_port", port]
        torchrun += ["--nnodes", num_machines, "--node_rank", machine_rank]
        torchrun += ["--master_addr", main_process_ip, "--master_port", port]
    else:
        accelerate += ["--main_process_port", 0] if total > 1 else []
        torchrun.insert(1, "--standalone")
    lines = {"accelerate": accelerate, "torchrun": torchrun}
    return {name: shlex.join([str(word) for word in [*line, *training]]) for name, line in lines.items()}


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
        cure = (
            "Restart the kernel and launch before any other cell touches a GPU, asks torch.cuda.is_available() or imports "
            "peft or diffusers."
        )
        if kind == "cuda" and (torch.cuda.is_initialized() or _children_lose_cuda()):
            raise LaunchError(f"CUDA is already in use in this kernel, and can't be used again in its children. {cure}")
        if "bitsandbytes" in sys.modules:
            raise LaunchError(f"bitsandbytes is imported in this kernel (peft and diffusers models do it). {cure}")
    # an Accelerator or PartialState left in the kernel would be inherited: refused, or two runs that don't know each other
    AcceleratorState._reset_state(reset_partial_state=True)


def _children_lose_cuda():
    """Whether CUDA has been started in this process, if only by a question, so that a forked child can't use it."""
    import torch

    child = os.fork()
    if child == 0:
        os._exit(torch.cuda._is_in_bad_fork())
    return os.waitpid(child, 0)[1] != 0


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


def _start(args, num_processes, port, expected, num_machines, machine_rank, main_process_ip):
    from accelerate import notebook_launcher

    config, folder = args[0], args[1]
    _parent["stdout"] = sys.stdout
    sys.stdout.flush()  # a forked child would write what is waiting a second time
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
            if num_processes == 1 and num_machines > 1:
                _start_one(args, port, num_machines, machine_rank, main_process_ip)
                return
            notebook_launcher(
                _worker,
                args,
                num_processes=num_processes,
                mixed_precision=config.mixed_precision or "no",
                use_port=str(port),
                num_nodes=num_machines,
                node_rank=machine_rank,
                master_addr=main_process_ip,
            )
        except KeyboardInterrupt:
            raise
        except Exception as error:
            if type(error).__name__ == "SignalException":
                raise KeyboardInterrupt("training was interrupted; its processes have ended") from None
            if expected == 1:
                raise
            raise LaunchError(_explain(error, folder, port)) from None


def _start_one(args, port, num_machines, machine_rank, main_process_ip):
    """One process of this machine in a world of several machines, where notebook_launcher would forget the others."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    from torch.numa.binding import AffinityMode, NumaOptions

    config = LaunchConfig(
        min_nodes=num_machines,
        max_nodes=num_machines,
        nproc_per_node=1,
        run_id="none",
        rdzv_backend="static",
        rdzv_endpoint=f"{main_process_ip}:{port}",
        rdzv_configs={"rank": machine_rank},
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
        numa_options=NumaOptions(AffinityMode.NODE),
    )
    config.numa_options = None  # None above would have torch start CUDA to ask for GPUs: see available_devices
    elastic_launch(config, _worker)(*args)


def _worker(config, folder, expected, progress):
    """What each process runs. A forked child must limit OpenMP before it is used, or its first step can hang."""
    rank = int(os.environ.get("RANK", 0))
    sys.stdout = _parent.get("stdout", sys.stdout)
    if expected > 1:
        sys.modules.update(_parent.get("modules", {}))
        import torch

        if not torch.accelerator.is_available():
            share = max((os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", expected)), 1)
            # a caller may have used OpenMP, whose threads a fork does not take along: a second one would be waited for
            threads = os.environ.get("OMP_NUM_THREADS", str(share)) if _parent.get("fresh") else "1"
            os.environ["OMP_NUM_THREADS"] = threads  # else accelerate sets it, and warns
            torch.set_num_threads(int(threads))
    try:
        from lora_kit.training import leave_process_group, prove_world, train

        result = train(config, progress=progress, on_start=lambda accelerator: prove_world(accelerator, expected))
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
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


def parse_args(argv=None):
    """(the launch's own options, a `TrainingConfig`) of a command line."""
    import argparse

    from lora_kit.config import parse_args as parse_config

    parser = argparse.ArgumentParser(
        prog="python -m lora_kit.launch",
        description="Train on several processes, of one machine or of several. All other flags are those of "
        "python -m lora_kit.training.",
        allow_abbrev=False,
    )
    parser.add_argument("--num_processes", type=int, help="Of this machine. Default: one for each GPU, or 2 without.")
    parser.add_argument("--num_machines", type=int, default=1, help="Default: 1.")
    parser.add_argument("--machine_rank", type=int, default=0, help="0 is the machine of --main_process_ip.")
    parser.add_argument("--main_process_ip", default="127.0.0.1", help="Default: 127.0.0.1.")
    parser.add_argument("--main_process_port", type=int, help="Default: a free one, on one machine.")
    parser.add_argument(
        "--print_only", action="store_true", help="Print the lines that do the same, and start nothing."
    )
    options, rest = parser.parse_known_args(argv)
    return options, parse_config(rest)


def main(argv=None):
    """The command line. The exit status is 1 with the reason where it can't be done, and 130 when interrupted."""
    options, config = parse_args(argv)
    num_processes = options.num_processes or available_devices()[0] or 2
    world = (num_processes, options.num_machines, options.machine_rank, options.main_process_ip)
    lines = command_lines(config, *world, options.main_process_port or 29500)
    print("the same with\n  " + "\n  ".join(lines.values()), flush=True)
    if options.print_only:
        return
    _parent["fresh"] = True
    try:
        result = launch(
            config,
            num_processes,
            port=options.main_process_port,
            num_machines=options.num_machines,
            machine_rank=options.machine_rank,
            main_process_ip=options.main_process_ip,
        )
    except (LaunchError, ValueError, OSError) as error:
        sys.exit(f"lora_kit.launch: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(result.lora_path)


if __name__ == "__main__":
    main()
