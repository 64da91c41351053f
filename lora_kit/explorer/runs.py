"""The explorer's real trainings: single runs, laid over one another, and sweeps, watched by a thread until they end."""

import contextlib
import html
import threading
from collections.abc import Callable
from typing import Any

from lora_kit.explorer.panels import running_html, runs_html
from lora_kit.explorer.range_test import EVERY, UPDATES, range_html, range_settings, read_test
from lora_kit.explorer.state import State, describe
from lora_kit.explorer.widgets import BUTTON, NARROW_LABEL, Quiet, labelled, titled
from lora_kit.system.html import page

LOOK_EVERY = 0.3  # seconds
ABOUT = (
    "<i>Train this</i> makes one run with the settings of this page, and lays it over the runs before. <i>Sweep</i> makes one for "
    "each pair of the rates and ranks beside it. <i>Range test</i> makes one in which the rate rises from far too low to far too high, "
    "and says which rate to take. The model learns the style of the settings, on the CPU."
)
BEGIN, EACH = 8.0, 0.036  # seconds on two idle cores, until a run trains and for a picture: benchmarks/RESULTS.md
ENOUGH = 20  # updates, to learn from how long they took


class Runs:
    """The widgets under "Train the embedded model with it". `trials`: the `Trials` that run, or None; `following`: the thread that
    watches them, or None; `past`: the single runs that have ended, as of `Trials.progress`; `each`: the seconds of a picture in
    the latest run, or None; `box`: the widget that holds all. turned(name, value) is called when a rate is to be taken."""

    def __init__(self, state: State, quiet: Quiet, turned: Callable[[str, Any], None]):
        import ipywidgets

        self.state, self.quiet, self.turned = state, quiet, turned
        self.trials, self.following, self.past, self.each, self.rate = None, None, {}, None, None
        self._started = 0  # pictures of an update of the latest run
        self._look_now = threading.Event()
        text = "Updates of each run; the warm-up keeps its share."
        self.length = labelled(
            ipywidgets.IntSlider, "updates of a run", text, style=NARROW_LABEL, min=10, max=400, step=10, value=200
        )
        self.train, self.stop, self.clear, self.sweep, self.test, self.take = (
            ipywidgets.Button(description=words, layout=BUTTON)
            for words in ("Train this", "Stop", "Forget the runs", "Sweep", "Range test", "")
        )
        self.cost = ipywidgets.HTML()
        look = {"style": NARROW_LABEL, "layout": {"width": "20em"}}
        self.rates = labelled(ipywidgets.Text, "learning rates", "The sweep's columns.", value="3e-4 1e-3 3e-3", **look)
        self.ranks = labelled(ipywidgets.Text, "ranks", "The sweep's rows.", value="1 4 16", **look)
        for button, action in (
            (self.train, self._train), (self.clear, self._forget), (self.sweep, self._sweep), (self.test, self._test),
            (self.take, lambda _: self.turned("learning_rate", self.rate)),
        ):  # fmt: skip
            button.on_click(quiet.hears(action))
        for field in (self.length, self.rates, self.ranks):
            field.observe(self._say_cost, "value")
        self.stop.on_click(self._stop)  # waits for the trainings' end, and the thread that watches must not wait for it
        self.running, self.singles, self.grid, self.tested = (ipywidgets.HTML() for _ in range(4))
        self.results = ipywidgets.VBox([self.singles, self.grid, self.tested])
        row = {"flex_flow": "row wrap"}
        self.box = titled(
            "Train the embedded model with it",
            ipywidgets.HTML(page(ABOUT)),
            self.length,
            self.cost,
            ipywidgets.HBox([self.train, self.stop, self.clear, self.test, self.take], layout=row),
            ipywidgets.HBox([self.rates, self.ranks, self.sweep], layout=row),
            self.running,
            self.results,
        )
        self.box.layout.max_width = "1100px"

    def paint(self) -> None:
        """Which buttons can be pressed as the state and the trainings are."""
        embedded = self.state.values["pretrained_model_name_or_path"] == "embedded"
        able = embedded and not self.state.summary["errors"] and not self.following
        self.train.disabled = self.sweep.disabled = self.test.disabled = not able
        self.stop.disabled = not self.following
        self.take.layout.display = None if self.rate else "none"
        self._say_cost()
        if not self.following:
            self.running.value = "" if embedded else page("Only the embedded model is trained from this page.")

    def _say_cost(self, _change=None):
        """How long each of the buttons takes, before it is pressed."""
        updates, pictures = self.length.value, self._pictures()
        runs = len(_words(self.rates)) * len(_words(self.ranks))

        def about(updates, runs=1):
            return duration(runs * updates * pictures * (self.each or EACH) + BEGIN)

        how = "as the latest run went" if self.each else "on two idle cores"
        self.cost.value = page(
            f"{updates} updates of {pictures} pictures take about {about(updates)}, {how}; the sweep of {runs} such runs "
            f"about {about(updates, runs)}; the range test's {UPDATES} about {about(UPDATES)}."
        )
        for button, words in ((self.train, "One run"), (self.sweep, "Runs")):
            button.tooltip = f"{words} of {updates} updates."
        self.test.tooltip = f"One run of {UPDATES} updates, each at a higher rate."

    def _pictures(self):
        """Pictures of an update; a trial is one process."""
        values = self.state.values
        return values["train_batch_size"] * values["gradient_accumulation_steps"]

    def _settings(self):
        """The settings with the length of the run, of which a trial's warm-up keeps its share."""
        return self.state.settings | {"max_train_steps": self.state.summary["total_updates"]}

    def _train(self, _button):
        from lora_kit.explorer.trials import trial_settings

        try:
            made, _ = trial_settings(self._settings(), self.length.value)
        except ValueError as error:
            self._refuse(error)
        else:
            trials = {f"run {len(self.past) + 1}: {describe(made)}": self._settings()}
            self._start(trials, self.singles, lambda trials: runs_html(self.past | trials))

    def _sweep(self, _button):
        from lora_kit.explorer.trials import sweep

        try:
            rates, ranks = [float(word) for word in _words(self.rates)], [int(word) for word in _words(self.ranks)]
            trials = sweep(self._settings(), ("learning_rate", rates), ("rank", ranks))
        except ValueError as error:
            self._refuse(f"learning rates {self.rates.value!r} and ranks {self.ranks.value!r}: {error}")
        else:
            self._start(trials, self.grid, lambda trials: runs_html(trials, (ranks, rates)))

    def _test(self, _button):
        trials = {"range test": range_settings(self.state.settings)}
        self._start(trials, self.tested, range_html, updates=UPDATES, prompts=(), fixed_every=EVERY)

    def _refuse(self, error):
        self.running.value = page(f"<b>✗</b> {html.escape(str(error))}")

    def _start(self, trials: dict[str, dict], place: Any, draw: Callable[[dict], str], **how: Any) -> None:
        """Train, and watch. place: the widget that shows what `draw` makes of the trials. how: of `Trials.start`."""
        from lora_kit.explorer.trials import Trials

        if self.following:
            return
        try:
            self.trials = self.trials or Trials()
            sentences = self.trials.start(trials, **{"updates": self.length.value} | how)
        except (OSError, ValueError, RuntimeError) as error:
            self._refuse(error)
            return
        self._look_now.clear()
        self._started = self._pictures()
        self.results.children = [place, *(other for other in self.results.children if other is not place)]
        words = "; ".join(next(iter(sentences.values())))
        self.following = threading.Thread(target=self._watch, args=(self.trials, place, draw, words), daemon=True)
        self.paint()
        self.following.start()

    def _watch(self, trials, place, draw, words):
        """Show what the runs have done until they end, and then, whatever happens, let others be started."""
        line = ""
        try:
            running = True
            while running:
                progress = trials.progress()
                running = progress["running"]
                line = running_html(progress, words)
                try:
                    place.value = draw(progress["trials"])
                except Exception as error:
                    line += _sorry("The runs can't be drawn", error)
                self.running.value = line
                if running:
                    self._look_now.wait(LOOK_EVERY)
            self._learn(progress["trials"], place)
        except Exception as error:
            line += _sorry("The runs can't be followed, and were stopped", error)
            with contextlib.suppress(Exception):
                trials.stop()
        finally:
            with self.quiet:
                self.following = None
                self.paint()
                self.running.value = line

    def _learn(self, trials, place):
        """What ended runs leave: the runs to lay others over, the seconds of a picture, the rate of a range test."""
        updates = sum(len(run["updates"]) for run in trials.values())
        seconds = sum(run["seconds"] for run in trials.values())
        if updates >= ENOUGH:
            self.each = max(seconds - BEGIN, 1.0) / (updates * self._started)
        if place is self.singles:
            self.past = {name: run for name, run in (self.past | trials).items() if run["updates"]}
        if place is self.tested and (rate := read_test(trials["range test"]).take):
            self.rate, self.take.description = rate, f"Take the rate {rate:g}"

    def _stop(self, _button):
        try:
            if self.trials:
                self.trials.stop()
        except RuntimeError as error:  # a process that can't be ended
            self._refuse(error)
        self._look_now.set()

    def _forget(self, _button):
        if not self.following and self.trials:
            self.trials.close()
            self.trials, self.past = None, {}
            self.singles.value = self.grid.value = self.tested.value = self.running.value = ""
            self.rate = None
            self.paint()


def duration(seconds: float) -> str:
    """A duration in words, as exactly as an estimate is.

    >>> duration(7), duration(52), duration(100), duration(4_000)
    ('10 seconds', '50 seconds', '2 minutes', '1.1 hours')
    """
    if seconds < 90:
        return f"{max(round(seconds / 10), 1) * 10} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"


def _words(field):
    return field.value.replace(",", " ").split()


def _sorry(words, error):
    return page(f"<b>✗ {words}:</b> {html.escape(f'{type(error).__name__}: {error}')}")
