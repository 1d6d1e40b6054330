"""A mistake of the core with one case: that case becomes an incident, all others go on as if nothing had happened."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from knhk_workflow import CaseView, StateStore, StoreCorrupt, WorkflowEngine
from knhk_workflow.core import commands as c
from tests.inside import listening, parts
from tests.runtime.mistakes import poison
from tests.runtime.place import KeptStore, Place, doubling, registered, store_of
from tests.store.faulty import Fault, FaultyStore

TIMED: Mapping[str, object] = {
    "id": "timed",
    "tasks": {"rest": {"timer": "10s"}, "sign": {"required_roles": ["clerk"]}},
    "flows": [{"from": "start", "to": "rest"}, {"from": "rest", "to": "sign"}, {"from": "sign", "to": "end"}],
}


async def settled(engine: WorkflowEngine, name: str) -> CaseView:
    case = await engine.get_case(name)
    while case.state == "running" and not case.incidents:
        await asyncio.sleep(0.01)
        case = await engine.get_case(name)
    return case


async def test_a_cascade_that_meets_a_mistake_becomes_an_incident(place: Place) -> None:
    told = listening()
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


async def test_a_timer_that_meets_a_mistake_becomes_an_incident(place: Place) -> None:
    told = listening()
    async with place.engine() as engine:
        await registered(engine, TIMED)
        with poison(c.FireTimer, "sick"):
            for name in ("sick", "well"):
                await engine.run_case("timed", {}, case_id=name)
            place.clock.advance(11)
            await engine.fire_due_timers()
            assert [one.kind for one in (await engine.get_case("sick")).incidents] == ["internal_error"]
            assert [one.task_id for one in (await engine.get_case("well")).work] == ["sign"]
            assert told == ["case 'sick' of tenant 'default' is stopped by a mistake of ours"]
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
        keys = parts(engine).keyspace.case("default", "sick")
        await store.commit([(keys.record(1), b"nonsense")], (), True)
    async with place.engine() as engine:
        with pytest.raises(StoreCorrupt):
            await engine.get_case("sick")
        place.clock.advance(11)
        await engine.fire_due_timers()
        assert [one.task_id for one in (await engine.get_case("well")).work] == ["sign"]
        assert {one.case_id for one in (await engine.verify_store()).findings} == {"sick"}


async def test_an_incident_that_cannot_be_written_is_written_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store refuses at the moment of the mistake: the case does not stand still without a word."""
    told = listening()
    monkeypatch.setattr("knhk_workflow.runtime.poison.PAUSE_S", 0.01)
    store = FaultyStore(KeptStore())
    async with WorkflowEngine(StateStore.over(store)) as engine:
        await registered(engine, doubling(9))
        with poison(c.Continue, "sick", lambda: store.faults.extend((Fault.REFUSED, Fault.LOST, Fault.REFUSED))):
            await engine.run_case("doubling-9", {}, case_id="sick")
            async with asyncio.timeout(10):
                sick = await settled(engine, "sick")
        assert [one.kind for one in sick.incidents] == ["internal_error"]
        assert not store.faults
        assert told == ["case 'sick' of tenant 'default' is stopped by a mistake of ours"], "once"
        await engine.resolve_incident("1@sick", "retry")
        assert (await settled(engine, "sick")).state == "completed"
        assert (await engine.verify_store()).intact
