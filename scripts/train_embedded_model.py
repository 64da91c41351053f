"""Train the model inside `lora_kit/embedded_model` from nothing: tokenizer, VAE, then UNet and text encoder together.

    python scripts/train_embedded_model.py

One command, resumable: it keeps its state in --work_dir and goes on from there; a longer --unet_steps prolongs a
finished run. Pictures come from the styles of `lora_kit.data.emoji`; the VAE sees every style but never an emoji that is
held out; UNet and text encoder see plain Twemoji only, which is what leaves something for a LoRA to learn.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lora_kit.data.emoji import STYLES, emoji_captions, load_style

VOCABULARY, LENGTH, GUIDANCE, SAMPLING_STEPS = 2048, 24, 3.0, 20
GRID_PROMPTS = 48
SCHEDULER = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
    steps_offset=1, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
)  # fmt: skip


def pixels_of(records):
    """uint8 (N, 3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(record["image"]) for record in records])).permute(0, 3, 1, 2)


def scaled(pixels):
    return pixels.float() / 127.5 - 1


def rate(step, steps, peak, warmup=100, decay=0.45):
    """Trapezoid: a short warm-up, a plateau, then a straight line to zero over the last `decay` of the run."""
    return peak * min((step + 1) / warmup, 1.0, max(steps - step, 0) / (decay * steps))


def grid(images, columns=12):
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


def save(state, path):
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def make_tokenizer(folder):
    from tokenizers import trainers

    tokenizer = CLIPTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=[*map(chr, range(ord("a"), ord("z") + 1))],
        show_progress=False,
    )
    raw = tokenizer.backend_tokenizer
    raw.post_processor, raw.model = None, type(raw.model)(end_of_word_suffix="</w>")
    raw.train_from_iterator(list(emoji_captions(None).values()), trainer)
    model = json.loads(raw.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    vocab = dict(model["vocab"])
    for index in range(len(vocab), VOCABULARY - 2):
        vocab[f"<|unused{index}|>"] = index
    vocab["<|startoftext|>"], vocab["<|endoftext|>"] = VOCABULARY - 2, VOCABULARY - 1
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    # readers older than transformers 5 want these two
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    return CLIPTokenizer.from_pretrained(folder)


def new_vae():
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        latent_channels=4,
    )


def psnr(vae, pixels):
    """Mean over pictures of the peak signal-to-noise ratio in dB, pixels in [0, 1], after 8-bit rounding."""
    values = []
    with torch.no_grad():
        for chunk in pixels.split(64):
            decoded = vae.decode(vae.encode(scaled(chunk)).latent_dist.mode()).sample
            decoded = ((decoded.clamp(-1, 1) + 1) * 127.5).round()
            error = ((decoded - chunk.float()) / 255).square().mean((1, 2, 3)).clamp_min(1e-10)
            values.append(-10 * error.log10())
    return float(torch.cat(values).mean())


def train_vae(args, vae, name, steps, decoder_only=False):
    """Train the whole VAE, or its decoder alone on the latents' means. State: work_dir/NAME.pt."""
    path, peak = args.work_dir / f"{name}.pt", 1e-3 if decoder_only else 2e-3
    if decoder_only:
        vae.requires_grad_(False)
        for part in (vae.decoder, vae.post_quant_conv):
            part.requires_grad_(True)
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    step = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    if step >= steps:
        return vae.requires_grad_(False)
    plain = pixels_of(load_style("twemoji", "all", None))
    outlined = pixels_of(load_style("outlined", "lora", None))
    styled = torch.cat([pixels_of(load_style(style, "lora", None)) for style in STYLES if style != "twemoji"])
    mixture = ((plain, 4), (outlined, 6), (styled, 6)) if decoder_only else ((plain, 8), (styled, 8))
    checks = {style: pixels_of(load_style(style, "held_out"))[::3] for style in STYLES}
    generator = torch.Generator().manual_seed(step)
    bar = tqdm(initial=step, total=steps, desc=name, mininterval=10)
    while step < steps:
        pick = torch.cat([part[torch.randint(len(part), (count,), generator=generator)] for part, count in mixture])
        flips = torch.rand(len(pick), generator=generator) < 0.5
        pick = torch.where(flips[:, None, None, None], pick.flip(3), pick)
        shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
        images = scaled(pick.roll(shift, (2, 3)))
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.mode() if decoder_only else posterior.sample()).sample.float()
        loss = F.mse_loss(decoded, images) + (0.02 if decoder_only else 0.1) * F.l1_loss(decoded, images)
        if not decoder_only:
            loss = loss + 2e-6 * posterior.kl().float().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        bar.update()
        if step % 500 == 0 or step == steps:
            figures = {style: round(psnr(vae, check), 2) for style, check in checks.items()}
            bar.write(f"{name} step {step} loss {loss.item():.5f} PSNR dB on held-out emoji {figures}")
            save({"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)
    bar.close()
    return vae.requires_grad_(False)


@torch.no_grad()
def fold_latent_statistics(vae, pixels):
    """Fold the latents' mean and deviation into quant_conv and post_quant_conv, so that latents x scaling_factor have
    mean 0 and deviation 1 in each channel, at Stable Diffusion's own scaling factor. Decoding is unchanged."""
    latents = torch.cat([vae.encode(scaled(chunk)).latent_dist.mode() for chunk in pixels.split(64)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = 1 / (deviation * vae.config.scaling_factor)
    channels = len(mean)
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    weight[:channels] *= gain[:, None, None, None]
    bias[:channels] = (bias[:channels] - mean) * gain
    # the other half is the log-variance; after training the posterior's deviation is made ten times smaller, so that a
    # sample of it is as good as its mean, as in Stable Diffusion's VAE
    bias[channels:] += 2 * gain.log() - 2 * np.log(10)
    post = vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]
    return vae


def new_unet():
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    unet.set_attn_processor(
        AttnProcessor()
    )  # plain products: the fused kernel's backward pass is 1.4 x slower on a CPU
    return unet


def new_text_encoder():
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            pad_token_id=VOCABULARY - 1,
        )
    )


def pipeline_of(vae, text_encoder, tokenizer, unet):
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, prompts, seed):
    generators = [torch.Generator().manual_seed(seed * 10_000 + index) for index in range(len(prompts))]
    images = []
    for start in range(0, len(prompts), 48):
        images += pipeline(
            prompts[start : start + 48],
            num_inference_steps=SAMPLING_STEPS,
            guidance_scale=GUIDANCE,
            generator=generators[start : start + 48],
        ).images
    return images


def nearest_picture_score(pipeline, records, seeds):
    """Share of captions whose drawn picture has its own training picture as the nearest one (mean squared difference
    of pixels over all training pictures), for the nearest and the five nearest."""
    pixels = pixels_of(records).float().flatten(1)
    top1, top5 = [], []
    for seed in seeds:
        drawn = pixels_of([{"image": image} for image in draw(pipeline, [r["text"] for r in records], seed)])
        order = torch.cdist(drawn.float().flatten(1), pixels).argsort(1)
        own = torch.arange(len(records))[:, None]
        top1.append(float((order[:, :1] == own).any(1).float().mean()))
        top5.append(float((order[:, :5] == own).any(1).float().mean()))
    return {"top1": top1, "top5": top5}


def train_unet(args, vae, tokenizer, records):
    path = args.work_dir / "unet.pt"
    unet, text_encoder = new_unet(), new_text_encoder()
    models = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    average = torch.nn.ModuleDict({"unet": new_unet(), "text_encoder": new_text_encoder()})
    average.load_state_dict(models.state_dict())
    average.requires_grad_(False).eval()
    parameters, averages = list(models.parameters()), list(average.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    step, seconds = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        models.load_state_dict(state["models"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    if step >= args.unet_steps:
        return average
    with torch.no_grad():
        moments = [vae.encode(scaled(chunk)).latent_dist for chunk in pixels_of(records).split(64)]
        mean = torch.cat([part.mean for part in moments]) * vae.config.scaling_factor
        deviation = torch.cat([part.std for part in moments]) * vae.config.scaling_factor
    captions = [record["text"] for record in records]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    empty = tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    scheduler = DDIMScheduler(**SCHEDULER)
    generator = torch.Generator().manual_seed(step)
    bar, losses, began = tqdm(initial=step, total=args.unet_steps, desc="UNet", mininterval=10), [], time.time()
    order = torch.empty(0, dtype=torch.long)
    while step < args.unet_steps:
        if len(order) < args.batch_size:
            order = torch.cat([order, torch.randperm(len(records), generator=generator)])
        pick, order = order[: args.batch_size], order[args.batch_size :]
        latents = mean[pick] + deviation[pick] * torch.randn(mean[pick].shape, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        # one timestep from each of batch_size equal strata: the same distribution, less noise in the gradient
        strata = (torch.arange(len(pick)) + torch.rand(len(pick), generator=generator)) * (1000 / len(pick))
        timesteps = strata.long().clamp_max(999)
        dropped = torch.rand(len(pick), generator=generator) < 0.1
        words = torch.where(dropped[:, None], empty, ids[pick])
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.unet_steps, args.unet_rate)
        with torch.autocast("cpu", torch.bfloat16):
            context = text_encoder(words)[0]
            predicted = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample.float()
        loss = F.mse_loss(predicted, scheduler.get_velocity(latents, noise, timesteps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - min(0.999, (1 + step) / (10 + step)))
        losses.append(loss.item())
        step += 1
        bar.update()
        if step % 500 == 0 or step == args.unet_steps:
            seconds, began = seconds + time.time() - began, time.time()
            bar.write(f"UNet step {step} loss {np.mean(losses[-500:]):.4f} after {seconds / 60:.1f} min")
            state = {"models": models.state_dict(), "average": average.state_dict(), "step": step, "seconds": seconds}
            save({**state, "optimizer": optimizer.state_dict()}, path)
        if step % 2000 == 0:
            pipeline = pipeline_of(vae, average["text_encoder"], tokenizer, average["unet"])
            grid(draw(pipeline, captions[:: len(captions) // GRID_PROMPTS][:GRID_PROMPTS], 0)).save(
                args.work_dir / f"samples-{step:06d}.png"
            )
            score = nearest_picture_score(pipeline, records[::3], [0])
            bar.write(f"UNet step {step} nearest-picture score among every third emoji {score}")
    bar.close()
    return average


def export(args, pipeline, records):
    """Write the pipeline in fp16 safetensors, then measure what was written."""
    part = args.output_dir.with_name(args.output_dir.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for model in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        model.half()
    pipeline.save_pretrained(part)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(args.work_dir / "tokenizer" / name, part / "tokenizer" / name)
    config = part / "text_encoder" / "config.json"  # transformers 5 would load fp16 beside a UNet in fp32
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
    for config in part.glob("*/config.json"):
        fields = json.loads(config.read_text())
        fields.pop("_name_or_path", None)
        config.write_text(json.dumps(fields, indent=2) + "\n")
    if args.output_dir.exists():
        if (args.output_dir / "README.md").exists():
            shutil.copy(args.output_dir / "README.md", part / "README.md")
        shutil.rmtree(args.output_dir)
    part.rename(args.output_dir)

    stored = StableDiffusionPipeline.from_pretrained(args.output_dir, safety_checker=None)
    stored.set_progress_bar_config(disable=True)
    prompts = [record["text"] for record in records][:: len(records) // GRID_PROMPTS][:GRID_PROMPTS]
    grid(draw(stored, prompts, 0)).resize((1152, 384), Image.LANCZOS).save(args.output_dir / "grid.png")
    score = nearest_picture_score(stored, records, args.score_seeds)
    figures = {
        "emoji": len(records),
        "guidance_scale": GUIDANCE,
        "num_inference_steps": SAMPLING_STEPS,
        "nearest_picture_top1": [round(value, 4) for value in score["top1"]],
        "nearest_picture_top5": [round(value, 4) for value in score["top5"]],
        "psnr_db": {
            style: {
                split: round(psnr(stored.vae, pixels_of(load_style(style, split))), 2) for split in ("lora", "held_out")
            }
            for style in STYLES
        },
        "parameters": {
            name: sum(p.numel() for p in getattr(stored, name).parameters()) for name in ("vae", "text_encoder", "unet")
        },
        "safetensors_mb": round(sum(f.stat().st_size for f in args.output_dir.rglob("*.safetensors")) / 1e6, 2),
        "vae_steps": args.vae_steps,
        "decoder_steps": args.decoder_steps,
        "unet_steps": args.unet_steps,
        "unet_minutes": round(torch.load(args.work_dir / "unet.pt", weights_only=True)["seconds"] / 60, 1),
        "grid_prompts": prompts,
    }
    (args.output_dir / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("lora_kit/embedded_model"))
    parser.add_argument("--work_dir", type=Path, default=Path("build/embedded_model"), help="state and sample grids")
    parser.add_argument("--vae_steps", type=int, default=4000)
    parser.add_argument("--decoder_steps", type=int, default=1000, help="of the decoder alone, on the latents' means")
    parser.add_argument("--only_vae", action="store_true", help="stop before the UNet")
    parser.add_argument("--unet_steps", type=int, default=5500)
    parser.add_argument("--unet_rate", type=float, default=1e-3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score_seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(args.work_dir / "tokenizer")
    records = load_style("twemoji", "all")
    vae = train_vae(args, new_vae(), "vae", args.vae_steps)
    vae = fold_latent_statistics(vae, pixels_of(records))
    vae = train_vae(args, vae, "decoder", args.decoder_steps, decoder_only=True).eval()
    if args.only_vae:
        return
    average = train_unet(args, vae, tokenizer, records)
    export(args, pipeline_of(vae, average["text_encoder"], tokenizer, average["unet"]), records)


if __name__ == "__main__":
    main()
