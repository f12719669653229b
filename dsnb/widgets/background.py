"""One thread that draws for every panel of a notebook, and waits while a cell runs.

Two images must not be drawn at the same time, because they would share the model and its attention hooks. So all panels
use this thread. When a cell runs, the thread stops its image, and starts it again after the cell.
"""

import ctypes
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Superseded(BaseException):
    """`report` raises it when the image that is being drawn is no longer needed; it is not an error."""


class Task(Protocol):
    """Something that needs drawing: a panel."""

    def due(self) -> tuple[float, str] | None: ...

    def work(self, what: str) -> None: ...


class Worker(threading.Thread):
    """Runs `task.work(what)` at the time `when`. `task.due()` gives both; `when` is a time of time.monotonic()."""

    def __init__(self) -> None:
        super().__init__(name="dsnb-panels", daemon=True)
        self.condition = threading.Condition()
        self.held = False  # a cell is running: stop the present image at its next step, and start no other
        self._busy = False
        self._tasks: list[Task] = []
        self._shell: Any = None
        self.start()

    def wake(self, task: Task) -> None:
        """Checks whether `task` needs drawing."""
        with self.condition:
            if task not in self._tasks:
                self._tasks.append(task)
            self.condition.notify_all()

    def wait_for(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Waits for a condition while the thread works, although the calling cell runs.

        Args:
            predicate: the condition.
            timeout: the longest wait in seconds.

        Returns:
            Whether the condition holds.
        """
        with self.condition:
            held, self.held = self.held, False
            self.condition.notify_all()
            try:
                return self.condition.wait_for(predicate, timeout)
            finally:
                if held:
                    self._hold()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The thread draws nothing while the block runs."""
        with self.condition:
            held = self.held
            self._hold()
        try:
            yield
        finally:
            release_threads()
            with self.condition:
                self.held = held
                self.condition.notify_all()

    def watch_cells(self) -> None:
        """Pauses while a cell of this notebook runs."""
        try:
            from IPython import get_ipython
        except ImportError:
            return
        shell = get_ipython()
        if shell is not None and self._shell is not shell:
            self._shell = shell
            shell.events.register("pre_run_cell", self.cell_begins)
            shell.events.register("post_run_cell", self.cell_ends)
            parent: dict[str, Any] = shell.get_parent() if hasattr(shell, "get_parent") else {}
            if parent.get("header", {}).get("msg_type") != "comm_msg":  # not in a button's callback
                self.cell_begins()  # for the cell that calls this

    def cell_begins(self, *_: object) -> None:
        """Stops the image that is being drawn, and draws none until `cell_ends`."""
        with self.condition:
            self._hold()

    def cell_ends(self, *_: object) -> None:
        """Goes on with drawing."""
        release_threads()
        with self.condition:
            self.held = False
            self.condition.notify_all()

    def run(self) -> None:
        while True:
            with self.condition:
                task, what = self._next()
                self._busy = True
            try:
                task.work(what)
            except Exception:  # of an observer: this thread also draws the other panels
                traceback.print_exc()
            finally:
                release_threads()
                with self.condition:
                    self._busy = False
                    self.condition.notify_all()

    def _next(self) -> tuple[Task, str]:
        while True:
            plans = [(task.due(), task) for task in self._tasks]
            due = [(plan, task) for plan, task in plans if plan is not None]
            self._tasks = [task for _, task in due]
            if not due or self.held:
                self.condition.wait()
                continue
            (when, what), task = min(due, key=lambda pair: pair[0][0])
            left = when - time.monotonic()
            if left <= 0:
                return task, what
            self.condition.wait(left)

    def _hold(self) -> None:
        self.held = True
        # a panel that is made inside another panel's `draw` would wait for itself
        self.condition.wait_for(lambda: not self._busy or threading.current_thread() is self)


def release_threads() -> None:
    """Ends the calling thread's OpenMP threads; its next large tensor operation starts new ones.

    The cells of a notebook and its panels each have such threads. If there are more threads than cores, GNU OpenMP lets
    them sleep between operations, and a call of the bundled UNet takes up to 1.6 times as long.
    """
    if sys.platform == "linux":
        pause = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)  # absent before OpenMP 5
        if pause is not None:
            pause(1)  # omp_pause_soft


_worker: Worker | None = None
_making = threading.Lock()


def worker() -> Worker:
    """The worker of this process, which starts at the first call."""
    global _worker
    with _making:
        if _worker is None:
            _worker = Worker()
        return _worker
