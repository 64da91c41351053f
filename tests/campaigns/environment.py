"""Every variable that accelerate reads, set to something else, against the six commands: taken and said, or refused and named.

    python tests/campaigns/environment.py --values 1 fp8

The names come from accelerate's own source. A command passes where it ends with an error in a sentence that names the variable, or
where it does what it does without it: for a run the same LoRA to the bit, or one that its metrics say is another, with the
variable recorded. Exits with 1 where one does not.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import accelerate

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from running import fingerprint  # noqa: E402

from lora_kit.output.lora_file import LORA  # noqa: E402
from lora_kit.output.metrics import METRICS, read_metrics  # noqa: E402

FLAGS = "--style outlined --max_train_samples 8 --resolution 64 --train_batch_size 2 --max_train_steps 3 --seed 0 --learning_rate 1e-3".split()
FLAGS += "--lr_warmup_steps 0 --report_to none".split()
NOTEBOOK = """
import sys
from lora_kit.command_line.flags import parse_args
from lora_kit.training import train
train(parse_args(sys.argv[1:]), progress=False)
"""
COMMANDS = {
    "training": ["-m", "lora_kit.training"],
    "launch": ["-m", "lora_kit.launch", "--num_processes", "2"],
    "doctor": ["-m", "lora_kit.doctor"],
    "accelerate launch": ["-m", "accelerate.commands.launch", "--num_processes", "1", "-m", "lora_kit.training"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "lora_kit.training"],
    "notebook": ["-c", NOTEBOOK],
}
PREFIXES = "ACCELERATE|FSDP|PARALLELISM_CONFIG|MEGATRON_LM|DYNAMO|FP8|TE|MSAMP|AO"
NAME = re.compile(rf"[\"']((?:{PREFIXES})_[A-Z_0-9]*[A-Z0-9])[\"'{{]")
WAIT = 300  # seconds after which a command is taken for one that never ends


def variables():
    """The names of all variables of its own that accelerate's source reads or sets, sorted."""
    folder = Path(accelerate.__file__).parent
    files = [path for path in folder.rglob("*.py") if "test_utils" not in path.parts]
    return sorted({name for path in files for name in NAME.findall(path.read_text())})


def run(command, folder, extra):
    """(exit status, output, the LoRA's fingerprint or None, the metrics' start record or None, seconds)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "no accelerate config"),
        **extra,
    }
    flags = [*FLAGS, "--output_dir", str(folder / "run")] if command != "doctor" else FLAGS
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *COMMANDS[command], *flags],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WAIT,
        )
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        status, output = "hangs", ""
    lora = folder / "run" / LORA
    start = read_metrics(folder / "run" / METRICS)[0] if (folder / "run" / METRICS).exists() else None
    return status, output, fingerprint(lora) if lora.exists() else None, start, time.monotonic() - begin


def judge(command, name, value, plain, with_it):
    """(what came of it, whether that is right)."""
    status, output, lora, start, _ = with_it
    said = name in output
    if status == "hangs":
        return "hangs", False
    if status not in (0, plain[0]):
        if command == "accelerate launch" and "lora_kit" not in output:
            return "ends in accelerate, before the kit", True
        # A cell shows how it came to its error; torchrun adds the way it came to its own.
        sentence = (
            name in output.strip().splitlines()[-1] if command == "notebook" else said and "lora_kit/" not in output
        )
        return ("refused, named", True) if sentence else ("fails without a word of it", False)
    if lora != plain[2]:
        recorded = start and start["environment"].get(name) == value
        return ("taken, recorded", True) if recorded else ("another result without a word of it", False)
    recorded = said or (start and name in start["environment"])
    return ("as without it, said" if recorded else "as without it"), True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", nargs="+", default=["1"], help="what each is set to")
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--names", nargs="+", default=variables())
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    counts, wrong = Counter(), []

    def one(job):
        command, name, value = job
        with tempfile.TemporaryDirectory() as folder:
            return command, name, value, run(command, Path(folder), {name: value} if name else {})

    print(f"accelerate {accelerate.__version__}: {len(options.names)} variables", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        plain = {command: outcome for command, _, _, outcome in pool.map(one, [(c, "", "") for c in options.commands])}
        for command, outcome in plain.items():
            print(f"{command} without any: status {outcome[0]}, {outcome[4]:.0f} s", flush=True)
        jobs = [(c, name, value) for c in options.commands for name in options.names for value in options.values]
        for command, name, value, outcome in pool.map(one, jobs):
            words, right = judge(command, name, value, plain[command], outcome)
            counts[command, words] += 1
            if not right:
                wrong.append(f"{command}, {name}={value}: {words}\n    {outcome[1].strip()[-600:]}")
                print(f"WRONG {wrong[-1]}", flush=True)
    columns = sorted({words for _, words in counts})
    print(f"\n| command | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for command in options.commands:
        print(f"| {command} | {' | '.join(str(counts[command, words]) for words in columns)} |")
    print(f"{sum(counts.values())} runs, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
