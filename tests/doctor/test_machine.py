"""The checks of this machine: precision in its places, the output folder, the pictures."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from doctor_cases import SOUND, findings_of
from PIL import Image

from lora_kit.config import TrainingConfig
from lora_kit.doctor import ERROR, FINE, WARNING, examine
from lora_kit.output.checkpoints import seal

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


def test_precision_from_accelerate_s_file(monkeypatch, tmp_path):
    accelerate_s_file(monkeypatch, tmp_path, LOCAL + "mixed_precision: bf16\n")
    (finding,) = findings_of("precision")
    assert finding.status == WARNING and "'bf16'" in finding.value


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


# the output folder


def test_output_folders(tmp_path):
    def finding(folder, **settings):
        return findings_of("output folder", SOUND | settings | dict(output_dir=str(folder)))[0]

    assert finding(tmp_path / "new").status == FINE
    (tmp_path / "file").write_text("")
    assert finding(tmp_path / "file").status == ERROR
    assert finding(tmp_path / "file" / "below").status == ERROR
    other = tmp_path / "other"
    (other / "checkpoint-5").mkdir(parents=True)
    (other / "metrics.jsonl").write_text("")
    other_run = finding(other)
    assert other_run.status == WARNING and "metrics.jsonl, checkpoint-5" in other_run.reason
    assert "it was not finished" in finding(other, resume_from_checkpoint="checkpoint-5").reason
    other_run = finding(other, resume_from_checkpoint="latest")
    assert (
        other_run.status == ERROR and "it was not finished" in other_run.reason and "none is whole" in other_run.reason
    )
    settings = TrainingConfig(**SOUND)
    (other / "checkpoint-3").mkdir()
    seal(other / "checkpoint-3", settings, update=3, num_processes=1, num_examples=8, next_learning_rate=1e-3)
    other_run = finding(other, resume_from_checkpoint="latest")
    assert other_run.status == WARNING and "resumes from checkpoint-3" in other_run.reason
    shutil.rmtree(other / "checkpoint-5")
    for wanted in ("checkpoint-3", str(other / "checkpoint-3")):
        assert finding(other, resume_from_checkpoint=wanted).reason == f"resumes from {wanted}"
    assert "is not there" in finding(other, resume_from_checkpoint=str(tmp_path / "checkpoint-3")).reason
    assert finding(other, resume_from_checkpoint="latest").reason == "resumes from checkpoint-3"
    assert sorted(path.name for path in other.iterdir()) == ["checkpoint-3", "metrics.jsonl"]


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "new"], ids=["null", "long", "free"])
def test_a_name_that_the_disk_does_not_take_is_an_error(name):
    (finding,) = findings_of("output folder", SOUND | dict(output_dir=name))
    assert (finding.status == ERROR) == _refused(name)


def test_room_that_is_missing_is_said(tmp_path):
    assert findings_of("room", SOUND) == []
    settings = dict(output_dir=str(tmp_path / "run"), rank=64, max_train_steps=10**7, checkpointing_steps=1)
    (finding,) = findings_of("room", SOUND | settings)
    assert finding.status == WARNING and "(10000000 checkpoints; " in finding.reason


def _refused(name):
    try:
        Path(name).mkdir(parents=True)
    except (OSError, ValueError):
        return True
    return False


def test_pictures_are_counted(tmp_path):
    (finding,) = findings_of("data", num_examples=None)
    assert finding.status == FINE and "399 pictures" in finding.reason
    (finding,) = findings_of("data", dict(learning_rate=1e-3, train_data_dir=str(tmp_path / "none")), num_examples=None)
    assert finding.status == ERROR


def test_what_the_environment_says_otherwise(monkeypatch):
    def findings():
        made = examine(dict(style="outlined", learning_rate=1e-3), num_examples=400)
        return [(one.status, one.reason) for one in made if one.check == "environment"]

    assert findings() == []
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    (first, refused), (second, aside) = findings()
    assert (first, second) == ("error", "warning")
    assert refused.startswith("ACCELERATE_USE_FSDP 'true' in the environment: this loop trains with plain data")
    assert aside.endswith("is set aside: gradient_accumulation_steps is 1")


def test_captions_that_are_cut_are_counted_and_shown(tmp_path):
    for index, text in enumerate(("fox", "fox " * 20 + "red apple")):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
        with open(tmp_path / "metadata.jsonl", "a") as file:
            file.write(json.dumps({"file_name": f"{index}.png", "text": text}) + "\n")
    data = SOUND | dict(style=None, train_data_dir=str(tmp_path))
    (found,) = (one for one in examine(data) if one.check == "data")
    assert found.status == WARNING and found.reason.startswith(
        "1 captions are longer than the text encoder reads; of one it drops"
    )
    assert "fox red apple'" in found.reason


@pytest.mark.parametrize("field", ["train_data_dir", "dataset_name"])
def test_an_output_inside_the_pictures_is_an_error(field, tmp_path):
    for place in (tmp_path, tmp_path / "run"):
        (found,) = findings_of("output folder", SOUND | {"style": None, field: str(tmp_path), "output_dir": str(place)})
        assert found.status == ERROR and f"lies inside {field} {str(tmp_path)!r}" in found.reason
    beside = SOUND | {"style": None, field: str(tmp_path / "pictures"), "output_dir": str(tmp_path / "run")}
    assert findings_of("output folder", beside)[0].status == FINE


@pytest.mark.parametrize(
    ("settings", "offline", "said"),
    [
        (dict(hub_model_id="my lora"), False, "hub_model_id 'my lora' is no name for a repository"),
        (dict(output_dir="a/my lora"), False, "output_dir's name 'my lora' is no name for a repository"),
        (dict(hub_model_id="me/lora"), True, "HF_HUB_OFFLINE is set, so nothing can be uploaded"),
        (dict(hub_model_id="me/lora"), False, ""),
    ],
)
def test_an_upload_that_can_not_be_is_known_before(settings, offline, said, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    assert findings_of("upload", SOUND | settings) == []
    (found,) = findings_of("upload", SOUND | settings | dict(push_to_hub=True))
    assert found.status == (ERROR if said else FINE) and said in found.reason
