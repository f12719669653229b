"""Draws the five diagrams of the notebooks: `python docs/diagrams.py` writes figures/diagram_*.svg.

A diagram is 5 inches wide, so that its smallest text is readable on a phone. Lengths are inches, y points upwards.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

FIGURES = Path(os.environ.get("DSNB_FIGURES") or Path(__file__).resolve().parents[1] / "figures")
DATA, NETWORK, CALCULATION = "#ffffff", "#f6e7b4", "#e3e8ee"  # what a box holds
FIRST, SECOND = "#1b6ca8", "#e8743b"  # the two styles, as in every figure
INK, QUIET = "#222222", "#666666"
WIDTH = 5.0
LOOK = {
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "svg.fonttype": "path",
    "svg.hashsalt": "dsnb",
}


def board(height: float) -> Axes:
    """White axes of the diagram's size, one unit per inch, without a frame."""
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, height))
    axes.axis("off")
    return axes


def box(
    axes: Axes, x: float, y: float, text: str, width=1.2, height=0.42, fill=DATA, edge=INK, size=9
) -> None:
    """A rounded box with its centre at (x, y)."""
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.07"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=fill, edgecolor=edge, linewidth=1.1)
    )
    label(axes, x, y, text, size=size, color=INK)


def label(
    axes: Axes, x: float, y: float, text: str, size=9, color=QUIET, ha="center", weight="normal"
) -> None:
    """Text with its middle at height y."""
    axes.text(x, y, text, size=size, color=color, ha=ha, va="center", linespacing=1.3, weight=weight)


def arrow(axes: Axes, *points: tuple[float, float], color=INK, dashed=False) -> None:
    """A straight line through all points, with a head at the last one."""
    line = {"color": color, "linewidth": 1.2, "linestyle": (0, (3, 2)) if dashed else "-"}
    axes.plot(*zip(*points, strict=True), solid_capstyle="round", **line)
    head = FancyArrowPatch(
        *points[-2:], arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0, color=color, linewidth=0
    )
    axes.add_patch(head)


def mask(axes: Axes, x: float, y: float, side: float, cells: int, second=False) -> None:
    """The weights of one style at a resolution of `cells`, left to right, as a square with its centre at (x, y)."""
    color = matplotlib.colors.to_rgb(SECOND if second else FIRST)
    for column in range(cells):
        weight = 1 / (1 + 2.718 ** (12 * ((column + 0.5) / cells - 0.5)))
        weight = 1 - weight if second else weight
        shade = [1 - weight * (1 - part) for part in color]
        corner = (x - side / 2 + side * column / cells, y - side / 2)
        axes.add_patch(Rectangle(corner, side / cells, side, facecolor=shade, edgecolor=shade, linewidth=0.2))
    for line in range(1, cells):
        at = side * line / cells - side / 2
        axes.plot([x + at] * 2, [y - side / 2, y + side / 2], color="white", linewidth=0.4)
        axes.plot([x - side / 2, x + side / 2], [y + at] * 2, color="white", linewidth=0.4)
    axes.add_patch(
        Rectangle((x - side / 2, y - side / 2), side, side, fill=False, edgecolor=color, linewidth=1)
    )


def pipeline() -> Axes:
    """Latent diffusion: what happens between a prompt and an image."""
    axes = board(4.3)
    box(axes, 0.85, 3.95, "prompt")
    box(axes, 2.5, 3.95, "text encoder", fill=NETWORK)
    box(axes, 4.15, 3.95, "one vector\nper token")
    arrow(axes, (1.45, 3.95), (1.9, 3.95))
    arrow(axes, (3.1, 3.95), (3.55, 3.95))
    axes.add_patch(
        Rectangle(
            (1.62, 1.62),
            3.28,
            1.72,
            facecolor="#f7f7f7",
            edgecolor=QUIET,
            linewidth=0.8,
            linestyle=(0, (3, 2)),
        )
    )
    label(axes, 1.74, 3.2, "repeat for $t = T, …, 1$", ha="left")
    box(axes, 0.75, 2.55, "noise $x_T$", width=1.0)
    box(axes, 2.35, 2.55, "latent $x_t$", width=1.05)
    box(axes, 4.15, 2.55, "UNet", fill=NETWORK)
    box(axes, 4.15, 1.95, r"noise $\epsilon_\theta(x_t, t)$", width=1.3)
    box(axes, 2.35, 1.95, "sampler step", width=1.2, fill=CALCULATION)
    arrow(axes, (1.25, 2.55), (1.82, 2.55))
    arrow(axes, (2.88, 2.55), (3.55, 2.55))
    arrow(axes, (4.15, 3.74), (4.15, 2.77))
    arrow(axes, (4.15, 2.34), (4.15, 2.17))
    arrow(axes, (3.5, 1.95), (2.96, 1.95))
    arrow(axes, (2.35, 2.17), (2.35, 2.33))
    label(axes, 2.45, 2.25, "$x_{t-1}$", ha="left", color=INK)
    arrow(axes, (2.35, 1.74), (2.35, 1.17))
    box(axes, 2.35, 0.95, "latent $x_0$", width=1.05)
    box(axes, 4.15, 0.95, "decoder", fill=NETWORK)
    arrow(axes, (2.88, 0.95), (3.55, 0.95))
    box(axes, 4.15, 0.3, "image")
    arrow(axes, (4.15, 0.74), (4.15, 0.52))
    box(axes, 0.75, 0.95, "encoder", width=1.0, fill=NETWORK)
    box(axes, 0.75, 0.3, "own image", width=1.0)
    arrow(axes, (0.75, 0.52), (0.75, 0.73), dashed=True)
    arrow(axes, (1.25, 0.95), (1.82, 0.95), dashed=True)
    label(axes, 1.45, 0.3, "dashed: for an inversion", ha="left", size=8.5)
    return axes


def trajectory() -> Axes:
    """A trajectory: the noise of each step is recorded on the way to the image, and used again with a new prompt."""
    axes, xs = board(4.15), (0.45, 1.65, 2.85, 4.4)
    label(axes, 0.1, 3.98, "1  Record, with the image's own caption", ha="left", color=INK, weight="bold")
    label(axes, 0.1, 3.68, r"$z_t = (x_{t-1} - \mu_t)\,/\,\sigma_t$", ha="left", color=INK)
    label(axes, 0.1, 0.55, "2  Decode: the same noise, another prompt", ha="left", color=INK, weight="bold")
    label(axes, 0.1, 0.24, r"$x_{t-1} = \mu_t(x_t, \mathrm{prompt}) + \sigma_t\, z_t$", ha="left", color=INK)
    for y, edge, image in ((3.15, INK, "image $x_0$"), (1.1, FIRST, "new image")):
        for x, name in zip(xs, ("$x_T$", "$x_{T-1}$", "$x_{T-2}$", image), strict=True):
            box(axes, x, y, name, width=0.62 if x < 4 else 0.95, edge=edge)
        for left, right in ((0.76, 1.34), (1.96, 2.54), (3.16, 3.36), (3.63, 3.92)):
            arrow(axes, (left, y), (right, y), color=edge)
        label(axes, 3.5, y, "…", color=edge)
    tray = Rectangle((0.06, 1.84), 4.88, 0.58, facecolor="#f7f7f7", edgecolor=QUIET, linewidth=0.8)
    axes.add_patch(tray)
    for x, name in ((0.45, "$x_T$"), (1.05, "$z_T$"), (2.25, "$z_{T-1}$"), (3.77, "$z_1$")):
        arrow(axes, (x, 2.94 if x == 0.45 else 3.15), (x, 2.31), dashed=True)
        arrow(axes, (x, 1.95), (x, 1.32 if x == 0.45 else 1.1), color=FIRST)
        box(axes, x, 2.13, name, width=0.5, height=0.36, fill=CALCULATION)
    label(axes, 3.02, 2.13, "…")
    label(axes, 4.48, 2.13, "trajectory", color=INK, size=8.5)
    return axes


def epsilon() -> Axes:
    """The epsilon mask: the guided predictions of all styles are blended before each sampler step."""
    axes = board(4.6)
    box(axes, 2.5, 4.3, "latent $x_t$", width=1.1)
    box(axes, 2.5, 3.55, "UNet, one call with three samples", width=4.5, fill=NETWORK)
    arrow(axes, (2.5, 4.08), (2.5, 3.77))
    columns = (
        (1.1, FIRST, "prompt 1", r"$\epsilon_1$"),
        (2.5, QUIET, "empty prompt", r"$\epsilon_\varnothing$"),
    )
    for x, color, text, name in (*columns, (3.9, SECOND, "prompt 2", r"$\epsilon_2$")):
        arrow(axes, (x, 3.33), (x, 3.07), color=color)
        box(axes, x, 2.85, f"{text}: {name}", width=1.25, edge=color)
    for x, color, i in ((1.1, FIRST, 1), (3.9, SECOND, 2)):
        arrow(axes, (x, 2.63), (x, 2.35), color=color)
        arrow(axes, (2.5, 2.63), (2.5, 2.13), (x + (0.92 if i == 1 else -0.92), 2.13), color=QUIET)
        rule = rf"$\tilde\epsilon_{i} = \epsilon_\varnothing + s\,(\epsilon_{i} - \epsilon_\varnothing)$"
        box(axes, x, 2.13, rule, width=1.82, fill=CALCULATION, edge=color, size=8.5)
        arrow(axes, (x, 1.91), (x, 1.63), color=color)
        mask(axes, x, 1.32, 0.56, 14, second=i == 2)
        at, ha = (x - 0.36, "right") if i == 1 else (x + 0.36, "left")
        label(axes, at, 1.32, rf"$\times\ M_{i}$", color=color, ha=ha, size=10)
        arrow(
            axes,
            (x + (0.28 if i == 1 else -0.28), 1.32),
            (2.5 + (-0.72 if i == 1 else 0.72), 1.32),
            color=color,
        )
    box(
        axes,
        2.5,
        1.32,
        r"$\tilde\epsilon = \sum_i M_i\,\tilde\epsilon_i$",
        width=1.44,
        height=0.5,
        fill=CALCULATION,
        size=10,
    )
    arrow(axes, (2.5, 1.07), (2.5, 0.82))
    box(axes, 2.5, 0.6, "sampler step", width=1.3, fill=CALCULATION)
    arrow(axes, (3.15, 0.6), (3.75, 0.6))
    box(axes, 4.25, 0.6, "$x_{t-1}$", width=1.0)
    arrow(axes, (4.25, 0.39), (4.25, 0.14), (0.1, 0.14), (0.1, 4.3), (1.95, 4.3), dashed=True)
    label(axes, 2.5, 0.26, "next step", size=8.5)
    return axes


def unet() -> Axes:
    """The bundled UNet: where its cross-attention layers are, and the mask that each of them reads."""
    axes = board(4.5)
    rows = ((3.35, 16, "16 × 16"), (2.15, 8, "8 × 8"), (0.95, 4, "4 × 4"))
    label(axes, 0.78, 4.25, "down", color=INK, weight="bold")
    label(axes, 3.0, 4.25, "up", color=INK, weight="bold")
    label(axes, 4.4, 4.2, "mask $M_1$ at\nthis resolution", size=8.5, color=FIRST)
    for y, cells, name in rows:
        mask(axes, 4.4, y + 0.05, 0.8, cells)
        label(axes, 4.4, y - 0.48, name, color=INK)
    for y, count in ((3.35, 2), (2.15, 2)):
        box(axes, 0.78, y + 0.2, "convolutions", width=1.3, height=0.34, size=8.5)
        box(axes, 0.78, y - 0.2, "1 × attention", width=1.3, height=0.34, fill=NETWORK, size=8.5)
        box(axes, 3.0, y - 0.2, "convolutions", width=1.3, height=0.34, size=8.5)
        box(axes, 3.0, y + 0.2, f"{count} × attention", width=1.3, height=0.34, fill=NETWORK, size=8.5)
        arrow(axes, (1.43, y - 0.2), (2.35, y - 0.2), color=QUIET)
        label(axes, 1.89, y - 0.08, "skip", size=8.5)
        arrow(axes, (0.78, y - 0.37), (0.78, y - 0.81))
        arrow(axes, (3.0, y - 0.81), (3.0, y - 0.37))
    box(axes, 0.78, 1.17, "convolutions", width=1.3, height=0.34, size=8.5)
    box(axes, 3.0, 1.17, "convolutions", width=1.3, height=0.34, size=8.5)
    arrow(axes, (1.43, 1.17), (2.35, 1.17), color=QUIET)
    label(axes, 1.89, 1.29, "skip", size=8.5)
    box(axes, 1.89, 0.5, "middle: 1 × attention", width=1.75, height=0.34, fill=NETWORK, size=8.5)
    arrow(axes, (0.78, 1.0), (0.78, 0.5), (1.01, 0.5))
    arrow(axes, (2.77, 0.5), (3.0, 0.5), (3.0, 1.0))
    label(axes, 0.78, 4.02, "latent $x_t$", color=INK, size=8.5)
    label(axes, 3.0, 4.02, r"noise $\epsilon_\theta$", color=INK, size=8.5)
    arrow(axes, (0.78, 3.93), (0.78, 3.73))
    arrow(axes, (3.0, 3.73), (3.0, 3.93))
    label(axes, 2.5, 0.12, "attention: self-attention, then cross-attention with the text", size=8.5)
    return axes


def attention() -> Axes:
    """One cross-attention layer with two texts, and the two layers that regional context adds."""
    axes = board(4.9)
    label(axes, 0.1, 4.74, "Cross-attention with two texts", ha="left", color=INK, weight="bold")
    box(axes, 1.05, 4.3, "text 1", width=0.9, edge=FIRST)
    box(axes, 2.5, 4.3, "image tokens $x$", width=1.35)
    box(axes, 3.95, 4.3, "text 2", width=0.9, edge=SECOND)
    box(axes, 2.5, 3.62, "query $Q$", width=0.95, height=0.36)
    arrow(axes, (2.5, 4.08), (2.5, 3.81))
    for x, color, i in ((1.05, FIRST, 1), (3.95, SECOND, 2)):
        inner = 1 if i == 1 else -1
        box(axes, x, 3.62, f"$K_{i}$, $V_{i}$", width=0.9, height=0.36, edge=color)
        arrow(axes, (x, 4.08), (x, 3.81), color=color)
        arrow(axes, (x, 3.44), (x, 3.17), color=color)
        arrow(axes, (2.5, 3.44), (2.5, 2.93), (x + inner * 0.96, 2.93))
        rule = rf"softmax$(Q K_{i}^\top / \sqrt{{d}})\,V_{i}$"
        box(axes, x, 2.93, rule, width=1.84, height=0.46, fill=CALCULATION, edge=color, size=8.5)
        arrow(axes, (x, 2.7), (x, 2.46), color=color)
        mask(axes, x, 2.17, 0.54, 14, second=i == 2)
        label(
            axes,
            x - inner * 0.34,
            2.17,
            rf"$\times\ M_{i}$",
            color=color,
            ha="right" if i == 1 else "left",
            size=10,
        )
        arrow(axes, (x + inner * 0.27, 2.17), (2.5 - inner * 0.46, 2.17), color=color)
    box(axes, 2.5, 2.17, "sum = output", width=0.92, height=0.5, fill=CALCULATION, size=8.5)
    axes.plot([0.1, 4.9], [1.62, 1.62], color="#bbbbbb", linewidth=0.8)
    label(axes, 0.1, 1.4, "Regional context: two more kinds of layers", ha="left", color=INK, weight="bold")
    box(axes, 1.25, 0.95, "group normalisation", width=2.2, height=0.36, fill=NETWORK)
    box(axes, 3.75, 0.95, "self-attention", width=2.2, height=0.36, fill=NETWORK)
    label(
        axes,
        1.25,
        0.45,
        "mean $\\mu_i$ and deviation $\\sigma_i$\nof each region by itself,\nmixed by $M_i$",
        color=INK,
        size=8.5,
    )
    label(
        axes,
        3.75,
        0.45,
        "score from $p$ to $p'$\n$+\\ \\kappa\\,\\log(\\Sigma_i\\,M_i(p)\\,M_i(p')+10^{-3})$:\n"
        "its own region counts more",
        color=INK,
        size=8.5,
    )
    return axes


DIAGRAMS = (pipeline, trajectory, epsilon, unet, attention)


def main(names: Sequence[str] = ()) -> None:
    """Draw the named diagrams, or all."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(LOOK):
        for draw in DIAGRAMS:
            if not names or draw.__name__ in names:
                path = FIGURES / f"diagram_{draw.__name__}.svg"
                draw().figure.savefig(path, metadata={"Date": None, "Creator": "docs/diagrams.py"})


if __name__ == "__main__":
    main()
