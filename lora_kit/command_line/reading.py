"""What a text that somebody pasted asks for, a `Reading`; and how Python and YAML are read.

Nothing of a text is run. A text that can't be read gives a ValueError with a short quotation, whatever the text is.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from lora_kit.config import FIELDS, kind_of
from lora_kit.system.checks import check_count, shown, whole_number

SCRIPT_FILE = "train_text_to_image_lora.py"
SDXL_FILE = "train_text_to_image_lora_sdxl.py"
DEEPEST = 8  # nested brackets of YAML: each level makes what is inside slower to read
LAUNCH_ARGUMENTS = ("config", "num_processes", "live", "port", "num_machines", "machine_rank", "main_process_ip")
UNSAID_PROCESSES = 2  # what a launch starts on a machine without GPUs
UNSAID = "num_processes isn't given: a launch starts one process for each GPU, or 2 where there is none; read as 2"


@dataclass(frozen=True)
class Reading:
    """What a text asks for.

    settings: fields of `TrainingConfig` by name, not checked. num_processes: over all machines. num_examples: the pictures, or
    None where the text doesn't say. sentences: what is to be known about the reading. trainer: whose command it is, a key of
    `lora_kit.trainers.known.TRAINERS`; None for this kit and diffusers' script, whose rates are the same. script: another
    program, of whose rates nothing is known here; else None.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    num_processes: int = 1
    num_examples: int | None = None
    sentences: tuple[str, ...] = ()
    trainer: str | None = None
    script: str | None = None


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
        raise ValueError(f"Python that can't be read, {place}{in_one_line(error.msg)}{quotation}") from None
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
        raise ValueError(f"YAML that can't be read: {in_one_line(error)}") from None
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


def in_one_line(message: object) -> str:
    """A message in one line, cut where it quotes at length."""
    text = " ".join(str(message).split())
    return text if len(text) <= 400 else f"{text[:400]}..."
