import pytest
import torch
from torch import nn

from lora_kit.system.modules import check_targets, module_kind, nearest_kind

USUAL = ("to_q",)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0", "attn1.to_out.0"),
        ("down_blocks.*.attentions.*.transformer_blocks.*.ff.net.0.proj", "ff.net.0.proj"),
        ("mid_block.attentions.0.transformer_blocks.11.ff.net.2", "ff.net.2"),
        ("mid_block.resnets.1.conv1", "conv1"),
        ("up_blocks.2.upsamplers.0.conv", "conv"),
        ("text_model.encoder.layers.3.self_attn.q_proj", "self_attn.q_proj"),
        ("time_embedding.linear_1", "time_embedding.linear_1"),
        ("conv_in", "conv_in"),
        ("layers.3", "layers.3"),
        ("0", "0"),
    ],
)
def test_module_kind(name, kind):
    assert module_kind(name) == kind


def test_nearest_kind():
    names = ["blocks.0.ff.net.0.proj", "blocks.0.attn1.to_q", "conv_in"]
    assert nearest_kind("conv_im", names, USUAL) == "did you mean 'conv_in'?"
    assert nearest_kind("TO_Q", names, USUAL) == "did you mean 'to_q'?"
    assert nearest_kind("0.porj", names, USUAL) == "did you mean 'net.0.proj'?"
    assert nearest_kind("attentions.0.transformer_blocks.to_q", names, USUAL) == "did you mean 'to_q'?"
    assert nearest_kind("xyzzy", names, USUAL) == "the usual ones are ('to_q',)"


def test_check_targets():
    model = nn.ModuleDict({"to_q": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "table": nn.Embedding(2, 2)})
    model["net"] = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
    with torch.device("meta"):
        check_targets(model, ["to_q", "table", "net.0"], USUAL)
    for targets, message in (
        ([], r"target_modules is empty: name modules such as \('to_q',\)"),
        (["to_q", "o_q"], "no module matched 'o_q'; did you mean 'to_q'?"),
        (["net"], "'net' matched Sequential modules, .*; did you mean 'net.0'?"),
        (["net.1"], r"'net.1' matched ReLU modules, .*; the usual ones are \('to_q',\)"),
        (["norm"], "'norm' matched LayerNorm modules"),
    ):
        with pytest.raises(ValueError, match=message):
            check_targets(model, targets, USUAL)
