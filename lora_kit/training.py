"""The training loop: diffusers' text-to-image LoRA script with its defects mended, and a run that explains itself.

    python -m lora_kit.training --style outlined --learning_rate 1e-3 ...
    accelerate launch -m lora_kit.training --pretrained_model_name_or_path ... --train_data_dir ... --learning_rate 1e-4

`train` is the same function on one CPU, under `notebook_launcher` and on several machines. It writes into output_dir:
pytorch_lora_weights.safetensors, metrics.jsonl (a line when it starts, one an update, one at the end), checkpoint-N.
"""

import contextlib
import gc
import json
import math
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from lora_kit.output.checkpoints import checkpoints, compare, newest_whole, put_in_place, read, seal
from lora_kit.config import parse_args

METRICS, LORA, LOCK = "metrics.jsonl", "pytorch_lora_weights.safetensors", "run.lock"


@dataclass(frozen=True)
class TrainingResult:
    """What a run did. `updates` are optimizer updates in all; `seconds` covers the updates made now, not the set-up."""

    output_dir: str
    lora_path: str
    updates: int
    num_processes: int
    device: str
    seconds: float
    loss: float


def train(config, progress=True, on_start=None, on_ready=None, on_update=None):
    """Train a LoRA as `config` (a `TrainingConfig`) says, in this process and, where a launcher started more, with them.

    progress: draw a progress bar on stderr (main process of each machine). on_start: called with the Accelerator before
    any heavy work; it may raise to stop the run. on_ready: called with the UNet before the first update. on_update: called
    on the main process after each update, with the number of updates done and the UNet; it may evaluate the UNet and draw
    from torch's generators without changing the run, whose seconds count it.

    Returns a `TrainingResult` on every process. Raises ValueError for settings that can't work with this data set or
    machine, for a checkpoint that can't be gone on with, and where another run writes into output_dir. Leaves no
    Accelerator state behind where it ran in one process, so that a later cell can launch several.
    """
    from accelerate.state import AcceleratorState

    if "WORLD_SIZE" not in os.environ:
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return _Run(config, progress, on_start, on_ready, on_update).run()
    finally:
        if "WORLD_SIZE" not in os.environ:
            AcceleratorState._reset_state(reset_partial_state=True)


def device_name(device):
    """The device's true name: the GPU's, or the processor's with the threads that torch uses."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    return str(device)


def micro_step_seed(seed, process_index, micro_step):
    """The seed of one micro-step's noise and timesteps, different for each process and each micro-step of the run.

    A function of its arguments alone: a run that is resumed draws what it would have drawn. Counting micro-steps from 0.
    """
    import numpy as np

    return int(np.random.SeedSequence([seed, process_index, micro_step]).generate_state(1, np.uint64)[0] >> 1)


def diffusion_loss(unet, noise_scheduler, latents, encoder_hidden_states, config, generator):
    """The loss of one micro-step: the mean squared error of the predicted noise or velocity, in fp32.

    latents: (batch, 4, h, w), already scaled. encoder_hidden_states: (batch, tokens, width). Noise and one timestep for
    each picture come from `generator`, on the CPU, so that they don't depend on the device; None stands for torch's
    global generator of the latents' device. With snr_gamma each picture's error is weighted by min(snr, gamma) / snr
    (epsilon; 1 at snr 0, where diffusers' script divides 0 by 0) or / (snr + 1) (v-prediction): arXiv 2303.09556.
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


def normal_like(tensor, generator):
    """Normal noise of the tensor's shape, on its device: from `generator` in float32, or, where that is None, from the
    device's global generator in the tensor's dtype."""
    import torch

    if generator is None:
        return torch.randn(tensor.shape, device=tensor.device, dtype=tensor.dtype)
    return torch.randn(tensor.shape, generator=generator).to(tensor.device)


def save_lora(unet, folder, as_script=False):
    """Write the UNet's LoRA as pytorch_lora_weights.safetensors, in keys that a stock pipeline loads whole.

    PEFT's own keys and the adapter's settings are stored, so nothing is lost whatever modules were trained; as_script
    stores diffusers' older keys (lora.up, lora.down) and no settings, as that script does. The file appears under its
    name only when it is complete.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    part = f"{LORA}.part"
    about = None
    if not as_script:  # sets in a fixed order; safetensors itself writes its header's two entries in either
        about = unet.peft_config["default"].to_dict()
        about = {name: sorted(value) if isinstance(value, set) else value for name, value in about.items()}
    layers = {name: tensor.detach().float().cpu() for name, tensor in get_peft_model_state_dict(unet).items()}
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(layers) if as_script else layers,
        weight_name=part,
        unet_lora_adapter_metadata=about,
    )
    os.replace(Path(folder, part), Path(folder, LORA))
    return str(Path(folder, LORA))


class _Run:
    """One run. The methods stand in the order in which `run` calls them."""

    def __init__(self, config, progress, on_start, on_ready=None, on_update=None):
        self.config, self.progress = config, progress
        self.on_start, self.on_ready, self.on_update = on_start, on_ready, on_update
        self.output_dir = Path(config.output_dir)

    def run(self):
        self.start_accelerator()
        made = self.claim_output()
        try:
            self.resume_from, self.record = self.find_checkpoint()
            self.load()
            self.prepare()
            self.begin_output()
            made = False
            return self.train()
        finally:
            self.leave_output(made)

    def train(self):
        config = self.config
        if self.on_ready:
            self.on_ready(self.accelerator.unwrap_model(self.unet))
        loss, seconds = self.loop()
        self.accelerator.wait_for_everyone()
        lora_path = str(self.output_dir / LORA)
        if self.accelerator.is_main_process:
            save_lora(self.accelerator.unwrap_model(self.unet), self.output_dir, config.match_diffusers)
            self.write(event="end", updates=self.update, loss=loss, seconds=round(seconds, 3), lora_path=lora_path)
            if config.push_to_hub:
                self.push()
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return TrainingResult(
            output_dir=str(self.output_dir),
            lora_path=lora_path,
            updates=self.update,
            num_processes=self.accelerator.num_processes,
            device=device_name(self.accelerator.device),
            seconds=seconds,
            loss=loss,
        )

    def start_accelerator(self):
        import torch
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, broadcast_object_list

        config = self.config
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else several CPU processes would be unrelated runs
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.mixed_precision,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(
                project_dir=config.output_dir, logging_dir=str(self.output_dir / config.logging_dir)
            ),
            # without it the order of the pictures comes from torch's global generator, as in diffusers' script
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=not config.match_diffusers),
        )
        if self.on_start:
            self.on_start(self.accelerator)
        seed = config.seed
        if seed is None:
            earlier = self.recorded() if config.resume_from_checkpoint else []
            seed = earlier[0]["seed"] if earlier else torch.seed() % 2**31
        (self.seed,) = broadcast_object_list([seed])
        self.accelerator.dataloader_config.data_seed = self.seed
        if config.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True

    def claim_output(self):
        """Make the output folder and hold its lock, so that no other run writes there. Returns whether it was made."""
        self.lock = None
        if not self.accelerator.is_main_process:
            return False
        made = not self.output_dir.exists()
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            self.lock = hold(self.output_dir / LOCK)
        except OSError as error:
            reason = f"{type(error).__name__} {error.strerror or error}"
            raise ValueError(f"output_dir {str(self.output_dir)!r} can't be written: {reason}") from None
        return made

    def leave_output(self, made):
        """Let go of the lock; a folder that was made for a run that never began goes as well."""
        if self.lock:
            (self.output_dir / LOCK).unlink(missing_ok=True)
            self.lock.close()
        if made:
            with contextlib.suppress(OSError):  # not empty: it is somebody's
                self.output_dir.rmdir()

    def find_checkpoint(self):
        """The checkpoint to go on from and its record, or (None, None). One that can't be used is an error, before
        anything is loaded; with "latest" a broken one is named and passed over."""
        wanted = self.config.resume_from_checkpoint
        if wanted is None:
            return None, None
        if wanted == "latest":
            folder, record, problems = newest_whole(self.output_dir)
            for problem in problems:
                self.accelerator.print(f"warning: passed over: {problem}")
            if problems and folder is None:
                raise ValueError(
                    f"resume_from_checkpoint 'latest': no checkpoint in {self.output_dir} is whole ({'; '.join(problems)}); "
                    "leave resume_from_checkpoint out to start anew"
                )
            return folder, record
        found, path = checkpoints(self.output_dir), self.output_dir / Path(wanted).name
        if path not in found:
            names = ", ".join(one.name for one in found) or "none"
            raise ValueError(f"resume_from_checkpoint {wanted!r} is not in {self.output_dir}; it holds {names}")
        return path, read(path)

    def check_resumed(self):
        """Say what has changed since the checkpoint that is gone on from; refuse what can't be gone on with."""
        if self.record is None:
            return
        said, refused = compare(self.record, self.config, self.steps)
        if refused:
            raise ValueError(f"{self.resume_from} can't be gone on with: {'; '.join(refused)}")
        for sentence in said:
            self.accelerator.print(f"resumed with a change: {sentence}")

    def load(self):
        import torch
        from accelerate.utils import set_seed

        from lora_kit.models import load_models
        from lora_kit.parameters import add_lora

        config, accelerator = self.config, self.accelerator
        self.weight_dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(
            accelerator.mixed_precision, torch.float32
        )
        self.load_pictures()
        models = load_models(config, self.weight_dtype, ("unet", "noise_scheduler"))
        self.unet, self.noise_scheduler = models.unet.to(accelerator.device), models.noise_scheduler
        if config.channels_last:
            self.unet.to(memory_format=torch.channels_last)
        # loading draws nothing; from here on each draw of the global generators has its place. Without a seed the
        # processes of diffusers' script draw differently
        set_seed(self.seed, device_specific=config.match_diffusers and config.seed is None)
        # always in fp32: in bf16 small updates would round away, in fp16 gradients could not be unscaled
        upcast = not config.match_diffusers or config.mixed_precision == "fp16"
        self.lora_layers = add_lora(self.unet, config.rank, config.target_modules, config.lora_alpha, upcast)
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if config.enable_xformers_memory_efficient_attention:
            self.unet.enable_xformers_memory_efficient_attention()
        if config.attention == "plain":
            from diffusers.models.attention_processor import AttnProcessor

            self.unet.set_attn_processor(AttnProcessor())
        if config.torch_compile:
            self.unet.compile()

    def load_pictures(self):
        """The data set, encoded once for all processes of a machine; VAE and text encoder stay only where needed."""
        import torch

        from lora_kit.data.images import TrainingPictures, collate, load_images, local_folder
        from lora_kit.data.encoding import EncodedPictures, EncodingCache, batch_sizes, encode
        from lora_kit.models import Models, load_models
        from lora_kit.steps import Steps

        config, accelerator = self.config, self.accelerator
        images, encoded, encoders = None, None, Models(*[None] * len(Models._fields))
        parts = ("tokenizer", "text_encoder", "vae")
        with accelerator.local_main_process_first():
            if config.no_cache or (config.style is None and local_folder(config) is None):
                images = load_images(config, self.seed)
            if not config.no_cache:
                fingerprint = images and images.fingerprint
                size = accelerator.num_processes, self.weight_dtype, accelerator.device, fingerprint
                cache = EncodingCache(config, self.seed, *size)
                encoded = cache.read()
            count = len(encoded.captions) if encoded else len(images := images or load_images(config, self.seed))
            self.steps = Steps.of(config, count, accelerator.num_processes)
            self.check_resumed()
            if config.no_cache:
                encoders = self.on_device(load_models(config, self.weight_dtype, parts))
            elif encoded is None:
                progress = self.progress and accelerator.is_local_main_process
                sizes = batch_sizes(config, count, accelerator.num_processes)
                encoders = self.on_device(load_models(config, self.weight_dtype, parts))
                encoded = cache.write(encode(config, images, encoders, sizes, progress))
                encoders = Models(*[None] * len(Models._fields))
        if encoded and encoded.posterior is None:
            images = images or load_images(config, self.seed)
            encoders = self.on_device(load_models(config, self.weight_dtype, ("vae",)))
        self.vae, self.text_encoder = encoders.vae, encoders.text_encoder
        self.scaling_factor = encoded.scaling_factor if encoded else self.vae.config.scaling_factor
        kind, encoder = (EncodedPictures, encoded) if encoded else (TrainingPictures, encoders.tokenizer)
        self.pictures = kind.of(config, images, encoder, self.seed)
        # its own generator: else each epoch that is begun, or begun again after a stop, would draw from the global one
        own = None if config.match_diffusers else torch.Generator().manual_seed(self.seed)
        self.loader = torch.utils.data.DataLoader(
            self.pictures,
            shuffle=True,
            generator=own,
            collate_fn=collate,
            batch_size=config.train_batch_size,
            num_workers=config.dataloader_num_workers,
        )

    def on_device(self, models):
        """`Models` whose encoders stand on the device of this process."""
        place = {part: getattr(models, part) for part in ("vae", "text_encoder")}
        return models._replace(**{part: one and one.to(self.accelerator.device) for part, one in place.items()})

    def prepare(self):
        from lora_kit.optimizers import make_optimizer
        from lora_kit.schedules import make_scheduler

        config, accelerator, steps = self.config, self.accelerator, self.steps
        # fp16: with a fused step accelerate could not see that an update was skipped, and would step the schedule
        # and a fused step rounds otherwise than the one that diffusers' script takes
        fused = accelerator.mixed_precision != "fp16" and not config.match_diffusers
        optimizer = make_optimizer(
            self.lora_layers, config, config.peak_learning_rate(accelerator.num_processes), fused=fused
        )
        scheduler = make_scheduler(optimizer, config, steps)
        self.unet, self.optimizer, self.loader, self.lr_scheduler = accelerator.prepare(
            self.unet, optimizer, self.loader, scheduler
        )
        if len(self.loader) != steps.batches_per_process:  # then the schedule above was made for another length
            accelerator.print(
                f"warning: the prepared loader has {len(self.loader)} batches, {steps.batches_per_process} were expected: "
                f"the schedule's total of {steps.num_training_steps_for_scheduler} will not match the run"
            )
        accelerator.register_save_state_pre_hook(self.save_lora_hook)
        accelerator.register_load_state_pre_hook(self.load_lora_hook)

    def save_lora_hook(self, models, weights, output_dir):
        if self.accelerator.is_main_process:
            save_lora(self.accelerator.unwrap_model(models[0]), output_dir)
        weights.clear()  # else accelerate would write the whole UNet as well

    def load_lora_hook(self, models, input_dir):
        from peft.utils import set_peft_model_state_dict
        from safetensors.torch import load_file

        stored = load_file(Path(input_dir, LORA))
        unet = self.accelerator.unwrap_model(models.pop())
        outcome = set_peft_model_state_dict(unet, {name.removeprefix("unet."): one for name, one in stored.items()})
        if outcome.unexpected_keys:
            raise ValueError(f"{input_dir} holds a LoRA of other modules: {outcome.unexpected_keys[:3]} ...")

    def begin_output(self):
        """Resume, or put an earlier run in the same folder aside; then open the metrics."""
        config, accelerator, resume_from = self.config, self.accelerator, self.resume_from
        self.update = 0
        if resume_from:
            self.restore(resume_from)
        if accelerator.is_main_process:
            if resume_from:
                kept = [line for line in self.recorded() if "update" in line and line["update"] < self.update]
            else:
                self.put_earlier_run_aside()
                kept = []
            part = self.output_dir / f"{METRICS}.part"  # the old lines stay under their name until the new stand
            self.metrics = open(part, "w+", buffering=1)
            self.write(
                event="start",
                num_processes=accelerator.num_processes,
                device=device_name(accelerator.device),
                mixed_precision=accelerator.mixed_precision,
                seed=self.seed,
                first_update=self.update,
                total_updates=self.steps.total_updates,
                updates_per_epoch=self.steps.updates_per_epoch,
                steps=asdict(self.steps),
                config={**asdict(config), "hub_token": None},
            )
            for line in kept:
                self.write(**line)
            os.replace(part, self.output_dir / METRICS)
            simple = {name: value for name, value in asdict(config).items() if isinstance(value, (int, float, str))}
            accelerator.init_trackers("text2image-fine-tune", config={**simple, "hub_token": ""})
        accelerator.wait_for_everyone()

    def restore(self, folder):
        """Everything as it was when the checkpoint was written, but the optimizer's settings, which are this run's."""
        config, update = self.config, self.record["update"]
        self.accelerator.load_state(folder)
        self.update = update
        if (
            config.match_diffusers
        ):  # whose script keeps the stored rate for one update, and the stored settings for good
            return
        schedule, peak = self.lr_scheduler.scheduler, config.peak_learning_rate(self.accelerator.num_processes)
        schedule.base_lrs = [peak] * len(schedule.base_lrs)
        for group, factor in zip(self.optimizer.param_groups, schedule.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = peak, peak * factor(schedule.last_epoch)
            group["betas"], group["eps"] = (config.adam_beta1, config.adam_beta2), config.adam_epsilon
            group["weight_decay"] = config.adam_weight_decay

    def recorded(self):
        path = self.output_dir / METRICS
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]  # a killed run may leave half a line

    def put_earlier_run_aside(self):
        earlier = [self.output_dir / name for name in (METRICS, LORA, "validation", self.config.logging_dir)]
        earlier = [path for path in [*earlier, *checkpoints(self.output_dir)] if path.exists()]
        if earlier:
            number = 1 + len(list(self.output_dir.glob("earlier-*")))
            aside = self.output_dir / f"earlier-{number}"
            aside.mkdir()
            for path in earlier:
                shutil.move(path, aside / path.name)

    def write(self, **record):
        if os.fstat(self.metrics.fileno()).st_nlink == 0:
            self.make_output_again()
        try:
            self.metrics.write(json.dumps(record) + "\n")
        except OSError as error:
            raise ValueError(f"{self.output_dir / METRICS} can't be written: {error}") from error

    def make_output_again(self):
        """The folder was removed while the run goes on: make it again, with the metrics so far."""
        print(f"warning: {self.output_dir} was removed, with its checkpoints; it is made again", file=sys.stderr)
        self.metrics.seek(0)
        lines = self.metrics.read()
        self.metrics.close()
        self.lock.close()
        self.claim_output()
        self.metrics = open(self.output_dir / METRICS, "w+", buffering=1)
        self.metrics.write(lines)

    def loop(self):
        import torch
        from accelerate import skip_first_batches
        from tqdm import tqdm  # as text: a widget can't be drawn from a forked child

        config, accelerator, steps = self.config, self.accelerator, self.steps
        bar = tqdm(
            initial=self.update,
            total=steps.total_updates,
            desc="Steps",
            disable=not (self.progress and accelerator.is_local_main_process),
        )
        first_epoch, update_in_epoch = divmod(self.update, steps.updates_per_epoch)
        began, loss_value = time.perf_counter(), float("nan")
        losses = []
        last_epoch = steps.epochs if self.update < steps.total_updates else first_epoch  # a finished run resumed: none
        for epoch in range(first_epoch, last_epoch):
            self.unet.train()
            self.pictures.set_epoch(epoch)
            self.loader.set_epoch(epoch)
            resumed = epoch == first_epoch and not config.match_diffusers  # whose script begins the epoch again
            skipped = update_in_epoch * config.gradient_accumulation_steps if resumed else 0
            batches = skip_first_batches(self.loader, skipped) if skipped else self.loader
            batches.set_epoch(epoch)  # which accelerate before 1.15 doesn't carry over to a loader that skips
            for step, batch in enumerate(batches, start=skipped):
                with accelerator.accumulate(self.unet):
                    micro_step = epoch * steps.batches_per_process + step
                    loss = self.micro_step_loss(batch, micro_step)
                    losses.append(loss.detach())
                    accelerator.backward(loss)
                    grad_norm = None
                    if accelerator.sync_gradients and config.max_grad_norm and not config.match_diffusers:
                        grad_norm = accelerator.clip_grad_norm_(self.lora_layers, config.max_grad_norm)
                    lr = self.optimizer.param_groups[0]["lr"]
                    self.optimizer.step()
                    self.lr_scheduler.step()
                    self.optimizer.zero_grad()
                if not accelerator.sync_gradients:
                    continue
                loss_value = self.logged_loss(torch.stack(losses))
                losses = []
                if accelerator.is_main_process:
                    record = dict(update=self.update, epoch=epoch, loss=loss_value, lr=lr)
                    norm = float("nan") if grad_norm is None else float(grad_norm)
                    record["grad_norm"] = (
                        norm if math.isfinite(norm) else None
                    )  # an overflow has none, nor JSON a word for it
                    record["seconds"] = round(time.perf_counter() - began, 4)
                    if accelerator.optimizer_step_was_skipped:
                        record["skipped"] = True
                    self.write(**record)
                    accelerator.log({"train_loss": loss_value, "lr": lr}, step=self.update + 1)
                self.update += 1
                bar.update()
                bar.set_postfix(loss=f"{loss_value:.3f}", lr=f"{lr:.2e}")
                if self.update % config.checkpointing_steps == 0:
                    self.checkpoint()
                if self.on_update and accelerator.is_main_process:
                    self.tell_update()
                if self.update >= steps.total_updates:
                    break
            if accelerator.is_main_process and config.validation_prompt and epoch % config.validation_epochs == 0:
                self.validate(epoch)
        bar.close()
        return loss_value, time.perf_counter() - began

    def tell_update(self):
        """Call on_update so that the run goes on as if it had not been: mode and global generators are put back."""
        import torch

        device = self.accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self.on_update(self.update, self.accelerator.unwrap_model(self.unet))
        self.unet.train()

    def micro_step_loss(self, batch, micro_step):
        import torch

        generator = None
        if not self.config.match_diffusers:
            seed = micro_step_seed(self.seed, self.accelerator.process_index, micro_step)
            generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            if "posterior" in batch:
                mean, std = batch["posterior"].unbind(1)
            else:
                posterior = self.vae.encode(batch["pixel_values"].to(self.weight_dtype)).latent_dist
                mean, std = posterior.mean, posterior.std
            latents = (mean + std * normal_like(mean, generator).to(mean.dtype)) * self.scaling_factor
            hidden = batch.get("encoder_hidden_states")
            if hidden is None:
                hidden = self.text_encoder(batch["input_ids"], return_dict=False)[0]
        return diffusion_loss(self.unet, self.noise_scheduler, latents, hidden, self.config, generator)

    def logged_loss(self, losses):
        """The update's loss over its micro-steps and all processes; `losses`: (micro-steps,), of this process.

        With match_diffusers as its script logs it: a sum over micro-steps divided by gradient_accumulation_steps, which
        makes the loss of a partial last group too low.
        """
        config, accelerator = self.config, self.accelerator
        if not config.match_diffusers:
            return accelerator.reduce(losses.mean(), "mean").item()
        means = accelerator.gather(losses[None]).repeat_interleave(config.train_batch_size, 0).T.contiguous().mean(1)
        return sum(loss / config.gradient_accumulation_steps for loss in means.tolist())

    def checkpoint(self):
        """Write checkpoint-N under a temporary name, rename it, and only then remove what is over the limit."""
        config, accelerator = self.config, self.accelerator
        final = self.output_dir / f"checkpoint-{self.update}"
        part = self.output_dir / f"{final.name}.part"
        try:
            if accelerator.is_main_process:
                shutil.rmtree(part, ignore_errors=True)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process or not config.match_diffusers:  # whose script keeps one random state
                accelerator.save_state(str(part))  # on every process: each has its own
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                seal(
                    part,
                    config,
                    update=self.update,
                    num_processes=accelerator.num_processes,
                    num_examples=self.steps.num_examples,
                    next_learning_rate=float(self.optimizer.param_groups[0]["lr"]),
                )
                shutil.rmtree(final, ignore_errors=True)
                put_in_place(part, final)
        except Exception as error:  # each library has its own for a full disk
            shutil.rmtree(part, ignore_errors=True)
            older = newest_whole(self.output_dir)[0]
            older = f"{older} is whole: with room, go on from it" if older else "there is no older one"
            raise ValueError(f"{final} can't be written: {type(error).__name__} {error}; {older}") from error
        if accelerator.is_main_process and config.checkpoints_total_limit:
            for old in checkpoints(self.output_dir)[: -config.checkpoints_total_limit]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def validate(self, epoch):
        import torch

        from lora_kit.models import load_pipeline

        config, unet = self.config, self.accelerator.unwrap_model(self.unet)
        pipeline = load_pipeline(
            config.pretrained_model_name_or_path,
            unet=unet,
            revision=config.revision,
            variant=config.variant,
            cache_dir=config.cache_dir,
        )
        for part in (pipeline.vae, pipeline.text_encoder):
            part.to(self.accelerator.device, self.weight_dtype)
        unet.eval()
        generator = torch.Generator().manual_seed(self.seed)
        folder = self.output_dir / "validation"
        folder.mkdir(exist_ok=True)
        with self.accelerator.autocast():
            for index in range(config.num_validation_images):
                image = pipeline(config.validation_prompt, num_inference_steps=30, generator=generator).images[0]
                image.save(folder / f"epoch-{epoch:04d}-{index}.png")
        unet.train()

    def push(self):
        from huggingface_hub import create_repo, upload_folder

        config = self.config
        repository = create_repo(config.hub_model_id or self.output_dir.name, exist_ok=True, token=config.hub_token)
        upload_folder(
            repo_id=repository.repo_id,
            folder_path=self.output_dir,
            allow_patterns=[LORA, METRICS, "validation/*"],
            token=config.hub_token,
            commit_message="End of training",
        )


def hold(path):
    """An open file that no other process holds; let go when it is closed or this process ends, however it ends.

    Raises ValueError where another process holds it.
    """
    file = open(path, "a+")
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such locks on this system
        return file
    except BlockingIOError:
        file.seek(0)
        other = file.read().strip() or "another process"
        file.close()
        raise ValueError(
            f"output_dir {str(path.parent)!r} is in use by {other}: choose another output_dir, or wait for its end"
        ) from None
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        file.close()  # another run ended and took the file away in between
        return hold(path)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file


def prove_world(accelerator, expected):
    """RuntimeError unless `expected` processes answer each other, each under its own rank."""
    import torch

    found = accelerator.gather(torch.tensor([accelerator.process_index], device=accelerator.device)).tolist()
    if sorted(found) != list(range(expected)):
        raise RuntimeError(
            f"asked for {expected} process(es), but those that answer have the ranks {found}: start all of them with one launcher"
        )


def leave_process_group():
    """End the process group in order, if there is one; else some CPU processes abort at exit, after all is done."""
    import torch.distributed

    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        gc.collect()


@contextlib.contextmanager
def collecting_later():
    """Garbage is collected only once what this yields is called, or the block ends: libraries make a million objects that
    stay, and looking through them again and again takes a sixth of the time to import them."""
    enabled = gc.isenabled()
    gc.disable()

    def collect(*ignored):
        gc.freeze()
        if enabled:
            gc.enable()

    try:
        yield collect
    finally:
        if enabled:
            gc.enable()


def main(argv=None):
    """The command line. Prints what was done; the exit status is 1 with the reason in one line where it can't be."""
    config = parse_args(argv)
    from lora_kit.models import quiet_imports, without_bitsandbytes

    quiet_imports()
    try:
        with (
            collecting_later() as collect,
            contextlib.nullcontext() if config.use_8bit_adam else without_bitsandbytes(),
        ):
            world = int(os.environ.get("WORLD_SIZE", 1))
            result = train(config, on_start=lambda accelerator: prove_world(accelerator, world), on_ready=collect)
    except (ValueError, OSError) as error:
        sys.exit(f"lora_kit.training: {error}")
    leave_process_group()
    if int(os.environ.get("RANK", 0)) == 0:
        print(
            f"{result.updates} updates in {result.seconds:.1f} s on {result.num_processes} process(es) "
            f"({result.device}), loss {result.loss:.4f}: {result.lora_path}"
        )


if __name__ == "__main__":
    main()
