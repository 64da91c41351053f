"""What the checks look at: settings turned into what will run, and the objects of your own loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_kit.config import TrainingConfig
from lora_kit.schedules import Schedule
from lora_kit.steps import Steps


@dataclass(frozen=True)
class Plan:
    """What settings make of a data set: the configuration, its arithmetic, and the schedule as applied."""

    config: TrainingConfig
    steps: Steps
    schedule: Schedule


@dataclass(frozen=True)
class Case:
    """Everything that a check may look at; None where it isn't known.

    config: a draft, each of whose values is right by itself. num_processes: on how many it will run. steps, schedule: as
    of `plan`. unet: a torch module with its LoRA, perhaps without weights. shapes: those of the trained tensors.
    parameters: what your own loop hands to the optimizer. loop_schedule: what your own loop tells get_scheduler.
    """

    config: TrainingConfig
    num_processes: int = 1
    steps: Steps | None = None
    schedule: Schedule | None = None
    unet: Any = None
    shapes: list[tuple[int, ...]] | None = None
    parameters: Any = None
    loop_schedule: Schedule | None = None


def plan(settings: TrainingConfig | Mapping[str, Any], num_examples: int, num_processes: int = 1) -> Plan:
    """What a run with these settings will do, though they may not go together: the warm-up may be longer than the run.

    settings: a `TrainingConfig` or its fields; what is left out is a default, with match_diffusers the script's.
    num_examples: pictures. num_processes: on how many it will run.

    Raises TypeError for a name that is no setting and for a missing learning_rate, and ValueError for a value that can't
    be: one that is wrong by itself, rules of piecewise_constant that can't be read, a number beyond what can be counted.

    >>> plan({"match_diffusers": True, "lr_scheduler": "cosine", "train_batch_size": 4}, num_examples=400).schedule.warmup_updates
    500.0
    """
    config = settings if isinstance(settings, TrainingConfig) else TrainingConfig.draft(**settings)
    steps = Steps.of(config, num_examples, num_processes)
    return Plan(config, steps, Schedule.of(config, steps))
