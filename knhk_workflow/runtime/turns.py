"""Changes of one thing, one after the other: each decides on what the one before it has left.

A call that was cancelled lets go of its turn while what it asked for is still on its way to the disk, and that is
written all the same. So a turn begins only when nothing is being written any more, and who changed what is known in
memory by the commit itself, not by the call that may have gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Turns:
    """The turns of one thing that is changed."""

    __slots__ = ("_lock", "_writing")

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._writing: asyncio.Future[int] | None = None

    @property
    def taken(self) -> bool:
        """Whether somebody has the turn."""
        return self._lock.locked()

    @property
    def writing(self) -> bool:
        """Whether there is a change whose outcome is not known yet."""
        return self._writing is not None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """While nobody else changes it."""
        async with self._lock:
            if self._writing is not None:
                await asyncio.wait((self._writing,))
            yield

    def write(self, appended: asyncio.Future[int], written: Callable[[bool], None]) -> asyncio.Future[int]:
        """The change of this turn is in the journal. `written` is told whether it became durable before anybody who
        waits for `appended` goes on, and whoever has stopped waiting. Wait for what is returned, shielded."""

        def outcome(done: asyncio.Future[int]) -> None:
            self._writing = None
            written(not done.cancelled() and done.exception() is None)

        self._writing = appended
        appended.add_done_callback(outcome)
        return appended
