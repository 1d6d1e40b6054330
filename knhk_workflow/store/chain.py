"""Reading a shard's batch log: in order, checked, in portions; and finding a place in it.

For whoever goes through what happened (backup, exports, receipts, examinations) and for whoever wants proof of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from knhk_workflow.errors import StoreCorrupt, StoreError
from knhk_workflow.store.codec import LogRecord, unseal_log
from knhk_workflow.store.keys import Keyspace, parse_log
from knhk_workflow.store.store import Reads

PORTION: Final = 64  # records per read: a record of 1,024 units has 57 KB, so under 4 MB


class Link(NamedTuple):
    """One batch record with its place, its hash and its stored bytes."""

    position: int
    record: LogRecord
    hashed: bytes
    value: bytes


class Break(NamedTuple):
    """A place where a log is not what was written: `error` says what is wrong with the record at `position`."""

    position: int
    error: StoreError


async def newest(reads: Reads, keys: Keyspace, shard: int) -> int:
    """The newest position of a log; 0 when it is empty."""
    last = await reads.scan(*keys.log_range(shard), limit=1, reverse=True)
    return parse_log(last[0][0])[1] if last else 0


async def last_before(reads: Reads, keys: Keyspace, shard: int, time_ns: int) -> int:
    """The last position with a time before this one; 0 when there is none. Found by halving, so it can be wrong where
    the clock was set back: then look through all of the log."""
    low, high = 0, await newest(reads, keys, shard)
    while low < high:
        middle = (low + high + 1) // 2
        key = keys.log(shard, middle)
        held = await reads.get(key)
        if held is None or unseal_log(key, held)[0].time_ns < time_ns:
            low = middle
        else:
            high = middle - 1
    return low


async def walk(
    reads: Reads, keys: Keyspace, shard: int, after: int = 0, previous: bytes | None = None
) -> AsyncIterator[Link | Break]:
    """Every batch record of a shard with a position above `after`, up to the newest at the time of reading.

    Checks hashes, density and chain as it goes, tells of what is wrong and goes on behind it. `previous` is the hash of
    the record at `after`, None when it is not known.
    """
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
                yield Break(position + 1, StoreCorrupt(f"shard {shard}: {missing}", shard=str(shard)))
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
            yield Link(found, record, hashed, value)
        if len(portion) < PORTION:
            return
