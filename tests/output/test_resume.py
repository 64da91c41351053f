"""Stopping after any update and going on gives the very run that never stopped; what can't go on says why."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from running import program

from lora_kit.command_line.flags import to_argv
from lora_kit.config import ConfigWarning, TrainingConfig
from lora_kit.output.base_model import base_identity
from lora_kit.output.checkpoints import MANIFEST, checkpoints, newest_whole, read, seal, write_checkpoint
from lora_kit.output.folder import LOCK, hold
from lora_kit.output.lora_file import LORA
from lora_kit.output.metrics import METRICS
from lora_kit.output.resume import compare, find_checkpoint
from lora_kit.schedules import applied_learning_rates
from lora_kit.steps import Steps
from lora_kit.training import train

UPDATES = 7  # five an epoch of nine micro-steps, the last of which is a group of its own


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """18 pictures wider than high, so that they are cropped at random."""
    folder = tmp_path_factory.mktemp("pictures")
    random = torch.Generator().manual_seed(0)
    with open(folder / "metadata.jsonl", "w") as file:
        for index in range(18):
            pixels = torch.randint(0, 256, (64, 80, 3), generator=random, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / f"{index}.png")
            file.write(json.dumps({"file_name": f"{index}.png", "text": f"picture {index}"}) + "\n")
    return folder


def config(folder, pictures, **settings):
    made = dict(
        train_data_dir=str(pictures), resolution=64, learning_rate=2e-3, train_batch_size=2, seed=0, report_to="none",
        gradient_accumulation_steps=2, max_train_steps=UPDATES, checkpointing_steps=1, lr_scheduler="cosine",
        lr_warmup_steps=2, random_flip=True, output_dir=str(folder),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        return TrainingConfig(**made | settings)


def run(folder, pictures, **settings):
    return train(config(folder, pictures, **settings), progress=False)


def digests(folder):
    """Of the files of the last checkpoint: LoRA, optimizer, schedule and random states."""
    return read(checkpoints(folder)[-1])["files"]


def updates(folder):
    lines = [json.loads(line) for line in Path(folder, METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines if "update" in line]


def stopped_after(whole, update, folder):
    """The folder as a run that was stopped in update `update` + 1 leaves it."""
    folder.mkdir()
    shutil.copytree(whole / f"checkpoint-{update}", folder / f"checkpoint-{update}")
    lines = (whole / METRICS).read_text().splitlines(keepends=True)
    (folder / METRICS).write_text("".join(lines[: 1 + update + 1]) + lines[-1][:9])
    return folder


KINDS = {
    "caches": dict(center_crop=True),
    "random crops": dict(),
    "no cache": dict(no_cache=True),
    "8-bit": dict(center_crop=True, use_8bit_adam=True, rank=64),
}


STOPS = {1: (3, 5, 6), 2: (2, 3, 5)}  # on so many processes: inside an epoch, at its end, in the next one
QUICK = {"caches": (3,)}  # of two processes, whose launches take long; all of them with random crops and `-m long`
LONG = [pytest.param(kind, marks=pytest.mark.long) if kind == "no cache" else kind for kind in KINDS]


@pytest.fixture(scope="module", params=LONG)
def whole(request, tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, pictures, **KINDS[request.param])
    return folder, KINDS[request.param]


@pytest.mark.slow
def test_going_on_after_any_update_equals_never_stopping(whole, pictures, tmp_path):
    folder, settings = whole
    wanted, lines = digests(folder), updates(folder)
    assert [line["update"] for line in lines] == list(range(UPDATES))
    for update in STOPS[1] if settings else range(1, UPDATES):
        stopped = stopped_after(folder, update, tmp_path / f"{update}")
        run(stopped, pictures, **settings, resume_from_checkpoint="latest")
        assert digests(stopped) == wanted, update
        assert updates(stopped) == lines, update


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["caches", pytest.param("random crops", marks=pytest.mark.long)])
def test_the_same_on_two_processes(kind, pictures, tmp_path):
    def go(folder, **settings):
        made = config(folder, pictures, **KINDS[kind], lr_warmup_steps=1, **settings)
        done = program("lora_kit.launch", "--num_processes", 2, *to_argv(made))
        assert done.returncode == 0, done.stderr[-3000:]

    go(tmp_path / "whole")
    wanted = digests(tmp_path / "whole")
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= set(wanted)
    for update in QUICK.get(kind, STOPS[2]):
        stopped = stopped_after(tmp_path / "whole", update, tmp_path / f"{update}")
        go(stopped, resume_from_checkpoint="latest")
        assert digests(stopped) == wanted, update
        assert updates(stopped) == updates(tmp_path / "whole"), update


# what may change


@pytest.fixture(scope="module")
def once(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("once") / "run"
    run(folder, pictures, center_crop=True)
    return folder


def test_nothing_changed_is_nothing_said(once, pictures, tmp_path, capsys):
    stopped = stopped_after(once, 3, tmp_path / "stopped")
    run(stopped, pictures, center_crop=True, resume_from_checkpoint="latest", checkpoints_total_limit=2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(rank=8), "rank was 4 and is 8: the stored matrices have that shape"),
        (dict(seed=1), "seed was 0 and is 1"),
        (dict(train_batch_size=3), "train_batch_size was 2 and is 3"),
        (dict(gradient_accumulation_steps=1), "gradient_accumulation_steps was 2 and is 1"),
        (dict(use_8bit_adam=True), "use_8bit_adam was False and is True"),
        (dict(target_modules=("to_q",)), "target_modules was ['to_k', 'to_q', 'to_v', 'to_out.0'] and is ['to_q']"),
        (dict(max_train_steps=3), "would end at update 3, and 5 updates are done"),
        (dict(match_diffusers=True), "match_diffusers was False and is True"),
    ],
)
def test_what_can_t_go_on_is_refused(settings, words, once, pictures, tmp_path):
    stopped = stopped_after(once, 5, tmp_path / "stopped")
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="can't be resumed") as error:
        run(stopped, pictures, **dict(center_crop=True, resume_from_checkpoint="latest") | settings)
    assert words in str(error.value)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_another_number_of_processes_is_refused(once, pictures, tmp_path):
    stopped = stopped_after(once, 3, tmp_path / "stopped")
    made = config(stopped, pictures, center_crop=True, resume_from_checkpoint="latest")
    done = program("lora_kit.launch", "--num_processes", 2, *to_argv(made))
    assert done.returncode == 1
    assert "num_processes was 1 and is 2: each process has its own random state" in done.stderr


def test_another_number_of_pictures_is_refused(once, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "pictures")
    lines = (tmp_path / "pictures" / "metadata.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "pictures" / "metadata.jsonl").write_text("".join(lines[:-1]))
    (tmp_path / "pictures" / "17.png").unlink()
    record = read(once / "checkpoint-3")
    made = config(once, tmp_path / "pictures", center_crop=True)
    said, refused = compare(record, made, Steps.of(made, 17))
    assert said == [] and len(refused) == 1 and refused[0].startswith("num_examples was 18 and is 17")


def test_another_upload_is_no_change_of_the_run(once, pictures):
    made = config(once, pictures, center_crop=True, push_to_hub=True, hub_model_id="me/lora", hub_private_repo=True)
    assert compare(read(once / "checkpoint-3"), made, Steps.of(made, 18)) == ([], [])


def test_a_folder_that_was_moved_is_taken_and_said(once, pictures, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    stopped = stopped_after(once, 3, tmp_path / "stopped")
    run(stopped, moved, center_crop=True, resume_from_checkpoint="latest")
    assert f"is {str(moved)!r}, which is taken to be the same" in capsys.readouterr().out
    wanted, found = digests(once), digests(stopped)
    assert found == wanted


@pytest.mark.parametrize(
    "settings",
    [
        dict(learning_rate=1e-3),
        dict(max_train_steps=12),
        dict(lr_scheduler="linear"),
        dict(lr_scheduler="polynomial", lr_power=2.0, learning_rate=1e-3),
    ],
)
def test_a_changed_schedule_is_said_and_applied(settings, once, pictures, tmp_path, capsys):
    """Not ignored, as where the optimizer's stored rate wins over the one that was asked for."""
    stopped = stopped_after(once, 4, tmp_path / "stopped")
    run(stopped, pictures, **dict(center_crop=True, resume_from_checkpoint="latest") | settings)
    made = config(stopped, pictures, **settings)
    wanted = applied_learning_rates(made, Steps.of(made, 18))
    found = updates(stopped)
    assert [line["lr"] for line in found[4:]] == pytest.approx(wanted[4:].tolist(), rel=1e-12)
    assert [line["lr"] for line in found[:4]] == [line["lr"] for line in updates(once)[:4]]
    said = capsys.readouterr().out
    before = updates(once)[4]["lr"]
    assert f"at update 4 the rate jumps from {before:.3g} to {wanted[4]:.3g}" in said
    for name, value in settings.items():
        assert f"{name} " in said and repr(value) in said


def test_match_diffusers_keeps_the_stored_rate_for_one_update(pictures, tmp_path):
    """As diffusers' script does: the optimizer's stored rate stays until the scheduler, made for the new total, steps."""
    settings = dict(match_diffusers=True, lr_warmup_steps=1, gradient_accumulation_steps=1, learning_rate=1e-3)
    run(tmp_path / "run", pictures, max_train_steps=4, **settings)
    stored = read(tmp_path / "run" / "checkpoint-4")["next_learning_rate"]
    run(tmp_path / "run", pictures, max_train_steps=8, resume_from_checkpoint="latest", **settings)
    made = config(tmp_path / "run", pictures, max_train_steps=8, **settings)
    wanted = applied_learning_rates(made, Steps.of(made, 18))
    rates = [line["lr"] for line in updates(tmp_path / "run")]
    assert rates[4] == stored == pytest.approx(0, abs=1e-9) and rates[5:] == pytest.approx(wanted[5:].tolist())


def test_other_changes_are_said_and_applied(once, pictures, tmp_path, capsys):
    stopped = stopped_after(once, 4, tmp_path / "stopped")
    settings = dict(adam_weight_decay=0.5, adam_beta1=0.8, max_grad_norm=0.5, snr_gamma=5.0)
    run(stopped, pictures, center_crop=True, resume_from_checkpoint="latest", **settings)
    said = capsys.readouterr().out
    for name, value in settings.items():
        assert f"{name} was {getattr(config(once, pictures), name)!r} and is {value!r} from update 4 on" in said
    state = torch.load(stopped / f"checkpoint-{UPDATES}" / "optimizer.bin", weights_only=True)
    assert state["param_groups"][0]["weight_decay"] == 0.5 and state["param_groups"][0]["betas"] == (0.8, 0.999)
    assert digests(stopped) != digests(once)


# broken checkpoints


RECORDS = {  # what checkpoint.json says instead
    "other format": lambda record: record | {"format": 99},
    "a list": lambda record: [record],
    "another update": lambda record: record | {"update": record["update"] - 1},
    "another rate": lambda record: record | {"next_learning_rate": 1e-3},
    "no settings": lambda record: {name: value for name, value in record.items() if name != "config"},
    "no seal": lambda record: {name: value for name, value in record.items() if name != "seal"},
}


def damage(folder, kind):
    if kind == "unfinished":
        (folder / MANIFEST).unlink()
    elif kind == "cut short":
        path = folder / "optimizer.bin"
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "one bit":
        path = folder / "pytorch_lora_weights.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif kind == "a file gone":
        (folder / "random_states_0.pkl").unlink()
    elif kind == "record cut":
        path = folder / MANIFEST
        path.write_text(path.read_text()[:50])
    elif kind == "record deep":
        (folder / MANIFEST).write_text("[" * 100_000)
    elif kind in RECORDS:
        path = folder / MANIFEST
        path.write_text(json.dumps(RECORDS[kind](json.loads(path.read_text()))))


KINDS_OF_DAMAGE = {
    "unfinished": "it was not finished",
    "cut short": "optimizer.bin is not as it was written",
    "one bit": "pytorch_lora_weights.safetensors is not as it was written",
    "a file gone": "random_states_0.pkl is missing",
    "record cut": "can't be read",
    "record deep": "checkpoint.json can't be read: RecursionError",
    "other format": "format 99",
    "a list": "checkpoint.json can't be read",
    "another update": "checkpoint.json is not as it was written: it is damaged, or another program's",
    "another rate": "checkpoint.json is not as it was written",
    "no settings": "checkpoint.json is not as it was written",
    "no seal": "checkpoint.json can't be read: KeyError 'seal'",
}


@pytest.mark.parametrize("kind", KINDS_OF_DAMAGE)
def test_a_broken_checkpoint_is_named_and_passed_over(kind, once, pictures, tmp_path, capsys):
    stopped = stopped_after(once, 3, tmp_path / "stopped")
    shutil.copytree(once / "checkpoint-5", stopped / "checkpoint-5")
    damage(stopped / "checkpoint-5", kind)
    folder, record, problems = newest_whole(stopped)
    assert (folder.name, record["update"]) == ("checkpoint-3", 3)
    assert len(problems) == 1 and "checkpoint-5" in problems[0] and KINDS_OF_DAMAGE[kind] in problems[0]
    with pytest.raises(ValueError, match=r"checkpoint-5"):
        run(stopped, pictures, center_crop=True, resume_from_checkpoint="checkpoint-5")
    run(stopped, pictures, center_crop=True, resume_from_checkpoint="latest")
    assert "passed over" in capsys.readouterr().out
    assert digests(stopped) == digests(once)


def test_only_broken_checkpoints_are_an_error(once, pictures, tmp_path):
    stopped = stopped_after(once, 3, tmp_path / "stopped")
    damage(stopped / "checkpoint-3", "cut short")
    with pytest.raises(ValueError, match="no checkpoint in .* is whole"):
        run(stopped, pictures, center_crop=True, resume_from_checkpoint="latest")
    assert newest_whole(tmp_path / "nowhere") == (None, None, [])


def test_an_old_checkpoint_goes_after_the_new_one_stands(pictures, tmp_path, monkeypatch):
    import lora_kit.output.checkpoints

    there = []

    def put_in_place(part, final):
        there.append([path.name for path in checkpoints(tmp_path / "run")])
        Path(part).rename(final)

    monkeypatch.setattr(lora_kit.output.checkpoints, "put_in_place", put_in_place)
    run(tmp_path / "run", pictures, center_crop=True, checkpoints_total_limit=1, max_train_steps=3)
    assert there == [[], ["checkpoint-1"], ["checkpoint-2"]]
    (newest,) = checkpoints(tmp_path / "run")
    assert newest.name == "checkpoint-3" and read(newest)["base"] == base_identity(config(tmp_path, pictures))


def test_the_limit_costs_only_old_checkpoints(pictures, tmp_path, capsys, monkeypatch):
    """Of a link the link, of a file nothing; and what can't be removed is said, and costs no run."""
    folder, mine = tmp_path / "run", tmp_path / "mine"
    folder.mkdir()
    mine.mkdir()
    (folder / "checkpoint-1").write_text("somebody's")
    (folder / "checkpoint-2").symlink_to(mine)
    for number in (3, 4, 5):
        (folder / f"checkpoint-{number}").mkdir()
    (folder / "checkpoint-4" / MANIFEST).write_text("[" * 100_000)
    (folder / "checkpoint-5" / MANIFEST).write_text("{}")  # the newest that is finite
    rmtree = shutil.rmtree

    def refuse(path, **how):
        if Path(path).name == "checkpoint-3":
            raise PermissionError(13, "Permission denied")
        rmtree(path, **how)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    accelerator = SimpleNamespace(
        is_main_process=True, num_processes=1, mixed_precision="no", wait_for_everyone=lambda: None,
        save_state=lambda part: Path(part).mkdir(),
    )  # fmt: skip
    made = config(folder, pictures, checkpoints_total_limit=1)
    write_checkpoint(accelerator, folder, made, 6, dict(finite=False))
    assert sorted(path.name for path in folder.iterdir()) == [f"checkpoint-{number}" for number in (1, 3, 5, 6)]
    said = capsys.readouterr().err
    assert (
        said == f"warning: {folder}/checkpoint-3 can't be removed: PermissionError Permission denied; the run goes on\n"
    )
    assert mine.is_dir() and checkpoints(folder) == [folder / f"checkpoint-{number}" for number in (3, 5, 6)]


def test_seal_brings_every_file_to_the_disk(pictures, tmp_path, monkeypatch):
    import os

    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "a").write_text("a")
    seal(folder, config(tmp_path, pictures), update=1, num_processes=1, num_examples=1, next_learning_rate=0.1)
    assert synced == [str(folder / "a"), str(folder / MANIFEST), str(folder)]
    assert "hub_token" not in read(folder)["config"]


def test_no_pickle_is_run_from_a_checkpoint(once, pictures, tmp_path):
    """A file that would run code as it is unpickled is refused, even where the record fits it."""
    stopped = stopped_after(once, 3, tmp_path / "stopped")
    folder, witness = stopped / "checkpoint-3", tmp_path / "witness"

    class Evil:
        def __reduce__(self):
            return Path.touch, (witness,)

    record = read(folder)
    for name in ("optimizer.bin", "scheduler.bin"):
        torch.save(Evil(), folder / name)
    made = replace(config(stopped, pictures, center_crop=True), resume_from_checkpoint="latest")
    about = {name: record[name] for name in ("update", "num_processes", "num_examples", "next_learning_rate")}
    seal(folder, made, **about)
    with pytest.raises(
        ValueError, match=r"checkpoint-3/optimizer.bin can't be loaded: .*[Ww]eights.*; resume from an older"
    ):
        train(made, progress=False)
    assert not witness.exists()


# one run a folder


def test_a_second_run_in_the_folder_is_refused(pictures, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    made = config(folder, pictures, center_crop=True, max_train_steps=1, lr_warmup_steps=0)
    holder = hold(folder / LOCK)
    done = program("lora_kit.training", *to_argv(made))
    holder.release()
    assert done.returncode == 1 and "is in use by process" in done.stderr and "Traceback" not in done.stderr
    assert not (folder / METRICS).exists()
    assert program("lora_kit.training", *to_argv(made)).returncode == 0
    assert not (folder / LOCK).exists()


def test_a_run_that_never_began_leaves_no_folder(pictures, tmp_path):
    with pytest.raises(ValueError, match="no module matched"):
        run(tmp_path / "a" / "run", pictures, center_crop=True, target_modules=("to_z",))
    assert not (tmp_path / "a" / "run").exists()


def test_a_folder_removed_while_the_run_goes_on_is_made_again(pictures, tmp_path, capsys):
    folder = tmp_path / "run"

    def remove(unet):
        shutil.rmtree(folder)

    made = config(folder, pictures, center_crop=True, max_train_steps=3)
    result = train(made, progress=False, on_ready=remove)
    assert Path(result.lora_path).exists()
    assert [line["update"] for line in updates(folder)] == [0, 1, 2]
    assert "was removed" in capsys.readouterr().err
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_the_checkpoint_of_another_run_is_taken_and_said(once, pictures, tmp_path, capsys):
    """Not exchanged for the one of that name in output_dir, of which nothing is lost."""
    run(tmp_path / "B", pictures, center_crop=True, rank=2)
    capsys.readouterr()
    wanted = once / "checkpoint-3"
    with pytest.raises(ValueError, match="rank was 4 and is 2"):
        run(tmp_path / "B", pictures, center_crop=True, rank=2, resume_from_checkpoint=str(wanted))
    run(tmp_path / "B", pictures, center_crop=True, resume_from_checkpoint=str(wanted))
    assert f"resumes from {wanted}, which is not in output_dir {str(tmp_path / 'B')!r}" in capsys.readouterr().out
    assert digests(tmp_path / "B") == digests(once) and updates(tmp_path / "B") == updates(once)
    assert len(checkpoints(tmp_path / "B" / "earlier-1")) == UPDATES


def test_a_path_is_taken_where_it_points_and_a_name_in_the_folder(once, tmp_path, monkeypatch):
    """Of two runs with a checkpoint-3: "./" is a path too. A link in the folder is one of its checkpoints."""
    other = stopped_after(once, 3, tmp_path / "other")
    (other / "checkpoint-4").symlink_to(once / "checkpoint-4")
    monkeypatch.chdir(once)
    for wanted in ("./checkpoint-3", str(once / "checkpoint-3"), f"../{once.name}/checkpoint-3/"):
        path, _, (said,) = find_checkpoint(other, wanted)
        assert path.resolve() == once / "checkpoint-3"
        assert said == f"resumes from {path}, which is not in output_dir {str(other)!r}"
    for wanted in ("checkpoint-3", "checkpoint-3/", "checkpoint-4", str(other / "checkpoint-4")):
        path, _, said = find_checkpoint(other, wanted)
        assert (path, said) == (other / Path(wanted).name, [])


def test_a_checkpoint_that_is_not_there_is_not_exchanged_for_one_that_is(once, pictures, tmp_path):
    stopped = stopped_after(once, 3, tmp_path / "stopped")
    with pytest.raises(ValueError, match="gone/checkpoint-3' is not there; output_dir .* holds checkpoint-3"):
        run(stopped, pictures, center_crop=True, resume_from_checkpoint=str(tmp_path / "gone" / "checkpoint-3"))


def test_latest_of_nothing_says_so(pictures, tmp_path, capsys):
    folder = tmp_path / "typo"
    run(folder, pictures, center_crop=True, max_train_steps=1, lr_warmup_steps=0, resume_from_checkpoint="latest")
    assert f"'latest' finds no checkpoint in {folder}: the run starts anew" in capsys.readouterr().out


def test_a_branch_from_an_earlier_checkpoint_keeps_its_own(once, pictures, tmp_path):
    """With a limit of 2 the new checkpoint-4 isn't removed in favour of the abandoned 6 and 7, and `latest` is the branch's."""
    folder = tmp_path / "run"
    shutil.copytree(once, folder)
    branch = dict(center_crop=True, learning_rate=1e-3, checkpoints_total_limit=2, max_train_steps=4)
    run(folder, pictures, **branch, resume_from_checkpoint="checkpoint-2")
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-3", "checkpoint-4"]
    assert [line["update"] for line in updates(folder)] == [0, 1, 2, 3]
    assert [path.name for path in checkpoints(folder / "earlier-1")] == [f"checkpoint-{n}" for n in range(3, 8)]
    assert updates(folder / "earlier-1") == updates(once) and (folder / "earlier-1" / LORA).exists()


def test_other_pictures_of_the_same_number_are_refused(once, pictures, tmp_path):
    other = tmp_path / "pictures"
    shutil.copytree(pictures, other)
    (other / "3.png").write_bytes((other / "4.png").read_bytes())
    stopped = stopped_after(once, 3, tmp_path / "stopped")
    with pytest.raises(ValueError, match="pictures or captions are not those of the run that wrote it"):
        run(stopped, other, center_crop=True, resume_from_checkpoint="latest")
