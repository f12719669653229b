"""Films: animated WebP images of what changes over the denoising steps."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from . import checks
from .plotting import Picture, figures_folder, several, to_array, write_figures

LARGEST_FILM = 115_000  # bytes; a notebook has at most 120 kB per output, see lab/outputs.py
QUALITIES = (85, 75, 60, 45, 30)


@dataclass(frozen=True)
class Film:
    """An animated WebP file in memory, which a notebook shows at the end of a cell."""

    data: bytes = field(repr=False)
    alt: str

    def _repr_html_(self) -> str:
        source = base64.b64encode(self.data).decode()
        return f'<img alt="{html.escape(self.alt)}" src="data:image/webp;base64,{source}">'

    def save(self, name: str) -> Path:
        """Writes the film as NAME.webp into `plotting.figures_folder()`.

        Args:
            name: the file's name without its ending, such as "06_film".

        Returns:
            The path of the file.

        Raises:
            ValueError: `name` is not the name of a file, or contains a folder.
            OSError: the folder cannot be written to.
        """
        if not name or Path(name).name != name:
            raise ValueError(f"name must be a file's name, without a folder; got {name!r}")
        path = figures_folder() / f"{name}.webp"
        write_figures({path: self.data})
        return path


def make_film(frames: Sequence[Picture], alt: str, seconds: float = 4.0, rest: float = 1.5) -> Film:
    """Makes a film that repeats its frames without end.

    Args:
        frames: at least two images or figures of one size, as `plotting.to_array` takes them.
        alt: what the film shows, for readers who cannot see it.
        seconds: time for all frames, above 0 and at most an hour.
        rest: extra time for the last frame in seconds, from 0 to an hour.

    Returns:
        The film, of at most `LARGEST_FILM` bytes. To fit, it gets a lower quality first, then a smaller size.

    Raises:
        ValueError: fewer than two frames or too many to fit, frames of different sizes, or a time out of range.
        TypeError: a time is not a number, or `alt` is not a text.
    """
    seconds = checks.number("seconds", seconds, high=3600, above=0)
    rest, alt = checks.number("rest", rest, 0, 3600), checks.text("alt", alt)
    images = [
        Image.fromarray(to_array(frame, f"frames[{i}]")) for i, frame in enumerate(several("frames", frames))
    ]
    sizes = {image.size for image in images}
    if len(images) < 2 or len(sizes) > 1:
        raise ValueError(f"frames must be at least two images of one size, got {len(images)} of {sizes}")
    durations = [round(1000 * seconds / len(images))] * len(images)
    durations[-1] += round(1000 * rest)
    while True:
        for quality in QUALITIES:
            data = _encode(images, durations, quality)
            if len(data) <= LARGEST_FILM:
                return Film(data, alt)
        if images[0].size == (1, 1):
            raise ValueError(f"frames has {len(images)} images; so many do not fit into {LARGEST_FILM} bytes")
        smaller = [max(1, int(0.8 * side)) for side in images[0].size]
        images = [image.resize(smaller, Image.Resampling.LANCZOS) for image in images]


def _encode(images: list[Image.Image], durations: list[int], quality: int) -> bytes:
    buffer = io.BytesIO()
    options = {"duration": durations, "loop": 0, "quality": quality, "method": 4}
    images[0].save(buffer, format="WEBP", save_all=True, append_images=images[1:], **options)
    return buffer.getvalue()
