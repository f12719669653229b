"""The drawings that the training world is made of: open emoji art, three drawings of each object.

`data/icons/atlas.png` holds them, one row per object, one column per set, so training needs no network.
`atlas.py` makes it.
"""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from ... import data_path

CELL = 112  # pixels of one square cell of the atlas
FOLDER = data_path("icons")
SETS = ("noto", "twemoji", "fluent-emoji-flat")

# noun: name of the drawing where it is not the noun itself
DRAWINGS = {
    "bear": "teddy-bear", "cat": "cat", "dog": "dog", "horse": "horse", "cow": "cow", "pig": "pig",
    "rabbit": "rabbit", "elephant": "elephant", "giraffe": "giraffe", "camel": "camel", "sheep": "ewe",
    "tiger": "tiger", "kangaroo": "kangaroo", "rooster": "rooster", "duck": "duck", "owl": "owl",
    "penguin": "penguin", "flamingo": "flamingo", "peacock": "peacock", "turtle": "turtle",
    "crocodile": "crocodile", "fish": "tropical-fish", "whale": "spouting-whale", "octopus": "octopus",
    "crab": "crab", "butterfly": "butterfly", "bee": "honeybee", "snail": "snail",
    "ladybug": "lady-beetle", "dinosaur": "t-rex",
    "car": "automobile", "bus": "bus", "truck": "delivery-truck", "tractor": "tractor",
    "bicycle": "bicycle", "train": "locomotive", "airplane": "airplane", "rocket": "rocket",
    "sailboat": "sailboat", "house": "house", "castle": "castle", "tent": "tent",
    "tree": "deciduous-tree", "pine tree": "evergreen-tree", "palm tree": "palm-tree",
    "cactus": "cactus", "tulip": "tulip", "sunflower": "sunflower", "mushroom": "mushroom",
    "apple": "red-apple", "strawberry": "strawberry", "banana": "banana", "pineapple": "pineapple",
    "pumpkin": "jack-o-lantern", "cake": "birthday-cake", "cup": "teacup-without-handle",
    "guitar": "guitar", "umbrella": "umbrella", "balloon": "balloon", "ball": "soccer-ball",
    "chair": "chair", "snowman": "snowman-without-snow", "robot": "robot", "star": "star",
}  # fmt: skip
OBJECTS = tuple(DRAWINGS)


@lru_cache(maxsize=1)
def load_atlas() -> torch.Tensor:
    """The drawings as float32 RGBA in [0, 1], (objects, sets, 4, CELL, CELL); colours not premultiplied.

    Raises FileNotFoundError where `data/icons/atlas.png` is missing, ValueError where it has another size.
    """
    path = FOLDER / "atlas.png"
    if not path.is_file():
        raise FileNotFoundError(
            f"the icon atlas {path} is missing; python -m dsnb.lab.world.atlas makes it anew"
        )
    sheet = torch.from_numpy(np.array(Image.open(path).convert("RGBA")))
    expected = (len(OBJECTS) * CELL, len(SETS) * CELL, 4)
    if tuple(sheet.shape) != expected:
        raise ValueError(f"the icon atlas {path} has shape {tuple(sheet.shape)}, expected {expected}")
    cells = sheet.reshape(len(OBJECTS), CELL, len(SETS), CELL, 4).permute(0, 2, 4, 1, 3)
    return cells.contiguous().float() / 255
