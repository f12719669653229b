import io

import pytest
import torch
from PIL import Image

from dsnb import films, plotting


def shades(count, side=16):
    return [torch.full((3, side, side), value / (count - 1)) for value in range(count)]


def test_a_film_shows_every_frame_and_rests_on_the_last():
    film = films.make_film(shades(4), "from black to white", seconds=2, rest=1)
    seen = Image.open(io.BytesIO(film.data))
    assert seen.format == "WEBP" and seen.n_frames == 4 and seen.info["loop"] == 0
    seen.seek(3)
    seen.load()
    assert seen.info["duration"] == 1500 and seen.convert("RGB").getpixel((8, 8)) == (255, 255, 255)


def test_a_notebook_shows_the_film_and_its_text():
    page = films.make_film(shades(2), 'a "film"')._repr_html_()
    assert "data:image/webp;base64," in page and "a &quot;film&quot;" in page


def test_a_large_film_is_reduced_below_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("DSNB_FIGURES", str(tmp_path))
    noise = torch.rand(8, 3, 500, 500, generator=torch.Generator().manual_seed(0))
    path = films.make_film(noise, "noise").save("07_noise")
    assert path == tmp_path / "07_noise.webp" and path.stat().st_size <= films.LARGEST_FILM


def test_figures_are_frames():
    frames = [plotting.show_grid([shade], ["a title"]) for shade in shades(2)]
    assert Image.open(io.BytesIO(films.make_film(frames, "two figures").data)).width > 200


def test_more_frames_than_a_film_can_hold_are_refused(monkeypatch):
    monkeypatch.setattr(films, "LARGEST_FILM", 50)
    with pytest.raises(ValueError, match="frames has 3 images; so many do not fit into 50 bytes"):
        films.make_film(shades(3), "no film")


@pytest.mark.parametrize("frames", [shades(2)[:1], [torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)]])
def test_frames_must_fit(frames):
    with pytest.raises(ValueError, match="at least two images of one size"):
        films.make_film(frames, "no film")


@pytest.mark.parametrize(
    "given, error, words",
    [
        ({"rest": 20000}, ValueError, "rest must be a finite number from 0 to 3600, got 20000"),
        ({"seconds": 40000}, ValueError, "seconds must be a finite number above 0 and at most 3600"),
        ({"alt": None}, TypeError, "alt must be a text, got None"),
    ],
)
def test_times_and_the_text_are_checked(given, error, words):
    with pytest.raises(error, match=words):
        films.make_film(shades(2), **{"alt": "no film"} | given)


@pytest.mark.parametrize("name", ["", "../up"])
def test_a_film_is_saved_under_a_plain_name(name):
    with pytest.raises(ValueError, match="name must be a file's name, without a folder"):
        films.Film(b"", "no film").save(name)
