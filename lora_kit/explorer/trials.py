"""Trials: short, real trainings of the embedded model in a process of their own, for a page that draws them meanwhile.

    trials = Trials()
    trials.start(sweep({"lr_scheduler": "cosine"}, ("learning_rate", [1e-4, 2e-3]), ("rank", [4, 16])), updates=100)
    trials.progress()  # as often as you like; trials.stop() at any time; trials.close() at the end

This is the parent's side, which needs neither torch nor numpy, so the kernel of the page stays small and can launch processes
later. The other side is `lora_kit.explorer.trial_process`.
"""

import json
import math
import os
import shutil
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_kit.explorer.process_group import ProcessGroup
from lora_kit.explorer.trial_settings import naming, sweep, trial_settings
from lora_kit.output.metrics import METRICS, new_records
from lora_kit.system.checks import whole_number

__all__ = ["ENDED", "EVENTS", "PROMPTS", "Trials", "sweep", "trial_settings"]
PROMPTS = ("fox", "octopus", "birthday cake", "hatching chick")  # held out: no trial trains on them
EVENTS = "trial.jsonl"
ENDED = ("done", "failed", "stopped")


class Trials:
    """Starts trials, one group at a time, and tells how far they are.

    folder: where they are written, each group into a folder of its own; left out: a temporary folder, which goes with
    `close`, with this object, or at the latest with the interpreter. The training ends with any of these as well.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = Path(folder or tempfile.mkdtemp(prefix="lora_kit-trials-")).resolve()
        self._lock, self._trials, self._groups, self._stopped = threading.RLock(), {}, [], False
        self._leave = weakref.finalize(self, _leave, os.getpid(), self._groups, None if folder else self.folder)

    def start(
        self,
        trials: Mapping[str, Mapping[str, Any]],
        updates: int = 100,
        sample_every: int | None = None,
        prompts: Sequence[str] = PROMPTS,
        fixed_every: int | None = None,
    ) -> dict[str, list[str]]:
        """Train the trials one after the other, in the background; returns what `trial_settings` says, {name: sentences}.

        trials: {name: dict of `TrainingConfig` fields}. updates: optimizer updates of each. Pictures of `prompts` are
        drawn before the first update, after every `sample_every` (left out: half) of them, and at the end; so is the
        fixed loss measured, after every `fixed_every` updates (left out: a tenth of them).
        Raises ValueError, naming the trial, for settings that can't work, and starts nothing then; RuntimeError while
        earlier trials run, or after `close`.
        """
        with self._lock:
            if not self._leave.alive:
                raise RuntimeError("these Trials are closed: make new ones")
            if self.progress()["running"]:
                raise RuntimeError("trials are running already: stop them, or wait for their end")
            if not trials:
                raise ValueError("trials {} is empty: give at least one name with its settings")
            made = {name: naming(name, trial_settings, settings, updates) for name, settings in trials.items()}
            sample_every = whole_number("sample_every", max(updates // 2, 1) if sample_every is None else sample_every)
            fixed_every = whole_number("fixed_every", max(updates // 10, 1) if fixed_every is None else fixed_every)
            _end(self._groups)
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="group-", dir=self.folder))
            for number, (settings, _) in enumerate(made.values()):
                settings["output_dir"] = str(folder / f"trial-{number}")
            plan = {
                "parent": os.getpid(),
                "prompts": list(prompts),
                "trials": [settings for settings, _ in made.values()],
                "samples": sorted({*range(0, updates, sample_every), updates}) if prompts else [],
                "every": fixed_every,
            }
            path, self._log, self._stopped = folder / "plan.json", folder / "log.txt", False
            path.write_text(json.dumps(plan, indent=1))
            command = [sys.executable, "-m", "lora_kit.explorer.trial_process", str(path)]
            self._groups.append(ProcessGroup(command, self._log))
            self._trials = {name: _Trial(settings) for name, (settings, _) in made.items()}
            return {name: sentences for name, (_, sentences) in made.items()}

    def progress(self) -> dict[str, Any]:
        """{"running": bool, "trials": {name: trial}} of the trials started last; reads only what is new.

        A trial: state ("waiting", "starting", "running", "done", "failed" or "stopped"); total_updates; of each update
        the lists updates (0 is the first), loss, lr, grad_norm; fixed, (updates done, `fixed_loss`); samples, (updates
        done, path of a PNG); target, the path of a PNG of the style's own pictures of the prompts, or None; error, a line
        or None; seconds since it left "waiting". An update counts what went before it, updates done what went before the
        measurement: (0, loss) in fixed is the base model's. A fixed loss that is no number is nan; a norm
        that wasn't measured is None.
        """
        with self._lock:
            statuses = [group.poll() for group in self._groups]  # before reading: then nothing comes after it
            for trial in self._trials.values():
                trial.read()
                if None not in statuses and trial.record["state"] not in ENDED:
                    error = None if self._stopped else f"the process ended with status {statuses[-1]}; see {self._log}"
                    trial.set("stopped" if self._stopped else "failed", time.time(), error)
            running = any(trial.record["state"] not in ENDED for trial in self._trials.values())
            return {"running": running, "trials": {name: trial.copy() for name, trial in self._trials.items()}}

    def stop(self) -> None:
        """End the process and all that it started, and return when they are gone. What has come so far stays, and `start`
        works again."""
        with self._lock:
            self._stopped = self.progress()["running"]
            _end(self._groups, keep=True)
            self.progress()

    def close(self) -> None:
        """Stop, and remove the temporary folder."""
        with self._lock:
            self.stop()
            self._leave()


class _Trial:
    """What has been read of one trial so far: `record`, as of `Trials.progress`."""

    def __init__(self, settings):
        self.folder, self.places, self.began = Path(settings["output_dir"]), {EVENTS: 0, METRICS: 0}, None
        lists = {name: [] for name in ("updates", "loss", "lr", "grad_norm", "fixed", "samples")}
        self.record = dict(
            state="waiting", total_updates=settings["max_train_steps"], **lists, target=None, error=None, seconds=0.0
        )

    def read(self):
        if self.record["state"] in ENDED:
            return
        try:
            records = self.new(EVENTS) + self.new(METRICS)  # the last event comes after the last metrics
        except (OSError, ValueError) as error:
            self.set("failed", time.time(), f"what it wrote can't be read: {error}")
            return
        for record in records:
            if "state" in record:
                self.set(**record)
            if "update" in record:
                self.record["updates"].append(record["update"])
                for name in ("loss", "lr", "grad_norm"):
                    self.record[name].append(record[name])
            self.record["target"] = record.get("target", self.record["target"])
            if "fixed" in record:
                done, loss = record["fixed"]
                self.record["fixed"].append((done, math.nan if loss is None else loss))  # JSON has no nan
            if "samples" in record:
                self.record["samples"].append(tuple(record["samples"]))
        if self.record["state"] not in ENDED:
            self.record["seconds"] = time.time() - (self.began or time.time())

    def new(self, name):
        records, self.places[name] = new_records(self.folder / name, self.places[name])
        return records

    def set(self, state, time, error=None):
        self.began = self.began or time
        self.record.update(state=state, error=error, seconds=time - self.began)

    def copy(self):
        return {name: value.copy() if isinstance(value, list) else value for name, value in self.record.items()}


def _end(groups, keep=False):
    """End processes with all that they have started; keep: in the list, to be asked for their status."""
    for group in groups:
        group.end()
    if not keep:
        groups.clear()


def _leave(owner, groups, folder):
    """What is left when a `Trials` goes, of which a process that was forked from its owner knows nothing."""
    if os.getpid() == owner:
        _end(groups)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
