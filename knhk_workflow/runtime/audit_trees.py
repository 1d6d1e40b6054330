"""The Merkle trees over the logs of a store, kept beside them: roots, checkpoints, proofs.

A tree follows its log when somebody asks, or the background does: new leaves come from memory, or from the log where
more were written than is kept there. Complete tiles are stored, so that opening reads one tile per level and a proof
reads a few. They are a cache: what they say follows from the log alone, and `knhk audit verify` makes its own.
Nothing of this happens on the way of a command, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from knhk_workflow.errors import InvalidInput, StoreCorrupt, Unsupported
from knhk_workflow.runtime.checkpoint import Checkpoint, signed_checkpoint
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.signature import SigningKey
from knhk_workflow.store import META_SHARD, ExpectationFailed, Journal, Keyspace, Reads, Unit, Write, seal, unseal
from knhk_workflow.store.codec import log_link
from knhk_workflow.store.keys import parse_log
from knhk_workflow.store.merkle import (
    HASH_BYTES,
    TILE,
    Edge,
    Node,
    TileName,
    consistency_ranges,
    cover,
    in_tile,
    inclusion_ranges,
    leaf_hash,
    range_hash,
    tile_of,
)

KEPT_HASHES: Final = 65_536  # per log, 5 MB: a minute at 1,000 commits a second; what is more is read from the log
PORTION: Final = 256  # leaves at a time, 0.3 ms of hashing, before others on the event loop get theirs
TILES_TOGETHER: Final = 32  # in one commit, 256 KB
IDENTITY_BYTES: Final = 16


class Inclusion(NamedTuple):
    """That a leaf (from 0 on) is in the tree of a checkpoint."""

    checkpoint: Checkpoint
    leaf: int
    path: Sequence[bytes]


class Trees:
    """The trees of one engine. `key` signs checkpoints; without it there are none."""

    def __init__(self, reads: Reads, journal: Journal, keyspace: Keyspace, clock: Clock) -> None:
        self._reads = reads
        self._journal = journal
        self._keys = keyspace
        self._clock = clock
        self._trees: dict[int, _Tree] = {}
        self._store = ""
        self.key: SigningKey | None = None
        self.newest: dict[int, Checkpoint] = {}
        """By shard: the newest checkpoint that was made."""

    def noted(self, shard: int, position: int) -> None:
        """A commit of the journal: what its batch record is, for a tree that is followed."""
        tree = self._trees.get(shard)
        if tree is not None:
            tree.coming.append((position, self._journal.head(shard)[1]))

    async def identity(self) -> str:
        """What tells this store from every other, its copies and restored backups aside: 32 hex digits."""
        if not self._store:
            key = self._keys.identity()
            held = await self._reads.get(key)
            while held is None:
                made = seal(os.urandom(IDENTITY_BYTES))
                try:
                    await self._journal.append(Unit.aside(META_SHARD, "", [(key, made)], [(key, None)]))
                    held = made
                except ExpectationFailed:
                    held = await self._reads.get(key)
            self._store = unseal(key, held).hex()
        return self._store

    async def checkpoints(self, *, again: bool = False) -> Sequence[Checkpoint]:
        """The newest checkpoint of every log that has something; `again`: signed now even where nothing is new."""
        shards = self._keys.all_shards()
        return [await self.checkpoint(shard, again=again) for shard in shards if self._journal.position(shard)]

    async def checkpoint(self, shard: int, *, again: bool = False) -> Checkpoint:
        """That of one log, up to what was committed before this call."""
        if self.key is None:
            raise Unsupported("checkpoints", "they are signed, and this engine has no key")
        store = await self.identity()
        tree = await self._followed(shard)
        newest = self.newest.get(shard)
        if newest is not None and newest.size == tree.edge.size and not again:
            return newest
        size, root = tree.edge.size, tree.edge.root()
        made = await asyncio.to_thread(signed_checkpoint, store, shard, size, root, self._clock.now(), self.key)
        if newest is None or made.size >= newest.size:
            self.newest[shard] = made
        return made

    async def root(self, shard: int, size: int) -> bytes:
        """The root that a log had when it had this many records. Raises InvalidInput when it never had."""
        tree = await self._followed(shard)
        if not 0 <= size <= tree.edge.size:
            raise InvalidInput.field("size", f"is {size}, the log has {tree.edge.size} records")
        if not size:
            return Edge().root()
        return (await self._hashes(tree, [(0, size)]))[0]

    async def inclusion(self, shard: int, position: int) -> Inclusion:
        """That the batch record at a position is in the tree of the newest checkpoint. Raises InvalidInput."""
        checkpoint = await self.checkpoint(shard)
        if not 0 < position <= checkpoint.size:
            raise InvalidInput.field("position", f"is {position}, the log has {checkpoint.size} records")
        tree = self._trees[shard]
        path = await self._hashes(tree, inclusion_ranges(position - 1, checkpoint.size))
        return Inclusion(checkpoint, position - 1, path)

    async def consistency(self, shard: int, first: int, second: int) -> Sequence[bytes]:
        """That the log of `second` records continues that of `first`. Raises InvalidInput."""
        tree = await self._followed(shard)
        if not 0 < first <= second <= tree.edge.size:
            raise InvalidInput.field("first_size", f"{first} to {second} are no sizes of a log of {tree.edge.size}")
        return await self._hashes(tree, consistency_ranges(first, second))

    async def misfit(self, known: Checkpoint) -> str:
        """Why a checkpoint that was kept elsewhere does not fit this store; empty when it does."""
        if known.store != await self.identity():
            return f"it is of another store, {known.store}"
        if known.shard not in self._keys.all_shards():
            return f"it is of a log that this store has not, {known.shard}"
        position = self._journal.position(known.shard)
        if known.size > position:
            return (
                f"it has {known.size} records of log {known.shard}, this store has {position}: the end is missing, or "
                "an older state was brought back"
            )
        if await self.root(known.shard, known.size) != known.root:
            return f"the first {known.size} records of log {known.shard} are not those that were there"
        return ""

    # -- following ----------------------------------------------------------------------------------------------------

    async def _followed(self, shard: int) -> _Tree:
        """The tree of a log, up to what was committed before this call."""
        if shard not in self._keys.all_shards():
            raise InvalidInput.field("shard", f"there is no log {shard}", "the shards of a store's checkpoints")
        until = self._journal.position(shard)
        tree = self._trees.get(shard)
        if tree is None:
            tree = self._trees[shard] = _Tree(shard)
        async with tree.turn:
            if not tree.opened:
                await self._open(tree)
            while tree.edge.size < until:
                for hashed in await self._next(tree):
                    for name, tile in tree.edge.append(leaf_hash(hashed)):
                        tree.pending[name] = tile
                if len(tree.pending) >= TILES_TOGETHER:
                    await self._store_tiles(tree)
                await asyncio.sleep(0)
            if tree.pending:
                await self._store_tiles(tree)
        return tree

    async def _next(self, tree: _Tree) -> Iterable[bytes]:
        """The hashes of the batch records that come next, PORTION at most."""
        coming, size = tree.coming, tree.edge.size
        while coming and coming[0][0] <= size:
            coming.popleft()
        if coming and coming[0][0] == size + 1:
            return [coming.popleft()[1] for _ in range(min(PORTION, len(coming)))]
        found: list[bytes] = []
        start, end = self._keys.log_range(tree.shard, size + 1)
        for key, value in await self._reads.scan(start, end, limit=PORTION):
            position = parse_log(key)[1]
            if position != size + 1 + len(found):
                raise tree.without(f"log position {size + 1 + len(found)}")
            found.append(log_link(key, value)[1])
        if not found:
            raise tree.without(f"log position {size + 1}")
        return found

    async def _open(self, tree: _Tree) -> None:
        """Begin where the stored tiles end."""
        edge: list[list[bytes]] = []
        size = level = 0
        while True:
            last = await self._reads.scan(*self._keys.tiles(tree.shard, level), limit=1, reverse=True)
            if not last:
                break
            key, value = last[0]
            tile = unseal(key, value)
            index = int.from_bytes(key[-8:], "big")
            hashes = [tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)]
            whole = len(hashes) == TILE
            if not level:
                size = (index + 1) * TILE
            edge.append([] if whole else hashes)
            level += 1
        tree.edge = Edge(edge, size)
        tree.opened = True

    async def _store_tiles(self, tree: _Tree) -> None:
        """Keep the tiles that are complete by now, and the unfinished ones above, so that opening need not make them
        again. A failure leaves them in memory; the next time does it."""
        pending = dict(tree.pending)
        writes: list[Write] = [
            (self._keys.tile(tree.shard, name.level, name.number), seal(tile))
            for name, tile in (*pending.items(), *tree.edge.unfinished())
        ]
        await self._journal.append(Unit.aside(tree.shard, "", writes))
        for name in pending:
            tree.pending.pop(name, None)

    async def _hashes(self, tree: _Tree, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The hash over each range of leaves of a followed tree."""
        tiles: dict[TileName, bytes] = {}
        found: list[bytes] = []
        for low, high in ranges:
            known: dict[Node, bytes] = {}
            for node in cover(low, high):
                held = tree.edge.held(node)
                if held is None:
                    name, offset, count = tile_of(node)
                    if name not in tiles:
                        tiles[name] = await self._tile(tree, name)
                    held = in_tile(tiles[name], offset, count)
                known[node] = held
            found.append(range_hash(low, high, known))
        return found

    async def _tile(self, tree: _Tree, name: TileName) -> bytes:
        pending = tree.pending.get(name)
        if pending is not None:
            return pending
        key = self._keys.tile(tree.shard, name.level, name.number)
        held = await self._reads.get(key)
        if held is None or len(tile := unseal(key, held)) != TILE * HASH_BYTES:
            raise tree.without(f"tile {name.number} of level {name.level}")
        return tile


class _Tree:
    """The tree of one log."""

    __slots__ = ("coming", "edge", "opened", "pending", "shard", "turn")

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.edge = Edge()
        self.opened = False
        self.turn = asyncio.Lock()
        self.coming: deque[tuple[int, bytes]] = deque(maxlen=KEPT_HASHES)
        """(position, hash) of the newest batch records."""
        self.pending: dict[TileName, bytes] = {}
        """Complete tiles that are not stored yet."""

    def without(self, what: str) -> StoreCorrupt:
        """The error when a part is missing."""
        return StoreCorrupt(f"shard {self.shard}: {what} is missing", shard=str(self.shard))
