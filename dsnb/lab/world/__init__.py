"""The drawn world: images as a pure function of numbers, in any style or mix of styles, and their captions.

    icons, scenery, world, filters, styles
                                     the images
    captions                         their captions, and the tokenizer
    layouts                          training images in one, two or three styles
    splits                           the validation set and the test set
    faults                           images with known faults, to test measures on

The names below are loaded on first use. `world.captions` is the module.
"""

from importlib import import_module

_EXPORTS = {
    "captions": (
        "LENGTH",
        "PARAPHRASES",
        "caption",
        "describe",
        "phrase",
        "templates",
        "tokenize",
        "train_tokenizer",
    ),
    "faults": ("faulty_images",),
    "filters": ("luminance",),
    "icons": ("CELL", "DRAWINGS", "OBJECTS", "SETS", "load_atlas"),
    "layouts": ("Batch", "batch_captions", "draw_batch", "layout_weights", "random_batch"),
    "scenery": ("SCENES",),
    "splits": ("split",),
    "styles": ("STYLES", "draw", "draw_mix", "held_out", "random_styles"),
    "world": ("COLOURS", "PAINTABLE", "SIZE", "Pictures", "draw_plain", "random_pictures"),
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [*_MODULES]


def __getattr__(name):
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
