import argparse
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from test_texts import SETTINGS

from lora_kit.command_line.flags import (
    LAUNCH_FLAGS,
    add_launch_flags,
    build_parser,
    flag_words,
    nearest_flags,
    parse_args,
    parse_launch_args,
    read_settings,
    to_argv,
    unknown_words,
)
from lora_kit.config import FIELDS, TrainingConfig, quiet_config
from lora_kit.lr_settings import LR_SCHEDULERS
from lora_kit.script import DEFECTS

RUN = ["--style=outlined", "--learning_rate=1e-3"]
README_COMMANDS = [
    # diffusers, examples/text_to_image/README.md and docs/source/en/training/lora.md
    """--pretrained_model_name_or_path=CompVis/stable-diffusion-v1-4 --dataset_name=lambdalabs/naruto-blip-captions
    --caption_column=text --resolution=512 --random_flip --train_batch_size=1 --num_train_epochs=100
    --checkpointing_steps=5000 --learning_rate=1e-04 --lr_scheduler=constant --lr_warmup_steps=0 --seed=42
    --output_dir=sd-naruto-model-lora --report_to=wandb""",
    """--pretrained_model_name_or_path=x/y --dataset_name=d --dataloader_num_workers=8 --resolution=512 --center_crop
    --random_flip --train_batch_size=1 --gradient_accumulation_steps=4 --max_train_steps=15000 --learning_rate=1e-04
    --max_grad_norm=1 --lr_scheduler=cosine --lr_warmup_steps=0 --output_dir=out --push_to_hub --hub_model_id=name
    --report_to=wandb --checkpointing_steps=500 --validation_prompt=naruto --seed=1337""",
]


@pytest.mark.parametrize("command", README_COMMANDS)
def test_command_lines_of_the_reference(command):
    config = parse_args(command.split())
    pairs = re.findall(r"--(\w+)=(\S+)", command)
    assert len(pairs) > 10
    for name, text in pairs:
        value = getattr(config, name)
        assert value == type(value)(text)
    switches = re.findall(r"--(\w+)(?=\s+--|\s*$)", command)
    assert switches and all(getattr(config, name) is True for name in switches)
    assert config.target_modules == ("to_k", "to_q", "to_v", "to_out.0")


@settings(max_examples=50, deadline=None)
@given(SETTINGS)
def test_every_setting_has_its_way_through_a_command_line(changes):
    draft = TrainingConfig.draft(**changes)
    names, unknown = read_settings(build_parser(), to_argv(draft))
    assert unknown == [] and TrainingConfig.draft(**names) == draft


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(image_column=None), ["--image_column="]),
        (dict(seed=None, center_crop=False), []),
        (dict(center_crop=True, seed=0), ["--center_crop", "--seed", "0"]),
        (dict(validation_prompt="--x y"), ["--validation_prompt=--x y"]),
        (dict(target_modules=("to_q", "conv1")), ["--target_modules", "to_q", "conv1"]),
        (dict(learning_rate=1.2345678901234567e-4), ["--learning_rate", "0.00012345678901234567"]),
    ],
)
def test_words_by_hand(changes, words):
    assert flag_words(changes) == words


def test_what_a_launcher_adds_is_no_setting():
    config = quiet_config(dict(style="outlined", learning_rate=1e-3))
    assert parse_args([*RUN, "--local_rank=1"]) == config


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--style=outlined"], "--learning_rate is required"),
        ([*RUN, "--lr_schedulr=cosine"], "unknown '--lr_schedulr', did you mean --lr_scheduler?"),
        ([*RUN, "--lr_sched=cosine"], "unknown '--lr_sched', did you mean --lr_scheduler?"),  # no abbreviations
        ([*RUN, "stray"], "unknown 'stray'"),
        (["--style=outlined", "--learning_rate=abc"], "invalid float value: 'abc'"),
        (["--style=outlined", "--learning_rate=-1"], "learning_rate -1.0 must be greater than 0"),
        ([*RUN, "--rank=2.5"], "invalid int value: '2.5'"),
        ([*RUN, "--lr_warmup_steps", "nan"], "argument --lr_warmup_steps: invalid int value: 'nan'"),
        (["--learning_rate=1e-3"], "no data"),
    ],
)
def test_bad_command_line(argv, words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(argv)
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert words in last and last.startswith("python -m lora_kit.training: error: ")


def test_an_error_quotes_no_more_than_can_be_read(capsys):
    with pytest.raises(SystemExit):
        parse_args([*RUN, "--rank", "9" * 9_000])
    assert len(capsys.readouterr().err.splitlines()[-1]) < 500


def test_a_launch_s_own_flags_and_the_run_s():
    own = "--num_processes 3 --num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1 --main_process_port 29501"
    own += " --rdzv_timeout 30"
    options, config = parse_launch_args([*own.split(), *RUN, "--print_only"])
    assert vars(options) == dict(
        num_processes=3, num_machines=2, machine_rank=1, main_process_ip="10.0.0.1", main_process_port=29501,
        rdzv_timeout=30, print_only=True,
    )  # fmt: skip
    assert config == TrainingConfig(style="outlined", learning_rate=1e-3)
    options, _ = parse_launch_args(RUN)
    assert vars(options) == dict(
        num_processes=None, num_machines=1, machine_rank=0, main_process_ip="127.0.0.1", main_process_port=None,
        rdzv_timeout=120, print_only=False,
    )  # fmt: skip


def test_launch_flags_are_those_of_the_parser():
    parser = argparse.ArgumentParser(add_help=False)
    add_launch_flags(parser)
    assert tuple(flag for action in parser._actions for flag in action.option_strings) == LAUNCH_FLAGS
    assert not {flag.lstrip("-") for flag in LAUNCH_FLAGS} & FIELDS.keys()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--num_procesess", "2"], "unknown '--num_procesess', did you mean --num_processes?"),
        (["--num_process", "2"], "unknown '--num_process', did you mean --num_processes?"),
        (["--num_processes", "0"], "argument --num_processes: the value 0 is not a whole number of at least 1"),
        (["--num_processes", "two"], "argument --num_processes: the value 'two' is not a whole number of at least 1"),
        (["--num_machines", "-1"], "argument --num_machines: the value -1 is not a whole number of at least 1"),
        (["--machine_rank", "-1"], "argument --machine_rank: the value -1 is not a whole number of at least 0"),
        (["--lr_schedulr=cosine"], "did you mean --lr_scheduler?"),
    ],
)
def test_bad_launch(argv, words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_launch_args([*RUN, *argv])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert words in last and last.startswith("python -m lora_kit.launch: error: ")


def test_unknown_words():
    assert nearest_flags(["--rnk=3", "4", "--zzz"]) == [("--rnk", ", did you mean --rank?"), ("--zzz", "")]
    assert nearest_flags(["4", "5"]) == [("4", "")]
    assert nearest_flags(["--num_procesess"], ["--num_processes"]) == [
        ("--num_procesess", ", did you mean --num_processes?")
    ]
    assert unknown_words(["--Rank"]) == "unknown '--Rank', did you mean --rank?"
    assert unknown_words([f"--{letter * 9}" for letter in "qwxyzjk"]).endswith("unknown '--zzzzzzzzz'; and 2 more")


def test_numbers_can_be_read_otherwise():
    names, unknown = read_settings(build_parser(number=str), ["--rank=2.5", "--learning_rate=nan", "--style=x"])
    assert (names, unknown) == (dict(rank="2.5", learning_rate="nan", style="x"), [])


def test_help_explains_every_flag():
    text = " ".join(build_parser().format_help().split())
    for name, field in FIELDS.items():
        assert f"--{name} " in text
        assert field.metadata["help"] in text
    assert "Default: to_k to_q to_v to_out.0." in text and "Default: image. --image_column= is none." in text
    assert all(name in text for name in LR_SCHEDULERS)
    assert all(defect in text for defect in DEFECTS)
    assert "-h, --help" in text and "-h, --help" not in build_parser(add_help=False).format_help()


def test_help_is_quick_and_needs_no_torch():
    code = (
        "import sys; from lora_kit.command_line.flags import parse_args\n"
        "try: parse_args(['--help'])\n"
        "finally: print({'torch', 'diffusers', 'peft', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith("set()")
