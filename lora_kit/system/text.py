"""Tables as plain text, for print()."""

from collections.abc import Mapping, Sequence
from typing import Any


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A list of records as text: a header, a line for each record, numbers to the right with thousands separated.

    >>> print(format_table([{"module": "to_q", "tensors": 2}, {"module": "trained", "tensors": 1024}]))
    module   tensors
    to_q           2
    trained    1,024
    """

    def text(value):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
        return "" if value is None else str(value)

    lines = [[name.replace("_", " ") for name in rows[0]], *([text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [any(isinstance(row[name], (int, float)) for row in rows) for name in rows[0]]
    cells = ([c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in cells)
