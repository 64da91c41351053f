"""On a GPU: the CPU's numbers in fp32, scaled gradients and skipped updates in fp16, stopping and going on, launching.

Run as a script, this file trains for its own test of stopping and going on, in a process whose kernels are deterministic.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from running import Kernel, errors, run_command, stdout
from safetensors.torch import load_file
from test_optimizers import tensors
from test_training import config, digest, optimizer_state, records, trained_unet, updates, without_time

from lora_kit.command_line.flags import to_argv
from lora_kit.command_line.texts import launch_lines
from lora_kit.doctor import examine, try_run
from lora_kit.models import load_models
from lora_kit.optimizers import MIN_8BIT_ELEMENTS, expected_state_bytes, make_optimizer, state_bytes
from lora_kit.output.checkpoints import checkpoints
from lora_kit.output.lora_file import LORA
from lora_kit.output.metrics import METRICS
from lora_kit.parameters import add_lora
from lora_kit.schedules import applied_learning_rates
from lora_kit.steps import Steps
from lora_kit.system.world import free_port
from lora_kit.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LONG = dict(
    max_train_samples=18, gradient_accumulation_steps=2, max_train_steps=12, random_flip=True, lr_scheduler="cosine",
    lr_warmup_steps=1,
)  # fmt: skip
# A scale that suits this model, times 2**24 after each third update that was made: the next one overflows, is skipped,
# and the scale comes back.
OVERFLOWS = dict(init_scale=2.0**12, growth_factor=2.0**24, backoff_factor=2.0**-24, growth_interval=3)
SKIPPED = (3, 7, 11)


@pytest.fixture(scope="module", autouse=True)
def convolutions_in_fp32():
    """torch lets convolutions use TF32, with 10 bits, where nobody says otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def run(folder, scaler=None, on_ready=None, **settings):
    """(result, accelerator) of a run; scaler: settings of its GradScaler."""
    held = []

    def on_start(accelerator):
        held.append(accelerator)
        if scaler:
            accelerator.scaler = torch.amp.GradScaler("cuda", **scaler)

    return train(config(folder, **settings), progress=False, on_start=on_start, on_ready=on_ready), held[0]


def column(folder, name):
    return [line[name] for line in updates(folder)]


def distance(found, wanted, start=None):
    """How far the numbers of one LoRA are from another's, relative to how far that one has come."""
    found, wanted = load_file(Path(found, LORA)), load_file(Path(wanted, LORA))
    assert found.keys() == wanted.keys()
    start = load_file(Path(start, LORA)) if start else dict.fromkeys(wanted, torch.zeros(()))

    def norm(one, other):
        return sum((one[name].double() - other[name].double()).square().sum().item() for name in wanted) ** 0.5

    return norm(found, wanted) / norm(wanted, start)


def scaler_state(checkpoint):
    return torch.load(checkpoint / "scaler.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{precision: (folder, accelerator, the dtypes before the first update)} of runs of twelve updates on the GPU."""
    made = {}
    for precision in DTYPES:
        folder, before = tmp_path_factory.mktemp(precision), []
        scaler, steps = (OVERFLOWS, 1) if precision == "fp16" else (None, 12)
        settings = dict(mixed_precision=precision, no_cache=True, checkpointing_steps=steps)
        _, accelerator = run(
            folder, scaler, on_ready=lambda unet, kept=before: kept.extend(dtypes(unet)), **LONG, **settings
        )
        made[precision] = folder, accelerator, set(before)
    return made


def dtypes(unet):
    return {(".lora_" in name, one.dtype) for name, one in unet.named_parameters()}


# precision


def test_fp32_gives_the_numbers_of_the_cpu(whole, tmp_path):
    """The noise is drawn on the CPU, so that all that differs is rounding. Seen on an H200: losses 2e-7 apart and the LoRA
    1e-5; with TF32 in the convolutions it would be 6e-5 and 2e-3, with bf16 4e-3 and 7e-2. The limits lie between.
    """
    made = config(tmp_path / "cpu", **LONG, mixed_precision="no", no_cache=True, checkpointing_steps=1)
    done = run_command(["-m", "lora_kit.training", *to_argv(made)], CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-3000:]
    cpu, gpu = tmp_path / "cpu", whole["no"][0]
    assert ("CPU" in records(cpu)[0]["device"], records(gpu)[0]["device"]) == (True, torch.cuda.get_device_name())
    assert len(updates(gpu)) == 12
    assert column(gpu, "lr") == column(cpu, "lr")
    assert column(gpu, "loss") == pytest.approx(column(cpu, "loss"), rel=3e-6)
    assert column(gpu, "grad_norm") == pytest.approx(column(cpu, "grad_norm"), rel=1e-5)
    assert distance(gpu, cpu, start=cpu / "checkpoint-1") < 1e-4


@pytest.mark.parametrize("precision", DTYPES)
def test_the_base_is_cast_and_the_lora_is_not(precision, whole):
    folder, accelerator, before = whole[precision]
    wanted = {(False, DTYPES[precision]), (True, torch.float32)}
    assert before == dtypes(trained_unet(accelerator)) == wanted
    assert records(folder)[0]["mixed_precision"] == precision
    assert {one.dtype for one in load_file(folder / LORA).values()} == {torch.float32}
    assert (accelerator.scaler is not None) == (precision == "fp16")
    (group,) = accelerator._optimizers[0].optimizer.param_groups
    assert bool(group["fused"]) == (precision != "fp16")
    moments = {one.dtype for state in optimizer_state(folder / "checkpoint-12").values() for one in state.values()}
    assert moments == {torch.float32}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_unet_computes_in_half_precision(precision, tmp_path):
    seen = set()

    def on_ready(unet):
        layer = next(one for name, one in unet.named_modules() if name.endswith("attn1.to_q"))
        layer.register_forward_hook(
            lambda module, inputs, output: seen.add((torch.get_autocast_dtype("cuda"), output.dtype))
        )

    run(tmp_path, on_ready=on_ready, mixed_precision=precision, max_train_steps=1)
    assert seen == {(DTYPES[precision], DTYPES[precision])}


@pytest.mark.parametrize("precision, tolerance", [("fp16", 2e-3), ("bf16", 1e-2)])
def test_half_precision_loses_little(precision, tolerance, whole):
    """fp16 has 11 bits, bf16 has 8. Compared until the first update that fp16 skips, after which it is another run."""
    losses, wanted = column(whole[precision][0], "loss"), column(whole["no"][0], "loss")
    number = SKIPPED[0] + 1 if precision == "fp16" else len(wanted)
    assert losses[:number] == pytest.approx(wanted[:number], rel=tolerance)
    assert losses[:number] != wanted[:number]


def test_an_update_that_overflows_is_skipped(whole):
    folder, accelerator, _ = whole["fp16"]
    lines = updates(folder)
    assert [line["update"] for line in lines if line.get("skipped")] == list(SKIPPED)
    assert [line["update"] for line in lines if not torch.tensor(line["grad_norm"]).isfinite()] == list(SKIPPED)
    for update in range(1, 12):  # checkpoint-N holds what update N - 1 left
        before, after = folder / f"checkpoint-{update}", folder / f"checkpoint-{update + 1}"
        one, other = optimizer_state(before), optimizer_state(after)
        moved = digest(before) != digest(after)
        changed = any(not torch.equal(one[key]["exp_avg"], other[key]["exp_avg"]) for key in one)
        assert (moved, changed) == (update not in SKIPPED, update not in SKIPPED), update
    assert accelerator.scaler.get_scale() == 2.0**12


def test_a_skipped_update_does_not_move_the_schedule(whole):
    folder = whole["fp16"][0]
    made = config(folder, **LONG)
    rates = applied_learning_rates(made, Steps.of(made, 18)).tolist()
    done = [update - sum(skipped < update for skipped in SKIPPED) for update in range(12)]
    assert column(folder, "lr") == pytest.approx([rates[ticks] for ticks in done], rel=1e-12, abs=0)
    assert column(whole["no"][0], "lr") == pytest.approx(rates, rel=1e-12, abs=0)


@pytest.mark.parametrize("precision", DTYPES)
def test_validation_pictures(precision, tmp_path):
    from PIL import Image

    settings = dict(validation_prompt="cat face", num_validation_images=1, max_train_steps=1)
    run(tmp_path, mixed_precision=precision, **settings)
    with Image.open(tmp_path / "validation" / "epoch-0000-0.png") as picture:
        assert picture.size == (64, 64) and len(picture.getcolors(4096)) > 100


# the optimizer


@pytest.mark.parametrize("use_8bit_adam", [False, True])
def test_state_takes_the_bytes_that_were_foretold(use_8bit_adam):
    parameters = [torch.nn.Parameter(one.detach().cuda()) for one in tensors()]
    for one in parameters:
        one.grad = torch.ones_like(one)
    optimizer = make_optimizer(parameters, config("unused", use_8bit_adam=use_8bit_adam))
    optimizer.step()
    wanted = expected_state_bytes([one.shape for one in parameters], use_8bit_adam)
    assert sum(row["bytes"] for row in state_bytes(optimizer)) == wanted


@pytest.mark.parametrize("use_8bit_adam", [False, True])
def test_training_with_either_adam(use_8bit_adam, tmp_path):
    start = {}
    _, accelerator = run(
        tmp_path, on_ready=lambda unet: start.update({name: one.detach().clone() for name, one in lora(unet)}),
        use_8bit_adam=use_8bit_adam, rank=32, max_train_steps=4,
    )  # fmt: skip
    trained = dict(lora(trained_unet(accelerator)))
    sizes = [one.numel() for one in trained.values()]
    assert min(sizes) < MIN_8BIT_ELEMENTS <= max(sizes)
    assert [name for name, one in trained.items() if torch.equal(one, start[name])] == []
    optimizer = accelerator._optimizers[0].optimizer
    assert type(optimizer).__name__ == ("AdamW8bit" if use_8bit_adam else "AdamW")
    wanted = expected_state_bytes([one.shape for one in trained.values()], use_8bit_adam)
    assert sum(row["bytes"] for row in state_bytes(optimizer)) == wanted
    bits = {8 if use_8bit_adam else 32, 32}
    assert {row["bits"] for row in state_bytes(optimizer)} - {None} == bits


def lora(unet):
    return [(name, one) for name, one in unet.named_parameters() if ".lora_" in name]


def test_8_bit_adam_with_scaled_gradients(tmp_path):
    run(tmp_path, OVERFLOWS, mixed_precision="fp16", use_8bit_adam=True, rank=32, **LONG)
    assert [line["update"] for line in updates(tmp_path) if line.get("skipped")] == list(SKIPPED)


# stopping and going on

STOPS = {"fp16": (2, 3, 4), "bf16": (2, 3)}  # around the first update that fp16 skips; 3 is the end of an epoch


def stages(folder, precision):
    """A run that nothing stops, and the same one stopped after each of STOPS and gone on with."""
    torch.use_deterministic_algorithms(True)
    settings = LONG | dict(mixed_precision=precision, checkpointing_steps=1, max_train_steps=8)
    scaled = precision == "fp16"
    run(folder / "whole", OVERFLOWS if scaled else None, **settings)
    for update in STOPS[precision]:
        stopped = folder / f"stopped-{update}"
        stopped.mkdir()
        shutil.copytree(folder / "whole" / f"checkpoint-{update}", stopped / f"checkpoint-{update}")
        lines = (folder / "whole" / METRICS).read_text().splitlines(keepends=True)
        (stopped / METRICS).write_text("".join(lines[: 1 + update]))
        other = dict(init_scale=32.0, growth_interval=1000)  # to be replaced by what the checkpoint holds
        run(stopped, other if scaled else None, resume_from_checkpoint="latest", **settings)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_going_on_equals_never_stopping(precision, tmp_path):
    done = run_command([__file__, tmp_path, precision], CUBLAS_WORKSPACE_CONFIG=":4096:8")
    assert done.returncode == 0, done.stderr[-3000:]
    whole = tmp_path / "whole"
    skipped = [line["update"] for line in updates(whole) if line.get("skipped")]
    assert skipped == ([update for update in SKIPPED if update < 8] if precision == "fp16" else [])
    for update in STOPS[precision]:
        stopped = tmp_path / f"stopped-{update}"
        assert records(stopped)[0]["first_update"] == update
        assert without_time(updates(stopped)) == without_time(updates(whole))
        assert digest(stopped) == digest(whole)
        for checkpoint in checkpoints(stopped):
            twin = whole / checkpoint.name
            assert digest(checkpoint) == digest(twin), checkpoint
            one, other = optimizer_state(checkpoint), optimizer_state(twin)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key][name], other[key][name]) for key in one for name in one[key]), checkpoint
            if precision == "fp16":
                assert scaler_state(checkpoint) == scaler_state(twin), checkpoint
    if precision == "fp16":
        states = [scaler_state(whole / f"checkpoint-{update}") for update in (2, 3, 4)]
        seen = [(state["scale"], state["_growth_tracker"]) for state in states]
        assert seen == [(2.0**12, 2), (2.0**36, 0), (2.0**12, 0)]


# settings for speed and memory


@pytest.mark.parametrize(
    "settings",
    [
        dict(gradient_checkpointing=True),
        dict(channels_last=True),
        dict(attention="plain"),
        dict(dataloader_num_workers=2),
        dict(no_cache=False),  # encoded in other batches
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_for_speed_change_no_more_than_rounding(settings, whole, tmp_path):
    run(tmp_path, **LONG | dict(mixed_precision="no", no_cache=True) | settings)
    assert column(tmp_path, "lr") == column(whole["no"][0], "lr")
    assert column(tmp_path, "loss") == pytest.approx(column(whole["no"][0], "loss"), rel=1e-5)


def test_torch_compile_changes_no_more_than_rounding(tmp_path):
    for name, switch in (("plain", False), ("compiled", True)):
        run(tmp_path / name, torch_compile=switch, max_train_steps=3)
    assert column(tmp_path / "compiled", "loss") == pytest.approx(column(tmp_path / "plain", "loss"), rel=1e-4)


def test_gradient_checkpointing_takes_less_memory(tmp_path):
    peaks = []
    for switch in (False, True):
        torch.cuda.reset_peak_memory_stats()
        run(tmp_path / str(switch), gradient_checkpointing=switch, train_batch_size=16)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.8 * peaks[0], peaks


# launching

FORK = """
import sys
from accelerate import notebook_launcher
from lora_kit.command_line.flags import parse_args, to_argv
from lora_kit.launch import _worker
from lora_kit.system.devices import available_devices
from lora_kit.system.elastic import start_one
from lora_kit.system.world import free_port
assert available_devices()[1] == "cuda"
start_one(_worker, (parse_args(sys.argv[2:]), sys.argv[1], 1, False), "127.0.0.1", free_port(), 1, 0, 60)
"""


def test_a_forked_process_trains_on_the_gpu(tmp_path):
    """As each of several processes does: what the launcher asks about devices before it forks must not start CUDA."""
    made = config(tmp_path / "run", max_train_steps=1)
    done = run_command(["-c", FORK, tmp_path, *to_argv(made)])
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["num_processes"], result["device"]) == (1, torch.cuda.get_device_name())


def test_in_a_kernel(tmp_path):
    number, name = torch.cuda.device_count(), torch.cuda.get_device_name()
    settings = dict(style="outlined", resolution=64, learning_rate=2e-3, train_batch_size=4, max_train_samples=16)
    settings |= dict(max_train_steps=2, seed=0, report_to="none", mixed_precision="fp16", output_dir=str(tmp_path))
    kernel = Kernel()
    try:
        kernel.run("from lora_kit.config import TrainingConfig\nfrom lora_kit.launch import launch")
        outputs = kernel.run(f"result = launch(TrainingConfig(**{settings!r}))", timeout=180)
        assert errors(outputs) == []
        assert f"{number} process(es) trained on {name}: 2 updates" in stdout(outputs)
        start = records(tmp_path)[0]
        assert (start["device"], start["num_processes"], start["mixed_precision"]) == (name, number, "fp16")

        outputs = kernel.run(f"launch(TrainingConfig(**{settings!r}), {number + 1})")
        assert errors(outputs) == [
            f"LaunchError: num_processes {number + 1} is more than the {number} cuda device(s) of this machine"
        ]

        kernel.run("import torch\nunused = torch.ones(1, device='cuda')")
        machines = f"num_processes=1, num_machines=2, port={free_port()}"
        (error,) = errors(kernel.run(f"launch(TrainingConfig(**{settings!r}), {machines})"))
        assert error.startswith("LaunchError: CUDA is already in use in this kernel") and "Restart the kernel" in error
    finally:
        stop(kernel)


def test_a_kernel_that_only_asked_for_a_gpu_is_told():
    """torch.cuda.is_available() leaves is_initialized() False, and yet no forked process can use CUDA after it."""
    kernel = Kernel()
    try:
        check = (
            "from lora_kit.system.devices import available_devices\nfrom lora_kit.system.kernel import check_kernel\n"
            "check_kernel(available_devices()[1])"
        )
        assert errors(kernel.run(check)) == []
        (error,) = errors(kernel.run(f"import torch\ntorch.cuda.is_available()\n{check}"))
        assert error.startswith("LaunchError: CUDA is already in use in this kernel") and "is_available()" in error
    finally:
        stop(kernel)


def stop(kernel):
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun", "lora_kit.launch"])
def test_every_launcher_trains_in_fp16(launcher, whole, tmp_path):
    made = config(tmp_path, **LONG | dict(max_train_steps=3), mixed_precision="fp16")
    ours = [sys.executable, "-m", "lora_kit.launch", "--num_processes", "1", *to_argv(made)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        launch_lines(made, 1).get(launcher, ours), shell=launcher != "lora_kit.launch", capture_output=True, text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PATH": path}, cwd=Path(__file__).parents[1], timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    start = records(tmp_path)[0]
    assert (start["device"], start["mixed_precision"]) == (torch.cuda.get_device_name(), "fp16")
    first = next(line for line in updates(tmp_path) if not line.get("skipped"))
    assert first["loss"] == pytest.approx(column(whole["fp16"][0], "loss")[first["update"]], rel=1e-2)
    assert torch.cuda.get_device_name() in done.stdout


# the doctor


@pytest.mark.parametrize("precision", DTYPES)
def test_the_doctor_finds_nothing_wrong(precision, tmp_path):
    findings = examine(config(tmp_path / "run", mixed_precision=precision))
    assert [one for one in findings if one.status == "error"] == []
    fine = {one.check: one.reason for one in findings if one.status == "fine"}
    assert fine["LoRA dtype"] == "small updates are kept"
    assert fine["precision"] == f"computed in {'fp32' if precision == 'no' else precision}"


def test_the_doctor_finds_a_lora_that_can_not_be_unscaled(tmp_path):
    made = config(tmp_path / "run", mixed_precision="fp16")
    unet = load_models(made, torch.float16, ("unet",)).unet.cuda()
    parameters = add_lora(unet, upcast=False)
    (error,) = [one for one in examine(made, unet=unet) if one.status == "error"]
    assert (error.check, error.value) == ("LoRA dtype", "torch.float16")

    for one in parameters:  # what it foretells is what torch says
        one.grad = torch.ones_like(one)
    optimizer, scaler = torch.optim.AdamW(parameters), torch.amp.GradScaler("cuda")
    scaler.scale(torch.ones((), device="cuda"))
    with pytest.raises(ValueError) as refused:
        scaler.unscale_(optimizer)
    assert str(refused.value).rstrip(".") in error.reason


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_doctor_tries_a_run(precision, tmp_path):
    findings = try_run(replace(config(tmp_path / "run"), mixed_precision=precision), updates=5)
    outcome = {one.check: one.status for one in findings}
    assert (outcome["gradients"], outcome["movement"]) == ("fine", "fine")
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    stages(Path(sys.argv[1]), sys.argv[2])
