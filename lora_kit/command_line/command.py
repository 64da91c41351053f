"""A configuration from a shell text: of its commands the one that trains, with its launcher and its flags."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PureWindowsPath
from typing import Any, NoReturn

from lora_kit.command_line.flags import (
    LAUNCH_FLAGS,
    add_launch_flags,
    build_parser,
    count_flag,
    read_settings,
    unknown_words,
)
from lora_kit.command_line.launchers import read_launcher
from lora_kit.command_line.reading import SCRIPT_FILE, SDXL_FILE, UNSAID, UNSAID_PROCESSES, Reading, in_one_line
from lora_kit.command_line.shell import Command, commands, left_as_they_are
from lora_kit.config import FIELDS, OWN_SETTINGS
from lora_kit.script import SCRIPT
from lora_kit.system.checks import shown

LAUNCH = "lora_kit.launch"
MODULES = ("lora_kit.training", LAUNCH, "lora_kit.doctor")
MOST_WORDS = 2_000  # of a command: argparse compares each word with all others
SDXL_FLAGS = {
    "--pretrained_vae_model_name_or_path": 1,
    "--train_text_encoder": 0,
    "--enable_npu_flash_attention": 0,
    "--debug_loss": 0,
}
"""What diffusers' SDXL script alone has: flags, and how many values each takes."""
SDXL_RATES = (
    f'{SDXL_FILE} has rates of its own, drawn as "diffusers\' SDXL script"; beside them is what lora_kit would apply'
)
SCRIPT_FLAGS = tuple(f"--{name}" for name in FIELDS if name not in OWN_SETTINGS)


def read_shell(text: str) -> Reading:
    """The settings, processes and launcher of the command of a shell text that trains; of the last one, where several do."""
    found = commands(text)
    found += [inner for command in found for inner in _handed_to_a_shell(command)]
    command, index, sentences = _training_command(found)
    unfilled = left_as_they_are(command.as_they_are)
    try:
        reading = _read_words(command.words, index, command.gpus)
    except ValueError as error:
        raise ValueError("; ".join([str(error), *unfilled])) from None
    return replace(reading, sentences=(*sentences, *command.odd, *unfilled, *reading.sentences))


def _training_command(found: Sequence[Command]) -> tuple[Command, int, list[str]]:
    """(the command that trains, the index of its program, sentences): a known program is preferred, and one with flags."""
    ranks = []
    for place, command in enumerate(found):
        index = next((index for index, word in enumerate(command.words) if _is_program(word)), None)
        if index is not None:
            known = _name(command.words[index]) in (SCRIPT_FILE, SDXL_FILE, *MODULES)
            flags = any(word.startswith("-") for word in command.words[index + 1 :])
            ranks.append(((known, flags), place, index))
    if not ranks:
        start = shown(shlex.join(found[-1].words)[:80])
        raise ValueError(f"no program in {start}: it must name {SCRIPT_FILE}, or {MODULES[0]} after -m")
    rank, place, index = max(ranks)
    equals = sum(other[0] == rank for other in ranks)
    if len(found[place].words) > MOST_WORDS:
        count = len(found[place].words)
        raise ValueError(f"a command of {count:,} words is too long to read; at most {MOST_WORDS:,} are")
    return found[place], index, [f"of {equals} commands that train the last is read"] if equals > 1 else []


def _handed_to_a_shell(command):
    """The commands in the text that `bash -c` is given; none where it can't be read."""
    for shell, option, text in zip(command.words, command.words[1:], command.words[2:], strict=False):
        if _name(shell) in ("sh", "bash", "zsh") and option in ("-c", "-lc"):
            try:
                return commands(text)
            except ValueError:
                break
    return []


def _is_program(word):
    return word in MODULES or (word.endswith(".py") and "://" not in word)


def _name(word):
    return PureWindowsPath(word).name  # which takes both kinds of slashes


def _read_words(words: Sequence[str], index: int, gpus: str | None) -> Reading:
    """What the words of a command ask for. index: of the program among them."""
    program, launch = _name(words[index]), read_launcher(words[:index], gpus)
    arguments, sentences = words[index + 1 :], []
    sdxl = program == SDXL_FILE
    if program.endswith(".py"):
        arguments, sentences = _whole_flags(arguments, (*SCRIPT_FLAGS, *(SDXL_FLAGS if sdxl else ())))
    settings, own = _read_flags(program, arguments)
    processes = launch.num_processes
    if program == LAUNCH:
        processes = own.num_machines * (own.num_processes or UNSAID_PROCESSES)
        sentences += [] if own.num_processes else [UNSAID]
    elif own.num_processes:
        processes = own.num_processes
    else:
        sentences += launch.sentences
    if launch.mixed_precision:
        settings.setdefault("mixed_precision", launch.mixed_precision)
        sentences.append(f"mixed_precision {launch.mixed_precision} is the launcher's")
    if program.endswith(".py"):
        defaults = SCRIPT.defaults | ({"resolution": 1024} if sdxl else {})
        defaults = {name: value for name, value in defaults.items() if name not in settings}
        settings = defaults | settings
        taken = ", ".join(f"{name} {value:g}" for name, value in defaults.items())
        sentences += [f"not given, so {SDXL_FILE if sdxl else SCRIPT_FILE}'s own: {taken}"] if taken else []
        aside = [flag for flag in SDXL_FLAGS if getattr(own, flag[2:], None)]
        sentences += [f"set aside, since lora_kit has no such setting: {', '.join(aside)}"] if aside else []
        if program != SCRIPT_FILE:
            sentences += [SDXL_RATES if sdxl else f"{program} is read as if it were {SCRIPT_FILE}"]
    trainer = "diffusers_sdxl" if sdxl else None
    other = program if program.endswith(".py") and program not in (SCRIPT_FILE, SDXL_FILE) else None
    return Reading(settings, processes, getattr(own, "num_examples", None), tuple(sentences), trainer, other)


def _whole_flags(words: Sequence[str], flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """(words, sentences) with a script's shortened flags spelled out: diffusers' scripts accept them, this kit doesn't."""
    whole, sentences = [], []
    for word in words:
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and len(flag) > 2 and flag not in flags and flag[2:] not in FIELDS:
            meant = [name for name in flags if name.startswith(flag)]
            if len(meant) == 1:
                sentences.append(f"{flag} is read as {meant[0]}")
                word = f"{meant[0]}{equals}{value}"
        whole.append(word)
    return whole, sentences


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
        for flag, values in SDXL_FLAGS.items() if program == SDXL_FILE else ():
            own.add_argument(flag, **({} if values else {"action": "store_true"}))
            more = (*more, flag)
    options, rest = own.parse_known_args(words)
    settings, unknown = read_settings(parser, rest)
    unknown = [word for word in unknown if word not in ("...", "…")]  # as in a README: and so on
    if unknown:
        raise ValueError(unknown_words(unknown, more))
    return settings, options


def _refuse(message: str) -> NoReturn:
    raise ValueError(in_one_line(message))
