"""A configuration from text that somebody pasted: a command line, Python or YAML, each read by a function of its own.

Nothing of a text is run. A text that can't be read gives a ValueError with a short quotation, whatever the text is.
"""

import argparse
import ast
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, NoReturn

import yaml

from lora_kit.command_line.flags import (
    LAUNCH_FLAGS,
    add_launch_flags,
    build_parser,
    count_flag,
    read_settings,
    unknown_words,
)
from lora_kit.command_line.shell import last_command
from lora_kit.config import FIELDS, kind_of
from lora_kit.script import SCRIPT
from lora_kit.system.checks import check_count, shown, whole_number

SCRIPT_FILE = "train_text_to_image_lora.py"
LAUNCH = "lora_kit.launch"
MODULES = ("lora_kit.training", LAUNCH, "lora_kit.doctor")
MOST_WORDS = 2_000  # of a command: argparse compares each word with all others
DEEPEST = 50  # brackets in brackets of YAML
LAUNCH_ARGUMENTS = ("config", "num_processes", "live", "port", "num_machines", "machine_rank", "main_process_ip")
UNSAID_PROCESSES = 2  # what a launch starts on a machine without GPUs
UNSAID = "num_processes isn't given: a launch starts one process for each GPU, or 2 where there is none; read as 2"


@dataclass(frozen=True)
class Reading:
    """What a text asks for.

    settings: fields of `TrainingConfig` by name, not checked. num_processes: over all machines. num_examples: the pictures, or
    None where the text doesn't say. sentences: what is to be known about the reading.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    num_processes: int = 1
    num_examples: int | None = None
    sentences: tuple[str, ...] = ()


def checked_numbers(reading: Reading) -> Reading:
    """The reading with its counts as whole numbers. Raises ValueError where a number is none, or too large to count with."""
    counts = {"num_processes": reading.num_processes, "num_examples": reading.num_examples}
    counts = {name: whole_number(name, value) for name, value in counts.items() if value is not None}
    for name, value in reading.settings.items():
        check_count(name, value)
    return replace(reading, **counts)


def read_python(text: str) -> Reading:
    """The arguments of TrainingConfig(...) in a Python text, and the processes of launch(...) where it is called."""
    try:
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    except SyntaxError as error:
        place = f"line {error.lineno}: " if error.lineno else ""
        quotation = f": {shown(error.text.strip())}" if error.text else ""
        raise ValueError(f"Python that can't be read, {place}{_short(error.msg)}{quotation}") from None
    except (RecursionError, MemoryError):
        raise ValueError("Python that can't be read: it is nested too deep") from None
    except ValueError as error:  # a null byte
        raise ValueError(f"Python that can't be read: {error}") from None
    config, launch = _call(calls, "TrainingConfig"), _call(calls, "launch")
    if config is None:
        raise ValueError("Python without a call of TrainingConfig(...)")
    if config.args:
        raise ValueError(f"TrainingConfig({_source(text, config.args[0])}): settings are given by name, such as rank=4")
    for word in config.keywords:
        if word.arg is None:
            raise ValueError(f"TrainingConfig(**{_source(text, word.value)}): only plain values can be read")
    settings = {word.arg: _literal(text, word.arg, word.value) for word in config.keywords}
    if launch is None:
        return Reading(settings)
    nodes = dict(zip(LAUNCH_ARGUMENTS, launch.args, strict=False)) | {word.arg: word.value for word in launch.keywords}
    numbers = {name: _literal(text, name, nodes[name]) for name in ("num_processes", "num_machines") if name in nodes}
    processes, machines = numbers.get("num_processes"), whole_number("num_machines", numbers.get("num_machines", 1))
    if processes is None:
        return Reading(settings, UNSAID_PROCESSES * machines, sentences=(UNSAID,))
    return Reading(settings, whole_number("num_processes", processes) * machines)


def _call(calls, name):
    """The first call of a function of this name; None where there is none."""
    return next((call for call in calls if name == getattr(call.func, "id", getattr(call.func, "attr", None))), None)


def _source(text, node):
    return shown(ast.get_source_segment(text, node))


def _literal(text, name, node):
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError(f"{name} {_source(text, node)}: only plain values can be read") from None


class _PlainLoader(yaml.SafeLoader):
    """YAML of plain values: a few lines with aliases can stand for more than a machine can hold."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{line}: the alias {shown(event.anchor)}; only plain values are read")
        if getattr(event, "tag", None):
            raise ValueError(f"{line}: the tag {shown(event.tag)}; only plain values are read")
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, TokenClass: type) -> None:
        if self.flow_level >= DEEPEST:  # it would look a thousand brackets ahead of each
            raise RecursionError
        super().fetch_flow_collection_start(TokenClass)


def read_yaml(text: str) -> Reading:
    """The settings under training: of a YAML text, and num_processes and num_examples beside it."""
    try:
        record = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two: a date or a number that is none
        raise ValueError(f"YAML that can't be read: {_short(error)}") from None
    except RecursionError:
        raise ValueError("YAML that can't be read: it is nested too deep") from None
    settings = record.get("training") if isinstance(record, dict) else None
    if not isinstance(settings, dict):
        raise ValueError("YAML without settings: put them under training:, such as\ntraining:\n  learning_rate: 0.001")
    for name in settings:
        if not isinstance(name, str):
            raise ValueError(f"training: {shown(name)} is not the name of a setting")
    counts = {name: whole_number(name, record[name]) for name in ("num_processes", "num_examples") if name in record}
    return Reading({name: _number(name, value) for name, value in settings.items()}, **counts)


def _number(name, value):
    """A setting's value; as a number where YAML says text: 1e-4, which it wants to be 1.0e-4."""
    if isinstance(value, str) and name in FIELDS and kind_of(name)[0] is float:
        try:
            return float(value)
        except ValueError:
            pass
    return value


def read_shell(text: str) -> Reading:
    """The settings, processes and launcher of the last command of a shell text."""
    words = last_command(text)
    if len(words) > MOST_WORDS:
        raise ValueError(f"a command of {len(words):,} words is too long to read; at most {MOST_WORDS:,} are")
    index = next((i for i, word in enumerate(words) if word.endswith(".py") or word in MODULES), None)
    if index is None:
        start = shown(shlex.join(words)[:80])
        raise ValueError(f"no program in {start}: it must name {SCRIPT_FILE}, or {MODULES[0]} after -m")
    program, launcher = PurePath(words[index]).name, words[:index]
    settings, own = _read_flags(program, words[index + 1 :])
    processes, sentences = _processes(launcher), []
    if program == LAUNCH:
        processes = own.num_machines * (own.num_processes or UNSAID_PROCESSES)
        sentences += [] if own.num_processes else [UNSAID]
    elif own.num_processes:
        processes = own.num_processes
    precision = _option(launcher, "--mixed_precision")
    if precision:
        settings.setdefault("mixed_precision", precision)
        sentences.append(f"mixed_precision {precision} is the launcher's")
    if program.endswith(".py"):
        defaults = {name: value for name, value in SCRIPT.defaults.items() if name not in settings}
        settings = defaults | settings
        taken = ", ".join(f"{name} {value:g}" for name, value in defaults.items())
        sentences += [f"not given, so {SCRIPT_FILE}'s own: {taken}"] if taken else []
        sentences += [f"{program} is read as if it were {SCRIPT_FILE}"] if program != SCRIPT_FILE else []
    return Reading(settings, processes, getattr(own, "num_examples", None), tuple(sentences))


def _read_flags(program: str, words: Sequence[str]) -> tuple[dict[str, Any], argparse.Namespace]:
    """(settings, the program's own options) of the words after a program."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser = build_parser(add_help=False)
    own.error = parser.error = _refuse
    if program == LAUNCH:
        add_launch_flags(own)
        more = LAUNCH_FLAGS
    else:
        more = ("--num_processes", "--num_examples")
        for flag in more:
            own.add_argument(flag, type=count_flag(1))
    options, rest = own.parse_known_args(words)
    settings, unknown = read_settings(parser, rest)
    unknown = [word for word in unknown if word not in ("...", "…")]  # as in a README: and so on
    if unknown:
        raise ValueError(unknown_words(unknown, more))
    return settings, options


def _refuse(message: str) -> NoReturn:
    raise ValueError(_short(message))


def _short(message):
    """A message in one line, cut where it quotes at length."""
    text = " ".join(str(message).split())
    return text if len(text) <= 400 else f"{text[:400]}..."


def _option(words, name):
    """The value of a launcher's option, given as two words or as one; None where it isn't there."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.split("=")[0].replace("-", "_") == name.replace("-", "_"):
            return word.split("=", 1)[1] if "=" in word else following
    return None


def _processes(launcher):
    """The processes that accelerate launch or torchrun starts, over all machines."""
    total = 1
    for name in ("--num_processes", "--nproc_per_node", "--nnodes"):
        value = _option(launcher, name)
        if value is not None:
            total *= whole_number(name, int(value) if value.isdecimal() and len(value) < 400 else value)
    return total
