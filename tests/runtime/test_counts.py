"""How much there is: the same while the engine works, after a restart, and as the lists say."""

from __future__ import annotations

import asyncio
from collections import Counter

from knhk_workflow import CallMeta, CaseCounts, PurgeRequest, WorkflowEngine
from tests.runtime.place import Place, registered

OTHER = CallMeta(tenant="other")


async def counted(engine: WorkflowEngine, meta: CallMeta | None = None) -> CaseCounts:
    """What the engine says."""
    view = await engine.count(meta=meta or CallMeta())
    assert view.cases is not None
    return view.cases


async def listed(engine: WorkflowEngine, meta: CallMeta | None = None) -> CaseCounts:
    """What the lists say."""
    asked = meta or CallMeta()
    cases = (await engine.list_cases(meta=asked)).items
    states = Counter(case.state for case in cases)
    work = (await engine.list_work_items(meta=asked)).items
    return CaseCounts(
        states["created"],
        states["running"],
        states["suspended"],
        states["completed"],
        states["cancelled"],
        states["failed"],
        len(work),
        sum(case.open_incidents for case in cases),
    )


async def some_work(engine: WorkflowEngine) -> None:
    """Cases in most states."""
    await engine.create_case("one", {}, case_id="created")
    await engine.run_case("line", {}, case_id="running")
    await engine.run_case("line", {}, case_id="suspended")
    await engine.suspend_case("suspended", "a pause")
    await engine.run_case("rivals", {}, case_id="cancelled")
    await engine.cancel_case("cancelled", "no longer wanted")
    for name in ("a", "b", "c"):
        case = await engine.run_case("one", {}, case_id=name)
        await engine.complete_work_item(case.work[0].item_id, {})


async def test_counts_say_what_lists_say_while_working_and_after_a_restart(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        assert await counted(engine) == CaseCounts()
        await some_work(engine)
        expected = CaseCounts(created=1, running=1, suspended=1, completed=3, cancelled=1, open_items=2)
        assert await counted(engine) == expected == await listed(engine)
        assert (await engine.count()).workflow_versions == 3
    async with place.engine() as engine:
        assert await counted(engine) == expected
        await engine.purge_cases(PurgeRequest(("a", "b")))
        await engine.resume_case("suspended")
        assert await counted(engine) == await listed(engine)
        assert (await counted(engine)).completed == 1
        await engine.delete_workflow("rivals")
        assert (await engine.count()).workflow_versions == 2


async def test_what_changes_while_the_first_counting_goes_on_is_counted_once(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        await asyncio.gather(*(engine.run_case("one", {}, case_id=f"c{number}") for number in range(600)))
    async with place.engine() as engine:  # 600 heads are three portions

        async def finish(number: int) -> None:
            case = await engine.get_case(f"c{number}")
            await engine.complete_work_item(case.work[0].item_id, {})

        saying = asyncio.create_task(counted(engine))
        await asyncio.gather(*(finish(number) for number in range(0, 600, 7)))
        said = await saying
        assert said.running + said.completed == 600
        assert await counted(engine) == CaseCounts(running=514, completed=86, open_items=514)


async def test_counts_are_the_tenants_own(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        await registered(engine, tenant="other")
        await engine.run_case("one", {}, meta=OTHER)
        assert await counted(engine) == CaseCounts()
        assert await counted(engine, OTHER) == CaseCounts(running=1, open_items=1)
    async with place.engine() as engine:
        assert await counted(engine) == CaseCounts()
        assert await counted(engine, OTHER) == CaseCounts(running=1, open_items=1)
