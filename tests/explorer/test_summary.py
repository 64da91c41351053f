import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_kit.command_line.texts import read
from lora_kit.config import LR_SCHEDULERS, TrainingConfig, parse_args
from lora_kit.doctor.examine import examine_settings
from lora_kit.explorer.summary import AXES, ignored, summarize
from lora_kit.memory import lora_shapes, memory
from lora_kit.schedules import applied_learning_rates
from lora_kit.steps import Steps
from lora_kit.trainers.rosetta import TRAINERS, trainer_rates

RULES = "1:100,0.1:200,0.01"


def settings(**changes):
    base = dict(style="outlined", learning_rate=1e-3, train_batch_size=4, num_train_epochs=12, lr_scheduler="cosine")
    base |= changes
    if base["lr_scheduler"] == "piecewise_constant":
        base["lr_step_rules"] = RULES
    return base


def warned(summary):
    return [f"{one['value']}: {one['reason']}" for one in summary["findings"] if one["status"] == "warning"]


@pytest.mark.parametrize("num_processes", [1, 4])
@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
def test_summary_equals_steps_and_rates(lr_scheduler, num_processes):
    config = TrainingConfig(**settings(lr_scheduler=lr_scheduler, lr_num_cycles=3))
    steps = Steps.of(config, 400, num_processes)
    summary = summarize(config, 400, num_processes)
    assert summary["errors"] == []
    assert summary["steps"] == steps.rows()
    assert summary["total_updates"] == steps.total_updates == 1200 // num_processes
    assert summary["updates"][0] == 0 and summary["updates"][-1] == steps.total_updates - 1
    assert len(summary["updates"]) <= 410
    every = applied_learning_rates(config, steps)
    np.testing.assert_array_equal(summary["rates"], every[summary["updates"]])
    run = summary["curves"][0]
    assert (run["updates"], run["rates"]) == (summary["updates"], summary["rates"])
    for axis in AXES:
        assert run["passed"][axis] == [steps.passed(update)[axis] for update in run["updates"]]
    assert run["ends"] == steps.passed(steps.total_updates)


def test_every_update_of_a_short_run_is_there():
    assert summarize(settings(num_train_epochs=1), 400)["updates"] == list(range(100))


@pytest.mark.parametrize("num_examples", [1, 4, 5, 8])
def test_the_shortest_runs(num_examples):
    assert summarize(settings(num_train_epochs=1), num_examples)["updates"] == list(range(math.ceil(num_examples / 4)))


@pytest.mark.parametrize(
    ("changes", "corners"),
    [
        (dict(lr_warmup_steps=1237), [1236, 1237]),
        (dict(lr_scheduler="piecewise_constant"), [99, 100, 199, 200]),
        (dict(lr_scheduler="cosine_with_restarts", lr_num_cycles=3), [33333, 33334, 66666, 66667]),
    ],
)
def test_corners_and_jumps_of_a_long_run_are_among_its_samples(changes, corners):
    summary = summarize(settings(max_train_steps=100_000, **changes), 400)
    assert len(summary["updates"]) <= 410 and set(corners) <= set(summary["updates"])


def test_the_cursor_is_among_the_samples():
    assert 54_321 in summarize(settings(max_train_steps=100_000), 400, cursor=54_321)["updates"]
    assert max(summarize(settings(num_train_epochs=1), 400, cursor=54_321)["updates"]) == 99


def test_a_dict_and_a_config_say_the_same():
    assert summarize(settings(), 400, 2) == summarize(TrainingConfig(**settings()), 400, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(lr_warmup_steps=5000), ["lr_warmup_steps 5000", "1200 updates"]),
        (dict(lr_warmup_steps=500, max_train_steps=300), ["lr_warmup_steps 500", "300 updates"]),
        (dict(lr_warmup_steps=0.1), ["lr_warmup_steps 0.1", "the second the full rate"]),
        (dict(lr_scheduler="cosin"), ["'cosin'", "'cosine'"]),
        (dict(learning_rate=-1.0), ["learning_rate -1.0"]),
        (dict(lr_shceduler="linear"), ["'lr_shceduler'", "'lr_scheduler'"]),
        (dict(target_modules=("to_qq",)), ["'to_qq'", "'to_q'"]),
        (dict(rank=0), ["rank 0"]),
        (dict(lr_scheduler="polynomial", lr_warmup_steps=300, max_train_steps=300), ["300 updates"]),
    ],
)
def test_what_cannot_work_is_an_error_in_words_and_has_no_command(changes, words):
    summary = summarize(settings(**changes), 400)
    (error,) = summary["errors"]
    assert [word for word in words if word not in error] == []
    assert summary["commands"] == {}


def test_a_warm_up_that_is_too_long_is_drawn_as_it_would_be():
    summary = summarize(settings(lr_warmup_steps=500, max_train_steps=300), 400)
    assert summary["warmup"] == 500 and summary["updates"] == list(range(300))
    np.testing.assert_allclose(summary["rates"], 1e-3 * np.arange(300) / 500, rtol=1e-15)


@pytest.mark.parametrize(
    ("changes", "num_processes", "word"),
    [
        (dict(learning_rate=0.5), 1, "outside 1e-05..0.01"),
        (dict(lr_scheduler="constant", lr_warmup_steps=100), 1, "ignores it"),
        (dict(scale_lr=True), 4, "0.001 x 16 = 0.016"),
        (dict(gradient_accumulation_steps=8), 1, "leave 4 for its last update"),
    ],
)
def test_what_is_odd_is_a_finding_and_raises_no_warning(changes, num_processes, word, recwarn):
    summary = summarize(settings(**changes), 400, num_processes)
    (said,) = warned(summary)
    assert word in said
    assert summary["rates"] and summary["commands"] and not recwarn.list


def test_findings_are_the_doctors():
    chosen = settings(use_8bit_adam=True, gradient_accumulation_steps=8, lr_warmup_steps=2000)
    found = examine_settings(chosen, 400, 4, lora_shapes("embedded"))
    assert summarize(chosen, 400, 4)["findings"] == found.records()
    assert {one.check for one in found if one.status != "fine"} == {"warm-up", "accumulation", "8-bit Adam"}


def test_the_expected_curve_is_that_of_one_process_without_accumulation():
    chosen = settings(lr_warmup_steps=100, gradient_accumulation_steps=2)
    run, expected = summarize(chosen, 400, 4)["curves"]
    alone = summarize(chosen | dict(gradient_accumulation_steps=1), 400, 1)
    assert expected["kind"] == "expected"
    assert (expected["updates"], expected["rates"]) == (alone["updates"], alone["rates"])
    assert expected["ends"]["updates"] == 1200 and run["ends"]["updates"] == 156
    assert len(alone["curves"]) == 1 and alone["said"] == []


def test_why_four_processes_never_leave_the_warm_up_is_said():
    summary = summarize(settings(lr_warmup_steps=500, num_train_epochs=10, lr_scheduler="linear"), 600, 4)
    first, second = summary["said"]
    assert (
        first
        == "4 processes: an update takes 16 images instead of 4, so the same 10 epochs make 380 updates, not 1,500"
    )
    assert second == "the warm-up is counted in updates: 500 are longer than this run, and 33% of that one"
    (error,) = [one for one in summary["findings"] if one["status"] == "error"]
    mended = summarize(settings(num_train_epochs=10, lr_scheduler="linear") | error["change"], 600, 4)
    assert mended["errors"] == [] and max(mended["rates"]) == 1e-3
    assert "--lr_warmup_steps 38" in mended["commands"]["accelerate"]


def test_scale_lr_and_max_train_steps_are_said():
    summary = summarize(settings(scale_lr=True, max_train_steps=300, gradient_accumulation_steps=5), 400, 2)
    assert "2 processes x 5 accumulation steps: an update takes 40 images instead of 4" in summary["said"][0]
    assert "the same 300 updates are 30 epochs, not 3" in summary["said"][0]
    assert summary["said"][-1] == "scale_lr multiplies the rate by 40, not by 4"
    assert summary["peak"] == 40e-3


@pytest.mark.parametrize("key", TRAINERS)
def test_other_trainers_curves(key):
    chosen = settings(lr_warmup_steps=100, lr_scheduler="linear")
    summary = summarize(chosen, 400, 4, trainers=(key,))
    curve = summary["curves"][-1]
    config = TrainingConfig(**chosen)
    assert curve["kind"] == key and TRAINERS[key].source in curve["note"] and TRAINERS[key].read in curve["note"]
    assert curve["rates"] == trainer_rates(key, config, Steps.of(config, 400, 4), curve["updates"])
    top = max(curve["rates"])
    first = curve["updates"][curve["rates"].index(top)]
    other = f"In this run: at most {top:.3g}, first at update {first:,}, and {curve['rates'][-1]:.3g} at the last; here at most 0.001"
    alike = curve["rates"] == pytest.approx(summary["rates"], rel=1e-3, abs=1e-6)
    assert curve["note"].startswith("In this run: the same rates as here." if alike else other)
    same = summarize(settings(lr_scheduler="constant"), 400, 1, trainers=(key,))["curves"][-1]
    assert same["note"].startswith("In this run: the same rates as here.")


def test_a_schedule_that_a_trainer_lacks_is_said_in_its_note():
    found = []
    for key in TRAINERS:
        for name in LR_SCHEDULERS:
            curve = summarize(settings(lr_scheduler=name), 400, 2, trainers=(key,))["curves"][-1]
            assert curve["kind"] == key
            found += [curve["note"]] if not curve["rates"] else []
    assert found and all(len(note) > 40 for note in found)


def test_memory_is_the_models():
    model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    chosen = settings(pretrained_model_name_or_path=model, rank=16, use_8bit_adam=True, mixed_precision="bf16")
    assert summarize(chosen, 400)["memory"] == memory(model, 16, use_8bit_adam=True, mixed_precision="bf16")
    assert summarize(settings(pretrained_model_name_or_path="someone/else"), 400)["memory"] is None


def test_what_adam_s_settings_mean():
    chosen = settings(adam_beta2=0.99, adam_weight_decay=0.5, lr_scheduler="constant", learning_rate=1e-3)
    rows = {name: value for name, value, _ in summarize(chosen, 400)["optimizer"]}
    left = math.prod([1 - 1e-3 * 0.5] * 1200)  # AdamW multiplies by 1 - rate x decay in each update
    assert rows["a weight without gradient keeps"] == f"{left:.2%}" == "54.87%"
    assert rows["their squares over about"] == "100 updates"
    assert rows["largest step of a weight, about"] == "0.001"


def test_weight_decay_is_what_the_optimizer_does():
    import torch

    chosen = settings(num_train_epochs=4, adam_weight_decay=0.2, learning_rate=1e-2)
    config = TrainingConfig(**chosen)
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.2)
    for rate in applied_learning_rates(config, Steps.of(config, 400)):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert summarize(chosen, 400)["optimizer"][-1][1] == f"{weight.item():.2%}"


def test_commands_give_the_configuration_back():
    config = TrainingConfig(**settings(output_dir="a folder", lr_warmup_steps=7, scale_lr=True))
    for processes in (1, 4):
        texts = summarize(config, 400, processes)["commands"]
        words = shlex.split(texts["accelerate"])
        assert parse_args(words[words.index("lora_kit.training") + 1 :]) == config
        for name in ("accelerate", "python", "yaml"):
            found = read(texts[name])
            assert (TrainingConfig(**found["settings"]), found["num_processes"]) == (config, processes)


@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
def test_which_settings_do_nothing(lr_scheduler):
    found = ignored(dict(lr_scheduler=lr_scheduler))
    live = {
        "lr_warmup_steps": lr_scheduler not in ("constant", "piecewise_constant"),
        "lr_num_cycles": lr_scheduler == "cosine_with_restarts",
        "lr_power": lr_scheduler == "polynomial",
        "lr_step_rules": lr_scheduler == "piecewise_constant",
    }
    assert {name for name, on in live.items() if not on} == found.keys()
    values = {"lr_warmup_steps": 30, "lr_num_cycles": 4, "lr_power": 3.0, "lr_step_rules": "1:40,0.5"}
    before = summarize(settings(lr_scheduler=lr_scheduler), 400)["rates"][-100:]
    for name, on in live.items():  # greyed and really without effect; live and really with one
        after = summarize(settings(lr_scheduler=lr_scheduler) | {name: values[name]}, 400)
        assert (
            after["rates"][-100:] != before
            or after["rates"][:50] != summarize(settings(lr_scheduler=lr_scheduler), 400)["rates"][:50]
        ) == on


def test_max_train_steps_makes_epochs_idle():
    assert ignored(dict(max_train_steps=3))["num_train_epochs"] == "max_train_steps decides"


def test_needs_no_torch_and_no_numpy():
    code = (
        "import sys; from lora_kit.explorer.summary import summarize; from lora_kit.trainers.rosetta import TRAINERS; "
        "found = summarize(dict(style='outlined', learning_rate=1e-3, lr_scheduler='linear', use_8bit_adam=True), 400, 4, "
        "tuple(TRAINERS)); assert found['commands'] and found['memory']; "
        "assert not {'torch', 'numpy', 'accelerate', 'diffusers', 'ipywidgets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).resolve().parent.parent)
