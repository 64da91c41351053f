"""Pictures to look at, and figures of their style: what the base draws, what the LoRA draws, what it was to learn."""


def draw(pipeline, prompts, seed=0, num_inference_steps=20, guidance_scale=2.0, batch_size=16, lora_scale=None):
    """One picture for each prompt, as PIL pictures. Prompt i always starts from the same noise for the same seed.

    lora_scale: how strongly a loaded LoRA acts, 0 (not at all) to 1 (as trained) and beyond; None leaves it alone.
    """
    import torch

    images, extra = [], {} if lora_scale is None else {"cross_attention_kwargs": {"scale": lora_scale}}
    for first in range(0, len(prompts), batch_size):
        part = list(prompts[first : first + batch_size])
        generators = [torch.Generator().manual_seed(seed * 100_003 + first + index) for index in range(len(part))]
        images += pipeline(
            part,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generators,
            **extra,
        ).images
    return images


def through_vae(vae, images):
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


def dark_pixel_share(images, threshold=64):
    """The share of pixels whose luminance (0 to 255) is under `threshold`, over all pictures: outlines are dark."""
    import numpy as np

    return float(np.mean([(np.asarray(image.convert("L")) < threshold).mean() for image in images]))


def gap_closed(base, lora, target):
    """How much of the distance from base to target the LoRA has covered: 0 none, 1 all; overshooting counts against it."""
    if base == target:
        raise ValueError(f"base and target are both {base!r}: there is no gap to close")
    return 1 - abs(lora - target) / abs(base - target)


def show_rows(rows, width=9.0):
    """A figure with one row of pictures for each entry of {label: pictures}. Returns the matplotlib figure."""
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


def draw_validation(config, accelerator, unet, dtype, seed, folder, name):
    """Draw config.num_validation_images pictures for validation_prompt with the UNet as it is now, as `folder`/`name`-N.png.

    dtype: of VAE and text encoder. seed: of the noise, so that the pictures of all epochs start from the same. The UNet trains
    on afterwards. Call it on the main process.
    """
    import torch

    from lora_kit.models import load_pipeline

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
    folder.mkdir(exist_ok=True)
    with accelerator.autocast():
        for index in range(config.num_validation_images):
            image = pipeline(config.validation_prompt, num_inference_steps=30, generator=generator).images[0]
            image.save(folder / f"{name}-{index}.png")
    unet.train()
