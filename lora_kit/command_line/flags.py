"""The command line of a run: one flag a setting, under the names of diffusers' script."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lora_kit.config import FIELDS, TrainingConfig, kind_of
from lora_kit.script import DEFECTS, SCRIPT
from lora_kit.system.checks import nearest

LAUNCH_FLAGS = (  # of `python -m lora_kit.launch`, besides those of the settings
    "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port", "--print_only",
)  # fmt: skip


def build_parser(number: Callable[[str], Any] | None = None) -> argparse.ArgumentParser:
    """The parser, whose result holds only what was given. `number` reads numbers instead of int and float."""
    parser = argparse.ArgumentParser(
        prog="python -m lora_kit.training",
        description="Train a LoRA of a text-to-image diffusion model.",
        epilog="\n".join(
            [
                "--match_diffusers brings back the script's defaults where a flag is left out:",
                *(f"  --{name} {value:g}" for name, value in SCRIPT.defaults.items()),
                "and its defects, each of which is mended without it:",
                *(f"  {defect}" for defect in DEFECTS),
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, field in FIELDS.items():
        kind, optional = kind_of(name)
        text = field.metadata["help"].replace("%", "%%")
        choices = field.metadata["rules"].get("choices")
        text += f" One of {', '.join(choices)}." if choices else ""
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        if field.default is dataclasses.MISSING:
            text += " Required, but with match_diffusers."
        elif field.default is not None:
            text += f" Default: {' '.join(field.default) if kind is tuple else field.default}."
        none_by_name = optional and field.default is not None  # --image_column= is None
        parser.add_argument(
            f"--{name}",
            type=_or_none if none_by_name else str if kind in (str, tuple) else number or kind,
            nargs="+" if kind is tuple else None,
            default=argparse.SUPPRESS,
            metavar="NAME" if kind is tuple else kind.__name__.upper(),
            help=text,
        )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # launchers give it; LOCAL_RANK decides
    return parser


def _or_none(text):
    return text or None


def read_settings(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[dict[str, Any], list[str]]:
    """(what the words of a command line ask for as settings, the words that are no flags of the parser)."""
    given, unknown = parser.parse_known_args(argv)
    settings = vars(given)
    settings.pop("local_rank", None)
    return settings, unknown


def nearest_flags(words: Iterable[str], more: Iterable[str] = ()) -> list[tuple[str, str]]:
    """[(word, ", did you mean --rank?")] for words of a command line that it doesn't know; values are left out.

    more: flags besides those of the settings, such as a launcher's.
    """
    words, known = list(words), [*(f"--{name}" for name in FIELDS), *more]
    hints = []
    for word in [word for word in words if word.startswith("-")] or words[:1]:
        close = nearest(word.split("=")[0], known)
        hints.append((word, f", did you mean {close}?" if close else ""))
    return hints


def unknown_words(words: Iterable[str], more: Iterable[str] = ()) -> str:
    """One sentence about words that are no flags."""
    return "; ".join(f"unknown {word!r}{hint}" for word, hint in nearest_flags(words, more))


def parse_args(argv: Sequence[str] | None = None, more: Iterable[str] = ()) -> TrainingConfig:
    """A `TrainingConfig` from a command line (sys.argv where `argv` is None); exits with 2 and the error in one line.

    more: flags of the program besides those of the settings, which an unknown word may have been meant for.
    """
    parser = build_parser()
    settings, unknown = read_settings(parser, argv)
    if unknown:
        parser.error(unknown_words(unknown, more))
    if not {"learning_rate", "match_diffusers"} & settings.keys():
        parser.error("--learning_rate is required: 1e-4 to 1e-3 is typical of LoRA")
    try:
        return TrainingConfig(**settings)
    except ValueError as error:
        parser.error(str(error))


def to_argv(config: TrainingConfig) -> list[str]:
    """The command line that gives this configuration: the flags that differ from their defaults.

    >>> to_argv(TrainingConfig(style="outlined", learning_rate=1e-3, rank=8))
    ['--style', 'outlined', '--rank', '8', '--learning_rate', '0.001']
    """
    return flag_words(config.changes())


def flag_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command line; what is None by default and False is left out."""
    words = []
    for name, value in settings.items():
        if value is None and FIELDS[name].default is not None:
            words.append(f"--{name}=")
        elif value is None or value is False:
            continue
        elif value is True:
            words.append(f"--{name}")
        elif isinstance(value, tuple):
            words += [f"--{name}", *value]
        elif str(value).startswith("-"):  # apart, it would be read as a flag
            words.append(f"--{name}={value}")
        else:
            words += [f"--{name}", str(value)]
    return words
