"""Checks of this machine's folders: the pictures, the output folder, and the room for what is written."""

import contextlib
import os
from pathlib import Path

from lora_kit.config import DATA_SOURCES, TrainingConfig
from lora_kit.data.batches import cut_captions
from lora_kit.data.images import count_images, load_images
from lora_kit.doctor.case import Case
from lora_kit.doctor.findings import Check, Finding, check
from lora_kit.models import load_models
from lora_kit.output.checkpoints import checkpoints, newest_whole
from lora_kit.output.folder import place_problem
from lora_kit.output.lora_file import LORA, upload_problem
from lora_kit.output.metrics import METRICS
from lora_kit.output.resume import find_checkpoint
from lora_kit.output.room import drawn_side, room, room_problem
from lora_kit.system.checks import shown

DATA = Check("data", see=("00_start_here.ipynb", "The settings"))


def count_pictures(config: TrainingConfig) -> tuple[int | None, list[Finding]]:
    """(the number of pictures, or None; findings). No style is drawn; a folder's pictures and captions are looked through."""
    source = next(name for name in DATA_SOURCES if getattr(config, name) is not None)
    value = f"{source} {getattr(config, source)!r}"
    try:
        if config.style is not None:
            count, cut = count_images(config, 0), {}
        else:
            images = load_images(config, 0)
            count, cut = len(images), _cut(config, images)
    except Exception as error:  # whatever a reader of files raises: it would end the run as well
        cure = "data that `lora_kit.data.images.load_images` can read"
        return None, [DATA.error(value, str(error) or type(error).__name__, cure)]
    if cut:
        longest = max(cut.values(), key=len)
        reason = f"{len(cut)} captions are longer than the text encoder reads; of one it drops {shown(longest)}"
        return count, [DATA.warning(value, reason, "shorter captions, what counts first")]
    return count, [DATA.fine(value, f"{count} pictures with captions")]


def _cut(config, images):
    groups = [images.captions(index) for index in range(len(images))]
    texts = {text for group in groups for text in ([group] if isinstance(group, str) else group)}
    try:
        tokenizer = load_models(config, parts=("tokenizer",)).tokenizer
    except Exception:  # which the check of the base model says
        return {}
    return cut_captions(texts, tokenizer)


@check("upload", see=("05_train.ipynb", "The settings"))
def upload(case: Case) -> list[Finding]:
    """Whether push_to_hub can work; nothing where it is not asked for."""
    if not case.config.push_to_hub:
        return []
    value, problem = f"hub_model_id {case.config.hub_model_id!r}", upload_problem(case.config)
    return [
        upload.error(value, problem, "a hub_model_id such as me/my-lora, or no push_to_hub")
        if problem
        else upload.fine(value, "the name can be one")
    ]


@check("output folder", see=("05_train.ipynb", "The settings"))
def output_folder(case: Case) -> list[Finding]:
    """Whether the output folder is free, or holds what the run is to go on with."""
    config, folder = case.config, Path(case.config.output_dir)
    value, wanted = f"output_dir {config.output_dir!r}", case.config.resume_from_checkpoint
    if problem := place_problem(config):
        return [output_folder.error(value, problem, "a folder outside that of the pictures")]
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that this disk doesn't take
        return [output_folder.error(value, str(error), "a folder of your own, with a shorter or plainer name")]
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir():
        return [output_folder.error(value, f"{parent} is a file", "a folder")]
    if not os.access(parent, os.W_OK):
        return [output_folder.error(value, f"{parent} can't be written", "a folder of your own")]
    stored = [path.name for path in checkpoints(folder)]
    earlier = [name for name in (METRICS, LORA) if (folder / name).exists()] + stored
    if wanted is None and earlier:
        reason = f"it holds another run ({', '.join(earlier[:3])}), which will be moved to earlier-N inside it"
        cure = "another output_dir, or resume_from_checkpoint latest to go on with it"
        return [output_folder.warning(value, reason, cure)]
    if wanted == "latest" and not stored:
        reason = "resume_from_checkpoint 'latest', but it holds no checkpoint: the run would start anew"
        return [output_folder.warning(value, reason, "the output_dir of the run to go on with")]
    newest, _, broken = newest_whole(folder) if wanted == "latest" else (None, None, [])
    if broken and newest:
        reason, cure = f"{broken[0]}; resumes from {newest.name}", f"{newest.name} is whole and will be taken"
        return [output_folder.warning(value, reason, cure)]
    if broken:
        return [output_folder.error(value, f"{broken[0]}; none is whole", "leave resume_from_checkpoint out")]
    if wanted not in (None, "latest"):
        try:
            find_checkpoint(folder, wanted)
        except ValueError as error:
            return [output_folder.error(value, str(error), "one of its checkpoints, or latest")]
    return [output_folder.fine(value, f"resumes from {newest.name if newest else wanted}" if wanted else "free")]


@check("room", needs=("unet", "steps"), see=("05_train.ipynb", "The settings"))
def disk_room(case: Case) -> list[Finding]:
    """Whether output_dir's disk takes what the run will write; nothing where it does."""
    update = 0
    with contextlib.suppress(ValueError):  # which `output_folder` says
        record = find_checkpoint(Path(case.config.output_dir), case.config.resume_from_checkpoint)[1]
        update = record["update"] if record else 0
    shapes = [tuple(parameter.shape) for parameter in case.unet.parameters() if parameter.requires_grad]
    problem = room_problem(case.config, room(case.config, shapes, case.steps, update, drawn_side(case.unet)), update)
    if problem is None:
        return []
    fatal, reason, cure = problem
    return [(disk_room.error if fatal else disk_room.warning)(f"output_dir {case.config.output_dir!r}", reason, cure)]
