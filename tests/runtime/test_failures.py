"""Failing writes, callers who go away, damaged bytes: what was acknowledged stays, and others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random

import pytest

from knhk_workflow import (
    CallMeta,
    ConnectorSetup,
    NotFound,
    RunRequest,
    ScheduleSpec,
    StateStore,
    StoreCorrupt,
    StoreUnavailable,
    WorkflowEngine,
)
from knhk_workflow.errors import WorkflowError
from knhk_workflow.runtime import live
from knhk_workflow.runtime.records import SnapshotRecord, pack
from knhk_workflow.store import Write
from tests.conftest import Budget
from tests.connectors.calling import until_open
from tests.inside import parts
from tests.runtime.place import Gate, KeptStore, Place, becomes, body, item_of, registered, store_of
from tests.store.faulty import Fault, FaultyStore


async def faulty_engine() -> tuple[WorkflowEngine, FaultyStore]:
    store = FaultyStore(KeptStore())
    engine = WorkflowEngine(StateStore.over(store))
    await registered(engine)
    return engine, store


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST, Fault.APPLIED])
async def test_memory_is_never_ahead_of_the_disk(fault: Fault) -> None:
    engine, store = await faulty_engine()
    async with engine:
        case = await engine.run_case("line", {"n": 0})
        item = item_of(case, "first").item_id
        store.faults = [fault]
        if fault is Fault.APPLIED:
            await engine.complete_work_item(item, {"n": 1})
        else:
            with pytest.raises(StoreUnavailable):
                await engine.complete_work_item(item, {"n": 1})
            assert await engine.get_case(case.case_id) == case
            assert [each.item_id for each in (await engine.list_work_items()).items] == [item]
            await engine.complete_work_item(item, {"n": 1})
        seen = await engine.get_case(case.case_id)
        assert body(seen.data) == {"n": 1}
        history = (await engine.get_case_history(case.case_id, page_size=1_000)).items
        assert [event.event_type for event in history].count("item_completed") == 1
    async with WorkflowEngine(StateStore.over(store)) as reopened:
        assert await reopened.get_case(case.case_id) == seen


async def test_what_the_last_commit_begins_ends_with_the_engine() -> None:
    """A case that ends while its engine closes: a schedule waits for that, and a call is refused."""
    store = Gate()
    engine = WorkflowEngine(StateStore.over(store), connectors=ConnectorSetup())
    await registered(engine)
    await engine.register_workflow(
        {
            "id": "called",
            "tasks": {"sign": {"required_roles": ["clerk"]}, "call": {"connector": "absent", "request": {}}},
            "flows": [{"from": "start", "to": "sign"}, {"from": "sign", "to": "call"}, {"from": "call", "to": "end"}],
        }
    )
    await engine.create_schedule("s", ScheduleSpec("one", "0 0 1 1 *", overlap="buffer_all"))
    for _ in range(2):
        await engine.trigger_schedule("s")
    await engine.fire_due_timers()
    [first] = (await engine.list_work_items()).items
    called = await engine.run_case("called")
    mine, inside = asyncio.all_tasks(), parts(engine)
    store.open.clear()
    done = asyncio.create_task(engine.complete_work_item(first.item_id))
    begun = asyncio.create_task(engine.complete_work_item(called.work[0].item_id))
    await asyncio.sleep(0)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.01)
    store.open.set()
    await closing
    assert [(await each).state for each in (done, begun)] == ["completed", "completed"]
    assert not asyncio.all_tasks() - mine
    assert not inside.under_way()
    async with WorkflowEngine(StateStore.over(store), connectors=ConnectorSetup()) as reopened:
        await reopened.fire_due_timers()
        assert (await reopened.get_schedule("s")).started == 2
        assert (await until_open(reopened, called.case_id)).incidents


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST, Fault.APPLIED])
async def test_a_creation_that_fails(fault: Fault) -> None:
    engine, store = await faulty_engine()
    async with engine:
        store.faults = [fault]
        if fault is Fault.APPLIED:
            await engine.run_case("one", case_id="k")
        else:
            with pytest.raises(StoreUnavailable):
                await engine.run_case("one", case_id="k")
            with pytest.raises(NotFound):
                await engine.get_case("k")
            await engine.run_case("one", case_id="k")
        store.faults = [fault]
        answers = await engine.run_cases([RunRequest("one"), RunRequest("line"), RunRequest("absent")])
        assert isinstance(answers[2], NotFound)
        failed = [isinstance(answer, StoreUnavailable) for answer in answers[:2]]
        assert failed == [fault is not Fault.APPLIED] * 2
        assert len((await engine.list_cases()).items) == (3 if fault is Fault.APPLIED else 1)


async def test_nobody_reads_what_is_not_durable() -> None:
    engine, store = await faulty_engine()
    async with engine:
        case = await engine.run_case("one", {"n": 0})
        store.way.clear()
        writing = asyncio.create_task(engine.update_case_data(case.case_id, {"n": 1}))
        reading = asyncio.create_task(engine.get_case(case.case_id))
        await asyncio.sleep(0.01)
        assert not writing.done()
        assert not reading.done()
        assert [each.sequence for each in (await engine.list_cases()).items] == [case.sequence]
        assert (await engine.get_case_history(case.case_id, page_size=1_000)).items[-1].sequence == case.sequence
        store.way.set()
        assert await reading == await writing


async def test_callers_who_go_away_wedge_nothing(place: Place, budget: Budget) -> None:
    """Calls cancelled after a random number of turns of the loop; then each case still takes commands."""
    random = Random(7)
    async with place.engine() as engine:
        await registered(engine)
        cases = [await engine.run_case("line", case_id=f"k{number}") for number in range(4)]
        for round_ in range(min(budget.examples, 60)):
            calls = []
            for _ in range(8):
                case_id = random.choice(cases).case_id
                item = random.choice([f"{number}.1.1@{case_id}" for number in (1, 2)])
                meta = CallMeta(method="m", request_id=f"r{random.randint(0, 30)}" if random.random() < 0.5 else "")
                calls.append(
                    random.choice(
                        (
                            lambda c=case_id, m=meta: engine.update_case_data(c, {"n": 1}, meta=m),
                            lambda i=item, m=meta: engine.start_work_item(i, meta=m),
                            lambda i=item, m=meta: engine.claim_work_item(i, "ann", meta=m),
                            lambda c=case_id: engine.get_case(c),
                            lambda c=case_id: engine.execute_case(c),
                            lambda r=round_: engine.run_cases([RunRequest("one", case_id=f"b{r}-{n}") for n in "abc"]),
                            lambda r=round_: engine.run_case("one", case_id=f"b{r}-{random.choice('abc')}"),
                        )
                    )
                )
            tasks = [asyncio.ensure_future(call()) for call in calls]
            for task in tasks:
                for _ in range(random.randint(0, 4)):
                    await asyncio.sleep(0)
                if random.random() < 0.7:
                    task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            allowed = (asyncio.CancelledError, WorkflowError)
            assert [
                each for each in outcomes if isinstance(each, BaseException) and not isinstance(each, allowed)
            ] == []
            async with asyncio.timeout(60):
                for case in cases:
                    await engine.update_case_data(case.case_id, {"round": round_})
        for case in (await engine.list_cases(page_size=1_000)).items:
            async with asyncio.timeout(60):
                view = await engine.get_case(case.case_id)
                assert view.sequence == case.sequence
                await engine.cancel_case(case.case_id)


async def test_a_cancelled_call_that_was_queued_is_written_all_the_same() -> None:
    engine, store = await faulty_engine()
    async with engine:
        case = await engine.run_case("one", {"n": 0})
        store.way.clear()
        before = len(store.commits)
        call = asyncio.create_task(engine.update_case_data(case.case_id, {"n": 1}))
        await becomes(lambda: len(store.commits) > before)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        store.way.set()
        assert body((await engine.get_case(case.case_id)).data) == {"n": 1}


async def test_a_deadline_that_has_passed_changes_nothing(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        case = await engine.run_case("one")
        place.clock.advance(1.0)
        late = CallMeta(deadline=place.clock.now() - 1)
        for call in (
            engine.run_case("one", case_id="k", meta=late),
            engine.update_case_data(case.case_id, {"n": 1}, meta=late),
            engine.complete_work_item(case.work[0].item_id, meta=late),
        ):
            with pytest.raises(WorkflowError) as refused:
                await call
            assert refused.value.reason == "DEADLINE_EXCEEDED"
        assert await engine.get_case(case.case_id) == case
        with pytest.raises(NotFound):
            await engine.get_case("k")


# -- snapshots and damaged bytes --------------------------------------------------------------------------------------


async def long_case(engine: WorkflowEngine, case_id: str) -> None:
    case = await engine.run_case("line", {"n": 0}, case_id=case_id)
    await engine.complete_work_item(item_of(case, "first").item_id)
    for number in range(live.SNAPSHOT_RECORDS + 20):
        await engine.update_case_data(case_id, {"n": number})


async def test_a_snapshot_shortens_the_way_and_changes_nothing(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        await long_case(engine, "k")
        before = await engine.get_case("k")
        keys = parts(engine).keyspace.case("default", "k")
        assert await store_of(engine).get(keys.snapshot) is not None
    async with place.engine() as engine:
        assert await engine.get_case("k") == before
        held = parts(engine).cases.peek("default", "k")
        assert held is not None
        assert held.records < live.SNAPSHOT_RECORDS
        await store_of(engine).commit([(keys.snapshot, None)], [], True)
    async with place.engine() as engine:
        assert await engine.get_case("k") == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another case's", "newer codec"])
async def test_a_damaged_snapshot_is_not_trusted(place: Place, damage: str) -> None:
    async with place.engine() as engine:
        await registered(engine)
        await long_case(engine, "k")
        await long_case(engine, "other")
        before = await engine.get_case("k")
        keys = parts(engine).keyspace.case("default", "k")
        store = store_of(engine)
        held = await store.get(keys.snapshot)
        assert held is not None
        other = await store.get(parts(engine).keyspace.case("default", "other").snapshot)
        assert other is not None
        wrong = {
            "cut": held[: len(held) // 2],
            "flipped": held[:-9] + bytes([held[-9] ^ 1]) + held[-8:],
            "empty": b"",
            "another case's": other,
            "newer codec": pack(SnapshotRecord(live.STATE_CODEC + 1, before.sequence, b"", b"?")),
        }[damage]
        await store.commit([(keys.snapshot, wrong)], [], True)
    async with place.engine() as engine:
        assert await engine.get_case("k") == before


@pytest.mark.parametrize("damage", ["flipped", "lost in the middle", "lost at the end", "lost at the start", "swapped"])
async def test_a_poisoned_case_disturbs_no_other(place: Place, damage: str) -> None:
    async with place.engine() as engine:
        await registered(engine)
        for case_id in ("a", "k", "z"):
            await engine.run_case("line", {"n": 0}, case_id=case_id)
            for number in range(10):
                await engine.update_case_data(case_id, {"n": number})
        before = await engine.get_case("z")
        store = store_of(engine)
        records = await store.scan(*parts(engine).keyspace.case("default", "k").records(), limit=100)
        (first, _), (middle, value), (last, _) = records[0], records[5], records[-1]
        harms: Mapping[str, list[Write]] = {
            "flipped": [(middle, value[:-1] + bytes([value[-1] ^ 1]))],
            "lost in the middle": [(middle, None)],
            "lost at the end": [(last, None)],
            "lost at the start": [(first, None)],
            "swapped": [(first, value)],
        }
        await store.commit(harms[damage], [], True)
    async with place.engine() as engine:
        for call in (
            engine.get_case("k"),
            engine.update_case_data("k", {"n": 1}),
            engine.cancel_case("k"),
            engine.explain_case("k"),
            engine.complete_work_item("1.1.1@k"),
        ):
            with pytest.raises(StoreCorrupt) as found:
                await call
            assert found.value.details
        assert await engine.get_case("z") == before
        await engine.complete_work_item(item_of(await engine.get_case("a"), "first").item_id)
        assert [each.case_id for each in (await engine.list_cases()).items] == ["a", "k", "z"]
        assert (await engine.run_case("one")).state == "running"


async def test_an_incident_of_another_kind_is_no_dead_letter() -> None:
    spec = {
        "id": "choice",
        "tasks": {"ask": {"split": "xor"}, "yes": {}, "no": {}},
        "flows": [
            {"from": "start", "to": "ask"},
            {"from": "ask", "to": "yes", "when": "data.missing > 1"},
            {"from": "ask", "to": "no", "default": True},
            {"from": "yes", "to": "end"},
            {"from": "no", "to": "end"},
        ],
    }
    async with WorkflowEngine(StateStore.over(KeptStore())) as engine:
        await engine.register_workflow(spec)
        await engine.run_case("choice", case_id="one")
        (incident,) = (await engine.get_case("one")).incidents
        await engine.update_case_data("one", {"missing": 2})
        for request_id in ("", "r1"):
            with pytest.raises(NotFound):
                await engine.retry_dead_letter(incident.incident_id, meta=CallMeta(request_id=request_id))
        assert (await engine.get_case("one")).incidents == (incident,)
