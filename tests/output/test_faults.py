"""Kills, full disks and folders that can't be written: nothing that was whole is lost, and the error says what to do."""

import contextlib
import importlib.util
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import Program, can_mount, fingerprint, program, wait_for

from lora_kit.config import TrainingConfig
from lora_kit.output.checkpoints import checkpoints, newest_whole, read, write_checkpoint
from lora_kit.output.lora_file import LORA
from lora_kit.system.signals import Interrupted

spec = importlib.util.spec_from_file_location("campaign", Path(__file__).parents[1] / "campaigns" / "signals.py")
campaign = importlib.util.module_from_spec(spec)
spec.loader.exec_module(campaign)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Elsewhere another test may write other encodings of the same pictures, and so put these out."""
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "own-cache"))


def test_a_killed_run_resumes_to_the_same_end(tmp_path):
    """The first of the sixty signals that tests/campaigns/signals.py sends by default: SIGKILL, at any time."""
    records = campaign.campaign(1, tmp_path, seed=1)
    assert all(one["hit"] and one["signal"] == "SIGKILL" for one in records), records
    assert all(one["same"] and not one["broken"] and not one["processes left"] for one in records), records
    assert "1 of 1 resume" in campaign.table(records)


def run(folder, largest=None, **changes):
    """A run of the campaign, with other settings; largest: the bytes that fit into a file of this full disk."""
    return program("lora_kit.training", *flags(folder, changes), largest=largest)


def flags(folder, changes):
    return [f"--{name}={value}" for name, value in (campaign.FLAGS | {"output_dir": folder} | changes).items()]


def test_disk_full_while_a_checkpoint_is_written(tmp_path):
    folder, constant = tmp_path / "run", dict(lr_scheduler="constant", lr_warmup_steps=0)
    assert run(folder, max_train_steps=3, **constant).returncode == 0
    before = {path.name: read(path) for path in checkpoints(folder)}
    assert list(before) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    size = max(path.stat().st_size for path in (folder / "checkpoint-3").iterdir())
    done = run(folder, size // 2, **constant, resume_from_checkpoint="latest")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "checkpoint-4 can't be written" in last and "checkpoint-3 is whole: make room, then resume from it" in last
    assert "Traceback" not in done.stderr
    assert {path.name: read(path) for path in checkpoints(folder)} == before
    assert not list(folder.glob("*.part"))
    assert run(folder, **constant, resume_from_checkpoint="latest").returncode == 0
    assert newest_whole(folder)[1]["update"] == campaign.UPDATES
    assert [line["update"] for line in campaign.updates(folder)] == list(range(campaign.UPDATES))


def test_disk_full_while_the_cache_is_written(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("LORA_KIT_CACHE", str(cache))
    done = run(tmp_path / "run", 20_000)
    assert done.returncode == 1
    assert "can't be written" in done.stderr and str(cache) in done.stderr and "Traceback" not in done.stderr
    assert [path for path in cache.iterdir() if path.suffix == ".part"] == []


def test_disk_full_while_metrics_are_written(tmp_path):
    folder = tmp_path / "run"
    assert run(folder, checkpointing_steps=99).returncode == 0  # fills the cache
    size = (folder / "metrics.jsonl").stat().st_size
    done = run(folder, size - 300, checkpointing_steps=99)
    assert done.returncode == 1
    assert "metrics.jsonl" in done.stderr and "can't be written" in done.stderr and "Traceback" not in done.stderr
    assert (folder / "earlier-1" / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.parametrize("every", [99_999, 1])
def test_a_disk_that_is_full_in_the_middle_of_a_run(every, tmp_path):
    """It ends with one sentence; what it has learned is on another disk, and a checkpoint is whole if there was one."""
    if not can_mount():
        pytest.skip("no disk of its own for a process here")
    folder = tmp_path / "disk" / "run"
    folder.parent.mkdir()
    endless = dict(checkpointing_steps=every, max_train_steps=99_999, lr_scheduler="constant", lr_warmup_steps=0)
    disk, elsewhere = (str(folder.parent), 2**24), tmp_path / "elsewhere"
    elsewhere.mkdir()
    started = Program("lora_kit.training", *flags(folder, endless), disk=disk, TMPDIR=str(elsewhere))
    wait_for(lambda: len(campaign.updates(started.seen(folder))) > 2, started)
    with contextlib.suppress(OSError), open(started.seen(folder.parent) / "somebody's", "wb", 0) as file:
        while file.write(bytes(1024)):
            pass
    done = started.end()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "can't be written" in last and ("No space left on device" in last or "(0.0 MB were free)" in last), last
    updates, kept = re.search("what ([0-9]+) updates learned is in (.*?);", last).groups()
    assert ("there is no checkpoint" if every > 1 else "is whole: make room, then resume from it") in last
    if kept != str(folder / LORA):  # where a half-written checkpoint left room for it; that disk is gone now
        assert Path(kept).parents[1] == elsewhere and os.listdir(Path(kept).parent) == [LORA]
        shorter = dict(max_train_steps=updates, checkpointing_steps=99_999)
        assert run(tmp_path / "whole", **endless | shorter).returncode == 0
        assert fingerprint(kept) == fingerprint(tmp_path / "whole" / LORA)
    assert every == 1 or kept != str(folder / LORA)


def test_a_full_disk_that_takes_no_report_of_two_processes_either(tmp_path):
    """Temporary files are on it too: one process keeps what was learned, once, and says where."""
    if not can_mount():
        pytest.skip("no disk of its own for a process here")
    disk, home = tmp_path / "disk", tmp_path / "home"
    for path in (disk, home):
        path.mkdir()
    endless = dict(checkpointing_steps=1, max_train_steps=99_999, lr_scheduler="constant", lr_warmup_steps=0)
    started = Program(
        "lora_kit.launch", "--num_processes", 2, *flags(disk / "run", endless),
        disk=(str(disk), 2**24), TMPDIR=str(disk), HOME=str(home),
    )  # fmt: skip
    wait_for(lambda: len(campaign.updates(started.seen(disk / "run"))) > 2, started)
    with contextlib.suppress(OSError), open(started.seen(disk) / "somebody's", "wb", 0) as file:
        while file.write(bytes(1024)):
            pass
    done = started.end()
    assert done.returncode == 1 and "JSONDecodeError" not in done.stderr
    (kept,) = set(re.findall("what [0-9]+ updates learned is in (.*?);", done.stderr))
    assert kept in (str(disk / "run" / LORA), *map(str, home.glob(f"lora_kit-rescued-*/{LORA}")))
    assert len(list(home.glob("lora_kit-rescued-*"))) <= 1


@pytest.mark.parametrize("folder", ["/sys/kernel/lora_kit_run", "/proc/lora_kit_run"])
def test_an_output_folder_that_can_t_be_written(folder):
    if not Path(folder).parent.is_dir():
        pytest.skip("this system has no such folder")
    done = run(folder)
    assert done.returncode == 1
    assert f"output_dir {folder!r} can't be written" in done.stderr and "Traceback" not in done.stderr


def test_two_runs_on_one_folder(tmp_path):
    folder, endless = tmp_path / "run", dict(checkpointing_steps=20_000, max_train_steps=10_000)
    first = Program("lora_kit.training", *flags(folder, endless))
    wait_for(lambda: campaign.updates(folder), first)
    second = run(folder)
    os.kill(first.pid, signal.SIGTERM)
    assert first.end().returncode == 128 + signal.SIGTERM
    assert second.returncode == 1 and f"is in use by process {first.pid}" in second.stderr
    (kept,) = checkpoints(folder)
    assert len(campaign.updates(folder)) == read(kept)["update"] and not list(folder.glob("earlier-*"))


def test_a_checkpoint_that_a_second_signal_ends_leaves_no_part(tmp_path):
    def save_state(folder):
        Path(folder).mkdir()
        raise Interrupted("ended at once")

    accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, save_state=save_state)
    with pytest.raises(Interrupted):
        write_checkpoint(accelerator, tmp_path, TrainingConfig(style="outlined", learning_rate=1e-3), 1, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("processes", "number", "everyone"),
    [(1, signal.SIGINT, False), (1, signal.SIGTERM, True), (2, signal.SIGINT, True), (2, signal.SIGHUP, False)],
)
def test_a_run_that_is_asked_to_end_keeps_what_it_has_learned(processes, number, everyone, tmp_path):
    """With a checkpoint, and the sentence that says how to resume. Everyone: the process that loads pictures too."""
    folder, endless = tmp_path / "run", dict(checkpointing_steps=20_000, max_train_steps=10_000)
    endless |= dict(dataloader_num_workers=int(everyone and processes == 1))
    program, more = ("lora_kit.training", []) if processes == 1 else ("lora_kit.launch", ["--num_processes", 2])
    asked = Program(program, *more, *flags(folder, endless))
    wait_for(lambda: campaign.updates(folder), asked)
    (os.killpg if everyone else os.kill)(asked.pid, number)
    done = asked.end()
    assert done.returncode == 128 + number, done.stderr[-2000:]
    (kept,) = checkpoints(folder)
    update = read(kept)["update"]
    assert f"stopped after {update} of 10000 updates; {kept.name} is written" in done.stderr
    assert "Traceback" not in done.stderr and not (folder / "run.lock").exists()
    assert len(campaign.updates(folder)) == update
    again = flags(folder, dict(max_train_steps=update + 2, resume_from_checkpoint="latest"))
    done = Program(program, *more, *again).end()
    assert done.returncode == 0 and len(campaign.updates(folder)) == update + 2, done.stderr[-2000:]
