"""Skipping time: from one moment at which something is due to the next, so that weeks pass in milliseconds.

At each stop what is due is done, and what follows from it by itself, before time goes on. What the outside does
(people, workers, services) takes its own, real time: skip up to a moment, let them work, skip on. The deadlines of
calls are told in the same time, so those under way while it is skipped find that theirs has passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

import msgspec

from knhk_workflow.errors import LimitExceeded
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.schedules import Schedules
from knhk_workflow.runtime.timers import NEVER, Timers
from knhk_workflow.store import Keyspace, Reads, unseal_log

STOPS_MAX: Final = 100_000  # in one call: a minute; whoever skips years of seconds does it in parts
QUIET_S: Final = 1.0  # real seconds for what a stop has set in motion; what takes longer waits for the outside


class Movable(Clock, Protocol):
    """A clock that time can be skipped on."""

    def skip_to(self, now: int) -> None:
        """Let time pass until `now`; never backwards."""
        ...


class TimeView(msgspec.Struct, frozen=True):
    """What time it is, after how many stops, and when something is due next (0 = nothing is)."""

    now: int
    stops: int
    next: int


class Skipping:
    """The time of one engine whose clock can be moved. `tasks` are those that end by themselves."""

    def __init__(
        self, clock: Movable, timers: Timers, schedules: Schedules, tasks: Callable[[], Iterable[Awaitable[object]]]
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._schedules = schedules
        self._tasks = tasks
        self._turn = asyncio.Lock()

    async def skip(self, until: int | None) -> TimeView:
        """Let time pass until then, or with None to the next moment at which something is due, if there is one. Raises
        LimitExceeded after STOPS_MAX stops; time is then where it came to."""
        async with self._turn:
            stops = 0
            await self._rest()
            coming = await self._next()
            if until is None:
                until = coming if coming < NEVER else self._clock.now()
            while coming <= until:
                if stops == STOPS_MAX:
                    raise LimitExceeded(
                        "stops of one skip", STOPS_MAX, STOPS_MAX + 1, "skip a shorter time, then go on"
                    )
                self._clock.skip_to(coming)
                stops += 1
                await self._rest()
                coming = await self._next()
            self._clock.skip_to(until)
            return TimeView(self._clock.now(), stops, coming if coming < NEVER else 0)

    async def _rest(self) -> None:
        """Do what is due, and what follows from it by itself."""
        while True:
            await self._timers.fire_due()
            await self._schedules.start_due()
            tasks = [asyncio.ensure_future(task) for task in self._tasks()]
            if not tasks:
                return
            _, going = await asyncio.wait(tasks, timeout=QUIET_S)
            if going:
                return

    async def _next(self) -> int:
        """When something is due next, by the clock."""
        occurrence = self._schedules.nearest()
        ahead = NEVER if occurrence is None else self._clock.now() + max(occurrence - self._clock.wall(), 0)
        return min(await self._timers.nearest(), ahead)


async def go_on_from(clock: Movable, reads: Reads, keyspace: Keyspace) -> None:
    """Let time begin where it was when the newest of a store was written: what was skipped before stays skipped."""
    for shard in keyspace.all_shards():
        for key, value in await reads.scan(*keyspace.log_range(shard), limit=1, reverse=True):
            clock.skip_to(unseal_log(key, value)[0].time_ns)
