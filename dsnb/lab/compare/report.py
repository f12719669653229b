"""The files of a comparison: rows, tables, sentences and figures, `14_*` in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd

from ...files import write_whole
from ...methods import METHODS
from ...plotting import save_figure
from .plots import HEADLINE, draw_differences, draw_means, draw_questions
from .tables import (
    MEASURES,
    against_ground_truth,
    markdown,
    paired,
    present,
    sentence,
    summary,
    title,
    wide,
)
from .tasks import GROUND_TRUTH

COMPARED = ("compare", "noise")  # the parts that compare methods; all others ask a question
SPOKEN = ("both", "second_both", "balance", "object", "seam_single", "layout", "lpips", "truth")
ASKED = ("both", "balance", "layout", "truth")


def read_rows(folder: Path) -> dict[str, pd.DataFrame]:
    """The kept rows, part -> table, from the parquet files of a folder; empty if there are none."""
    return {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def write_report(rows: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write the rows of each part (see `running.compute`), and their tables and figures."""
    (folder / "14_rows").mkdir(parents=True, exist_ok=True)
    for name, table in rows.items():
        measured = present(table)
        small = table.astype(dict.fromkeys(measured, "float32"))
        options = {"compression": "zstd", "use_dictionary": [name for name in table if name not in measured]}
        options["column_encoding"] = dict.fromkeys(measured, "BYTE_STREAM_SPLIT")  # a third smaller
        write_whole(folder / "14_rows" / f"{name}.parquet", small.to_parquet(index=False, **options))
    questions = {name: table for name, table in rows.items() if name not in COMPARED}
    for name in rows.keys() - questions.keys():
        _write_part(rows[name], folder, "14" if name == "compare" else f"14_{name}")
    if questions:
        _write_questions(questions, folder)


def head(table: pd.DataFrame) -> str:
    """How much was compared: "images: 96, seeds: 4, dsnb 0.3.0"."""
    versions = ", ".join(sorted(table.version_dsnb.unique()))
    return f"images: {table.image.nunique()}, seeds: {table.seed.nunique()}, dsnb {versions}"


def with_all(table: pd.DataFrame) -> pd.DataFrame:
    """The rows once more as the pair "all", where there are several pairs of styles."""
    every = table.assign(pair="all")
    return pd.concat([every, table]) if table.pair.nunique() > 1 else every


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """The headline measures over all masks: `summary` by method, for each pair of styles and for all pairs."""
    measures = [name for name in (*HEADLINE, "samples") if name in present(table)]
    return summary(with_all(table), ["pair", "method"], measures)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Every two methods, and the two masks, on the same images: over all pairs of styles, and each pair.

    The masks are compared only by measures that do not use the mask. The column `pair` says which pairs
    of styles a row is about. All intervals together hold at 95 %.
    """
    measures = [name for name in present(table) if name != "samples"]
    unmasked = [name for name in measures if not MEASURES[name].by_mask]
    contests = []
    for pair, part in with_all(table[table.method != GROUND_TRUTH]).groupby("pair", sort=False):
        masked = part[part.method != "prompt"]  # one prompt knows no mask
        for two in combinations(part.method.unique(), 2):
            contests.append(({"pair": pair}, part, "method", two, measures))
        for two in combinations(masked["mask"].unique(), 2):
            contests.append(({"pair": pair}, masked, "mask", two, unmasked))
    return _decide(contests)


def answers(questions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every setting of every question against the usual one, per method; all intervals together hold at 95 %."""
    contests = []
    for name, table in questions.items():
        measures = [measure for measure in ASKED if measure in present(table)]
        for method, part in table[table.method != GROUND_TRUTH].groupby("method", sort=False):
            usual = part.setting[part.usual].unique()  # one, or none of the values that were tried
            for two in ((setting, *usual) for setting in part.setting[~part.usual].unique() if len(usual)):
                contests.append(({"question": name, "method": method}, part, "setting", two, measures))
    return _decide(contests)


def _decide(contests: Sequence[tuple[dict, pd.DataFrame, str, tuple[str, str], list[str]]]) -> pd.DataFrame:
    """The paired differences of (columns to add, rows, column, its two values, measures), with one correction."""
    number = sum(len(measures) for *_, measures in contests)
    found = [
        paired(table, column, *two, measures, number).assign(**about)
        for about, table, column, two, measures in contests
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def findings(gaps: pd.DataFrame, measures: Sequence[str] = SPOKEN) -> str:
    """The paired differences as sentences, in Markdown."""
    lines = []
    for pair, part in gaps.groupby("pair", sort=False):
        lines.append(f"\n### {pair}\n")
        for name in measures:
            every = part[part.measure == name]
            by_method = every["first"].isin(METHODS)
            for what, rows in (("", every[by_method]), (", masks", every[~by_method])):
                said = [sentence(row) for row in rows.to_dict("records")]
                lines += [f"- {title(name)}{what}: {'; '.join(said)}."] if said else []
    return "\n".join(lines) + "\n"


def _write_part(table: pd.DataFrame, folder: Path, stem: str) -> None:
    """The files of one part that compares methods."""
    summed = summary(table, ["pair", "mask", "method"])
    groups = summed.groupby(["pair", "mask"], sort=False)
    sections = {f"{pair}, {mask} mask": wide(part) for (pair, mask), part in groups}
    _write(folder / f"{stem}_table", summed, f"Mean ± standard error over images. {head(table)}.", sections)
    short = overview(table)
    sections = {pair: wide(part, cell="interval") for pair, part in short.groupby("pair", sort=False)}
    seams = short[short.measure == "seam_single"].assign(distance=lambda seam: (seam["mean"] - 1).abs())
    far = seams.pivot_table(index="pair", columns="method", values="distance", sort=False).reset_index()
    sections[f"{MEASURES['seam_single'].title}, distance of the mean from 1"] = far
    if "second_both" in present(table):
        fractions = against_ground_truth(table, "second_both")
        sections["both sides right, by evaluator CLIP, as a fraction of the ground-truth blend's"] = fractions
    note = f"Mean (95 % interval over images; worst to best seed). {head(table)}."
    _write(folder / f"{stem}_overview", short, note, sections)
    save_figure(draw_means(short[short.pair == "all"]), folder / f"{stem}_overview")

    gaps = differences(table)
    if len(gaps):
        note = f"{head(table)}. {len(gaps)} differences; all intervals together hold at 95 %.\n"
        note += "Sentences have the better one minus the other, the table has first minus second.\n"
        _write(folder / f"{stem}_differences", gaps, note + findings(gaps), {"all differences": gaps})
        method = "combined" if "combined" in set(table.method) else table.method.iloc[0]
        figure = draw_differences(gaps[gaps.pair == "all"], table, method)
        save_figure(figure, folder / f"{stem}_differences")


def _write_questions(questions: Mapping[str, pd.DataFrame], folder: Path) -> None:
    found = answers(questions)
    lines = [f"{name}: {head(table)}." for name, table in questions.items()]
    lines += [f"{len(found)} differences from the usual setting; all intervals together hold at 95 %."]
    _write(folder / "14_questions", found, "\n\n".join(lines), {"all questions": found})
    save_figure(draw_questions(questions), folder / "14_questions")


def _write(path: Path, table: pd.DataFrame, note: str, sections: Mapping[str, pd.DataFrame]) -> None:
    """A table as CSV; a note and tables under their titles as Markdown. Empty tables are left out."""
    text = [f"### {name}\n\n{markdown(part)}" for name, part in sections.items() if len(part)]
    write_whole(path.with_suffix(".csv"), table.to_csv(index=False).encode())
    write_whole(path.with_suffix(".md"), "\n".join([f"{note}\n", *text]).encode())
