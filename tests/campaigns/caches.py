"""Turn bits over and cut files short in all that a run keeps, and let two runs write at once: nothing is silently other.

    python tests/campaigns/caches.py --minutes 10

Kept are the encodings and their plan, the drawn style, the list of the data's digests, and the checkpoint. A damaged cache is made
anew without a word, with the same result to the bit; a damaged checkpoint is named. Exits with 1 where one is not.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from lora_kit.config import TrainingConfig  # noqa: E402
from lora_kit.data.emoji import load_style  # noqa: E402
from lora_kit.output.checkpoints import read  # noqa: E402

KEPT = ("plan.json", "captions", "pictures", "style")
CUTS, FLIPS = 50, 200


def config(folder):
    return TrainingConfig(
        style="outlined", max_train_samples=6, resolution=64, train_batch_size=3, learning_rate=1e-3, lr_warmup_steps=0, seed=0,
        max_train_steps=2, checkpointing_steps=2, report_to="none", output_dir=str(folder),
    )  # fmt: skip


def latents(folder):
    """What the encodings of a run's data are, as bytes: all of them read, and made where they aren't there."""
    import torch
    from accelerate import Accelerator

    from lora_kit.data.prepared import Pictures
    from lora_kit.system.state import own_accelerate_state

    with own_accelerate_state():
        data = Pictures(config(folder), Accelerator(cpu=True), 0, torch.float32).prepare()
    batch = data.dataset.__getitems__(list(range(6)))
    data.encode_new_captions(batch)
    data.encode_new_pictures(batch)
    return b"".join(batch[name].numpy().tobytes() for name in ("posterior", "encoder_hidden_states"))


def damages(content, chance):
    """(what was done, the damaged content), CUTS and FLIPS of them, spread over the whole file."""
    for index in range(CUTS):
        yield "cut", content[: len(content) * index // CUTS]
    for index in range(FLIPS):
        place = min(len(content) * index // FLIPS + chance.randrange(max(len(content) // FLIPS, 1)), len(content) - 1)
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        yield "flip", bytes(damaged)


def find(cache, name):
    return next(iter(cache.glob("style-*" if name == "style" else f"encoded-*/{name}")))


def damage_caches(place, chance):
    """Counts of (file, what was done, what came of it)."""
    cache = Path(os.environ["LORA_KIT_CACHE"])
    wanted, counts = latents(place / "run"), Counter()
    pictures = [record["image"].tobytes() for record in load_style("outlined", "lora", size=64)]
    for name in KEPT:
        content = find(cache, name).read_bytes()
        for kind, damaged in damages(content, chance):
            path = find(cache, name)
            path.chmod(0o644)
            path.write_bytes(damaged)
            if name == "style":
                same = [record["image"].tobytes() for record in load_style("outlined", "lora", size=64)] == pictures
            else:
                same = latents(place / "run") == wanted
            counts[name, kind, "same" if same else "WRONG"] += 1
    return counts


def damage_checkpoint(place, chance):
    """Counts of (file, what was done, what came of it) for a checkpoint, none of whose bits may change unnoticed."""
    from lora_kit.training import train

    train(config(place / "run"), progress=False)
    folder, counts = place / "run" / "checkpoint-2", Counter()
    whole = read(folder)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for kind, damaged in damages(content, chance):
            path.write_bytes(damaged)
            try:
                outcome = (
                    "same" if read(folder) == whole and path.name == "checkpoint.json" else "WRONG"
                )  # a space, perhaps
            except ValueError as error:
                outcome = "named" if path.name in str(error) or str(folder) in str(error) else "WRONG"
            counts[path.name, kind, outcome] += 1
        path.write_bytes(content)
    return counts


def write_for(seconds, number, outcomes, wanted):
    """Empty the cache now and then, and read it all the time, beside others that do the same."""
    chance, end, rounds = random.Random(number), time.monotonic() + seconds, 0
    cache, problem = Path(os.environ["LORA_KIT_CACHE"]), ""
    while time.monotonic() < end and not problem:
        try:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                if chance.random() < 0.3:
                    for path in cache.glob(chance.choice(["encoded-*", "style-*"])):
                        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
                if latents(cache.parent / f"run-{number}") != wanted:
                    problem = "other numbers"
                problem = problem or said.getvalue()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        rounds += 1
    outcomes.put((number, rounds, problem))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of the two writers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["LORA_KIT_CACHE"] = str(Path(place, "cache"))
        chance = random.Random(0)
        counts = damage_caches(Path(place), chance) + damage_checkpoint(Path(place), chance)
        columns = sorted({outcome for _, _, outcome in counts})
        print(f"| file | damage | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
        for name, kind in dict.fromkeys((name, kind) for name, kind, _ in counts):
            print(f"| {name} | {kind} | {' | '.join(str(counts[name, kind, outcome]) for outcome in columns)} |")
        wanted, fork = latents(Path(place, "run")), multiprocessing.get_context("fork")
        outcomes = fork.Queue()
        writers = [
            fork.Process(target=write_for, args=(60 * options.minutes, number, outcomes, wanted)) for number in (1, 2)
        ]
        for writer in writers:
            writer.start()
        ends = [outcomes.get() for _ in writers]
        for writer in writers:
            writer.join()
    for number, rounds, problem in sorted(ends):
        print(
            f"writer {number}: {rounds} rounds in {options.minutes:g} minutes, {problem or 'all with the same numbers'}"
        )
    sys.exit(
        bool(
            counts.total() - sum(n for (_, _, outcome), n in counts.items() if outcome != "WRONG")
            or any(end[2] for end in ends)
        )
    )


if __name__ == "__main__":
    main()
