"""How a command fails: an exit code, the reason, and one line that mends it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of `knhk`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    DENIED = 4
    PRECONDITION = 5
    UNAVAILABLE = 6
    INTERRUPTED = 130
    TIMEOUT = 124


class Failure(Exception):
    """Ends the command. `details` are lines between the reason and the mend."""

    def __init__(self, code: Exit, message: str, mend: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.mend = mend
        self.details = tuple(details)
