"""ai-toolkit, which takes torch's own schedulers, ticks in every micro-step and is told neither accumulation nor processes.

Also read: jobs/process/BaseSDTrainProcess.py (total_iters, the accumulation) and SDTrainer.py (a tick a micro-step).
"""

import math
from collections.abc import Callable

from lora_kit.config import TrainingConfig
from lora_kit.steps import Steps
from lora_kit.trainers.trainer import Trainer


def curve(config: TrainingConfig, steps: Steps) -> Callable[[int], float]:
    """The rate of an update, which comes in the last of its micro-steps.

    lr_warmup_steps is passed as num_warmup_steps in lr_scheduler_params, which constant_with_warmup alone takes.
    """
    total, accumulated, warmup = steps.total_updates, steps.gradient_accumulation_steps, config.lr_warmup_steps
    shapes = {
        "constant": lambda tick: 1.0,
        "constant_with_warmup": lambda tick: tick / warmup if tick < warmup else 1.0,
        "linear": lambda tick: 1 / 3 + 2 / 3 * min(tick, total) / total,
        "cosine": lambda tick: (1 + math.cos(math.pi * tick / total)) / 2,
        "cosine_with_restarts": lambda tick: (1 + math.cos(math.pi * (tick % total) / total)) / 2,
    }
    if config.lr_scheduler not in shapes:
        raise ValueError(
            f"ai-toolkit can't make lr_scheduler {config.lr_scheduler!r}, to which it passes a total_iters that it doesn't take"
        )
    shape, peak = shapes[config.lr_scheduler], config.peak_learning_rate(steps.num_processes)
    return lambda update: peak * shape(((update + 1) * accumulated - 1) * steps.num_processes)


TRAINER = Trainer(
    name="ai-toolkit",
    source="https://github.com/ostris/ai-toolkit/blob/27a03a91f23eb1b757d5ec2e80ee3e129cfcc350/toolkit/scheduler.py#L6",
    note="linear rises from a third of the peak to the peak, cosine_with_restarts first restarts when the total is over, and "
    "only constant_with_warmup warms up. Its steps are micro-steps under gradient_accumulation_steps, and each process "
    "adds a tick, so that several GPUs run through the curve too fast.",
    curve=curve,
    read="2026-11-26",
)
