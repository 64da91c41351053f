"""The checks of the model's objects, on real UNets."""

import warnings
from functools import partial

import pytest
import torch
from doctor_cases import SOUND, findings_of, loaded_unet
from torch.utils.checkpoint import checkpoint

from lora_kit.config import TrainingConfig
from lora_kit.doctor import ERROR, FINE
from lora_kit.models import describe_unet
from lora_kit.parameters import add_lora


def test_a_model_without_lora_has_nothing_to_train():
    (finding,) = findings_of("trainable parameters", unet=loaded_unet())
    assert finding.status == ERROR and finding.value == "0"


@pytest.mark.parametrize("rank", [4, 64])
def test_the_size_of_the_base_is_counted_without_the_lora(rank):
    (finding,) = findings_of("base model", SOUND | dict(rank=rank))
    size = sum(parameter.numel() for parameter in loaded_unet().parameters())
    assert finding.reason == f"a UNet of {size:,} parameters"


def test_a_trainable_base_is_an_error():
    unet = loaded_unet()
    add_lora(unet)
    assert findings_of("frozen base", unet=unet)[0].status == FINE
    unet.conv_in.requires_grad_(True)
    (finding,) = findings_of("frozen base", unet=unet)
    assert finding.status == ERROR and "conv_in" in finding.reason and finding.value.startswith("2 tensors")


def test_parameter_lists():
    unet = loaded_unet()
    parameters = add_lora(unet)

    def finding(groups):
        return findings_of("parameter list", unet=unet, parameters=groups)[0]

    assert finding(parameters).status == FINE
    assert finding([{"params": parameters, "lr": 1e-3}]).status == FINE
    assert "filter" in finding(filter(lambda parameter: parameter.requires_grad, unet.parameters())).value
    assert finding([]).status == ERROR
    assert "10 of the model's 112" in finding(parameters[10:]).reason
    assert "1 of them are frozen" in finding([*parameters, unet.conv_in.weight]).reason


def test_16_bit_lora_is_an_error():
    unet = loaded_unet()
    add_lora(unet)
    for dtype, words in ((torch.bfloat16, "round away"), (torch.float16, "unscale FP16")):
        unet.to(dtype)
        (finding,) = findings_of("LoRA dtype", unet=unet)
        assert finding.status == ERROR and words in finding.reason


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_that_cuts_the_gradient_is_an_error(reentrant):
    unet = loaded_unet()
    parameters = add_lora(unet)
    assert findings_of("gradient checkpointing", unet=unet)[0].value == "off"
    unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=reentrant))
    (finding,) = findings_of("gradient checkpointing", unet=unet)
    assert finding.status == (ERROR if reentrant else FINE)

    unet.train()  # and it is true: with it the whole output has no gradient
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = unet(torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 16, unet.config.cross_attention_dim))
    assert drawn.sample.requires_grad != reentrant
    if not reentrant:
        drawn.sample.sum().backward()
        assert all(parameter.grad is not None for parameter in parameters)


def test_the_settings_own_checkpointing_is_fine():
    (finding,) = findings_of("gradient checkpointing", SOUND | dict(gradient_checkpointing=True))
    assert finding.status == FINE and "blocks" in finding.reason


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_base_is_described_without_a_word(precision, capfd):
    (finding,) = findings_of("base model", SOUND | dict(mixed_precision=precision))
    assert finding.status == FINE and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", ["", "[]", "null", '{"block_out_channels": 3}'])
def test_a_description_that_can_not_be_read_is_an_error(content, tmp_path):
    for part in ("tokenizer", "text_encoder", "vae", "unet", "scheduler"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(content)
    (tmp_path / "model_index.json").write_text("{}")
    (finding,) = findings_of("base model", SOUND | dict(pretrained_model_name_or_path=str(tmp_path)))
    assert finding.status == ERROR and finding.reason


@pytest.mark.parametrize("change", [dict(in_channels=9), dict(num_class_embeds=10)], ids=str)
def test_a_base_of_another_kind_is_an_error(change, monkeypatch):
    about = describe_unet(TrainingConfig(**SOUND)) | change
    monkeypatch.setattr("lora_kit.models.describe_unet", lambda config: about)
    (finding,) = findings_of("base model")
    ((field, value),) = change.items()
    assert (
        finding.status == ERROR
        and f"can't be trained by this loop: its UNet has {field} {value}, so it is" in finding.reason
    )


def test_a_base_that_is_known_to_be_another_kind_is_said_without_reading_it():
    other = SOUND | dict(pretrained_model_name_or_path="stabilityai/sdxl-turbo")
    (finding,) = findings_of("base model", other)
    assert finding.status == "error" and finding.cure.startswith("diffusers' train_text_to_image_lora_sdxl.py for this")
    assert findings_of("base model", other, unet=loaded_unet()) == []  # of your own loop, which may well train it
