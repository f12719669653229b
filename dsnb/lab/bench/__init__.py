"""What each method and kernel costs on this machine, every ratio from one run."""

from ..statistics import median_and_spread
from .command import main, run
from .measure import COLUMNS, Bench
from .report import markdown, plot_kernels, plot_pictures, read_csv, table

__all__ = [
    "COLUMNS", "Bench", "main", "markdown", "median_and_spread", "plot_kernels", "plot_pictures", "read_csv", "run",
    "table",
]  # fmt: skip
