"""Measure what everything costs: one code path for `python -m dsnb bench` and for the notebook."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from ...checkpoints import choose_device, choose_dtype
from .harness import CLOCKS, Bench, Options, Row, header
from .report import kind, save, tables
from .sections import MODELS, SECTIONS

DTYPES = ("float32", "bfloat16", "float16")
TABLE = {"models": tuple(MODELS), "styles": (2, 3, 5)}  # what the table in figures/ holds


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
    threads: int | None = None,
    clock: str = "wall",
    progress: bool = True,
) -> tuple[dict[str, str], list[Row]]:
    """Measures the named sections (default: all of SECTIONS) -> the header and the rows.

    models: any of "bundled", "SD 1.5", "SDXL"; the last two are the real UNets, random weights. styles: the
    numbers of prompts. repeats: of each measurement (of SDXL on a CPU at most 2, and of its pictures alone). steps:
    denoising steps per picture (default: all for the bundled model, 1 for the others, scaled up). compiled: also
    measure `torch.compile`, which takes minutes. threads: of the CPU (default: as torch chose). clock: "wall", or
    "processor": the time the CPU worked for this process, fair on a busy machine with threads=1.
    Raises ValueError for an unknown section, model or clock, and for numbers below 1.
    """
    for name, given, known in (
        ("sections", sections or (), SECTIONS),
        ("models", models, MODELS),
        ("clock", (clock,), CLOCKS),
    ):
        unknown = [x for x in given if x not in known]
        if unknown:
            raise ValueError(f"{name} must be of {', '.join(known)}; got {', '.join(unknown)}")
    counts = {"repeats": repeats, "styles": min(styles, default=0), "steps": steps, "threads": threads}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    device = choose_device(device)
    bench = Bench(device, dtype or choose_dtype(device), repeats, [], progress, clock)
    options = Options(tuple(models), tuple(styles), steps, compiled)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            head = header(bench)
            for name in sections or SECTIONS:
                SECTIONS[name](bench, options)
    finally:
        torch.set_num_threads(before)
    return head, bench.rows


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m dsnb bench`: the header, the tables, and the files they were written into."""
    p = argparse.ArgumentParser("python -m dsnb bench", description="Measure what everything costs.")
    p.add_argument(
        "--sections", nargs="+", default=list(SECTIONS), help=f"of {' '.join(SECTIONS)}; default: all"
    )
    p.add_argument(
        "--models",
        nargs="+",
        default=TABLE["models"],
        help="of bundled, 'SD 1.5', SDXL; default: all",
    )
    p.add_argument("--styles", nargs="+", type=int, default=TABLE["styles"], help="how many; default: 2 3 5")
    p.add_argument("--device", help="cpu, cuda, …; default: the best there is")
    p.add_argument("--dtype", choices=DTYPES, help="default: the fastest that the device multiplies natively")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--steps", type=int, help="denoising steps per measured picture")
    p.add_argument("--compile", action="store_true", help="measure torch.compile too, which takes minutes")
    p.add_argument("--threads", type=int, help="threads of the CPU")
    p.add_argument(
        "--clock", default="wall", help="wall, or processor (for a busy machine, with --threads 1)"
    )
    p.add_argument(
        "--output",
        help="folder of the tables and plots; default: figures/ for the whole table, that is with --compile, no fewer "
        "repeats, sections, models and styles than by default, and nothing else set; else runs/bench/, so that a part "
        "never replaces it",
    )
    a = p.parse_args(argv)
    usual = all(getattr(a, name) == p.get_default(name) for name in ("steps", "dtype", "threads", "clock"))
    whole = (
        usual
        and a.compile
        and a.repeats >= p.get_default("repeats")
        and all(
            set(p.get_default(name)) <= set(getattr(a, name)) for name in ("sections", "models", "styles")
        )
    )
    try:
        head, rows = run(
            a.sections,
            models=a.models,
            styles=a.styles,
            device=a.device,
            dtype=a.dtype and getattr(torch, a.dtype),
            repeats=a.repeats,
            steps=a.steps,
            compiled=a.compile,
            threads=a.threads,
            clock=a.clock,
        )
        for key, value in head.items():
            sys.stdout.write(f"{key}: {value}\n")
        sys.stdout.write(f"\n{tables({kind(head): rows})}\n")
        for path in save(head, rows, a.output or (None if whole else Path("runs", "bench"))):
            sys.stdout.write(f"{path}\n")
    except (ValueError, OSError, RuntimeError) as error:
        p.exit(2, f"{error}\n")
    return 0
