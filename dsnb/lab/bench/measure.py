"""The measuring: variants that take turns, and the rows of what was found.

Every number is the median of repeats in which the variants take turns, so that a busy moment of the machine affects all
of them alike. Ratios are taken repeat by repeat, within one run.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..statistics import median_and_spread

COLUMNS = ("section", "case", "variant", "metric", "value", "spread", "unit")


@dataclass(frozen=True)
class Bench:
    """What to measure, where and how often, and the rows found so far: dictionaries of `COLUMNS`."""

    device: torch.device
    dtype: torch.dtype
    repeats: int = 5
    models: Sequence[str] = ("bundled",)
    styles: Sequence[int] = (2, 3, 5)
    steps: int | None = None  # per image; None: all for the bundled model, else one, scaled up
    compiled: bool = False
    progress: bool = True
    rows: list[dict] = field(default_factory=list)

    def add(self, section: str, case: str, variant: str, metric: str, values: object, unit: str) -> None:
        """Keeps a number, or the median and spread of several."""
        row = (section, case, variant, metric, *median_and_spread(values), unit)
        self.rows.append(dict(zip(COLUMNS, row, strict=True)))

    def time(
        self,
        variants: dict[str, Callable[[], object]],
        inner: int = 1,
        note: str = "",
        most: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Times calls that take turns, after one round that does not count.

        Args:
            variants: name -> call.
            inner: calls between two looks at the clock.
            note: what the progress bar says.
            most: the most repeats; default `repeats`.

        Returns:
            name -> seconds of one call, for each repeat; divide two of them for ratios.
        """
        repeats = min(self.repeats, most or self.repeats)
        seconds = {name: np.empty(repeats) for name in variants}
        with torch.no_grad():
            for call in variants.values():
                call()
            for i in tqdm(range(repeats), desc=note, leave=False, disable=not self.progress):
                for name, call in variants.items():
                    self.wait()
                    start = time.perf_counter()
                    for _ in range(inner):
                        call()
                    self.wait()
                    seconds[name][i] = (time.perf_counter() - start) / inner
        return seconds

    def wait(self) -> None:
        """Waits until a GPU has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def slow(self, model: str) -> bool:
        """Whether one UNet call takes half a minute, so that only what matters most is measured."""
        return model == "SDXL" and self.device.type == "cpu"


def header(bench: Bench) -> dict[str, str]:
    """Hardware, software and settings, which every table begins with."""
    device = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else _processor()
    versions = [f"{name} {_version(name)}" for name in ("torch", "diffusers", "transformers", "triton")]
    return {
        "device": device,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "versions": ", ".join([*versions, f"python {platform.python_version()}"]),
        "repeats": f"{bench.repeats} (SDXL on a CPU: at most 2), taking turns; median ± half the distance between "
        "the quartiles",
        "pictures": "the denoising loop alone; of SD 1.5 and SDXL one step, times the steps of an image",
        "kind": bench.device.type,
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
