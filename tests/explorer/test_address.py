"""Addresses: what they have, what comes back from them, and what of them can't be."""

import random

import pytest
from plain import plain

from lora_kit.config import FIELDS, kind_of
from lora_kit.explorer.address import read_address, to_address
from lora_kit.explorer.controls import CONTROLS, KINDS
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.session import Session
from lora_kit.explorer.state import FIRST, RULES
from lora_kit.lr_settings import LR_SCHEDULERS
from lora_kit.memory import MODELS
from lora_kit.steps import AXES
from lora_kit.trainers.known import TRAINERS

SDXL = "accelerate launch train_text_to_image_lora_sdxl.py --pretrained_model_name_or_path a/b --max_train_steps 2000"


def address(session):
    return session.view()["address"]


def test_the_start_has_no_address():
    assert address(Session.start()) == "" == address(Session.from_address("")) == address(Session.from_address("#"))
    assert Session.from_address("").view() == Session.start().view()
    assert Session.from_address("").state.started == FIRST


@pytest.mark.parametrize(
    ("do", "text"),
    [
        (lambda session: session.turn("learning_rate", 1e-4), "learning_rate=0.0001"),
        (lambda session: session.turn("max_train_steps", 0), "max_train_steps="),
        (lambda session: session.turn("target_modules", "to_q to_v"), "target_modules=to_q%20to_v"),
        (lambda session: session.turn("scale_lr", True), "scale_lr=on"),
        (lambda session: session.turn("num_processes", 4), "num_processes=4"),
        (lambda session: session.turn("num_examples", 400), "num_examples=400"),
        (lambda session: session.look(cursor=12), "cursor=12"),
        (lambda session: session.look(axis="epochs", log=True), "axis=epochs&log=on"),
        (lambda session: session.look(trainers=("kohya", "onetrainer")), "trainers=kohya,onetrainer"),
        (lambda session: session.look(kind="yaml"), "kind=yaml"),
        (lambda session: session.pin(), ""),
    ],
)  # fmt: skip
def test_an_address_has_what_differs_from_the_start(do, text):
    session = Session.start()
    do(session)
    assert address(session) == text
    again = Session.from_address(text).view()
    assert {**again, "pinned": 0, "panels": 0} == {
        **session.view(),
        "pinned": 0,
        "panels": 0,
        "preset": again["preset"],
        "reply": "",
    }


def randomly_turned(dice):
    """A session after a few moves that a reader could make."""
    session = Session.start()
    if dice.random() < 0.3:
        session.take_preset(dice.choice(list(PRESETS)))
    values = {
        "learning_rate": lambda: 10 ** dice.uniform(-7, 1), "lr_scheduler": lambda: dice.choice(LR_SCHEDULERS),
        "lr_step_rules": lambda: dice.choice([RULES, "1:10,0.5", "1:x", "1&2#3%20"]), "lr_power": lambda: dice.uniform(0, 9),
        "target_modules": lambda: dice.choice(["to_q", "to_q to_v", "conv1 ff.net.2", "to_qq", ""]),
        "mixed_precision": lambda: dice.choice(["", "no", "fp16"]), "max_train_steps": lambda: dice.choice([0, 1, 7, 5000]),
        "pretrained_model_name_or_path": lambda: dice.choice(["embedded", "me/mine", *MODELS]),
        "adam_beta1": lambda: dice.random(), "adam_beta2": lambda: dice.random(),
        "adam_epsilon": lambda: 10 ** dice.uniform(-14, -1), "adam_weight_decay": lambda: dice.random(), "max_grad_norm": lambda: dice.uniform(0, 9),
        "seed": lambda: dice.choice([None, 0, 7]), "snr_gamma": lambda: dice.choice([None, 5.0]),
        "validation_prompt": lambda: dice.choice([None, "a cat & a dog = 2 # 50%", "ключ"]),
    }  # fmt: skip
    for name in dice.sample([*CONTROLS, "seed", "snr_gamma", "validation_prompt"], dice.randint(1, 6)):
        if name in values:
            value = values[name]()
        else:
            value = dice.random() < 0.5 if kind(name) is bool else dice.choice([1, 2, 3, 4, 7, 16, 100, 777])
        session.turn(name, value)
    session.look(
        axis=dice.choice(list(AXES)), log=dice.random() < 0.5, cursor=dice.randrange(3000), kind=dice.choice(list(KINDS)),
        trainers=dice.sample(list(TRAINERS), dice.randint(0, 2)),
    )  # fmt: skip
    return session


def kind(name):
    return kind_of(name)[0] if name in FIELDS else int


@pytest.mark.parametrize("seed", range(40))
def test_there_and_back(seed):
    session = randomly_turned(random.Random(seed))
    text = address(session)
    again = Session.from_address(f"#{text}")
    assert again.reply == "" and address(again) == text
    assert again.state.values == session.state.values
    left_out = dict(reply="", preset="", controls=0)  # a refusal of the last turn is none of an address
    assert again.view() | left_out == session.view() | left_out


def test_the_script_that_a_text_was_for_is_kept():
    session = Session.start()
    session.read(SDXL)
    again = Session.from_address(address(session)).view()
    assert again["title"] == "The learning rate as lora_kit would apply it" == session.view()["title"]
    assert again["panels"] == session.view()["panels"]


def test_a_token_is_in_no_address():
    session = Session.start(hub_token="hf_secret", push_to_hub=True)
    assert address(session) == "push_to_hub=on"
    asked, sentences = read_address("hub_token=hf_other")
    assert "hub_token" not in asked["settings"] and len(sentences) == 1 and "hf_other" not in sentences[0]


def test_what_a_page_leaves_out_and_shows_alone():
    session = Session.from_address("?hide=memory,rank,train&embed=picture&rank=8")
    view = session.view()
    assert (view["hidden"], view["embedded"], view["reply"]) == (["memory", "rank", "train"], "picture", "")
    assert view["address"] == "rank=8&hide=memory,rank,train&embed=picture"
    session.turn("rank", 16)
    assert address(session) == "hide=memory,rank,train&embed=picture"


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("rnak=4", "'rnak' is nothing that can be set: did you mean 'rank'?"), ("rank=0", "rank 0 must be at least 1"),
        ("rank=many", "rank 'many' is no number"), ("lr_scheduler=cosin", "did you mean 'cosine'"),
        ("num_processes=0", "num_processes 0 is not a whole number of at least 1"), ("axis=miles", "axis 'miles' is unknown"),
        ("kind=bash", "kind 'bash' is unknown"), ("log=perhaps", "'perhaps' is neither on nor off"),
        ("cursor=-1", "cursor -1 is not a whole number of at least 0"), ("trainers=koyha", "did you mean 'kohya'"),
        ("hide=memroy", "did you mean 'memory'"), ("embed=rank", "embed 'rank' is unknown"),
        ("learning_rate=nan", "learning_rate nan is not a finite number"),
        ("lr_warmup_steps=1" + "0" * 400, "lr_warmup_steps 1000"),
        ("%FF=1", "can't be read"), ("output_dir=%ED%A0%80", "can't be read"), ("&" * 2_000, "can't be read"),
        ("rank=" + "8" * 300_000, "too long to read"), ("<b>=1", "'<b>' is nothing that can be set"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_said_and_the_rest_is_taken(text, refusal):
    session = Session.from_address(f"#lr_power=2.0&{text}&hide=train")
    view = session.view()
    assert refusal in plain(view["reply"]) and "<b>=" not in view["reply"]
    assert "Not all of the address is taken" in view["reply"]
    if "read" not in refusal:
        assert session.state.values["lr_power"] == 2.0 and session.hidden[-1:] == ("train",)


def test_numbers_that_nothing_can_count_with_leave_the_start():
    session = Session.from_address(
        "num_examples=9223372036854775807&num_train_epochs=9223372036854775807&max_train_steps="
    )
    assert "Not all of the address is taken" in session.reply and address(session) == ""


def test_settings_that_go_together_in_no_run_are_shown_with_their_error():
    view = Session.from_address("lr_warmup_steps=500").view()
    assert (
        view["reply"] == ""
        and view["address"] == "lr_warmup_steps=500"
        and view["mend"] == "Mend it: lr_warmup_steps 20"
    )


def test_the_short_form_is_the_default():
    assert to_address(Session.start().state) == ""
