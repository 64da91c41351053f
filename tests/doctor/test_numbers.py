"""The checks of numbers against what the libraries do, and the cures that are changes of settings."""

import math

import pytest
import torch
from diffusers.optimization import get_scheduler
from doctor_cases import SOUND, TRAPS, findings_of, loaded_unet
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_kit.config import LR_SCHEDULERS, TrainingConfig, quiet_config
from lora_kit.doctor import ERROR, FINE, examine_settings
from lora_kit.doctor.numbers import _largest_divisor
from lora_kit.memory import lora_shapes
from lora_kit.optimizers import make_optimizer, state_bytes
from lora_kit.parameters import add_lora


def test_8bit_adam_saves_what_the_optimizer_saves():
    unet = loaded_unet()
    parameters = add_lora(unet, rank=64)
    (finding,) = findings_of("8-bit Adam", SOUND | dict(use_8bit_adam=True, rank=64))
    sizes = []
    for eight in (False, True):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer = make_optimizer(parameters, TrainingConfig(**SOUND, use_8bit_adam=eight))
        optimizer.step()
        sizes.append(sum(row["bytes"] for row in state_bytes(optimizer)))
    full, small = sizes
    assert f"{full / 1e6:.2f} MB become {small / 1e6:.2f} MB" in finding.reason
    assert small < full


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_a_total_without_the_processes_is_an_error(scheduler):
    settings = SOUND | dict(lr_scheduler=scheduler, lr_num_cycles=3 if "restarts" in scheduler else 1)
    (finding,) = findings_of("scheduler total", settings, num_processes=4, num_training_steps=100)
    assert finding.status == ERROR
    assert "num_training_steps=400" in finding.cure
    assert ("RISES again" in finding.reason) == (scheduler == "cosine")
    assert findings_of("scheduler total", settings, num_processes=4, num_training_steps=400)[0].status == FINE
    (finding,) = findings_of("scheduler total", settings, num_processes=1, num_training_steps=400)
    assert "ends in the middle" in finding.reason


def test_a_total_that_nothing_reads_is_fine():
    (finding,) = findings_of("scheduler total", num_processes=4, num_training_steps=100)
    assert finding.status == FINE and "doesn't read it" in finding.reason


def test_a_warm_up_without_the_processes_is_an_error():
    settings = SOUND | dict(lr_scheduler="cosine", lr_warmup_steps=20)
    findings = findings_of("warm-up", settings, num_processes=4, num_warmup_steps=20)
    assert [finding.status for finding in findings] == [ERROR, FINE]
    assert "5 updates" in findings[0].reason and "num_warmup_steps=80" in findings[0].cure
    assert [finding.status for finding in findings_of("warm-up", settings, num_processes=4, num_warmup_steps=80)] == [
        FINE
    ]


TOLD = [  # scheduler, warm-up and total as get_scheduler is told them, what is said of the last of 100 updates
    ("cosine", 8, 100, "the cosine reaches 0 at update 25 of 100 and RISES again, to {} of the peak"),
    ("cosine", 0, 270, "the cosine reaches 0 at update 67 of 100 and RISES again, to {} of the peak"),
    ("cosine", 32, 800, "the run ends in the middle of the schedule, at {} of the peak"),
    ("linear", 32, 1000, "the run ends in the middle of the schedule, at {} of the peak"),
    ("polynomial", 0, 500, "the run ends in the middle of the schedule, at {} of the peak"),
    ("linear", 32, 200, "the schedule is over at update 50 of 100; from there on nothing is learned"),
]


@pytest.mark.parametrize("scheduler, warmup, total, said", TOLD, ids=str)
def test_what_is_said_of_a_wrong_total_is_what_a_stepped_scheduler_does(scheduler, warmup, total, said):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    stepped = get_scheduler(scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for _ in range(99):
        optimizer.step()
        for _ in range(4):  # what accelerate's prepared scheduler does
            stepped.step()
    share = optimizer.param_groups[0]["lr"] / 1e-3
    asked = SOUND | dict(lr_scheduler=scheduler, lr_warmup_steps=8 if warmup else 0)
    options = dict(num_processes=4, num_training_steps=total, num_warmup_steps=warmup)
    (finding,) = findings_of("scheduler total", asked, **options)
    assert finding.reason == said.format(f"{share:.0%}")
    assert "nothing is learned" not in said or share == 0


def test_a_polynomial_that_the_library_can_not_compute():
    asked = SOUND | dict(lr_scheduler="polynomial", lr_warmup_steps=25)
    (finding,) = findings_of("scheduler total", asked, num_processes=1, num_training_steps=99, num_warmup_steps=99)
    assert finding.status == ERROR and "ends in an error at update 99 of 100" in finding.reason
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    scheduler = get_scheduler("polynomial", optimizer, num_warmup_steps=99, num_training_steps=99)
    with pytest.raises(ZeroDivisionError):
        for _ in range(99):
            optimizer.step()
            scheduler.step()


def test_a_huge_accumulation_is_answered_at_once():
    (finding,) = findings_of("accumulation", SOUND | dict(gradient_accumulation_steps=10**9))
    assert finding.change == {"gradient_accumulation_steps": 50}
    assert "leave 50 for its last update" in finding.reason
    findings = examine_settings(SOUND | dict(gradient_accumulation_steps=10**9, train_batch_size=1), 2**63 - 1)
    assert {finding.check: finding.status for finding in findings}["accumulation"] == "warning"


@given(st.integers(1, 500), st.integers(1, 600))
def test_the_largest_divisor(number, limit):
    assert _largest_divisor(number, limit) == max(size for size in range(1, limit + 1) if number % size == 0)


# cures


NUMBERS = [trap for trap in TRAPS if set(trap[1]) <= {"num_processes"}]
CURED = {"warm-up", "restarts", "learning rate", "8-bit Adam", "polynomial", "accumulation", "images", "clipping"}


@pytest.mark.parametrize("asked, options, check, status, words", NUMBERS, ids=str)
def test_a_cure_that_is_a_change_of_settings_cures(asked, options, check, status, words):
    (sick,) = [finding for finding in findings_of(check, SOUND | asked, **options) if finding.status == status]
    if sick.change is None:
        assert check not in CURED
        return
    changed = SOUND | asked | sick.change
    assert {finding.status for finding in findings_of(check, changed, **options)} <= {FINE}
    quiet_config(changed)


def test_what_the_explorer_s_button_proposes_for_few_pictures_mends():
    asked = dict(style="outlined", learning_rate=1e-3, train_batch_size=1)
    (few,) = [finding for finding in examine_settings(asked, 4, 8) if finding.check == "images"]
    assert few.status == "warning" and few.change is None
    assert few.cure == "more pictures, or at most 4 process(es)"
    (few,) = [f for f in examine_settings(asked | dict(gradient_accumulation_steps=9), 4, 2) if f.check == "images"]
    assert few.change == {"train_batch_size": 1, "gradient_accumulation_steps": 2}


def test_leaving_the_script_keeps_its_defaults():
    findings = examine_settings(dict(style="outlined", match_diffusers=True, seed=0), 400, 2)
    changes = {finding.check: finding.change for finding in findings}
    kept = {"match_diffusers": False, "learning_rate": 1e-4, "lr_warmup_steps": 500}
    assert changes["clipping"] == changes["noise of each process"] == kept


FEW = st.integers(1, 12)
ANY_SETTINGS = st.fixed_dictionaries(
    dict(train_batch_size=FEW, gradient_accumulation_steps=FEW | st.just(10**9), num_train_epochs=st.integers(1, 4)),
    optional=dict(
        learning_rate=st.sampled_from([1e-8, 1e-5, 1e-3, 0.5, 1e300]),
        lr_scheduler=st.sampled_from([name for name in LR_SCHEDULERS if name != "piecewise_constant"]),
        lr_warmup_steps=st.integers(0, 300)
        | st.sampled_from([0.1, 0.9, 2.5, 10.0, -3, -0.5, math.nan, math.inf, 10**400, "many", True, None]),
        max_train_steps=st.none() | st.integers(1, 300),
        lr_num_cycles=st.integers(1, 3),
        max_grad_norm=st.sampled_from([0.0, 1.0]),
        seed=st.none() | st.integers(0, 3),
        rank=st.sampled_from([4, 64]),
        scale_lr=st.booleans(),
        use_8bit_adam=st.booleans(),
        match_diffusers=st.booleans(),
    ),
)


def wrong(asked, num_examples, num_processes):
    shapes = lora_shapes("embedded", asked.get("rank", 4))
    findings = examine_settings(asked, num_examples, num_processes, shapes)
    return [finding for finding in findings if finding.status != FINE]


@settings(max_examples=400, deadline=None)
@given(ANY_SETTINGS, st.integers(1, 60), st.integers(1, 9))
def test_every_change_mends_what_it_is_proposed_for(asked, num_examples, num_processes):
    asked = {"style": "outlined"} | asked
    for finding in wrong(asked, num_examples, num_processes):
        if finding.change is not None:
            after = wrong(asked | finding.change, num_examples, num_processes)
            assert (finding.check, finding.status) not in [(other.check, other.status) for other in after]
            assert "settings" not in [other.check for other in after]


@settings(max_examples=200, deadline=None)
@given(ANY_SETTINGS, st.integers(1, 60), st.integers(1, 9))
def test_mending_again_and_again_comes_to_an_end(asked, num_examples, num_processes):
    asked = {"style": "outlined", "learning_rate": 1e-3} | asked
    for _ in range(12):
        change = next((finding.change for finding in wrong(asked, num_examples, num_processes) if finding.change), None)
        if change is None:
            break
        asked = asked | change
    assert change is None
    quiet_config({"style": "outlined"} | asked)
