"""Measure lora_kit against diffusers' text-to-image LoRA script: time per update, time to the first one, peak memory.

    python benchmarks/speed.py .../train_text_to_image_lora.py --work FOLDER [--only NAME ...] [--json FILE]

Every participant is a process of its own, and they take turns, update by update, one working while the others stand
still, so that what else the machine does meets them all. A configuration whose rounds don't agree is not reported.
benchmarks/README.md says how to read it.
"""

import argparse
import datetime
import fcntl
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
EMBEDDED = HERE.parent / "lora_kit" / "embedded_model"
PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "datasets", "tensorboard")

# A participant's name is one of these, then any of OPTIONS, joined by "-": freed-plain-bf16, ours-x2.
PARTICIPANTS = {
    "reference": (),  # diffusers' script, unchanged
    "ours": ("--match_diffusers",),  # the same random numbers and the same updates
    "freed": (),  # lora_kit as it comes
    "floor": (),  # benchmarks/floor.py
}
OPTIONS = {
    "bf16": ("--mixed_precision", "bf16"),
    "channels_last": ("--channels_last",),
    "compile": ("--torch_compile",),
    "plain": ("--attention", "plain"),
    "x2": (),  # two processes with half the batch and half the threads each
}
SAME = ("reference", "ours", "floor")
FREED = ("freed", "freed-bf16", "freed-channels_last", "freed-compile", "freed-plain")
COMBINED = ("freed-plain-bf16", "freed-plain-bf16-compile", "freed-plain-channels_last", "freed-plain-compile")
OTHERS = 0.1  # cores: where other processes take more during a run, the report says so
BELOW = 0.02  # how far below the floor a participant may come out before the report calls the table noise
COLD_EACH_ROUND = ("reference", "ours")  # run with empty caches in every round; others in their first


@dataclass(frozen=True)
class Case:
    """A configuration. The first participant is the one that the others are compared with."""

    batch: int = 8
    rank: int = 4
    pictures: int = 64
    resolution: int = 64
    updates: int = 25
    skip: int = 3  # updates left out of the time per update
    model: str = "embedded"
    seed: int = 0
    learning_rate: float = 1e-4
    cold_each_round: bool = True  # else cold runs are made in the first round only
    together: bool = True  # else one process ends before the next starts: for models that don't fit side by side
    participants: tuple = (*SAME, "freed")


ALONE = {"cold_each_round": False, "together": False}
CASES = {
    "b8-r4-p64": Case(),
    "b8-r4-p64-options": Case(participants=("reference", *FREED, *COMBINED)),
    "b1-r4-p64": Case(batch=1, updates=50),
    "b32-r4-p512": Case(batch=32, pictures=512, updates=15),
    "b32-r4-p512-options": Case(batch=32, pictures=512, updates=12, participants=("reference", *FREED, *COMBINED)),
    "b8-r16-p64": Case(rank=16),
    "b8-r4-p512": Case(pictures=512, cold_each_round=False),
    "b8-r4-p4000": Case(pictures=4000, cold_each_round=False),
    "b32-r16-p4000": Case(batch=32, rank=16, pictures=4000, updates=12, cold_each_round=False),
    "two-processes-b8": Case(participants=("reference", "reference-x2", "ours", "ours-x2")),
    "two-processes-b32": Case(
        batch=32, pictures=512, updates=12, participants=("reference", "reference-x2", "ours", "ours-x2")
    ),
    "sd15-256": Case(batch=1, pictures=4, resolution=256, updates=4, skip=1, model="sd15", **ALONE),
    "sd15-512": Case(batch=1, pictures=4, resolution=512, updates=4, skip=1, model="sd15", **ALONE),
}
MAIN = "b8-r4-p64"


def write_pictures(folder, records):
    """(picture, caption) records as PNG files and metadata.jsonl, whole or not at all; nothing where the folder is there."""
    if folder.exists():
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with open(part / "metadata.jsonl", "w") as file:
        for index, (picture, caption) in enumerate(records):
            picture.save(part / f"{index:05d}.png")
            file.write(json.dumps({"file_name": f"{index:05d}.png", "text": caption}) + "\n")
    part.rename(folder)


def made_up(number, side):
    """`number` pictures of coloured blobs, each with a caption of its own; the same ones every time."""
    import numpy as np
    from PIL import Image

    for index in range(number):
        random = np.random.default_rng([number, side, index])
        blobs = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
        picture = np.asarray(blobs.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        picture = (picture + random.integers(-8, 9, picture.shape)).clip(0, 255).astype(np.uint8)
        colour, thing = ("red", "green", "blue", "yellow")[index % 4], ("cat", "house", "tree")[index % 3]
        yield Image.fromarray(picture), f"a {colour} {thing}, number {index}"


def make_sd15(folder):
    """A model with the shape of Stable Diffusion 1.5, random weights and the embedded model's tokenizer: 4 GB."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED, subfolder="tokenizer", model_max_length=77)
    text_config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=768,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    StableDiffusionPipeline(
        vae, CLIPTextModel(text_config), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(part)
    part.rename(folder)


def prepare(work, case):
    """Write what the case needs, once. Returns the folders of the model and of the pictures."""
    model = EMBEDDED if case.model == "embedded" else work / case.model
    if not model.exists():  # elsewhere, since a process inherits the peak memory of the one that starts it
        process = multiprocessing.get_context("spawn").Process(target=make_sd15, args=(model,))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"speed.py: {model} could not be built")
    pictures = work / f"pictures-{case.pictures}-of-{case.resolution}"
    write_pictures(pictures, made_up(case.pictures, case.resolution))
    return model, pictures


def parts(participant):
    """The base of a participant's name and its options; an unknown name is an error."""
    base, *options = participant.split("-")
    if base not in PARTICIPANTS or not set(options) <= set(OPTIONS):
        sys.exit(f"speed.py: {participant!r} is no participant: one of {', '.join(PARTICIPANTS)}, then {list(OPTIONS)}")
    return base, options


def fingerprint(*files):
    """Twelve digits that change when a file does."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def our_files():
    """The programs under measurement but for the reference: all rounds must run the same ones."""
    return [*sorted((HERE.parent / "lora_kit").rglob("*.py")), HERE / "run_one.py", HERE / "floor.py"]


def processor_seconds():
    """Seconds of all cores that the whole machine has worked, and that the processes started from here have."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, waiting = ticks[3:5]
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK"), ours.ru_utime + ours.ru_stime


class Running:
    """A participant's process, from its start to its end."""

    def __init__(self, participant, case, model, pictures, folder, reference, threads):
        base, options = parts(participant)
        processes = 2 if "x2" in options else 1
        self.participant, self.folder, self.updates = participant, folder, case.updates
        self.record, output, turns = folder / "record.jsonl", folder / "output", folder / "turns"
        shutil.rmtree(output, ignore_errors=True)
        for file in (self.record, turns):
            file.unlink(missing_ok=True)
        os.mkfifo(turns)
        self.turns = os.open(turns, os.O_RDWR)
        flags = {
            "--pretrained_model_name_or_path": model,
            "--resolution": case.resolution,
            "--train_batch_size": case.batch // processes,
            "--rank": case.rank,
            "--max_train_steps": case.updates,
            "--learning_rate": case.learning_rate,
        }
        if base == "floor":
            script = [HERE / "floor.py", self.record]
        else:
            script = [HERE / "run_one.py", self.record, reference if base == "reference" else "lora_kit.training"]
            flags |= {"--train_data_dir": pictures, "--output_dir": output, "--seed": case.seed}
        if "bf16" not in options:
            flags["--mixed_precision"] = "no"
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        command += script + [word for flag in flags.items() for word in flag]
        command += [*PARTICIPANTS[base], *(word for option in options for word in OPTIONS[option])]
        self.caches = folder / "caches"
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.caches / "datasets"),
            "LORA_KIT_CACHE": str(self.caches / "lora_kit"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.caches / "inductor"),
            "OMP_NUM_THREADS": str(threads // processes),
            "ACCELERATE_USE_CPU": "true",
            "TURNS": str(turns),
        }
        with open(folder / "log.txt", "w") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                cwd=HERE.parent,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def lines(self):
        return self.record.read_text().splitlines() if self.record.exists() else []

    def wait_for(self, updates):
        """Wait until it has made so many updates, then hold it still with all that it has started."""
        while len(self.lines()) < updates:
            if self.process.poll() is not None:
                self.fail()
            time.sleep(0.002)
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self):
        os.killpg(self.process.pid, signal.SIGCONT)
        os.write(self.turns, b"\n")

    def fail(self):
        tail = (self.folder / "log.txt").read_text()[-2000:]
        sys.exit(
            f"{tail}\nspeed.py: {self.participant} ended with {self.process.poll()} after {len(self.lines())} updates"
        )

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.turns)

    def result(self, skip):
        """What it recorded, once it has ended."""
        self.go_on()
        lines = [json.loads(line) for line in self.lines()]
        if self.process.wait() or len(lines) != self.updates:
            self.fail()
        seconds = [line["seconds"] for line in lines[1:]]
        cache_files = [path for path in (self.caches / "lora_kit").rglob("*") if path.is_file()]
        return {
            "seconds_per_update": statistics.median(seconds[skip - 1 :]),
            "seconds_to_first_update": lines[0]["age"],
            "peak_bytes": lines[-1]["peak_bytes"],
            "cache_files": len(cache_files),
            "cache_bytes": sum(path.stat().st_size for path in cache_files),
            "seconds": seconds,
            "losses": [line["loss"] for line in lines],
        }


def run(participants, case, model, pictures, work, *rest):
    """Processes of the participants, started one after the other, that then take turns, an update each, to their ends.

    Returns what each recorded, and the cores that other processes took meanwhile.
    """
    began, machine_before, ours_before = time.monotonic(), *processor_seconds()
    running = {}
    try:
        for name in participants:
            running[name] = Running(name, case, model, pictures, work / name, *rest)
            running[name].wait_for(1)
        for update in range(2, case.updates + 1):
            for one in running.values():
                one.go_on()
                one.wait_for(update)
        results = {name: one.result(case.skip) for name, one in running.items()}
    finally:
        for one in running.values():
            one.kill()
    machine, ours = processor_seconds()
    return results, max((machine - machine_before - (ours - ours_before)) / (time.monotonic() - began), 0.0)


def run_round(order, case, model, pictures, work, *rest):
    """Cold runs of those whose caches are due to be new, then the warm runs, which take turns where they can."""
    runs, others = {name: {} for name in case.participants}, []
    short = replace(case, updates=2, skip=1)
    for name in order:
        folder = work / name
        due = (name in COLD_EACH_ROUND and case.cold_each_round) or not folder.exists()
        if due and parts(name)[0] != "floor":
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            results, taken = run([name], short, model, pictures, work, *rest)
            runs[name]["cold"] = results[name]
            others.append(taken)
        folder.mkdir(parents=True, exist_ok=True)
    for names in [order] if case.together else [[name] for name in order]:
        results, taken = run(names, case, model, pictures, work, *rest)
        for name in names:
            runs[name]["warm"] = results[name]
        others.append(taken)
    return {"runs": runs, "other_cores": max(others)}


def spreads(rounds):
    """For each participant: its slowest round's seconds per update over its fastest round's, less 1."""
    times = {name: [one["runs"][name]["warm"]["seconds_per_update"] for one in rounds] for name in rounds[0]["runs"]}
    return {name: max(values) / min(values) - 1 for name, values in times.items()}


def best_window(rounds, size):
    """The `size` rounds in a row whose worst spread is smallest: its first index, and each participant's spread."""
    windows = [(first, spreads(rounds[first : first + size])) for first in range(len(rounds) - size + 1)]
    return min(windows, key=lambda window: max(window[1].values()))


def measure(name, case, args, save):
    """Run rounds until `args.rounds` of them in a row agree within `args.limit`, or until there are args.max_rounds."""
    model, pictures = prepare(args.work, case)
    shutil.rmtree(args.work / "speed-runs", ignore_errors=True)
    result = {"name": name, **asdict(case), "rounds": []}
    while True:
        count = len(result["rounds"])
        turn = count % len(case.participants)
        load = os.getloadavg()[0]
        order = case.participants[turn:] + case.participants[:turn]
        found = run_round(order, case, model, pictures, args.work / "speed-runs", args.reference, args.threads)
        if fingerprint(args.reference, *our_files()) != args.fingerprint:
            sys.exit("speed.py: a file under measurement changed meanwhile: the rounds are of different programs")
        seconds = ", ".join(f"{one} {runs['warm']['seconds_per_update']:.4f}" for one, runs in found["runs"].items())
        print(f"{name}, round {count + 1}, s an update: {seconds}", file=sys.stderr, flush=True)
        result["rounds"].append({"load_average": load, **found})
        if count + 1 >= args.rounds:
            first, spread = best_window(result["rounds"], args.rounds)
            over = {one: value for one, value in spread.items() if value > args.limit}
            result |= {"window": [first + 1, first + args.rounds], "spread": spread, "refused": over or None}
        save(result)
        if count + 1 >= args.rounds and (not over or count + 1 >= args.max_rounds):
            return result


def report(result):
    """A Markdown table of the medians over the window's rounds, with ratios to the first participant.

    A ratio of times is taken turn by turn, between updates that follow each other, and then its median.
    """
    first, last = result["window"]
    rounds = result["rounds"][first - 1 : last]
    names = list(rounds[0]["runs"])
    base = names[0]

    def median(name, kind, field):
        values = [one["runs"][name][kind][field] for one in rounds if kind in one["runs"][name]]
        if not values and kind == "cold":  # those whose caches are new in their first round only
            values = [one["runs"][name][kind][field] for one in result["rounds"] if kind in one["runs"][name]]
        return statistics.median(values) if values else None

    def cell(name, kind, field, scale=1, digits=2):
        value, least = median(name, kind, field), median(base, kind, field)
        if value is None:
            return "–"
        return f"{value * scale:.{digits}f}" + (f" ({value / least:.2f}×)" if least and name != base else "")

    def ratio(name, other):
        if other not in names or name == other:
            return None
        turns = [
            [one["runs"][each]["warm"]["seconds"][result["skip"] - 1 :] for each in (name, other)] for one in rounds
        ]
        return statistics.median(mine / its for pair in turns for mine, its in zip(*pair, strict=True))

    def shown(value):
        return "–" if value is None else f"{value:.3f}"

    lines = [
        f"### {result['name']}",
        "",
        f"Batch {result['batch']}, rank {result['rank']}, {result['pictures']} pictures of {result['resolution']} pixels, "
        f"{result['updates']} updates, model {result['model']}.",
        "",
        f"| participant | s an update | × {base} | × floor | rounds differ by | first update cold, s | first update warm, s "
        "| peak memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        row = [
            name,
            f"{median(name, 'warm', 'seconds_per_update'):.4f}",
            shown(ratio(name, base)),
            shown(ratio(name, "floor")),
            f"{result['spread'][name]:.1%}" if len(rounds) > 1 else "–",
            cell(name, "cold", "seconds_to_first_update"),
            cell(name, "warm", "seconds_to_first_update"),
            cell(name, "warm", "peak_bytes", 1e-6, 0),
        ]
        lines.append(f"| {' | '.join(row)} |")
    loads = [one["load_average"] for one in rounds]
    others = [one["other_cores"] for one in rounds]
    lines += [
        "",
        f"Rounds {first} to {last} of {len(result['rounds'])}; load average before them {min(loads):.2f} to {max(loads):.2f}; "
        f"other processes took {statistics.median(others):.2f} cores in the median round, {max(others):.2f} in the worst.",
    ]
    if max(others) > OTHERS:
        lines.append("**The machine was not this benchmark's alone: ratios may be wrong even where rounds agree.**")
    below = {name: ratio(name, "floor") for name in SAME}
    below = ", ".join(f"{name} by {1 - value:.1%}" for name, value in below.items() if value and value < 1 - BELOW)
    if below:
        lines.append(f"**Below the floor, which can't be: {below}. Differences of that size are noise here.**")
    lines += [f"Files in lora_kit's cache after a cold run: {caches}." for caches in [cache_files(result)] if caches]
    pair = ("reference", "ours")
    if set(pair) <= set(names):
        same = [kind["losses"] for one in result["rounds"] for name in pair for kind in one["runs"][name].values()]
        longest = max(same, key=len)  # a cold run makes two updates
        pairs = (pair for losses in same for pair in zip(losses, longest, strict=False))
        apart = max(
            (abs(one - other) for one, other in pairs), key=lambda difference: (difference != difference, difference)
        )
        lines.append(f"The losses of reference and ours, cold and warm, differ by at most {apart:.1e} in any update.")
    return "\n".join(lines) + "\n"


def refusal(result):
    """Why a configuration is not reported."""
    first, last = result["window"]
    by = ", ".join(f"{one} by {value:.0%}" for one, value in result["refused"].items())
    return (
        f"speed.py: {result['name']} is not reported: in the best {last - first + 1} of {len(result['rounds'])} rounds in a row "
        f"the seconds an update differ by too much: {by}"
    )


def cache_files(result):
    """Such as "ours 1 (0.1 MB), ours-x2 1 (0.1 MB)": the most files that a cold run left, for those that left any."""
    most = {}
    for one in result["rounds"]:
        for name, kinds in one["runs"].items():
            if kinds.get("cold", {}).get("cache_files"):
                most[name] = max(most.get(name, (0, 0)), (kinds["cold"]["cache_files"], kinds["cold"]["cache_bytes"]))
    return ", ".join(f"{name} {files} ({size / 1e6:.1f} MB)" for name, (files, size) in most.items())


def installed(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed" if package != "torchvision" else "not installed (stand-in used)"


def heading(args):
    """What the figures depend on."""
    cpus = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "date": datetime.datetime.now().isoformat(" ", "minutes"),
        "cpu": cpus[0] if cpus else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "OMP_NUM_THREADS": args.threads,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "load average at the start": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: installed(package) for package in PACKAGES},
        "reference (SHA-256)": fingerprint(args.reference),
        "lora_kit (SHA-256)": fingerprint(*our_files()),
        "rounds": f"{args.rounds} in a row within {args.limit:.0%}, of at most {args.max_rounds}",
    }


def parse_args():
    parser = argparse.ArgumentParser(description="Time lora_kit beside diffusers' text-to-image LoRA script.")
    parser.add_argument("reference", type=Path, nargs="?", help="The path of train_text_to_image_lora.py.")
    parser.add_argument("--work", type=Path, help="A folder for pictures, models, caches and runs.")
    parser.add_argument(
        "--report", type=Path, nargs="+", help="Measure nothing: print the tables of these --json files."
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=[MAIN], help=f"Configurations. Default: {MAIN}.")
    parser.add_argument("--participants", nargs="+", help="These instead of the configuration's.")
    parser.add_argument("--updates", type=int, help="Updates of each run, instead of the configuration's.")
    parser.add_argument("--rounds", type=int, default=5, help="Rounds in a row that must agree. Default: 5.")
    parser.add_argument("--max-rounds", type=int, default=15, help="Give up after so many. Default: 15.")
    parser.add_argument("--limit", type=float, default=0.2, help="How far they may differ. Default: 0.2.")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", cores)))
    parser.add_argument("--json", type=Path, help="Write every round of every run here, as they come.")
    parser.add_argument("--markdown", type=Path, help="Append the tables here.")
    args = parser.parse_args()
    if args.report:
        return args
    if not args.reference or not args.work:
        parser.error("the path of the reference and --work are needed")
    if not args.reference.is_file():
        parser.error(f"{args.reference} is not a file; benchmarks/README.md says where to get it")
    args.reference, args.work = args.reference.resolve(), args.work.resolve()
    args.max_rounds = max(args.rounds, args.max_rounds)
    for participant in args.participants or ():
        parts(participant)
    return args


def heading_lines(document):
    return "\n".join(f"- {name}: {value}" for name, value in document["heading"].items()) + "\n"


def main():
    args = parse_args()
    for file in args.report or ():
        document = json.loads(file.read_text())
        print(heading_lines(document))
        for result in document["configurations"].values():
            print(refusal(result) if result["refused"] else report(result))
    if args.report:
        return
    args.work.mkdir(parents=True, exist_ok=True)
    lock = open(args.work / "lock", "w")  # let go by the system when this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"speed.py: another speed.py works in {args.work}; two at once would measure each other")
    args.fingerprint = fingerprint(args.reference, *our_files())
    document = {"heading": heading(args), "configurations": {}}

    def save(result):
        document["configurations"][result["name"]] = result
        if args.json:
            args.json.write_text(json.dumps(document, indent=1))

    def write(text):
        print(text, flush=True)
        if args.markdown:
            with open(args.markdown, "a") as file:
                file.write(f"{text}\n")

    modules = "accelerate, datasets, diffusers, peft, transformers"
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True, capture_output=True)  # into the page cache
    write(heading_lines(document))
    refused = False
    for name in args.only:
        changes = {"participants": tuple(args.participants or ()), "updates": args.updates}
        case = Case(**{**asdict(CASES[name]), **{field: value for field, value in changes.items() if value}})
        result = measure(name, case, args, save)
        if result["refused"]:
            refused = True
            print(refusal(result), file=sys.stderr)
        else:
            write(report(result))
    sys.exit(int(refused))


if __name__ == "__main__":
    main()
