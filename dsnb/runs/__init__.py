"""A notebook over a grid of parameters, as rows of one table, on this machine or on a Dask cluster."""

from .grid import GridError
from .results import FolderError, read_table
from .runner import ClusterError, Report, main, run

__all__ = ["ClusterError", "FolderError", "GridError", "Report", "main", "read_table", "run"]
