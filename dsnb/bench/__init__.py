"""What each method and kernel costs on this machine, every ratio from one run."""

from .harness import (
    NOT_MEASURED,
    Bench,
    Row,
    header,
    main,
    median_and_spread,
    ratios,
    read_csv,
    run,
    save,
    text,
    to_markdown,
    write_csv,
)

__all__ = [
    "NOT_MEASURED", "Bench", "Row", "header", "main", "median_and_spread", "ratios", "read_csv", "run", "save",
    "text", "to_markdown", "write_csv",
]  # fmt: skip
