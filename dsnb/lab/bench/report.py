"""The bench's rows as CSV, as Markdown and as plots in `figures/`."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from ...files import write_whole
from ...plotting import figures_folder
from . import plots
from .baselines import CONFIGS
from .harness import Row

NOT_MEASURED = "not measured"


def write_csv(path: Path, head: dict[str, str], rows: Sequence[Row]) -> Path:
    """The header as comment lines, then the rows."""
    file = io.StringIO()
    file.writelines(f"# {key}: {value}\n" for key, value in head.items())
    writer = csv.DictWriter(file, [f.name for f in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_whole(path, file.getvalue().encode())
    return path


def read_csv(path: Path) -> tuple[dict[str, str], list[Row]]:
    """What `write_csv` wrote."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    head = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    table = csv.DictReader(line for line in lines if not line.startswith("# "))
    return head, [Row(**{**r, "value": float(r["value"]), "spread": float(r["spread"])}) for r in table]


def to_markdown(results: dict[str, tuple[dict[str, str], Sequence[Row]]]) -> str:
    """The headers and the tables; `results`: "CPU" and "GPU" -> header, rows."""
    lines = ["# What everything costs", ""]
    for device in ("CPU", "GPU"):
        head = results.get(device, ({"device": NOT_MEASURED}, []))[0]
        lines += [f"**{device}**: " + "; ".join(f"{key} {value}" for key, value in head.items()), ""]
    return "\n".join(lines) + "\n" + tables({device: rows for device, (_, rows) in results.items()})


def tables(results: dict[str, Sequence[Row]]) -> str:
    """One table per section, a column per kind of device; a large model that nobody measured has a line too."""
    lines: list[str] = []
    found: dict[tuple, dict[str, Row]] = {}
    for device, rows in results.items():
        for row in rows:
            found.setdefault((row.section, row.case, row.variant, row.metric), {})[device] = row
    for section in dict.fromkeys(key[0] for key in found):
        lines += [f"## {section}", "", "| case | variant | measure | CPU | GPU |", "|---|---|---|---|---|"]
        for (part, *names), by_device in found.items():
            if part == section:
                cells = [text(by_device[d]) if d in by_device else NOT_MEASURED for d in ("CPU", "GPU")]
                lines.append(f"| {' | '.join([*names, *cells])} |")
        if section in ("pictures", "overhead"):
            cases = [key[1] for key in found if key[0] == section]
            missing = [name for name in CONFIGS if not any(case.startswith(name) for case in cases)]
            lines += [f"| {name} | | | {NOT_MEASURED} | {NOT_MEASURED} |" for name in missing]
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
    spread = f" ± {plots.digits(row.spread * scale, 2)}" if row.spread else ""
    return f"{plots.digits(row.value * scale)}{spread} {unit}".strip()


def kind(head: dict[str, str]) -> str:
    """The column of a run with this header: "CPU" or "GPU"."""
    return "CPU" if head["kind"] == "cpu" else "GPU"


def save(head: dict[str, str], rows: Sequence[Row], folder: str | Path | None = None) -> list[Path]:
    """Writes 11_cost_cpu.csv or 11_cost_gpu.csv, the Markdown table of both, and the plots, into figures/."""
    folder = figures_folder() if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {device: folder / f"11_cost_{device.lower()}.csv" for device in ("CPU", "GPU")}
    written = write_csv(files[kind(head)], head, rows)
    results = {device: read_csv(file) for device, file in files.items() if file.is_file()}
    table = folder / "11_cost.md"
    write_whole(table, f"{to_markdown(results)}\n".encode())
    return [written, table, *plots.save_all(rows, folder, suffix="" if kind(head) == "CPU" else "_gpu")]
