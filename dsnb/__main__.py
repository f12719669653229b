"""The command line: `dsnb COMMAND`, or `python -m dsnb COMMAND`. `dsnb COMMAND --help` lists its options."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from . import __version__

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"


def run(argv: list[str]) -> int:
    """run a notebook over a grid of parameters and write one table"""
    from .lab.grid import main

    return main(argv)


def bench(argv: list[str]) -> int:
    """measure what each method and kernel costs on this machine"""
    from .lab.bench import main

    return main(argv)


def compare(argv: list[str]) -> int:
    """compare all methods on 96 images with 4 seeds: the tables and figures of notebook 14"""
    from .lab.compare.command import main

    return main(argv)


def demo(argv: list[str]) -> int:
    """blend two styles in one bundled image and write two files into the current folder"""
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


def figures(argv: list[str]) -> int:
    """run the notebooks that are out of date, write their outputs into them and redraw `figures/`"""
    from .lab.outputs import main

    return main(argv)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo,
    "run": run,
    "compare": compare,
    "bench": bench,
    "figures": figures,
}
IN_A_CLONE = ("figures",)  # commands that run the repository's notebooks
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
        print(__doc__, *(f"  {name:8} {call.__doc__}" for name, call in COMMANDS.items()), sep="\n")
        return 0
    if argv[0] == "--version":
        print(f"dsnb {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: unknown command {argv[0]!r}; use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if argv[0] in IN_A_CLONE and not NOTEBOOKS.is_dir():
        print(
            f"error: `dsnb {argv[0]}` runs the notebooks of the repository, and {NOTEBOOKS} does not exist. "
            "Clone the repository and install it with `pip install -e .`",
            file=sys.stderr,
        )
        return 2
    if argv[0] in REDRAWING and NOTEBOOKS.is_dir():
        os.environ.setdefault("DSNB_FIGURES", str(ROOT / "figures"))
    try:
        return COMMANDS[argv[0]](argv[1:])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
