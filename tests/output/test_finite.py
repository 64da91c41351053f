"""A loss or a LoRA that is no number ends the run, says why, and costs no checkpoint that was finite."""

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from running import records
from safetensors.torch import load_file

from lora_kit.config import ConfigWarning, TrainingConfig, quiet_config
from lora_kit.output.checkpoints import MANIFEST, checkpoints
from lora_kit.output.finite import SKIPS, FiniteCheck, NotFinite
from lora_kit.output.lora_file import LORA
from lora_kit.output.metrics import METRICS
from lora_kit.training import train

RUN = dict(
    style="outlined", resolution=64, max_train_samples=8, train_batch_size=4, checkpointing_steps=1, checkpoints_total_limit=2,
    seed=0, report_to="none",
)  # fmt: skip
RUINOUS = dict(learning_rate=1e18, max_grad_norm=0.0)


def run(folder, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        return train(TrainingConfig(**RUN | settings, output_dir=str(folder)), progress=False)


def finite_ones(folder):
    return [
        path.name
        for path in checkpoints(folder)
        if all(tensor.isfinite().all() for tensor in load_file(path / LORA).values())
    ]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "run"
    run(folder, learning_rate=1e-3, max_train_steps=4)
    return folder


def plain(word):
    raise AssertionError(f"{word} is no JSON")


@pytest.fixture
def copy(good, tmp_path):
    import shutil

    return shutil.copytree(good, tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_diverges_ends_and_keeps_what_was_good(copy):
    with pytest.raises(NotFinite) as error:
        run(copy, **RUINOUS, max_train_steps=12, resume_from_checkpoint="latest")
    said = str(error.value)
    assert "(counted from 0; rate 1e+18, gradients not clipped, mixed_precision no)" in said
    assert "learning_rate 1e+18 is above the usual 1e-05 to 0.01" in said and "max_grad_norm 0 leaves" in said
    assert "checkpoint-4" in finite_ones(copy) and finite_ones(copy) == [path.name for path in checkpoints(copy)]
    for line in (copy / METRICS).read_text().splitlines():
        json.loads(line, parse_constant=plain)


@pytest.mark.slow
def test_with_allow_nan_the_run_goes_on_and_the_newest_finite_checkpoint_stays(copy):
    result = run(copy, **RUINOUS, max_train_steps=12, resume_from_checkpoint="latest", allow_nan=True)
    assert result.updates == 12 and math.isnan(result.loss)
    names = [path.name for path in checkpoints(copy)]
    assert names[-2:] == ["checkpoint-11", "checkpoint-12"]
    assert len(names) == 3 and finite_ones(copy) == names[:1]
    assert json.loads((copy / names[-1] / MANIFEST).read_text(), parse_constant=plain)["loss"] is None
    lines = [json.loads(line, parse_constant=plain) for line in (copy / METRICS).read_text().splitlines()]
    assert lines[-1]["event"] == "end" and lines[-1]["loss"] is None and lines[-2]["loss"] is None
    again = run(
        copy, **RUINOUS, max_train_steps=12, resume_from_checkpoint="latest", allow_nan=True
    )  # nothing is left to do
    assert again.updates == 12 and math.isnan(again.loss) and records(copy)[-1]["loss"] is None


@pytest.mark.slow
def test_a_lora_that_is_no_number_is_not_written_over_one_that_is(tmp_path):
    """The loss was still finite: the last update ruined the LoRA."""
    with pytest.raises(NotFinite, match="the LoRA holds NaN or infinity after update 0"):
        run(tmp_path, learning_rate=1e39, max_grad_norm=0.0, max_train_steps=1, checkpointing_steps=5)
    assert not (tmp_path / LORA).exists() and checkpoints(tmp_path) == []


def check(precision="no", first_update=0, **settings):
    config = quiet_config(dict(style="outlined", learning_rate=1e-3) | settings)
    return FiniteCheck(config, [torch.ones(2), torch.zeros(3)], precision, first_update)


def test_what_is_finite_passes():
    watched = check()
    for update in range(3):
        watched.update(update, 0.5, 1e-3, torch.tensor(2.0), False)
    assert watched.weights(3)


@pytest.mark.parametrize(
    ("loss", "norm", "words"),
    [
        (
            math.nan,
            2.0,
            "the loss of update 7 is nan (counted from 0; rate 0.001, gradient norm 2, mixed_precision no).",
        ),
        (
            math.inf,
            None,
            "the loss of update 7 is inf (counted from 0; rate 0.001, gradients not clipped, mixed_precision no).",
        ),
        (
            0.5,
            math.nan,
            "the gradients of update 7 are not finite (counted from 0; rate 0.001, gradient norm nan, mixed_precision no).",
        ),
    ],
)
def test_what_is_not_is_named(loss, norm, words):
    with pytest.raises(NotFinite) as error:
        check().update(7, loss, 1e-3, norm, False)
    assert str(error.value).startswith(words)
    assert "a lower learning_rate, or a longer warm-up, is the usual cure" in str(error.value)
    check(allow_nan=True).update(7, loss, 1e-3, norm, False)


def test_fp16_skips_what_overflows_but_not_for_ever():
    watched = check("fp16")
    for update in range(SKIPS - 1):
        watched.update(update, 0.5, 1e-3, math.inf, True)
    watched.update(SKIPS - 1, 0.5, 1e-3, 1.0, False)
    for update in range(SKIPS, 2 * SKIPS - 1):
        watched.update(update, 0.5, 1e-3, math.inf, True)
    with pytest.raises(
        NotFinite, match=f"^{SKIPS} updates in a row, up to update {2 * SKIPS - 1}, .* try mixed_precision bf16"
    ):
        watched.update(2 * SKIPS - 1, 0.5, 1e-3, math.inf, True)


def test_the_first_update_points_at_the_model():
    with pytest.raises(
        NotFinite, match="it is the first update: the base model, or the checkpoint, may hold NaN or infinity"
    ):
        check(first_update=4).update(4, math.nan, 1e-3, 1.0, False)


def test_weights_that_are_no_numbers():
    watched = check(allow_nan=True)
    watched.lora[1][2] = math.nan
    assert not watched.weights(1)
    watched.config = SimpleNamespace(**vars(watched.config) | {"allow_nan": False})
    with pytest.raises(NotFinite, match="the LoRA holds NaN or infinity after update 0"):
        watched.weights(1)
