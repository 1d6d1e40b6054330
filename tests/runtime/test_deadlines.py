"""A command whose caller has stopped waiting is dropped wherever it waits, and then nothing has changed."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from knhk_workflow import LOCAL, DeadlineExceeded, StateStore, VirtualClock, WorkflowEngine
from knhk_workflow.store import MemoryStore
from tests.runtime.place import becomes
from tests.store.faulty import FaultyStore

NS_PER_S = 1_000_000_000
TURNS = 200  # of the event loop, in which everything happens that can: this store needs no thread
TWO = {
    "id": "two",
    "tasks": {"a": {"required_roles": ["clerk"]}, "b": {"required_roles": ["clerk"]}},
    "flows": [{"from": "start", "to": "a"}, {"from": "a", "to": "b"}, {"from": "b", "to": "end"}],
}


async def test_in_line_for_the_case_and_in_the_journals_queue() -> None:
    store, clock = FaultyStore(MemoryStore()), VirtualClock()
    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        await engine.register_workflow(TWO)
        case = await engine.run_case("two", {}, case_id="c")
        other = await engine.run_case("two", {}, case_id="other")
        item, others = case.work[0].item_id, other.work[0].item_id
        soon = msgspec.structs.replace(LOCAL, deadline=clock.now() + NS_PER_S, request_id="soon")
        store.way.clear()
        before = len(store.commits)
        busy = asyncio.ensure_future(engine.complete_work_item(others, {"n": 1}))
        await becomes(lambda: len(store.commits) > before)
        queued = asyncio.ensure_future(engine.complete_work_item(item, {"secret": 1}, meta=soon))
        await asyncio.sleep(0)
        in_line = asyncio.ensure_future(
            engine.update_case_data("c", {"secret": 2}, meta=msgspec.structs.replace(soon, request_id=""))
        )
        for _ in range(TURNS):
            await asyncio.sleep(0)
        clock.advance(2.0)
        store.way.set()
        assert (await busy).state == "completed"
        for attempt in (queued, in_line):
            with pytest.raises(DeadlineExceeded, match="nothing was changed"):
                await attempt
        found = await engine.get_case("c")
        assert (found.sequence, found.data) == (case.sequence, b"{}")
        later = msgspec.structs.replace(LOCAL, request_id="soon")
        done = await engine.complete_work_item(item, {"secret": 1}, meta=later)
        assert done.state == "completed", "the same request id is good for another attempt"
