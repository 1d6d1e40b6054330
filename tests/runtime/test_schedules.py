"""Schedules: once for each occurrence, never early, in due order, whatever happens in between."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from zlib import crc32

import pytest

from knhk_workflow import (
    OVERLAPS,
    AlreadyExists,
    CallMeta,
    InvalidInput,
    LimitExceeded,
    NotFound,
    RequestMismatch,
    ScheduleSpec,
    ScheduleView,
    Stale,
    StateStore,
    StoreCorrupt,
    StoreFormat,
    StoreUnavailable,
    VirtualClock,
    WorkflowEngine,
    restore_store,
    verify_store,
)
from knhk_workflow.runtime.schedules import BACKFILL_MAX
from knhk_workflow.store import Expectation, ExpectationFailed, Keyspace, Write
from tests.inside import listening, parts
from tests.runtime.place import CLERK, LOOP, ONE, Gate, KeptStore, Place, becomes, body, registered, store_of

HOURLY: Final = ScheduleSpec("one", "0 * * * *")
HOUR: Final = 3_600
NS: Final = 1_000_000_000
DONE: Final[Mapping[str, object]] = {
    "id": "done",
    "tasks": {"note": {"out": {"noted": "true"}}},
    "flows": [{"from": "start", "to": "note"}, {"from": "note", "to": "end"}],
}


def spec(every: str = "0 * * * *", workflow: str = "one", **more: object) -> ScheduleSpec:
    """A schedule of every hour, or so."""
    return ScheduleSpec(workflow, every, **more)  # type: ignore[arg-type]  # fields of a test


def at(text: str) -> int:
    """Nanoseconds since the epoch."""
    return round(dt.datetime.fromisoformat(text).timestamp()) * NS


def told(view: ScheduleView) -> list[tuple[str, str]]:
    """The outcomes, oldest first, with the hour and minute of their occurrence."""
    return [(run.outcome, f"{dt.datetime.fromtimestamp(run.at / NS, dt.UTC):%H:%M}") for run in reversed(view.recent)]


async def cases(engine: WorkflowEngine) -> dict[str, str]:
    """The state of every case, by id."""
    return {case.case_id: case.state for case in (await engine.list_cases(page_size=1_000)).items}


async def ahead(engine: WorkflowEngine, clock: VirtualClock, *steps: float) -> None:
    """Let time pass, in steps of seconds, and see what comes of each."""
    for seconds in steps:
        clock.advance(seconds)
        await engine.fire_due_timers()


async def started(engine: WorkflowEngine, schedule_id: str, count: int) -> None:
    """Wait until a schedule has started that many cases."""

    async def true() -> bool:
        return (await engine.get_schedule(schedule_id)).started >= count

    await becomes(true)


async def finished(engine: WorkflowEngine, case_id: str) -> None:
    """A clerk has done the work of a case."""
    [item] = (await engine.get_case(case_id)).work
    await engine.complete_work_item(item.item_id)
    await engine.fire_due_timers()


async def test_each_occurrence_starts_one_case_and_never_early(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, ONE)
        made = await engine.create_schedule("hourly", spec(overlap="allow", time_key="slot", data=b'{"a":1}'))
        assert [t // NS % (24 * HOUR) // HOUR for t in made.next_times] == [1, 2, 3, 4, 5]
        await ahead(engine, place.clock, HOUR - 1e-9)
        assert await cases(engine) == {}
        await ahead(engine, place.clock, 1e-9, 0, HOUR)
        assert await cases(engine) == {
            "hourly-20260101T010000Z": "running",
            "hourly-20260101T020000Z": "running",
        }
        case = await engine.get_case("hourly-20260101T020000Z")
        assert body(case.data) == {"a": 1, "slot": "2026-01-01T02:00:00Z"}
        assert case.created_by == "system:schedule/hourly"
        view = await engine.get_schedule("hourly")
        assert told(view) == [("started", "01:00"), ("started", "02:00")]
        assert (view.started, view.running) == (2, tuple(await cases(engine)))


async def test_it_starts_by_itself(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, DONE)
        await engine.create_schedule("s", spec(workflow="done"))
        place.clock.advance(HOUR)
        await started(engine, "s", 1)
        assert list((await cases(engine)).values()) == ["completed"]


@pytest.mark.parametrize(
    ("overlap", "outcomes", "left"),
    [
        ("skip", ["started", "skipped", "skipped"], ["running"]),
        ("buffer_one", ["started", "skipped"], ["running"]),
        ("buffer_all", ["started"], ["running"]),
        ("allow", ["started", "started", "started"], ["running"] * 3),
        ("cancel_other", ["started", "started", "started"], ["cancelled", "cancelled", "running"]),
        ("terminate_other", ["started", "started", "started"], ["cancelled", "cancelled", "running"]),
    ],
)
async def test_overlap(overlap: str, outcomes: Sequence[str], left: Sequence[str]) -> None:
    assert overlap in OVERLAPS
    clock = VirtualClock()
    async with WorkflowEngine(StateStore(":memory:"), clock=clock) as engine:
        await registered(engine, ONE)
        await engine.create_schedule("s", spec(overlap=overlap))
        await ahead(engine, clock, HOUR, HOUR, HOUR)
        view = await engine.get_schedule("s")
        assert [outcome for outcome, _ in told(view)] == outcomes
        assert list((await cases(engine)).values()) == left
        if not overlap.startswith("buffer"):
            return
        assert view.waiting == (1 if overlap == "buffer_one" else 2)
        await finished(engine, "s-20260101T010000Z")
        await started(engine, "s", 2)
        assert list((await cases(engine)).values()) == ["completed", "running"]


async def test_cancelled_with_what_is_to_be_undone_first() -> None:
    """cancel_other waits until the compensation is done, terminate_other does not."""
    clock = VirtualClock()
    document = {
        "id": "booked",
        "tasks": {
            "book": {"required_roles": CLERK, "compensate": "unbook"},
            "unbook": {"required_roles": CLERK},
            "use": {"required_roles": CLERK},
        },
        "flows": [
            {"from": "start", "to": "book"},
            {"from": "book", "to": "use"},
            {"from": "use", "to": "end"},
        ],
    }
    async with WorkflowEngine(StateStore(":memory:"), clock=clock) as engine:
        await registered(engine, document)
        for overlap, states in (("cancel_other", ["running"]), ("terminate_other", ["running", "running"])):
            await engine.create_schedule(overlap, spec(workflow="booked", overlap=overlap))
            await ahead(engine, clock, HOUR)
            [first] = (await engine.get_schedule(overlap)).running
            await finished(engine, first)  # the booking
            await ahead(engine, clock, HOUR)
            mine = {name: state for name, state in (await cases(engine)).items() if name.startswith(overlap)}
            assert list(mine.values()) == states
            await finished(engine, first)  # the booking undone
            await started(engine, overlap, 2)
            assert (await engine.get_case(first)).state == "cancelled"
            await engine.delete_schedule(overlap)


@pytest.mark.parametrize(
    ("catch_up", "window", "down", "outcomes"),
    [
        ("latest", 24 * HOUR, 5.5 * HOUR, [("missed", "01:00"), ("started", "05:00")]),
        ("latest", 600, 5.5 * HOUR, [("missed", "01:00")]),
        ("latest", 0, 5 * HOUR + 59, [("missed", "01:00"), ("started", "05:00")]),
        ("all", 24 * HOUR, 3.5 * HOUR, [("started", "01:00"), ("started", "02:00"), ("started", "03:00")]),
        ("all", 1.5 * HOUR, 3.5 * HOUR, [("missed", "01:00"), ("started", "02:00"), ("started", "03:00")]),
        ("none", 24 * HOUR, 3.5 * HOUR, [("missed", "01:00")]),
        ("none", 24 * HOUR, 3 * HOUR + 30, [("missed", "01:00"), ("started", "03:00")]),
        ("none", 24 * HOUR, HOUR + 30, [("started", "01:00")]),
    ],
)
async def test_after_down_time(
    place: Place, catch_up: str, window: float, down: float, outcomes: Sequence[tuple[str, str]]
) -> None:
    async with place.engine() as engine:
        await registered(engine, DONE)
        made = spec(workflow="done", catch_up=catch_up, catch_up_window=round(window * NS))
        await engine.create_schedule("s", made)
    place.clock.advance(down)
    async with place.engine() as engine:
        await engine.fire_due_timers()
        view = await engine.get_schedule("s")
        assert told(view) == outcomes
        assert view.started == len(await cases(engine))
        assert view.next_times[0] == (place.clock.now() // (HOUR * NS) + 1) * HOUR * NS
        assert view.missed + view.started == down // HOUR


class Recorded(KeptStore):
    """Keeps what was durable after each commit."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[dict[bytes, bytes]] = []

    async def commit(self, writes: Sequence[Write], expect: Sequence[Expectation], durable: bool) -> None:
        """As the store below, remembered."""
        await super().commit(writes, expect, durable)
        self.moments.append(dict(await self.scan(b"", b"\xff\xff\xff", limit=1_000_000)))


@pytest.mark.parametrize("overlap", OVERLAPS)
async def test_a_kill_at_any_moment_doubles_and_loses_nothing(overlap: str) -> None:
    store, clock = Recorded(), VirtualClock()
    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        await registered(engine, ONE)
        await engine.create_schedule("s", spec(overlap=overlap, catch_up="all"))
        since = len(store.moments)
        await ahead(engine, clock, HOUR, HOUR, HOUR)
        whole = await cases(engine)
    for moment in store.moments[since - 1 :]:
        again = KeptStore()
        await again.commit(list(moment.items()), (), True)
        later = VirtualClock()
        later.advance(3 * HOUR)
        async with WorkflowEngine(StateStore.over(again), clock=later) as engine:
            await engine.fire_due_timers()
            assert await cases(engine) == whole
            view = await engine.get_schedule("s")
            assert view.started == len(whole)
            assert view.started + view.skipped + view.waiting == 3
            assert (await engine.verify_store()).intact


async def test_many_are_started_in_due_order() -> None:
    clock = VirtualClock()
    async with WorkflowEngine(StateStore(":memory:"), clock=clock) as engine:
        await registered(engine, DONE)
        for n in range(100):
            await engine.create_schedule(f"s{n:03}", spec(f"R1/PT{200 - n}S", "done"))
        token = await engine.watch_token()
        await ahead(engine, clock, 1_000)
        assert len(await cases(engine)) == 100
        begun = []
        async for event, _ in engine.watch_cases(resume_token=token):
            if event.event_type == "case_created":
                begun.append(event.case_id.partition("-")[0])
            if len(begun) == 100:
                break
        turns = [begun[:64], begun[64:]]  # TOGETHER: what is due at once is started together
        assert [set(turn) for turn in turns] == [
            {f"s{n:03}" for n in range(36, 100)},
            {f"s{n:03}" for n in range(36)},
        ]


async def test_pause_resume_trigger_and_backfill(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, DONE)
        await engine.create_schedule("s", spec(workflow="done"), paused=True)
        await ahead(engine, place.clock, 2.5 * HOUR)
        view = await engine.get_schedule("s")
        assert (view.started, view.paused, view.next_times) == (0, True, ())
        meta = CallMeta(request_id="now", method="trigger")
        first = await engine.trigger_schedule("s", data={"by": "hand"}, meta=meta)
        assert await engine.trigger_schedule("s", data={"by": "hand"}, meta=meta) == first
        with pytest.raises(RequestMismatch):
            await engine.trigger_schedule("s", meta=meta)
        await engine.fire_due_timers()
        [case_id] = await cases(engine)
        assert case_id == "s-20260101T023000Z-000000000-1"
        assert body((await engine.get_case(case_id)).data) == {"by": "hand", "noted": True}
        view = await engine.resume_schedule("s")
        assert view.next_times[0] == at("2026-01-01T03:00:00Z")
        await ahead(engine, place.clock, HOUR)
        past = at("2026-01-01T00:00:00Z"), at("2026-01-01T04:00:00Z")
        await engine.backfill_schedule("s", *past, overlap="buffer_all")
        await started(engine, "s", 5)
        await engine.fire_due_timers()
        assert sorted(await cases(engine)) == [f"s-20260101T0{hour}0000Z" for hour in range(3)] + [
            case_id,
            "s-20260101T030000Z",
        ]
        with pytest.raises(LimitExceeded):
            await engine.backfill_schedule("s", 0, (BACKFILL_MAX + 2) * HOUR * NS)
        await engine.pause_schedule("s", "holidays")
    async with place.engine() as engine:
        view = await engine.get_schedule("s")
        assert (view.paused, view.pause_reason) == (True, "holidays")
        await engine.delete_schedule("s")
        with pytest.raises(NotFound):
            await engine.get_schedule("s")
    async with place.engine() as engine:
        assert (await engine.list_schedules()).items == ()


async def test_update_and_what_is_refused() -> None:
    clock = VirtualClock()
    async with WorkflowEngine(StateStore(":memory:"), clock=clock) as engine:
        await registered(engine, ONE)
        await engine.create_schedule("s", HOURLY)
        with pytest.raises(AlreadyExists):
            await engine.create_schedule("s", HOURLY)
        daily = spec("0 9 * * *", time_zone="Europe/Berlin")
        changed = await engine.update_schedule("s", daily, revision=1)
        assert (changed.revision, changed.next_times[0]) == (2, at("2026-01-01T08:00:00Z"))
        with pytest.raises(Stale):
            await engine.update_schedule("s", HOURLY, revision=1)
        with pytest.raises(NotFound):
            await engine.create_schedule("t", spec(workflow="other"))
        for wrong in (
            spec("61 * * * *"),
            spec("0 0 30 2 *"),
            spec("R/P1M"),
            spec(time_zone="Mars/Base"),
            spec(overlap="never"),
            spec(catch_up="some"),
            spec(data=b"[]"),
            spec(not_before=5, not_after=4),
        ):
            with pytest.raises(InvalidInput):
                await engine.create_schedule("t", wrong)
        with pytest.raises(InvalidInput):
            await engine.create_schedule("t" * 201, HOURLY)
        assert [view.schedule_id for view in (await engine.list_schedules()).items] == ["s"]
        with pytest.raises(NotFound):
            await engine.get_schedule("s", meta=CallMeta(tenant="other"))


async def test_lists_are_paged() -> None:
    async with WorkflowEngine(StateStore(":memory:"), clock=VirtualClock()) as engine:
        await registered(engine, ONE)
        for name in "dacb":
            await engine.create_schedule(name, HOURLY)
        first = await engine.list_schedules(page_size=3)
        rest = await engine.list_schedules(page_size=3, page_token=first.next_token)
        assert [view.schedule_id for view in (*first.items, *rest.items)] == ["a", "b", "c", "d"]
        assert rest.next_token == ""


async def test_a_case_that_cannot_be_started_is_told_of() -> None:
    clock = VirtualClock()
    async with WorkflowEngine(StateStore(":memory:"), clock=clock) as engine:
        await registered(engine, DONE)
        await engine.create_schedule("s", spec(workflow="done"))
        await engine.run_case("done", case_id="s-20260101T010000Z")  # somebody else's
        await ahead(engine, clock, HOUR)
        await engine.delete_workflow("done")
        await ahead(engine, clock, HOUR)
        view = await engine.get_schedule("s")
        assert told(view) == [("failed", "01:00"), ("failed", "02:00")]
        assert view.failed == 2
        assert "workflow 'done'" in view.recent[0].message


async def test_bounds_and_a_number_of_times() -> None:
    clock = VirtualClock()
    async with WorkflowEngine(StateStore(":memory:"), clock=clock) as engine:
        await registered(engine, DONE)
        first, last = at("2026-01-01T02:00:00Z"), at("2026-01-01T03:00:00Z")
        await engine.create_schedule("bound", spec(workflow="done", not_before=first, not_after=last))
        await engine.create_schedule("thrice", spec("R3/PT20M", "done"))
        await ahead(engine, clock, *[20 * 60] * 15)
        assert sorted(await cases(engine)) == [
            "bound-20260101T020000Z",
            "bound-20260101T030000Z",
            "thrice-20260101T002000Z",
            "thrice-20260101T004000Z",
            "thrice-20260101T010000Z",
        ]
        assert (await engine.get_schedule("thrice")).next_times == ()


@pytest.mark.parametrize("seconds", [HOUR, -HOUR, 10 * 365 * 24 * HOUR, -10 * 365 * 24 * HOUR])
@pytest.mark.parametrize("restarted", [False, True])
async def test_when_somebody_sets_the_clock(seconds: float, restarted: bool) -> None:
    """None early, none doubled, and the schedule goes on by the new time, also when it is put right again."""
    store, clock = KeptStore(), VirtualClock()
    seen: list[int] = []
    engine = WorkflowEngine(StateStore.over(store), clock=clock)
    await registered(engine, DONE)
    await engine.create_schedule("s", spec("*/30 * * * *", "done"))
    for set_to in (0.0, seconds, 0.0):
        if restarted:
            await engine.close()
            engine = WorkflowEngine(StateStore.over(store), clock=clock)
        clock.set_wall(set_to)
        since = clock.now()
        await ahead(engine, clock, *[600.0] * 9)
        view = await engine.get_schedule("s")
        assert view.next_times[0] // (1800 * NS) == clock.wall() // (1800 * NS) + 1
        recent = [run for run in view.recent if run.done_at > since]
        assert all(run.at <= run.done_at + round(set_to) * NS for run in recent)
        seen.append(len(await cases(engine)))
    found = await cases(engine)
    assert set(found.values()) == {"completed"}
    assert seen[0] == 3
    assert 1 <= seen[1] - seen[0] <= 4
    assert 1 <= seen[2] - seen[1] <= 9
    await engine.close()


@pytest.mark.parametrize("overlap", ["skip", "buffer_one", "buffer_all", "allow", "cancel_other", "terminate_other"])
async def test_an_occurrence_that_comes_again_leaves_its_own_case_alone(overlap: str) -> None:
    """The calendar is set back behind occurrences that have had their cases, ended and open ones."""
    clock = VirtualClock()
    async with WorkflowEngine(StateStore(":memory:"), clock=clock) as engine:
        await registered(engine, ONE)
        await engine.create_schedule("s", spec(overlap=overlap))
        await ahead(engine, clock, HOUR)
        await finished(engine, "s-20260101T010000Z")
        await ahead(engine, clock, HOUR)
        before = await cases(engine)
        assert before == {"s-20260101T010000Z": "completed", "s-20260101T020000Z": "running"}
        clock.set_wall(-1.5 * HOUR)
        await ahead(engine, clock, 0.75 * HOUR, 0.75 * HOUR)
        assert await cases(engine) == before
        assert (await engine.get_schedule("s")).started == 2
        start, end = at("2026-01-01T01:00:00Z"), at("2026-01-01T02:30:00Z")
        await engine.backfill_schedule("s", start, end)
        await engine.fire_due_timers()
        assert await cases(engine) == before
        await finished(engine, "s-20260101T020000Z")
        clock.set_wall(0)
        await ahead(engine, clock, 0.5 * HOUR)
        assert await cases(engine) == {
            "s-20260101T010000Z": "completed",
            "s-20260101T020000Z": "completed",
            "s-20260101T040000Z": "running",
        }


async def test_a_day_without_an_hour_and_one_with_an_hour_twice() -> None:
    for begin, hours in (("2026-03-28T12:00:00+00:00", 48), ("2026-10-24T12:00:00+00:00", 48)):
        clock = VirtualClock(at(begin))
        async with WorkflowEngine(StateStore(":memory:"), clock=clock) as engine:
            await registered(engine, DONE)
            await engine.create_schedule("night", spec("30 2 * * *", "done", time_zone="Europe/Berlin"))
            await ahead(engine, clock, *[HOUR / 2] * hours * 2)
            assert len(await cases(engine)) == 2, "once a day, whatever clocks do"


async def test_what_a_caller_has_given_up_is_there_all_the_same() -> None:
    """A client's deadline cancels the call while its commit is on the way: memory follows the store."""
    store, clock = Gate(), VirtualClock()
    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        await registered(engine, DONE)
        hourly, meta = spec(workflow="done"), CallMeta(request_id="r")
        await store.given_up(engine.create_schedule("s", hourly, meta=meta))
        again = asyncio.create_task(engine.create_schedule("s", hourly, meta=meta))
        other = asyncio.create_task(engine.create_schedule("s", hourly))
        await asyncio.sleep(0)
        store.open.set()
        assert (await again).schedule_id == "s", "the request has done its work"
        with pytest.raises(AlreadyExists):
            await other
        assert (await engine.get_schedule("s")).revision == 1
        await ahead(engine, clock, HOUR)
        assert list(await cases(engine)) == ["s-20260101T010000Z"]

        await store.given_up(engine.trigger_schedule("s"))
        store.open.set()
        await started(engine, "s", 2)

        await store.given_up(engine.pause_schedule("s", "lunch"))
        resumed = asyncio.create_task(engine.resume_schedule("s"))
        await asyncio.sleep(0)
        assert not (await engine.get_schedule("s")).paused, "nothing is said before it is durable"
        store.open.set()
        assert (await resumed).revision == 4, "decided on what the pause left"

        await store.given_up(engine.delete_schedule("s"))
        store.open.set()
        await engine.create_case("done")  # its commit comes after that one
        assert (await engine.list_schedules()).items == ()
        with pytest.raises(NotFound):
            await engine.get_schedule("s")
        assert parts(engine).schedules.nearest() is None
        assert (await engine.create_schedule("s", hourly)).revision == 1


async def test_one_that_could_not_be_created_leaves_nothing() -> None:
    """The store is full, or its caller has gone and it is full."""
    store = Gate()
    async with WorkflowEngine(StateStore.over(store), clock=VirtualClock()) as engine:
        await registered(engine, DONE)
        store.full = True
        with pytest.raises(StoreUnavailable):
            await engine.create_schedule("s", spec(workflow="done"))
        await store.given_up(engine.create_schedule("s", spec(workflow="done")))
        store.open.set()
        await becomes(lambda: _none(engine))
        store.full = False
        await engine.create_schedule("s", spec(workflow="done"))


async def damage(engine: WorkflowEngine, key: bytes) -> None:
    """Turn one bit of a value that is stored."""
    store = store_of(engine)
    value = await store.get(key)
    assert value is not None
    await store.commit([(key, value[:-1] + bytes([value[-1] ^ 1]))], (), True)


async def test_a_damaged_schedule_stands_still_alone(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, DONE)
        for name in ("sick", "well"):
            await engine.create_schedule(name, spec(workflow="done"))
        await damage(engine, parts(engine).keyspace.schedule("default", "sick"))
    said = listening()
    async with place.engine() as engine:
        assert said == ["schedule 'sick' of tenant 'default' cannot be read"]
        await ahead(engine, place.clock, HOUR)
        assert list(await cases(engine)) == ["well-20260101T010000Z"]
        assert [view.schedule_id for view in (await engine.list_schedules()).items] == ["well"]
        [finding] = (await engine.verify_store()).findings
        assert parts(engine).keyspace.schedule("default", "sick").hex() in finding.message
        for asked in (
            engine.create_schedule("sick", spec(workflow="done")),
            engine.get_schedule("sick"),
            engine.pause_schedule("sick"),
            engine.trigger_schedule("sick"),
        ):
            with pytest.raises(StoreCorrupt, match=r"schedule .sick. of tenant .default. cannot be read .*; delete it"):
                await asked
        with pytest.raises(NotFound):
            await engine.delete_schedule("sick", meta=CallMeta(tenant="other"))


def of_version(version: int, value: bytes) -> bytes:
    """A stored value as a newer version might have written it: one byte of format, four more of header, a checksum."""
    header, payload = bytes([version]) + value[1:5], value[9:]
    return header + crc32(payload, crc32(header)).to_bytes(4, "big") + payload


async def test_a_schedule_that_is_damaged_meanwhile_can_be_deleted(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, DONE)
        await engine.create_schedule("s", spec(workflow="done"))
        await damage(engine, parts(engine).keyspace.schedule("default", "s"))
        with pytest.raises(ExpectationFailed):
            await engine.pause_schedule("s")
        with pytest.raises(StoreCorrupt, match="delete it"):
            await engine.pause_schedule("s")
        await engine.delete_schedule("s")
        await ahead(engine, place.clock, HOUR)
        assert not await cases(engine)
        assert (await engine.verify_store()).intact
        with pytest.raises(NotFound):
            await engine.delete_schedule("s")


async def test_a_schedule_of_a_newer_version_is_not_called_damaged(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, DONE)
        await engine.create_schedule("s", spec(workflow="done"))
        key, store = parts(engine).keyspace.schedule("default", "s"), store_of(engine)
        await store.commit([(key, of_version(9, await store.get(key) or b""))], (), True)
    async with place.engine() as engine:
        with pytest.raises(StoreFormat, match="newer") as caught:
            await engine.get_schedule("s")
        assert "delete it" not in caught.value.message


async def test_a_damaged_schedule_can_be_deleted(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, DONE)
        await engine.create_schedule("sick", spec(workflow="done"))
        await damage(engine, parts(engine).keyspace.schedule("default", "sick"))
    async with place.engine() as engine:
        await engine.delete_schedule("sick")
        assert (await engine.verify_store()).intact
        with pytest.raises(NotFound):
            await engine.get_schedule("sick")
        await engine.create_schedule("sick", spec(workflow="done"))
        await ahead(engine, place.clock, HOUR)
        assert list(await cases(engine)) == ["sick-20260101T010000Z"]


@pytest.mark.parametrize("overlap", OVERLAPS)
async def test_a_case_that_is_damaged_holds_no_schedule_up(overlap: str, place: Place) -> None:
    """Its last case will not end any more: it counts as ended, and that is said once."""
    async with place.engine() as engine:
        await registered(engine, ONE)
        await engine.create_schedule("s", spec(overlap=overlap))
        await ahead(engine, place.clock, HOUR)
        if overlap.startswith("buffer"):
            await ahead(engine, place.clock, HOUR)  # one waits for the end of the first
        await damage(engine, parts(engine).keyspace.case_head("default", "s-20260101T010000Z"))
    said = listening()
    async with place.engine() as engine:
        await ahead(engine, place.clock, HOUR)
        await started(engine, "s", 2)
        heads = [told for told in said if "cannot be read" in told]
        assert len(heads) == 1, said
        assert not [told for told in said if "stands still" in told]


async def test_an_occurrence_whose_case_is_damaged_gets_no_second_one(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, DONE)
        await engine.create_schedule("s", spec(workflow="done"))
        await ahead(engine, place.clock, HOUR)
        await damage(engine, parts(engine).keyspace.case_head("default", "s-20260101T010000Z"))
        said = listening()
        await engine.backfill_schedule("s", at("2026-01-01T00:30:00Z"), at("2026-01-01T01:30:00Z"))
        await engine.fire_due_timers()
        view = await engine.get_schedule("s")
        assert (view.started, view.failed) == (1, 0)
        assert len(said) == 1


async def test_what_is_watched_is_forgotten(place: Place) -> None:
    """A case whose end a start has waited for; and one of a schedule that is deleted while it waits."""
    async with place.engine() as engine:
        await registered(engine, ONE)
        watched = parts(engine).schedules._watched
        for name in ("s", "t"):
            await engine.create_schedule(name, spec(overlap="buffer_all"))
            await engine.trigger_schedule(name)
            await started(engine, name, 1)
            await engine.trigger_schedule(name)
        await engine.fire_due_timers()
        assert len(watched) == 2
        first, second = sorted(await cases(engine))
        assert first.startswith("s-")
        await finished(engine, first)
        await started(engine, "s", 2)
        await engine.fire_due_timers()
        assert list(watched) == [("default", second)]
        await engine.delete_schedule("t")
        assert not watched


async def test_a_long_cascade_holds_no_call_on_its_schedule_up(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine, LOOP)
        await engine.create_schedule("s", spec(workflow="loop", data=b'{"turning":true}'))
        await engine.trigger_schedule("s")
        await started(engine, "s", 1)
        assert (await engine.pause_schedule("s")).paused
        await engine.delete_schedule("s")
        [name] = await cases(engine)
        live = parts(engine).cases.peek("default", name)
        assert live is not None
        assert live.continuing is not None
        await engine.update_case_data(name, {"turning": False})


async def _none(engine: WorkflowEngine) -> bool:
    return not parts(engine).schedules._all


async def test_carried_by_a_backup(tmp_path: Path) -> None:
    base = str(tmp_path)
    clock = VirtualClock()
    async with WorkflowEngine(StateStore(f"{base}/store"), clock=clock) as engine:
        await registered(engine, DONE)
        await engine.create_schedule("s", spec(workflow="done"))
        await ahead(engine, clock, HOUR)
        (tmp_path / "backup").write_bytes(b"".join([piece.chunk async for piece in engine.backup()]))
    await restore_store([f"{base}/backup"], f"{base}/restored")
    assert (await verify_store(f"{base}/restored")).intact
    async with WorkflowEngine(StateStore(f"{base}/restored"), clock=clock) as engine:
        await ahead(engine, clock, HOUR)
        view = await engine.get_schedule("s")
        assert told(view) == [("started", "01:00"), ("started", "02:00")]
        assert len(await cases(engine)) == 2


class Unreadable(KeptStore):
    """Refuses to read what begins with `refused`."""

    refused: bytes | None = None

    async def get(self, key: bytes) -> bytes | None:
        if self.refused is not None and key.startswith(self.refused):
            raise StoreUnavailable("away")
        return await super().get(key)


async def test_what_was_done_is_answered_though_its_workflow_cannot_be_read() -> None:
    """Nobody can tell then which fields are sensitive, so all are."""
    store = Unreadable()
    secret = spec(data=b'{"card":"4111","n":1}')
    async with WorkflowEngine(StateStore.over(store)) as engine:
        await registered(engine, {**ONE, "sensitive": ["card"]})
        await engine.create_schedule("s", secret)
    async with WorkflowEngine(StateStore.over(store)) as engine:
        store.refused = Keyspace(1).definitions("default", "one")[0]
        paused = await engine.pause_schedule("s")
        assert (paused.paused, paused.spec.data, paused.sensitive) == (True, secret.data, ("card", "n"))
        assert (await engine.get_schedule("s")).sensitive == ("card", "n")
        assert [each.spec.data for each in (await engine.list_schedules()).items] == [b"{}"]
        store.refused = None
        assert (await engine.get_schedule("s")).sensitive == ("card",)
        assert [body(each.spec.data) for each in (await engine.list_schedules()).items] == [{"card": "***", "n": 1}]
        await engine.delete_workflow("one")
        assert (await engine.resume_schedule("s")).sensitive == ("card", "n")
