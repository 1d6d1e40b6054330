"""The tree of RFC 6962: the known answers of its reference implementation, and the definition written out."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk_workflow.store.merkle import (
    EMPTY_ROOT,
    TILE,
    Edge,
    TileName,
    consistency_ranges,
    consistent,
    cover,
    in_tile,
    inclusion_ranges,
    leaf_hash,
    range_hash,
    root_of_inclusion,
    tile_of,
)

# Inputs and answers that the reference implementations of Certificate Transparency share.
INPUTS = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
INCLUSIONS = {  # (leaf, size): path, leaves counted from 0
    (0, 1): (),
    (0, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (5, 8): (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 3): ("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",),
    (1, 5): (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}
CONSISTENCIES = {  # (first, second): path
    (1, 1): (),
    (1, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (6, 8): (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 5): (
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}
LEAVES = [leaf_hash(bytes.fromhex(text)) for text in INPUTS]
MANY = [leaf_hash(b"%d" % number) for number in range(600)]
SIZE = st.integers(1, len(MANY))


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """The root over hashes of leaves."""
    edge = Edge()
    for each in leaves:
        edge.append(each)
    return edge.root()


def mth(leaves: Sequence[bytes]) -> bytes:
    """The definition: RFC 6962, section 2.1."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"").digest()
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return sha256(b"\x01" + mth(leaves[:middle]) + mth(leaves[middle:])).digest()


def path(ranges: Sequence[tuple[int, int]], leaves: Sequence[bytes]) -> list[bytes]:
    return [mth(leaves[low:high]) for low, high in ranges]


@pytest.mark.parametrize("size", range(len(ROOTS)))
def test_roots_are_those_of_the_reference(size: int) -> None:
    assert tree_root(LEAVES[:size]).hex() == ROOTS[size]
    assert EMPTY_ROOT.hex() == ROOTS[0]


@pytest.mark.parametrize(("leaf", "size"), INCLUSIONS)
def test_proofs_of_inclusion_are_those_of_the_reference(leaf: int, size: int) -> None:
    found = path(inclusion_ranges(leaf, size), LEAVES)
    assert [each.hex() for each in found] == list(INCLUSIONS[leaf, size])
    assert root_of_inclusion(leaf, size, LEAVES[leaf], found) == bytes.fromhex(ROOTS[size])


@pytest.mark.parametrize(("first", "second"), CONSISTENCIES)
def test_proofs_of_consistency_are_those_of_the_reference(first: int, second: int) -> None:
    found = path(consistency_ranges(first, second), LEAVES)
    assert [each.hex() for each in found] == list(CONSISTENCIES[first, second])
    roots = [bytes.fromhex(ROOTS[size]) for size in (first, second)]
    assert consistent(first, second, roots[0], roots[1], found)


def test_a_leaf_cannot_pass_for_a_node() -> None:
    both = tree_root(MANY[:2])
    assert leaf_hash(MANY[0] + MANY[1]) != both
    assert leaf_hash(b"") != EMPTY_ROOT


@given(SIZE, st.data())
def test_inclusion_holds_and_nothing_else_does(size: int, data: st.DataObject) -> None:
    leaf = data.draw(st.integers(0, size - 1))
    root, proof = mth(MANY[:size]), path(inclusion_ranges(leaf, size), MANY)
    assert root_of_inclusion(leaf, size, MANY[leaf], proof) == root
    other = data.draw(st.integers(0, size - 1))
    if other != leaf:
        assert root_of_inclusion(leaf, size, MANY[other], proof) != root
        assert root_of_inclusion(other, size, MANY[leaf], proof) != root
    assert root_of_inclusion(size, size, MANY[leaf], proof) is None
    if proof:
        assert root_of_inclusion(leaf, size, MANY[leaf], proof[:-1]) is None
        proof[data.draw(st.integers(0, len(proof) - 1))] = bytes(32)
        assert root_of_inclusion(leaf, size, MANY[leaf], proof) != root


@given(SIZE, SIZE, st.data())
def test_consistency_holds_and_nothing_else_does(one: int, other: int, data: st.DataObject) -> None:
    first, second = sorted((one, other))
    old, new = mth(MANY[:first]), mth(MANY[:second])
    proof = path(consistency_ranges(first, second), MANY)
    assert consistent(first, second, old, new, proof)
    assert not consistent(first, second, new if old != new else bytes(32), new, proof)
    assert not consistent(first, second, old, bytes(32), proof)
    assert not consistent(first, second, old, new, [*proof, bytes(32)])
    if first < second:
        assert not consistent(second, first, new, old, proof)
        rewritten = [*MANY[: first - 1], leaf_hash(b"another"), *MANY[first:second]]
        assert not consistent(first, second, old, mth(rewritten), path(consistency_ranges(first, second), rewritten))
    if proof:
        proof[data.draw(st.integers(0, len(proof) - 1))] = bytes(32)
        assert not consistent(first, second, old, new, proof)


def test_tiles_have_what_every_proof_needs() -> None:
    """Grown leaf by leaf over more than one tile of the second level."""
    size = TILE * TILE + 3 * TILE + 7
    leaves = [leaf_hash(b"%d" % number) for number in range(size)]
    edge = Edge()
    tiles: dict[TileName, bytes] = {}
    for leaf in leaves:
        tiles.update(edge.append(leaf))
    assert (edge.size, edge.root()) == (size, tree_root(leaves))
    assert sorted(name.level for name in tiles) == [0] * (TILE + 3) + [1]
    for low, high in ((0, size), (0, TILE * TILE), (TILE * TILE, size), (0, TILE * 3), (TILE * 4, TILE * 4 + 3)):
        known = {}
        for node in cover(low, high):
            held = edge.held(node)
            if held is None:
                name, offset, count = tile_of(node)
                held = in_tile(tiles[name], offset, count)
            known[node] = held
        assert range_hash(low, high, known) == tree_root(leaves[low:high])


@given(SIZE)
def test_an_edge_goes_on_from_its_stored_tiles(size: int) -> None:
    edge = Edge()
    for leaf in MANY[:size]:
        edge.append(leaf)
    whole = size - size % TILE
    kept = [[], *([tile[at : at + 32] for at in range(0, len(tile), 32)] for _, tile in edge.unfinished())]
    again = Edge(kept if whole else (), whole)
    for leaf in MANY[whole:]:
        again.append(leaf)
    assert again.root() == mth(MANY)
