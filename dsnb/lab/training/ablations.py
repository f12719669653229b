"""Trials of the contrastive training in which one thing changes (notebook 18): a second tower, and the statistics."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from ...plotting import Sheet
from ..statistics import sign, student, together

COLORS = {"better": "#1b6ca8", "worse": "#e8743b", "not distinguished": "grey"}


class PatchTower(nn.Module):
    """CLIP's vision transformer on patches of 16 pixels: pixels (B, 3, 128, 128) to features (B, width)."""

    width = 256

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": self.width, "intermediate_size": 1024}
        depth = {"num_hidden_layers": 6, "num_attention_heads": 4}
        self.model = CLIPVisionModel(CLIPVisionConfig(image_size=128, patch_size=16, **sizes, **depth))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels).pooler_output


def compare_with_control(
    trials: pd.DataFrame, measures: Sequence[str], deciding: Sequence[str]
) -> pd.DataFrame:
    """Means of each change, and its difference from the control with an interval.

    The variance of a difference has two parts: over images, and over training seeds. The second is the mean variance of
    all changes, since a few seeds say little about one. All intervals together hold at 95 % (Bonferroni).

    Args:
        trials: one row per `change`, `seed` and `image`, with the measures as columns. "control" is one of the changes.
        measures: the columns to average.
        deciding: those that get a difference and an interval.

    Returns:
        One row per change: the measures, and for each deciding one "NAME less control", "NAME low" and "NAME high".

    Raises:
        ValueError: without a control, or unless all changes have the same two seeds or more.
    """
    by_seed = trials.groupby(["change", "seed"], sort=False)[list(measures)].mean()
    by_image = trials.groupby(["change", "image"], sort=False)[list(measures)].mean()
    seeds, changes = trials.seed.nunique(), list(dict.fromkeys(trials.change))
    if seeds < 2 or len(by_seed) != seeds * len(changes) or "control" not in changes:
        raise ValueError(
            f"trials must have the control, and the same two seeds or more of each change; got {seeds} of {changes}"
        )
    table = by_seed.groupby("change", sort=False).mean()
    questions = table.drop("control")[list(deciding)].count().sum()
    for name in deciding:
        runs = by_seed[name].dropna().groupby("change")
        between_seeds, freedom = runs.var().mean(), (runs.size() - 1).sum()
        each = by_image[name].unstack("change")[changes]
        gaps = each.sub(each["control"], axis=0)
        error = (gaps.var() / gaps.count() + 2 * between_seeds / seeds) ** 0.5
        table[f"{name} less control"] = gaps.mean()
        ends = student(gaps.mean(), error, freedom, together(questions))
        table[f"{name} low"], table[f"{name} high"] = ends
    return table


def verdict(row: Mapping[str, float], name: str) -> str:
    """One of `COLORS`: what the interval of a row of `compare_with_control` says about a measure."""
    found = sign(row[f"{name} low"], row[f"{name} high"])
    return {1: "better", -1: "worse", 0: "not distinguished"}[found]


def plot_changes(table: pd.DataFrame, titles: Mapping[str, str]) -> Sheet:
    """Differences from the control with their intervals, one panel per measure.

    Args:
        table: from `compare_with_control`.
        titles: the deciding measures, and the title of each panel.

    Returns:
        The figure.
    """
    figure = Sheet(9, 2.8)
    changes = table.drop("control").iloc[::-1]
    for panel, (name, title) in zip(
        figure.subplots(1, len(titles), sharey=True), titles.items(), strict=True
    ):
        colors = [COLORS[verdict(row, name)] for row in changes.to_dict("records")]
        panel.hlines(changes.index, changes[f"{name} low"], changes[f"{name} high"], colors)
        panel.scatter(changes[f"{name} less control"], changes.index, color=colors)
        panel.axvline(0, color="grey", lw=0.8)
        panel.locator_params(axis="x", nbins=6)
        panel.set_title(title, fontsize=9)
    figure.subplots_adjust(0.1, 0.12, 0.98, 0.9, wspace=0.06)
    return figure
