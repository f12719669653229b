"""The command line: `python -m dsnb run|bench|compare|demo|figures`; each prints its own `--help`."""

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"


def run(argv: list[str]) -> int:
    """a notebook over a grid of parameters, as rows of one table"""
    from .lab.grid import main

    return main(argv)


def bench(argv: list[str]) -> int:
    """what each method and kernel costs on this machine"""
    from .lab.bench import main

    return main(argv)


def compare(argv: list[str]) -> int:
    """notebook 10 in full: the tables of the comparison, over 96 pictures"""
    from .lab.compare.command import main

    return main(argv)


def demo(argv: list[str]) -> int:
    """notebook 00, run headlessly: a few pictures, each in two styles by every method, into figures/"""
    executed = execute(NOTEBOOKS / "00_blend_two_styles.ipynb", ROOT / "runs" / "demo")
    for cell in executed.cells:
        if "summary" in cell.metadata.get("tags", []):
            print(*(output.text for output in cell.outputs if output.output_type == "stream"), sep="", end="")
    return 0


def figures(argv: list[str]) -> int:
    """all notebooks in order, which redraw `figures/`"""
    for notebook in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        print(notebook.name, flush=True)
        execute(notebook, ROOT / "runs" / "figures")
    return 0


def execute(notebook: Path, folder: Path):
    """Runs a notebook with its defaults, keeps the executed copy in `folder`, and returns it."""
    import papermill

    folder.mkdir(parents=True, exist_ok=True)
    return papermill.execute_notebook(notebook, folder / notebook.name, cwd=notebook.parent)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": run,
    "bench": bench,
    "compare": compare,
    "demo": demo,
    "figures": figures,
}


def main(argv: list[str]) -> int:
    """Dispatches to the command named first."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__, *(f"  {name:8} {call.__doc__}" for name, call in COMMANDS.items()), sep="\n")
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: command {argv[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
