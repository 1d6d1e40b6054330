"""One suite over every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knhk_workflow.errors import StoreUnavailable
from knhk_workflow.store import ExpectationFailed, Store, Write, open_store

MIB = 1024 * 1024
KINDS = ["memory", "leveldb"]


async def opened(kind: str, directory: Path) -> Store:
    return await open_store(":memory:" if kind == "memory" else str(directory / "store"))


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made = await opened(request.param, tmp_path)
    yield made
    await made.close()


async def put(store: Store, *writes: Write) -> None:
    await store.commit(writes, [], True)


async def test_it_says_what_it_is(store: Store) -> None:
    assert store.kind in KINDS
    assert store.shards == 1


async def test_what_was_committed_is_read(store: Store) -> None:
    await put(store, (b"a", b"1"), (b"empty", b""))
    assert await store.get(b"a") == b"1"
    assert await store.get(b"empty") == b""
    assert await store.get(b"b") is None
    await put(store, (b"a", None), (b"never there", None))
    assert await store.get(b"a") is None


async def test_the_later_write_of_a_key_wins(store: Store) -> None:
    await put(store, (b"a", b"1"), (b"a", b"2"), (b"b", b"1"), (b"b", None), (b"c", None), (b"c", b"3"))
    assert await store.scan(b"", b"\xff", limit=10) == [(b"a", b"2"), (b"c", b"3")]


async def test_a_commit_without_durability_is_read_as_well(store: Store) -> None:
    await store.commit([(b"a", b"1")], [], False)
    assert await store.get(b"a") == b"1"


async def test_scan_is_half_open_ordered_and_limited(store: Store) -> None:
    keys = [b"\x00", b"a", b"a\x00", b"a\xff", b"b", b"c", b"\xf0"]
    await put(store, *((key, b"v" + key) for key in reversed(keys)))
    everything = [(key, b"v" + key) for key in keys]
    assert await store.scan(b"", b"\xfe", limit=100) == everything
    assert await store.scan(b"", b"\xfe", limit=100, reverse=True) == everything[::-1]
    assert await store.scan(b"a", b"b", limit=100) == everything[1:4]
    assert await store.scan(b"a", b"b", limit=2, reverse=True) == [everything[3], everything[2]]
    assert await store.scan(b"a", b"b", limit=1) == [everything[1]]
    assert await store.scan(b"a", b"b", limit=0) == []
    assert await store.scan(b"b", b"a", limit=10) == []
    assert await store.scan(b"a", b"a", limit=10) == []


async def test_expectations_hold_or_nothing_is_written(store: Store) -> None:
    await put(store, (b"here", b"1"))
    await store.commit([(b"x", b"1")], [(b"here", b"1"), (b"absent", None)], True)
    with pytest.raises(ExpectationFailed) as refused:
        await store.commit(
            [(b"y", b"1"), (b"here", None)], [(b"here", b"2"), (b"absent", b"1"), (b"x", None), (b"x", b"1")], True
        )
    assert refused.value.keys == (b"here", b"absent", b"x")
    assert await store.get(b"y") is None
    assert await store.get(b"here") == b"1"


async def test_of_two_commits_at_once_one_wins(store: Store) -> None:
    tries = [store.commit([(b"a", b"%d" % n)], [(b"a", None)], True) for n in range(5)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(ExpectationFailed) == 4
    assert outcomes.count(None) == 1


async def test_a_snapshot_stays_at_its_moment(store: Store) -> None:
    await put(store, (b"a", b"1"), (b"b", b"1"))
    moment = await store.snapshot()
    await put(store, (b"a", b"2"), (b"b", None), (b"c", b"2"))
    assert await moment.get(b"a") == b"1"
    assert await moment.scan(b"", b"\xfe", limit=10) == [(b"a", b"1"), (b"b", b"1")]
    second = await store.snapshot()
    assert await second.scan(b"", b"\xfe", limit=10, reverse=True) == [(b"c", b"2"), (b"a", b"2")]
    await moment.close()
    await moment.close()
    with pytest.raises(StoreUnavailable):
        await moment.get(b"a")
    assert await second.get(b"b") is None
    await second.close()


@pytest.mark.parametrize("size", [256 * 1024, 256 * 1024 + 1, 3 * MIB])
async def test_large_values_come_back_whole(store: Store, size: int) -> None:
    large = bytes(range(256)) * (size // 256) + b"!" * (size % 256)
    await put(store, (b"large", large), (b"next", b"1"))
    assert await store.get(b"large") == large
    assert await store.scan(b"", b"\xff\xff\xff\xff", limit=10) == [(b"large", large), (b"next", b"1")]
    moment = await store.snapshot()
    await store.commit([(b"large", large[:-1])], [(b"large", large)], True)
    with pytest.raises(ExpectationFailed):
        await store.commit([(b"large", b"")], [(b"large", large)], True)
    assert await moment.get(b"large") == large
    await moment.close()
    await put(store, (b"large", b"small"))
    assert await store.get(b"large") == b"small"
    await put(store, (b"large", large), (b"large", None))
    assert await store.scan(b"", b"\xff\xff\xff\xff", limit=10) == [(b"next", b"1")]


async def test_values_may_look_like_anything(store: Store) -> None:
    looks = [b"\xffchunks\xff", b"\xffchunks\xff" + bytes(16), b"\x00" * 40]
    await put(store, *((b"%d" % n, value) for n, value in enumerate(looks)))
    assert [value for _, value in await store.scan(b"", b"\xfe", limit=10)] == looks


async def test_recovering_a_healthy_store_changes_nothing(store: Store) -> None:
    await put(store, (b"a", b"1"))
    await store.recover()
    assert await store.get(b"a") == b"1"


async def test_after_closing_calls_say_so(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.get(b"a")
    with pytest.raises(StoreUnavailable):
        await store.commit([(b"a", b"1")], [], True)


KEY = st.binary(min_size=1, max_size=3).filter(lambda key: key < b"\xff\xfe")
WRITES = st.lists(st.tuples(KEY, st.none() | st.binary(max_size=4)), max_size=6)


@pytest.mark.parametrize("kind", KINDS)
def test_any_commits_read_like_a_sorted_map(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.tuples(WRITES, WRITES), max_size=8), KEY, KEY)
    def check(commits: Sequence[tuple[list[Write], list[Write]]], start: bytes, end: bytes) -> None:
        async def run() -> None:
            store = await opened(kind, tmp_path_factory.mktemp("any"))
            model: dict[bytes, bytes] = {}
            for writes, expect in commits:
                holds = all(model.get(key) == value for key, value in expect)
                if not holds:
                    with pytest.raises(ExpectationFailed) as refused:
                        await store.commit(writes, expect, False)
                    assert list(refused.value.keys) == [key for key, value in expect if model.get(key) != value]
                    continue
                await store.commit(writes, expect, False)
                for key, value in writes:
                    if value is None:
                        model.pop(key, None)
                    else:
                        model[key] = value
            inside = [(key, model[key]) for key in sorted(model) if start <= key < end]
            assert await store.scan(start, end, limit=1_000) == inside
            assert await store.scan(start, end, limit=1_000, reverse=True) == inside[::-1]
            await store.close()

        asyncio.run(run())

    check()
