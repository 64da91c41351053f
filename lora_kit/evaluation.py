"""What a LoRA has learned: pictures beside the base's and the style's, and a loss that runs can be compared by."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.config import TrainingConfig, quiet_config
from lora_kit.data.batches import TrainingPictures
from lora_kit.data.emoji import count_style, load_style
from lora_kit.data.encoding import encode_captions, encode_pictures
from lora_kit.data.images import CaptionedImages
from lora_kit.models import Models, load_pipeline
from lora_kit.system.checks import whole_number
from lora_kit.system.files import NotWritten, write_whole

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

SIDE = 64  # pixels, of the embedded model's pictures


def draw(
    pipeline: "StableDiffusionPipeline",
    prompts: Sequence[str],
    seed: int = 0,
    num_inference_steps: int = 20,
    guidance_scale: float = 2.0,
    batch_size: int = 16,
    lora_scale: float | None = None,
) -> "list[Picture]":
    """One picture for each prompt, as PIL pictures. Prompt i always starts from the same noise for the same seed.

    num_inference_steps, guidance_scale: the pipeline's. batch_size: prompts drawn together, which changes no picture.
    lora_scale: how strongly a loaded LoRA acts, 0 (not at all) to 1 (as trained) and beyond; None leaves it alone.
    """
    import torch

    images, extra = [], {} if lora_scale is None else {"cross_attention_kwargs": {"scale": lora_scale}}
    for first in range(0, len(prompts), batch_size):
        batch = list(prompts[first : first + batch_size])
        generators = [torch.Generator().manual_seed(seed * 100_003 + first + index) for index in range(len(batch))]
        images += pipeline(
            batch,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generators,
            **extra,
        ).images
    return images


def through_vae(vae: "AutoencoderKL", images: "Sequence[Picture]") -> "list[Picture]":
    """Pictures after one trip through the VAE: the best that any LoRA of the UNet could draw. PIL in, PIL out."""
    import numpy as np
    import torch
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor()
    pixels = processor.preprocess([image.convert("RGB") for image in images], *np.asarray(images[0]).shape[:2])
    with torch.no_grad():
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        decoded = vae.decode(latents).sample
    return processor.postprocess(decoded.float(), output_type="pil")


def dark_pixel_share(images: "Sequence[Picture]", threshold: int = 64) -> float:
    """The share of pixels whose luminance (0 to 255) is under `threshold`, over all pictures: outlines are dark.

    >>> from PIL import Image
    >>> dark_pixel_share([Image.new("RGB", (8, 8), "black"), Image.new("RGB", (8, 8), "white")])
    0.5
    """
    import numpy as np

    return float(np.mean([(np.asarray(image.convert("L")) < threshold).mean() for image in images]))


def gap_closed(base: float, lora: float, target: float) -> float:
    """How much of the distance from base to target the LoRA has covered: 0 none, 1 all; overshooting counts against it.

    Raises ValueError where base and target are equal.

    >>> gap_closed(base=0, lora=3, target=4), gap_closed(base=0, lora=5, target=4)
    (0.75, 0.75)
    """
    if base == target:
        raise ValueError(f"base and target are both {base!r}: there is no gap to close")
    return 1 - abs(lora - target) / abs(base - target)


def fixed_inputs(
    style: str, models: Models, pictures: int = 16, repeats: int = 2, split: str = "held_out"
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]":
    """What `fixed_loss` measures on: (noisy, timesteps, hidden, target).

    noisy, target: (N, 4, 16, 16). timesteps: (N,). hidden: (N, tokens, width), the captions through the text encoder.
    style: whose pictures are shown, at 64 pixels. models: `Models` with all but the UNet; the noise scheduler says what
    the target is, noise or velocity. pictures: how many, evenly spread over the emoji keyboard. repeats: at how many
    timesteps each is shown; N = pictures * repeats, and the N timesteps are evenly spread as well. split: "held_out", or
    "lora" for pictures that are trained on. Raises ValueError for an unknown style or split, and for numbers that are not
    whole, or more pictures than there are.
    """
    import torch

    pictures, repeats = whole_number("pictures", pictures), whole_number("repeats", repeats)
    if pictures > count_style(style, split):
        raise ValueError(f"pictures {pictures} is more than the {count_style(style, split)} of the split {split!r}")
    records = load_style(style, split, size=SIDE)
    records = records[:: len(records) // pictures][:pictures]
    images = CaptionedImages(*([record[field] for record in records] for field in ("image", "text", "emoji")))
    config = quiet_config({"style": style, "learning_rate": 1e-3, "resolution": SIDE})
    shown = TrainingPictures.of(config, images, models.tokenizer)
    pixels = torch.stack([shown.pixels(index) for index in range(len(images))])
    mean = encode_pictures(pixels, models.vae, 8)[:, 0].cpu().float()
    latents = mean.repeat(repeats, 1, 1, 1) * models.vae.config.scaling_factor
    texts = [images.captions(index) for index in range(len(images))]
    hidden = encode_captions(texts, models.tokenizer, models.text_encoder, 8).cpu()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    scheduler, count = models.noise_scheduler, len(latents)
    timesteps = ((torch.arange(count) + 0.5) * scheduler.config.num_train_timesteps / count).long()
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    return noisy, timesteps, hidden.repeat(repeats, 1, 1), target


def fixed_loss(
    unet: "UNet2DConditionModel", inputs: "tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]"
) -> float:
    """The mean squared error of the UNet's prediction on `fixed_inputs`, in float32; lower is better.

    Pictures, noise, timesteps and target are the same for every run, so runs can be compared, whatever their seed,
    batch size, snr_gamma or noise_offset, which the training loss depends on. Leaves the UNet in eval mode.
    """
    import torch

    noisy, timesteps, hidden, target = (tensor.to(unet.device) for tensor in inputs)
    with torch.no_grad():
        predicted = unet.eval()(noisy, timesteps, hidden, return_dict=False)[0]
    return torch.nn.functional.mse_loss(predicted.float(), target).item()


def show_rows(rows: "Mapping[str, Sequence[Picture]]", width: float = 9.0) -> "Figure":
    """A matplotlib figure with one row of pictures for each entry of {label: pictures}, `width` inches wide."""
    import numpy as np
    from matplotlib import pyplot as plt

    columns = max(len(images) for images in rows.values())
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(width, (width - 1.2) / columns * len(rows) + 0.1), squeeze=False, layout="constrained"
    )
    for axis, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        size = max(image.size[0] for image in images)
        axis.imshow(np.concatenate([np.asarray(image.convert("RGB").resize((size, size))) for image in images], axis=1))
        axis.set_xlim(0, columns * size)
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
        for edge in axis.spines.values():
            edge.set_visible(False)
    return figure


def draw_validation(
    config: TrainingConfig, accelerator: Any, unet: Any, dtype: "torch.dtype", seed: int, folder: Path, name: str
) -> None:
    """Draw config.num_validation_images pictures for validation_prompt with the UNet as it is now, as `folder`/`name`-N.png.

    dtype: of VAE and text encoder. seed: of the noise, so that the pictures of all epochs start from the same. The UNet trains
    on afterwards. A picture that can't be written is said on stderr, and is left out. Call it on the main process.
    """
    import torch

    unet = accelerator.unwrap_model(unet)
    pipeline = load_pipeline(
        config.pretrained_model_name_or_path,
        unet=unet,
        revision=config.revision,
        variant=config.variant,
        cache_dir=config.cache_dir,
    )
    for part in (pipeline.vae, pipeline.text_encoder):
        part.to(accelerator.device, dtype)
    unet.eval()
    generator = torch.Generator().manual_seed(seed)
    with accelerator.autocast():
        for index in range(config.num_validation_images):
            image = pipeline(config.validation_prompt, num_inference_steps=30, generator=generator).images[0]
            try:
                write_whole(folder / f"{name}-{index}.png", lambda part, image=image: image.save(part, "PNG"))
            except NotWritten as error:
                print(f"warning: {error}; the run goes on without this picture", file=sys.stderr)
    unet.train()
