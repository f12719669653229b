"""The bench itself: variants that take turns, and the rows of what was measured.

Every number is the median of repeats in which the variants take turns, so that a busy moment of the machine hits all
of them alike; the spread is half the distance between the quartiles. Rows are tidy: section, case, variant, metric,
value, spread, unit.
"""

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm.auto import tqdm

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
MOST_REPEATS = 2  # of SDXL on a CPU, where a single UNet call takes half a minute


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
class Options:
    """models: of MODELS; steps: per picture, None for all (bundled) or one, scaled up; compiled: that too."""

    models: tuple[str, ...] = ("bundled",)
    styles: tuple[int, ...] = (2, 3, 5)
    steps: int | None = None
    compiled: bool = False


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
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
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
    versions = [*(f"{name} {_version(name)}" for name in packages), f"python {platform.python_version()}"]
    few = f" ({MOST_REPEATS} at most for SDXL)" if bench.device.type == "cpu" else ""
    return {
        "device": device,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "versions": ", ".join(versions),
        "repeats": f"{bench.repeats}{few}, taking turns; median ± half the distance between the quartiles",
        "pictures": "the denoising loop alone; of SD 1.5 and SDXL one step, times the steps of a picture",
        "kind": bench.device.type,
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "clock": bench.clock,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _resident(field: str) -> float:
    """Bytes of this process from /proc: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(field)))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "none"
