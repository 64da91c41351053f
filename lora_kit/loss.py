"""The loss of one micro-step: noise is added to latents, and the UNet is asked what was added."""

from typing import TYPE_CHECKING, Any

from lora_kit.config import TrainingConfig

if TYPE_CHECKING:
    import torch


def micro_step_seed(seed: int, process_index: int, micro_step: int) -> int:
    """The seed of one micro-step's noise and timesteps, different for each process and each micro-step of the run.

    A function of its arguments alone: a resumed run draws what it would have drawn. micro_step counts from 0.
    """
    import numpy as np

    return int(np.random.SeedSequence([seed, process_index, micro_step]).generate_state(1, np.uint64)[0] >> 1)


def normal_like(tensor: "torch.Tensor", generator: "torch.Generator | None") -> "torch.Tensor":
    """Normal noise of the tensor's shape, on its device: from `generator` in float32, or, where that is None, from the
    device's global generator in the tensor's dtype."""
    import torch

    if generator is None:
        return torch.randn(tensor.shape, device=tensor.device, dtype=tensor.dtype)
    return torch.randn(tensor.shape, generator=generator).to(tensor.device)


def diffusion_loss(
    unet: Any,
    noise_scheduler: Any,
    latents: "torch.Tensor",
    encoder_hidden_states: "torch.Tensor",
    config: TrainingConfig,
    generator: "torch.Generator | None",
) -> "torch.Tensor":
    """The mean squared error of the predicted noise or velocity, in fp32, as a scalar tensor.

    latents: (batch, 4, h, w), already scaled. encoder_hidden_states: (batch, tokens, width). generator: where noise and
    one timestep for each picture come from, on the CPU, so that they don't depend on the device; None stands for torch's
    global generator of the latents' device. With snr_gamma each picture's error is weighted by min(snr, gamma) / snr
    (epsilon; 1 at snr 0, where diffusers' script divides 0 by 0) or / (snr + 1) (v-prediction): arXiv 2303.09556.
    Raises ValueError where the base model predicts something else.
    """
    import torch
    import torch.nn.functional as F
    from diffusers.training_utils import compute_snr

    batch, device, dtype = latents.shape[0], latents.device, latents.dtype
    source = {"generator": generator} if generator else {"device": device}
    noise = normal_like(latents, generator)
    if config.noise_offset:
        noise += config.noise_offset * torch.randn((batch, latents.shape[1], 1, 1), **source).to(device)
    noise = noise.to(dtype)
    timesteps = torch.randint(noise_scheduler.config.num_train_timesteps, (batch,), **source).to(device)
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    prediction_type = config.prediction_type or noise_scheduler.config.prediction_type
    if prediction_type == "v_prediction":
        target = noise_scheduler.get_velocity(latents, noise, timesteps)
    elif prediction_type == "epsilon":
        target = noise
    else:
        raise ValueError(
            f"prediction_type {prediction_type!r} of the base model can't be trained; only epsilon and v_prediction"
        )
    predicted = unet(noisy, timesteps, encoder_hidden_states, return_dict=False)[0]
    if config.snr_gamma is None:
        return F.mse_loss(predicted.float(), target.float())
    snr = compute_snr(noise_scheduler, timesteps)
    if prediction_type == "epsilon":
        weights = torch.where(snr > 0, snr.clamp(max=config.snr_gamma) / snr, 1.0)
    else:
        weights = snr.clamp(max=config.snr_gamma) / (snr + 1)
    errors = F.mse_loss(predicted.float(), target.float(), reduction="none").mean((1, 2, 3))
    return (errors * weights).mean()


def logged_loss(losses: "torch.Tensor", accelerator: Any, config: TrainingConfig) -> float:
    """The loss of an update as it is recorded: its mean over the micro-steps, (micro-steps,), of all processes.

    diffusers' script logs a sum over micro-steps divided by gradient_accumulation_steps, which makes the loss of a partial
    last group too low; with match_diffusers so does this.
    """
    if config.behaviour.logs_mean_loss:
        return accelerator.reduce(losses.mean(), "mean").item()
    means = accelerator.gather(losses[None]).repeat_interleave(config.train_batch_size, 0).T.contiguous().mean(1)
    return sum(loss / config.gradient_accumulation_steps for loss in means.tolist())
