"""Notebooks in JupyterLab, as a user finds them: run all, move a slider, paint, and see another image."""

from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def with_parameters(name, folder, **values):
    """A copy of a notebook with other values in its parameters cell → path."""
    book = nbformat.read(NOTEBOOKS / name, as_version=4)
    cell = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    lines = cell.source.splitlines()
    for parameter, value in values.items():
        (index,) = (i for i, line in enumerate(lines) if line.startswith(f"{parameter}:"))
        lines[index] = f"{parameter} = {value!r}"
    cell.source = "\n".join(lines)
    path = folder / name
    nbformat.write(book, path)
    return path


def test_sliders_of_notebook_00(notebook, tmp_path):
    quick = with_parameters("00_blend_two_styles.ipynb", tmp_path, rows=1, steps=12, preview_steps=3)
    book = notebook(quick, seconds=400)
    first = book.picture()
    book.press(0, "angle", "ArrowRight", 6)
    book.wait_for_change(book.picture, first, seconds=120)
    book.press(0, "angle", "Home")
    book.wait_for(book.picture, first, seconds=120)
    book.assert_no_error()


def test_slider_and_painting_of_notebook_07(notebook, tmp_path):
    book = notebook(with_parameters("07_shape_the_transition.ipynb", tmp_path, steps=6), seconds=400)
    first, unpainted, before = book.picture(), book.canvas(), book.picture(panel=1)
    book.paint_stroke((0.2, 0.3), (0.7, 0.6))
    book.wait_for_change(book.canvas, unpainted)
    book.wait_for_change(lambda: book.picture(panel=1), before, seconds=120)
    book.press(0, "sharpness", "End")
    book.wait_for_change(book.picture, first, seconds=120)
    book.assert_no_error()
