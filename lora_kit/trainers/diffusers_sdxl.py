"""diffusers' SDXL script, which multiplies warm-up and total by the accumulation instead of the number of processes."""

import math
from collections.abc import Callable
from dataclasses import replace

from lora_kit.config import TrainingConfig
from lora_kit.schedules import Schedule
from lora_kit.steps import Steps
from lora_kit.trainers.trainer import Trainer


def curve(config: TrainingConfig, steps: Steps) -> Callable[[int], float]:
    """The rate of an update. Where epochs decide, its total counts the batches of all processes, and is too long by the
    accumulation alone."""
    if config.lr_scheduler == "piecewise_constant":
        raise ValueError("diffusers' SDXL script has no setting for the rules of lr_scheduler 'piecewise_constant'")
    accumulated = steps.gradient_accumulation_steps
    total = steps.max_train_steps or steps.num_train_epochs * math.ceil(steps.batches / accumulated)
    return replace(
        Schedule.of(config, steps),
        num_warmup_steps=config.lr_warmup_steps * accumulated,
        num_training_steps=total * accumulated,
        num_cycles=1,
        power=1.0,
    ).rate


TRAINER = Trainer(
    name="diffusers' SDXL script",
    source="https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/examples/text_to_image/train_text_to_image_lora_sdxl.py#L1020",
    note="Warm-up and total are multiplied by gradient_accumulation_steps instead of the number of processes: with "
    "max_train_steps, right only where the two are equal. It has no settings for cycles, power and rules.",
    curve=curve,
    read="2026-11-26",
)
