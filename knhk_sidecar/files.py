"""Small files: noticing that one was replaced, and replacing one so that nobody ever reads half of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

Stamp = tuple[int, int, int]
MISSING: Final[Stamp] = (0, 0, 0)  # no file has it


def stamp(path: str | Path) -> Stamp:
    """Changes when the file is replaced or rewritten; a missing file is a change too."""
    try:
        return stamp_of(os.stat(path))
    except OSError:
        return MISSING


def stamp_of(status: os.stat_result) -> Stamp:
    """The same for whoever has to know why a file is missing, or more of it."""
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def replace(path: Path, content: bytes, mode: int, *, durable: bool = False) -> None:
    """Puts a new file in the place of `path`, or of the link that is there: all of it or nothing.

    `mode` is what the umask is taken from, and the file has it from its first byte on. `durable`: the file and its name
    survive a loss of power. Until it is complete it is a hidden file beside, of this process alone; what fails takes it
    away again. Raises OSError.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)  # of one that was killed and had our process id
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(descriptor)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    if durable:
        _sync_names(path.parent)


def _sync_names(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
