"""Files and directories that commands are pointed at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from knhk_sidecar.cli.failure import Exit, Failure

STORE: Final = "workflow_db"  # inside a data directory
MARK: Final = "FORMAT"  # the file that every store has


def store_in(place: Path) -> Path:
    """The store at a path, or the one inside, when it is the data directory of a daemon."""
    inside = place / STORE
    return inside if not (place / MARK).exists() and inside.is_dir() else place


@contextmanager
def arriving(file: Path) -> Iterator[BinaryIO]:
    """A file that is written piece by piece, and gets its name once the block has ended well and it is on the disk.
    Until then it is another one, `out.name`, of which nothing is left otherwise. Raises Failure."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    except OSError as error:
        raise Failure(Exit.FAILED, f"{file}: {error.strerror}", "choose another place for it") from error
    finally:
        partial.unlink(missing_ok=True)
