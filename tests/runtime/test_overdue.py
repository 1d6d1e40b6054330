"""After a long down-time, and when clocks were set: each timer once, in due order, none early; calls get through."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from knhk_workflow import RunRequest, StateStore, VirtualClock, WorkflowEngine, WorkflowError
from knhk_workflow.runtime import timers
from tests.conftest import Budget
from tests.runtime.place import ONE, KeptStore, registered

DAY: Final = 24 * 3_600
YEARS: Final = 10 * 365 * DAY
NS: Final = 1_000_000_000
MOST: Final = 100_000  # of a long budget; the default one has 5,000
BATCH: Final = 500

WAITS: Final[Mapping[str, object]] = {
    "id": "waits",
    "tasks": {"wait": {"timer": {"after": "data.wait"}}},
    "flows": [{"from": "start", "to": "wait"}, {"from": "wait", "to": "end"}],
}


async def armed(engine: WorkflowEngine, waits: list[int]) -> None:
    """A case with a timer of so many seconds each; its id says which."""
    for first in range(0, len(waits), BATCH):
        some = waits[first : first + BATCH]
        asked = [RunRequest("waits", {"wait": wait}, f"{first + n}:{wait}") for n, wait in enumerate(some)]
        for case in await engine.run_cases(asked):
            assert not isinstance(case, WorkflowError), case


async def fired(engine: WorkflowEngine, token: str) -> list[tuple[int, int, str]]:
    """(when, when it was due after the start, case) of every timer that has fired since, in the order of commits."""
    found: list[tuple[int, int, str]] = []
    async for event, _ in engine.watch_cases(resume_token=token):
        if event.event_type == "case_created" and event.case_id == "last":
            return found
        if event.event_type == "timer_fired":
            found.append((event.timestamp, int(event.case_id.partition(":")[2]), event.case_id))
    raise AssertionError("the watch has ended")


@pytest.mark.long
async def test_a_day_of_down_time(tmp_path: Path, budget: Budget) -> None:
    count = min(max(budget.steps // 4, BATCH), MOST)
    clock, chance = VirtualClock(), random.Random(count)
    path = str(tmp_path / "store")
    async with WorkflowEngine(StateStore(path), clock=clock) as engine:
        await registered(engine, ONE, WAITS)
        await armed(engine, [chance.randrange(1, DAY) for _ in range(count)])
        token = await engine.watch_token()
    begin = clock.now()
    clock.advance(DAY)
    async with WorkflowEngine(StateStore(path), clock=clock) as engine:
        assert (await engine.count()).timers <= count
        firing = asyncio.create_task(engine.fire_due_timers())
        calls, most = 0, 0
        while not firing.done():
            before = engine.status().position
            await engine.run_case("one")
            calls, most = calls + 1, max(most, engine.status().position - before)
        await firing
        await engine.run_case("one", case_id="last")
        found = await fired(engine, token)
        clock.advance(5)  # how old a count may be
        assert (await engine.count()).timers == 0
    assert len(found) == count
    assert len({case_id for *_, case_id in found}) == count, "none twice"
    assert all(when >= begin + due * NS for when, due, _ in found), "none early"
    dues = [due for _, due, _ in found]
    for first in range(0, count, timers.AT_ONCE):  # so many are on their way together
        assert max(dues[:first], default=0) <= min(dues[first + timers.AT_ONCE :], default=DAY)
    assert calls > 0
    assert most <= timers.AT_ONCE, "commits that a call had to wait for"


@pytest.mark.parametrize("seconds", [3_600, -3_600, YEARS, -YEARS])
async def test_a_clock_that_was_set_while_nothing_ran(seconds: int) -> None:
    store, first = KeptStore(), VirtualClock()
    begin = first.now()
    async with WorkflowEngine(StateStore.over(store), clock=first) as engine:
        await registered(engine, ONE, WAITS)
        token = await engine.watch_token()
        await armed(engine, list(range(60, 7_260, 60)))
        first.advance(1_800)
        await engine.fire_due_timers()
    for moved in (seconds, 0):  # wrong, and put right again
        clock = VirtualClock(begin + (1_800 + moved) * NS)
        async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
            await engine.fire_due_timers()
            for _ in range(10):
                clock.advance(600)
                await engine.fire_due_timers()
            if moved:
                continue
            await engine.run_case("one", case_id="last")
            found = await fired(engine, token)
    assert len(found) == len({case_id for *_, case_id in found}) == 120
    assert all(when >= begin + due * NS for when, due, _ in found), "none early"
