"""Training images in one, two or three styles: what they show, where each style lies, and how captions name them.

Stable Diffusion has seen collages, screens, and paintings on walls. A fraction of the training images here has several
styles too. A line at any angle, a ring or the object's contour divides them, hard or soft. Some are collages of two
scenes. A caption names the styles in any order and never says where each one lies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from ... import prompts
from .captions import PARAPHRASES, captions, phrase, templates
from .filters import blur
from .styles import STYLES, draw, held_out, random_styles
from .world import SIZE, Pictures, Rows, draw_plain, random_pictures

MOST = 3  # styles in one image
# What divides the styles, and how often. Lines are rare: from many of them the network would learn to put two named
# styles on two sides by text alone, which Stable Diffusion does not do either.
BORDERS = {"contour": 0.5, "ring": 0.3, "line": 0.2}
THREE, COLLAGES = 0.2, 0.1  # fractions of the images in several styles: with three styles, with two scenes
# The noun phrase of each style, as in "a mosaic of {}". A plain image has none, so plain takes no part in a mixture.
NOUNS = {style: forms[0].removesuffix(" of {}") for style, forms in PARAPHRASES.items() if style != "plain"}


@dataclass(frozen=True)
class Batch(Rows):
    """What B training images show.

    Attributes:
        pictures: object, scene and random numbers of each image.
        second: what lies under the second style; equal to `pictures` unless the image is a collage.
        styles: (B, MOST) indices into STYLES, -1 where there are no more.
        layout: (B, 6) uniform random numbers in [0, 1) that determine the border between the styles.
    """

    pictures: Pictures
    second: Pictures
    styles: torch.Tensor
    layout: torch.Tensor

    @property
    def several(self) -> torch.Tensor:
        """Indices of the images with more than one style."""
        return (self.styles[:, 1] >= 0).nonzero().flatten()


def random_batch(count: int, generator: torch.Generator, fraction: float = 0.0, even: bool = True) -> Batch:
    """Draw at random what `count` images show.

    Args:
        count: number of images, at least 1.
        generator: a random generator on the CPU.
        fraction: the fraction of images in several styles, from 0 to 1. Their styles are all different, never plain,
            and never the one held out for the object and scene.
        even: all styles equally often in the images of one style, otherwise in the proportions of training.

    Returns:
        What the images show, on the CPU.
    """
    pictures = random_pictures(count, generator)
    styles = torch.full((count, MOST), -1)
    styles[:, 0] = random_styles(pictures, generator, even)
    allowed = torch.ones(count, len(STYLES))
    allowed[:, list(STYLES).index("plain")] = 0
    allowed.scatter_(1, held_out(pictures)[:, None], 0)
    chosen = torch.multinomial(allowed, MOST, generator=generator)
    random = torch.rand(count, 3, generator=generator)
    several = random[:, 0] < fraction
    three = several & (random[:, 1] < THREE)
    styles[several, :2] = chosen[several, :2]
    styles[three, 2] = chosen[three, 2]
    other, collage = random_pictures(count, generator), several & (random[:, 2] < COLLAGES)
    collage &= held_out(other) != styles[:, 1]
    second = pictures[torch.arange(count)]  # a copy
    for field in fields(Pictures):
        getattr(second, field.name)[collage] = getattr(other, field.name)[collage]
    return Batch(pictures, second, styles, torch.rand(count, 6, generator=generator))


def layout_weights(batch: Batch) -> torch.Tensor:
    """How much of each style every pixel shows: (B, MOST, SIZE, SIZE), summing to 1 over the styles.

    A field rises along a line, from a centre, or away from the object. Logistic borders of random sharpness cut it at
    one level, or at two levels for three styles.
    """
    u, three = batch.layout, (batch.styles[:, 2] >= 0).view(-1, 1, 1)
    row = lambda column, low, high: (low + (high - low) * u[:, column]).view(-1, 1, 1)
    axis = (torch.arange(SIZE, device=u.device) + 0.5) / SIZE
    y, x = axis.view(1, -1, 1), axis.view(1, 1, -1)
    angle = row(0, 0, 2 * math.pi)
    line = 0.5 + 0.7 * ((x - 0.5) * angle.cos() + (y - 0.5) * angle.sin())
    ring = ((x - row(0, 0.2, 0.8)).square() + (y - row(1, 0.2, 0.8)).square()).sqrt()
    contour = 1 - blur(draw_plain(batch.pictures)[1], 2)[:, 0]
    is_contour = (u[:, 2] < BORDERS["contour"]).view(-1, 1, 1)
    is_line = (u[:, 2] > 1 - BORDERS["line"]).view(-1, 1, 1)
    field = torch.where(is_contour, contour, torch.where(is_line, line, ring))
    sharpness = 12 * torch.pow(8.0, row(3, 0, 1))  # from a fade over a third of the image to a clean cut
    first = torch.where(is_contour, 0.5, row(4, 0.35, 0.65) - 0.15 * three)
    second = first + torch.where(is_contour, 0.45, row(5, 0.25, 0.35))
    inside = torch.sigmoid((first - field) * sharpness)
    outside = torch.sigmoid((field - second) * sharpness) * three
    weights = torch.stack([inside, (1 - inside - outside).clamp(min=0), outside], 1)
    weights = weights / weights.sum(1, keepdim=True)
    swapped = (u[:, 1] < 0.5).view(-1, 1, 1, 1) & ~three[:, None]  # either style may be the inner one
    return torch.where(swapped, weights[:, [1, 0, 2]], weights)


def draw_batch(batch: Batch) -> torch.Tensor:
    """Draw the images: (B, 3, SIZE, SIZE) in [0, 1]."""
    image = draw(batch.pictures, batch.styles[:, 0])
    rows = batch.several
    if len(rows):
        part = batch[rows]
        weights, mixed = layout_weights(part)[:, :, None], torch.zeros_like(image[rows])
        for k, pictures in enumerate((part.pictures, part.second, part.pictures)):
            shown = (part.styles[:, k] >= 0).nonzero().flatten()
            if len(shown):
                mixed[shown] += draw(pictures[shown], part.styles[shown, k]) * weights[shown, k]
        image[rows] = mixed
    return image


def batch_captions(batch: Batch, generator: torch.Generator) -> list[str]:
    """A caption for each image.

    With one style: see `captions.captions`. With several: half the captions contain a whole template of one style,
    the workbook's long ones included, before or after the nouns of the others. The rest list nouns. A collage names
    each style with its own scene.
    """
    texts, names = captions(batch.pictures, batch.styles[:, 0], generator), list(STYLES)
    for index in batch.several.tolist():
        shown = [names[style] for style in batch.styles[index].tolist() if style >= 0]
        order = torch.randperm(len(shown), generator=generator).tolist()
        whole, which, side, scene = torch.rand(4, generator=generator).tolist()
        wording = None if scene < 0.07 else int(scene > 0.7)
        text, other = phrase(batch.pictures, index, wording), phrase(batch.second, index, wording)
        nouns = [noun(shown[k], which) for k in order]
        if other != text:
            shows = [other if k == 1 else text for k in order]
            texts[index] = listed([f"{style} of {what}" for style, what in zip(nouns, shows, strict=True)])
        elif whole < 0.5:
            choices = templates(shown[order[0]])
            choice = choices[0] if which < 0.5 else choices[int(which * len(choices))]
            parts = [choice.format(text).rstrip("."), *nouns[1:]]
            texts[index] = listed(parts if side < 0.5 else parts[::-1])
        else:
            texts[index] = f"{listed(nouns)} of {text}"
    return texts


def noun(style: str, which: float) -> str:
    """The noun phrase of a style: the workbook's own, if it has one and `which` is below a half; else the short one."""
    return f"a {prompts.phrase(style)}" if which < 0.5 and style in prompts.names() else NOUNS[style]


def listed(parts: Sequence[str]) -> str:
    """Join to "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
