"""Reading a shard's batch log: in order, checked, in portions.

For whoever follows what happened (watchers, replication, backup, receipts) and for whoever wants proof of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from knhk_workflow.errors import Expired, StoreCorrupt, StoreError
from knhk_workflow.store.codec import GENESIS, LogRecord, unseal_log
from knhk_workflow.store.keys import Keyspace, parse_log
from knhk_workflow.store.store import Reads, Store

PORTION: Final = 64  # records per read: a record of 1,024 units has 57 KB, so under 4 MB


class Link(NamedTuple):
    """One batch record with its place and hash."""

    position: int
    record: LogRecord
    hashed: bytes


class Break(NamedTuple):
    """A place where a log is not what was written: `error` says what is wrong with the record at `position`."""

    position: int
    error: StoreError


async def follow(store: Store, shard: int, after: int = 0) -> AsyncIterator[Link]:
    """Every batch record of a shard with a position above `after`, up to the newest at the time of reading.

    Checks hashes, density and chain as it goes: StoreCorrupt names the position. Expired when records behind `after`
    are no longer kept.
    """
    keys = Keyspace(store.shards)
    previous = GENESIS if not after else None
    if after:
        held = await store.get(keys.log(shard, after))
        if held is not None:
            previous = unseal_log(keys.log(shard, after), held)[1]
    async for each in walk(store, keys, shard, after, previous):
        if isinstance(each, Link):
            yield each
        elif isinstance(each, Gap) and (previous is None or not after):
            raise Expired(f"shard {shard} keeps its log from position {each.until} on, not from {each.position}")
        else:
            raise each.error
        previous = each.hashed


class Gap(NamedTuple):
    """A break where records are missing altogether: `position` is the first one, `until` the next one that is there."""

    position: int
    error: StoreError
    until: int


async def walk(
    reads: Reads, keys: Keyspace, shard: int, after: int = 0, previous: bytes | None = None
) -> AsyncIterator[Link | Break | Gap]:
    """Like `follow`, but tells of what is wrong and goes on behind it. `previous` is the hash of the record at `after`,
    None when it is not known."""
    position = after
    while True:
        try:
            portion = await reads.scan(*keys.log_range(shard, position + 1), limit=PORTION)
        except StoreCorrupt as error:
            yield Break(position + 1, error)  # a block that cannot be read hides where the next one begins
            return
        for key, value in portion:
            _, found = parse_log(key)
            if found != position + 1:
                missing = f"log position {position + 1} is missing"
                if found > position + 2:
                    missing = f"log positions {position + 1} to {found - 1} are missing"
                yield Gap(position + 1, StoreCorrupt(f"shard {shard}: {missing}", shard=str(shard)), found)
                previous = None
            position = found
            try:
                record, hashed = unseal_log(key, value)
            except StoreError as error:
                yield Break(found, error)
                previous = None
                continue
            if previous is not None and record.previous != previous:
                broken = f"shard {shard}: the chain is broken at log position {found}"
                yield Break(found, StoreCorrupt(broken, shard=str(shard)))
            previous = hashed
            yield Link(found, record, hashed)
        if len(portion) < PORTION:
            return
