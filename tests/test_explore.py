import math
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from lora_kit.config import LR_SCHEDULERS, TrainingConfig, parse_args
from lora_kit.explore import LINE, explorer, summarize, svg_learning_rates
from lora_kit.schedules import applied_learning_rates
from lora_kit.steps import Steps

SVG = "{http://www.w3.org/2000/svg}"
RULES = "1:100,0.1:200,0.01"


def settings(**changes):
    base = dict(style="outlined", learning_rate=1e-3, train_batch_size=4, num_train_epochs=12, lr_scheduler="cosine")
    base |= changes
    if base["lr_scheduler"] == "piecewise_constant":
        base["lr_step_rules"] = RULES
    return base


@pytest.mark.parametrize("num_processes", [1, 4])
@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
def test_summary_equals_steps_and_rates(lr_scheduler, num_processes):
    config = TrainingConfig(**settings(lr_scheduler=lr_scheduler))
    steps = Steps.of(config, 400, num_processes)
    summary = summarize(config, 400, num_processes)
    assert summary["errors"] == [] and summary["warnings"] == []
    assert summary["steps"] == steps.rows()
    assert summary["total_updates"] == steps.total_updates == 1200 // num_processes
    assert summary["updates"][0] == 0 and summary["updates"][-1] == steps.total_updates - 1
    assert len(summary["updates"]) <= 400
    every = applied_learning_rates(config, steps)
    np.testing.assert_array_equal(summary["rates"], every[summary["updates"]])


def test_every_update_of_a_short_run_is_there():
    summary = summarize(settings(num_train_epochs=1), 400)
    assert summary["updates"] == list(range(100))


@pytest.mark.parametrize("num_examples", [1, 4, 5, 8])
def test_the_shortest_runs(num_examples):
    summary = summarize(settings(num_train_epochs=1), num_examples)
    assert summary["updates"] == list(range(math.ceil(num_examples / 4)))
    ElementTree.fromstring(svg_learning_rates(summary))


def test_the_end_of_the_warmup_is_among_the_samples_of_a_long_run():
    summary = summarize(settings(lr_warmup_steps=1237, max_train_steps=100_000), 400)
    assert len(summary["updates"]) <= 400
    assert max(summary["rates"]) == summary["rates"][summary["updates"].index(1237)] == 1e-3


def test_a_dict_and_a_config_say_the_same():
    assert summarize(settings(), 400, 2) == summarize(TrainingConfig(**settings()), 400, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(lr_warmup_steps=5000), ["lr_warmup_steps 5000", "1200 updates"]),
        (dict(lr_warmup_steps=500, max_train_steps=300), ["lr_warmup_steps 500", "300 updates"]),
        (dict(lr_scheduler="cosin"), ["'cosin'", "'cosine'"]),
        (dict(learning_rate=-1.0), ["learning_rate -1.0"]),
        (dict(lr_shceduler="linear"), ["'lr_shceduler'", "'lr_scheduler'"]),
    ],
)
def test_what_cannot_work_is_an_error_in_words(changes, words):
    summary = summarize(settings(**changes), 400)
    (error,) = summary["errors"]
    assert [word for word in words if word not in error] == []
    assert summary["rates"] == [] and summary["command"] == ""
    assert svg_learning_rates(summary) == ""


@pytest.mark.parametrize(
    ("changes", "num_processes", "word"),
    [
        (dict(learning_rate=0.5), 1, "outside 1e-05..0.01"),
        (dict(lr_scheduler="constant", lr_warmup_steps=100), 1, "ignores lr_warmup_steps 100"),
        (dict(scale_lr=True), 4, "scale_lr makes the rate 0.016"),
        (dict(gradient_accumulation_steps=8), 1, "4 of 8 micro-steps"),
    ],
)
def test_what_is_odd_is_a_warning_and_raises_none(changes, num_processes, word, recwarn):
    summary = summarize(settings(**changes), 400, num_processes)
    assert [one for one in summary["warnings"] if word in one]
    assert len(summary["warnings"]) == 1 and summary["rates"]
    assert not recwarn.list


def test_command_line_gives_the_configuration_back():
    config = TrainingConfig(**settings(output_dir="a folder", lr_warmup_steps=7, scale_lr=True))
    alone, four = (shlex.split(summarize(config, 400, count)["command"]) for count in (1, 4))
    assert alone[:3] == ["python", "-m", "lora_kit.training"]
    assert four[:5] == ["accelerate", "launch", "--multi_gpu", "--num_processes", "4"]
    start = four.index("lora_kit.training") + 1
    assert parse_args(alone[3:]) == parse_args(four[start:]) == config


@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
def test_svg_is_well_formed_and_has_a_text_alternative(lr_scheduler):
    summary = summarize(settings(lr_scheduler=lr_scheduler), 400)
    root = ElementTree.fromstring(svg_learning_rates(summary))
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    assert root.find(f"{SVG}title").text == "Learning rate as applied"
    assert root.find(f"{SVG}desc").text.startswith("1200 updates; the rate is 0.001 at update 0")
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert "optimizer update (0 is the first)" in texts and "learning rate" in texts
    assert {"0", "0.001", "1000"} <= set(texts)
    assert root.find(f"{SVG}rect") is None


def test_svg_shades_the_warmup_and_stays_inside_its_frame():
    summary = summarize(settings(lr_warmup_steps=300), 400)
    root = ElementTree.fromstring(svg_learning_rates(summary))
    shade, line = root.find(f"{SVG}rect"), root.find(f"{SVG}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    left, edge = float(shade.get("x")), float(shade.get("x")) + float(shade.get("width"))
    assert points[0] == (left, 216.0)  # update 0, rate 0: where the axes meet
    assert points[-1][0] == 616.0 and min(y for _, y in points) > 26
    assert min(points, key=lambda point: point[1])[0] == pytest.approx(edge, abs=0.2)
    assert "warm-up, 300 updates" in [one.text for one in root.iter(f"{SVG}text")]


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
def test_line_stands_out_on_light_and_dark(background):
    dark, light = sorted((luminance(LINE), luminance(background)))
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_moving_a_slider_changes_the_page():
    box = explorer(num_examples=400)
    seen = [box.view.value]
    for name, value in (
        ("learning_rate", 2e-3), ("lr_warmup_steps", 100), ("train_batch_size", 8), ("num_processes", 2),
        ("gradient_accumulation_steps", 2), ("num_train_epochs", 30), ("scale_lr", True), ("lr_scheduler", "polynomial"),
        ("lr_power", 3.0), ("lr_scheduler", "cosine_with_restarts"), ("lr_num_cycles", 5),
        ("lr_scheduler", "piecewise_constant"), ("lr_step_rules", "1:10,0.5"),
    ):  # fmt: skip
        box.knobs[name].value = value
        assert box.view.value not in seen, name
        assert box.summary["errors"] == []
        assert svg_learning_rates(box.summary) in box.view.value
        seen.append(box.view.value)
    wanted = dict(train_batch_size=8, gradient_accumulation_steps=2, num_train_epochs=30, scale_lr=True)
    wanted |= dict(style="outlined", learning_rate=2e-3, lr_scheduler="piecewise_constant", lr_step_rules="1:10,0.5")
    assert box.summary == summarize(wanted, 400, 2)


def test_an_impossible_warmup_is_shown_and_goes_away():
    box = explorer(num_examples=400, num_processes=4, lr_warmup_steps=500)
    assert "Error:" in box.view.value and "lr_warmup_steps 500" in box.view.value and "<svg" not in box.view.value
    box.knobs["lr_warmup_steps"].value = 30
    assert "Error:" not in box.view.value and "<svg" in box.view.value


def test_what_a_reader_typed_is_escaped():
    box = explorer(lr_scheduler="piecewise_constant", lr_step_rules="<b>1</b>")
    assert "<b>1" not in box.view.value and "&lt;b&gt;1" in box.view.value


@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
def test_knobs_that_the_schedule_ignores_are_disabled(lr_scheduler):
    box = explorer(lr_scheduler=lr_scheduler, lr_warmup_steps=50)
    live = {
        "lr_warmup_steps": lr_scheduler not in ("constant", "piecewise_constant"),
        "lr_num_cycles": lr_scheduler == "cosine_with_restarts",
        "lr_power": lr_scheduler == "polynomial",
        "lr_step_rules": lr_scheduler == "piecewise_constant",
    }
    for name, widget in box.knobs.items():
        assert widget.disabled is not live.get(name, True), name
    assert box.summary["errors"] == [] and box.summary["warnings"] == []
    assert [name for name, on in live.items() if not on and name in box.summary["command"]] == []


def test_max_train_steps_makes_epochs_idle():
    box = explorer(max_train_steps=300)
    assert box.knobs["num_train_epochs"].disabled and box.summary["total_updates"] == 300


def test_settings_without_a_slider_are_kept():
    box = explorer(rank=8, style="blueprint")
    assert "--rank 8" in box.summary["command"] and "--style blueprint" in box.summary["command"]


def test_values_beyond_the_sliders_are_not_cut():
    box = explorer(train_batch_size=64, lr_warmup_steps=2000, num_train_epochs=500, learning_rate=1e-7, lr_power=9.0)
    assert (box.knobs["train_batch_size"].value, box.knobs["lr_warmup_steps"].value) == (64, 2000)
    assert (box.knobs["num_train_epochs"].value, box.knobs["lr_power"].value) == (500, 9.0)
    assert box.knobs["learning_rate"].value == 1e-7


def test_a_value_that_no_run_could_have_is_named():
    with pytest.raises(ValueError, match="'cosin' is unknown; did you mean 'cosine'"):
        explorer(lr_scheduler="cosin")


def test_import_is_light():
    code = "import sys, lora_kit.explore; assert not {'torch', 'ipywidgets', 'diffusers'} & sys.modules.keys()"
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=root)
