"""The settings of a schedule: their names, which schedules read them, and what they may be."""

import math
from collections.abc import Callable
from typing import Any

from lora_kit.system.checks import shown

LR_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "piecewise_constant",
)
WARM_UP = ("constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
READ_BY = {  # setting: the schedules that read it
    "lr_warmup_steps": WARM_UP,
    "lr_num_cycles": ("cosine_with_restarts",),
    "lr_power": ("polynomial",),
    "lr_step_rules": ("piecewise_constant",),
}
LR_END = 1e-7  # where polynomial ends, fixed in diffusers' get_scheduler


def problem_of(check: Callable[[], Any]) -> str | None:
    """What a check's ValueError says; None where it raises none."""
    try:
        check()
    except ValueError as error:
        return str(error)
    return None


def check_warmup(warmup_updates: int, total_updates: int) -> None:
    """ValueError where the warm-up leaves no update at the full rate. Both in optimizer updates."""
    if warmup_updates >= total_updates and warmup_updates > 0:
        raise ValueError(
            f"lr_warmup_steps {shown(warmup_updates)} is not shorter than the {total_updates} updates of the run, so the "
            f"rate would never reach its peak; about {total_updates // 10} (a tenth) is usual"
        )


def parse_step_rules(rules: str | None) -> tuple[list[tuple[int, float]], float]:
    """The rules of piecewise_constant, "1:100,0.1:200,0.01", as ([(100, 1.0), (200, 0.1)], 0.01), or ValueError.

    Boundaries are updates counted from the start of the run, each larger than the one before.
    """
    example = 'for example "1:100,0.1:200,0.01": 1 x up to update 100, 0.1 x up to update 200, then 0.01 x'
    if rules is None:
        raise ValueError(f"lr_step_rules None: lr_scheduler 'piecewise_constant' needs them, {example}")
    try:
        *pairs, last = rules.split(",")
        parsed = [(int(boundary), float(factor)) for factor, boundary in (pair.split(":") for pair in pairs)]
        last = float(last)
    except ValueError:
        raise ValueError(f"lr_step_rules {shown(rules)} can't be read; {example}") from None
    if not all(math.isfinite(factor) and factor >= 0 for factor in (*(factor for _, factor in parsed), last)):
        raise ValueError(f"lr_step_rules {shown(rules)}: each factor must be a number of at least 0; {example}")
    boundaries = [boundary for boundary, _ in parsed]
    if sorted(set(boundaries)) != boundaries or any(boundary < 1 for boundary in boundaries):
        raise ValueError(f"lr_step_rules {shown(rules)}: boundaries {shown(boundaries)} must rise from 1 on; {example}")
    return parsed, last
