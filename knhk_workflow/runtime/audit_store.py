"""Holding a store that nobody has open against checkpoints that were kept elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from knhk_workflow.runtime.checkpoint import Checkpoint
from knhk_workflow.runtime.integrity import Progress, examine
from knhk_workflow.store import GENESIS, Keyspace, Reads, open_store, unseal
from knhk_workflow.store.chain import Link, walk
from knhk_workflow.store.merkle import Edge, leaf_hash


async def check_store(path: str, known: Sequence[Checkpoint], progress: Progress | None = None) -> tuple[str, ...]:
    """What is wrong with the audit of the store at `path`: everything that an examination finds, and every checkpoint
    that its log does not continue. Empty when it is all there.

    Raises StoreLocked while it is in use, NotFound, StoreUnavailable, StoreCorrupt when it cannot even be opened.
    """
    store = await open_store(path, create=False)
    try:
        keys = Keyspace(store.shards)
        found = await examine(store, store.shards, progress)
        problems = [one.message for one in found.findings]
        held = await store.get(keys.identity())
        name = unseal(keys.identity(), held).hex() if held is not None else ""
        for shard in keys.all_shards():
            mine = [each for each in known if each.shard == shard]
            if mine:
                problems += await _against(store, keys, shard, name, mine)
        problems += [
            f"it has no log {each.shard}, of which there is a checkpoint"
            for each in known
            if each.shard not in keys.all_shards()
        ]
        return tuple(problems)
    finally:
        await store.close()


async def _against(reads: Reads, keys: Keyspace, shard: int, name: str, known: Sequence[Checkpoint]) -> list[str]:
    problems = [f"the checkpoint is of another store, {each.store}" for each in known if each.store != name]
    by_size: dict[int, list[Checkpoint]] = {}
    for checkpoint in known:
        by_size.setdefault(checkpoint.size, []).append(checkpoint)
    edge = Edge()
    async for each in walk(reads, keys, shard, 0, GENESIS):
        if not isinstance(each, Link):
            continue  # the examination has told of it; the roots are others from here on
        edge.append(leaf_hash(each.hashed))
        if any(wanted.root != edge.root() for wanted in by_size.pop(edge.size, ())):
            problems.append(f"log {shard}: its first {edge.size} records are not those of the checkpoint")
    problems += [
        f"log {shard} has {edge.size} records, a checkpoint of {size} was pushed: the end is missing, or an older "
        "state was brought back"
        for size in by_size
    ]
    return problems
