"""The explorer: turn a knob of the training configuration and see at once what it does; at the end, the command to run."""

from typing import Any


def explorer(num_examples: int = 399, num_processes: int = 1, **settings: Any) -> Any:
    """Knobs over the training configuration beside a page that follows them, an `Explorer`; the last value of a cell shows itself.

    It starts from the run of notebook 05, which settings change. num_examples: pictures in the data set. num_processes:
    processes that train together. settings: fields of `TrainingConfig`; those without a knob stay as they are; with
    num_train_epochs, max_train_steps is left out. Raises ValueError for a value that no run could have, TypeError
    for a name that is no setting. Needs no torch: only a real run ("Train this", in a process of its own) does.

    >>> page = explorer(lr_scheduler="linear", lr_warmup_steps=10)
    >>> page.knobs["lr_warmup_steps"].value = 30
    >>> page.summary["warmup"]
    30
    """
    from lora_kit.explorer.page import Explorer
    from lora_kit.explorer.session import Session

    return Explorer(Session.start(num_examples, num_processes, **settings))
