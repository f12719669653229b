"""Measure a model against the bars that it should pass, on images that training never drew.

The world is drawn, so the ground truth in any style is known, and so is what the evaluator CLIP reads in it. Numbers
of the model are shown beside those of the ground truth. The model is measured as users get it, from its folder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill

import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from ... import checkpoints, inversion, masks, methods, metrics, models, prompts
from ...files import write_whole
from ...images import read_image
from ...metrics.classifiers import load_probe, style_shown
from ...plotting import show_grid
from ..statistics import RATE, standard_error
from ..world import SCENES, SIZE, STYLES, Pictures, draw, draw_mix, phrase, random_pictures
from ..world.captions import caption
from .autoencoder import psnr
from .diffusion import sample
from .evaluator import Evaluator, ground_truth, sides, top
from .loop import number_format


@dataclass(frozen=True)
class Row:
    """One measured number: what, its value, how many images, the bar (None: no bar), its standard error."""

    name: str
    value: float
    count: int
    bar: float | None = None
    error: float = math.nan
    at_most: bool = False  # the bar is the most there may be, not the least

    @property
    def passed(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def mean(name: str, values: torch.Tensor, bar: float | None = None, extra: Sequence[float] = ()) -> Row:
    """The mean of values (B,), one per image, with its standard error."""
    error = standard_error(values.tolist(), extra)
    return Row(name, values.float().mean().item(), len(values), bar, error)


def rate(name: str, right: torch.Tensor, bar: float | None = None) -> Row:
    """The mean of `right` (B,): 1 or 0 for each image, or each image's rate over its seeds."""
    return mean(name, right, bar, RATE)


def measure_reading(evaluator: Evaluator, count: int) -> list[Row]:
    """How well the evaluator CLIP reads drawn images."""
    images, pictures, styles = ground_truth(count, 1)
    objects = top(evaluator.objects(images, pictures, styles), pictures.object)
    shown = top(evaluator.styles(images, pictures), styles)
    return [
        rate("evaluator reads the object of drawn images", objects, 0.90),
        rate("evaluator reads the style of drawn images", shown, 0.98),
    ]


def measure_autoencoder(autoencoder, count: int) -> list[Row]:
    """Peak signal-to-noise ratio of drawn images in each style, dB."""
    generator, found = torch.Generator().manual_seed(900_002), {}
    device = next(autoencoder.parameters()).device
    for style in STYLES:
        pictures = random_pictures(max(8, count // len(STYLES)), generator).to(device)
        found[style] = psnr(autoencoder, draw(pictures, style)).cpu()
    every = mean("autoencoder PSNR, all styles", torch.cat(list(found.values())), 25)
    return [every, *(mean(f"autoencoder PSNR, {style}", values, 25) for style, values in found.items())]


def never_seen(styles: torch.Tensor, generator: torch.Generator) -> Pictures:
    """What B images show, whose object and scene were never drawn in these styles (B,) while the generator trained."""
    pictures = random_pictures(len(styles), generator)
    # the scene for which the style is held out; if there are two, either
    scenes = (styles - pictures.object) % len(STYLES)
    other = (scenes + len(STYLES) < len(SCENES)) & (torch.rand(len(styles), generator=generator) < 0.5)
    pictures.scene[:] = scenes + len(STYLES) * other
    return pictures


def measure_samples(model: models.Model, evaluator: Evaluator, count: int) -> tuple[list[Row], Figure]:
    """Measures images from noise for captions that training never used. The figure shows the first 30.

    There are `count` images in all styles in turn, and a third as many plain ones, for the objects. What the evaluator
    CLIP reads in the ground truth of the same captions is shown beside what it reads in these.
    """
    generator, settings = torch.Generator().manual_seed(900_003), model.settings
    styles = torch.cat([torch.arange(count) % len(STYLES), torch.zeros(count // 3, dtype=torch.int64)])
    pictures, names = never_seen(styles, generator), list(STYLES)
    texts = [caption(pictures, index, names[style]) for index, style in enumerate(styles)]
    parts, true = [], []
    for start in tqdm(range(0, len(styles), 30), desc="samples"):
        rows = slice(start, start + 30)
        latents = sample(
            *_networks(model), texts[rows], generator, settings.steps, settings.sampling_guidance
        )
        parts.append(models.decode_latents(model, latents))
        true.append(draw(pictures[rows], styles[rows]))
    images, true = torch.cat(parts), torch.cat(true)
    shown, readable = (top(evaluator.styles(x, pictures), styles) for x in (images, true))
    worst = min(range(len(STYLES)), key=lambda style: shown[styles == style].mean())
    rows = [
        rate("style shown is the style asked", shown[:count], 0.95),
        rate("… in the ground truth", readable[:count]),
        rate(f"… in the worst style, {names[worst]}", shown[styles == worst], 0.85),
    ]
    scores, of_true = (evaluator.objects(x, pictures, styles) for x in (images, true))
    for name, chosen in (("plain", styles == 0), ("stylised", styles != 0)):
        for k, bar in ((1, 0.60), (5, 0.85)):
            right, readable = (top(x, pictures.object, k)[chosen] for x in (scores, of_true))
            rows.append(rate(f"object shown is the object asked, {name}, top {k}", right, bar))
            rows.append(rate("… in the ground truth", readable))
    titles = [fill(f"{phrase(pictures, k)}, {names[styles[k]]}", 24) for k in range(min(count, 30))]
    return rows, show_grid(images[: len(titles)], titles, columns=6, width=1.4)


def measure_inversion(model: models.Model, evaluator: Evaluator, count: int) -> list[Row]:
    """Plain images inverted and decoded with a style's prompt: is the style shown, and is the image kept?"""
    generator, names = torch.Generator().manual_seed(900_004), list(STYLES)
    asked = torch.tensor([1 + k % 4 for k in range(count)])  # the workbook's own four styles in turn
    pictures, settings = never_seen(asked, generator), model.settings
    drawn, fresh, true, rebuilt = [], [], [], []
    for index in tqdm(range(count), desc="inversion"):
        one, style = pictures[index : index + 1], names[asked[index]]
        source, plain = draw(one, "plain"), phrase(pictures, index)
        text = prompts.prompt(style, plain)
        trajectory = inversion.invert(model, source, plain, generator=generator, progress=False)
        drawn.append(methods.decode(model, trajectory, text, progress=False))
        latents = sample(*_networks(model), [text], generator, settings.steps, settings.sampling_guidance)
        fresh.append(models.decode_latents(model, latents))
        true.append(draw(one, style))
        rebuilt.append(models.decode_latents(model, models.encode_image(model, true[-1])))
    drawn, fresh, true, rebuilt = map(torch.cat, (drawn, fresh, true, rebuilt))
    objects = top(evaluator.objects(drawn, pictures, asked), pictures.object)
    rows = [
        rate("inverted, then styled: style as asked", top(evaluator.styles(drawn, pictures), asked), 0.90),
        rate("inverted, then styled: object still read, top 1", objects),
    ]
    for name, measure in (("SSIM", metrics.ssim), ("layout", metrics.layout)):
        kept, without, most = (measure(images, true) for images in (drawn, fresh, rebuilt))
        rows += [
            mean(f"inverted, then styled: {name} of the ground truth in that style", kept),
            mean("… more than from fresh noise", kept - without, 0.10),
            mean("… that the autoencoder alone gives to the ground truth", most),
        ]
    return rows


def measure_photographs(model: models.Model) -> tuple[list[Row], Figure]:
    """Real photographs, inverted and rebuilt with their own caption: PSNR in dB, and the images above each other.

    The inversion is exact, so only the autoencoder and rounding lose anything.
    """
    rows, shown = [], []
    for picture in prompts.pictures():
        if picture.name in ("photo_cat", "photo_astronaut", "photo_coffee"):
            image, noise = read_image(picture.file, model), torch.Generator().manual_seed(5)
            trajectory = inversion.invert(model, image, picture.caption, generator=noise, progress=False)
            guidance = trajectory.guidance
            rebuilt = methods.decode(model, trajectory, picture.caption, guidance=guidance, progress=False)
            value = metrics.psnr(rebuilt, image).item()
            rows.append(Row(f"{picture.name}, inverted and rebuilt: PSNR", value, 1))
            shown.append((image, rebuilt))
    above, below = zip(*shown, strict=True)
    return rows, show_grid([*above, *below], columns=len(shown), row_titles=["photograph", "rebuilt"])


# method: its bar, and whether that is the most there may be
BLENDS = {
    "prompt": (0.10, True),
    "pixel": (None, False),
    "epsilon": (0.95, False),
    "attention": (0.60, False),
    "combined": (0.95, False),
}


def measure_two_styles(model: models.Model, evaluator: Evaluator, count: int, seeds: int = 4) -> list[Row]:
    """Two styles in one image, with a mask from left to right: does each side show its own style?

    The style classifier reads each side where it lies. The evaluator CLIP sees each half mirrored to a whole image.
    What both read in the ground-truth blends of the same images is shown beside it. Each image has several seeds, which
    are averaged before errors are computed over images.
    """
    generator, rows = torch.Generator().manual_seed(900_005), []
    for pair in prompts.pairs():
        numbers = [list(STYLES).index(style) for style in pair]
        # half of the images were never seen in the left style, half never in the right one
        pictures = never_seen(torch.tensor([numbers[k % 2] for k in range(count)]), generator)
        mask = masks.logistic(20)
        drawn = blend_all(model, pictures, pair, mask, seeds, generator)
        blend = draw_mix(pictures, pair, mask.weights(SIZE, SIZE))
        right, by_clip = sides_right(blend, pictures, pair, mask, evaluator)
        name = f"{' / '.join(pair)}, both sides right"
        rows += [rate(f"{name}: ground-truth blend", right), rate("… by the evaluator CLIP", by_clip)]
        each = pictures[torch.arange(count).repeat_interleave(seeds)]
        for method, (bar, at_most) in BLENDS.items():
            found = sides_right(drawn[method], each, pair, mask, evaluator)
            right, by_clip = (one.view(count, seeds) for one in found)
            rows += [
                replace(rate(f"{name}: {method}", right.mean(1), bar), at_most=at_most),
                Row("… with its worst seed", right.mean(0).min().item(), count),
                rate("… by the evaluator CLIP", by_clip.mean(1)),
            ]
    return rows


def blend_all(
    model: models.Model,
    pictures: Pictures,
    pair: tuple[str, str],
    mask: masks.Mask,
    seeds: int,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """The plain images, inverted with several seeds each and blended by each of BLENDS: (B seeds, 3, SIZE, SIZE)."""
    drawn = {method: [] for method in BLENDS}
    for index in tqdm(range(len(pictures)), desc=" / ".join(pair)):
        source, text = draw(pictures[index : index + 1], "plain"), phrase(pictures, index)
        both = [prompts.prompt(style, text) for style in pair]
        for _ in range(seeds):
            trajectory = inversion.invert(model, source, text, generator=generator, progress=False)
            for method, images in drawn.items():
                options = {"one_prompt": prompts.one_prompt(pair, text)} if method == "prompt" else {}
                image = methods.blend(model, trajectory, both, mask, method=method, progress=False, **options)
                images.append(image)
    return {method: torch.cat(images) for method, images in drawn.items()}


def sides_right(
    images: torch.Tensor, pictures: Pictures, pair: tuple[str, str], mask: masks.Mask, evaluator: Evaluator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether both sides show their style: (B,) by the style classifier, and (B,) by the evaluator CLIP."""
    shown = style_shown(load_probe(), images, mask.weights(SIZE, SIZE), pair)["both"].float()
    left, right = (evaluator.styles(half, pictures).argmax(1) for half in sides(images))
    first, second = (list(STYLES).index(style) for style in pair)
    return shown, ((left == first) & (right == second)).float()


def evaluate(
    folder: Path, evaluator: Evaluator, count: int = 90, device=None
) -> tuple[list[Row], dict[str, Figure]]:
    """All rows for the model in `folder`, and figures by name."""
    device = checkpoints.choose_device(device)
    model = checkpoints.load(folder, device=device, dtype=number_format(device))  # that of `autocast`
    rows = measure_reading(evaluator, max(count, 180)) + measure_autoencoder(model.vae, count)
    more, samples = measure_samples(model, evaluator, max(count, len(STYLES)))
    rebuilt, photographs = measure_photographs(model)
    rows += more + measure_inversion(model, evaluator, max(4, count // 4)) + rebuilt
    rows += measure_two_styles(model, evaluator, max(2, count // 8))
    return rows, {"16_samples": samples, "16_photographs": photographs}


def _networks(model: models.Model) -> tuple:
    return model.unet, model.text_encoder, model.tokenizer


def write_table(rows: list[Row], path: Path) -> None:
    """Write the rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [(r.name, r.value, r.error, r.count, r.bar, r.passed) for r in rows]
    table = pd.DataFrame(kept, columns=["measure", "value", "error", "pictures", "bar", "passed"])
    write_whole(path, table.to_csv(index=False, float_format="%.3f").encode())


def as_markdown(rows: list[Row]) -> str:
    """The rows as a table for the model card, each with its standard error."""
    lines = ["| | measured | bar | images |", "|---|---|---|---|"]
    for row in rows:
        sign = "≤" if row.at_most else "≥"
        bar = "" if row.bar is None else f"{sign} {row.bar:.2f}" + ("" if row.passed else ", missed")
        error = "" if math.isnan(row.error) else f" ± {row.error:.2f}"
        lines.append(f"| {row.name} | {row.value:.2f}{error} | {bar} | {row.count} |")
    return "\n".join(lines) + "\n"
