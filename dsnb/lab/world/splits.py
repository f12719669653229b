"""Validation and test images of the drawn world: choices are made on the first set, results reported on the second.

The sets share no object, no scene and no random number. Objects and scenes are divided between them by their index:
16 objects and 3 scenes for validation, the other 48 objects and 7 scenes for the test. Training knows all objects and
scenes, but uses neither seed.
"""

import torch

from ... import checks
from .world import Pictures, random_pictures

SEEDS = {"validation": 940_000, "test": 950_000}
CANDIDATES = 8192  # drawn for each set, before objects and scenes of the other set are dropped


def split(name: str, count: int) -> Pictures:
    """The first images of the validation set or of the test set. Image k is the same for every `count`.

    Args:
        name: "validation" or "test".
        count: number of images.

    Returns:
        What the images show; `draw` draws them in a style.

    Raises:
        ValueError: `name` is another one, or `count` is below 1 or more than the set has.
    """
    checks.one_of("name", name, SEEDS)
    images = random_pictures(CANDIDATES, torch.Generator().manual_seed(SEEDS[name]))
    for_validation = (images.object % 4 == 3, images.scene % 3 == 2)
    kept = torch.ones(CANDIDATES, dtype=torch.bool)
    for mine in for_validation:
        kept &= mine if name == "validation" else ~mine
    rows = kept.nonzero().flatten()
    return images[rows[: checks.integer("count", count, 1, len(rows))]]
