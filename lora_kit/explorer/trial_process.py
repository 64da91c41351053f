"""The trainings' side of trials: `python -m lora_kit.explorer.trial_process plan.json` trains one trial after the other.

What it measures it writes into files, which `lora_kit.explorer.trials` reads meanwhile.
"""

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.data.emoji import load_style
from lora_kit.evaluation import draw, fixed_inputs, fixed_loss
from lora_kit.explorer.trial_settings import SIDE, trial_config
from lora_kit.explorer.trials import EVENTS
from lora_kit.system.imports import collecting_later, quiet_imports, without_bitsandbytes
from lora_kit.system.world import no_launcher

DRAWING_STEPS = 8  # with 20 the pictures are hardly better


def sample(unet: Any, models: Any, prompts: Sequence[str]) -> Any:
    """A strip of what the UNet draws for the prompts, 64 pixels high, as a PIL picture; prompt i has the same noise always."""
    from lora_kit.models import load_pipeline

    parts = {name: getattr(models, name) for name in ("tokenizer", "text_encoder", "vae")}
    pipeline = load_pipeline("embedded", unet=unet.eval(), **parts).to(unet.device)
    return _strip(draw(pipeline, prompts, num_inference_steps=DRAWING_STEPS))


def target(style: str, prompts: Sequence[str]) -> Any:
    """A strip like that of `sample` of the style's own pictures; None where it lacks one of the prompts."""
    pictures = {record["text"]: record["image"] for record in load_style(style, size=SIDE)}
    if not prompts or not pictures.keys() >= set(prompts):
        return None
    return _strip([pictures[prompt] for prompt in prompts])


def _strip(images):
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.concatenate([np.asarray(image) for image in images], axis=1))


def main(path: str) -> None:
    """Train what a plan.json of `Trials` lists. A trial that fails writes its error; the next one goes on."""
    plan = json.loads(Path(path).read_text())
    threading.Thread(target=_end_with, args=(plan["parent"],), daemon=True).start()
    quiet_imports()
    needed = any(trial.get("use_8bit_adam") for trial in plan["trials"])
    with no_launcher(), collecting_later() as collect, contextlib.nullcontext() if needed else without_bitsandbytes():
        for settings in plan["trials"]:
            folder = Path(settings["output_dir"])
            folder.mkdir()
            with open(folder / EVENTS, "w", buffering=1) as file:
                _Trial(settings, plan, file, collect).run()


class _Trial:
    """One training, and what is measured on its way."""

    def __init__(self, settings, plan, file, collect):
        self.config, self.plan, self.file, self.collect = trial_config(settings), plan, file, collect
        self.folder = Path(self.config.output_dir)

    def write(self, **record):
        self.file.write(json.dumps(record, allow_nan=False) + "\n")

    def run(self):
        self.write(state="starting", time=time.time())
        try:
            from lora_kit.training import train

            train(self.config, progress=False, on_ready=self.ready, on_update=self.measure)
        except Exception as error:
            traceback.print_exc()
            self.write(state="failed", time=time.time(), error=" ".join(f"{type(error).__name__}: {error}".split()))
        else:
            self.write(state="done", time=time.time())

    def ready(self, unet):
        from lora_kit.models import load_models

        self.collect()
        self.write(state="running", time=time.time())
        self.models = load_models(self.config, parts=("tokenizer", "text_encoder", "vae", "noise_scheduler"))
        self.inputs = fixed_inputs(self.config.style, self.models)
        if goal := target(self.config.style, self.plan["prompts"]):
            path = self.folder / "target.png"
            goal.save(path)
            self.write(target=str(path))
        self.measure(0, unet)

    def measure(self, done, unet):
        if done % self.plan["every"] == 0 or done == self.config.max_train_steps:
            loss = fixed_loss(unet, self.inputs)
            self.write(fixed=(done, loss if math.isfinite(loss) else None))
        if done in self.plan["samples"]:
            path = self.folder / f"sample-{done:05d}.png"
            sample(unet, self.models, self.plan["prompts"]).save(path)
            self.write(samples=(done, str(path)))


def _end_with(parent):
    """End this process and all that it started once its parent has ended, in whatever way."""
    while os.getppid() == parent:
        time.sleep(1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
