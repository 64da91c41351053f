"""What the explorer shows, without a widget: the settings, how they are looked at, and what can be done to them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lora_kit.command_line.texts import read
from lora_kit.config import DATA_SOURCES, FIELDS, TrainingConfig, kind_of
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.summary import summarize
from lora_kit.steps import Steps
from lora_kit.system.checks import whole_number

FIRST = "embedded model (notebook 05)"  # the preset that the explorer begins with
START, PICTURES = dict(read(PRESETS[FIRST].text).settings), PRESETS[FIRST].num_examples
RULES = "1:100,0.1:200,0.01"  # what piecewise_constant begins with
COUNTS = ("num_examples", "num_processes")  # no settings of `TrainingConfig`, but turned like them
PINS = 3
AS_IF = "as lora_kit would apply it"  # where the words are another script's, whose schedule is its own
PASTED = "what was pasted"
REFUSED = (TypeError, ValueError, ArithmeticError, RecursionError)  # what a value or a text that can't be raises


@dataclasses.dataclass
class State:
    """The settings and how they are looked at; all that a page shows follows from this.

    settings: a dict of `TrainingConfig` fields, each checked by itself; a style is made up where no data set is named.
    axis: a key of `lora_kit.steps.AXES`. log: whether rates are drawn on a logarithmic scale. cursor: the update whose rates
    are read; left out, the middle of the run, which it stays until it is moved. trainers: keys of `TRAINERS`. pinned: (label,
    curve), `PINS` at most.
    started: the preset, or `PASTED`, as long as the settings are still its; else None. script: another trainer, a key of
    `TRAINERS` whose curve is drawn, or another script, whose command was taken: the run's curve says that it is lora_kit's;
    else None. summary: what `summarize` says. draft: the settings with the defaults of all others, whether or not they go
    together.

    Raises ValueError for a value that no run could have, TypeError for a name that is no setting. A method that raises has
    changed nothing.

    >>> state = State({"learning_rate": 1e-3, "train_batch_size": 4}, num_examples=400)
    >>> state.turn("max_train_steps", 300)
    True
    >>> state.summary["total_updates"], state.cursor
    (300, 150)
    """

    settings: dict[str, Any]
    num_examples: int = PICTURES
    num_processes: int = 1
    axis: str = "updates"
    log: bool = False
    cursor: int | None = None
    trainers: tuple[str, ...] = ()
    pinned: list[tuple[str, dict]] = dataclasses.field(default_factory=list)
    started: str | None = None
    script: str | None = None
    summary: dict[str, Any] = dataclasses.field(init=False, repr=False, compare=False)
    draft: TrainingConfig = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        self._become(self.settings, self.num_examples, self.num_processes, self.cursor)

    @property
    def values(self) -> dict[str, Any]:
        """The value of every setting, given or not, and of `COUNTS`."""
        return vars(self.draft) | {name: getattr(self, name) for name in COUNTS}

    def turn(self, name: str, value: Any) -> bool:
        """Give a setting, or one of `COUNTS`, a value; returns whether that changed anything.

        An empty text, and 0 for max_train_steps, leave out what may be left out; target_modules may be a text of names.
        """
        settings, counts = dict(self.settings), {count: getattr(self, count) for count in COUNTS}
        if name in COUNTS:
            counts[name] = value
        elif name == "target_modules" and isinstance(value, str):
            settings[name] = tuple(value.split())
        elif name in FIELDS and kind_of(name)[1] and (value == "" or (name == "max_train_steps" and value == 0)):
            settings[name] = None
        else:
            settings[name] = value
        if name == "lr_scheduler" and value == "piecewise_constant":
            settings["lr_step_rules"] = settings.get("lr_step_rules") or RULES
        elif name == "lr_scheduler" and settings.get("lr_step_rules") == RULES:
            del settings["lr_step_rules"]
        if vars(TrainingConfig.draft(**settings)) | counts == self.values:
            return False
        middle = self.summary["total_updates"] // 2
        self._become(settings, **counts, cursor=None if self.cursor == middle else self.cursor)
        self.started = None
        return True

    def take(self, text: str, num_examples: int | None = None, name: str = PASTED) -> list[str]:
        """Become what a command line, Python or YAML asks for; returns what is to be said of the reading.

        num_examples: pictures in the data set where the text doesn't say; left out, as many as before. name: for `started`.
        """
        reading = read(text)
        sentences, counts = list(reading.sentences), (reading.num_examples, num_examples, self.num_examples)
        if reading.num_examples is None and num_examples is None:
            sentences.append(f"How many pictures it has the text doesn't say: num_examples stays {self.num_examples}")
        pictures = next(count for count in counts if count is not None)
        others = (key for key in self.trainers if key not in (self.script, reading.trainer))
        trainers = (*others, *([reading.trainer] if reading.trainer else []))
        how = dict(trainers=trainers, script=reading.trainer or reading.script)
        self._become(dict(reading.settings), pictures, reading.num_processes, **how)
        self.started = name
        return sentences

    def take_preset(self, name: str) -> list[str]:
        """Become a configuration of `PRESETS`; returns what is to be said of it."""
        preset = PRESETS[name]
        return [*self.take(preset.text, preset.num_examples, name), f"Source: {preset.source}"]

    def look(self, **how: Any) -> None:
        """Look at it otherwise: axis, log, cursor, trainers, as in the fields."""
        if how.keys() & {"cursor", "trainers"}:
            of_summary = {name: how.pop(name) for name in ("cursor", "trainers") if name in how}
            self._become(self.settings, self.num_examples, self.num_processes, **{"cursor": self.cursor} | of_summary)
        for name, value in how.items():
            setattr(self, name, value)

    @property
    def change(self) -> dict[str, Any]:
        """The settings that cure the worst of what the doctor found; empty where nothing can be cured by settings."""
        for finding in self.summary["findings"]:
            change = finding["change"] or {}
            if finding["status"] != "fine" and any(
                getattr(self.draft, name) != value for name, value in change.items()
            ):
                return change
        return {}

    def mend(self) -> None:
        """Take the settings of `change`."""
        if change := self.change:
            self._become(self.settings | change, self.num_examples, self.num_processes)
            self.started = None

    def pin(self) -> None:
        """Keep the curve of these settings beside those to come, while there is room."""
        if self.summary["curves"] and len(self.pinned) < PINS:
            label = f"pinned {'ABC'[len(self.pinned)]}: {describe(self.settings, self.num_processes)}"
            self.pinned.append((label, self.summary["curves"][0]))

    def _become(self, settings, num_examples, num_processes, cursor=None, **how):
        """Take all of these, with their summary, or raise and take none. how: trainers, script, where they change."""
        settings = {"learning_rate": 1e-4} | settings
        if not any(settings.get(source) for source in DATA_SOURCES):
            settings["style"] = "outlined"
        draft = TrainingConfig.draft(**settings)
        settings = {name: getattr(draft, name) for name in settings}
        trainers, script = how.get("trainers", self.trainers), how.get("script", self.script)
        counts = whole_number("num_examples", num_examples), whole_number("num_processes", num_processes)
        guess = _middle(draft, *counts) if cursor is None else cursor
        summary = summarize(settings, *counts, trainers, guess)
        total = summary["total_updates"]
        fitting = (total // 2 if cursor is None else min(cursor, total - 1)) if total else cursor
        if fitting != guess:
            summary = summarize(settings, *counts, trainers, fitting)
        self.settings, self.draft, (self.num_examples, self.num_processes) = settings, draft, counts
        self.trainers, self.script, self.cursor, self.summary = trainers, script, fitting, summary
        if script and summary["curves"]:
            summary["curves"][0]["label"] = AS_IF


def _middle(draft, num_examples, num_processes):
    """The update in the middle of a run; None where nothing can be counted."""
    try:
        return Steps.of(draft, num_examples, num_processes).total_updates // 2
    except REFUSED:
        return None


def describe(settings: Mapping[str, Any], num_processes: int = 1) -> str:
    """The settings that most often make the difference, in a line."""
    draft = TrainingConfig.draft(**settings)
    parts = [draft.lr_scheduler, f"rate {draft.learning_rate:.3g}"]
    parts += [f"warm-up {draft.warmup_updates}"] if draft.warmup_updates else []
    parts += [f"rank {draft.rank}"]
    parts += [f"{num_processes} processes"] if num_processes > 1 else []
    return ", ".join(parts)
