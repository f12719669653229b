"""One point of a grid: a notebook run with given parameters in a kernel that the worker keeps.

This is what travels to a worker and back; it imports neither torch nor the rest of the package. A worker
process keeps one Jupyter kernel per thread. Between points the kernel's variables are cleared but its
modules stay, so that `once(dsnb.load)` in a notebook loads the model once per worker. A point that fails
takes its kernel with it.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from ..records import pictures, recorded

PACKAGES = ("dsnb", "torch", "diffusers", "transformers", "papermill", "numpy")
CLEAR = """
import sys, os, gc
if "matplotlib.pyplot" in sys.modules: sys.modules["matplotlib.pyplot"].close("all")
if "ipywidgets" in sys.modules: sys.modules["ipywidgets"].Widget.close_all()
os.chdir({folder!r})
get_ipython().reset(new_session=True)
import gc; gc.collect(); del gc
"""
_kept = threading.local()


@dataclass(frozen=True)
class Point:
    """A notebook (as text), its parameters, and the folder it is to run in."""

    id: str
    notebook: str
    parameters: dict
    folder: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a point: rows recorded, the executed notebook as text, its pictures as PNG bytes."""

    id: str
    status: str  # "done" or "failed"
    error: str
    rows: list[dict]
    notebook: str
    pictures: list[bytes] = field(default_factory=list)
    seconds: float = float("nan")
    worker: str = ""
    versions: dict = field(default_factory=dict)


class KeptKernel(NBClientEngine):
    """Papermill's engine in a kernel that outlives the notebook; variables are cleared afterwards."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, folder, start_timeout=60, **options):
        client = PapermillNotebookClient(
            nb_man,
            km=_kernel(kernel_name),
            kernel_name=kernel_name,
            startup_timeout=start_timeout,
            timeout=None,
            log=logging.getLogger("papermill"),
            resources={"metadata": {"path": folder}},
            extra_arguments=["--IPKernelApp.log_level=40"],
        )
        try:
            client.execute()
            client.wait_for_reply(client.kc.execute(CLEAR.format(folder=folder), silent=True))
        finally:
            if client.kc is not None:
                client.kc.stop_channels()


papermill_engines.register("kept-kernel", KeptKernel)


def _kernel(name: str) -> AsyncKernelManager:
    if getattr(_kept, "kernel", None) is None:
        _kept.kernel = AsyncKernelManager(kernel_name=name)
        atexit.register(_end, _kept.kernel)
    return _kept.kernel


def _end(kernel: AsyncKernelManager) -> None:
    """Kill a kernel's process; what goes wrong here is of no interest to anyone."""
    try:
        kernel.provisioner.process.kill()
    except Exception:
        pass


def drop_kernel() -> None:
    """Forget this thread's kernel and end its process; the next point starts a fresh one."""
    kernel, _kept.kernel = getattr(_kept, "kernel", None), None
    if kernel is not None:
        _end(kernel)


def run_point(point: Point) -> Outcome:
    """Run one point and return what came of it; an error in the notebook is an outcome, not an exception."""
    begin = time.perf_counter()
    folder = point.folder if Path(point.folder or "/nowhere").is_dir() else os.getcwd()
    error = ""
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "notebook.ipynb"
        try:
            source = nbformat.reads(point.notebook, as_version=4)
            papermill.execute_notebook(
                source, path, point.parameters, engine_name="kept-kernel", progress_bar=False, folder=folder
            )
        except papermill.PapermillExecutionError as failure:
            error = f"{failure.ename}: {failure.evalue}"
        except Exception as failure:  # a kernel that died, a kernel that is not installed, …
            error = f"{type(failure).__name__}: {failure}"
        if error:
            drop_kernel()
        notebook = path.read_text() if path.is_file() else point.notebook
    executed = nbformat.reads(notebook, as_version=4)
    return Outcome(
        id=point.id,
        status="failed" if error else "done",
        error=" ".join(error.split())[:2000],
        rows=[] if error else recorded(executed),
        notebook=notebook,
        pictures=pictures(executed),
        seconds=round(time.perf_counter() - begin, 3),
        worker=f"{socket.gethostname()}:{os.getpid()}",
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, of those that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
