"""The explorer's page in a notebook: every knob, and that what stands on the widgets is what the session says."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from plain import explorer, words
from test_address import randomly_turned

from lora_kit.explorer import explorer as as_a_reader_calls_it
from lora_kit.explorer.controls import CONTROLS, GROUPS, LOOKS, TARGET_SETS
from lora_kit.explorer.knobs import WITH_NUMBER
from lora_kit.explorer.page import Explorer
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.state import FIRST, RULES

ROOT = Path(__file__).resolve().parents[2]
SD_1_5 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PUZZLE = next(name for name in PRESETS if name.startswith("puzzle"))


def texts(view):
    """All texts of a view that a page places, as `Explorer.shown` has them."""
    return view["panels"] | {name: view[name] for name in ("answer", "reply", "unused")}


def check_same(page):
    """What stands on the widgets is what the session says, to the character."""
    view, shown = page.session.view(), page.shown()
    assert {name: shown[name] for name in texts(view)} == texts(view)
    assert f">{view['title']}<" in shown["title"]
    assert f">{view['rate']}<" in shown["rate"] and f" {view['cursor']['said']}<" in shown["rate"]
    assert (shown["buttons"]["mend"], page.buttons["mend"].disabled) == (
        view["mend"] or "Nothing to mend",
        not view["mend"],
    )
    for name, control in view["controls"].items():
        there = shown["controls"][name]
        value = control["value"]
        assert there["value"] == (pytest.approx(value, rel=1e-9, abs=0) if isinstance(value, float) else value), name
        written = control["written"] if CONTROLS[name].kind in WITH_NUMBER else str(control["value"])
        assert there | dict(value=0) == dict(
            value=0, written=written, disabled=control["disabled"], hint=control["hint"], folded=name in view["folded"]
        )
    looks = {name: page.looks[name].value for name in ("axis", "log", "kind", "preset", "trainers", "cursor")}
    assert looks == {name: view[name] for name in ("axis", "log", "kind", "preset")} | dict(
        trainers=tuple(view["trainers"]), cursor=view["cursor"]["value"]
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_widgets_show_what_the_session_says(seed):
    """One page that is drawn anew, as a reader's is: what was there before leaves nothing."""
    dice = random.Random(seed)
    page = Explorer(randomly_turned(dice))
    check_same(page)
    for _ in range(3):
        session = randomly_turned(dice)
        session.type(dice.choice(list(CONTROLS)), dice.choice(["x", "3", "1e999", "0"]))
        page.session.state.__dict__.update(session.state.__dict__)
        page.session.refused, page.session.reply, page.session.kind = session.refused, session.reply, session.kind
        page.draw()
        check_same(page)


def test_the_first_page():
    page = explorer()
    # 400 pictures in batches of 4, 12 times
    assert "updates in all 1,200 12 x 100" in words(page, "steps")
    assert words(page, "answer") == "peak 0.001 at update 0 · 1,200 updates · 12 epochs · no problem in the settings"
    assert (
        words(page, "rate") == "0.0005 is the learning rate at update 600 of 1,200"
    )  # a cosine is half way down in the middle
    assert words(page, "title") == "The learning rate as applied"
    assert "as applied: 1200 updates; the rate is 0.001 at update 0" in words(page, "picture")
    assert "read at update 600" in words(page, "picture") and page.looks["cursor"].value == 600
    assert "0.0005: as applied" in words(page, "picture")
    assert words(page, "command") == (
        "accelerate launch --num_processes 1 -m lora_kit.training --style outlined --train_batch_size 4 "
        "--num_train_epochs 12 --learning_rate 0.001 --lr_scheduler cosine"
    )
    mend = page.buttons["mend"]
    assert "error" not in words(page, "findings") and mend.disabled and mend.description == "Nothing to mend"
    assert (page.numbers["learning_rate"].value, page.numbers["adam_epsilon"].value) == ("0.001", "1e-08")
    assert (page.numbers["rank"].value, page.knobs["mixed_precision"].value, page.knobs["max_train_steps"].value) == (
        "4",
        "",
        0,
    )


def test_it_starts_as_notebook_5_trains():
    page = as_a_reader_calls_it()
    assert page.looks["preset"].value == FIRST and page.summary["total_updates"] == 200
    assert page.controls.sets.value == "everything" and page.numbers["rank"].value == "16"
    with pytest.raises(ValueError, match="rank 2.5"):
        as_a_reader_calls_it(rank=2.5)


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
    page = explorer()
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


@pytest.mark.parametrize("name", CONTROLS | LOOKS)
def test_every_control_has_its_word_and_a_sentence(name):
    page = explorer()
    control, widget = (CONTROLS | LOOKS)[name], (page.knobs | page.looks)[name]
    words = widget.placeholder if name == "pasted" else widget.description.partition("\n")[0]
    assert words == control.word
    if name in CONTROLS:
        assert name in widget.description
    if name != "pasted":
        assert widget.tooltip == control.help


def test_knobs_that_do_nothing_are_put_away():
    page = explorer(lr_warmup_steps=50)
    hidden = {name for name, row in page.controls.rows.items() if row.layout.display == "none"}
    assert (
        hidden
        == {"lr_num_cycles", "lr_power", "lr_step_rules"}
        == {name for name, knob in page.knobs.items() if knob.disabled}
    )
    line = page.controls.unused["Learning rate"]
    assert (
        "Not used now: lr_num_cycles (only cosine_with_restarts reads it), lr_power" in line.value
        and line.layout.display is None
    )
    assert page.controls.unused["Optimizer"].layout.display == "none"
    page.knobs["lr_scheduler"].value = "polynomial"
    assert page.controls.rows["lr_power"].layout.display is None and not page.numbers["lr_power"].disabled
    assert page.numbers["lr_num_cycles"].disabled and "lr_power" not in line.value


def test_a_number_beside_a_slider():
    page = explorer()
    page.numbers["learning_rate"].value = "2e-9"
    assert page.knobs["learning_rate"].value == 2e-9 and page.knobs["learning_rate"].min == -9
    page.numbers["rank"].value = "1e3"
    assert (page.knobs["rank"].value, page.knobs["rank"].max, page.numbers["rank"].value) == (1000, 1000, "1000")
    page.numbers["rank"].value = "many"
    assert "✗ rank &#x27;many&#x27; is no number" in page.hints["rank"].value and page.numbers["rank"].value == "1000"
    assert page.hints["rank"].layout.display is None
    page.knobs["rank"].value = 500  # the ends don't move under the hand
    assert page.knobs["rank"].max == 1000 and page.hints["rank"].layout.display == "none"


def test_a_count_that_can_not_be_is_put_back():
    page = explorer(max_train_steps=300)
    for name, wrong, stays in (("num_examples", 0, 400), ("max_train_steps", -1, 300)):
        page.knobs[name].value = wrong
        assert f"✗ {name} {wrong}" in page.hints[name].value and f"it stays {stays}" in page.hints[name].value
        assert page.knobs[name].value == stays


def test_a_slider_does_not_jump_under_the_hand():
    page = explorer()
    page.knobs["adam_beta1"].value = 0.8200000000000001
    assert page.state.values["adam_beta1"] == 0.82 and page.numbers["adam_beta1"].value == "0.82"
    assert page.knobs["adam_beta1"].value == 0.8200000000000001


def test_one_group_of_knobs_is_open():
    page = explorer()
    for title, names in GROUPS.items():
        page.controls.group.value = title
        assert [name for name, box in page.controls.groups.items() if box.layout.display is None] == [title]
        assert {page.controls.rows[name] for name in names} <= set(page.controls.groups[title].children)


def test_usual_sets_of_target_modules():
    page = explorer()
    page.controls.sets.value = "everything"
    assert page.knobs["target_modules"].value == TARGET_SETS["everything"]
    page.knobs["target_modules"].value = "to_q"
    assert page.controls.sets.value == "as typed"
    page.controls.sets.value = "attention"
    assert page.state.values["target_modules"] == tuple(TARGET_SETS["attention"].split())


def test_start_from_a_preset_and_from_a_text():
    page = explorer()
    page.looks["preset"].value = PUZZLE
    assert page.knobs["lr_warmup_steps"].value == 500 and "never reaches its peak" in words(page, "findings")
    page.buttons["mend"].click()
    assert page.looks["preset"].value == "" and "changed since" in words(page, "reply")
    assert page.numbers["lr_warmup_steps"].value == "38" and page.buttons["mend"].disabled
    page.looks["preset"].value = PUZZLE  # so it can be chosen again
    assert page.knobs["lr_warmup_steps"].value == 500
    page.looks["pasted"].value = "python -m lora_kit.training --learning_rate 1e-3 --lr_warmup_step 3"
    page.buttons["read"].click()
    assert "✗ Not read" in words(page, "reply") and page.looks["pasted"].value  # to be mended
    page.looks["pasted"].value = page.looks["pasted"].value.replace("warmup_step", "warmup_steps")
    page.buttons["read"].click()
    assert (page.looks["preset"].value, page.looks["pasted"].value) == ("", "") and "✓ Read" in words(page, "reply")


def test_how_the_picture_is_looked_at():
    page = explorer(num_processes=2)  # 600 updates
    page.looks["axis"].value = "images"
    assert "images seen, by all processes learning rate" in words(page, "picture")
    page.looks["cursor"].value = 150
    assert "read at update 150" in words(page, "picture") and "at update 150 of 600" in words(page, "rate")
    linear = words(page, "picture")
    page.looks["log"].value = True
    assert words(page, "picture") != linear
    page.looks["trainers"].value = ("kohya",)
    assert "kohya sd-scripts. In this run: " in words(page, "notes")
    page.looks["kind"].value = "yaml"
    assert words(page, "command").startswith("num_processes: 2")
    page.buttons["pin"].click()
    assert "pinned A" in words(page, "picture")
    page.buttons["unpin"].click()
    assert "pinned" not in words(page, "picture")
    page.knobs["num_train_epochs"].value = 1  # 50 updates: the cursor goes to the last
    assert (page.looks["cursor"].value, page.looks["cursor"].max) == (49, 49)


def test_values_beyond_the_sliders_are_not_cut():
    values = dict(
        train_batch_size=64, lr_warmup_steps=2000, num_train_epochs=500, learning_rate=1e-9, lr_power=9.0,
        adam_epsilon=0.5, adam_weight_decay=3.0, adam_beta2=0.5, rank=1000,
    )  # fmt: skip
    page = explorer(**values)
    for name, value in values.items():
        assert page.knobs[name].value == float(page.numbers[name].value) == value


@pytest.mark.parametrize(("stored", "display"), [(True, None), (False, "none")])
def test_pictures_that_are_not_there_have_no_heading(stored, display, monkeypatch):
    if not stored:
        monkeypatch.setattr("lora_kit.explorer.atlas.read_atlas", lambda folder: None)
    page = explorer()
    assert {name: box.layout.display for name, box in page.titled.items()} == dict(atlas=display, map=display)


def test_needs_no_torch():
    code = (
        "import sys; from lora_kit.explorer import explorer; assert 'ipywidgets' not in sys.modules; "
        "page = explorer(); page.knobs['rank'].value = 8; assert '--rank 8' in page.parts['command'].value; "
        "assert not {'torch', 'numpy', 'accelerate', 'diffusers', 'psutil'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=ROOT)
