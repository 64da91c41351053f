"""The explorer's page: every knob, and what then stands on it, against answers worked out by hand."""

import dataclasses
import html
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lora_kit.command_line.texts import read
from lora_kit.config import TrainingConfig
from lora_kit.data.emoji import load_style
from lora_kit.explorer import explorer
from lora_kit.explorer.knobs import GROUPS, TARGET_SETS
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.state import RULES
from lora_kit.lr_settings import LR_SCHEDULERS
from lora_kit.trainers.known import TRAINERS

ROOT = Path(__file__).resolve().parents[2]
SD_1_5 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PUZZLE = next(name for name in PRESETS if name.startswith("puzzle"))


def words(page, part):
    """The text of a part, as a reader sees it."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page.parts[part].value)).split())


def reply(page):
    return html.unescape(page.reply.value)


def test_the_first_page():
    page = explorer(num_examples=400)
    # 400 pictures in batches of 4, 12 times
    assert "updates in all 1,200 12 x 100" in words(page, "steps")
    assert "as applied: 1200 updates; the rate is 0.001 at update 0" in words(page, "picture")
    assert "read at update 600" in words(page, "picture") and page.cursor.value == 600
    assert "0.0005: as applied" in words(page, "picture")  # a cosine is half way down in the middle
    assert words(page, "command") == (
        "accelerate launch --num_processes 1 -m lora_kit.training --style outlined --train_batch_size 4 "
        "--num_train_epochs 12 --learning_rate 0.001 --lr_scheduler cosine"
    )
    assert "error" not in words(page, "findings") and page.mend.disabled and page.mend.description == "Nothing to mend"
    assert (page.numbers["learning_rate"].value, page.numbers["adam_epsilon"].value) == ("0.001", "1e-08")
    assert (page.numbers["rank"].value, page.knobs["mixed_precision"].value, page.knobs["max_train_steps"].value) == (
        "4",
        "",
        0,
    )


# each move is made on top of those before it: (setting, value, the updates of the run then, a part, what then stands in it)
MOVES = [
    ("learning_rate", 2e-3, 1200, "command", "--learning_rate 0.002"),
    ("lr_warmup_steps", 100, 1200, "picture", "Warm-up: 100 updates"),
    ("train_batch_size", 8, 600, "command", "--train_batch_size 8"),
    ("num_processes", 2, 300, "command", "--num_processes 2"),  # 50 batches, 25 each
    ("gradient_accumulation_steps", 2, 156, "steps", "updates an epoch 13 ceil(25 / 2)"),
    ("num_train_epochs", 30, 390, "steps", "updates in all 390 30 x 13"),
    ("scale_lr", True, 390, "picture", "at most 0.064"),  # 0.002 x 8 x 2 x 2
    ("lr_scheduler", "polynomial", 390, "command", "--lr_scheduler polynomial"),
    ("lr_power", 3.0, 390, "command", "--lr_power 3.0"),
    ("lr_scheduler", "cosine_with_restarts", 390, "command", "--lr_scheduler cosine_with_restarts"),
    ("lr_num_cycles", 5, 390, "command", "--lr_num_cycles 5"),
    ("lr_scheduler", "piecewise_constant", 390, "command", f"--lr_step_rules {RULES}"),
    ("lr_step_rules", "1:10,0.5", 390, "picture", "0.032 at the last"),
    ("num_examples", 777, 750, "steps", "batches in the data set 98 ceil(777 / 8)"),
    ("adam_beta1", 0.5, 750, "steps", "gradients averaged over about 2 updates"),
    ("adam_beta2", 0.99, 750, "steps", "their squares over about 100 updates"),
    ("adam_weight_decay", 0.1, 750, "command", "--adam_weight_decay 0.1"),
    ("adam_epsilon", 1e-6, 750, "command", "--adam_epsilon 1e-06"),
    ("max_grad_norm", 0.5, 750, "command", "--max_grad_norm 0.5"),
    ("use_8bit_adam", True, 750, "command", "--use_8bit_adam"),
    ("pretrained_model_name_or_path", SD_1_5, 750, "command", f"--pretrained_model_name_or_path {SD_1_5}"),
    ("rank", 16, 750, "memory", "(3,188,736 numbers)"),  # four times the 797,184 of rank 4
    ("target_modules", "to_q to_v", 750, "memory", "(1,594,368 numbers)"),  # half of them
    ("mixed_precision", "bf16", 750, "command", "--mixed_precision bf16"),
    ("max_train_steps", 500, 500, "command", "--max_train_steps 500"),
]


def test_every_knob_changes_the_page():
    page = explorer(num_examples=400)
    assert {name for name, *_ in MOVES} == set(page.knobs) == {name for names in GROUPS.values() for name in names}
    for name, value, updates, part, text in MOVES:
        assert text not in words(page, part), name
        page.knobs[name].value = value
        assert text in words(page, part), (name, words(page, part))
        assert re.search(rf"updates in all {updates:,}\b", words(page, "steps")), name
        assert f"as applied: {updates} updates" in words(page, "picture"), name
        assert page.summary["errors"] == [], name
    wanted = {name: value for name, value, *_ in MOVES} | dict(style="outlined", target_modules=("to_q", "to_v"))
    assert page.state.num_examples == wanted.pop("num_examples") == 777
    assert page.state.num_processes == wanted.pop("num_processes") == 2
    assert page.state.settings == wanted


@pytest.mark.parametrize("name", [name for names in GROUPS.values() for name in names])
def test_every_knob_has_a_sentence(name):
    knob = explorer().knobs[name]
    assert len(knob.tooltip) > 10 and knob.tooltip.endswith(".") and "\n" not in knob.tooltip


IDLE = {  # schedule: the knobs that it doesn't read
    "constant": {"lr_warmup_steps", "lr_num_cycles", "lr_power", "lr_step_rules"},
    "constant_with_warmup": {"lr_num_cycles", "lr_power", "lr_step_rules"},
    "linear": {"lr_num_cycles", "lr_power", "lr_step_rules"},
    "cosine": {"lr_num_cycles", "lr_power", "lr_step_rules"},
    "cosine_with_restarts": {"lr_power", "lr_step_rules"},
    "polynomial": {"lr_num_cycles", "lr_step_rules"},
    "piecewise_constant": {"lr_warmup_steps", "lr_num_cycles", "lr_power"},
}


@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
def test_knobs_that_the_schedule_ignores_are_grey_and_say_so(lr_scheduler):
    page = explorer(lr_scheduler=lr_scheduler, lr_warmup_steps=50, lr_step_rules=RULES)
    assert {name for name, knob in page.knobs.items() if knob.disabled} == IDLE[lr_scheduler]
    assert {name for name, number in page.numbers.items() if number.disabled} == IDLE[lr_scheduler] - {"lr_step_rules"}
    assert {name for name, hint in page.hints.items() if hint.value} == IDLE[lr_scheduler]
    assert {name for name, hint in page.hints.items() if hint.layout.display is None} == IDLE[lr_scheduler]
    for name, hint in (
        ("lr_power", "only polynomial reads it"),
        ("lr_num_cycles", "only cosine_with_restarts reads it"),
    ):
        assert (hint in page.hints[name].value) == (name in IDLE[lr_scheduler])


def test_rules_that_are_missing_are_missing_in_the_knob_too():
    page = explorer(lr_scheduler="piecewise_constant")
    assert page.knobs["lr_step_rules"].value == "" and "lr_step_rules None" in words(page, "findings")
    page.knobs["lr_scheduler"].value = "linear"
    assert page.knobs["lr_step_rules"].value == RULES  # what it would begin with
    page.knobs["lr_scheduler"].value = "piecewise_constant"
    assert f"--lr_step_rules {RULES}" in words(page, "command")


def test_max_train_steps_makes_epochs_idle_and_gives_way_at_0():
    page = explorer(max_train_steps=300)
    assert page.knobs["num_train_epochs"].disabled and "updates in all 300" in words(page, "steps")
    page.knobs["max_train_steps"].value = 0
    assert not page.knobs["num_train_epochs"].disabled and "updates in all 1,200" in words(page, "steps")


def test_an_impossible_warm_up_is_drawn_said_and_mended():
    page = explorer(num_examples=400, num_processes=4, lr_warmup_steps=500)  # 25 updates an epoch
    assert "error, warm-up" in words(page, "findings") and "lr_warmup_steps 500" in words(page, "findings")
    assert "<svg" in page.parts["picture"].value and "No command" in words(page, "command")
    assert page.mend.description == "Mend it: lr_warmup_steps 30" and not page.mend.disabled
    page.mend.click()
    assert page.knobs["lr_warmup_steps"].value == page.state.settings["lr_warmup_steps"] == 30
    assert page.mend.disabled and page.numbers["lr_warmup_steps"].value == "30"
    assert "--lr_warmup_steps 30" in words(page, "command")


def test_a_cure_that_cures_nothing_is_not_offered():
    """Four pictures for eight processes: some are repeated, whatever the batch size."""
    page = explorer(num_examples=4, num_processes=8, train_batch_size=1)
    assert "4 pictures" in words(page, "findings")
    assert page.mend.disabled and page.mend.description == "Nothing to mend"


def test_mending_goes_on_until_nothing_is_left():
    page = explorer(
        num_examples=30, num_processes=4, lr_warmup_steps=500, gradient_accumulation_steps=3, learning_rate=1e-3,
        scale_lr=True, use_8bit_adam=True, lr_scheduler="cosine_with_restarts",
    )  # fmt: skip
    offered = []
    while not page.mend.disabled:
        assert page.mend.description not in offered
        offered.append(page.mend.description)
        page.mend.click()
    assert len(offered) >= 4 and {finding["status"] for finding in page.summary["findings"]} == {"fine"}
    assert "accelerate launch" in words(page, "command") and "--use_8bit_adam" not in words(page, "command")


def test_what_a_reader_typed_is_escaped():
    page = explorer(lr_scheduler="piecewise_constant", lr_step_rules="1:30,0.5")
    page.knobs["lr_step_rules"].value = "<b>1</b>"
    assert "<b>1" not in page.parts["findings"].value and "&lt;b&gt;1" in page.parts["findings"].value
    page.pasted.value = "python -m lora_kit.training --<i>"
    page.read.click()
    assert "<i>" not in page.reply.value and "&lt;i&gt;" in page.reply.value


def test_a_number_beyond_the_slider_is_taken():
    page = explorer(max_train_steps=10_000)
    for name, text, value, shown in (
        ("lr_warmup_steps", "5000", 5000, "5000"), ("learning_rate", "2e-9", 2e-9, "2e-09"), ("rank", "1e3", 1000, "1000"),
        ("adam_beta2", "0.5", 0.5, "0.5"), ("num_processes", "64", 64, "64"), ("lr_warmup_steps", "7", 7, "7"),
        ("learning_rate", "1.23456e-3", 1.23456e-3, "0.00123456"), ("max_grad_norm", "7", 7.0, "7"),
    ):  # fmt: skip
        page.numbers[name].value = text
        assert page.state.values[name] == page.knobs[name].value == value, name
        assert page.numbers[name].value == shown
        assert page.knobs[name].min <= (math.log10(value) if name == "learning_rate" else value)


@pytest.mark.parametrize(
    ("name", "text", "refusal"),
    [
        ("lr_warmup_steps", "-3", "lr_warmup_steps -3 must be at least 0: it stays 0"),
        ("lr_warmup_steps", "0.1", "lr_warmup_steps 0.1 is not a whole number: it stays 0"),
        ("lr_warmup_steps", "1e999", "lr_warmup_steps inf is not a whole number: it stays 0"),
        ("learning_rate", "1e999", "learning_rate inf is not a finite number: it stays 0.001"),
        ("learning_rate", "fast", "learning_rate 'fast' is no number: it stays 0.001"),
        ("learning_rate", "0", "learning_rate 0.0 must be greater than 0: it stays 0.001"),
        ("adam_beta1", "1,5", "adam_beta1 '1,5' is no number: it stays 0.9"),
        ("adam_epsilon", "nan", "adam_epsilon nan is not a finite number: it stays 1e-08"),
        ("num_processes", "0", "num_processes 0 is not a whole number of at least 1: it stays 1"),
        ("num_processes", "many", "num_processes 'many' is no number: it stays 1"),
    ],
)
def test_a_number_that_can_not_be_is_said_and_changes_nothing(name, text, refusal):
    page = explorer()
    before = dataclasses.replace(page.state, settings=dict(page.state.settings))
    shown = page.numbers[name].value
    page.numbers[name].value = text
    assert f"✗ {html.escape(refusal)}" in page.hints[name].value and page.hints[name].layout.display is None
    assert page.state == before and page.numbers[name].value == shown
    page.knobs["lr_warmup_steps"].value = 30
    assert "✗" not in page.hints[name].value and "--lr_warmup_steps 30" in words(page, "command")


def test_a_count_that_can_not_be_is_said_and_changes_nothing():
    page = explorer(max_train_steps=300)
    for name, wrong, stays in (("num_examples", 0, 400), ("max_train_steps", -1, 300)):
        page.knobs[name].value = wrong
        assert f"✗ {name} {wrong}" in page.hints[name].value and f"it stays {stays}" in page.hints[name].value
        assert (page.state.num_examples, page.state.settings["max_train_steps"]) == (400, 300)
        assert page.knobs[name].value == stays
    page.knobs["max_train_steps"].value = 0
    page.knobs["max_train_steps"].value = -1
    assert "it stays 0" in page.hints["max_train_steps"].value and page.knobs["max_train_steps"].value == 0


@pytest.mark.parametrize("name", ["rank", "num_processes", "gradient_accumulation_steps", "lr_warmup_steps"])
def test_a_number_of_400_digits_stops_nothing(name):
    page = explorer(max_train_steps=100)
    page.numbers[name].value = "1" + "0" * 400
    assert page.knobs[name].max <= 10**15 and "No command" in words(page, "command")
    page.numbers[name].value = "3"
    assert page.knobs[name].value == 3 and f"--{name} 3" in words(page, "command")


def test_one_group_of_knobs_is_open():
    page = explorer()
    for title, names in GROUPS.items():
        page.controls.group.value = title
        assert [name for name, box in page.controls.groups.items() if box.layout.display is None] == [title]
        inside = {knob for row in page.controls.groups[title].children for knob in (row, *getattr(row, "children", ()))}
        assert {page.knobs[name] for name in names} <= inside


def test_a_preset_is_shown_as_long_as_the_settings_are_its():
    page = explorer()
    name = "diffusers' guide to LoRA"
    page.preset.value = name
    assert page.preset.value == name and "✓ Read" in page.reply.value
    assert "--max_train_steps 15000" in words(page, "command") and page.knobs["max_train_steps"].value == 15000
    page.axis.value = "images"  # changes no setting
    assert page.preset.value == name
    page.knobs["rank"].value = 8
    assert page.preset.value == "" and f"Started from <b>{html.escape(name)}</b>; changed since" in page.reply.value
    page.preset.value = name  # so it can be chosen again
    assert page.knobs["rank"].value == 4 and page.preset.value == name
    page.pasted.value = "python -m lora_kit.training --style outlined --learning_rate 1e-3 --lr_warmup_step 3"
    page.read.click()
    assert page.preset.value == name and page.pasted.value  # to be mended
    page.pasted.value = page.pasted.value.replace("warmup_step", "warmup_steps")
    page.read.click()
    assert (page.preset.value, page.pasted.value) == ("", "") and "✓ Read" in page.reply.value
    page.numbers["rank"].value = "16"
    assert "Started from <b>what was pasted</b>; changed since" in page.reply.value
    page.preset.value = PUZZLE
    page.mend.click()
    assert page.preset.value == "" and "changed since" in page.reply.value


def test_axis_scale_and_cursor():
    page = explorer(num_processes=2)  # 600 updates
    for axis, label in (
        ("images", "images seen, by all processes"), ("epochs", "epochs"), ("micro_steps", "micro-steps of each process"),
        ("updates", "optimizer updates (0 is the first)"),
    ):  # fmt: skip
        page.axis.value = axis
        assert re.search(rf"\d {re.escape(label)} learning rate", words(page, "picture")), axis
    page.cursor.value = 150  # a quarter of the way down: (1 + cos(pi / 4)) / 2
    assert "read at update 150" in words(page, "picture") and "0.0008536: as applied" in words(page, "picture")
    linear = words(page, "picture")
    page.log.value = True
    assert words(page, "picture") != linear and "read at update 150" in words(page, "picture")
    page.knobs["num_train_epochs"].value = 1  # 50 updates: the cursor goes to the last
    assert (page.cursor.value, page.cursor.max) == (49, 49) and "read at update 49" in words(page, "picture")


def test_pinned_curves_stay():
    page = explorer()
    page.pin.click()
    page.knobs["lr_scheduler"].value = "linear"
    page.pin.click()
    page.knobs["learning_rate"].value = 5e-4
    picture = page.parts["picture"].value
    assert picture.count("<polyline") == 3
    # in the middle: cosine and linear from 0.001, linear from 0.0005
    for label in (
        "0.00025: as applied",
        "0.0005: pinned A: cosine, rate 0.001, rank 4",
        "0.0005: pinned B: linear, rate 0.001, rank 4",
    ):
        assert label in words(page, "picture"), label
    for _ in range(3):
        page.pin.click()
    assert page.parts["picture"].value.count("<polyline") == 4  # three at most
    page.unpin.click()
    assert "pinned" not in page.parts["picture"].value and page.parts["picture"].value.count("<polyline") == 1


def test_other_trainers_are_laid_over():
    page = explorer(lr_scheduler="linear", lr_warmup_steps=100, num_processes=4)
    page.trainers.value = tuple(TRAINERS)
    for trainer in TRAINERS.values():
        assert trainer.name in words(page, "picture")
        assert f"{trainer.name}. In this run: " in words(page, "notes")
        assert f'href="{trainer.source}"' in page.parts["notes"].value
    page.trainers.value = ()
    assert page.parts["notes"].value == ""


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("accelerate", "accelerate launch --num_processes 1 -m lora_kit.training --style outlined"),
        ("diffusers", "accelerate launch --num_processes 1 train_text_to_image_lora.py"),
        ("python", "from lora_kit import TrainingConfig"),
        ("yaml", "num_processes: 1 num_examples: 400 training: style: outlined"),
    ],
)
def test_the_text_to_copy(kind, text):
    page = explorer()
    page.kind.value = kind
    assert text in words(page, "command")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_their_text_says(name):
    page = explorer()
    page.preset.value = name
    reading = read(PRESETS[name].text)
    assert page.state.settings == {
        key: tuple(value) if isinstance(value, list) else value for key, value in reading.settings.items()
    }
    assert (page.state.num_processes, page.state.num_examples) == (reading.num_processes, PRESETS[name].num_examples)
    assert PRESETS[name].source in page.reply.value


def test_the_preset_of_notebook_5_is_that_notebook_s():
    notebook = json.loads((ROOT / "notebooks" / "05_train.ipynb").read_text())
    (source,) = [
        "".join(cell["source"]) for cell in notebook["cells"] if "config = TrainingConfig(" in "".join(cell["source"])
    ]
    names = dict(
        MODEL="embedded", SIZE=64, OUT=Path("runs"), EMBEDDED=True, DEVICE="cpu", TrainingConfig=TrainingConfig
    )
    exec(source.split("num_pictures")[0], names)
    theirs = dataclasses.replace(names["config"], output_dir="sd-model-finetuned-lora", report_to="tensorboard")
    preset = PRESETS["embedded model (notebook 05)"]
    assert TrainingConfig(**read(preset.text).settings) == theirs
    assert preset.num_examples == len(load_style("outlined", "lora", size=64))


def test_the_puzzle_never_leaves_its_warm_up_until_it_is_mended():
    page = explorer()
    page.preset.value = PUZZLE
    assert max(page.summary["rates"]) < 0.8 * page.summary["peak"]
    assert "never reaches its peak" in words(page, "findings")
    assert "make 380 updates, not 1,500" in words(page, "picture")
    page.mend.click()
    assert max(page.summary["rates"]) == page.summary["peak"]
    assert "--lr_warmup_steps 38" in words(page, "command")


PASTES = {
    "accelerate": "accelerate launch --num_processes 3 -m lora_kit.training --style line_art --learning_rate 2e-4 --rank 8 "
    "--lr_scheduler linear --lr_warmup_steps 12 --target_modules to_q to_v --snr_gamma 5.0",
    "python": "config = TrainingConfig(style='line_art', learning_rate=2e-4, rank=8, lr_scheduler='linear',\n"
    "    lr_warmup_steps=12, target_modules=['to_q', 'to_v'], snr_gamma=5.0)\nlaunch(config, num_processes=3)",
    "yaml": "num_processes: 3\ntraining:\n  style: line_art\n  learning_rate: 2e-4\n  rank: 8\n  lr_scheduler: linear\n"
    "  lr_warmup_steps: 12\n  target_modules: [to_q, to_v]\n  snr_gamma: 5.0",
}


@pytest.mark.parametrize("kind", PASTES)
def test_what_is_pasted_comes_out_again(kind):
    page = explorer(rank=64, max_grad_norm=0.5)
    page.pasted.value = PASTES[kind]
    page.read.click()
    assert "✓ Read" in page.reply.value
    assert {name: knob.value for name, knob in page.knobs.items()} == dict(
        learning_rate=2e-4, lr_scheduler="linear", lr_warmup_steps=12, lr_num_cycles=1, lr_power=1.0, lr_step_rules=RULES,
        scale_lr=False, num_examples=400, train_batch_size=16, gradient_accumulation_steps=1, num_processes=3,
        num_train_epochs=100, max_train_steps=0, adam_beta1=0.9, adam_beta2=0.999, adam_weight_decay=0.01,
        adam_epsilon=pytest.approx(1e-8), max_grad_norm=1.0, use_8bit_adam=False, pretrained_model_name_or_path="embedded",
        rank=8, target_modules="to_q to_v", mixed_precision="",
    )  # fmt: skip
    text = words(page, "command")
    for flag in ("--num_processes 3", "--style line_art", "--learning_rate 0.0002", "--rank 8", "--snr_gamma 5.0"):
        assert flag in text
    page.pasted.value = text
    page.read.click()
    assert "✓ Read" in page.reply.value and words(page, "command") == text


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("python -m lora_kit.training --lr_warmup_step 3", "did you mean --lr_warmup_steps"),
        ("TrainingConfig(rank='four')", "rank 'four' is not a whole number"),
        ("training: {ranks: 4}", "'ranks' is not a setting"),
        ("", "nothing to read"),
        ("TrainingConfig(learning_rate=1e-3)\nlaunch(config, num_processes='many')", "num_processes 'many'"),
        ("training: {learning_rate: 0.001}\nnum_examples: none", "num_examples"),
    ],
)
def test_what_can_not_be_read_changes_nothing(text, refusal):
    page = explorer()
    before, parts = dataclasses.replace(page.state), {name: part.value for name, part in page.parts.items()}
    page.pasted.value = text
    page.read.click()
    assert "✗ Not read" in page.reply.value and refusal in reply(page)
    assert page.state == before and {name: part.value for name, part in page.parts.items()} == parts
    page.knobs["rank"].value = 8  # the knobs are alive
    assert "--rank 8" in words(page, "command")
    page.knobs["num_processes"].value = 2
    assert "--num_processes 2" in words(page, "command")


def test_usual_sets_of_target_modules():
    page = explorer()
    assert page.controls.sets.value == "attention"
    page.controls.sets.value = "everything"
    assert page.knobs["target_modules"].value == TARGET_SETS["everything"]
    assert f"--target_modules {TARGET_SETS['everything']}" in words(page, "command")
    page.knobs["target_modules"].value = "to_q"
    assert page.controls.sets.value == "as typed above"
    page.knobs["target_modules"].value = "to_qq"
    assert "no module matched &#x27;to_qq&#x27;" in page.parts["findings"].value


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
    assert page.state.values[name] == meant == float(page.numbers[name].value)
    assert page.knobs[name].value == reported  # it doesn't jump under the hand that drags it


def test_settings_without_a_knob_are_kept():
    page = explorer(snr_gamma=5.0, style="blueprint", seed=3)
    text = words(page, "command")
    assert "--snr_gamma 5.0" in text and "--style blueprint" in text and "--seed 3" in text


def test_values_beyond_the_sliders_are_not_cut():
    values = dict(
        train_batch_size=64, lr_warmup_steps=2000, num_train_epochs=500, learning_rate=1e-9, lr_power=9.0,
        adam_epsilon=0.5, adam_weight_decay=3.0, adam_beta2=0.5, rank=1000,
    )  # fmt: skip
    page = explorer(**values)
    for name, value in values.items():
        assert page.knobs[name].value == float(page.numbers[name].value) == value


def test_the_knobs_show_the_defaults_of_diffusers_script_where_they_hold():
    page = explorer(match_diffusers=True)
    assert page.knobs["lr_warmup_steps"].value == 500 and page.numbers["lr_warmup_steps"].value == "500"


def test_a_part_that_can_not_be_drawn_takes_no_other_with_it(monkeypatch):
    def fails(*_):
        raise OverflowError("too <large>")

    page = explorer()
    monkeypatch.setattr("lora_kit.explorer.page.picture_html", fails)
    page.knobs["rank"].value = 8
    assert "can't be drawn: too &lt;large&gt;" in page.parts["picture"].value and "--rank 8" in words(page, "command")


@pytest.mark.parametrize(("wrong", "error"), [(dict(rank=2.5), ValueError), (dict(lr_shceduler="linear"), TypeError)])
def test_a_value_that_no_run_could_have_raises(wrong, error):
    with pytest.raises(error):
        explorer(**wrong)


def test_needs_no_torch():
    code = (
        "import sys; from lora_kit.explorer import explorer; assert 'ipywidgets' not in sys.modules; "
        "page = explorer(); page.knobs['rank'].value = 8; assert '--rank 8' in page.parts['command'].value; "
        "assert not {'torch', 'numpy', 'accelerate', 'diffusers', 'psutil'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=ROOT)
