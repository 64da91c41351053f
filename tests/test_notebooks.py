"""The stored notebooks: that their outputs are there to be read and compared, so that no comparison passes on nothing."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def code_cells(path):
    return [
        cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source.strip()
    ]


def tagged(path, tag):
    return [cell for cell in code_cells(path) if tag in cell.metadata.get("tags", [])]


def shown(cell):
    """What a cell shows, {kind: data} for each output."""
    return [output.get("data", {}) for output in cell.get("outputs", [])]


def printed(cell):
    """All text that a cell shows."""
    texts = [output.get("text", "") for output in cell.outputs]
    return "".join([*texts, *(text for data in shown(cell) for kind, text in data.items() if kind.startswith("text/"))])


def test_all_nine_are_here():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(9)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_run_and_none_complained(path):
    for cell in code_cells(path):
        assert cell.execution_count is not None, cell.source
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_figure_has_words_for_who_cannot_see_it(path):
    """In italics below it, or in its cell's metadata; the site takes them as its alt."""
    cells = nbformat.read(path, as_version=4).cells
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type == "code" and any("image/png" in data for data in shown(cell)):
            below = following is not None and re.match(r"\*[^*]+\*", following.source)
            assert below or len(cell.metadata["mystnb"]["image"]["alt"]) > 50, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_compared_cell_has_something_to_compare(path):
    """nbval compares nothing where execution_count or outputs are missing, and passes."""
    compared = tagged(path, "nbval-check-output")
    assert compared or path.stem == "07_multi_gpu"  # there every output names the machine; its cells assert instead
    for cell in compared:
        assert any(output.get("text") or output.get("data", {}).get("text/plain") for output in cell.outputs), (
            cell.source
        )


def has_assert(source):
    """Whether the code of a cell asserts anything, itself or by NumPy; %pip and its like are read as IPython does."""
    nodes = list(ast.walk(ast.parse(TransformerManager().transform_cell(source))))
    return any(isinstance(node, ast.Assert) or getattr(node, "attr", "").startswith("assert_") for node in nodes)


def test_an_assert_is_a_statement():
    assert has_assert("if x:\n    %pip list\n    assert y") and has_assert("np.testing.assert_allclose(x, y)")
    assert not has_assert("print('assert y')  # assert y")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_not_compared_is_asserted(path):
    """A cell whose output may differ asserts what the lesson says of it, or a cell next to it does."""
    cells = code_cells(path)
    asserts = [has_assert(cell.source) for cell in cells]
    alone = []
    for place, cell in enumerate(cells[2:], start=2):  # the first two install and import
        compared = {"nbval-check-output", "solution"} & set(cell.metadata.get("tags", []))
        if cell.outputs and not compared and not any(asserts[place - 1 : place + 2]):
            alone.append(cell.source)
    assert alone == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_exercise_is_open_and_has_a_solution_that_is_right(path):
    markdown = "\n".join(
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"
    )
    exercises = re.findall(r"^#+ Exercise \d|^\*\*\d\.\*\* ", markdown, flags=re.MULTILINE)
    solutions = tagged(path, "solution")
    assert 0 < len(exercises) <= len(solutions) == markdown.count("<summary>Solution</summary>")
    right = [cell.source for cell in code_cells(path) if "Right" in printed(cell)]
    assert right == [cell.source for cell in solutions]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_figure_is_described_in_words(path):
    """In italics at the head of the next text, for those who can't see it."""
    cells = nbformat.read(path, as_version=4).cells
    figures = [place for place, cell in enumerate(cells) if any("image/png" in data for data in shown(cell))]
    texts = {place: next(cell.source for cell in cells[place:] if cell.cell_type == "markdown") for place in figures}
    assert [cells[place].source for place, text in texts.items() if not re.match(r"\*[^*]", text)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_path_of_the_machine_that_ran_it(path):
    texts = [printed(cell) for cell in code_cells(path)]
    assert [
        text for text in texts if re.search(r"(?<![\w.:/])/(home|root|tmp|work|usr|mnt|Users)/|[A-Z]:\\", text)
    ] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_widget_state_and_no_vector_graphics(path):
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    kinds = {kind for cell in code_cells(path) for output in cell.outputs for kind in output.get("data", {})}
    assert "image/svg+xml" not in kinds
