"""Kill training runs at random moments, go on from what they left, and compare with the run that was never killed.

    python tests/output/faults/campaign.py --kills 30 --work build/faults

Every third run is killed while it writes a checkpoint. On two processes one rank is killed, or both, by turns. Afterwards
every checkpoint that is listed must be whole, and the run that goes on must end with the same weights, optimizer state,
schedule, random states and metrics as the unbroken one. Exits with 1 where one does not.
"""

import argparse
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

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

from safetensors.torch import load_file  # noqa: E402

from lora_kit.output.checkpoints import checkpoints, read  # noqa: E402
from lora_kit.output.lora_file import LORA  # noqa: E402
from lora_kit.output.metrics import METRICS, read_metrics  # noqa: E402

UPDATES = 8
FLAGS = dict(
    style="outlined", max_train_samples=18, resolution=64, train_batch_size=2, gradient_accumulation_steps=2, seed=0,
    max_train_steps=UPDATES, checkpointing_steps=1, checkpoints_total_limit=3, learning_rate=2e-3, lr_scheduler="cosine",
    lr_warmup_steps=2, report_to="none", mixed_precision="no",
)  # fmt: skip
WAIT = 600  # seconds after which a run is taken for one that never ends
TRIES = 20  # a kill that comes when the run is over is made again


def command(processes, folder, resume=False):
    flags = FLAGS | {"output_dir": folder} | ({"resume_from_checkpoint": "latest"} if resume else {})
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    argv = [sys.executable, *launcher, "-m", "lora_kit.training"]
    return argv + [f"--{name}={value}" for name, value in flags.items()]


def start(processes, folder, log, resume=False, mark=""):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FAULTS_MARK": mark}
    return subprocess.Popen(
        command(processes, folder, resume),
        cwd=REPOSITORY,
        env=environment,
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
    """What a finished run has made: its LoRA's numbers (safetensors orders its metadata as it likes), the digests of its
    last checkpoint's other files, and its metrics."""
    last = checkpoints(folder)[-1]
    files = read(last)["files"]
    del files[LORA]
    tensors = {name: tensor.numpy().tobytes() for name, tensor in load_file(last / LORA).items()}
    return tensors, files, updates(folder)


def whole_run(processes, folder, log, resume=False):
    process = start(processes, folder, log, resume)
    try:
        status = process.wait(WAIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    if status:
        raise RuntimeError(f"a run that nobody killed ended with {status}")


def kill_one(number, processes, in_checkpoint, everyone, folder, log, chance):
    """Start a run, kill it at a random moment, and wait until nothing of it is left. Returns what happened."""
    mark = f"{os.getpid()}-{number}-{time.time_ns()}"
    process = start(processes, folder, log, mark=mark)
    wanted = chance.randint(1, UPDATES - 1)
    delay = chance.uniform(0, 0.004 if in_checkpoint else 0.3)
    part = folder / f"checkpoint-{wanted}.part"
    deadline = time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < deadline:
        if part.exists() if in_checkpoint else len(updates(folder)) >= wanted - 1:
            break
        time.sleep(0.0002 if in_checkpoint else 0.005)
    time.sleep(delay)
    running = marked(mark)
    ranks = sorted(rank for rank in running.values() if rank is not None) or [0]
    victim = None if everyone or processes == 1 else chance.choice(ranks)
    killed = 0
    for one, rank in running.items():
        if victim is None or rank == victim:
            try:
                os.kill(one, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
    try:
        process.wait(WAIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = len(marked(mark))
    for one in marked(mark):
        os.kill(one, signal.SIGKILL)
    return {
        "processes": processes,
        "killed": "all" if victim is None else f"rank {victim}",
        "at": "checkpoint" if in_checkpoint else "any time",
        "hit": killed > 0 and len(updates(folder)) < UPDATES,
        "half a checkpoint left": any(folder.glob("checkpoint-*.part")),
        "processes left": left,
    }


def campaign(kills, work, seed=0, progress=None):
    """Records of so many kills, each with what was found afterwards."""
    chance, work, records = random.Random(seed), Path(work), []
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "log.txt", "w") as log:
        unbroken = {}
        for processes in (1, 2):
            folder = work / f"unbroken-{processes}"
            shutil.rmtree(folder, ignore_errors=True)
            whole_run(processes, folder, log)
            unbroken[processes] = outcome(folder)
        for number in range(kills):
            folder, processes = work / "run", 1 + number % 2
            for _ in range(TRIES):
                shutil.rmtree(folder, ignore_errors=True)
                record = kill_one(number, processes, number % 3 == 0, number % 4 > 1, folder, log, chance)
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
                whole_run(processes, folder, log, resume=True)
                record["same"] = outcome(folder) == unbroken[processes]
            except RuntimeError as error:
                record |= {"same": False, "error": str(error)}
            records.append(record)
            if progress:
                progress(number, record)
    return records


def table(records):
    """Counts as Markdown."""
    rows = Counter((one["processes"], one["killed"].split()[0], one["at"]) for one in records)
    lines = [
        "| processes | killed | when | kills | hit the run | half a checkpoint left | broken ones listed | same end |",
        "|---" * 8 + "|",
    ]
    for key in sorted(rows):
        some = [one for one in records if (one["processes"], one["killed"].split()[0], one["at"]) == key]
        counts = [sum(bool(one[name]) for one in some) for name in ("hit", "half a checkpoint left", "broken", "same")]
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {len(some)} | {' | '.join(map(str, counts))} |")
    same, all_of_them = sum(one["same"] for one in records), len(records)
    return "\n".join([*lines, f"\n{same} of {all_of_them} go on to the unbroken run's end."])


def main():
    parser = argparse.ArgumentParser(description="Kill training runs at random moments and go on from what they left.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="Default: a temporary folder.")
    args = parser.parse_args()

    def progress(number, record):
        print(f"{number + 1}: {record}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        records = campaign(args.kills, args.work or folder, args.seed, progress)
    print(table(records))
    sys.exit(int(not all(one["same"] and not one["broken"] and not one["processes left"] for one in records)))


if __name__ == "__main__":
    main()
