"""The drawings that the training world is made of: open emoji art, three drawings of each object.

`data/icons/atlas.png` holds them, one row per object, one column per set, so training needs no network.
The atlas is rebuilt from Iconify's npm packages by

    npm install @iconify-json/noto @iconify-json/twemoji @iconify-json/fluent-emoji-flat
    python -m dsnb.lab.world.icons node_modules          # also needs: pip install 'dsnb[lab]'
"""

import argparse
import io
import json
from functools import lru_cache
from pathlib import Path

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
    """Return the drawings as float32 RGBA in [0, 1], (objects, sets, 4, CELL, CELL); colours not
    premultiplied.

    Raises FileNotFoundError where `data/icons/atlas.png` is missing, ValueError where it has another size.
    """
    path = FOLDER / "atlas.png"
    if not path.is_file():
        raise FileNotFoundError(
            f"the icon atlas {path} is missing; python -m dsnb.lab.world.icons rebuilds it"
        )
    sheet = torch.from_numpy(np.array(Image.open(path).convert("RGBA")))
    expected = (len(OBJECTS) * CELL, len(SETS) * CELL, 4)
    if tuple(sheet.shape) != expected:
        raise ValueError(f"the icon atlas {path} has shape {tuple(sheet.shape)}, expected {expected}")
    cells = sheet.reshape(len(OBJECTS), CELL, len(SETS), CELL, 4).permute(0, 2, 4, 1, 3)
    return cells.contiguous().float() / 255


def rasterise(icon: dict, size: dict, pixels: int = 512) -> Image.Image:
    """Render one Iconify icon, crop it to what is drawn, and set it on the bottom centre of a CELL square."""
    import resvg_py

    width, height = icon.get("width", size.get("width", 16)), icon.get("height", size.get("height", 16))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg, width=pixels, height=pixels)))).convert(
        "RGBA"
    )
    image = image.crop(image.getchannel("A").getbbox())
    scale = CELL / max(image.size)
    fitted = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(fitted, ((CELL - fitted.width) // 2, CELL - fitted.height))
    return cell


def build_atlas(node_modules: Path) -> Image.Image:
    """Draw all objects of all sets from Iconify's npm packages into one sheet, rows objects, columns sets."""
    sheet = Image.new("RGBA", (len(SETS) * CELL, len(OBJECTS) * CELL))
    for column, name in enumerate(SETS):
        path = Path(node_modules) / "@iconify-json" / name / "icons.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; npm install @iconify-json/{name} brings it")
        pack = json.loads(path.read_text(encoding="utf-8"))
        for row, drawing in enumerate(DRAWINGS.values()):
            sheet.paste(rasterise(pack["icons"][drawing], pack), (column * CELL, row * CELL))
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="rebuild data/icons/atlas.png from Iconify's npm packages")
    parser.add_argument("node_modules", type=Path)
    FOLDER.mkdir(parents=True, exist_ok=True)
    build_atlas(parser.parse_args().node_modules).save(FOLDER / "atlas.png", optimize=True)
