"""The room that a run will need on output_dir's disk, estimated before any heavy work."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lora_kit.config import TARGET_MODULES, TrainingConfig
from lora_kit.memory import shapes_on
from lora_kit.models import describe_unet
from lora_kit.optimizers import expected_state_bytes
from lora_kit.output.checkpoints import checkpoints, number
from lora_kit.steps import Steps
from lora_kit.system.files import free_bytes, in_bytes
from lora_kit.system.modules import check_targets, is_meant

# bytes beside the numbers, each a little more than was measured: of a LoRA's file its settings and each tensor's name; of an
# optimizer's each tensor's entries, in 32 bits and in 8; of a checkpoint its small files and each process's random states; of a
# run each update's lines in the metrics and a tracker's log
SETTINGS, NAME, ENTRIES, SMALL_FILES, RANDOM_STATES, LINES = 4_000, 180, (850, 1_150), 10_000, 16_000, 400


@dataclass(frozen=True)
class Room:
    """What a run writes, in bytes: the LoRA, one checkpoint, how many `checkpoints` stand there at once, and the rest."""

    lora: int
    checkpoint: int
    checkpoints: int
    rest: int

    @property
    def least(self) -> int:
        """Without which the run is of no use: the LoRA and, where any is written, a checkpoint."""
        return self.lora + self.checkpoint * min(self.checkpoints, 1)

    @property
    def most(self) -> int:
        """All that stands there at once."""
        return self.lora + self.checkpoint * self.checkpoints + self.rest


def room(
    config: TrainingConfig, shapes: Sequence[tuple[int, ...]], steps: Steps, first_update: int = 0, drawn: int = 0
) -> Room:
    """The `Room` of a run, a little more than it will take.

    shapes: of the LoRA's tensors. first_update: of a run that is resumed; its checkpoints in output_dir are there. drawn: pixels
    of a side of the pictures that the model draws of itself, where that is more than the resolution.
    """
    lora = 4 * sum(map(math.prod, shapes)) + NAME * len(shapes) + SETTINGS
    state = expected_state_bytes(shapes, config.use_8bit_adam) + ENTRIES[config.use_8bit_adam] * len(shapes)
    checkpoint = lora + state + SMALL_FILES + RANDOM_STATES * steps.num_processes
    written, limit = steps.total_updates // config.checkpointing_steps, config.checkpoints_total_limit
    written -= first_update // config.checkpointing_steps
    if limit:  # the oldest goes after the newest stands
        there = sum(number(path) <= first_update for path in checkpoints(config.output_dir))
        written = min(written, max(limit + 1 - there, 1))
    pictures = 0
    if config.validation_prompt:  # as large as the model draws, and as if they could not be compressed
        side = max(config.resolution, drawn)
        pictures = 3 * side**2 * config.num_validation_images * math.ceil(steps.epochs / config.validation_epochs)
    return Room(lora, checkpoint, written, pictures + LINES * (steps.total_updates - first_update))


def drawn_side(unet: Any) -> int:
    """Pixels of a side of the pictures that a UNet draws of itself; 0 where its config doesn't say."""
    latent = getattr(getattr(unet, "config", None), "sample_size", 0)
    return 8 * latent if isinstance(latent, int) else 0


def room_problem(config: TrainingConfig, needed: Room, first_update: int = 0) -> tuple[bool, str, str] | None:
    """(whether not even the least fits, what is wrong, the cure) where output_dir's disk has no room for the run, else None."""
    try:
        free = free_bytes(config.output_dir)
    except OSError:  # which will be said by who writes there
        return None
    place = f"the disk of output_dir {config.output_dir!r} has {in_bytes(free)} free"
    parts = f"the LoRA {in_bytes(needed.lora)}, a checkpoint {in_bytes(needed.checkpoint)}"
    if free < needed.least:
        return (
            True,
            f"{place}, and this run needs {in_bytes(needed.least)}: {parts}",
            "make room, or give another output_dir",
        )
    if free >= needed.most:
        return None
    fit = max(free - needed.lora - needed.rest, 0) // needed.checkpoint if needed.checkpoints else 0
    every = config.checkpointing_steps
    full = (
        f", so the disk fills up at about update {(first_update // every + fit + 1) * every}"
        if fit < needed.checkpoints
        else ""
    )
    less = f"checkpoints_total_limit {fit - 1}" if fit > 1 else "a larger checkpointing_steps"
    less = less if needed.checkpoints else "a larger validation_epochs"
    reason = (
        f"{place}, and this run will write {in_bytes(needed.most)} ({needed.checkpoints} checkpoints; {parts}){full}"
    )
    return False, reason, f"make room, or set {less}"


def check_room(config: TrainingConfig, steps: Steps, first_update: int = 0) -> tuple[Room | None, str | None]:
    """(the `Room` of the run, what is wrong where later checkpoints won't fit on output_dir's disk). Raises ValueError, with both
    figures, where not even the LoRA and one checkpoint do. (None, None) for a base model that can't be described: it is left to
    whoever loads it."""
    try:
        about = json.dumps(describe_unet(config))
    except Exception:  # of each library its own
        return None, None
    adapted = _adapted(about, config.target_modules)
    if adapted is None:
        return None, None
    modules, drawn = adapted
    needed = room(config, shapes_on(modules, config.rank), steps, first_update, drawn)
    problem = room_problem(config, needed, first_update)
    if problem is None:
        return needed, None
    fatal, reason, cure = problem
    if fatal:
        raise ValueError(f"{reason}; {cure}")
    return needed, f"{reason}; {cure}"


@lru_cache(maxsize=4)  # of one notebook's runs most have the same
def _adapted(about, target_modules):
    """(what a LoRA adapts, as `shapes_on` takes it, pixels of a side that is drawn) of the UNet that unet/config.json describes; None
    where that is no UNet. It is made on the meta device, which takes no memory and draws nothing."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        try:
            unet = UNet2DConditionModel.from_config(json.loads(about))
        except Exception:  # whatever its parts raise
            return None
    check_targets(unet, target_modules, TARGET_MODULES)
    modules = [
        (name, tuple(module.weight.shape), 1)
        for name, module in unet.named_modules()
        if any(is_meant(name, target) for target in target_modules)
    ]
    return modules, drawn_side(unet)
