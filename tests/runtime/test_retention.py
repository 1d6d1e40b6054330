"""Purged cases are gone with all their content, others stay, and the log still proves everything."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from knhk_workflow import (
    AlreadyExists,
    CallMeta,
    CaseFilter,
    CaseView,
    EngineLimits,
    InvalidInput,
    Moment,
    NotFound,
    PurgeRequest,
    RequestMismatch,
    RetentionPolicy,
    StateStore,
    StoreCorrupt,
    VirtualClock,
    WorkflowEngine,
    restore_store,
    verify_store,
)
from knhk_workflow.runtime.retention import PAUSE_S, RECORDS_MAX
from knhk_workflow.store import Expectation, Keyspace, Store, Write
from tests.inside import parts
from tests.runtime.place import ONE, KeptStore, Place, damage, registered, store_of
from tests.runtime.test_backup import backup
from tests.store.logs import follow

SECRET = "c0nfidential"
HOUR = 3_600


def body(name: str) -> dict[str, object]:
    return {"name": f"{SECRET} {name}"}


async def ended(engine: WorkflowEngine, name: str, *, updates: int = 0, meta: CallMeta | None = None) -> CaseView:
    """A completed case with content, request ids and a business key."""
    asked = meta or CallMeta(request_id=f"run-{name}")
    case = await engine.run_case("one", body(name), case_id=name, business_key=f"key-{name}", meta=asked)
    for index in range(updates):
        await engine.update_case_data(name, {f"field{index}": f"{SECRET} {index}"}, meta=CallMeta(tenant=asked.tenant))
    item = case.work[0].item_id
    done = CallMeta(tenant=asked.tenant, request_id=f"sign-{name}")
    await engine.complete_work_item(item, {"signed": f"{SECRET} {name}"}, meta=done)
    return await engine.get_case(name, meta=CallMeta(tenant=asked.tenant))


async def held(store: Store) -> Sequence[tuple[bytes, bytes]]:
    return await store.scan(b"\0", b"\xff\xfe", limit=1_000_000)


async def traces(engine: WorkflowEngine) -> list[bytes]:
    """Keys of values with content of cases in them."""
    return [key for key, value in await held(store_of(engine)) if SECRET.encode() in value]


async def test_a_purged_case_is_gone_with_its_content_and_others_stay(engine: WorkflowEngine) -> None:
    for name in ("gone", "kept"):
        await ended(engine, name)
    await engine.run_case("one", {}, case_id="open")
    done = await engine.purge_cases(PurgeRequest(("gone", "open", "never")))
    assert (done.purged, done.more) == (1, False)
    assert [(each.case_id, each.state, each.error.reason) for each in done.skipped] == [
        ("open", "running", "WRONG_STATE"),
        ("never", "", "NOT_FOUND"),
    ]
    for gone in (engine.get_case("gone"), engine.get_case_history("gone"), engine.export_case("gone")):
        with pytest.raises(NotFound):
            await gone
    assert [case.case_id for case in (await engine.list_cases()).items] == ["kept", "open"]
    assert not (await engine.list_cases(CaseFilter(business_key="key-gone"))).items
    assert (await engine.get_case("kept")).state == "completed"
    left = [key for key in await traces(engine) if b"gone" in key]
    assert not left
    store = store_of(engine)
    entries = [entry async for link in follow(store, 0) for entry in link.record.entries if entry.case_id == "gone"]
    assert [(entry.first_sequence, entry.count) for entry in entries][-1][1] == 0, "the log says that it was purged"
    found = await engine.verify_store()
    assert (found.intact, found.purged, found.cases) == (True, 1, 2)


async def test_requests_of_a_purged_case_are_answered_and_its_id_is_not_given_again(engine: WorkflowEngine) -> None:
    await ended(engine, "gone")
    await engine.purge_cases(PurgeRequest(("gone",)))
    with pytest.raises(NotFound, match="purged"):
        await engine.run_case(
            "one", body("gone"), case_id="gone", business_key="key-gone", meta=CallMeta(request_id="run-gone")
        )
    with pytest.raises(NotFound, match="purged"):
        await engine.complete_work_item(
            "1.1.1@gone", {"signed": f"{SECRET} gone"}, meta=CallMeta(request_id="sign-gone")
        )
    with pytest.raises(AlreadyExists):
        await engine.run_case("one", {}, case_id="gone")
    assert (await engine.verify_store()).intact


async def test_the_id_stays_taken_after_a_restart(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        await ended(engine, "gone")
        await engine.purge_cases(PurgeRequest(("gone",)))
    async with place.engine() as engine:
        with pytest.raises(AlreadyExists):
            await engine.create_case("one", {}, case_id="gone")
        await engine.create_case("one", {}, case_id="new")
        assert (await engine.verify_store()).intact


async def test_a_filter_chooses_ended_cases_up_to_the_limit(engine: WorkflowEngine) -> None:
    for number in range(5):
        await ended(engine, f"done-{number}")
    await engine.cancel_case((await engine.run_case("one", {}, case_id="stopped")).case_id)
    await engine.run_case("one", {}, case_id="open")
    everything = PurgeRequest(filter=CaseFilter())
    assert (await engine.purge_cases(PurgeRequest(filter=CaseFilter(), dry_run=True))).purged == 6
    assert (await engine.purge_cases(PurgeRequest(filter=CaseFilter(state="cancelled"), dry_run=True))).purged == 1
    assert (await engine.purge_cases(PurgeRequest(filter=CaseFilter(business_key="key-done-3")))).purged == 1
    last = PurgeRequest(filter=CaseFilter(spec_id="one"), keep=lambda case: case.case_id > "done-2", mark=b"k")
    assert (await engine.purge_cases(last)).purged == 2
    part = await engine.purge_cases(PurgeRequest(filter=CaseFilter(), limit=2))
    assert (part.purged, part.more) == (2, True)
    rest = await engine.purge_cases(everything)
    assert (rest.purged, rest.more) == (1, False)
    assert (await engine.purge_cases(everything)).purged == 0
    assert [case.case_id for case in (await engine.list_cases()).items] == ["open"]
    for wrong in (PurgeRequest(), PurgeRequest(("a", "b"), limit=1), PurgeRequest(("a",), limit=20_000)):
        with pytest.raises(InvalidInput):
            await engine.purge_cases(wrong)


async def test_a_repeated_request_is_answered_as_the_first_time(engine: WorkflowEngine) -> None:
    for name in ("a", "b", "c"):
        await ended(engine, name)
    meta = CallMeta(request_id="purge-1")
    asked = PurgeRequest(("a", "x"), filter=CaseFilter(business_key="key-b"))
    first = await engine.purge_cases(asked, meta=meta)
    assert first.purged == 2
    together = await asyncio.gather(*(engine.purge_cases(asked, meta=meta) for _ in range(3)))
    assert together == [first] * 3
    with pytest.raises(RequestMismatch):
        await engine.purge_cases(PurgeRequest(("c",)), meta=meta)
    assert (await engine.get_case("c")).state == "completed"


async def test_a_tenant_purges_its_own_cases_only(engine: WorkflowEngine) -> None:
    other = CallMeta(tenant="other", request_id="run-other")
    await registered(engine, tenant="other")
    await ended(engine, "same")
    await ended(engine, "same", meta=other)
    assert (await engine.purge_cases(PurgeRequest(filter=CaseFilter()))).purged == 1
    assert (await engine.get_case("same", meta=CallMeta(tenant="other"))).state == "completed"
    assert (await engine.verify_store()).intact


async def test_the_policy_purges_what_is_old_enough(place: Place) -> None:
    policy = RetentionPolicy(completed_s=2 * HOUR, cancelled_s=HOUR)
    limits = EngineLimits(retention=policy)
    async with WorkflowEngine(place.state_store(), clock=place.clock, limits=limits) as engine:
        for tenant in ("default", "a", "z"):
            await registered(engine, tenant=tenant)
            meta = CallMeta(tenant=tenant, request_id="r")
            await ended(engine, "done", meta=meta)
            await engine.run_case("one", {}, case_id="stopped", meta=CallMeta(tenant=tenant))
            await engine.cancel_case("stopped", meta=CallMeta(tenant=tenant))
            await engine.run_case("one", {}, case_id="open", meta=CallMeta(tenant=tenant))
        place.clock.advance(HOUR - 1)
        assert await engine.apply_retention() == 0
        place.clock.advance(1)
        assert await engine.apply_retention() == 3
        place.clock.advance(HOUR)
        assert await engine.apply_retention() == 3
        for tenant in ("default", "a", "z"):
            found = (await engine.list_cases(meta=CallMeta(tenant=tenant))).items
            assert [case.case_id for case in found] == ["open"]
        assert not await traces(engine)
        assert (await engine.verify_store()).purged == 6


async def test_the_policy_is_applied_by_itself(tmp_path: Path) -> None:
    limits = EngineLimits(retention=RetentionPolicy(completed_s=0, every_s=PAUSE_S))
    async with WorkflowEngine(StateStore(str(tmp_path / "store")), limits=limits) as engine:
        await registered(engine)
        for number in range(40):
            await engine.run_case("one", {}, case_id=f"case-{number}")
        for number in range(40):
            await engine.complete_work_item(f"1.1.1@case-{number}")
        async with asyncio.timeout(60):
            while (await engine.list_cases()).items:  # noqa: ASYNC110  # nobody is told of it
                await asyncio.sleep(PAUSE_S)
        assert (await engine.verify_store()).purged == 40


async def test_a_damaged_head_keeps_no_other_case(tmp_path: Path) -> None:
    limits = EngineLimits(retention=RetentionPolicy(completed_s=0))
    place = Place("memory", tmp_path)
    async with place.engine() as engine:
        await registered(engine, ONE)
        for name in ("a", "b", "c", "d"):
            await ended(engine, name)
        await damage(engine, parts(engine).keyspace.case_head("default", "a"))
        assert (await engine.purge_cases(PurgeRequest(filter=CaseFilter(business_key="key-a")))).purged == 0
        assert (await engine.purge_cases(PurgeRequest(filter=CaseFilter(), limit=1))).purged == 1
        with pytest.raises(StoreCorrupt):
            await engine.purge_cases(PurgeRequest(("a",)))
    async with WorkflowEngine(place.state_store(), clock=place.clock, limits=limits) as engine:
        await engine.apply_retention()
        assert {finding.case_id for finding in (await engine.verify_store()).findings} == {"a"}
        store, keys = store_of(engine), parts(engine).keyspace
        assert [key for key, _ in await store.scan(*keys.cases(0, "default"), limit=9)] == [
            keys.case_head("default", "a")
        ]


async def test_half_a_purge_that_cannot_go_on_keeps_no_other_from_it(tmp_path: Path) -> None:
    store, clock = Remembering(), VirtualClock()
    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        await registered(engine, ONE)
        for name in ("a", "b"):
            await ended(engine, name, updates=5 * RECORDS_MAX)
        before = len(store.moments)
        await engine.purge_cases(PurgeRequest(("a", "b")))
    keys = Keyspace(1)
    [*_, moment] = [each for each in store.moments[before:] if len(await each.scan(*keys.purging(0), limit=9)) == 2]
    key, value = (await moment.scan(*keys.case_records("default", "a"), limit=1))[0]
    await moment.commit([(key, value[:-1] + bytes((value[-1] ^ 1,)))], (), True)
    async with WorkflowEngine(StateStore.over(moment), clock=clock):
        async with asyncio.timeout(10):
            while len(await moment.scan(*keys.purging(0), limit=9)) > 1:  # noqa: ASYNC110  # nobody is told of it
                await asyncio.sleep(0)
        assert await moment.scan(*keys.case_records("default", "a"), limit=1)
        assert not await moment.scan(*keys.case_records("default", "b"), limit=1)
        await moment.commit([(key, value)], (), True)
        async with asyncio.timeout(10):
            while await moment.scan(*keys.purging(0), limit=9):  # noqa: ASYNC110
                await asyncio.sleep(PAUSE_S)
    async with WorkflowEngine(StateStore.over(moment), clock=clock) as engine:
        assert (await engine.verify_store()).intact


async def test_a_large_case_is_purged_by_one(engine: WorkflowEngine) -> None:
    """Who asked goes on to the last record: the service that finishes purges is for those that nobody goes on with."""
    await ended(engine, "long", updates=5 * RECORDS_MAX)
    before = parts(engine).journal.position(0)
    assert (await engine.purge_cases(PurgeRequest(("long",)))).purged == 1
    await asyncio.sleep(0.1)
    commits = -(-(5 * RECORDS_MAX + 2) // RECORDS_MAX)
    assert parts(engine).journal.position(0) - before == commits
    assert len(await store_of(engine).scan(*parts(engine).keyspace.audits(0), limit=100)) == commits


async def test_whoever_goes_away_in_the_middle_of_a_purge_leaves_nothing(engine: WorkflowEngine) -> None:
    await ended(engine, "long", updates=5 * RECORDS_MAX)
    before = parts(engine).journal.position(0)
    purging = asyncio.create_task(engine.purge_cases(PurgeRequest(("long",))))
    while parts(engine).journal.position(0) < before + 2:  # noqa: ASYNC110  # nobody is told of it
        await asyncio.sleep(0)
    purging.cancel()
    store, keys = store_of(engine), parts(engine).keyspace
    async with asyncio.timeout(10):
        while await store.scan(*keys.purging(0), limit=1):  # noqa: ASYNC110
            await asyncio.sleep(PAUSE_S)
    assert (await engine.verify_store()).intact
    assert not await store.scan(*keys.case_records("default", "long"), limit=1)


async def test_watchers_pass_over_what_was_purged(engine: WorkflowEngine) -> None:
    await ended(engine, "first")
    token = await engine.watch_token(from_start=True)
    await ended(engine, "second", updates=RECORDS_MAX)
    await engine.purge_cases(PurgeRequest(("first", "second")))
    await engine.run_case("one", {}, case_id="third")
    seen: list[str] = []
    async for event, _ in engine.watch_cases(resume_token=token):
        seen.append(event.case_id)
        if event.event_type == "item_offered":
            break
    assert set(seen) == {"third"}


class Remembering(KeptStore):
    """Keeps a copy of its bytes after every commit: what a crash at that moment would leave."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[KeptStore] = []

    async def commit(self, writes: Sequence[Write], expect: Sequence[Expectation], durable: bool) -> None:
        await super().commit(writes, expect, durable)
        moment = KeptStore()
        moment._map = self._map.copy()
        self.moments.append(moment)


async def test_a_crash_in_the_middle_of_a_purge_is_carried_on_from(tmp_path: Path) -> None:
    store, clock = Remembering(), VirtualClock()
    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        await registered(engine, ONE)
        await ended(engine, "long", updates=5 * RECORDS_MAX)
        await ended(engine, "short")
        before = len(store.moments)
        assert (await engine.purge_cases(PurgeRequest(("long", "short")))).purged == 2
        expected = await held(store)
    unfinished = 0
    for moment in store.moments[before:]:
        async with WorkflowEngine(StateStore.over(moment), clock=clock) as engine:
            found = await engine.verify_store()
            assert found.intact, found.findings
            unfinished += bool(await moment.scan(*Keyspace(1).purging(0), limit=1))
            with pytest.raises(NotFound):
                await engine.get_case("long")
            async with asyncio.timeout(60):
                while await moment.scan(*Keyspace(1).purging(0), limit=1):  # noqa: ASYNC110  # nobody is told of it
                    await asyncio.sleep(0)
            await engine.purge_cases(PurgeRequest(("short",)))
            assert (await engine.verify_store()).intact
            assert not await traces(engine)
            assert [key for key, _ in await held(moment) if b"long" in key] == [
                key for key, _ in expected if b"long" in key
            ]
    assert unfinished >= 4


async def test_backups_carry_purges_and_an_earlier_moment_brings_cases_back(tmp_path: Path) -> None:
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        await registered(engine, ONE)
        for name in ("early", "late", "kept"):
            await ended(engine, name)
        whole = await backup(engine, tmp_path / "whole")
        position = engine.status().position
        await engine.purge_cases(PurgeRequest(("early",)))
        await ended(engine, "after")
        more = await backup(engine, tmp_path / "more", whole)
        await engine.purge_cases(PurgeRequest(("late", "after")))
        await backup(engine, tmp_path / "last", more)
        await backup(engine, tmp_path / "again")
        assert (await engine.verify_store()).intact
    archives = [str(tmp_path / name) for name in ("whole", "more", "last")]

    async def cases(into: str, some: Sequence[str], until: int = 0) -> tuple[list[str], int]:
        restored = await restore_store(some, str(tmp_path / into), until=Moment(position=until))
        assert restored.examination.intact
        assert (await verify_store(str(tmp_path / into))).intact
        async with WorkflowEngine(StateStore(str(tmp_path / into), create=False)) as engine:
            found = [case.case_id for case in (await engine.list_cases()).items]
            for name in found:
                assert (await engine.get_case(name)).state == "completed"
            for name in {"early", "late", "after"} - set(found):
                if restored.examination.purged:
                    with pytest.raises(NotFound):
                        await engine.get_case(name)
            await engine.run_case("one", {}, case_id="new")
            assert (await engine.verify_store()).intact
        return found, restored.examination.purged

    assert await cases("first", archives[:1]) == (["early", "kept", "late"], 0)
    assert await cases("second", archives[:2]) == (["after", "kept", "late"], 1)
    assert await cases("third", archives) == (["kept"], 3)
    assert await cases("fourth", archives, position) == (["early", "kept", "late"], 0), "as it was before the purges"
    assert await cases("fifth", archives, position + 1) == (["kept", "late"], 1), "after the first purge"
    assert await cases("sixth", [str(tmp_path / "again")], position) == (["kept"], 2), "their records are nowhere"


async def test_what_is_missing_without_a_note_is_lost(engine: WorkflowEngine) -> None:
    for name in ("a", "b"):
        await ended(engine, name)
    await engine.purge_cases(PurgeRequest(("a",)))
    store, keys = store_of(engine), Keyspace(1)
    note = await store.get(keys.case("default", "a").purged())
    assert note is not None
    for writes, codes in (
        ([(keys.case("default", "a").purged(), None)], {"PURGE_WRONG"}),
        ([(keys.case("default", "a").purged(), note[:-1] + bytes((note[-1] ^ 1,)))], {"PURGE_WRONG"}),
        ([(keys.case("default", "b").purged(), note)], {"PURGE_WRONG"}),
        ([(keys.case("default", "a").record(1), b"x")], {"PURGE_WRONG"}),
    ):
        before = [(key, await store.get(key)) for key, _ in writes]
        await store.commit(writes, (), True)
        found = await engine.verify_store()
        assert {finding.code for finding in found.findings} == codes
        await store.commit(before, (), True)
    assert (await engine.verify_store()).intact
