"""The runs in which lora_kit with --match_diffusers is held against diffusers' LoRA script, and the pictures for them.

A case is data: the flags that both scripts are given, the kind of pictures, how many updates. See compare.py.
"""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

PICTURES = 20
BASE = {"resolution": 64, "train_batch_size": 3, "seed": 1, "learning_rate": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Flags over BASE (True: a switch; None: BASE's flag is left out), and how the run goes.

    data: the kind of pictures. updates: how many in all. by_epochs: ask for whole epochs instead of max_train_steps.
    stop: end after so many updates, then start again with --resume_from_checkpoint latest. ours: flags of lora_kit only.
    """

    name: str
    flags: dict = field(default_factory=dict)
    data: str = "square"
    updates: int = 40
    by_epochs: bool = False
    stop: int | None = None
    ours: tuple = ()

    def commands(self, processes):
        """The flags of each start of the script as a list: one, or two where the run is interrupted."""
        flags = {name: value for name, value in {**BASE, **self.flags}.items() if value is not None}
        if self.by_epochs:
            batches = math.ceil(math.ceil(PICTURES / flags["train_batch_size"]) / processes)
            updates = math.ceil(batches / flags.get("gradient_accumulation_steps", 1))
            lengths = [{"num_train_epochs": math.ceil(self.updates / updates)}]
        elif self.stop:
            last = {"max_train_steps": self.updates, "resume_from_checkpoint": "latest"}
            lengths = [{"max_train_steps": self.stop}, last]
        else:
            lengths = [{"max_train_steps": self.updates}]
        return [_argv({**flags, **length}) for length in lengths]


def _argv(flags):
    pairs = ([f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in flags.items())
    return [word for pair in pairs for word in pair]


def _schedule(name):
    return Case(name=name.replace("_", "-"), flags={"lr_scheduler": name, "lr_warmup_steps": 5})


COSINE = {"lr_scheduler": "cosine", "lr_warmup_steps": 5}
SNR = {"snr_gamma": 5.0}

CASES = [
    *map(
        _schedule,
        ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    ),
    Case(name="defaults", flags={"learning_rate": None}),
    Case(name="cosine-default-warmup", flags={"lr_scheduler": "cosine", "learning_rate": 1e-2}),
    Case(name="accumulation-3", flags={"gradient_accumulation_steps": 3, **COSINE}),
    Case(name="epochs", flags=COSINE, by_epochs=True),
    Case(name="epochs-accumulation-3", flags={"gradient_accumulation_steps": 3, **COSINE}, by_epochs=True),
    Case(name="scale-lr", flags={"scale_lr": True, "learning_rate": 1e-4, "gradient_accumulation_steps": 2}),
    Case(name="epsilon", flags={"prediction_type": "epsilon"}),
    Case(name="v-prediction", flags={"prediction_type": "v_prediction"}),
    Case(name="min-snr-epsilon", flags={"prediction_type": "epsilon", **SNR}),
    Case(name="min-snr-v-prediction", flags={"prediction_type": "v_prediction", **SNR}),
    Case(name="noise-offset", flags={"noise_offset": 0.1}),
    Case(name="flip", flags={"random_flip": True}),
    Case(name="flip-no-cache", flags={"random_flip": True}, ours=("--no_cache",)),
    Case(name="crop", data="large"),
    Case(name="centre-crop", flags={"center_crop": True}, data="large"),
    Case(name="crop-flip", flags={"random_flip": True}, data="large"),
    Case(name="bilinear", flags={"image_interpolation_mode": "bilinear"}, data="large"),
    Case(name="captions", flags={"random_flip": True}, data="captions"),
    Case(name="captions-no-cache", flags={"random_flip": True}, data="captions", ours=("--no_cache",)),
    Case(name="worker", flags={"random_flip": True, "dataloader_num_workers": 1}, data="captions"),
    Case(name="max-train-samples", flags={"max_train_samples": 13}),
    Case(name="rank-2", flags={"rank": 2}),
    Case(name="rank-16", flags={"rank": 16}),
    Case(name="8bit-adam", flags={"rank": 32, "use_8bit_adam": True}),  # 32 x 64 keeps 32 bits, 32 x 128 has 8
    Case(name="adam", flags={"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_weight_decay": 0.1, "adam_epsilon": 1e-4}),
    Case(name="max-grad-norm", flags={"max_grad_norm": 1e-4}),
    Case(name="gradient-checkpointing", flags={"gradient_checkpointing": True}),
    Case(name="bf16", flags={"mixed_precision": "bf16"}),
    Case(name="validation", flags={"validation_prompt": "a red boat", "num_validation_images": 1}),
    Case(name="resume", flags={"checkpointing_steps": 5, **COSINE}, stop=18),
    Case(
        name="resume-captions",
        flags={"checkpointing_steps": 5, "gradient_accumulation_steps": 2, "random_flip": True, **COSINE},
        data="captions",
        stop=18,
    ),
]

# The figures of these, cut short, are the tests that need no reference: see tests/test_reference.py.
RECORDED = {
    1: (
        "polynomial", "defaults", "cosine-default-warmup", "epochs-accumulation-3", "scale-lr",
        "min-snr-epsilon", "min-snr-v-prediction", "noise-offset", "flip", "captions", "worker", "centre-crop",
        "max-train-samples", "8bit-adam", "max-grad-norm", "bf16", "resume",
    ),
    2: ("epochs-accumulation-3", "resume-captions"),
}  # fmt: skip


def find_cases(names):
    """The cases of these names; ValueError for an unknown one."""
    by_name = {case.name: case for case in CASES}
    for name in names:
        if name not in by_name:
            raise ValueError(f"case {name!r} is unknown; the cases are {', '.join(by_name)}")
    return [by_name[name] for name in names]


def cut_short(case):
    """The case with 12 updates (an interrupted one stops after 7), which covers more than an epoch."""
    return replace(case, updates=12, stop=7 if case.stop else None)


SIZES = ((150, 97), (70, 128), (96, 96), (64, 64), (97, 64), (65, 300))  # two of them leave RandomCrop nothing to draw
MODES = ("RGB", "RGBA", "L")
THINGS = ("boat", "cat", "yellow house", "tree in the wind", "very small dog with a long tail", "cup")


def write_pictures(folder, kind):
    """Fill `folder` with PICTURES pictures and metadata.jsonl, always the same ones; leave it alone if it is there.

    kind: "square", 64 x 64 pixels; "large", of several shapes and PIL modes; "captions", those with lists of captions.
    """
    import numpy as np
    from PIL import Image

    folder = Path(folder)
    if (folder / "metadata.jsonl").exists():
        return
    if kind not in ("square", "large", "captions"):
        raise ValueError(f"kind {kind!r} is not one of square, large, captions")
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    lines = []
    for index in range(PICTURES):
        width, height = (64, 64) if kind == "square" else SIZES[index % len(SIZES)]
        coarse = random.integers(0, 200, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
        pixels = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
        pixels += random.integers(0, 56, pixels.shape, dtype=np.uint8)
        picture = Image.fromarray(pixels)
        if kind != "square":
            picture = picture.convert(MODES[index // len(SIZES) % len(MODES)])
        name = f"{index:02d}.png"
        picture.save(folder / name)
        captions = [f"{word} {THINGS[index % len(THINGS)]}" for word in ("a", "one", f"number {index},", "the")]
        text = captions[: 1 + index % 4] if kind == "captions" else captions[index % 4]
        lines.append(json.dumps({"file_name": name, "text": text}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
