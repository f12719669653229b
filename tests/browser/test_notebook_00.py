"""Notebook 00 in JupyterLab, as a reader finds it: run all, move a slider, see another picture."""

from pathlib import Path

import nbformat

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "00_blend_two_styles.ipynb"

QUICK = {
    "rows: int = 3": "rows: int = 1",
    "steps: int = 0": "steps: int = 12",
    "preview_steps: int = 10": "preview_steps: int = 4",
}


def test_sliders_of_notebook_00(notebook, tmp_path):
    book = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    for standard, quick in QUICK.items():
        assert standard in cell.source
        cell.source = cell.source.replace(standard, quick)
    nbformat.write(book, tmp_path / "quick.ipynb")

    page = notebook(tmp_path / "quick.ipynb", seconds=400)
    first = page.picture()
    page.press(0, "angle", "ArrowRight", 6)
    turned = page.wait_for_change(page.picture, first, seconds=120)
    page.press(0, "angle", "Home")
    assert page.wait_for_change(page.picture, turned, seconds=120) == first
    page.assert_no_error()
