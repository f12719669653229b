"""The files of a comparison: rows, tables, sentences and figures, `10_*` in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import pandas as pd

from ...files import write_whole
from ...plotting import save_figure
from .plots import HEADLINE, draw_differences, draw_means, draw_questions, draw_ranks
from .running import GROUND_TRUTH
from .tables import (
    MEASURES,
    against_ground_truth,
    counted,
    markdown,
    paired,
    present,
    sentence,
    summary,
    title,
    wide,
)

COMPARED = ("compare", "noise")  # the parts that compare methods; all others ask a question
SPOKEN = ("both", "second_both", "balance", "object", "seam_single", "layout", "lpips", "truth")
ASKED = ("both", "balance", "layout", "truth")


def read_rows(folder: Path) -> dict[str, pd.DataFrame]:
    """The kept rows: part -> table.

    Args:
        folder: of the parquet files.

    Returns:
        The tables; empty if there are none.
    """
    return {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def write_report(rows: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write rows, tables and figures.

    Args:
        rows: part -> rows, see `running.run_part`.
        folder: where; usually `figures/`.
    """
    (folder / "10_rows").mkdir(parents=True, exist_ok=True)
    for name, table in rows.items():
        small = {column: "float32" for column in present(table)}
        write_whole(folder / "10_rows" / f"{name}.parquet", table.astype(small).to_parquet(index=False))
    for name in COMPARED:
        if name in rows:
            _write_part(rows[name], folder, "10" if name == "compare" else f"10_{name}")
    questions = {name: table for name, table in rows.items() if name not in COMPARED}
    if questions:
        _write_questions(questions, folder)


def head(table: pd.DataFrame) -> str:
    """How much was compared: "96 images, 4 seeds, dsnb 0.3.0"."""
    versions = ", ".join(sorted(set(table.version_dsnb)))
    return (
        f"{counted(table.image.nunique(), 'image')}, {counted(table.seed.nunique(), 'seed')}, dsnb {versions}"
    )


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """What decides, over all masks and over all pairs of styles and each: `summary` by pair and method."""
    whole = table.assign(pair="all")
    return pd.concat(
        [
            summary(
                part, ["pair", "method"], [name for name in (*HEADLINE, "samples") if name in present(part)]
            )
            for part in [whole, *([table] if table.pair.nunique() > 1 else [])]
        ],
        ignore_index=True,
    )


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Every two methods, and the two masks, on the same images: over all pairs of styles, and each pair.

    The masks are compared only by measures that do not ask the mask where to look. The column `pair` says which pairs
    of styles a row is about. All intervals together hold at 95 %.
    """
    contest = table[table.method != GROUND_TRUTH]
    measures = [name for name in present(contest) if name != "samples"]
    unmasked = [name for name in measures if not MEASURES[name].by_mask]
    masked = contest[contest.method != "prompt"]  # one prompt knows no mask
    duels = [("method", *two, contest, measures) for two in combinations(dict.fromkeys(contest.method), 2)]
    duels += [("mask", *two, masked, unmasked) for two in combinations(dict.fromkeys(masked["mask"]), 2)]
    pairs = ["all", *(dict.fromkeys(contest.pair) if contest.pair.nunique() > 1 else [])]
    number = max(1, len(pairs) * sum(len(asked) for *_, asked in duels))
    found = [
        paired(part[part.pair.eq(pair) | (pair == "all")], column, *two, asked, comparisons=number).assign(
            pair=pair
        )
        for pair in pairs
        for column, *two, part, asked in duels
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def findings(gaps: pd.DataFrame, measures: tuple[str, ...] = SPOKEN) -> str:
    """The paired differences as sentences, in Markdown."""
    lines = []
    for pair, part in gaps.groupby("pair", sort=False):
        lines.append(f"\n### {pair}\n")
        for name in measures:
            said = [sentence(row) for row in part[part.measure == name].to_dict("records")]
            lines += [f"- {title(name)}: {'; '.join(said)}."] if said else []
    return "\n".join(lines) + "\n"


def questions_asked(questions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every setting of every question against the usual one, per method; all intervals together hold at 95 %."""
    contests = [
        (name, method, setting, part.loc[part.usual, "setting"].iloc[0], part)
        for name, table in questions.items()
        for method, part in table[table.method != GROUND_TRUTH].groupby("method", sort=False)
        for setting in dict.fromkeys(part.setting[~part.usual])
        if part.usual.any()
    ]
    number = max(1, sum(len(_asked(part)) for *_, part in contests))
    found = [
        paired(part, "setting", setting, usual, _asked(part), comparisons=number).assign(
            question=name, method=method
        )
        for name, method, setting, usual, part in contests
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _asked(table: pd.DataFrame) -> list[str]:
    return [name for name in ASKED if name in present(table)]


def _write_part(table: pd.DataFrame, folder: Path, stem: str) -> None:
    """The files of one part that compares methods."""
    summed, short, gaps = summary(table, ["pair", "mask", "method"]), overview(table), differences(table)
    texts = [f"Mean ± standard error over images. {head(table)}.\n"]
    for (pair, mask), part in summed.groupby(["pair", "mask"], sort=False):
        texts += [f"### {pair}, {mask} mask\n", markdown(wide(part, "method"))]
    _write(folder / f"{stem}_table", summed, "\n".join(texts))
    texts = [f"Mean (95 % interval over images; worst to best seed). {head(table)}.\n"]
    for pair, part in short.groupby("pair", sort=False):
        texts += [f"### {pair}\n", markdown(wide(part, "method", "interval"))]
    seams = short[short.measure == "seam_single"]
    if len(seams):
        far = (seams.set_index(["pair", "method"])["mean"] - 1).abs().unstack(sort=False).reset_index()
        texts += [f"### {MEASURES['seam_single'].title}, distance of the mean from 1\n", markdown(far)]
    if "second_both" in present(table):
        against = against_ground_truth(table, "second_both")
        if len(against):
            texts += ["### both sides right, by evaluator CLIP, as a fraction of the ground-truth blend's\n"]
            texts += [markdown(against.drop(columns="measure"))]
    _write(folder / f"{stem}_overview", short, "\n".join(texts))
    every = short[short.pair == "all"]
    save_figure(draw_means(every), folder / f"{stem}_overview")
    if len(gaps):
        note = (
            f"{head(table)}. {counted(len(gaps), 'question')}, 95 % for all together; first minus second.\n"
        )
        _write(folder / f"{stem}_differences", gaps, note + findings(gaps) + "\n" + markdown(gaps))
        methods = list(dict.fromkeys(table.method))
        center = "epsilon" if "epsilon" in methods else methods[0]
        figure = draw_differences(gaps[gaps.pair == "all"], table, center)
        save_figure(figure, folder / f"{stem}_differences")
    means = summary(table, ["method"]).pivot(index="measure", columns="method", values="mean")
    means = means.loc[present(table), list(dict.fromkeys(table.method))]
    save_figure(draw_ranks(means, [GROUND_TRUTH] if GROUND_TRUTH in means else []), folder / f"{stem}_table")


def _write_questions(questions: Mapping[str, pd.DataFrame], folder: Path) -> None:
    answers = questions_asked(questions)
    note = "; ".join(f"{name}: {head(table)}" for name, table in questions.items())
    note = f"{note}. {counted(len(answers), 'question')}, 95 % for all together; first minus second, the usual setting."
    _write(folder / "10_questions", answers, note + "\n\n" + markdown(answers))
    contest = {name: table[table.method != GROUND_TRUTH] for name, table in questions.items()}
    shown = [
        name for name in ("both", "balance", "layout") if all(name in present(t) for t in contest.values())
    ]
    if shown:
        summed = {name: summary(table, ["setting", "method"], shown) for name, table in contest.items()}
        save_figure(draw_questions(summed, shown), folder / "10_questions")


def _write(path: Path, table: pd.DataFrame, text: str) -> None:
    write_whole(path.with_suffix(".csv"), table.to_csv(index=False).encode())
    write_whole(path.with_suffix(".md"), text.encode())
