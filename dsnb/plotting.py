"""Grids, film strips, overlays and the folder of figures.

An *image* here is any of these: a float tensor in [0, 1] of shape (1, 3, H, W), (3, H, W) or (H, W); a numpy array
(H, W) or (H, W, 3), float in [0, 1] or uint8; a PIL image; a matplotlib figure. Other ranges raise `ValueError`.
Figures are built without pyplot, so threads may draw them, and none stays open.
"""

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from . import checks
from .files import write_all_whole
from .images import read_image

STYLE_COLORS = ("#1b6ca8", "#e8743b", "#2e9e5b", "#8e5ea2", "#c2a000", "#d1495b")
LARGEST_FILE = 500_000  # bytes; the most that a page of the workbook should load
DPI = 150
MATH = re.compile(r"(?<![\w\\])\$(?!\s)[^$]+(?<!\s)\$(?!\w)")  # "$x_t$", not "a $5 bill and a $9 bill"

Picture = Tensor | np.ndarray | Image.Image | Figure
Pictures = Tensor | Sequence[Picture]


class Sheet(Figure):
    """A figure that shows itself as a PNG at the end of a notebook cell."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        return png_bytes(self)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes without ticks at (left, top), in inches from the upper left corner."""
        full_width, full_height = self.get_size_inches()
        box = (left / full_width, 1 - (top + height) / full_height, width / full_width, height / full_height)
        axes = self.add_axes(box)
        axes.set_xticks([])
        axes.set_yticks([])
        return axes


def to_array(image: Picture, name: str = "image") -> np.ndarray:
    """Converts one image to an array.

    Args:
        image: the image.
        name: what an error calls it.

    Returns:
        uint8, (H, W, 3).

    Raises:
        ValueError: for a batch, a wrong shape, NaN, or values outside [0, 1].
        TypeError: for a sparse tensor or a meta tensor.
    """
    if isinstance(image, Figure):
        buffer = io.BytesIO()
        if not isinstance(image.canvas, FigureCanvasAgg):
            FigureCanvasAgg(image)
        image.savefig(buffer, format="png", bbox_inches=None if isinstance(image, Sheet) else "tight")
        image = Image.open(buffer)
    if isinstance(image, Image.Image):
        image = read_image(image)
    if isinstance(image, torch.Tensor):
        tensor: Tensor = checks.dense(name, image, Tensor, "").detach().float().cpu()
        if tensor.ndim == 4 and tensor.shape[0] == 1:
            tensor = tensor[0]
        if tensor.ndim == 3 and tensor.shape[0] in (1, 3):
            tensor = tensor.permute(1, 2, 0)
        image = tensor.numpy()
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or array.size == 0:
        raise ValueError(f"{name} has shape {tuple(array.shape)}; expected one image, such as (1, 3, H, W)")
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
            raise ValueError(f"{name} has values from {low:g} to {high:g}; expected [0, 1]")
        array = np.clip(array * 255 + 0.5, 0, 255).astype(np.uint8)
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)


def enlarge(image: Picture, width: int) -> np.ndarray:
    """The image with at least this many columns: a smaller one is scaled up smoothly. As `to_array` gives it."""
    pixels = Image.fromarray(to_array(image))
    if pixels.width < width:
        size = (width, round(width * pixels.height / pixels.width))
        pixels = pixels.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(pixels)


def png_bytes(image: Picture, parameters: dict | None = None, largest: int | None = None) -> bytes:
    """Encodes an image as a PNG file.

    Args:
        image: the image.
        parameters: plain JSON values, which go into the text chunk "parameters".
        largest: bytes without the parameters; a larger image is first reduced to 256 colours and then shrunk until it
            fits.

    Returns:
        The file's bytes.

    Raises:
        ValueError: for an image that `to_array` rejects, or parameters that are not plain JSON values.
    """
    note = PngImagePlugin.PngInfo()
    if parameters is not None:
        note.add_text("parameters", _json(parameters))
    whole = reduced = Image.fromarray(to_array(image))
    scale = 1.0
    while largest is not None and len(_encode(reduced)) > largest and scale > 0.1:
        size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
        small = whole if scale == 1 else whole.resize(size, Image.Resampling.LANCZOS)
        reduced = small.quantize(256, method=Image.Quantize.MEDIANCUT)
        scale *= 0.85
    return _encode(reduced, note)


def _encode(image: Image.Image, note: PngImagePlugin.PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, pnginfo=note)
    return buffer.getvalue()


def show_grid(
    images: Pictures,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    row_titles: Sequence[str] | None = None,
    width: float = 1.7,
) -> Sheet:
    """Draws images in a grid.

    Args:
        images: a batch (B, 3, H, W) or a list of images.
        titles: one per image, or one per column above the first row. A formula such as `$x_t$` is typeset.
        columns: images in a row; default at most 8.
        row_titles: one per row, at its left.
        width: inches per image.

    Returns:
        The figure, which shows itself in a notebook.

    Raises:
        ValueError: for no image, or a wrong number of titles or columns, or a wrong width.
        TypeError: for columns or a width that are not numbers, or titles that are not a list.
    """
    arrays = [to_array(image, f"images[{i}]") for i, image in enumerate(several("images", images))]
    if not arrays:
        raise ValueError("images is empty; expected at least one image")
    columns = min(len(arrays), 8) if columns is None else checks.integer("columns", columns, 1)
    width = checks.number("width", width, above=0)
    rows = -(-len(arrays) // columns)
    titles = _labels("titles", titles)
    if titles and len(titles) not in (columns, len(arrays)):
        raise ValueError(
            f"titles has {len(titles)} entries; expected {len(arrays)}, one per image, "
            f"or {columns}, one per column"
        )
    row_titles = _labels("row_titles", row_titles)
    if row_titles and len(row_titles) != rows:
        raise ValueError(f"row_titles has {len(row_titles)} entries; expected {rows}")

    gap, left = 0.05, 0.3 if row_titles else 0.0
    height = width * max(array.shape[0] / array.shape[1] for array in arrays)
    lines = 1 + max((str(title).count("\n") for title in titles), default=0)
    titled = [bool(titles) and (row == 0 or len(titles) > columns) for row in range(rows)]
    top = [0.1 + 0.15 * lines if titled[row] else 0.0 for row in range(rows)]
    figure = Sheet(left + columns * (width + gap) + gap, sum(top) + rows * (height + gap) + gap)
    for index, array in enumerate(arrays):
        row, column = divmod(index, columns)
        x, y = left + gap + column * (width + gap), sum(top[: row + 1]) + gap + row * (height + gap)
        axes = figure.panel(x, y, width, height)
        axes.imshow(array, interpolation="bicubic")
        axes.spines[:].set(color="0.8", linewidth=0.5)
        if index < len(titles) and titled[row]:
            axes.set_title(_escape_amounts(titles[index]), fontsize=8, pad=3)
        if column == 0 and row_titles:
            title = _escape_amounts(row_titles[row])
            side = axes.text(-0.03, 0.5, title, fontsize=8, rotation=90, transform=axes.transAxes)
            side.set(va="center", ha="right")
    return figure


def _escape_amounts(title: str) -> str:
    """A title without a formula has each `$` as `\\$`, which matplotlib shows as it is."""
    title = str(title)
    return title if MATH.search(title) else re.sub(r"\\?\$", r"\\$", title)


def several(name: str, images: Pictures) -> Pictures:
    """The images, if they are a batch or a list; ValueError for one image, whose rows would count as images."""
    if isinstance(images, (Image.Image, Figure)) or getattr(images, "ndim", 4) != 4:
        found = f"has shape {tuple(images.shape)}" if hasattr(images, "shape") else "is one image"
        raise ValueError(f"{name} {found}; expected a batch (B, 3, H, W) or a list, such as [image]")
    return images


def _labels(name: str, given: Sequence | None) -> list:
    """A list of titles. Raises TypeError for a single text, which Python would read as a list of letters."""
    if isinstance(given, str):
        raise TypeError(f"{name} must be a list, got {given!r}")
    return [] if given is None else list(given)


def film_strip(
    rows: Mapping[str, Pictures], labels: Sequence[str] | None = None, frames: int = 8, width: float = 1.2
) -> Sheet:
    """Draws steps from left to right, one row per kind of image.

    Args:
        rows: {title of the row: its images}, equally many in each row.
        labels: one per step, such as the timesteps.
        frames: how many steps are shown, evenly spread, the first and the last included.
        width: inches per image.

    Returns:
        The figure.

    Raises:
        ValueError: for rows of different lengths, or a wrong number of labels or frames.
        TypeError: for labels that are not a list, or another parameter of a wrong type.
    """
    if not rows:
        raise ValueError("rows is empty; expected a dictionary from row title to images")
    lengths = {title: len(several(f"rows[{title!r}]", pictures)) for title, pictures in rows.items()}
    total = next(iter(lengths.values()))
    if len(set(lengths.values())) != 1 or total == 0:
        raise ValueError(f"rows has {lengths} images per row; expected equally many, at least one")
    frames = checks.integer("frames", frames, 1)
    shown = np.unique(np.linspace(0, total - 1, min(frames, total)).round().astype(int))
    labels = [f"step {index}" for index in range(total)] if labels is None else _labels("labels", labels)
    if len(labels) != total:
        raise ValueError(f"labels has {len(labels)} entries; expected {total}, one per step")
    pictures = [row[index] for row in rows.values() for index in shown]
    titles = [labels[index] for index in shown]
    return show_grid(pictures, titles, columns=len(shown), row_titles=list(rows), width=width)


def overlay(
    image: Picture,
    heat: Tensor | np.ndarray,
    opacity: float = 0.6,
    colormap: str = "inferno",
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """Lays a heat map over an image.

    Args:
        image: the image.
        heat: (h, w), resized to the image.
        opacity: of the map, from 0 to 1.
        colormap: a name that matplotlib knows.
        low, high: the values of the first and the last colour; default the map's minimum and maximum. Give both to
            compare several maps. If neither is given, a constant map shows the first colour.

    Returns:
        (1, 3, H, W) in [0, 1].

    Raises:
        ValueError: a map of another shape or with values that are not finite, an opacity out of range, an unknown
            `colormap`, or a `low` that is not below `high`.
        TypeError: a parameter of a wrong type.
    """
    picture, opacity = _tensor(image), checks.number("opacity", opacity, 0, 1)
    heat = _floats(heat)
    if heat.ndim != 2:
        raise ValueError(f"heat has shape {tuple(heat.shape)}; expected (h, w)")
    if not torch.isfinite(heat).all():
        raise ValueError("heat must be finite; some values are NaN or infinite")
    heat = F.interpolate(heat[None, None], picture.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    if low is not None and high is not None and not low < high:  # also for NaN
        raise ValueError(f"low must be below high, got low={low} and high={high}")
    low = float(heat.min()) if low is None else checks.number("low", low)
    if high is None:
        high = float(heat.max())
    elif low >= (high := checks.number("high", high)):
        low = high - 1  # every value is at least `high`, so all have the last colour
    heat = ((heat - low) / (high - low) if high > low else torch.zeros_like(heat)).clamp(0, 1)
    if colormap not in matplotlib.colormaps:
        near = checks.did_you_mean(colormap, matplotlib.colormaps)
        raise ValueError(f"colormap must be a name that matplotlib knows, got {colormap!r}{near}")
    colors = matplotlib.colormaps[colormap](heat.numpy())[..., :3]
    colors = torch.from_numpy(colors).float().permute(2, 0, 1)[None]
    return (1 - opacity) * picture + opacity * colors


def color_weights(weights: Tensor | np.ndarray, image: Picture | None = None, opacity: float = 0.6) -> Tensor:
    """Shows mask weights as colours, one colour per style.

    Args:
        weights: (N, H, W).
        image: what lies under the colours; default nothing.
        opacity: of the colours over the image, from 0 to 1.

    Returns:
        (1, 3, H, W) in [0, 1].

    Raises:
        ValueError: for weights of another shape or outside [0, 1], or an opacity out of range.
        TypeError: a parameter of a wrong type.
    """
    weights, opacity = _weights(weights), checks.number("opacity", opacity, 0, 1)
    palette = torch.tensor([matplotlib.colors.to_rgb(color) for color in STYLE_COLORS])
    palette = palette[torch.arange(len(weights)) % len(palette)]
    colors = torch.einsum("nhw,nc->chw", weights, palette)[None].clamp(0, 1)
    if image is None:
        return colors
    picture = _tensor(image)
    colors = F.interpolate(colors, picture.shape[-2:], mode="bilinear", align_corners=False)
    return (1 - opacity) * picture + opacity * colors


def show_mask(
    weights: Tensor | np.ndarray,
    image: Picture | None = None,
    labels: Sequence[str] | None = None,
) -> Sheet:
    """Draws a mask: all styles as colours with contour lines at 1/4, 1/2 and 3/4, then each weight in grey.

    Args:
        weights: (N, H, W).
        image: what lies under the colours; default nothing.
        labels: names of the styles; default "style 1" to "style N".

    Returns:
        The figure.

    Raises:
        ValueError: for weights of another shape or outside [0, 1], or a wrong number of labels.
        TypeError: `labels` is not a list of texts.
    """
    weights = _weights(weights)
    labels = (
        [f"style {i + 1}" for i in range(len(weights))] if labels is None else checks.texts("labels", labels)
    )
    if len(labels) != len(weights):
        raise ValueError(f"labels has {len(labels)} entries; expected {len(weights)}, one per style")
    pictures = [color_weights(weights, image), *(weight.clamp(0, 1) for weight in weights)]
    figure = show_grid(pictures, ["as colours", *labels], columns=len(pictures), width=1.7)
    axes = figure.axes[0]
    height, across = to_array(pictures[0]).shape[:2]
    y = (np.arange(weights.shape[1]) + 0.5) * height / weights.shape[1] - 0.5
    x = (np.arange(weights.shape[2]) + 0.5) * across / weights.shape[2] - 0.5
    for index, weight in enumerate(weights[:1] if len(weights) == 2 else weights):
        levels = [level for level in (0.25, 0.5, 0.75) if float(weight.min()) < level < float(weight.max())]
        if levels and min(weight.shape) > 1:
            color = "white" if len(weights) == 2 else STYLE_COLORS[index % len(STYLE_COLORS)]
            axes.contour(x, y, weight.numpy(), levels=levels, linewidths=0.8, colors=color)
    return figure


def figures_folder() -> Path:
    """The folder in which figures are saved.

    Only `dsnb figures`, `compare` and `bench` redraw the committed `figures/`. So a run with other parameters never
    replaces them.

    Returns:
        DSNB_FIGURES where it is set, else `runs/figures/` of the repository, else `./figures/`.
    """
    chosen = os.environ.get("DSNB_FIGURES")
    if chosen:
        return Path(chosen).expanduser().resolve()
    here = Path.cwd().resolve()
    for folder in (Path(__file__).resolve().parents[1], here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder / "runs" / "figures"
    return here / "figures"


def save_figure(
    image: Picture,
    name: str | Path,
    parameters: dict | None = None,
    sidecar: bool = False,
    largest: int | None = LARGEST_FILE,
) -> Path:
    """Saves an image as a PNG, by default of at most 500 kB. Files appear whole or not at all.

    Args:
        image: the image or figure.
        name: the file, with or without ".png"; without a folder it goes into `figures_folder()`.
        parameters: plain JSON values, which go into the PNG; `read_parameters` reads them.
        sidecar: also write them into NAME.json.
        largest: as for `png_bytes`; None keeps every pixel.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: for something that is not the name of a file, or parameters that are not plain JSON values.
        OSError: if the folder cannot be written to.
    """
    path = Path(name)
    if path.name in ("", "..") or str(name).endswith(("/", os.sep)):
        raise ValueError(f"name must be the name of a file, got {str(name)!r}")
    path = path if path.name != str(name) else figures_folder() / path
    path = path if path.suffix.lower() == ".png" else path.with_name(path.name + ".png")
    files = {path: png_bytes(image, parameters, largest)}
    if sidecar:
        note = {"picture": path.name, "parameters": parameters or {}}
        files[path.with_suffix(".json")] = (_json(note, indent=2, ensure_ascii=False) + "\n").encode()
    write_figures(files)
    return path


def read_parameters(path: str | Path | IO[bytes]) -> dict:
    """Reads the parameters that `save_figure` put into a PNG.

    Args:
        path: the file, also an open one.

    Returns:
        The parameters.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: for a file without parameters, or with those of another program.
    """
    note = None
    with suppress(UnidentifiedImageError), Image.open(path) as image:
        note = getattr(image, "text", {}).get("parameters")
    if note is None:
        raise ValueError(f"path is {str(path)!r}, which has no parameters; expected a PNG saved from a panel")
    with suppress(ValueError):  # other programs write texts of their own under this name
        if isinstance(parameters := json.loads(note), dict):
            return parameters
    raise ValueError(f"path is {str(path)!r}, whose parameters are not those of a panel: {note[:60]!r}")


def _json(parameters: dict, **layout: Any) -> str:
    try:
        return json.dumps(parameters, allow_nan=False, **layout)
    except (TypeError, ValueError) as error:  # JSON has no NaN and no infinity
        raise ValueError(f"parameters must be plain JSON values with finite numbers: {error}") from None


def write_figures(files: dict[Path, bytes]) -> None:
    """Writes figures into one folder, all or none. OSError names the folder where it cannot be written."""
    folder = next(iter(files)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_all_whole(files)
    except (OSError, ValueError) as error:  # ValueError: for a name that no file can have
        raise OSError(
            f"cannot write into the folder {folder} ({getattr(error, 'strerror', None) or error}); make it writable, "
            "or name another one in the environment variable DSNB_FIGURES"
        ) from error


def _tensor(image: Picture) -> Tensor:
    return torch.from_numpy(to_array(image, "image").copy()).permute(2, 0, 1)[None].float() / 255


def _floats(values: Tensor | np.ndarray) -> Tensor:
    values = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    return values.detach().float().cpu()


def _weights(weights: Tensor | np.ndarray) -> Tensor:
    weights = _floats(weights)
    if weights.ndim != 3 or not weights.numel():
        raise ValueError(f"weights has shape {tuple(weights.shape)}; expected (N, H, W)")
    if not (weights.min() >= -1e-3 and weights.max() <= 1 + 1e-3):  # also for NaN
        low, high = weights.min().item(), weights.max().item()
        raise ValueError(f"weights has values from {low:g} to {high:g}; expected values in [0, 1]")
    return weights
