"""The arithmetic of steps: from a data set and a batch size to updates, epochs and what the scheduler must be told.

Three clocks tick in a run. A *micro-step* is one forward and backward pass of one process. An *update* is one step of the
optimizer, after `gradient_accumulation_steps` micro-steps or at the end of the loader. A *scheduler step* is one tick of the
learning-rate schedule, and accelerate ticks it `num_processes` times an update. Source: diffusers,
examples/text_to_image/train_text_to_image_lora.py, and accelerate's data_loader.py and scheduler.py.
"""

from dataclasses import dataclass

from lora_kit.config import TrainingConfig
from lora_kit.system.checks import whole_number

AXES = {  # what a curve can be drawn over: the key in `Steps.passed`, and in words
    "updates": "optimizer updates (0 is the first)",
    "micro_steps": "micro-steps of each process",
    "epochs": "epochs",
    "images": "images seen, by all processes",
}


def _ceil(count, size):
    return -(-count // size)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What a run of these sizes does. All counts are whole numbers; an update is counted once, not once a process.

    num_examples: pictures in the data set. train_batch_size: pictures of one process in one micro-step.
    max_train_steps: updates in all; where it is None, num_train_epochs decides. lr_warmup_steps: updates of warm-up, however
    long (`check_warmup` says whether that fits). Raises ValueError where a count is not a whole number of at least 1.

    >>> Steps(num_examples=20, train_batch_size=2, gradient_accumulation_steps=2, num_processes=2, num_train_epochs=2).total_updates
    6
    """

    num_examples: int
    train_batch_size: int
    gradient_accumulation_steps: int = 1
    num_processes: int = 1
    num_train_epochs: int = 100
    max_train_steps: int | None = None
    lr_warmup_steps: int = 0

    def __post_init__(self):
        for name, value in vars(self).items():
            if value is not None or name != "max_train_steps":
                object.__setattr__(self, name, whole_number(name, value, 0 if name == "lr_warmup_steps" else 1))

    @classmethod
    def of(cls, config: TrainingConfig, num_examples: int, num_processes: int = 1) -> "Steps":
        """The steps of a configuration on this many pictures and processes.

        A warm-up that the schedule ignores counts as none.
        """
        return cls(
            num_examples=num_examples,
            num_processes=num_processes,
            train_batch_size=config.train_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            num_train_epochs=config.num_train_epochs,
            max_train_steps=config.max_train_steps,
            lr_warmup_steps=config.warmup_updates,
        )

    @property
    def batches(self) -> int:
        """Batches an epoch before the data are shared out: len(dataloader) before accelerator.prepare."""
        return _ceil(self.num_examples, self.train_batch_size)

    @property
    def batches_per_process(self) -> int:
        """Micro-steps an epoch of each process: len(dataloader) after accelerator.prepare.

        Rounded up: where the batches don't divide, accelerate repeats pictures from the start (even_batches).
        """
        return _ceil(self.batches, self.num_processes)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates an epoch. Rounded up: the end of the loader always makes an update."""
        return _ceil(self.batches_per_process, self.gradient_accumulation_steps)

    @property
    def total_updates(self) -> int:
        """Optimizer updates in the whole run."""
        return self.max_train_steps or self.num_train_epochs * self.updates_per_epoch

    @property
    def epochs(self) -> int:
        """Epochs that are begun, the last perhaps not ended."""
        return _ceil(self.total_updates, self.updates_per_epoch)

    @property
    def total_batch_size(self) -> int:
        """Pictures in a full update, over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.num_processes

    @property
    def micro_steps_in_last_update(self) -> int:
        """Micro-steps in the last update of an epoch. Where fewer than gradient_accumulation_steps, that update's
        gradient is too small, since the loss is divided by the full number all the same."""
        return self.batches_per_process - (self.updates_per_epoch - 1) * self.gradient_accumulation_steps

    @property
    def num_training_steps_for_scheduler(self) -> int:
        """What get_scheduler must be told: scheduler steps, num_processes for each update."""
        return self.total_updates * self.num_processes

    @property
    def num_warmup_steps_for_scheduler(self) -> int:
        """The warm-up in scheduler steps, num_processes for each update."""
        return self.lr_warmup_steps * self.num_processes

    def passed(self, update: int) -> dict[str, int | float]:
        """What has passed when update `update` begins (0 is the first), a dict: updates; micro_steps, of each process;
        epochs, a float; images, over all processes, repeated ones counted."""
        epoch, inside = divmod(update, self.updates_per_epoch)
        inside = min(inside * self.gradient_accumulation_steps, self.batches_per_process)
        whole = epoch * self.batches_per_process
        size = self.train_batch_size * self.num_processes
        # several processes fill up their last batch with pictures from the start; one leaves it small
        images = (whole + inside) * size
        if self.num_processes == 1:
            images = epoch * self.num_examples + min(inside * size, self.num_examples)
        epochs = epoch + inside / self.batches_per_process
        return dict(updates=update, micro_steps=whole + inside, epochs=epochs, images=images)

    def rows(self) -> list[tuple[str, int, str]]:
        """The arithmetic as (quantity, value, how it comes about), for a table."""
        examples, batch, processes = self.num_examples, self.train_batch_size, self.num_processes
        accumulation, per_epoch, total = self.gradient_accumulation_steps, self.updates_per_epoch, self.total_updates
        by = "max_train_steps" if self.max_train_steps else f"{self.num_train_epochs} x {per_epoch}"
        warmup = f"{self.lr_warmup_steps} x {processes}"
        return [
            ("batches in the data set", self.batches, f"ceil({examples} / {batch})"),
            ("micro-steps an epoch", self.batches_per_process, f"ceil({self.batches} / {processes})"),
            ("updates an epoch", per_epoch, f"ceil({self.batches_per_process} / {accumulation})"),
            ("updates in all", total, by),
            ("epochs begun", self.epochs, f"ceil({total} / {per_epoch})"),
            ("pictures an update", self.total_batch_size, f"{batch} x {accumulation} x {processes}"),
            ("micro-steps in an epoch's last update", self.micro_steps_in_last_update, f"of {accumulation}"),
            ("warm-up for the scheduler", self.num_warmup_steps_for_scheduler, warmup),
            ("total for the scheduler", self.num_training_steps_for_scheduler, f"{total} x {processes}"),
        ]
