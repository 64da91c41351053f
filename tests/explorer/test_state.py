"""The explorer without a widget: what a turn, a paste, a cure and a pin do, and what changes nothing."""

import copy
import dataclasses

import pytest
from counting import calls
from plain import state

from lora_kit.explorer.curves import SAMPLES
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.state import AS_IF, FIRST, PASTED, PICTURES, RULES, START, State, describe
from lora_kit.explorer.summary import summarize

GUIDE = "diffusers' guide to LoRA"
PUZZLE = next(name for name in PRESETS if name.startswith("puzzle"))


def everything(state):
    return copy.deepcopy(dataclasses.asdict(state)) | {"summary": copy.deepcopy(state.summary)}


def test_the_first_state():
    first = state()
    assert first.settings == dict(
        style="outlined", learning_rate=1e-3, lr_scheduler="cosine", train_batch_size=4, num_train_epochs=12
    )
    assert (first.summary["total_updates"], first.cursor, first.started, first.change) == (1200, 600, None, {})
    assert (first.values["rank"], first.values["num_processes"]) == (4, 1)


def test_the_explorer_starts_from_the_run_of_notebook_5():
    first = State(dict(START))
    assert first.settings == dict(
        style="outlined", resolution=64, rank=16, target_modules=tuple(START["target_modules"]), learning_rate=2e-3,
        lr_scheduler="cosine", lr_warmup_steps=20, train_batch_size=8, max_train_steps=200, mixed_precision="no", seed=0,
    )  # fmt: skip
    assert (first.num_examples, PICTURES, first.summary["total_updates"], first.cursor) == (399, 399, 200, 100)
    assert first.summary["errors"] == [] and {finding["status"] for finding in first.summary["findings"]} == {"fine"}
    preset = State({}, 7)
    preset.take_preset(FIRST)
    assert (preset.settings, preset.num_examples, preset.summary) == (first.settings, 399, first.summary)


def test_a_data_set_is_made_up_only_where_none_is_named():
    assert state(train_data_dir="pictures").settings.get("style") is None
    assert state(style=None).settings["style"] == "outlined"
    assert State({"rank": 8}).settings == {"learning_rate": 1e-4, "rank": 8, "style": "outlined"}


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (dict(lr_scheduler="cosin"), ValueError, "'cosin' is unknown; did you mean 'cosine'"),
        (dict(rank=2.5), ValueError, "rank 2.5 is not a whole number"),
        (dict(lr_shceduler="linear"), TypeError, "'lr_shceduler' is not a setting: did you mean 'lr_scheduler'"),
        (dict(num_examples=0), ValueError, "num_examples 0 is not a whole number of at least 1"),
        (dict(num_processes="many"), ValueError, "num_processes 'many' is not a whole number of at least 1"),
        (dict(num_processes=True), ValueError, "num_processes True is not a whole number"),
    ],
)
def test_a_value_that_no_run_could_have_is_named(wrong, error, words):
    with pytest.raises(error, match=words):
        state(**wrong)


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("rank", 16, 16), ("num_examples", 777, 777), ("num_processes", 4, 4), ("scale_lr", True, True),
        ("target_modules", "to_q  to_v", ("to_q", "to_v")), ("target_modules", ["to_k"], ("to_k",)),
        ("max_train_steps", 500, 500), ("max_train_steps", 0, None), ("mixed_precision", "bf16", "bf16"),
        ("mixed_precision", "", None), ("seed", 0, 0), ("lr_warmup_steps", 0, 0), ("learning_rate", 1, 1.0),
    ],
)  # fmt: skip
def test_a_turn(name, value, becomes):
    turned = state(max_train_steps=300, mixed_precision="fp16", seed=3, lr_warmup_steps=5, learning_rate=2e-3)
    assert turned.turn(name, value) is True
    assert turned.values[name] == becomes and type(turned.values[name]) is type(becomes)
    assert turned.turn(name, value) is False


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rank", 0, "rank 0 must be at least 1"), ("num_examples", 0, "num_examples 0 is not a whole number"),
        ("num_processes", "many", "'many'"), ("learning_rate", float("nan"), "learning_rate nan is not a finite number"),
        ("max_train_steps", -1, "max_train_steps -1 must be at least 1"), ("rnak", 4, "'rnak' is not a setting"),
        ("lr_scheduler", "cosin", "did you mean 'cosine'"), ("target_modules", 3, "target_modules 3 is not a list of names"),
    ],
)  # fmt: skip
def test_a_turn_that_can_not_be_changes_nothing(name, value, words):
    turned = state()
    turned.take_preset(GUIDE)
    before = everything(turned)
    with pytest.raises((TypeError, ValueError), match=words):
        turned.turn(name, value)
    assert everything(turned) == before and turned.started == GUIDE


def test_rules_come_and_go_with_the_schedule_that_reads_them():
    turned = state()
    turned.turn("lr_scheduler", "piecewise_constant")
    assert turned.settings["lr_step_rules"] == RULES
    turned.turn("lr_scheduler", "linear")
    assert "lr_step_rules" not in turned.settings
    turned.turn("lr_scheduler", "piecewise_constant")
    turned.turn("lr_step_rules", "1:10,0.5")
    turned.turn("lr_scheduler", "linear")  # which the reader wrote, and may want again
    turned.turn("lr_scheduler", "piecewise_constant")
    assert turned.settings["lr_step_rules"] == "1:10,0.5"


def test_the_cursor_stays_inside_the_run_and_outlives_an_error():
    turned = state()
    turned.look(cursor=900)
    assert turned.cursor == 900 and 900 in turned.summary["updates"]
    turned.turn("target_modules", "to_qq")
    assert turned.summary["errors"] and turned.cursor == 900
    turned.turn("target_modules", "to_q")
    assert turned.cursor == 900
    turned.turn("num_train_epochs", 1)
    assert (turned.summary["total_updates"], turned.cursor) == (100, 99)
    turned.look(axis="epochs", log=True, trainers=("kohya",))
    assert (turned.axis, turned.log, turned.cursor) == ("epochs", True, 99)
    assert [curve["kind"] for curve in turned.summary["curves"]] == ["run", "kohya"]
    with pytest.raises(ValueError, match="koyha"):
        turned.look(trainers=("koyha",))
    assert turned.trainers == ("kohya",)


def test_the_cursor_stays_in_the_middle_until_it_is_moved():
    turned = state()
    turned.turn("num_train_epochs", 2)
    assert turned.cursor == 100
    turned.look(cursor=150)
    turned.turn("num_train_epochs", 12)
    assert turned.cursor == 150


def test_a_turn_is_summed_up_once(monkeypatch):
    turned, counts = state(), []
    monkeypatch.setattr("lora_kit.explorer.state.summarize", lambda *given: counts.append(given) or summarize(*given))
    turned.turn("rank", 8)
    turned.turn("num_train_epochs", 2)  # the cursor stays in the middle
    turned.look(cursor=7)
    assert len(counts) == 3


def test_a_paste():
    pasted = state(num_examples=50, rank=64)
    sentences = pasted.take(
        "accelerate launch --num_processes 4 -m lora_kit.training --style line_art --learning_rate 1e-3"
    )
    assert pasted.settings == dict(style="line_art", learning_rate=1e-3)
    assert (pasted.num_processes, pasted.num_examples, pasted.started) == (4, 50, PASTED)
    assert sentences[-1] == "How many pictures it has the text doesn't say: num_examples stays 50"
    assert (
        pasted.take("training: {learning_rate: 0.5, target_modules: [to_q]}\nnum_examples: 9\nnum_processes: 2") == []
    )
    assert (pasted.num_processes, pasted.num_examples) == (2, 9)
    assert pasted.settings == dict(learning_rate=0.5, target_modules=("to_q",), style="outlined")
    # 9 pictures in batches of 16 on 2 processes: one update an epoch, 100 epochs
    assert (pasted.summary["total_updates"], pasted.cursor) == (100, 50)


SDXL = (
    "accelerate launch --num_processes 1 train_text_to_image_lora_sdxl.py --lr_scheduler cosine --gradient_accumulation_steps 4 "
    "--pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 --max_train_steps 2000 --lr_warmup_steps 0"
)


def test_a_paste_of_the_sdxl_script_draws_that_script_s_rates():
    pasted = state()
    pasted.look(trainers=("kohya",))
    assert any('has rates of its own, drawn as "diffusers\' SDXL script"' in said for said in pasted.take(SDXL))
    pasted.look(cursor=1900)
    run, *_, script = pasted.summary["curves"]
    assert (run["label"], script["kind"]) == ("as lora_kit would apply it", "diffusers_sdxl")
    here, there = (curve["rates"][curve["updates"].index(1900)] for curve in (run, script))
    assert (f"{here:.2g}", f"{there:.2g}") == ("6.2e-07", "8.7e-05")  # its cosine takes four times as long
    pasted.turn("rank", 8)
    assert pasted.summary["curves"][0]["label"] == run["label"]
    pasted.take(TRAINING)
    assert [curve["label"] for curve in pasted.summary["curves"]] == ["as applied", "kohya sd-scripts"]


def test_the_rates_of_a_script_that_is_not_known_are_not_said_to_be_applied():
    pasted = state()
    said = pasted.take("accelerate launch sdxl_train_network.py --learning_rate 1e-4 --max_train_steps 100")
    assert any("sdxl_train_network.py is read as if it were" in sentence for sentence in said)
    assert pasted.script == "sdxl_train_network.py" and pasted.summary["curves"][0]["label"] == AS_IF
    pasted.look(trainers=("kohya",))
    assert [curve["label"] for curve in pasted.summary["curves"]] == [AS_IF, "kohya sd-scripts"]
    pasted.take("accelerate launch train_text_to_image_lora.py --learning_rate 1e-4 --max_train_steps 100")
    assert pasted.script is None and pasted.trainers == ("kohya",)
    assert pasted.summary["curves"][0]["label"] == "as applied"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TrainingConfig(learning_rate=1e-3)\nlaunch(config, num_processes='many')", "many"),
        ("TrainingConfig(learning_rate=1e-3)\nlaunch(config, num_processes=0)", "num_processes 0"),
        ("training: {learning_rate: 0.001}\nnum_examples: 0", "num_examples 0"),
        ("training: {learning_rate: 0.001}\nnum_examples: [1, 2]", r"num_examples \[1, 2\]"),
        ("training: {learning_rate: 0.001}\nnum_processes: 1.5", "num_processes 1.5"),
        ("TrainingConfig(rank='four')", "rank 'four' is not a whole number"),
        ("training: {ranks: 4}", "'ranks' is not a setting"),
        ("python -m lora_kit.training --lr_warmup_step 3", "did you mean --lr_warmup_steps"),
        ("python -m lora_kit.training --learning_rate nan", "nan"),
        ("", "nothing to read"),
    ],
)
def test_a_paste_that_can_not_be_read_changes_nothing(text, words):
    pasted = state(num_examples=50, num_processes=3)
    before = everything(pasted)
    with pytest.raises((TypeError, ValueError), match=words):
        pasted.take(text)
    assert everything(pasted) == before
    assert pasted.turn("rank", 8) and pasted.summary["commands"]["accelerate"].count("--rank 8") == 1


def test_what_the_settings_started_from():
    started = state()
    assert started.take_preset(GUIDE)[-1].startswith("Source: https://github.com/huggingface/diffusers/")
    assert (started.started, started.num_examples) == (GUIDE, 1221)
    started.look(axis="images")
    started.turn("rank", 4)  # which it is already
    assert started.started == GUIDE
    started.turn("rank", 8)
    assert started.started is None
    started.take_preset(PUZZLE)
    started.mend()
    assert started.started is None


def test_mending():
    warm = state(num_processes=4, lr_warmup_steps=500)  # 25 updates an epoch: 300
    assert warm.summary["errors"] and warm.change == {"lr_warmup_steps": 30}
    warm.mend()
    assert warm.settings["lr_warmup_steps"] == 30 and warm.summary["errors"] == []
    assert (warm.cursor, warm.change) == (150, {})
    before = everything(warm)
    warm.mend()
    assert everything(warm) == before


@pytest.mark.parametrize(
    ("num_examples", "num_processes", "settings"),
    [
        (4, 8, dict(train_batch_size=1)),
        (1, 16, dict(train_batch_size=1, gradient_accumulation_steps=4)),
        (3, 2, dict(train_batch_size=32, max_train_steps=1)),
        (30, 4, dict(lr_warmup_steps=500, gradient_accumulation_steps=3, scale_lr=True, use_8bit_adam=True)),
        (5, 5, dict(lr_scheduler="cosine_with_restarts", lr_num_cycles=50, lr_warmup_steps=11)),
    ],
)
def test_each_cure_changes_something_and_none_is_offered_for_ever(num_examples, num_processes, settings):
    mended, seen = state(num_examples, num_processes, **settings), []
    while mended.change:
        assert mended.settings not in seen
        seen.append(mended.settings)
        worst = next(finding for finding in mended.summary["findings"] if finding["change"] == mended.change)
        mended.mend()
        assert worst not in mended.summary["findings"]


def test_pins():
    pinned = state()
    first = pinned.summary["curves"][0]
    for scheduler in ("linear", "constant", "polynomial", "cosine"):
        pinned.pin()
        pinned.turn("lr_scheduler", scheduler)
    assert [label for label, _ in pinned.pinned] == [
        "pinned A: cosine, rate 0.001, rank 4", "pinned B: linear, rate 0.001, rank 4", "pinned C: constant, rate 0.001, rank 4",
    ]  # fmt: skip
    assert pinned.pinned[0][1] == first
    wrong = state(target_modules=("to_qq",))
    wrong.pin()  # nothing is drawn
    assert wrong.pinned == []


def test_the_defaults_of_diffusers_script_are_seen():
    matched = State(dict(match_diffusers=True, lr_scheduler="linear"), 400)
    assert (matched.values["learning_rate"], matched.values["lr_warmup_steps"]) == (1e-4, 500)
    assert matched.summary["warmup"] == 500


def test_a_line_that_tells_settings_apart():
    assert describe(dict(learning_rate=1e-3)) == "constant, rate 0.001, rank 4"
    told_apart = dict(learning_rate=2e-4, lr_scheduler="linear", lr_warmup_steps=7, rank=8)
    assert describe(told_apart, 4) == "linear, rate 0.0002, warm-up 7, rank 8, 4 processes"
    assert describe(dict(learning_rate=1e-3, lr_warmup_steps=7)) == "constant, rate 0.001, rank 4"  # which has none


@pytest.mark.parametrize("name", ["num_examples", "num_processes", "gradient_accumulation_steps", "num_train_epochs"])
def test_a_number_that_nothing_can_count_with_changes_nothing(name):
    turned = state()
    before = everything(turned)
    with pytest.raises(ValueError, match=f"{name} 1000"):
        turned.turn(name, 10**400)
    assert everything(turned) == before


# texts of a length that the page has to work with beyond reading them, so that two lengths can be compared

TRAINING = "python -m lora_kit.training --learning_rate 1e-3"
LONG = {
    "rules": lambda n: (
        f"{TRAINING} --lr_scheduler piecewise_constant --max_train_steps 10000 --lr_step_rules "
        + "".join(f"0.5:{index}," for index in range(1, n))
        + "1"
    ),
    "rules in disorder": lambda n: f"{TRAINING} --lr_scheduler piecewise_constant --lr_step_rules " + "1:9," * n + "1",
    "rules that nothing reads": lambda n: f"{TRAINING} --lr_step_rules " + "1:9," * n + "1",
    "a long module": lambda n: f"training: {{target_modules: [{'q' * n}]}}",
    "a long name of a setting": lambda n: f"training:\n  ? {'r' * n}\n  : 4",
    "settings that are none": lambda n: "TrainingConfig(" + ", ".join(f"a{index}=4" for index in range(n)) + ")",
    "a long prompt": lambda n: f"{TRAINING} --validation_prompt '{'a ' * n}'",
    "a long schedule": lambda n: f"{TRAINING} --lr_scheduler {'c' * n}",
    "a long model": lambda n: f"{TRAINING} --pretrained_model_name_or_path {'a/' * n}",
}


def work(text):
    """The calls that taking a text makes, whether or not it can be taken."""
    pasted = state()
    count, refusal = calls(lambda: pasted.take(text))
    assert len(str(refusal)) < 900 and all(len(error) < 900 for error in pasted.summary["errors"])
    return count


@pytest.mark.parametrize("name", LONG)
def test_twice_the_paste_is_at_most_twice_the_work(name):
    make = LONG[name]
    work(make(1))  # imports and caches
    assert work(make(6_000)) <= 2.2 * work(make(3_000)) + 1_000


@pytest.mark.parametrize(("rules", "corners"), [(SAMPLES, SAMPLES), (SAMPLES + 1, 0), (5_000, 0)])
def test_rules_beyond_what_can_be_told_apart_are_not_drawn_one_by_one(rules, corners):
    pasted = state()
    text = "".join(f"0.5:{20_000 * index}," for index in range(1, rules + 1))
    pasted.take(
        f"training: {{lr_scheduler: piecewise_constant, max_train_steps: 1000000000, lr_step_rules: '{text}1'}}"
    )
    updates = pasted.summary["updates"]
    assert len([update for update in updates if update + 1 in updates]) in (corners, corners + 1)  # with the cursor
    assert len(updates) <= 3 * SAMPLES + 1
