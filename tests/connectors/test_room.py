"""Room for calls: a target that is down takes none from others; a connector that is replaced takes its calls along."""

from __future__ import annotations

import asyncio
import json

import pytest

from knhk_workflow import (
    Answer,
    BreakerRule,
    Call,
    CallFailed,
    ConnectorConfig,
    ConnectorDelivery,
    ConnectorSetup,
    InvalidInput,
    NotFound,
    PoolState,
    Surroundings,
    WorkflowEngine,
)
from knhk_workflow.runtime import outbox
from tests.connectors.calling import LOOPBACK, calls, data, engine, until_open


class Switch:
    """A connector with a target for each `to`; those in `down` fail. A fault of its own: `to` is `broken`."""

    timeout = 5.0
    max_concurrent = 2
    breaker = BreakerRule(failures=2, pause=0.05)
    declared: ConnectorDelivery = "keyed"

    def __init__(self) -> None:
        self.down = {"down"}
        self.made: list[str] = []
        self.answer = b'{"status": 1, "body": {"done": true}}'

    def target(self, request: bytes) -> str:
        to = str(json.loads(request)["to"])
        if to == "broken":
            raise ZeroDivisionError
        return to

    def delivery(self, request: bytes) -> ConnectorDelivery:
        return self.declared

    async def call(self, call: Call) -> Answer:
        to = self.target(call.request)
        self.made.append(to)
        if to == "cancelled":
            raise asyncio.CancelledError
        if to == "wrong":
            raise InvalidInput.field("x", "is wrong")
        if to == "full":
            raise CallFailed("told", "x", permanent=True, data=b'"' + b"x" * 3_000_000 + b'"')
        if to in self.down:
            raise CallFailed("told", "it is down")
        return Answer(self.answer, "1")

    async def verify(self, call: Call) -> Answer | None:
        return None

    async def probe(self) -> str:
        raise ZeroDivisionError

    def pool(self) -> PoolState:
        return PoolState(0, 0, 0)

    async def close(self) -> None:
        """Nothing is open."""


def switched(switch: Switch) -> ConnectorSetup:
    def make(config: bytes, surroundings: Surroundings) -> Switch:
        return switch

    return ConnectorSetup(configured=(ConnectorConfig("http", "switch", b"{}"),), kinds={"switch": make})


async def to(opened: WorkflowEngine, place: str, count: int) -> list[str]:
    return [(await opened.run_case("calls", {"place": place})).case_id for _ in range(count)]


ASK = {"request": {"to": "${data.place}"}, "retry": {"max_attempts": 60, "backoff": 0}}


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox with room for forty."""
    for name, value in (("QUEUED_MAX", 40), ("WAITING_MAX", 16), ("LEFT_ALONE_MAX", 4)):
        monkeypatch.setattr(outbox, name, value)


@pytest.mark.usefixtures("little")
async def test_a_target_that_is_down_leaves_room_for_others() -> None:
    switch = Switch()
    switch.breaker = BreakerRule(failures=2, pause=600)
    async with engine(switched(switch)) as opened:
        await opened.register_workflow(calls(ASK))
        await to(opened, "down", 100)
        async with asyncio.timeout(60):
            for case_id in await to(opened, "up", 60):
                assert data(await opened.wait_case(case_id))["done"]
        assert (await opened.list_connectors())[0].waiting <= 4


@pytest.mark.usefixtures("little")
async def test_calls_that_were_left_in_the_store_are_made_once_the_target_is_back() -> None:
    switch = Switch()
    async with engine(switched(switch)) as opened:
        # While the target is down, a call in each pause of the breaker uses up an attempt.
        await opened.register_workflow(calls({**ASK, "retry": {"max_attempts": 1_000, "backoff": 0}}))
        waiting = await to(opened, "down", 100)
        up = await to(opened, "up", 100)
        for case_id in waiting[5:10]:
            await opened.cancel_case(case_id)
        switch.down.clear()
        async with asyncio.timeout(60):
            for case_id in (*waiting[:5], *waiting[10:], *up):
                assert data(await opened.wait_case(case_id))["done"]
        assert (await opened.verify_store()).intact


async def test_calls_that_wait_go_with_the_connector_that_takes_the_place_of_theirs(outside: str) -> None:
    dead = {"base_url": "http://127.0.0.1:1", "breaker": {"failures": 1, "pause": 600}, "max_concurrent": 1}
    connectors = ConnectorSetup(allow=("http://127.0.0.1:*",), networks=LOOPBACK)
    async with engine(connectors) as opened:
        await opened.put_connector("http", "http", dead)
        await opened.register_workflow(calls({"request": {"url": "/echo"}, "retry": 1, "result": {}}))
        cases = [(await opened.run_case("calls")).case_id for _ in range(8)]
        assert (await until_open(opened, cases[0])).incidents
        assert (await opened.list_connectors())[0].waiting == 7
        await opened.put_connector("http", "http", {"base_url": outside})
        async with asyncio.timeout(60):
            for case_id in cases[1:]:
                assert (await opened.wait_case(case_id)).state == "completed"


async def test_calls_that_wait_for_a_connector_that_is_deleted_are_for_a_person() -> None:
    dead = {"base_url": "http://127.0.0.1:1", "breaker": {"failures": 1, "pause": 600}, "max_concurrent": 1}
    connectors = ConnectorSetup(allow=("http://127.0.0.1:*",), networks=LOOPBACK)
    async with engine(connectors) as opened:
        await opened.put_connector("http", "http", dead)
        await opened.register_workflow(calls({"request": {"url": "/echo"}, "retry": 1}))
        cases = [(await opened.run_case("calls")).case_id for _ in range(4)]
        assert (await until_open(opened, cases[0])).incidents
        await opened.delete_connector("http", force=True)
        for case_id in cases[1:]:
            assert "no_connector: " in (await until_open(opened, case_id)).incidents[0].message
        with pytest.raises(NotFound):
            await opened.delete_connector("http")


async def test_two_that_configure_at_once_leave_one_default() -> None:
    connectors = ConnectorSetup(allow=("http://127.0.0.1:*",), networks=LOOPBACK)
    async with engine(connectors) as opened:
        await opened.open()
        base = {"base_url": "http://127.0.0.1:1"}
        await asyncio.gather(*(opened.put_connector(name, "http", base, default=True) for name in ("a", "b", "c")))
        assert [view.default for view in await opened.list_connectors()].count(True) == 1


@pytest.mark.parametrize("place", ["broken", "cancelled", "wrong", "full", "mute"])
async def test_no_fault_of_a_connector_leaves_a_call_without_an_end(place: str) -> None:
    """It fails before it is asked, gives its call up, raises what is not for it, says too much, answers rubbish."""
    switch = Switch()
    if place == "mute":
        switch.answer = b"[1]"
    async with engine(switched(switch)) as opened:
        await opened.register_workflow(calls({**ASK, "retry": 1}))
        async with asyncio.timeout(60):
            case = await until_open(opened, (await to(opened, place, 1))[0])
        assert case.incidents[0].kind == "connector_failed"
        assert (await opened.probe_connector("http")).healthy is False
        assert (await opened.verify_store()).intact
