import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_kit.command_line.texts import SCRIPT, read, write
from lora_kit.config import MATCHED_DEFAULTS, OWN_SETTINGS, ConfigWarning, TrainingConfig, parse_args

README = """
export MODEL_NAME="stable-diffusion-v1-5/stable-diffusion-v1-5"
export OUTPUT_DIR="/sddata/finetune/lora/naruto"
DATASET_NAME=lambdalabs/naruto-blip-captions

$ accelerate launch --mixed_precision="fp16"  train_text_to_image_lora.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --dataset_name=${DATASET_NAME} --resolution=512 --center_crop \\
  --train_batch_size=1 --gradient_accumulation_steps=4 --max_train_steps=15000 \\
  --learning_rate=1e-04 --lr_scheduler="cosine" --lr_warmup_steps=0 \\
  --output_dir=${OUTPUT_DIR} --validation_prompt="A naruto with blue eyes."
"""


def config(**changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        return TrainingConfig(**dict(style="outlined", learning_rate=1e-3) | changes)


def test_a_readme_s_command_is_read_with_its_variables():
    found = read(README)
    assert found["settings"] == dict(
        pretrained_model_name_or_path="stable-diffusion-v1-5/stable-diffusion-v1-5",
        dataset_name="lambdalabs/naruto-blip-captions", resolution=512, center_crop=True, train_batch_size=1,
        gradient_accumulation_steps=4, max_train_steps=15000, learning_rate=1e-4, lr_scheduler="cosine",
        lr_warmup_steps=0, output_dir="/sddata/finetune/lora/naruto", validation_prompt="A naruto with blue eyes.",
        mixed_precision="fp16",
    )  # fmt: skip
    assert found["num_processes"] == 1 and found["num_examples"] is None
    assert "mixed_precision fp16 is the launcher's" in found["said"]


def test_diffusers_script_has_its_own_defaults():
    found = read("python examples/train_text_to_image_lora.py --dataset_name=x")["settings"]
    assert found == MATCHED_DEFAULTS | dict(dataset_name="x")
    assert read("python -m lora_kit.training --dataset_name=x")["settings"] == dict(dataset_name="x")


@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        ("python -m lora_kit.training", 1),
        ("python -m lora_kit.launch --num_processes 3", 3),
        ("accelerate launch --num_processes=4 -m lora_kit.training", 4),
        ("accelerate launch --multi_gpu --num-processes 4 --num_machines 2 -m lora_kit.training", 4),
        ("torchrun --nproc_per_node=2 --nnodes 3 -m lora_kit.training", 6),
        ("!torchrun --nproc-per-node 2 train_text_to_image_lora.py", 2),
    ],
)
def test_how_many_processes_a_launcher_starts(launcher, processes):
    assert read(f"{launcher} --style outlined --learning_rate 1e-3")["num_processes"] == processes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to read"),
        ("# only\nA=3", "no command"),
        ("ls -l", "no program"),
        ("python -m lora_kit.training --lr_warmup_step 3", "did you mean --lr_warmup_steps"),
        ("python -m lora_kit.training --rank four", "invalid int value: 'four'"),
        ("python -m lora_kit.training --rank", "expected one argument"),
        ("python -m lora_kit.training --output_dir 'a", "No closing quotation"),
        ("accelerate launch --num_processes none train_text_to_image_lora.py", "--num_processes 'none'"),
        ("TrainingConfig(rank=", "Python that can't be read, line 1"),
        ("TrainingConfig(rank=2 + x)", "rank=2 + x: only plain values"),
        ("TrainingConfig(**more)", "only plain values"),
        ("training:\n  - [", "YAML that can't be read"),
        ("rank: 4", "put them under training:"),
        ("num_processes: 0\ntraining: {rank: 4}", "num_processes 0 is not"),
    ],
)
def test_what_can_not_be_read_is_quoted(text, words):
    with pytest.raises(ValueError) as caught:
        read(text)
    assert words in str(caught.value)


text = st.text(min_size=1, max_size=12).filter(lambda word: word.isprintable() and "$" not in word)
changes = st.fixed_dictionaries(
    {},
    optional=dict(
        learning_rate=st.floats(2e-7, 10), rank=st.integers(1, 10**6), lora_alpha=st.integers(1, 99),
        lr_scheduler=st.sampled_from(["constant", "linear", "cosine", "polynomial", "cosine_with_restarts"]),
        lr_warmup_steps=st.integers(0, 900), lr_num_cycles=st.integers(1, 9), lr_power=st.floats(0.01, 9),
        adam_epsilon=st.floats(0, 1), adam_beta2=st.floats(0, 0.9999), scale_lr=st.booleans(), use_8bit_adam=st.booleans(),
        output_dir=text, validation_prompt=text, seed=st.integers(0, 2**40), snr_gamma=st.floats(0.1, 9),
        target_modules=st.lists(st.sampled_from(["to_q", "to_out.0", "conv1"]), min_size=1).map(tuple),
        max_train_steps=st.integers(901, 10**6), mixed_precision=st.sampled_from(["no", "fp16", "bf16"]),
        match_diffusers=st.booleans(), center_crop=st.booleans(), noise_offset=st.floats(0, 1),
    ),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(changes=changes, num_processes=st.integers(1, 64), num_examples=st.integers(1, 10**7))
def test_round_trip_is_exact(changes, num_processes, num_examples):
    made = config(**changes)
    texts = write(made, num_processes, num_examples)
    for name in ("accelerate", "python", "yaml"):
        found = read(texts[name])
        assert (config(**found["settings"]), found["num_processes"]) == (made, num_processes), name
        assert found["num_examples"] == (num_examples if name == "yaml" else None)
    line = texts["diffusers"]
    found = read(line)
    wanted = {name: value for name, value in made.changes(matched=True).items() if name not in OWN_SETTINGS}
    assert {name: found["settings"][name] for name in wanted} == wanted
    assert found["num_processes"] == num_processes
    again = config(**found["settings"] | {name: getattr(made, name) for name in OWN_SETTINGS})
    assert again == made and write(again, num_processes)["diffusers"] == line


def test_the_python_text_runs_up_to_the_launch():
    made = config(rank=8, target_modules=("to_q",), lr_scheduler="cosine", output_dir="it's")
    names = {}
    exec(write(made, 2)["python"].split("launch(config")[0], names)
    assert names["config"] == made


def test_command_lines_are_what_the_programs_take():
    made = config(output_dir="two words", validation_prompt="-dashed", lr_warmup_steps=500)
    words = shlex.split(write(made, 4)["accelerate"])
    assert parse_args(words[words.index("lora_kit.training") + 1 :]) == made
    comments, line = write(made, 4)["diffusers"].rsplit("\n", 1)
    assert "--style outlined" in comments and "give a data set" in comments
    words = shlex.split(line)
    assert words[:6] == ["accelerate", "launch", "--multi_gpu", "--num_processes", "4", SCRIPT]
    assert "--lr_warmup_steps" not in words  # 500 is that script's own
    assert "0.001" in words and "--style" not in words
    silent = write(config(lr_warmup_steps=0), 1)["diffusers"]
    assert "--lr_warmup_steps 0" in silent


def test_import_is_light():
    code = "import sys, lora_kit.commands as c; c.read('python -m lora_kit.training --rank 4'); "
    code += "assert not {'torch', 'numpy', 'accelerate', 'diffusers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).resolve().parent.parent)
