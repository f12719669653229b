"""What each method and kernel costs on this machine, every ratio from one run."""

from .command import main, run
from .harness import Bench, Options, Row, header, median_and_spread, ratios
from .report import NOT_MEASURED, read_csv, save, tables, text, to_markdown, write_csv

__all__ = [
    "NOT_MEASURED", "Bench", "Options", "Row", "header", "main", "median_and_spread", "ratios", "read_csv", "run",
    "save", "tables", "text", "to_markdown", "write_csv",
]  # fmt: skip
