"""Learning-rate schedules: the scheduler that a run is given, and the rate that each of its updates will really use."""

import math

from lora_kit.config import check_step_rules

LR_END = 1e-7  # where polynomial ends, fixed in diffusers' get_scheduler


def scheduler_step_rules(lr_step_rules, num_processes=1):
    """The rules of piecewise_constant with boundaries in scheduler steps, as get_scheduler wants them.

    `lr_step_rules` counts updates ("1:100,0.1" is 1 x up to update 100); the scheduler ticks num_processes times each.
    """
    if lr_step_rules is None:
        return None
    rules, last = check_step_rules(lr_step_rules)
    return ",".join([*(f"{factor}:{boundary * num_processes}" for boundary, factor in rules), f"{last}"])


def rising_step_rules(updates, lowest):
    """lr_step_rules of a learning-rate range test: the rate rises by the same factor in each update, to 1 x learning_rate.

    updates: of the whole test, the first at `lowest` x learning_rate, such as 1e-6.

    >>> rising_step_rules(3, 0.01)
    '0.01:1,0.1:2,1'
    """
    factors = [lowest ** (1 - update / (updates - 1)) for update in range(updates)]
    return ",".join([*(f"{factor:.6g}:{update}" for update, factor in enumerate(factors[:-1], 1)), "1"])


def schedule_factor(
    name, step, num_warmup_steps=0, num_training_steps=None, num_cycles=1, power=1.0, step_rules=None, peak=1.0
):
    """What get_scheduler's schedule multiplies the peak by at a scheduler step, by its formula alone: no torch is loaded.

    name: one of the seven. step: from 0 on, also past the end; a prepared scheduler makes num_processes of them an update.
    num_warmup_steps, num_training_steps: in scheduler steps; constant reads neither. step_rules: with boundaries in scheduler
    steps. peak: the rate that is multiplied, which polynomial alone must know. Bit for bit what the library's lambda gives.
    ZeroDivisionError as there: polynomial whose warm-up is as long as its total, at that very step.

    >>> schedule_factor("cosine", 5, num_training_steps=10)
    0.5000000000000001

    Source: diffusers, optimization.py.
    """
    if name == "constant":
        return 1.0
    if name == "piecewise_constant":
        rules, last = check_step_rules(step_rules)
        return next((factor for boundary, factor in rules if step < boundary), last)
    if step < num_warmup_steps:
        return step / max(1, num_warmup_steps)
    if name == "constant_with_warmup":
        return 1.0
    span = max(1, num_training_steps - num_warmup_steps)
    progress = (step - num_warmup_steps) / span
    if name == "linear":
        return max(0.0, (num_training_steps - step) / span)
    if name == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))
    if name == "cosine_with_restarts":
        if progress >= 1.0:
            return 0.0
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((float(num_cycles) * progress) % 1.0))))
    if name == "polynomial":
        if step > num_training_steps:
            return LR_END / peak
        left = 1 - (step - num_warmup_steps) / (num_training_steps - num_warmup_steps)
        return ((peak - LR_END) * left**power + LR_END) / peak
    raise ValueError(f"lr_scheduler {name!r} is not one of diffusers' seven")


def learning_rates(config, steps, updates):
    """The rates of `applied_learning_rates`, as a list of floats and without torch: for a page that must be quick.

    config: a `TrainingConfig`, or anything with its fields that schedule and peak are read from. updates: ints, 0 the first.
    """
    processes, peak = steps.num_processes, config.peak_learning_rate(steps.num_processes)
    told = dict(
        num_warmup_steps=steps.num_warmup_steps_for_scheduler,
        num_training_steps=steps.num_training_steps_for_scheduler,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
        step_rules=scheduler_step_rules(config.lr_step_rules, processes),
        peak=peak,
    )
    return [peak * schedule_factor(config.lr_scheduler, update * processes, **told) for update in updates]


def make_scheduler(optimizer, config, steps):
    """diffusers' get_scheduler with everything in scheduler steps, ready for accelerator.prepare.

    config: a `TrainingConfig`. steps: its `Steps` for this data set and number of processes. Returns a torch LambdaLR,
    whose factor for update k (0 is the first) is its lambda at k x num_processes.
    """
    from diffusers.optimization import get_scheduler

    return get_scheduler(
        config.lr_scheduler,
        optimizer=optimizer,
        step_rules=scheduler_step_rules(config.lr_step_rules, steps.num_processes),
        num_warmup_steps=steps.num_warmup_steps_for_scheduler,
        num_training_steps=steps.num_training_steps_for_scheduler,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )


def applied_learning_rates(config, steps, updates=None):
    """The learning rate that each optimizer update uses, as a float64 array.

    Update 0 is the first. `updates` picks some of them (any ints, also past the end); by default all
    steps.total_updates. Read from the scheduler's own lambda, so nothing is stepped and 100,000 updates cost little.

    >>> config = TrainingConfig(style="outlined", learning_rate=1e-3, lr_scheduler="cosine", lr_warmup_steps=1)
    >>> applied_learning_rates(config, Steps(num_examples=20, train_batch_size=2, num_train_epochs=1, lr_warmup_steps=1))[0]
    0.0
    """
    import numpy as np
    import torch

    peak = config.peak_learning_rate(steps.num_processes)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    factor = make_scheduler(optimizer, config, steps).lr_lambdas[0]
    chosen = range(steps.total_updates) if updates is None else updates
    return np.array([peak * factor(int(update) * steps.num_processes) for update in chosen])
