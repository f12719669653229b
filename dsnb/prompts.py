"""The prompts and images that come with the workbook: `data/prompts.json`, read once."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from . import checks, data_path

PLACEHOLDER = "[prompt]"


@dataclass(frozen=True)
class Picture:
    """One source image: its file, the caption for its inversion, and where it comes from."""

    name: str
    file: Path
    caption: str
    source: str


def names() -> list[str]:
    """The names of the bundled styles, in the source project's order."""
    return list(_data()["styles"])


def pairs() -> list[tuple[str, str]]:
    """The source project's pairs of styles, each (left, right)."""
    return [tuple(pair) for pair in _data()["pairs"]]


def known(style: str) -> str | None:
    """Finds a bundled style.

    Args:
        style: its name or title in any spelling, such as "Van Gogh".

    Returns:
        Its name, such as "vangogh", or None for another text.

    Raises:
        TypeError: something that is not a text.
    """
    return _spellings().get(_plain(checks.text("style", style)))


def title(style: str) -> str:
    """A bundled style's title, e.g. "Van Gogh". Raises ValueError for another style."""
    return _style(style)["title"]


def phrase(style: str) -> str:
    """A bundled style's noun phrase, e.g. "Van Gogh-style painting". Raises ValueError for another style."""
    return _style(style)["phrase"]


def prompt(style: str, caption: str) -> str:
    """The prompt of a style for an image, e.g. prompt("vangogh", "a bear on grass").

    Args:
        style: a bundled style in any spelling, a text in which [prompt] stands for the caption, or a whole prompt of
            several words.
        caption: what the image shows.

    Returns:
        The prompt.

    Raises:
        ValueError: another style; the message suggests the most similar name.
        TypeError: something that is not a text.
    """
    style, caption = checks.text("style", style), checks.text("caption", caption)
    if known(style):
        return _style(style)["template"].replace(PLACEHOLDER, caption)
    if PLACEHOLDER in style.lower():
        return re.sub(re.escape(PLACEHOLDER), lambda _: caption, style, flags=re.IGNORECASE)
    if len(style.split()) < 2 or checks.did_you_mean(style, _readable(), cutoff=0.85):
        _style(style, f", a text that contains {PLACEHOLDER}, or a whole prompt")  # raises an error
    return style


def one_prompt(styles: Sequence[str], caption: str) -> str:
    """The text of the one-prompt baseline: "A <style> on the left and a <style> on the right of <caption>".

    Args:
        styles: two or more bundled styles, from left to right.
        caption: what the image shows.

    Returns:
        The prompt.

    Raises:
        ValueError: fewer than two styles, or one that is not bundled.
        TypeError: something that is not a list of texts.
    """
    phrases = [phrase(style) for style in checks.texts("styles", styles)]
    if len(phrases) < 2:
        raise ValueError(f"styles must be at least two, got {len(phrases)}")
    if len(phrases) == 2:
        return f"A {phrases[0]} on the left and a {phrases[1]} on the right of {caption}"
    listed = ", ".join(f"a {phrase}" for phrase in phrases)
    return f"From left to right {listed} of {caption}"


def pictures() -> list[Picture]:
    """The bundled source images: the drawn ones first, then the photographs."""
    return [
        Picture(Path(p["file"]).stem, data_path("images", p["file"]), p["caption"], p["source"])
        for p in _data()["pictures"]
    ]


def picture(name: str | Path, caption: str = "") -> Picture:
    """A source image: a bundled one by its name in data/images, or an image file.

    Args:
        name: the name, or the path of a file.
        caption: what the image shows. It replaces the caption of a bundled image, and a file needs one.

    Returns:
        The source image.

    Raises:
        ValueError: neither a name nor a file (the message suggests the most similar name), or a file without a caption.
        TypeError: something that is neither a text nor a path.
    """
    if not isinstance(name, Path):
        checks.text("image", name)
    ours = {p.name: p for p in pictures()}
    if str(name) in ours:
        found = ours[str(name)]
        return replace(found, caption=caption or found.caption)
    if not Path(name).is_file():
        raise ValueError(
            f"image must be a file or one of {', '.join(ours)}; got {str(name)!r}{checks.did_you_mean(name, ours)}"
        )
    if not caption:
        raise ValueError(f"caption is empty; say what {str(name)!r} shows, such as 'a dog on a beach'")
    return Picture(Path(name).stem, Path(name), caption, "")


def _style(style: str, also: str = "") -> dict:
    name = known(style)
    if name is None:
        raise ValueError(
            f"style must be one of {', '.join(names())}{also}; got {style!r}{checks.did_you_mean(style, _readable())}"
        )
    return _data()["styles"][name]


def _plain(style: str) -> str:
    return "".join(letter for letter in style.lower() if letter.isalnum())


def _readable() -> list[str]:
    """Titles and names of the styles, for messages."""
    return [*(style["title"] for style in _data()["styles"].values()), *names()]


@cache
def _spellings() -> dict[str, str]:
    """Plain spelling -> name, of names and titles."""
    styles = _data()["styles"]
    return {_plain(styles[name]["title"]): name for name in styles} | {name: name for name in styles}


@cache
def _data() -> dict:
    return json.loads(data_path("prompts.json").read_text(encoding="utf-8"))
