"""A shard's log as what it must be: any break in it is an error."""

from __future__ import annotations

from collections.abc import AsyncIterator

from knhk_workflow.store import GENESIS, Keyspace, Link, Store, unseal_log
from knhk_workflow.store.chain import walk


async def follow(store: Store, shard: int, after: int = 0) -> AsyncIterator[Link]:
    """Every batch record above `after`. Raises StoreCorrupt where something is missing or changed."""
    keys = Keyspace(store.shards)
    previous: bytes | None = GENESIS
    if after:
        held = await store.get(keys.log(shard, after))
        previous = unseal_log(keys.log(shard, after), held)[1] if held is not None else None
    async for each in walk(store, keys, shard, after, previous):
        if not isinstance(each, Link):
            raise each.error
        yield each
