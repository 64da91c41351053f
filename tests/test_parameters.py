import copy
from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel
from test_memory import SD15, SD21, SDXL, script

from lora_kit.config import TrainingConfig
from lora_kit.models import load_models
from lora_kit.optimizers import expected_state_bytes
from lora_kit.parameters import add_lora, format_table, parameter_table, trainable_parameters

UNETS = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL}


@cache
def embedded():
    return load_models(TrainingConfig(style="outlined", learning_rate=1e-3)).unet


def unet():
    return copy.deepcopy(embedded())


def output(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    latents, text = (torch.randn(size, generator=generator).to(dtype) for size in ((2, 4, 16, 16), (2, 24, 128)))
    return model(latents, torch.tensor([10, 900]), text).sample


# name, rank, tensors, trained, base, Adam state in MB at 32 and at 8 bits
FIGURES = [
    ("sd15", 4, 256, 797_184, 859_520_964, "6.38", "3.81"),
    ("sd15", 8, 256, 1_594_368, 859_520_964, "12.75", "4.31"),
    ("sd15", 16, 256, 3_188_736, 859_520_964, "25.5", "6.5"),
    ("sd21", 4, 256, 829_952, 865_910_724, "6.64", "3.29"),
    ("sdxl", 4, 1120, 5_806_080, 2_567_463_684, "46.5", "13.9"),
    ("sdxl", 16, 1120, 23_224_320, 2_567_463_684, "185.8", "47.2"),
]


@pytest.mark.parametrize("name, rank, tensors, trained, base, state32, state8", FIGURES)
def test_check_figures(name, rank, tensors, trained, base, state32, state8):
    with torch.device("meta"):
        model = script.build(UNETS[name])
        lora = add_lora(model, rank=rank)
    rows = {row["module"]: row for row in parameter_table(model)}
    assert rows["frozen"]["parameters"] == base
    assert len(lora) == rows["trained"]["tensors"] == tensors
    assert sum(one.numel() for one in lora) == rows["trained"]["parameters"] == trained
    assert rows["trained"]["bytes"] == 4 * trained
    shapes = [tuple(one.shape) for one in lora]
    assert expected_state_bytes(shapes) == 8 * trained + 4 * tensors
    # The 32-bit figures are rounded with the step counters in one place (46.5) and without them in another (12.75),
    # so they are held to one unit of their last digit; the 8-bit ones to the digit.
    unit = 10.0 ** -len(state32.split(".")[1])
    assert expected_state_bytes(shapes) / 1e6 == pytest.approx(float(state32), abs=unit)
    assert f"{expected_state_bytes(shapes, True) / 1e6:.{len(state8.split('.')[1])}f}" == state8
    if (name, rank) == ("sd15", 4):
        small = [one.numel() for one in lora if one.numel() < 4096]
        assert (len(small), round(100 * sum(small) / trained, 1)) == (172, 46.1)


def test_rank_1_of_sd15_gains_nothing_from_8_bits():
    with torch.device("meta"):
        lora = add_lora(script.build(SD15), rank=1)
    assert len(lora) == 256 and max(one.numel() for one in lora) == 1280
    assert max(one.numel() for one in lora) < 4096
    shapes = [tuple(one.shape) for one in lora]
    assert expected_state_bytes(shapes, True) == 8 * 797_184 // 4


def test_output_is_unchanged_until_b_is():
    model = unet()
    with torch.no_grad():
        before = output(model)
        lora = add_lora(model, rank=4, lora_alpha=8)
        assert torch.equal(output(model), before)
        b = [one for name, one in model.named_parameters() if "lora_B" in name]
        assert len(lora) == 2 * len(b) and all(not one.any() for one in b)
        b[0].fill_(0.1)
        assert (output(model) - before).abs().max() > 1e-4
    assert {config.lora_alpha for config in model.peft_config.values()} == {8}


def test_a_starts_with_standard_deviation_one_over_rank():
    torch.manual_seed(0)
    model = unet()
    add_lora(model, rank=8)
    a = torch.cat([one.flatten() for name, one in model.named_parameters() if "lora_A" in name])
    assert a.numel() > 10_000 and abs(a.std().item() - 1 / 8) < 0.005
    assert model.peft_config["default"].lora_alpha == 8


def test_only_the_lora_learns():
    model = UNet2DConditionModel.from_config(embedded().config)  # a base that is not frozen yet
    assert all(one.requires_grad for one in model.parameters())
    lora = add_lora(model)
    base = {name: one.clone() for name, one in model.named_parameters() if ".lora_" not in name}
    optimizer = torch.optim.AdamW(lora, lr=1e-2)
    output(model).square().mean().backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert len(base) > 200 and all(torch.equal(after[name], one) for name, one in base.items())
    assert all(after[name].grad is None for name in base)
    assert any(one.any() for name, one in after.items() if "lora_B" in name)


def gradient_norm(parameters):
    return torch.cat([one.grad.flatten() for one in parameters]).norm().item()


def test_an_iterator_is_not_clipped_and_the_list_is():
    model = unet()
    lora = add_lora(model)
    (1e4 * output(model)).square().mean().backward()
    before = gradient_norm(lora)
    assert before > 10
    exhausted = filter(lambda one: one.requires_grad, model.parameters())
    torch.optim.AdamW(exhausted, lr=1e-4)
    assert torch.nn.utils.clip_grad_norm_(exhausted, 1.0) == 0.0
    assert gradient_norm(lora) == before
    torch.optim.AdamW(lora, lr=1e-4)
    assert torch.nn.utils.clip_grad_norm_(lora, 1.0).item() == pytest.approx(before, rel=1e-4)
    assert gradient_norm(lora) == pytest.approx(1.0, rel=1e-3)


def test_lora_is_float32_on_a_bfloat16_base():
    model = unet().to(torch.bfloat16)
    lora = add_lora(model)
    assert {one.dtype for one in lora} == {torch.float32}
    base = {one.dtype for name, one in model.named_parameters() if ".lora_" not in name}
    assert base == {torch.bfloat16}
    rows = parameter_table(model)
    assert [row["dtype"] for row in rows[-2:]] == ["float32", "bfloat16"]
    assert rows[-1]["bytes"] == 2 * rows[-1]["parameters"] > 0


def test_trainable_parameters():
    model = unet()
    lora = add_lora(model)
    assert isinstance(lora, list)
    again = trainable_parameters(model)
    assert [id(one) for one in again] == [id(one) for one in lora] == [
        id(one) for name, one in model.named_parameters() if ".lora_" in name
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"nothing in this UNet2DConditionModel .* add_lora\(unet\)"):
        trainable_parameters(unet())
    with pytest.raises(ValueError, match="nothing in this"):
        parameter_table(unet())
    for wrong, kind in ((model.parameters(), "generator"), (lora, "list")):
        with pytest.raises(TypeError, match=f"a {kind} is no module"):
            trainable_parameters(wrong)


@pytest.mark.parametrize(
    "targets, message",
    [
        (["to_qq"], "no module matched 'to_qq'; did you mean 'to_q'?"),
        (["to_q", "to_kk"], "no module matched 'to_kk'; did you mean 'to_k'?"),
        (["o_k"], "no module matched 'o_k'"),  # the end of a name, but not at a dot
        (["xyzzy"], "no module matched 'xyzzy'; the usual ones are"),
        (["to_out"], "'to_out' matched ModuleList modules, .* did you mean 'to_out.0'?"),
        (["norm1"], "'norm1' matched (GroupNorm|LayerNorm) modules, .*; the usual ones are"),
        ([], "target_modules is empty"),
    ],
)
def test_wrong_targets(targets, message):
    model = unet()
    with pytest.raises(ValueError, match=message):
        add_lora(model, target_modules=targets)
    assert not hasattr(model, "peft_config")


def test_other_targets_and_their_table():
    model = unet()
    add_lora(model, rank=2, target_modules=["conv1", "ff.net.0.proj", "conv_in"])
    rows = {row["module"]: row for row in parameter_table(model)}
    assert list(rows)[-2:] == ["trained", "frozen"] and set(rows) - {"trained", "frozen"} == {
        "conv_in", "resnets.conv1", "net.proj",
    }  # fmt: skip
    assert rows["conv_in"]["parameters"] == 2 * 4 * 9 + 64 * 2
    assert rows["net.proj"]["tensors"] == 2 * 7
    for key in ("tensors", "parameters", "bytes"):
        assert sum(row[key] for name, row in rows.items() if name not in ("trained", "frozen")) == rows["trained"][key]


def test_a_single_name_is_one_target():
    model = unet()
    assert len(add_lora(model, target_modules="to_q")) == 28
    assert [row["module"] for row in parameter_table(model)] == ["attn1.to_q", "attn2.to_q", "trained", "frozen"]


def test_second_adapter_and_wrong_rank():
    model = unet()
    add_lora(model)
    with pytest.raises(ValueError, match="already has the adapter 'default'"):
        add_lora(model)
    model.delete_adapters("default")
    lora = add_lora(model, rank=2)
    assert len(lora) == 112 and {min(one.shape) for one in lora} == {2}
    for rank in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=f"rank {rank!r}"):
            add_lora(unet(), rank=rank)


def test_format_table():
    rows = [{"module": "a", "size": 1234567, "each": 2.5}, {"module": "long name", "size": 8, "each": None}]
    assert format_table(rows).splitlines() == [
        "module          size  each",
        "a          1,234,567  2.50",
        "long name          8",
    ]
