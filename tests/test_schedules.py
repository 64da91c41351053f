import json
import math

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from test_steps import real_run, runs_of_two_processes, steps_of

from lora_kit.config import TrainingConfig
from lora_kit.lr_settings import LR_SCHEDULERS, WARM_UP, check_warmup
from lora_kit.schedules import Schedule, applied_learning_rates, rising_step_rules, scheduler_step_rules
from lora_kit.steps import Steps

EPOCHS = (20, 2, 2, 2, None)  # 10 updates in one process, 6 in two
CASES = [
    (EPOCHS, {"lr_scheduler": "constant"}),
    (EPOCHS, {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 4}),
    (EPOCHS, {"lr_scheduler": "linear"}),
    (EPOCHS, {"lr_scheduler": "linear", "lr_warmup_steps": 3}),
    (EPOCHS, {"lr_scheduler": "cosine", "lr_warmup_steps": 1}),
    (EPOCHS, {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 2, "lr_warmup_steps": 1}),
    ((19, 2, 4, 6, None), {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 3}),
    (EPOCHS, {"lr_scheduler": "polynomial", "lr_power": 2.0, "lr_warmup_steps": 2}),
    (EPOCHS, {"lr_scheduler": "polynomial", "lr_power": 0.5, "scale_lr": True}),
    (EPOCHS, {"lr_scheduler": "piecewise_constant", "lr_step_rules": "1:2,0.123456789:4,0.01"}),
    ((13, 5, 3, 100, 9), {"lr_scheduler": "linear", "lr_warmup_steps": 4, "scale_lr": True, "learning_rate": 3e-4}),
]


def config(lr_scheduler, **settings):
    return TrainingConfig(**{"style": "outlined", "learning_rate": 1e-3} | settings, lr_scheduler=lr_scheduler)


def rates(lr_scheduler, updates=10, num_processes=1, at=None, **settings):
    """Applied rates as a factor of a peak of 1e-3, in a run of so many updates."""
    made = config(lr_scheduler, max_train_steps=updates, **settings)
    found = applied_learning_rates(made, Steps.of(made, 20, num_processes), at)
    assert found.dtype == np.float64
    return found / 1e-3


@pytest.fixture(scope="module", autouse=True)
def clean_state():
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_every_schedule_is_among_the_cases():
    assert {settings["lr_scheduler"] for _, settings in CASES} == set(LR_SCHEDULERS)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(one) for one in case[1].values()))
def test_rates_are_those_of_a_real_run(case, num_processes):
    combination, settings = case
    seen = runs_of_two_processes()["schedules"][CASES.index(case)] if num_processes == 2 else real_run(*case)
    made = TrainingConfig(
        style="outlined",
        train_batch_size=combination[1],
        gradient_accumulation_steps=combination[2],
        num_train_epochs=combination[3],
        max_train_steps=combination[4],
        **{"learning_rate": 1e-3} | settings,
    )
    steps = Steps.of(made, combination[0], num_processes)
    assert applied_learning_rates(made, steps).tolist() == seen["rates"]
    assert applied_learning_rates(made, steps, [steps.total_updates]).tolist() == [seen["after"]]


def test_the_vector_by_hand():
    made = config("cosine", lr_warmup_steps=1, train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2)
    two = Steps.of(made, 20, num_processes=2)
    expected = [0, 1, 0.9045, 0.6545, 0.3455, 0.0955, 0]
    np.testing.assert_allclose(applied_learning_rates(made, two, range(7)) / 1e-3, expected, atol=5e-5)


def test_what_the_factor_of_processes_mends():
    # told its total in updates, a scheduler of two processes runs out at half time and rises again (cosine)
    made = config("cosine", lr_warmup_steps=1, train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=4)
    right = Steps.of(made, 20, num_processes=2)
    told = Steps(num_examples=20, train_batch_size=2, max_train_steps=right.total_updates, lr_warmup_steps=1)
    wrong = applied_learning_rates(made, told, range(0, 2 * right.total_updates, 2)) / 1e-3
    expected = [0, 0.9797, 0.8274, 0.5712, 0.2923, 0.0794, 0, 0.0794, 0.2923, 0.5712, 0.8274, 0.9797]
    np.testing.assert_allclose(wrong, expected, atol=5e-5)
    assert not np.allclose(wrong, applied_learning_rates(made, right) / 1e-3, atol=0.01)


WITH_WARMUP = [(name, warmup) for name in WARM_UP for warmup in (0, 1, 3, 9)]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize(("name", "warmup"), [*WITH_WARMUP, ("constant", 0), ("piecewise_constant", 0)])
def test_formulas(name, warmup, num_processes):
    more = {"lr_step_rules": "1:4,0.5:8,0.1"} if name == "piecewise_constant" else {}
    found = rates(name, 10, num_processes, range(13), lr_warmup_steps=warmup, **more)
    for update in range(13):
        done = (update - warmup) / (10 - warmup)
        if update < warmup:
            expected = update / warmup
        elif name.startswith("constant"):
            expected = 1
        elif name == "linear":
            expected = max(0, 1 - done)
        elif name == "cosine":
            expected = 0.5 * (1 + math.cos(math.pi * done))
        elif name == "cosine_with_restarts":
            expected = 0 if done >= 1 else 0.5 * (1 + math.cos(math.pi * done))
        elif name == "polynomial":
            expected = max(0, 1 - done) * (1 - 1e-4) + 1e-4  # from 1e-3 to 1e-7
        else:
            expected = 1 if update < 4 else 0.5 if update < 8 else 0.1
        assert found[update] == pytest.approx(expected, abs=1e-12), update


@pytest.mark.parametrize("warmup", [1, 2, 5])
@pytest.mark.parametrize("name", WARM_UP)
def test_warmup_rises_from_zero_to_the_peak(name, warmup):
    found = rates(name, 10, lr_warmup_steps=warmup)
    assert found[0] == 0
    assert found[warmup] == pytest.approx(1)
    np.testing.assert_allclose(np.diff(found[: warmup + 1]), 1 / warmup)
    assert found.max() == pytest.approx(1)
    assert (np.diff(found[warmup:]) <= 0).all()


@pytest.mark.parametrize("cycles", [1, 2, 4])
def test_restarts(cycles):
    found = rates("cosine_with_restarts", 40, lr_num_cycles=cycles)
    length = 40 // cycles
    assert [update for update in range(40) if found[update] == pytest.approx(1)] == list(range(0, 40, length))
    for first in range(0, 40, length):
        np.testing.assert_allclose(found[first : first + length], found[:length], atol=1e-12)
    assert found.min() > 0  # never touches 0 before it jumps back


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0])
def test_power(power):
    found = rates("polynomial", 10, lr_power=power)
    assert found[5] == pytest.approx(0.5**power * (1 - 1e-4) + 1e-4)


def test_past_the_end():
    past = [10, 11, 15, 20]
    assert rates("linear", at=past).tolist() == [0, 0, 0, 0]
    assert rates("cosine_with_restarts", at=past).tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(rates("cosine", at=past), [0, 0.0245, 0.5, 1], atol=5e-5)  # rises again
    np.testing.assert_allclose(rates("polynomial", at=past), 1e-4)
    assert rates("constant", at=past).tolist() == [1, 1, 1, 1]


def test_step_rules_count_updates():
    assert scheduler_step_rules("1:100,0.1:200,0.01", 4) == "1.0:400,0.1:800,0.01"
    assert scheduler_step_rules(None, 4) is None
    rules = {"lr_step_rules": "1:3,0.123456789:6,0.01"}
    for num_processes in (1, 2, 4):
        found = rates("piecewise_constant", 8, num_processes, **rules)
        np.testing.assert_allclose(found, [1, 1, 1, 0.123456789, 0.123456789, 0.123456789, 0.01, 0.01], rtol=1e-12)


def test_scale_lr_is_in_the_rates():
    made = config("constant", scale_lr=True, train_batch_size=4, gradient_accumulation_steps=2, max_train_steps=3)
    assert applied_learning_rates(made, Steps.of(made, 20, 2)) == pytest.approx([16e-3] * 3)


def test_the_scheduler_starts_the_optimizer_at_update_0():
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    made = config("linear", lr_warmup_steps=2)
    schedule = Schedule.of(made, steps_of((20, 16, 1, 100, None), lr_warmup_steps=2))
    scheduler = schedule.scheduler(optimizer)
    assert type(scheduler).__name__ == "LambdaLR"
    assert optimizer.param_groups[0]["lr"] == 0


def test_many_updates_are_read_without_a_step(monkeypatch):
    steps = []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *nothing: steps.append("optimizer"))
    monkeypatch.setattr(torch.optim.lr_scheduler.LRScheduler, "step", lambda *nothing: steps.append("scheduler"))
    assert len(rates("cosine", 100_000, lr_warmup_steps=1000)) == 100_000
    assert len(steps) <= 1  # torch's own, as the scheduler is made


@pytest.mark.slow
def test_rates_are_those_that_training_records(tmp_path):
    from lora_kit.training import train

    made = config(
        "cosine_with_restarts", lr_num_cycles=2, lr_warmup_steps=1, scale_lr=True, learning_rate=1e-4, resolution=64,
        max_train_samples=6, train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=3, seed=0,
        report_to="none", output_dir=str(tmp_path),
    )  # fmt: skip
    train(made, progress=False)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    recorded = [record["lr"] for record in records if "update" in record]
    assert recorded == applied_learning_rates(made, Steps.of(made, 6)).tolist()
    assert (recorded[0], max(recorded), len(set(recorded))) == (0, 4e-4, 6)


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(LR_SCHEDULERS),
    warmup=st.integers(0, 300),
    total=st.integers(1, 300),
    steps=st.lists(st.integers(0, 700), min_size=1, max_size=30),
    cycles=st.integers(1, 9),
    power=st.floats(0.1, 5),
    peak=st.floats(1e-6, 1.0),
)
def test_the_formula_is_the_librarys_bit_for_bit_before_and_after_the_end(
    name, warmup, total, steps, cycles, power, peak
):
    rules = "1:30,0.5:100,0.25" if name == "piecewise_constant" else None
    told = dict(num_warmup_steps=warmup, num_training_steps=total, num_cycles=cycles, power=power, step_rules=rules)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    factor = get_scheduler(name, optimizer, **told).lr_lambdas[0]
    if name == "polynomial" and warmup == total:
        steps = [step for step in steps if step != total]  # there it divides by 0, as the library does
    schedule = Schedule(name, peak, warmup, total, num_cycles=cycles, power=power, step_rules=rules)
    assert [schedule.factor(step) for step in steps] == [factor(step) for step in steps]


def test_polynomial_divides_by_zero_where_the_library_does():
    with pytest.raises(ZeroDivisionError):
        Schedule("polynomial", 1.0, num_warmup_steps=10, num_training_steps=10).factor(10)


def test_a_name_that_is_no_schedule_is_named():
    with pytest.raises(ValueError, match="^lr_scheduler 'cosin' is not one of diffusers' seven$"):
        Schedule("cosin", 1.0, num_training_steps=2).factor(1)


@pytest.mark.parametrize("num_processes", [1, 3])
@pytest.mark.parametrize(("sizes", "chosen"), CASES)
def test_rates_without_torch_are_the_applied_ones(sizes, chosen, num_processes):
    made = config(**chosen, max_train_steps=12)
    steps = Steps.of(made, 20, num_processes)
    updates = range(20)
    schedule = Schedule.of(made, steps)
    assert [schedule.rate(update) for update in updates] == applied_learning_rates(made, steps, updates).tolist()


@pytest.mark.filterwarnings("ignore::lora_kit.config.ConfigWarning")  # a test of rates ends at a high one
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_range_test_rises_by_the_same_factor_in_each_update(num_processes):
    made = config(
        "piecewise_constant", lr_step_rules=rising_step_rules(40, 1e-4), max_train_steps=40, learning_rate=0.5
    )
    found = applied_learning_rates(made, Steps.of(made, 20, num_processes))
    assert found[0] == pytest.approx(0.5e-4) and found[-1] == 0.5
    np.testing.assert_allclose(found[1:] / found[:-1], 1e4 ** (1 / 39), rtol=2e-5)  # six digits in the rules


@pytest.mark.parametrize(
    ("updates", "lowest", "words"),
    [
        (1, 0.01, "updates 1 is"),
        (2.0, 0.01, "updates 2.0"),
        (9, 0, "lowest 0"),
        (9, 1.0, "lowest 1.0"),
        (9, "x", "lowest 'x'"),
    ],
)
def test_a_range_test_that_can_t_be(updates, lowest, words):
    with pytest.raises(ValueError, match=words):
        rising_step_rules(updates, lowest)


def test_a_schedule_s_warmup_in_updates():
    assert Schedule("cosine", 1.0, num_warmup_steps=12, num_training_steps=40, num_processes=4).warmup_updates == 3
    assert Schedule("constant", 1.0, num_warmup_steps=12, num_training_steps=40, num_processes=4).warmup_updates == 0
    assert Schedule("piecewise_constant", 1.0, 12, 40, step_rules="1:4,0.1").warmup_updates == 0


def test_a_warmup_must_leave_an_update():
    assert check_warmup(9, 10) is None and check_warmup(0, 1) is None
    with pytest.raises(
        ValueError, match=r"lr_warmup_steps 10 is not shorter than the 10 updates .*about 1 \(a tenth\)"
    ):
        check_warmup(10, 10)
    with pytest.raises(ValueError, match=r"lr_warmup_steps 1 .* about 0 \(a tenth\)"):
        check_warmup(1, 1)


def test_rules_that_no_schedule_reads_are_not_read():
    """A setting that is ignored, and said to be, can't end a run."""
    with pytest.warns(match="ignores lr_step_rules 'x'"):
        made = config("linear", lr_step_rules="x", max_train_steps=4)
    assert applied_learning_rates(made, Steps.of(made, 20)).tolist() == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


class Compared(int):
    """A whole number that counts how often it is compared."""

    times = 0

    def __gt__(self, other):
        Compared.times += 1
        return int(self) > other


def test_of_many_rules_few_are_looked_at(monkeypatch):
    rules = [(Compared(boundary), 1 / boundary) for boundary in range(1, 4097)]
    monkeypatch.setattr("lora_kit.schedules.parse_step_rules", lambda _: (rules, 0.0))
    schedule = Schedule("piecewise_constant", peak=1.0, step_rules="as above")
    assert [schedule.rate(update) for update in (0, 4094, 4095, 4096)] == [1.0, 1 / 4095, 1 / 4096, 0.0]
    assert 0 < Compared.times <= 4 * 13  # 2 ** 12 rules


def test_rules_are_read_once_for_a_whole_schedule(monkeypatch):
    read = []
    monkeypatch.setattr("lora_kit.schedules.parse_step_rules", lambda rules: read.append(rules) or ([(2, 1.0)], 0.5))
    schedule = Schedule("piecewise_constant", peak=1e-3, step_rules="1:2,0.5")
    assert [schedule.rate(update) for update in range(4)] == [1e-3, 1e-3, 5e-4, 5e-4] and read == ["1:2,0.5"]
