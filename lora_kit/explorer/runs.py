"""The explorer's real trainings: single runs, laid over one another, and sweeps, watched by a thread until they end."""

import contextlib
import html
import threading
from typing import Any

from lora_kit.explorer.panels import running_html, runs_html
from lora_kit.explorer.state import State, describe
from lora_kit.explorer.widgets import BUTTON, NARROW_LABEL, Quiet, labelled, titled
from lora_kit.system.html import page

LOOK_EVERY = 0.3  # seconds
ABOUT = (
    "<i>Train this</i> makes one run with the settings of this page, and lays it over the runs before. <i>Sweep</i> makes one for "
    "each pair of the rates and ranks beside it. The model learns the style of the settings, on the CPU."
)


class Runs:
    """The widgets under "Train the embedded model with it". `trials`: the `Trials` that run, or None; `following`: the thread that
    watches them, or None; `past`: the single runs that have ended, as of `Trials.progress`; `box`: the widget that holds all."""

    def __init__(self, state: State, quiet: Quiet):
        import ipywidgets

        self.state, self.quiet, self.trials, self.following, self.past = state, quiet, None, None, {}
        self._look_now = threading.Event()
        text = "Updates of each run; the warm-up keeps its share."
        self.length = labelled(
            ipywidgets.IntSlider, "updates of a run", text, style=NARROW_LABEL, min=10, max=400, step=10, value=200
        )
        self.train, self.stop, self.clear, self.sweep = (
            ipywidgets.Button(description=words, layout=BUTTON)
            for words in ("Train this", "Stop", "Forget the runs", "Sweep")
        )
        self.length.observe(self._say_length, "value")
        self._say_length()
        look = {"style": NARROW_LABEL, "layout": {"width": "20em"}}
        self.rates = labelled(ipywidgets.Text, "learning rates", "The sweep's columns.", value="3e-4 1e-3 3e-3", **look)
        self.ranks = labelled(ipywidgets.Text, "ranks", "The sweep's rows.", value="1 4 16", **look)
        for button, action in ((self.train, self._train), (self.clear, self._forget), (self.sweep, self._sweep)):
            button.on_click(quiet.hears(action))
        self.stop.on_click(self._stop)  # waits for the trainings' end, and the thread that watches must not wait for it
        self.running, self.singles, self.grid = (ipywidgets.HTML() for _ in range(3))
        self.results = ipywidgets.VBox([self.singles, self.grid])
        row = {"flex_flow": "row wrap"}
        self.box = titled(
            "Train the embedded model with it",
            ipywidgets.HTML(page(ABOUT)),
            self.length,
            ipywidgets.HBox([self.train, self.stop, self.clear], layout=row),
            ipywidgets.HBox([self.rates, self.ranks, self.sweep], layout=row),
            self.running,
            self.results,
        )
        self.box.layout.max_width = "1100px"

    def paint(self) -> None:
        """Which buttons can be pressed as the state and the trainings are."""
        embedded = self.state.values["pretrained_model_name_or_path"] == "embedded"
        able = embedded and not self.state.summary["errors"] and not self.following
        self.train.disabled = self.sweep.disabled = not able
        self.stop.disabled = not self.following
        if not self.following:
            self.running.value = "" if embedded else page("Only the embedded model is trained from this page.")

    def _say_length(self, _change=None):
        for button, runs in ((self.train, "One run"), (self.sweep, "Runs")):
            button.tooltip = f"{runs} of {self.length.value} updates."

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
            self._start({f"run {len(self.past) + 1}: {describe(made)}": self._settings()})

    def _sweep(self, _button):
        from lora_kit.explorer.trials import sweep

        try:
            rates = [float(word) for word in self.rates.value.replace(",", " ").split()]
            ranks = [int(word) for word in self.ranks.value.replace(",", " ").split()]
            trials = sweep(self._settings(), ("learning_rate", rates), ("rank", ranks))
        except ValueError as error:
            self._refuse(f"learning rates {self.rates.value!r} and ranks {self.ranks.value!r}: {error}")
        else:
            self._start(trials, (ranks, rates))

    def _refuse(self, error):
        self.running.value = page(f"<b>✗</b> {html.escape(str(error))}")

    def _start(self, trials: dict[str, dict], grid: Any = None) -> None:
        """Train, and watch. grid: (ranks, rates) of a sweep."""
        from lora_kit.explorer.trials import Trials

        if self.following:
            return
        try:
            self.trials = self.trials or Trials()
            sentences = self.trials.start(trials, updates=self.length.value)
        except (OSError, ValueError, RuntimeError) as error:
            self._refuse(error)
            return
        self._look_now.clear()
        self.results.children = [self.grid, self.singles] if grid else [self.singles, self.grid]
        words = "; ".join(next(iter(sentences.values())))
        self.following = threading.Thread(target=self._watch, args=(self.trials, grid, words), daemon=True)
        self.paint()
        self.following.start()

    def _watch(self, trials, grid, words):
        """Show what the runs have done until they end, and then, whatever happens, let others be started."""
        line = ""
        try:
            running = True
            while running:
                progress = trials.progress()
                running = progress["running"]
                line = running_html(progress, words)
                shown = progress["trials"] if grid else self.past | progress["trials"]
                try:
                    (self.grid if grid else self.singles).value = runs_html(shown, grid)
                except Exception as error:
                    line += _sorry("The runs can't be drawn", error)
                self.running.value = line
                if running:
                    self._look_now.wait(LOOK_EVERY)
            if not grid:
                self.past = {name: run for name, run in shown.items() if run["updates"]}
        except Exception as error:
            line += _sorry("The runs can't be followed, and were stopped", error)
            with contextlib.suppress(Exception):
                trials.stop()
        finally:
            with self.quiet:
                self.following = None
                self.paint()
                self.running.value = line

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
            self.singles.value = self.grid.value = self.running.value = ""


def _sorry(words, error):
    return page(f"<b>✗ {words}:</b> {html.escape(f'{type(error).__name__}: {error}')}")
