"""The comparison of methods: every measure of every method on the same pictures, then tables with errors."""

from .comparing import TRUE_MIX, Eyes, Gauge, Task, compare, gram_references, noise_seed, read_pairs

__all__ = ["TRUE_MIX", "Eyes", "Gauge", "Task", "compare", "gram_references", "noise_seed", "read_pairs"]
