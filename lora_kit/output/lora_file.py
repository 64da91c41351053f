"""The LoRA's file: pytorch_lora_weights.safetensors, written whole or not at all."""

import os
from pathlib import Path
from typing import Any

from lora_kit.config import TrainingConfig

LORA = "pytorch_lora_weights.safetensors"


def save_lora(unet: Any, folder: str | Path, peft_keys: bool = True) -> str:
    """Write the UNet's LoRA in keys that a stock pipeline loads whole; returns the file's path.

    peft_keys: PEFT's own keys and the adapter's settings are stored, so nothing is lost whatever modules were trained. False
    stores diffusers' older keys (lora.up, lora.down) and no settings, as its script does. The file appears under its name
    only when it is complete.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    part = f"{LORA}.part"
    settings = None
    if peft_keys:  # sets in a fixed order; safetensors itself writes its header's two entries in either
        settings = unet.peft_config["default"].to_dict()
        settings = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    layers = {name: tensor.detach().float().cpu() for name, tensor in get_peft_model_state_dict(unet).items()}
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers if peft_keys else convert_state_dict_to_diffusers(layers),
        weight_name=part,
        unet_lora_adapter_metadata=settings,
    )
    os.replace(Path(folder, part), Path(folder, LORA))
    return str(Path(folder, LORA))


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


def push_to_hub(output_dir: Path, config: TrainingConfig, files: list[str]) -> None:
    """Upload the files of a finished run that match the patterns, as hub_model_id and hub_token say."""
    from huggingface_hub import create_repo, upload_folder

    token = config.hub_token and config.hub_token.reveal()
    repo = create_repo(config.hub_model_id or output_dir.name, exist_ok=True, token=token)
    upload_folder(
        repo_id=repo.repo_id,
        folder_path=output_dir,
        allow_patterns=files,
        token=token,
        commit_message="End of training",
    )
