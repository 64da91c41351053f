import json
import threading
from contextlib import nullcontext

import pytest

from lora_kit.config import TrainingConfig
from lora_kit.plots import LiveMetrics, plot_learning_rates, plot_run, plot_schedule, plot_summary
from lora_kit.steps import Steps
from lora_kit.system.looks import COLOURS, LINE_STYLES, LOOKS

START = {"event": "start", "num_processes": 2, "device": "a CPU", "total_updates": 4, "first_update": 0}


def metrics(path, updates):
    records = [dict(update=update, loss=1 - update / 10, lr=1e-4 * update) for update in range(updates)]
    path.write_text("".join(json.dumps(record) + "\n" for record in [START, *records]))
    return path


@pytest.fixture(autouse=True)
def close_figures():
    yield
    from matplotlib import pyplot as plt

    plt.close("all")


def curves_of(axes, length):
    return [line for line in axes.lines if len(line.get_xdata()) == length]


def test_plot_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert plot_run(path).get_suptitle() == "starting ..."
    figure = plot_run(metrics(path, 3))
    assert figure.get_suptitle() == "3 of 4 updates, 2 process(es), a CPU"
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == pytest.approx([1.0, 0.9, 0.8])
    assert left.lines[1].get_ydata().tolist() == pytest.approx([1.0, 0.95, 0.85])  # means of two
    assert right.lines[0].get_ydata().tolist() == pytest.approx([0, 1e-4, 2e-4])
    assert (left.get_xlabel(), right.get_ylabel()) == ("optimizer update", "learning rate as applied")
    assert left.get_xlim() == (0, 3)
    assert plot_run(metrics(path, 0)).get_suptitle().startswith("0 of 4")


def test_plot_learning_rates():
    steps = Steps(num_examples=8, train_batch_size=2, num_train_epochs=3, lr_warmup_steps=2)
    axes = plot_learning_rates({"a": [0, 1, 2], "b": [2, 1, 0]}, steps=steps)
    curves = curves_of(axes, 3)
    assert [line.get_color() for line in curves] == ["#0072B2", "#D55E00"]
    assert [line.get_linestyle() for line in curves] == ["-", "--"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "warm-up"]
    assert [line.get_xdata()[0] for line in axes.lines if line not in curves] == [4, 8]  # where epochs 1 and 2 begin
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer updates (0 is the first)", "learning rate")


def test_plot_schedule_beside_what_was_meant():
    """Ten updates on two processes: told 10 instead of 20, a linear schedule is over at update 5."""
    config = TrainingConfig(style="outlined", learning_rate=1e-3, lr_scheduler="linear", max_train_steps=10)
    axes = plot_schedule(config, num_examples=400, num_processes=2, num_training_steps=10)
    meant, told = curves_of(axes, 10)
    assert meant.get_ydata().tolist() == pytest.approx([1e-3 - 1e-4 * update for update in range(10)])
    assert told.get_ydata().tolist() == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4, 0, 0, 0, 0, 0])
    assert [line.get_label() for line in (meant, told)] == ["as meant: 20", "as told: 10"]
    again = plot_schedule(config, 400, 2, num_training_steps=20, num_warmup_steps=4)
    assert curves_of(again, 10)[1].get_ydata()[:3].tolist() == pytest.approx([0, 5e-4, 1e-3])


def test_plot_summary_over_images():
    curve = dict(label="as applied", rates=[1.0, 0.5], passed={"updates": [0, 1], "images": [0, 8]})
    axes = plot_summary({"curves": [curve, curve | {"label": "one process", "rates": [0.0, 1.0]}]}, "images")
    lines = curves_of(axes, 2)
    assert [list(line.get_xdata()) for line in lines] == [[0, 8]] * 2
    assert [list(line.get_ydata()) for line in lines] == [[1.0, 0.5], [0.0, 1.0]]
    assert axes.get_xlabel() == "images seen, by all processes"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["as applied", "one process"]


def luminance(colour):
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_and_lines_tell_curves_apart():
    assert len(set(COLOURS)) == len(set(LINE_STYLES)) == len({dashes for _, dashes, _ in LOOKS}) == len(LOOKS) == 11
    for colour in COLOURS:  # on white and on JupyterLab's dark background
        for background in (luminance("#ffffff"), luminance("#111111")):
            low, high = sorted((luminance(colour), background))
            assert (high + 0.05) / (low + 0.05) >= 3, colour


class Handle:
    """A cell's output, which fails as often as it is told to."""

    def __init__(self, failures=0):
        self.drawn, self.asked, self.failures = [], threading.Semaphore(0), failures

    def update(self, picture):
        self.asked.release()
        if self.failures:
            self.failures -= 1
            raise ZeroDivisionError("nothing to draw on")
        self.drawn.append(picture)


@pytest.fixture
def handle(monkeypatch):
    import IPython.display

    handle = Handle()
    monkeypatch.setattr(IPython.display, "display", lambda *content, **how: handle)
    return handle


def test_live_metrics_draw_what_is_written_meanwhile(tmp_path, handle):
    path, drawn = tmp_path / "metrics.jsonl", handle.drawn
    with LiveMetrics(path, every=0.01):
        metrics(path, 2)
        assert handle.asked.acquire(timeout=300)
    assert all(picture.data.startswith(b"\x89PNG") for picture in drawn)
    with LiveMetrics(path, every=0.01):  # nothing new: nothing is drawn
        drawn.clear()
    assert drawn == []


@pytest.mark.parametrize("always", [False, True])
def test_a_picture_that_fails_ends_no_training_and_is_tried_again(always, tmp_path, handle):
    handle.failures, path = 10**9 if always else 1, tmp_path / "metrics.jsonl"
    said = pytest.warns(UserWarning, match="could not be drawn: ZeroDivisionError nothing to draw on")
    with said if always else nullcontext(), LiveMetrics(path, every=0.01):
        for updates in (1, 2):
            metrics(path, updates)
            assert handle.asked.acquire(timeout=60)
    assert bool(handle.drawn) != always
