"""Imports point one way: a module or package imports from the tiers below its own, nothing else."""

import ast
from pathlib import Path

import pytest

import dsnb

PACKAGE = Path(dsnb.__file__).parent
# From the bottom up.
TIERS = [
    ["epsilon", "files", "images", "kernels", "plotting", "records", "styles"],
    ["masks", "models", "sampling", "runs", "widgets"],
    ["checkpoints", "inversion", "attention", "metrics"],
    ["attention_maps", "methods"],
    ["comparison", "bench"],
    ["training"],
    ["__main__"],
]
TIER = {name: tier for tier, names in enumerate(TIERS) for name in names}


def modules():
    return {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")} - {
        "__init__"
    }


def imported(path):
    """Names of the package's modules that a file imports, anywhere in it."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            inside = node.level == depth or (node.level == 0 and (node.module or "").split(".")[0] == "dsnb")
            parts = (node.module or "").split(".")
            parts = parts if node.level else parts[1:]
            if inside and parts and parts[0]:
                yield parts[0]
            elif inside:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dsnb."))


def test_every_module_has_its_tier():
    assert modules() == set(TIER)


@pytest.mark.parametrize("name", sorted(TIER))
def test_no_import_points_back(name):
    path = PACKAGE / name
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        for other in imported(file):
            if other in TIER and other != name:
                assert TIER[other] < TIER[name], f"{file.relative_to(PACKAGE)} imports {other}"


def test_arrows_are_seen():
    assert {"models", "sampling"} <= set(imported(PACKAGE / "inversion.py"))
    assert "reference" not in set(imported(PACKAGE / "kernels" / "__init__.py")) - {"kernels"}
