"""Learning-rate schedules: what get_scheduler is told, and the rate that each update of a run will really use."""

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from lora_kit.config import TrainingConfig
from lora_kit.lr_settings import LR_END, WARM_UP, parse_step_rules
from lora_kit.steps import Steps
from lora_kit.system.checks import is_number, shown, whole_number

if TYPE_CHECKING:
    import numpy as np
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Schedule:
    """What diffusers' get_scheduler is told, the peak that it scales, and how often it ticks: one value for a whole schedule.

    name: one of `LR_SCHEDULERS`. peak: the highest rate. num_warmup_steps, num_training_steps and the boundaries of
    step_rules ("1:100,0.1" is 1 x up to step 100) count the scheduler's own steps, of which a prepared scheduler makes
    num_processes in each update. Nothing is checked here: `check_warmup` and `parse_step_rules` are.

    >>> schedule = Schedule("cosine", peak=1e-3, num_warmup_steps=2, num_training_steps=12, num_processes=2)
    >>> [round(schedule.rate(update), 6) for update in range(6)]
    [0.0, 0.001, 0.000905, 0.000655, 0.000345, 9.5e-05]
    """

    name: str
    peak: float
    num_warmup_steps: float = 0
    num_training_steps: float | None = None
    num_processes: int = 1
    num_cycles: int = 1
    power: float = 1.0
    step_rules: str | None = None

    @classmethod
    def of(cls, config: TrainingConfig, steps: Steps) -> "Schedule":
        """The schedule of a configuration on a run of these `Steps`: updates times num_processes."""
        rules = config.lr_step_rules if config.lr_scheduler == "piecewise_constant" else None
        return cls(
            name=config.lr_scheduler,
            peak=config.peak_learning_rate(steps.num_processes),
            num_warmup_steps=steps.num_warmup_steps_for_scheduler,
            num_training_steps=steps.num_training_steps_for_scheduler,
            num_processes=steps.num_processes,
            num_cycles=config.lr_num_cycles,
            power=config.lr_power,
            step_rules=scheduler_step_rules(rules, steps.num_processes),
        )

    @property
    def warmup_updates(self) -> float:
        """Updates of warm-up, which the first one begins at a rate of 0; 0 where the schedule has none."""
        return self.num_warmup_steps / self.num_processes if self.name in WARM_UP else 0

    @cached_property
    def _parsed_rules(self) -> tuple[list[int], list[float]]:
        rules, last = parse_step_rules(self.step_rules)
        return [boundary for boundary, _ in rules], [*(factor for _, factor in rules), last]

    def rate(self, update: int) -> float:
        """The learning rate that an update uses, 0 the first, also past the end. No torch is loaded."""
        return self.peak * self.factor(update * self.num_processes)

    def factor(self, step: float) -> float:
        """What the peak is multiplied by at a scheduler step: bit for bit what the library's own lambda gives.

        ZeroDivisionError as there: polynomial whose warm-up is as long as its total, at that very step.
        Source: diffusers, optimization.py.
        """
        name, warmup, total = self.name, self.num_warmup_steps, self.num_training_steps
        if name == "constant":
            return 1.0
        if name == "piecewise_constant":
            boundaries, factors = self._parsed_rules
            return factors[bisect_right(boundaries, step)]
        if step < warmup:
            return step / max(1, warmup)
        if name == "constant_with_warmup":
            return 1.0
        span = max(1, total - warmup)
        progress = (step - warmup) / span
        if name == "linear":
            return max(0.0, (total - step) / span)
        if name == "cosine":
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))
        if name == "cosine_with_restarts":
            if progress >= 1.0:
                return 0.0
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((float(self.num_cycles) * progress) % 1.0))))
        if name == "polynomial":
            if step > total:
                return LR_END / self.peak
            left = 1 - (step - warmup) / (total - warmup)
            return ((self.peak - LR_END) * left**self.power + LR_END) / self.peak
        raise ValueError(f"lr_scheduler {name!r} is not one of diffusers' seven")

    def scheduler(self, optimizer: "Optimizer") -> "LambdaLR":
        """diffusers' get_scheduler for a torch optimizer, ready for accelerator.prepare."""
        from diffusers.optimization import get_scheduler

        return get_scheduler(
            self.name,
            optimizer=optimizer,
            step_rules=self.step_rules,
            num_warmup_steps=self.num_warmup_steps,
            num_training_steps=self.num_training_steps,
            num_cycles=self.num_cycles,
            power=self.power,
        )

    def applied(self, updates: Iterable[int]) -> "np.ndarray":
        """The rate that each of these updates uses, as float64: read from the library's scheduler, without stepping it."""
        import numpy as np
        import torch

        factor = self.scheduler(torch.optim.SGD([torch.zeros(1)], lr=self.peak)).lr_lambdas[0]
        return np.array([self.peak * factor(int(update) * self.num_processes) for update in updates])


def scheduler_step_rules(lr_step_rules: str | None, num_processes: int = 1) -> str | None:
    """The rules of piecewise_constant with boundaries in scheduler steps, as get_scheduler wants them.

    `lr_step_rules` counts updates ("1:100,0.1" is 1 x up to update 100); the scheduler ticks num_processes times each.
    """
    if lr_step_rules is None:
        return None
    rules, last = parse_step_rules(lr_step_rules)
    return ",".join([*(f"{factor}:{boundary * num_processes}" for boundary, factor in rules), f"{last}"])


def rising_step_rules(updates: int, lowest: float) -> str:
    """lr_step_rules of a learning-rate range test: the rate rises by the same factor in each update, to 1 x learning_rate.

    updates: of the whole test, at least 2, the first at `lowest` x learning_rate, such as 1e-6. Raises ValueError.

    >>> rising_step_rules(3, 0.01)
    '0.01:1,0.1:2,1'
    """
    whole_number("updates", updates, 2)
    if not is_number(lowest) or not 0 < lowest < 1:
        raise ValueError(f"lowest {shown(lowest)} is not a share between 0 and 1, such as 1e-6")
    factors = [lowest ** (1 - update / (updates - 1)) for update in range(updates)]
    return ",".join([*(f"{factor:.6g}:{update}" for update, factor in enumerate(factors[:-1], 1)), "1"])


def applied_learning_rates(config: TrainingConfig, steps: Steps, updates: Iterable[int] | None = None) -> "np.ndarray":
    """The learning rate that each optimizer update uses, as a float64 array.

    Update 0 is the first. `updates` picks some of them (any ints, also past the end); by default all
    steps.total_updates. Read from the scheduler's own lambda, so nothing is stepped and 100,000 updates cost little.

    >>> config = TrainingConfig(style="outlined", learning_rate=1e-3, lr_scheduler="cosine", lr_warmup_steps=1)
    >>> steps = Steps(num_examples=20, train_batch_size=2, num_train_epochs=1, lr_warmup_steps=1)
    >>> float(applied_learning_rates(config, steps)[0])
    0.0
    """
    return Schedule.of(config, steps).applied(range(steps.total_updates) if updates is None else updates)
