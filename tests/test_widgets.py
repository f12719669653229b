import base64
import io
import json
import math
import os
import sys
import threading
import time

import ipywidgets
import nbformat
import numpy as np
import papermill
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from dsnb import plotting
from dsnb.widgets import explore, paint, painting, sliders
from dsnb.widgets.background import Superseded, release_threads, worker
from dsnb.widgets.controls import is_interactive, read_control


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DSNB_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


def shade(value, size=4):
    return torch.full((1, 3, size, size), float(value))


def live(draw, **options):
    """A panel as a front end has it, quick to come to rest."""
    return explore(draw, **({"rest": 0.02, "interactive": True} | options))


# Controls


@pytest.mark.parametrize(
    "given, kind, start",
    [
        ((0, 10), ipywidgets.IntSlider, 5),
        ((0, 10, 2, 4), ipywidgets.IntSlider, 4),
        ((0, np.int64(10)), ipywidgets.IntSlider, 5),
        ((0.0, 1.0), ipywidgets.FloatSlider, 0.5),
        ((1, 60, 1, 20.0), ipywidgets.FloatSlider, 20.0),
        ((0, 1, 0.1, 0.5), ipywidgets.FloatSlider, 0.5),
        (["a", "b"], ipywidgets.Dropdown, "a"),
        ({"one": 1, "two": 2}, ipywidgets.Dropdown, 1),
        ([("one", 1), ("two", 2)], ipywidgets.Dropdown, 1),
        (True, ipywidgets.Checkbox, True),
        (7, ipywidgets.IntText, 7),
        (np.int64(7), ipywidgets.IntText, 7),
        (0.5, ipywidgets.FloatText, 0.5),
        ("text", ipywidgets.Text, "text"),
    ],
)
def test_plain_values_become_controls(given, kind, start):
    found, options = read_control("name", given, None)
    assert found is kind and options["value"] == start
    panel = live(lambda name: shade(0.5), name=given)
    assert panel.controls["name"].value == start and panel.values() == {"name": start}


def test_a_start_between_whole_numbers_asks_for_fine_steps():
    kind, options = read_control("opacity", (0, 1), 0.5)
    assert kind is ipywidgets.FloatSlider and options["step"] == 0.01


def test_a_choice_may_be_none_and_is_shown():
    heads = {"first": 0, "all heads": None}
    panel = live(lambda heads=None: shade(0.5), heads=heads)
    assert panel.controls["heads"].label == "all heads" and panel.values() == {"heads": None}
    assert live(lambda heads: shade(0.5), heads={"all heads": None, "first": 0}).values() == {"heads": None}
    assert live(lambda heads: shade(0.5), heads=heads).values() == {"heads": 0}


def test_values_have_no_rounding_errors_of_the_slider():
    panel = live(
        lambda guidance, span: shade(0.5), guidance=(0.0, 30.0, 0.1), span=ipywidgets.FloatRangeSlider()
    )
    panel.set(guidance=5.000000000000001, span=(2.3999999999999997, 5.0))
    assert panel.parameters() == {"guidance": 5.0, "span": [2.4, 5.0]}


def test_the_image_keeps_its_area_whatever_the_preview_s_shape():
    flat = torch.zeros(1, 3, 2, 8)
    panel = live(lambda value: shade(value), preview=lambda value: flat, width=200, value=(0.0, 1.0))
    assert panel.view.layout.height == "200px"
    panel.set(value=0.9)
    panel.settle()
    assert panel.view.layout.height == "200px"


def test_figures_of_pyplot_are_drawn_once_and_not_kept():
    def draw(height=1.0):
        figure, axes = pyplot.subplots(figsize=(1, 1))
        axes.bar([0], [height])
        return figure

    panel = live(draw, height=(1.0, 2.0))
    first = panel.view.value
    panel.set(height=2.0)
    panel.settle()
    assert panel.view.value != first and not pyplot.get_fignums()


def test_start_comes_from_the_default_of_draw():
    def draw(angle=30, style="b"):
        return shade(0)

    assert explore(draw, angle=(0, 90), style=["a", "b"]).values() == {"angle": 30, "style": "b"}


@pytest.mark.parametrize(
    "given",
    [
        (5, 1), (0, 10, 0), (0, 10, 1, 11), (0, 1, 0.1, math.nan), (0, math.inf), (-math.inf, 1.0), (0, 1, math.inf),
        (-1.7e308, 1.7e308), (0, 1j), math.nan, [], None, (1,), {"a": np.zeros(2), "b": np.ones(2)},
    ],
)  # fmt: skip
def test_a_control_that_makes_no_sense_is_refused_by_name(given):
    with pytest.raises((ValueError, TypeError), match="sharpness (is|must be|has an array)"):
        explore(lambda sharpness: shade(0), sharpness=given)


def test_a_start_outside_the_choices_is_refused():
    def draw(style="minecaft"):
        return shade(0)

    with pytest.raises(ValueError, match="style starts at 'minecaft'; expected one of .*'minecraft'"):
        explore(draw, style=["minecraft", "mosaic"])


@pytest.mark.parametrize("save_as", ["../mine", "a/b", ""])
def test_images_are_saved_into_the_folder_of_figures_and_nowhere_else(save_as):
    with pytest.raises(ValueError, match="save_as must be|name must be"):
        live(lambda value: shade(value), save_as=save_as, value=(0.0, 1.0)).save()
        plotting.save_figure(shade(0.5), save_as)


def test_what_names_no_control_and_what_is_no_function_are_refused():
    with pytest.raises(ValueError, match="labels names 'angel', which is no control; the controls are angle"):
        explore(lambda angle: shade(0), labels={"angel": "Angle"}, angle=(0, 1))
    with pytest.raises(TypeError, match="draw must be a function"):
        explore(shade(0), angle=(0, 1))


def test_play_needs_a_slider():
    with pytest.raises(ValueError, match=r"play is 'style'; expected .*\['angle'\]"):
        explore(lambda angle, style: shade(0), play="style", angle=(0, 1), style=["a"])


# Without a front end


def test_headless_panel_is_the_static_picture_of_the_start(monkeypatch):
    monkeypatch.delenv("DSNB_INTERACTIVE", raising=False)
    seen = []
    panel = explore(lambda value: seen.append(value) or shade(value), value=(0.0, 1.0, 0.1, 0.3))
    assert seen == [0.3] and panel.box is None and panel.settle() is panel.picture
    still = panel._repr_mimebundle_()
    assert set(still) == {"text/plain", "image/png"}
    assert Image.open(io.BytesIO(base64.b64decode(still["image/png"]))).size == (
        400,
        400,
    )  # as the panel shows it
    assert np.all(plotting.to_array(panel.picture) == 77)


def test_an_error_at_the_start_is_raised():
    def broken(value):
        raise KeyError("nothing here")

    for interactive in (False, True):
        with pytest.raises(KeyError, match="nothing here"):
            explore(broken, value=(0, 1), interactive=interactive)


def test_what_is_no_picture_is_refused_at_the_start():
    with pytest.raises(ValueError, match="what draw returned"):
        explore(lambda value: torch.full((1, 3, 2, 2), 9.0), value=(0, 1))


def test_report_is_passed_only_where_it_is_taken():
    seen = []

    def draw(value, report):
        report(1, 2)
        report(type("Step", (), {"index": 1, "total": 2})())
        seen.append(value)
        return shade(value)

    explore(draw, value=(0, 1, 1, 1))
    explore(lambda value: shade(value), value=(0, 1))
    assert seen == [1]


def test_who_can_move_a_slider(monkeypatch):
    import IPython

    shell = type("Shell", (), {"kernel": type("Kernel", (), {"_allow_stdin": True})()})()
    monkeypatch.delenv("DSNB_INTERACTIVE", raising=False)
    assert is_interactive() is False
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    assert is_interactive() is True
    shell.kernel._allow_stdin = False
    assert is_interactive() is False
    monkeypatch.setenv("DSNB_INTERACTIVE", "1")
    assert is_interactive() is True


@pytest.mark.parametrize("broken", [False, True])
def test_papermill_gets_the_static_picture_or_the_error(tmp_path, monkeypatch, broken):
    monkeypatch.delenv("DSNB_INTERACTIVE", raising=False)
    cell = f"""
import torch
from dsnb.widgets import explore, paint
def draw(value, mask):
    assert not {broken}, "draw is broken"
    return torch.full((1, 3, 4, 4), value) * torch.from_numpy(mask[1])
explore(draw, value=(0.0, 1.0, 0.1, 0.5), mask=paint(torch.zeros(1, 3, 4, 4)))
"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    source, executed = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    nbformat.write(book, source)
    if broken:
        with pytest.raises(papermill.PapermillExecutionError, match="draw is broken"):
            papermill.execute_notebook(source, executed, progress_bar=False)
        return
    papermill.execute_notebook(source, executed, progress_bar=False)
    (output,) = nbformat.read(executed, 4).cells[0].outputs
    assert set(output.data) == {"image/png", "text/plain"}


# With one


def test_moving_a_control_draws_the_new_position():
    panel = live(lambda value: shade(value), value=(0.0, 1.0, 0.1, 0.0))
    before = panel.view.value
    panel.set(value=0.5)
    assert torch.equal(panel.settle(), shade(0.5))
    assert panel.view.value != before == plotting.png_bytes(shade(0))
    assert panel.view.value == plotting.png_bytes(shade(0.5))
    with pytest.raises(ValueError, match="'angle' is no control"):
        panel.set(angle=1)


def test_positions_passed_over_are_never_drawn_in_full():
    drawn, shown, begun, moved = [], [], threading.Event(), threading.Event()

    def draw(value):
        drawn.append(value)
        return shade(value / 100)

    def preview(value, report):
        begun.set()
        assert moved.wait(5)
        report(1, 2)  # a preview is finished, although the slider has moved on
        shown.append(value)
        return shade(value / 100)

    panel = live(draw, preview=preview, rest=0.0, value=(0, 100, 1, 0))
    panel.set(value=1)
    assert begun.wait(5)
    for value in range(2, 21):
        panel.set(value=value)
    moved.set()
    panel.settle()
    assert shown == [1, 20] and drawn == [0, 20]


def test_a_running_picture_stops_at_its_next_step_when_superseded():
    steps, ended, first = [], [], threading.Event()

    def draw(value, report):
        try:
            for step in range(200 if value == 1 else 1):
                steps.append((value, step))
                if value == 1:
                    first.set()
                    time.sleep(0.01)
                report(step + 1, 200)
        except Superseded:
            ended.append(value)
            raise
        return shade(value / 10)

    panel = live(draw, value=(0, 10, 1, 0))
    panel.set(value=1)
    assert first.wait(5)
    panel.set(value=2)
    assert torch.equal(panel.settle(), shade(0.2))
    assert ended == [1] and len([step for value, step in steps if value == 1]) < 100
    assert panel.error is None and "dsnb-error" not in panel.status.value


def test_an_error_is_shown_kept_and_cleared_by_the_next_good_picture():
    def draw(value):
        if value == 5:
            raise RuntimeError("five <is> out of order")
        return shade(value / 10)

    panel = live(draw, save_as="x", value=(0, 10, 1, 0))
    panel.set(value=5)
    with pytest.raises(RuntimeError, match="out of order"):
        panel.settle()
    assert "RuntimeError: five &lt;is&gt; out of order" in panel.status.value
    assert "Traceback" in panel.status.value and panel.save_button.disabled
    panel.set(value=6)
    assert torch.equal(panel.settle(), shade(0.6))
    assert panel.error is None and "dsnb-error" not in panel.status.value and not panel.save_button.disabled


def test_an_error_in_the_preview_is_shown_too():
    def preview(value):
        raise RuntimeError("no preview")

    panel = live(lambda value: shade(0), preview=preview, value=(0, 10, 1, 0))
    panel.set(value=5)
    with pytest.raises(RuntimeError, match="no preview"):
        panel.settle()


def test_two_panels_never_draw_at_the_same_time():
    inside, most = [], []

    def draw(value):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return shade(0)

    panels = [live(draw, value=(0, 10, 1, 0)) for _ in range(3)]
    for panel in panels:
        panel.set(value=3)
    for panel in panels:
        panel.settle()
    assert len(most) == 6 and max(most) == 1


def test_a_running_cell_comes_first_and_the_picture_is_drawn_after_it():
    first, ended, done = threading.Event(), [], []

    def draw(value, report):
        if value and not ended:
            first.set()
            try:
                for step in range(1000):
                    time.sleep(0.005)
                    report(step, 1000)
            except Superseded:
                ended.append(value)
                raise
        done.append(value)
        return shade(value / 10)

    panel = live(draw, value=(0, 10, 1, 0))
    panel.set(value=1)
    assert first.wait(5)
    worker().cell_begins()
    assert ended == [1] and done == [0]
    time.sleep(0.1)
    assert done == [0]
    worker().cell_ends()
    assert torch.equal(panel.settle(), shade(0.1)) and done == [0, 1]


def test_settle_inside_a_cell_lets_the_worker_work():
    panel = live(lambda value: shade(value / 10), value=(0, 10, 1, 0))
    worker().cell_begins()
    try:
        panel.set(value=4)
        assert torch.equal(panel.settle(5), shade(0.4)) and worker().held
    finally:
        worker().cell_ends()


@pytest.mark.skipif(sys.platform != "linux", reason="threads are released on Linux only")
def test_released_threads_end_and_start_again():
    counts = []

    def count(action):
        action()
        time.sleep(0.2)
        counts.append(len(os.listdir("/proc/self/task")))

    def compute():
        large = torch.ones(1 << 20)
        torch.set_num_threads(2)  # of this thread only
        for action in (large.sin, release_threads, large.sin, release_threads):
            count(action)

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert counts[0] - counts[1] == counts[2] - counts[3] == 1


def test_a_panel_may_be_made_inside_the_draw_of_another():
    def draw(value):
        return explore(lambda b: shade(b), b=(0.0, 1.0), interactive=False).picture * value

    panel = live(draw, value=(0, 1, 1, 0))
    panel.set(value=1)
    assert torch.equal(panel.settle(5), shade(0.5))


def test_settle_gives_up_after_its_timeout():
    release = threading.Event()

    def draw(value):
        if value:
            release.wait(5)
        return shade(0)

    panel = live(draw, value=(0, 10, 1, 0))
    panel.set(value=1)
    with pytest.raises(TimeoutError, match="0.1 seconds"):
        panel.settle(0.1)
    release.set()
    panel.settle()


def test_progress_bar_appears_for_what_takes_long_and_goes_again(monkeypatch):
    monkeypatch.setattr(sliders, "PATIENCE", 0.2)
    seen = []

    def draw(value, report):
        for step in range(10 * value):
            time.sleep(0.05)
            report(step + 1, 10)
            seen.append((panel.progress_bar.layout.visibility, panel.progress_bar.value))
        return shade(0)

    panel = live(draw, value=(0, 1, 1, 0))
    panel.set(value=1)
    panel.settle()
    assert ("visible", 8) in seen and panel.progress_bar.layout.visibility == "hidden"


def test_play_sweeps_once_and_comes_back(monkeypatch):
    monkeypatch.setattr(sliders, "FRAME", 0.0)
    full, frames = [], []

    def draw(angle):
        full.append(angle)
        return shade(0)

    def preview(angle):
        frames.append(angle)
        return shade(0)

    panel = live(draw, preview=preview, play="angle", angle=(0, 90, 30, 30))
    panel.play()
    panel.settle()
    assert frames == [0, 60, 90, 30] and full == [30, 30]
    assert panel.values() == {"angle": 30} and panel.play_button.value is False


def test_a_fine_slider_is_swept_in_a_few_frames(monkeypatch):
    monkeypatch.setattr(sliders, "FRAME", 0.0)
    seen = []
    panel = live(lambda x: seen.append(x) or shade(0), play="x", x=(0.0, 1.0, 0.001, 0.5))
    panel.play()
    panel.settle()
    assert 20 <= len(seen) <= sliders.FRAMES + 3 and min(seen) == 0.0 and max(seen) > 0.95 and seen[-1] == 0.5


@pytest.mark.parametrize("start", [6.0, 0.0])
def test_a_sweep_ends_where_its_frames_meet_the_slider_s_end(monkeypatch, start):
    monkeypatch.setattr(sliders, "FRAME", 0.0)
    seen = []
    panel = live(lambda x: seen.append(x) or shade(0), play="x", x=(0.0, 6.0, 0.1, start))
    panel.play()
    panel.settle()
    assert panel.play_button.value is False and seen[-1] == start and max(seen) == 6.0


def test_small_steps_are_shown():
    for step, decimals in ((1e-5, 5), (0.5, 1), (2.0, 0)):
        assert read_control("x", (0.0, 100 * step, step), None)[1]["readout_format"] == f".{decimals}f"


def test_save_button_writes_the_picture_with_all_it_takes_to_make_it_again(folder):
    settings = {"image": "bear.png", "model": "mini", "steps": np.int64(50)}
    panel = live(
        lambda angle: shade(angle / 100), save_as="00_mine", settings=settings, angle=(0, 100, 1, 10)
    )
    panel.set(angle=40)
    panel.settle()
    panel.save_button.click()
    panel.save_button.click()
    assert sorted(file.name for file in folder.iterdir()) == [
        "00_mine_01.json", "00_mine_01.png", "00_mine_02.json", "00_mine_02.png"
    ]  # fmt: skip
    told = {"image": "bear.png", "model": "mini", "steps": 50, "angle": 40}
    assert plotting.read_parameters(folder / "00_mine_01.png") == told
    assert json.loads((folder / "00_mine_01.json").read_text())["parameters"] == told
    assert "00_mine_02.png" in panel.status.value


def test_a_large_picture_is_saved_with_every_pixel(folder):
    picture = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    path = live(lambda a: picture, save_as="large", a=(0, 2)).save()
    assert np.array_equal(np.asarray(Image.open(path)), plotting.to_array(picture))


def test_a_picture_that_cannot_be_saved_says_so_in_the_panel(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("DSNB_FIGURES", str(tmp_path / "taken"))
    panel = live(lambda angle: shade(0), save_as="x", angle=(0, 1))
    panel.save_button.click()
    assert "dsnb-error" in panel.status.value and "taken" in panel.status.value
    with pytest.raises(OSError, match="taken"):
        panel.save()


def test_what_json_lacks_becomes_a_text():
    panel = live(lambda angle: shade(0), settings={"eta": math.nan}, save_as="x", angle=(0, 1))
    assert panel.parameters() == {"eta": "NaN", "angle": 0}
    assert plotting.read_parameters(panel.save())["eta"] == "NaN"
    with pytest.raises(ValueError, match="parameters must be plain JSON values with finite numbers"):
        plotting.save_figure(shade(0), "y", {"eta": math.nan})


def test_a_menu_of_objects_is_saved_by_its_label():
    panel = live(
        lambda mask: shade(0.5), settings={"w": np.eye(2)}, mask={"left": object(), "right": object()}
    )
    panel.set(mask=panel.controls["mask"].options[1][1])
    assert panel.parameters() == {"w": [[1, 0], [0, 1]], "mask": "right"}


def test_positions_that_a_control_cannot_have_are_refused():
    panel = live(lambda angle, menu: shade(0.5), angle=(0, 100), menu=["a", "b"])
    with pytest.raises(ValueError, match="angle must be a finite number from 0 to 100, got 1000"):
        panel.set(angle=1000)
    with pytest.raises(ValueError, match="menu cannot be 'c'"):
        panel.set(angle=7, menu="c")
    with pytest.raises(ValueError, match="'size' is no control"):
        panel.set(angle=7, size=1)
    assert panel.values() == {"angle": 50, "menu": "a"}


def test_an_unfinished_picture_is_not_saved():
    panel = live(lambda angle: shade(0), rest=30, save_as="x", angle=(0, 10, 1, 0))
    panel.set(angle=1)
    with pytest.raises(RuntimeError, match="no finished image"):
        panel.save()
    panel.rest = 0.0
    worker().wake(panel)
    panel.settle()


# Painting


@pytest.mark.parametrize("size", [(16, 16), (7, 13), (1, 1)])
@pytest.mark.parametrize("softness", [0.0, 1.0])
def test_painted_weights_sum_to_one(size, softness):
    strokes = [
        painting.Stroke(1, ((0.1, 0.1), (0.9, 0.5)), 0.2, softness),
        painting.Stroke(2, ((2.0, -1.0),), 0.3, softness),
    ]
    weights = painting.weights_of(strokes, *size, n=3)
    assert weights.shape == (3, *size) and weights.dtype == np.float32 and weights.min() >= 0
    assert np.allclose(weights.sum(0), 1, atol=1e-6)


def test_a_stroke_is_where_it_was_painted_and_the_last_one_wins():
    left = painting.Stroke(1, ((0.25, 0.0), (0.25, 1.0)), 0.2, 0.0)
    weights = painting.weights_of([left], 20, 20)
    assert np.all(weights[1, :, 3:7] == 1) and np.all(weights[1, :, 12:] == 0)
    over = painting.weights_of([left, painting.Stroke(0, left.points, 0.5, 0.0)], 20, 20)
    assert np.all(over[0, 5:15, :10] == 1)


def test_soft_edges_are_soft():
    stroke = painting.Stroke(1, ((0.5, 0.5),), 0.25, 0.0)
    hard = painting.weights_of([stroke], 64, 64)[1, 32]
    soft = painting.weights_of([painting.Stroke(1, ((0.5, 0.5),), 0.25, 1.0)], 64, 64)[1, 32]
    assert ((soft > 0.05) & (soft < 0.95)).sum() > 4 + ((hard > 0.05) & (hard < 0.95)).sum()


def test_headless_painting_is_one_fixed_stroke():
    image = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    first, again = paint(image, interactive=False), paint(image, interactive=False)
    assert np.array_equal(first.value, again.value) and first.value.shape == (2, 24, 32)
    assert 0.05 < first.value[1].mean() < 0.6
    assert set(first._repr_mimebundle_()) == {"text/plain", "image/png"}


def test_a_legend_names_the_colour_of_each_style():
    painter = paint(shade(0.5, 16), n=2, labels=["mosaic", "<b>"], interactive=True)
    legend = painter.box.children[-1].value
    assert legend.index("mosaic") < legend.index("&lt;b&gt;")
    assert all(color in legend for color in plotting.STYLE_COLORS[:2])


def test_mouse_paints_undoes_and_clears():
    painter = paint(torch.zeros(1, 3, 20, 20), n=3, width=200, interactive=True, brush=0.1)
    changes = []
    painter.observe(changes.append, names="value")
    assert np.all(painter.value[0] == 1)
    painter.move(50, 50)  # no button is down
    painter.begin(50, 100)
    painter.move(150, 100)
    painter.end()
    painter.end()  # and leaves the canvas
    assert len(changes) == 1 and painter.value[1, 10, 10] > 0.9 and painter.value[1, 1, 1] == 0
    painter.style.value = 2
    painter.begin(100, 100)
    painter.end(100, 100)
    assert painter.value[2, 10, 10] > 0.5 and len(painter.strokes) == 2
    again = paint(torch.zeros(1, 3, 20, 20), n=3, strokes=json.loads(json.dumps(painter.strokes)))
    assert np.array_equal(again.value, painter.value)
    painter.undo()
    assert np.all(painter.value[2] == 0) and len(painter.strokes) == 1
    painter.clear()
    painter.undo()
    assert np.all(painter.value[0] == 1) and painter.weights(5, 9).shape == (3, 5, 9)


def test_a_second_finger_begins_a_second_stroke():
    painter = paint(torch.zeros(1, 3, 20, 20), width=200, interactive=True)
    painter.begin(20, 20)
    painter.begin(100, 150)
    painter._canvas[1]._handle_frontend_event(None, {"event": "touch_cancel", "touches": []}, None)
    assert len(painter.strokes) == 2 and painter.value[1, 2, 2] > 0.5 and painter.value[1, 15, 10] > 0.5


@pytest.mark.parametrize(
    "options, says",
    [
        ({"n": 1}, "n must be a whole number from 2 to 100, got 1"),
        ({"brush": float("nan")}, "brush must be a finite number from 0.01 to 0.4"),
        ({"strokes": [{"styl": 1}]}, "strokes holds {'styl': 1}: .*styl"),
        ({"strokes": [painting.Stroke(1, ((0, 0),), softness=float("nan"))]}, "softness must be"),
        ({"strokes": [painting.Stroke(1, ((0, 0),), radius=float("inf"))]}, "radius must be"),
        ({"labels": ["a"]}, "labels has 1"),
        ({"strokes": [painting.Stroke(2, ((0, 0),))]}, "style must be a whole number from 0 to 1, got 2"),
        ({"strokes": [painting.Stroke(1, ())]}, "points must be pairs"),
        ({"strokes": [painting.Stroke(1, (0.2, 0.3, 0.8, 0.7))]}, "points must be pairs"),
        ({"strokes": [painting.Stroke(1, ((0.5, float("nan")),))]}, "points must be pairs"),
    ],
)
def test_painting_that_makes_no_sense_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        paint(torch.zeros(1, 3, 4, 4), **options)


def test_sizes_and_strokes_of_a_painted_mask_are_checked():
    painter = paint(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="height must be a whole number from 1 to 8192, got 0"):
        painter.weights(0, 5)
    with pytest.raises(TypeError, match="width must be a whole number from 1 to 8192, got 2.5"):
        painter.weights(3, 2.5)
    with pytest.raises(ValueError, match="style must be a whole number from 0 to 1, got 5"):
        painting.weights_of([painting.Stroke(5, ((0, 0),))], 4, 4)
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, got 0"):
        painting.weights_of([], 4, 4, 0)
    with pytest.raises(TypeError, match="strokes must be a list of strokes, got 5"):
        paint(torch.zeros(1, 3, 4, 4), strokes=5)


def test_a_painter_is_a_control_of_a_panel(folder):
    painter = paint(torch.zeros(1, 3, 8, 8), width=80, interactive=True)
    panel = live(lambda mask: torch.from_numpy(mask[1]), save_as="painted", mask=painter)
    before = panel.view.value
    painter.begin(40, 40)
    painter.move(60, 40)
    painter.end()
    panel.settle()
    assert panel.view.value != before
    told = plotting.read_parameters(panel.save())["mask"]
    again = paint(torch.zeros(1, 3, 8, 8), told["n"], strokes=told["strokes"], interactive=False)
    assert np.array_equal(again.value, painter.value)
    still = live(lambda mask: torch.from_numpy(mask[1]), mask=again)  # it has no box to show
    assert torch.equal(still.picture, torch.from_numpy(painter.value[1]))
