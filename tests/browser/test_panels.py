"""Panels in JupyterLab: a slider moved with the keyboard, a stroke painted with the mouse."""

import pytest

SETUP = """
import torch, time
from dsnb.widgets import explore

def draw(angle, report):
    for step in range(5):
        time.sleep(0.02)
        report(step + 1, 5)
    return torch.full((1, 3, 32, 32), angle / 90)

def coarse(angle):
    return torch.full((1, 3, 8, 8), angle / 90)
"""


def test_slider_moves_the_picture(notebook):
    book = notebook(
        [SETUP, "explore(draw, preview=coarse, play='angle', save_as='toy', angle=(0, 90, 5, 0))"]
    )
    before = book.picture()
    book.press(0, "angle", "ArrowRight", 3)
    book.wait_for_change(book.picture, before)
    book.page.locator(".dsnb-panel button", has_text="save").click()
    book.page.get_by_text("saved as figures/toy_01.png").wait_for()
    assert (book.folder / "figures" / "toy_01.json").is_file()
    book.press(0, "angle", "Home")
    book.wait_for(book.picture, before)
    book.page.locator(".dsnb-panel button", has_text="angle").click()
    book.page.wait_for_function("() => document.querySelector('.widget-readout').innerText === '45'")
    book.page.wait_for_function("() => document.querySelector('.widget-readout').innerText === '0'")
    book.wait_for(book.picture, before)
    book.assert_no_error()


def test_arrow_keys_move_a_menu_and_not_the_cells(notebook):
    menu = "explore(lambda x: torch.full((1, 3, 8, 8), x), x={'dark': 0.0, 'grey': 0.5, 'light': 1.0})"
    book = notebook([SETUP, menu, "1 + 1"])
    before = book.picture()
    select = book.page.locator(".dsnb-panel select")
    select.focus()
    book.page.keyboard.press("ArrowDown")
    book.wait_for_change(book.picture, before)
    assert select.evaluate("menu => menu.selectedOptions[0].innerText") == "grey"
    book.page.keyboard.press("ArrowUp")
    book.wait_for(book.picture, before)
    book.assert_no_error()


def test_an_error_is_seen_in_the_panel(notebook):
    broken = "explore(lambda x: torch.full((1, 3, 8, 8), x / 2), x=(0, 10, 1, 0))"
    book = notebook([SETUP, broken])
    book.press(0, "x", "ArrowRight", 5)
    shown = book.page.locator(".dsnb-error")
    shown.wait_for()
    assert "ValueError: image has values from" in shown.inner_text()
    book.press(0, "x", "Home")
    shown.wait_for(state="detached")


BLEND = """
import torch, dsnb
from dsnb import masks
from dsnb.widgets import explore, paint

model, picture = dsnb.load(), dsnb.prompts.pictures()[0]
source = dsnb.read_image(picture.file, model)
generator = torch.Generator().manual_seed(0)
trajectory = dsnb.invert(model, source, picture.caption, steps=8, skip=1, generator=generator)
prompts = [dsnb.prompts.prompt(style, picture.caption) for style in dsnb.prompts.names()[:2]]

def draw(mask, report):
    mask = masks.from_weights(mask)
    return dsnb.blend(model, trajectory, prompts, mask, method="attention", callback=report, progress=False)
"""


def test_a_painted_stroke_changes_mask_and_picture(notebook):
    book = notebook([BLEND, "mask = paint(source, width=300)", "explore(draw, mask=mask)"])
    picture, canvas = book.picture(), book.canvas()
    book.page.locator(".dsnb-canvas").scroll_into_view_if_needed()
    box = book.page.locator(".dsnb-canvas").bounding_box()
    book.page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 3)
    book.wait_for_change(book.canvas, canvas)  # the outline of the brush
    book.page.mouse.move(box["x"] - 20, box["y"] - 20)
    book.wait_for(book.canvas, canvas)
    book.paint_stroke((0.3, 0.3), (0.7, 0.5))
    book.wait_for_change(book.picture, picture)
    assert book.canvas() != canvas
    book.keep("painted")
    book.page.locator(".dsnb-painter button", has_text="undo").click()
    book.wait_for(book.picture, picture)
    book.assert_no_error()


def test_a_failing_cell_is_noticed(notebook):
    with pytest.raises(AssertionError, match="nothing to see"):
        notebook(["raise RuntimeError('nothing to see')", "1 + 1"], seconds=30)
