import json
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from lora_kit.config import TrainingConfig
from lora_kit.models import (
    EMBEDDED_MODEL,
    check_base,
    check_base_model,
    empty_unet,
    load_models,
    load_pipeline,
    model_path,
    speed_up,
)


def config(**settings):
    return TrainingConfig(style="outlined", learning_rate=1e-3, **settings)


def test_model_path(tmp_path):
    assert model_path("embedded") == str(EMBEDDED_MODEL)
    assert model_path(str(EMBEDDED_MODEL)) == str(EMBEDDED_MODEL)
    assert model_path("stable-diffusion-v1-5/stable-diffusion-v1-5") == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    (tmp_path / "file").write_text("")
    for name, problem in (
        (str(tmp_path / "missing"), "does not exist"),
        ("./missing", "does not exist"),
        ("~/missing", "does not exist"),
        ("models/sd/1.5", "does not exist"),
        (str(tmp_path / "file"), "is a file"),
        (str(tmp_path), "has no model_index.json"),
        ("Embeded", "is no model; did you mean 'embedded'?"),
    ):
        with pytest.raises(ValueError) as caught:
            model_path(name)
        assert repr(name) in str(caught.value) and problem in str(caught.value)
        assert "model_index.json" in str(caught.value) and '"embedded"' in str(caught.value)


def test_wrong_path_is_met_before_anything_is_loaded():
    with pytest.raises(ValueError, match="does not exist"):
        load_models(config(pretrained_model_name_or_path="/no/such/model"))
    with pytest.raises(ValueError, match="does not exist"):
        load_pipeline("/no/such/model")


@pytest.mark.parametrize("entry", ["scheduler", "_class_name"])
def test_code_in_a_model_s_folder_is_not_run(entry, tmp_path):
    """Which diffusers before 0.38 ran, out of any folder whose model_index.json asked for it."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(EMBEDDED_MODEL, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {entry: ["evil", "Evil"]}))
    place = folder if entry == "_class_name" else folder / entry
    (place / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil:\n    pass\n")
    with pytest.raises(ValueError, match="custom code"):
        load_pipeline(str(folder))
    assert not ran.exists()


def test_load_models_are_frozen_and_float32():
    models = load_models(config())
    for model in (models.text_encoder, models.vae, models.unet):
        parameters = list(model.parameters())
        assert len(parameters) > 30 and not model.training
        assert not any(parameter.requires_grad for parameter in parameters)
        assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert type(models.noise_scheduler).__name__ == "DDPMScheduler"
    assert models.noise_scheduler.config.num_train_timesteps == 1000
    assert models.unet.config.cross_attention_dim == models.text_encoder.config.hidden_size
    assert len(models.tokenizer) <= models.text_encoder.config.vocab_size


def test_variant_reaches_the_unet_and_its_weights_become_float32(tmp_path):
    pipeline = load_pipeline()
    pipeline.to(torch.float16).save_pretrained(tmp_path)
    pipeline.unet.save_pretrained(tmp_path / "unet", variant="fp16")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="its unet can't be loaded: OSError .*; give a folder whose unet is whole"):
        load_models(config(pretrained_model_name_or_path=str(tmp_path)))
    pipeline.vae.save_pretrained(tmp_path / "vae", variant="fp16")
    models = load_models(config(pretrained_model_name_or_path=str(tmp_path), variant="fp16"))
    assert {part.dtype for part in (models.text_encoder, models.vae, models.unet)} == {torch.float32}


def test_pipeline_draws_and_prints_nothing():
    code = (
        "from lora_kit.models import load_pipeline\n"
        "image = load_pipeline()('cat face', num_inference_steps=2).images[0]\n"
        "import diffusers.utils.logging, transformers.utils.logging\n"
        "print(image.size, diffusers.utils.logging.is_progress_bar_enabled(),"
        " transformers.utils.logging.is_progress_bar_enabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(64, 64) True True"
    assert done.stderr == ""


def test_only_the_parts_that_are_named_are_loaded(tmp_path):
    models = load_models(config(), parts=("unet", "noise_scheduler"))
    assert [name for name, part in models._asdict().items() if part is not None] == ["unet", "noise_scheduler"]
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="its vae can't be loaded: the folder has none"):
        load_models(config(pretrained_model_name_or_path=str(tmp_path)), parts=("vae",))


def test_what_speeds_a_unet_up_reaches_it(monkeypatch):
    from diffusers.models.attention_processor import AttnProcessor

    (unet,) = (part for part in load_models(config(), parts=("unet",)) if part is not None)
    for name in ("xformers", "xformers.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    called = []
    monkeypatch.setattr(unet, "enable_xformers_memory_efficient_attention", lambda: called.append("xformers"))
    before = dict(unet.attn_processors)
    speed_up(unet, config())
    assert unet.attn_processors == before and unet._compiled_call_impl is None and called == []
    assert not unet.is_gradient_checkpointing
    made = config(enable_xformers_memory_efficient_attention=True)
    check_base_model(made)
    speed_up(unet, made)
    assert called == ["xformers"] and unet.attn_processors == before
    speed_up(unet, config(attention="plain", torch_compile=True, gradient_checkpointing=True))
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor}
    assert unet._compiled_call_impl is not None and unet.is_gradient_checkpointing


def test_a_part_is_loaded_in_the_dtype_that_is_asked_for():
    models = load_models(config(), torch.bfloat16, ("text_encoder", "vae"))
    assert (models.text_encoder.dtype, models.vae.dtype) == (torch.bfloat16, torch.bfloat16)


KINDS = {
    "SDXL": (dict(addition_embed_type="text_time"), "addition_embed_type 'text_time', so it is SDXL or one like it"),
    "inpainting": (dict(in_channels=9), "in_channels 9, so it is one for inpainting"),
    "classes": (dict(class_embed_type="timestep"), "class_embed_type 'timestep', so it is one that wants a class"),
    "numbered classes": (dict(num_class_embeds=10), "num_class_embeds 10, so it is one that wants a class"),
    "pictures": (
        dict(encoder_hid_dim_type="ip_image_proj"),
        "encoder_hid_dim_type 'ip_image_proj', so it is one that wants a",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_of_another_kind_is_refused_before_it_is_loaded(kind, tmp_path):
    change, said = KINDS[kind]
    shutil.copy(EMBEDDED_MODEL / "model_index.json", tmp_path)
    (tmp_path / "unet").mkdir()
    about = json.loads((EMBEDDED_MODEL / "unet" / "config.json").read_text())
    check_base("embedded", about)
    (tmp_path / "unet" / "config.json").write_text(json.dumps(about | change))
    with pytest.raises(ValueError, match=f"can't be trained by this loop: its UNet has {said}"):
        check_base_model(config(pretrained_model_name_or_path=str(tmp_path)))


def test_a_base_that_predicts_what_can_not_be_trained_is_refused_before_it_is_loaded(tmp_path):
    shutil.copy(EMBEDDED_MODEL / "model_index.json", tmp_path)
    for part in ("unet", "scheduler"):
        shutil.copytree(EMBEDDED_MODEL / part, tmp_path / part, ignore=shutil.ignore_patterns("*.safetensors"))
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(prediction_type="sample")))
    base = dict(pretrained_model_name_or_path=str(tmp_path))
    with pytest.raises(
        ValueError, match="its scheduler has prediction_type 'sample'; give a model that predicts epsilon or"
    ):
        check_base_model(config(**base))
    with pytest.raises(ValueError, match="its scheduler has prediction_type 'sample'"):
        empty_unet(config(**base))
    check_base_model(config(**base, prediction_type="epsilon"))


def test_what_lies_behind_an_error_is_said_with_a_cure(tmp_path):
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(b"cut short")
    words = "its unet can't be loaded: SafetensorError .*; give a folder whose unet is whole$"
    with pytest.raises(ValueError, match=words):
        load_models(config(pretrained_model_name_or_path=str(tmp_path / "model")), parts=("unet",))


@pytest.mark.parametrize("content", [None, "no JSON", "[1]"])
def test_a_description_that_can_not_be_read_is_left_to_loading(content, tmp_path):
    shutil.copy(EMBEDDED_MODEL / "model_index.json", tmp_path)
    if content:
        (tmp_path / "unet").mkdir()
        (tmp_path / "unet" / "config.json").write_text(content)
    check_base_model(config(pretrained_model_name_or_path=str(tmp_path)))
