"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_down(path: Path, data: bytes) -> None:
    """Write a file down to the disk, so that a name given to it afterwards never stands for half of it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place and rename it there; nothing is left behind if that fails (OSError)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_down(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
