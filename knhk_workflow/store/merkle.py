"""The Merkle tree of RFC 6962 over a shard's log: pure arithmetic, no store.

Leaf n is the batch record at position n + 1, by its hash:

    leaf  = SHA-256(00 | hash of the batch record)
    node  = SHA-256(01 | left | right)

A tree of n leaves splits at the largest power of two below n (section 2.1). Complete subtrees never change, so they are
kept in tiles of 256 hashes: tile (level, number) has the roots of the subtrees with 256**level leaves from
number * 256 on. Whatever a proof needs lies in a few tiles, and whoever appends holds one unfinished tile per level.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

TILE_BITS: Final = 8
TILE: Final = 1 << TILE_BITS
HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()


class Node(NamedTuple):
    """A complete subtree: leaves number * 2**level up to, but not at, (number + 1) * 2**level."""

    level: int
    number: int


class TileName(NamedTuple):
    """Which tile."""

    level: int
    number: int


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


class Edge:
    """The right edge of a growing tree: the unfinished tile of every level, and how many leaves there are."""

    __slots__ = ("_tiles", "size")

    def __init__(self, tiles: Iterable[Sequence[bytes]] = (), size: int = 0) -> None:
        """`tiles`: the hashes of the unfinished tiles, from level 0 on."""
        self._tiles: list[list[bytes]] = [list(tile) for tile in tiles]
        self.size = size

    def append(self, leaf: bytes) -> Sequence[tuple[TileName, bytes]]:
        """Add the hash of one leaf; the tiles that it completes."""
        self.size += 1
        tiles = self._tiles
        if not tiles:
            tiles.append([])
        first = tiles[0]
        first.append(leaf)
        if len(first) < TILE:
            return ()
        done: list[tuple[TileName, bytes]] = []
        level = 0
        while len(tiles[level]) == TILE:
            whole = tiles[level]
            tiles[level] = []
            done.append((TileName(level, (self.size >> (TILE_BITS * (level + 1))) - 1), b"".join(whole)))
            if len(tiles) == level + 1:
                tiles.append([])
            level += 1
            tiles[level].append(_folded(whole))
        return done

    def unfinished(self) -> Sequence[tuple[TileName, bytes]]:
        """The unfinished tiles above level 0, which cannot be read from the log at once."""
        return [
            (TileName(level, self.size >> (TILE_BITS * (level + 1))), b"".join(tile))
            for level, tile in enumerate(self._tiles)
            if level and tile
        ]

    def held(self, node: Node) -> bytes | None:
        """The hash of a subtree, when it lies in an unfinished tile."""
        level, rest = divmod(node.level, TILE_BITS)
        if level >= len(self._tiles):
            return None
        first = node.number << rest
        if first >> TILE_BITS != self.size >> (TILE_BITS * (level + 1)):
            return None
        offset = first & (TILE - 1)
        part = self._tiles[level][offset : offset + (1 << rest)]
        return _folded(part) if len(part) == 1 << rest else None

    def root(self) -> bytes:
        """The root of the whole tree."""
        if not self.size:
            return EMPTY_ROOT
        known = {node: self.held(node) for node in cover(0, self.size)}
        return range_hash(0, self.size, {node: found for node, found in known.items() if found is not None})


def tile_of(node: Node) -> tuple[TileName, int, int]:
    """The tile that a subtree lies in, with the number of its first hash there and of how many it is made."""
    level, rest = divmod(node.level, TILE_BITS)
    first = node.number << rest
    return TileName(level, first >> TILE_BITS), first & (TILE - 1), 1 << rest


def in_tile(tile: bytes, offset: int, count: int) -> bytes:
    """The hash of `count` hashes of a tile, from number `offset` on."""
    return _folded([tile[at * HASH_BYTES : (at + 1) * HASH_BYTES] for at in range(offset, offset + count)])


def cover(low: int, high: int) -> Iterator[Node]:
    """The complete subtrees that leaves low .. high - 1 consist of; `low` is aligned as in every range of a proof."""
    while low < high:
        level = (high - low).bit_length() - 1
        yield Node(level, low >> level)
        low += 1 << level


def range_hash(low: int, high: int, known: Mapping[Node, bytes]) -> bytes:
    """The hash over a range (MTH(D[low:high])), from its complete subtrees."""
    parts = [known[node] for node in cover(low, high)]
    found = parts.pop()
    while parts:
        found = node_hash(parts.pop(), found)
    return found


def inclusion_ranges(leaf: int, size: int) -> list[tuple[int, int]]:
    """The ranges whose hashes prove that a leaf is in a tree of `size` leaves, from the leaf upwards (2.1.1)."""
    found: list[tuple[int, int]] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if leaf < middle:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            low = middle
    return found[::-1]


def consistency_ranges(first: int, second: int) -> list[tuple[int, int]]:
    """The ranges whose hashes prove that a tree of `second` leaves continues one of `first` (2.1.2)."""
    found: list[tuple[int, int]] = []
    low, high, whole = 0, second, True
    while first != high:
        middle = low + _split(high - low)
        if first <= middle:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            low, whole = middle, False
    if not whole:
        found.append((low, high))
    return found[::-1]


def root_of_inclusion(leaf: int, size: int, hashed: bytes, path: Sequence[bytes]) -> bytes | None:
    """The root that a proof of inclusion leads to; None when the proof has not the length of one."""
    ranges = inclusion_ranges(leaf, size)
    if not 0 <= leaf < size or len(ranges) != len(path):
        return None
    for (low, _), other in zip(ranges, path, strict=True):
        hashed = node_hash(hashed, other) if low > leaf else node_hash(other, hashed)
    return hashed


def consistent(first: int, second: int, first_root: bytes, second_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether a proof shows that the tree with the second root continues the one with the first (RFC 9162, 2.1.4.2)."""
    if first > second or first < 0:
        return False
    if first == second:
        return first_root == second_root and not path
    if not first:
        return first_root == EMPTY_ROOT and not path
    rest = list(path)
    if first & (first - 1) == 0:
        rest.insert(0, first_root)
    if not rest:
        return False
    node, last = first - 1, second - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = rest[0]
    for each in rest[1:]:
        if not last:
            return False
        if node & 1 or node == last:
            old, new = node_hash(each, old), node_hash(each, new)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, each)
        node >>= 1
        last >>= 1
    return not last and old == first_root and new == second_root


def _split(size: int) -> int:
    """The largest power of two below `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def _folded(hashes: Sequence[bytes]) -> bytes:
    """The root over a power of two of hashes."""
    while len(hashes) > 1:
        hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
    return hashes[0]
