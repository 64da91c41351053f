"""How a run resumes from a checkpoint: which one, what may have changed since, and the state that is restored."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from lora_kit.config import FIELDS, TrainingConfig
from lora_kit.output.base_model import base_identity, exchanged
from lora_kit.output.checkpoints import checkpoints, newest_whole, read
from lora_kit.schedules import Schedule
from lora_kit.steps import Steps

# settings that a resumed run can't have changed, and why
FIXED = {
    "pretrained_model_name_or_path": "the LoRA belongs to that base model",
    "revision": "the LoRA belongs to that base model",
    "rank": "the stored matrices have that shape",
    "target_modules": "the stored LoRA sits in those modules",
    "lora_alpha": "it scales what the LoRA has learned",
    "use_8bit_adam": "the stored optimizer state is of the other kind",
    "match_diffusers": "random numbers are drawn in another order",
    "seed": "pictures and noise would no longer be those of one run",
    "style": "its place in the epoch counts only for that data set",
    "dataset_name": "its place in the epoch counts only for that data set",
    "dataset_config_name": "its place in the epoch counts only for that data set",
    "train_data_dir": "its place in the epoch counts only for that data set",
    "max_train_samples": "its place in the epoch counts only for that data set",
    "train_batch_size": "its place in the epoch is counted in its batches",
    "gradient_accumulation_steps": "its place in the epoch is counted in its updates",
}
MOVABLE = ("pretrained_model_name_or_path", "train_data_dir", "dataset_name")  # a folder may have another path now
SCHEDULE = (
    "learning_rate", "scale_lr", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "lr_step_rules",
    "max_train_steps", "num_train_epochs",
)  # fmt: skip
# settings of which nothing in what is trained depends
FREE = (
    "output_dir", "cache_dir", "logging_dir", "report_to", "checkpointing_steps", "checkpoints_total_limit",
    "resume_from_checkpoint", "validation_prompt", "num_validation_images", "validation_epochs", "push_to_hub",
    "hub_token", "hub_model_id", "hub_private_repo", "dataloader_num_workers", "no_cache", "variant", "allow_nan",
    "ddp_timeout",
)  # fmt: skip


def find_checkpoint(output_dir: Path, wanted: str | None) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """(the checkpoint that resume_from_checkpoint names, its record, sentences to be said).

    A name is looked for in output_dir; a path with a folder in it is that very checkpoint, also of another run. (None, None,
    ...) where nothing is to be resumed, or "latest" finds nothing. Raises ValueError for one that isn't there or is broken,
    before anything is loaded.
    """
    if wanted is None:
        return None, None, []
    if wanted == "latest":
        folder, record, problems = newest_whole(output_dir)
        if problems and folder is None:
            raise ValueError(
                f"resume_from_checkpoint 'latest': no checkpoint in {output_dir} is whole ({'; '.join(problems)}); "
                "leave resume_from_checkpoint out to start anew"
            )
        said = [f"warning: passed over: {problem}" for problem in problems]
        if folder is None:
            said = [f"resume_from_checkpoint 'latest' finds no checkpoint in {output_dir}: the run starts anew"]
        return folder, record, said
    path = Path(wanted)
    named = not os.path.dirname(wanted.rstrip("/"))  # which Path doesn't tell: it drops a leading "./"
    elsewhere = not named and path.parent.resolve() != output_dir.resolve()
    path = path if elsewhere else output_dir / path.name
    if path not in checkpoints(path.parent):
        names = ", ".join(folder.name for folder in checkpoints(output_dir)) or "none"
        raise ValueError(
            f"resume_from_checkpoint {wanted!r} is not there; output_dir {str(output_dir)!r} holds {names}"
        )
    said = [f"resumes from {path}, which is not in output_dir {str(output_dir)!r}"] if elsewhere else []
    return path, read(path), said


def restore(folder: Path, accelerator: Any, optimizer: Any, lr_scheduler: Any, config: TrainingConfig) -> None:
    """Everything as it was when the checkpoint was written, but the optimizer's settings, which are this configuration's."""
    import torch

    try:
        accelerator.load_state(folder)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of each library its own, which name no file
        reason = f"{type(error).__name__} {str(error).partition(chr(10))[0]}"
        raise ValueError(
            f"{_unreadable(folder)} can't be loaded: {reason}; resume from an older "
            "checkpoint, or leave resume_from_checkpoint out to start anew"
        ) from error
    if not config.behaviour.applies_new_settings:
        return
    schedule, peak = lr_scheduler.scheduler, config.peak_learning_rate(accelerator.num_processes)
    schedule.base_lrs = [peak] * len(schedule.base_lrs)
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = peak, peak * factor(schedule.last_epoch)
        group["betas"], group["eps"] = (config.adam_beta1, config.adam_beta2), config.adam_epsilon
        group["weight_decay"] = config.adam_weight_decay


def _unreadable(folder):
    """The file of a checkpoint that torch can't read, or the folder where each by itself can be read."""
    import torch

    for path in sorted(folder.glob("*.bin")):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            return path
    return folder


def check_resumed(
    folder: Path | None,
    record: dict[str, Any] | None,
    config: TrainingConfig,
    steps: Steps,
    data: str | None = None,
    precision: str | None = None,
) -> list[str]:
    """What has changed since a checkpoint was written, as sentences. Raises ValueError for what can't be resumed.

    data: the identity of the pictures and captions. precision: which the run has, from its setting or from the environment.
    """
    if record is None:
        return []
    changes, refusals = compare(record, config, steps)
    if not refusals and data and record.get("data", data) != data:
        refusals = [
            "pictures or captions are not those of the run that wrote it: its place in the epoch counts only for those"
        ]
    if not refusals and (others := exchanged(record["base"], base_identity(config)) if record.get("base") else []):
        refusals = [
            f"unet/{others[0]} of pretrained_model_name_or_path {config.pretrained_model_name_or_path!r} is not that of the run that "
            "wrote it: the LoRA belongs to that base model; give a folder with the model as it was then"
        ]
    if refusals:
        raise ValueError(f"{folder} can't be resumed: {'; '.join(refusals)}")
    before = record.get("mixed_precision", precision)
    if precision and before != precision and record["config"].get("mixed_precision") == config.mixed_precision:
        changes.append(
            f"the environment's mixed_precision was {before!r} and is {precision!r} from update {record['update']} on"
        )
    return changes


def compare(record: dict[str, Any], config: TrainingConfig, steps: Steps) -> tuple[list[str], list[str]]:
    """What differs between the run that wrote a checkpoint and the one that resumes it: (changes, refusals).

    record: from `checkpoints.read`. config, steps: of the run that resumes. Two lists of sentences, both empty where
    nothing that counts has changed; where there are refusals, changes are left out.
    """
    changes, refusals = [], []
    before, now = record["config"], json.loads(json.dumps(dataclasses.asdict(config)))

    def changed(name):
        return before.get(name, FIELDS[name].default) != now[name]

    for name, reason in FIXED.items():
        if name == "seed" and now["seed"] is None:
            continue  # taken from the run that is resumed
        if changed(name) and name in MOVABLE and Path(str(now[name])).is_dir():
            if Path(str(before.get(name))).resolve() != Path(now[name]).resolve():
                changes.append(f"{name} was {before.get(name)!r} and is {now[name]!r}, which is taken to be the same")
        elif changed(name):
            refusals.append(f"{name} was {before.get(name)!r} and is {now[name]!r}: {reason}")
    for name, value, reason in (
        ("num_processes", steps.num_processes, "each process has its own random state and its own pictures"),
        ("num_examples", steps.num_examples, "its place in the epoch counts only for that data set"),
    ):
        if record[name] != value:
            refusals.append(f"{name} was {record[name]} and is {value}: {reason}")
    if steps.total_updates < record["update"]:
        refusals.append(
            f"the run would end at update {steps.total_updates}, and {record['update']} updates are done: "
            "raise max_train_steps or num_train_epochs"
        )
    if refusals:
        return [], refusals
    schedule = [name for name in SCHEDULE if changed(name)]
    if schedule:
        changes.append(_schedule_change(record, config, steps, schedule, before, now))
    silent = {*FIXED, *SCHEDULE, *FREE}
    changes += [
        f"{name} was {before.get(name, FIELDS[name].default)!r} and is {now[name]!r} from update {record['update']} on"
        for name in now
        if name not in silent and changed(name)
    ]
    return changes, []


def _schedule_change(record, config, steps, names, before, now):
    """What a changed schedule does to the rate at the update where the run is resumed."""
    update, old, new = record["update"], record["next_learning_rate"], None
    if update < steps.total_updates:
        new = Schedule.of(config, steps).rate(update)
    changes = ", ".join(f"{name} {before.get(name)!r} -> {now[name]!r}" for name in names)
    text = f"{changes}: the schedule is made anew for {steps.total_updates} updates"
    if new is None:
        return f"{text}, all of which are done"
    jump = (
        "continues without a jump"
        if math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-8)
        else f"jumps from {old:.3g} to {new:.3g}"
    )
    return f"{text}; at update {update} the rate {jump}"
