"""Train the atlas: real runs of the embedded model over rate, rank, schedule and targets, and what each of them draws.

    python scripts/train_atlas.py [--processes 2] [--work build/atlas] [--pack]

Resumable: every run that is done lies in WORK/runs as JSON and a picture, and is never made again. With --pack nothing is
trained: what is there goes into lora_kit/explorer/atlas_files, and the runs that are missing are counted. A run takes one
thread; the runs go from the coarse of the map to its details, and the other seeds come last.
"""

import argparse
import datetime
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock
from PIL import Image

from lora_kit.config import quiet_config
from lora_kit.data.emoji import load_style
from lora_kit.explorer.controls import TARGET_SETS
from lora_kit.system.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "lora_kit" / "explorer" / "atlas_files"
SCHEMA = 1
UPDATES = (0, 25, 50, 100, 200, 400)
PROMPTS = ("fox", "octopus", "turtle", "mushroom", "birthday cake", "trophy")  # held out: no run trains on them
LOOK = {"sampler": "DPM-Solver++", "num_inference_steps": 8, "guidance_scale": 2.5, "seed": 0}  # as notebook 05 draws
RATES = (1e-3, 1e-2, 1e-4, 5e-2, 3e-3, 3e-4, 2e-1, 1e-5)  # the coarse of them first
COMPARED = 4, (1e-2, 3e-4, 3e-3)  # the rank, and the rates, at which notebook 03 compares schedules over three seeds
RANKS = (16, 4, 64, 1)
SETTINGS = {
    "style": "outlined", "resolution": 64, "train_batch_size": 4, "max_train_steps": UPDATES[-1], "max_grad_norm": 1.0,
    "lr_warmup_steps": 0, "mixed_precision": "no", "report_to": "none", "checkpointing_steps": UPDATES[-1] + 1,
}  # fmt: skip
VARIED = ("learning_rate", "rank", "lr_scheduler", "targets", "seed")
QUALITY = 75  # of the packed WebP pictures: all together stay under 8 MB
LIMIT = 8_000_000  # bytes


def cell(learning_rate, rank, lr_scheduler, targets, seed=0):
    return dict(zip(VARIED, (learning_rate, rank, lr_scheduler, targets, seed), strict=True))


def name_of(run):
    """The name of a run's files."""
    return f"{run['targets']}-{run['lr_scheduler']}-rank{run['rank']}-rate{run['learning_rate']:g}-seed{run['seed']}"


def grid():
    """All runs of the first seed: rank 16 of everything first, then one whole map after the other."""
    maps = [("everything", "cosine"), ("everything", "constant"), ("attention", "cosine"), ("attention", "constant")]
    order = [(*one, RANKS[:1]) for one in maps[:2]] + [(*maps[0], RANKS[1:]), (*maps[1], RANKS[1:])]
    order += [(*one, RANKS) for one in maps[2:]]
    return [
        cell(rate, rank, scheduler, targets) for targets, scheduler, ranks in order for rank in ranks for rate in RATES
    ]


def other_seeds(runs):
    """Seeds 1 and 2 of what notebook 03 compares, and at the rate that is best at the end for each rank, schedule and set of targets."""
    compared, best = {(rate, COMPARED[0], "everything") for rate in COMPARED[1]}, {}
    for run in runs:
        if run["seed"] == 0 and run["fixed"][-1] is not None:
            key = run["rank"], run["lr_scheduler"], run["targets"]
            best[key] = min(best.get(key, run), run, key=lambda run: run["fixed"][-1])
    return [
        cell(*(run[name] for name in VARIED[:-1]), seed)
        for run in runs
        if run["seed"] == 0
        and ((run["learning_rate"], run["rank"], run["targets"]) in compared or run in best.values())
        for seed in (1, 2)
    ]


def settings_of(run, output_dir):
    """The fields of `TrainingConfig` of a run."""
    own = {name: run[name] for name in ("learning_rate", "rank", "lr_scheduler", "seed")}
    targets = TARGET_SETS[run["targets"]].split()
    return {**SETTINGS, **own, "target_modules": targets, "output_dir": str(output_dir)}


def finite(value):
    return round(value, 6) if math.isfinite(value) else None


class Watch:
    """Called by `train`: measures both losses at each of UPDATES, and draws the pictures where they are wanted."""

    def __init__(self, config, draws):
        self.config, self.draws, self.fixed, self.training, self.strips = config, draws, [], [], []

    def ready(self, unet):
        from diffusers import DPMSolverMultistepScheduler

        from lora_kit.evaluation import fixed_inputs
        from lora_kit.models import load_models, load_pipeline

        models = load_models(self.config, parts=("tokenizer", "text_encoder", "vae", "noise_scheduler"))
        self.inputs = [fixed_inputs(self.config.style, models, split=split) for split in ("held_out", "lora")]
        parts = {part: getattr(models, part) for part in ("tokenizer", "text_encoder", "vae")}
        self.pipeline = load_pipeline("embedded", unet=unet, **parts)
        self.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(self.pipeline.scheduler.config)
        self.measure(0, unet)

    def measure(self, done, unet):
        from lora_kit.evaluation import draw, fixed_loss

        if done not in UPDATES:
            return
        for losses, inputs in zip((self.fixed, self.training), self.inputs, strict=True):
            losses.append(finite(fixed_loss(unet, inputs)))
        if self.draws:
            look = {name: LOOK[name] for name in ("num_inference_steps", "guidance_scale", "seed")}
            self.strips.append(beside(draw(self.pipeline, PROMPTS, **look)))


def beside(images):
    """Pictures side by side."""
    strip = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    for index, image in enumerate(images):
        strip.paste(image, (index * image.width, 0))
    return strip


def opened(path):
    """The picture of a file, which is closed again."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def below(strips):
    """Strips one under the other."""
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)))
    for index, strip in enumerate(strips):
        sheet.paste(strip, (0, index * strip.height))
    return sheet


def made_with():
    """What a run is made with, besides its settings."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    versions = {package: version(package) for package in ("torch", "diffusers", "peft", "accelerate", "transformers")}
    return {"commit": commit, "versions": versions, "device": "cpu", "date": datetime.date.today().isoformat()}


def make(run, runs, made):
    """Train one run and write its files. A loss that becomes NaN is a result like others; any other error is raised."""
    import torch

    from lora_kit.output.finite import NotFinite
    from lora_kit.training import train

    torch.set_num_threads(1)
    began, error = time.process_time(), None
    with tempfile.TemporaryDirectory(prefix="making-", dir=runs.parent) as folder:
        config = quiet_config(settings_of(run, folder))
        watch = Watch(config, draws=run["seed"] == 0)
        try:
            train(config, progress=False, on_ready=watch.ready, on_update=watch.measure)
        except NotFinite as not_finite:
            error = str(not_finite)
    missing = [None] * (len(UPDATES) - len(watch.fixed))
    record = {
        **run, "updates": list(UPDATES), "fixed": watch.fixed + missing, "training": watch.training + missing,
        "state": "failed" if error else "done", "error": error, "cpu_seconds": round(time.process_time() - began, 1),
        "made_with": made,
    }  # fmt: skip
    if watch.strips:
        write_whole(runs / f"{name_of(run)}.webp", lambda part: below(watch.strips).save(part, "WEBP", lossless=True))
    write_whole(runs / f"{name_of(run)}.json", lambda part: part.write_text(json.dumps(record)))
    return record


def read(runs):
    """The records of the runs that are done."""
    return [json.loads(path.read_text()) for path in sorted(runs.glob("*.json"))]


def worker(parent):
    """Set a worker up: it is polite, and ends when the process that started it is gone."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    os.nice(19)
    threading.Thread(target=watch, daemon=True).start()


def make_all(wanted, work, processes):
    """Make the runs that are not there yet."""
    runs = work / "runs"
    todo = [run for run in wanted if not (runs / f"{name_of(run)}.json").exists()]
    made, began = made_with(), time.perf_counter()
    print(f"{len(todo)} of {len(wanted)} runs to make, {processes} at a time", flush=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=worker, initargs=(os.getpid(),)) as pool:
        futures = [pool.submit(make, run, runs, made) for run in todo]
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                run, minutes = future.result(), (time.perf_counter() - began) / 60
                losses = " ".join("-" if loss is None else f"{loss:.3f}" for loss in run["fixed"])
                left = minutes / number * (len(todo) - number)
                print(
                    f"{number:3}/{len(todo)} {name_of(run)} {run['state']}: {losses}; {run['cpu_seconds']:.0f} s of CPU time, {left:.0f} min left",
                    flush=True,
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def pack(work, folder=FILES):
    """Write what is done into the package, and say what is missing. The pictures are made smaller, the numbers stay."""
    runs = read(work / "runs")
    if not runs:
        sys.exit(f"no run in {work / 'runs'}: train first")
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.webp"):
        path.unlink()
    stored = {"base": strip_of_base(work / "runs"), "goal": strip_of_goal()}
    for run in runs:
        path = work / "runs" / f"{name_of(run)}.webp"
        run["sprite"], run["pictures"] = (path.name if path.exists() else None), 0
        if path.exists():
            stored[path.stem] = opened(path)
            run["pictures"] = stored[path.stem].height // stored["base"].height  # fewer in a run that failed
    for name, picture in stored.items():
        picture.save(folder / f"{name}.webp", "WEBP", quality=QUALITY, method=6)
    runs.sort(key=lambda run: [run[name] for name in reversed(VARIED)])
    made = [run.pop("made_with") for run in runs]
    about = {
        "settings": SETTINGS, "look": LOOK, "threads": 1, **made[0],
        **{name: sorted({one[name] for one in made}) for name in ("commit", "date")},
    }  # fmt: skip
    atlas = {
        "schema": SCHEMA, "made_with": about, "prompts": PROMPTS, "updates": UPDATES, "base": "base.webp", "goal": "goal.webp",
        "targets": {name: TARGET_SETS[name].split() for name in ("attention", "everything")},
    }  # fmt: skip
    lines = ",\n".join(json.dumps(run) for run in runs)
    write_whole(
        folder / "atlas.json", lambda part: part.write_text(f'{json.dumps(atlas)[:-1]}, "runs": [\n{lines}\n]}}\n')
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    missing = [name_of(run) for run in grid() if not (work / "runs" / f"{name_of(run)}.json").exists()]
    print(f"{len(runs)} runs in {folder}, {size / 1e6:.2f} MB; missing of the grid: {len(missing)}", *missing[:8])
    if size > LIMIT:
        sys.exit(f"that is more than {LIMIT / 1e6:g} MB: lower QUALITY ({QUALITY})")


def strip_of_base(runs):
    """What the base draws: the first row of any run."""
    sheet = opened(next(runs.glob("*-seed0.webp")))
    return sheet.crop((0, 0, sheet.width, sheet.width // len(PROMPTS)))


def strip_of_goal():
    """The style's own pictures."""
    pictures = {record["text"]: record["image"] for record in load_style(SETTINGS["style"], "held_out", size=64)}
    return beside([pictures[prompt] for prompt in PROMPTS])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "atlas", help="where the runs are kept")
    parser.add_argument("--processes", type=int, default=1, help="runs that are made at a time, a thread each")
    parser.add_argument("--pack", action="store_true", help="train nothing; put what is there into the package")
    parser.add_argument("--first", type=int, help="stop after so many runs of the list")
    args = parser.parse_args(argv)
    if args.pack:
        return pack(args.work)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    (args.work / "runs").mkdir(parents=True, exist_ok=True)
    with FileLock(args.work / "lock", timeout=0):
        for unfinished in args.work.glob("making-*"):
            shutil.rmtree(unfinished)
        make_all(grid()[: args.first], args.work, args.processes)
        if args.first is None:
            make_all(other_seeds(read(args.work / "runs")), args.work, args.processes)


if __name__ == "__main__":
    sys.exit(main())
