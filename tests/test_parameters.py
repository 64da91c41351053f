import copy
import json
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from test_memory import SD15, SD21, SDXL, script

from lora_kit.config import TrainingConfig
from lora_kit.memory import MODELS, SHAPES, lora_shapes
from lora_kit.models import load_models
from lora_kit.optimizers import expected_state_bytes
from lora_kit.parameters import add_lora, parameter_table, trainable_parameters
from lora_kit.system.modules import module_kind

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
    assert sum(tensor.numel() for tensor in lora) == rows["trained"]["parameters"] == trained
    assert rows["trained"]["bytes"] == 4 * trained
    shapes = [tuple(tensor.shape) for tensor in lora]
    assert expected_state_bytes(shapes) == 8 * trained + 4 * tensors
    # The 32-bit figures are rounded with the step counters in one place (46.5) and without them in another (12.75),
    # so they are held to one unit of their last digit; the 8-bit ones to the digit.
    unit = 10.0 ** -len(state32.split(".")[1])
    assert expected_state_bytes(shapes) / 1e6 == pytest.approx(float(state32), abs=unit)
    assert f"{expected_state_bytes(shapes, True) / 1e6:.{len(state8.split('.')[1])}f}" == state8
    if (name, rank) == ("sd15", 4):
        small = [tensor.numel() for tensor in lora if tensor.numel() < 4096]
        assert (len(small), round(100 * sum(small) / trained, 1)) == (172, 46.1)


def test_rank_1_of_sd15_gains_nothing_from_8_bits():
    with torch.device("meta"):
        lora = add_lora(script.build(SD15), rank=1)
    assert len(lora) == 256 and max(tensor.numel() for tensor in lora) == 1280
    assert max(tensor.numel() for tensor in lora) < 4096
    shapes = [tuple(tensor.shape) for tensor in lora]
    assert expected_state_bytes(shapes, True) == 8 * 797_184 // 4


def test_output_is_unchanged_until_b_is():
    model = unet()
    with torch.no_grad():
        before = output(model)
        lora = add_lora(model, rank=4, lora_alpha=8)
        assert torch.equal(output(model), before)
        b = [tensor for name, tensor in model.named_parameters() if "lora_B" in name]
        assert len(lora) == 2 * len(b) and all(not tensor.any() for tensor in b)
        b[0].fill_(0.1)
        assert (output(model) - before).abs().max() > 1e-4
    assert {config.lora_alpha for config in model.peft_config.values()} == {8}


def test_a_starts_with_standard_deviation_one_over_rank():
    torch.manual_seed(0)
    model = unet()
    add_lora(model, rank=8)
    a = torch.cat([tensor.flatten() for name, tensor in model.named_parameters() if "lora_A" in name])
    assert a.numel() > 10_000 and abs(a.std().item() - 1 / 8) < 0.005
    assert model.peft_config["default"].lora_alpha == 8


def test_only_the_lora_learns():
    model = UNet2DConditionModel.from_config(embedded().config)  # a base that is not frozen yet
    assert all(tensor.requires_grad for tensor in model.parameters())
    lora = add_lora(model)
    base = {name: tensor.clone() for name, tensor in model.named_parameters() if ".lora_" not in name}
    optimizer = torch.optim.AdamW(lora, lr=1e-2)
    output(model).square().mean().backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert len(base) > 200 and all(torch.equal(after[name], tensor) for name, tensor in base.items())
    assert all(after[name].grad is None for name in base)
    assert any(tensor.any() for name, tensor in after.items() if "lora_B" in name)


def gradient_norm(parameters):
    return torch.cat([tensor.grad.flatten() for tensor in parameters]).norm().item()


def test_an_iterator_is_not_clipped_and_the_list_is():
    model = unet()
    lora = add_lora(model)
    (1e4 * output(model)).square().mean().backward()
    before = gradient_norm(lora)
    assert before > 10
    exhausted = filter(lambda tensor: tensor.requires_grad, model.parameters())
    torch.optim.AdamW(exhausted, lr=1e-4)
    assert torch.nn.utils.clip_grad_norm_(exhausted, 1.0) == 0.0
    assert gradient_norm(lora) == before
    torch.optim.AdamW(lora, lr=1e-4)
    assert torch.nn.utils.clip_grad_norm_(lora, 1.0).item() == pytest.approx(before, rel=1e-4)
    assert gradient_norm(lora) == pytest.approx(1.0, rel=1e-3)


def test_lora_is_float32_on_a_bfloat16_base():
    model = unet().to(torch.bfloat16)
    lora = add_lora(model)
    assert {tensor.dtype for tensor in lora} == {torch.float32}
    base = {tensor.dtype for name, tensor in model.named_parameters() if ".lora_" not in name}
    assert base == {torch.bfloat16}
    rows = parameter_table(model)
    assert [row["dtype"] for row in rows[-2:]] == ["float32", "bfloat16"]
    assert rows[-1]["bytes"] == 2 * rows[-1]["parameters"] > 0


def test_trainable_parameters():
    model = unet()
    lora = add_lora(model)
    assert isinstance(lora, list)
    again = trainable_parameters(model)
    assert [id(tensor) for tensor in again] == [id(tensor) for tensor in lora] == [
        id(tensor) for name, tensor in model.named_parameters() if ".lora_" in name
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
        (["xyzzy"], "no module matched 'xyzzy'; the usual ones are \\('to_k', 'to_q', 'to_v', 'to_out.0'\\)"),
        (["net.proj"], "no module matched 'net.proj'; did you mean 'net.0.proj'?"),
        ([3], "target_modules \\[3\\] is not a list of names"),
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


def adaptable(model):
    """The names of all modules that a LoRA adapts."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def test_every_name_in_the_table_is_a_target_of_just_its_tensors():
    with torch.device("meta"):
        model = script.build("embedded")
        every = adaptable(model)
        add_lora(model, target_modules=every)
        *rows, trained, _ = parameter_table(model)
        assert trained["tensors"] == 2 * len(every) and len(rows) == 21
        for row in rows:
            model.delete_adapters("default")
            lora = add_lora(model, target_modules=[row["module"]])
            assert (len(lora), sum(tensor.numel() for tensor in lora)) == (row["tensors"], row["parameters"]), row


@pytest.mark.parametrize("name", MODELS)
def test_names_in_the_table_are_told_apart_in_every_known_model(name):
    """None is the end of another's name, so that each as a target means its own modules."""
    numbers = Counter()
    for module, _, number in json.loads(SHAPES.read_text())[name]["modules"]:
        numbers[module_kind(module)] += number
    assert {kind: len(lora_shapes(name, target_modules=kind)) for kind in numbers} == {
        kind: 2 * number for kind, number in numbers.items()
    }


def test_the_table_s_names():
    model = unet()
    add_lora(model, target_modules=adaptable(model))
    assert {row["module"] for row in parameter_table(model)[:-2]} == {
        *(f"attn{number}.{end}" for number in (1, 2) for end in ("to_q", "to_k", "to_v", "to_out.0")),
        "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "time_emb_proj", "conv_shortcut", "conv",
        "conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2",
    }  # fmt: skip


def test_a_hint_is_a_target():
    for wrong in ("to_qq", "to_out", "net.proj", "net.0.porj", "attn1", "ff", "net", "resnets.conv1", "downsamplers.conv",
                  "proj_im", "transformer_blocks", "down_blocks", "mid_block", "time_embeding.linear1"):  # fmt: skip
        model = unet()
        with pytest.raises(ValueError, match="did you mean '") as error:
            add_lora(model, target_modules=[wrong])
        hint = str(error.value).rpartition("did you mean '")[2].removesuffix("'?")
        assert add_lora(model, target_modules=[hint]), (wrong, hint)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # peft, of a second adapter
def test_another_adapter_leaves_names_and_hints_as_they_were():
    from peft import LoraConfig

    model = unet()
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "proj"]), adapter_name="other")
    for inside in ("base_layer", "to_q.base_layer", "lora_A.other", "other"):
        with pytest.raises(ValueError, match=f"no module matched '{inside}'"):
            add_lora(model, target_modules=[inside])
    with pytest.raises(ValueError, match="did you mean 'ff.net.0.proj'"):
        add_lora(model, target_modules=["ff"])
    assert len(add_lora(model, target_modules=["to_q"])) == 28  # those of "other" are frozen


def test_other_targets_and_their_table():
    model = unet()
    add_lora(model, rank=2, target_modules=["conv1", "ff.net.0.proj", "conv_in"])
    rows = {row["module"]: row for row in parameter_table(model)}
    assert list(rows)[-2:] == ["trained", "frozen"] and set(rows) - {"trained", "frozen"} == {
        "conv_in", "conv1", "ff.net.0.proj",
    }  # fmt: skip
    assert rows["conv_in"]["parameters"] == 2 * 4 * 9 + 64 * 2
    assert rows["ff.net.0.proj"]["tensors"] == 2 * 7
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
    assert len(lora) == 112 and {min(tensor.shape) for tensor in lora} == {2}
    for wrong in (0, -1, 2.0, True, "4"):
        for name in ("rank", "lora_alpha"):
            with pytest.raises(ValueError, match=f"^{name} {wrong!r} is not a whole number of at least 1$"):
                add_lora(unet(), **{name: wrong})
    model = unet()
    assert {min(tensor.shape) for tensor in add_lora(model, rank=np.int64(2), lora_alpha=np.int32(6))} == {2}
    assert (model.peft_config["default"].r, model.peft_config["default"].lora_alpha) == (2, 6)
    assert type(model.peft_config["default"].r) is int  # else peft's configuration can't be written as JSON
