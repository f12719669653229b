"""The documentation site: `make docs` reads the repository's own README, notebooks and tables from where they are."""

import pkgutil
import re
from pathlib import Path

import pandas as pd
from docutils import nodes
from latex2mathml.converter import convert

import dsnb
from dsnb.lab.compare import read_rows, tables
from dsnb.lab.compare.report import answers

ROOT = Path(__file__).resolve().parents[1]
project, release = "dsnb", dsnb.__version__
copyright = "the dsnb contributors, Apache-2.0"
root_doc = "docs/index"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme, html_title, html_favicon = "furo", "dsnb", "favicon.svg"
html_extra_path = ["static"]  # index.html, which leads to docs/index.html
include_patterns = ["docs/**.md", "CONTRIBUTING.md", "CHANGELOG.md", "notebooks/**.ipynb"]
include_patterns += ["figures/*.md", "data/README.md", "data/**/README.md"]
suppress_warnings = ["toc.not_included", "myst.header", "docutils", "autodoc"]

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "substitution"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
html_math_renderer = "mathml"


def costs() -> str:
    """Every method, two of them beside the source project's way, from figures/15_cost_cpu.csv."""
    file = ROOT / "figures" / "15_cost_cpu.csv"
    measured = pd.read_csv(file, comment="#")
    head = dict(re.findall(r"^# (\w+): (.*)$", file.read_text(), re.M))
    measured = measured[measured.case.str.startswith("bundled, N = ")]
    found = measured.set_index(["case", "variant", "metric"])
    value = lambda *key: f"{found.loc[key, 'value']:.3g}" if key in found.index else "–"
    spread = lambda *key: "{value:.2f} ± {spread:.2f}".format(**found.loc[key]) if key in found.index else "–"
    whole, one = (
        found.loc[("bundled, N = 2", "prompt", f"UNet samples per {per}"), "value"]
        for per in ("image", "step")
    )
    steps = whole / one
    said = [f"{steps:g} steps", head["device"], head["dtype"], f"load {head['load']}", head["date"]]
    rows = []
    for method in ("prompt", "pixel", "epsilon", "attention", "regional", "combined"):
        for n in sorted(int(case.split()[-1]) for case in measured.case.unique()):
            ours, source = (f"bundled, N = {n}", method), (f"bundled, N = {n}", f"source's {method}")
            if ours not in found.index.droplevel("metric"):
                continue
            rows.append(
                {
                    "method": method,
                    "styles": n,
                    "UNet samples per step": value(*ours, "UNet samples per step"),
                    "samples, source project": value(*source, "UNet samples per step"),
                    "seconds per image": spread(*ours, "loop per image"),
                    "times faster": spread(*ours, "times faster than the source's"),
                }
            )
    return " · ".join(said) + "\n\n" + table(pd.DataFrame(rows))


def findings() -> str:
    """The main measures of each method, over all pairs and masks, from figures/14_table.csv."""
    measures = {
        "both": "both styles on their own sides ↑",
        "second_both": "the same, by the evaluator CLIP ↑",
        "balance": "weaker side / stronger side ↑",
        "seam_single": "seam: strip / single styles, best 1",
        "layout": "layout kept ↑",
        "lpips": "LPIPS to the source image ↓",
    }
    means = pd.read_csv(ROOT / "figures" / "14_table.csv")
    said = f"Images: {means.images.max()} · seeds per image: {means.seeds.max()}"
    said += f" · pairs: {', '.join(means.pair.unique())} · masks: {', '.join(means['mask'].unique())}\n\n"
    means = means.pivot_table(index="measure", columns="method", values="mean", sort=False)
    means = means.loc[[name for name in measures if name in means.index]].map("{:.2f}".format)
    return said + table(means.rename(index=measures).reset_index())


def combined_or_pixel() -> str:
    """The measures that tell these two methods apart, from figures/14_differences.csv, as sentences."""
    gaps = pd.read_csv(ROOT / "figures" / "14_differences.csv").fillna({"better": ""})
    two = gaps["first"].isin(("combined", "pixel")) & gaps["second"].isin(("combined", "pixel"))
    told = gaps[two & (gaps.pair == "all") & (gaps.better != "")].sort_values("better")
    said = [
        f"Decided for {method}: {count} measures." for method, count in told.better.value_counts().items()
    ]
    said += [
        "",
        *(f"- {tables.title(row['measure'])}: {tables.sentence(row)}" for row in told.to_dict("records")),
    ]
    return "\n".join(said)


def settings() -> str:
    """The settings that differ from the usual one, from figures/14_questions.csv, as sentences."""
    asked = pd.read_csv(ROOT / "figures" / "14_questions.csv").fillna({"better": ""})
    told = asked[asked.better != ""]
    said = []
    for (_, measure), rows in told.groupby(["question", "measure"], sort=False):
        each = [f"{row['method']}: {tables.sentence(row)}" for row in rows.to_dict("records")]
        said.append(f"- {tables.title(measure)}: {'; '.join(each)}")
    return "\n".join(said)


def fewer_steps() -> str:
    """How far 18 steps can be from the usual 25, from figures/14_questions.csv."""
    asked = pd.read_csv(ROOT / "figures" / "14_questions.csv")
    fewer = asked[(asked["first"] == "steps 18") & (asked["second"] == "steps 25")]
    far = fewer[["low", "high"]].abs().max(axis=1).groupby(fewer.measure, sort=False).max()
    return "; ".join(f"{tables.title(name)}: {most:.3f}" for name, most in far.items())


def on_test_images() -> str:
    """18 steps beside 25 with one model: the same test images, pairs and seeds, with the logistic mask."""
    rows = pd.read_parquet(ROOT / "figures" / "14_fewer_steps.parquet")
    gaps, measures = answers({"steps": rows}), ("both", "balance", "layout", "truth")
    means = rows.groupby(["method", "setting"], sort=False)[list(measures)].mean().unstack("setting")
    shown = {tables.title(m): [f"{a:.2f} / {b:.2f}" for a, b in means[m].to_numpy()] for m in measures}
    told = gaps[gaps.better != ""]
    said = [f"{rows.image.nunique()} images, {rows.seed.nunique()} seeds each; 18 / 25 steps:"]
    said += ["", table(pd.DataFrame({"method": means.index} | shown)), ""]
    said += [f"{len(gaps)} differences; the intervals tell {len(told) or 'none'} apart."]
    said += [
        f"- {row['method']}, {tables.title(row['measure'])}: {tables.sentence(row)}"
        for row in told.to_dict("records")
    ]
    return "\n".join(said)


def equal_guidance() -> str:
    """Means of three methods at the same guidance scales, from the validation rows in figures/14_rows."""
    rows = read_rows(ROOT / "figures" / "14_rows")["guidance"]
    rows = rows[rows.method.isin(("epsilon", "attention", "regional")) & rows.guidance.isin((5, 8))]
    means = rows.groupby(["guidance", "method"])[["layout", "both"]].mean().unstack("method")
    means.columns = [f"{method}, {tables.title(name)}" for name, method in means.columns]
    return table(means.map("{:.2f}".format).rename_axis("guidance").reset_index())


def models() -> str:
    """The present model, from its card, beside earlier ones, from figures/16_models.csv."""
    earlier = pd.read_csv(ROOT / "figures" / "16_models.csv", dtype=str)
    card = (ROOT / "data" / "models" / "drawn-world" / "README.md").read_text()
    measured = dict(re.findall(r"^\| (\w.*?) \| ([\d.]+(?: ± [\d.]+)?) \|", card, re.M))
    return table(earlier.assign(**{dsnb.__version__: [measured[name] for name in earlier.measure]}))


def as_it_is(name: str) -> str:
    """A file of figures/ as a Markdown table."""
    return table(pd.read_csv(ROOT / "figures" / name, dtype=str))


def table(frame: pd.DataFrame) -> str:
    """A Markdown table, with numbers as they are written."""
    return frame.to_markdown(index=False, disable_numparse=True)


myst_substitutions = {
    "costs": costs(),
    "findings": findings(),
    "combined_or_pixel": combined_or_pixel(),
    "settings": settings(),
    "fewer_steps": fewer_steps(),
    "equal_guidance": equal_guidance(),
    "on_test_images": on_test_images(),
    "models": models(),
    "decoders": as_it_is("16_decoders.csv"),
    "fractions": as_it_is("16_fractions.csv"),
    "sizes": as_it_is("16_sizes.csv"),
}


def fill_in(app, docname, source) -> None:
    """Puts the README at the top of the first page, and every module of the core into the API reference."""
    if docname == "docs/api":
        names = [module.name for module in pkgutil.walk_packages(dsnb.__path__, "dsnb.")]
        for name in (name for name in names if not re.search(r"\._|\.lab|kernels\.", name)):
            source[0] += f"\n## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"
    if docname == root_doc:
        source[0] = re.sub(r"\]\((?!https?:)", "](../", (ROOT / "README.md").read_text()) + source[0]


def visit_math(self, node) -> None:
    """Equations as MathML, which browsers draw without a script."""
    display = "block" if node.tagname == "math_block" else "inline"
    self.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("source-read", fill_in)
