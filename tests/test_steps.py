import dataclasses
import functools
import json
import sys
import tempfile
from pathlib import Path

import pytest
from running import torchrun

from lora_kit.config import TrainingConfig
from lora_kit.schedules import Schedule
from lora_kit.steps import AXES, Steps

# (num_examples, train_batch_size, gradient_accumulation_steps, num_train_epochs, max_train_steps)
COMBINATIONS = [
    (20, 2, 2, 2, None),  # the vector of tests/test_schedules.py
    (16, 4, 1, 2, None),  # nothing remains anywhere
    (16, 4, 2, 3, None),
    (17, 4, 2, 2, None),  # the last batch has one picture
    (19, 2, 4, 3, None),  # batches don't divide by processes, nor micro-steps by accumulation steps
    (21, 2, 3, 2, None),
    (9, 3, 4, 2, None),  # fewer batches than accumulation steps
    (1, 4, 1, 3, None),  # one picture: the second process repeats it
    (3, 1, 8, 2, None),
    (7, 1, 2, 1, None),
    (13, 5, 3, 100, 7),  # max_train_steps decides
    (20, 2, 2, 1, 8),
    (20, 2, 2, 50, 3),  # ends inside the first epoch
    (20, 2, 3, 50, 6),
]


def steps_of(combination, num_processes=1, **more):
    names = ("num_examples", "train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_train_steps")
    return Steps(**dict(zip(names, combination, strict=True)), num_processes=num_processes, **more)


def real_run(combination, settings=None):
    """A bare loop of accelerate on a model of one weight, counted; with `settings` the schedule is the kit's own."""
    import torch
    from accelerate import Accelerator

    num_examples, train_batch_size, gradient_accumulation_steps, num_train_epochs, max_train_steps = combination
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=gradient_accumulation_steps)
    model = torch.nn.Linear(1, 1)
    config = TrainingConfig(
        style="outlined",
        train_batch_size=train_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        num_train_epochs=num_train_epochs,
        max_train_steps=max_train_steps,
        **{"learning_rate": 1e-3} | (settings or {}),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.peak_learning_rate(accelerator.num_processes))
    if settings is None:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    else:
        steps = Steps.of(config, num_examples, accelerator.num_processes)
        scheduler = Schedule.of(config, steps).scheduler(optimizer)
    loader = torch.utils.data.DataLoader(torch.ones(num_examples, 1), batch_size=train_batch_size, shuffle=True)
    seen = {"batches": len(loader), "rates": [], "micro_steps": [], "images": [], "epochs": 0}
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    seen["batches_per_process"] = len(loader)
    seen["num_processes"] = accelerator.num_processes
    wanted = max_train_steps or 10**9
    while len(seen["rates"]) < wanted and (max_train_steps or seen["epochs"] < num_train_epochs):
        seen["epochs"] += 1
        micro_steps = images = 0
        for batch in loader:
            with accelerator.accumulate(model):
                micro_steps += 1
                images += len(batch)
                accelerator.backward(model(batch).mean())
                if accelerator.sync_gradients:
                    seen["rates"].append(optimizer.param_groups[0]["lr"])
                    seen["micro_steps"].append(micro_steps)
                    seen["images"].append(images)
                    micro_steps = images = 0
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if len(seen["rates"]) == wanted:
                break
    return seen | {"last_epoch": scheduler.scheduler.last_epoch, "after": optimizer.param_groups[0]["lr"]}


@functools.cache
def runs_of_two_processes():
    """Every combination here and every schedule of test_schedules.py in one real world of two gloo processes."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "seen.json")
        done = torchrun(__file__, output)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(output.read_text())


@pytest.fixture(scope="module")
def run(request):
    """`run(combination, num_processes)`: what accelerate did."""
    from accelerate.state import AcceleratorState, GradientState

    def measured(combination, num_processes):
        if num_processes == 2:
            return runs_of_two_processes()["steps"][COMBINATIONS.index(combination)]
        return real_run(combination)

    AcceleratorState._reset_state(reset_partial_state=True)
    yield measured
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_against_accelerate(run, combination, num_processes):
    seen, steps = run(combination, num_processes), steps_of(combination, num_processes)
    assert seen["num_processes"] == num_processes
    assert steps.batches == seen["batches"]
    assert steps.batches_per_process == seen["batches_per_process"]
    assert steps.total_updates == len(seen["rates"])
    assert steps.epochs == seen["epochs"]
    assert steps.num_training_steps_for_scheduler == seen["last_epoch"]
    per_epoch, accumulation = steps.updates_per_epoch, steps.gradient_accumulation_steps
    expected = [accumulation] * (per_epoch - 1) + [steps.micro_steps_in_last_update]
    assert seen["micro_steps"] == (expected * steps.epochs)[: steps.total_updates]
    for update in range(steps.total_updates + 1):
        passed = steps.passed(update)
        assert passed["updates"] == update
        assert passed["micro_steps"] == sum(seen["micro_steps"][:update])
        assert passed["images"] == sum(seen["images"][:update]) * num_processes
        assert passed["epochs"] == pytest.approx(passed["micro_steps"] / steps.batches_per_process)


def test_by_hand_one_process():
    # 21 pictures by 2: 11 batches; by 3 micro-steps: 4 updates, the last of 2 micro-steps; 5 epochs: 20 updates
    steps = steps_of((21, 2, 3, 5, None), lr_warmup_steps=4)
    assert (steps.batches, steps.batches_per_process, steps.updates_per_epoch) == (11, 11, 4)
    assert (steps.micro_steps_in_last_update, steps.total_updates, steps.epochs) == (2, 20, 5)
    assert (steps.total_batch_size, steps.num_training_steps_for_scheduler) == (6, 20)
    assert steps.num_warmup_steps_for_scheduler == 4


def test_by_hand_two_processes():
    # 10 batches, 5 a process, by 2: 3 updates (2 + 2 + 1); 2 epochs: 6 updates, 12 scheduler steps
    steps = steps_of((20, 2, 2, 2, None), num_processes=2, lr_warmup_steps=1)
    assert (steps.batches, steps.batches_per_process, steps.updates_per_epoch) == (10, 5, 3)
    assert (steps.total_updates, steps.micro_steps_in_last_update, steps.total_batch_size) == (6, 1, 8)
    assert (steps.num_training_steps_for_scheduler, steps.num_warmup_steps_for_scheduler) == (12, 2)


def test_max_train_steps_overrides_epochs():
    steps = steps_of((20, 2, 2, 100, 7), num_processes=2)
    assert (steps.total_updates, steps.epochs, steps.num_training_steps_for_scheduler) == (7, 3, 14)


def test_more_processes_than_batches():
    steps = steps_of((3, 2, 4, 2, None), num_processes=8)
    assert (steps.batches, steps.batches_per_process, steps.updates_per_epoch, steps.total_updates) == (2, 1, 1, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_examples", 0), ("train_batch_size", 2.0), ("num_processes", True), ("gradient_accumulation_steps", None),
     ("max_train_steps", 0), ("num_train_epochs", -1), ("lr_warmup_steps", -1), ("lr_warmup_steps", 0.1)],
)  # fmt: skip
def test_counts_are_checked(name, value):
    settings = {"num_examples": 20, "train_batch_size": 2} | {name: value}
    low = 0 if name == "lr_warmup_steps" else 1
    with pytest.raises(ValueError, match=f"{name} {value!r} is not a whole number of at least {low}"):
        Steps(**settings)


def test_numpy_s_whole_numbers_count():
    import numpy as np

    steps = Steps(num_examples=np.int64(20), train_batch_size=np.int32(2), num_train_epochs=np.uint8(3))
    assert steps.total_updates == 30 and type(steps.num_examples) is int


def test_a_warmup_may_be_longer_than_the_run():
    """`check_warmup` says whether it fits; the arithmetic is the same."""
    assert steps_of((20, 2, 2, 2, None), num_processes=2, lr_warmup_steps=9).num_warmup_steps_for_scheduler == 18


def test_of_a_config():
    config = TrainingConfig(
        style="outlined", learning_rate=1e-3, lr_scheduler="cosine", lr_warmup_steps=1, train_batch_size=2,
        gradient_accumulation_steps=2, num_train_epochs=2,
    )  # fmt: skip
    assert Steps.of(config, 20, 2) == steps_of((20, 2, 2, 2, None), num_processes=2, lr_warmup_steps=1)
    with pytest.warns(match="ignores lr_warmup_steps"):
        idle = TrainingConfig(style="outlined", learning_rate=1e-3, lr_warmup_steps=500, max_train_steps=3)
    assert Steps.of(idle, 20).lr_warmup_steps == 0


def test_rows_are_the_properties():
    steps = steps_of((20, 2, 2, 2, None), num_processes=2, lr_warmup_steps=1)
    assert [value for _, value, _ in steps.rows()] == [10, 5, 3, 6, 2, 8, 1, 2, 12]
    how = {name: text for name, _, text in steps.rows()}
    assert how["micro-steps an epoch"] == "ceil(10 / 2)"
    assert how["pictures an update"] == "2 x 2 x 2"
    assert (
        dict((name, text) for name, _, text in steps_of((20, 2, 2, 2, 5)).rows())["updates in all"] == "max_train_steps"
    )


def test_every_row_by_hand():
    steps = Steps(
        num_examples=19, train_batch_size=2, gradient_accumulation_steps=4, num_processes=2, num_train_epochs=3
    )
    assert steps.rows() == [
        ("batches in the data set", 10, "ceil(19 / 2)"),
        ("micro-steps an epoch", 5, "ceil(10 / 2)"),
        ("updates an epoch", 2, "ceil(5 / 4)"),
        ("updates in all", 6, "3 x 2"),
        ("epochs begun", 3, "ceil(6 / 2)"),
        ("pictures an update", 16, "2 x 4 x 2"),
        ("micro-steps in an epoch's last update", 1, "of 4"),
        ("warm-up for the scheduler", 0, "0 x 2"),
        ("total for the scheduler", 12, "6 x 2"),
    ]


def test_what_has_passed_by_hand():
    two = Steps(num_examples=19, train_batch_size=2, gradient_accumulation_steps=4, num_processes=2)
    assert [two.passed(update) for update in range(4)] == [
        dict(updates=0, micro_steps=0, epochs=0.0, images=0),
        dict(updates=1, micro_steps=4, epochs=0.8, images=16),
        dict(updates=2, micro_steps=5, epochs=1.0, images=20),  # one picture is repeated
        dict(updates=3, micro_steps=9, epochs=1.8, images=36),
    ]
    one = Steps(num_examples=7, train_batch_size=2, gradient_accumulation_steps=3)
    assert [one.passed(update) for update in range(4)] == [
        dict(updates=0, micro_steps=0, epochs=0.0, images=0),
        dict(updates=1, micro_steps=3, epochs=0.75, images=6),
        dict(updates=2, micro_steps=4, epochs=1.0, images=7),
        dict(updates=3, micro_steps=7, epochs=1.75, images=13),
    ]
    assert list(one.passed(0)) == list(AXES)
    assert one.total_updates == 200  # 100 epochs unless said
    whole = Steps(num_examples=8, train_batch_size=2, gradient_accumulation_steps=3, max_train_steps=5)
    assert whole.passed(4) == dict(updates=4, micro_steps=8, epochs=2.0, images=16)


def test_steps_are_named_and_stay_as_they_are():
    steps = Steps(num_examples=20, train_batch_size=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        steps.num_examples = 21
    with pytest.raises(TypeError):
        Steps(20, 2)
    assert Steps.of(TrainingConfig(style="outlined", learning_rate=1e-3), 20).num_processes == 1


def test_what_a_curve_is_drawn_over():
    assert AXES == {
        "updates": "optimizer updates (0 is the first)",
        "micro_steps": "micro-steps of each process",
        "epochs": "epochs",
        "images": "images seen, by all processes",
    }


if __name__ == "__main__":  # one of the two processes of `runs_of_two_processes`
    from accelerate.state import PartialState
    from test_schedules import CASES

    from lora_kit.system.world import leave_process_group

    found = {"steps": [real_run(one) for one in COMBINATIONS], "schedules": [real_run(*one) for one in CASES]}
    if PartialState().is_main_process:
        Path(sys.argv[1]).write_text(json.dumps(found))
    leave_process_group()  # destroying it without a barrier sometimes aborts at exit
