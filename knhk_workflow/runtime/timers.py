"""Timers that survive: a row for each in the order of due time, and the service that fires what is due.

The row is written and deleted in the commit that arms, fires or disarms its timer, so the rows are exactly the timers
of all cases, whatever happens in between. The service looks at them by due time. It sleeps until the nearest one is
due, gives each due one to its case as a command of its own, and the case decides: a timer that is not there any more
changes nothing, so that firing twice does no harm. What cannot be fired now is not lost: while the store is out, or a
cascade still going on, it is tried again; the timers of a suspended case wait for its resumption, and those that became
due while nothing ran are fired after opening, oldest first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Literal

from knhk_workflow.core import events as e
from knhk_workflow.core.step import Step
from knhk_workflow.errors import Busy, Fenced, StoreError, StoreUnavailable, WorkflowError
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.problems import tell_operator
from knhk_workflow.store import CaseKeys, Keyspace, OutcomeUnknown, Reads, Write
from knhk_workflow.store.keys import parse_timer
from knhk_workflow.store.portions import portions

PAGE: Final = 512  # rows per read
AT_ONCE: Final = 64  # commands in flight: they share commits, and calls from outside get their turn in between
PAUSE_S: Final = 0.2  # before what could not be fired is tried again
COUNT_NS: Final = 5_000_000_000  # how old a count may be: counting 100,000 takes a fifth of a second
NEVER: Final = 2**64

Outcome = Literal["done", "held", "busy"]
"""What became of firing: over (fired, or gone before), waiting for the case to be resumed, to be tried again soon."""

Fire = Callable[[str, str, int], Awaitable[Outcome]]
"""Fires a timer of a case of a tenant, durably."""


def fired(step: Step, timer: int) -> Outcome:
    """What became of a timer in the step that was to fire it."""
    if timer not in step.case.timers:
        return "done"
    return "held" if step.case.state == "suspended" else "busy"


def rows(keys: CaseKeys, step: Step, writes: list[Write]) -> int:
    """Add the rows that a step writes and deletes; when the service has to look at the case again, 0 = no change."""
    timers = step.case.timers
    found: dict[bytes, bytes | None] = {}
    nearest = 0
    for event in step.events:
        if isinstance(event, e.TimerArmed | e.TimerFired | e.TimerDisarmed):
            armed = event.timer in timers
            found[keys.timer(event.due, str(event.timer))] = b"" if armed else None
            if armed and (not nearest or event.due < nearest):
                nearest = event.due
        elif isinstance(event, e.StateChanged) and event.before == "suspended" and timers:
            nearest = min(timer.due for timer in timers.values())
    writes.extend(found.items())
    return nearest


class Timers:
    """The timers of one engine. `run` is its life; `expect` is told of every commit that made a timer."""

    def __init__(self, reads: Reads, keyspace: Keyspace, clock: Clock, fire: Fire) -> None:
        self._reads = reads
        self._keyspace = keyspace
        self._clock = clock
        self._fire = fire
        self._since = 0  # what is due before has been dealt with, or waits for its case to be resumed
        self._alarm = 0  # when the service wakes up by itself; 0 while it is awake
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()
        self._counted = self._counted_at = 0

    def expect(self, due: int) -> None:
        """A timer that is due at `due` is in the store now."""
        self._since = min(self._since, due)
        if due < self._alarm or not self._alarm:
            self._woken.set()

    async def count(self) -> int:
        """How many timers are armed, counted again when the last count is older than COUNT_NS."""
        now = self._clock.now()
        if not self._counted_at or not 0 <= now - self._counted_at < COUNT_NS:
            total = 0
            for shard in range(self._keyspace.shards):
                async for rows in portions(self._reads, self._keyspace.timers(shard), PAGE):
                    total += len(rows)
            self._counted, self._counted_at = total, now
        return self._counted

    async def run(self) -> None:
        """Fire what is due, for ever."""
        while True:
            await self.fire_due()
            self._woken.clear()
            try:
                due = self._alarm = await self.nearest()
            except StoreError:
                await asyncio.sleep(PAUSE_S)
                continue
            alarm = self._clock.call_at(due, self._woken.set) if due < NEVER else None
            try:
                await self._woken.wait()
            finally:
                self._alarm = 0
                if alarm is not None:
                    alarm.cancel()

    async def fire_due(self) -> None:
        """Return when nothing is left of what is due now and could be fired."""
        async with self._turn:
            now = self._clock.now()
            while self._since <= now:
                begin, self._since = self._since, now + 1
                missed = NEVER
                try:
                    for shard in range(self._keyspace.shards):
                        missed = min(missed, await self._fire_shard(shard, begin, now))
                except (StoreError, asyncio.CancelledError) as error:
                    self._since = min(self._since, begin)
                    if isinstance(error, asyncio.CancelledError):
                        raise
                    missed = begin
                if missed < NEVER:
                    self._since = min(self._since, missed)
                    await asyncio.sleep(PAUSE_S)
                    now = self._clock.now()  # what has become due meanwhile does not wait for what is missed

    async def _fire_shard(self, shard: int, begin: int, now: int) -> int:
        """Fire what a shard has due from `begin` to `now`, in order; the earliest that has to be tried again."""
        missed = NEVER
        async for page in portions(self._reads, self._keyspace.timers(shard, now, begin), PAGE):
            for first in range(0, len(page), AT_ONCE):
                some = [key for key, _ in page[first : first + AT_ONCE]]
                missed = min(missed, *await asyncio.gather(*map(self._fire_row, some)))
        return missed

    async def _fire_row(self, key: bytes) -> int:
        """Fire one timer; when it is due if it has to be tried again."""
        try:
            due, tenant, case_id, number = parse_timer(key)
            outcome = await self._fire(tenant, case_id, int(number))
        except (StoreUnavailable, Busy, Fenced, OutcomeUnknown):
            return parse_timer(key)[0]
        except WorkflowError:
            return NEVER  # the case is broken or gone; whoever touches it is told
        except Exception as error:  # noqa: BLE001  # one case must not stop the clock of all others
            tell_operator("a timer could not be fired", error)
            return NEVER
        return due if outcome == "busy" else NEVER

    async def nearest(self) -> int:
        """When the next timer is due that has not been dealt with."""
        nearest = NEVER
        for shard in range(self._keyspace.shards):
            start, end = self._keyspace.timers(shard, None, self._since)
            for key, _ in await self._reads.scan(start, end, limit=1):
                nearest = min(nearest, parse_timer(key)[0])
        return nearest
