import sys

import pytest
import torch

from lora_kit.config import TrainingConfig
from lora_kit.models import load_models
from lora_kit.optimizers import expected_state_bytes, make_optimizer, state_bytes
from lora_kit.parameters import add_lora, trainable_parameters

SHAPES = [(4095,), (4096,), (4, 320), (4, 1280), (1281, 4), (2560, 4), (100, 41)]


def config(**settings):
    return TrainingConfig(style="outlined", learning_rate=settings.pop("learning_rate", 1e-3), **settings)


def tensors(shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return parameters


@pytest.mark.parametrize("use_8bit_adam", [False, True])
def test_arguments_reach_the_optimizer(use_8bit_adam):
    settings = config(
        learning_rate=3e-4, adam_beta1=0.8, adam_beta2=0.95, adam_weight_decay=0.3, adam_epsilon=1e-6,
        use_8bit_adam=use_8bit_adam,
    )  # fmt: skip
    parameters = tensors()
    optimizer = make_optimizer(parameters, settings)
    (group,) = optimizer.param_groups
    assert (group["lr"], *group["betas"], group["weight_decay"], group["eps"]) == (3e-4, 0.8, 0.95, 0.3, 1e-6)
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in parameters]
    expected = "bitsandbytes.optim.adamw.AdamW8bit" if use_8bit_adam else "torch.optim.adamw.AdamW"
    assert f"{type(optimizer).__module__}.{type(optimizer).__name__}" == expected
    if not use_8bit_adam:
        assert group["fused"] is True
        assert make_optimizer(parameters, settings, fused=False).param_groups[0]["fused"] is None


def test_scaled_learning_rate():
    settings = config(learning_rate=1e-4, scale_lr=True, train_batch_size=4, gradient_accumulation_steps=2)
    assert make_optimizer(tensors(), settings).param_groups[0]["lr"] == pytest.approx(8e-4)
    peak = settings.peak_learning_rate(num_processes=2)
    assert make_optimizer(tensors(), settings, peak).param_groups[0]["lr"] == pytest.approx(16e-4)


def test_fused_equals_the_loop_and_the_formula():
    settings = config(adam_weight_decay=0.1)
    fused, loop = tensors(), tensors()
    value, gradient = loop[2].detach().clone(), loop[2].grad.clone()
    optimizer = make_optimizer(fused, settings)
    loops = torch.optim.AdamW(loop, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, foreach=False)
    optimizer.step()
    loops.step()
    # the first update: both bias corrections make it lr x gradient / |gradient|, after the decay
    torch.testing.assert_close(fused[2].detach(), value * (1 - 1e-3 * 0.1) - 1e-3 * gradient.sign(), atol=1e-6, rtol=0)
    for _ in range(20):
        for a, b in zip(fused, loop, strict=True):
            b.grad = a.grad = a.detach().sin()
        optimizer.step()
        loops.step()
    for start, a, b in zip(tensors(), fused, loop, strict=True):
        assert (start - a).abs().max() > 1e-2
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_8_bit_update_is_near_the_32_bit_one():
    large, small = tensors(), tensors()
    optimizers = make_optimizer(large, config()), make_optimizer(small, config(use_8bit_adam=True))
    for _ in range(5):
        for a, b in zip(large, small, strict=True):
            a.grad = b.grad = a.detach().sin()
        for optimizer in optimizers:
            optimizer.step()
    for start, a, b in zip(tensors(), large, small, strict=True):
        moved = (a - start).norm()
        assert moved > 0 and (a - b).norm() / moved < 0.1


def test_iterators_empty_lists_and_frozen_parameters():
    parameters = tensors()
    for wrong, kind in (
        (filter(lambda parameter: parameter.requires_grad, parameters), "filter"),
        ((parameter for parameter in parameters), "generator"),
        (iter(parameters), "list_iterator"),
        (torch.nn.Linear(2, 2), "Linear"),
    ):
        with pytest.raises(TypeError, match=f"parameters is a {kind}, not a list.*trainable_parameters"):
            make_optimizer(wrong, config())
    with pytest.raises(ValueError, match=r"parameters \[\]"):
        make_optimizer([], config())
    parameters[0].requires_grad_(False)
    with pytest.raises(ValueError, match="1 of 7 parameters are frozen"):
        make_optimizer(parameters, config())


def test_small_updates_vanish_in_bfloat16_and_that_is_warned_of():
    parameter = torch.nn.Parameter(torch.full((4, 320), 0.25, dtype=torch.bfloat16))
    with pytest.warns(UserWarning, match="torch.bfloat16: small updates round away"):
        optimizer = make_optimizer([parameter], config(learning_rate=1e-4))
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert (parameter == 0.25).all()
    wide = torch.nn.Parameter(torch.full((4, 320), 0.25))
    wide.grad = torch.ones_like(wide)
    make_optimizer([wide], config(learning_rate=1e-4)).step()
    assert (wide < 0.25).all()


def test_missing_bitsandbytes(monkeypatch):
    """Without 8 bits it isn't needed."""
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    assert type(make_optimizer(tensors(), config())) is torch.optim.AdamW
    with pytest.raises(
        ValueError, match="^use_8bit_adam: bitsandbytes can't be imported .*; `pip install bitsandbytes`"
    ):
        make_optimizer(tensors(), config(use_8bit_adam=True))


def test_state_before_the_first_step():
    with pytest.raises(ValueError, match="no state yet"):
        state_bytes(make_optimizer(tensors(), config()))


@pytest.mark.parametrize("shapes", [SHAPES, [(8,), (4095,)], [(4096,)], [(4, 1024), (1, 4095), (3, 4097)]])
@pytest.mark.parametrize("use_8bit_adam", [False, True])
def test_measured_state_equals_the_expected(shapes, use_8bit_adam):
    optimizer = make_optimizer(tensors(shapes), config(use_8bit_adam=use_8bit_adam))
    optimizer.step()
    assert sum(row["bytes"] for row in state_bytes(optimizer)) == expected_state_bytes(shapes, use_8bit_adam)


def test_state_by_tensor_and_the_boundary():
    optimizer = make_optimizer(tensors(), config(use_8bit_adam=True))
    optimizer.step()
    *rows, maps = state_bytes(optimizer)
    assert [row["shape"] for row in rows] == SHAPES
    assert [row["bits"] for row in rows] == [32, 8, 32, 8, 8, 8, 8]
    assert [row["bytes"] for row in rows[:2]] == [8 * 4095, 2 * 4096 + 2 * 4 * 16]
    assert rows[0]["bytes_per_element"] == 8.0 and rows[1]["bytes_per_element"] == 2.03125
    assert rows[4]["bytes"] == 2 * 5124 + 2 * 4 * 21  # 20 blocks of 256 and one of 4
    assert (maps["shape"], maps["bytes"]) == ("shared maps", 2048)
    optimizer = make_optimizer(tensors(), config())
    optimizer.step()
    rows = state_bytes(optimizer)
    assert [row["shape"] for row in rows] == SHAPES and {row["bits"] for row in rows} == {32}
    assert all(row["bytes"] == 8 * row["elements"] + 4 for row in rows)


@pytest.mark.parametrize("use_8bit_adam", [False, True])
def test_state_of_a_real_lora(use_8bit_adam):
    settings = config(use_8bit_adam=use_8bit_adam)
    unet = load_models(settings).unet
    lora = add_lora(unet, rank=64)
    optimizer = make_optimizer(trainable_parameters(unet), settings)
    unet(torch.randn(1, 4, 16, 16), 5, torch.randn(1, 24, 128)).sample.square().mean().backward()
    optimizer.step()
    shapes = [tuple(parameter.shape) for parameter in lora]
    assert sum(row["bytes"] for row in state_bytes(optimizer)) == expected_state_bytes(shapes, use_8bit_adam)
    assert expected_state_bytes(shapes, True) < 0.3 * expected_state_bytes(shapes)


@pytest.mark.parametrize("fused", [False, True])
def test_why_fused_is_off_with_a_gradient_scaler(fused):
    """accelerate sees that an fp16 overflow skipped the update only where the optimizer is not fused."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    parameters = tensors()
    parameters[0].grad[0] = float("inf")
    before = parameters[1].detach().clone()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    optimizer = AcceleratedOptimizer(make_optimizer(parameters, config(), fused=fused), scaler=scaler)
    optimizer.step()
    assert torch.equal(parameters[1], before)
    assert optimizer.step_was_skipped is not fused
