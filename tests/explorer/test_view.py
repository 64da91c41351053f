"""What a view has: only what is true of the run, only what does something, and only commands that can run."""

import json
import random
import re

import pytest
from plain import plain, session, words
from test_address import randomly_turned

from lora_kit.explorer.controls import CONTROLS, PANELS
from lora_kit.explorer.session import Session
from lora_kit.explorer.state import RULES
from lora_kit.explorer.view import answer_html, counted
from lora_kit.lr_settings import LR_SCHEDULERS

SD_1_5 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
OTHER = "accelerate launch sdxl_train_network.py --learning_rate 1e-4 --max_train_steps 100 --lr_scheduler cosine"
SDXL = "accelerate launch train_text_to_image_lora_sdxl.py --pretrained_model_name_or_path a/b --max_train_steps 100"
IDLE = {  # schedule: the knobs that it doesn't read
    "constant": {"lr_warmup_steps", "lr_num_cycles", "lr_power", "lr_step_rules"},
    "constant_with_warmup": {"lr_num_cycles", "lr_power", "lr_step_rules"},
    "linear": {"lr_num_cycles", "lr_power", "lr_step_rules"},
    "cosine": {"lr_num_cycles", "lr_power", "lr_step_rules"},
    "cosine_with_restarts": {"lr_power", "lr_step_rules"},
    "polynomial": {"lr_num_cycles", "lr_step_rules"},
    "piecewise_constant": {"lr_warmup_steps", "lr_num_cycles", "lr_power"},
}


@pytest.mark.parametrize("seed", range(10))
def test_a_view_is_json_and_has_all_of_the_contract(seed):
    view = randomly_turned(random.Random(seed)).view()
    assert json.loads(json.dumps(view, allow_nan=False)) == view
    assert set(view) == {
        "title", "answer", "rate", "cursor", "controls", "folded", "unused", "panels", "commands", "mend", "axis", "log",
        "trainers", "preset", "kind", "pinned", "reply", "address", "hidden", "embedded", "total_updates",
    }  # fmt: skip
    assert set(view["panels"]) == set(PANELS) and set(view["controls"]) == set(CONTROLS)
    for name, shown in view["controls"].items():
        assert ({"low", "high"} <= shown.keys()) == (CONTROLS[name].kind in ("slider", "logarithmic")), name
        assert (
            shown["written"] == "" or CONTROLS[name].kind != "slider" or shown["low"] <= shown["value"] <= shown["high"]
        )
        assert shown["disabled"] == (name in view["folded"])


@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
def test_knobs_that_the_schedule_ignores_are_put_away_with_their_reason(lr_scheduler):
    view = session(lr_scheduler=lr_scheduler, lr_warmup_steps=50, lr_step_rules=RULES).view()
    assert (
        set(view["folded"])
        == IDLE[lr_scheduler]
        == {name for name, shown in view["controls"].items() if shown["disabled"]}
    )
    line = plain(view["unused"]["Learning rate"])
    assert line.startswith("Not used now: ") and ("lr_power (only polynomial reads it)" in line) == (
        lr_scheduler != "polynomial"
    )
    assert view["unused"]["Optimizer"] == view["unused"]["Length and batches"] == ""
    if lr_scheduler == "constant":
        assert "lr_warmup_steps (constant has no warm-up)" in line


@pytest.mark.parametrize("text", [OTHER, SDXL])
def test_what_another_script_would_apply_is_not_said(text):
    reader = session()
    reader.read(text)
    reader.look(trainers=["kohya"])
    view = reader.view()
    assert view["title"] == "The learning rate as lora_kit would apply it"
    assert plain(view["answer"]).startswith("as lora_kit would apply it: peak ")
    assert 'aria-label="Learning rate as lora_kit would apply it: as lora_kit' in view["panels"]["picture"]
    assert not re.search(r"\bas applied\b", json.dumps(view))
    reader.turn("rank", 8)
    assert not re.search(r"\bas applied\b", json.dumps(reader.view()))
    reader.read("accelerate launch train_text_to_image_lora.py --learning_rate 1e-4")
    assert reader.view()["title"] == "The learning rate as applied" and "would apply" not in reader.view()["answer"]


def test_diffusers_command_is_offered_where_its_script_can_run_it():
    reader = Session.start()
    reader.look(kind="diffusers")
    assert set(reader.view()["commands"]) == {"accelerate", "python", "yaml"}
    assert words(reader, "command") == (
        "diffusers' script can't run this: the embedded model is lora_kit's own: give a model of the Hub; so is --style: give a "
        "data set as --dataset_name or --train_data_dir."
    )
    reader.turn("pretrained_model_name_or_path", SD_1_5)
    assert "diffusers" not in reader.view()["commands"] and "embedded" not in words(reader, "command")
    reader.turn("train_data_dir", "pictures")
    reader.turn("style", None)
    command = reader.view()["commands"]["diffusers"]
    assert "train_text_to_image_lora.py" in command and " ".join(command.split()) == words(reader, "command")


def test_there_is_no_command_for_a_model_that_the_loop_can_not_train():
    reader = session(pretrained_model_name_or_path="stabilityai/stable-diffusion-xl-base-1.0")
    assert reader.view()["commands"] == {} and "No command" in words(reader, "command")


def test_a_model_that_is_not_in_the_list_is_in_it():
    shown = session(pretrained_model_name_or_path="me/mine").view()["controls"]["pretrained_model_name_or_path"]
    assert shown["options"][-1] == ["me/mine", "me/mine"] and shown["said"] == shown["value"] == "me/mine"
    assert len(session().view()["controls"]["pretrained_model_name_or_path"]["options"]) == len(shown["options"]) - 1


def test_where_nothing_can_be_drawn():
    view = session(target_modules=("to_qq",)).view()
    assert (view["rate"], view["cursor"]["said"], view["commands"]) == ("", "no learning rate", {})
    assert plain(view["answer"]) == "nothing to draw · 1 problem" and "no module matched" in plain(
        view["panels"]["findings"]
    )


def run(rates, total, epochs, **more):
    """A summary of a run with these rates."""
    curve = dict(label="as applied", ends=dict(epochs=epochs))
    found = dict(
        updates=list(range(len(rates))), rates=rates, total_updates=total, curves=[curve], findings=[], errors=[]
    )
    return found | more


def test_the_run_in_a_line():
    assert plain(answer_html(run([0, 1e-3, 5e-4], 1200, 12.0))) == (
        "peak 0.001 at update 1 · 1,200 updates · 12 epochs · no problem in the settings"
    )
    assert (
        plain(answer_html(run([1.2345e-5], 1, 0.125)))
        == "peak 1.23e-05 at update 0 · 1 update · 0.12 epochs · no problem in the settings"
    )
    findings = [dict(status=status, check=check) for status, check in (("error", "a"), ("warning", "b"), ("fine", "c"))]
    assert plain(answer_html(run([1.0], 3, 1.0, findings=findings))).endswith(
        " · 3 updates · 1 epoch · 2 problems: a, b"
    )
    assert plain(answer_html(run([], 0, 0, curves=[], errors=["rank"]))) == "nothing to draw · 1 problem"
    other = dict(label="as <it> would", ends=dict(epochs=2))
    assert plain(answer_html(run([1.0], 2, 2, curves=[other]))).startswith("as <it> would: peak 1 at update 0")


def test_the_pictures_are_of_the_rate_that_is_reached():
    """A warm-up that never ends keeps it below the peak."""
    session = Session.start(lr_warmup_steps=20_000, max_train_steps=200)
    text = plain(session.view()["panels"]["atlas"])
    assert "The nearest run made: learning_rate 1e-05, rank 16" in text
    assert (
        "the highest rate is 1.99e-05; an update takes 8 images, not 4; lr_warmup_steps is 20000; the run has 200"
        in text
    )


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1 day"), (1.004, "1 day"), (0, "0 days"), (1200, "1,200 days"), (0.126, "0.13 days")]
)
def test_counted(number, text):
    assert counted(number, "day") == text


def test_a_part_that_can_not_be_drawn_takes_no_other_with_it(monkeypatch):
    def fails(*_):
        raise OverflowError("too <large>")

    reader = session()
    monkeypatch.setattr("lora_kit.explorer.view.picture_html", fails)
    reader.turn("rank", 8)
    assert "can't be drawn: too &lt;large&gt;" in reader.view()["panels"]["picture"] and "--rank 8" in words(
        reader, "command"
    )


def test_the_defaults_of_diffusers_script_are_shown_where_they_hold():
    shown = Session.start(match_diffusers=True, num_train_epochs=100, lr_warmup_steps=500).view()["controls"][
        "lr_warmup_steps"
    ]
    assert (shown["value"], shown["written"]) == (500, "500")
