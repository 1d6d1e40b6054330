"""A mistake of the core with one case: that case becomes an incident, all others go on as if nothing had happened."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from knhk_workflow import CaseView, StoreCorrupt, WorkflowEngine
from knhk_workflow.core import commands as c
from knhk_workflow.core import decide as core_decide
from knhk_workflow.core.step import Step
from tests.runtime.place import Place, doubling, registered, store_of

TIMED: Mapping[str, object] = {
    "id": "timed",
    "tasks": {"rest": {"timer": "10s"}, "sign": {"required_roles": ["clerk"]}},
    "flows": [{"from": "start", "to": "rest"}, {"from": "rest", "to": "sign"}, {"from": "sign", "to": "end"}],
}


@contextmanager
def poison(command: type[c.Command], case_id: str) -> Iterator[None]:
    """The core with a mistake in it that only one case meets."""
    right = core_decide.DECIDE[command]

    def wrong(step: Step, asked: Any) -> None:
        if step.case.case_id == case_id:
            raise KeyError("planted")
        right(step, asked)

    table: Any = core_decide.DECIDE
    table[command] = wrong
    try:
        yield
    finally:
        table[command] = right


@pytest.fixture
def told() -> list[str]:
    """What the event loop's exception handler was told."""
    return []


async def listening(told: list[str]) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["message"])))


async def settled(engine: WorkflowEngine, name: str) -> CaseView:
    case = await engine.get_case(name)
    while case.state == "running" and not case.incidents:
        await asyncio.sleep(0.01)
        case = await engine.get_case(name)
    return case


async def test_a_cascade_that_meets_a_mistake_becomes_an_incident(place: Place, told: list[str]) -> None:
    await listening(told)
    async with place.engine() as engine:
        await registered(engine, doubling(9))
        with poison(c.Continue, "sick"):
            for name in ("sick", "well"):
                await engine.run_case("doubling-9", {}, case_id=name)
            sick, well = await settled(engine, "sick"), await settled(engine, "well")
            assert [(one.kind, sick.state) for one in sick.incidents] == [("internal_error", "running")]
            assert "KeyError in continue" in sick.incidents[0].message
            assert (well.incidents, well.state) == ((), "completed")
            assert told == ["case 'sick' of tenant 'default' is stopped by a mistake of ours"]
        assert (await engine.verify_store()).intact
        assert [one.case_id for one in (await engine.list_incidents()).items] == ["sick"]
    async with place.engine() as engine:
        await engine.resolve_incident("1@sick", "retry")
        assert (await settled(engine, "sick")).state == "completed"
        assert (await engine.verify_store()).intact


async def test_a_timer_that_meets_a_mistake_becomes_an_incident(place: Place, told: list[str]) -> None:
    await listening(told)
    async with place.engine() as engine:
        await registered(engine, TIMED)
        with poison(c.FireTimer, "sick"):
            for name in ("sick", "well"):
                await engine.run_case("timed", {}, case_id=name)
            place.clock.advance(11)
            await engine.fire_due_timers()
            assert [one.kind for one in (await engine.get_case("sick")).incidents] == ["internal_error"]
            assert [one.task_id for one in (await engine.get_case("well")).work] == ["sign"]
        assert (await engine.verify_store()).intact
    async with place.engine() as engine:
        await engine.resolve_incident("1@sick", "retry")
        await engine.fire_due_timers()
        assert [one.task_id for one in (await engine.get_case("sick")).work] == ["sign"], "at the next start"


async def test_a_command_that_meets_a_mistake_changes_nothing(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        for name in ("sick", "well"):
            await engine.run_case("one", {}, case_id=name)
        with poison(c.CompleteItem, "sick"):
            with pytest.raises(KeyError):
                await engine.complete_work_item("1.1.1@sick")
            await engine.complete_work_item("1.1.1@well")
        assert (await engine.get_case("sick")).state == "running"
        await engine.complete_work_item("1.1.1@sick")
        assert (await engine.get_case("sick")).state == "completed"


async def test_a_case_that_cannot_be_decoded_is_named_and_disturbs_no_other(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, TIMED)
        for name in ("sick", "well"):
            await engine.run_case("timed", {}, case_id=name)
        store = store_of(engine)
        keys = engine._keyspace.case("default", "sick")
        await store.commit([(keys.record(1), b"nonsense")], (), True)
    async with place.engine() as engine:
        with pytest.raises(StoreCorrupt):
            await engine.get_case("sick")
        place.clock.advance(11)
        await engine.fire_due_timers()
        assert [one.task_id for one in (await engine.get_case("well")).work] == ["sign"]
        assert {one.case_id for one in (await engine.verify_store()).findings} == {"sick"}
