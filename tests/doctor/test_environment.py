"""The checks of what a run finds around it: precision in its places, variables, accelerate's file, packages."""

import sys
from pathlib import Path

import pytest
import torch
from doctor_cases import SOUND, findings_of

from lora_kit.config import TrainingConfig
from lora_kit.doctor import ERROR, FINE, WARNING, examine
from lora_kit.doctor.case import Case
from lora_kit.doctor.environment import Precision, environment, packages
from lora_kit.system.imports import NEEDED

LOCAL = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n"


def test_precision_in_one_place_only(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert findings_of("precision")[0].status == WARNING
    assert findings_of("precision", SOUND | dict(mixed_precision="bf16"))[0].status == FINE
    (finding,) = findings_of("precision", SOUND | dict(mixed_precision="no"))
    assert "disagree" in finding.reason
    (finding,) = findings_of("precision", SOUND | dict(match_diffusers=True))
    assert finding.status == WARNING and "D3" in finding.reason
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setenv("MIXED_PRECISION", "bf16")
    (finding,) = findings_of("precision")
    assert "nothing reads it" in finding.reason


def accelerate_s_file(monkeypatch, tmp_path, text):
    file = tmp_path / "default_config.yaml"
    file.write_text(text)
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(file))
    monkeypatch.setattr("accelerate.commands.config.config_args.default_yaml_config_file", str(file))
    return str(file)


@pytest.mark.parametrize("settings", [{}, dict(match_diffusers=True, lr_warmup_steps=0)])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_only_accelerate_launch_takes_the_precision_of_accelerate_s_file(precision, settings, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    file = accelerate_s_file(monkeypatch, tmp_path, LOCAL + f"mixed_precision: {precision}\n")
    findings = examine(SOUND | settings, num_examples=400)
    (finding,) = (one for one in findings if one.check == "precision")
    assert finding.status == WARNING and f"'{precision}'" in finding.value
    assert finding.reason == (
        f"accelerate's file {file} says {precision}: `accelerate launch` takes it, but lora_kit.training and lora_kit.launch "
        "compute in fp32"
    )
    assert findings.status == WARNING and Precision.of(TrainingConfig(**SOUND | settings)).used == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert Precision.of(TrainingConfig(**SOUND | settings)).used == "bf16"
    for flag in ("no", "bf16"):
        assert Precision.of(TrainingConfig(**SOUND | dict(mixed_precision=flag))).used == flag


def test_a_file_that_may_not_be_looked_for_is_none(monkeypatch, tmp_path):
    """As it is for accelerate itself, in a folder of another user."""

    def is_file(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", is_file)
    assert Precision.of(TrainingConfig(**SOUND)) == Precision(None)


OF_FILE = [  # lines of accelerate's file, whether there is a GPU, words
    (
        "distributed_type: FSDP\nfsdp_config: {}\n",
        False,
        "has distributed_type FSDP: `accelerate launch` hands it on, and this",
    ),
    (
        "distributed_type: DEEPSPEED\n",
        False,
        "has distributed_type DEEPSPEED: `accelerate launch` hands it on, and this loop",
    ),
    (
        "parallelism_config: {parallelism_config_tp_size: 2}\n",
        False,
        "has a parallelism_config: `accelerate launch` hands it",
    ),
    (
        "dynamo_config: {dynamo_backend: INDUCTOR}\n",
        False,
        "has dynamo_backend 'INDUCTOR': `accelerate launch` hands it on, and",
    ),
    ("dynamo_backend: 'NO'\n", False, ""),
    (
        "use_cpu: true\n",
        True,
        "has use_cpu: `accelerate launch` leaves the GPU idle, lora_kit.training and lora_kit.launch don't",
    ),
    ("use_cpu: true\n", False, ""),
    ("distributed_type: NO\ndynamo_config: {dynamo_backend: no}\n", False, ""),
    ("distributed_type: MULTI_GPU\nnum_processes: 2\n", True, ""),
]


@pytest.mark.parametrize(("text", "gpu", "words"), OF_FILE)
def test_what_accelerate_launch_would_hand_on_from_the_file(text, gpu, words, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: gpu)
    rest = "" if "distributed_type" in text else "distributed_type: 'NO'\n"
    file = accelerate_s_file(monkeypatch, tmp_path, f"compute_environment: LOCAL_MACHINE\n{rest}{text}")
    findings = environment(Case(TrainingConfig(**SOUND)))
    assert [finding.status for finding in findings] == [WARNING] * bool(words)
    assert all(finding.reason.startswith(f"{file} {words}") for finding in findings)


@pytest.mark.parametrize("text", [LOCAL, LOCAL + "mixed_precision: no\n", LOCAL + "mixed_precision: 'no'\n"])
def test_a_file_that_asks_for_nothing_is_fine(monkeypatch, tmp_path, text):
    accelerate_s_file(monkeypatch, tmp_path, text)
    (finding,) = findings_of("precision")
    assert (finding.status, finding.reason) == (FINE, "computed in fp32")


FILES = [
    ("", "AttributeError"),
    ("nonsense", "AttributeError"),
    ("{", "ParserError"),
    (LOCAL + "mixed_precision: fp8\n", "has mixed_precision 'fp8', which is none of no, fp16, bf16"),
    (LOCAL + "ipex_config:\n  ipex: false\nmixed_precision: 'no'\n", "unknown keys (['ipex_config'])"),
    (LOCAL.replace("LOCAL_MACHINE", "AMAZON_SAGEMAKER") + "mixed_precision: fp16\n", "can't read"),
]


@pytest.mark.parametrize("text, words", FILES, ids=[words for _, words in FILES])
def test_a_file_that_can_not_be_taken_is_a_warning(monkeypatch, tmp_path, text, words):
    file = accelerate_s_file(monkeypatch, tmp_path, text)
    (finding,) = findings_of("precision")
    assert finding.status == WARNING and file in finding.reason and words in finding.reason


def test_an_environment_that_can_not_be_taken_is_an_error_where_the_flag_is_silent(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    (finding,) = findings_of("precision")
    assert finding.status == ERROR and "ACCELERATE_MIXED_PRECISION has mixed_precision 'fp8'" in finding.reason
    (finding,) = findings_of("precision", SOUND | dict(mixed_precision="bf16"))
    assert finding.status == WARNING


@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 works on an accelerator")
def test_fp16_without_a_gpu_is_an_error():
    assert findings_of("precision", SOUND | dict(mixed_precision="fp16"))[0].status == ERROR


def test_what_the_environment_says_otherwise(monkeypatch):
    def findings():
        made = examine(SOUND, num_examples=400)
        return [(one.status, one.reason) for one in made if one.check == "environment"]

    assert findings() == []
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    assert findings() == [
        ("warning", "ACCELERATE_TORCH_DEVICE 'meta' changes what runs, and no setting says so"),
    ]
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    (first, refused), (second, aside) = findings()
    assert (first, second) == ("error", "warning")
    assert refused.startswith("ACCELERATE_USE_FSDP 'true' in the environment: this loop trains with plain data")
    assert aside.endswith("is set aside: gradient_accumulation_steps is 1")


@pytest.mark.parametrize("setting", NEEDED)
def test_a_package_that_a_setting_needs_is_looked_for(setting, monkeypatch):
    case = Case(TrainingConfig(**SOUND, **{setting: True}))
    module, _ = NEEDED[setting]
    monkeypatch.setitem(sys.modules, module, sys)
    assert packages(case) == []
    monkeypatch.setitem(sys.modules, module, None)
    (finding,) = packages(case)
    assert (finding.status, finding.value) == (ERROR, setting) and "can't be imported" in finding.reason


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [("wandb", ERROR, "so nothing would reach it"), ("tensorboard", FINE, "only metrics.jsonl"), ("none", None, "")],
)
def test_a_tracker_is_looked_for(name, status, words, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    findings = packages(Case(TrainingConfig(**SOUND | dict(report_to=name))))
    assert [finding.status for finding in findings] == ([status] if status else [])
    assert all(words in finding.reason for finding in findings)
