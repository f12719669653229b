"""One point of a grid: a notebook run with given parameters in a kernel that the worker keeps.

This is what travels to a worker and back; it imports neither torch nor the rest of the package. A worker
process keeps one Jupyter kernel per thread. Before each point the kernel's variables are cleared but its
modules stay, so that `once(dsnb.load)` in a notebook loads the model once per worker. A point that fails
takes its kernel with it, and a run that ends those on all workers.
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

from ... import __version__
from .records import pictures, recorded

PACKAGES = ("torch", "diffusers", "transformers", "papermill", "numpy")
CLEAR = """
import sys, os
os.environ["DSNB_FIGURES"] = {figures!r}
if "matplotlib.pyplot" in sys.modules: sys.modules["matplotlib.pyplot"].close("all")
if "ipywidgets" in sys.modules: sys.modules["ipywidgets"].Widget.close_all()
os.chdir({folder!r})
get_ipython().reset(new_session=True)
import gc; gc.collect(); del gc
"""
_kernels: dict[tuple[int, str, str], AsyncKernelManager] = {}  # by thread, run and the kernel's name


@dataclass(frozen=True)
class Point:
    """A notebook (as text), its parameters, the folder it is to run in, and one for the figures it saves.

    Without one the figures are not kept, so that points do not overwrite each other's; what is shown is.
    """

    id: str
    notebook: str
    parameters: dict
    folder: str = ""
    figures: str = ""


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
    """Papermill's engine in a kernel that outlives the notebook; variables are cleared beforehand."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, folder, figures, run, start_timeout=60, **options):
        kernel = _kernel(run, kernel_name)
        client = PapermillNotebookClient(
            nb_man,
            km=kernel,
            kernel_name=kernel_name,
            startup_timeout=start_timeout,
            timeout=None,
            log=logging.getLogger("papermill"),
            resources={"metadata": {"path": folder}},
            extra_arguments=["--IPKernelApp.log_level=40"],
        )
        try:
            with client.setup_kernel():
                fresh = CLEAR.format(folder=folder, figures=figures)
                ready = client.wait_for_reply(client.kc.execute(fresh, silent=True))
                if ready["content"]["status"] != "ok":
                    raise RuntimeError(f"the kept kernel cannot be cleared: {ready['content'].get('evalue')}")
                if kernel not in _kernels.values():
                    raise RuntimeError("the run ended while this point's kernel started")
                client.execute()
        finally:
            if client.kc is not None:
                client.kc.stop_channels()
            if kernel not in _kernels.values():  # the run ended meanwhile
                _end(kernel)


papermill_engines.register("kept-kernel", KeptKernel)


def _kernel(run: str, name: str) -> AsyncKernelManager:
    """This thread's kernel; one of another run or name gives way to a fresh one."""
    key = threading.get_ident(), run, name
    if key not in _kernels:
        end_kernels(thread=threading.get_ident())
        _kernels[key] = AsyncKernelManager(kernel_name=name)
    return _kernels[key]


def end_kernels(run: str | None = None, thread: int | None = None) -> None:
    """Forget the kernels of this process, or of one run or thread in it, and end their processes."""
    for key in list(_kernels):
        if thread in (None, key[0]) and run in (None, key[1]):
            _end(_kernels.pop(key, None))


def _end(kernel: AsyncKernelManager | None) -> None:
    """Kill a kernel's process; what goes wrong here is of no interest to anyone."""
    try:
        kernel.cleanup_connection_file()
        kernel.provisioner.process.kill()
    except Exception:
        pass


atexit.register(end_kernels)


def run_point(point: Point, run: str = "") -> Outcome:
    """Run one point and return what came of it; an error in the notebook is an outcome, not an exception.

    Points of the same run share this thread's kernel.
    """
    begin = time.perf_counter()
    folder = point.folder if Path(point.folder or "/nowhere").is_dir() else os.getcwd()
    error = ""
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "notebook.ipynb"
        try:
            source = nbformat.reads(point.notebook, as_version=4)
            engine = {"engine_name": "kept-kernel", "folder": folder, "figures": point.figures or scratch}
            papermill.execute_notebook(source, path, point.parameters, progress_bar=False, run=run, **engine)
        except papermill.PapermillExecutionError as failure:
            error = f"{failure.ename}: {failure.evalue}"
        except Exception as failure:  # a kernel that died, a kernel that is not installed, …
            error = f"{type(failure).__name__}: {failure}"
        if error:
            end_kernels(thread=threading.get_ident())
        notebook = path.read_text(encoding="utf-8") if path.is_file() else point.notebook
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
    found = {"python": platform.python_version(), "dsnb": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
