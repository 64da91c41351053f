"""Launches from kernels whose other threads write to stdout and stderr without a pause: none may hang, none may fail.

    python tests/campaigns/launches.py --launches 60

Two kernels launch beside each other, two processes each, and another process keeps a core busy. Exits with 1 where a launch does not
end in time, or leaves a process or a file in the temporary folder behind.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import Empty

from jupyter_client.manager import start_new_kernel

REPOSITORY = Path(__file__).resolve().parents[2]
WAIT = 300  # seconds after which a launch is taken for one that hangs
NOISE = """
import itertools, logging, sys, threading, time
over = threading.Event()
def noise():
    for number in itertools.count():
        print("line", number)
        print("line", number, file=sys.stderr)
        logging.warning("line %s", number)
        if over.wait(0.002):
            return
threads = [threading.Thread(target=noise) for _ in range(3)]
for thread in threads:
    thread.start()
from lora_kit.config import TrainingConfig
from lora_kit.launch import launch
"""
LAUNCH = """
config = TrainingConfig(style="outlined", max_train_samples=8, resolution=64, train_batch_size=2, max_train_steps=2, seed=0,
    learning_rate=1e-3, lr_warmup_steps=0, report_to="none", output_dir={folder!r})
assert launch(config, 2).updates == 2
"""


def busy():
    while True:
        pass


def left(place):
    """What is in the temporary folder, and which processes have it in their environment, but for the kernel itself."""
    mark = f"TMPDIR={place}".encode()
    processes = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes():
                processes.append(int(path.parent.name))
        except OSError:
            continue
    files = [
        path.name for path in place.iterdir() if not path.name.startswith("torchinductor_")
    ]  # torch's cache, which stays
    return sorted(processes), sorted(files)


def run_kernel(launches, place, outcomes):
    environment = os.environ | {
        "TMPDIR": str(place),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    manager, client = start_new_kernel(env=environment, cwd=str(REPOSITORY))
    client.iopub_channel.stop()  # nobody could read all that as fast as it is written; locks are taken all the same

    def execute(code):
        """What came of a cell: "ok", or its error. Raises Empty where none comes in time."""
        message = client.execute(code, store_history=False)
        while (reply := client.get_shell_msg(timeout=WAIT))["parent_header"]["msg_id"] != message:
            pass
        content = reply["content"]
        return "ok" if content["status"] == "ok" else f"{content['ename']}: {content['evalue']}"

    try:
        execute(NOISE)
        before = left(place)
        for number in range(launches):
            begin = time.monotonic()
            try:
                status = execute(LAUNCH.format(folder=str(place.parent / f"{place.name}-run-{number % 2}")))
            except Empty:
                status = "hangs"
            end = time.monotonic() + 10
            while (rest := left(place)) != before and time.monotonic() < end:
                time.sleep(0.1)
            outcomes.append((status, time.monotonic() - begin, rest == before))
            print(
                f"{place.name}, {number + 1}: {status}, {outcomes[-1][1]:.1f} s, nothing left: {rest == before}",
                flush=True,
            )
            if status == "hangs":
                break
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", type=int, default=60, help="of two kernels together")
    options = parser.parse_args()
    outcomes = []
    load = multiprocessing.Process(target=busy, daemon=True)
    load.start()
    with tempfile.TemporaryDirectory() as place:
        kernels = []
        for name in ("one", "two"):
            Path(place, name).mkdir()
            kernels.append(
                threading.Thread(target=run_kernel, args=(options.launches // 2, Path(place, name), outcomes))
            )
            kernels[-1].start()
        for kernel in kernels:
            kernel.join()
    load.kill()
    good = [outcome for outcome in outcomes if outcome[0] == "ok" and outcome[2]]
    times = sorted(seconds for _, seconds, _ in outcomes)
    print(f"{len(good)} of {options.launches} launches ended well, in {times[0]:.1f} to {times[-1]:.1f} s")
    sys.exit(len(good) < options.launches // 2 * 2)


if __name__ == "__main__":
    main()
