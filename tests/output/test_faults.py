"""Kills, full disks and folders that can't be written: nothing that was whole is lost, and the error says what to do."""

import importlib.util
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import wait_for

from lora_kit.output.checkpoints import checkpoints, newest_whole, read

spec = importlib.util.spec_from_file_location("campaign", Path(__file__).parent / "faults" / "campaign.py")
campaign = importlib.util.module_from_spec(spec)
spec.loader.exec_module(campaign)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Elsewhere another test may write other encodings of the same pictures, and so put these out."""
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "own-cache"))


def test_killed_runs_go_on_to_the_same_end(tmp_path):
    """Four of the thirty kills that tests/output/faults/campaign.py makes by default."""
    records = campaign.campaign(4, tmp_path, seed=1)
    assert all(one["hit"] for one in records), records
    assert all(one["same"] and not one["broken"] and not one["processes left"] for one in records), records
    assert "4 of 4 go on" in campaign.table(records)


def limited(argv, size, **environment):
    """A command whose files can't grow beyond `size` bytes, as on a full disk."""
    return subprocess.run(
        argv,
        cwd=campaign.REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


def flags(folder, **changes):
    settings = campaign.FLAGS | {"output_dir": folder} | changes
    return [sys.executable, "-m", "lora_kit.training", *(f"--{name}={value}" for name, value in settings.items())]


def test_disk_full_while_a_checkpoint_is_written(tmp_path):
    folder = tmp_path / "run"
    subprocess.run(flags(folder, max_train_steps=3, lr_scheduler="constant", lr_warmup_steps=0), check=True)
    before = {path.name: read(path) for path in checkpoints(folder)}
    assert list(before) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    size = max(path.stat().st_size for path in (folder / "checkpoint-3").iterdir())
    more = flags(folder, lr_scheduler="constant", lr_warmup_steps=0, resume_from_checkpoint="latest")
    done = limited(more, size // 2)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "checkpoint-4 can't be written" in last and "checkpoint-3 is whole: with room, resume from it" in last
    assert "Traceback" not in done.stderr
    assert {path.name: read(path) for path in checkpoints(folder)} == before
    assert not list(folder.glob("*.part"))
    subprocess.run(more, check=True)
    assert newest_whole(folder)[1]["update"] == campaign.UPDATES
    assert [line["update"] for line in campaign.updates(folder)] == list(range(campaign.UPDATES))


def test_disk_full_while_the_cache_is_written(tmp_path):
    cache = tmp_path / "cache"
    done = limited(flags(tmp_path / "run"), 20_000, LORA_KIT_CACHE=str(cache))
    assert done.returncode == 1
    assert "can't be written" in done.stderr and str(cache) in done.stderr and "Traceback" not in done.stderr
    assert [path for path in cache.iterdir() if path.suffix == ".part"] == []


def test_disk_full_while_metrics_are_written(tmp_path):
    folder = tmp_path / "run"
    argv = flags(folder, checkpointing_steps=99)
    subprocess.run(argv, check=True)  # fills the cache
    size = (folder / "metrics.jsonl").stat().st_size
    done = limited(argv, size - 300)
    assert done.returncode == 1
    assert "metrics.jsonl" in done.stderr and "can't be written" in done.stderr and "Traceback" not in done.stderr
    assert (folder / "earlier-1" / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.parametrize("folder", ["/sys/kernel/lora_kit_run", "/proc/lora_kit_run"])
def test_an_output_folder_that_can_t_be_written(folder):
    if not Path(folder).parent.is_dir():
        pytest.skip("this system has no such folder")
    done = subprocess.run(flags(folder), cwd=campaign.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"output_dir {folder!r} can't be written" in done.stderr and "Traceback" not in done.stderr


def test_two_runs_on_one_folder(tmp_path):
    folder, updates = tmp_path / "run", 20
    first = subprocess.Popen(flags(folder, max_train_steps=updates, checkpointing_steps=50), cwd=campaign.REPOSITORY)
    try:
        wait_for(lambda: campaign.updates(folder), first)
        first.send_signal(signal.SIGSTOP)  # so that it is there however long the second takes
        assert len(campaign.updates(folder)) < updates
        second = subprocess.run(flags(folder), cwd=campaign.REPOSITORY, capture_output=True, text=True)
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0
    finally:
        first.kill()
    assert second.returncode == 1 and f"is in use by process {first.pid}" in second.stderr
    assert len(campaign.updates(folder)) == updates and not list(folder.glob("earlier-*"))
