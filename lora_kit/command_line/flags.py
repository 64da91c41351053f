"""The command line of a run: one flag a setting, under the names of diffusers' script; and the flags of a launch."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from lora_kit.config import FIELDS, TrainingConfig, kind_of
from lora_kit.script import DEFECTS, SCRIPT
from lora_kit.system.checks import nearest, shown, whole_number
from lora_kit.system.meeting import RDZV_TIMEOUT
from lora_kit.system.secret import Secret

LAUNCH_FLAGS = (
    "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port", "--rdzv_timeout",
    "--print_only",
)  # fmt: skip
SHOWN_UNKNOWN = 5  # of a long list of unknown words


class _QuotingParser(argparse.ArgumentParser):
    """argparse, whose errors quote no more of a value than can be read."""

    def error(self, message: str) -> NoReturn:
        super().error(message if len(message) <= 400 else f"{message[:400]}...")


def build_parser(number: Callable[[str], Any] | None = None, add_help: bool = True) -> argparse.ArgumentParser:
    """The parser of a run's flags, whose result holds only what was given.

    number: reads numbers instead of int and float. add_help: whether --help is one of the flags.
    """
    parser = _QuotingParser(
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
        add_help=add_help,
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
            text += " Required, except with match_diffusers."
        elif field.default is not None:
            text += f" Default: {' '.join(field.default) if kind is tuple else field.default}."
        empty_is_none = optional and field.default is not None
        text += f" --{name}= is none." if empty_is_none else ""
        parser.add_argument(
            f"--{name}",
            type=_text_or_none if empty_is_none else str if kind in (str, tuple, Secret) else number or kind,
            nargs="+" if kind is tuple else None,
            default=argparse.SUPPRESS,
            metavar="NAME" if kind is tuple else kind.__name__.upper(),
            help=text,
        )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # launchers give it; LOCAL_RANK decides
    return parser


def _text_or_none(text):
    return text or None


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags of `python -m lora_kit.launch`, which are `LAUNCH_FLAGS`."""
    parser.add_argument(
        "--num_processes", type=count_flag(1), help="Of this machine. Default: one for each GPU, or 2 without."
    )
    parser.add_argument("--num_machines", type=count_flag(1), default=1, help="Default: 1.")
    parser.add_argument(
        "--machine_rank", type=count_flag(0), default=0, help="0 is the machine of --main_process_ip. Default: 0."
    )
    parser.add_argument("--main_process_ip", default="127.0.0.1", help="Default: 127.0.0.1.")
    parser.add_argument("--main_process_port", type=int, help="Default: a free one, on one machine.")
    parser.add_argument(
        "--rdzv_timeout",
        type=count_flag(1),
        default=RDZV_TIMEOUT,
        help=f"Seconds that a machine waits for the others. Default: {RDZV_TIMEOUT}.",
    )
    parser.add_argument(
        "--print_only", action="store_true", help="Print the lines that do the same, and start nothing."
    )


def count_flag(low: int) -> Callable[[str], int]:
    """The `type` of a flag that takes a whole number of at least `low`; argparse names the flag in the error."""

    def count(text):
        try:
            value = int(text)
        except ValueError:
            value = text
        try:
            return whole_number("the value", value, low)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return count


def read_settings(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[dict[str, Any], list[str]]:
    """(the settings that a command line asks for, the words that are no flags of the parser)."""
    namespace, unknown = parser.parse_known_args(argv)
    settings = vars(namespace)
    settings.pop("local_rank", None)
    return settings, unknown


def nearest_flags(words: Iterable[str], more: Iterable[str] = ()) -> list[tuple[str, str]]:
    """[(flag, ", did you mean --rank?")] for words of a command line that it doesn't know; values, which may be secret, are
    left out.

    more: flags besides those of the settings, such as a launcher's.
    """
    words, known = list(words), [*(f"--{name}" for name in FIELDS), *more]
    flags = [word.partition("=")[0] for word in [word for word in words if word.startswith("-")] or words[:1]]
    near = {flag: _meant(flag, known) for flag in dict.fromkeys(flags)}
    return [(flag, f", did you mean {near[flag]}?" if near[flag] else "") for flag in flags]


def _meant(flag, known):
    """The known flag that a flag was cut short from, where few begin so; or else the nearest one."""
    begun = [name for name in known if name.startswith(flag)]
    return nearest(flag, begun or known) or (begun[0] if 0 < len(begun) <= 3 else None)


def unknown_words(words: Iterable[str], more: Iterable[str] = ()) -> str:
    """One sentence about words that are no flags, of which it names the first few.

    more: as of `nearest_flags`.

    >>> unknown_words(["--num_procesess", "2"], more=["--num_processes"])
    "unknown '--num_procesess', did you mean --num_processes?"
    """
    words = list(words)
    flags = [word for word in words if word.startswith("-")] or words[:1]
    sentences = [f"unknown {shown(word)}{hint}" for word, hint in nearest_flags(flags[:SHOWN_UNKNOWN], more)]
    left_out = len(flags) - len(sentences)
    return "; ".join([*sentences, *([f"and {left_out:,} more"] if left_out else [])])


def parse_args(argv: Sequence[str] | None = None) -> TrainingConfig:
    """A `TrainingConfig` from a command line (sys.argv where `argv` is None); exits with 2 and the error in one line."""
    return _parse(build_parser(), argv)


def parse_launch_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, TrainingConfig]:
    """(the launch's own options, a `TrainingConfig`) from a command line; exits as `parse_args` does."""
    own = _QuotingParser(
        prog="python -m lora_kit.launch",
        description="Train on several processes, of one machine or of several. All other flags are those of "
        "python -m lora_kit.training.",
        allow_abbrev=False,
    )
    add_launch_flags(own)
    options, rest = own.parse_known_args(argv)
    parser = build_parser()
    parser.prog = own.prog
    return options, _parse(parser, rest, LAUNCH_FLAGS)


def _parse(parser, argv, more=()):
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
    """Settings as the words of a command line; what is None by default and False is left out.

    >>> flag_words({"image_column": None, "seed": 3, "center_crop": True, "output_dir": "-out"})
    ['--image_column=', '--seed', '3', '--center_crop', '--output_dir=-out']
    """
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
