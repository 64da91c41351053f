"""The command line: say what is wrong with a run before it is started.

python -m lora_kit.doctor --train_data_dir pictures --learning_rate 1e-4 ... [--num_processes 4] [--try_updates 5]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from lora_kit.command_line.flags import build_parser, nearest_flags, read_settings
from lora_kit.config import quiet_config
from lora_kit.doctor.examine import SETTINGS, examine
from lora_kit.doctor.findings import ERROR, Finding, Findings
from lora_kit.doctor.watch import TRIAL, try_run
from lora_kit.system.checks import whole_number


def _number(text):
    """A number where it is one; what is wrong with it is then a finding, not argparse's error."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _count(text):
    try:
        return whole_number("", _number(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).strip()) from None


def _read_argv(argv) -> tuple[dict[str, Any], argparse.Namespace, list[Finding]]:
    """(settings, doctor's own options, findings) of a command line; what is wrong with a setting is a finding."""
    own = argparse.ArgumentParser(
        prog="python -m lora_kit.doctor",
        description="Say what is wrong with a run before it is started. All other flags are those of "
        "python -m lora_kit.training.",
        allow_abbrev=False,
    )
    own.add_argument("--num_processes", type=_count, default=1, help="On how many it will run. Default: 1.")
    own.add_argument("--num_examples", type=_count, help="Instead of counting the pictures.")
    own.add_argument("--try_updates", type=_count, help="Make so many updates of the real run, and look at them.")
    own.add_argument("--json", action="store_true", help="Print records instead of text.")
    options, words = own.parse_known_args(argv)
    settings, unknown = read_settings(build_parser(number=_number), words)
    lists = "`python -m lora_kit.training --help` lists all flags"
    hints = nearest_flags(unknown, [f"--{name}" for name in vars(options)])
    return settings, options, [SETTINGS.error(word, "no such flag", hint.lstrip(", ") or lists) for word, hint in hints]


def _try(settings, updates) -> list[Finding]:
    """What a few updates of the run show; what ends them is a finding as well."""
    try:
        return try_run(quiet_config(settings), updates)
    except (ValueError, OSError, RuntimeError) as error:  # the last is torch's, such as for a GPU whose memory is full
        return [TRIAL.error(f"try_updates {updates}", " ".join(str(error).split()) or type(error).__name__, "")]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; the exit status is 1 where one is an error, else 0.

    argv: the words of the command line; left out, sys.argv's.
    """
    settings, options, findings = _read_argv(argv)
    findings = Findings(findings + examine(settings, options.num_processes, options.num_examples))
    if options.try_updates and findings.status != ERROR:
        findings = Findings([*findings, *_try(settings, options.try_updates)])
    print(json.dumps(findings.records(), indent=1, ensure_ascii=False) if options.json else findings)
    return int(findings.status == ERROR)


if __name__ == "__main__":
    sys.exit(main())
