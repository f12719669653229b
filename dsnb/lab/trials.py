"""Trials on validation images: what lets attention interpolation keep both styles, and which guidance suits a method.

`python -m dsnb.lab.trials` runs them and writes one row per image to 10_trials.csv. Choices are made here; notebook 14
reports on test images, which no trial sees.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import checks, masks, metrics, prompts
from ..attention import blend_cross_attention, layer_level
from ..checkpoints import load
from ..epsilon import Predictions, guidance_per_style
from ..files import write_whole
from ..inversion import Trajectory, invert
from ..job import decode_trajectory, mixed_rows
from ..masks import Mask
from ..methods import ALONE, MIXED, UNCONDITIONAL
from ..metrics.classifiers import StyleClassifier, load_probe, style_shown
from ..metrics.networks import resize
from ..models import Model, decode_latents, encode_prompts, predict
from ..plotting import STYLE_COLORS, Sheet, figures_folder
from ..regional import regional_context
from .statistics import DIFFERENCE, RATE, interval, sign
from .world import draw, phrase, split


@dataclass(frozen=True)
class Trial:
    """One way to draw two styles: the epsilon mask while progress < switch, then attention interpolation.

    Attributes:
        question: trials with the same question are compared with each other.
        name: unique within the question.
        switch: 0 is attention interpolation, 1 the epsilon mask.
        norm: whether group normalisation is regional.
        strength: of regional self-attention; 0 is plain.
        level: the only resolution that is regional, counted in halvings of the latents; None for all of them.
        conditional: whether the unconditional row stays plain.
        span: the progress at which the regional context starts and ends.
        guidance: for both styles.
    """

    question: str
    name: str
    switch: float = 0.0
    norm: bool = False
    strength: float = 0.0
    level: int | None = None
    conditional: bool = False
    span: tuple[float, float] = (0.0, 1.0)
    guidance: float = 5.0


def default_trials(levels: int = 3) -> list[Trial]:
    """The questions of notebook 10; `levels` is the number of the UNet's resolutions."""
    plain = Trial("which layers", "attention")
    both = replace(plain, name="both", norm=True, strength=1.0)
    combined = Trial("which switch", "switch 0.5", switch=0.5)
    epsilon = Trial("which switch", "switch 1", switch=1.0)
    trials = [
        plain,
        both,
        replace(plain, name="normalisation", norm=True),
        replace(plain, name="self-attention", strength=1.0),
        *(replace(both, question="how strong", name=f"strength {k:g}", strength=k) for k in (0.3, 3.0, 10.0)),
        replace(both, question="which rows", name="conditional row", conditional=True),
        replace(both, question="when", name="first half", span=(0.0, 0.5)),
        replace(both, question="when", name="second half", span=(0.5, 1.0)),
    ]
    for k in range(levels):
        trials.append(replace(both, question="which resolution", name=f"only 1/{2**k}", level=k))
    for switch in (0.125, 0.25, 0.5):
        trials.append(replace(combined, name=f"switch {switch:g}", switch=switch))
        regional = {"norm": True, "strength": 1.0, "span": (switch, 1.0), "switch": switch}
        trials.append(replace(combined, name=f"switch {switch:g}, then regional", **regional))
    trials += [epsilon, replace(epsilon, name="switch 1, regional", norm=True, strength=1.0)]
    methods = {"attention": plain, "regional": both, "combined": combined, "epsilon": epsilon}
    for name, trial in methods.items():
        for guidance in (3.0, 5.0, 8.0):
            asked = {"question": "which guidance", "name": f"{name}, {guidance:g}", "guidance": guidance}
            trials.append(replace(trial, **asked))
    return trials


def draw_trial(
    model: Model, trajectory: Trajectory, texts: Sequence[str], mask: Mask, trial: Trial
) -> Tensor:
    """The images of a trajectory as a trial draws them.

    Args:
        model: one with a UNet.
        trajectory: of B images.
        texts: one prompt per style.
        mask: where each style goes; not timed.
        trial: how to draw.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    contexts, size = encode_prompts(model, ["", *texts]), tuple(trajectory.x_T.shape[-2:])
    guidance = guidance_per_style(trial.guidance, mask.n, model.device)
    weights, blocks = mask.weights(*size).to(model.device), len(model.unet.config.down_block_types)

    def regional_layer(name: str) -> bool:
        level = 0 if name.startswith("conv_") else layer_level(name, blocks)
        return (trial.norm or name.endswith("attn1")) and trial.level in (None, level)

    context = nullcontext()
    if trial.norm or trial.strength:
        options = {"layers": regional_layer, "strength": trial.strength}
        context = regional_context(model.unet, mask, size, **options)
    with blend_cross_attention(model.unet, contexts.text, mask, size) as hook, context as regions:

        def call(x_t, t, progress, roles, rows, regional):
            if regions is not None:
                regions.at(progress, on=regional)
            hook.at(progress, [role for role in roles for _ in range(len(x_t))])
            outputs = predict(model, x_t.repeat(len(roles), 1, 1, 1), t, rows.repeat(len(x_t)))
            return outputs.unflatten(0, (len(roles), -1))

        def network(x_t, t, progress):
            blends = progress < trial.switch  # the predictions; later the attentions mix the prompts
            styles = [ALONE + i for i in range(mask.n)] if blends else [MIXED]
            rows = contexts if blends else mixed_rows(contexts, weights)
            regional = trial.span[0] <= progress < trial.span[1]
            if trial.conditional:
                uncond = call(x_t, t, progress, [UNCONDITIONAL], rows[:1], False)[0]
                cond = call(x_t, t, progress, styles, rows[1:], regional)
            else:
                uncond, *cond = call(x_t, t, progress, [UNCONDITIONAL, *styles], rows, regional)
                cond = torch.stack(cond)
            return Predictions(uncond, cond.expand(mask.n, *x_t.shape), weights, guidance)

        latents = decode_trajectory(model, trajectory, network, progress=False)
    return decode_latents(model, latents)


def run_trials(
    model: Model,
    trials: Sequence[Trial],
    *,
    images: int = 12,
    seeds: int = 4,
    steps: int = 12,
    sharpness: float = 20.0,
    classifier: StyleClassifier | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Runs every trial on the same images, with both pairs of styles and several seeds.

    Args:
        model: one with a UNet.
        trials: what to try.
        images: how many validation images.
        seeds: inversions of each image, with the seeds 0, 1, ...
        steps: of the inversion.
        sharpness: of the logistic mask.
        classifier: the style classifier; default the workbook's linear probe.
        progress: whether to show a bar.

    Yields:
        One row per trial, image, pair and seed: `both` (1 where each side shows its style, else 0), `side` (the mean
        probability of the right style on its side), `layout` and `seam`, see `metrics`.
    """
    classifier, mask = classifier or load_probe(), masks.logistic(sharpness)
    shows = split("validation", images)
    sources = resize(draw(shows, "plain"), model.image_size)
    weights = mask.weights(*sources.shape[-2:])
    captions = [phrase(shows, k) for k in range(images)]
    inverted = []
    for source, caption in zip(sources, captions, strict=True):
        noise = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
        batch = source.expand(seeds, -1, -1, -1)
        inverted.append(invert(model, batch, caption, steps=steps, generator=noise, progress=False))
    for trial in tqdm(trials, desc="trials", disable=not progress):
        for k, caption in enumerate(captions):
            for pair in prompts.pairs():
                texts = [prompts.prompt(style, caption) for style in pair]
                drawn = draw_trial(model, inverted[k], texts, mask, trial)
                shown = style_shown(classifier, drawn, weights, pair)
                measured = {
                    "both": shown["both"],
                    "side": shown["side"].mean(1),
                    "layout": metrics.layout(drawn, sources[k].expand_as(drawn)),
                    "seam": metrics.seam(drawn, weights),
                }
                head = {"question": trial.question, "trial": trial.name, "image": k, "pair": " / ".join(pair)}
                for seed in range(seeds):
                    values = {name: value[seed].item() for name, value in measured.items()}
                    yield head | {"seed": seed} | values


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Each trial's rate in the rows of `run_trials`, with its interval over images and its spread over seeds.

    Returns:
        One row per trial: `both`, its 95 % interval over images from `low` to `high`, the `worst` and the
        `best` seed, the rate of each pair, and the means of `side`, `layout` and `seam`.
    """
    table = []
    for (question, name), part in rows.groupby(["question", "trial"], sort=False):
        low, high = np.clip(interval(part.groupby("image").both.mean(), extra=RATE), 0, 1)
        by_seed = part.groupby("seed").both.mean()
        spread = {"low": low, "high": high, "worst": by_seed.min(), "best": by_seed.max()}
        means = part[["both", "side", "layout", "seam"]].mean().to_dict()
        pairs = part.groupby("pair").both.mean().to_dict()
        table.append({"question": question, "trial": name} | means | spread | pairs)
    return pd.DataFrame(table)


def differences(rows: pd.DataFrame, control: str) -> pd.DataFrame:
    """Each trial's rate minus the control's on the same images, pairs and seeds.

    A difference within an image does not depend on how hard the image is. Two values are added before its interval is
    computed, see `statistics.DIFFERENCE`. Otherwise a few equal values would give an interval of width 0.

    Args:
        rows: of `run_trials`, the control's among them.
        control: the name of a trial.

    Returns:
        One row per other trial: the mean `difference` of `both`, its 95 % interval over images from `low` to
        `high`, and the `verdict`: "higher" or "lower" where the interval excludes 0, else "not decided". Fewer than
        `statistics.LEAST` images decide nothing.

    Raises:
        ValueError: `rows` has no trial of that name.
    """
    checks.one_of("control", control, list(rows.trial.unique()))
    rates = rows.groupby(["question", "trial", "image"], sort=False).both.mean().unstack()
    base = rates.xs(control, level="trial").iloc[0]
    table = []
    for (question, name), gain in rates.drop(control, level="trial").sub(base).iterrows():
        low, high = interval(gain, extra=DIFFERENCE)
        verdict = {1: "higher", -1: "lower", 0: "not decided"}[sign(low, high, len(gain))]
        head = {"question": question, "trial": name}
        table.append(head | {"difference": gain.mean(), "low": low, "high": high, "verdict": verdict})
    return pd.DataFrame(table)


def show_rates(table: pd.DataFrame) -> Sheet:
    """Each trial of a `summarize` table in a line: its rate, its interval over images, its worst and best seed."""
    figure = Sheet(6.0, 0.7 + 0.26 * len(table))
    axes, lines = figure.subplots(), range(len(table), 0, -1)
    axes.hlines(lines, table.low, table.high, color=STYLE_COLORS[0], linewidth=6, alpha=0.3)
    for seed in ("worst", "best"):
        axes.plot(table[seed], lines, "|", color="0.4", markersize=9)
    axes.plot(table.both, lines, "o", color=STYLE_COLORS[0])
    axes.set_yticks(lines, table.trial, fontsize=8)
    axes.set(xlim=(-0.02, 1.02), ylim=(0.4, len(table) + 0.6))
    told = "rate of images with both styles (band: 95 % interval; marks: worst and best seed)"
    axes.set_xlabel(told, fontsize=8)
    axes.grid(axis="x", color="0.9")
    figure.tight_layout()
    return figure


def main(argv: Sequence[str]) -> int:
    """The command line; prints its own `--help`."""
    parser = argparse.ArgumentParser(prog="python -m dsnb.lab.trials", description=__doc__)
    parser.add_argument("--model", default=None, help="hub id, folder or file; default: the bundled model")
    parser.add_argument("--images", type=int, default=12, help="validation images")
    parser.add_argument("--seeds", type=int, default=4, help="inversions of each image")
    parser.add_argument("--steps", type=int, default=12, help="denoising steps")
    parser.add_argument("--questions", default="", help="only these, with commas between them")
    parser.add_argument("--output", type=Path, default=None, help="default: 10_trials.csv among the figures")
    given = parser.parse_args(argv)
    model = load(given.model)
    wanted = [part.strip() for part in given.questions.split(",") if part.strip()]
    trials = default_trials(len(model.unet.config.down_block_types))
    settings = {"images": given.images, "seeds": given.seeds, "steps": given.steps}
    try:
        for question in wanted:
            checks.one_of("--questions", question, dict.fromkeys(trial.question for trial in trials))
        most = model.scheduler.config.num_train_timesteps // 2
        for name, limit in (("images", None), ("seeds", None), ("steps", most)):
            checks.integer(f"--{name}", settings[name], 1, limit)
    except ValueError as error:
        parser.error(str(error))
    trials = [trial for trial in trials if not wanted or trial.question in wanted]
    path, rows = given.output or figures_folder() / "10_trials.csv", []
    path.parent.mkdir(parents=True, exist_ok=True)
    per_trial = given.images * given.seeds * len(prompts.pairs())
    for row in run_trials(model, trials, **settings):
        rows.append(row)
        if len(rows) % per_trial == 0:  # a run that is stopped keeps the trials it has finished
            write_whole(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.4g").encode())
    print(summarize(pd.DataFrame(rows)).round(2).to_string(index=False))
    print(f"{len(rows)} rows in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
