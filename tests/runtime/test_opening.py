"""An engine is open when it knows what its store holds: calls wait for that, and a failed opening leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from knhk_workflow import (
    AlreadyExists,
    CompleteRequest,
    ConnectorConfig,
    ConnectorSetup,
    InvalidInput,
    PurgeRequest,
    ScheduleSpec,
    StateStore,
    StoreUnavailable,
    Surroundings,
    WorkflowEngine,
)
from knhk_workflow.connectors.breaker import BreakerRule
from knhk_workflow.connectors.connector import Answer, Call, CallFailed, Delivery, PoolState
from knhk_workflow.store import Keyspace
from tests.runtime.place import ONE, KeptStore, registered

KEYS = Keyspace(1)


class Held(KeptStore):
    """Keeps whoever reads the range that begins at `at` waiting until `way` is set, or fails the reading."""

    def __init__(self) -> None:
        super().__init__()
        self.at = b""
        self.fails = False
        self.reached, self.way = asyncio.Event(), asyncio.Event()

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        if start == self.at:
            self.reached.set()
            if self.fails:
                raise StoreUnavailable("away")
            await self.way.wait()
        return await super().scan(start, end, limit=limit, reverse=reverse)


async def test_calls_wait_until_everything_is_known() -> None:
    store = Held()
    async with WorkflowEngine(StateStore.over(store)) as engine:
        await registered(engine, ONE)
        await engine.create_schedule("monthly", ScheduleSpec("one", "0 0 1 * *"))
        await engine.run_case("one", case_id="gone")
        await engine.cancel_case("gone")
        await engine.purge_cases(PurgeRequest(("gone",)))
    for at in (KEYS.purged(0), KEYS.effects(0), KEYS.messages(0), KEYS.schedules(0)):
        store.at = at[0]
        store.reached, store.way = asyncio.Event(), asyncio.Event()
        engine = WorkflowEngine(StateStore.over(store))
        first = asyncio.create_task(engine.list_cases())
        await store.reached.wait()
        assert not engine.status().open
        shown = asyncio.create_task(engine.get_schedule("monthly"))
        doubled = asyncio.create_task(engine.create_schedule("monthly", ScheduleSpec("one", "0 0 1 * *")))
        given = asyncio.create_task(engine.run_case("one", case_id="gone"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert [call.done() for call in (shown, doubled, given)] == [False] * 3
        store.way.set()
        assert (await first).items == ()
        assert (await shown).schedule_id == "monthly"
        with pytest.raises(AlreadyExists):
            await doubled
        with pytest.raises(AlreadyExists):
            await given
        assert (await engine.verify_store()).intact
        await engine.close()


async def test_closing_waits_for_an_opening_under_way() -> None:
    store = Held()
    engine = WorkflowEngine(StateStore.over(store))
    store.at = KEYS.schedules(0)[0]
    opening = asyncio.create_task(engine.open())
    await store.reached.wait()
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    store.way.set()
    await opening
    await closing
    assert not engine.status().open
    with pytest.raises(StoreUnavailable):
        await engine.list_cases()


class Counting:
    """A connector that knows whether it was closed."""

    timeout = 5.0
    max_concurrent = 4
    declared: Delivery = "keyed"
    breaker = BreakerRule()

    def __init__(self, opened: list[Counting]) -> None:
        self.closed = 0
        opened.append(self)

    def target(self, request: bytes) -> str:
        return "x://y:1"

    def delivery(self, request: bytes) -> Delivery:
        return "keyed"

    async def call(self, call: Call) -> Answer:
        raise CallFailed("never", "never")

    async def verify(self, call: Call) -> Answer | None:
        return None

    async def probe(self) -> str:
        return ""

    def pool(self) -> PoolState:
        return PoolState(0, 0, 0)

    async def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("kind", ["purged", "effects", "messages", "schedules"])
async def test_an_opening_that_fails_lets_go_of_everything(kind: str) -> None:
    made: list[Counting] = []
    setup = ConnectorSetup(
        configured=(ConnectorConfig("c", "k", b"{}"),), kinds={"k": lambda data, setup: Counting(made)}
    )
    places: Mapping[str, bytes] = {
        "purged": KEYS.purged(0)[0],
        "effects": KEYS.effects(0)[0],
        "messages": KEYS.messages(0)[0],
        "schedules": KEYS.schedules(0)[0],
    }
    store = Held()
    store.at, store.fails = places[kind], True
    engine = WorkflowEngine(StateStore.over(store), connectors=setup)
    before = asyncio.all_tasks()
    for attempt in range(2):
        with pytest.raises(StoreUnavailable, match="away"):
            await engine.list_cases()
        assert [each.closed for each in made] == [1] * (attempt + 1)
        assert asyncio.all_tasks() == before
        engine._state_store = StateStore.over(store)
    store.fails, store.at = False, b""
    await registered(engine, ONE)
    await engine.run_case("one", case_id="k")
    await engine.close()
    assert [each.closed for each in made] == [1, 1, 1]


async def test_a_connector_that_cannot_be_made_takes_those_before_it_along() -> None:
    made: list[Counting] = []

    def make(data: bytes, setup: Surroundings) -> Counting:
        if made:
            raise InvalidInput.field("config", "is wrong")
        return Counting(made)

    two = (ConnectorConfig("c", "k", b"{}"), ConnectorConfig("d", "k", b"{}"))
    engine = WorkflowEngine(StateStore(":memory:"), connectors=ConnectorSetup(configured=two, kinds={"k": make}))
    with pytest.raises(InvalidInput, match="is wrong"):
        await engine.open()
    assert [each.closed for each in made] == [1]
    await engine.close()


async def test_what_opening_raises_is_not_the_answer_of_an_element() -> None:
    store = Held()
    store.at, store.fails = KEYS.schedules(0)[0], True
    engine = WorkflowEngine(StateStore.over(store))
    asked = [CompleteRequest("1.1.1@a"), CompleteRequest("1.1.1@b")]
    with pytest.raises(StoreUnavailable, match="away"):
        await engine.complete_work_items(asked)
    await engine.close()
    with pytest.raises(StoreUnavailable, match="the engine is closed"):
        await engine.complete_work_items(asked)
