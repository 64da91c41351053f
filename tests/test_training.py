import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from running import fingerprint
from safetensors.torch import load_file

from lora_kit.command_line.flags import to_argv
from lora_kit.config import TrainingConfig
from lora_kit.loss import diffusion_loss, micro_step_seed
from lora_kit.models import EMBEDDED_MODEL, load_models, load_pipeline
from lora_kit.output.checkpoints import checkpoints, read, seal
from lora_kit.output.lora_file import LORA
from lora_kit.output.metrics import METRICS, read_metrics
from lora_kit.parameters import add_lora
from lora_kit.schedules import applied_learning_rates
from lora_kit.steps import Steps
from lora_kit.training import main, train

BEYOND_ATTENTION = (
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "proj_in", "proj_out",
)  # fmt: skip


def config(output_dir, **settings):
    small = {
        "style": "outlined", "resolution": 64, "learning_rate": 2e-3, "train_batch_size": 4, "max_train_samples": 16,
        "max_train_steps": 2, "seed": 0, "report_to": "none",
    }  # fmt: skip
    return TrainingConfig(**small | settings, output_dir=str(output_dir))


def run(output_dir, **settings):
    """(result, accelerator) of a small run; the accelerator still holds the models that were trained."""
    held = []
    return train(config(output_dir, **settings), progress=False, on_start=held.append), held[0]


def trained_unet(accelerator):
    return accelerator.unwrap_model(accelerator._models[0])


def digest(folder):
    """The digest of the LoRA in a folder."""
    return fingerprint(Path(folder, LORA))


def optimizer_state(folder):
    return torch.load(Path(folder, "optimizer.bin"), weights_only=True)["state"]


def records(folder):
    return [json.loads(line) for line in Path(folder, METRICS).read_text().splitlines()]


def updates(folder):
    return [record for record in records(folder) if "update" in record]


def without_time(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# 18 pictures by 4: 5 batches (the last of 2); by 2 micro-steps: 3 updates an epoch (the last of 1); 6 updates
LONG = dict(
    max_train_samples=18, gradient_accumulation_steps=2, max_train_steps=6, checkpointing_steps=1, random_flip=True,
    lr_scheduler="cosine", lr_warmup_steps=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, result, accelerator) of a run of six updates that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(folder, **LONG)


@pytest.fixture(scope="module")
def beyond(tmp_path_factory):
    """The same of a LoRA on more than attention, with lora_alpha three times its rank."""
    folder = tmp_path_factory.mktemp("beyond")
    settings = dict(target_modules=BEYOND_ATTENTION, rank=2, lora_alpha=6, learning_rate=1e-2)
    return folder, *run(folder, **settings)


# the loop's parts


class Stub(torch.nn.Module):
    """Predicts from all that it is given, so that a wrong input shows."""

    def forward(self, noisy, timesteps, hidden, return_dict):
        assert return_dict is False
        return (0.3 * noisy + timesteps[:, None, None, None] / 1000 + hidden.mean((1, 2))[:, None, None, None],)


SEED = 14  # draws timesteps with an SNR on both sides of gamma


def scheduler(**settings):
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_pretrained(EMBEDDED_MODEL, subfolder="scheduler", **settings)


@pytest.mark.parametrize("noise_offset", [0.0, 0.1])
@pytest.mark.parametrize("snr_gamma", [None, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("by_flag", [True, False])
def test_loss_by_hand(prediction_type, snr_gamma, noise_offset, by_flag, tmp_path):
    made = config(
        tmp_path, snr_gamma=snr_gamma, noise_offset=noise_offset, prediction_type=prediction_type if by_flag else None
    )
    noise_scheduler = scheduler() if by_flag else scheduler(prediction_type=prediction_type)
    latents, hidden = torch.randn(6, 4, 8, 8), torch.randn(6, 77, 16)
    found = diffusion_loss(Stub(), noise_scheduler, latents, hidden, made, torch.Generator().manual_seed(SEED))

    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(6, 4, 8, 8, generator=generator)
    if noise_offset:
        noise = noise + noise_offset * torch.randn(6, 4, 1, 1, generator=generator)
    timesteps = torch.randint(1000, (6,), generator=generator)
    kept = noise_scheduler.alphas_cumprod[timesteps][:, None, None, None]
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    target = noise if prediction_type == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * latents
    errors = ((Stub()(noisy, timesteps, hidden, False)[0] - target) ** 2).mean((1, 2, 3))
    if snr_gamma is not None:
        snr = (kept / (1 - kept)).flatten()
        assert snr.min() < snr_gamma < snr.max()
        weights = torch.minimum(snr, torch.tensor(snr_gamma)) / (snr if prediction_type == "epsilon" else snr + 1)
        errors = weights * errors
    torch.testing.assert_close(found, errors.mean())


def test_min_snr_weights_where_the_snr_is_infinite(tmp_path):
    noise_scheduler = scheduler()
    noise_scheduler.alphas_cumprod[:] = 1.0  # no noise at all: min(snr, gamma) / snr is 0, not nan
    generator = torch.Generator().manual_seed(0)
    found = diffusion_loss(
        Stub(),
        noise_scheduler,
        torch.randn(2, 4, 8, 8),
        torch.zeros(2, 77, 16),
        config(tmp_path, snr_gamma=5.0),
        generator,
    )
    assert found == 0


def test_prediction_type_that_cannot_be_trained(tmp_path):
    with pytest.raises(ValueError, match="prediction_type 'sample' of the base model"):
        diffusion_loss(
            Stub(),
            scheduler(prediction_type="sample"),
            torch.zeros(1, 4, 8, 8),
            None,
            config(tmp_path),
            torch.Generator(),
        )


def test_every_micro_step_of_every_process_has_its_own_seed():
    seeds = {micro_step_seed(*key) for key in [(s, p, m) for s in range(3) for p in range(4) for m in range(100)]}
    assert len(seeds) == 1200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert micro_step_seed(1, 2, 3) == micro_step_seed(1, 2, 3)


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        models = load_models(config(tmp_path))
        lora = add_lora(models.unet)
        for one in lora:
            torch.nn.init.normal_(one, std=0.1)
        if recompute:
            models.unet.enable_gradient_checkpointing()
        models.unet.train()
        latents, hidden = torch.randn(2, 4, 8, 8), torch.randn(2, 77, models.unet.config.cross_attention_dim)
        loss = diffusion_loss(
            models.unet, models.noise_scheduler, latents, hidden, config(tmp_path), torch.Generator().manual_seed(0)
        )
        loss.backward()
        gradients.append([one.grad for one in lora])
    assert all(one.abs().max() > 0 for one in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])


# a run


@pytest.mark.slow
def test_what_a_run_records(whole):
    folder, result, _ = whole
    start, *lines, end = records(folder)
    assert (start["event"], start["num_processes"], start["mixed_precision"], start["seed"]) == ("start", 1, "no", 0)
    assert (start["first_update"], start["total_updates"], start["updates_per_epoch"]) == (0, 6, 3)
    assert [line["update"] for line in lines] == list(range(6))
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert all(0 < line["loss"] < 10 and 0 < line["grad_norm"] < 100 for line in lines)
    made = config(folder, **LONG)
    assert [line["lr"] for line in lines] == applied_learning_rates(made, Steps.of(made, 18)).tolist()
    assert (end["event"], end["updates"], end["lora_path"]) == ("end", 6, str(folder / LORA))
    assert (result.updates, result.num_processes, result.loss) == (6, 1, lines[-1]["loss"])
    assert Path(result.lora_path) == folder / LORA
    assert "CPU" in result.device


@pytest.mark.slow
def test_token_is_not_recorded(tmp_path):
    run(tmp_path, max_train_steps=1, hub_token="hf_secret")
    assert "hf_secret" not in (tmp_path / METRICS).read_text()
    assert records(tmp_path)[0]["config"]["rank"] == 4


@pytest.mark.slow
def test_only_the_lora_is_trained(whole):
    _, _, accelerator = whole
    unet = trained_unet(accelerator)
    base = load_models(config("unused")).unet.state_dict()
    kept = {name.replace(".base_layer", ""): one for name, one in unet.state_dict().items() if ".lora_" not in name}
    assert kept.keys() == base.keys()
    assert all(torch.equal(kept[name], base[name]) for name in base)
    assert all(one.requires_grad == (".lora_" in name) for name, one in unet.named_parameters())
    zeros = [one for name, one in unet.named_parameters() if ".lora_B" in name]
    assert len(zeros) > 10 and all(one.abs().max() > 0 for one in zeros)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole", "beyond"])
def test_stock_pipeline_loads_the_whole_lora(name, request, recwarn):
    from diffusers import StableDiffusionPipeline

    folder, _, accelerator = request.getfixturevalue(name)
    trained = trained_unet(accelerator)
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED_MODEL, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)

    def picture():
        image = pipeline(
            "cat face", num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt"
        )
        return torch.as_tensor(image.images)

    before = picture()
    pipeline.load_lora_weights(str(folder))
    assert [str(one.message) for one in recwarn if "lora" in str(one.message).lower()] == []
    assert (picture() - before).abs().mean() > 1e-4

    (adapter,) = pipeline.unet.peft_config
    loaded, truth = {
        name.replace(f".{adapter}.", "."): one
        for name, one in pipeline.unet.named_parameters() if ".lora_" in name
    }, {name.replace(".default.", "."): one for name, one in trained.named_parameters() if ".lora_" in name}  # fmt: skip
    assert loaded.keys() == truth.keys()
    assert all(torch.equal(loaded[name], truth[name]) for name in truth)
    if name == "beyond":
        ends = {name.split(".lora_")[0] for name in truth}
        assert all(any(one.endswith(f".{target}") for one in ends) for target in BEYOND_ATTENTION)

    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, trained.config.cross_attention_dim)
    with torch.no_grad():  # equal outputs: the scale, lora_alpha / rank, survives too
        outputs = [unet.eval()(*inputs).sample for unet in (pipeline.unet, trained)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)
    pipeline.unload_lora_weights()
    torch.testing.assert_close(picture(), before)


@pytest.mark.slow
def test_lora_alpha_is_stored(beyond, tmp_path):
    from safetensors import safe_open

    with safe_open(beyond[0] / LORA, "pt") as file:
        stored = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (stored["unet.r"], stored["unet.lora_alpha"]) == (2, 6)


@pytest.mark.slow
def test_clipping_clips(tmp_path):
    # With adam_epsilon 1, far above the gradients, the first update is learning_rate x gradient: its size tells the
    # gradient's. A's gradient is 0 while B is 0, so B's update is all of it.
    norms, moved = [], []
    for name, limit in (("free", 0.0), ("clipped", 1e-3)):
        run(tmp_path / name, max_train_steps=1, adam_epsilon=1.0, max_grad_norm=limit, learning_rate=1e-2)
        norms.append(updates(tmp_path / name)[0]["grad_norm"])
        stored = load_file(tmp_path / name / LORA)
        moved.append(torch.cat([one.flatten() for key, one in stored.items() if "lora_B" in key]).norm().item() / 1e-2)
    assert norms[0] is None
    assert norms[1] > 0.01  # recorded as it was before clipping
    assert moved[0] == pytest.approx(norms[1], rel=0.05)
    assert moved[1] == pytest.approx(1e-3, rel=0.02)


@pytest.mark.slow
def test_bf16_keeps_the_lora_in_fp32(tmp_path):
    _, accelerator = run(tmp_path, mixed_precision="bf16", checkpointing_steps=2)
    unet = trained_unet(accelerator)
    dtypes = {(".lora_" in name, one.dtype) for name, one in unet.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert records(tmp_path)[0]["mixed_precision"] == "bf16"
    stored = load_file(tmp_path / LORA)
    assert {one.dtype for one in stored.values()} == {torch.float32}
    assert all((one.bfloat16().float() != one).float().mean() > 0.5 for one in stored.values())
    state = optimizer_state(tmp_path / "checkpoint-2")
    assert {one["exp_avg"].dtype for one in state.values()} == {torch.float32}


@pytest.mark.slow
def test_gradient_checkpointing_runs_and_changes_nothing(tmp_path, monkeypatch):
    run(tmp_path / "plain")
    calls, checkpoint = [], torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: calls.append(a) or checkpoint(*a, **k))
    run(tmp_path / "recomputed", gradient_checkpointing=True)
    assert calls
    assert digest(tmp_path / "plain") == digest(tmp_path / "recomputed")


@pytest.mark.slow
def test_8_bit_adam(tmp_path):
    run(tmp_path, use_8bit_adam=True, rank=32, checkpointing_steps=2)
    state = optimizer_state(tmp_path / "checkpoint-2")
    moments = [one["__bnb_optimizer_quant_state__"]["state1"].dtype for one in state.values()]
    assert {torch.uint8, torch.float32} == set(moments)  # small tensors keep 32 bits
    assert all(line["loss"] < 10 for line in updates(tmp_path)) and len(updates(tmp_path)) == 2


@pytest.mark.slow
def test_min_snr_and_v_prediction_reach_the_loop(tmp_path):
    losses = {}
    for name, more in {
        "plain": {}, "snr": {"snr_gamma": 5.0}, "epsilon": {"prediction_type": "epsilon"},
        "offset": {"noise_offset": 0.5}, "crop": {"center_crop": True, "random_flip": True},
    }.items():  # fmt: skip
        run(tmp_path / name, max_train_steps=1, **more)
        losses[name] = updates(tmp_path / name)[0]["loss"]
    assert len({round(loss, 6) for loss in losses.values()}) == 5
    assert losses["snr"] < losses["plain"]


# checkpoints and resume


@pytest.mark.slow
@pytest.mark.parametrize(("update", "wanted"), [(1, "checkpoint-1"), (3, "checkpoint-3"), (4, "latest"), (5, "latest")])
def test_resumed_equals_uninterrupted(whole, update, wanted, tmp_path):
    """Updates 1, 4 and 5 are inside an epoch, 4 and 5 inside the second; 3 is between the two."""
    folder = whole[0]
    for path in checkpoints(folder)[:update]:
        shutil.copytree(path, tmp_path / path.name)
    # as a run leaves it that was killed one update later
    lines = (folder / METRICS).read_text().splitlines(keepends=True)
    (tmp_path / METRICS).write_text("".join(lines[: update + 2]))
    result, _ = run(tmp_path, **LONG, resume_from_checkpoint=wanted)
    assert result.updates == 6
    assert records(tmp_path)[0]["first_update"] == update
    assert without_time(updates(tmp_path)) == without_time(updates(folder))
    assert digest(tmp_path) == digest(folder)
    one, other = optimizer_state(tmp_path / "checkpoint-6"), optimizer_state(folder / "checkpoint-6")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key][name], other[key][name]) for key in one for name in one[key])
    assert not list(tmp_path.glob("earlier-*"))


@pytest.mark.slow
def test_resume_without_a_seed_goes_on_with_the_recorded_one(tmp_path):
    small = dict(seed=None, checkpointing_steps=2, max_train_steps=3)
    run(tmp_path, **small)
    start, *lines, _ = records(tmp_path)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"update": 3, "lo')  # killed while it wrote
    run(tmp_path, **small, resume_from_checkpoint="latest")
    assert records(tmp_path)[0]["seed"] == start["seed"]
    assert without_time(updates(tmp_path)) == without_time(lines)


@pytest.mark.slow
def test_resuming_a_finished_run_trains_no_more(tmp_path):
    small = dict(gradient_accumulation_steps=1, max_train_steps=3, checkpointing_steps=3)
    first, _ = run(tmp_path, **small)  # 4 updates an epoch: the run ends inside one
    before = digest(tmp_path)
    result, _ = run(tmp_path, **small, resume_from_checkpoint="latest")
    assert result.updates == 3 and result.loss == first.loss
    assert [line["update"] for line in updates(tmp_path)] == [0, 1, 2]
    assert digest(tmp_path) == before


@pytest.mark.slow
def test_a_precision_of_the_environment_that_has_changed_is_said(tmp_path, capsys, monkeypatch):
    small = dict(gradient_accumulation_steps=1, max_train_steps=1, checkpointing_steps=1)
    run(tmp_path, **small)
    capsys.readouterr()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run(tmp_path, **small | dict(max_train_steps=2), resume_from_checkpoint="latest")
    assert "the environment's mixed_precision was 'no' and is 'bf16' from update 1 on" in capsys.readouterr().out


@pytest.mark.slow
def test_checkpoint_holds_the_lora_alone(whole):
    folder = whole[0]
    assert [path.name for path in checkpoints(folder)] == [f"checkpoint-{n}" for n in range(1, 7)]
    names = {path.name for path in (folder / "checkpoint-6").iterdir()}
    assert names == {LORA, "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "checkpoint.json"}
    assert digest(folder / "checkpoint-6") == digest(folder) != digest(folder / "checkpoint-5")


@pytest.mark.slow
def test_checkpoints_total_limit(tmp_path):
    run(tmp_path, max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.slow
def test_earlier_run_is_put_aside(tmp_path):
    for seed in (1, 2, 3):
        run(tmp_path, max_train_steps=1, checkpointing_steps=1, seed=seed, resume_from_checkpoint=None)
    (tmp_path / "notes.txt").write_text("mine")
    assert [records(tmp_path / name)[0]["seed"] for name in ("earlier-1", "earlier-2", ".")] == [1, 2, 3]
    hashes = {digest(tmp_path / name / "checkpoint-1") for name in ("earlier-1", "earlier-2", ".")}
    assert len(hashes) == 3
    assert hashes == {digest(tmp_path / name) for name in ("earlier-1", "earlier-2", ".")}


@pytest.mark.slow
def test_latest_without_a_checkpoint_starts_afresh(tmp_path):
    assert run(tmp_path, max_train_steps=1, resume_from_checkpoint="latest")[0].updates == 1


@pytest.mark.slow
def test_unknown_checkpoint(whole, tmp_path):
    shutil.copytree(whole[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match=r"resume_from_checkpoint 'checkpoint-9' .*holds checkpoint-2"):
        run(tmp_path, resume_from_checkpoint="checkpoint-9")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    with pytest.raises(ValueError, match=" holds none"):
        run(tmp_path / "empty", resume_from_checkpoint="checkpoint-9")
    assert not (tmp_path / "empty").exists()


@pytest.mark.slow
def test_checkpoint_of_other_modules(whole, tmp_path):
    shutil.copytree(whole[0] / "checkpoint-1", tmp_path / "checkpoint-1")
    record = read(tmp_path / "checkpoint-1")
    about = {name: record[name] for name in record if name not in ("format", "files", "config", "seal")}
    seal(
        tmp_path / "checkpoint-1", config(tmp_path, **LONG | dict(target_modules=("to_q",))), **about
    )  # as if it knew no better
    with pytest.raises((ValueError, RuntimeError)) as caught:
        run(tmp_path, **LONG | dict(target_modules=("to_q",), resume_from_checkpoint="latest"))
    assert "LoRA of other modules" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"pretrained_model_name_or_path": "./missing"}, ValueError, "'./missing' does not exist"),
        ({"target_modules": ("to_qq",)}, ValueError, "no module matched 'to_qq'; did you mean 'to_q'"),
        ({"max_train_samples": 100_000}, ValueError, "max_train_samples 100000"),
        ({"style": None, "train_data_dir": "missing"}, FileNotFoundError, "'missing' is not there"),
        (
            {"lr_scheduler": "cosine", "lr_warmup_steps": 8, "max_train_steps": None, "num_train_epochs": 2},
            ValueError, "lr_warmup_steps 8 is not shorter than the 8 updates",
        ),
    ],
)  # fmt: skip
def test_errors_come_before_any_output(settings, kind, said, tmp_path):
    with pytest.raises(kind, match=said):
        run(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


# repeatability, pictures, the end


@pytest.mark.slow
def test_seeds(tmp_path):
    seeds = {"a": 5, "b": 5, "c": 6, "none": None, "none again": None}
    for name, seed in seeds.items():
        run(tmp_path / name, max_train_steps=1, seed=seed, max_train_samples=None)
    hashes = {name: digest(tmp_path / name) for name in seeds}
    assert hashes["a"] == hashes["b"]
    assert len(set(hashes.values())) == 4
    drawn = records(tmp_path / "none")[0]["seed"]
    run(
        tmp_path / "repeated", max_train_steps=1, seed=drawn, max_train_samples=None
    )  # a recorded seed repeats even that run
    assert updates(tmp_path / "repeated")[0]["loss"] == updates(tmp_path / "none")[0]["loss"]


@pytest.mark.slow
def test_each_epoch_crops_and_flips_anew(tmp_path, monkeypatch):
    from lora_kit.data.batches import TrainingPictures

    told, set_epoch = [], TrainingPictures.set_epoch
    monkeypatch.setattr(TrainingPictures, "set_epoch", lambda self, epoch: told.append(epoch) or set_epoch(self, epoch))
    run(tmp_path, max_train_samples=4, max_train_steps=3, checkpointing_steps=2)
    assert told == sorted(told) and set(told) == {0, 1, 2}  # by the loop, and by accelerate's loader once more
    told.clear()
    run(tmp_path, max_train_samples=4, max_train_steps=3, resume_from_checkpoint="latest")
    assert set(told) == {2}


@pytest.mark.slow
def test_workers_do_not_change_the_run(tmp_path):
    for count in (0, 1):
        run(tmp_path / str(count), dataloader_num_workers=count, random_flip=True)
    assert digest(tmp_path / "0") == digest(tmp_path / "1")


@pytest.mark.slow
def test_validation_pictures(tmp_path):
    from PIL import Image

    settings = dict(validation_prompt="cat face", num_validation_images=1, validation_epochs=2)
    run(tmp_path / "drawn", max_train_samples=4, max_train_steps=3, **settings)
    folder = tmp_path / "drawn" / "validation"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["epoch-0000-0.png", "epoch-0002-0.png"]
    pictures = [Image.open(folder / name) for name in names]
    assert {picture.size for picture in pictures} == {(64, 64)}
    assert len({picture.tobytes() for picture in pictures}) == 2
    run(tmp_path / "not drawn", max_train_samples=4, max_train_steps=3)  # drawing changes nothing about training
    assert digest(tmp_path / "drawn") == digest(tmp_path / "not drawn")


def in_the_way(path):
    """An on_update that puts a folder with somebody's file where the run wants to write one."""

    def put(done, unet):
        path.mkdir(parents=True, exist_ok=True)
        (path / "mine").touch()

    return put


@pytest.mark.slow
def test_a_validation_picture_that_can_t_be_written_is_said_and_left_out(tmp_path, capsys):
    settings = dict(validation_prompt="cat face", num_validation_images=2, max_train_samples=4)
    picture = tmp_path / "validation" / "epoch-0001-0.png"
    train(config(tmp_path, **settings), progress=False, on_update=in_the_way(picture))
    said = capsys.readouterr().err
    assert f"warning: {picture} can't be written: IsADirectoryError Is a directory; the run goes on" in said
    assert sorted(path.name for path in picture.parent.iterdir() if path.is_file()) == [
        "epoch-0000-0.png", "epoch-0000-1.png", "epoch-0001-1.png",
    ]  # fmt: skip
    assert (picture / "mine").exists() and records(tmp_path)[-1]["event"] == "end"


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 500])
def test_a_lora_that_output_dir_doesn_t_take_is_kept_elsewhere(every, tmp_path, monkeypatch):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    with pytest.raises(ValueError, match="can't be written") as error:
        train(config(folder, checkpointing_steps=every), progress=False, on_update=in_the_way(folder / LORA))
    (kept,) = elsewhere.glob(f"*/{LORA}")
    safe = f"{folder / 'checkpoint-2'} is whole: make room, then resume from it"
    assert str(error.value) == (
        f"{folder / LORA} can't be written: IsADirectoryError Is a directory; what 2 updates learned is in {kept}; "
        + (safe if every == 1 else "there is no checkpoint")
    )
    run(tmp_path / "whole")
    assert digest(kept.parent) == digest(tmp_path / "whole")
    assert (folder / LORA / "mine").exists() and not (folder / "run.lock").exists()


@pytest.mark.slow
def test_no_state_is_left_behind(tmp_path):
    from accelerate.state import AcceleratorState, PartialState

    run(tmp_path, max_train_steps=1)
    assert AcceleratorState._shared_state == {} and PartialState._shared_state == {}
    with pytest.raises(ValueError, match="stopped here"):
        train(
            config(tmp_path / "b"), progress=False, on_start=lambda _: (_ for _ in ()).throw(ValueError("stopped here"))
        )
    assert AcceleratorState._shared_state == {} and not (tmp_path / "b").exists()


class Enough(Exception):
    """Ends a run before its first update."""


def test_what_speeds_a_run_up_reaches_it(tmp_path):
    """And ends with it."""
    from diffusers.models.attention_processor import AttnProcessor

    assert not torch.backends.cuda.matmul.allow_tf32

    def look(unet):
        assert torch.backends.cuda.matmul.allow_tf32
        assert unet.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
        assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor}
        raise Enough

    with pytest.raises(Enough):
        train(config(tmp_path, allow_tf32=True, channels_last=True, attention="plain"), progress=False, on_ready=look)
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_cache_is_told_what_the_run_will_write(tmp_path, monkeypatch):
    def prepare(self, least, most):
        raise Enough(least, most)

    monkeypatch.setattr("lora_kit.data.prepared.Pictures.prepare", prepare)
    with pytest.raises(Enough) as stopped:
        train(config(tmp_path, checkpointing_steps=1), progress=False)
    least, most = stopped.value.args
    assert 0 < least < most


@pytest.mark.slow
def test_a_loader_that_gives_less_than_was_planned_is_said(tmp_path, monkeypatch, capsys):
    """And what the run has learned is kept."""
    from lora_kit.data.encoding import EncodedPictures

    monkeypatch.setattr(EncodedPictures, "__len__", lambda self: 8)  # of 16
    text = f"2 of 4 planned updates were made; what they learned is in {tmp_path / LORA}"
    with pytest.raises(ValueError, match=f"^{text}$"):
        run(tmp_path, max_train_steps=4)
    assert "warning: the prepared loader has 2 batches, 4 were expected" in capsys.readouterr().out
    assert len(load_file(tmp_path / LORA)) > 10 and records(tmp_path)[-1]["updates"] == 2


@pytest.mark.slow
def test_main_prints_what_was_done(tmp_path, capsys):
    main(to_argv(config(tmp_path, max_train_steps=1)))
    assert "1 updates in " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^lora_kit.training: pretrained_model_name_or_path './missing'"):
        main(to_argv(config(tmp_path, pretrained_model_name_or_path="./missing")))


@pytest.mark.slow
def test_lora_learns_the_style(tmp_path):
    from lora_kit.data.batches import TrainingPictures, collate
    from lora_kit.data.images import load_images

    made = config(tmp_path, max_train_samples=32, max_train_steps=24, train_batch_size=4)
    _, accelerator = run(tmp_path, max_train_samples=32, max_train_steps=24, train_batch_size=4)
    models = load_models(made)
    pictures = TrainingPictures(load_images(made), models.tokenizer, 64, True, False, seed=0)
    batch = collate([pictures[index] for index in range(32)])
    with torch.no_grad():
        latents = models.vae.encode(batch["pixel_values"]).latent_dist.mean * models.vae.config.scaling_factor
        hidden = models.text_encoder(batch["input_ids"], return_dict=False)[0]
        base, lora = (
            diffusion_loss(unet.eval(), models.noise_scheduler, latents, hidden, made, torch.Generator().manual_seed(9))
            for unet in (models.unet, trained_unet(accelerator))
        )
    assert lora < 0.98 * base, (lora, base)


def test_load_pipeline_is_the_stock_pipeline():
    from diffusers import StableDiffusionPipeline

    assert type(load_pipeline()) is StableDiffusionPipeline


def test_an_unseeded_run_is_repeated_by_the_seed_that_it_recorded(tmp_path):
    """The choice of max_train_samples included: it comes from the seed in the start record, not from another."""
    shared = dict(
        style="outlined", resolution=64, learning_rate=1e-3, train_batch_size=4, max_train_samples=8, max_train_steps=2,
        report_to="none",
    )  # fmt: skip
    train(TrainingConfig(**shared, output_dir=str(tmp_path / "unseeded")), progress=False)
    start, first = read_metrics(tmp_path / "unseeded" / "metrics.jsonl")
    train(TrainingConfig(**shared, seed=start["seed"], output_dir=str(tmp_path / "repeated")), progress=False)
    _, second = read_metrics(tmp_path / "repeated" / "metrics.jsonl")
    assert [one["loss"] for one in first] == [one["loss"] for one in second]
