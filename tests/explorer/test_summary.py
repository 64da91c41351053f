import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some

from lora_kit.command_line.flags import parse_args
from lora_kit.command_line.texts import read
from lora_kit.config import LR_SCHEDULERS, TrainingConfig
from lora_kit.explorer.charts import svg_learning_rates
from lora_kit.explorer.panels import findings_html, memory_html, steps_html
from lora_kit.explorer.summary import ignored, summarize
from lora_kit.schedules import applied_learning_rates
from lora_kit.steps import AXES, Steps
from lora_kit.trainers.known import TRAINERS

RULES = "1:100,0.1:200,0.01"
EMPTY = dict(
    errors=[], findings=[], sentences=[], ignored={}, steps=[], total_updates=0, warmup=0, updates_per_epoch=0, peak=0.0,
    optimizer=[], curves=[], updates=[], rates=[], memory=None, commands={},
)  # fmt: skip


def settings(**changes):
    base = dict(style="outlined", learning_rate=1e-3, train_batch_size=4, num_train_epochs=12, lr_scheduler="cosine")
    base |= changes
    if base["lr_scheduler"] == "piecewise_constant":
        base["lr_step_rules"] = RULES
    return base


def warned(summary):
    return [
        f"{finding['value']}: {finding['reason']}" for finding in summary["findings"] if finding["status"] == "warning"
    ]


def test_a_summary_by_hand():
    # 7 pictures by 2: 4 batches, 2 for each process, and as many updates an epoch; 3 epochs
    chosen = settings(
        lr_scheduler="linear", train_batch_size=2, num_train_epochs=3, lr_warmup_steps=2, scale_lr=True, lr_power=2.0
    )
    summary = summarize(chosen, 7, 2, cursor=1)
    assert summary.keys() == EMPTY.keys()
    assert summary["errors"] == [] and summary["total_updates"] == 6 and summary["updates_per_epoch"] == 2
    assert summary["warmup"] == 2 and summary["peak"] == 4e-3 and summary["updates"] == [0, 1, 2, 3, 4, 5]
    assert summary["rates"] == pytest.approx([0, 2e-3, 4e-3, 3e-3, 2e-3, 1e-3], rel=1e-12)
    assert summary["steps"] == [
        ("batches in the data set", 4, "ceil(7 / 2)"),
        ("micro-steps an epoch", 2, "ceil(4 / 2)"),
        ("updates an epoch", 2, "ceil(2 / 1)"),
        ("updates in all", 6, "3 x 2"),
        ("epochs begun", 3, "ceil(6 / 2)"),
        ("pictures an update", 4, "2 x 1 x 2"),
        ("micro-steps in an epoch's last update", 1, "of 1"),
        ("warm-up for the scheduler", 4, "2 x 2"),
        ("total for the scheduler", 12, "6 x 2"),
    ]
    assert summary["optimizer"] == [
        ("largest step of a weight, about", "0.004", "the highest rate"),
        ("gradients averaged over about", "10 updates", "1 / (1 - beta1)"),
        ("their squares over about", "1,000 updates", "1 / (1 - beta2)"),
        ("a weight without gradient keeps", "99.99%", "times 1 - rate x decay"),  # 12e-3 x 0.01 are lost
    ]
    assert [(curve["label"], curve["kind"], curve["ends"]["updates"]) for curve in summary["curves"]] == [
        ("as applied", "run", 6), ("one process, no accumulation", "expected", 12),
    ]  # fmt: skip
    assert summary["sentences"] == [
        "2 processes: an update takes 4 images instead of 2, so the same 3 epochs make 6 updates, not 12",
        "the warm-up is counted in updates: 2 are 33% of this run, and 17% of that one",
        "scale_lr multiplies the rate by 4, not by 2",
    ]
    assert summary["ignored"] == {
        "lr_num_cycles": "only cosine_with_restarts reads it",
        "lr_power": "only polynomial reads it",
        "lr_step_rules": "only piecewise_constant reads it",
    }
    assert list(summary["commands"]) == ["accelerate", "diffusers", "python", "yaml"]
    assert (
        "--lr_warmup_steps 2" in summary["commands"]["accelerate"]
        and "--num_processes 2" in summary["commands"]["accelerate"]
    )
    assert "num_examples: 7" in summary["commands"]["yaml"]


def test_match_diffusers_warms_up_as_the_script_does():
    chosen = settings(match_diffusers=True)
    summary = summarize(chosen, 400)
    assert summary["errors"] == [] and summary["warmup"] == 500 and summary["rates"][0] == 0
    assert summary["peak"] == max(summary["rates"]) == 1e-3
    assert summary["updates"][summary["rates"].index(1e-3)] == 500
    assert summarize(TrainingConfig(**chosen), 400) == summary
    assert ("warm-up for the scheduler", 500, "500 x 1") in summary["steps"]


def test_match_diffusers_with_settings_of_the_kit():
    # what equals the kit's defaults is no default of the script
    chosen = settings(match_diffusers=True, lr_warmup_steps=0)
    for whole in (chosen, TrainingConfig(**chosen)):
        assert summarize(whole, 400)["warmup"] == 0 and summarize(whole, 400)["rates"][0] == 1e-3
    del chosen["learning_rate"]
    assert summarize(chosen, 400)["peak"] == summarize(TrainingConfig(**chosen), 400)["peak"] == 1e-4


def test_match_diffusers_takes_a_warm_up_longer_than_the_run_and_has_a_command_for_it():
    summary = summarize(settings(match_diffusers=True, max_train_steps=250), 400)
    assert summary["rates"][-1] == pytest.approx(249 / 500 * 1e-3) and summary["warmup"] == 500
    assert summary["commands"] or summary["errors"]  # as the doctor sees it


@pytest.mark.parametrize("num_processes", [1, 4])
@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
def test_rates_are_those_that_the_library_applies(lr_scheduler, num_processes):
    cycles = dict(lr_num_cycles=3) if lr_scheduler == "cosine_with_restarts" else {}
    config = TrainingConfig(**settings(lr_scheduler=lr_scheduler, **cycles))
    steps = Steps.of(config, 400, num_processes)
    summary = summarize(config, 400, num_processes)
    assert summary["errors"] == [] and summary["total_updates"] == 1200 // num_processes
    assert summary["updates"][0] == 0 and summary["updates"][-1] == 1200 // num_processes - 1
    assert len(summary["updates"]) <= 410
    np.testing.assert_array_equal(summary["rates"], applied_learning_rates(config, steps)[summary["updates"]])
    run = summary["curves"][0]
    assert (run["updates"], run["rates"]) == (summary["updates"], summary["rates"]) and list(run["passed"]) == list(
        AXES
    )


def test_the_cursor_is_among_the_samples():
    assert 54_321 in summarize(settings(max_train_steps=100_000), 400, cursor=54_321)["updates"]
    assert max(summarize(settings(num_train_epochs=1), 400, cursor=54_321)["updates"]) == 99
    both = summarize(settings(max_train_steps=100_000), 400, 2, cursor=54_321)["curves"]
    assert all(54_321 in curve["updates"] for curve in both)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(lr_warmup_steps=5000), ["lr_warmup_steps 5000", "1200 updates"]),
        (dict(lr_warmup_steps=500, max_train_steps=300), ["lr_warmup_steps 500", "300 updates"]),
        (dict(lr_warmup_steps=0.1), ["lr_warmup_steps 0.1", "the second the full rate"]),
        (dict(lr_warmup_steps=math.nan), ["lr_warmup_steps nan", "not a whole number"]),
        (dict(lr_scheduler="cosin"), ["'cosin'", "'cosine'"]),
        (dict(learning_rate=-1.0), ["learning_rate -1.0"]),
        (dict(lr_shceduler="linear"), ["'lr_shceduler'", "'lr_scheduler'"]),
        (dict(target_modules=("to_qq",)), ["'to_qq'", "'to_q'"]),
        (dict(rank=0), ["rank 0"]),
        (dict(mixed_precision="fp8"), ["mixed_precision 'fp8'", "bf16"]),
        (dict(lr_scheduler="polynomial", lr_warmup_steps=300, max_train_steps=300), ["300 updates"]),
        (dict(learning_rate=1e308, scale_lr=True), ["update 0", "inf"]),
        (dict(rank=10**400), ["rank 1000", "count"]),
        (dict(train_batch_size=10**400), ["train_batch_size 1000", "count"]),
        (dict(seed=10**5000), ["seed", "5000 digits"]),
    ],
)
def test_what_cannot_work_is_an_error_in_words_and_has_no_command(changes, words):
    summary = summarize(settings(**changes), 400)
    (error,) = summary["errors"]
    assert [word for word in words if word not in error] == []
    assert summary["commands"] == {}


def test_what_the_doctor_does_not_look_at_is_an_error_too():
    summary = summarize(settings(train_data_dir="pictures"), 400)
    assert "style 'outlined' and train_data_dir 'pictures'" in " ".join(summary["errors"]) and not summary["commands"]
    both = dict(hub_token="x", report_to="wandb")
    assert "would publish the token" in " ".join(summarize(settings(**both), 400)["errors"])


@pytest.mark.parametrize(("counts", "words"), [((0, 1), "num_examples 0"), ((400, 2.5), "num_processes 2.5")])
def test_counts_that_cannot_be_are_errors(counts, words):
    summary = summarize(settings(), *counts)
    assert words in summary["errors"][0] and summary["curves"] == [] and summary["memory"]


def test_an_error_of_the_lora_alone_leaves_the_rest_empty():
    summary = summarize(settings(rank=0, lr_warmup_steps=5), 400, 2)
    assert summary | dict(errors=[], ignored={}) == EMPTY


def test_what_cannot_be_asked_is_raised():
    with pytest.raises(ValueError, match="^trainer 'koya' is unknown; it must be one of kohya, simpletuner,"):
        summarize(settings(), 400, trainers=("kohya", "koya"))
    with pytest.raises(ValueError, match="^cursor -1 is not a whole number of at least 0"):
        summarize(settings(), 400, cursor=-1)
    with pytest.raises(TypeError):
        summarize(None, 400)


def test_settings_are_not_changed_and_any_iterable_of_trainers_will_do():
    chosen = settings()
    before = dict(chosen)
    summary = summarize(chosen, 400, trainers=(key for key in ("kohya", "ai_toolkit")))
    assert chosen == before and [curve["kind"] for curve in summary["curves"]] == ["run", "kohya", "ai_toolkit"]


@pytest.mark.parametrize("warmup", [0.1, math.nan, -1, "ten", None])
def test_a_warm_up_that_is_no_number_of_updates_is_an_error_and_the_rest_is_drawn(warmup):
    summary = summarize(settings(lr_warmup_steps=warmup), 400, 2)
    assert len(summary["errors"]) == 1 and repr(warmup) in summary["errors"][0]
    assert summary["warmup"] == 0 and summary["rates"][0] == 1e-3 and len(summary["curves"]) == 2


def test_numbers_of_numpy_are_numbers():
    chosen = settings(
        rank=np.int64(16), learning_rate=np.float32(0.5), lr_warmup_steps=np.int32(10), max_train_steps=np.int64(20)
    )
    summary = summarize(chosen, np.int64(400), np.int64(2), cursor=np.int64(3))
    assert summary["errors"] == [] and summary["peak"] == 0.5 and summary["warmup"] == 10
    assert summary["memory"]["lora"] == 4 * summarize(settings(), 400)["memory"]["lora"]  # rank 4


def test_a_warm_up_that_is_too_long_is_drawn_as_it_would_be():
    summary = summarize(settings(lr_warmup_steps=500, max_train_steps=300), 400)
    assert summary["errors"] == ["lr_warmup_steps 500: the run has 300 updates, so the rate never reaches its peak"]
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
    (warning,) = warned(summary)
    assert word in warning
    assert summary["rates"] and summary["commands"] and not recwarn.list


def test_the_doctor_is_asked_about_the_shapes_of_the_lora():
    summary = summarize(settings(use_8bit_adam=True), 400)
    (finding,) = [finding for finding in summary["findings"] if finding["check"] == "8-bit Adam"]
    assert (
        finding["value"] == "rank 4"
        and finding["status"] == "warning"
        and finding["change"] == {"use_8bit_adam": False}
    )


def test_the_expected_curve_is_that_of_one_process_without_accumulation():
    chosen = settings(lr_warmup_steps=100, gradient_accumulation_steps=2, lr_scheduler="constant_with_warmup")
    run, expected = summarize(chosen, 400, 4)["curves"]
    # 100 batches an epoch, alone 1,200 updates; 25 for each of four, 13 updates an epoch
    assert (run["ends"]["updates"], expected["ends"]["updates"]) == (156, 1200)
    assert run["rates"][50] == expected["rates"][expected["updates"].index(99)] / 99 * 50 == pytest.approx(0.5e-3)
    assert expected["kind"] == "expected" and expected["ends"]["images"] == 4800


@pytest.mark.parametrize("changes", [dict(gradient_accumulation_steps=2), dict()])
def test_the_expected_curve_is_there_for_processes_and_for_accumulation(changes):
    assert len(summarize(settings(**changes), 400, 1 if changes else 2)["curves"]) == 2
    alone = summarize(settings(), 400)
    assert len(alone["curves"]) == 1 and alone["sentences"] == []


def test_an_expected_curve_that_is_the_same_is_left_out():
    # one update of the one picture there is, on one process or with two micro-steps
    one = settings(gradient_accumulation_steps=2, num_train_epochs=1)
    assert len(summarize(one, 1)["curves"]) == 1 and len(summarize(one, 1)["sentences"]) == 1


def test_why_four_processes_never_leave_the_warm_up_is_said():
    summary = summarize(settings(lr_warmup_steps=500, num_train_epochs=10, lr_scheduler="linear"), 600, 4)
    assert summary["sentences"] == [
        "4 processes: an update takes 16 images instead of 4, so the same 10 epochs make 380 updates, not 1,500",
        "the warm-up is counted in updates: 500 are longer than this run, and 33% of that one",
    ]
    (error,) = [finding for finding in summary["findings"] if finding["status"] == "error"]
    mended = summarize(settings(num_train_epochs=10, lr_scheduler="linear") | error["change"], 600, 4)
    assert mended["errors"] == [] and max(mended["rates"]) == 1e-3
    assert "--lr_warmup_steps 38" in mended["commands"]["accelerate"]


def test_max_train_steps_and_accumulation_in_sentences():
    summary = summarize(
        settings(scale_lr=True, max_train_steps=3000, gradient_accumulation_steps=5, lr_warmup_steps=7), 400, 2
    )
    assert summary["sentences"] == [
        "2 processes x 5 accumulation steps: an update takes 40 images instead of 4, so the same 3,000 updates are 300 "
        "epochs, not 30",
        "scale_lr multiplies the rate by 40, not by 4",
    ]  # a warm-up that is the same share of both runs needs no words
    long = summarize(settings(max_train_steps=1_000_000), 400, 2)["sentences"]
    assert long == [
        "2 processes: an update takes 8 images instead of 4, so the same 1,000,000 updates are 20,000 epochs, not 10,000"
    ]
    assert "make 6,000 updates, not 12,000" in summarize(settings(num_train_epochs=120), 400, 2)["sentences"][0]
    alone = summarize(settings(gradient_accumulation_steps=3), 400)["sentences"]
    assert alone == [
        "3 accumulation steps: an update takes 12 images instead of 4, so the same 12 epochs make 408 updates, not 1,200"
    ]


@pytest.mark.parametrize(("processes", "words"), [(3, "500 are longer than this run"), (2, "500 are 83% of this run")])
def test_the_share_of_the_warm_up(processes, words):
    assert words in summarize(settings(lr_warmup_steps=500), 400, processes)["sentences"][1]


def test_a_warm_up_of_exactly_the_run_is_longer_than_it():
    assert "300 are longer than this run" in summarize(settings(lr_warmup_steps=300), 400, 4)["sentences"][1]


def test_a_schedule_that_a_trainer_lacks_is_said_in_its_note():
    for name in LR_SCHEDULERS:
        curves = summarize(settings(lr_scheduler=name), 400, 2, trainers=tuple(TRAINERS))["curves"]
        assert [curve["kind"] for curve in curves[2:] if curve["kind"] != "expected"] == [*TRAINERS][-len(curves[2:]) :]
        assert all(len(curve["note"]) > 40 for curve in curves if curve["kind"] in TRAINERS)


@pytest.mark.parametrize(
    ("changes", "numbers", "bytes_each"),
    [
        (dict(), 797_184, 4),
        (dict(rank=16), 4 * 797_184, 4),
        # two in each of 5 blocks that are 320 wide, 5 of 640 and 6 of 1280; A and B have 4 times the width
        (dict(target_modules=("to_q",)), 2 * 8 * (5 * 320 + 5 * 640 + 6 * 1280), 4),
        (dict(mixed_precision="bf16"), 797_184, 2),
        (dict(mixed_precision=None, use_8bit_adam=True), 797_184, 4),
    ],
)
def test_memory_is_that_of_the_model(changes, numbers, bytes_each):
    model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    memory = summarize(settings(pretrained_model_name_or_path=model, **changes), 400)["memory"]
    assert (memory["parameters"], memory["base"]) == (numbers, bytes_each * 859_520_964)


def test_the_memory_of_another_model_is_not_known_but_its_run_is():
    summary = summarize(settings(pretrained_model_name_or_path="someone/else"), 400)
    assert summary["memory"] is None and summary["total_updates"] == 1200 and summary["commands"]


def test_a_base_of_another_kind_is_an_error_and_the_rest_is_there():
    model = "stabilityai/stable-diffusion-xl-base-1.0"
    summary = summarize(settings(pretrained_model_name_or_path=model), 400)
    (error,) = [finding for finding in summary["findings"] if finding["status"] == "error"]
    assert (error["check"], error["value"]) == ("base model", f"pretrained_model_name_or_path '{model}'")
    assert error["cure"].startswith("diffusers' train_text_to_image_lora_sdxl.py for this model")
    assert summary["errors"] == [f"{error['value']}: {error['reason']}"] and "it is SDXL" in error["reason"]
    assert summary["commands"] == {} and summary["memory"]["tensors"] == 1120 and summary["total_updates"] == 1200


def test_weight_decay_by_hand():
    chosen = settings(adam_beta2=0.99, adam_weight_decay=0.5, lr_scheduler="constant", learning_rate=1e-3)
    rows = {name: value for name, value, _ in summarize(chosen, 400)["optimizer"]}
    left = math.prod([1 - 1e-3 * 0.5] * 1200)  # AdamW multiplies by 1 - rate x decay in each update
    assert rows["a weight without gradient keeps"] == f"{left:.2%}" == "54.87%"
    assert rows["their squares over about"] == "100 updates"
    assert rows["largest step of a weight, about"] == "0.001"


@pytest.mark.parametrize(
    ("rate", "decay", "words"),
    [(1e-3, 0.0, "100.00%"), (1.0, 1.0, "0.00%"), (1.0, 2.0, "100.00%"), (1.0, 2.1, "more than 100%"),
     (1e300, 1.0, "more than 100%"), (1e300, 1e300, "more than 100%")],
)  # fmt: skip
def test_weight_decay_at_its_ends(rate, decay, words):
    chosen = settings(lr_scheduler="constant", learning_rate=rate, adam_weight_decay=decay)
    assert summarize(chosen, 400)["optimizer"][-1][1] == words


def test_the_largest_step_has_three_digits():
    assert summarize(settings(learning_rate=1.23456e-3), 400)["optimizer"][0][1] == "0.00123"


def test_a_weight_that_decay_overshoots():
    for decay, words in ((1.5, "-50.00%"), (2.5, "more than 100%")):  # 1 - 1.5 and 1 - 2.5 are left
        chosen = settings(lr_scheduler="constant", learning_rate=1.0, adam_weight_decay=decay, max_train_steps=1)
        assert summarize(chosen, 400)["optimizer"][-1][1] == words


def test_weight_decay_is_what_the_optimizer_does():
    import torch

    chosen = settings(num_train_epochs=40, adam_weight_decay=0.2, learning_rate=1e-2)
    config = TrainingConfig(**chosen)
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.2)
    for rate in applied_learning_rates(config, Steps.of(config, 100)):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    shown = float(summarize(chosen, 100)["optimizer"][-1][1].rstrip("%"))  # read from 400 of the 1,000 updates
    assert shown == pytest.approx(100 * weight.item(), abs=0.1)


def test_commands_give_the_configuration_back():
    config = TrainingConfig(**settings(output_dir="a folder", lr_warmup_steps=7, scale_lr=True))
    for processes in (1, 4):
        texts = summarize(config, 400, processes)["commands"]
        words = shlex.split(texts["accelerate"])
        assert parse_args(words[words.index("lora_kit.training") + 1 :]) == config
        for name in ("accelerate", "python", "yaml"):
            record = read(texts[name])
            assert (TrainingConfig(**record.settings), record.num_processes) == (config, processes)


WHY_IDLE = {
    "lr_num_cycles": "only cosine_with_restarts reads it",
    "lr_power": "only polynomial reads it",
    "lr_step_rules": "only piecewise_constant reads it",
}


@pytest.mark.parametrize(
    ("lr_scheduler", "reads"),
    [
        ("constant", []), ("constant_with_warmup", ["lr_warmup_steps"]), ("linear", ["lr_warmup_steps"]),
        ("cosine", ["lr_warmup_steps"]), ("cosine_with_restarts", ["lr_warmup_steps", "lr_num_cycles"]),
        ("polynomial", ["lr_warmup_steps", "lr_power"]), ("piecewise_constant", ["lr_step_rules"]),
    ],
)  # fmt: skip
def test_which_settings_do_nothing(lr_scheduler, reads):
    reasons = WHY_IDLE | {"lr_warmup_steps": f"{lr_scheduler} has no warm-up"}
    assert ignored(dict(lr_scheduler=lr_scheduler)) == {name: why for name, why in reasons.items() if name not in reads}
    values = {"lr_warmup_steps": 30, "lr_num_cycles": 4, "lr_power": 3.0, "lr_step_rules": "1:40,0.5"}
    before = summarize(settings(lr_scheduler=lr_scheduler), 400)["rates"]
    for name, value in values.items():  # idle and really without effect, or read and really with one
        after = summarize(settings(lr_scheduler=lr_scheduler) | {name: value}, 400)["rates"]
        assert (after != before) == (name in reads), name


def test_what_else_does_nothing():
    assert ignored({}) == WHY_IDLE | {"lr_warmup_steps": "constant has no warm-up"}
    assert ignored(dict(max_train_steps=3, lr_scheduler="cosin")) == {"num_train_epochs": "max_train_steps decides"}
    assert ignored(dict(max_train_steps=None, lr_scheduler="cosin")) == {}


NUMBERS = some.one_of(
    some.integers(-3, 40), some.integers(), some.floats(), some.just(10**400), some.just(-(10**5000)), some.none(),
    some.booleans(), some.text(max_size=3), some.sampled_from([1e300, 1.7e308, 5e-324, 10**9, 2**63, np.int64(4)]),
)  # fmt: skip
NAMES = (
    "learning_rate", "lr_warmup_steps", "lr_num_cycles", "lr_power", "train_batch_size", "num_train_epochs", "rank",
    "max_train_steps", "gradient_accumulation_steps", "adam_beta1", "adam_beta2", "adam_weight_decay", "seed",
)  # fmt: skip


@effort(max_examples=200, deadline=None)
@given(
    changes=some.dictionaries(some.sampled_from(NAMES), NUMBERS, max_size=4),
    scheduler=some.sampled_from(LR_SCHEDULERS),
    flags=some.dictionaries(some.sampled_from(["scale_lr", "match_diffusers", "use_8bit_adam"]), some.booleans()),
    rules=some.sampled_from([RULES, "1e308:3,1e-320", "1:1,inf", "x", None]) | some.text(max_size=5),
    counts=some.tuples(some.sampled_from([1, 400]) | NUMBERS, some.sampled_from([1, 3]) | NUMBERS),
)
def test_no_numbers_make_a_summary_or_its_picture_fail(changes, scheduler, flags, rules, counts):
    chosen = settings(lr_scheduler=scheduler) | changes | flags | dict(lr_step_rules=rules)
    summary = summarize(chosen, *counts, trainers=tuple(TRAINERS))
    assert bool(summary["commands"]) == (not summary["errors"]) and all(summary["errors"])
    assert all(math.isfinite(rate) for curve in summary["curves"] for rate in curve["rates"])
    assert summary["curves"] or summary["errors"]
    for axis in AXES:
        assert "nan" not in svg_learning_rates(summary, axis) and "nan" not in svg_learning_rates(
            summary, axis, log=True
        )
    assert findings_html(summary) and memory_html(summary["memory"]) and (steps_html(summary) or summary["errors"])


def test_needs_no_torch_and_no_numpy():
    code = (
        "import sys; from lora_kit.explorer.summary import summarize; from lora_kit.trainers.known import TRAINERS; "
        "summary = summarize(dict(style='outlined', learning_rate=1e-3, lr_scheduler='linear', use_8bit_adam=True), 400, 4, "
        "tuple(TRAINERS)); assert summary['commands'] and summary['memory']; "
        "assert not {'torch', 'numpy', 'accelerate', 'diffusers', 'ipywidgets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).resolve().parents[2])
