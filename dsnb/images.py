"""Pictures from files: whatever a user has, as float32 tensors (1, 3, H, W) in [0, 1]."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


def read_image(path: str | Path, model=None, size: int | tuple[int, int] | None = None) -> Tensor:
    """A picture file -> (1, 3, H, W) in [0, 1], resized and centre-cropped to fill the asked size.

    size: pixels, one number for a square or (height, width), multiples of 8; default the model's own size, or the
    file's where there is no model. Turned upright by its EXIF tag; transparency is laid on white; of an animation
    the first frame is read. Raises FileNotFoundError, or ValueError for a file that is not a picture.
    """
    picture = _open(path)
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray((_depth16(picture) * 255).round().astype(np.uint8))
    if _has_alpha(picture):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    if size is None and model is not None:
        size = model.image_size
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if height < 8 or width < 8 or height % 8 or width % 8:
            raise ValueError(f"size must be multiples of 8 from 8 up, got {height} x {width}")
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    array = np.asarray(picture, dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


def read_grey(source) -> np.ndarray:
    """Grey values (H, W) in [0, 1] of a picture; its alpha channel instead where there is one that varies.

    source: a path, an open file, or a PIL picture. Raises as `read_image`.
    """
    picture = source if isinstance(source, Image.Image) else _open(source)
    if _has_alpha(picture):
        alpha = np.asarray(picture.convert("RGBA"))[..., 3] / 255.0
        if np.ptp(alpha) > 0:
            return alpha
        picture = picture.convert("RGB")
    if picture.mode.startswith(("I", "F")):
        return _depth16(picture)
    return np.asarray(picture.convert("L")) / 255.0


def to_pil(image: Tensor) -> Image.Image:
    """One image tensor (3, H, W) or (1, 3, H, W) in [0, 1] as a PIL picture of 8 bits."""
    if image.dim() == 4 and len(image) == 1:
        image = image[0]
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"image must have the shape (3, H, W) or (1, 3, H, W), got {tuple(image.shape)}")
    array = image.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def _open(path) -> Image.Image:
    name = path if isinstance(path, str | Path) else getattr(path, "name", "file")
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"image {str(name)!r} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"image {str(name)!r} is a folder; name a picture file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {str(name)!r} cannot be read as a picture: {error}") from None
    return ImageOps.exif_transpose(picture)


def _has_alpha(picture: Image.Image) -> bool:
    return "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La")


def _depth16(picture: Image.Image) -> np.ndarray:
    """Values in [0, 1] of a 16-bit or floating-point grey picture."""
    values = np.asarray(picture, dtype=np.float64)
    if picture.mode != "F":
        return np.clip(values / 65535, 0, 1)
    if not (0 <= values.min() and values.max() <= 1):
        raise ValueError(
            f"a floating-point picture has values from {values.min():g} to {values.max():g}; expected 0 to 1"
        )
    return values
