"""`dsnb bench`: measures what everything costs; the notebook calls `run`."""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch

from ... import checks
from ...checkpoints import choose_device, choose_dtype
from ...plotting import figures_folder
from .measure import COLUMNS, Bench, header
from .report import csv_path, table, write_csv, write_report
from .sections import MODELS, SECTIONS


def run(
    sections: Sequence[str] | None = None,
    *,
    models: Sequence[str] = ("bundled",),
    styles: Sequence[int] = (2, 3, 5),
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    repeats: int = 5,
    steps: int | None = None,
    compiled: bool = False,
    progress: bool = True,
) -> tuple[dict[str, str], pd.DataFrame]:
    """Measures sections of the table.

    Args:
        sections: any of SECTIONS; default all.
        models: any of "bundled", "SD 1.5", "SDXL"; the last two are the real UNets with random weights.
        styles: numbers of prompts, each at least 2.
        device: default the best there is.
        dtype: default the fastest that the device multiplies natively.
        repeats: of each measurement.
        steps: denoising steps per image; default all for the bundled model, and one for the others. The
            times of `pictures` are scaled to the steps of a whole image.
        compiled: measure `torch.compile` too, which takes minutes.
        progress: show bars.

    Returns:
        The header, and a row per number with the columns section, case, variant, metric, value, spread, unit.

    Raises:
        ValueError: for an unknown section or model, and for numbers out of range.
        TypeError: for something that is not a whole number.
    """
    for name, given, known in (("sections", sections or (), SECTIONS), ("models", models, MODELS)):
        for word in given:
            checks.one_of(name, word, known)
    checks.integer("repeats", repeats, 1)
    checks.integer("styles", min(styles, default=0), 2)
    if steps is not None:
        checks.integer("steps", steps, 1, 500)  # half of the steps that the models were trained with
    device = choose_device(device)
    dtype = dtype or choose_dtype(device)
    bench = Bench(device, dtype, repeats, tuple(models), tuple(styles), steps, compiled, progress)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        head = header(bench)
        for name in sections or SECTIONS:
            SECTIONS[name](bench)
    return head, pd.DataFrame(bench.rows, columns=list(COLUMNS))


def main(argv: Sequence[str] | None = None) -> int:
    """The command: measures, prints the tables, and writes them into a folder."""
    p = argparse.ArgumentParser("dsnb bench", description="Measure what everything costs.")
    add = p.add_argument
    add("--sections", nargs="+", help=f"of {' '.join(SECTIONS)}; default: all")
    add("--models", nargs="+", default=MODELS, help=f"of {', '.join(MODELS)}; default: all")
    add("--styles", nargs="+", type=int, default=(2, 3, 5), help="how many; default: 2 3 5")
    add("--device", help="cpu, cuda, …; default: the best there is")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the fastest")
    add("--repeats", type=int, default=5)
    add("--steps", type=int, help="denoising steps per image; default: all, or 1 of a large model's")
    add("--compile", action="store_true", help="measure torch.compile too, which takes minutes")
    add("--output", type=Path, help="folder of the tables and figures; default: runs/bench")
    add("--redraw", action="store_true", help="measure nothing: write 15_cost.md and the figures anew from the CSV "
        "files in --output, by default the repository's figures/")  # fmt: skip
    a = p.parse_args(argv)
    try:
        folder = a.output or (figures_folder() if a.redraw else Path("runs", "bench"))
        if a.redraw and not any(folder.glob("15_cost_*.csv")):
            raise FileNotFoundError(f"--redraw needs a 15_cost_*.csv in {str(folder)!r}, which has none")
        if not a.redraw:
            folder.mkdir(parents=True, exist_ok=True)
            options = {"models": a.models, "styles": a.styles, "repeats": a.repeats, "steps": a.steps}
            dtype = a.dtype and getattr(torch, a.dtype)
            head, rows = run(a.sections, **options, device=a.device, dtype=dtype, compiled=a.compile)
            print(*(f"{key}: {value}" for key, value in head.items()), sep="\n")
            for section in rows.section.unique():
                print(f"\n{section}\n\n{table(rows, section).to_markdown()}")
            write_csv(csv_path(folder, "cpu" if head["kind"] == "cpu" else "cuda"), head, rows)
        print(*write_report(folder), sep="\n")
    except (ValueError, OSError, RuntimeError) as error:
        p.exit(2, f"{error}\n")
    return 0
