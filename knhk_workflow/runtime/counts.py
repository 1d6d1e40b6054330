"""How many cases there are, by tenant and state, with their open work: counted at the start, kept up to date from then.

A start reads the heads of all cases from a snapshot, in portions, beside the calls. Every unit that is committed says
what the head of its case was and what it is now, so from then on nothing is read. Units are folded when somebody asks,
or when many wait: five steps of a case are one change of its head.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Final

from knhk_workflow.errors import StoreCorrupt, StoreError, StoreFormat
from knhk_workflow.runtime.records import HEADS
from knhk_workflow.runtime.views import CaseCounts
from knhk_workflow.store import Journal, Keyspace, Store, Unit
from knhk_workflow.store.keys import past_tenant, shard_range, tenant_in
from knhk_workflow.store.portions import portions
from knhk_workflow.store.store import Reads

PAGE: Final = 256  # heads per read: about 1 ms of decoding
FOLD_AT: Final = 1_024  # changed heads, about 300 KB
RETRY_S: Final = 1.0

Head = bytes | None
"""A case's head as it is stored; None: there is no such case."""


class Counts:
    """The counts of one engine. `committed` is to be told of every commit from before `run` on."""

    def __init__(self, store: Store, journal: Journal, keyspace: Keyspace) -> None:
        self._store = store
        self._journal = journal
        self._keys = keyspace
        self._counts: dict[str, Counter[str]] = {}
        self._changed: dict[bytes, tuple[Head, Head]] = {}
        self._counted = asyncio.Event()

    def committed(self, units: Sequence[Unit]) -> None:
        """These units are durable. Never blocks."""
        changed = self._changed
        for unit in units:
            if unit.head is not None:
                key, before, after = unit.head
                known = changed.get(key)
                changed[key] = (before if known is None else known[0], after)
        if len(changed) > FOLD_AT and self._counted.is_set():
            self._fold()

    async def run(self) -> None:
        """Count what is there; return when that is done."""
        while not self._counted.is_set():
            try:
                snapshot = await self._store.snapshot()
                try:
                    await self._journal.flush()
                    # Whether the snapshot has these changes is not known: what it says is what they were before.
                    doubtful: dict[bytes, Head] = dict.fromkeys(self._changed)
                    await self._read(snapshot, doubtful)
                finally:
                    await snapshot.close()
            except StoreError:  # an outage ends snapshots
                await asyncio.sleep(RETRY_S)
                continue
            for key, read in doubtful.items():
                self._changed[key] = (read, self._changed[key][1])
            self._counted.set()

    async def of(self, tenant: str, patience_s: float) -> CaseCounts | None:
        """The counts of a tenant; None when the first counting takes longer than this."""
        try:
            await asyncio.wait_for(self._counted.wait(), patience_s)
        except TimeoutError:
            return None
        self._fold()
        counts = self._counts.get(tenant, Counter())
        return CaseCounts(
            counts["created"],
            counts["running"],
            counts["suspended"],
            counts["completed"],
            counts["cancelled"],
            counts["failed"],
            counts["open items"],
            counts["open incidents"],
        )

    async def _read(self, reads: Reads, doubtful: dict[bytes, Head]) -> None:
        """Count all heads, and note what those in `doubtful` are."""
        self._counts.clear()
        for shard in range(self._keys.shards):
            start, end = shard_range(shard)
            while rows := await reads.scan(start, end, limit=1):
                key = rows[0][0]
                start = past_tenant(key)
                tenant = tenant_in(key)
                if tenant:
                    await self._read_tenant(reads, shard, tenant, doubtful)

    async def _read_tenant(self, reads: Reads, shard: int, tenant: str, doubtful: dict[bytes, Head]) -> None:
        async for rows in portions(reads, self._keys.cases(shard, tenant), PAGE):
            for key, value in rows:
                self._count(tenant, key, value, 1)
                if key in doubtful:
                    doubtful[key] = value

    def _fold(self) -> None:
        changed, self._changed = self._changed, {}
        for key, (before, after) in changed.items():
            tenant = tenant_in(key)
            if before is not None:
                self._count(tenant, key, before, -1)
            if after is not None:
                self._count(tenant, key, after, 1)

    def _count(self, tenant: str, key: bytes, value: bytes, sign: int) -> None:
        try:
            head = HEADS.read(key, value)
        except (StoreCorrupt, StoreFormat):
            return  # whoever touches the case is told
        counts = self._counts.get(tenant)
        if counts is None:
            counts = self._counts[tenant] = Counter()
        counts[head.state] += sign
        counts["open items"] += sign * head.open_items
        counts["open incidents"] += sign * head.open_incidents
