"""A run is resumed on the weights that it was begun on, wherever they lie now."""

import dataclasses
import json
import os
import shutil

import pytest

import lora_kit.data.file_index
from lora_kit.config import TrainingConfig
from lora_kit.models import EMBEDDED_MODEL
from lora_kit.output.base_model import base_identity
from lora_kit.output.resume import check_resumed
from lora_kit.steps import Steps
from lora_kit.system.files import file_digest

WEIGHTS = "diffusion_pytorch_model.safetensors"
HUB_NAME = "somebody/model"


def config(folder, **settings):
    return TrainingConfig(style="outlined", learning_rate=1e-3, pretrained_model_name_or_path=str(folder), **settings)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder with a UNet of a few bytes."""
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    shutil.copy(EMBEDDED_MODEL / "unet" / "config.json", folder / "unet")
    (folder / "unet" / WEIGHTS).write_bytes(b"weights")
    return folder


def resumed(before, now):
    """What is said as a run with the settings `now` resumes one that had `before`."""
    settings = json.loads(json.dumps(dataclasses.asdict(before)))
    record = dict(config=settings, update=1, num_processes=1, num_examples=16, next_learning_rate=1e-3)
    base = base_identity(before)

    def check():
        return check_resumed("checkpoint-1", record, now, Steps.of(now, 16))

    return record, base, check


def test_exchanged_weights_are_refused_and_an_old_checkpoint_is_taken(model):
    record, base, check = resumed(config(model), config(model))
    record["base"] = base
    assert list(base) == ["config.json", WEIGHTS] and check() == []
    (model / "unet" / WEIGHTS).write_bytes(b"weightz")
    with pytest.raises(
        ValueError, match=rf"^checkpoint-1 can't be resumed: unet/{WEIGHTS} of .*/model' is not that of the run"
    ):
        check()
    del record["base"]
    assert check() == []


def test_the_same_model_elsewhere_is_the_same(model, tmp_path):
    moved = shutil.copytree(model, tmp_path / "moved")
    about = json.loads((moved / "unet" / "config.json").read_text())
    (moved / "unet" / "config.json").write_text(json.dumps(about | {"_diffusers_version": "99"}, indent=7))
    (moved / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    record, base, check = resumed(config(model), config(moved))
    record["base"] = base
    assert base_identity(config(moved)) == base
    assert [sentence.endswith("which is taken to be the same") for sentence in check()] == [True]
    half = base_identity(config(moved, variant="fp16"))
    assert list(half) == ["config.json", "diffusion_pytorch_model.fp16.safetensors"]
    (moved / "unet" / "config.json").write_text(json.dumps(about | {"in_channels": 9}))
    with pytest.raises(ValueError, match=r"unet/config.json of"):
        check()


def test_a_model_of_the_hub_is_known_by_what_its_cache_calls_the_files(model, tmp_path, monkeypatch):
    stored = tmp_path / "hub" / f"models--{HUB_NAME.replace('/', '--')}"
    unet = stored / "snapshots" / "abc" / "unet"
    for folder in (unet, stored / "blobs", stored / "refs"):
        folder.mkdir(parents=True)
    (stored / "refs" / "main").write_text("abc")
    shutil.copy(model / "unet" / "config.json", unet)
    blob = stored / "blobs" / file_digest(model / "unet" / WEIGHTS)
    shutil.copy(model / "unet" / WEIGHTS, blob)
    os.symlink(blob, unet / WEIGHTS)
    wanted = base_identity(config(model))
    monkeypatch.setattr(lora_kit.data.file_index, "file_digest", lambda path: pytest.fail(f"{path} is read"))
    assert base_identity(config(HUB_NAME, cache_dir=str(tmp_path / "hub"))) == wanted


@pytest.mark.parametrize("content", [None, "no JSON", "[1]"])
def test_what_can_not_be_read_has_no_identity(content, model, tmp_path):
    file = model / "unet" / "config.json"
    file.unlink() if content is None else file.write_text(content)
    assert base_identity(config(model)) == {}
    assert base_identity(config("somebody/else", cache_dir=str(tmp_path))) == {}
