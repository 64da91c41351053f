"""What the environment asks of accelerate is taken, set aside and said, or refused; never done behind the settings' back."""

import pytest
from running import CPU_ONLY, records, torchrun

from lora_kit.accelerator import (
    OTHER_LOOPS,
    SOURCES,
    TAKEN,
    environment_of_run,
    environment_problems,
    environment_set_aside,
    environment_taken,
    naming_variables,
    start_accelerator,
)
from lora_kit.config import TrainingConfig
from lora_kit.output.lora_file import LORA
from lora_kit.system.imports import quiet_imports
from lora_kit.system.state import own_accelerate_state
from lora_kit.system.waits import bounded_waits
from lora_kit.training import train

RUN = dict(
    style="outlined", resolution=64, learning_rate=1e-3, train_batch_size=2, max_train_samples=16, num_train_epochs=1, seed=0,
    report_to="none",
)  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    for name in (*OTHER_LOOPS, *TAKEN, *SOURCES):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


@pytest.mark.slow
def test_settings_count_where_the_environment_says_otherwise(environment, tmp_path, capsys):
    from safetensors.torch import load_file

    train(TrainingConfig(**RUN, output_dir=str(tmp_path / "plain")), progress=False)
    environment("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    environment("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    environment("ACCELERATE_GRADIENT_CLIPPING", "0.5")
    capsys.readouterr()
    result = train(TrainingConfig(**RUN, output_dir=str(tmp_path / "other")), progress=False)
    said = capsys.readouterr().out
    assert result.updates == 8
    for words in (
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS '4' in the environment is set aside: gradient_accumulation_steps is 1",
        "ACCELERATE_DYNAMO_BACKEND 'EAGER' in the environment is set aside: torch_compile is False",
        "ACCELERATE_GRADIENT_CLIPPING '0.5' in the environment is set aside: max_grad_norm is 1.0",
    ):
        assert words in said
    start = records(tmp_path / "other")[0]["environment"]
    assert start["ACCELERATE_DYNAMO_BACKEND"] == "EAGER" and start["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "4"
    one, other = (load_file(tmp_path / name / LORA) for name in ("plain", "other"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_what_says_nothing_is_not_mentioned(environment):
    environment("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    environment("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert environment_set_aside(TrainingConfig(**RUN | {"gradient_accumulation_steps": 2})) == []
    environment("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    assert environment_set_aside(TrainingConfig(**RUN | {"gradient_accumulation_steps": 2})) == []


BESIDE = [  # variable, value, settings, whether there is a GPU, whether it changes what runs
    ("ACCELERATE_MIXED_PRECISION", "bf16", {}, False, True),
    ("ACCELERATE_MIXED_PRECISION", "bf16", dict(mixed_precision="no"), False, False),
    ("ACCELERATE_MIXED_PRECISION", "NO", {}, False, False),
    ("ACCELERATE_USE_CPU", "True", {}, True, True),
    ("ACCELERATE_USE_CPU", "True", {}, False, False),
    ("ACCELERATE_USE_CPU", "False", {}, True, False),
    ("ACCELERATE_TORCH_DEVICE", "cuda:1", {}, True, True),
    ("ACCELERATE_TORCH_DEVICE", "meta", {}, False, True),
    ("ACCELERATE_TORCH_DEVICE", "cpu", {}, True, True),
    ("ACCELERATE_TORCH_DEVICE", "cpu", {}, False, False),
    ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", {}, True, True),
    ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", dict(allow_tf32=True), True, False),
    ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", {}, False, False),
    ("NVIDIA_TF32_OVERRIDE", "0", dict(allow_tf32=True), True, True),
    ("NVIDIA_TF32_OVERRIDE", "0", {}, True, False),
    ("NVIDIA_TF32_OVERRIDE", "1", {}, True, True),
    ("TORCH_COMPILE_DISABLE", "1", dict(torch_compile=True), False, True),
    ("TORCH_COMPILE_DISABLE", "0", dict(torch_compile=True), False, False),
    ("TORCH_COMPILE_DISABLE", "1", {}, False, False),
    ("TORCHDYNAMO_DISABLE", "1", dict(torch_compile=True), False, True),
    ("HF_HUB_OFFLINE", "1", {}, True, False),
    ("HF_DATASETS_IN_MEMORY_MAX_SIZE", "5", {}, True, False),
]


@pytest.mark.parametrize(("name", "value", "settings", "gpu", "counts"), BESIDE)
def test_what_counts_beside_the_settings_is_recorded_and_named_where_it_changes_the_run(
    name, value, settings, gpu, counts, environment, monkeypatch
):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: gpu)
    environment(name, value)
    assert environment_taken(TrainingConfig(**RUN | settings)) == ({name: value} if counts else {})
    assert environment_of_run()[name] == value


def test_an_empty_variable_is_none_and_no_password_is_recorded(environment):
    for name in TAKEN:
        environment(name, "")
    environment("HF_ENDPOINT", "https://me:secret@mirror.example")
    assert environment_taken(TrainingConfig(**RUN, torch_compile=True)) == {}
    assert environment_of_run()["HF_ENDPOINT"] == "https://mirror.example"


def test_what_is_taken_is_said_once(environment, capsys):
    environment("ACCELERATE_MIXED_PRECISION", "bf16")
    environment("TORCH_COMPILE_DISABLE", "1")
    with own_accelerate_state():
        start_accelerator(TrainingConfig(**RUN, torch_compile=True))
    said = "taken from the environment: ACCELERATE_MIXED_PRECISION 'bf16', TORCH_COMPILE_DISABLE '1'\n"
    assert capsys.readouterr().out == said


TRACKERS = [  # report_to, whether it is refused, words
    (
        "tensorbord",
        True,
        "is no tracker that accelerate knows; did you mean 'tensorboard'? It must be one of none, all, aim,",
    ),
    ("something", True, "report_to 'something' is no tracker that accelerate knows; give one of none, all, aim,"),
    (
        "wandb",
        True,
        "report_to 'wandb' is not installed, so nothing would reach it; `pip install wandb`, or report_to none",
    ),
    (
        "tensorboard",
        False,
        "report_to 'tensorboard' is not installed: only metrics.jsonl is written; `pip install",
    ),
    ("mlflow", False, ""),
    ("own", False, ""),
    ("all", False, ""),
    ("none", False, ""),
]


@pytest.mark.parametrize(("name", "refused", "words"), TRACKERS)
def test_a_tracker_that_is_not_there_is_not_dropped_in_silence(name, refused, words, environment, monkeypatch, capsys):
    from accelerate import tracking
    from accelerate.utils import LoggerType

    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.MLFLOW])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "own", tracking.GeneralTracker)
    asked = []
    monkeypatch.setattr("accelerate.Accelerator", lambda **options: asked.append(options) or NoAccelerator)
    if refused:
        with pytest.raises(ValueError) as caught:
            start_accelerator(TrainingConfig(**RUN | dict(report_to=name)))
        assert words in str(caught.value) and not asked
    else:
        start_accelerator(TrainingConfig(**RUN | dict(report_to=name)))
        said = capsys.readouterr().out
        assert said.startswith(words) and bool(said) == bool(words)


class NoAccelerator:
    print = staticmethod(print)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_TORCH_DEVICE", "1"),
        ("ACCELERATE_FP8_BACKEND", "some"),
        ("ACCELERATE_DEBUG_MODE", "perhaps"),
        ("FORK_LAUNCHED", "Maybe"),
    ],
)
def test_a_value_that_accelerate_cannot_read_is_named(name, value, environment):
    environment(name, value)
    with (
        pytest.raises(ValueError, match=f"{name} '{value}' in the environment can't be read by accelerate"),
        own_accelerate_state(),
    ):
        start_accelerator(TrainingConfig(**RUN))


@pytest.mark.parametrize("words", ["No route to host", "expected 1 process", "the port 1 is in use", ""])
def test_no_variable_is_blamed_for_what_it_did_not_do(words, environment):
    environment("ACCELERATE_MIXED_PRECISION", "no")
    environment("ACCELERATE_USE_CPU", "1")
    environment("ACCELERATE_DYNAMO_MODE", "")
    with pytest.raises(RuntimeError, match=f"^{words}$"), naming_variables():
        raise RuntimeError(words)


def test_a_log_level_that_is_none_is_named_before_accelerate_is_imported(environment):
    environment("ACCELERATE_LOG_LEVEL", "1")
    with pytest.raises(ValueError, match="ACCELERATE_LOG_LEVEL '1' in the environment is no level: give DEBUG"):
        quiet_imports()
    environment("ACCELERATE_LOG_LEVEL", "info")
    quiet_imports()


@pytest.mark.parametrize("name", OTHER_LOOPS)
def test_another_way_to_split_the_work_is_refused(name, environment):
    environment(name, "false")
    assert environment_problems(TrainingConfig(**RUN)) == []
    environment(name, "True")
    with pytest.raises(ValueError, match=f"^{name} 'True' in the environment: this loop trains with plain data"):
        start_accelerator(TrainingConfig(**RUN))


@pytest.mark.parametrize("value", ["fp8", "half"])
def test_a_precision_that_is_none_is_refused(value, environment):
    environment("ACCELERATE_MIXED_PRECISION", value)
    with pytest.raises(
        ValueError, match=f"^ACCELERATE_MIXED_PRECISION '{value}' in the environment is none of no, fp16, bf16"
    ):
        start_accelerator(TrainingConfig(**RUN))


WAITS = """
import os, sys, time
from pathlib import Path
import torch
from lora_kit.accelerator import start_accelerator
from lora_kit.config import TrainingConfig
from lora_kit.system.waits import bounded_waits

seconds, told, armed = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[2] + ".armed")
accelerator = start_accelerator(TrainingConfig(style="outlined", learning_rate=1e-3, ddp_timeout=seconds))
def wait(path):
    while not path.exists():
        time.sleep(0.05)

def dawdle():
    armed.touch()
    wait(told)

if accelerator.process_index == 0:
    wait(armed)
try:
    with bounded_waits(accelerator.process_index, 2, seconds):
        accelerator.gather(torch.tensor([1])) if accelerator.process_index == 0 else dawdle()
except TimeoutError as error:
    told.write_text(str(error))
os._exit(0)
"""


@CPU_ONLY
@pytest.mark.slow
def test_who_waits_for_another_gives_up_after_ddp_timeout(tmp_path):
    script = tmp_path / "waits.py"
    script.write_text(WAITS)
    done = torchrun(script, 3, tmp_path / "told.txt")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        (tmp_path / "told.txt")
        .read_text()
        .startswith("process 0 of 2 waited ddp_timeout 3 s for another: the stacks above")
    )
    assert "in dawdle" in done.stderr


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (
            "DataLoader timed out after 5 seconds",
            TimeoutError,
            "process 1 waited ddp_timeout 5 s for pictures of a worker",
        ),
        ("Timed out waiting 5001ms for recv operation to complete", TimeoutError, "for another"),
        ("CUDA error: the launch timed out and was terminated", RuntimeError, "^CUDA error"),
    ],
)
def test_only_what_was_waited_for_in_vain_is_late(words, kind, said):
    with pytest.raises(kind, match=said), bounded_waits(1, 1, 5) as step_made:
        step_made()
        raise RuntimeError(words)


def test_ddp_timeout_reaches_accelerate_whatever_it_is():
    """600 s too, which accelerate takes for its own default, and then leaves to torch."""
    for seconds in (1, 600, 1800):
        accelerator = start_accelerator(TrainingConfig(**RUN, ddp_timeout=seconds))
        assert accelerator.init_handler.to_kwargs()["timeout"].seconds == seconds
