"""Each trap is set for real, and the doctor must name it; what is sound must be called fine."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from doctor_cases import SOUND, TRAP_NAMES, TRAPS, findings_of, loaded_unet

from lora_kit.config import TrainingConfig
from lora_kit.doctor import ERROR, FINE, WARNING, examine, examine_settings
from lora_kit.doctor.model import trained_shapes
from lora_kit.parameters import add_lora

ROOT = Path(__file__).parents[2]


def test_what_is_sound_is_fine():
    findings = examine(SOUND, num_examples=400)
    assert [(finding.check, finding.status) for finding in findings] == [
        ("base model", FINE),
        ("trainable parameters", FINE),
        ("frozen base", FINE),
        ("LoRA dtype", FINE),
        ("gradient checkpointing", FINE),
        ("learning rate", FINE),
        ("warm-up", FINE),
        ("scheduler total", FINE),
        ("accumulation", FINE),
        ("images", FINE),
        ("noise of each process", FINE),
        ("clipping", FINE),
        ("precision", FINE),
        ("output folder", FINE),
    ]


@pytest.mark.parametrize("settings, options, check, status, words", TRAPS, ids=TRAP_NAMES)
def test_a_trap_is_named(settings, options, check, status, words):
    (finding,) = findings_of(check, SOUND | settings, **options)
    assert finding.status == status
    assert words in f"{finding.value} {finding.reason} {finding.cure}"
    assert finding.cure


@pytest.mark.parametrize(
    "settings, options, check",
    [
        (dict(lr_scheduler="cosine", lr_warmup_steps=50), {}, "warm-up"),
        (dict(lr_scheduler="cosine", lr_warmup_steps=np.int64(50)), {}, "warm-up"),
        (dict(lr_scheduler="cosine_with_restarts", lr_num_cycles=3), {}, "restarts"),
        (dict(lr_scheduler="polynomial", learning_rate=1e-4), {}, "scheduler total"),
        (dict(lr_scheduler="piecewise_constant", lr_step_rules="1:50,0.1"), {}, "step rules"),
        (dict(gradient_accumulation_steps=5), {}, "accumulation"),
        (dict(scale_lr=True, learning_rate=1e-5), {}, "learning rate"),
        (dict(use_8bit_adam=True, rank=64), {}, "8-bit Adam"),
        (dict(match_diffusers=True, seed=0), {}, "noise of each process"),
        (dict(mixed_precision="bf16"), {}, "LoRA dtype"),
        (dict(rank=np.int64(4), learning_rate=np.float32(1e-3)), {}, "learning rate"),
        ({}, dict(num_examples=8), "images"),
        ({}, dict(num_examples=np.int64(8), num_processes=np.int64(1)), "images"),
    ],
    ids=str,
)
def test_sound_neighbours_of_the_traps_are_fine(settings, options, check):
    (finding,) = findings_of(check, SOUND | settings, **options)
    assert finding.status == FINE, finding


def test_the_other_checks_go_on_beside_a_warm_up_that_can_not_be():
    settings = SOUND | dict(lr_scheduler="cosine", lr_warmup_steps=0.1, learning_rate=0.5)
    wrong = [(finding.check, finding.status) for finding in examine(settings, 4, 400) if finding.status != FINE]
    assert wrong == [("warm-up", ERROR), ("learning rate", WARNING)]


def test_a_warm_up_that_can_not_be_is_said_though_the_pictures_are_not_there(tmp_path):
    settings = dict(train_data_dir=str(tmp_path / "none"), learning_rate=1e-3, lr_warmup_steps=0.1)
    errors = [finding for finding in examine(settings) if finding.status == ERROR]
    assert [finding.check for finding in errors] == ["data", "warm-up"]
    assert errors[1].change is None and "a number under 1" in errors[1].reason


def test_settings_may_be_a_configuration():
    config = TrainingConfig(**SOUND, lr_scheduler="cosine", lr_warmup_steps=60)
    assert findings_of("warm-up", config)[0].value == "lr_warmup_steps 60"


WRONG_NUMBERS = [
    (dict(num_processes=0), "num_processes 0 is not a whole number of at least 1"),
    (dict(num_processes=1.5), "num_processes 1.5 is not a whole number of at least 1"),
    (dict(num_examples=-1), "num_examples -1 is not a whole number of at least 1"),
    (dict(num_examples=0), "num_examples 0 is not a whole number of at least 1"),
    (dict(num_examples=2**63), "num_examples 9223372036854775808 is more than can be counted"),
    (dict(num_training_steps="many"), "num_training_steps 'many' is not a number of at least 0"),
    (dict(num_warmup_steps=float("nan")), "num_warmup_steps nan is not a number of at least 0"),
    (dict(num_warmup_steps=-1), "num_warmup_steps -1 is not a number of at least 0"),
]


@pytest.mark.parametrize("options, message", WRONG_NUMBERS, ids=str)
def test_numbers_that_are_none_are_raised(options, message):
    with pytest.raises(ValueError, match=message):
        examine(SOUND, **options)


NUMBERS = [trap for trap in TRAPS if set(trap[1]) <= {"num_processes"}]
NOT_NUMBERS = {"LoRA dtype", "precision", "trainable parameters", "data", "base model", "output folder"}


@pytest.mark.parametrize("settings, options, check, status, words", NUMBERS, ids=str)
def test_the_numbers_alone_say_the_same(settings, options, check, status, words):
    unet = loaded_unet()
    add_lora(unet, rank=4)
    processes = options.get("num_processes", 1)
    alone = examine_settings(SOUND | settings, 400, processes, trained_shapes(unet))
    names = {finding.check for finding in alone}
    whole = examine(SOUND | settings, processes, 400, unet=unet)
    assert list(alone) == [finding for finding in whole if finding.check in names]
    assert (check in names) == (check not in NOT_NUMBERS)


def run(code):
    return subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout


def test_the_numbers_alone_need_no_torch():
    code = (
        "import sys; from lora_kit.doctor import examine_settings; "
        "findings = examine_settings(dict(style='outlined', learning_rate=1e-3, lr_scheduler='cosine', lr_warmup_steps=500,"
        " max_train_steps=300, use_8bit_adam=True), 400, 4, [(4, 96), (96, 4)]); "
        "assert findings[0].change == {'lr_warmup_steps': 30} and len(findings) == 8; "
        "print({'torch', 'numpy', 'accelerate', 'diffusers'} & sys.modules.keys())"
    )
    assert run(code) == "set()\n"


def test_pictures_are_counted_without_being_drawn(tmp_path):
    code = (
        f"import os, sys; os.environ['LORA_KIT_CACHE'] = {str(tmp_path)!r}; from lora_kit.doctor import examine; "
        "findings = examine(dict(style='outlined', learning_rate=1e-3)); "
        "print([finding.reason for finding in findings if finding.check == 'data'], 'resvg_py' in sys.modules)"
    )
    assert run(code) == "['399 pictures with captions'] False\n"
    assert list(tmp_path.iterdir()) == []
