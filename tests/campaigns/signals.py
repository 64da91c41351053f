"""End training runs at random moments, go on from what they left, and compare with the run that was never ended.

    python tests/campaigns/signals.py --kills 60 --work build/faults

By turns with SIGKILL, SIGTERM, SIGINT and SIGHUP; at any time, while a checkpoint is written, at the end, when the LoRA is, and, with
nothing in the cache, while the style is drawn and while pictures are encoded. On two processes one rank gets the signal, or all.
Afterwards every checkpoint that is listed must be whole, and the run that goes on must end with the same weights, optimizer
state, schedule, random states and metrics as the unbroken one. Exits with 1 where one does not.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from lora_kit.output.checkpoints import checkpoints, read  # noqa: E402
from lora_kit.output.metrics import METRICS, read_metrics  # noqa: E402

UPDATES = 8
FLAGS = dict(
    style="outlined", max_train_samples=18, resolution=64, train_batch_size=2, gradient_accumulation_steps=2, seed=0,
    max_train_steps=UPDATES, checkpointing_steps=1, checkpoints_total_limit=3, learning_rate=2e-3, lr_scheduler="cosine",
    lr_warmup_steps=2, report_to="none", mixed_precision="no",
)  # fmt: skip
WAIT = 600  # seconds after which a run is taken for one that never ends
TRIES = 20  # a signal that comes when the run is over is sent again, to another
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOMENTS = {  # when the signal is sent, and within how many seconds after it
    "any time": (lambda folder, cache, wanted: len(updates(folder)) >= wanted - 1, 0.3),
    "checkpoint": (lambda folder, cache, wanted: (folder / f"checkpoint-{wanted}.part").exists(), 0.004),
    "end": (lambda folder, cache, wanted: len(updates(folder)) == UPDATES, 0.02),
    "style": (lambda folder, cache, wanted: cache.exists(), 0.5),
    "encoding": (lambda folder, cache, wanted: any(cache.glob("encoded-*/pictures")), 0.5),
}


def command(processes, folder, resume=False):
    flags = FLAGS | {"output_dir": folder} | ({"resume_from_checkpoint": "latest"} if resume else {})
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    argv = [sys.executable, *launcher, "-m", "lora_kit.training"]
    return argv + [f"--{name}={value}" for name, value in flags.items()]


def start(processes, folder, cache, log, resume=False, mark=""):
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FAULTS_MARK": mark, "LORA_KIT_CACHE": str(cache)}
    return subprocess.Popen(
        command(processes, folder, resume),
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def marked(mark):
    """{process: rank} of the training processes that carry the mark; rank None is a launcher."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = dict(word.split("=", 1) for word in path.read_bytes().decode().split("\0") if "=" in word)
        except (OSError, UnicodeDecodeError):
            continue
        if words.get("FAULTS_MARK") == mark:
            found[int(path.parent.name)] = int(words["RANK"]) if "RANK" in words else None
    return found


def updates(folder):
    lines = read_metrics(Path(folder, METRICS))[1]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def outcome(folder):
    """What a finished run has made: the digests of its last checkpoint's files, the LoRA among them, and its metrics."""
    return read(checkpoints(folder)[-1])["files"], updates(folder)


def whole_run(processes, folder, cache, log, resume=False):
    process = start(processes, folder, cache, log, resume)
    try:
        status = process.wait(WAIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    if status:
        raise RuntimeError(f"a run that nobody killed ended with {status}")


def end_one(number, folder, cache, log, chance):
    """Start a run, send it a signal at a random moment, and wait until nothing of it is left. Returns what happened."""
    processes, everyone = 1 + number % 2, chance.random() < 0.5
    sent, moment = SIGNALS[number // 2 % len(SIGNALS)], list(MOMENTS)[number // 2 // len(SIGNALS) % len(MOMENTS)]
    reached, within = MOMENTS[moment]
    if moment in ("style", "encoding"):
        shutil.rmtree(cache, ignore_errors=True)
    mark = f"{os.getpid()}-{number}-{time.time_ns()}"
    process = start(processes, folder, cache, log, mark=mark)
    wanted, deadline = chance.randint(1, UPDATES - 1), time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < deadline and not reached(folder, cache, wanted):
        time.sleep(min(within / 20, 0.005))
    time.sleep(chance.uniform(0, within))
    running = marked(mark)
    ranks = sorted(rank for rank in running.values() if rank is not None) or [0]
    victim = None if everyone or processes == 1 else chance.choice(ranks)
    for one, rank in running.items():
        if victim is None or rank == victim:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, sent)
    try:
        process.wait(WAIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = len(marked(mark))
    for one in marked(mark):
        os.kill(one, signal.SIGKILL)
    return {
        "processes": processes,
        "signal": sent.name,
        "to": "all" if victim is None else "one rank",
        "at": moment,
        "hit": process.returncode != 0,
        "half a checkpoint left": any(folder.glob("checkpoint-*.part")),
        "processes left": left,
    }


def campaign(kills, work, seed=0, progress=None):
    """Records of so many signals, each with what was found afterwards."""
    chance, work, records = random.Random(seed), Path(work).resolve(), []
    cache = work / "cache"
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "log.txt", "w") as log:
        unbroken = {}
        for processes in {1 + number % 2 for number in range(kills)}:
            folder = work / f"unbroken-{processes}"
            shutil.rmtree(folder, ignore_errors=True)
            whole_run(processes, folder, cache, log)
            unbroken[processes] = outcome(folder)
        for number in range(kills):
            folder = work / "run"
            for _ in range(TRIES):
                shutil.rmtree(folder, ignore_errors=True)
                record = end_one(number, folder, cache, log, chance)
                if record["hit"]:
                    break
            problems = []
            for checkpoint in checkpoints(folder):
                try:
                    read(checkpoint)
                except ValueError as error:
                    problems.append(str(error))
            record |= {"checkpoints": len(checkpoints(folder)), "broken": problems}
            try:
                whole_run(record["processes"], folder, cache, log, resume=True)
                record["same"] = outcome(folder) == unbroken[record["processes"]]
            except RuntimeError as error:
                record |= {"same": False, "error": str(error)}
            records.append(record)
            if progress:
                progress(number, record)
    return records


def table(records):
    """Counts as Markdown."""
    rows = Counter((one["at"], one["signal"]) for one in records)
    lines = [
        "| when | signal | runs | hit | half a checkpoint left | broken ones listed | processes left | same end |",
        "|---" * 8 + "|",
    ]
    for key in sorted(rows):
        some = [one for one in records if (one["at"], one["signal"]) == key]
        names = ("hit", "half a checkpoint left", "broken", "processes left", "same")
        counts = [sum(bool(one[name]) for one in some) for name in names]
        lines.append(f"| {key[0]} | {key[1]} | {len(some)} | {' | '.join(map(str, counts))} |")
    same, all_of_them = sum(one["same"] for one in records), len(records)
    return "\n".join([*lines, f"\n{same} of {all_of_them} resume to the unbroken run's end."])


def main():
    parser = argparse.ArgumentParser(description="End training runs at random moments and go on from what they left.")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="Default: a temporary folder.")
    args = parser.parse_args()

    def progress(number, record):
        print(f"{number + 1}: {record}", file=sys.stderr, flush=True)

    for sent in SIGNALS[
        1:
    ]:  # in the background a shell lets its commands ignore some, and what is started inherits that
        signal.signal(sent, signal.SIG_DFL)
    with tempfile.TemporaryDirectory() as folder:
        records = campaign(args.kills, args.work or folder, args.seed, progress)
    print(table(records))
    sys.exit(int(not all(one["same"] and not one["broken"] and not one["processes left"] for one in records)))


if __name__ == "__main__":
    main()
