"""What everything costs: one table for `python -m dsnb bench` and for the notebook.

Every number is the median of repeats in which the variants take turns, so that a busy moment of the machine
hits all of them alike; the spread is half the distance between the quartiles. Rows are tidy: section, case,
variant, metric, value, spread, unit.
"""

import argparse
import csv
import ctypes
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm.auto import tqdm

NOT_MEASURED = "not measured"
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Row:
    """One number of the table."""

    section: str
    case: str
    variant: str
    metric: str
    value: float
    spread: float
    unit: str


@dataclass(frozen=True)
class Bench:
    """Where and how often to measure, and what was found so far."""

    device: torch.device
    dtype: torch.dtype
    repeats: int
    rows: list[Row]
    progress: bool = True
    clock: str = "wall"

    def add(self, section: str, case: str, variant: str, metric: str, value, unit: str) -> None:
        """Keep one number: a plain one, or a list of repeats, whose median and spread are kept."""
        values = list(value) if isinstance(value, Sequence) else [float(value)]
        self.rows.append(Row(section, case, variant, metric, *median_and_spread(values), unit))

    def time(
        self, variants: dict[str, Callable[[], object]], inner: int = 1, note: str = ""
    ) -> dict[str, list]:
        """Seconds of each call, `repeats` of them; the variants take turns after one unmeasured round."""
        now = CLOCKS[self.clock]
        with torch.no_grad():
            for call in variants.values():
                call()
            seconds = {name: [] for name in variants}
            rounds = tqdm(range(self.repeats), desc=note, leave=False, disable=not self.progress)
            for _ in rounds:
                for name, call in variants.items():
                    self.wait()
                    start = now()
                    for _ in range(inner):
                        call()
                    self.wait()
                    seconds[name].append((now() - start) / inner)
        return seconds

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory(self, call: Callable[[], object]) -> float:
        """Peak bytes that one call takes beyond what was there before it; nan where this cannot be read."""
        gc.collect()
        with torch.no_grad():
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self.device)
                before = torch.cuda.memory_allocated(self.device)
                call()
                return torch.cuda.max_memory_allocated(self.device) - before
            if not Path("/proc/self/clear_refs").exists():
                call()
                return float("nan")
            ctypes.CDLL(None).malloc_trim(
                0
            )  # hand freed memory back, so that it counts when it is taken again
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            before = _resident("VmRSS")
            call()
            return _resident("VmHWM") - before


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """The median, and half the distance between the quartiles (0 for a single value)."""
    if len(values) < 2:
        return float(values[0]), 0.0
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), (quartiles[2] - quartiles[0]) / 2


def ratios(seconds: dict[str, list], over: str) -> dict[str, list]:
    """Each variant's time over that of `over`, repeat by repeat, so that drift cancels."""
    return {
        name: [t / o for t, o in zip(times, seconds[over], strict=True)] for name, times in seconds.items()
    }


def header(bench: Bench) -> dict[str, str]:
    """The first lines of every table."""
    device = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else _processor()
    packages = ("torch", "diffusers", "transformers", "triton")
    return {
        "device": device,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "clock": bench.clock,
        "versions": ", ".join(f"{name} {_version(name)}" for name in packages)
        + f", python {platform.python_version()}",
        "repeats": f"{bench.repeats}, taking turns; median ± half the distance between the quartiles",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


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
    numbers of prompts (on a CPU only the first for the large models). steps: denoising steps per picture
    (default: all for the bundled model, 1 for the others, scaled up). compiled: also measure `torch.compile`,
    which takes minutes. threads: of the CPU (default: as torch chose). clock:
    "wall", or "processor": the time the CPU worked for this process, fair on a busy machine with threads=1.
    Raises ValueError for an unknown section, model or clock.
    """
    from ..models import choose_device, choose_dtype
    from . import sections as parts

    for name, given, known in (
        ("sections", sections or (), parts.SECTIONS),
        ("models", models, parts.MODELS),
        ("clock", (clock,), CLOCKS),
    ):
        unknown = [x for x in given if x not in known]
        if unknown:
            raise ValueError(f"{name} must be of {', '.join(known)}; got {', '.join(unknown)}")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    device = choose_device(device)
    bench = Bench(device, dtype or choose_dtype(device), repeats, [], progress, clock)
    options = parts.Options(tuple(models), tuple(styles), steps, compiled)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        head = header(bench)
        for name in sections or parts.SECTIONS:
            parts.SECTIONS[name](bench, options)
    finally:
        torch.set_num_threads(before)
    return head, bench.rows


def write_csv(path: Path, head: dict[str, str], rows: Sequence[Row]) -> Path:
    """The header as comment lines, then the rows."""
    with open(path, "w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in head.items())
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return path


def read_csv(path: Path) -> tuple[dict[str, str], list[Row]]:
    """What `write_csv` wrote."""
    lines = Path(path).read_text().splitlines()
    head = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    table = csv.DictReader(line for line in lines if not line.startswith("# "))
    return head, [Row(**{**r, "value": float(r["value"]), "spread": float(r["spread"])}) for r in table]


def to_markdown(results: dict[str, tuple[dict[str, str], Sequence[Row]]]) -> str:
    """Tables of all sections, a column per kind of device; `results`: "CPU" and "GPU" -> header, rows."""
    lines = ["# What everything costs", ""]
    for kind in ("CPU", "GPU"):
        head = results.get(kind, ({"device": NOT_MEASURED}, []))[0]
        lines += [f"**{kind}**: " + "; ".join(f"{key} {value}" for key, value in head.items()), ""]
    found: dict[tuple, dict[str, Row]] = {}
    for kind, (_, rows) in results.items():
        for row in rows:
            found.setdefault((row.section, row.case, row.variant, row.metric), {})[kind] = row
    for section in dict.fromkeys(key[0] for key in found):
        lines += [f"## {section}", "", "| case | variant | measure | CPU | GPU |", "|---|---|---|---|---|"]
        for (part, *names), by_kind in found.items():
            if part == section:
                cells = [text(by_kind[kind]) if kind in by_kind else NOT_MEASURED for kind in ("CPU", "GPU")]
                lines.append(f"| {' | '.join([*names, *cells])} |")
        lines.append("")
    return "\n".join(lines)


def text(row: Row) -> str:
    """A value and its spread, in the unit that reads best."""
    scale, unit = next(
        (
            (s, u)
            for limit, s, u in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"))
            if row.unit == "s" and row.value < limit
        ),
        (1, row.unit),
    )
    spread = f" ± {row.spread * scale:.2g}" if row.spread else ""
    return f"{row.value * scale:.3g}{spread} {unit}".strip()


def save(head: dict[str, str], rows: Sequence[Row], folder: str | Path | None = None) -> list[Path]:
    """Writes 11_cost_cpu.csv or 11_cost_gpu.csv, the Markdown table of both, and the plots, into figures/."""
    from ..plotting import figures_folder
    from . import plots

    folder = figures_folder() if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = "GPU" if torch.cuda.is_available() and torch.cuda.get_device_name() == head["device"] else "CPU"
    written = [write_csv(folder / f"11_cost_{kind.lower()}.csv", head, rows)]
    results = {
        k: read_csv(folder / f"11_cost_{k.lower()}.csv")
        for k in ("CPU", "GPU")
        if (folder / f"11_cost_{k.lower()}.csv").is_file()
    }
    table = folder / "11_cost.md"
    table.write_text(to_markdown(results) + "\n")
    return [*written, table, *plots.save_all(rows, folder, suffix="" if kind == "CPU" else "_gpu")]


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m dsnb bench`."""
    p = argparse.ArgumentParser("python -m dsnb bench", description="Measure what everything costs.")
    p.add_argument("--sections", nargs="+", help="pictures overhead kernels cpu steps caching; default: all")
    p.add_argument(
        "--models", nargs="+", default=["bundled"], help="bundled, 'SD 1.5', SDXL; default: bundled"
    )
    p.add_argument("--device", help="cpu, cuda, …; default: the best there is")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--steps", type=int, help="denoising steps per measured picture")
    p.add_argument("--compile", action="store_true", help="measure torch.compile too, which takes minutes")
    p.add_argument("--threads", type=int, help="threads of the CPU")
    p.add_argument(
        "--clock", default="wall", help="wall, or processor (for a busy machine, with --threads 1)"
    )
    p.add_argument("--output", help="folder of the tables and plots; default: figures/")
    a = p.parse_args(argv)
    try:
        head, rows = run(
            a.sections,
            models=a.models,
            device=a.device,
            repeats=a.repeats,
            steps=a.steps,
            compiled=a.compile,
            threads=a.threads,
            clock=a.clock,
        )
        for path in save(head, rows, a.output):
            sys.stdout.write(f"{path}\n")
    except (ValueError, OSError) as error:
        p.exit(1, f"{error}\n")
    return 0


def _resident(field: str) -> float:
    """Bytes of this process from /proc: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(field)))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "none"
