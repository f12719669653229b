"""The results that the committed notebooks carry: made in one run, small, and never older than their code.

`make figures` runs the notebooks and writes what they show into them. `find_problems` is what the tests ask.
"""

import argparse
import base64
import hashlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from PIL import Image

from .. import data_path
from ..checkpoints import BUNDLED
from ..files import write_whole
from .grid.parameters import hash_weights, without_comments

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
LARGEST_IMAGE = 120_000  # bytes; in base64 a third more
LARGEST_NOTEBOOK = 1_200_000  # bytes
WIDEST = 1200  # pixels
TEXTS = (
    "text/html",
    "text/markdown",
    "text/latex",
    "text/plain",
)  # kept where there is no image; a film is HTML


def main(argv: Sequence[str]) -> int:
    """The command; its exit status is 1 if a notebook failed."""
    does = "Run notebooks, write their outputs into them and redraw `figures/`."
    parser = argparse.ArgumentParser("dsnb figures", description=does)
    told = "notebooks to run, such as notebooks/05_two_baselines.ipynb; default: those whose outputs are out of date"
    parser.add_argument("notebooks", nargs="*", type=Path, help=told)
    named = [path.resolve() for path in parser.parse_args(argv).notebooks]
    known = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    if unknown := [str(path) for path in named if path not in known]:
        parser.error(f"notebooks must be files of {NOTEBOOKS}, without solutions; got {', '.join(unknown)}")
    os.environ["DSNB_INTERACTIVE"] = "0"  # a panel shows one fixed image
    failed = 0
    for notebook in named or [path for path in known if find_problems(path)]:
        print(notebook.name, flush=True)
        try:
            execute(notebook, ROOT / "runs" / "figures")
        except (papermill.PapermillExecutionError, DeadKernelError, ValueError) as error:
            print(f"error: {notebook.name} failed\n{error}", file=sys.stderr)
            failed = 1
    return failed


def execute(path: Path, folder: Path) -> None:
    """Run a notebook with its defaults and write its outputs into it.

    Args:
        path: the notebook, which is replaced.
        folder: where the executed copy is kept, as papermill writes it.

    Raises:
        papermill.PapermillExecutionError: if a cell fails; the notebook is then unchanged.
        DeadKernelError: if the kernel dies, for example because memory ran out.
        ValueError: if a code cell was added or removed while the notebook ran.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began_with = fingerprint(nbformat.read(path, as_version=4))  # it may be edited while it runs
    done = papermill.execute_notebook(path, folder / path.name, cwd=path.parent, coalesce_streams=True)
    for limit in (LARGEST_IMAGE, 80_000, 50_000, 30_000, 20_000):
        notebook = nbformat.read(path, as_version=4)
        if len(code_cells(notebook)) != len(code_cells(done)):
            raise ValueError("a code cell was added or removed while the notebook ran; run it again")
        for cell, ran in zip(code_cells(notebook), code_cells(done), strict=True):
            cell.execution_count = ran.execution_count
            cell.outputs = [kept for output in ran.outputs if (kept := _keep(output, limit))]
        notebook.metadata["dsnb"] = {"outputs_of": began_with}
        data = (nbformat.writes(notebook) + "\n").encode()
        if len(data) <= LARGEST_NOTEBOOK:
            break
    write_whole(path, data)


def fingerprint(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """What a notebook's outputs depend on: hashes of its code without comments, and of the bundled model."""
    code = "\0".join(without_comments(cell.source) for cell in code_cells(notebook))
    return {
        "code": hashlib.sha256(code.encode()).hexdigest(),
        "model": hash_weights(data_path("models", BUNDLED)),
    }


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def find_problems(path: Path) -> list[str]:
    """What is wrong with the outputs that a notebook carries, one sentence each; empty if nothing is."""
    notebook, problems = nbformat.read(path, as_version=4), []
    if path.stat().st_size > LARGEST_NOTEBOOK:
        problems.append(f"the file has {path.stat().st_size} bytes; at most {LARGEST_NOTEBOOK} are allowed")
    known, now = notebook.metadata.get("dsnb", {}).get("outputs_of", {}), fingerprint(notebook)
    changed = [name for name in now if known.get(name) != now[name]]
    if changed:
        problems.append(
            f"the outputs were made with another {' and another '.join(changed)}; run `make figures`"
        )
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        problems.append(f"the execution counts are {counts}; expected 1, 2, 3 … in order")
    for cell in code_cells(notebook):
        for output in cell.outputs:
            large = any(0.75 * len(text) > LARGEST_IMAGE for text in output.get("data", {}).values())
            if large or output != _keep(output, LARGEST_IMAGE):
                told = "holds an output that is too large or not from `make figures`"
                problems.append(f"cell {cell.id!r} {told}")
    return problems


def _keep(output: nbformat.NotebookNode, limit: int) -> nbformat.NotebookNode | None:
    """An output as the committed notebook shows it, or None: no stderr, no widget, no path of this machine."""
    output = nbformat.from_dict(output)  # a copy
    if output.output_type == "stream":
        output.text = output.text.replace(f"{ROOT}/", "")
        return output if output.name == "stdout" else None
    data = output.get("data", {})
    if "image/png" in data:
        data["image/jpeg"] = _small(base64.b64decode(data.pop("image/png")), limit)
    kinds = [kind for kind in ("image/jpeg",) if kind in data] or [kind for kind in TEXTS if kind in data]
    if not kinds or any("widget" in kind for kind in data):
        return None
    output.data = {kind: data[kind].replace(f"{ROOT}/", "") for kind in kinds}
    output.metadata = {}
    return output


def _small(png: bytes, limit: int) -> str:
    """A PNG as a JPEG of at most `limit` bytes, in base64."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.thumbnail((WIDEST, 4 * WIDEST), Image.Resampling.LANCZOS)
    while True:
        for quality in (90, 82, 74):
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=quality, optimize=True)
            if buffer.tell() <= limit:
                return base64.b64encode(buffer.getvalue()).decode()
        image = image.resize([max(1, round(0.85 * side)) for side in image.size], Image.Resampling.LANCZOS)
