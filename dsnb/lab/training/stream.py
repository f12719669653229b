"""Endless fresh images for training, drawn on the device, never stored."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..world import Batch, draw_batch, random_batch
from .loop import step_generator


@dataclass
class ImageStream:
    """Images as a function of the step: `stream(step)` gives the images, and what they show.

    Attributes:
        batch: images per step.
        chunk: batches that are kept.
        repeats: passes over these batches before new ones are drawn.
        fraction: fraction of the images in several styles.
        even: all styles equally often, otherwise in the proportions of training.
        transform: turns images (B, 3, 128, 128) in [0, 1] into what is wanted instead, such as latents.
    """

    batch: int
    seed: int
    device: torch.device | str
    chunk: int = 8
    repeats: int = 2
    fraction: float = 0.0
    even: bool = True
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None
    _kept: dict[int, tuple[torch.Tensor, Batch]] = field(default_factory=dict)

    def __call__(self, step: int) -> tuple[torch.Tensor, Batch]:
        number, position = divmod(step, self.chunk * self.repeats)
        index = number * self.chunk + position % self.chunk
        if index not in self._kept:
            self._kept = {k: kept for k, kept in self._kept.items() if k >= number * self.chunk}
            self._kept[index] = self._draw(index)
        return self._kept[index]

    def _draw(self, index: int) -> tuple[torch.Tensor, Batch]:
        generator = step_generator(self.seed, "pictures", index)
        batch = random_batch(self.batch, generator, self.fraction, self.even)
        images = draw_batch(batch.to(self.device))
        return images if self.transform is None else self.transform(images), batch
