"""The glossary: each term stands once, in order, and leads to a section that exists and speaks of it, and to flags that exist."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from lora_kit import TrainingConfig
from lora_kit.command_line.flags import LAUNCH_FLAGS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "glossary.md").read_text()
ENTRY = re.compile(
    r"^## (?P<term>.+)\n\n(?P<says>(?:.+\n)+)\n"
    r"\[(?P<link>.+)\]\(\.\./notebooks/(?P<notebook>\w+)\.ipynb#(?P<anchor>\S+)\)"
    r"(?:, “(?P<words>[^”]+)”)?(?: · (?P<flags>.+))?\n",
    flags=re.MULTILINE,
)
ENTRIES = [found.groupdict() for found in ENTRY.finditer(TEXT)]
TERMS = [entry["term"] for entry in ENTRIES]
ANCHORS = [re.sub(r"[^\w -]", "", term.lower()).replace(" ", "-") for term in TERMS]  # GitHub's
FLAGS = {field.name for field in dataclasses.fields(TrainingConfig)}
FLAGS |= {flag.removeprefix("--") for flag in LAUNCH_FLAGS}


def shown(cell):
    """The texts among a cell's outputs; no pictures."""
    for output in cell["outputs"]:
        texts = [output.get("text", []), *(data for kind, data in output.get("data", {}).items() if "text/" in kind)]
        yield from ("".join(text) for text in texts)


def sections(notebook):
    """{heading's anchor in JupyterLab: (heading, text and outputs up to the next heading of its level)}."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    found, opened = {}, []
    for cell in cells:
        source = "".join(cell["source"])
        lines = source.splitlines() if cell["cell_type"] == "markdown" else [source, *shown(cell)]
        for line in lines:
            if cell["cell_type"] == "markdown" and (heading := re.match(r"(#+) (.+)", line)):
                level, title = len(heading[1]), heading[2]
                opened = [(depth, anchor) for depth, anchor in opened if depth < level]
                opened.append((level, title.replace("`", "").replace(" ", "-")))
                found[opened[-1][1]] = title, ""
            for _, anchor in opened:
                found[anchor] = found[anchor][0], f"{found[anchor][1]}{line}\n"
    return found


def plain(text):
    """For comparing words: lower case, without links' addresses, and neither line breaks nor what joins two words count."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    return re.sub(r"[\s_-]+", " ", text).lower()


def test_every_entry_is_read():
    assert TERMS == re.findall(r"^## (.+)", TEXT, flags=re.MULTILINE)
    assert ENTRIES[TERMS.index("resume")] == {
        "term": "resume",
        "says": "To go on from a checkpoint as if the run had never stopped.\n",
        "link": "08 Traps: 27. The resumed epoch shows pictures again",
        "notebook": "08_traps",
        "anchor": "27.-The-resumed-epoch-shows-pictures-again",
        "words": None,
        "flags": "`--resume_from_checkpoint`",
    }


def test_in_alphabetical_order_and_each_once():
    assert TERMS == sorted(TERMS, key=str.lower)
    assert len(set(ANCHORS)) == len(ANCHORS)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_links_to_terms_that_are_here(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
    links = [link for cell in cells for link in re.findall(r"glossary\.md#([^)\s]+)\)", "".join(cell["source"]))]
    assert links and [link for link in links if link not in ANCHORS] == []


@pytest.mark.parametrize("entry", ENTRIES, ids=TERMS)
def test_the_section_exists_and_speaks_of_it(entry):
    found = sections(entry["notebook"])
    assert entry["anchor"] in found, sorted(found)
    heading, text = found[entry["anchor"]]
    assert entry["link"].endswith(f": {heading}") and entry["link"][:2] == entry["notebook"][:2]
    assert plain(entry["words"] or re.sub(r"\(.*\)", "", entry["term"]).strip()) in plain(text)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry["flags"]], ids=lambda entry: entry["term"])
def test_its_flags_exist(entry):
    flags = entry["flags"].split()
    assert [flag for flag in flags if not (flag.startswith("`--") and flag.strip("`-") in FLAGS)] == []


def test_what_sets_a_run_is_explained():
    """Settings that a reader can't guess from their names have a term; names of files, folders and columns need none."""
    explained = {flag.strip("`-") for entry in ENTRIES for flag in (entry["flags"] or "").split()}
    schedule_and_optimizer = {name for name in FLAGS if name.startswith(("lr_", "adam_", "gradient_"))}
    assert schedule_and_optimizer <= explained
