"""Backups of a working engine, restored into other places, whole, step by step, and as of an earlier moment."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from pathlib import Path

import pytest

from knhk_workflow import (
    CallMeta,
    InvalidInput,
    Moment,
    NotFound,
    StateStore,
    StoreCorrupt,
    StoreFormat,
    StoreLocked,
    WorkflowEngine,
    check_backup,
    restore_store,
    verify_store,
)
from knhk_workflow.runtime.records import ScheduleSpec
from knhk_workflow.store import Keyspace
from knhk_workflow.store.keys import (
    DEFINITION,
    HEAD,
    ITEM,
    LEASE,
    LOG,
    RECORD,
    REQUEST,
    REQUEST_EXPIRY,
    SCHEDULE,
    TILE,
    is_sealed,
    kind_of,
)
from knhk_workflow.store.leveldb import LevelDBStore
from tests.inside import parts
from tests.runtime.place import damage, store_of
from tests.store.logs import follow
from tests.sweep.judge import Ending, ending_of
from tests.sweep.workload import CASES, SPEC, STEPS, carry_out

HALF = len(STEPS) // 2


async def backup(engine: WorkflowEngine, file: Path, after_token: str = "") -> str:
    """Write a backup; its token."""
    token = digest = ""
    with file.open("wb") as out:
        async for piece in engine.backup(after_token=after_token):
            out.write(piece.chunk)
            token, digest = piece.token, piece.digest
    assert token
    assert digest
    assert check_backup(str(file)).token == token
    return token


async def work(engine: WorkflowEngine, steps: range, cases: range = range(CASES)) -> None:
    for index in steps:
        for number in cases:
            await carry_out(engine, number, index)


async def everything(path: Path, cases: int = CASES) -> list[Ending]:
    async with WorkflowEngine(StateStore(str(path), create=False)) as engine:
        return [await ending_of(engine, number) for number in range(cases)]


async def test_a_backup_taken_while_cases_run_is_one_moment(tmp_path: Path) -> None:
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        await engine.register_workflow(SPEC)
        await work(engine, range(2))

        async def keeps_on() -> None:
            await work(engine, range(2, len(STEPS)))

        running = asyncio.create_task(keeps_on())
        files = []
        for number in range(4):
            await asyncio.sleep(0.01)
            files.append(tmp_path / f"backup-{number}")
            await backup(engine, files[-1])
        await running
        final = [await ending_of(engine, number) for number in range(CASES)]
    for number, file in enumerate(files):
        restored = await restore_store([str(file)], str(tmp_path / f"restored-{number}"))
        assert restored.examination.intact
        for ending, true in zip(await everything(tmp_path / f"restored-{number}"), final, strict=True):
            assert ending[2] == true[2][: len(ending[2])], "each history is a beginning of the true one"


async def test_incremental_backups_restore_to_the_newest_state_and_work_goes_on(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("whole", "one", "two", "nothing")]
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        await engine.register_workflow(SPEC)
        await work(engine, range(3))
        token = await backup(engine, files[0])
        await work(engine, range(3, 5), range(3))
        await engine.register_workflow({**SPEC, "name": "second version"})
        token = await backup(engine, files[1], token)
        await work(engine, range(3, len(STEPS)))
        token = await backup(engine, files[2], token)
        await backup(engine, files[3], token)
        truth = [await ending_of(engine, number) for number in range(CASES)]
    assert files[3].stat().st_size < files[0].stat().st_size
    into = tmp_path / "new" / "place"
    restored = await restore_store([str(file) for file in files], str(into))
    assert restored.examination.intact
    assert restored.examination.cases == CASES
    assert await everything(into) == truth
    assert (await verify_store(str(into))).intact
    async with WorkflowEngine(StateStore(str(into), create=False)) as engine:
        assert (await engine.get_workflow("order")).version == 2
        await work(engine, range(len(STEPS)))  # every request is known: nothing happens twice
        assert [await ending_of(engine, number) for number in range(CASES)] == truth
        await engine.run_case("order", {}, case_id="case-99")
    for wrong in ([files[1]], [files[0], files[2]], [files[0], files[0]]):
        with pytest.raises(InvalidInput, match=r"whole|begin where"):
            await restore_store([str(file) for file in wrong], str(tmp_path / "never"))
    assert not (tmp_path / "never").exists()


async def test_any_position_of_the_log_can_be_restored(tmp_path: Path) -> None:
    """At each position: the histories are what the log tells up to there, and the rest of the work can be done."""
    path = tmp_path / "store"
    async with WorkflowEngine(StateStore(str(path))) as engine:
        await engine.register_workflow(SPEC)
        await work(engine, range(2), range(3))
        token = await backup(engine, tmp_path / "whole")
        await work(engine, range(2, len(STEPS)), range(3))
        await engine.register_workflow({**SPEC, "name": "later"})
        await backup(engine, tmp_path / "more", token)
        truth = [await ending_of(engine, number) for number in range(3)]
    store = await LevelDBStore.open(str(path))
    entries = [(link.position, link.record.entries, link.record.time_ns) async for link in follow(store, 0)]
    await store.close()
    archives = [str(tmp_path / "whole"), str(tmp_path / "more")]
    counts = dict.fromkeys((f"case-{number}" for number in range(3)), 0)
    for position, told, time_ns in entries:
        counts |= {entry.case_id: entry.first_sequence + entry.count - 1 for entry in told}
        if position % 5 and position != len(entries):
            continue
        into = tmp_path / f"at-{position}"
        moment = Moment(position=position) if position % 2 else Moment(time_ns=time_ns)
        restored = await restore_store(archives, str(into), until=moment)
        assert restored.position == position
        assert restored.examination.intact
        async with WorkflowEngine(StateStore(str(into), create=False)) as engine:
            for number, (case_id, count) in enumerate(counts.items()):
                if count:
                    assert (await ending_of(engine, number))[2] == truth[number][2][:count]
                else:
                    with pytest.raises(NotFound):
                        await engine.get_case(case_id)
            assert (await engine.get_workflow("order")).version == 1
            await work(engine, range(len(STEPS)), range(3))
            assert [await ending_of(engine, number) for number in range(3)] == truth
            assert (await engine.verify_store()).intact
    with pytest.raises(InvalidInput, match="not in the backup"):
        await restore_store(archives, str(tmp_path / "never"), until=Moment(position=10_000))


async def test_a_damaged_backup_is_refused_whatever_byte_it_is(tmp_path: Path) -> None:
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        await engine.register_workflow(SPEC)
        await work(engine, range(3), range(2))
        await backup(engine, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    draw = random.Random(7)
    places = {*range(16), *draw.sample(range(len(whole)), 150), len(whole) - 1}
    for place in sorted(places):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises((StoreCorrupt, StoreFormat)):
            await restore_store([str(tmp_path / "damaged")], str(tmp_path / "never"))
    for size in draw.sample(range(len(whole)), 60):
        (tmp_path / "damaged").write_bytes(whole[:size])
        with pytest.raises((StoreCorrupt, StoreFormat)):
            check_backup(str(tmp_path / "damaged"))
    (tmp_path / "damaged").write_bytes(whole + b"\0")
    with pytest.raises(StoreCorrupt, match="behind its end"):
        check_backup(str(tmp_path / "damaged"))
    assert not (tmp_path / "never").exists()
    assert sorted(os.listdir(tmp_path)) == ["damaged", "store", "whole"], "nothing half made is left"


async def test_no_backup_is_made_of_a_damaged_store(tmp_path: Path) -> None:
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        await engine.register_workflow(SPEC)
        await work(engine, range(3), range(2))
    store = await LevelDBStore.open(str(tmp_path / "store"))
    keys = Keyspace(store.shards)
    key, value = (await store.scan(*keys.case_records("default", "case-1"), limit=1))[0]
    await store.commit([(key, value[:-1] + bytes((value[-1] ^ 1,)))], (), True)
    await store.close()
    found = await verify_store(str(tmp_path / "store"))
    assert {finding.case_id for finding in found.findings} == {"case-1"}
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        with pytest.raises(StoreCorrupt):
            await backup(engine, tmp_path / "whole")
        assert not (await engine.verify_store()).intact


async def test_no_backup_has_a_damaged_value_of_any_kind_in_it(tmp_path: Path) -> None:
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        token = await backup(engine, tmp_path / "before")
        await engine.register_workflow(SPEC)
        await work(engine, range(4), range(2))
        await engine.create_schedule("monthly", ScheduleSpec("order", "0 0 1 * *"))
        await engine.run_case("order", case_id="broken")
        await engine.update_case_data("broken", {"n": 1})
        store = store_of(engine)
        rows = await store.scan(b"\0", b"\xff\xfe", limit=100_000)
        newest = {kind_of(key): (key, value) for key, value in rows if kind_of(key) != TILE}
        assert newest.keys() >= {HEAD, ITEM, SCHEDULE, DEFINITION, REQUEST, REQUEST_EXPIRY, RECORD, LEASE}
        for kind, (key, value) in newest.items():
            if not is_sealed(key, value):
                continue
            await damage(engine, key)
            with pytest.raises(StoreCorrupt, match=key.hex() if kind != LOG else None) as refused:
                await backup(engine, tmp_path / "whole")
            assert kind == LOG or "the last good backup" in refused.value.message
            with pytest.raises(StoreCorrupt):  # these cases were touched since, so an incremental one has them, too
                await backup(engine, tmp_path / "more", token)
            await store.commit([(key, value)], (), True)
        await backup(engine, tmp_path / "whole")
    assert (await restore_store([str(tmp_path / "whole")], str(tmp_path / "new"))).examination.intact


async def test_a_damaged_row_of_a_case_that_rests_is_mended_from_the_backup_before(tmp_path: Path) -> None:
    files = [tmp_path / "whole", tmp_path / "since"]
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        await engine.register_workflow(SPEC)
        await work(engine, range(3), range(3))
        token = await backup(engine, files[0])
        true = await engine.get_case("case-1")
        for key in (parts(engine).keyspace.case_head("default", "case-1"), *await item_keys(engine, "case-1")):
            await damage(engine, key)
        await work(engine, range(3, 5), range(1))
        with pytest.raises(StoreCorrupt, match="with an incremental one"):
            await backup(engine, tmp_path / "never")
        await backup(engine, files[1], token)
        others = [await ending_of(engine, number) for number in (0, 2)]
    restored = await restore_store([str(file) for file in files], str(tmp_path / "new"))
    assert restored.examination.intact
    async with WorkflowEngine(StateStore(str(tmp_path / "new"), create=False)) as engine:
        assert await engine.get_case("case-1") == true
        assert [await ending_of(engine, number) for number in (0, 2)] == others


async def item_keys(engine: WorkflowEngine, case_id: str) -> list[bytes]:
    rows = await store_of(engine).scan(*parts(engine).keyspace.case("default", case_id).items(), limit=100)
    return [key for key, _ in rows]


async def test_tokens_of_other_stores_and_of_nothing_are_refused(tmp_path: Path) -> None:
    tokens = []
    for name in ("one", "two"):
        async with WorkflowEngine(StateStore(str(tmp_path / name))) as engine:
            await engine.register_workflow(SPEC)
            await work(engine, range(2), range(2))
            tokens.append(await backup(engine, tmp_path / f"backup-{name}"))
            for wrong in (tokens[0] if name == "two" else "", "nonsense", "%%%", "kA"):
                if wrong:
                    with pytest.raises(InvalidInput, match="token"):
                        await backup(engine, tmp_path / "never", wrong)


async def test_only_a_new_directory_is_restored_into_and_only_a_closed_one_verified(tmp_path: Path) -> None:
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        await engine.register_workflow(SPEC)
        await backup(engine, tmp_path / "whole")
        with pytest.raises(StoreLocked):
            await verify_store(str(tmp_path / "store"))
    with pytest.raises(InvalidInput, match="not an empty directory"):
        await restore_store([str(tmp_path / "whole")], str(tmp_path / "store"))
    (tmp_path / "empty").mkdir()
    await restore_store([str(tmp_path / "whole")], str(tmp_path / "empty"))
    with pytest.raises(NotFound):
        await verify_store(str(tmp_path / "absent"))
    with pytest.raises(NotFound):
        await restore_store([str(tmp_path / "absent")], str(tmp_path / "never"))
    shutil.rmtree(tmp_path / "store" / "db")
    found = await verify_store(str(tmp_path / "store"))
    assert [finding.code for finding in found.findings] == ["STORE_FORMAT"]


async def test_a_backup_has_all_tenants_and_an_export_one_case(tmp_path: Path) -> None:
    other = CallMeta(tenant="other")
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        for meta in (CallMeta(), other):
            await engine.register_workflow(SPEC, meta=meta)
            await engine.run_case("order", {}, case_id="same", meta=meta)
        await backup(engine, tmp_path / "whole")
    await restore_store([str(tmp_path / "whole")], str(tmp_path / "restored"))
    async with WorkflowEngine(StateStore(str(tmp_path / "restored"))) as engine:
        for meta in (CallMeta(), other):
            assert (await engine.get_case("same", meta=meta)).tenant == meta.tenant


async def test_timers_come_back_as_they_were_at_the_moment(tmp_path: Path) -> None:
    """A time-out that was disarmed later is armed again where that had not happened yet."""
    document = {
        "id": "timed",
        "tasks": {"a": {"required_roles": ["clerk"], "timeout": "2d"}, "b": {"required_roles": ["clerk"]}},
        "flows": [{"from": "start", "to": "a"}, {"from": "a", "to": "b"}, {"from": "b", "to": "end"}],
    }
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        await engine.register_workflow(document)
        case = await engine.run_case("timed", {}, case_id="one")
        before = engine.status().position
        await engine.complete_work_item(case.work[0].item_id)
        assert (await engine.verify_store()).intact
        await backup(engine, tmp_path / "whole")
    for position, armed in ((before, 1), (before + 1, 0)):
        into = tmp_path / f"at-{position}"
        await restore_store([str(tmp_path / "whole")], str(into), until=Moment(position=position))
        store = await LevelDBStore.open(str(into))
        assert len(await store.scan(*Keyspace(store.shards).timers(0), limit=10)) == armed
        await store.commit([(Keyspace(store.shards).case("default", "one").timer(17, "9"), b"")], (), True)
        await store.close()
        found = await verify_store(str(into))
        assert [finding.code for finding in found.findings] == ["TIMERS_WRONG"]
