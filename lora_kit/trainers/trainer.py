"""A trainer: another program that makes LoRAs, and the rate that each of its updates would use under this kit's settings."""

from collections.abc import Callable
from dataclasses import dataclass

from lora_kit.config import TrainingConfig
from lora_kit.steps import Steps


@dataclass(frozen=True)
class Trainer:
    """A program and how it reads the words of a schedule."""

    name: str
    """To display."""
    source: str
    """The file that says so, as a link to the lines at the commit that was read."""
    note: str
    """What to watch out for, in a sentence or two."""
    curve: Callable[[TrainingConfig, Steps], Callable[[int], float]]
    """(config, steps) -> (update -> rate), 0 the first update, also past the end. The warm-up is config.lr_warmup_steps, also
    where this kit's schedule of that name ignores it. ValueError where the program has no such schedule."""
    read: str
    """The day on which the source was read, such as "2026-11-26"."""
