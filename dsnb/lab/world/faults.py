"""Images with known faults, to test measures on."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...metrics import transition_strip
from .styles import draw, draw_mix
from .world import Pictures, random_pictures


def faulty_images(
    pictures: Pictures, styles: Sequence[str], weights: torch.Tensor, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Draw each image as it should be in two styles, and with seven known faults.

    Args:
        pictures: what the B images show.
        styles: left and right style.
        weights: mask weights (2, SIZE, SIZE) that sum to 1.
        generator: chooses the other scenes of "stranger".

    Returns:
        Name -> images (B, 3, SIZE, SIZE) in [0, 1]. "ground truth": the ground-truth blend. "mirror": the styles
        are exchanged. "one style": the left style everywhere. "untouched": the source image. "smeared": the strip
        around the border is blurred. "ghost": both styles everywhere, half and half. "misfit": the right side is
        moved down by a tenth of the image. "stranger": another scene.
    """
    left, right = (draw(pictures, style) for style in styles)
    blend = draw_mix(pictures, styles, weights)
    strip = transition_strip(weights, 0.3).float()
    blurred = F.avg_pool2d(blend, 11, stride=1, padding=5, count_include_pad=False)
    others = random_pictures(len(pictures), generator)
    return {
        "ground truth": blend,
        "mirror": draw_mix(pictures, styles[::-1], weights),
        "one style": left,
        "untouched": draw(pictures, "plain"),
        "smeared": blend * (1 - strip) + blurred * strip,
        "ghost": (left + right) / 2,
        "misfit": blend * weights[0] + blend.roll(13, 2) * weights[1],
        "stranger": draw_mix(others, styles, weights),
    }
