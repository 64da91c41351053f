import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from counting import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_kit.command_line.flags import parse_args
from lora_kit.command_line.reading import SCRIPT_FILE, Reading
from lora_kit.command_line.shell import LONGEST
from lora_kit.command_line.texts import launch_lines, read, write
from lora_kit.config import FIELDS, OWN_SETTINGS, TrainingConfig, kind_of, quiet_config
from lora_kit.script import SCRIPT

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
TRAINING = "python -m lora_kit.training"


def config(**changes):
    return quiet_config(dict(style="outlined", learning_rate=1e-3) | changes)


def test_a_readme_s_command_is_read_with_its_variables():
    reading = read(README)
    assert reading.settings == dict(
        pretrained_model_name_or_path="stable-diffusion-v1-5/stable-diffusion-v1-5",
        dataset_name="lambdalabs/naruto-blip-captions", resolution=512, center_crop=True, train_batch_size=1,
        gradient_accumulation_steps=4, max_train_steps=15000, learning_rate=1e-4, lr_scheduler="cosine",
        lr_warmup_steps=0, output_dir="/sddata/finetune/lora/naruto", validation_prompt="A naruto with blue eyes.",
        mixed_precision="fp16",
    )  # fmt: skip
    assert (reading.num_processes, reading.num_examples) == (1, None)
    assert reading.sentences == (
        "accelerate launch without --num_processes starts one process for each GPU: read as 1",
        "mixed_precision fp16 is the launcher's",
    )


def test_diffusers_script_has_its_own_defaults():
    reading = read("python examples/train_text_to_image_lora.py --dataset_name=x")
    assert reading.settings == dict(learning_rate=1e-4, lr_warmup_steps=500, dataset_name="x")
    assert reading.sentences == (
        "not given, so train_text_to_image_lora.py's own: learning_rate 0.0001, lr_warmup_steps 500",
    )
    assert read(f"{TRAINING} --dataset_name=x") == Reading(dict(dataset_name="x"))
    other = read("python train_other.py --dataset_name=x --learning_rate 1 --lr_warmup_steps 0")
    assert other.sentences == ("train_other.py is read as if it were train_text_to_image_lora.py",)


@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        (TRAINING, 1),
        ("python -m lora_kit.doctor --num_processes 3", 3),
        ("python -m lora_kit.launch --num_processes 3", 3),
        ("python -m lora_kit.launch --num_processes 3 --num_machines 2 --machine_rank 1 --print_only", 6),
        ("accelerate launch --num_processes=4 -m lora_kit.training", 4),
        ("accelerate launch --multi_gpu --num-processes 4 --num_machines 2 -m lora_kit.training", 4),
        ("torchrun --nproc_per_node=2 --nnodes 3 -m lora_kit.training", 6),
        ("!torchrun --nproc-per-node 2 train_text_to_image_lora.py", 2),
    ],
)
def test_how_many_processes_a_launcher_starts(launcher, processes):
    assert read(f"{launcher} --style outlined --learning_rate 1e-3").num_processes == processes


@pytest.mark.parametrize(
    ("call", "processes"),
    [
        ("launch(config, num_processes=3)", 3),
        ("lora_kit.launch.launch(config, 3)", 3),
        ("launch(config, 3, None, 29500, 2)", 6),
        ("launch(config, num_machines=2, num_processes=3, **more)", 6),
        ("train(config)", 1),
    ],
)
def test_how_many_processes_python_starts(call, processes):
    assert read(f"config = TrainingConfig(rank=2)\n{call}") == Reading(dict(rank=2), processes)


@pytest.mark.parametrize(
    "text",
    [
        "python -m lora_kit.launch --rank 2",
        "launch(TrainingConfig(rank=2))",
        "launch(TrainingConfig(rank=2), num_processes=None)",
    ],
)
def test_a_launch_that_leaves_the_number_to_the_machine_says_so(text):
    reading = read(text)
    assert (reading.settings, reading.num_processes) == (dict(rank=2), 2)
    assert "one process for each GPU, or 2" in reading.sentences[0]


def test_this_project_s_own_launch_lines_can_be_pasted():
    """As they stand in the README, over as many lines."""
    text = Path(__file__).resolve().parents[2].joinpath("README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python -m lora_kit\.launch (?:.*\\\n)*.*$", text, re.M)
    readings = {read(line).num_processes: read(line).settings for line in lines}
    settings = dict(train_data_dir="my_pictures", learning_rate=1e-4)
    assert readings == {2: settings, 8: settings}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to read"),
        (" \n\t", "nothing to read"),
        ("# only\nA=3", "no command"),
        ("export A", "no command"),
        ("ls -l", "no program in 'ls -l'"),
        (f"{TRAINING} --lr_warmup_step 3", "did you mean --lr_warmup_steps"),
        ("python -m lora_kit.launch --num_procesess 2", "unknown '--num_procesess', did you mean --num_processes?"),
        ("python -m lora_kit.launch --machine_rnk 2", "unknown '--machine_rnk', did you mean --machine_rank?"),
        (f"{TRAINING} --num_exampels 2", "unknown '--num_exampels', did you mean --num_examples?"),
        ("python -m lora_kit.launch --num_processes 0", "argument --num_processes: the value 0 is not a whole number"),
        ("python -m lora_kit.launch --machine_rank -1", "argument --machine_rank: the value -1 is not a whole number"),
        (f"{TRAINING} --num_examples many", "argument --num_examples: the value 'many' is not a whole number"),
        (f"{TRAINING} --help", "unknown '--help'"),
        (f"{TRAINING} --rank four", "invalid int value: 'four'"),
        (f"{TRAINING} --rank", "expected one argument"),
        (f"{TRAINING} --lr_warmup_steps nan", "invalid int value: 'nan'"),
        (f"{TRAINING} --output_dir 'a", "No closing quotation"),
        (f'{TRAINING} --output_dir "a', "No closing quotation"),
        ("accelerate launch --num_processes none train_text_to_image_lora.py", "--num_processes 'none' is not a whole"),
        ("torchrun --nproc_per_node ² train_text_to_image_lora.py", "--nproc_per_node '²' is not a whole"),
        ("TrainingConfig(rank=", "Python that can't be read, line 1: '(' was never closed: 'TrainingConfig(rank='"),
        ("# TrainingConfig(rank=3)", "Python without a call of TrainingConfig"),
        ("TrainingConfig(rank=2 + x)", "rank '2 + x': only plain values"),
        ("TrainingConfig(rank={[]})", "rank '{[]}': only plain values"),
        ("TrainingConfig(**more)", "TrainingConfig(**'more'): only plain values"),
        ("TrainingConfig(**{'rank': 4})", "only plain values"),
        ("TrainingConfig(more)", "TrainingConfig('more'): settings are given by name"),
        ("launch(TrainingConfig(), num_processes='many')", "num_processes 'many' is not a whole number of at least 1"),
        ("launch(TrainingConfig(), num_processes=True)", "num_processes True is not a whole number of at least 1"),
        ("launch(TrainingConfig(), 2.0)", "num_processes 2.0 is not a whole number"),
        ("launch(TrainingConfig(), 2, num_machines=0)", "num_machines 0 is not a whole number"),
        ("launch(TrainingConfig(), num_processes=n)", "num_processes 'n': only plain values"),
        ("launch(TrainingConfig(), *more)", "num_processes '*more': only plain values"),
        ("TrainingConfig(rank=\0)", "Python that can't be read, "),
        ("training:\n  - [", "YAML that can't be read"),
        ("rank: 4", "put them under training:"),
        ("training: {4: rank}", "training: 4 is not the name of a setting"),
        ("num_processes: 0\ntraining: {rank: 4}", "num_processes 0 is not"),
        ("num_examples: many\ntraining: {rank: 4}", "num_examples 'many' is not"),
        ("training: {seed: 2026-13-45}", "YAML that can't be read: month must be in 1..12"),
        ("training: {seed: !!timestamp x}", "the tag 'tag:yaml.org,2002:timestamp'; only plain values"),
        ("a: &a [1, 2]\ntraining: {seed: *a}", "YAML that can't be read: line 2: the alias 'a'; only plain values"),
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_quoted(text, words):
    with pytest.raises(ValueError) as caught:
        read(text)
    assert words in str(caught.value)


HUGE = "9" * 400


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"{TRAINING} --max_train_steps {HUGE}", "max_train_steps"),
        (f"{TRAINING} --num_examples {HUGE}", "num_examples"),
        (f"torchrun --nproc_per_node {'9' * 200} --nnodes {'9' * 200} -m lora_kit.training", "nproc_per_node"),
        (f"launch(TrainingConfig(rank=2), num_processes={HUGE})", "num_processes"),
        (f"TrainingConfig(rank=-{HUGE})", "rank"),
        (f"training: {{seed: {HUGE}}}", "seed"),
        (f"num_examples: {HUGE}\ntraining: {{seed: 1}}", "num_examples"),
        (f"training: {{seed: 1{':59' * 900}}}", "seed"),  # YAML's numbers to the base of 60
    ],
)
def test_whole_numbers_that_no_float_holds_are_refused(text, name):
    with pytest.raises(
        ValueError, match=rf"(^|--){name}:? .* is more than can be counted: at most 9223372036854775807$"
    ):
        read(text)


@pytest.mark.parametrize(
    "text",
    [
        "TrainingConfig(learning_rate=1e300, lr_power=1e999)",
        "training: {learning_rate: 1e300, lr_power: 1.0e+999}",
        f"{TRAINING} --learning_rate 1e300 --lr_power 1e999",
    ],
)
def test_rates_without_bounds_are_left_to_the_configuration(text):
    settings = read(text).settings
    assert settings == dict(learning_rate=1e300, lr_power=float("inf"))
    with pytest.raises(ValueError, match="lr_power inf is not a finite number"):
        TrainingConfig.draft(**settings)


def test_a_setting_that_is_no_number_is_left_to_the_configuration():
    with pytest.raises(ValueError, match="lr_warmup_steps nan is not a whole number"):
        TrainingConfig.draft(learning_rate=1e-3, **read("training: {lr_warmup_steps: .nan}").settings)


def test_yaml_takes_rates_without_a_dot():
    assert read("---\n# mine\ntraining: {learning_rate: 1e-4, rank: 4, output_dir: 1e-4}").settings == dict(
        learning_rate=1e-4, rank=4, output_dir="1e-4"
    )


# texts that are made to take long: each of a length, so that two lengths can be compared

LONG = {
    "empty lines before a command": lambda n: "\n" * n + TRAINING,
    "blanks before a command": lambda n: " " * n + TRAINING,
    "empty lines before YAML": lambda n: "\n" * n + "training: {rank: 4}",
    "comments before YAML": lambda n: "#\n" * n + "training: {rank: 4}",
    "comments": lambda n: "#\n" * n + TRAINING,
    "prompts": lambda n: "!" * n + TRAINING,
    "continued lines": lambda n: "\\\n" * n + TRAINING,
    "a backslash and blanks": lambda n: "\\" + " " * n + TRAINING,
    "backslashes and blanks": lambda n: "\\ " * n + TRAINING,
    "continued by nothing": lambda n: TRAINING + " \\" + " " * n,
    "open braces": lambda n: TRAINING + " " + "${A" * n,
    "quotations": lambda n: TRAINING + ' --output_dir ""' + "''" * n,
    "an open quotation": lambda n: TRAINING + " '" + "a" * n,
    "an open double quotation": lambda n: TRAINING + ' "' + '\\"' * n,
    "assignments": lambda n: "A=1 " * n + TRAINING,
    "variables that double": lambda n: "A=xxxxxxxx\n" + "A=$A$A\n" * n + TRAINING,
    "variables that add up": lambda n: "A=" + "x" * n + f"\n{TRAINING} --output_dir " + "$A" * n,
    "words": lambda n: TRAINING + " x" * n,
    "flags": lambda n: TRAINING + " --x" * n,
    "one long flag": lambda n: TRAINING + " --" + "r" * n,
    "prompts of hosts": lambda n: "a@b:" * n + TRAINING,
    "one long prompt": lambda n: "a@" + "b" * n + TRAINING,
    "commands": lambda n: (TRAINING + "; ") * (n // 30) + TRAINING,
    "lines of flags": lambda n: TRAINING + "\n--x" * n,
    "carets": lambda n: "^\n" * n + TRAINING,
    "backticks": lambda n: TRAINING + " ` " * n,
    "single backticks": lambda n: TRAINING + " `a" * n,
    "open parentheses": lambda n: TRAINING + " $(" * n,
    "closed parentheses": lambda n: TRAINING + " $()" * n,
    "open placeholders": lambda n: TRAINING + " <a" * n,
    "redirections": lambda n: TRAINING + " >" * n,
    "curly quotations": lambda n: TRAINING + " “a" * n,
    "variables that aren't set": lambda n: "".join(f"export A{i}=$B{i}\n" for i in range(n // 20)) + TRAINING,
    "variables in a chain": lambda n: "".join(f"A=$A$B{i}\n" for i in range(n // 20)) + TRAINING + " $A",
    "PowerShell's quotations": lambda n: "$env:A=1\n" + TRAINING + " " + "''" * n + "'",
    "fences": lambda n: "```\n" * n + TRAINING,
    "open fences": lambda n: "``` " * n + TRAINING,
    "zero width": lambda n: TRAINING + " " + "\u200b" * n,
    "percents": lambda n: TRAINING + " %A" * n,
    "commands for bash": lambda n: "bash -c 'a' " * (n // 12) + TRAINING,
    "Python that adds": lambda n: "TrainingConfig(rank=1" + "+1" * n + ")",
    "Python that calls": lambda n: "TrainingConfig(rank=a" + "()" * n + ")",
    "Python with attributes": lambda n: "TrainingConfig(rank=a" + ".a" * n + ")",
    "Python in brackets": lambda n: "TrainingConfig(rank=" + "(" * n,
    "Python with signs": lambda n: "TrainingConfig(rank=" + "-" * n + "1)",
    "Python with not": lambda n: "TrainingConfig(rank=" + "not " * n + "1)",
    "Python with lambdas": lambda n: "TrainingConfig(rank=" + "lambda:" * n + "1)",
    "a Python number": lambda n: "TrainingConfig(rank=" + "9" * n + ")",
    "YAML in brackets": lambda n: "training: " + "[" * n,
    "YAML in braces": lambda n: "training: " + "{a: " * n,
    "YAML in lists": lambda n: "training:\n" + "- " * n,
    "a YAML number": lambda n: "training: {rank: " + "9" * n + "}",
    "a YAML word": lambda n: "training: {rank: " + "a" * n + "}",
    "YAML quotations": lambda n: "training: " + "'" * n,
}  # fmt: skip


def work(text):
    """The calls that reading a text makes, of Python and of C, whether or not it can be read."""
    count, refusal = calls(lambda: read(text))
    assert refusal is None or (isinstance(refusal, ValueError) and 10 < len(str(refusal)) < 900)
    return count


@pytest.mark.parametrize("name", LONG)
def test_twice_the_text_is_at_most_twice_the_work(name):
    make = LONG[name]
    work(make(1))  # imports and caches
    assert work(make(12_000)) <= 2.2 * work(make(6_000)) + 1_000


@pytest.mark.parametrize("words", ["deep", "[", "[]", "-", "()"])
def test_what_is_nested_too_deep_is_said(words):
    texts = {
        "deep": "\n".join(" " * level + "a:" for level in range(400)),
        "[": "training: " + "[" * 5_000,
        "[]": "training: {rank: " + "[" * 10 + "]" * 10 + "}",  # each takes time for all that stands inside
        "-": "TrainingConfig(rank=" + "-" * 50_000 + "1)",
        "()": "TrainingConfig(rank=a" + "()" * 30_000 + ")",
    }
    with pytest.raises(ValueError, match="that can't be read: it is nested too deep"):
        read(texts[words])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#" * (LONGEST + 1), "a text of 100,001 characters is too long to read; at most 100,000 are"),
        (TRAINING + " x" * 2_000, "a command of 2,003 words is too long to read; at most 2,000 are"),
        ("A=xx\n" + "A=$A$A\n" * 30 + TRAINING, "the variables of this text come to more than 100,000 characters, by '$A'"),
        (TRAINING + " --x" * 1_000, "unknown '--x'; unknown '--x'; unknown '--x'; unknown '--x'; unknown '--x'; and 995 more"),
    ],
)  # fmt: skip
def test_what_is_too_long_is_said(text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        read(text)


# what is written is read again

WORDS = st.text(min_size=1, max_size=12)


def values(name):
    """Any value that a setting may have, None included."""
    (kind, optional), rules = kind_of(name), FIELDS[name].metadata["rules"]
    if "choices" in rules:
        strategy = st.sampled_from(rules["choices"])
    elif kind is bool:
        strategy = st.booleans()
    elif kind is int:
        strategy = st.integers(rules.get("low", 1), rules.get("below", 2**63) - 1)
    elif kind is float:
        low, high = rules.get("low", rules.get("above", 0.0)), rules.get("below")
        strategy = st.floats(
            low, high, exclude_min="above" in rules, exclude_max=high is not None, allow_infinity=False
        )
    elif kind is tuple:
        strategy = st.lists(WORDS.filter(lambda word: not word.startswith("-")), min_size=1, max_size=3).map(tuple)
    else:
        strategy = WORDS
    return st.none() | strategy if optional else strategy


SETTINGS = st.fixed_dictionaries(
    {"learning_rate": values("learning_rate")},
    optional={name: values(name) for name in FIELDS if name not in ("learning_rate", "hub_token")},
)


def check_round_trip(draft, num_processes, num_examples):
    texts = write(draft, num_processes, num_examples)
    for name in ("accelerate", "python", "yaml"):
        reading = read(texts[name])
        assert TrainingConfig.draft(**reading.settings) == draft, name
        assert (reading.num_processes, reading.sentences) == (num_processes, ())
        assert reading.num_examples == (num_examples if name == "yaml" else None)
    reading = read(texts["diffusers"])
    own = {name: getattr(draft, name) for name in OWN_SETTINGS}
    again = TrainingConfig.draft(**reading.settings | own)
    assert again == draft and reading.num_processes == num_processes
    assert write(again, num_processes)["diffusers"] == texts["diffusers"]


@settings(max_examples=50, deadline=None)
@given(SETTINGS, st.integers(1, 64), st.integers(1, 10**7))
def test_round_trip_is_exact(changes, num_processes, num_examples):
    check_round_trip(TrainingConfig.draft(**changes), num_processes, num_examples)


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "hub_token"])  # a token isn't written
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_round_trip_of_every_setting(name, data):
    check_round_trip(TrainingConfig.draft(**{"learning_rate": 1e-3, name: data.draw(values(name))}), 2, 20)


@pytest.mark.parametrize("name", [name for name in FIELDS if kind_of(name)[1]])
@pytest.mark.parametrize("matched", [False, True])
def test_none_is_read_again(name, matched):
    check_round_trip(TrainingConfig.draft(learning_rate=1e-3, match_diffusers=matched, **{name: None}), 1, 20)


@pytest.mark.parametrize(
    "text", ["\x85", "a\u2028b", " ", "null", "1e-3", "#", "- a", "a: b", "été 絵 🦊", "'\"\\$HOME", "a\r\nb"]
)
def test_odd_texts_are_read_again(text):
    draft = TrainingConfig.draft(learning_rate=1e-3, validation_prompt=text, target_modules=(text.strip("- ") or "a",))
    check_round_trip(draft, 2, None)
    assert text != "été 絵 🦊" or text in write(draft)["yaml"]


def test_no_column_is_written_as_an_empty_flag():
    texts = write(config(image_column=None), 1)
    assert texts["accelerate"].endswith("--style outlined --image_column= --learning_rate 0.001")
    assert "    image_column=None,\n" in texts["python"] and "  image_column: null\n" in texts["yaml"]
    assert "# --image_column= is none here; the script wants the name of a column\n" in texts["diffusers"]


def test_the_python_text_runs_up_to_the_launch():
    made = config(rank=8, target_modules=("to_q",), lr_scheduler="cosine", output_dir="it's")
    names = {}
    exec(write(made, 2)["python"].split("launch(config")[0], names)
    assert names["config"] == made


def test_command_lines_are_what_the_programs_take():
    made = config(output_dir="two words", validation_prompt="-dashed", lr_scheduler="linear", lr_warmup_steps=500)
    words = shlex.split(write(made, 4)["accelerate"])
    assert parse_args(words[words.index("lora_kit.training") + 1 :]) == made
    comments, line = write(made, 4)["diffusers"].rsplit("\n", 1)
    assert "--style outlined" in comments and "give a data set" in comments
    words = shlex.split(line)
    assert words[:6] == ["accelerate", "launch", "--multi_gpu", "--num_processes", "4", SCRIPT_FILE]
    assert "--lr_warmup_steps" not in words  # 500 is that script's own
    assert SCRIPT.defaults["lr_warmup_steps"] == 500
    assert "0.001" in words and "--style" not in words
    assert "--lr_warmup_steps 0" in write(config(lr_warmup_steps=0), 1)["diffusers"]


def test_a_comment_stays_a_comment():
    draft = TrainingConfig.draft(learning_rate=1e-3, target_modules=("to_q\nrm x",))
    comments, line = write(draft, 1)["diffusers"].rsplit("\n", 1)
    assert line.startswith("accelerate launch") and all(row.startswith("#") for row in comments.split("\n"))


def test_launch_lines_of_one_machine():
    run = "-m lora_kit.training --style outlined --learning_rate 0.001"
    assert launch_lines(config(), 1) == {
        "accelerate": f"accelerate launch --num_processes 1 {run}",
        "torchrun": f"torchrun --standalone --nproc_per_node 1 {run}",
    }
    assert launch_lines(config(), 2) == {
        "accelerate": f"accelerate launch --multi_gpu --num_processes 2 --main_process_port 0 {run}",
        "torchrun": f"torchrun --standalone --nproc_per_node 2 {run}",
    }


def test_launch_lines_of_several_machines():
    lines = launch_lines(config(), 4, num_machines=2, machine_rank=1, main_process_ip="10.0.0.1", port=29501)
    assert lines["accelerate"].startswith(
        "accelerate launch --multi_gpu --num_processes 8 --num_machines 2 --machine_rank 1 "
        "--main_process_ip 10.0.0.1 --main_process_port 29501 -m lora_kit.training "
    )
    assert lines["torchrun"].startswith(
        "torchrun --nproc_per_node 4 --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29501 "
    )
    assert {read(line).num_processes for line in lines.values()} == {8}


def test_a_reading_is_a_value():
    reading = read(f"{TRAINING} --rank 4")
    assert reading == Reading({"rank": 4})
    with pytest.raises(dataclasses.FrozenInstanceError):
        reading.num_processes = 2


def test_import_is_light():
    code = (
        "import sys; from lora_kit.command_line.texts import read; read('python -m lora_kit.training --rank 4'); "
        "print({'torch', 'numpy', 'accelerate', 'diffusers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("kind", ["accelerate", "diffusers", "python", "yaml"])
def test_a_token_is_hidden_and_not_taken_from_what_hides_it(kind):
    text = write(quiet_config(dict(style="outlined", learning_rate=1e-3, hub_token="hf_secret")))[kind]
    assert "***" in text and "hf_secret" not in text
    with pytest.raises(ValueError, match=r"hub_token '\*\*\*' is what stands for a hidden one: give the text itself"):
        quiet_config(read(text).settings | {"style": "outlined"})
