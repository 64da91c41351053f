"""The room that a run needs is known before it begins: a little more than what it then writes."""

from dataclasses import replace

import pytest
import torch
from running import Program, can_mount

from lora_kit.command_line.flags import to_argv
from lora_kit.config import TrainingConfig
from lora_kit.explorer.controls import TARGET_SETS
from lora_kit.models import empty_unet
from lora_kit.output.checkpoints import checkpoints
from lora_kit.output.lora_file import LORA
from lora_kit.output.room import Room, check_room, room
from lora_kit.parameters import add_lora
from lora_kit.steps import Steps
from lora_kit.training import train

STEPS = Steps(num_examples=8, train_batch_size=2, max_train_steps=10)


def config(output_dir, **settings):
    few = dict(style="outlined", resolution=64, train_batch_size=2, max_train_samples=8, max_train_steps=4, seed=0)
    return TrainingConfig(**few | dict(learning_rate=1e-3, report_to="none") | settings, output_dir=str(output_dir))


def room_of(made, steps=STEPS, first_update=0):
    lora = add_lora(empty_unet(made), made.rank, made.target_modules)
    return room(made, [tuple(parameter.shape) for parameter in lora], steps, first_update)


@pytest.mark.parametrize("targets", [*TARGET_SETS.values(), "conv1 conv2 to_q to_q proj_in"])
def test_what_is_estimated_is_the_lora_that_is_added(targets, tmp_path):
    made = config(tmp_path, rank=8, target_modules=targets.split())
    assert check_room(made, STEPS)[0] == room_of(made)


def size(path):
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))


def a_little_more(estimate, size):
    return size <= estimate <= 1.2 * size


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        dict(checkpointing_steps=1, validation_prompt="cat face", num_validation_images=1),
        dict(checkpointing_steps=2, rank=64, use_8bit_adam=True),
        dict(checkpointing_steps=3, rank=64, target_modules=["to_q", "conv1", "ff.net.2"]),
    ],
    ids=["small", "8 bits", "more modules"],
)
def test_the_estimate_is_a_little_more_than_a_run_writes(settings, tmp_path):
    made = config(tmp_path / "run", **settings)
    train(made, progress=False)
    needed = room_of(made, Steps.of(made, 8))
    assert a_little_more(needed.lora, size(tmp_path / "run" / LORA))
    last = checkpoints(tmp_path / "run")[-1]
    assert a_little_more(needed.checkpoint, size(last)) and needed.checkpoints == len(checkpoints(last.parent))
    assert a_little_more(needed.most, size(tmp_path / "run")) and needed.least == needed.lora + needed.checkpoint


def test_how_many_checkpoints_stand_there_at_once(tmp_path):
    """Updates 1 to 10. One more than checkpoints_total_limit, while the newest is written."""
    for every, limit, wanted in (
        (3, None, 3),
        (3, 1, 2),
        (3, 2, 3),
        (3, 5, 3),
        (5, None, 2),
        (11, None, 0),
        (11, 3, 0),
    ):
        made = config(tmp_path, checkpointing_steps=every, checkpoints_total_limit=limit)
        assert room_of(made).checkpoints == wanted
    none = room_of(config(tmp_path, checkpointing_steps=11))
    assert none.least == none.lora
    for number in (4, 6):
        (tmp_path / f"checkpoint-{number}").mkdir()
    for limit, first_update, wanted in ((None, 6, 2), (2, 6, 1), (3, 6, 2), (1, 6, 1), (2, 0, 3)):
        made = config(tmp_path, checkpointing_steps=2, checkpoints_total_limit=limit)
        assert room_of(made, first_update=first_update).checkpoints == wanted


def test_one_more_process_adds_its_random_states(tmp_path):
    one, two = (room_of(config(tmp_path), replace(STEPS, num_processes=processes)) for processes in (1, 2))
    assert two.checkpoint - one.checkpoint == 16_000 and one.lora == two.lora


def test_sums():
    assert (Room(1, 10, 3, 100).least, Room(1, 10, 3, 100).most) == (11, 131)


def test_what_can_t_fit_is_refused_with_both_figures_and_the_cure(tmp_path):
    with pytest.raises(ValueError) as error:
        check_room(config(tmp_path / "run" / "a", rank=10**9, checkpointing_steps=1), STEPS)
    said = str(error.value)
    assert said.startswith(f"the disk of output_dir '{tmp_path / 'run' / 'a'}' has ") and said.endswith(
        "another output_dir"
    )
    assert "GB free, and this run needs 186,3" in said and "the LoRA 46,5" in said and "a checkpoint 139,7" in said


def test_later_checkpoints_that_don_t_fit_are_a_warning(tmp_path):
    _, said = check_room(config(tmp_path, checkpointing_steps=1, rank=64), replace(STEPS, max_train_steps=10**7))
    assert "(10000000 checkpoints; the LoRA 3.0 MB, a checkpoint 9.1 MB), so the disk fills up at about update " in said
    assert "; make room, or set checkpoints_total_limit " in said
    assert check_room(config(tmp_path, checkpointing_steps=10**9, checkpoints_total_limit=3), STEPS)[1] is None


def test_looking_draws_no_random_number(tmp_path):
    before = torch.get_rng_state()
    check_room(config(tmp_path), STEPS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_base_model_that_can_t_be_described_is_left_to_who_loads_it(tmp_path):
    assert check_room(config(tmp_path, pretrained_model_name_or_path=str(tmp_path)), STEPS) == (None, None)


@pytest.mark.slow
def test_a_small_disk(tmp_path, monkeypatch):
    """Refused before anything is encoded; or warned, and full when it was said."""
    if not can_mount():
        pytest.skip("no disk of its own for a process here")
    cache = tmp_path / "cache"
    disk = tmp_path / "disk"
    disk.mkdir()
    argv = to_argv(config(disk / "run", checkpointing_steps=1, max_train_steps=40))
    done = Program("lora_kit.training", *argv, disk=(disk, 900_000), LORA_KIT_CACHE=str(cache)).end()
    assert done.returncode == 1 and not [*cache.glob("encoded-*")]
    assert "has 0.9 MB free, and this run needs 0.9 MB: the LoRA 0.2 MB, a checkpoint 0.7 MB; make room" in done.stderr
    done = Program("lora_kit.training", *argv, disk=(disk, 4_000_000), LORA_KIT_CACHE=str(cache)).end()
    assert "so the disk fills up at about update 6; make room, or set checkpoints_total_limit 4" in done.stderr
    assert done.returncode == 1 and "checkpoint-6 can't be written" in done.stderr.splitlines()[-1]
