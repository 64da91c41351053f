"""Learning-rate schedules: the scheduler that a run is given, and the rate that each of its updates will really use."""

from lora_kit.config import check_step_rules


def scheduler_step_rules(lr_step_rules, num_processes=1):
    """The rules of piecewise_constant with boundaries in scheduler steps, as get_scheduler wants them.

    `lr_step_rules` counts updates ("1:100,0.1" is 1 x up to update 100); the scheduler ticks num_processes times each.
    """
    if lr_step_rules is None:
        return None
    rules, last = check_step_rules(lr_step_rules)
    return ",".join([*(f"{factor}:{boundary * num_processes}" for boundary, factor in rules), f"{last}"])


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
