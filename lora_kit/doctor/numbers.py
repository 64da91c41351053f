"""Checks of the numbers alone: they touch no file, no model and no torch, so that a page can ask them at every change."""

import math
from typing import Any

from lora_kit.config import USUAL_LEARNING_RATES, TrainingConfig
from lora_kit.doctor.case import Case
from lora_kit.doctor.findings import Finding, check
from lora_kit.lr_settings import LR_END, WARM_UP, parse_step_rules
from lora_kit.optimizers import MIN_8BIT_ELEMENTS, expected_state_bytes
from lora_kit.schedules import Schedule
from lora_kit.steps import Steps
from lora_kit.system.checks import is_number, is_whole, shown

IGNORES_TOTAL = ("constant", "constant_with_warmup", "piecewise_constant")
MOST_CANDIDATES = 10**6  # divisors that are tried: enough for all there are of a number up to 1e12


@check("8-bit Adam", needs=("shapes",), see=("02_optimizers.ipynb", "What does 8 bit save?"))
def eight_bit_adam(case: Case) -> list[Finding]:
    """Whether 8-bit Adam saves anything: small tensors keep 32-bit state."""
    shapes = case.shapes
    if not case.config.use_8bit_adam or not shapes:
        return []
    full, small = expected_state_bytes(shapes), expected_state_bytes(shapes, use_8bit_adam=True)
    in_32_bits = sum(math.prod(shape) < MIN_8BIT_ELEMENTS for shape in shapes)
    reason = (
        f"{in_32_bits} of {len(shapes)} tensors have fewer than {MIN_8BIT_ELEMENTS:,} elements and keep 32-bit state: "
    )
    reason += f"{full / 1e6:.2f} MB become {small / 1e6:.2f} MB"
    value = f"rank {case.config.rank}"
    if in_32_bits == len(shapes):
        cure = "leave use_8bit_adam out at this rank: it saves nothing"
        return [eight_bit_adam.warning(value, reason, cure, {"use_8bit_adam": False})]
    return [eight_bit_adam.fine(value, reason)]


@check("learning rate", see=("02_optimizers.ipynb", "`scale_lr`: the rate that the optimizer is given"))
def learning_rate(case: Case) -> list[Finding]:
    """Whether the peak, scaled where scale_lr is set, is a usual one."""
    config, (low, high) = case.config, USUAL_LEARNING_RATES
    peak, factor = config.peak_learning_rate(case.num_processes), config.total_batch_size(case.num_processes)
    value = f"{config.learning_rate:g}" + (f" x {factor} = {peak:g}" if config.scale_lr else "")
    usual = f"{low:g}..{high:g}, where LoRA usually trains"
    if low <= peak <= high:
        return [learning_rate.fine(value, f"within {usual}")]
    if config.scale_lr and low <= config.learning_rate <= high:
        reason = (
            f"scale_lr multiplies it by batch x accumulation x processes, to outside {usual}: was it already scaled?"
        )
        cure = f"leave scale_lr out, or give the rate of one picture, learning_rate {config.learning_rate / factor:.3g}"
        return [learning_rate.warning(value, reason, cure, {"scale_lr": False})]
    cure, change = "1e-4 is diffusers' default for LoRA", {"learning_rate": 1e-4, "scale_lr": False}
    return [learning_rate.warning(value, f"outside {usual}", cure, change)]


@check("polynomial", see=("03_schedules.ipynb", "`polynomial`"))
def polynomial(case: Case) -> list[Finding]:
    """Whether the rate is above the one at which polynomial ends."""
    rate = case.config.learning_rate
    if case.config.lr_scheduler != "polynomial" or rate > LR_END:
        return []
    reason = f"polynomial ends at {LR_END:g}, so a peak that is not above it is refused by get_scheduler"
    return [
        polynomial.error(f"learning_rate {rate!r}", reason, "a learning_rate such as 1e-4", {"learning_rate": 1e-4})
    ]


@check("warm-up", needs=("steps", "schedule"), see=("03_schedules.ipynb", "`constant` and `constant_with_warmup`"))
def warm_up(case: Case) -> list[Finding]:
    """Whether the warm-up is read, and leaves updates at the full rate."""
    return [*_loop_warm_up(case), _warm_up(case.config, case.steps.total_updates)]


def _warm_up(config, total):
    warmup, tenth = config.lr_warmup_steps, total // 10
    value, change = f"lr_warmup_steps {warmup!r}", {"lr_warmup_steps": tenth}
    if warmup != config.warmup_updates:
        reason = f"lr_scheduler {config.lr_scheduler!r} ignores it: the first update has the full rate"
        cure = "lr_scheduler constant_with_warmup, or lr_warmup_steps 0"
        change = {"lr_scheduler": "constant_with_warmup"} | (change if warmup > total / 2 else {})
        return warm_up.warning(value, reason, cure, change)
    if warmup and warmup >= total:
        reason = f"the run has {total} updates, so the rate never reaches its peak"
        return warm_up.error(value, reason, f"lr_warmup_steps {tenth}, about a tenth", change)
    if warmup > total / 2:
        reason = f"that is {warmup / total:.0%} of the {total} updates: most of the run is warm-up"
        return warm_up.warning(value, reason, f"lr_warmup_steps {tenth}, about a tenth", change)
    return warm_up.fine(value, f"of {total} updates" if warmup else "the first update has the full rate")


def unusable_warm_up(warmup: Any, steps: Steps | None) -> Finding:
    """The finding for a warm-up that is no whole number from 0 on, or too large a one. steps: of the run, if known."""
    value, share = f"lr_warmup_steps {shown(warmup)}", is_number(warmup) and 0 < warmup < 1
    reason = "not a whole number of updates of at least 0"
    if is_whole(warmup) and warmup > 0:
        reason = "more updates than can be counted"
    if share:
        reason = "a number under 1 is no part of the run here: the first step has a rate of 0, the second the full rate"
    if steps is None:
        return warm_up.error(value, reason, "a number of updates; a tenth of the run's is usual")
    total = steps.total_updates
    updates, cure = total // 10, f"lr_warmup_steps {total // 10}, a tenth, is usual"
    if share:
        updates = min(round(float(warmup) * total), total - 1)
        cure = f"updates: lr_warmup_steps {updates} is {float(warmup):.0%} of {total}"
    elif is_number(warmup) and 1 <= warmup <= total / 2:
        updates = round(float(warmup))
        cure = f"lr_warmup_steps {updates}"
    return warm_up.error(value, reason, cure, {"lr_warmup_steps": updates})


def _loop_warm_up(case):
    """What your own loop tells get_scheduler of the warm-up."""
    loop, schedule = case.loop_schedule, case.schedule
    if loop is None or loop.name not in WARM_UP or loop.num_warmup_steps == schedule.num_warmup_steps:
        return []
    value = f"num_warmup_steps {loop.num_warmup_steps}"
    reason = (
        f"that is {loop.warmup_updates:g} updates of {case.num_processes} process(es), not {schedule.warmup_updates:g}"
    )
    cure = f"num_warmup_steps={schedule.num_warmup_steps}: a prepared scheduler ticks once a process in each update"
    return [warm_up.error(value, reason, cure)]


@check("restarts", see=("03_schedules.ipynb", "`cosine_with_restarts`"))
def restarts(case: Case) -> list[Finding]:
    """Whether cosine_with_restarts restarts."""
    cycles = case.config.lr_num_cycles
    value = f"lr_num_cycles {cycles}"
    if case.config.lr_scheduler != "cosine_with_restarts":
        return []
    if cycles == 1:
        reason = "with one cycle nothing restarts: it is the schedule 'cosine'"
        return [restarts.warning(value, reason, "lr_num_cycles 3, or lr_scheduler cosine", {"lr_num_cycles": 3})]
    return [restarts.fine(value, f"{cycles - 1} restart(s)")]


@check("step rules", needs=("steps",), see=("03_schedules.ipynb", "`piecewise_constant`"))
def step_rules(case: Case) -> list[Finding]:
    """Whether all boundaries lie inside the run."""
    config, total = case.config, case.steps.total_updates
    if config.lr_scheduler != "piecewise_constant":
        return []
    rules, _ = parse_step_rules(config.lr_step_rules)
    late = [boundary for boundary, _ in rules if boundary >= total]
    value = f"lr_step_rules {shown(config.lr_step_rules)}"
    if late:
        reason = f"boundary {shown(late[0])} is not inside the {total} updates of the run: no change there"
        return [step_rules.warning(value, reason, "boundaries are updates from the run's start")]
    return [step_rules.fine(value, f"{len(rules)} change(s) of the rate")]


@check("scheduler total", needs=("steps", "schedule"), see=("03_schedules.ipynb", "On several processes: who ticks?"))
def scheduler_total(case: Case) -> list[Finding]:
    """What get_scheduler is told, against what accelerate will tick."""
    updates, processes, wanted = case.steps.total_updates, case.num_processes, case.schedule.num_training_steps
    schedule = case.loop_schedule or case.schedule
    name, total = schedule.name, schedule.num_training_steps
    value = f"num_training_steps {total}"
    if total == wanted:
        return [scheduler_total.fine(value, f"{updates} updates x {processes} process(es)")]
    if name in IGNORES_TOTAL:
        return [scheduler_total.fine(value, f"lr_scheduler {name!r} doesn't read it")]
    cure = f"num_training_steps={wanted}: {updates} updates x {processes} process(es); plot_schedule shows both"
    return [scheduler_total.error(value, _course(schedule, updates), cure)]


def _course(schedule: Schedule, updates: int) -> str:
    """How a schedule of the wrong length goes over this many updates."""
    over, last = (
        f"{schedule.num_training_steps // schedule.num_processes:g} of {updates}",
        (updates - 1) * schedule.num_processes,
    )
    try:
        share = f"{schedule.factor(last):.0%} of the peak"
    except ZeroDivisionError:  # polynomial, in the library as well
        return f"the warm-up is as long as the schedule, which ends in an error at update {over}"
    if schedule.num_training_steps > updates * schedule.num_processes:
        return f"the run ends in the middle of the schedule, at {share}"
    if schedule.name == "cosine":
        return f"the cosine reaches 0 at update {over} and RISES again, to {share}"
    return f"the schedule is over at update {over}; from there on nothing is learned"


@check("accumulation", needs=("steps",), see=("04_steps.ipynb", "Ask accelerate"))
def accumulation(case: Case) -> list[Finding]:
    """Whether an epoch's last update has all its micro-steps."""
    full, last = case.steps.gradient_accumulation_steps, case.steps.micro_steps_in_last_update
    value, micro_steps = f"gradient_accumulation_steps {full}", case.steps.batches_per_process
    if last == full:
        return [accumulation.fine(value, "every update has all its micro-steps")]
    reason = f"an epoch's {micro_steps} micro-steps leave {last} for its last update, whose gradient is "
    reason += f"divided by {full} all the same: {last / full:.0%} of its size"
    change = {"gradient_accumulation_steps": _largest_divisor(micro_steps, full)}
    return [accumulation.warning(value, reason, f"a number that divides {micro_steps}", change)]


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`, both from 1 on; a smaller one beyond 1e12."""
    if limit >= number:
        return number
    low = [divisor for divisor in range(1, min(math.isqrt(number), MOST_CANDIDATES) + 1) if number % divisor == 0]
    return max(divisor for divisor in (*low, *(number // divisor for divisor in low)) if divisor <= limit)


@check("images", needs=("steps",), see=("04_steps.ipynb", "When it doesn't divide: repeated pictures"))
def images(case: Case) -> list[Finding]:
    """Whether there are pictures enough for one update."""
    steps = case.steps
    pictures, processes, whole = steps.num_examples, steps.num_processes, steps.total_batch_size
    value = f"{pictures} pictures"
    if pictures >= whole:
        return [images.fine(value, f"at least one update of {whole}")]
    reason = f"one update asks for {whole} (train_batch_size x gradient_accumulation_steps x processes)"
    if pictures < steps.train_batch_size * processes:
        reason += ", and the processes' first batches already repeat some"
    batch = pictures // (whole // steps.train_batch_size)
    if batch:
        change = {"train_batch_size": batch}
        return [images.warning(value, reason, f"a train_batch_size of at most {batch}, or more pictures", change)]
    if pictures < processes:
        return [images.warning(value, reason, f"more pictures, or at most {pictures} process(es)")]
    fewer = _largest_divisor(-(-pictures // processes), pictures // processes)
    cure = f"train_batch_size 1 with gradient_accumulation_steps {fewer}, or more pictures"
    return [images.warning(value, reason, cure, {"train_batch_size": 1, "gradient_accumulation_steps": fewer})]


@check("noise of each process", see=("07_multi_gpu.ipynb", "What a second process changes"))
def noise(case: Case) -> list[Finding]:
    """Whether each process draws noise of its own."""
    config = case.config
    value = f"seed {config.seed!r}, {case.num_processes} process(es)"
    if config.behaviour.draws_from_seed or config.seed is None or case.num_processes == 1:
        return [noise.fine(value, "each process draws its own")]
    reason = "with match_diffusers every process draws the same noise and timesteps (D4): less variety than it seems"
    return [noise.warning(value, reason, "leave out match_diffusers", _without_the_script(config))]


@check("clipping", see=("01_parameters.ipynb", "The filter: a list, not an iterator"))
def clipping(case: Case) -> list[Finding]:
    """Whether gradients are clipped as asked."""
    config = case.config
    value = f"max_grad_norm {config.max_grad_norm:g}"
    if config.behaviour.clips_gradients or not config.max_grad_norm:
        return [clipping.fine(value, "gradients are clipped" if config.max_grad_norm else "no clipping asked for")]
    reason = "with match_diffusers clipping is handed an exhausted iterator and does nothing (D1)"
    return [
        clipping.warning(value, reason, "leave out match_diffusers, or max_grad_norm 0", _without_the_script(config))
    ]


def _without_the_script(config: TrainingConfig) -> dict[str, Any]:
    """Settings that leave match_diffusers out and all else as it is, defaults of the script included."""
    defaults = config.behaviour.defaults
    return {"match_diffusers": False} | {n: value for n, value in defaults.items() if getattr(config, n) == value}
