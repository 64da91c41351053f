"""Trials: short, real trainings of the embedded model in a process of their own, for a page that draws them meanwhile.

    trials = Trials()
    trials.start(sweep({"lr_scheduler": "cosine"}, ("learning_rate", [1e-4, 2e-3]), ("rank", [4, 16])), updates=100)
    trials.progress()  # as often as you like; trials.stop() at any time; trials.close() at the end

The parent's side needs neither torch nor numpy, so the kernel of the page stays small and can launch processes later. The
other side, `python -m lora_kit.trials plan.json`, trains one trial after the other and writes what it measures into files.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from pathlib import Path

from lora_kit.config import ConfigWarning, TrainingConfig, check_step_rules
from lora_kit.steps import Steps
from lora_kit.data.emoji import STYLES, emoji_captions, held_out, load_style, svg_path
from lora_kit.training import METRICS, collecting_later, train

SIDE = 64  # pixels, of the embedded model
PROMPTS = ("fox", "octopus", "birthday cake", "hatching chick")  # held out: no trial trains on them
DRAWING_STEPS = 8  # with 20 the pictures are hardly better
EVENTS = "trial.jsonl"
ENDED = ("done", "failed", "stopped")


def trial_settings(settings, updates):
    """(settings of the trial, sentences) for a dict of `TrainingConfig` fields and a number of optimizer updates.

    The trial learns one of the kit's styles ("outlined" unless one is given) at 64 pixels for `updates` updates. The
    warm-up, and the boundaries of piecewise_constant, keep their share of the run that `settings` describe; without
    max_train_steps that is num_train_epochs passes over the trial's pictures. The seed is 0 unless one is given. There
    are no checkpoints, trackers, uploads, validation or compilation. All else stays. The sentences say what differs and
    why. Raises ValueError for settings that can't work, among them another model than the embedded one.

    >>> trial_settings({"learning_rate": 1e-3, "lr_warmup_steps": 30, "max_train_steps": 300}, 50)[0]["lr_warmup_steps"]
    5
    """
    _check_whole("updates", updates)
    given = _config(settings)
    model, rules = given.pretrained_model_name_or_path, given.lr_step_rules
    if model != "embedded":
        raise ValueError(
            f"pretrained_model_name_or_path {model!r}: a trial trains the embedded model only; use train() or launch()"
        )
    style = given.style or "outlined"
    drawn = (emoji for emoji in emoji_captions() if svg_path(emoji, STYLES[style][0]) and not held_out(emoji))
    share = updates / Steps.of(given, given.max_train_samples or len(list(drawn))).total_updates
    if given.lr_scheduler == "piecewise_constant":
        rules = _scaled(rules, share)
    warmup = min(round(given.lr_warmup_steps * share), updates - 1)
    own_pictures = "a trial trains on the kit's own pictures"
    changes = {
        "style": (style, own_pictures),
        "dataset_name": (None, own_pictures),
        "train_data_dir": (None, own_pictures),
        "resolution": (SIDE, "it is what the embedded model draws"),
        "max_train_steps": (updates, "a trial is a short run"),
        "lr_warmup_steps": (warmup, "the warm-up keeps its share of the run"),
        "lr_step_rules": (rules, "the rules keep their share of the run"),
        "seed": (given.seed or 0, "trials are to differ in their settings, not in their noise"),
        "checkpointing_steps": (max(given.checkpointing_steps, updates + 1), "a trial writes no checkpoints"),
        "resume_from_checkpoint": (None, "a trial starts anew"),
        "validation_prompt": (None, "a trial draws pictures of its own"),
        "report_to": ("none", "the page draws the curves"),
        "push_to_hub": (False, "a trial uploads nothing"),
        "torch_compile": (False, "compiling takes longer than the trial"),
    }
    said = [
        f"{name} {getattr(given, name)!r} is {value!r} here: {why}"
        for name, (value, why) in changes.items()
        if value != getattr(given, name)
    ]
    made = {**settings, "hub_token": None, **{name: value for name, (value, _) in changes.items()}}
    _config(made)
    return made, said


def sweep(base_settings, first, second=None):
    """{name: settings} for every combination of one or two fields' values, for `Trials.start`.

    base_settings: a dict of `TrainingConfig` fields. first, second: a field and its values. Raises ValueError for a field
    that is none, or given twice, and for a value that can't work.

    >>> list(sweep({}, ("learning_rate", [1e-3]), ("rank", [1, 4])))
    ['learning_rate 0.001, rank 1', 'learning_rate 0.001, rank 4']
    """
    axes = [axis for axis in (first, second) if axis is not None]
    if second is not None and first[0] == second[0]:
        raise ValueError(f"first and second are both {first[0]!r}: sweep over two different settings")
    made = {}
    for chosen in itertools.product(*([(field, value) for value in values] for field, values in axes)):
        name = ", ".join(f"{field} {value}" for field, value in chosen)
        made[name] = {**base_settings, **dict(chosen)}
        _named(name, _config, made[name])
    return made


class Trials:
    """Starts trials, one group at a time, and tells how far they are.

    folder: where they are written, each group into a folder of its own; left out: a temporary folder, which goes with
    `close`, with this object, or at the latest with the interpreter. The training ends with any of these as well.
    """

    def __init__(self, folder=None):
        self.folder = Path(folder or tempfile.mkdtemp(prefix="lora_kit-trials-")).resolve()
        self._lock, self._trials, self._processes, self._stopped = threading.RLock(), {}, [], False
        self._leave = weakref.finalize(self, _end, self._processes, None if folder else self.folder)

    def start(self, trials, updates=100, sample_every=None, prompts=PROMPTS, fixed_every=None):
        """Train the trials one after the other, in the background; returns what `trial_settings` says, {name: sentences}.

        trials: {name: dict of `TrainingConfig` fields}. updates: optimizer updates of each. Pictures of `prompts` are
        drawn before the first update, after every `sample_every` (left out: half) of them, and at the end; so is the
        fixed loss measured, after every `fixed_every` updates (left out: a tenth of them).
        Raises ValueError, naming the trial, for settings that can't work, and starts nothing then; RuntimeError while
        earlier trials run, or after `close`.
        """
        with self._lock:
            if not self._leave.alive:
                raise RuntimeError("these Trials are closed: make new ones")
            if self.progress()["running"]:
                raise RuntimeError("trials are running already: stop them, or wait for their end")
            if not trials:
                raise ValueError("trials {} is empty: give at least one name with its settings")
            made = {name: _named(name, trial_settings, settings, updates) for name, settings in trials.items()}
            sample_every = max(updates // 2, 1) if sample_every is None else sample_every
            _check_whole("sample_every", sample_every)
            fixed_every = max(updates // 10, 1) if fixed_every is None else fixed_every
            _check_whole("fixed_every", fixed_every)
            _end(self._processes)
            self.folder.mkdir(parents=True, exist_ok=True)
            group = Path(tempfile.mkdtemp(prefix="group-", dir=self.folder))
            for number, (settings, _) in enumerate(made.values()):
                settings["output_dir"] = str(group / f"trial-{number}")
            self._trials = {name: _Trial(settings) for name, (settings, _) in made.items()}
            samples = {*range(0, updates, sample_every), updates} if prompts else ()
            plan = {
                "trials": [settings for settings, _ in made.values()],
                "samples": list(samples),
                "every": fixed_every,
            }
            path, self._log, self._stopped = group / "plan.json", group / "log.txt", False
            path.write_text(json.dumps({"parent": os.getpid(), "prompts": list(prompts), **plan}, indent=1))
            command = [sys.executable, "-m", "lora_kit.trials", str(path)]
            with open(self._log, "w") as log:
                streams = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                self._processes[:] = [subprocess.Popen(command, start_new_session=True, **streams)]
            return {name: said for name, (_, said) in made.items()}

    def progress(self):
        """{"running": bool, "trials": {name: trial}} of the trials started last; reads only what is new.

        A trial: state ("waiting", "starting", "running", "done", "failed" or "stopped"); total_updates; of each update
        the lists updates (0 is the first), loss, lr, grad_norm; fixed, (updates done, `fixed_loss`); samples, (updates
        done, path of a PNG); target, the path of a PNG of the style's own pictures of the prompts, or None; error, a line or None; seconds since it left "waiting". An update counts what went before
        it, updates done what went before the measurement: (0, loss) in fixed is the base model's.
        """
        with self._lock:
            codes = [process.poll() for process in self._processes]  # before reading: then nothing comes after it
            for trial in self._trials.values():
                trial.read()
                if None not in codes and trial.shown["state"] not in ENDED:
                    error = None if self._stopped else f"the process ended with status {codes[-1]}; see {self._log}"
                    trial.set("stopped" if self._stopped else "failed", time.time(), error)
            running = any(trial.shown["state"] not in ENDED for trial in self._trials.values())
            return {"running": running, "trials": {name: trial.copy() for name, trial in self._trials.items()}}

    def stop(self):
        """End the process and all that it started. What has come so far stays, and `start` works again."""
        with self._lock:
            self._stopped = self.progress()["running"]
            _end(self._processes)
            self.progress()

    def close(self):
        """Stop, and remove the temporary folder."""
        with self._lock:
            self.stop()
            self._leave()


class _Trial:
    """What has been read of one trial so far."""

    def __init__(self, settings):
        self.folder, self.places, self.began = Path(settings["output_dir"]), {EVENTS: 0, METRICS: 0}, None
        lists = {name: [] for name in ("updates", "loss", "lr", "grad_norm", "fixed", "samples")}
        self.shown = dict(
            state="waiting", total_updates=settings["max_train_steps"], **lists, target=None, error=None, seconds=0.0
        )

    def read(self):
        if self.shown["state"] in ENDED:
            return
        for record in self.new_lines(EVENTS) + self.new_lines(METRICS):  # the last event comes after the last metrics
            if "state" in record:
                self.set(**record)
            if "update" in record:
                self.shown["updates"].append(record["update"])
                for name in ("loss", "lr", "grad_norm"):
                    self.shown[name].append(record[name])
            self.shown["target"] = record.get("target", self.shown["target"])
            for name in {"fixed", "samples"} & record.keys():
                self.shown[name].append(tuple(record[name]))
        if self.shown["state"] not in ENDED:
            self.shown["seconds"] = time.time() - (self.began or time.time())

    def new_lines(self, name):
        """The records of a file of JSON lines that are whole and have not been read."""
        try:
            with open(self.folder / name, "rb") as file:
                file.seek(self.places[name])
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self.places[name] += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def set(self, state, time, error=None):
        self.began = self.began or time
        self.shown.update(state=state, error=error, seconds=time - self.began)

    def copy(self):
        return {name: value.copy() if isinstance(value, list) else value for name, value in self.shown.items()}


def _config(settings):
    sources = [settings.get(name) for name in ("style", "dataset_name", "train_data_dir")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        try:
            return TrainingConfig(**settings if any(sources) else {**settings, "style": "outlined"})
        except TypeError as error:  # a name that is no setting, or no learning_rate
            raise ValueError(str(error)) from None


def _named(name, function, *arguments):
    """What the function returns; a ValueError of it names the trial."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"trial {name!r}: {error}") from None


def _check_whole(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} {value!r} is not a whole number of at least 1")


def _scaled(rules, share):
    """The rules of piecewise_constant with their boundaries times `share`, each still above the one before."""
    pairs, last = check_step_rules(rules)
    made, before = [], 0
    for boundary, factor in pairs:
        before = max(round(boundary * share), before + 1)
        made.append(f"{factor:g}:{before}")
    return ",".join([*made, f"{last:g}"])


def _end(processes, folder=None):
    """End processes with their groups: asked, and after 3 seconds, or what then is left of a group, not asked."""
    for process in processes:
        for number in (signal.SIGTERM, signal.SIGKILL) if process.poll() is None else ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


# the trainings' side


def fixed_inputs(style, models, pictures=16, repeats=2):
    """What `fixed_loss` measures on: (noisy (N, 4, 16, 16), timesteps (N,), hidden (N, tokens, width), target like noisy).

    They are made of held-out pictures of a style, each at `repeats` of the N timesteps, which are evenly spread. models:
    `Models` with all but the UNet; the noise scheduler says what the target is, noise or velocity.
    """
    import torch

    from lora_kit.data.images import CaptionedImages
    from lora_kit.data.encoding import encode

    records = load_style(style, "held_out", size=SIDE)
    records = records[:: len(records) // pictures][:pictures]
    images = CaptionedImages(*([record[field] for record in records] for field in ("image", "text", "emoji")))
    encoded = encode(_config({"style": style, "learning_rate": 1e-3, "resolution": SIDE}), images, models, (8,))
    latents = encoded.posterior[0, 0, :, 0].float().repeat(repeats, 1, 1, 1) * encoded.scaling_factor
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    scheduler, count = models.noise_scheduler, len(latents)
    timesteps = ((torch.arange(count) + 0.5) * scheduler.config.num_train_timesteps / count).long()
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    return noisy, timesteps, encoded.hidden[encoded.captions].repeat(repeats, 1, 1), target


def fixed_loss(unet, inputs):
    """The mean squared error of the UNet's prediction on `fixed_inputs`, in float32; lower is better.

    Pictures, noise, timesteps and target are the same for every run, so runs can be compared, whatever their seed, batch
    size, snr_gamma or noise_offset, which the training loss depends on. Changes the UNet's mode to eval.
    """
    import torch

    noisy, timesteps, hidden, target = (one.to(unet.device) for one in inputs)
    with torch.no_grad():
        predicted = unet.eval()(noisy, timesteps, hidden, return_dict=False)[0]
    return torch.nn.functional.mse_loss(predicted.float(), target).item()


def sample(unet, models, prompts):
    """A strip of what the UNet draws for the prompts, 64 pixels high, as a PIL picture; prompt i has the same noise always."""
    import numpy as np
    from PIL import Image

    from lora_kit.models import load_pipeline
    from lora_kit.evaluation import draw

    parts = {name: getattr(models, name) for name in ("tokenizer", "text_encoder", "vae")}
    pipeline = load_pipeline("embedded", unet=unet.eval(), **parts).to(unet.device)
    images = draw(pipeline, prompts, num_inference_steps=DRAWING_STEPS)
    return Image.fromarray(np.concatenate([np.asarray(image) for image in images], axis=1))


def target(style, prompts):
    """A strip like that of `sample` of the style's own pictures; None where it lacks one of the prompts."""
    import numpy as np
    from PIL import Image

    pictures = {record["text"]: record["image"] for record in load_style(style, size=SIDE)}
    if not prompts or not pictures.keys() >= set(prompts):
        return None
    return Image.fromarray(np.concatenate([np.asarray(pictures[prompt]) for prompt in prompts], axis=1))


def main(path):
    """Train what a plan.json of `Trials` lists. A trial that fails writes its error; the next one goes on."""
    plan = json.loads(Path(path).read_text())
    threading.Thread(target=_end_with, args=(plan["parent"],), daemon=True).start()
    from lora_kit.models import quiet_imports, without_bitsandbytes

    quiet_imports()
    needed = any(trial.get("use_8bit_adam") for trial in plan["trials"])
    with collecting_later() as collect, contextlib.nullcontext() if needed else without_bitsandbytes():
        for settings in plan["trials"]:
            folder = Path(settings["output_dir"])
            folder.mkdir()
            with open(folder / EVENTS, "w", buffering=1) as file:
                _train_one(_config(settings), plan, folder, file, collect)


def _train_one(config, plan, folder, file, collect):
    models, inputs, total = None, None, config.max_train_steps

    def write(**record):
        file.write(json.dumps(record) + "\n")

    def ready(unet):
        nonlocal models, inputs
        from lora_kit.models import load_models

        collect()
        write(state="running", time=time.time())
        models = load_models(config, parts=("tokenizer", "text_encoder", "vae", "noise_scheduler"))
        inputs = fixed_inputs(config.style, models)
        if wanted := target(config.style, plan["prompts"]):
            path = folder / "target.png"
            wanted.save(path)
            write(target=str(path))
        measure(0, unet)

    def measure(done, unet):
        if done % plan["every"] == 0 or done == total:
            write(fixed=(done, fixed_loss(unet, inputs)))
        if done in plan["samples"]:
            path = folder / f"sample-{done:05d}.png"
            sample(unet, models, plan["prompts"]).save(path)
            write(samples=(done, str(path)))

    write(state="starting", time=time.time())
    try:
        train(config, progress=False, on_ready=ready, on_update=measure)
    except Exception as error:
        traceback.print_exc()
        write(state="failed", time=time.time(), error=" ".join(f"{type(error).__name__}: {error}".split()))
    else:
        write(state="done", time=time.time())


def _end_with(parent):
    """End this process and all that it started once its parent has ended, in whatever way."""
    while os.getppid() == parent:
        time.sleep(1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
