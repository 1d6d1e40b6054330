"""How a command fails: an exit code, the reason, and one line that mends it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def safe(text: str) -> str:
    """`text` with what a terminal would obey made visible: ids and data come from whoever called the daemon."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


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


def settings_refused(error: Exception) -> Failure:
    """The failure for settings that cannot be used: one line per problem."""
    mend = "mend what is listed; `knhk config show` explains each setting"
    return Failure(Exit.USAGE, "the settings cannot be used", mend, str(error).splitlines())
