"""Measure a model against the bars it is meant to pass: honest numbers, on pictures training never drew.

Everything that can be is compared with the truth, since the world is drawn: the true picture in any style is
known, and so is what the judge reads in it. The model is measured as users get it, from its folder.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import inversion, masks, methods, metrics, models
from .. import styles as prompts
from ..images import read_image
from .autoencoder import psnr
from .captions import caption, phrase
from .diffusion import sample
from .judge import Judge, sides, top, truth
from .scenery import SCENES
from .styles import STYLES, draw, held_out
from .world import Pictures, random_pictures


@dataclass(frozen=True)
class Row:
    """One measured number: what, its value, how many pictures, and the bar (None: no bar)."""

    name: str
    value: float
    count: int
    bar: float | None = None

    @property
    def passed(self) -> bool | None:
        return None if self.bar is None else self.value >= self.bar


def measure_reading(judge: Judge, count: int) -> list[Row]:
    """How well the judge reads true pictures; everything below can be no better than this."""
    images, pictures, styles = truth(count, 1)
    objects = top(judge.objects(images, pictures, styles), pictures.object)
    shown = top(judge.styles(images, pictures), styles)
    return [
        Row("judge reads the object of true pictures", objects.mean().item(), count, 0.90),
        Row("judge reads the style of true pictures", shown.mean().item(), count, 0.98),
    ]


def measure_autoencoder(autoencoder, count: int) -> list[Row]:
    """Peak signal-to-noise ratio of true pictures in each style, dB."""
    generator, rows = torch.Generator().manual_seed(900_002), []
    device = next(autoencoder.parameters()).device
    for style in STYLES:
        pictures = random_pictures(max(8, count // len(STYLES)), generator).to(device)
        rows.append(
            Row(
                f"autoencoder PSNR, {style}",
                psnr(autoencoder, draw(pictures, style)).mean().item(),
                len(pictures),
                25,
            )
        )
    mean = sum(row.value for row in rows) / len(rows)
    return [Row("autoencoder PSNR, all styles", mean, sum(row.count for row in rows), 25), *rows]


def measure_samples(model: models.Model, judge: Judge, count: int) -> tuple[list[Row], torch.Tensor]:
    """Pictures from noise for captions (object, scene, style) never seen in training; rows and the
    pictures."""
    generator = torch.Generator().manual_seed(900_003)
    pictures = random_pictures(count, generator)
    # the scene that makes each style in turn the held-out one; where two do, either
    scenes = (torch.arange(count) - pictures.object) % len(STYLES)
    other = (scenes + len(STYLES) < len(SCENES)) & (pictures.numbers[:, 0] < 0.5)
    pictures.scene[:] = scenes + len(STYLES) * other
    styles = held_out(pictures)
    texts = [caption(pictures, index, list(STYLES)[style]) for index, style in enumerate(styles)]
    parts = []
    for start in tqdm(range(0, count, 30), desc="samples"):
        latents = sample(
            model.unet, model.text_encoder, model.tokenizer, texts[start : start + 30], generator
        )
        parts.append(models.decode_latents(model, latents))
    images = torch.cat(parts)
    right_style = top(judge.styles(images, pictures), styles)
    scores = judge.objects(images, pictures, styles)
    first, five, is_plain = top(scores, pictures.object), top(scores, pictures.object, 5), styles == 0
    rows = [Row("style shown is the style asked", right_style.mean().item(), count, 0.95)]
    per_style = [right_style[styles == k].mean().item() for k in range(len(STYLES))]
    rows.append(Row("… in the worst style", min(per_style), count // len(STYLES), 0.85))
    for name, chosen in (("plain", is_plain), ("stylised", ~is_plain)):
        rows.append(
            Row(
                f"object shown is the object asked, {name}, top 1",
                first[chosen].mean().item(),
                int(chosen.sum()),
                0.60,
            )
        )
        rows.append(
            Row(
                f"object shown is the object asked, {name}, top 5",
                five[chosen].mean().item(),
                int(chosen.sum()),
                0.85,
            )
        )
    return rows, images


def measure_inversion(model: models.Model, judge: Judge, count: int) -> list[Row]:
    """Plain pictures inverted and decoded with a style's prompt: is it the style, is it still that
    picture?"""
    generator = torch.Generator().manual_seed(900_004)
    pictures, names = random_pictures(count, generator), list(STYLES)
    asked = torch.tensor([1 + k % 4 for k in range(count)])  # the workbook's own four styles in turn
    drawn, fresh, true, rebuilt = [], [], [], []
    for index in tqdm(range(count), desc="inversion"):
        one, style = pictures[index : index + 1], names[asked[index]]
        source, text = draw(one, "plain"), prompts.prompt(style, phrase(pictures, index))
        trajectory = inversion.invert(
            model, source, phrase(pictures, index), generator=generator, progress=False
        )
        drawn.append(methods.decode(model, trajectory, text, progress=False))
        latents = sample(model.unet, model.text_encoder, model.tokenizer, [text], generator)
        fresh.append(models.decode_latents(model, latents))
        true.append(draw(one, style))
        rebuilt.append(models.decode_latents(model, models.encode_image(model, source)))
    drawn, fresh, true = torch.cat(drawn), torch.cat(fresh), torch.cat(true)
    shown = top(judge.styles(drawn, pictures), asked).mean().item()
    kept = [metrics.ssim(images, true).mean().item() for images in (drawn, fresh)]
    objects = top(judge.objects(drawn, pictures, asked), pictures.object).mean().item()
    return [
        Row("inverted, then styled: style as asked", shown, count, 0.90),
        Row("inverted, then styled: object still read, top 1", objects, count),
        Row("inverted, then styled: SSIM to the true picture in that style", kept[0], count, kept[1] + 0.1),
        Row("from fresh noise: SSIM to the true picture in that style", kept[1], count),
    ]


def measure_photographs(model: models.Model) -> list[Row]:
    """Real photographs, inverted and rebuilt with their own caption: PSNR in dB."""
    rows = []
    for picture in prompts.pictures():
        if picture.name in ("photo_cat", "photo_astronaut", "photo_coffee"):
            image = read_image(picture.file, model)
            trajectory = inversion.invert(
                model, image, picture.caption, generator=torch.Generator().manual_seed(5), progress=False
            )
            rebuilt = methods.decode(
                model, trajectory, picture.caption, guidance=trajectory.guidance, progress=False
            )
            rows.append(
                Row(f"{picture.name}, inverted and rebuilt: PSNR", metrics.psnr(rebuilt, image).item(), 1)
            )
    return rows


def measure_two_styles(model: models.Model, judge: Judge, count: int, method: str = "epsilon") -> list[Row]:
    """Two styles in one picture with a mask from left to right: does each half show its own?"""
    generator, names, rows = torch.Generator().manual_seed(900_005), list(STYLES), []
    mask = masks.logistic(20)
    for pair in prompts.pairs():
        pictures: Pictures = random_pictures(count, generator)
        images = []
        for index in tqdm(range(count), desc=" / ".join(pair)):
            source, text = draw(pictures[index : index + 1], "plain"), phrase(pictures, index)
            trajectory = inversion.invert(model, source, text, generator=generator, progress=False)
            both = [prompts.prompt(style, text) for style in pair]
            images.append(methods.blend(model, trajectory, both, mask, method=method, progress=False))
        halves = sides(torch.cat(images))
        shown = [
            top(judge.styles(half, pictures), torch.full((count,), names.index(style)))
            for half, style in zip(halves, pair, strict=True)
        ]
        for side, style, right in zip(("left", "right"), pair, shown, strict=True):
            rows.append(
                Row(
                    f"{method}, {' / '.join(pair)}: the {side} side shows {style}",
                    right.mean().item(),
                    count,
                    0.95,
                )
            )
    return rows


def evaluate(folder: Path, judge: Judge, count: int = 90, device=None, log: Callable = lambda rows: None):
    """All rows for the model in `folder`, and its pictures from noise. About 10 minutes for 90 on two
    cores."""
    model = models.load(folder, device=device)
    rows = measure_reading(judge, max(count, 180)) + measure_autoencoder(model.vae, count)
    log(rows)
    more, images = measure_samples(model, judge, count)
    rows += more
    log(rows)
    fewer = max(4, count // 4)
    rows += measure_inversion(model, judge, fewer) + measure_photographs(model)
    rows += measure_two_styles(model, judge, fewer)
    log(rows)
    return rows, images


def write_table(rows: list[Row], path: Path) -> None:
    """Write the rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["measure", "value", "pictures", "bar", "passed"])
        for row in rows:
            writer.writerow(
                [row.name, f"{row.value:.3f}", row.count, row.bar and round(row.bar, 3), row.passed]
            )


def as_markdown(rows: list[Row]) -> str:
    """The rows as a table for the model card."""
    lines = ["| | measured | bar | pictures |", "|---|---|---|---|"]
    for row in rows:
        bar = "" if row.bar is None else f"≥ {row.bar:.2f}" + ("" if row.passed else ", missed")
        lines.append(f"| {row.name} | {row.value:.2f} | {bar} | {row.count} |")
    return "\n".join(lines) + "\n"
