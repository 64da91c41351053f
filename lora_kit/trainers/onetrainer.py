"""OneTrainer, which counts epochs alone, ticks once an update, and counts its warm-up in micro-steps.

Also read: modules/util/lr_scheduler_util.py, GenericTrainer.py (one tick an update), and mgds' AspectBatchSorting.
"""

import math
from collections.abc import Callable

from lora_kit.config import TrainingConfig
from lora_kit.steps import Steps
from lora_kit.trainers.trainer import Trainer


def curve(config: TrainingConfig, steps: Steps) -> Callable[[int], float]:
    """The rate of an update. It drops the pictures that don't fill a batch; here all pictures are of one shape.

    Where max_train_steps is given: of the epochs that give so many updates.
    """
    warmup, cycles, accumulated = config.lr_warmup_steps, config.lr_num_cycles, steps.gradient_accumulation_steps
    full_batches = steps.num_examples // (steps.train_batch_size * steps.num_processes)
    total = steps.max_train_steps or steps.num_train_epochs * full_batches // accumulated
    warmup = int(warmup / accumulated) if warmup > 1 else int(warmup * total)
    span = total - warmup
    shapes = {
        "constant": lambda step: 1.0,
        "linear": lambda step: max(0.0, (span - step) / span),
        "cosine": lambda step: (1 + math.cos(math.pi * step / span)) / 2,
        "cosine_with_restarts": lambda step: (1 + math.cos(2 * math.pi * cycles * min(step, span - 1) / span)) / 2,
    }
    if config.lr_scheduler == "constant_with_warmup":
        raise ValueError("OneTrainer has no lr_scheduler 'constant_with_warmup': its CONSTANT itself takes the warm-up")
    if config.lr_scheduler not in shapes:
        raise ValueError(f"OneTrainer has no lr_scheduler {config.lr_scheduler!r}")
    shape, peak = shapes[config.lr_scheduler], config.peak_learning_rate(steps.num_processes)
    return lambda update: peak * (update / warmup if update < warmup else shape(update - warmup))


TRAINER = Trainer(
    name="OneTrainer",
    source="https://github.com/Nerogar/OneTrainer/blob/23df3832e8f213d64c337e39f9365ba46e99fed0/modules/util/create.py#L1111",
    note="The warm-up counts micro-steps, and up to 1 it is a share of the run: a warm-up of 1 is the whole run. Its "
    "COSINE_WITH_RESTARTS is a smooth wave; COSINE_WITH_HARD_RESTARTS is the one that jumps back to the peak.",
    curve=curve,
    read="2026-11-26",
)
