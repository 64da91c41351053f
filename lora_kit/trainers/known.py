"""What other trainers mean by the same words: the rate that each of their updates would use under the settings of this kit.

Read from their code, at the commits that each `Trainer` names, and written anew as formulas: no torch is loaded. A *tick* is
one step of the scheduler. accelerate makes num_processes ticks an update; what a trainer forgets to multiply is over too soon.
"""

import math
from collections.abc import Iterable

from lora_kit.config import TrainingConfig
from lora_kit.steps import Steps
from lora_kit.system.checks import shown
from lora_kit.trainers import ai_toolkit, diffusers_sdxl, forgets_processes, kohya, onetrainer, simpletuner
from lora_kit.trainers.trainer import Trainer

TRAINERS: dict[str, Trainer] = {
    "kohya": kohya.TRAINER,
    "simpletuner": simpletuner.TRAINER,
    "ai_toolkit": ai_toolkit.TRAINER,
    "onetrainer": onetrainer.TRAINER,
    "diffusers_sdxl": diffusers_sdxl.TRAINER,
    "forgets_processes": forgets_processes.TRAINER,
}


def trainer_rates(key: str, config: TrainingConfig, steps: Steps, updates: Iterable[int]) -> list[float]:
    """The rates that a trainer would use if it were given these words and numbers.

    key: of `TRAINERS`. config: schedule, peak and warm-up are read from it; a `TrainingConfig.draft` also holds a warm-up that
    is longer than the run. steps: its `Steps`. updates: 0 is the first, also past the end of that trainer's run.
    Raises ValueError where that trainer has no such schedule, would divide by zero, or gets no number that a float can hold.

    >>> config = TrainingConfig(style="outlined", learning_rate=3e-3, lr_scheduler="linear")
    >>> trainer_rates("ai_toolkit", config, Steps(num_examples=20, train_batch_size=2, num_train_epochs=1), [0, 10])
    [0.001, 0.003]
    """
    name, warmup = TRAINERS[key].name, config.lr_warmup_steps
    try:
        rate = TRAINERS[key].curve(config, steps)
        rates = [rate(update) for update in updates]
    except ZeroDivisionError:
        raise ValueError(f"{name} divides by zero: lr_warmup_steps {shown(warmup)} leaves nothing of its run") from None
    except OverflowError:
        rates = [math.inf]
    if not all(math.isfinite(rate) for rate in rates):
        peak = shown(config.learning_rate)
        raise ValueError(
            f"{name} can't count with learning_rate {peak} and lr_warmup_steps {shown(warmup)}: one is too large"
        )
    return rates
