"""Two hands that reach for the same thing at the same time: the engine lets exactly one of them have it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest

from knhk_workflow import CallMeta, StateStore, VirtualClock, WorkflowEngine, WorkflowError, WorkItemView
from knhk_workflow.patterns.catalogue import find

META = CallMeta(principal="hand")


@pytest.fixture
async def engine() -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine(StateStore(":memory:"), clock=VirtualClock()) as engine:
        yield engine


async def begun(engine: WorkflowEngine, number: int) -> dict[str, list[str]]:
    """A case of a pattern's net whose first task A is done; its open work by task."""
    await engine.register_workflow(find(number).document, meta=META)
    case = await engine.run_case(f"wcp-{number:02}", case_id="race", meta=META)
    await engine.complete_work_item(case.work[0].item_id, meta=META)
    found: dict[str, list[str]] = {}
    for item in (await engine.get_case("race", meta=META)).work:
        found.setdefault(item.task_id, []).append(item.item_id)
    return found


async def outcomes(*asked: Awaitable[WorkItemView]) -> list[WorkItemView | BaseException]:
    return await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize("turned", [False, True])
async def test_16a_of_two_starts_in_a_deferred_choice_one_wins(engine: WorkflowEngine, turned: bool) -> None:
    open_work = await begun(engine, 16)
    rivals = [open_work["B"][0], open_work["C"][0]]
    told = await outcomes(*(engine.start_work_item(item, meta=META) for item in (rivals[::-1] if turned else rivals)))
    assert sum(isinstance(each, WorkflowError) for each in told) == 1
    (won,) = [each for each in told if isinstance(each, WorkItemView)]
    assert [item.item_id for item in (await engine.get_case("race", meta=META)).work] == [won.item_id]


async def test_35a_of_instances_that_are_done_at_the_same_time_the_third_one_ends_the_rest(
    engine: WorkflowEngine,
) -> None:
    items = (await begun(engine, 35))["B"]
    assert len(items) == 5
    for item in items:
        await engine.start_work_item(item, meta=META)
    await engine.complete_work_item(items[0], meta=META)
    await engine.complete_work_item(items[1], meta=META)
    told = await outcomes(*(engine.complete_work_item(item, meta=META) for item in items[2:]))
    assert [isinstance(each, WorkflowError) for each in told].count(True) == 2
    assert [item.task_id for item in (await engine.get_case("race", meta=META)).work] == ["C"]
