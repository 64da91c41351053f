import pytest

from lora_kit.system.html import TEXT_COLOUR, Html, html_table, page


def cell(text, side, tag="td", wrap=False):
    nowrap = "" if wrap or tag == "th" else "; white-space: nowrap"
    return f'<{tag} style="padding: 1px 1.2em 1px 0; text-align: {side}; vertical-align: top{nowrap}">{text}</{tag}>'


def whole(head, *rows):
    look = "line-height: 1.4; border-collapse: collapse; white-space: normal; table-layout: auto; width: auto"
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div style="overflow-x: auto"><table style="{look}">{head}<tbody>{body}</tbody></table></div>'


def test_a_table_of_texts_and_numbers():
    assert html_table([("a <b>", 1234, "x"), (1_000_000, 0.5, None)]) == whole(
        "",
        [cell("a &lt;b&gt;", "left"), cell("1,234", "right"), cell("x", "right")],
        [cell("1,000,000", "left"), cell("0.5", "right"), cell("None", "right")],
    )


def test_a_head_and_columns_that_stand_left_or_break():
    head = f"<thead><tr>{cell('&amp;', 'left', 'th')}{cell('b', 'left', 'th')}{cell('c', 'right', 'th')}</tr></thead>"
    assert html_table([(1, 2, 3)], ("&", "b", "c"), left=(1,), wrap=(-1,)) == whole(
        head, [cell("1", "left"), cell("2", "left"), cell("3", "right", wrap=True)]
    )
    assert html_table([("a", "b", "c")], left=(-1,), wrap=(0, 1)) == whole(
        "", [cell("a", "left", wrap=True), cell("b", "right", wrap=True), cell("c", "left")]
    )


def test_what_is_html_already_is_not_escaped():
    assert html_table([(Html("<b>a</b>"), Html("<i/>"))], (Html("<u/>"),)) == whole(
        f"<thead><tr>{cell('<u/>', 'left', 'th')}</tr></thead>", [cell("<b>a</b>", "left"), cell("<i/>", "right")]
    )


@pytest.mark.parametrize("rows", [[], iter([]), [()]])
def test_an_empty_table(rows):
    assert html_table(rows, left=(-1,)) == whole("", *([[]] if rows == [()] else []))


def test_any_iterable_of_rows_will_do():
    assert html_table(((number,) for number in (1, 2)), ["a"]) == html_table([[1], [2]], ("a",))
    assert html_table([], ("a", "b"), left=(-1,)).count("left") == 2


def test_a_page_has_the_themes_colour():
    assert (
        page("<p>a</p>", "b")
        == f'<div style="color: {TEXT_COLOUR}; line-height: 1.4; white-space: normal"><p>a</p>b</div>'
    )
    assert page() == f'<div style="color: {TEXT_COLOUR}; line-height: 1.4; white-space: normal"></div>'
    colours = "var(--jp-ui-font-color1, var(--vscode-foreground, var(--colab-primary-text-color, inherit)))"
    assert TEXT_COLOUR == colours  # JupyterLab, VS Code, Colab, any other page
