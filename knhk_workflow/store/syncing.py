"""What makes names and files survive a loss of power: fsync of a file alone keeps its content, not its name."""

from __future__ import annotations

import os


def sync_names(directory: str | os.PathLike[str]) -> None:
    """Make the names in a directory (made, renamed, removed) survive a loss of power. Raises OSError."""
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def sync_content(directory: str) -> None:
    """Make every file in a directory, and their names, survive a loss of power. Raises OSError."""
    for name in os.listdir(directory):
        _sync(os.path.join(directory, name), os.O_RDONLY)
    sync_names(directory)


def _sync(path: str | os.PathLike[str], flags: int) -> None:
    file = os.open(path, flags)
    try:
        os.fsync(file)
    finally:
        os.close(file)
