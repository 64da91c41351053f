"""Checks of what a run finds around it: where precision is set, environment variables, accelerate's file, packages."""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

from lora_kit.accelerator import environment_set_aside, environment_taken, other_loops, tracker_problem
from lora_kit.config import TrainingConfig
from lora_kit.doctor.case import Case
from lora_kit.doctor.findings import Finding, check
from lora_kit.lr_settings import problem_of
from lora_kit.system.checks import shown
from lora_kit.system.imports import NEEDED, needed_by

DTYPES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}  # mixed_precision: torch's name
OTHER_TYPES = ("DEEPSPEED", "FSDP", "MEGATRON_LM")  # accelerate's distributed_type that this loop refuses
ANEW = "run `accelerate config` again"


def accelerate_file() -> tuple[str, Any, str]:
    """(the path of accelerate's configuration file; what it says, None where there is none; why it can't be read, or "").

    Only `accelerate launch` reads it, and hands it on in variables; `lora_kit.training` and `lora_kit.launch` don't see it.
    """
    from accelerate.commands.config import config_args

    path = config_args.default_config_file
    if not os.path.isfile(path):  # as accelerate asks: not for a folder that this user may not look into
        return path, None, ""
    try:
        return path, config_args.load_config_from_file(None), ""
    except Exception as error:  # an empty file, one for SageMaker, another version's keys: each has its own
        return path, None, f"accelerate can't read {path}: {type(error).__name__} {error}"


@dataclass(frozen=True)
class Precision:
    """Where mixed precision is set, and which setting counts.

    flag: the run's own, or None. launcher: ACCELERATE_MIXED_PRECISION, which `accelerate launch` sets, or None. file: what
    `accelerate launch` would set it to, from accelerate's file, or None. problem: why the launcher's or the file's can't be
    taken; "" where it can. fatal: whether that ends the run.
    """

    flag: str | None
    launcher: str | None = None
    file: str | None = None
    problem: str = ""
    fatal: bool = False

    @classmethod
    def of(cls, config: TrainingConfig) -> "Precision":
        """The precision of a configuration on this machine as it stands."""
        flag, place = config.mixed_precision, "ACCELERATE_MIXED_PRECISION"
        value = launcher = os.environ.get(place)
        if launcher is None:
            place, settings, problem = accelerate_file()
            if settings is None:
                return cls(flag, problem=problem)
            value = str(settings.mixed_precision or "no")
        value = value.lower()
        if value in DTYPES:
            return cls(flag, value) if launcher is not None else cls(flag, file=value)
        problem = f"{place} has mixed_precision {shown(value)}, which is none of {', '.join(DTYPES)}"
        return cls(flag, problem=problem, fatal=flag is None and launcher is not None)

    @property
    def used(self) -> str:
        """What the run computes in: the flag, or else the launcher's."""
        return self.flag or self.launcher or "no"

    @property
    def dtype(self) -> Any:
        """The torch dtype of the frozen base."""
        import torch

        return getattr(torch, DTYPES[self.used])


@check("precision", see=("07_multi_gpu.ipynb", "The run, for one process and for many"))
def precision(case: Case) -> list[Finding]:
    """Whether mixed precision is set, readably, in one place only or in all alike."""
    import torch

    place = Precision.of(case.config)
    flag, launcher, used, elsewhere = place.flag, place.launcher, place.used, place.launcher or place.file
    value = f"mixed_precision {flag!r}" + (f", accelerate's {elsewhere!r}" if elsewhere else "")
    environment = os.environ.get("MIXED_PRECISION")
    if used == "fp16" and not torch.accelerator.is_available():
        return [precision.error(value, "fp16 needs a GPU, and there is none", "bf16 or no")]
    if place.problem:
        cure = f"{ANEW}, or mixed_precision no, fp16 or bf16, there and here"
        return [(precision.error if place.fatal else precision.warning)(value, place.problem, cure)]
    if flag is None and launcher not in (None, "no"):
        if case.config.behaviour.keeps_lora_in_float32:
            reason = "set in the environment only; lora_kit takes it from there, other scripts may not"
            return [precision.warning(value, reason, f"say it in both places: mixed_precision {launcher}")]
        reason = "diffusers' script reads the flag alone where it keeps the LoRA in float32 (D3)"
        say = precision.error if launcher == "fp16" else precision.warning
        return [say(value, reason, f"mixed_precision {launcher}")]
    if flag is None and place.file not in (None, "no"):
        reason = f"accelerate's file {accelerate_file()[0]} says {place.file}: `accelerate launch` takes it, but "
        reason += "lora_kit.training and lora_kit.launch compute in fp32"
        return [precision.warning(value, reason, f"mixed_precision {place.file}, or no, which counts for all three")]
    if flag and launcher and flag != launcher:
        return [precision.warning(value, "two places disagree; the flag counts", "the same in both places")]
    if environment and environment.lower() not in ("no", used):
        reason = (
            f"MIXED_PRECISION={environment} is in the environment, as notebook_launcher sets it, and nothing reads it"
        )
        return [precision.warning(value, reason, f"mixed_precision {environment.lower()}")]
    return [precision.fine(value, f"computed in {used if used != 'no' else 'fp32'}")]


@check("environment", see=("07_multi_gpu.ipynb", "The same from a shell"))
def environment(case: Case) -> list[Finding]:
    """What the environment and accelerate's file ask for beside the settings; nothing where they ask for nothing."""
    value, config = "variables of the environment", case.config
    taken = {name: text for name, text in environment_taken(config).items() if name != "ACCELERATE_MIXED_PRECISION"}
    return [
        *(environment.error(value, problem, f"{ANEW}, or unset it") for problem in other_loops()),
        *(
            environment.warning(value, sentence, "the setting, if that was meant")
            for sentence in environment_set_aside(config)
        ),
        *(
            environment.warning(
                value, f"{name} {shown(text)} changes what runs, and no setting says so", "unset it, if it wasn't meant"
            )
            for name, text in taken.items()
        ),
        *(environment.warning("accelerate's file", sentence, ANEW) for sentence in _of_file(config)),
    ]


def _of_file(config):
    """What `accelerate launch` would hand on from accelerate's file that this loop refuses, sets aside or takes, as sentences."""
    import torch

    path, settings, _ = accelerate_file()
    if settings is None:
        return []
    # without quotes YAML takes NO for False
    kind = str(getattr(settings.distributed_type, "value", settings.distributed_type) or "NO")
    backend = str((settings.dynamo_config or {}).get("dynamo_backend") or "no")
    said = []
    if kind in OTHER_TYPES or getattr(settings, "parallelism_config", None):
        what = f"distributed_type {kind}" if kind in OTHER_TYPES else "a parallelism_config"
        said.append(
            f"{path} has {what}: `accelerate launch` hands it on, and this loop, with plain data parallelism, refuses it"
        )
    if backend.lower() != "no":
        said.append(
            f"{path} has dynamo_backend {shown(backend)}: `accelerate launch` hands it on, and it is set aside, since torch_compile "
            f"is {config.torch_compile}"
        )
    if settings.use_cpu and torch.accelerator.is_available():
        said.append(
            f"{path} has use_cpu: `accelerate launch` leaves the GPU idle, lora_kit.training and lora_kit.launch don't"
        )
    return said


@check("packages", see=("00_start_here.ipynb", "The settings"))
def packages(case: Case) -> list[Finding]:
    """Whether the packages that settings need are installed; nothing where they are."""
    asked = [name for name in NEEDED if getattr(case.config, name)]
    missing = [(name, problem) for name in asked if (problem := problem_of(partial(needed_by, name)))]
    findings = [packages.error(name, problem, "leave it out, or install what it needs") for name, problem in missing]
    if tracker := tracker_problem(case.config):
        fatal, reason, cure = tracker
        value = f"report_to {case.config.report_to!r}"
        findings.append(packages.error(value, reason, cure) if fatal else packages.fine(value, reason))
    return findings
