"""The comparison of methods: every measure of every method on the same images and noise, with intervals.

tasks        what is compared: images of the drawn world, or a file of the user's
measuring    all measures of one image
running      every method on every image and seed
tables       means, intervals, paired differences
plots        figures of the tables
report       the files 14_*
command      `dsnb compare`
"""

from .measuring import Networks, gram_references, measure, open_networks, prepare
from .report import read_rows
from .running import Run, Settings, compare_image, compute
from .tasks import GROUND_TRUTH, Task, drawn_tasks, read_pairs

__all__ = [
    "GROUND_TRUTH", "Networks", "Run", "Settings", "Task", "compare_image", "compute", "drawn_tasks",
    "gram_references", "measure", "open_networks", "prepare", "read_pairs", "read_rows",
]  # fmt: skip
