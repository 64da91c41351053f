"""A check, what it finds, and the list of findings as text, as a table and as records."""

import html
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lora_kit.doctor.case import Case
from lora_kit.system.html import Html, html_table
from lora_kit.system.looks import SIGNS

ERROR, WARNING, FINE = STATUSES = ("error", "warning", "fine")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    status: "error" (the run would fail, or not do what was asked), "warning" or "fine". change: the cure as settings,
    where it is one. see: the notebook and its heading that explain it.
    """

    check: str
    status: str
    value: str
    reason: str
    cure: str = ""
    change: dict[str, Any] | None = field(default=None, hash=False)
    see: tuple[str, str] = field(kw_only=True, repr=False)

    @property
    def link(self) -> str:
        """The notebook's path in the repository, and the heading that explains the finding."""
        notebook, heading = self.see
        return f"notebooks/{notebook}#{heading.replace('`', '').replace(' ', '-')}"

    def record(self) -> dict[str, Any]:
        """Plain values: check, status, value, reason, cure, change (settings that are the cure, or None), link."""
        names = ("check", "status", "value", "reason", "cure", "change", "link")
        return {name: getattr(self, name) for name in names}


class Findings(list[Finding]):
    """A list of `Finding`, worst first; in a notebook it shows itself as a table."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        super().__init__(sorted(findings, key=lambda finding: STATUSES.index(finding.status)))

    @property
    def status(self) -> str:
        """The worst status in the list; "fine" where it is empty."""
        return self[0].status if self else FINE

    def records(self) -> list[dict[str, Any]]:
        """The `Finding.record` of each, for JSON."""
        return [finding.record() for finding in self]

    def __str__(self) -> str:
        lines = []
        for finding in self:
            lines.append(f"{SIGNS[finding.status]} {finding.check}: {finding.value}. {finding.reason}")
            if finding.cure:
                lines.append(f"    cure: {finding.cure}")
            if finding.status != FINE:
                lines.append(f"    explained in {finding.link}")
        counts = [sum(finding.status == status for finding in self) for status in STATUSES]
        return "\n".join([*lines, "{} error(s), {} warning(s), {} fine".format(*counts)])

    def _repr_html_(self) -> str:
        head = ("", "check and value", "reason and cure")
        return html_table(map(_html_row, self), head, left=(1, 2), wrap=(1, 2))


def _html_row(finding):
    def text(words):  # a long name may break where a word of it ends
        return html.escape(words).replace("_", "_<wbr>")

    what = f"<strong>{text(finding.check)}</strong><br>{text(finding.value)}"
    why = text(finding.reason)
    if finding.cure:
        why += f"<br><strong>cure:</strong> {text(finding.cure)}"
    if finding.status != FINE:
        target, name = finding.link.removeprefix("notebooks/"), finding.see[0].removesuffix(".ipynb")
        why += f'<br>explained in <a href="{html.escape(target)}">{html.escape(name)}</a>'
    return f"{SIGNS[finding.status]} {finding.status}", Html(what), Html(why)


CHECKS: dict[str, "Check"] = {}  # every check by its name


@dataclass(frozen=True)
class Check:
    """A thing that can be wrong, under its one name: it looks at a `Case`, and words what it sees.

    see: the notebook and its heading that explain it. needs: the fields of `Case` without which it can't look. look: the
    function that looks; None where whoever reads files or watches a run sees it.
    """

    name: str
    see: tuple[str, str]
    needs: tuple[str, ...] = ()
    look: Callable[[Case], list[Finding]] | None = None

    def __post_init__(self):
        CHECKS[self.name] = self

    def __call__(self, case: Case) -> list[Finding]:
        """What is to be said of a case; nothing where what the check needs isn't known."""
        known = all(getattr(case, need) is not None for need in self.needs)
        return self.look(case) if self.look and known else []

    def error(self, value: str, reason: str, cure: str, change: dict[str, Any] | None = None) -> Finding:
        """A `Finding`: the run would fail, or not do what was asked."""
        return Finding(self.name, ERROR, value, reason, cure, change, see=self.see)

    def warning(self, value: str, reason: str, cure: str, change: dict[str, Any] | None = None) -> Finding:
        """A `Finding`: it runs, but perhaps not as meant."""
        return Finding(self.name, WARNING, value, reason, cure, change, see=self.see)

    def fine(self, value: str, reason: str) -> Finding:
        """A `Finding`: nothing is wrong."""
        return Finding(self.name, FINE, value, reason, see=self.see)


def check(name: str, see: tuple[str, str], needs: tuple[str, ...] = ()) -> Callable[[Callable], Check]:
    """A decorator that makes a function of a `Case` the `Check` of this name, and enters it in `CHECKS`."""
    return lambda look: Check(name, see, needs, look)
