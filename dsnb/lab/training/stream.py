"""Endless fresh pictures for training, drawn on the device, never stored."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..world.styles import draw, random_styles
from ..world.world import Pictures, random_pictures
from .loop import step_generator

AT_ONCE = 256  # pictures drawn in one go


@dataclass
class PictureStream:
    """Pictures as a function of the step: `stream(step)` gives images, what they show, and their styles.

    They are drawn `chunk` batches at a time, for speed, and each chunk serves `repeats` passes before it is
    thrown away. `even`: all styles as often, or in the shares of training. `transform`, if given, turns the
    images (B,3,128,128) in [0, 1] into what is wanted instead of them, such as latents.
    """

    batch: int
    seed: int
    device: torch.device | str
    chunk: int = 8
    repeats: int = 2
    even: bool = True
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None
    _number: int = -1
    _contents: tuple = ()

    def __call__(self, step: int) -> tuple[torch.Tensor, Pictures, torch.Tensor]:
        number, place = divmod(step, self.chunk * self.repeats)
        if number != self._number:
            self._contents, self._number = self._draw(number), number
        start = place % self.chunk * self.batch
        rows = slice(start, start + self.batch)
        images, pictures, styles = self._contents
        return images[rows], pictures[rows], styles[rows]

    def _draw(self, number: int):
        generator = step_generator(self.seed, "pictures", number)
        pictures = random_pictures(self.chunk * self.batch, generator)
        styles = random_styles(pictures, generator, self.even)
        parts = []
        for start in range(0, len(pictures), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            images = draw(pictures[rows].to(self.device), styles[rows].to(self.device))
            parts.append(images if self.transform is None else self.transform(images))
        return torch.cat(parts), pictures, styles
