"""What is compared: images, captions, and two styles for each. From the drawn world, or from a file of the user's."""

from __future__ import annotations

import glob
import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ... import prompts as written
from ...images import FORMATS, read_image
from ...metrics.networks import resize
from ..world import STYLES, Pictures, draw, phrase

GROUND_TRUTH = "ground-truth blend"  # stands among the methods: the layers, blended by the mask
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # tried for a name without a suffix


@dataclass(frozen=True)
class Task:
    """One image and the two styles asked for, left first. Tasks with the same image have the same `name`.

    Attributes:
        name: of the image, unique among the images of a comparison.
        image: the source image (1, 3, H, W) in [0, 1].
        caption: what the image shows, without a style.
        prompts: left and right prompt.
        one_prompt: the prompt that names both styles, for the method "prompt".
        styles: left and right style, names that the style classifiers know; () if they do not.
        layers: the ground truth in either style (2, 3, H, W) in [0, 1]; None if there is none.
        shows: what an image of the drawn world shows; None for other images.
    """

    name: str
    image: Tensor
    caption: str
    prompts: tuple[str, str]
    one_prompt: str
    styles: tuple[str, ...] = ()
    layers: Tensor | None = None
    shows: Pictures | None = None

    @property
    def pair(self) -> str:
        """The pair of styles, as the tables name it."""
        return " / ".join(self.styles) if self.styles else "own prompts"


def drawn_tasks(pictures: Pictures, pairs: Sequence[tuple[str, str]], size: int) -> list[Task]:
    """Tasks from the drawn world, with their ground truth; every image with every pair of styles.

    Args:
        pictures: what the images show.
        pairs: left and right style of each pair.
        size: height and width of the images in pixels.

    Returns:
        The tasks, image by image.
    """
    styles = {"plain", *(style for pair in pairs for style in pair)}
    drawn = {style: resize(draw(pictures, style), size) for style in styles}
    tasks = []
    for k in range(len(pictures)):
        caption = phrase(pictures, k)
        for pair in pairs:
            task = _styled(f"{k:03d} {caption}", drawn["plain"][[k]], caption, pair)
            layers = torch.stack([drawn[style][k] for style in pair])
            tasks.append(replace(task, layers=layers, shows=pictures[k : k + 1]))
    return tasks


def _styled(name: str, image: Tensor, caption: str, pair: tuple[str, str]) -> Task:
    """A task with the workbook's own prompts for a pair of styles."""
    left, right = (written.prompt(style, caption) for style in pair)
    return Task(name, image, caption, (left, right), written.one_prompt(pair, caption), tuple(pair))


def read_pairs(path: str | Path, pairs: Sequence[tuple[str, str]] = (), model=None) -> list[Task]:
    """Tasks from a JSON file of images and prompts. Every format of the source project is read.

    The file is a list of entries {encode_text, decode_text, decode_text_total, img_path}, an object whose values are
    such entries, or an object that maps image files to captions. `decode_text` is an object with left_prompt and
    right_prompt; or one text, which the left side takes, while the right side keeps encode_text. `encode_img` may stand
    for img_path. `style_left` and `style_right` name the styles; so does a single pair in `pairs`. A caption gets the
    workbook's prompts for each of `pairs`. An image is searched for in the file's folder and the folders above it, then
    in the working folder, then, by its name alone, in the file's folder and in the folders directly inside it.

    Args:
        path: the file, UTF-8.
        pairs: left and right style of each pair.
        model: the images are resized to its size.

    Returns:
        The tasks, in the file's order.

    Raises:
        FileNotFoundError: the file or one of its images does not exist.
        ValueError: something in the file is wrong; the message names the entry.
    """
    path, tasks, titles = Path(path), [], {}  # one title for each image file
    for name, entry in _entries(path).items():
        where = f"pairs file {str(path)!r}, entry {name}"
        if isinstance(entry, dict):
            tasks.append(_read_entry(path, titles, entry, pairs, model, where))
            continue
        if not entry.strip():
            raise ValueError(f"{where} must be a caption, got {entry!r}")
        image, title = _read_image(path, name, titles, model, where)
        caption = entry.removeprefix("A picture of ")
        tasks += [_styled(title, image, caption, pair) for pair in pairs or written.pairs()]
    return tasks


def _entries(path: Path) -> dict[int | str, dict | str]:
    """Every entry of a pairs file by its number or name; captions only where entries have names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise FileNotFoundError(f"pairs file {str(path)!r} does not exist") from None
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"pairs file {str(path)!r} cannot be read as UTF-8 JSON: {error}") from None
    kinds, expected = dict, "an object"
    if isinstance(content, dict):
        content.pop("comment", None)
        kinds, expected = dict | str, "an object or a caption"
    if not isinstance(content, list | dict) or not content:
        wanted = "must hold a list or an object of entries, and at least one"
        raise ValueError(f"pairs file {str(path)!r} {wanted}")
    entries = content if isinstance(content, dict) else dict(enumerate(content))
    for name, entry in entries.items():
        if not isinstance(entry, kinds):
            got = json.dumps(entry)
            raise ValueError(f"pairs file {str(path)!r}, entry {name} must be {expected}, got {got}")
    return entries


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object of JSON's pairs; ValueError for a key that is there twice, of which Python would keep the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _read_image(path: Path, file: str, titles: dict[Path, str], model, where: str) -> tuple[Tensor, str]:
    """An image, and its name in the tables: entries with the same image share it."""
    found = _find(path, file, where).resolve()
    if found not in titles:
        free = (f"{found.stem} {k}" if k > 1 else found.stem for k in count(1))
        titles[found] = next(title for title in free if title not in titles.values())
    return read_image(found, model), titles[found]


def _read_entry(path: Path, titles: dict[Path, str], entry: dict, pairs, model, where: str) -> Task:
    """The task of one entry with its own prompts."""

    def text(key: str, inside: dict = entry) -> str:
        if key not in inside:
            raise ValueError(f"{where}: {key!r} is missing")
        if not isinstance(inside[key], str) or not inside[key].strip():
            raise ValueError(f"{where}: {key!r} must be a text, got {json.dumps(inside[key])}")
        return inside[key]

    caption = text("encode_text")
    if isinstance(entry.get("decode_text"), dict):
        sides = (text("left_prompt", entry["decode_text"]), text("right_prompt", entry["decode_text"]))
        one_prompt = text("decode_text_total")
    else:
        one_prompt = text("decode_text")
        sides = (one_prompt, caption)
    file = text("encode_img" if "encode_img" in entry and "img_path" not in entry else "img_path")
    image, title = _read_image(path, file, titles, model, where)
    given = [entry[key] for key in ("style_left", "style_right") if key in entry]
    named = [_known_style(style) for style in given]
    pair = tuple(named) if len(named) == 2 and all(named) else ()
    if not given and len(pairs) == 1:
        pair = tuple(pairs[0])
    return Task(title, image, caption, sides, one_prompt, pair)


def _known_style(name: object) -> str | None:
    """The style that a name such as "VAN GOGH" or "Andy Warhol pop" stands for; None if it is not known."""
    words = re.findall("[a-z]+", str(name).lower())
    together = ["".join(two) for two in pairwise(words)]  # "van gogh"
    return next((word for word in [*words, *together] if word in STYLES), None)


def _find(path: Path, image: str, where: str) -> Path:
    """The image file that an entry names: from the pairs file upwards, or one folder below; without a suffix, too.

    A file of another folder than the entry's is used with a warning.
    """
    folder = path.resolve().parent
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    wanted = [image] if Path(image).suffix.lower() in known else [image + s for s in IMAGE_SUFFIXES]
    names = [Path(file).name for file in wanted]
    exact = (
        [above / file for file in wanted if (above / file).is_file()]
        for above in (folder, *folder.parents, Path.cwd())
    )
    found = next(filter(None, exact), [])
    elsewhere = not found
    if elsewhere:
        near = [file for n in names for file in (folder / n, *sorted(folder.glob(f"*/{glob.escape(n)}")))]
        found = [file for file in near if file.is_file()]
    if len(found) > 1:
        several = " and ".join(os.path.relpath(file, folder) for file in found[:2])
        raise ValueError(f"{where}: {image!r} may be {several}; write its folder and suffix")
    if not found:
        raise FileNotFoundError(
            f"{where}: there is no image {image!r} in {folder}, one folder below, or above"
        )
    if elsewhere and Path(image).name != image:
        warnings.warn(f"{where}: {image!r} does not exist; {str(found[0])!r} is used", stacklevel=2)
    return found[0]
