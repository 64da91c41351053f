"""Figures: the learning rate as applied, the course of a run, and the live view that a notebook shows while it trains."""

import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.config import TrainingConfig
from lora_kit.output.metrics import read_metrics
from lora_kit.schedules import Schedule
from lora_kit.steps import AXES, Steps
from lora_kit.system.looks import COLOURS, LINE_STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_learning_rates(
    curves: Mapping[str, Sequence[float]], axes: "Axes | None" = None, steps: Steps | None = None
) -> "Axes":
    """Learning rate against optimizer update, one curve for each entry of {label: rates}; update 0 is the first.

    steps: shade its warm-up and mark its epochs.
    """
    axes = _axes(axes)
    for index, (label, rates) in enumerate(curves.items()):
        axes.plot(rates, **_look(index), label=label)
    if steps is not None and steps.lr_warmup_steps:
        axes.axvspan(0, steps.lr_warmup_steps, color="#999999", alpha=0.25, label="warm-up")
    if steps is not None and steps.epochs <= 40:
        for epoch in range(1, steps.epochs):
            axes.axvline(epoch * steps.updates_per_epoch, color="#999999", linewidth=0.5)
    return _finished(axes, AXES["updates"])


def plot_schedule(
    config: TrainingConfig,
    num_examples: int,
    num_processes: int,
    num_training_steps: int,
    num_warmup_steps: int | None = None,
    axes: "Axes | None" = None,
) -> "Axes":
    """What would happen if get_scheduler were told these numbers, beside what was meant.

    num_training_steps, num_warmup_steps: in the scheduler's own steps, of which a prepared one makes num_processes an
    update; num_warmup_steps left out is as meant.
    """
    steps = Steps.of(config, num_examples, num_processes)
    meant = Schedule.of(config, steps)
    warmup = meant.num_warmup_steps if num_warmup_steps is None else num_warmup_steps
    other = replace(meant, num_training_steps=num_training_steps, num_warmup_steps=warmup)
    schedules = {f"as meant: {meant.num_training_steps}": meant, f"as told: {num_training_steps}": other}
    updates = range(steps.total_updates)
    return plot_learning_rates({label: schedule.applied(updates) for label, schedule in schedules.items()}, axes, steps)


def plot_summary(summary: Mapping[str, Any], axis: str = "updates", axes: "Axes | None" = None) -> "Axes":
    """The curves of the explorer's summary over one of its `AXES`: its picture for a page without a kernel.

    Solid: the rate as applied; dashed: what one process without accumulation would do.
    """
    axes = _axes(axes)
    for index, curve in enumerate(summary["curves"]):
        axes.plot(curve["passed"][axis], curve["rates"], **_look(index), label=curve["label"])
    return _finished(axes, AXES[axis])


def _axes(axes):
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    return axes


def _look(index):
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINE_STYLES[index % len(LINE_STYLES)]}


def _finished(axes, xlabel):
    axes.set(xlabel=xlabel, ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize="small")
    return axes


def plot_run(path: str | Path, figure: "Figure | None" = None) -> "Figure":
    """Loss and learning rate of a run, from its metrics.jsonl."""
    from matplotlib.figure import Figure

    start, updates = read_metrics(path)
    figure = figure or Figure(figsize=(8, 2.8), layout="constrained")
    figure.clear()
    left, right = figure.subplots(1, 2)
    if start is None:
        figure.suptitle("starting ...", fontsize="medium")
        return figure
    x = [record["update"] for record in updates]
    losses = [math.nan if record["loss"] is None else record["loss"] for record in updates]
    left.plot(x, losses, color=COLOURS[10], linewidth=0.8, label="each update")
    window = max(len(losses) // 20, 2)
    smooth = [sum(losses[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(losses))]
    left.plot(x, smooth, color=COLOURS[0], label=f"mean of {window}")
    left.set(xlabel="optimizer update", ylabel="training loss")
    left.legend(fontsize="small")
    right.plot(x, [record["lr"] for record in updates], color=COLOURS[1])
    right.set(xlabel="optimizer update", ylabel="learning rate as applied")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlim(0, max(start["total_updates"] - 1, 1))
        axes.grid(alpha=0.3)
    done = f"{updates[-1]['update'] + 1 if updates else start['first_update']} of {start['total_updates']} updates"
    figure.suptitle(f"{done}, {start['num_processes']} process(es), {start['device']}", fontsize="medium")
    return figure


class LiveMetrics:
    """Draws a run's metrics.jsonl in the notebook's cell while the body of the `with` runs, from a thread.

    path: of the metrics, which need not be there yet. every: seconds between two looks at them. A failed drawing doesn't end the
    training: it is tried again at the next change, and if the last one fails, a warning says why. For `train` and `launch` alike:

        with LiveMetrics("runs/a/metrics.jsonl"):
            launch(config)
    """

    def __init__(self, path: str | Path, every: float = 1.0):
        self.path, self.every, self.error = Path(path), every, None

    def _version(self):
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _picture(self):
        import io

        from IPython.display import Image

        buffer = io.BytesIO()
        plot_run(self.path, self.figure).savefig(buffer, format="png", dpi=80)
        return Image(buffer.getvalue(), alt="Training loss and learning rate against optimizer update")

    def _draw(self, drawn):
        """Draw the metrics if their version is no longer `drawn`; returns the version that was found."""
        now = drawn
        try:
            now = self._version()
            if now != drawn:
                self.handle.update(self._picture())
                self.error = None
        except Exception as error:  # of each library its own
            self.error = error
        return now

    def _watch(self, drawn):
        while not self.stop.wait(self.every):
            drawn = self._draw(drawn)

    def __enter__(self) -> "LiveMetrics":
        from IPython.display import display
        from matplotlib.figure import Figure

        self.figure, self.stop = Figure(figsize=(8, 2.8), layout="constrained"), threading.Event()
        self.handle = display({"text/plain": "starting ..."}, raw=True, display_id=True)
        before = self._version()
        self.thread = threading.Thread(target=self._watch, args=(before,), daemon=True)
        self.before = before
        self.thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stop.set()
        self.thread.join()
        self._draw(self.before)
        if self.error:
            warnings.warn(f"{self.path} could not be drawn: {type(self.error).__name__} {self.error}", stacklevel=2)
