"""The training loop: diffusers' text-to-image LoRA script with its defects mended, and a run that explains itself.

    python -m lora_kit.training --style outlined --learning_rate 1e-3 ...
    accelerate launch -m lora_kit.training --pretrained_model_name_or_path ... --train_data_dir ... --learning_rate 1e-4

`train` is the same function on one CPU, under `notebook_launcher` and on several machines. It writes into output_dir:
pytorch_lora_weights.safetensors, metrics.jsonl (a line when it starts, one an update, one at the end), checkpoint-N.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lora_kit.accelerator import environment_of_run, start_accelerator
from lora_kit.command_line.endings import one_line
from lora_kit.command_line.flags import parse_args
from lora_kit.config import TrainingConfig
from lora_kit.data.prepared import Pictures
from lora_kit.evaluation import draw_validation
from lora_kit.loss import diffusion_loss, logged_loss, micro_step_seed
from lora_kit.lr_settings import check_warmup
from lora_kit.models import check_base_model, load_models, speed_up
from lora_kit.optimizers import make_optimizer
from lora_kit.output.base_model import base_identity
from lora_kit.output.checkpoints import write_checkpoint
from lora_kit.output.finite import FiniteCheck
from lora_kit.output.folder import VALIDATION, OutputFolder, check_output
from lora_kit.output.lora_file import LORA, push_to_hub, save_lora, save_lora_alone
from lora_kit.output.metrics import METRICS, read_metrics
from lora_kit.output.resume import check_resumed, find_checkpoint, restore
from lora_kit.parameters import add_lora
from lora_kit.schedules import Schedule
from lora_kit.steps import Steps
from lora_kit.system.devices import device_name
from lora_kit.system.imports import collecting_later, without_bitsandbytes
from lora_kit.system.signals import Interrupted, StopSignals
from lora_kit.system.state import own_accelerate_state, tf32, undisturbed
from lora_kit.system.waits import bounded_waits
from lora_kit.system.world import leave_process_group, prove_world, world_size


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


def train(
    config: TrainingConfig,
    progress: bool = True,
    on_start: Callable[[Any], None] | None = None,
    on_ready: Callable[[Any], None] | None = None,
    on_update: Callable[[int, Any], None] | None = None,
) -> TrainingResult:
    """Train a LoRA as `config` says, in this process and, where a launcher started more, with them.

    progress: draw a progress bar on stderr (main process of each machine).
    on_start: called with the Accelerator before any heavy work; it may raise to stop the run.
    on_ready: called with the UNet before the first update.
    on_update: called on the main process after each update, with the number of updates done and the UNet, which it may
    evaluate; it may draw from torch's generators without changing the run, whose seconds count it.

    Returns the result on every process. Raises ValueError for settings that can't work with this data set or machine, for a
    checkpoint that can't be resumed, and where another run writes into output_dir; NotFinite where the loss or the LoRA
    becomes NaN or infinite; TimeoutError where another process is late; Interrupted on SIGINT, SIGTERM or SIGHUP, after the
    update and with a checkpoint. Leaves no Accelerator state behind where it ran in one process: a later cell can launch several.
    """
    with StopSignals() as stop, own_accelerate_state(), tf32(config.allow_tf32):
        accelerator = start_accelerator(config)
        with bounded_waits(accelerator.process_index, accelerator.num_processes, config.ddp_timeout) as step_made:
            if on_start:
                on_start(accelerator)
            check_output(config, accelerator.is_main_process)
            with OutputFolder(config.output_dir, config.logging_dir, accelerator.is_main_process) as output:
                return _train(config, accelerator, output, stop, step_made, progress, on_ready, on_update)


def _train(config, accelerator, output, stop, step_made, progress, on_ready, on_update):
    import torch
    from accelerate import skip_first_batches
    from accelerate.utils import broadcast_object_list, set_seed
    from tqdm import tqdm  # as text: a widget can't be drawn from a forked child

    behaviour, main, P = config.behaviour, accelerator.is_main_process, accelerator.num_processes

    # what is resumed, and the seed: a run without one records the seed that it drew
    resume_from, record, said = find_checkpoint(output.path, config.resume_from_checkpoint)
    for sentence in said:
        accelerator.print(sentence)
    seed = config.seed
    if seed is None:
        earlier = read_metrics(resume_from.parent / METRICS)[0] if resume_from else None
        seed = earlier["seed"] if earlier else torch.seed() % 2**31
    (seed,) = broadcast_object_list([seed])
    accelerator.dataloader_config.data_seed = seed

    # the pictures: counted, so that what doesn't fit is refused; encoded when a batch first asks for them
    check_base_model(config)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    pictures = Pictures(config, accelerator, seed, dtype)
    steps = Steps.of(config, len(pictures), P)
    if behaviour.refuses_bad_fit:
        check_warmup(steps.lr_warmup_steps, steps.total_updates)
    for change in check_resumed(resume_from, record, config, steps, pictures.identity, accelerator.mixed_precision):
        accelerator.print(f"resumed with a change: {change}")
    update = record["update"] if resume_from else 0
    data = pictures.prepare(*output.check_room(config, steps, update))
    loader = data.loader(config, seed)

    # the UNet, frozen, and its LoRA. Loading draws nothing; from here on each draw of the global generators has its place
    models = load_models(config, dtype, ("unet", "noise_scheduler"))
    unet, noise_scheduler = models.unet.to(accelerator.device), models.noise_scheduler
    base = base_identity(config) if main else {}
    if config.channels_last:
        unet.to(memory_format=torch.channels_last)
    # without a seed the processes of diffusers' script draw differently
    set_seed(seed, device_specific=config.seed is None and not behaviour.draws_from_seed)
    lora = add_lora(
        unet, config.rank, config.target_modules, config.lora_alpha, behaviour.float32_lora(config.mixed_precision)
    )
    speed_up(unet, config)

    # optimizer and schedule. fp16: with a fused step accelerate could not see that an update was skipped
    fused = behaviour.fuses_optimizer and accelerator.mixed_precision != "fp16"
    schedule = Schedule.of(config, steps)
    optimizer = make_optimizer(lora, config, schedule.peak, fused=fused)
    unet, optimizer, loader, lr_scheduler = accelerator.prepare(unet, optimizer, loader, schedule.scheduler(optimizer))
    if len(loader) != steps.batches_per_process:  # then the schedule was made for another length
        accelerator.print(
            f"warning: the prepared loader has {len(loader)} batches, {steps.batches_per_process} were expected: "
            f"the schedule's total of {steps.num_training_steps_for_scheduler} will not match the run"
        )

    # the checkpoint, and the records of the run
    save_lora_alone(accelerator)
    if resume_from:
        restore(resume_from, accelerator, optimizer, lr_scheduler, config)
    output.begin(update, resume_from, config, steps, accelerator, seed, environment_of_run())
    output.save_lora = lambda folder: save_lora(accelerator.unwrap_model(unet), folder, behaviour.stores_peft_keys)
    finite = FiniteCheck(config, lora, accelerator.mixed_precision, update)
    if main:
        simple = {name: value for name, value in asdict(config).items() if isinstance(value, (int, float, str))}
        accelerator.init_trackers("text2image-fine-tune", config=simple)
    accelerator.wait_for_everyone()
    step_made()
    if on_ready:
        on_ready(accelerator.unwrap_model(unet))

    silent = not (progress and accelerator.is_local_main_process)
    bar = tqdm(initial=update, total=steps.total_updates, desc="Steps", disable=silent)
    first_epoch, update_in_epoch = divmod(update, steps.updates_per_epoch)
    last_epoch = steps.epochs if update < steps.total_updates else first_epoch  # a finished run that is resumed: none
    stop.hold()
    began, losses = time.perf_counter(), []
    loss_value = float("nan") if record is None or record["loss"] is None else record["loss"]
    for epoch in range(first_epoch, last_epoch):
        unet.train()
        data.set_epoch(epoch)
        loader.set_epoch(epoch)
        seen = update_in_epoch if epoch == first_epoch and behaviour.skips_seen_batches else 0
        batches = skip_first_batches(loader, seen * config.gradient_accumulation_steps) if seen else loader
        batches.set_epoch(epoch)  # which accelerate before 1.15 doesn't carry over to a loader that skips
        for step, batch in enumerate(batches, start=seen * config.gradient_accumulation_steps):
            with accelerator.accumulate(unet):
                generator = None
                if behaviour.draws_from_seed:
                    micro_step = epoch * steps.batches_per_process + step
                    key = micro_step_seed(seed, accelerator.process_index, micro_step)
                    generator = torch.Generator().manual_seed(key)
                latents, hidden = data.inputs(batch, generator)
                loss = diffusion_loss(unet, noise_scheduler, latents, hidden, config, generator)
                losses.append(loss.detach())
                accelerator.backward(loss)
                grad_norm = None
                if accelerator.sync_gradients and config.max_grad_norm and behaviour.clips_gradients:
                    grad_norm = accelerator.clip_grad_norm_(lora, config.max_grad_norm)
                lr = optimizer.param_groups[0]["lr"]
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            loss_value, losses = logged_loss(torch.stack(losses), accelerator, config), []
            skipped = accelerator.optimizer_step_was_skipped
            if main:
                seconds = time.perf_counter() - began
                output.write_update(update, epoch, loss_value, lr, grad_norm, seconds, skipped)
                accelerator.log({"train_loss": loss_value, "lr": lr}, step=update + 1)
            finite.update(update, loss_value, lr, grad_norm, skipped)
            update += 1
            bar.update()
            bar.set_postfix(loss=f"{loss_value:.3f}", lr=f"{lr:.2e}")
            signal = stop.agreed(accelerator)
            step_made()
            if update % config.checkpointing_steps == 0 or signal:
                about = dict(num_examples=steps.num_examples, data=pictures.identity, finite=finite.weights(update))
                about |= dict(base=base, loss=loss_value, next_learning_rate=float(optimizer.param_groups[0]["lr"]))
                write_checkpoint(accelerator, output.path, config, update, about)
            if signal and update < steps.total_updates:
                go_on = f"checkpoint-{update} is written: --resume_from_checkpoint latest continues from there"
                raise Interrupted(f"stopped after {update} of {steps.total_updates} updates; {go_on}", signal)
            if on_update and main:
                with undisturbed(unet, accelerator.device):
                    on_update(update, accelerator.unwrap_model(unet))
            if update >= steps.total_updates:
                break
        if main and config.validation_prompt and epoch % config.validation_epochs == 0:
            draw_validation(config, accelerator, unet, dtype, seed, output.path / VALIDATION, f"epoch-{epoch:04d}")
    bar.close()
    seconds = time.perf_counter() - began

    accelerator.wait_for_everyone()
    finite.weights(update)
    lora_path = str(output.path / LORA)
    if main:
        output.save_lora(output.path)
        output.write(event="end", updates=update, loss=loss_value, seconds=round(seconds, 3), lora_path=lora_path)
    stop.hold(False)
    if update < steps.total_updates:
        raise ValueError(
            f"{update} of {steps.total_updates} planned updates were made; what they learned is in {lora_path}"
        )
    if main and config.push_to_hub:
        push_to_hub(output.path, config, [LORA, f"{VALIDATION}/*"])  # metrics hold paths of this machine
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    return TrainingResult(str(output.path), lora_path, update, P, device_name(accelerator.device), seconds, loss_value)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Prints what was done; the exit status is 1 with the reason in one line where it can't be."""
    with one_line("lora_kit.training"), collecting_later() as collect:
        config = parse_args(argv)
        with contextlib.nullcontext() if config.use_8bit_adam else without_bitsandbytes():
            world = world_size()
            result = train(config, on_start=lambda accelerator: prove_world(accelerator, world), on_ready=collect)
    leave_process_group()
    if int(os.environ.get("RANK", 0)) == 0:
        print(
            f"{result.updates} updates in {result.seconds:.1f} s on {result.num_processes} process(es) "
            f"({result.device}), loss {result.loss:.4f}: {result.lora_path}"
        )


if __name__ == "__main__":
    main()
