"""Command lines as people paste them."""

import pytest

from lora_kit.command_line.command import SCRIPT_FLAGS
from lora_kit.command_line.flags import build_parser
from lora_kit.command_line.reading import SCRIPT_FILE, SDXL_FILE, Reading
from lora_kit.command_line.texts import read

RUN = f"accelerate launch --num_processes 1 {SCRIPT_FILE}"
FLAGS = "--dataset_name=d/s --learning_rate=1e-3 --lr_warmup_steps 9"
MEANT = dict(dataset_name="d/s", learning_rate=1e-3, lr_warmup_steps=9)


@pytest.mark.parametrize(
    "text",
    [
        f"{RUN} `\n  --dataset_name=d/s `\n  --learning_rate=1e-3 `\n  --lr_warmup_steps 9",
        f"{RUN} ^\n  --dataset_name=d/s ^\n  --learning_rate=1e-3 ^\n  --lr_warmup_steps 9",
        f"nohup {RUN} {FLAGS} > train.log 2>&1 &",
        f"time {RUN} {FLAGS} 2>/dev/null | tee -a train.log",
        f"sudo -E env A=1 {RUN} {FLAGS} |& tee train.log",
        f"cd examples && {RUN} {FLAGS} && echo done || echo failed",
        f"(cd examples; {RUN} {FLAGS})",
        f"wget https://host/{SCRIPT_FILE}\npip install x\n{RUN} {FLAGS}\nzip -r lora.zip out",
        f"python convert.py --rank 3\n{RUN} {FLAGS}\npython test.py --rank 5",
        f"ls examples/{SCRIPT_FILE}\n{RUN} {FLAGS}\nls {SCRIPT_FILE}",
        f'export NAME="d/s"; {RUN} --dataset_name=$NAME --learning_rate=1e-3 --lr_warmup_steps=9',
        f"poetry run {RUN} {FLAGS}",
        f"uv run python3 -u {SCRIPT_FILE} {FLAGS}",
        f"! {RUN} {FLAGS}",
        f"%%bash\n{RUN} {FLAGS}",
        f"cat > a.yaml <<EOF\na: 1\nEOF\n{RUN} {FLAGS}",
        f"sbatch <<EOF\n#!/bin/bash\n#SBATCH -n 1\n{RUN} {FLAGS}\nEOF",
        f"nohup bash -c '{RUN} {FLAGS}' &",
        f".\\venv\\Scripts\\accelerate.exe launch --num_processes 1 .\\examples\\{SCRIPT_FILE} {FLAGS}",
        f"```bash\n{RUN} {FLAGS}\n```",
        f"~~~\n{RUN} {FLAGS}\n~~~",
        f"```\n{RUN} {FLAGS}",
        f"```\n{RUN} {FLAGS}```",
        f"{RUN} {FLAGS}\n```\n",
        f"```{RUN} {FLAGS}```",
        f"`{RUN} {FLAGS}`",
        f"That's it:\n\n```sh\nA=d/s\n```\nand then:\n  ```sh\n{RUN} {FLAGS}\n  ```\nIt doesn't learn.",
        f"\ufeff{RUN} {FLAGS}",
        f"{RUN}\u00a0--dataset_name=d/s\u00a0 --learning_rate=1e-3 \u200b--lr_warmup_steps 9",
    ],
)
def test_what_stands_around_a_command_changes_nothing(text):
    assert read(text) == Reading(MEANT)


@pytest.mark.parametrize(
    "text",
    ["```python\nTrainingConfig(rank=2)\n```", "```yaml\ntraining:\n  rank: 2\n```", "\ufefftraining: {rank: 2}"],
)
def test_a_fence_around_python_and_yaml(text):
    assert read(text) == Reading(dict(rank=2))


def test_a_value_with_a_fence_in_it_stays_whole():
    text = f"{RUN} {FLAGS} --validation_prompt 'a\n```\nb\n```\nc'"
    assert read(text).settings["validation_prompt"] == "a\n```\nb\n```\nc"


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        (f"{RUN} {FLAGS} --output_dir $OUT", dict(output_dir="$OUT"), "'$OUT' isn't set in this text: it stays as it is"),
        (f"{RUN} {FLAGS} --output_dir=<path>", dict(output_dir="<path>"), "'<path>' stands for something of yours"),
        (f"{RUN} {FLAGS} --output_dir a-$(date)", dict(output_dir="a-$(date)"), "'$(date)' is a command within"),
        (f"{RUN} {FLAGS} --output_dir=“a b”", dict(output_dir="a b"), "curly quotation marks"),
        (f"{RUN} {FLAGS} —rank 8", dict(rank=8), "a long dash"),
        (f"{RUN} {FLAGS}\n--rank 8", dict(rank=8), "a line that starts with a flag"),
        (f"{RUN} --rank 2\n{RUN} {FLAGS}", {}, "of 2 commands that train the last is read"),
        (f"{RUN} {FLAGS} --gradient_accumulation 4", dict(gradient_accumulation_steps=4),
         "--gradient_accumulation is read as --gradient_accumulation_steps"),
        (f"{RUN} {FLAGS} --mixed=fp16", dict(mixed_precision="fp16"), "--mixed is read as --mixed_precision"),
        (f"accelerate launch --config_file=a.yaml {SCRIPT_FILE} {FLAGS}", {}, "--config_file 'a.yaml' is not read"),
    ],
)  # fmt: skip
def test_what_is_to_be_known_is_said(text, settings, said):
    reading = read(text)
    assert reading.settings == MEANT | settings
    assert [sentence.startswith(said) for sentence in reading.sentences] == [True]


def test_another_script_is_named_since_its_rates_are_its_own():
    assert read(RUN.replace(SCRIPT_FILE, "scripts/train_network.py") + " --rank 8").script == "train_network.py"
    assert read(f"{RUN} --rank 8").script is read("python -m lora_kit.training --rank 8").script is None


def test_the_sdxl_script_has_defaults_flags_and_rates_of_its_own():
    run = RUN.replace(SCRIPT_FILE, SDXL_FILE)
    reading = read(f"{run} --dataset_name=d/s --pretrained_vae=v/ae --train_text_encoder --debug_loss --rank 8")
    assert (reading.trainer, reading.script) == ("diffusers_sdxl", None)
    assert reading.settings == dict(
        dataset_name="d/s", rank=8, learning_rate=1e-4, lr_warmup_steps=500, resolution=1024
    )
    assert reading.sentences == (
        "--pretrained_vae is read as --pretrained_vae_model_name_or_path",
        f"not given, so {SDXL_FILE}'s own: learning_rate 0.0001, lr_warmup_steps 500, resolution 1024",
        "set aside, since lora_kit has no such setting: --pretrained_vae_model_name_or_path, --train_text_encoder, --debug_loss",
        f'{SDXL_FILE} has rates of its own, drawn as "diffusers\' SDXL script"; beside them is what lora_kit would apply',
    )
    assert read(f"python convert.py --rank 3\n{run} {FLAGS}\npython test.py --rank 5").settings == MEANT | dict(
        resolution=1024
    )
    with pytest.raises(ValueError, match="unknown '--train_text_encodr', did you mean --train_text_encoder?"):
        read(f"{run} --train_text_encodr")
    with pytest.raises(ValueError, match="unknown '--train_text_encoder'"):
        read(f"{RUN} --train_text_encoder")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{RUN} --rank $RANK", "argument --rank: invalid int value: '$RANK'; '$RANK' isn't set in this text"),
        (f"N=$(nvidia-smi -L | wc -l)\naccelerate launch --num_processes $N {SCRIPT_FILE}",
         "--num_processes '$(nvidia-smi -L | wc -l)' is not a whole number of at least 1; '$(nvidia-smi"),
        (f"{RUN} --max_train 3", "unknown '--max_train', did you mean --max_train_"),
        (f"{RUN} --checkpoint 3", "unknown '--checkpoint', did you mean --checkpoint"),
        (f"{RUN} --gradient 3", "unknown '--gradient', did you mean --gradient_"),
        (f"{RUN} --target to_q", "unknown '--target', did you mean --target_modules?"),  # the script has no such flag
        (f"{RUN} --gradient_acumulation 3", "unknown '--gradient_acumulation', did you mean --gradient_accumulation_steps?"),
        (f"{RUN} --", "unknown '--'"),
        ("python -m lora_kit.training --gradient_acc 4",
         "unknown '--gradient_acc', did you mean --gradient_accumulation_steps?"),
        ("python -m lora_kit.launch --num_proc 4", "unknown '--num_proc', did you mean --num_processes?"),
        ("python -c \"print('it')\"; bash -c \"it's\"", "no program in"),
        (f"wget https://host/{SCRIPT_FILE}", "no program in"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(text, said):
    with pytest.raises(ValueError) as caught:
        read(text)
    assert said in str(caught.value)


def test_only_the_script_s_own_flags_can_be_cut_short():
    known = {flag for action in build_parser(add_help=False)._actions for flag in action.option_strings}
    assert set(SCRIPT_FLAGS) < known and "--target_modules" not in SCRIPT_FLAGS
    assert read(f"{RUN} {FLAGS} --rank=2 --target_modules a").settings["target_modules"] == ["a"]
