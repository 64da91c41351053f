"""The check of the base model's name, for known models that the loop can't train; `lora_kit.doctor.model` reads all others."""

from lora_kit.doctor.case import Case
from lora_kit.doctor.findings import Finding, check

OTHER_KINDS = {  # pretrained_model_name_or_path: what it is, and diffusers' script that trains a LoRA of it
    "stabilityai/stable-diffusion-xl-base-1.0": ("SDXL", "train_text_to_image_lora_sdxl.py"),
    "stabilityai/sdxl-turbo": ("SDXL", "train_text_to_image_lora_sdxl.py"),
    "stabilityai/stable-diffusion-3-medium-diffusers": ("Stable Diffusion 3", "train_dreambooth_lora_sd3.py"),
    "stabilityai/stable-diffusion-3.5-medium": ("Stable Diffusion 3", "train_dreambooth_lora_sd3.py"),
    "stabilityai/stable-diffusion-3.5-large": ("Stable Diffusion 3", "train_dreambooth_lora_sd3.py"),
    "black-forest-labs/FLUX.1-dev": ("FLUX.1", "train_dreambooth_lora_flux.py"),
}


@check("base model", see=("00_start_here.ipynb", "A LoRA run on one page"))
def base_model(case: Case) -> list[Finding]:
    """Whether the base's name shows that it is of another kind; nothing for your own loop's model."""
    name = case.config.pretrained_model_name_or_path
    if case.unet is not None or name not in OTHER_KINDS:
        return []
    kind, script = OTHER_KINDS[name]
    reason = f"it is {kind}, which neither this loop nor diffusers' train_text_to_image_lora.py can train"
    cure = f"diffusers' {script} for this model, or a model of Stable Diffusion 1 or 2 here"
    return [base_model.error(f"pretrained_model_name_or_path {name!r}", reason, cure)]
