import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from dsnb import plotting


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DSNB_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (3, 5, 7), (5, 7)])
def test_tensors_become_rgb_bytes(shape):
    array = plotting.to_array(torch.full(shape, 0.5))
    assert array.shape == (5, 7, 3) and array.dtype == np.uint8 and np.all(array == 128)


@pytest.mark.parametrize(
    "picture, says",
    [
        (torch.zeros(2, 3, 4, 4), "shape"),
        (torch.full((3, 4, 4), 255.0), r"\[0, 1\]"),
        (torch.full((3, 4, 4), float("nan")), r"\[0, 1\]"),
        (torch.full((3, 4, 4), -1.0), r"\[0, 1\]"),
        (np.zeros((4, 4, 5), np.float32), "shape"),
    ],
)
def test_what_is_no_picture_is_refused(picture, says):
    with pytest.raises(ValueError, match=says):
        plotting.to_array(picture)


def test_grid_places_every_picture_with_its_title():
    figure = plotting.show_grid(noise(5, 3, 8, 12), ["a", "b", "c"], columns=3, row_titles=["one", "two"])
    assert len(figure.axes) == 5
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", "", ""]
    boxes = [axes.get_position() for axes in figure.axes]
    assert boxes[0].x0 < boxes[1].x0 < boxes[2].x0 and boxes[3].y1 < boxes[0].y0
    assert all(0 <= box.x0 and box.x1 <= 1 and 0 <= box.y0 and box.y1 <= 1 for box in boxes)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_grid_refuses_titles_that_do_not_fit():
    with pytest.raises(ValueError, match="titles has 2 entries; expected 3"):
        plotting.show_grid(noise(3, 3, 4, 4), ["a", "b"])
    with pytest.raises(ValueError, match="images is empty"):
        plotting.show_grid([])


def test_a_title_has_formulas_but_its_amounts_of_money_stay_text():
    texts = ["a $5 bill, a $9 bill", "a $5 and b^{ $6-$7 hat", "$M_1 x_1$ for $5", "predicted $\\hat x_0$"]
    figure = plotting.show_grid(noise(2, 3, 8, 8), texts[:2], columns=1, row_titles=texts[2:])
    drawn = [text for axes in figure.axes for text in (axes.title, axes.texts[0])]
    assert ["\\$" in text.get_text() for text in drawn] == [True, False, True, False]
    assert plotting.png_bytes(figure).startswith(b"\x89PNG")


def test_film_strip_shows_first_and_last_step():
    shades = [torch.full((3, 4, 4), value / 10) for value in range(11)]
    figure = plotting.film_strip(
        {"$x_t$": shades, "$x_0$": shades[::-1]}, labels=range(100, -1, -10), frames=4
    )
    assert [axes.get_title() for axes in figure.axes[:4]] == ["100", "70", "30", "0"]
    first, last = figure.axes[0].images[0].get_array(), figure.axes[3].images[0].get_array()
    assert np.all(first == 0) and np.all(last == 255)
    with pytest.raises(ValueError, match="equally many"):
        plotting.film_strip({"a": shades, "b": shades[:3]})


def test_overlay_puts_the_hottest_colour_where_the_map_is_highest():
    heat = torch.zeros(2, 2)
    heat[0, 1] = 1
    result = plotting.overlay(torch.zeros(1, 3, 8, 8), heat, opacity=1.0)
    assert result.shape == (1, 3, 8, 8) and 0 <= result.min() and result.max() <= 1
    brightness = result.sum(1)[0]
    assert brightness[0, 7] == brightness.max() > brightness[7, 0]
    assert torch.allclose(
        plotting.overlay(torch.ones(1, 3, 8, 8), torch.ones(2, 2), opacity=0.0), torch.ones(1)
    )
    with pytest.raises(ValueError, match="heat"):
        plotting.overlay(torch.zeros(1, 3, 8, 8), torch.full((2, 2), float("nan")))
    learned = torch.rand(2, 2).bfloat16().requires_grad_()
    assert plotting.overlay(torch.zeros(1, 3, 8, 8), learned).shape == (1, 3, 8, 8)


def test_overlay_with_given_limits_does_not_stretch_the_map():
    image, heat = torch.zeros(1, 3, 4, 4), torch.eye(4) * 0.5
    assert not torch.equal(plotting.overlay(image, heat), plotting.overlay(image, heat, low=0.0, high=1.0))
    full = lambda **limits: plotting.overlay(image, torch.full((4, 4), 0.5), opacity=1, **limits)
    assert torch.equal(full(high=0.2), full(low=0.0, high=0.2)), "above the range, the last colour"
    assert torch.equal(full(low=0.7), full(low=0.7, high=1.0)), "below the range, the first colour"


def test_one_image_is_no_list_of_images():
    shaped = {r"has shape \(3, 8, 8\)": noise(3, 8, 8), r"has shape \(8, 8, 3\)": noise(8, 8, 3).numpy()}
    for found, one in {**shaped, "is one image": Image.new("RGB", (8, 8))}.items():
        with pytest.raises(ValueError, match=rf"images {found}; expected .* \[image\]"):
            plotting.show_grid(one)
    with pytest.raises(ValueError, match=r"rows\['x_t'\] has shape \(3, 8, 8\)"):
        plotting.film_strip({"x_t": noise(3, 8, 8)})


@pytest.mark.parametrize(
    "draw, error, words",
    [
        (
            lambda x: plotting.overlay(x, torch.eye(4), colormap="infreno"),
            ValueError,
            "did you mean 'inferno'",
        ),
        (
            lambda x: plotting.show_grid(x, columns=2.0),
            TypeError,
            "columns must be a whole number of at least 1",
        ),
        (
            lambda x: plotting.show_grid(x, width=-1),
            ValueError,
            "width must be a finite number above 0, got -1",
        ),
        (lambda x: plotting.film_strip({"a": x}, frames=1.5), TypeError, "frames must be a whole number"),
        (lambda x: plotting.show_grid(x, "abc"), TypeError, "titles must be a list, got 'abc'"),
        (lambda x: plotting.show_grid(x, row_titles="a"), TypeError, "row_titles must be a list, got 'a'"),
        (lambda x: plotting.film_strip({"a": x}, "a"), TypeError, "labels must be a list, got 'a'"),
        (lambda x: plotting.show_mask(x[0, :0]), ValueError, r"weights has shape \(0, 8, 8\)"),
        (lambda x: plotting.read_parameters(__file__), ValueError, "has no parameters; expected a PNG"),
    ],
)
def test_a_wrong_parameter_is_named(draw, error, words):
    with pytest.raises(error, match=words):
        draw(noise(1, 3, 8, 8))


def test_colours_need_an_order_and_weights_a_range():
    with pytest.raises(ValueError, match="low must be below high, got low=1 and high=0"):
        plotting.overlay(torch.zeros(1, 3, 4, 4), torch.eye(4), low=1, high=0)
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\]"):
        plotting.color_weights(255 * torch.ones(2, 4, 4))


@pytest.mark.parametrize("opacity", [-0.1, 60, float("nan")])
def test_an_opacity_is_a_fraction(opacity):
    image = torch.zeros(1, 3, 4, 4)
    for draw in (plotting.overlay, plotting.color_weights):
        given = (image, torch.eye(4)) if draw is plotting.overlay else (torch.full((2, 4, 4), 0.5), image)
        with pytest.raises(ValueError, match="opacity must be a finite number from 0 to 1"):
            draw(*given, opacity)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_weights_are_coloured_and_drawn(n):
    weights = torch.softmax(noise(n, 6, 9) * 5, 0)
    assert plotting.color_weights(weights).shape == (1, 3, 6, 9)
    assert plotting.color_weights(weights, torch.zeros(1, 3, 12, 18)).shape == (1, 3, 12, 18)
    figure = plotting.show_mask(weights, torch.zeros(1, 3, 12, 18))
    assert len(figure.axes) == n + 1 and len(figure.axes[0].collections) > 0


def test_pure_weights_have_the_pure_colour():
    weights = torch.zeros(2, 3, 3)
    weights[1] = 1
    blue = plotting.color_weights(weights)[0, :, 0, 0]
    assert torch.allclose(blue, torch.tensor([0xE8, 0x74, 0x3B]) / 255)


def test_saved_picture_carries_its_parameters(folder):
    picture, parameters = noise(1, 3, 16, 16), {"angle": 30.0, "style": "vangogh", "name": "Ω"}
    path = plotting.save_figure(picture, "00_test", parameters, sidecar=True)
    assert path == folder / "00_test.png"
    assert plotting.read_parameters(path) == parameters
    assert json.loads(path.with_suffix(".json").read_text()) == {
        "picture": "00_test.png",
        "parameters": parameters,
    }
    assert np.array_equal(np.asarray(Image.open(path)), plotting.to_array(picture))
    assert sorted(file.name for file in folder.iterdir()) == ["00_test.json", "00_test.png"]
    with pytest.raises(ValueError, match="has no parameters"):
        plotting.read_parameters(plotting.save_figure(picture, "plain"))


def test_texts_of_other_programs_are_no_parameters(tmp_path):
    for text in ("a cat, Steps: 20", "5"):
        note = PngImagePlugin.PngInfo()
        note.add_text("parameters", text)
        Image.new("RGB", (8, 8)).save(tmp_path / "other.png", pnginfo=note)
        with pytest.raises(ValueError, match=f"not those of a panel: '{text}'"):
            plotting.read_parameters(tmp_path / "other.png")
    with pytest.raises(ValueError, match="name must be the name of a file"):
        plotting.save_figure(noise(1, 3, 8, 8), f"{tmp_path}/out/")


def test_same_picture_same_bytes(folder):
    paths = [plotting.save_figure(plotting.show_grid(noise(2, 3, 8, 8), ["a", "b"]), name) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_pil_images_are_shown_as_they_are_read():
    ramp = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8))
    assert 120 < plotting.to_array(ramp).mean() < 135
    turned = Image.new("RGB", (6, 4))
    turned.getexif()[0x0112] = 6  # on its side
    assert plotting.to_array(turned).shape == (6, 4, 3)
    assert plotting.to_array(Image.new("RGBA", (4, 4), (255, 0, 0, 0))).min() == 255


def test_parameters_do_not_count_towards_the_limit(folder):
    picture = noise(1, 3, 64, 64)
    path = plotting.save_figure(picture, "painted", {"strokes": "x" * 2 * plotting.LARGEST_FILE})
    assert np.array_equal(np.asarray(Image.open(path)), plotting.to_array(picture))


def test_large_pictures_are_reduced_below_the_limit(folder):
    path = plotting.save_figure(noise(1, 3, 700, 900), "large", {"seed": 0})
    assert path.stat().st_size <= plotting.LARGEST_FILE
    assert Image.open(path).size[0] > 300 and plotting.read_parameters(path) == {"seed": 0}


def test_notebooks_save_beside_the_committed_figures_wherever_they_run(tmp_path, monkeypatch):
    monkeypatch.delenv("DSNB_FIGURES", raising=False)
    before = plotting.figures_folder()
    monkeypatch.chdir(tmp_path)
    assert plotting.figures_folder() == before and before.parts[-2:] == ("runs", "figures")


def test_unwritable_folder_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file, not a folder")
    monkeypatch.setenv("DSNB_FIGURES", str(tmp_path / "taken"))
    with pytest.raises(OSError, match="cannot write into the folder .*taken.*DSNB_FIGURES"):
        plotting.save_figure(noise(1, 3, 4, 4), "x")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(OSError, match="null byte"):
        plotting.save_figure(noise(1, 3, 4, 4), tmp_path / "a\0b")
    with pytest.raises(ValueError, match="name must be the name of a file, got '..'"):
        plotting.save_figure(noise(1, 3, 4, 4), "..")


def test_a_failed_write_leaves_the_old_file_and_no_scraps(folder, monkeypatch):
    path = plotting.save_figure(noise(1, 3, 4, 4), "x")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        plotting.save_figure(noise(1, 3, 4, 4, seed=1), "x", sidecar=True)
    assert path.read_bytes() == before and [file.name for file in folder.iterdir()] == ["x.png"]


def test_a_name_with_a_folder_is_taken_as_it_stands(folder, tmp_path):
    assert plotting.save_figure(noise(1, 3, 4, 4), tmp_path / "mine" / "a.png") == tmp_path / "mine" / "a.png"
    assert Image.open(io.BytesIO((tmp_path / "mine" / "a.png").read_bytes())).size == (4, 4)
