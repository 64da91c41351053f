"""Findings as text, table and records, against answers written by hand; and each check's place in the notebooks."""

import importlib
import json
import pkgutil
from pathlib import Path

import pytest

import lora_kit.doctor
from lora_kit.doctor import ERROR, FINE, WARNING, Finding, Findings
from lora_kit.doctor.findings import CHECKS, Check

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SEE = ("03_schedules.ipynb", "`constant` and `constant_with_warmup`")
SICK = Finding("warm-up", ERROR, "lr_warmup_steps <9>", "too long", "1 & no more", {"lr_warmup_steps": 1}, see=SEE)
DOUBTFUL = Finding("images", WARNING, "7 pictures", "too few", "more", see=("04_steps.ipynb", "Who?"))
SOUND = Finding("clipping", FINE, "max_grad_norm 1", "gradients are clipped", see=("01_parameters.ipynb", "A list"))
ALL = Findings([SOUND, DOUBTFUL, SICK])


def test_the_worst_stands_first():
    assert list(ALL) == [SICK, DOUBTFUL, SOUND]
    assert ALL.status == ERROR
    assert Findings([SOUND, DOUBTFUL]).status == WARNING
    assert Findings([]).status == FINE


def test_as_text():
    assert str(ALL) == (
        "✗ warm-up: lr_warmup_steps <9>. too long\n"
        "    cure: 1 & no more\n"
        "    explained in notebooks/03_schedules.ipynb#constant-and-constant_with_warmup\n"
        "! images: 7 pictures. too few\n"
        "    cure: more\n"
        "    explained in notebooks/04_steps.ipynb#Who?\n"
        "✓ clipping: max_grad_norm 1. gradients are clipped\n"
        "1 error(s), 1 warning(s), 1 fine"
    )


def test_as_records():
    record = {
        "check": "warm-up",
        "status": "error",
        "value": "lr_warmup_steps <9>",
        "reason": "too long",
        "cure": "1 & no more",
        "change": {"lr_warmup_steps": 1},
        "link": "notebooks/03_schedules.ipynb#constant-and-constant_with_warmup",
    }
    assert ALL.records()[0] == record
    assert json.dumps(ALL.records()[2]) == (
        '{"check": "clipping", "status": "fine", "value": "max_grad_norm 1", "reason": "gradients are clipped", '
        '"cure": "", "change": null, "link": "notebooks/01_parameters.ipynb#A-list"}'
    )


def test_as_a_table():
    head = "padding: 1px 1.2em 1px 0; text-align: left; vertical-align: top"
    cell = f"{head}; white-space: nowrap"
    assert Findings([SICK, SOUND])._repr_html_() == (
        '<div style="overflow-x: auto"><table style="line-height: 1.4; border-collapse: collapse; white-space: normal; '
        'table-layout: auto; width: auto"><thead><tr>'
        f'<th style="{head}"></th><th style="{head}">check and value</th><th style="{head}">reason and cure</th>'
        "</tr></thead><tbody><tr>"
        f'<td style="{cell}">✗ error</td>'
        f'<td style="{head}"><strong>warm-up</strong><br>lr_<wbr>warmup_<wbr>steps &lt;9&gt;</td>'
        f'<td style="{head}">too long<br><strong>cure:</strong> 1 &amp; no more<br>explained in '
        '<a href="03_schedules.ipynb#constant-and-constant_with_warmup">03_schedules</a></td>'
        "</tr><tr>"
        f'<td style="{cell}">✓ fine</td>'
        f'<td style="{head}"><strong>clipping</strong><br>max_<wbr>grad_<wbr>norm 1</td>'
        f'<td style="{head}">gradients are clipped</td>'
        "</tr></tbody></table></div>"
    )


def test_a_finding_shows_what_a_reader_needs():
    assert repr(SOUND) == (
        "Finding(check='clipping', status='fine', value='max_grad_norm 1', reason='gradients are clipped', cure='', change=None)"
    )


def test_each_name_belongs_to_one_check():
    modules = [
        importlib.import_module(f"lora_kit.doctor.{module.name}")
        for module in pkgutil.iter_modules(lora_kit.doctor.__path__)
        if module.name != "__main__"
    ]
    checks = {id(thing): thing for module in modules for thing in vars(module).values() if isinstance(thing, Check)}
    assert sorted(check.name for check in checks.values()) == sorted(CHECKS)
    assert all(CHECKS[check.name] is check for check in checks.values())


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.name)
def test_links_lead_to_headings(check):
    notebook, heading = check.see
    cells = json.loads((NOTEBOOKS / notebook).read_text())["cells"]
    lines = [line.strip() for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"]]
    assert f"## {heading}" in lines
    assert check.error("", "", "").link == f"notebooks/{notebook}#{heading.replace('`', '').replace(' ', '-')}"
