"""What notebooks, pages, benchmarks, scripts and tests say of `lora_kit`: names lead to something that is there, commands can be read."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from lora_kit.command_line.texts import read
from lora_kit.config import quiet_config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("scripts/*.ipynb")]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "glossary.md",
    *ROOT.glob("benchmarks/*.md"),
]  # the changelog has old names
PROGRAMS = [
    path
    for folder in ("benchmarks", "scripts", "docs", "tests")  # what tests run only on a GPU or in a browser included
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)  # whose names lead nowhere on purpose
]
IMPORT = re.compile(r"from (lora_kit[\w.]*) import (\([^)]*\)|\w+(?: as \w+)?(?:, \w+(?: as \w+)?)*)")
DOTTED = re.compile(r"\blora_kit(?:\.[A-Za-z_]\w*)+")


def text_of(path):
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])


def names_in(text):
    """The dotted names in a text, those that it imports included; files such as lora_kit/config.py are none."""
    names = set(DOTTED.findall(text))
    for module, members in IMPORT.findall(text):
        names |= {f"{module}.{member.split()[0]}" for member in members.strip("()").split(",") if member.strip()}
    return names


def leads_somewhere(name):
    """Whether a dotted name is a module, or what its longest module holds."""
    module, rest = import_module("lora_kit"), name.split(".")[1:]
    while rest:
        try:
            module = import_module(f"{module.__name__}.{rest[0]}")
        except ModuleNotFoundError as error:
            if error.name != f"{module.__name__}.{rest[0]}":
                raise
            break
        rest = rest[1:]
    thing = module
    for member in rest:
        if not hasattr(thing, member):
            return False
        thing = getattr(thing, member)
    return True


def test_how_names_are_read():
    text = "`python -m lora_kit.launch`, from lora_kit.steps import (\n    AXES,\n    Steps as S,\n) and lora_kit/config.py"
    assert names_in(text) == {"lora_kit.launch", "lora_kit.steps", "lora_kit.steps.AXES", "lora_kit.steps.Steps"}
    assert leads_somewhere("lora_kit.steps.Steps.of") and leads_somewhere("lora_kit.TrainingConfig")
    assert not leads_somewhere("lora_kit.styles") and not leads_somewhere("lora_kit.steps.Stairs")


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES, *PROGRAMS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_name_leads_somewhere(path):
    assert sorted(name for name in names_in(text_of(path)) if not leads_somewhere(name)) == []


def commands_in(text):
    """The commands of a page's code blocks that start this package; a line that is indented continues the one before."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [command for block in blocks for command in re.split(r"\n(?! )", block.strip()) if "-m lora_kit." in command]


def test_the_readme_s_commands_can_be_pasted():
    """Into the explorer, which reads them as a shell would: nothing is left out or unknown, and the settings go together."""
    readings = [read(command) for command in commands_in((ROOT / "README.md").read_text())]
    for reading in readings:
        quiet_config(reading.settings)
    assert [reading.num_processes for reading in readings] == [1, 1, 4, 2, 8]
