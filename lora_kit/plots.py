"""Figures: the learning rate as applied, the course of a run, and the live view that a notebook shows while it trains."""

import json
import threading
from pathlib import Path

# Okabe and Ito's palette: told apart by readers who are colour-blind; each curve also has its own line style
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def read_metrics(path):
    """(start record, [update records]) of a metrics.jsonl, also while it is being written; (None, []) before it is."""
    start, updates, path = None, [], Path(path)
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith("\n"):
            break  # half a line: the run is writing it
        record = json.loads(line)
        if record.get("event") == "start":
            start, updates = record, []
        elif "update" in record:
            updates.append(record)
    return start, updates


def plot_learning_rates(curves, axes=None, steps=None):
    """Learning rate against optimizer update, one curve for each entry of {label: rates}; update 0 is the first.

    steps: a `Steps`, to shade its warm-up and mark its epochs. Returns the matplotlib axes.
    """
    import matplotlib.pyplot as plt

    if axes is None:
        _, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for index, (label, rates) in enumerate(curves.items()):
        axes.plot(rates, color=COLOURS[index % 7], linestyle=LINE_STYLES[index % 7], label=label)
    if steps is not None and steps.lr_warmup_steps:
        axes.axvspan(0, steps.lr_warmup_steps, color="#999999", alpha=0.25, label="warm-up")
    if steps is not None and steps.epochs <= 40:
        for epoch in range(1, steps.epochs):
            axes.axvline(epoch * steps.updates_per_epoch, color="#999999", linewidth=0.5)
    axes.set(xlabel="optimizer update (0 is the first)", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize="small")
    return axes


def plot_summary(summary, axis="updates", axes=None):
    """The curves of `lora_kit.summary.summarize` over one of its axes: the explorer's picture for a page without a kernel.

    Solid: the rate as applied; dashed: what one process without accumulation would do. Returns the matplotlib axes.
    """
    import matplotlib.pyplot as plt

    from lora_kit.explorer.summary import AXES

    if axes is None:
        _, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for index, curve in enumerate(summary["curves"]):
        look = dict(color=COLOURS[index % 7], linestyle=LINE_STYLES[index % 7])
        axes.plot(curve["passed"][axis], curve["rates"], label=curve["label"], **look)
    axes.set(xlabel=AXES[axis], ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return axes


def plot_run(path, figure=None):
    """Loss and learning rate of a run, from its metrics.jsonl. Returns the matplotlib figure."""
    from matplotlib.figure import Figure

    start, updates = read_metrics(path)
    figure = figure or Figure(figsize=(8, 2.8), layout="constrained")
    figure.clear()
    left, right = figure.subplots(1, 2)
    if start is None:
        figure.suptitle("starting ...", fontsize="medium")
        return figure
    x = [record["update"] for record in updates]
    losses = [record["loss"] for record in updates]
    left.plot(x, losses, color=COLOURS[5], linewidth=0.8, label="each update")
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

    >>> with LiveMetrics("runs/a/metrics.jsonl"):
    ...     train(config, progress=False)
    """

    def __init__(self, path, every=1.0):
        self.path, self.every = Path(path), every

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

    def _watch(self, drawn):
        while not self.stop.wait(self.every):
            now = self._version()
            if now != drawn:
                drawn = now
                self.handle.update(self._picture())

    def __enter__(self):
        from IPython.display import display
        from matplotlib.figure import Figure

        self.figure, self.stop = Figure(figsize=(8, 2.8), layout="constrained"), threading.Event()
        self.handle = display({"text/plain": "starting ..."}, raw=True, display_id=True)
        before = self._version()
        self.thread = threading.Thread(target=self._watch, args=(before,), daemon=True)
        self.before = before
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.stop.set()
        self.thread.join()
        if self._version() != self.before:
            self.handle.update(self._picture())
