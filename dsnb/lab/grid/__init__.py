"""Run a notebook over a grid of parameters and collect what it records in one table.

How it works:
`command.py` is `dsnb run`. `runner.py` takes the grid and sends its points to threads of this process,
or to the workers of your own Dask cluster.
`parameters.py` reads the notebook's parameters, checks the values and makes the points.
`kernels.py` runs one point: nbclient executes the notebook in a Jupyter kernel. Each thread keeps its kernel for
the next point, so the kernel loads a model only once. It takes code only through files that its owner can open.
`folder.py` keeps the results. A point is finished when its `rows.json` exists. The table is all these rows.
`records.py` is for use inside the notebook: `record` hands out rows, `once` keeps the model.
"""

from importlib import import_module

from .records import once, record

# Loaded on first use, so that a notebook which only needs `once` and `record` starts fast.
_EXPORTS = {
    "GridError": "parameters",
    "main": "command",
    "read_table": "folder",
    "run": "runner",
}

__all__ = [*_EXPORTS, "once", "record"]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
