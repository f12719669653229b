"""The comparison of methods: every measure of every method on the same pictures, then tables with errors."""

from .comparing import Eyes, Gauge, Task, compare, gram_references, noise_seed, read_pairs

__all__ = ["Eyes", "Gauge", "Task", "compare", "gram_references", "noise_seed", "read_pairs"]
