"""Imports point one way: a module or package imports from the tiers below its own, nothing else."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import dsnb

PACKAGE = Path(dsnb.__file__).parent
LAB = PACKAGE / "lab"
# From the bottom up. Only the command line stands above the laboratory.
TIERS = [
    ["checks", "files"],
    ["images"],
    ["epsilon", "formulas", "kernels", "plotting", "prompts"],
    ["families", "films", "masks", "sampling", "widgets"],
    ["models"],
    ["adapters", "guider", "joint", "weights"],
    ["inversion", "attention", "metrics"],
    ["regional", "token_maps"],
    ["attention_maps"],
    ["job"],
    ["methods"],
    ["checkpoints"],
    ["demo", "memory", "panel"],
    ["app"],
    ["lab"],
    ["__main__"],
]
LAB_TIERS = [["grid", "statistics", "world"], ["compare", "bench", "outputs"], ["training", "trials"]]
TIER = {
    folder: {name: tier for tier, names in enumerate(tiers) for name in names}
    for folder, tiers in ((PACKAGE, TIERS), (LAB, LAB_TIERS))
}


def modules(folder):
    return {path.relative_to(folder).parts[0].removesuffix(".py") for path in folder.rglob("*.py")} - {
        "__init__"
    }


def imported(path, folder=PACKAGE):
    """Names of a folder's modules that a file imports, anywhere in it."""
    here = ["dsnb", *path.relative_to(PACKAGE).parts]
    inside = ["dsnb", *folder.relative_to(PACKAGE).parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            start = here[: -node.level] if node.level else []
            module = [*start, *filter(None, (node.module or "").split("."))]
            found = [[*module, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
        else:
            continue
        yield from {
            name[len(inside)] for name in found if name[: len(inside)] == inside and name[len(inside) :]
        }


@pytest.mark.parametrize("folder", [PACKAGE, LAB])
def test_every_module_has_its_tier(folder):
    assert modules(folder) == set(TIER[folder])


@pytest.mark.parametrize(
    ("folder", "name"), [(folder, name) for folder in TIER for name in sorted(TIER[folder])]
)
def test_no_import_points_back(folder, name):
    path, tier = folder / name, TIER[folder]
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        for other in imported(file, folder):
            if other in tier and other != name:
                assert tier[other] < tier[name], f"{file.relative_to(PACKAGE)} imports {other}"


def test_arrows_are_seen():
    assert {"models", "sampling"} <= set(imported(PACKAGE / "inversion.py"))
    assert "reference" not in set(imported(PACKAGE / "kernels" / "__init__.py")) - {"kernels"}
    assert "world" in set(imported(LAB / "training" / "recipe.py", LAB))
    assert "demo" in set(imported(PACKAGE / "__main__.py"))  # inside a function


def test_every_text_file_is_utf_8():
    """`read_text`, `write_text` and a text-mode `open` without an encoding would follow the locale."""
    for path in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or "encoding" in {word.arg for word in call.keywords}:
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            module = getattr(getattr(call.func, "value", None), "id", "")
            opens = (
                name == "open"
                and module != "Image"
                and not any(isinstance(arg, ast.Constant) and "b" in str(arg.value) for arg in call.args)
            )
            assert not opens and name not in ("read_text", "write_text"), f"{path}:{call.lineno}"


def test_every_promise_names_a_test():
    """The page of promises in the docs: each `file::test` in it exists."""
    root, named = PACKAGE.parent, 0
    for line in (root / "docs" / "promises.md").read_text(encoding="utf-8").splitlines():
        file = None
        for path, name in re.findall(r"`([\w/.]*)::(\w+)`", line):
            file = path or file
            assert f"def {name}(" in (root / file).read_text(encoding="utf-8"), f"{file}::{name}"
            named += 1
    assert named


def test_what_is_imported_is_declared():
    """A base dependency; or any extra's, in the laboratory, inside functions, and for Triton's kernels."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name = lambda line: re.match(r"[\w-]+", line)[0].lower().replace("_", "-")
    base = {name(line) for line in project["dependencies"]}
    base |= {"huggingface-hub", "tokenizers"}  # belong to diffusers and transformers
    base |= {"ipython", "jupyter-client", "nbformat", "traitlets"}  # belong to ipywidgets and papermill
    extras = {name(line) for lines in project["optional-dependencies"].values() for line in lines}
    known = packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for module in {word.split(".")[0] for word in names} - {"dsnb", *sys.stdlib_module_names}:
                wanted = {name(line) for line in known.get(module, [module])}
                optional = LAB in path.parents or path.name == "fused.py" or node not in tree.body
                assert wanted & (base | extras if optional else base), f"{path}:{node.lineno}: {module}"


def test_the_citation_names_this_version():
    assert f"version: {dsnb.__version__}\n" in (PACKAGE.parent / "CITATION.cff").read_text(encoding="utf-8")
