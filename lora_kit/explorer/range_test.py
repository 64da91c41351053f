"""A learning-rate range test: one short run whose rate rises from far too low to far too high, and what its loss says.

Source: Leslie Smith, arXiv:1506.01186; the rule of a tenth is that of fastai's `lr_find`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_kit.explorer.charts import svg_lines
from lora_kit.schedules import rising_step_rules
from lora_kit.system.html import page

UPDATES, LOWEST, HIGHEST = 44, 1e-5, 0.2
EVERY = 2  # updates from one measurement to the next
NOTICED = 0.02  # a loss that is lower than the base's by so much has fallen
LEARNED = 0.95  # of the base's loss: where it is never lower, no rate has taught anything


def range_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the test of a configuration: all but its schedule and its length.

    >>> range_settings({"rank": 8, "learning_rate": 1e-4})["learning_rate"]
    0.2
    """
    rising = dict(learning_rate=HIGHEST, lr_scheduler="piecewise_constant", lr_warmup_steps=0, scale_lr=False)
    rules = rising_step_rules(UPDATES, LOWEST / HIGHEST)
    return {**settings, **rising, "lr_step_rules": rules, "max_train_steps": UPDATES}


@dataclass(frozen=True)
class RangeTest:
    """What a test has shown so far. base: the loss before it. points: (rate, loss), in the order of the run; a loss may be nan.
    falls, lowest, breaks: the rates where the loss is first clearly below the base's, lowest, and then above the base's; take:
    a tenth of the lowest. Each is None where there is none."""

    base: float | None
    points: list[tuple[float, float]]
    falls: float | None = None
    lowest: float | None = None
    breaks: float | None = None
    take: float | None = None


def read_test(run: Mapping[str, Any]) -> RangeTest:
    """What the test says. run: a trial of `Trials.progress`.

    >>> test = read_test({"lr": [1e-4, 1e-3, 1e-2, 1e-1], "fixed": [(0, 1.0), (1, 1.0), (2, 0.9), (3, 0.7), (4, math.nan)]})
    >>> test.falls, test.lowest, test.breaks, test.take
    (0.001, 0.01, 0.1, 0.001)
    """
    measured = [(done, loss) for done, loss in run["fixed"] if done <= len(run["lr"])]
    if not measured:
        return RangeTest(None, [])
    base, points = measured[0][1], [(run["lr"][done - 1], loss) for done, loss in measured[1:]]
    numbers = [(loss, index) for index, (_, loss) in enumerate(points) if math.isfinite(loss)]
    loss, index = min(numbers, default=(base, 0))
    if not loss < LEARNED * base:
        return RangeTest(base, points)
    lowest = points[index][0]
    return RangeTest(
        base, points, lowest=lowest, take=float(f"{lowest / 10:.2g}"),
        falls=next(rate for rate, loss in points if loss < base - NOTICED),
        breaks=next((rate for rate, loss in points[index:] if not loss < base), None),
    )  # fmt: skip


def range_html(trials: Mapping[str, Any]) -> str:
    """The curve of the loss over the rate, and how it is read; "" without a measurement. trials: of `Trials.progress`."""
    (run,) = trials.values()
    test = read_test(run)
    if not test.points:
        return ""
    powers = [(math.log10(rate / LOWEST), min(loss, 2 * test.base)) for rate, loss in test.points]  # min keeps a nan
    line = [(0.0, test.base), (math.log10(HIGHEST / LOWEST), test.base)]
    label = f"learning rate, in powers of ten above {LOWEST:g}"
    title = "loss on fixed pictures, noise and timesteps while the rate rises"
    chart = svg_lines([("range test", powers), ("the base model", line)], title, label, line[1][0])
    return page("<h4>The latest range test</h4>", f"<div>{in_words(test, run['state'] == 'done')}</div>", chart)


def in_words(test: RangeTest, done: bool = True) -> str:
    """What a test says, in a sentence."""
    if test.take is None:
        return "No rate has taught anything so far." if not done else "No rate of the test has taught anything."
    breaks = f", breaks at {test.breaks:.2g}" if test.breaks else ""
    tenth = f"; a tenth of the lowest is {test.take:g}, which is a good start" if done else ""
    return f"The loss falls from {test.falls:.2g}, is lowest at {test.lowest:.2g}{breaks}{tenth}."
