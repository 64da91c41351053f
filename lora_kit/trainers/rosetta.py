"""What other trainers mean by the same words: the rate that each of their updates would use under the settings of this kit.

Read from their code, at the commits in `TRAINERS`, and written anew as formulas: no torch is loaded. A *tick* is one step of
the scheduler. accelerate makes num_processes ticks an update; what a trainer forgets to multiply is over too soon.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from lora_kit.schedules import schedule_factor

READ = "2026-11-26"
SIMPLETUNER_END = 4e-7  # its default of lr_end, a setting that this kit doesn't have
SIMPLETUNER_PERIOD = 1000  # ticks of one fall of its cosine where lr_warmup_steps is 0


@dataclass(frozen=True)
class Trainer:
    """A trainer and how it reads a schedule.

    name: to display. source: the file that says so, at the commit that was read. note: what to watch out for, in a sentence or
    two. curve: (config, steps) -> (update -> rate), ValueError where that trainer has no such schedule. read: the day.
    """

    name: str
    source: str
    note: str
    curve: Callable
    read: str = READ


def _get_scheduler(config, steps, name, warmup, total, **changed):
    """A prepared get_scheduler that was told these ticks; boundaries of lr_step_rules as they are, not multiplied."""
    peak = config.peak_learning_rate(steps.num_processes)
    told = dict(
        num_warmup_steps=warmup,
        num_training_steps=total,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
        step_rules=config.lr_step_rules,
        peak=peak,
    )
    told |= changed
    return lambda update: peak * schedule_factor(name, update * steps.num_processes, **told)


def _kohya(config, steps):
    """Also read: train_network.py, which prepares the scheduler, and int_or_float in train_util.py."""
    name, warmup, total = config.lr_scheduler, config.lr_warmup_steps, steps.num_training_steps_for_scheduler
    if name == "constant" and warmup:
        raise ValueError(f"kohya's constant refuses lr_warmup_steps {warmup!r}: 0, or constant_with_warmup, is right")
    return _get_scheduler(config, steps, name, int(warmup * total) if warmup < 1 else warmup, total)


def _simpletuner(config, steps):
    """Also read: helpers/training/trainer.py (steps_per_epoch of its cosines is left at -1, so that nothing ever restarts),
    helpers/configuration/cli_utils.py (constant with a warm-up) and the registry of its settings (names, lr_end)."""
    name, processes = config.lr_scheduler, steps.num_processes
    peak, end = config.peak_learning_rate(processes), SIMPLETUNER_END
    warmup, total = config.lr_warmup_steps * processes, steps.num_training_steps_for_scheduler

    def down_to_nano(rate):
        return math.floor(rate * 1e9) / 1e9

    def cosine(update):
        fall = math.pi * (update * processes) / (warmup or SIMPLETUNER_PERIOD)
        return down_to_nano(end + (peak - end) * (1 + math.cos(fall)) / 2)

    def polynomial(update):
        linear = schedule_factor("linear", update * processes, warmup, total)
        return peak * linear if update * processes < warmup else (peak - end) * linear**config.lr_power + end

    if name == "piecewise_constant":
        raise ValueError("SimpleTuner has no lr_scheduler 'piecewise_constant'")
    if name == "cosine":
        return cosine
    if name == "cosine_with_restarts":
        if not warmup:
            raise ValueError("SimpleTuner's cosine_with_restarts needs lr_warmup_steps, its period, of at least 1")
        return lambda update: down_to_nano(peak)
    if name == "polynomial":
        if peak <= end:
            raise ValueError(f"SimpleTuner's polynomial needs a rate above its lr_end {end}, but it is {peak!r}")
        return polynomial
    name = "constant_with_warmup" if name == "constant" and warmup else name
    return _get_scheduler(config, steps, name, warmup, total)


def _ai_toolkit(config, steps):
    """Also read: jobs/process/BaseSDTrainProcess.py (total_iters, the accumulation) and SDTrainer.py (a tick a micro-step).

    lr_warmup_steps is passed as num_warmup_steps in lr_scheduler_params, which constant_with_warmup alone takes.
    """
    total, accumulated = steps.total_updates, steps.gradient_accumulation_steps
    shapes = {
        "constant": lambda tick: 1.0,
        "constant_with_warmup": lambda tick: schedule_factor("constant_with_warmup", tick, config.lr_warmup_steps),
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


def _onetrainer(config, steps):
    """Also read: modules/util/lr_scheduler_util.py, GenericTrainer.py (one tick an update), and mgds' AspectBatchSorting.

    It counts epochs alone, and drops the pictures that don't fill a batch; here all pictures are of one shape.
    Where max_train_steps is given: the epochs that give so many updates.
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


def _diffusers_sdxl(config, steps):
    """Where epochs decide, its total counts the batches of all processes, and is too long by the accumulation alone."""
    if config.lr_scheduler == "piecewise_constant":
        raise ValueError("diffusers' SDXL script has no setting for the rules of lr_scheduler 'piecewise_constant'")
    accumulated = steps.gradient_accumulation_steps
    total = steps.max_train_steps or steps.num_train_epochs * math.ceil(steps.batches / accumulated)
    warmup = config.lr_warmup_steps * accumulated
    return _get_scheduler(config, steps, config.lr_scheduler, warmup, total * accumulated, num_cycles=1, power=1.0)


def _forgets_processes(config, steps):
    """Not every such loop is wrong: a total from len(dataloader) before prepare counts the batches of all processes."""
    return _get_scheduler(config, steps, config.lr_scheduler, config.lr_warmup_steps, steps.total_updates)


TRAINERS = {
    "kohya": Trainer(
        "kohya sd-scripts",
        "https://github.com/kohya-ss/sd-scripts/blob/48d368fa557731ad0488c07304dfeba8c07910eb/library/train_util.py#L5265",
        "A whole-number warm-up and the boundaries of piecewise_constant are not multiplied by the number of processes, so on "
        "4 GPUs they pass four times too soon; the total is right. A warm-up under 1 is a share of the run, and right too.",
        _kohya,
    ),
    "simpletuner": Trainer(
        "SimpleTuner",
        "https://github.com/bghira/SimpleTuner/blob/bc8e6ab7738ce457a2ed8eb2d26cadd91c6442cb/simpletuner/helpers/training/custom_schedule.py#L481",
        "cosine starts at the peak and swings down and up for the whole run: lr_warmup_steps is the time of one fall, and the "
        "total plays no part. cosine_with_restarts stays at the peak, and polynomial ends at 4e-7.",
        _simpletuner,
    ),
    "ai_toolkit": Trainer(
        "ai-toolkit",
        "https://github.com/ostris/ai-toolkit/blob/27a03a91f23eb1b757d5ec2e80ee3e129cfcc350/toolkit/scheduler.py#L6",
        "linear rises from a third of the peak to the peak, cosine_with_restarts first restarts when the total is over, and "
        "only constant_with_warmup warms up. Its steps are micro-steps under gradient_accumulation_steps, and each process "
        "adds a tick, so that several GPUs run through the curve too fast.",
        _ai_toolkit,
    ),
    "onetrainer": Trainer(
        "OneTrainer",
        "https://github.com/Nerogar/OneTrainer/blob/23df3832e8f213d64c337e39f9365ba46e99fed0/modules/util/create.py#L1111",
        "The warm-up counts micro-steps, and up to 1 it is a share of the run: a warm-up of 1 is the whole run. Its "
        "COSINE_WITH_RESTARTS is a smooth wave; COSINE_WITH_HARD_RESTARTS is the one that jumps back to the peak.",
        _onetrainer,
    ),
    "diffusers_sdxl": Trainer(
        "diffusers' SDXL script",
        "https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/examples/text_to_image/train_text_to_image_lora_sdxl.py#L1020",
        "Warm-up and total are multiplied by gradient_accumulation_steps instead of the number of processes: with "
        "max_train_steps, right only where the two are equal. It has no settings for cycles, power and rules.",
        _diffusers_sdxl,
    ),
    "forgets_processes": Trainer(
        "a loop that forgets × num_processes",
        "https://github.com/huggingface/accelerate/blob/16cb6eb80dd9aa8b4df1a63ef57863e455d53b83/src/accelerate/scheduler.py#L54",
        "The scheduler is told updates but ticks once for each process, so on 4 GPUs the whole curve passes in a quarter of "
        "the run. The commonest mistake: diffusers#3954 and #8312, accelerate#2926.",
        _forgets_processes,
    ),
}


def trainer_rates(key, config, steps, updates):
    """The rates that a trainer would use if it were given these words and numbers, as a list of floats.

    key: of `TRAINERS`. config: a `TrainingConfig`, or anything with its fields that schedule and peak are read from; the
    warm-up is read from here. steps: its `Steps`. updates: ints, 0 the first, also past the end of that trainer's run.
    Raises ValueError where that trainer has no such schedule, or would divide by zero.

    >>> config = TrainingConfig(style="outlined", learning_rate=3e-3, lr_scheduler="linear")
    >>> trainer_rates("ai_toolkit", config, Steps(num_examples=20, train_batch_size=2, num_train_epochs=1), [0, 10])
    [0.001, 0.003]
    """
    rate = TRAINERS[key].curve(config, steps)
    try:
        return [rate(update) for update in updates]
    except ZeroDivisionError:
        raise ValueError(
            f"{TRAINERS[key].name} divides by zero: lr_warmup_steps {config.lr_warmup_steps!r} leaves nothing of its run"
        ) from None
