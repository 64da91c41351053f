"""A configuration as text, and text as a configuration: shell lines, diffusers' own command line, Python and YAML.

`write` gives all four; `read` takes any of them back, and command lines as they stand in READMEs, with exported variables.
"""

import re
import shlex
from typing import Any

import yaml

from lora_kit.command_line.command import read_shell
from lora_kit.command_line.flags import flag_words, to_argv
from lora_kit.command_line.reading import SCRIPT_FILE, Reading, checked_numbers, read_python, read_yaml
from lora_kit.command_line.shell import LONGEST
from lora_kit.config import OWN_SETTINGS, TrainingConfig
from lora_kit.script import SCRIPT
from lora_kit.system.secret import Secret

YAML_BREAKS = re.compile("[\x85\u2028\u2029]")  # PyYAML writes these ends of lines as they are, and reads a blank
FENCE = re.compile(r"^[^\S\n]*(?:`{3,}|~{3,})[^\S\n]*[\w+-]*[^\S\n]*$", re.MULTILINE)  # of a block of code in Markdown
ASKING = re.compile(r"\.py\b|\blora_kit\.|TrainingConfig\(|^training:", re.MULTILINE)  # what a text to be read has
YAML_KEY = re.compile(r"\w+:(\s|$)")


def read(text: str) -> Reading:
    """What a text of `write`, or a command line from elsewhere, asks for, as a `Reading`. Its settings are not checked.

    Raises ValueError, which quotes what can't be read.

    >>> read("accelerate launch --num_processes 4 train_text_to_image_lora.py --rank=8").settings["rank"]
    8
    """
    if len(text) > LONGEST:
        raise ValueError(f"a text of {len(text):,} characters is too long to read; at most {LONGEST:,} are")
    text = _code(text.removeprefix("\ufeff"))
    if not text.strip():
        raise ValueError("nothing to read: paste a command line, Python with TrainingConfig(...), or YAML")
    if "TrainingConfig(" in text:
        return checked_numbers(read_python(text))
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "---")))
    if YAML_KEY.match(next(lines, "")):
        return checked_numbers(read_yaml(text))
    return checked_numbers(read_shell(text))


def _code(text):
    """What stands in the blocks of code of a Markdown text, or all of it where the configuration isn't in one."""
    bare = text.strip()
    if bare[:1] == bare[-1:] == "`" and not FENCE.match(bare):
        return bare.strip("`")
    parts = FENCE.split(text)
    if len(parts) > 1 and not ASKING.search("\n".join(parts[::2])):
        return "\n".join(parts[1::2]).rstrip().removesuffix("```")
    if len(parts) == 2 and not parts[1].strip():  # copied without the fence above it
        return parts[0]
    return text


def write(config: TrainingConfig, num_processes: int = 1, num_examples: int | None = None) -> dict[str, str]:
    """The same run as text: {"accelerate": ..., "diffusers": ..., "python": ..., "yaml": ...}.

    num_processes: on one machine. num_examples: pictures, which only YAML records. Each text is read back by `read` to the
    same settings; but for what diffusers' script has no flag for, which a comment above its line names.

    >>> print(write(TrainingConfig(style="outlined", learning_rate=1e-3), num_examples=400)["yaml"])
    num_processes: 1
    num_examples: 400
    training:
      style: outlined
      learning_rate: 0.001
    <BLANKLINE>
    """
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in config.changes().items()}
    lines = "".join(f"    {name}={value!r},\n" for name, value in settings.items())
    record: dict[str, Any] = {"num_processes": num_processes}
    record |= {"num_examples": num_examples} if num_examples else {}
    return {
        "accelerate": launch_lines(config, num_processes)["accelerate"],
        "diffusers": _diffusers_line(config, num_processes),
        "python": "from lora_kit import TrainingConfig\nfrom lora_kit.launch import launch\n\n"
        f"config = TrainingConfig(\n{lines})\nlaunch(config, num_processes={num_processes})\n",
        "yaml": _yaml(record | {"training": settings}),
    }


class _Dumper(yaml.SafeDumper):
    """YAML's own, which also knows how a secret is shown."""


_Dumper.add_representer(Secret, lambda dumper, secret: dumper.represent_str(str(secret)))


def _yaml(record):
    texts = (
        yaml.dump(record, Dumper=_Dumper, sort_keys=False, allow_unicode=plain, width=2**16) for plain in (True, False)
    )
    return next(text for text in texts if not YAML_BREAKS.search(text))


def script_lacks(config: TrainingConfig) -> list[str]:
    """What diffusers' script would need to run this, in words; empty where it can run it."""
    notes = []
    if config.pretrained_model_name_or_path == "embedded":
        notes.append("the embedded model is lora_kit's own: give a model of the Hub")
    if config.style:
        notes.append("so is --style: give a data set as --dataset_name or --train_data_dir")
    for name in ("image_column", "caption_column"):
        if getattr(config, name) is None:
            notes.append(f"--{name}= is none here; the script wants the name of a column")
    return notes


def _diffusers_line(config, num_processes):
    always = ("pretrained_model_name_or_path", "learning_rate")
    changes = {name: getattr(config, name) for name in always} | config.changes(SCRIPT)
    lost = {name: changes.pop(name) for name in OWN_SETTINGS if name in changes}
    notes = [f"no flag in diffusers' script: {shlex.join(flag_words(lost))}"] if lost else []
    notes += script_lacks(config)
    launcher = ["accelerate", "launch", *(["--multi_gpu"] if num_processes > 1 else [])]
    line = shlex.join([*launcher, "--num_processes", str(num_processes), SCRIPT_FILE, *flag_words(changes)])
    return "\n".join([*(f"# {' '.join(note.split())}" for note in notes), line])


def launch_lines(
    config: TrainingConfig,
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    main_process_ip: str = "127.0.0.1",
    port: int = 29500,
) -> dict[str, str]:
    """The lines that start the same run from a shell, {"accelerate": ..., "torchrun": ...}.

    num_processes: of each machine, here and in torchrun; accelerate counts all machines' together. machine_rank: 0 is the
    machine of main_process_ip. port: where the machines meet; one machine takes a free one.

    >>> launch_lines(TrainingConfig(style="outlined", learning_rate=1e-3), num_processes=2)["torchrun"]
    'torchrun --standalone --nproc_per_node 2 -m lora_kit.training --style outlined --learning_rate 0.001'
    """
    training = ["-m", "lora_kit.training", *to_argv(config)]
    total = num_processes * num_machines
    accelerate = ["accelerate", "launch", "--num_processes", total]
    torchrun = ["torchrun", "--nproc_per_node", num_processes]
    if total > 1:
        accelerate.insert(2, "--multi_gpu")  # also without GPUs: --cpu would start one process only, and say nothing
    if num_machines > 1:
        accelerate += ["--num_machines", num_machines, "--machine_rank", machine_rank]
        accelerate += ["--main_process_ip", main_process_ip, "--main_process_port", port]
        torchrun += ["--nnodes", num_machines, "--node_rank", machine_rank]
        torchrun += ["--master_addr", main_process_ip, "--master_port", port]
    else:
        accelerate += ["--main_process_port", 0] if total > 1 else []
        torchrun.insert(1, "--standalone")
    lines = {"accelerate": accelerate, "torchrun": torchrun}
    return {name: shlex.join([str(word) for word in [*line, *training]]) for name, line in lines.items()}
