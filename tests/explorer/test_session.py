"""What a reader does at the explorer, without a widget: what then stands there, and what changes nothing."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
from plain import plain, session, words

from lora_kit.command_line.texts import read
from lora_kit.config import TrainingConfig
from lora_kit.data.emoji import load_style
from lora_kit.explorer.controls import TARGET_SETS
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.session import Session
from lora_kit.explorer.state import FIRST, RULES
from lora_kit.steps import AXES
from lora_kit.trainers.known import TRAINERS

ROOT = Path(__file__).resolve().parents[2]
GUIDE = "diffusers' guide to LoRA"
PUZZLE = next(name for name in PRESETS if name.startswith("puzzle"))


def everything(reader):
    return copy.deepcopy(dataclasses.asdict(reader.state)), reader.view()


def control(reader, name):
    return reader.view()["controls"][name]


def status(reader):
    return plain(reader.view()["reply"])


def test_the_start_is_notebook_5_s_and_settings_change_it():
    view = Session.start().view()
    assert (view["preset"], view["total_updates"], view["cursor"]["value"]) == (FIRST, 200, 100)
    assert plain(view["answer"]) == "peak 0.002 at update 20 · 200 updates · 4 epochs · no problem in the settings"
    changed = Session.start(num_processes=2, num_train_epochs=4)
    assert changed.view()["total_updates"] == 100 and changed.view()["preset"] == ""  # 25 updates an epoch
    assert Session.start(num_train_epochs=4, max_train_steps=7).view()["total_updates"] == 7


@pytest.mark.parametrize(("wrong", "error"), [(dict(rank=2.5), ValueError), (dict(lr_shceduler="linear"), TypeError)])
def test_a_start_that_no_run_could_have_raises(wrong, error):
    with pytest.raises(error):
        Session.start(**wrong)


def test_rules_that_are_missing_are_missing_in_the_knob_too():
    reader = session(lr_scheduler="piecewise_constant")
    assert control(reader, "lr_step_rules")["value"] == "" and "lr_step_rules None" in words(reader, "findings")
    reader.turn("lr_scheduler", "linear")
    assert control(reader, "lr_step_rules")["value"] == RULES  # what it would begin with
    reader.turn("lr_scheduler", "piecewise_constant")
    assert f"--lr_step_rules {RULES}" in words(reader, "command")


def test_max_train_steps_puts_epochs_away_and_gives_way_at_0():
    reader = session(max_train_steps=300)
    assert (
        reader.view()["folded"]["num_train_epochs"] == "max_train_steps decides"
        and reader.view()["total_updates"] == 300
    )
    reader.turn("max_train_steps", 0)
    assert "num_train_epochs" not in reader.view()["folded"] and reader.view()["total_updates"] == 1200


def test_an_impossible_warm_up_is_drawn_said_and_mended():
    reader = session(num_processes=4, lr_warmup_steps=500)  # 25 updates an epoch
    assert "error, warm-up" in words(reader, "findings") and "lr_warmup_steps 500" in words(reader, "findings")
    view = reader.view()
    assert "<svg" in view["panels"]["picture"] and "No command" in words(reader, "command") and view["commands"] == {}
    assert view["mend"] == "Mend it: lr_warmup_steps 30" and "1 problem" in view["answer"]
    reader.mend()
    assert control(reader, "lr_warmup_steps")["value"] == reader.state.settings["lr_warmup_steps"] == 30
    assert reader.view()["mend"] == "" and control(reader, "lr_warmup_steps")["written"] == "30"
    assert "--lr_warmup_steps 30" in words(reader, "command")


def test_a_cure_that_cures_nothing_is_not_offered():
    """Four pictures for eight processes: some are repeated, whatever the batch size."""
    reader = session(num_examples=4, num_processes=8, train_batch_size=1)
    assert "4 pictures" in words(reader, "findings") and reader.view()["mend"] == ""


def test_mending_goes_on_until_nothing_is_left():
    reader = session(
        num_examples=30, num_processes=4, lr_warmup_steps=500, gradient_accumulation_steps=3, learning_rate=1e-3,
        scale_lr=True, use_8bit_adam=True, lr_scheduler="cosine_with_restarts",
    )  # fmt: skip
    offered = []
    while words_on_it := reader.view()["mend"]:
        assert words_on_it not in offered
        offered.append(words_on_it)
        reader.mend()
    assert len(offered) >= 4 and {finding["status"] for finding in reader.state.summary["findings"]} == {"fine"}
    assert "accelerate launch" in words(reader, "command") and "--use_8bit_adam" not in words(reader, "command")


def test_what_a_reader_gives_is_escaped():
    reader = session(lr_scheduler="piecewise_constant", lr_step_rules="1:30,0.5")
    reader.type("lr_step_rules", "<b>1</b>")
    findings = reader.view()["panels"]["findings"]
    assert "<b>1" not in findings and "&lt;b&gt;1" in findings
    for do in (
        lambda: reader.read("python -m lora_kit.training --<i>"), lambda: reader.turn("<i>", 1), lambda: reader.take_preset("<i>"),
        lambda: reader.look(axis="<i>"), lambda: reader.look(**{"<i>": 1}),
    ):  # fmt: skip
        reader.reply = ""
        do()
        assert "<i>" not in reader.view()["reply"] and "&lt;i&gt;" in reader.view()["reply"]
    reader.type("rank", "<i>")
    assert "<i>" not in control(reader, "rank")["hint"] and "&lt;i&gt;" in control(reader, "rank")["hint"]


def test_a_number_beyond_the_slider_is_taken():
    reader = session(max_train_steps=10_000)
    for name, text, value, written in (
        ("lr_warmup_steps", "5000", 5000, "5000"), ("learning_rate", "2e-9", 2e-9, "2e-09"), ("rank", "1e3", 1000, "1000"),
        ("adam_beta2", "0.5", 0.5, "0.5"), ("num_processes", "64", 64, "64"), ("lr_warmup_steps", "7", 7, "7"),
        ("learning_rate", "1.23456e-3", 1.23456e-3, "0.00123456"), ("max_grad_norm", "7", 7.0, "7"),
    ):  # fmt: skip
        reader.type(name, text)
        shown = control(reader, name)
        assert reader.state.values[name] == shown["value"] == value and shown["written"] == shown["said"] == written, (
            name
        )
        assert shown["low"] <= value <= shown["high"], name
    assert control(reader, "lr_warmup_steps")["high"] == 9_999  # all of the run


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
        ("num_examples", "0", "num_examples 0 is not a whole number of at least 1: it stays 400"),
        ("max_train_steps", "-1", "max_train_steps -1 must be at least 1: it stays 0"),
        ("mixed_precision", "fp8", "mixed_precision 'fp8' is unknown; It must be one of no, fp16, bf16: it stays left to the launcher"),
        ("scale_lr", "maybe", "scale_lr 'maybe' is neither on nor off: it stays off"),
    ],
)  # fmt: skip
def test_a_value_that_can_not_be_is_said_and_changes_nothing(name, text, refusal):
    reader = session()
    before, shown = everything(reader)[0], control(reader, name)
    reader.type(name, text)
    assert plain(control(reader, name)["hint"]) == f"✗ {refusal}" and reader.refused == {name: refusal}
    assert everything(reader)[0] == before and control(reader, name) | dict(hint="") == shown
    reader.turn("lr_warmup_steps", 30)
    assert control(reader, name)["hint"] == "" and "--lr_warmup_steps 30" in words(reader, "command")


@pytest.mark.parametrize("name", ["rank", "num_processes", "gradient_accumulation_steps", "lr_warmup_steps"])
def test_a_number_of_400_digits_stops_nothing(name):
    reader = session(max_train_steps=100)
    reader.type(name, "1" + "0" * 400)
    assert "it stays" in control(reader, name)["hint"] and control(reader, name)["written"] in ("0", "1", "4")
    reader.type(name, "3")
    assert control(reader, name)["value"] == 3 and f"--{name} 3" in words(reader, "command")


def test_a_setting_without_a_knob_can_be_turned_too():
    reader = session(snr_gamma=5.0, style="blueprint", seed=3)
    text = words(reader, "command")
    assert "--snr_gamma 5.0" in text and "--style blueprint" in text and "--seed 3" in text
    reader.type("seed", "4")
    assert "--seed 4" in words(reader, "command")
    reader.type("sede", "4")
    assert "'sede' is not a setting: did you mean 'seed'" in status(reader)
    reader.turn("seed", -1)
    assert "seed -1 must be at least 0" in status(reader) and reader.state.settings["seed"] == 4


def test_a_preset_is_shown_as_long_as_the_settings_are_its():
    reader = session()
    assert reader.take_preset(GUIDE) is True
    assert (
        reader.view()["preset"] == GUIDE
        and "✓ Read" in status(reader)
        and PRESETS[GUIDE].source in reader.view()["reply"]
    )
    assert (
        "--max_train_steps 15000" in words(reader, "command") and control(reader, "max_train_steps")["value"] == 15000
    )
    reader.look(axis="images")  # changes no setting
    assert reader.view()["preset"] == GUIDE
    reader.turn("rank", 8)
    assert reader.view()["preset"] == "" and status(reader) == f"Started from {GUIDE} ; changed since."
    reader.take_preset(GUIDE)
    assert control(reader, "rank")["value"] == 4 and reader.view()["preset"] == GUIDE
    assert reader.read("python -m lora_kit.training --style outlined --learning_rate 1e-3 --lr_warmup_step 3") is False
    assert reader.view()["preset"] == GUIDE
    assert reader.read("python -m lora_kit.training --style outlined --learning_rate 1e-3 --lr_warmup_steps 3") is True
    assert reader.view()["preset"] == "" and "✓ Read" in status(reader)
    reader.type("rank", "16")
    assert status(reader) == "Started from what was pasted ; changed since."
    reader.take_preset(PUZZLE)
    reader.mend()
    assert reader.view()["preset"] == "" and "changed since" in status(reader)
    view = reader.view()
    assert reader.take_preset("") is False and reader.view() == view
    assert reader.take_preset("puzle") is False and "preset 'puzle' is unknown" in status(reader)


def test_how_it_is_looked_at():
    reader = session(num_processes=2)  # 600 updates
    for axis, label in AXES.items():
        reader.look(axis=axis)
        assert f"{label} learning rate" in words(reader, "picture") and reader.view()["axis"] == axis
    reader.look(axis="updates", cursor=150)  # a quarter of the way down: (1 + cos(pi / 4)) / 2
    view = reader.view()
    assert "read at update 150" in words(reader, "picture") and "0.0008536: as applied" in words(reader, "picture")
    assert view["rate"] == "0.000854" and view["cursor"] == dict(
        value=150, max=599, said="is the learning rate at update 150 of 600"
    )
    linear = words(reader, "picture")
    reader.look(log=True)
    assert words(reader, "picture") != linear and "read at update 150" in words(reader, "picture")
    reader.turn("num_train_epochs", 1)  # 50 updates: the cursor goes to the last
    assert (reader.view()["cursor"]["value"], reader.view()["cursor"]["max"]) == (49, 49)
    reader.look(kind="yaml")
    assert (
        words(reader, "command").startswith("num_processes: 2 num_examples: 400 training:")
        and reader.view()["kind"] == "yaml"
    )


@pytest.mark.parametrize(
    ("how", "refusal"),
    [
        (dict(axis="miles"), "axis 'miles' is unknown; it must be one of updates"), (dict(axis=[]), "unhashable"),
        (dict(kind="bash", cursor=3), "kind 'bash' is unknown"), (dict(log=1), "log 1 is not True or False"),
        (dict(cursor=-1), "cursor -1 is not a whole number"), (dict(cursor="x", kind="yaml"), "cursor 'x' is not a whole number"),
        (dict(trainers=["koyha"]), "koyha"), (dict(colour="red"), "'colour' is nothing"), (dict(settings={}), "'settings' is nothing"),
    ],
)  # fmt: skip
def test_a_look_that_can_not_be_is_said_and_changes_nothing(how, refusal):
    reader = session()
    before = everything(reader)
    reader.look(**how)
    assert refusal in status(reader)
    reader.reply = ""
    assert everything(reader) == before


def test_pinned_curves_stay():
    reader = session()
    reader.pin()
    reader.turn("lr_scheduler", "linear")
    reader.pin()
    reader.turn("learning_rate", 5e-4)
    assert reader.view()["panels"]["picture"].count("<polyline") == 3 and reader.view()["pinned"] == 2
    # in the middle: cosine and linear from 0.001, linear from 0.0005
    for label in (
        "0.00025: as applied",
        "0.0005: pinned A: cosine, rate 0.001, rank 4",
        "0.0005: pinned B: linear, rate 0.001, rank 4",
    ):
        assert label in words(reader, "picture"), label
    for _ in range(3):
        reader.pin()
    assert reader.view()["panels"]["picture"].count("<polyline") == 4 and reader.view()["pinned"] == 3  # at most
    reader.unpin()
    picture = reader.view()["panels"]["picture"]
    assert "pinned" not in picture and picture.count("<polyline") == 1 and reader.view()["pinned"] == 0


def test_other_trainers_are_laid_over():
    reader = session(lr_scheduler="linear", lr_warmup_steps=100, num_processes=4)
    reader.look(trainers=list(TRAINERS))
    for trainer in TRAINERS.values():
        assert trainer.name in words(reader, "picture")
        assert f"{trainer.name}. In this run: " in words(reader, "notes")
        assert f'href="{trainer.source}"' in reader.view()["panels"]["notes"]
    reader.look(trainers=())
    assert reader.view()["panels"]["notes"] == "" and reader.view()["trainers"] == []


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_their_text_says(name):
    reader = session()
    reader.take_preset(name)
    reading = read(PRESETS[name].text)
    assert reader.state.settings == {
        key: tuple(value) if isinstance(value, list) else value for key, value in reading.settings.items()
    }
    assert (reader.state.num_processes, reader.state.num_examples) == (
        reading.num_processes,
        PRESETS[name].num_examples,
    )
    assert PRESETS[name].source in reader.view()["reply"]


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
    assert TrainingConfig(**read(PRESETS[FIRST].text).settings) == theirs
    assert PRESETS[FIRST].num_examples == len(load_style("outlined", "lora", size=64))


def test_the_puzzle_never_leaves_its_warm_up_until_it_is_mended():
    reader = session()
    reader.take_preset(PUZZLE)
    summary = reader.state.summary
    assert max(summary["rates"]) < 0.8 * summary["peak"]
    assert "never reaches its peak" in words(reader, "findings")
    assert "make 380 updates, not 1,500" in words(reader, "picture")
    reader.mend()
    assert max(reader.state.summary["rates"]) == reader.state.summary["peak"]
    assert "--lr_warmup_steps 38" in words(reader, "command")


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
    reader = session(rank=64, max_grad_norm=0.5)
    assert reader.read(PASTES[kind])
    assert "✓ Read" in status(reader)
    assert {name: shown["value"] for name, shown in reader.view()["controls"].items()} == dict(
        learning_rate=2e-4, lr_scheduler="linear", lr_warmup_steps=12, lr_num_cycles=1, lr_power=1.0, lr_step_rules=RULES,
        scale_lr=False, num_examples=400, train_batch_size=16, gradient_accumulation_steps=1, num_processes=3,
        num_train_epochs=100, max_train_steps=0, adam_beta1=0.9, adam_beta2=0.999, adam_weight_decay=0.01,
        adam_epsilon=1e-8, max_grad_norm=1.0, use_8bit_adam=False, pretrained_model_name_or_path="embedded",
        rank=8, target_modules="to_q to_v", mixed_precision="",
    )  # fmt: skip
    text = reader.view()["commands"]["accelerate"]
    for flag in ("--num_processes 3", "--style line_art", "--learning_rate 0.0002", "--rank 8", "--snr_gamma 5.0"):
        assert flag in text
    assert reader.read(text) and reader.view()["commands"]["accelerate"] == text


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
    reader = session()
    before, seen = everything(reader)
    assert reader.read(text) is False
    assert status(reader).startswith("✗ Not read: ") and refusal in status(reader)
    assert everything(reader) == (before, seen | dict(reply=reader.reply))


def test_usual_sets_of_target_modules():
    reader = session()
    assert control(reader, "target_modules")["chosen"] == "attention"
    reader.turn("target_modules", TARGET_SETS["everything"])
    assert control(reader, "target_modules")["chosen"] == "everything"
    assert f"--target_modules {TARGET_SETS['everything']}" in words(reader, "command")
    reader.type("target_modules", "to_v to_out.0 to_q to_k")  # in whatever order
    assert control(reader, "target_modules")["chosen"] == "attention"
    reader.type("target_modules", "to_q")
    assert control(reader, "target_modules")["chosen"] == "as typed"
    reader.type("target_modules", "to_qq")
    assert "no module matched 'to_qq'" in words(reader, "findings")
