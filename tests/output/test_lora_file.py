"""The LoRA's file, the same for the same LoRA. An upload of it: asked for before training, and of the LoRA and the pictures alone. The Hub is one that answers here."""

import dataclasses
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

import lora_kit.training
from lora_kit.config import quiet_config
from lora_kit.models import load_models
from lora_kit.output.folder import VALIDATION, check_output
from lora_kit.output.lora_file import LORA, push_to_hub, save_lora
from lora_kit.parameters import add_lora
from lora_kit.system.files import file_digest

SETTINGS = dict(style="outlined", learning_rate=1e-3, push_to_hub=True, hub_model_id="lora", hub_token="hf_secret")


@pytest.fixture
def hub(monkeypatch):
    """What the Hub was asked for; it refuses what `refused` names."""
    asked, refused = [], set()

    class Made:
        repo_id = "me/lora"

    def answer(name):
        def call(*words, **options):
            if name in refused:
                raise OSError(f"{name}: 401 Unauthorized")
            asked.append((name, words, options))
            return Made

        return call

    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(huggingface_hub, name, answer(name))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return asked, refused


def test_one_lora_is_one_file(tmp_path):
    """Though safetensors writes the metadata in any order; and the settings are read back from it."""
    from diffusers import StableDiffusionPipeline

    unet = load_models(quiet_config(dict(style="outlined", learning_rate=1e-3)), parts=("unet",)).unet
    add_lora(unet, rank=2, lora_alpha=6)
    assert len({file_digest(save_lora(unet, tmp_path / str(number))) for number in range(16)}) == 1
    stored, _, settings = StableDiffusionPipeline.lora_state_dict(
        tmp_path / "0", weight_name=LORA, return_lora_metadata=True
    )
    assert settings["unet.lora_alpha"] == 6
    trained = {parameter.data_ptr(): parameter for parameter in unet.parameters() if parameter.requires_grad}
    assert len(stored) == len(trained)


def test_the_repository_is_made_before_training_by_the_first_process_alone(hub):
    config = quiet_config(SETTINGS)
    check_output(config, main=False)
    assert hub[0] == []
    check_output(config, main=True)
    check_output(dataclasses.replace(config, hub_private_repo=True), main=True)
    as_it_is, private = (dict(exist_ok=True, private=private, token="hf_secret") for private in (None, True))
    assert hub[0] == [("create_repo", ("lora",), as_it_is), ("create_repo", ("lora",), private)]


def test_a_refusal_is_known_before_training_and_keeps_the_secret(hub):
    hub[1].add("create_repo")
    with pytest.raises(
        ValueError, match="the Hub makes no repository 'lora': OSError create_repo: 401 Unauthorized"
    ) as error:
        check_output(quiet_config(SETTINGS), main=True)
    assert "hf_secret" not in str(error.value)


def test_what_goes_up(hub, tmp_path):
    push_to_hub(tmp_path, quiet_config(SETTINGS), [LORA, "validation/*"])
    name, _, options = hub[0][-1]
    assert name == "upload_folder" and options["repo_id"] == "me/lora"
    assert options["allow_patterns"] == [LORA, "validation/*"]


def test_a_run_asks_first_and_uploads_nothing_that_holds_its_paths(hub, tmp_path, monkeypatch):
    loaded = lora_kit.training.load_models
    monkeypatch.setattr(
        lora_kit.training, "load_models", lambda *words: hub[0].append(("load_models", words, {})) or loaded(*words)
    )
    small = dict(resolution=64, max_train_samples=1, train_batch_size=1, max_train_steps=1, report_to="none")
    small |= dict(validation_prompt="a fish", num_validation_images=1, output_dir=str(tmp_path))
    lora_kit.training.train(quiet_config(SETTINGS | small), progress=False)
    assert [name for name, _, _ in hub[0]] == ["create_repo", "load_models", "create_repo", "upload_folder"]
    options = hub[0][-1][2]
    assert (options["folder_path"], options["allow_patterns"]) == (tmp_path, [LORA, f"{VALIDATION}/*"])
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    going_up = list(filter_repo_objects(files, allow_patterns=options["allow_patterns"]))
    assert {Path(name).parts[0] for name in going_up} == {LORA, VALIDATION}
    with_its_path = {name for name in files if str(tmp_path).encode() in (tmp_path / name).read_bytes()}
    assert with_its_path and not with_its_path & set(going_up)


def test_an_upload_that_fails_says_that_the_lora_is_safe(hub, tmp_path):
    hub[1].add("upload_folder")
    with pytest.raises(ValueError, match=f"the upload failed: OSError .*the LoRA is safe in {tmp_path / LORA}"):
        push_to_hub(tmp_path, quiet_config(SETTINGS), [LORA])


def test_a_run_inside_its_pictures_is_refused(tmp_path):
    settings = dict(train_data_dir=str(tmp_path), output_dir=str(tmp_path / "run"), learning_rate=1e-3)
    with pytest.raises(ValueError, match="lies inside train_data_dir"):
        check_output(quiet_config(settings), main=True)
