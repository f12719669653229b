"""The prompts and pictures that come with the workbook: `data/prompts.json`, read once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from . import data_path

PLACEHOLDER = "[prompt]"


@dataclass(frozen=True)
class Picture:
    """One source picture: its file, the caption it is inverted with, and where it comes from."""

    name: str
    file: Path
    caption: str
    source: str


def names() -> list[str]:
    """The styles there are, in the paper's order."""
    return list(_data()["styles"])


def pairs() -> list[tuple[str, str]]:
    """The paper's pairs of styles, left and right."""
    return [tuple(pair) for pair in _data()["pairs"]]


def title(style: str) -> str:
    """A style's name as people write it, e.g. "Van Gogh"."""
    return _style(style)["title"]


def prompt(style: str, caption: str) -> str:
    """A style's template filled with a caption, e.g. prompt("vangogh", "a bear on grass").

    Raises ValueError for an unknown style, with the nearest name.
    """
    return _style(style)["template"].replace(PLACEHOLDER, caption)


def style_prompt(style: str, caption: str) -> str:
    """As `prompt`, but any text with a space in it counts as a whole prompt of the user's own.

    `[prompt]` in it stands for the caption.
    """
    return style.replace(PLACEHOLDER, caption) if " " in style.strip() else prompt(style, caption)


def one_prompt(styles: Sequence[str], caption: str) -> str:
    """The one-prompt baseline: "A <style> on the left and a <style> on the right of [prompt]".

    With more than two styles they are listed from left to right.
    """
    phrases = [_style(style)["phrase"] for style in styles]
    if len(phrases) == 2:
        return f"A {phrases[0]} on the left and a {phrases[1]} on the right of {caption}"
    listed = ", ".join(f"a {phrase}" for phrase in phrases)
    return f"From left to right {listed} of {caption}"


def pictures() -> list[Picture]:
    """The source pictures, in their fixed order: the drawn ones first, then the photographs."""
    return [
        Picture(Path(p["file"]).stem, data_path("images", p["file"]), p["caption"], p["source"])
        for p in _data()["pictures"]
    ]


def picture(name: str) -> Picture:
    """One source picture by name. Raises ValueError for an unknown one, with the nearest name."""
    known = {p.name: p for p in pictures()}
    if name not in known:
        raise ValueError(f"picture must be {_listed(name, known)}")
    return known[name]


def _style(style: str) -> dict:
    if style not in _data()["styles"]:
        raise ValueError(f"style must be {_listed(style, _data()['styles'])}")
    return _data()["styles"][style]


def _listed(value: str, known) -> str:
    near = get_close_matches(value.lower().replace(" ", ""), list(known), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"one of {', '.join(known)}, got {value!r}{hint}"


@cache
def _data() -> dict:
    return json.loads(data_path("prompts.json").read_text())
