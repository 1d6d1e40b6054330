"""Watching: who waits for what happens to a case, or to any case.

A watcher reads what was committed from the store and sleeps until there is more; the commit wakes it. It never holds a
case, and a slow one keeps nothing in memory but its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from knhk_workflow.core.commands import ENDED
from knhk_workflow.errors import StoreUnavailable
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.live import LiveCases
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.query import Query, places_of, resume_token
from knhk_workflow.runtime.steps import Steps
from knhk_workflow.runtime.views import CaseView, HistoryEvent
from knhk_workflow.store import Journal

PORTION: Final = 100  # events of a case read at once


class Watching:
    """The watchers of one engine."""

    def __init__(
        self, query: Query, cases: LiveCases, steps: Steps, journal: Journal, clock: Clock, shards: int
    ) -> None:
        self._query = query
        self._cases = cases
        self._steps = steps
        self._journal = journal
        self._clock = clock
        self._shards = shards
        self._of_log: set[asyncio.Event] = set()  # told of every commit
        self._of_cases: set[asyncio.Event] = set()  # told by their cases (runtime/live.py), and of the end
        self._closed = False

    def committed(self) -> None:
        """Something was committed."""
        for event in self._of_log:
            event.set()

    def close(self) -> None:
        """Let every watcher end."""
        self._closed = True
        for event in (*self._of_log, *self._of_cases):
            event.set()

    async def ended(self, meta: CallMeta, case_id: str) -> CaseView:
        """The case once it has ended, or as it is when the caller's deadline passes."""
        async with self._changes(meta, case_id) as changed:
            while True:
                changed.clear()
                view = await self._steps.look(meta, case_id)
                if view.state in ENDED:
                    return view
                try:
                    async with asyncio.timeout(self._left(meta)):
                        await changed.wait()
                except TimeoutError:
                    return view
                if self._closed:
                    raise StoreUnavailable("the engine is closing")

    async def case(self, meta: CallMeta, case_id: str, after_sequence: int) -> AsyncIterator[HistoryEvent]:
        """Every event after a sequence, past ones first, then as they are committed; ends when the case has ended."""
        async with self._changes(meta, case_id) as changed:
            while True:
                changed.clear()
                page = await self._query.history(meta.tenant, case_id, after_sequence, PORTION, False)
                for event in page.items:
                    after_sequence = event.sequence
                    yield event
                if page.items:
                    continue
                head = await self._query.head(meta.tenant, case_id)
                if head.state in ENDED and head.sequence <= after_sequence:
                    return
                if head.sequence <= after_sequence:
                    await changed.wait()
                if self._closed:
                    return

    async def cases(self, meta: CallMeta, token: str) -> AsyncIterator[tuple[HistoryEvent, str]]:
        """Every event of every case of the tenant from now on, or from a token; with the token to resume after it."""
        newest = self._positions()
        places = places_of(token, newest) if token else {s: (at, 0) for s, at in newest.items()}
        news = asyncio.Event()
        self._of_log.add(news)
        try:
            while not self._closed:
                news.clear()
                before = dict(places)
                async for event, after in self._query.log(meta.tenant, places, self._positions()):
                    yield event, after
                if places == before:  # a portion of other tenants' events moves on without yielding any
                    await news.wait()
        finally:
            self._of_log.discard(news)

    def token(self, *, from_start: bool) -> str:
        """The token for `cases` from this moment on, or from the oldest event kept."""
        return resume_token({s: (0 if from_start else at, 0) for s, at in self._positions().items()})

    @asynccontextmanager
    async def _changes(self, meta: CallMeta, case_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set after every commit of the case. Raises NotFound."""
        await self._query.head(meta.tenant, case_id)
        live = self._cases.entry(meta.tenant, case_id)
        event = asyncio.Event()
        live.changed.add(event)
        self._of_cases.add(event)
        try:
            yield event
        finally:
            live.changed.discard(event)
            self._of_cases.discard(event)

    def _left(self, meta: CallMeta) -> float | None:
        """Seconds until the caller's deadline."""
        return max(0.0, (meta.deadline - self._clock.now()) / NS_PER_S) if meta.deadline else None

    def _positions(self) -> dict[int, int]:
        return {shard: self._journal.position(shard) for shard in range(self._shards)}
