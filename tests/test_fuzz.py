"""Settings and sizes that nobody would think of: only the declared errors, and what must hold for all of them."""

import math
import warnings

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lora_kit.config import LR_SCHEDULERS, ConfigWarning, TrainingConfig
from lora_kit.doctor.examine import STATUSES, examine
from lora_kit.schedules import applied_learning_rates
from lora_kit.steps import Steps

FIELDS = TrainingConfig.__dataclass_fields__
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(()), st.lists(st.text(max_size=4), max_size=2)
)  # fmt: skip
COUNT = st.integers(1, 40)
many = settings(max_examples=400, deadline=None)
some = settings(max_examples=120, deadline=None)


def make(**values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        return TrainingConfig(**values)


@many
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(max_size=8), ANYTHING, max_size=6))
def test_settings_raise_only_what_is_declared(values):
    try:
        config = make(**{"style": "outlined", "learning_rate": 1e-3} | values)
    except (TypeError, ValueError) as error:
        assert str(error)
        return
    assert make(**{name: getattr(config, name) for name in FIELDS}) == config


@some
@given(
    st.dictionaries(st.sampled_from(sorted(set(FIELDS) - {"output_dir"})) | st.text(max_size=8), ANYTHING, max_size=4),
    COUNT,
    st.integers(1, 8),
)
def test_the_doctor_raises_nothing(values, num_examples, num_processes):
    findings = examine({"style": "outlined", "learning_rate": 1e-3} | values, num_processes, num_examples)
    assert findings and {one.status for one in findings} <= set(STATUSES)
    assert all(one.reason and one.link for one in findings)
    assert all(one.cure for one in findings if one.status != "fine")


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
    config = make(
        style="outlined", learning_rate=rate, lr_scheduler=scheduler, lr_warmup_steps=warmup, lr_num_cycles=cycles,
        lr_power=power, lr_step_rules="1:3,0.5:9,0.1", **{name: value for name, value in sizes.items() if name in FIELDS},
    )  # fmt: skip
    steps = Steps.of(config, sizes["num_examples"], sizes["num_processes"])
    rates = applied_learning_rates(config, steps)
    assert len(rates) == steps.total_updates
    assert (rates >= 0).all() and rates.max() <= rate * (1 + 1e-9)
    if steps.lr_warmup_steps:
        assert rates[0] == 0 and rates[steps.lr_warmup_steps] == pytest.approx(rate)
    alone = applied_learning_rates(config, Steps.of(config, sizes["num_examples"], 1))
    if len(alone) == len(rates) and scheduler != "polynomial":
        assert rates == pytest.approx(alone, rel=1e-9, abs=1e-15)  # the same schedule, whatever ticks it
