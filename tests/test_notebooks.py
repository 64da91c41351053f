"""The stored notebooks: that their outputs are there to be read and compared, so that no comparison passes on nothing."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def code_cells(path):
    return [
        cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source.strip()
    ]


def tagged(path, tag):
    return [cell for cell in code_cells(path) if tag in cell.metadata.get("tags", [])]


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
def test_a_compared_cell_has_something_to_compare(path):
    """nbval compares nothing where execution_count or outputs are missing, and passes."""
    compared = tagged(path, "nbval-check-output")
    assert compared or path.stem == "07_multi_gpu"  # there every output names the machine; its cells assert instead
    for cell in compared:
        assert any(output.get("text") or output.get("data", {}).get("text/plain") for output in cell.outputs), (
            cell.source
        )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_asserts_and_its_exercises_have_tested_solutions(path):
    assert any("assert" in cell.source for cell in code_cells(path))
    assert len(tagged(path, "solution")) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_widget_state_and_no_vector_graphics(path):
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    kinds = {kind for cell in code_cells(path) for output in cell.outputs for kind in output.get("data", {})}
    assert "image/svg+xml" not in kinds
