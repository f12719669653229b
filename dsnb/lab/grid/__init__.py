"""A notebook over a grid of parameters, as rows of one table, on this machine or on a Dask cluster.

`record` and `once` are for inside the notebook; the rest is loaded on first use, so that they stay light.
"""

from importlib import import_module

from .records import once, record

_EXPORTS = {
    "ClusterError": "runner",
    "FolderError": "results",
    "GridError": "grid",
    "Report": "runner",
    "main": "runner",
    "read_table": "results",
    "run": "runner",
}

__all__ = [*_EXPORTS, "once", "record"]


def __getattr__(name):
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
