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


def record_updates(path):
    """Write a line to `path` at each update: loss, learning rate, seconds since the process began, peak memory."""
    from accelerate import Accelerator
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    rates = []
    register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: rates.append(optimizer.param_groups[0]["lr"]))
    log = Accelerator.log
    file = open(path, "w", buffering=1) if int(os.environ.get("RANK", 0)) == 0 else None

    def log_and_record(self, values, *args, **kwargs):
        if file and "train_loss" in values:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            line = {"loss": values["train_loss"], "lr": float(rates[-1]), "age": process_age(), "peak_bytes": peak}
            file.write(json.dumps(line) + "\n")
        return log(self, values, *args, **kwargs)

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
