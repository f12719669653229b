"""Make `data/icons/atlas.png` anew from Iconify's npm packages.

    npm install @iconify-json/noto @iconify-json/twemoji @iconify-json/fluent-emoji-flat
    python -m dsnb.lab.world.atlas node_modules

This also needs `pip install 'dsnb[lab]'`.
"""

import argparse
import io
import json
from pathlib import Path

from PIL import Image

from .icons import CELL, DRAWINGS, FOLDER, OBJECTS, SETS


def rasterise(icon: dict, size: dict) -> Image.Image:
    """Render one Iconify icon, crop it to what is drawn, and set it on the bottom centre of a CELL square."""
    import resvg_py

    width, height = icon.get("width", size.get("width", 16)), icon.get("height", size.get("height", 16))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg, width=512, height=512))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    scale = CELL / max(image.size)
    fitted = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(fitted, ((CELL - fitted.width) // 2, CELL - fitted.height))
    return cell


def build_atlas(node_modules: Path) -> Image.Image:
    """Draw all objects of all sets from Iconify's npm packages into one sheet: a row per object, a column per set."""
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
