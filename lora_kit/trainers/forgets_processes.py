"""A loop of one's own that tells the scheduler updates, and forgets that accelerate makes num_processes ticks an update."""

from collections.abc import Callable
from dataclasses import replace

from lora_kit.config import TrainingConfig
from lora_kit.schedules import Schedule
from lora_kit.steps import Steps
from lora_kit.trainers.trainer import Trainer


def curve(config: TrainingConfig, steps: Steps) -> Callable[[int], float]:
    """The rate of an update. Not every such loop is wrong: a total from len(dataloader) before prepare counts the batches of
    all processes."""
    return replace(
        Schedule.of(config, steps),
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=steps.total_updates,
        step_rules=config.lr_step_rules,
    ).rate


TRAINER = Trainer(
    name="a loop that forgets × num_processes",
    source="https://github.com/huggingface/accelerate/blob/16cb6eb80dd9aa8b4df1a63ef57863e455d53b83/src/accelerate/scheduler.py#L54",
    note="The scheduler is told updates but ticks once for each process, so on 4 GPUs the whole curve passes in a quarter of "
    "the run. The commonest mistake: diffusers#3954 and #8312, accelerate#2926.",
    curve=curve,
    read="2026-11-26",
)
