"""What a repeated call means: keyed, at-most-once, verifiable; and what a stop in the middle of a call leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest

from knhk_workflow import (
    Answer,
    BreakerRule,
    Call,
    CallFailed,
    ConnectorConfig,
    ConnectorDelivery,
    ConnectorSetup,
    PoolState,
    StateStore,
    Surroundings,
    WorkflowEngine,
    WorkItemFilter,
)
from tests.connectors.calling import calls, data, engine, history, setup, until_open

CALL = {"request": {"method": "POST", "url": "/effects", "body": "1"}, "retry": {"max_attempts": 4, "backoff": 0}}


class Plug:
    """A connector of somebody else's: it does what it is told, and remembers the keys."""

    timeout = 0.3
    max_concurrent = 4
    breaker = BreakerRule(failures=100)

    def __init__(self, delivery: ConnectorDelivery, does: list[str]) -> None:
        self._delivery = delivery
        self._does = does
        self.keys: list[str] = []
        self.looked: list[str] = []
        self.called = asyncio.Event()
        self.declared = delivery

    def target(self, request: bytes) -> str:
        return "plug"

    def delivery(self, request: bytes) -> ConnectorDelivery:
        return self._delivery

    async def call(self, call: Call) -> Answer:
        self.keys.append(call.key)
        self.called.set()
        does = self._does.pop(0) if self._does else "answer"
        if does == "hang":
            await asyncio.sleep(60)
        if does == "break":
            raise ZeroDivisionError
        if does in ("no", "maybe"):
            raise CallFailed("told", "as told", received="no" if does == "no" else "maybe")
        return Answer(json.dumps({"status": 1, "body": {"made": len(self.keys)}}).encode(), "1")

    async def verify(self, call: Call) -> Answer | None:
        self.looked.append(call.key)
        return Answer(b'{"status": 1, "body": {"found": true}}', "1") if call.key in self.keys[:-1] else None

    async def probe(self) -> str:
        return "it is here"

    def pool(self) -> PoolState:
        return PoolState(0, 0, 0)

    async def close(self) -> None:
        """Nothing is open."""


def plugged(plug: Plug) -> ConnectorSetup:
    def make(config: bytes, surroundings: Surroundings) -> Plug:
        return plug

    return ConnectorSetup(configured=(ConnectorConfig("http", "plug", b"{}"),), kinds={"plug": make})


async def ran(plug: Plug, task: Mapping[str, object] = CALL) -> tuple[dict[str, object], str]:
    """The data of a case when it has ended or waits, and why it waits."""
    async with engine(plugged(plug)) as opened:
        await opened.register_workflow(calls(task))
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        return data(case), case.incidents[0].message if case.incidents else ""


async def test_all_attempts_at_one_effect_have_one_key() -> None:
    plug = Plug("keyed", ["no", "maybe", "hang"])
    assert (await ran(plug))[0] == {"made": 4}
    assert len(plug.keys) == 4
    assert len(set(plug.keys)) == 1


async def test_different_effects_have_different_keys() -> None:
    plug = Plug("keyed", [])
    document = calls({**CALL, "instances": 3})
    async with engine(plugged(plug)) as opened:
        await opened.register_workflow(document)
        for _ in range(2):
            await opened.wait_case((await opened.run_case("calls")).case_id)
    assert len(set(plug.keys)) == len(plug.keys) == 6


async def test_at_most_once_is_repeated_only_when_it_was_certainly_not_received() -> None:
    plug = Plug("at-most-once", ["no", "no"])
    assert (await ran(plug))[0] == {"made": 3}
    for unknown in ("maybe", "hang", "break"):
        plug = Plug("at-most-once", [unknown])
        found, why = await ran(plug)
        assert (found, len(plug.keys)) == ({}, 1)
        assert "outcome_unknown: whether the call was made is unknown" in why


async def test_verifiable_looks_before_it_repeats() -> None:
    plug = Plug("verifiable", ["no", "maybe"])
    assert (await ran(plug))[0] == {"found": True}
    assert (len(plug.keys), len(plug.looked)) == (2, 2)


async def test_a_fault_of_the_connector_itself_is_a_failed_attempt() -> None:
    plug = Plug("idempotent", ["break"])
    assert (await ran(plug))[0] == {"made": 2}


@pytest.mark.parametrize("delivery", ["at-most-once", "keyed", "verifiable"])
async def test_a_call_that_was_under_way_when_the_engine_stopped(tmp_path: Path, delivery: ConnectorDelivery) -> None:
    """The engine is closed in the middle of a call; after opening it is repeated, looked up, or left to a person."""
    task = {**CALL, "timeout": "1h"}
    plug = Plug(delivery, ["hang"])
    plug.timeout = 60
    store = str(tmp_path / "db")
    async with WorkflowEngine(StateStore(store), connectors=plugged(plug)) as opened:
        await opened.register_workflow(calls(task))
        case_id = (await opened.run_case("calls")).case_id
        await plug.called.wait()
        assert (await opened.verify_store()).intact
    async with WorkflowEngine(StateStore(store)) as silent:
        assert (await silent.get_case(case_id)).state == "running", "an engine without connectors leaves calls alone"
    async with WorkflowEngine(StateStore(store), connectors=plugged(plug)) as opened:
        case = await until_open(opened, case_id)
        kinds = [event.event_type for event in await history(opened, case_id)]
        if delivery == "at-most-once":
            assert "the engine stopped while the call was made" in case.incidents[0].message
            assert kinds.count("connector_begun") == 1
            await opened.retry_dead_letter(case.incidents[0].incident_id)
            case = await opened.wait_case(case_id)
        assert case.state == "completed"
        assert (len(plug.keys), len(set(plug.keys))) == (2, 1)
        assert (await opened.verify_store()).intact


async def test_http_looks_an_effect_up_by_its_key(outside: str) -> None:
    """The server does it and does not answer in time; the look finds it."""
    connectors = setup(outside, delivery="verifiable", verify="/missed/{key}", timeout=0.5, breaker={"failures": 100})
    task = {
        "request": {"method": "POST", "url": "/effects?late=60", "body": "1"},
        "retry": {"max_attempts": 100, "backoff": 0},
        "result": {"number": "data.body.number"},
    }
    async with engine(connectors) as opened:
        await opened.register_workflow(calls(task))
        numbers = [data(await opened.wait_case((await opened.run_case("calls")).case_id))["number"] for _ in range(3)]
        assert numbers == [1, 2, 3]


async def test_a_time_out_of_the_task_takes_the_call_back(outside: str) -> None:
    task = {"request": {"url": "/slow/30"}, "timeout": "300ms", "retry": 2}
    async with engine(setup(outside)) as opened:
        await opened.register_workflow(calls(task))
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        assert "timeout: it took too long" in case.incidents[0].message
        kinds = [event.event_type for event in await history(opened, case.case_id)]
        assert kinds.count("connector_called") == 2


async def test_what_must_not_be_made_twice_is_not_repeated_by_a_time_out_or_a_failure_that_is_reported() -> None:
    for reported in (False, True):
        plug = Plug("at-most-once", ["hang"])
        plug.timeout = 60
        async with engine(plugged(plug)) as opened:
            await opened.register_workflow(calls(CALL if reported else {**CALL, "timeout": "200ms"}))
            case_id = (await opened.run_case("calls")).case_id
            await plug.called.wait()
            if reported:
                item = (await opened.list_work_items(WorkItemFilter(case_id=case_id))).items[0]
                await opened.fail_work_item(item.item_id, "by_hand")
            case = await until_open(opened, case_id)
            assert case.incidents[0].kind == "connector_failed"
            assert len(plug.keys) == 1
            assert reported or "whether its call was made is unknown" in case.incidents[0].message


@pytest.mark.parametrize(("url", "least", "most"), [("/status/503?after=7", 7.0, 7.5), ("/status/500", 1.0, 2.1)])
async def test_pauses_between_attempts_are_spread_and_obey_the_server(
    outside: str, url: str, least: float, most: float
) -> None:
    task = {"request": {"url": url, "method": "POST"}, "retry": {"max_attempts": 2, "backoff": 2}}
    async with engine(setup(outside, breaker={"failures": 100})) as opened:
        await opened.register_workflow(calls(task))
        pauses: set[float] = set()
        for _ in range(5):
            case = await opened.run_case("calls")
            async for event in opened.watch_case(case.case_id):
                if event.event_type == "timer_armed":
                    due = datetime.fromisoformat(json.loads(event.data)["due"])
                    pauses.add(due.timestamp() - event.timestamp / 1e9)
                    break
        assert len(pauses) > 1
        assert all(least - 0.001 <= pause <= most for pause in pauses), pauses
