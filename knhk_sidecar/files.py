"""Small files: noticing that one was replaced."""

from __future__ import annotations

import os
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
