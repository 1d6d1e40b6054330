"""What is told to whoever runs the engine, because no caller asked for it: the event loop's exception handler gets it,
and a daemon's puts it into the log."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable


def tell_operator(problem: str, error: BaseException) -> None:
    """Tell of a problem and the error that it came from."""
    asyncio.get_running_loop().call_exception_handler({"message": problem, "exception": error})


class Damaged:
    """What cannot be read, while everything else goes on. Each is told of once, however often it is met; verifying the
    store names it too."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: set[Hashable] = set()

    def met(self, name: Hashable, problem: str, error: BaseException) -> None:
        """It was met: `problem` is told unless it was."""
        if name not in self._names:
            self._names.add(name)
            tell_operator(problem, error)
