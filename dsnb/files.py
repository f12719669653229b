"""Files that are there whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4


def write_down(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk. Raises FileExistsError where the name is taken, even by a link."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old bytes or the new ones, never a part of them.

    Args:
        path: the file. A link in its place is replaced, not followed.
        data: all of its bytes. The permissions follow the umask.

    Raises:
        OSError: where it cannot be written. The old file is then unchanged, and nothing is left behind.
    """
    write_all_whole({path: data})


def write_all_whole(files: Mapping[Path, bytes]) -> None:
    """As `write_whole` for several files; none gets its name before all are on the disk."""
    for path in files:
        if (
            path.exists() and not path.is_file()
        ):  # a folder, a pipe or a device, which the rename would remove
            raise OSError(f"{str(path)!r} is not a regular file")
    written = {path: path.with_name(f".{uuid4().hex}.tmp") for path in files}
    try:
        for path, data in files.items():
            write_down(written[path], data)
        for path, temporary in written.items():
            os.replace(temporary, path)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
