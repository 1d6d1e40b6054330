"""Bytes that survive, and a store over them that fails as real ones do.

A `Disk` outlives the engines that use it. A `SimulatedStore` is one life's handle on it: it speaks the Store protocol,
draws its faults from the seed, and ends with a crash, after which nothing of it reaches the disk any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from sortedcontainers import SortedDict

from knhk_workflow.errors import StoreFull, StoreUnavailable
from knhk_workflow.store import Expectation, ExpectationFailed, OutcomeUnknown, Snapshot, Write
from knhk_workflow.store.keys import shard_in
from tests.simulation.fates import Fates, mixed

TICK_S: Final = 0.001
TICKS_MAX: Final = 8  # the longest single delay
OUTAGE_ATTEMPTS_MAX: Final = 4  # attempts to recover that fail in a row

FULL_COMMITS_MAX: Final = 20  # commits that a full volume refuses before there is space again


class Disk:
    """What is written. `volatile` undoes, commit by commit, what a crash takes away: what was not to be durable.

    `damaged` is what the store reads in place of some values; whoever restores them from a backup empties it.
    """

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.bytes: SortedDict[bytes, bytes] = SortedDict()
        self.damaged: dict[bytes, bytes] = {}
        self._volatile: list[list[Write]] = []

    def apply(self, writes: Sequence[Write], durable: bool) -> None:
        """All writes, in order. A durable commit makes those before it durable too."""
        held = self.bytes
        if not durable:
            self._volatile.append([(key, held.get(key)) for key, _ in writes])
        for key, value in writes:
            if value is None:
                held.pop(key, None)
            else:
                held[key] = value
            if self.damaged:
                self.damaged.pop(key, None)
        if durable:
            self._volatile.clear()

    def lose_power(self, torn: Random | None) -> bool:
        """Forget what is not durable, all of it or, torn, the later part; whether that was anything."""
        survive = torn.randint(0, len(self._volatile)) if torn is not None else 0
        lost = self._volatile[survive:]
        for undo in reversed(lost):
            for key, value in reversed(undo):
                if value is None:
                    self.bytes.pop(key, None)
                else:
                    self.bytes[key] = value
        self._volatile.clear()
        return bool(lost)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`."""
        return self.bytes.get(key)

    def scan(
        self, start: bytes, end: bytes, *, limit: int = 1 << 62, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Pairs with start <= key < end."""
        found: list[tuple[bytes, bytes]] = []
        if start < end:
            held = self.bytes
            for key in held.irange(start, end, (True, False), reverse):
                found.append((key, held[key]))
                if len(found) >= limit:
                    break
        return found


class SimulatedStore:
    """One life's handle on a disk; `fates` say what goes wrong.

    `written` is called with every commit that reached the disk, `struck` with every one that a fault met, `crashed`
    when this life is over, with what tears the last commits apart.
    """

    kind = "simulated"

    def __init__(
        self,
        disk: Disk,
        fates: Fates,
        written: Callable[[Sequence[Write]], None],
        struck: Callable[[str, Sequence[Write]], None],
        crashed: Callable[[Random | None], None],
        wrong: Callable[[str], None],
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.shards = disk.shards
        self._disk = disk
        self._fates = fates
        self._written = written
        self._struck = struck
        self._crashed = crashed
        self._wrong = wrong
        self._tell = tell
        self._dead = False
        self._closed = False
        self._doubts: set[int] = set()
        self._late: Sequence[Write] = ()
        self._outages = 0
        self._full = 0

    def die(self) -> None:
        """The process is gone: nothing of this life does anything any more."""
        self._dead = True

    @property
    def in_doubt(self) -> bool:
        """Whether the outcome of a write is unknown until somebody recovers."""
        return bool(self._doubts)

    async def commit(self, writes: Sequence[Write], expect: Sequence[Expectation], durable: bool) -> None:
        await self._pause()
        self._check_open()
        if self._doubts:
            if writes and shard_in(writes[-1][0]) in self._doubts:
                self._wrong("fault: a shard wrote although the outcome of its last write was still unknown")
            raise StoreUnavailable("a write failed; recover first")
        if self._full and not self._fates.calm:
            self._full -= 1
            raise StoreFull("still full, says the simulation")
        fault, place = self._fates.of_commit()
        if not writes and fault not in ("refused", "full"):
            fault = ""  # a question whether the store would write: there is nothing to be lost or unknown
        if not fault:
            self._expect(expect)
            self._disk.apply(writes, durable)
            self._written(writes)
            await self._pause()
            return
        if self._tell is not None:
            self._tell(
                f"{fault}@{place}, a commit of {len(writes)} writes"
                f"{f' to shard {shard_in(writes[-1][0])}' if writes else ''}"
            )
        self._fates.happened(fault, place)
        self._struck(fault, writes)
        if fault == "refused":
            raise StoreUnavailable("refused by the simulation")
        details = self._fates.details((fault, place))
        if fault == "full":
            self._full = details.randint(0, FULL_COMMITS_MAX)
            raise StoreFull("full, says the simulation")
        self._expect(expect)
        if fault == "applied" or (fault == "crash" and details.random() < 0.5):
            self._disk.apply(writes, durable)
            self._written(writes)
        if fault in ("crash", "torn"):
            self._crashed(details if fault == "torn" else None)
            await self._nevermore()
        if fault == "late":
            self._late = writes
        self._doubts.add(shard_in(writes[-1][0]))
        if place := self._fates.strikes("outage"):
            self._outages = self._fates.details(("outage", place)).randint(1, OUTAGE_ATTEMPTS_MAX)
            self._struck("outage", writes)
        if details.random() < 0.5:
            raise OutcomeUnknown("unknown, says the simulation", full=details.random() < 0.3)
        raise OSError("an I/O error, says the simulation")

    async def recover(self) -> None:
        await self._pause()
        self._check_open()
        if self._outages and not self._fates.calm:
            self._outages -= 1
            if self._outages % 3 == 2:
                raise StoreFull("still full, says the simulation")
            raise StoreUnavailable("still away, says the simulation")
        self._outages = 0
        if self._tell is not None and self._doubts:
            self._tell(f"recovered from doubts of shards {sorted(self._doubts)}")
        if self._late and mixed(self._fates.seed, len(self._late), len(self._late[0][0])) & 1:
            self._disk.apply(self._late, True)
            self._written(self._late)
        self._late = ()
        self._doubts.clear()

    async def get(self, key: bytes) -> bytes | None:
        await self._read()
        if self._disk.damaged and key in self._disk.damaged:
            return self._disk.damaged[key]
        return self._disk.bytes.get(key)

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        await self._read()
        found = self._disk.scan(start, end, limit=limit, reverse=reverse)
        if damaged := self._disk.damaged:
            return [(key, damaged.get(key, value)) for key, value in found]
        return found

    async def snapshot(self) -> Snapshot:
        await self._read()
        copy = Disk(self.shards)
        copy.bytes = self._disk.bytes.copy()
        return _View(copy)

    async def close(self) -> None:
        self._closed = True

    def _expect(self, expect: Sequence[Expectation]) -> None:
        held = self._disk.bytes
        failed = [key for key, value in expect if held.get(key) != value]
        if failed:
            raise ExpectationFailed(failed)

    async def _read(self) -> None:
        await self._pause()
        self._check_open()
        if self._fates.strikes("unreadable"):
            self._struck("unreadable", ())
            raise StoreUnavailable("unreadable, says the simulation")

    async def _pause(self) -> None:
        ticks = self._fates.pause(TICKS_MAX)
        if ticks:
            self._struck("slow", ())
            await asyncio.sleep(ticks * TICK_S)

    def _check_open(self) -> None:
        if self._dead:
            raise asyncio.CancelledError
        if self._closed:
            raise StoreUnavailable("the store is closed")

    @staticmethod
    async def _nevermore() -> None:
        await asyncio.get_running_loop().create_future()


class _View:
    """A copy of the bytes at one moment."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    async def get(self, key: bytes) -> bytes | None:
        return self._disk.get(key)

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        return self._disk.scan(start, end, limit=limit, reverse=reverse)

    async def close(self) -> None:
        self._disk = Disk(1)
