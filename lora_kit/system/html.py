"""HTML text for pages and notebooks: the one table, and the theme's own colour."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

# the themes' own text colour in JupyterLab, VS Code and Colab
TEXT_COLOUR = "var(--jp-ui-font-color1, var(--vscode-foreground, var(--colab-primary-text-color, inherit)))"


class Html(str):
    """Text that is HTML already, and is not escaped again."""


def html_table(
    rows: Iterable[Sequence[Any]], head: Sequence[str] = (), left: Iterable[int] = (), wrap: Iterable[int] = ()
) -> str:
    """A table of rows of texts, numbers and `Html`, in a box that scrolls where the page is too narrow.

    Whole numbers have their thousands separated. All columns but the first and those named in `left` stand right; those named
    in `wrap` may break their lines. Columns are counted from 0, from the end where negative.
    """
    rows = [list(row) for row in rows]
    columns = max(map(len, [*rows, head]), default=0)
    left, wrap = ({index % columns for index in chosen} for chosen in (left, wrap)) if columns else ((), ())

    def cell(value, column, tag):
        text = value if isinstance(value, Html) else html.escape(f"{value:,}" if isinstance(value, int) else str(value))
        side = "left" if column == 0 or column in left else "right"
        style = f"padding: 1px 1.2em 1px 0; text-align: {side}; vertical-align: top"
        style += "" if tag == "th" or column in wrap else "; white-space: nowrap"
        return f'<{tag} style="{style}">{text}</{tag}>'

    def line(row, tag):
        return f"<tr>{''.join(cell(value, column, tag) for column, value in enumerate(row))}</tr>"

    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    body = "".join(line(row, "td") for row in rows)
    style = "line-height: 1.4; border-collapse: collapse; white-space: normal; table-layout: auto; width: auto"
    return f'<div style="overflow-x: auto"><table style="{style}">{top}<tbody>{body}</tbody></table></div>'


def page(*parts: str) -> str:
    """Parts of a page in the theme's text colour."""
    return f'<div style="color: {TEXT_COLOUR}; line-height: 1.4; white-space: normal">{"".join(parts)}</div>'
