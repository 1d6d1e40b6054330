"""Bytes that survive, and a store over them that fails as real ones do.

A `Disk` outlives the engines that use it. A `SimulatedStore` is one life's handle on it: it speaks the Store protocol,
draws its faults from the seed, and ends with a crash, after which nothing of it reaches the disk any more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final

from sortedcontainers import SortedDict

from knhk_workflow.errors import StoreFull, StoreUnavailable
from knhk_workflow.store import Expectation, ExpectationFailed, OutcomeUnknown, Snapshot, Write
from knhk_workflow.store.keys import shard_in

TICK_S: Final = 0.001
TICKS_MAX: Final = 8  # the longest single delay
OUTAGE_ATTEMPTS_MAX: Final = 4  # attempts to recover that fail in a row

COMMIT_FAULTS: Final = ("refused", "full", "lost", "applied", "late", "crash")
"""What happens to one commit: definitely not written (twice), unknown and not written, unknown and written, unknown and
perhaps written by the time of recovery, the process dies just before or after it."""

FAULTS: Final = (*COMMIT_FAULTS, "unreadable", "outage", "slow", "restart", "cancel", "deadline")
"""All kinds. `unreadable`: a read is refused; `outage`: recovery fails some times; `slow`: everything takes time;
`restart`: a clean close and open; `cancel`: a caller goes away; `deadline`: a caller's time runs out."""


class Disk:
    """What is written. `volatile` undoes what a crash takes away: commits that were not asked to be durable."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.bytes: SortedDict[bytes, bytes] = SortedDict()
        self._volatile: list[Write] = []

    def apply(self, writes: Sequence[Write], durable: bool) -> None:
        """All writes, in order. A durable commit makes those before it durable too."""
        held = self.bytes
        for key, value in writes:
            if not durable:
                self._volatile.append((key, held.get(key)))
            if value is None:
                held.pop(key, None)
            else:
                held[key] = value
        if durable:
            self._volatile.clear()

    def lose_power(self) -> bool:
        """Forget what is not durable; whether that was anything."""
        lost = bool(self._volatile)
        for key, value in reversed(self._volatile):
            if value is None:
                self.bytes.pop(key, None)
            else:
                self.bytes[key] = value
        self._volatile.clear()
        return lost

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
    """One life's handle on a disk. `chances` are probabilities by fault; `faults` counts those that happened.

    `written` is called with every commit that reached the disk, `crashed` when this life is over.
    """

    kind = "simulated"

    def __init__(
        self,
        disk: Disk,
        random: Random,
        chances: Mapping[str, float],
        faults: Counter[str],
        written: Callable[[Sequence[Write]], None],
        crashed: Callable[[], None],
        wrong: Callable[[str], None],
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.shards = disk.shards
        self.calm = False
        """Faults are over: the end of an episode, when everything must come to rest."""
        self._disk = disk
        self._random = random
        self._chances = chances
        self._commit_faults = [(kind, chances[kind]) for kind in COMMIT_FAULTS if chances.get(kind)]
        self._commit_chance = sum(chance for _, chance in self._commit_faults)
        self._slow = chances.get("slow", 0.0)
        self._unreadable = chances.get("unreadable", 0.0)
        self._faults = faults
        self._written = written
        self._crashed = crashed
        self._wrong = wrong
        self._tell = tell
        self._dead = False
        self._closed = False
        self._doubts: set[int] = set()
        self._late: Sequence[Write] = ()
        self._outages = 0

    def die(self) -> None:
        """The process is gone: nothing of this life does anything any more."""
        self._dead = True

    async def commit(self, writes: Sequence[Write], expect: Sequence[Expectation], durable: bool) -> None:
        await self._pause()
        self._check_open()
        if self._doubts:
            if writes and shard_in(writes[-1][0]) in self._doubts:
                self._wrong("fault: a shard wrote although the outcome of its last write was still unknown")
            raise StoreUnavailable("a write failed; recover first")
        fault = self._draw()
        if not writes and fault not in ("refused", "full"):
            fault = ""  # a question whether the store would write: there is nothing to be lost or unknown
        if fault and self._tell is not None:
            self._tell(
                f"commit of {len(writes)} writes{f' to shard {shard_in(writes[-1][0])}' if writes else ''}: {fault}"
            )
        if fault == "refused":
            raise StoreUnavailable("refused by the simulation")
        if fault == "full":
            raise StoreFull("full, says the simulation")
        held = self._disk.bytes
        failed = [key for key, value in expect if held.get(key) != value]
        if failed:
            raise ExpectationFailed(failed)
        if not fault:
            self._apply(writes, durable)
            await self._pause()
            return
        if fault == "applied" or (fault == "crash" and self._random.random() < 0.5):
            self._apply(writes, durable)
        if fault == "crash":
            self._crashed()
            await self._nevermore()
        if fault == "late":
            self._late = writes
        self._doubts.add(shard_in(writes[-1][0]))
        if "outage" in self._chances and self._random.random() < 0.3:
            self._outages = self._random.randint(1, OUTAGE_ATTEMPTS_MAX)
        if self._random.random() < 0.5:
            raise OutcomeUnknown("unknown, says the simulation", full=self._random.random() < 0.3)
        raise OSError("an I/O error, says the simulation")

    async def recover(self) -> None:
        await self._pause()
        self._check_open()
        if self._outages and not self.calm:
            self._outages -= 1
            self._faults["outage"] += 1
            if self._random.random() < 0.3:
                raise StoreFull("still full, says the simulation")
            raise StoreUnavailable("still away, says the simulation")
        self._outages = 0
        if self._tell is not None:
            self._tell(f"recovered from doubts of shards {sorted(self._doubts)}")
        if self._late and self._random.random() < 0.5:
            self._apply(self._late, True)
        self._late = ()
        self._doubts.clear()

    async def get(self, key: bytes) -> bytes | None:
        await self._read()
        return self._disk.get(key)

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        await self._read()
        return self._disk.scan(start, end, limit=limit, reverse=reverse)

    async def snapshot(self) -> Snapshot:
        await self._read()
        copy = Disk(self.shards)
        copy.bytes = self._disk.bytes.copy()
        return _View(copy)

    async def close(self) -> None:
        self._closed = True

    def _apply(self, writes: Sequence[Write], durable: bool) -> None:
        self._disk.apply(writes, durable)
        self._written(writes)

    def _draw(self) -> str:
        if self.calm or not self._commit_faults:
            return ""
        drawn = self._random.random()
        if drawn >= self._commit_chance:
            return ""
        for kind, chance in self._commit_faults:
            drawn -= chance
            if drawn < 0:
                self._faults[kind] += 1
                return kind
        return ""

    async def _read(self) -> None:
        await self._pause()
        self._check_open()
        if self._unreadable and not self.calm and self._random.random() < self._unreadable:
            self._faults["unreadable"] += 1
            raise StoreUnavailable("unreadable, says the simulation")

    async def _pause(self) -> None:
        if self._slow and self._random.random() < self._slow:
            await asyncio.sleep(self._random.randint(0, TICKS_MAX) * TICK_S)

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
