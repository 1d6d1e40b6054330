"""A store in memory: for tests, for simulation and for `:memory:`. Durable means nothing here.

`commit` never suspends, so in one thread with a virtual clock every run is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from sortedcontainers import SortedDict

from knhk_workflow.errors import StoreUnavailable
from knhk_workflow.store.store import Expectation, ExpectationFailed, Snapshot, Write


class MemoryStore:
    """Ordered bytes in a sorted map. A snapshot is free until the next commit, which then copies the map once."""

    kind = "memory"

    def __init__(self, shards: int = 1) -> None:
        self.shards = shards
        self._map: SortedDict[bytes, bytes] = SortedDict()
        self._shared = False
        self._closed = False

    async def commit(self, writes: Sequence[Write], expect: Sequence[Expectation], durable: bool) -> None:
        self._check_open()
        held = self._map
        failed = [key for key, value in expect if held.get(key) != value]
        if failed:
            raise ExpectationFailed(failed)
        if self._shared:
            held = self._map = held.copy()
            self._shared = False
        for key, value in writes:
            if value is None:
                held.pop(key, None)
            else:
                held[key] = value

    async def recover(self) -> None:
        self._check_open()

    async def get(self, key: bytes) -> bytes | None:
        self._check_open()
        return self._map.get(key)

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        self._check_open()
        return _scan(self._map, start, end, limit, reverse)

    async def snapshot(self) -> Snapshot:
        self._check_open()
        self._shared = True
        return _View(self._map)

    async def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")


class _View:
    def __init__(self, held: SortedDict[bytes, bytes]) -> None:
        self._map: SortedDict[bytes, bytes] | None = held

    async def get(self, key: bytes) -> bytes | None:
        return self._held().get(key)

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        return _scan(self._held(), start, end, limit, reverse)

    async def close(self) -> None:
        self._map = None

    def _held(self) -> SortedDict[bytes, bytes]:
        if self._map is None:
            raise StoreUnavailable("the snapshot is closed")
        return self._map


def _scan(
    held: SortedDict[bytes, bytes], start: bytes, end: bytes, limit: int, reverse: bool
) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    if start >= end or limit <= 0:
        return found
    for key in held.irange(start, end, (True, False), reverse):
        found.append((key, held[key]))
        if len(found) == limit:
            break
    return found
