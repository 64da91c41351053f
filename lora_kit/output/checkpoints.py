"""Checkpoints that are whole or not there, and what may change between the run that wrote one and the run that goes on.

A checkpoint is a folder that `accelerate` writes, with checkpoint.json, written last: the size and digest of each file,
the settings, and the world that wrote it. Without it, or where a file is not what it says, the folder is broken.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

MANIFEST, FORMAT = "checkpoint.json", 1

# settings that a run can't go on with changed, and why
FIXED = {
    "pretrained_model_name_or_path": "the LoRA belongs to that base model",
    "revision": "the LoRA belongs to that base model",
    "rank": "the stored matrices have that shape",
    "target_modules": "the stored LoRA sits in those modules",
    "lora_alpha": "it scales what the LoRA has learned",
    "use_8bit_adam": "the stored optimizer state is of the other kind",
    "match_diffusers": "random numbers are drawn in another order",
    "seed": "pictures and noise would no longer be those of one run",
    "style": "the place in the epoch is one of that data set",
    "dataset_name": "the place in the epoch is one of that data set",
    "dataset_config_name": "the place in the epoch is one of that data set",
    "train_data_dir": "the place in the epoch is one of that data set",
    "max_train_samples": "the place in the epoch is one of that data set",
    "train_batch_size": "the place in the epoch is counted in its batches",
    "gradient_accumulation_steps": "the place in the epoch is counted in its updates",
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
    "hub_token", "hub_model_id", "local_rank", "dataloader_num_workers", "no_cache", "variant",
)  # fmt: skip


def checkpoints(output_dir):
    """The checkpoint folders of a run, oldest first, whole or not."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def seal(folder, config, **about):
    """Write checkpoint.json over all files of `folder`, and have the system bring everything to the disk.

    config: the `TrainingConfig` of the run. about: what else to record, such as update, num_processes, num_examples.
    """
    folder = Path(folder)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "hub_token"}
    files = {}
    for path in sorted(path for path in folder.iterdir() if path.name != MANIFEST):
        files[path.name] = _digest(path)
        _sync(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, **about, "files": files, "config": settings}, indent=1))
    _sync(manifest)
    _sync(folder)


def _digest(path):
    content = path.read_bytes()
    return [len(content), hashlib.sha256(content).hexdigest()]


def _sync(path):
    """Have the system write what it holds back of a file or folder."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def put_in_place(part, final):
    """Give a finished folder its name; after this call it is there even if the power fails."""
    os.replace(part, final)
    _sync(Path(final).parent)


def read(folder):
    """The record of a whole checkpoint, as a dict. Raises ValueError, with the file's name, for one that is not whole."""
    folder = Path(folder)
    try:
        record = json.loads((folder / MANIFEST).read_text())
        files = record["files"]
        if record["format"] != FORMAT:
            raise ValueError(f"{folder} is a checkpoint of format {record['format']!r}; this version reads {FORMAT}")
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {MANIFEST}, which is written last: it was not finished") from None
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / MANIFEST} can't be read: {type(error).__name__} {error}") from None
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if _digest(path) != digest:
            raise ValueError(f"{path} is not as it was written: it is cut short or damaged")
    return record


def newest_whole(output_dir):
    """(the newest whole checkpoint's folder, its record, what is wrong with newer ones); (None, None, [...]) if none is."""
    problems = []
    for folder in reversed(checkpoints(output_dir)):
        try:
            return folder, read(folder), problems
        except ValueError as error:
            problems.append(str(error))
    return None, None, problems


def compare(record, config, steps):
    """What differs between the run that wrote a checkpoint and the one that goes on: (what is said, what is refused).

    record: from `read`. config, steps: the `TrainingConfig` and the `Steps` of the run that goes on. Two lists of
    sentences, both empty where nothing that counts has changed.
    """
    from lora_kit.config import TrainingConfig

    said, refused = [], []
    before, now = record["config"], json.loads(json.dumps(dataclasses.asdict(config)))
    defaults = {one.name: one.default for one in dataclasses.fields(TrainingConfig)}

    def changed(name):
        return before.get(name, defaults[name]) != now[name]

    for name, reason in FIXED.items():
        if name == "seed" and now["seed"] is None:
            continue  # taken from the run that is continued
        if changed(name) and name in MOVABLE and Path(str(now[name])).expanduser().is_dir():
            if Path(str(before.get(name))).expanduser().resolve() != Path(now[name]).expanduser().resolve():
                said.append(f"{name} was {before.get(name)!r} and is {now[name]!r}, which is taken for the same")
        elif changed(name):
            refused.append(f"{name} was {before.get(name)!r} and is {now[name]!r}: {reason}")
    for name, value, reason in (
        ("num_processes", steps.num_processes, "each process has its own random state and its own pictures"),
        ("num_examples", steps.num_examples, "the place in the epoch is one of that data set"),
    ):
        if record[name] != value:
            refused.append(f"{name} was {record[name]} and is {value}: {reason}")
    if steps.total_updates < record["update"]:
        refused.append(
            f"the run would end at update {steps.total_updates}, and {record['update']} updates are done: "
            "give more max_train_steps or num_train_epochs"
        )
    if refused:
        return [], refused
    schedule = [name for name in SCHEDULE if changed(name)]
    if schedule:
        said.append(_schedule_change(record, config, steps, schedule, before, now))
    silent = {*FIXED, *SCHEDULE, *FREE}
    said += [
        f"{name} was {before.get(name, defaults[name])!r} and is {now[name]!r} from update {record['update']} on"
        for name in now
        if name not in silent and changed(name)
    ]
    return [one for one in said if one], []


def _schedule_change(record, config, steps, names, before, now):
    """What a changed schedule does to the rate at the update where the run goes on; "" where it does nothing."""
    import numpy as np

    from lora_kit.schedules import applied_learning_rates

    update = record["update"]
    old, new = record["next_learning_rate"], None
    if update < steps.total_updates:
        new = float(applied_learning_rates(config, steps, [update])[0])
    changes = ", ".join(f"{name} {before.get(name)!r} -> {now[name]!r}" for name in names)
    text = f"{changes}: the schedule is made anew for {steps.total_updates} updates"
    if new is None:
        return f"{text}, all of which are done"
    jump = "goes on without a jump" if np.isclose(old, new, rtol=1e-6) else f"jumps from {old:.3g} to {new:.3g}"
    return f"{text}; at update {update} the rate {jump}"
