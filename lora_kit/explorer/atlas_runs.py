"""The runs of the atlas: what was really trained, the run that is nearest to some settings, and a name for what it shows.

`scripts/train_atlas.py` makes them; they lie in `atlas_files`. Nothing is interpolated.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FILES = Path(__file__).parent / "atlas_files"
DECAYING = ("linear", "cosine", "cosine_with_restarts", "polynomial")  # like cosine; the others are like constant
NAMES = {  # what one sees: in words
    "base": "No update yet: this is the base model.",
    "too low": "The base's flat drawings, or only a part of the style: too low a rate or rank, or too few updates.",
    "right": "The style, on words that no run trained on.",
    "learned by heart": "Trained words are drawn ever better, these new ones worse again: too long a run, or too few pictures.",
    "broken": "Spoiled drawings, or noise: the rate is too high.",
}
BROKEN = 1.1  # times the base's held-out loss, and above: worse than no LoRA at all
LEARNED = 0.5  # times the base's held-out loss, and below: the style is there
RISEN = 1.05  # times the lowest loss so far, and above: worse again
BY_HEART = 0.75  # times the held-out loss, and below, is the training pictures' where they are known by heart


def name_of(run: Mapping[str, Any], stage: int) -> str:
    """The name, a key of `NAMES`, of what a run shows at a stage, by its losses alone. The first of these that holds:

    - "base": no update is made.
    - "broken": the held-out loss is no number, or above `BROKEN` of the base's. Or it is above `LEARNED` of the base's in a run
      that is out of control: somewhere in it both losses have risen above `RISEN` of their lowest before, or ceased to be numbers.
    - "learned by heart": the held-out loss has risen above `RISEN` of its lowest so far, and the loss on the training pictures
      is below `BY_HEART` of it.
    - "too low": the held-out loss is above `LEARNED` of the base's.
    - "right": it is not.

    run: a record of the atlas. stage: an index of run["updates"].
    """
    held_out, training = ([math.inf if loss is None else loss for loss in run[name]] for name in ("fixed", "training"))
    now, base = held_out[stage], held_out[0]

    def risen(losses, stage):
        return losses[stage] > RISEN * min(losses[: stage + 1])

    learned = now <= LEARNED * base
    out_of_control = any(risen(held_out, later) and risen(training, later) for later in range(len(held_out)))
    if run["updates"][stage] == 0:
        return "base"
    if now > BROKEN * base or (out_of_control and not learned):
        return "broken"
    if risen(held_out, stage) and training[stage] < BY_HEART * now:
        return "learned by heart"
    return "right" if learned else "too low"


@dataclasses.dataclass(frozen=True)
class Place:
    """A place of the atlas: the record of a run that was made, and the index of the updates after which it is looked at.

    differs: what was asked for and is otherwise in this run, as sentences.
    """

    run: Mapping[str, Any]
    stage: int
    differs: tuple[str, ...] = ()

    @property
    def updates(self) -> int:
        """The updates after which the run is looked at."""
        return self.run["updates"][self.stage]

    @property
    def name(self) -> str:
        """What one sees; see `name_of`."""
        return name_of(self.run, self.stage)

    @property
    def words(self) -> str:
        """The run in words."""
        return f"{words_of(self.run)}, after {self.updates:,} updates"


@functools.cache
def read_atlas(folder: Path = FILES) -> dict[str, Any] | None:
    """The atlas as its file has it, or None where none is packed."""
    try:
        return json.loads((folder / "atlas.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def nearest(
    atlas: Mapping[str, Any],
    learning_rate: float,
    rank: int,
    lr_scheduler: str,
    target_modules: Iterable[str],
    updates: int,
) -> Place:
    """The run really made that is nearest to what is asked for.

    The set of modules comes first, then the kind of schedule; then the distance counts, in powers of rate and rank. Of a run's
    stages it is the one with the nearest number of updates. Of two as near it is the lower.
    """
    modules, kind = set(target_modules), schedule_kind(lr_scheduler)
    targets = min(atlas["targets"], key=lambda name: len(modules ^ set(atlas["targets"][name])))

    def distance(run):
        rates, ranks = math.log(run["learning_rate"] / learning_rate), math.log(run["rank"] / rank)
        return run["targets"] != targets, run["lr_scheduler"] != kind, math.hypot(rates, ranks)

    run = min((run for run in atlas["runs"] if run["sprite"]), key=distance)
    stage = min(range(len(run["updates"])), key=lambda stage: abs(run["updates"][stage] - updates))
    last, differs = run["updates"][-1], []
    if not math.isclose(run["learning_rate"], learning_rate, rel_tol=1e-6):
        differs.append(f"the highest rate is {learning_rate:.4g}")
    if run["rank"] != rank:
        differs.append(f"rank is {rank}")
    if run["lr_scheduler"] != lr_scheduler:
        differs.append(f"lr_scheduler is {lr_scheduler}")
    if set(atlas["targets"][run["targets"]]) != modules:
        differs.append(f"target_modules are {' '.join(target_modules)}")
    if run["updates"][stage] != updates:
        differs.append(f"this is after {updates:,} updates" + f", and no run has more than {last}" * (updates > last))
    return Place(run, stage, tuple(differs))


def schedule_kind(lr_scheduler: str) -> str:
    """The schedule of the atlas that is like this one: "cosine" where the rate falls in the course of the run, else "constant"."""
    return "cosine" if lr_scheduler in DECAYING else "constant"


def words_of(run: Mapping[str, Any]) -> str:
    """The settings of a run in words."""
    return f"learning_rate {run['learning_rate']:g}, rank {run['rank']}, {run['lr_scheduler']}, {run['targets']}"


def place_of(settings: Mapping[str, Any], updates: int, atlas: Mapping[str, Any]) -> Place:
    """The `nearest` place for a dict of `TrainingConfig` fields, which has learning_rate, rank, lr_scheduler and target_modules.

    Its other fields, as far as it has them, choose no run, but what differs is named: the images of an update, the warm-up, and
    how many updates a run has whose rate falls towards its end, as "total_updates".
    """
    asked = (settings[name] for name in ("learning_rate", "rank", "lr_scheduler", "target_modules"))
    place, made = nearest(atlas, *asked, updates), atlas["made_with"]["settings"]
    images = made["train_batch_size"]
    own = math.prod(settings.get(name, 1) for name in ("gradient_accumulation_steps", "num_processes"))
    own *= settings.get("train_batch_size", images)
    warmup, total = settings.get("lr_warmup_steps", 0), settings.get("total_updates", made["max_train_steps"])
    differs = [f"an update takes {own} images, not {images}"] if own != images else []
    if warmup and settings["lr_scheduler"] not in ("constant", "piecewise_constant"):
        differs.append(f"lr_warmup_steps is {warmup}")
    if (
        total != made["max_train_steps"] and schedule_kind(settings["lr_scheduler"]) == "cosine"
    ):  # else its rates are the same
        differs.append(f"the run has {total:,} updates, not {made['max_train_steps']}")
    return dataclasses.replace(place, differs=(*place.differs, *differs))
