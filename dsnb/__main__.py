"""The command line: `dsnb COMMAND`, or `python -m dsnb COMMAND`. `dsnb COMMAND --help` lists its options."""

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from . import __version__

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"


def demo(argv: list[str]) -> int:
    """Blend two styles in one bundled image and write two files into the current folder."""
    parser = argparse.ArgumentParser("dsnb demo", description="Blend two styles in one bundled image.")
    parser.add_argument("--steps", type=int, default=argparse.SUPPRESS, help="denoising steps, at least 2")
    given = parser.parse_args(argv)
    if getattr(given, "steps", 2) < 2:
        parser.error(f"--steps must be at least 2, got {given.steps}")
    from .demo import draw

    try:
        for path in draw(Path.cwd(), **vars(given)):
            print(path, flush=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _laboratory(module: str) -> Callable[[list[str]], int]:
    """The `main` of a module of the laboratory, which is imported only when it is called."""
    return lambda argv: import_module(f"dsnb.lab.{module}").main(argv)


COMMANDS = {  # name -> the call, and what it does
    "demo": (demo, "blend two styles in one bundled image and write two files into the current folder"),
    "run": (_laboratory("grid"), "run a notebook over a grid of parameters and write one table"),
    "compare": (
        _laboratory("compare.command"),
        "compare all methods on 96 images with 4 seeds: the tables and figures of notebook 14",
    ),
    "bench": (_laboratory("bench"), "measure what each method and kernel costs on this machine"),
    "figures": (
        _laboratory("outputs"),
        "run the notebooks that are out of date, write their outputs into them and redraw `figures/`",
    ),
}
REDRAWING = ("compare", "bench", "figures")  # commands that write into the committed figures/


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names.

    Args:
        argv: the arguments; default those of the process.

    Returns:
        The exit status: 0 for success, 1 if something failed, 2 for wrong arguments, 130 if it was stopped.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__, *(f"  {name:8} {what}" for name, (_, what) in COMMANDS.items()), sep="\n")
        return 0
    if argv[0] == "--version":
        print(f"dsnb {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: unknown command {argv[0]!r}; use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if argv[0] == "figures" and not NOTEBOOKS.is_dir():
        print(
            f"error: `dsnb figures` runs the notebooks of the repository, and {NOTEBOOKS} does not exist. "
            "Clone the repository and install it with `pip install -e .`",
            file=sys.stderr,
        )
        return 2
    if argv[0] in REDRAWING and NOTEBOOKS.is_dir():
        os.environ.setdefault("DSNB_FIGURES", str(ROOT / "figures"))
    try:
        call, _ = COMMANDS[argv[0]]
        return call(argv[1:])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
