"""History: every event once, in order, in pages, live, and after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from knhk_workflow import (
    CallMeta,
    HistoryEvent,
    InvalidInput,
    NotFound,
    StateStore,
    StoreUnavailable,
    WorkflowEngine,
)
from knhk_workflow.runtime.query import resume_token
from tests.runtime.place import KeptStore, Place, at_rest, becomes, item_of, registered

NS = 1_000_000_000


async def history(engine: WorkflowEngine, case_id: str, page_size: int, reverse: bool = False) -> list[HistoryEvent]:
    found: list[HistoryEvent] = []
    after = 0
    while True:
        page = await engine.get_case_history(case_id, after_sequence=after, page_size=page_size, reverse=reverse)
        assert len(page.items) <= page_size
        found += page.items
        if not page.next_token:
            return found
        after = int(page.next_token)


async def busy_case(engine: WorkflowEngine) -> str:
    case = await engine.run_case("line", {"n": 0})
    for number in range(80):  # beyond a snapshot
        await engine.update_case_data(case.case_id, {"n": number})
    await engine.complete_work_item(item_of(case, "first").item_id)
    return case.case_id


async def test_pages_in_both_directions_and_after_a_restart(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        case_id = await busy_case(engine)
        whole = await history(engine, case_id, 1_000)
        assert [event.sequence for event in whole] == list(range(1, len(whole) + 1))
        assert len(whole) == (await engine.get_case(case_id)).sequence
        assert (whole[0].event_type, whole[1].event_type) == ("case_created", "state_changed")
    async with place.engine() as engine:
        for page_size in (1, 2, 3, 7, 50, 1_000):
            assert await history(engine, case_id, page_size) == whole
            assert await history(engine, case_id, page_size, reverse=True) == whole[::-1]
        for after in (0, 1, 4, len(whole) - 1, len(whole), len(whole) + 5):
            page = await engine.get_case_history(case_id, after_sequence=after, page_size=1_000)
            assert list(page.items) == whole[after:]


async def test_large_events_make_small_pages(engine: WorkflowEngine) -> None:
    case = await engine.run_case("one", {"blob": ""})
    for number in range(5):
        await engine.update_case_data(case.case_id, {"blob": str(number) * 600_000})
    for reverse in (False, True):
        first = await engine.get_case_history(case.case_id, page_size=1_000, reverse=reverse)
        assert first.next_token
        assert sum(len(event.data) for event in first.items) < 2_000_000
        whole = await history(engine, case.case_id, 1_000, reverse)
        numbers = [event.sequence for event in whole]
        assert numbers == sorted(range(1, len(whole) + 1), reverse=reverse)
        assert len(whole) == (await engine.get_case(case.case_id)).sequence


async def test_questions_that_have_no_answer(engine: WorkflowEngine) -> None:
    with pytest.raises(NotFound):
        await engine.get_case_history("absent")
    case = await engine.run_case("one")
    with pytest.raises(InvalidInput):
        await engine.get_case_history(case.case_id, after_sequence=-1)
    with pytest.raises(InvalidInput):
        await engine.get_case_history(case.case_id, page_size=-1)
    with pytest.raises(InvalidInput):
        await anext(engine.watch_cases(resume_token="nonsense"))
    with pytest.raises(InvalidInput):
        await anext(engine.watch_cases(resume_token=resume_token({0: (1_000_000, 0)})))
    with pytest.raises(NotFound):
        await anext(engine.watch_case("absent"))


async def collected(events: AsyncIterator[HistoryEvent]) -> list[HistoryEvent]:
    return [event async for event in events]


@pytest.mark.parametrize("after", [0, 3, 9])
async def test_watching_a_case_to_its_end(engine: WorkflowEngine, after: int) -> None:
    case = await engine.run_case("line")
    async with asyncio.timeout(60):
        watching = asyncio.create_task(collected(engine.watch_case(case.case_id, after_sequence=after)))
        await becomes(lambda: at_rest(engine) == 1)
        await engine.complete_work_item(item_of(case, "first").item_id)
        await becomes(lambda: at_rest(engine) == 1)
        second = item_of(await engine.get_case(case.case_id), "second")
        await engine.complete_work_item(second.item_id)
        seen = await watching
    assert seen == (await history(engine, case.case_id, 1_000))[after:]


async def test_watching_all_cases_resumes_where_it_stopped(place: Place) -> None:
    seen: dict[str, list[int]] = {}
    token = ""

    def note(event: HistoryEvent) -> None:
        seen.setdefault(event.case_id, []).append(event.sequence)

    async with place.engine() as engine:
        await registered(engine)
        watching = engine.watch_cases()
        first = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0.01)
        cases = await asyncio.gather(*(engine.run_case("line") for _ in range(10)))
        async with asyncio.timeout(60):
            event, token = await first
            note(event)
            for _ in range(20):
                event, token = await anext(watching)
                note(event)
        await watching.aclose()  # type: ignore[attr-defined]  # it is an async generator
    async with place.engine() as engine:
        for case in cases:
            await engine.complete_work_item(item_of(case, "first").item_id)
        wanted = {case.case_id: (await engine.get_case(case.case_id)).sequence for case in cases}
        async with asyncio.timeout(60):
            async for event, _ in engine.watch_cases(resume_token=token):
                note(event)
                if all(len(seen.get(case_id, ())) == count for case_id, count in wanted.items()):
                    break
    assert seen == {case_id: list(range(1, count + 1)) for case_id, count in wanted.items()}


async def test_watching_goes_past_what_belongs_to_others(engine: WorkflowEngine) -> None:
    """More commits of another tenant than one portion of the log holds, and one of ours behind them."""
    other = CallMeta(tenant="other")
    await registered(engine, tenant="other")
    begin = engine.watch_cases()
    first = asyncio.ensure_future(anext(begin))
    await asyncio.sleep(0.01)
    await engine.run_case("one", case_id="first")
    _, token = await first
    for _ in range(200):
        await engine.run_case("one", meta=other)
    await engine.run_case("one", case_id="last")
    async with asyncio.timeout(60):
        async for event, _ in engine.watch_cases(resume_token=token):
            if event.case_id == "last":
                break


async def test_waiting_for_the_end(engine: WorkflowEngine, place: Place) -> None:
    case = await engine.run_case("one")
    async with asyncio.timeout(60):
        waiting = asyncio.create_task(engine.wait_case(case.case_id))
        await becomes(lambda: at_rest(engine) == 1)
        assert not waiting.done()
        await engine.complete_work_item(case.work[0].item_id)
        assert (await waiting).state == "completed"
        assert (await engine.wait_case(case.case_id)).state == "completed"
        assert (await engine.execute_case((await engine.create_case("one")).case_id)).state == "running"


async def test_waiting_ends_with_the_deadline(engine: WorkflowEngine, place: Place) -> None:
    case = await engine.run_case("one")
    async with asyncio.timeout(60):
        for left in (-NS, 0, NS // 20):
            view = await engine.wait_case(case.case_id, meta=CallMeta(deadline=place.clock.now() + left))
            assert view == case


async def test_waiting_ends_with_the_engine(place: Place) -> None:
    engine = place.engine()
    await registered(engine)
    case = await engine.run_case("one")
    waiting = asyncio.create_task(engine.wait_case(case.case_id))
    watching = asyncio.create_task(collected(engine.watch_case(case.case_id)))
    await becomes(lambda: at_rest(engine) == 2)
    async with asyncio.timeout(60):
        await engine.close()
        with pytest.raises(StoreUnavailable):
            await waiting
        assert len(await watching) == case.sequence


class CountingStore(KeptStore):
    """Counts what is read."""

    reads = 0

    async def get(self, key: bytes) -> bytes | None:
        self.reads += 1
        return await super().get(key)

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        self.reads += 1
        return await super().scan(start, end, limit=limit, reverse=reverse)


async def test_who_waits_for_a_case_is_not_woken_by_others() -> None:
    store = CountingStore()
    async with WorkflowEngine(StateStore.over(store)) as engine:
        await registered(engine)
        case = await engine.run_case("one")
        watching = asyncio.create_task(collected(engine.watch_case(case.case_id)))
        await becomes(lambda: at_rest(engine) == 1)
        store.reads = 0
        for _ in range(20):
            await engine.run_case("one")
            await asyncio.sleep(0)
        assert store.reads == 0
        await engine.cancel_case(case.case_id)
        async with asyncio.timeout(60):
            assert (await watching)[-1].event_type == "state_changed"
