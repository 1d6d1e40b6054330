"""Automatic firing in slices: long cascades end, survive a crash in the middle, and let others through."""

from __future__ import annotations

import asyncio

import pytest

from knhk_workflow import CaseView, NotFound, StateStore, StoreUnavailable, WorkflowEngine
from knhk_workflow.core import settle
from knhk_workflow.store.keys import parse_effect
from tests.inside import parts
from tests.runtime.place import LOOP, KeptStore, Place, becomes, body, doubling, item_of, registered, store_of
from tests.store.faulty import Fault, FaultyStore

LEVELS = 13  # 8,191 firings


async def effects(engine: WorkflowEngine) -> list[str]:
    found = await store_of(engine).scan(*parts(engine).keyspace.effects(0), limit=100)
    return [parse_effect(key)[1] for key, _ in found]


async def count(engine: WorkflowEngine, case_id: str, event_type: str) -> int:
    total, after = 0, 0
    while True:
        page = await engine.get_case_history(case_id, after_sequence=after, page_size=1_000)
        total += sum(event.event_type == event_type for event in page.items)
        if not page.next_token:
            return total
        after = int(page.next_token)


async def test_thousands_of_firings_complete(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, doubling(LEVELS))
        case = await engine.run_case(f"doubling-{LEVELS}")
        assert case.state == "completed"
        assert await count(engine, case.case_id, "task_completed") == 2**LEVELS - 1
        assert await count(engine, case.case_id, "settle_paused") >= (2**LEVELS - 1) // settle.SLICE_FIRINGS - 1
        assert await effects(engine) == []


async def test_a_crash_in_the_middle() -> None:
    """The store refuses everything from some slice on; the next engine over the same bytes finishes."""
    kept = KeptStore()
    for survived in (1, 2, 7, 20):
        store = FaultyStore(kept)
        engine = WorkflowEngine(StateStore.over(store))
        await registered(engine, doubling(LEVELS))
        case_id = f"k{survived}"
        store.faults = [Fault.NOTHING] * survived + [Fault.REFUSED] * 999
        running = asyncio.create_task(engine.run_case(f"doubling-{LEVELS}", case_id=case_id))
        async with asyncio.timeout(60):
            while len(store.faults) > 998:  # noqa: ASYNC110  # until the first refusal has come; the store tells nobody
                await asyncio.sleep(0.005)
        assert await effects(engine) == [case_id]
        running.cancel()
        await asyncio.wait([running])
        await engine.close()
        async with WorkflowEngine(StateStore.over(kept)) as reopened:
            async with asyncio.timeout(60):
                case = await reopened.wait_case(case_id)
            assert case.state == "completed"
            assert await count(reopened, case_id, "task_completed") == 2**LEVELS - 1
            assert await effects(reopened) == []


async def turning(engine: WorkflowEngine, case_id: str) -> asyncio.Task[CaseView]:
    """A case that is there and turns."""
    running = asyncio.create_task(engine.run_case("loop", {"turning": True}, case_id=case_id))

    async def there() -> bool:
        try:
            return bool(await engine.get_case(case_id))
        except NotFound:
            return False

    await becomes(there)
    return running


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the machine is, a loop turns until it is told otherwise."""
    monkeypatch.setattr(settle, "SETTLE_FIRINGS_MAX", 10**12)


@pytest.mark.usefixtures("endless")
async def test_a_loop_lets_others_through_and_hears_what_changes(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        await registered(engine, LOOP)
        running = await turning(engine, "k")
        assert not running.done()
        async with asyncio.timeout(60):
            case = await engine.run_case("one")  # another case is not held up
            await engine.complete_work_item(case.work[0].item_id)
            await engine.update_case_data("k", {"turning": False})  # nor is a command on the case itself
            case = await running
        assert body(case.data) == {"turning": False}
        item_of(case, "sign")
        assert await effects(engine) == []


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("end", ["cancel", "restart"])
async def test_a_suspended_loop_stands_still(place: Place, end: str) -> None:
    engine = place.engine()
    async with engine:
        await registered(engine, LOOP)
        running = await turning(engine, "k")
        async with asyncio.timeout(60):
            suspended = await engine.suspend_case("k")
            assert (await running).state == "suspended"
            await asyncio.sleep(0.05)
            assert await engine.get_case("k") == suspended
            assert await effects(engine) == ["k"]
            if end == "cancel":
                await engine.cancel_case("k")
                assert await effects(engine) == []
                return
    async with place.engine() as engine:
        await asyncio.sleep(0.05)
        async with asyncio.timeout(60):
            assert await engine.get_case("k") == suspended
            await engine.update_case_data("k", {"turning": False})
            item_of(await engine.resume_case("k"), "sign")
            assert await effects(engine) == []


async def test_an_endless_loop_is_an_incident(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "SETTLE_FIRINGS_MAX", 2_000)
    async with place.engine() as engine:
        await registered(engine, LOOP)
        async with asyncio.timeout(60):
            case = await engine.run_case("loop", {"turning": True})
        assert [incident.kind for incident in case.incidents] == ["settle_limit"]
        assert await effects(engine) == []
        await engine.update_case_data(case.case_id, {"turning": False})
        case = await engine.resolve_incident(case.incidents[0].incident_id, "retry")
        await engine.complete_work_item(item_of(case, "sign").item_id)
        assert (await engine.get_case(case.case_id)).state == "completed"


async def test_an_outage_in_the_middle_is_waited_for() -> None:
    store = FaultyStore(KeptStore())
    async with WorkflowEngine(StateStore.over(store)) as engine:
        await registered(engine, doubling(10))
        store.faults = [Fault.NOTHING, Fault.REFUSED, Fault.LOST, Fault.NOTHING, Fault.APPLIED]
        store.outages = [StoreUnavailable("away") for _ in range(2)]
        async with asyncio.timeout(60):
            case = await engine.run_case("doubling-10")
        assert case.state == "completed"
        assert await count(engine, case.case_id, "task_completed") == 2**10 - 1


@pytest.mark.parametrize("turns", range(12))
async def test_whoever_waits_for_the_end_of_a_cascade_is_answered_when_the_engine_closes(turns: int) -> None:
    """In whichever turn of the event loop it does, the first of the cascade's task included."""
    async with WorkflowEngine(StateStore.over(KeptStore())) as engine:
        await registered(engine, doubling(9))
        running = asyncio.create_task(engine.run_case("doubling-9"))
        for _ in range(turns):
            await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await asyncio.wait([running])
    if running.exception() is None:
        assert running.result().state in ("running", "completed")
    else:
        assert isinstance(running.exception(), StoreUnavailable)
