"""The LoRA's file: pytorch_lora_weights.safetensors, written whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_kit.config import TrainingConfig
from lora_kit.system.files import write_whole

LORA = "pytorch_lora_weights.safetensors"


def save_lora(unet: Any, folder: str | Path, peft_keys: bool = True) -> str:
    """Write the UNet's LoRA in keys that a stock pipeline loads whole; returns the file's path.

    peft_keys: PEFT's own keys and the adapter's settings are stored, so nothing is lost whatever modules were trained. False
    stores diffusers' older keys (lora.up, lora.down) and no settings, as its script does. The file appears under its name
    only when it is complete; raises NotWritten where the disk doesn't take it.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    settings = None
    if peft_keys:  # sets in a fixed order
        settings = unet.peft_config["default"].to_dict()
        settings = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    layers = {name: tensor.detach().float().cpu() for name, tensor in get_peft_model_state_dict(unet).items()}
    layers = layers if peft_keys else convert_state_dict_to_diffusers(layers)

    def write(part):
        StableDiffusionPipeline.save_lora_weights(
            part.parent, unet_lora_layers=layers, weight_name=part.name, unet_lora_adapter_metadata=settings
        )
        sort_metadata(part)

    return str(write_whole(Path(folder, LORA), write))


def sort_metadata(path: Path) -> None:
    """Sort the metadata in the header of a safetensors file, which the library writes in any order: one LoRA is one file."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # else it would run into the numbers
            file.seek(8)
            file.write(text.ljust(size))


def rescue(save: Callable[[Path], str], output_dir: Path) -> str | None:
    """Save the LoRA of a run that can't write what it has to, by `save`, which takes a folder, and return its path: in
    output_dir or, where its disk is full, in a folder of its own elsewhere. None where no disk takes it."""
    for place in (
        output_dir,
        None,
        "~",
        "/dev/shm",
    ):  # None: for temporary files; the last is memory, till the machine stops
        with contextlib.suppress(Exception):  # a GPU may have failed as well
            if place == output_dir:
                return save(output_dir)
            folder = Path(tempfile.mkdtemp(prefix="lora_kit-rescued-", dir=place and os.path.expanduser(place)))
            try:
                return save(folder)
            finally:
                if not (folder / LORA).exists():
                    folder.rmdir()
    return None


def load_lora(unet: Any, folder: str | Path) -> None:
    """Give a UNet that has the adapter the LoRA of a folder. Raises ValueError for a LoRA of other modules."""
    from peft.utils import set_peft_model_state_dict
    from safetensors.torch import load_file

    stored = {name.removeprefix("unet."): tensor for name, tensor in load_file(Path(folder, LORA)).items()}
    outcome = set_peft_model_state_dict(unet, stored)
    if outcome.unexpected_keys:
        raise ValueError(f"{folder} holds a LoRA of other modules: {outcome.unexpected_keys[:3]} ...")


def save_lora_alone(accelerator: Any) -> None:
    """Have accelerator.save_state and load_state keep the LoRA instead of the whole UNet."""

    def save(models, weights, output_dir):
        if accelerator.is_main_process:
            save_lora(accelerator.unwrap_model(models[0]), output_dir)
        weights.clear()  # else accelerate would write the whole UNet as well

    def load(models, input_dir):
        load_lora(accelerator.unwrap_model(models.pop()), input_dir)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def repository(config: TrainingConfig) -> str:
    """The repository that the LoRA goes to: hub_model_id, or output_dir's name."""
    return config.hub_model_id or Path(config.output_dir).resolve().name


def upload_problem(config: TrainingConfig) -> str | None:
    """Why an upload can't work, as far as that is known without asking the Hub; None where nothing is known."""
    if not config.push_to_hub:
        return None
    from huggingface_hub import constants
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    source = "hub_model_id" if config.hub_model_id else "output_dir's name"
    try:
        validate_repo_id(repository(config))
    except HFValidationError as error:
        return f"push_to_hub: {source} {repository(config)!r} is no name for a repository: {error}; give another hub_model_id"
    if constants.HF_HUB_OFFLINE:
        return "push_to_hub: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it, or leave push_to_hub out"
    return None


def make_repository(config: TrainingConfig) -> str:
    """The name of the repository, which the Hub makes where there is none: a wrong one, or a wrong token, is known before
    training. Raises ValueError."""
    from huggingface_hub import create_repo

    token = config.hub_token and config.hub_token.reveal()
    private = config.hub_private_repo or None  # None: as the account has it; one that is there stays as it is
    try:
        return create_repo(repository(config), exist_ok=True, private=private, token=token).repo_id
    except Exception as error:  # the network's, and the Hub's own of many kinds
        raise ValueError(
            f"push_to_hub: the Hub makes no repository {repository(config)!r}: {type(error).__name__} {error}; `hf auth login`, "
            "or leave push_to_hub out"
        ) from error


def push_to_hub(output_dir: Path, config: TrainingConfig, files: list[str]) -> None:
    """Upload the files of a finished run that match the patterns. Raises ValueError, and says where the LoRA is."""
    from huggingface_hub import upload_folder

    token = config.hub_token and config.hub_token.reveal()
    try:
        name = make_repository(config)
        message = "End of training"
        upload_folder(repo_id=name, folder_path=output_dir, allow_patterns=files, token=token, commit_message=message)
    except Exception as error:
        raise ValueError(
            f"the upload failed: {type(error).__name__} {error}; the LoRA is safe in {output_dir / LORA}"
        ) from error
