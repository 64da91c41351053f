"""Configurations to start from: each is a command line as it stands in its source, for `lora_kit.command_line.texts.read`."""

from dataclasses import dataclass

GUIDE = "https://github.com/huggingface/diffusers/blob/01310e78bf9862c563cd6f273560e6264b709ea7/docs/source/en/training/lora.md"
README = "https://github.com/huggingface/diffusers/blob/58eb52c/examples/text_to_image/README.md"
SCRIPT = "https://github.com/huggingface/diffusers/blob/58eb52c/examples/text_to_image/train_text_to_image_lora.py"
NARUTO = 1221  # pictures in lambdalabs/naruto-blip-captions, by its card


@dataclass(frozen=True)
class Preset:
    """text: a command line. num_examples: pictures in its data set. source: where it stands."""

    text: str
    num_examples: int
    source: str


PRESETS = {
    "embedded model (notebook 05)": Preset(
        "python -m lora_kit.training --style outlined --resolution 64 --rank 16 --target_modules to_q to_k to_v to_out.0 "
        "ff.net.0.proj ff.net.2 proj_in proj_out conv1 conv2 conv_shortcut conv_in conv_out --learning_rate 2e-3 "
        "--lr_scheduler cosine --lr_warmup_steps 20 --train_batch_size 8 --max_train_steps 200 --mixed_precision no --seed 0",
        399,
        "notebooks/05_train.ipynb",
    ),
    "defaults of diffusers' script": Preset(
        "accelerate launch train_text_to_image_lora.py --dataset_name lambdalabs/naruto-blip-captions "
        "--pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5",
        NARUTO,
        SCRIPT,
    ),
    "diffusers' README": Preset(
        'accelerate launch --mixed_precision="fp16" train_text_to_image_lora.py '
        "--pretrained_model_name_or_path=stable-diffusion-v1-5/stable-diffusion-v1-5 "
        "--dataset_name=lambdalabs/naruto-blip-captions --caption_column=text --resolution=512 --random_flip "
        "--train_batch_size=1 --num_train_epochs=100 --checkpointing_steps=5000 --learning_rate=1e-04 "
        "--lr_scheduler=constant --lr_warmup_steps=0 --seed=42 --output_dir=sd-naruto-model-lora "
        '--validation_prompt="cute dragon creature" --report_to=wandb',
        NARUTO,
        README,
    ),
    "diffusers' guide to LoRA": Preset(
        'accelerate launch --mixed_precision="fp16" train_text_to_image_lora.py '
        "--pretrained_model_name_or_path=stable-diffusion-v1-5/stable-diffusion-v1-5 "
        "--dataset_name=lambdalabs/naruto-blip-captions --dataloader_num_workers=8 --resolution=512 --center_crop "
        "--random_flip --train_batch_size=1 --gradient_accumulation_steps=4 --max_train_steps=15000 "
        "--learning_rate=1e-04 --max_grad_norm=1 --lr_scheduler=cosine --lr_warmup_steps=0 --output_dir=naruto "
        '--report_to=wandb --checkpointing_steps=500 --validation_prompt="A naruto with blue eyes." --seed=1337',
        NARUTO,
        GUIDE,
    ),
    "puzzle: it learns on one GPU, hardly on four": Preset(
        "accelerate launch --multi_gpu --num_processes 4 -m lora_kit.training --train_data_dir pictures "
        "--pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --learning_rate 1e-4 "
        "--lr_scheduler constant_with_warmup --lr_warmup_steps 500 --train_batch_size 4 --num_train_epochs 10",
        600,
        "made up for this page, after bmaltais/kohya_ss#735",
    ),
}
