"""Timers over a real store: they fire once, never early, and none is lost, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from knhk_workflow import CallMeta, CaseFilter, RunRequest, StateStore, SystemClock, WorkflowEngine
from knhk_workflow.runtime import timers
from knhk_workflow.store import Keyspace
from tests.runtime.place import CLERK, KeptStore, Place, body, item_of, registered, store_of
from tests.store.faulty import Fault, FaultyStore


def waiting(timer: object, **more: object) -> Mapping[str, object]:
    """A clerk who signs before it is late."""
    return {
        "id": "waiting",
        "tasks": {"sign": {"required_roles": CLERK, **more}, "late": {"timer": timer, "out": {"late": "true"}}},
        "flows": [
            {"from": "start", "to": "sign"},
            {"from": "start", "to": "late"},
            {"from": "sign", "to": "end"},
            {"from": "late", "to": "end"},
        ],
    }


HOUR: Final = waiting("1h")
SOON: Final = waiting("20ms")


async def rows(engine: WorkflowEngine) -> int:
    """The timers that lie in the store."""
    return len(await store_of(engine).scan(*Keyspace(store_of(engine).shards).timers(0), limit=100_000))


async def events(engine: WorkflowEngine, case_id: str) -> list[str]:
    """The types of a case's timer events, in order."""
    page = await engine.get_case_history(case_id, page_size=1_000)
    return [event.event_type for event in page.items if event.event_type.startswith("timer_")]


async def test_a_timer_fires_when_time_has_come(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, HOUR)
        case = await engine.run_case("waiting", case_id="k")
        place.clock.advance(3_599)
        await engine.fire_due_timers()
        assert (await engine.get_case("k")).sequence == case.sequence
        assert await rows(engine) == 1
        place.clock.advance(1)
        async with asyncio.timeout(60):
            case = await engine.wait_case("k")  # it fires by itself
        assert (case.state, body(case.data)) == ("completed", {"late": True})
        assert await events(engine, "k") == ["timer_armed", "timer_fired"]
        assert await rows(engine) == 0
        [fired] = [
            event
            for event in (await engine.get_case_history("k", page_size=100)).items
            if event.event_type == "timer_fired"
        ]
        told = body(fired.data)
        assert isinstance(told, dict)
        assert (told["by"], told["kind"], told["due"]) == ("system:timer", "timer", "2026-01-01T01:00:00Z")


async def test_by_the_clock_of_the_machine(tmp_path: Path) -> None:
    async with WorkflowEngine(StateStore(str(tmp_path / "store")), clock=SystemClock()) as engine:
        await registered(engine, SOON)
        async with asyncio.timeout(60):
            cases = await asyncio.gather(*(engine.run_case("waiting", case_id=f"k{n}") for n in range(20)))
            for case in cases:
                assert (await engine.wait_case(case.case_id)).state == "completed"
        for case in cases:
            history = (await engine.get_case_history(case.case_id, page_size=100)).items
            times = {event.event_type: event.timestamp for event in history}
            assert times["timer_fired"] - times["timer_armed"] >= 20_000_000, "it fired early"
        assert await rows(engine) == 0


async def test_a_long_cascade_holds_up_the_timers_of_its_own_case_only() -> None:
    place = Place("memory", Path())
    turning = {
        "id": "turning",
        "tasks": {"fork": {}, "wait": {"timer": "1s"}, "turn": {}, "rest": {}},
        "flows": [
            {"from": "start", "to": "fork"},
            {"from": "fork", "to": "wait"},
            {"from": "wait", "to": "end"},
            {"from": "fork", "to": "turn"},
            {"from": "turn", "to": "rest"},
            {"from": "rest", "to": "turn", "when": "true"},
            {"from": "rest", "to": "end", "default": True},
        ],
    }
    async with place.engine() as engine:
        await engine.register_workflow(turning, allow_unsound=True)
        await registered(engine, HOUR)
        await engine.run_case("waiting", case_id="other")
        running = asyncio.create_task(engine.run_case("turning", case_id="long"))
        while (await engine.list_cases(CaseFilter(spec_id="turning"))).items == ():  # noqa: ASYNC110  # nobody is told of it
            await asyncio.sleep(0)
        place.clock.advance(2)
        firing = asyncio.create_task(engine.fire_due_timers())
        await asyncio.sleep(0.05)  # its timer was tried by now, and is to be tried again
        place.clock.advance(3_600)
        async with asyncio.timeout(30):
            assert (await engine.wait_case("other")).state == "completed"
        assert not running.done()
        await asyncio.gather(running, firing)
        assert (await engine.get_case("long")).incidents[0].kind == "settle_limit"


async def test_what_became_due_while_nothing_ran_fires_after_opening(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, HOUR)
        await engine.run_cases([RunRequest("waiting", case_id=f"k{number}") for number in range(200)])
        place.clock.advance(1)
        await engine.run_case("waiting", case_id="last")
        assert await rows(engine) == 201
    place.clock.advance(86_400)
    async with place.engine() as engine:
        async with asyncio.timeout(60):
            assert (await engine.wait_case("last")).state == "completed"
            await engine.fire_due_timers()
        for number in range(200):
            assert await events(engine, f"k{number}") == ["timer_armed", "timer_fired"]
        assert await rows(engine) == 0


async def test_work_that_is_done_before_leaves_no_timer(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, waiting("1h", timeout="30m", deadline="data.due"))
        case = await engine.run_case("waiting", {"due": "2026-01-02T00:00:00Z"})
        assert await rows(engine) == 3
        [listed] = (await engine.list_work_items()).items
        assert listed.due_at == item_of(case, "sign").due_at == place.clock.now() + 1_800 * 10**9
        await engine.start_work_item(item_of(case, "sign").item_id)
        assert await rows(engine) == 2
        await engine.complete_work_item(item_of(case, "sign").item_id)
        assert await rows(engine) == 0
        place.clock.advance(86_400 * 30)
        await engine.fire_due_timers()
        assert "timer_fired" not in await events(engine, case.case_id)


async def test_a_suspended_case_fires_after_its_resumption(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, HOUR)
        for case_id in ("held", "free"):
            await engine.run_case("waiting", case_id=case_id)
        await engine.suspend_case("held")
        place.clock.advance(7_200)
        await engine.fire_due_timers()
        assert (await engine.get_case("free")).state == "completed"
        assert await events(engine, "held") == ["timer_armed"]
        await engine.resume_case("held")
        async with asyncio.timeout(60):
            assert (await engine.wait_case("held")).state == "completed"


async def test_retries_survive_a_restart(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, waiting("30d", retry={"max_attempts": 2, "backoff": "1h"}))
        case = await engine.run_case("waiting", case_id="k")
        failed = await engine.fail_work_item(item_of(case, "sign").item_id, "broken")
        assert (failed.state, failed.retry_at) == ("failed", place.clock.now() + 3_600 * 10**9)
        assert (await engine.get_case("k")).work == ()
        assert (await engine.list_work_items()).items == ()
        explained = await engine.explain_case("k")
        assert "retry 1 of 1 until 2026-01-01T01:00:00Z" in explained.tasks[0].sentence
    place.clock.advance(3_600 * 2)
    async with place.engine() as engine:
        await engine.fire_due_timers()
        case = await engine.get_case("k")
        assert [item.attempt for item in case.work] == [2]


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST, Fault.APPLIED])
async def test_a_failing_store_neither_loses_nor_doubles_a_timer(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "PAUSE_S", 0.001)
    place = Place("memory", Path())
    store = FaultyStore(KeptStore())
    async with WorkflowEngine(StateStore.over(store), clock=place.clock) as engine:
        await registered(engine, HOUR)
        for number in range(5):
            await engine.run_case("waiting", case_id=f"k{number}")
        store.faults = [fault] * 3
        place.clock.advance(3_600)
        async with asyncio.timeout(60):
            for number in range(5):
                assert (await engine.wait_case(f"k{number}")).state == "completed"
        for number in range(5):
            assert await events(engine, f"k{number}") == ["timer_armed", "timer_fired"]
        assert await rows(engine) == 0


async def test_a_case_cancelled_while_its_timer_is_on_the_way(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, HOUR)
        for round_ in range(10):
            case_id = f"k{round_}"
            await engine.run_case("waiting", case_id=case_id)
            place.clock.advance(3_600)
            cancelling = asyncio.create_task(engine.cancel_case(case_id))
            await asyncio.gather(engine.fire_due_timers(), cancelling, return_exceptions=True)
            case = await engine.get_case(case_id)
            told = await events(engine, case_id)
            assert (case.state, told[-1]) in (("completed", "timer_fired"), ("cancelled", "timer_disarmed"))
            assert len(told) == 2
        assert await rows(engine) == 0


async def test_timers_of_tenants_are_apart(place: Place) -> None:
    async with place.engine() as engine:
        for tenant in ("acme", "zeta"):
            await registered(engine, HOUR, tenant=tenant)
            await engine.run_case("waiting", case_id="k", meta=CallMeta(tenant=tenant))
            place.clock.advance(60)
        place.clock.advance(3_600 - 120)
        await engine.fire_due_timers()
        assert (await engine.get_case("k", meta=CallMeta(tenant="acme"))).state == "completed"
        assert (await engine.get_case("k", meta=CallMeta(tenant="zeta"))).state == "running"


async def test_in_due_order(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, waiting({"after": "data.wait"}))
        waits = [5, 3, 9, 1, 7, 2]
        fired: list[str] = []

        async def watch() -> None:
            async for event, _ in engine.watch_cases():
                if event.event_type == "timer_fired":
                    fired.append(event.case_id)
                    if len(fired) == len(waits):
                        return

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        for wait in waits:
            await engine.run_case("waiting", {"wait": wait}, case_id=f"k{wait}")
        place.clock.advance(3_600)
        async with asyncio.timeout(60):
            await watching
        assert fired == [f"k{wait}" for wait in sorted(waits)]
