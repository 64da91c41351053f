"""A run's folder: one run at a time, and nothing of an earlier run, or of somebody else, is lost."""

import errno
import fcntl
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
from running import full_disk

from lora_kit.config import TrainingConfig
from lora_kit.output.folder import LOCK, OutputFolder
from lora_kit.output.lora_file import LORA
from lora_kit.output.metrics import METRICS, read_metrics
from lora_kit.steps import Steps

CONFIG = TrainingConfig(style="outlined", learning_rate=1e-3, hub_token="hf_secret", report_to="none")
STEPS = Steps(num_examples=8, train_batch_size=2, max_train_steps=4)


@pytest.fixture
def begin():
    import torch

    accelerator = SimpleNamespace(num_processes=1, device=torch.device("cpu"), mixed_precision="no")

    def begin(output, first_update=0, resumed=False):
        resume_from = output.path / f"checkpoint-{first_update}" if resumed else None
        output.begin(first_update, resume_from, CONFIG, STEPS, accelerator, 3, {"ACCELERATE_USE_CPU": "true"})

    return begin


def test_a_second_run_in_the_same_process_is_refused(tmp_path):
    with OutputFolder(str(tmp_path / "run")):
        with pytest.raises(ValueError, match="is in use by process [0-9]+ on .*: choose another output_dir"):
            OutputFolder(str(tmp_path / "run")).__enter__()
    assert not (tmp_path / "run").exists()
    with OutputFolder(str(tmp_path / "run")):
        assert (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize("stale", [False, True], ids=["empty", "stale"])
@pytest.mark.parametrize("answer", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "older filelock"])
def test_a_disk_without_file_locks_is_written_all_the_same(answer, stale, tmp_path, monkeypatch, capsys):
    """By one run after the other, also where a run that was killed left its file there; and no file is added."""

    def flock(number, how):
        raise OSError(getattr(errno, answer), "no locks")

    def acquire(self):
        Path(self.lock_file).touch()
        raise NotImplementedError("FileSystem does not appear to support flock")

    if answer == "older filelock":
        monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    else:
        monkeypatch.setattr(fcntl, "flock", flock)
    if stale:
        (tmp_path / LOCK).write_text("process 1 on another machine")
    before = list(tmp_path.iterdir())
    for folder in (tmp_path, tmp_path, tmp_path / "run"):
        with OutputFolder(str(folder)) as output:
            assert output.lock is None and "no file locks on the disk" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == before


def test_another_error_of_the_lock_is_an_error_that_leaves_nothing(tmp_path, monkeypatch):
    def flock(number, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match="can't be written: OSError Input/output error"):
        OutputFolder(str(tmp_path / "run")).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_a_full_disk_doesn_t_take_is_let_go(tmp_path):
    with full_disk(0), pytest.raises(ValueError, match="can't be written: OSError File too large"):
        OutputFolder(str(tmp_path / "run")).__enter__()
    assert list(tmp_path.iterdir()) == []
    with OutputFolder(str(tmp_path / "run")) as output:
        assert output.lock.is_locked


def test_a_folder_that_another_run_has_made_again_stays_that_run_s(tmp_path, begin):
    with pytest.raises(ValueError, match="is in use by process"), OutputFolder(str(tmp_path / "run")) as output:
        begin(output)
        shutil.rmtree(tmp_path / "run")
        with OutputFolder(str(tmp_path / "run")):
            try:
                output.write_update(0, 0, 0.5, 1e-3, None, 1.0, False)
            finally:
                output.leave()
                assert (tmp_path / "run" / LOCK).exists()


def test_records(tmp_path, begin):
    with OutputFolder(str(tmp_path)) as output:
        begin(output)
        output.write_update(0, 0, 0.5, 1e-3, None, 0.123456, False)
        output.write_update(1, 0, 0.4, 1e-3, float("inf"), 0.2, True)
        output.write_update(2, 1, 0.3, 1e-3, 1.5, 0.3, False)
    start, updates = read_metrics(tmp_path / METRICS)
    assert (start["seed"], start["total_updates"], start["config"]["hub_token"]) == (3, 4, None)
    assert updates == [
        dict(update=0, epoch=0, loss=0.5, lr=1e-3, grad_norm=None, seconds=0.1235),
        dict(update=1, epoch=0, loss=0.4, lr=1e-3, grad_norm=None, seconds=0.2, skipped=True),
        dict(update=2, epoch=1, loss=0.3, lr=1e-3, grad_norm=1.5, seconds=0.3),
    ]
    with OutputFolder(str(tmp_path)) as output:
        begin(output, first_update=2, resumed=True)
    assert [record["update"] for record in read_metrics(tmp_path / METRICS)[1]] == [0, 1]


def test_an_earlier_run_goes_behind_the_highest_number(tmp_path, begin):
    for name in ("earlier-1", "earlier-7", "earlier-x", "earlier-²"):
        (tmp_path / name).mkdir()
    (tmp_path / LORA).write_text("old")
    (tmp_path / "logs").mkdir()
    with OutputFolder(str(tmp_path)) as output:
        begin(output)
    assert (tmp_path / "earlier-8" / LORA).read_text() == "old" and (tmp_path / "earlier-8" / "logs").is_dir()


@pytest.mark.parametrize("logging_dir", [".", "..", "../shared", "{outside}"])
def test_logs_outside_the_folder_stay(logging_dir, tmp_path, begin):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "other run").write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / LORA).write_text("old")
    (folder / "notes.txt").write_text("mine")
    with OutputFolder(str(folder), logging_dir.format(outside=shared)) as output:
        begin(output)
    assert (shared / "other run").read_text() == (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in (folder / "earlier-1").iterdir()] == [LORA]


def test_a_folder_of_a_run_that_never_began_goes_unless_somebody_wrote_there(tmp_path, begin):
    with OutputFolder(str(tmp_path / "a")):
        pass
    assert not (tmp_path / "a").exists()
    with OutputFolder(str(tmp_path / "b")):
        (tmp_path / "b" / "notes.txt").write_text("mine")
    assert (tmp_path / "b" / "notes.txt").exists()
    with OutputFolder(str(tmp_path / "c")) as output:
        begin(output)
    assert json.loads((tmp_path / "c" / METRICS).read_text())["event"] == "start"
    assert not (tmp_path / "c" / LOCK).exists()


def test_what_a_killed_run_left_of_a_checkpoint_goes_as_the_next_run_holds_the_folder(tmp_path, monkeypatch):
    part = tmp_path / "checkpoint-3.part"
    part.mkdir()
    (part / LORA).write_text("half")
    with OutputFolder(str(tmp_path), main=False):
        assert part.exists()
    monkeypatch.setattr(fcntl, "flock", lambda number, how: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    with OutputFolder(str(tmp_path)):
        assert part.exists()  # another run may be writing it
    monkeypatch.undo()
    with OutputFolder(str(tmp_path)):
        assert not part.exists()


def test_other_processes_hold_nothing(tmp_path):
    with OutputFolder(str(tmp_path / "run"), main=False) as output:
        assert output.lock is None and not (tmp_path / "run").exists()


def test_what_came_after_the_checkpoint_that_is_resumed_is_put_aside(tmp_path, begin):
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-4-mine", "checkpoint-best", "checkpoint-06"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoint-8").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "checkpoint-10").write_text("somebody's")
    (tmp_path / LORA).write_text("the end of the other branch")
    with OutputFolder(str(tmp_path)) as output:
        begin(output)
        for update in range(8):
            output.write_update(update, 0, 0.5, 1e-3, None, 1.0, False)
    (tmp_path / "checkpoint-2").mkdir()
    aside = tmp_path / "earlier-1"
    came_later = {"checkpoint-4", "checkpoint-8", "checkpoint-10", LORA}
    for name in came_later:
        (aside / name).rename(tmp_path / name)
    with OutputFolder(str(tmp_path)) as output:
        begin(output, 2, resumed=True)
    assert {path.name for path in (tmp_path / "earlier-2").iterdir()} == came_later | {METRICS}
    assert len(read_metrics(tmp_path / "earlier-2" / METRICS)[1]) == 8
    assert [record["update"] for record in read_metrics(tmp_path / METRICS)[1]] == [0, 1]
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert kept == {"checkpoint-2", "checkpoint-4-mine", "checkpoint-best", "checkpoint-06"}
    assert (tmp_path / "elsewhere").is_dir()
    with OutputFolder(str(tmp_path)) as output:
        begin(output, 2, resumed=True)
    assert not (tmp_path / "earlier-3").exists()  # nothing came later


def test_a_number_that_is_none_is_null(tmp_path, begin):
    with OutputFolder(str(tmp_path)) as output:
        begin(output)
        output.write_update(0, 0, float("nan"), 1e-3, float("inf"), 1.0, False)
    record = read_metrics(tmp_path / METRICS)[1][0]
    assert record["loss"] is None and record["grad_norm"] is None
    assert "NaN" not in (tmp_path / METRICS).read_text()
