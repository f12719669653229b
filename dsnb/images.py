"""Images from files, PIL or arrays, as float32 tensors (1, 3, H, W) in [0, 1]."""

import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from . import checks

LARGEST_SIDE = 8192  # pixels
# File formats that hold pixels. EPS and WMF are left out, because Pillow opens them with another program.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")


def read_image(
    source: str | os.PathLike | Image.Image | np.ndarray | IO[bytes],
    model: Any = None,
    size: int | tuple[int, int] | None = None,
) -> Tensor:
    """Reads an image, resized and centre-cropped to fill the size.

    The EXIF orientation is applied. Transparent parts become white. Only the first frame of an animation is read.

    Args:
        source: a path, an open file, a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8, or of floats in
            [0, 1].
        model: its image size is the default size.
        size: one number of pixels for a square, or (height, width), in multiples of 8 up to `LARGEST_SIDE`. The default
            without a model is the image's own size.

    Returns:
        (1, 3, H, W) in [0, 1], float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is not an image, a wrong array or a wrong size.
        TypeError: another kind of source, model or size.
    """
    if size is None and model is not None:
        if not hasattr(model, "image_size"):
            raise TypeError(f"model must be a model as dsnb.load opens it, got a {type(model).__name__}")
        size = model.image_size
    if size is not None:
        height, width = checks.size("size", size, 8, LARGEST_SIDE)
    image = _open(source)
    if image.mode.startswith(("I", "F")):
        grey = _deep(image)
        if "transparency" in image.info:
            grey[np.asarray(image) == image.info["transparency"]] = 1
        image = Image.fromarray((grey * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if size is not None:
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


def read_grey(source: str | os.PathLike | Image.Image | np.ndarray | IO[bytes]) -> np.ndarray:
    """Reads the grey values of an image, or its alpha channel if it has one that varies.

    Args:
        source: as for `read_image`.

    Returns:
        (H, W) in [0, 1].

    Raises:
        FileNotFoundError, ValueError, TypeError: as `read_image`.
    """
    image = _open(source)
    if image.mode.startswith(("I", "F")):
        return _deep(image)
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3] / 255.0
        if np.ptp(alpha) > 0:
            return alpha
    return np.asarray(image.convert("RGB").convert("L")) / 255.0  # Pillow converts LAB to RGB only


def to_pil(image: Tensor) -> Image.Image:
    """One image as a PIL image with 8 bits per channel.

    Args:
        image: (3, H, W) or (1, 3, H, W), floating-point numbers in [0, 1].

    Returns:
        The PIL image.

    Raises:
        TypeError: something that is not a dense tensor.
        ValueError: another shape or dtype, or values that are not finite or outside [0, 1] by more than 0.001.
    """
    checks.dense("image", image, Tensor, "torch.as_tensor(array) makes one")
    if image.dim() == 4 and len(image) == 1:
        image = image[0]
    if image.dim() != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"image must have the shape (3, H, W) or (1, 3, H, W), got {tuple(image.shape)}")
    low, high = image.min().item(), image.max().item()
    if not image.is_floating_point() or not (low >= -1e-3 and high <= 1 + 1e-3):  # also for NaN
        raise ValueError(
            f"image must hold floating-point numbers in [0, 1], got {image.dtype} from {low} to {high}"
        )
    array = image.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def _open(source: Any) -> Image.Image:
    if isinstance(source, np.ndarray):
        return _from_array(source)
    path = isinstance(source, str | os.PathLike)
    if not path and not isinstance(source, Image.Image) and not hasattr(source, "read"):
        raise TypeError(f"image must be a file, a PIL image or a numpy array, got a {type(source).__name__}")
    name = os.fspath(source) if path else getattr(source, "name", type(source).__name__)
    try:
        if path and not Path(source).is_file():  # reading a pipe or a device might never end
            if not Path(source).exists():
                raise FileNotFoundError
            raise ValueError("it is a folder, or not a regular file")
        image = source if isinstance(source, Image.Image) else Image.open(source, formats=FORMATS)
        image.load()
        if 0 in image.size:
            raise ValueError("it has no pixels")
    except FileNotFoundError:
        raise FileNotFoundError(f"image {name!r} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {name!r} cannot be read as an image: {error}") from None
    return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, which Pillow reads as 32
        image = image.convert("I;16")
    return ImageOps.exif_transpose(image)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise ValueError(
            f"an image array must have the shape (H, W), (H, W, 3) or (H, W, 4), got {array.shape}"
        )
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also for NaN
            raise ValueError(
                f"an image array of floats must lie in [0, 1], got {array.min()} to {array.max()}"
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"an image array must hold uint8, or floats in [0, 1]; got {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))


def _deep(image: Image.Image) -> np.ndarray:
    """Values in [0, 1] of a grey image with 16 bits or floating-point values."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16"):
        return values / 65535
    if image.mode == "I":
        raise ValueError(
            f"an image has 32-bit integer values from {values.min():g} to {values.max():g}, and which one is white is "
            "not known; save it with 8 or 16 bits per channel"
        )
    if not (0 <= values.min() and values.max() <= 1):
        raise ValueError(
            f"a floating-point image has values from {values.min():g} to {values.max():g}; expected 0 to 1"
        )
    return values
