import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import CPU_ONLY, fingerprint, run_command

from lora_kit.config import TrainingConfig
from lora_kit.output.lora_file import LORA
from lora_kit.output.metrics import METRICS
from lora_kit.schedules import applied_learning_rates
from lora_kit.steps import Steps
from lora_kit.training import train

FLAGS = [
    "--style=outlined", "--resolution=64", "--learning_rate=1e-3", "--train_batch_size=2", "--max_train_samples=10",
    "--gradient_accumulation_steps=2", "--num_train_epochs=2", "--lr_scheduler=linear", "--lr_warmup_steps=1",
    "--scale_lr", "--seed=3", "--report_to=none",
]  # fmt: skip
SETTINGS = dict(
    style="outlined", resolution=64, learning_rate=1e-3, train_batch_size=2, max_train_samples=10,
    gradient_accumulation_steps=2, num_train_epochs=2, lr_scheduler="linear", lr_warmup_steps=1, scale_lr=True, seed=3,
    report_to="none",
)  # fmt: skip


def records(folder):
    return [json.loads(line) for line in Path(folder, METRICS).read_text().splitlines()]


def check(done, folder):
    """The run ended well, and said so once; its rates are those foretold."""
    assert done.returncode == 0, done.stderr[-3000:]
    made = TrainingConfig(**SETTINGS, output_dir=str(folder))
    steps = Steps.of(made, 10)
    said = re.findall(r"^(\d+) updates in .* on (\d) process\(es\) \(.*CPU.*\), loss [\d.]+: (\S+)$", done.stdout, re.M)
    assert said == [(str(steps.total_updates), "1", str(folder / LORA))]
    start, *lines, end = records(folder)
    assert start["num_processes"] == 1
    assert [line["lr"] for line in lines] == applied_learning_rates(made, steps).tolist()
    assert (end["event"], end["updates"]) == ("end", steps.total_updates)
    assert "Traceback" not in done.stderr


@CPU_ONLY
@pytest.mark.slow
def test_one_process(tmp_path, one_thread):
    done = run_command(["-m", "lora_kit.training", *FLAGS, f"--output_dir={tmp_path / 'shell'}"])
    check(done, tmp_path / "shell")
    train(TrainingConfig(**SETTINGS, output_dir=str(tmp_path / "here")), progress=False)
    assert fingerprint(tmp_path / "shell" / LORA) == fingerprint(tmp_path / "here" / LORA)


@pytest.fixture
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--lr_schedulr=cosine"], 2, "unknown '--lr_schedulr', did you mean --lr_scheduler?"),
        (["--lr_scheduler=cosin"], 2, "lr_scheduler 'cosin' is unknown; did you mean 'cosine'"),
        (["--pretrained_model_name_or_path=./missing"], 1, "pretrained_model_name_or_path './missing' does not exist"),
    ],
)
def test_errors_in_one_line(flags, status, said, tmp_path):
    done = run_command(["-m", "lora_kit.training", *FLAGS, f"--output_dir={tmp_path / 'out'}", *flags])
    assert done.returncode == status
    last = done.stderr.strip().splitlines()[-1]
    assert said in last and "lora_kit.training: " in last
    assert "Traceback" not in done.stderr
    assert done.stdout == "" and not (tmp_path / "out").exists()


def test_help_names_every_flag():
    done = run_command(["-m", "lora_kit.training", "--help"])
    assert done.returncode == 0
    flags = set(re.findall(r"--(\w+)", done.stdout))
    assert flags >= {name for name in TrainingConfig.__dataclass_fields__}
    assert sys.executable not in done.stdout


@pytest.mark.parametrize("flags, hidden", [([], True), (["--use_8bit_adam"], False)])
def test_bitsandbytes_is_looked_for_only_where_it_is_used(flags, hidden):
    code = (
        "import sys, lora_kit.training as training\n"
        "def train(config, **options):\n"
        "    sys.exit(0 if ('bitsandbytes' in sys.modules) == HIDDEN else 3)\n"
        "training.train = train\n"
        "training.main(sys.argv[1:])"
    ).replace("HIDDEN", str(hidden))
    argv = ["--style=outlined", "--learning_rate=1e-3", *flags]
    assert subprocess.run([sys.executable, "-c", code, *argv]).returncode == 0


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_from_the_first_update_on(enabled):
    code = (
        f"import gc, sys; gc.{'enable' if enabled else 'disable'}()\n"
        "import lora_kit.training as training\n"
        "def train(config, on_start, on_ready):\n"
        "    before = gc.isenabled(), gc.get_freeze_count() < 1_000\n"
        "    on_ready(None)\n"
        "    print(*before, gc.isenabled(), gc.get_freeze_count() > 10_000)\n"
        "    sys.exit()\n"
        "training.train = train\n"
        "training.main(sys.argv[1:])"
    )
    argv = ["--style=outlined", "--learning_rate=1e-3"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True", str(enabled), "True"], done.stderr
