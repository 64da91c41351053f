"""Run one training script unchanged, as its own process, and record what it did: one JSON line an update.

    python benchmarks/run_one.py RECORD.jsonl SCRIPT_OR_MODULE [its flags ...]

SCRIPT_OR_MODULE: a path such as .../train_text_to_image_lora.py, or a module such as lora_kit.training. Under torchrun
only rank 0 records. Nothing is replaced in the script: the loss is taken from its own call of `Accelerator.log`, the
learning rate from a hook that torch calls before each optimizer step. Without torchvision a stand-in takes its place.
"""

import json
import os
import resource
import runpy
import sys
import time
from importlib.util import find_spec
from pathlib import Path


def process_age():
    """Seconds since this process was started by the system, imports of Python itself included."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Record:
    """The file that an update's line is written to. With TURNS in the environment, a named pipe, the process then waits
    there for its next turn."""

    def __init__(self, path):
        self.file = open(path, "w", buffering=1)
        self.turns = open(os.environ["TURNS"]) if "TURNS" in os.environ else None
        self.began = None

    def write(self, **values):
        """A line of `values`, the process's age, its peak memory, and the seconds since its turn or last line began."""
        now = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = now - self.began if self.began else None
        self.file.write(json.dumps({**values, "age": process_age(), "seconds": seconds, "peak_bytes": peak}) + "\n")
        if self.turns:
            self.turns.readline()
        self.began = time.perf_counter()


def record_updates(path):
    """Write a line to `path` at each update: loss and learning rate, and what `Record` adds."""
    from accelerate import Accelerator
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    rates = []
    register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: rates.append(optimizer.param_groups[0]["lr"]))
    log = Accelerator.log
    record = Record(path) if int(os.environ.get("RANK", 0)) == 0 else None

    def log_and_record(self, values, *args, **kwargs):
        result = log(self, values, *args, **kwargs)
        if record and "train_loss" in values:
            record.write(loss=values["train_loss"], lr=float(rates[-1]))
        return result

    Accelerator.log = log_and_record


def main():
    record, script, *argv = sys.argv[1:]
    sys.path.insert(0, os.getcwd())
    record_updates(record)
    if script.endswith(".py") and find_spec("torchvision") is None:
        import diffusers.utils.import_utils  # noqa: F401  both look for torchvision once, and must not find this one
        import transformers.utils

        transformers.utils.is_torchvision_available()
        sys.path.insert(0, str(Path(__file__).parent / "torchvision_standin"))
    sys.argv = [script, *argv]
    if script.endswith(".py"):
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
