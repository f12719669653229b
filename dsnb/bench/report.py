"""The bench's rows as CSV, as Markdown and as plots in `figures/`."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

from ..plotting import figures_folder
from . import plots
from .harness import Row

NOT_MEASURED = "not measured"


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
