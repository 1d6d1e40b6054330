"""Reading a shard's batch log: in order, checked, in portions.

For whoever follows what happened (watchers, replication, backup, receipts) and for whoever wants proof of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from knhk_workflow.errors import Expired, StoreCorrupt
from knhk_workflow.store.codec import GENESIS, LogRecord, unseal_log
from knhk_workflow.store.keys import Keyspace, parse_log
from knhk_workflow.store.store import Store

PORTION: Final = 64  # records per read: a record of 1,024 units has 57 KB, so under 4 MB


class Link(NamedTuple):
    """One batch record with its place and hash."""

    position: int
    record: LogRecord
    hashed: bytes


async def follow(store: Store, shard: int, after: int = 0) -> AsyncIterator[Link]:
    """Every batch record of a shard with a position above `after`, up to the newest at the time of reading.

    Checks hashes, density and chain as it goes: StoreCorrupt names the position. Expired when records behind `after`
    are no longer kept.
    """
    keys = Keyspace(store.shards)
    position = after
    previous: bytes | None = None
    if not after:
        previous = GENESIS
    else:
        held = await store.get(keys.log(shard, after))
        if held is not None:
            previous = unseal_log(keys.log(shard, after), held)[1]
    while True:
        portion = await store.scan(*keys.log_range(shard, position + 1), limit=PORTION)
        for key, value in portion:
            _, found = parse_log(key)
            if found != position + 1:
                if previous is None or not after:
                    raise Expired(f"shard {shard} keeps its log from position {found} on, not from {position + 1}")
                raise StoreCorrupt(f"shard {shard}: log position {position + 1} is missing", shard=str(shard))
            record, hashed = unseal_log(key, value)
            if previous is not None and record.previous != previous:
                raise StoreCorrupt(f"shard {shard}: the chain is broken at log position {found}", shard=str(shard))
            position, previous = found, hashed
            yield Link(found, record, hashed)
        if len(portion) < PORTION:
            return
