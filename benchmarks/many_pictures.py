"""Whether a run's memory grows with the number of its pictures, and what the encodings of many take on the disk.

    python benchmarks/many_pictures.py --counts 1000 16000 --updates 60

Each count is a cold run of the embedded model in a process of its own. The exit status is 1 where the most memory that one takes
is over 1.1 times that of the first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lora_kit.data.records import SEAL

# runs the loop in a child, and prints its peak in kB: Linux counts a parent's waited-for children together
PEAK = "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:]).returncode; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(r)"


def write_pictures(folder, count):
    """Plain pictures of 64 pixels, each with a caption of its own."""
    from PIL import Image

    folder.mkdir()
    with open(folder / "metadata.jsonl", "w") as lines:
        for index in range(count):
            colour = (index % 256, index // 256 % 256, 128)
            Image.new("RGB", (64, 64), colour).save(folder / f"{index}.png", compress_level=1)
            lines.write(json.dumps({"file_name": f"{index}.png", "text": f"colour number {index}"}) + "\n")


def measure(count, updates, place):
    """{pictures, seconds in all, MB at most, MB that the encodings take on the disk, and would if all were made}."""
    folder, cache = place / f"pictures-{count}", place / f"cache-{count}"
    write_pictures(folder, count)
    flags = dict(
        train_data_dir=folder, resolution=64, learning_rate=1e-3, train_batch_size=8, max_train_steps=updates, seed=0,
        lr_warmup_steps=0, output_dir=place / f"run-{count}", dataloader_num_workers=0,
    )  # fmt: skip
    places = {"LORA_KIT_CACHE": str(cache), "HF_DATASETS_CACHE": str(place / f"datasets-{count}")}
    command = [sys.executable, "-m", "lora_kit.training", *(f"--{name}={value}" for name, value in flags.items())]
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command], env=os.environ | places, stdout=subprocess.PIPE, text=True, check=True
    )
    files = [path.stat() for path in cache.glob("encoded-*/*")]
    return {
        "pictures": count,
        "seconds": time.monotonic() - begin,
        "memory": int(done.stdout.split()[-1]) / 1e3,
        "written": sum(512 * file.st_blocks for file in files) / 1e6,
        "full": sum(file.st_size for file in files) / 1e6,
    }


def estimate(pictures, captions, side, width, itemsize):
    """GB that the encodings of so many take: latents of side x side in four channels, mean and deviation; 77 states of `width`."""
    return (pictures * (2 * 4 * side * side * itemsize + SEAL) + captions * (77 * width * itemsize + SEAL)) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[1000, 16000], metavar="N")
    parser.add_argument("--updates", type=int, default=60, help="of each run, at batch 8")
    options = parser.parse_args()
    print("pictures   seconds  memory, MB  encodings, MB: written  all of them")
    with tempfile.TemporaryDirectory() as place:
        rows = []
        for count in options.counts:
            rows.append(row := measure(count, options.updates, Path(place)))
            print("{pictures:8,} {seconds:9.1f} {memory:11.1f} {written:23.1f} {full:12.1f}".format(**row), flush=True)
    for dtype, itemsize in (("float32", 4), ("16 bits", 2)):
        size = estimate(10**6, 10**6, 64, 768, itemsize)
        print(
            f"a million pictures of 512 pixels, each with its caption, for Stable Diffusion 1.5 in {dtype}: {size:.0f} GB"
        )
    most = max(row["memory"] for row in rows) / rows[0]["memory"]
    print(f"most memory over that of the first: {most:.3f}")
    sys.exit(most > 1.1)


if __name__ == "__main__":
    main()
