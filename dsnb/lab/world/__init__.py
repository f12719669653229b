"""The drawn world: images as a pure function of numbers, in any style or mix of styles, and their captions.

    icons, scenery, world, filters, styles
                                     the images
    captions                         their captions, and the tokenizer
    layouts                          training images in one, two or three styles
    splits                           the validation set and the test set
    faults                           images with known faults, to test measures on
    atlas                            makes the sheet of drawings anew

`world.captions` is the module, not its function `captions`. Training uses more of its functions.
"""

from . import captions
from .captions import object_captions, phrase, templates
from .faults import faulty_images
from .filters import luminance
from .icons import CELL, DRAWINGS, OBJECTS, SETS, load_atlas
from .layouts import Batch, batch_captions, draw_batch, layout_weights, random_batch
from .scenery import SCENES
from .splits import split
from .styles import STYLES, draw, draw_mix, held_out, random_styles
from .world import COLOURS, PAINTABLE, SIZE, Pictures, draw_plain, random_pictures

__all__ = [
    "CELL", "COLOURS", "DRAWINGS", "OBJECTS", "PAINTABLE", "SCENES", "SETS", "SIZE", "STYLES", "Batch",
    "Pictures", "batch_captions", "captions", "draw", "draw_batch", "draw_mix", "draw_plain",
    "faulty_images", "held_out", "layout_weights", "load_atlas", "luminance", "object_captions", "phrase",
    "random_batch", "random_pictures", "random_styles", "split", "templates",
]  # fmt: skip
