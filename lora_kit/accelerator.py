"""The Accelerator of a run, and what it is not to take from the environment behind the settings' back.

`accelerate launch` hands its configuration file on in such variables. Source: accelerate, accelerator.py and state.py.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from lora_kit.config import FIELDS, TrainingConfig
from lora_kit.system.checks import did_you_mean, shown

# variables of accelerate that a setting of the run stands in for: {variable: (setting, what says nothing)}
STOOD_IN_FOR = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps", "1"),
    "ACCELERATE_GRADIENT_CLIPPING": ("max_grad_norm", "none"),
    "ACCELERATE_DYNAMO_BACKEND": ("torch_compile", "no"),
}
OTHER_LOOPS = (  # what would split the model or the batches in another way than this loop knows
    "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_USE_SAGEMAKER",
)  # fmt: skip
PREFIXES = ("ACCELERATE_", "FORK_LAUNCHED")  # of what accelerate reads for every run
YES = ("1", "true", "yes", "y", "t", "on")
# variables that count beside the settings, of accelerate, torch and NVIDIA: whether a value changes what runs
TAKEN = {
    "ACCELERATE_MIXED_PRECISION": lambda value, config, gpu: config.mixed_precision is None and value.lower() != "no",
    "ACCELERATE_USE_CPU": lambda value, config, gpu: gpu and value.lower() in YES,
    "ACCELERATE_TORCH_DEVICE": lambda value, config, gpu: gpu or value != "cpu",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": lambda value, config, gpu: gpu and value == "1" and not config.allow_tf32,
    "NVIDIA_TF32_OVERRIDE": lambda value, config, gpu: gpu and value == ("0" if config.allow_tf32 else "1"),
    "TORCH_COMPILE_DISABLE": lambda value, config, gpu: value == "1" and config.torch_compile,
    "TORCHDYNAMO_DISABLE": lambda value, config, gpu: value == "1" and config.torch_compile,
}
# where models and data come from, which is recorded alone
SOURCES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT", "HF_DATASETS_IN_MEMORY_MAX_SIZE")


def other_loops() -> list[str]:
    """The ways to split the work that the environment asks of accelerate and that this loop doesn't know, as sentences."""
    return [
        f"{name} {shown(os.environ[name])} in the environment: this loop trains with plain data parallelism; "
        "run `accelerate config` without it, or unset it"
        for name in OTHER_LOOPS
        if os.environ.get(name, "").lower() in YES
    ]


def environment_problems(config: TrainingConfig) -> list[str]:
    """What the environment asks of accelerate that this loop can't do, as sentences."""
    problems, known = other_loops(), FIELDS["mixed_precision"].metadata["rules"]["choices"]
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if config.mixed_precision is None and precision not in known:
        problems.append(
            f"ACCELERATE_MIXED_PRECISION {shown(precision)} in the environment is none of {', '.join(known)}: "
            "give --mixed_precision, and let `accelerate config` say one of them"
        )
    return problems


def environment_set_aside(config: TrainingConfig) -> list[str]:
    """What accelerate would take from the environment and this run doesn't, as sentences: its own setting counts."""
    said = []
    for name, (setting, nothing) in STOOD_IN_FOR.items():
        value = os.environ.get(name, nothing)
        if value.lower() not in (nothing, str(getattr(config, setting)).lower()):
            said.append(
                f"{name} {shown(value)} in the environment is set aside: {setting} is {getattr(config, setting)!r}"
            )
    return said


@contextlib.contextmanager
def naming_variables() -> Iterator[None]:
    """A block in which accelerate's error about the value of one of its variables becomes a ValueError that names the variable."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # accelerate's own errors don't name the variable
        quoted = re.findall(r"'([^']*)'|invalid truth value (.*)", str(error))
        words = {word.lower() for found in quoted for word in found if word}
        for name, value in sorted(os.environ.items()):
            if name.startswith(PREFIXES) and value.lower() in words:
                raise ValueError(
                    f"{name} {shown(value)} in the environment can't be read by accelerate ({error}); unset it"
                ) from error
        raise


def environment_taken(config: TrainingConfig) -> dict[str, str]:
    """The variables that change what this run does on this machine, without any setting that says so."""
    import torch

    gpu = torch.accelerator.is_available()
    return {
        name: os.environ[name] for name in TAKEN if os.environ.get(name) and TAKEN[name](os.environ[name], config, gpu)
    }


def environment_of_run() -> dict[str, str]:
    """The variables set when the run began: accelerate's and those that count beside the settings, without passwords."""
    names = [name for name in sorted(os.environ) if name.startswith("ACCELERATE_") or name in (*TAKEN, *SOURCES)]
    return {name: re.sub("//[^/@]*@", "//", os.environ[name]) for name in names}


def tracker_problem(config: TrainingConfig) -> tuple[bool, str, str] | None:
    """(whether it ends the run, what is wrong with report_to, the cure), or None: accelerate drops a missing tracker in silence."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    name, known = config.report_to, ["none", "all", *LOGGER_TYPE_TO_CLASS]
    if name not in known:
        hint = did_you_mean(name, known)
        words = f"{hint} It must be" if hint else "give"
        return (
            True,
            f"report_to {shown(name)} is no tracker that accelerate knows",
            f"{words} one of {', '.join(known)}",
        )
    if name in ("none", "all") or name not in LoggerType or name in map(str, get_available_trackers()):
        return None  # a name that is no LoggerType is a tracker registered with accelerate
    cure = f"`pip install {name}`, or report_to none"
    if name == FIELDS["report_to"].default:
        return False, f"report_to {name!r} is not installed: only metrics.jsonl is written", cure
    return True, f"report_to {name!r} is not installed, so nothing would reach it", cure


def start_accelerator(config: TrainingConfig) -> Any:
    """The Accelerator of a run, before anything else is made. Raises ValueError for what this loop can't do."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import (
        DataLoaderConfiguration,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
        ProjectConfiguration,
    )

    problems, tracker = environment_problems(config), tracker_problem(config)
    if tracker and tracker[0]:
        problems.append(f"{tracker[1]}; {tracker[2]}")
    if problems:
        raise ValueError("; ".join(problems))
    with naming_variables():
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else several CPU processes would be unrelated runs
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.gradient_accumulation_steps),
            dynamo_backend="no",  # this and the plugin: else the environment would decide
            mixed_precision=config.mixed_precision,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(
                project_dir=config.output_dir, logging_dir=str(Path(config.output_dir, config.logging_dir))
            ),
            # a millisecond more, since accelerate passes over 600 s, its default for NCCL, and gloo has another
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.ddp_timeout, milliseconds=1))],
            # without it the order of the pictures comes from torch's global generator, as in diffusers' script
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=config.behaviour.draws_from_seed),
        )
    if taken := environment_taken(config):
        accelerator.print(f"taken from the environment: {', '.join(f'{name} {shown(taken[name])}' for name in taken)}")
    if tracker:
        accelerator.print(f"{tracker[1]}; {tracker[2]}")
    for sentence in environment_set_aside(config):
        accelerator.print(f"warning: {sentence}")
    return accelerator
