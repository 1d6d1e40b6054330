"""A store that fails as real ones do, around one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum, auto

from knhk_workflow.errors import StoreUnavailable
from knhk_workflow.store import Expectation, Snapshot, Store, Write


class Fault(Enum):
    """What happens to one commit."""

    NOTHING = auto()
    REFUSED = auto()
    """Definitely not written, and the store says so."""
    LOST = auto()
    """Not written, but the caller cannot know."""
    APPLIED = auto()
    """Written, but an error is returned."""


class FaultyStore:
    """Speaks the Store protocol; `faults` are used up one per commit, `outages` one per attempt to recover."""

    kind = "faulty"

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.shards = inner.shards
        self.faults: list[Fault] = []
        self.outages: list[Exception] = []
        self.commits: list[list[Write]] = []
        self.way = asyncio.Event()
        """Commits wait while it is clear."""
        self.way.set()

    async def commit(self, writes: Sequence[Write], expect: Sequence[Expectation], durable: bool) -> None:
        self.commits.append(list(writes))
        await self.way.wait()
        fault = self.faults.pop(0) if self.faults else Fault.NOTHING
        if fault is Fault.REFUSED:
            raise StoreUnavailable("refused by the test")
        if fault is Fault.LOST:
            raise OSError("lost by the test")
        await self.inner.commit(writes, expect, durable)
        if fault is Fault.APPLIED:
            raise OSError("applied, but the test says otherwise")

    async def recover(self) -> None:
        if self.outages:
            raise self.outages.pop(0)

    async def get(self, key: bytes) -> bytes | None:
        return await self.inner.get(key)

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        return await self.inner.scan(start, end, limit=limit, reverse=reverse)

    async def snapshot(self) -> Snapshot:
        return await self.inner.snapshot()

    async def close(self) -> None:
        await self.inner.close()
