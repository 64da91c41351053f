"""The controls as plain data: what they are called, what they say, and what is meant by what they are given."""

import dataclasses
import json
import math

import pytest

from lora_kit.config import FIELDS
from lora_kit.explorer.controls import (
    BUTTONS,
    CONTROLS,
    GROUPS,
    HIDEABLE,
    LOOKS,
    PANELS,
    TARGET_SETS,
    as_meant,
    meaning,
    written,
)
from lora_kit.explorer.state import COUNTS

ALL = CONTROLS | LOOKS


@pytest.mark.parametrize("name", ALL)
def test_every_control_has_a_word_and_a_sentence(name):
    control = ALL[name]
    assert control.name == name and "_" not in control.word and control.word
    assert len(control.help) > 10 and control.help.endswith(".") and "\n" not in control.help
    assert control.kind in ("logarithmic", "slider", "number", "choice", "several", "switch", "text")
    assert (control.kind in ("choice", "several") or name == "target_modules") == bool(control.options)
    assert (control.kind in ("slider", "logarithmic")) == (control.high is not None and control.step is not None)


def test_words_are_told_apart():
    assert len({control.word for control in ALL.values()}) == len(ALL) and len(set(HIDEABLE)) == len(HIDEABLE)
    assert all(words for words, _ in BUTTONS.values()) and all(PANELS.values())


def test_controls_are_of_settings_and_counts_each_in_one_group():
    assert [name for names in GROUPS.values() for name in names] == list(CONTROLS)
    assert all(CONTROLS[name].group == title for title, names in GROUPS.items() for name in names)
    assert set(CONTROLS) <= {*FIELDS, *COUNTS}


def test_controls_are_plain_data():
    told = json.loads(json.dumps([dataclasses.asdict(control) for control in ALL.values()]))
    assert told[0] | dict(options=[]) == dataclasses.asdict(CONTROLS["learning_rate"]) | dict(options=[])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("learning_rate", 1e-4, "0.0001"), ("learning_rate", 8.91e-4, "0.000891"), ("adam_epsilon", 1e-8, "1e-08"),
        ("rank", 16, "16"), ("adam_beta2", 0.999, "0.999"), ("lr_scheduler", "cosine", "cosine"), ("scale_lr", True, "on"),
        ("use_8bit_adam", False, "off"), ("mixed_precision", "", "left to the launcher"), ("mixed_precision", "bf16", "bf16"),
        ("pretrained_model_name_or_path", "stabilityai/stable-diffusion-xl-base-1.0", "SDXL"),
        ("pretrained_model_name_or_path", "me/mine", "me/mine"), ("target_modules", "to_q", "to_q"),
        ("target_modules", "", "left out"),
    ],
)  # fmt: skip
def test_a_value_in_words(name, value, said):
    assert CONTROLS[name].said(value) == said


@pytest.mark.parametrize(
    ("name", "values", "ends"),
    [
        ("rank", (16,), (1, 128)), ("rank", (1000,), (1, 1000)), ("lr_warmup_steps", (5, 14_999), (0, 14_999)),
        ("learning_rate", (2e-9,), (1e-9, 1.0)), ("learning_rate", (3.0,), (1e-6, 10.0)), ("adam_epsilon", (0.0,), (1e-12, 1e-2)),
        ("adam_beta2", (0.5,), (0.5, 0.9999)),
    ],
)  # fmt: skip
def test_the_ends_of_a_slider_move_for_a_value_beyond_them(name, values, ends):
    assert CONTROLS[name].ends(*values) == pytest.approx(ends, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rank", "1e3", 1000), ("rank", " 8 ", 8), ("rank", "4.5", 4.5), ("learning_rate", "1e-4", 1e-4), ("scale_lr", "On", True),
        ("scale_lr", "false", False), ("num_examples", "777", 777), ("max_train_steps", "0", None), ("max_train_steps", "", None),
        ("mixed_precision", "", None), ("mixed_precision", "bf16", "bf16"), ("target_modules", "to_q  to_v", ("to_q", "to_v")),
        ("lr_step_rules", "1:10,0.5", "1:10,0.5"), ("seed", "3", 3), ("learning_rate", "inf", math.inf),
    ],
)  # fmt: skip
def test_what_a_text_means(name, text, value):
    found = meaning(name, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "refusal"),
    [
        ("rank", "many", "rank 'many' is no number"), ("learning_rate", "1,5", "learning_rate '1,5' is no number"),
        ("scale_lr", "yes", "scale_lr 'yes' is neither on nor off"), ("num_processes", "", "num_processes '' is no number"),
    ],
)  # fmt: skip
def test_a_text_that_means_nothing(name, text, refusal):
    with pytest.raises(ValueError, match=refusal):
        meaning(name, text)


@pytest.mark.parametrize(
    ("name", "reported", "before", "meant"),
    [
        ("adam_beta1", 0.9000000000000001, 0.5, 0.9), ("lr_power", 1.0000000000000002, 1.0, 1.0), ("rank", 8, 4, 8),
        ("learning_rate", 10**-3.05, 1e-3, 8.91e-4), ("adam_epsilon", 10**-7.7, 1e-8, 2e-8), ("scale_lr", True, False, True),
        ("learning_rate", 1.23456e-3, 1e-3, 1.23456e-3), ("max_grad_norm", 0.30000000000000004, 1.0, 0.3),
    ],
)  # fmt: skip
def test_a_slider_s_number_is_the_one_that_was_meant(name, reported, before, meant):
    assert as_meant(name, reported, before) == meant


def test_values_as_they_are_written():
    assert [written(value) for value in (0.1, 1e-5, 16, "x", None, ("a", "b"), True)] == [
        "0.1", "1e-05", "16", "x", "", "a b", "True",
    ]  # fmt: skip


def test_usual_sets_are_each_larger_than_the_one_before():
    sets = [set(words.split()) for words in TARGET_SETS.values()]
    assert sets[0] < sets[1] < sets[2]
