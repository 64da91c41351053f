"""Is the faster arithmetic as good? Train with each, and compare the loss on pictures that no training has seen.

    python benchmarks/held_out.py .../train_text_to_image_lora.py --work FOLDER [--participants freed-plain-bf16 ...]

Every participant trains the embedded model on the outlined emoji, once a seed; the loss of each LoRA is taken, in
float32 and with the same noise and timesteps for all, on the emoji that are held out. A participant holds if the mean
over its seeds lies within the reference's seeds. benchmarks/README.md says what the participants are.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from speed import EMBEDDED, Case, parts, run, write_pictures

STYLE, SIDE = "outlined", 64
TIMESTEPS = 8  # for each held-out picture, evenly spread over the noise scheduler's


class HeldOut:
    """The held-out pictures, encoded once, with the noise and timesteps that every LoRA is measured on."""

    def __init__(self):
        import torch

        from lora_kit.config import TrainingConfig
        from lora_kit.data.batches import TrainingPictures
        from lora_kit.data.emoji import load_style
        from lora_kit.data.encoding import encode_captions
        from lora_kit.data.images import CaptionedImages
        from lora_kit.models import load_models

        config = TrainingConfig(style=STYLE, learning_rate=1e-3, resolution=SIDE)
        self.models = load_models(config)
        records = load_style(STYLE, "held_out", size=SIDE)
        images = CaptionedImages(*([record[field] for record in records] for field in ("image", "text", "emoji")))
        pictures = TrainingPictures.of(config, images, self.models.tokenizer)
        self.count = len(records)
        with torch.no_grad():
            pixels = torch.stack([pictures.pixels(index) for index in range(self.count)])
            latents = self.models.vae.encode(pixels).latent_dist.mean * self.models.vae.config.scaling_factor
        self.hidden = encode_captions(
            [record["text"] for record in records], self.models.tokenizer, self.models.text_encoder, 16
        )
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(TIMESTEPS, *latents.shape, generator=generator)
        number = self.models.noise_scheduler.config.num_train_timesteps
        self.timesteps = ((torch.arange(TIMESTEPS) + 0.5) * number / TIMESTEPS).long()
        self.latents = latents

    def loss(self, lora=None):
        """The mean squared error of the noise that the UNet predicts, with the LoRA in the folder `lora` or without."""
        import torch
        import torch.nn.functional as F
        from diffusers import StableDiffusionPipeline, UNet2DConditionModel

        unet = UNet2DConditionModel.from_pretrained(EMBEDDED, subfolder="unet").eval()
        if lora:
            state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(lora, return_lora_metadata=True)
            StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, metadata=metadata)
        errors = []
        with torch.no_grad():
            for noise, timestep in zip(self.noise, self.timesteps, strict=True):
                noisy = self.models.noise_scheduler.add_noise(self.latents, noise, timestep[None])
                predicted = unet(noisy, timestep, self.hidden, return_dict=False)[0]
                errors.append(F.mse_loss(predicted, noise).item())
        return statistics.mean(errors)


def parse_args():
    parser = argparse.ArgumentParser(description="Compare the held-out loss of LoRAs trained with faster arithmetic.")
    parser.add_argument("reference", type=Path, help="The path of train_text_to_image_lora.py.")
    parser.add_argument("--work", type=Path, required=True, help="A folder for pictures, caches and runs.")
    parser.add_argument("--participants", nargs="+", default=["freed"], help="Held against the reference.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    parser.add_argument("--json", type=Path, help="Write every figure here.")
    parser.add_argument("--markdown", type=Path, help="Append the table here.")
    args = parser.parse_args()
    if not args.reference.is_file():
        parser.error(f"{args.reference} is not a file; benchmarks/README.md says where to get it")
    args.reference, args.work = args.reference.resolve(), args.work.resolve()
    for participant in args.participants:
        parts(participant)
    return args


def main():
    args = parse_args()
    from lora_kit.data.emoji import load_style

    pictures, runs = args.work / f"{STYLE}-{SIDE}", args.work / "held-out-runs"
    write_pictures(pictures, ((record["image"], record["text"]) for record in load_style(STYLE, "lora", size=SIDE)))
    held_out = HeldOut()
    base = held_out.loss()
    lines = [
        f"Batch {args.batch}, rank {args.rank}, {args.updates} updates at a learning rate of {args.learning_rate:g} on "
        f"{len(list(pictures.glob('*.png')))} {STYLE} emoji; {held_out.count} others held out, {TIMESTEPS} timesteps each. "
        f"Loss without a LoRA: {base:.5f}.",
        "",
        f"| participant | {' | '.join(f'loss, seed {seed}' for seed in args.seeds)} | mean | s an update | verdict |",
        "|---" * (len(args.seeds) + 4) + "|",
    ]
    found, low, high = {}, None, None
    for participant in ("reference", *args.participants):
        losses, seconds = [], []
        for seed in args.seeds:
            folder = runs / participant
            folder.mkdir(parents=True, exist_ok=True)
            case = Case(
                batch=args.batch, rank=args.rank, updates=args.updates, seed=seed, learning_rate=args.learning_rate
            )
            results, _ = run([participant], case, EMBEDDED, pictures, runs, args.reference, args.threads)
            losses.append(held_out.loss(folder / "output"))
            seconds.append(results[participant]["seconds_per_update"])
            print(f"{participant}, seed {seed}: {losses[-1]:.5f}, {seconds[-1]:.4f} s", file=sys.stderr, flush=True)
        found[participant] = {"losses": losses, "seconds_per_update": seconds}
        mean, time = statistics.mean(losses), statistics.median(seconds)
        if participant == "reference":
            low, high, base_time = min(losses), max(losses), time
        verdict = f"{low:.5f} to {high:.5f}" if participant == "reference" else "above" if mean > high else "holds"
        verdict += ", below all" if mean < low else ""
        ratio = "" if participant == "reference" else f" ({time / base_time:.2f}×)"
        row = [participant, *(f"{loss:.5f}" for loss in losses), f"{mean:.5f}", f"{time:.4f}{ratio}", verdict]
        lines.append(f"| {' | '.join(row)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.json:
        args.json.write_text(json.dumps({"base": base, "participants": found}, indent=1))
    if args.markdown:
        with open(args.markdown, "a") as file:
            file.write(f"{text}\n")
    sys.exit(int(any(statistics.mean(one["losses"]) > high for one in found.values())))


if __name__ == "__main__":
    main()
