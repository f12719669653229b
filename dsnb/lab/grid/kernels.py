"""Run one point of a grid: nbclient executes the notebook in a Jupyter kernel that serves many points.

A thread keeps its kernel for the next point of the same run. A point that fails ends the kernel, and so does the
end of the run. A kernel takes code through socket files in a folder that only its owner can enter. The one network
port that ipykernel opens takes text from the notebook's child processes, and only with a secret key.
Dask workers import this module too, so it imports neither torch nor pandas.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import platform
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import SimpleQueue

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from ... import __version__
from .records import recorded

PACKAGES = ("torch", "diffusers", "transformers", "nbclient", "numpy")
START = 60  # seconds that a kernel may take to start
LOG = logging.getLogger("dsnb.grid")
LOG.setLevel(logging.CRITICAL)  # an error is in the outcome
CLEAR = "from dsnb.lab.grid.records import clear; clear({folder!r}, {figures!r})"


@dataclass(frozen=True)
class Job:
    """What all points of one run share."""

    run: str  # a name that no other run has
    notebook: str  # as text
    folder: str  # the folder that the notebook runs in
    limit: float  # seconds that the notebook may take in its kernel


@dataclass(frozen=True)
class Outcome:
    """What came of one point."""

    error: str  # empty if the notebook ran to its end
    rows: list[dict]  # what it recorded
    notebook: str  # as executed, as text
    images: list[bytes]  # the PNG images that it showed
    seconds: float
    worker: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Kernel:
    """A running kernel, the run that it belongs to, and a folder for its sockets that only its owner can enter."""

    run: str
    manager: AsyncKernelManager
    sockets: tempfile.TemporaryDirectory

    def end(self) -> None:
        """Kill the kernel and the processes that it started."""
        process = getattr(self.manager.provisioner, "process", None)
        if process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # a kernel leads a process group
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
        self.sockets.cleanup()


_kernels: dict[int, Kernel] = {}  # by thread
_ended: set[str] = set()  # runs
_thread = threading.local()


def set_environment(environments: SimpleQueue) -> None:
    """Take the environment variables for the kernels of this thread from a queue."""
    _thread.environment = environments.get()


def run_point(job: Job, parameters: Mapping) -> Outcome:
    """Run the notebook with these parameters; an error in it is part of the outcome."""
    begin, error = time.perf_counter(), ""
    notebook = nbformat.reads(job.notebook, as_version=4)
    _set_parameters(notebook, parameters)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        try:
            asyncio.run(_execute(notebook, job, scratch))
        except CellExecutionError as failure:
            error = f"{failure.ename}: {failure.evalue}"
        except Exception as failure:  # the kernel is not installed, did not start, was killed, …
            error = f"{type(failure).__name__}: {failure}"
    if error and (kernel := _kernels.pop(threading.get_ident(), None)):
        kernel.end()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return Outcome(
        error=" ".join(error.split())[:2000],
        rows=[] if error else recorded(notebook),
        notebook=nbformat.writes(notebook),
        images=[base64.b64decode(image) for image in images],
        seconds=round(time.perf_counter() - begin, 3),
        worker=f"{socket.gethostname()}:{threading.current_thread().name}",
        versions=versions(),
    )


def end_kernels(run: str) -> None:
    """End a run's kernels in this process, and those that are about to start."""
    _ended.add(run)
    for thread, kernel in list(_kernels.items()):
        if kernel.run == run:
            _kernels.pop(thread, None)
            kernel.end()


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide a result."""
    found = {"python": platform.python_version(), "dsnb": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _set_parameters(notebook, parameters: Mapping) -> None:
    """Insert a cell that sets the parameters after the last cell with defaults; it replaces that of an earlier run."""
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    tagged = [k for k, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])]
    if parameters:
        code = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        cell = nbformat.v4.new_code_cell(code, metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(tagged[-1] + 1, cell)


async def _execute(notebook, job: Job, figures: str) -> None:
    """Execute the notebook in this thread's kernel; what it shows is written into it, what it saves into `figures`."""
    kernel = await _kernel(job.run, notebook.metadata.get("kernelspec", {}).get("name", "python3"))
    client = NotebookClient(notebook, km=kernel.manager, shell_timeout_interval=1, log=LOG)
    client.kc = kernel.manager.client()
    client.kc.start_channels()
    try:
        await client.kc.wait_for_ready(START)
        folder = str(Path(job.folder if Path(job.folder).is_dir() else ".").resolve())
        code = CLEAR.format(folder=folder, figures=figures)
        reply = await client.async_wait_for_reply(client.kc.execute(code, silent=True))
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"the kernel cannot be cleared: {reply['content'].get('evalue')}")
        await _execute_within(job.limit, client, kernel)
    finally:
        client.kc.stop_channels()


async def _execute_within(limit: float, client: NotebookClient, kernel: Kernel) -> None:
    """Execute the notebook, but end its kernel after `limit` seconds."""
    loop = asyncio.get_running_loop()
    alarm = loop.call_later(limit, kernel.end)
    try:
        await client.async_execute()
    except DeadKernelError:
        if loop.time() >= alarm.when():
            why = f"the point took longer than {limit:g} s, so its kernel was ended (--point-timeout)"
            raise TimeoutError(why) from None
        status = kernel.manager.provisioner.process.poll()
        why = f"the kernel ended with exit status {status}"
        if status == -signal.SIGKILL:
            why = "the kernel was killed (SIGKILL), as the system does when memory runs out; "
            why += "use fewer --workers, or let a point do less"
        raise DeadKernelError(why) from None
    finally:
        alarm.cancel()


async def _kernel(run: str, name: str) -> Kernel:
    """This thread's kernel. A kernel of another run gives way to a new one."""
    thread = threading.get_ident()
    kernel = _kernels.get(thread)
    if kernel is None or kernel.run != run:
        if kernel is not None:
            kernel.end()
        # the path of a socket has at most 103 characters
        place = tempfile.gettempdir() if len(tempfile.gettempdir()) < 70 else "/tmp"
        sockets = tempfile.TemporaryDirectory(prefix="dsnb-", dir=place, ignore_cleanup_errors=True)
        file = str(Path(sockets.name, "kernel.json"))
        manager = AsyncKernelManager(kernel_name=name, transport="ipc", connection_file=file)
        kernel = _kernels[thread] = Kernel(run, manager, sockets)
        environment = os.environ | getattr(_thread, "environment", {})
        # the notebook has what its code prints; the rest is the kernel's own log
        await manager.start_kernel(env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if run in _ended:
        kernel.end()
        raise RuntimeError("the run ended while this kernel started")
    return kernel
