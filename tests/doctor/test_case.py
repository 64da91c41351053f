"""Settings as a plan of what will run, whether or not they go together."""

import numpy as np
import pytest

from lora_kit.config import TrainingConfig
from lora_kit.doctor.case import plan

SETTINGS = dict(style="outlined", learning_rate=1e-3, lr_scheduler="linear", train_batch_size=10, num_train_epochs=2)


def test_a_plan_by_hand():
    made = plan(SETTINGS | dict(lr_warmup_steps=2), num_examples=45, num_processes=2)
    assert made.steps.total_updates == 6  # 5 batches are 3 for each process, twice
    schedule = made.schedule
    assert (schedule.num_warmup_steps, schedule.num_training_steps, schedule.num_processes) == (4, 12, 2)
    assert [schedule.rate(update) for update in range(7)] == pytest.approx(
        [0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4, 0], abs=1e-18
    )


def test_the_script_s_defaults_are_planned_with():
    settings = dict(
        style="outlined", match_diffusers=True, lr_scheduler="cosine", train_batch_size=4, num_train_epochs=12
    )
    made = plan(settings, 400)
    assert made.steps.total_updates == 1200
    assert made.schedule.warmup_updates == 500
    assert (made.schedule.rate(0), made.schedule.rate(250), made.schedule.rate(500)) == (0, 5e-5, 1e-4)
    assert plan(settings | dict(lr_warmup_steps=0), 400).schedule.rate(0) == 1e-4


@pytest.mark.parametrize("warmup", [6, 600, np.int64(600)])
def test_a_warm_up_that_is_too_long_is_planned_as_it_would_go(warmup):
    schedule = plan(SETTINGS | dict(lr_warmup_steps=warmup, lr_scheduler="cosine"), 45, 2).schedule
    assert schedule.warmup_updates == warmup
    assert schedule.rate(3) == pytest.approx(3e-3 / warmup)


def test_settings_may_be_a_configuration():
    config = TrainingConfig(**SETTINGS, lr_warmup_steps=3)
    assert plan(config, 45) == plan(SETTINGS | dict(lr_warmup_steps=3), 45)
    assert plan(config, 45).config is config


def test_rules_that_no_schedule_reads_do_no_harm():
    assert plan(SETTINGS | dict(lr_step_rules="nonsense"), 45).schedule.step_rules is None


WRONG = [
    (dict(ranks=4), {}, TypeError, "did you mean 'rank'?"),
    (dict(rank=0), {}, ValueError, "rank 0 must be at least 1"),
    (dict(lr_warmup_steps=0.1), {}, ValueError, "lr_warmup_steps 0.1 is not a whole number"),
    (dict(train_batch_size=10**400), {}, ValueError, "train_batch_size 1000"),
    (dict(lr_scheduler="piecewise_constant", lr_step_rules="x"), {}, ValueError, "lr_step_rules 'x' can't be read"),
    ({}, dict(num_examples=0), ValueError, "num_examples 0 is not a whole number of at least 1"),
    ({}, dict(num_processes=10**30), ValueError, "num_processes 1000000000000000000000000000000 is more than can"),
]


@pytest.mark.parametrize("settings, counts, error, message", WRONG, ids=str)
def test_what_can_not_be_is_raised(settings, counts, error, message):
    with pytest.raises(error, match=message.replace("?", r"\?")):
        plan(SETTINGS | settings, **dict(num_examples=45) | counts)


def test_the_largest_numbers_are_planned_with():
    most = 2**63 - 1
    made = plan(SETTINGS | dict(gradient_accumulation_steps=most, scale_lr=True, learning_rate=1e308), most, most)
    assert made.schedule.peak == float("inf")
    assert made.steps.total_updates == 2
