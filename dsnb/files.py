"""Writing files so that they are complete or absent."""

import os
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that other processes read either its old bytes or its new ones, never a part.

    Args:
        path: the file. A link of this name is replaced, not followed.
        data: all bytes of the file. Its permissions are those of the umask.

    Raises:
        OSError: the file cannot be written. The old file is then unchanged, and no temporary file remains.
    """
    write_all_whole({path: data})


def write_all_whole(files: Mapping[Path, bytes]) -> None:
    """As `write_whole` for several files. The first gets its name after all of them are on the disk.

    Args:
        files: path -> bytes.

    Raises:
        OSError: a file cannot be written.
    """
    for path in files:
        if path.exists() and not path.is_file():  # the rename would replace a pipe or a device
            raise OSError(f"{str(path)!r} is not a regular file; choose another name")
    written = {path: path.with_name(f".{uuid4().hex}.tmp") for path in files}
    try:
        for path, data in files.items():
            with written[path].open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in written.items():
            os.replace(temporary, path)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
