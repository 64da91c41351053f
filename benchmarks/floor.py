"""The floor: the least work that makes the reference's update, recorded as benchmarks/run_one.py records.

    python benchmarks/floor.py RECORD.jsonl --pretrained_model_name_or_path FOLDER --max_train_steps 30 ...

Loads the UNet alone, adds the LoRA as diffusers' script does, and repeats forward, mean squared error, backward, AdamW
on one random batch of the right shapes: no pictures, no VAE, no text encoder, no accelerate. torch's defaults
throughout, so a loop with the same arithmetic can't be faster, however well it is fed.
"""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

from run_one import Record


def parse_args():
    parser = argparse.ArgumentParser(description="Time the UNet's update alone.")
    parser.add_argument("record", help="The file to write: one JSON line an update.")
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="A folder in diffusers format.")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--train_batch_size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--max_train_steps", type=int, default=30)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no")
    return parser.parse_args()


def random_batch(model, resolution, batch):
    """Noisy latents, the noise to predict, timesteps and hidden states, in the shapes that the model's parts make."""
    import torch

    vae, text_encoder, scheduler = (
        json.loads(Path(model, part).read_text())
        for part in ("vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
    )
    side = resolution // 2 ** (len(vae["block_out_channels"]) - 1)
    latents, noise = torch.randn(2, batch, vae["latent_channels"], side, side)
    timesteps = torch.randint(scheduler["num_train_timesteps"], (batch,))
    return (
        latents,
        noise,
        timesteps,
        torch.randn(batch, text_encoder["max_position_embeddings"], text_encoder["hidden_size"]),
    )


def main():
    args = parse_args()
    import torch
    import torch.nn.functional as F
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    unet = UNet2DConditionModel.from_pretrained(args.pretrained_model_name_or_path, subfolder="unet")
    unet.requires_grad_(False)
    bf16 = args.mixed_precision == "bf16"
    if bf16:
        unet.to(torch.bfloat16)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(
        LoraConfig(r=args.rank, lora_alpha=args.rank, init_lora_weights="gaussian", target_modules=targets)
    )
    unet.train()
    layers = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(layers, lr=args.learning_rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    latents, noise, timesteps, hidden = random_batch(
        args.pretrained_model_name_or_path, args.resolution, args.train_batch_size
    )
    if bf16:
        latents, noise, hidden = latents.bfloat16(), noise.bfloat16(), hidden.bfloat16()

    record = Record(args.record)
    for _ in range(args.max_train_steps):
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            predicted = unet(latents, timesteps, hidden, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        record.write(loss=loss.item())


if __name__ == "__main__":
    main()
