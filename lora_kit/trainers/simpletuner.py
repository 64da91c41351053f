"""SimpleTuner, whose cosine is a wave of its own, and whose polynomial ends at a setting that this kit doesn't have.

Also read: helpers/training/trainer.py (steps_per_epoch of its cosines is left at -1, so that nothing ever restarts),
helpers/configuration/cli_utils.py (constant with a warm-up) and the registry of its settings (names, lr_end).
"""

import math
from collections.abc import Callable
from dataclasses import replace

from lora_kit.config import TrainingConfig
from lora_kit.schedules import Schedule
from lora_kit.steps import Steps
from lora_kit.trainers.trainer import Trainer

END = 4e-7  # its default of lr_end
PERIOD = 1000  # ticks of one fall of its cosine where lr_warmup_steps is 0


def curve(config: TrainingConfig, steps: Steps) -> Callable[[int], float]:
    """The rate of an update. Warm-up and total are multiplied by the number of processes, as they should be."""
    name, processes = config.lr_scheduler, steps.num_processes
    if name == "piecewise_constant":
        raise ValueError("SimpleTuner has no lr_scheduler 'piecewise_constant'")
    warmup = config.lr_warmup_steps * processes
    schedule = replace(Schedule.of(config, steps), num_warmup_steps=warmup)
    peak = schedule.peak
    linear = replace(schedule, name="linear").factor

    def cosine(update):
        fall = math.pi * (update * processes) / (warmup or PERIOD)
        return _down_to_nano(END + (peak - END) * (1 + math.cos(fall)) / 2)

    def polynomial(update):
        factor = linear(update * processes)
        return peak * factor if update * processes < warmup else (peak - END) * factor**config.lr_power + END

    if name == "cosine":
        return cosine
    if name == "cosine_with_restarts":
        if not warmup:
            raise ValueError("SimpleTuner's cosine_with_restarts needs lr_warmup_steps, its period, of at least 1")
        return lambda update: _down_to_nano(peak)
    if name == "polynomial":
        if peak <= END:
            raise ValueError(f"SimpleTuner's polynomial needs a rate above its lr_end {END}, but it is {peak!r}")
        return polynomial
    return replace(schedule, name="constant_with_warmup").rate if name == "constant" and warmup else schedule.rate


def _down_to_nano(rate):
    return math.floor(rate * 1e9) / 1e9


TRAINER = Trainer(
    name="SimpleTuner",
    source="https://github.com/bghira/SimpleTuner/blob/bc8e6ab7738ce457a2ed8eb2d26cadd91c6442cb/simpletuner/helpers/training/custom_schedule.py#L481",
    note="cosine starts at the peak and swings down and up for the whole run: lr_warmup_steps is the time of one fall, and the "
    "total plays no part. cosine_with_restarts stays at the peak, and polynomial ends at 4e-7.",
    curve=curve,
    read="2026-11-26",
)
