"""Settings and sizes that nobody would think of: only the declared errors, and what must hold for all of them."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lora_kit.config import FIELDS, LR_SCHEDULERS, kind_of, quiet_config
from lora_kit.doctor import STATUSES, examine, examine_settings
from lora_kit.doctor.case import plan
from lora_kit.schedules import applied_learning_rates
from lora_kit.steps import Steps

ODD_NUMBERS = (
    math.nan, math.inf, -math.inf, 0.1, 1e300, 1.7e308, 5e-324, 10.0, -1, 0, 1, 10**9, 2**63 - 1, 2**63, 10**308, 10**400, -(10**400),
    np.int64(4), np.int64(-4), np.uint8(200), np.float64(1e-3), np.float32(1e-3), np.float16(0.5), np.float64("nan"), np.bool_(True),
)  # fmt: skip
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(ODD_NUMBERS), st.text(max_size=8), st.just(()),
    st.lists(st.text(max_size=4), max_size=2),
)  # fmt: skip
NAMES = st.sampled_from(sorted(FIELDS)) | st.text(max_size=8)
NUMERIC = [name for name in FIELDS if kind_of(name)[0] in (int, float)]
EMPTY = torch.nn.Linear(1, 1)
COUNT = st.integers(1, 40)
many = settings(max_examples=400, deadline=None)
some = settings(max_examples=120, deadline=None)


@many
@given(st.dictionaries(NAMES, ANYTHING, max_size=6))
def test_settings_raise_only_what_is_declared(values):
    try:
        config = quiet_config({"style": "outlined", "learning_rate": 1e-3} | values)
    except (TypeError, ValueError) as error:
        assert str(error)
        return
    assert quiet_config(vars(config)) == config


def is_sound(findings):
    assert findings and {finding.status for finding in findings} <= set(STATUSES)
    assert all(finding.value and finding.reason and finding.link for finding in findings)
    assert all(finding.cure for finding in findings if finding.status != "fine")
    return True


@some
@given(st.dictionaries(NAMES.filter(lambda name: name != "output_dir"), ANYTHING, max_size=4), COUNT, st.integers(1, 8))
@example({"": None}, 1, 1)
def test_the_doctor_raises_nothing(values, num_examples, num_processes):
    assert is_sound(examine({"style": "outlined", "learning_rate": 1e-3} | values, num_processes, num_examples))


@pytest.mark.parametrize("name", NUMERIC)
@pytest.mark.parametrize("scheduler", LR_SCHEDULERS)
def test_the_doctor_meets_every_odd_number(name, scheduler):
    rules = dict(lr_step_rules="1:5,0.1") if scheduler == "piecewise_constant" else {}
    for number, scale_lr, warmup in itertools.product((*ODD_NUMBERS, 10**5000), (False, True), (0, 5)):
        asked = dict(
            style="outlined", learning_rate=1e-3, lr_scheduler=scheduler, scale_lr=scale_lr, lr_warmup_steps=warmup
        )
        asked |= rules | {name: number}
        findings = examine_settings(asked, 400, 3, [(4, 96), (96, 4)])
        assert is_sound(findings)
        wrong = [finding for finding in findings if finding.status == "error"]
        assert all(name in f"{finding.value} {finding.reason}" for finding in wrong if finding.check == "settings")


@some
@given(
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_NUMBERS),
)
def test_counts_are_taken_or_refused(num_examples, num_processes, num_training_steps, num_warmup_steps):
    asked = dict(style="outlined", learning_rate=1e-3, lr_scheduler="cosine", scale_lr=True)
    for scheduler in LR_SCHEDULERS[:6]:
        try:
            findings = examine(
                asked | dict(lr_scheduler=scheduler), num_processes, num_examples, num_training_steps=num_training_steps,
                num_warmup_steps=num_warmup_steps, unet=EMPTY,
            )  # fmt: skip
        except ValueError as error:
            assert str(error).startswith(("num_examples", "num_processes", "num_training_steps", "num_warmup_steps"))
            return
        assert is_sound(findings)


@many
@given(st.dictionaries(NAMES, ANYTHING, max_size=4), ANYTHING, ANYTHING)
def test_a_plan_raises_only_what_is_declared(values, num_examples, num_processes):
    try:
        made = plan({"style": "outlined", "learning_rate": 1e-3} | values, num_examples, num_processes)
    except (TypeError, ValueError) as error:
        assert str(error)
        return
    assert made.schedule.rate(0) >= 0


SIZES = dict(
    num_examples=st.integers(1, 200), train_batch_size=COUNT, gradient_accumulation_steps=st.integers(1, 9),
    num_train_epochs=st.integers(1, 5), num_processes=st.integers(1, 9),
)  # fmt: skip


@many
@given(st.fixed_dictionaries(SIZES))
def test_the_arithmetic_of_steps(sizes):
    steps = Steps(**sizes)
    batches = math.ceil(sizes["num_examples"] / sizes["train_batch_size"])
    per_process = math.ceil(batches / sizes["num_processes"])
    assert steps.batches_per_process == per_process
    assert steps.updates_per_epoch == math.ceil(per_process / sizes["gradient_accumulation_steps"])
    assert 1 <= steps.micro_steps_in_last_update <= sizes["gradient_accumulation_steps"]
    whole = (steps.updates_per_epoch - 1) * sizes["gradient_accumulation_steps"] + steps.micro_steps_in_last_update
    assert whole == per_process
    assert steps.total_updates == sizes["num_train_epochs"] * steps.updates_per_epoch
    assert steps.epochs == sizes["num_train_epochs"]
    assert steps.num_training_steps_for_scheduler == steps.total_updates * sizes["num_processes"]
    # every picture is seen in each epoch, and none of them is left out for the sake of round numbers
    assert per_process * sizes["num_processes"] * sizes["train_batch_size"] >= sizes["num_examples"]


@many
@given(st.fixed_dictionaries(SIZES), st.integers(1, 50))
def test_updates_depend_on_the_processes_only_through_the_formula(sizes, max_train_steps):
    alone = Steps(**sizes | dict(num_processes=1))
    steps = Steps(**sizes)
    assert steps.updates_per_epoch <= alone.updates_per_epoch
    assert Steps(**sizes, max_train_steps=max_train_steps).total_updates == max_train_steps
    if alone.batches % (sizes["num_processes"] * sizes["gradient_accumulation_steps"]) == 0:
        assert steps.updates_per_epoch * sizes["num_processes"] == alone.updates_per_epoch


@many
@given(
    st.sampled_from(LR_SCHEDULERS),
    st.floats(1e-6, 1.0),
    st.integers(0, 30),
    st.integers(1, 4),
    st.floats(0.1, 4.0),
    st.fixed_dictionaries(SIZES),
)
def test_no_rate_is_negative_or_above_the_peak(scheduler, rate, warmup, cycles, power, sizes):
    probe = Steps(**sizes)
    assume(warmup < probe.total_updates or scheduler in ("constant", "piecewise_constant"))
    config = quiet_config(dict(
        style="outlined", learning_rate=rate, lr_scheduler=scheduler, lr_warmup_steps=warmup, lr_num_cycles=cycles,
        lr_power=power, lr_step_rules="1:3,0.5:9,0.1", **{name: value for name, value in sizes.items() if name in FIELDS},
    ))  # fmt: skip
    steps = Steps.of(config, sizes["num_examples"], sizes["num_processes"])
    rates = applied_learning_rates(config, steps)
    assert len(rates) == steps.total_updates
    assert (rates >= 0).all() and rates.max() <= rate * (1 + 1e-9)
    if steps.lr_warmup_steps:
        assert rates[0] == 0 and rates[steps.lr_warmup_steps] == pytest.approx(rate)
    alone = applied_learning_rates(config, Steps.of(config, sizes["num_examples"], 1))
    if len(alone) == len(rates) and scheduler != "polynomial":
        assert rates == pytest.approx(alone, rel=1e-9, abs=1e-15)  # the same schedule, whatever ticks it
