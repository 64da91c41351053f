"""The checks of this machine's folders: the output folder, the pictures, the upload."""

import json
import shutil
from pathlib import Path

import pytest
from doctor_cases import SOUND, findings_of
from PIL import Image

from lora_kit.config import TrainingConfig
from lora_kit.doctor import ERROR, FINE, WARNING, examine
from lora_kit.output.checkpoints import seal


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
