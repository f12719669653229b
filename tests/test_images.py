import io
import os
import threading

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from dsnb import images, masks, plotting
from dsnb.images import read_grey, read_image, to_pil
from dsnb.metrics import measures


@pytest.fixture
def save(tmp_path):
    def save(picture, name="picture.png", **options):
        picture.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def test_round_trip(save):
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    again = read_image(save(to_pil(image)))
    torch.testing.assert_close(again, image, atol=0.5 / 255 + 1e-6, rtol=0)


def test_resizes_and_crops_from_the_centre(save):
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    image = read_image(save(wide), size=64)
    assert image.shape == (1, 3, 64, 64)
    assert image[0, 2].min() > 0.9, "the middle third, which is blue, fills the square"
    assert read_image(save(wide), size=(32, 64)).shape == (1, 3, 32, 64)


def test_transparency_is_laid_on_white(save):
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert read_image(save(clear)).min() == 1
    assert read_image(clear.quantize()).min() == 1
    for deep in (np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint16)):  # 0 is transparent in both
        assert read_image(save(Image.fromarray(deep), transparency=0)).min() == 1


def test_sixteen_bits_palettes_and_animations(save):
    deep = Image.fromarray(np.full((9, 9), 32768, np.uint16))
    assert abs(read_image(save(deep)).mean() - 0.5) < 0.01
    assert read_image(save(Image.new("P", (9, 9)), "palette.png")).shape == (1, 3, 9, 9)
    frames = [Image.new("RGB", (9, 9), c) for c in ("white", "black")]
    path = save(frames[0], "film.gif", save_all=True, append_images=frames[1:])
    assert read_image(path).min() == 1, "the first frame"


def test_upright_by_exif(save):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    assert read_image(save(Image.new("RGB", (40, 20)), "photo.jpg", exif=exif)).shape == (1, 3, 40, 20)


def test_bad_pictures_are_refused_with_a_sentence(tmp_path, save):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / "nothing.png")
    broken = save(Image.new("RGB", (64, 64)))
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_image(broken)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_image(tmp_path / "text.png")
    with pytest.raises(ValueError, match="it is a folder"):
        read_image(tmp_path)
    with pytest.raises(ValueError, match="multiples of 8"):
        read_image(save(Image.new("RGB", (64, 64))), size=(60, 64))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16", "1", "F", "LAB"])
@pytest.mark.parametrize("size", [(1, 1), (13, 7)])
def test_any_mode_and_size_can_be_a_mask(save, mode, size):
    if mode == "I;16":
        picture = Image.fromarray(np.full(size[::-1], 40000, np.uint16))
    else:
        picture = Image.new(mode, size, 0)
    suffix = "picture.tiff" if mode in ("F", "LAB") else "picture.png"
    weights = masks.image(save(picture, suffix)).weights(16, 16)
    torch.testing.assert_close(weights.sum(0), torch.ones(16, 16))


def test_masks_from_unusual_files_have_the_right_values(save):
    deep = masks.image(save(Image.fromarray(np.full((1, 1), 40000, np.uint16)))).weights(2, 2)
    torch.testing.assert_close(deep[0], torch.full((2, 2), 40000 / 65535), atol=1e-3, rtol=0)
    hole = io.BytesIO()
    Image.fromarray(np.full((1, 1), 40000, np.uint16)).save(hole, "PNG", transparency=7)
    assert torch.equal(masks.image(hole).weights(2, 2), deep)
    palette = Image.new("L", (4, 4), 255).convert("P")
    assert masks.image(save(palette, "palette.png")).weights(2, 2)[0].min() == 1
    first, second = (Image.new("L", (4, 4), value) for value in (255, 0))
    film = io.BytesIO()
    first.save(film, "GIF", save_all=True, append_images=[second])
    assert masks.image(film).weights(2, 2)[0].min() == 1  # of an animation, the first frame


def test_floating_point_pictures_are_in_0_to_1(save):
    quarter = np.full((2, 2), 0.25, np.float32)
    assert masks.image(save(Image.fromarray(quarter), "quarter.tif")).weights(2, 2)[0].unique() == 0.25
    with pytest.raises(ValueError, match="values from 64 to 64; expected 0 to 1"):
        masks.image(save(Image.fromarray(256 * quarter), "large.tif"))


def test_a_broken_upload_is_refused_with_its_name():
    upload = io.BytesIO(b"no image")
    upload.name = "mask.png"
    with pytest.raises(ValueError, match="image 'mask.png' cannot be read as an image"):
        masks.image(upload)


def test_a_mask_with_transparency_uses_its_alpha(save):
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 2, 4))
    grey = read_grey(save(picture))
    assert grey[:, :2].min() == 1 and grey[:, 2:].max() == 0


def test_pil_images_and_arrays_are_read_like_files(save):
    array = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    expected = read_image(save(Image.fromarray(array)), size=(16, 16))
    for source in (Image.fromarray(array), array, array / np.float32(255)):
        assert torch.equal(read_image(source, size=(16, 16)), expected)
    assert torch.equal(read_image(array[..., 0]), read_image(array[..., :1].repeat(3, 2)))


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("x" * 5000, ValueError, "File name too long"),
        (Image.new("RGB", (0, 9)), ValueError, "it has no pixels"),
        (None, TypeError, "image must be a file, a PIL image or a numpy array, got a NoneType"),
        (torch.zeros(3, 8, 8), TypeError, "got a Tensor"),
        (np.zeros((1, 3, 8, 8)), ValueError, r"shape \(H, W\), .* got \(1, 3, 8, 8\)"),
        (np.full((8, 8), 1.0000001), ValueError, "got 1.0000001 to 1.0000001"),
        (np.full((8, 8), np.nan), ValueError, "got nan"),
        (np.zeros((8, 8), np.uint16), ValueError, "got uint16"),
    ],
)
def test_other_sources_are_refused(source, error, words):
    with pytest.raises(error, match=words):
        read_image(source)


@pytest.mark.parametrize(
    "take", [images.to_pil, plotting.to_array, measures.check_images, masks.from_weights]
)
@pytest.mark.parametrize(
    "image", [torch.zeros(1, 3, 8, 8).to_sparse(), torch.zeros(1, 3, 8, 8, device="meta")]
)
def test_a_tensor_without_its_numbers_is_refused(take, image):
    with pytest.raises(TypeError, match="must be a dense tensor with values"):
        take(image)


def test_what_is_no_model_has_no_size(save):
    with pytest.raises(TypeError, match="model must be a model as dsnb.load opens it, got a str"):
        read_image(save(Image.new("RGB", (8, 8))), "drawn-world")


@pytest.mark.parametrize("size", [(80000, 80000), (8, 8, 8), 0, "64", 64.0, (60, 64), True])
def test_sizes_are_multiples_of_8_up_to_a_limit(size):
    with pytest.raises((ValueError, TypeError), match="size must be"):
        read_image(np.zeros((8, 8), np.uint8), size=size)


def test_a_tiff_of_32_bit_integers_is_refused_not_guessed(save):
    path = save(Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)), "deep.tiff")
    for read in (read_image, read_grey):
        with pytest.raises(ValueError, match="from 0 to 255, and which one is white"):
            read(path)
    grey = save(Image.fromarray(np.full((8, 8), 32768, np.uint16)), "deep.pgm")  # Pillow reads it as 32 bits
    assert abs(read_image(grey).mean() - 0.5) < 0.01


def test_a_pipe_is_refused_before_it_is_opened(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    caught = []
    reading = threading.Thread(
        target=lambda: caught.append(pytest.raises(ValueError, read_image, pipe)), daemon=True
    )
    reading.start()
    reading.join(10)
    assert caught and caught[0].match("or not a regular file")


def test_only_files_of_pixels_are_opened(tmp_path, monkeypatch):
    """Pillow would hand an EPS file to Ghostscript, a program that runs what the file says."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    eps = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(eps, "EPS")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_image(eps)


def test_a_broken_pil_image_is_refused_too(save):
    path = save(Image.effect_noise((64, 64), 90))
    path.write_bytes(path.read_bytes()[:900])
    with Image.open(path) as picture, pytest.raises(ValueError, match="cannot be read as an image"):
        read_image(picture)


def test_bytes_are_not_taken_for_an_image_in_0_to_1():
    with pytest.raises(ValueError, match="got torch.uint8"):
        to_pil(torch.full((3, 4, 4), 200, dtype=torch.uint8))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0, -0.1])
def test_what_is_not_finite_is_no_image(value):
    image = torch.zeros(3, 4, 4)
    image[0, 0, 0] = value
    with pytest.raises(ValueError, match="image must hold floating-point numbers in"):
        to_pil(image)
