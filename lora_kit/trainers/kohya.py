"""kohya's sd-scripts, which multiply the total by the number of processes, but not the warm-up.

Also read: train_network.py, which prepares the scheduler, and int_or_float in train_util.py.
"""

from collections.abc import Callable
from dataclasses import replace

from lora_kit.config import TrainingConfig
from lora_kit.schedules import Schedule
from lora_kit.steps import Steps
from lora_kit.system.checks import shown
from lora_kit.trainers.trainer import Trainer


def curve(config: TrainingConfig, steps: Steps) -> Callable[[int], float]:
    """The rate of an update. A warm-up below 1 is a share of the run; the boundaries of lr_step_rules count ticks."""
    schedule, warmup = Schedule.of(config, steps), config.lr_warmup_steps
    if config.lr_scheduler == "constant" and warmup:
        raise ValueError(
            f"kohya's constant refuses lr_warmup_steps {shown(warmup)}: 0, or constant_with_warmup, is right"
        )
    ticks = int(warmup * schedule.num_training_steps) if warmup < 1 else warmup
    return replace(schedule, num_warmup_steps=ticks, step_rules=config.lr_step_rules).rate


TRAINER = Trainer(
    name="kohya sd-scripts",
    source="https://github.com/kohya-ss/sd-scripts/blob/48d368fa557731ad0488c07304dfeba8c07910eb/library/train_util.py#L5265",
    note="A whole-number warm-up and the boundaries of piecewise_constant are not multiplied by the number of processes, so on "
    "4 GPUs they pass four times too soon; the total is right. A warm-up under 1 is a share of the run, and right too.",
    curve=curve,
    read="2026-11-26",
)
