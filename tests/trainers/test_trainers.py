import re
import subprocess
import sys

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch.optim import lr_scheduler as torchs
from transformers import get_scheduler as transformers_get_scheduler

from lora_kit.config import TrainingConfig
from lora_kit.lr_settings import LR_SCHEDULERS
from lora_kit.schedules import Schedule
from lora_kit.steps import Steps
from lora_kit.trainers.known import TRAINERS, trainer_rates

PEAK = 1e-3
RULES = {"lr_step_rules": "1:4,0.1"}


def drafted(lr_scheduler, updates=8, accumulate=1, **settings):
    defaults = dict(style="outlined", learning_rate=PEAK, max_train_steps=updates, train_batch_size=2)
    return TrainingConfig.draft(
        **defaults | settings, gradient_accumulation_steps=accumulate, lr_scheduler=lr_scheduler
    )


def factors(key, config, at, processes=1, pictures=20):
    return [rate / PEAK for rate in trainer_rates(key, config, Steps.of(config, pictures, processes), at)]


def ticked(scheduler, updates, ticks=1, before=0):
    """The rates of a real scheduler that makes so many ticks an update, and some before the first, as a factor."""
    seen = []
    for update in range(updates):
        for _ in range(ticks if update else before):
            scheduler.optimizer.step()
            scheduler.step()
        seen.append(scheduler.optimizer.param_groups[0]["lr"] / PEAK)
    return seen


def sgd():
    return torch.optim.SGD([torch.zeros(1)], lr=PEAK)


@pytest.mark.parametrize(
    ("key", "config", "processes", "expected"),
    [
        # a warm-up of 4 ticks is 2 updates on 2 processes; the total is 16 ticks
        ("kohya", drafted("linear", lr_warmup_steps=4), 2, {0: 0, 1: 0.5, 2: 1, 5: 0.5, 8: 0, 9: 0}),
        ("kohya", drafted("linear", lr_warmup_steps=4), 1, {0: 0, 2: 0.5, 4: 1, 6: 0.5, 8: 0}),
        ("kohya", drafted("cosine", lr_warmup_steps=4), 2, {1: 0.5, 2: 1, 5: 0.5, 8: 0}),
        ("kohya", drafted("piecewise_constant", **RULES), 2, {0: 1, 1: 1, 2: 0.1, 7: 0.1}),
        ("kohya", drafted("constant"), 2, {0: 1, 8: 1}),
        # down in 4 updates and up again in 4, to lr_end 4e-7 instead of 0, on any number of processes
        ("simpletuner", drafted("cosine", lr_warmup_steps=4), 1, {0: 1, 2: 0.5002, 4: 4e-4, 8: 1, 12: 4e-4}),
        ("simpletuner", drafted("cosine", lr_warmup_steps=4), 2, {0: 1, 2: 0.5002, 4: 4e-4, 8: 1, 12: 4e-4}),
        ("simpletuner", drafted("cosine"), 2, {0: 1, 250: 0.5002, 500: 4e-4}),
        ("simpletuner", drafted("cosine_with_restarts", lr_warmup_steps=4), 2, {0: 1, 4: 1, 8: 1}),
        ("simpletuner", drafted("polynomial"), 2, {0: 1, 4: 0.5002, 8: 4e-4, 9: 4e-4}),
        ("simpletuner", drafted("polynomial", lr_warmup_steps=4), 2, {0: 0, 1: 0.25, 4: 1, 6: 0.5002, 8: 4e-4}),
        ("simpletuner", drafted("constant", lr_warmup_steps=4), 2, {0: 0, 1: 0.25, 4: 1, 9: 1}),
        # told 8 ticks: over after 4 updates of 2 processes
        ("ai_toolkit", drafted("linear"), 2, {0: 1 / 3, 2: 2 / 3, 4: 1, 8: 1}),
        ("ai_toolkit", drafted("linear", lr_warmup_steps=4), 1, {0: 1 / 3, 4: 2 / 3, 8: 1}),
        ("ai_toolkit", drafted("cosine"), 2, {0: 1, 2: 0.5, 4: 0, 8: 1}),
        ("ai_toolkit", drafted("cosine_with_restarts", lr_num_cycles=3), 2, {0: 1, 2: 0.5, 4: 1, 6: 0.5}),
        ("ai_toolkit", drafted("constant_with_warmup", lr_warmup_steps=4), 2, {0: 0, 1: 0.5, 2: 1, 8: 1}),
        # update 1 comes in the fourth micro-step, after 3 ticks of 6
        ("ai_toolkit", drafted("cosine", updates=6, accumulate=2), 1, {1: 0.5}),
        # 4 micro-steps are 2 updates, on any number of processes
        ("onetrainer", drafted("linear", accumulate=2, lr_warmup_steps=4), 3, {0: 0, 1: 0.5, 2: 1, 5: 0.5, 8: 0, 9: 0}),
        ("onetrainer", drafted("constant", lr_warmup_steps=4), 1, {0: 0, 1: 0.25, 4: 1, 9: 1}),
        ("onetrainer", drafted("linear", lr_warmup_steps=1), 1, {0: 0, 4: 0.5, 7: 7 / 8}),
        ("onetrainer", drafted("cosine"), 1, {0: 1, 4: 0.5, 8: 0, 12: 0.5}),
        ("onetrainer", drafted("cosine_with_restarts", lr_num_cycles=2), 1, {0: 1, 2: 0, 4: 1, 6: 0, 7: 0.5, 9: 0.5}),
        # warm-up 8 ticks and total 16, where a process makes 8 ticks in all
        ("diffusers_sdxl", drafted("linear", accumulate=2, lr_warmup_steps=4), 1, {0: 0, 4: 0.5, 8: 1}),
        ("diffusers_sdxl", drafted("linear", accumulate=2, lr_warmup_steps=4), 2, {0: 0, 2: 0.5, 4: 1, 6: 0.5, 8: 0}),
        ("diffusers_sdxl", drafted("linear"), 2, {0: 1, 2: 0.5, 4: 0, 8: 0}),
        ("diffusers_sdxl", drafted("polynomial", lr_power=2.0), 1, {0: 1, 4: 0.50005}),
        ("forgets_processes", drafted("cosine"), 2, {0: 1, 2: 0.5, 4: 0, 8: 1}),
        ("forgets_processes", drafted("linear", lr_warmup_steps=4), 2, {0: 0, 1: 0.5, 2: 1, 3: 0.5, 4: 0, 8: 0}),
        ("forgets_processes", drafted("piecewise_constant", **RULES), 4, {0: 1, 1: 0.1}),
    ],
)
def test_by_hand(key, config, processes, expected):
    assert factors(key, config, expected, processes) == pytest.approx(list(expected.values()), abs=1e-6)


def test_epochs():
    config = drafted("linear", updates=None, num_train_epochs=4, accumulate=2)
    assert Steps.of(config, 19, 2).total_updates == 12
    # 4 full batches a process and epoch, 16 in all, 8 updates; the last batch of an epoch makes none
    assert factors("onetrainer", config, [0, 4, 8], 2, 19) == pytest.approx([1, 0.5, 0])
    # 10 batches of all processes are 5 updates an epoch: 20 x 2 ticks for the 12 x 2 that are made
    assert factors("diffusers_sdxl", config, [0, 10, 12], 2, 19) == pytest.approx([1, 0.5, 0.4])
    assert factors("kohya", config, [0, 6, 12], 2, 19) == pytest.approx([1, 0.5, 0])


def with_share(config, share):
    """A warm-up below 1, which this kit refuses and two trainers take."""
    object.__setattr__(config, "lr_warmup_steps", share)
    return config


def test_warm_up_that_is_a_share_of_the_run():
    steps = Steps.of(drafted("linear"), 20, 2)
    quarter = [0, PEAK / 2, PEAK, PEAK / 2]
    for key in ("kohya", "onetrainer"):
        rates = trainer_rates(key, with_share(drafted("linear"), 0.25), steps, [0, 1, 2, 5])
        assert rates == pytest.approx(quarter)


@pytest.mark.parametrize("key", TRAINERS)
def test_warm_up_longer_than_the_run(key):
    config = drafted("linear", lr_warmup_steps=20)
    ramp = [1 / 3 + update / 12 if key == "ai_toolkit" else update / 20 for update in range(8)]
    assert factors(key, config, range(8)) == pytest.approx(ramp)


def test_division_by_zero_is_explained():
    with pytest.raises(ValueError, match="OneTrainer divides by zero: lr_warmup_steps 1 leaves nothing of its run"):
        factors("onetrainer", drafted("cosine", lr_warmup_steps=1), [8])


HUGE = [
    dict(learning_rate=1e308),
    dict(learning_rate=1e300),
    dict(lr_warmup_steps=2**62),
    dict(scale_lr=True, train_batch_size=2**62),
]


@pytest.mark.parametrize("key", TRAINERS)
@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
@pytest.mark.parametrize("numbers", HUGE, ids=lambda numbers: " ".join(numbers))
def test_numbers_that_no_float_holds_are_named(key, lr_scheduler, numbers):
    config = drafted(lr_scheduler, **RULES | numbers)
    try:
        rates = trainer_rates(key, config, Steps.of(drafted(lr_scheduler, **RULES), 20, 2), range(8))
    except ValueError as error:
        assert 20 < len(str(error)) < 400  # a sentence, and not the 400 digits twice
    else:
        assert all(0 <= rate <= config.peak_learning_rate(2) for rate in rates)


def test_a_rate_that_can_not_be_rounded_to_nano_is_refused():
    with pytest.raises(ValueError, match=r"SimpleTuner can't count with learning_rate 1e\+300"):
        factors("simpletuner", drafted("cosine", learning_rate=1e300), [0])


@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
@pytest.mark.parametrize("warmup", [0, 3])
def test_one_process_without_accumulation_is_as_the_library_has_it(lr_scheduler, warmup):
    config = drafted(lr_scheduler, 10, lr_warmup_steps=warmup if lr_scheduler != "constant" else 0, **RULES)

    def same(key, processes=1):
        steps = Steps.of(config, 20, processes)
        library = Schedule.of(config, steps).applied(range(13))
        assert trainer_rates(key, config, steps, range(13)) == pytest.approx(library, rel=1e-12, abs=1e-18)

    same("kohya")
    same("forgets_processes")
    if lr_scheduler != "piecewise_constant":
        same("diffusers_sdxl")
    if lr_scheduler in ("constant", "constant_with_warmup", "linear"):
        same("simpletuner", 3)  # there it multiplies as this kit does


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("constant_with_warmup", {}),
        ("linear", {}),
        ("cosine", {}),
        ("cosine_with_restarts", {"num_cycles": 2}),
        ("polynomial", {"power": 2.0}),
    ],
)
def test_schedulers_of_transformers_and_diffusers(name, more, processes):
    config = drafted(name, 10, 2, lr_warmup_steps=3, **{f"lr_{setting}": value for setting, value in more.items()})
    ours = transformers_get_scheduler(name, sgd(), 3, 10 * processes, scheduler_specific_kwargs=more)
    assert factors("kohya", config, range(13), processes) == pytest.approx(ticked(ours, 13, processes, 0))
    forgets = get_scheduler(name, sgd(), num_warmup_steps=3, num_training_steps=10, **more)
    assert factors("forgets_processes", config, range(13), processes) == pytest.approx(
        ticked(forgets, 13, processes, 0)
    )
    sdxl = get_scheduler(name, sgd(), num_warmup_steps=3 * 2, num_training_steps=10 * 2)
    assert factors("diffusers_sdxl", config, range(13), processes) == pytest.approx(ticked(sdxl, 13, processes, 0))


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("constant", lambda optimizer: torchs.ConstantLR(optimizer, factor=1.0, total_iters=10)),
        ("linear", lambda optimizer: torchs.LinearLR(optimizer, total_iters=10)),
        ("cosine", lambda optimizer: torchs.CosineAnnealingLR(optimizer, T_max=10)),
        ("cosine_with_restarts", lambda optimizer: torchs.CosineAnnealingWarmRestarts(optimizer, T_0=10)),
    ],
)
def test_schedulers_of_torch(name, make, processes, accumulate):
    """ai-toolkit ticks in each micro-step, also in those without an update; the update is in the last of `accumulate`."""
    real = ticked(make(sgd()), 13, accumulate * processes, (accumulate - 1) * processes)
    assert factors("ai_toolkit", drafted(name, 10, accumulate), range(13), processes) == pytest.approx(real, abs=1e-9)


REFUSED = {
    ("kohya", "constant"): "kohya's constant refuses lr_warmup_steps 3",
    ("simpletuner", "piecewise_constant"): "SimpleTuner has no lr_scheduler 'piecewise_constant'",
    ("ai_toolkit", "polynomial"): "ai-toolkit can't make lr_scheduler 'polynomial'",
    ("ai_toolkit", "piecewise_constant"): "ai-toolkit can't make lr_scheduler 'piecewise_constant'",
    ("onetrainer", "constant_with_warmup"): "its CONSTANT itself takes the warm-up",
    ("onetrainer", "polynomial"): "OneTrainer has no lr_scheduler 'polynomial'",
    ("onetrainer", "piecewise_constant"): "OneTrainer has no lr_scheduler 'piecewise_constant'",
    ("diffusers_sdxl", "piecewise_constant"): "no setting for the rules",
}


@pytest.mark.parametrize("key", TRAINERS)
@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
def test_every_trainer_answers_or_explains(key, lr_scheduler):
    config = drafted(lr_scheduler, lr_warmup_steps=3, **RULES)
    if (key, lr_scheduler) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[key, lr_scheduler]):
            factors(key, config, [0])
    else:
        shares = factors(key, config, range(8))
        assert len(shares) == 8 and all(isinstance(share, float) and 0 <= share <= 1 for share in shares)


def test_simpletuner_needs_a_period_and_a_rate_above_its_end():
    with pytest.raises(ValueError, match="needs lr_warmup_steps, its period, of at least 1"):
        factors("simpletuner", drafted("cosine_with_restarts"), [0])
    with pytest.raises(ValueError, match="above its lr_end 4e-07, but it is 2e-07"):
        factors("simpletuner", drafted("polynomial", learning_rate=2e-7), [0])


def test_each_trainer_names_its_source():
    assert list(TRAINERS) == ["kohya", "simpletuner", "ai_toolkit", "onetrainer", "diffusers_sdxl", "forgets_processes"]
    for trainer in TRAINERS.values():
        assert re.fullmatch(r"https://github\.com/[\w-]+/[\w-]+/blob/[0-9a-f]{40}/[\w/]+\.py#L\d+", trainer.source)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", trainer.read)
        assert trainer.name and trainer.note.endswith(".")


def test_import_is_light():
    code = (
        "import sys, lora_kit.trainers.known; print({'torch', 'numpy', 'diffusers', 'accelerate'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_a_schedule_without_warm_up_here_may_have_one_there():
    """The setting itself counts: `Steps` has none for this kit's constant."""
    config = drafted("constant", lr_warmup_steps=4)
    assert Steps.of(config, 20).lr_warmup_steps == 0
    assert factors("simpletuner", config, [0, 1, 4]) == pytest.approx([0, 0.25, 1])
    assert factors("onetrainer", config, [0, 1, 4]) == pytest.approx([0, 0.25, 1])
    assert factors("forgets_processes", config, [0, 1, 4]) == [1, 1, 1]
