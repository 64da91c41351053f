"""Curves of learning rates as plain dicts: of a run, of the run as one process, and of the same words in other trainers.

A curve is a dict: label; kind ("run", "expected" or a trainer's key); note, what is to be known of a trainer; updates, about
400 of them, 0 the first and both ends included; rates, the learning rate each of them uses; passed, the positions of these
updates on each of `AXES`; ends, the positions where the run is over.
"""

import bisect
import math
from collections.abc import Callable, Iterable
from typing import Any

from lora_kit.config import TrainingConfig
from lora_kit.lr_settings import parse_step_rules
from lora_kit.steps import AXES, Steps
from lora_kit.trainers.known import TRAINERS, trainer_rates

SAMPLES = 400
AS_APPLIED = "as applied"  # the label of a run's own curve


def sample_updates(config: TrainingConfig, steps: Steps, cursor: int | None = None) -> list[int]:
    """About `SAMPLES` updates of a run: evenly spread, `cursor`, and those of a corner or a jump, if few."""
    last, gaps = steps.total_updates - 1, SAMPLES - 1
    updates = {(2 * index * last + gaps) // (2 * gaps) for index in range(SAMPLES)}  # whole numbers, however large
    warmup = steps.lr_warmup_steps
    corners = []
    if config.lr_scheduler == "piecewise_constant":
        corners = [boundary for boundary, _ in parse_step_rules(config.lr_step_rules)[0]]
    if config.lr_scheduler == "cosine_with_restarts" and config.lr_num_cycles <= SAMPLES:
        part = (steps.total_updates - warmup) / config.lr_num_cycles
        corners = [math.ceil(warmup + part * cycle) for cycle in range(1, config.lr_num_cycles)]
    corners = [warmup, *(corners if len(corners) <= SAMPLES else [])]  # more can't be told apart
    updates |= {update for corner in corners for update in (corner - 1, corner)}
    updates |= set() if cursor is None else {cursor}
    return sorted(update for update in updates if 0 <= update <= last)


def make_curve(
    label: str, kind: str, steps: Steps, updates: Iterable[int], rates: Callable[[list[int]], list[float]]
) -> dict[str, Any]:
    """The curve of `rates`, a function of a list of updates. Raises ValueError where a rate is no finite number."""
    updates = list(updates)
    places = [steps.passed(update) for update in updates]
    curve = dict(label=label, kind=kind, note="", updates=updates, rates=rates(updates))
    for update, rate in zip(updates, curve["rates"], strict=True):
        if not math.isfinite(rate):
            raise ValueError(f"the learning rate of update {update:,} would be {rate}, which nothing can be trained at")
    passed = {axis: [place[axis] for place in places] for axis in AXES}
    return curve | dict(passed=passed, ends=steps.passed(steps.total_updates))


def run_curve(label: str, kind: str, plan: Any, cursor: int | None = None) -> dict[str, Any]:
    """The curve of a `lora_kit.doctor.case.Plan`: the rate that each update really uses."""
    updates = sample_updates(plan.config, plan.steps, cursor)
    return make_curve(
        label, kind, plan.steps, updates, lambda updates: [plan.schedule.rate(update) for update in updates]
    )


def trainer_curve(key: str, config: TrainingConfig, steps: Steps, run: dict[str, Any]) -> dict[str, Any]:
    """The curve of another trainer at the updates of `run`, this kit's curve; without points where it has no such schedule.

    key: one of `TRAINERS`. Its note says how it differs from `run`, or why there is none, and what is to be known of that trainer.
    """
    trainer = TRAINERS[key]
    about = f"{trainer.note} Source: {trainer.source}, read {trainer.read}."
    try:
        curve = make_curve(
            trainer.name, key, steps, run["updates"], lambda updates: list(trainer_rates(key, config, steps, updates))
        )
    except (ValueError, OverflowError) as error:
        return make_curve(trainer.name, key, steps, [], lambda updates: []) | dict(note=f"{error}. {about}")
    return curve | dict(note=f"{compared(curve, run)} {about}")


def compared(curve: dict[str, Any], run: dict[str, Any]) -> str:
    """How another trainer's rates differ from those of this kit in the run at hand, in a sentence. Both at the same updates."""
    tolerance = 1e-3 * max(run["rates"])
    pairs = zip(curve["rates"], run["rates"], strict=True)
    if all(math.isclose(other, here, rel_tol=1e-3, abs_tol=tolerance) for other, here in pairs):
        return "In this run: the same rates as here."

    def peak(curve):
        top = max(curve["rates"])
        return curve["updates"][curve["rates"].index(top)], top, curve["rates"][-1]

    (first, top, last), (first_here, top_here, last_here) = peak(curve), peak(run)
    return (
        f"In this run: at most {top:.3g}, first at update {first:,}, and {last:.3g} at the last; "
        f"here at most {top_here:.3g}, first at update {first_here:,}, and {last_here:.3g} at the last."
    )


def rate_at(curve: dict[str, Any], axis: str, position: float) -> float | None:
    """The rate of the last of a curve's updates that begins at or before a position on an axis; None where it has ended."""
    places = curve["passed"][axis]
    if not places or position >= curve["ends"][axis]:
        return None
    return curve["rates"][max(bisect.bisect_right(places, position) - 1, 0)]


def position_of(curve: dict[str, Any], axis: str, update: int) -> float:
    """Where an update of a curve lies on an axis; between its samples by their neighbours, past its end at the end."""
    updates, places = [*curve["updates"], curve["ends"]["updates"]], [*curve["passed"][axis], curve["ends"][axis]]
    if update >= updates[-1]:
        return places[-1]
    right = bisect.bisect_left(updates, update)
    if updates[right] == update:
        return places[right]
    share = (update - updates[right - 1]) / (updates[right] - updates[right - 1])
    return places[right - 1] + share * (places[right] - places[right - 1])
