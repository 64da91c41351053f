"""Launches happen in processes of their own: this file run as a script, and a Jupyter kernel."""

import importlib
import json
import os
import shutil
import sys
import threading
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import (
    CPU_ONLY,
    PATIENCE,
    Kernel,
    alive,
    children,
    errors,
    fingerprint,
    records,
    run_command,
    stdout,
    updates,
    wait_for,
)

from lora_kit.config import TrainingConfig
from lora_kit.launch import LaunchError, _explain, _worker, in_process_reason, launch
from lora_kit.loss import micro_step_seed
from lora_kit.output.checkpoints import checkpoints
from lora_kit.output.lora_file import LORA
from lora_kit.output.metrics import METRICS
from lora_kit.schedules import applied_learning_rates
from lora_kit.steps import Steps
from lora_kit.system.checks import whole_number
from lora_kit.system.elastic import nothing_printed
from lora_kit.system.signals import Interrupted

RELAUNCHES = 10
RUN = dict(
    style="outlined", resolution=64, learning_rate=2e-3, train_batch_size=2, max_train_samples=18, seed=0,
    report_to="none", gradient_accumulation_steps=2, max_train_steps=5, checkpointing_steps=2, lr_scheduler="cosine",
    lr_warmup_steps=1,
)  # fmt: skip


def config(folder, **settings):
    return TrainingConfig(**RUN | settings, output_dir=str(folder))


# the parent


def stages(folder):
    """What happened in each launch, by name; one parent for all, as hostile as a notebook's kernel may be."""
    import bitsandbytes  # noqa: F401
    import diffusers  # noqa: F401
    import peft  # noqa: F401
    import torch
    from accelerate import Accelerator, PartialState

    import lora_kit.launch
    import lora_kit.training

    torch.set_num_threads(2)
    weight = torch.randn(2048, 2048, requires_grad=True)
    (weight @ weight).relu().sum().backward()  # starts OpenMP's threads
    PartialState()
    Accelerator(cpu=True)

    loss = lora_kit.training.diffusion_loss
    spied, failing = folder / "spied.jsonl", []

    def spy(unet, noise_scheduler, latents, hidden, made, generator):
        """In the children: who draws what, and in which precision; it fails where a stage wants it to."""
        rank = int(os.environ["RANK"])
        base = {str(one.dtype) for one in unet.parameters() if not one.requires_grad}
        lora = {str(one.dtype) for one in unet.parameters() if one.requires_grad}
        seen = dict(
            rank=rank, seed=generator.initial_seed(), latents=latents.float().sum().item(), base=sorted(base),
            lora=sorted(lora), threads=torch.get_num_threads(), output_dir=made.output_dir,
        )  # fmt: skip
        with spied.open("a") as file:
            file.write(json.dumps(seen) + "\n")
        for kind, process in failing:
            if kind == "raise" and process == rank:
                raise ValueError("broken on purpose")
            if kind == "kill" and process == rank:
                os.kill(os.getpid(), 9)
        return loss(unet, noise_scheduler, latents, hidden, made, generator)

    lora_kit.training.diffusion_loss = spy

    class Start(lora_kit.launch.Start):
        def wait(self):
            with (folder / "forked").open("a") as file:
                file.write(os.environ["RANK"])
            super().wait()
            there = len((folder / "forked").read_text())
            with (folder / "started").open("a") as file:
                file.write(f"{there % 2}{torch.distributed.is_initialized():d}")

    lora_kit.launch.Start = Start
    seen = {}

    def stage(name, made, **options):
        began = time.perf_counter()
        try:
            seen[name] = {"result": asdict(launch(made, 2, **options))}
        except Exception as error:
            seen[name] = {"error": type(error).__name__, "message": str(error)}
        seen[name] |= {"seconds": time.perf_counter() - began, "left": children(os.getpid())}

    stage("whole", config(folder / "whole"))
    resumed = folder / "resumed"
    for path in checkpoints(folder / "whole")[:1]:
        shutil.copytree(path, resumed / path.name)
    shutil.copy(folder / "whole" / METRICS, resumed)
    stage("resumed", config(resumed, resume_from_checkpoint="latest"))
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        seen["port"] = taken.getsockname()[1]
        stage("taken", config(folder / "taken"), port=seen["port"])
    stage("missing", config(folder / "missing", pretrained_model_name_or_path="./missing"))
    failing.append(("raise", 1))
    stage("raised", config(folder / "raised"))
    failing[:] = [("kill", 1)]
    stage("killed", config(folder / "killed"))
    failing.clear()
    stage("after", config(folder / "after"))
    lora_kit.training.diffusion_loss = loss
    alone = launch(config(folder / "alone", max_train_steps=2), 1)
    seen["alone"] = {"result": asdict(alone)}
    lora_kit.training.diffusion_loss = spy
    stage("after alone", config(folder / "after alone", mixed_precision="bf16", max_train_steps=2))
    seen["bitsandbytes"] = "bitsandbytes" in sys.modules
    seen["spied"] = [json.loads(line) for line in spied.read_text().splitlines()]
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """(folder, what happened) of `stages`."""
    folder = tmp_path_factory.mktemp("launch")
    done = run_command([__file__, folder], timeout=3 * PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "seen.json").read_text()) | {"stdout": done.stdout, "stderr": done.stderr}


def result(seen, name):
    assert "result" in seen[1][name], seen[1][name]
    return seen[1][name]["result"]


@CPU_ONLY
@pytest.mark.slow
def test_two_processes_are_one_world(seen):
    folder, what = seen
    found, start = result(seen, "whole"), records(folder / "whole")[0]
    assert (found["num_processes"], found["updates"]) == (2, 5)
    assert (start["num_processes"], start["updates_per_epoch"], start["steps"]["num_processes"]) == (2, 3, 2)
    assert "CPU" in start["device"]
    # on two processes: 5 batches each, 3 updates an epoch, the schedule by two a step
    made = config(folder / "whole")
    rates = [record["lr"] for record in updates(folder / "whole")]
    assert rates == applied_learning_rates(made, Steps.of(made, 18, 2)).tolist()
    assert "2 process(es) trained on" in what["stdout"] and "CUDA" not in what["stdout"]
    assert sorted((folder / "forked").read_text()) == ["0"] * 7 + ["1"] * 7  # both of each launch
    assert set((folder / "started").read_text()) == {"0"}  # both were there before one went on, and none had connected


@CPU_ONLY
@pytest.mark.slow
def test_resumed_equals_uninterrupted(seen):
    folder = seen[0]
    assert result(seen, "resumed")["updates"] == 5
    assert records(folder / "resumed")[0]["first_update"] == 2
    assert updates(folder / "resumed") == updates(folder / "whole")
    assert fingerprint(folder / "resumed" / LORA) == fingerprint(folder / "whole" / LORA)


@CPU_ONLY
@pytest.mark.slow
def test_ranks_draw_different_noise_and_pictures(seen):
    folder, what = seen
    whole = [one for one in what["spied"] if one["output_dir"] == str(folder / "whole")]
    for rank in (0, 1):
        mine = [one for one in whole if one["rank"] == rank]
        assert [one["seed"] for one in mine] == [micro_step_seed(0, rank, step) for step in range(len(mine))]
        assert len(mine) == 9  # 2 + 2 + 1 micro-steps, then 2 + 2
    assert len({one["seed"] for one in whole}) == len({one["latents"] for one in whole}) == 18


@CPU_ONLY
@pytest.mark.slow
def test_mixed_precision_reaches_the_children(seen):
    folder, what = seen
    result(seen, "after alone")
    assert records(folder / "after alone")[0]["mixed_precision"] == "bf16"
    kinds = {
        name: {(*one["base"], *one["lora"]) for one in what["spied"] if one["output_dir"] == str(folder / name)}
        for name in ("after alone", "whole")
    }
    assert kinds == {
        "after alone": {("torch.bfloat16", "torch.float32")},
        "whole": {("torch.float32", "torch.float32")},
    }


@CPU_ONLY
@pytest.mark.slow
def test_children_of_a_parent_that_computed_have_one_thread(seen):
    assert {one["threads"] for one in seen[1]["spied"]} == {1}


@CPU_ONLY
@pytest.mark.slow
def test_port_that_is_taken(seen):
    what = seen[1]["taken"]
    assert what["error"] == "PortTaken"
    assert str(seen[1]["port"]) in what["message"]
    assert "is in use" in what["message"] and "choose another, or leave port out" in what["message"]


@CPU_ONLY
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raised", "process 1 failed first: ValueError: broken on purpose"),
        ("killed", "process 1 ended with exit code -9"),
        ("missing", "failed first: ValueError: pretrained_model_name_or_path './missing' does not exist"),
    ],
)
def test_failure_names_the_process_and_why(seen, name, said):
    what = seen[1][name]
    assert what["error"] == "LaunchError"
    assert said in what["message"]
    assert (len(what["message"].splitlines()) == 1) == (
        name != "raised"
    )  # what isn't the kit's own shows where it comes from


@CPU_ONLY
@pytest.mark.slow
def test_launch_after_failures_and_after_a_run_in_the_parent(seen):
    folder, what = seen
    assert result(seen, "after")["num_processes"] == 2
    assert result(seen, "after")["loss"] == result(seen, "whole")["loss"]
    assert fingerprint(folder / "after" / LORA) == fingerprint(folder / "whole" / LORA)
    assert what["bitsandbytes"]  # set aside for the launch only
    assert result(seen, "alone")["num_processes"] == 1
    assert result(seen, "after alone")["num_processes"] == 2


@CPU_ONLY
@pytest.mark.slow
def test_no_process_is_left(seen):
    left = {name: what["left"] for name, what in seen[1].items() if isinstance(what, dict) and "left" in what}
    assert len(left) == 8
    assert set(map(len, left.values())) == {0}, left


def relaunches(folder):
    """What each of many launches came to, every other one a failure, in one parent."""
    outcomes = []
    for number in range(RELAUNCHES):
        try:
            launch(config(folder / "missing", pretrained_model_name_or_path="./missing"), 2)
        except LaunchError as error:
            outcomes.append(str(error))
        run = config(folder / f"run {number}", max_train_steps=1, lr_warmup_steps=0)
        outcomes.append(launch(run, 2).num_processes)
        outcomes.append(children(os.getpid()))
    return outcomes


@CPU_ONLY
@pytest.mark.long
def test_again_and_again_after_failures_in_the_same_kernel(tmp_path):
    done = run_command([__file__, tmp_path, "relaunches"], timeout=RELAUNCHES * PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert len(seen) == 3 * RELAUNCHES and len(set(seen[::3])) == 1 and "'./missing' does not exist" in seen[0]
    assert seen[1::3] == [2] * RELAUNCHES and seen[2::3] == [[]] * RELAUNCHES
    assert len({fingerprint(tmp_path / f"run {number}" / LORA) for number in range(RELAUNCHES)}) == 1


# what a launch leaves behind in a plain script


def surroundings(folder):
    """The handlers of signals, the temporary folder's content and the lines of another thread, after a launch that works, one
    that fails, one that is interrupted, and one of which a process doesn't end."""
    import signal
    import tempfile

    import lora_kit.launch
    import lora_kit.training

    loss, what = lora_kit.training.diffusion_loss, {}
    leave = lora_kit.launch.leave_process_group

    def never():
        if what["kind"] == "late" and os.environ["RANK"] == "1":
            threading.Event().wait()
        leave()

    lora_kit.launch.leave_process_group = never

    def spy(*arguments):
        if what["kind"] == "fails":
            raise ValueError("broken on purpose")
        if what["kind"] == "interrupted" and os.environ["RANK"] == "0":
            os.kill(os.getppid(), signal.SIGINT)
        return loss(*arguments)

    lora_kit.training.diffusion_loss = spy
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda number, frame: (_ for _ in ()).throw(KeyboardInterrupt))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]
    done = threading.Event()

    def talk():
        number = 0
        while not done.wait(0.01):
            print(f"line {number}", flush=True)
            number += 1
        print(f"{number} lines")

    talker = threading.Thread(target=talk)
    talker.start()
    seen = {}
    for kind in ("works", "fails", "interrupted", "late"):
        what["kind"] = kind
        if kind == "late":
            lora_kit.launch.LATE = 1
        temporary = folder / f"tmp {kind}"
        temporary.mkdir()
        tempfile.tempdir = str(temporary)
        try:
            launch(config(folder / kind, max_train_steps=10_000 if kind == "interrupted" else 1, lr_warmup_steps=0), 2)
            ended = "returned"
        except (LaunchError, KeyboardInterrupt) as error:
            ended = f"{type(error).__name__}: {error}"
        now = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]
        stays = [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]  # a cache
        left = children(os.getpid())
        seen[kind] = dict(
            ended=ended, same=now == before, stays=stays, tempdir=tempfile.tempdir == str(temporary), left=left
        )
    done.set()
    talker.join()
    return seen


@CPU_ONLY
@pytest.mark.slow
def test_a_launch_leaves_nothing_behind_and_swallows_no_line(tmp_path):
    done = run_command([__file__, tmp_path, "surroundings"])
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    ended = {kind: what.pop("ended") for kind, what in seen.items()}
    assert ended["works"] == "returned"
    assert ended["fails"].startswith("LaunchError: process") and "broken on purpose" in ended["fails"]
    assert ended["interrupted"].startswith("Interrupted: training was interrupted")
    assert ended["late"] == "returned"
    assert "training was done, but a process did not end within 1 s" in done.stderr
    assert "in never" in done.stderr  # its stacks
    assert set(seen) == set(ended)
    for kind, what in seen.items():
        assert what == dict(same=True, stays=[], tempdir=True, left=[]), kind
    said = done.stdout.splitlines()
    number = int(said[-1].split()[0])
    assert number > 10 and [line for line in said if line.startswith("line ")] == [
        f"line {one}" for one in range(number)
    ]
    assert "Launching training" not in done.stdout


# a kernel


KERNEL_SETUP = """
import os, warnings
import bitsandbytes, peft, diffusers, torch
from dataclasses import replace
from lora_kit import TrainingConfig
from lora_kit.launch import launch
from lora_kit.plots import LiveMetrics
config = TrainingConfig(**{settings!r})
metrics = config.output_dir + "/metrics.jsonl"
"""
LAUNCH = "with LiveMetrics(metrics):\n    result = launch(config)\nprint(result.num_processes, result.updates)"


@pytest.fixture(scope="module")
def kernel():
    one = Kernel()
    yield one
    one.client.stop_channels()
    one.manager.shutdown_kernel(now=True)


@CPU_ONLY
@pytest.mark.slow
def test_in_a_kernel(kernel, tmp_path):
    settings = RUN | {"output_dir": str(tmp_path / "a"), "max_train_steps": 3}
    assert errors(kernel.run(KERNEL_SETUP.format(settings=settings))) == []

    outputs = kernel.run(LAUNCH)
    assert errors(outputs) == []
    assert stdout(outputs).rstrip().endswith("2 3")
    assert records(tmp_path / "a")[0]["num_processes"] == 2
    pictures = [content for kind, content in outputs if kind == "update_display_data"]
    assert pictures and "image/png" in pictures[-1]["data"]
    assert [content["text"] for kind, content in outputs if kind == "stream" and content["name"] == "stderr"] == []

    forked = []

    def interrupt_when_training():
        wait_for(lambda: (tmp_path / "b" / METRICS).exists() and updates(tmp_path / "b"))
        forked.extend(children(kernel.manager.provisioner.pid))
        kernel.manager.interrupt_kernel()

    outputs = kernel.run(
        f"launch(replace(config, max_train_steps=10000, output_dir={str(tmp_path / 'b')!r}))", interrupt_when_training
    )
    (said,) = errors(outputs)
    update = len(updates(tmp_path / "b"))
    assert said == (
        f"Interrupted: training was interrupted; its processes have ended: stopped after {update} of 10000 updates; "
        f"checkpoint-{update} is written: --resume_from_checkpoint latest continues from there"
    )
    assert len(forked) == 2
    assert children(kernel.manager.provisioner.pid) == []
    assert [number for number in forked if alive(number)] == []

    # What is printed waits, and is there when the launcher forks.
    kernel.run("import sys; sys.stdout.flush_interval = 30")
    again = stdout(kernel.run(f"print('before')\n{LAUNCH}"))  # and it launches again, and says nothing twice
    assert again.count("before") == 1 and again.rstrip().endswith("2 3")


@CPU_ONLY
@pytest.mark.slow
def test_variables_that_an_earlier_cell_left_are_no_launcher(tmp_path):
    """A world of four that nobody else joins would be waited for; one of one would leave its process group in the kernel."""
    one = Kernel()
    settings = RUN | {"output_dir": str(tmp_path / "a"), "max_train_steps": 2}
    try:
        assert errors(one.run(KERNEL_SETUP.format(settings=settings))) == []
        left = dict(RANK="0", WORLD_SIZE="4", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
        assert errors(one.run(f"os.environ |= {left}")) == []
        for call, number in (
            ("lora_kit.training.train(config, progress=False)", 1), ("launch(config, 1)", 1), ("launch(config, 2)", 2),
        ):  # fmt: skip
            outputs = one.run(f"import lora_kit.training\nprint({call}.num_processes)\nprint(os.environ['WORLD_SIZE'])")
            said = stdout(outputs)
            assert errors(outputs) == [] and said.split()[-2:] == [str(number), "4"]
            assert said.count("RANK '0', WORLD_SIZE '4', LOCAL_RANK '0'") == said.count("set aside") == 1
    finally:
        one.client.stop_channels()
        one.manager.shutdown_kernel(now=True)


# without any process


@pytest.mark.parametrize("num_processes", [0, -1, 2.0, "2", True])
def test_num_processes_must_be_a_count(num_processes, tmp_path):
    with pytest.raises(LaunchError, match=rf"num_processes {num_processes!r} is not a whole number"):
        launch(config(tmp_path), num_processes)


def test_more_processes_than_devices(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_kit.launch.available_devices", lambda: (2, "cuda"))
    with pytest.raises(LaunchError, match=r"num_processes 3 is more than the 2 cuda device\(s\)"):
        launch(config(tmp_path), 3)


def test_kernel_that_can_no_longer_launch_on_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_kit.launch.available_devices", lambda: (2, "cuda"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)
    with pytest.raises(LaunchError, match="bitsandbytes is imported in this kernel .* Restart the kernel"):
        launch(config(tmp_path), 2)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    with pytest.raises(LaunchError, match="CUDA is already in use .* Restart the kernel"):
        launch(config(tmp_path), 2)


def test_one_process_runs_here_and_its_errors_are_its_own(tmp_path):
    assert "runs it in this kernel" in in_process_reason(1)
    assert in_process_reason(2) is None
    with pytest.raises(ValueError, match="'./missing' does not exist"):
        launch(config(tmp_path, pretrained_model_name_or_path="./missing"), 1)


@CPU_ONLY
def test_colab_s_one_process_is_said_aloud(tmp_path, monkeypatch, capsys):
    class Shell:
        def __str__(self):
            return "<google.colab._shell.Shell object>"

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=Shell))
    assert launch(config(tmp_path, max_train_steps=1, lr_warmup_steps=0), 2).num_processes == 1
    said = capsys.readouterr().out
    assert "Colab with fewer than two GPUs: notebook_launcher runs one process" in said
    assert "num_processes 2 is not used" in said
    with pytest.raises(LaunchError, match="it can't be one of 2 machines"):
        launch(config(tmp_path), 2, num_machines=2, port=29500)


def test_first_failure_that_is_no_disconnect(tmp_path):
    def report(rank, when, error):
        text = json.dumps(dict(rank=rank, time=when, error=error, trace=f"trace of {rank}"))
        (tmp_path / f"error-{rank}.json").write_text(text)

    report(0, 1.0, "RuntimeError: Connection closed by peer [127.0.0.1]:1234")
    report(2, 3.0, "ValueError: later")
    report(1, 2.0, "ValueError: first")
    assert _explain(RuntimeError(), tmp_path, 1) == "process 1 failed first: ValueError: first\ntrace of 1"
    for rank in (1, 2):
        (tmp_path / f"error-{rank}.json").unlink()
    assert "process 0 failed first" in _explain(RuntimeError(), tmp_path, 1)


@pytest.mark.parametrize(
    ("error", "lines"), [(None, 1), (ValueError("no such"), 8), (OSError("full"), 8), (RuntimeError("odd"), 8)]
)
def test_where_it_failed_is_shown_only_of_what_does_not_explain_itself(error, lines, monkeypatch, tmp_path):
    """None: the kit's own error, which it raises itself."""

    def fails(*arguments, **options):
        if error:
            raise error
        whole_number("rank", 0)

    monkeypatch.setattr("lora_kit.launch.train", fails)
    monkeypatch.setattr("lora_kit.launch._parent", {})
    with pytest.raises(Exception) as raised:
        _worker(config(tmp_path), tmp_path, 1, False)
    said = _explain(raised.value, tmp_path, 1).splitlines()
    assert said[0] == f"process 0 failed first: {raised.type.__name__}: {raised.value}" and len(said) == lines


def test_another_thread_may_still_print_when_the_block_ends(capsys):
    """`print` holds no reference to the stream that it writes to, and would write into freed memory."""
    with nothing_printed():
        print("not this")
        stream = weakref.ref(sys.stdout)
        thread = threading.Thread(target=print, args=("this",))
        thread.start()
        thread.join()
    assert capsys.readouterr().out == "this\n" and stream() is not None


@pytest.mark.parametrize(("program", "name"), [("launch", "launch"), ("training", "train")])
@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted before the first update: there is nothing new to keep"),
        (Interrupted("stopped", 1), 129, "stopped"),
        (TimeoutError("waited"), "waited", ""),
    ],
)
def test_an_end_is_said_in_one_line(program, name, error, status, said, monkeypatch, capsys, tmp_path):
    def ends(*arguments, **options):
        raise error

    monkeypatch.setattr(f"lora_kit.{program}.{name}", ends)
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"lora_kit.{program}").main(
            ["--style=outlined", "--learning_rate=1e-3", f"--output_dir={tmp_path}"]
        )
    mine = f"lora_kit.{program}: "
    assert end.value.code == (mine + status if isinstance(status, str) else status)
    assert capsys.readouterr().err == (f"{mine}{said}\n" if said else "")


if __name__ == "__main__":  # the parent of `stages`, or of what is named
    found = globals()[sys.argv[2] if sys.argv[2:] else "stages"](Path(sys.argv[1]))
    Path(sys.argv[1], "seen.json").write_text(json.dumps(found))
