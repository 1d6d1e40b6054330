"""Workers: items come with a lease, end once, and go to somebody else when their worker is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from knhk_workflow import (
    CallMeta,
    CompleteRequest,
    FailRequest,
    InvalidInput,
    LeasedItem,
    Stale,
    WorkflowEngine,
    WorkflowError,
    WorkItemFilter,
    WorkItemView,
    WorkSession,
    WorkSubscription,
    WrongState,
)
from tests.inside import listening, parts
from tests.runtime.place import Place, becomes, body, registered

S = 1_000_000_000
WAIT_S = 60.0


async def some(session: WorkSession, count: int = 1) -> list[LeasedItem]:
    """The next items that a worker gets; they have to come."""
    found: list[LeasedItem] = []
    async with asyncio.timeout(WAIT_S):
        while len(found) < count:
            await session.news.wait()
            found += session.take().items
    return found


async def revoked(session: WorkSession) -> Sequence[str]:
    """The next items that a worker is told to leave."""
    async with asyncio.timeout(WAIT_S):
        while True:
            await session.news.wait()
            found = session.take().revoked
            if found:
                return found


async def settled(session: WorkSession) -> tuple[LeasedItem, ...]:
    """What a worker got once everything that could happen by now has happened."""
    for _ in range(200):
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)
    return session.take().items


async def nothing(session: WorkSession) -> None:
    """Everything that could happen by now has happened, and the worker got no item."""
    assert await settled(session) == ()


async def done(session: WorkSession, item: LeasedItem, **output: object) -> WorkItemView:
    """The item's end by its worker."""
    [answer] = await session.complete([CompleteRequest(item.item.item_id, output)])
    assert isinstance(answer, WorkItemView), answer
    return answer


async def test_offered_work_comes_with_its_input_and_ends_the_case(engine: WorkflowEngine) -> None:
    before = await engine.run_case("one", {"n": 1})
    session = await engine.open_work(WorkSubscription(("sign",), credit=2, lease=30 * S))
    [early] = await some(session)
    after = await engine.run_case("one", {"n": 2})
    [late] = await some(session)
    assert [each.item.case_id for each in (early, late)] == [before.case_id, after.case_id]
    assert [body(each.item.data) for each in (early, late)] == [{"n": 1}, {"n": 2}]
    assert (early.item.state, early.item.attempt, early.redelivered) == ("started", 1, False)
    assert early.until == engine.now() + 30 * S
    assert (await engine.get_work_item(early.item.item_id)).leased_until == early.until
    assert session.credit == 0
    assert (await done(session, early, signed=True)).case_state == "completed"
    assert body((await engine.get_case(before.case_id)).data) == {"n": 1, "signed": True}
    assert session.credit == 1
    [again] = await session.complete([CompleteRequest(early.item.item_id)])
    assert isinstance(again, WrongState)
    await session.close()


async def test_no_more_items_than_credit_and_no_item_twice(engine: WorkflowEngine) -> None:
    cases = [(await engine.run_case("one")).case_id for _ in range(25)]
    sessions = [await engine.open_work(WorkSubscription(("one/sign",), credit=5)) for _ in range(3)]
    held = [await some(session, 5) for session in sessions]
    for session in sessions:
        await nothing(session)
    got = [each.item.case_id for items in held for each in items]
    assert len(set(got)) == 15
    assert set(got) <= set(cases)
    for session, items in zip(sessions, held, strict=True):
        answers = await session.complete([CompleteRequest(each.item.item_id) for each in items])
        assert [answer.state for answer in answers if isinstance(answer, WorkItemView)] == ["completed"] * 5

    def all_came() -> bool:
        for session in sessions:
            got.extend(each.item.case_id for each in session.take().items)
        return len(got) >= len(cases)

    await becomes(all_came)
    assert sorted(got) == sorted(cases)


async def test_workers_take_turns(engine: WorkflowEngine) -> None:
    sessions = [await engine.open_work(WorkSubscription(("sign",), credit=10)) for _ in range(4)]
    for _ in range(20):
        await engine.run_case("one")
    for session in sessions:
        await some(session, 5)
        await nothing(session)


async def test_wishes_are_kept_apart(engine: WorkflowEngine) -> None:
    other = CallMeta(tenant="other")
    await registered(engine, tenant="other")
    left = await engine.open_work(WorkSubscription(("first",), credit=10))
    boss = await engine.open_work(WorkSubscription(("line/second", "sign"), credit=10, roles=("boss",)))
    stranger = await engine.open_work(WorkSubscription(("first", "second", "sign"), credit=10), meta=other)
    wrong = await engine.open_work(WorkSubscription(("two/first",), credit=10))
    await engine.run_case("line")
    await engine.run_case("one")
    [item] = await some(left)
    assert item.item.task_id == "first"
    await nothing(boss)
    await done(left, item)
    [item] = await some(boss)
    assert item.item.task_id == "second"
    for session in (left, boss, stranger, wrong):
        await nothing(session)
    left.subscribe(WorkSubscription(("sign",), credit=10))
    [item] = await some(left)
    assert item.item.task_id == "sign"


async def test_an_expired_lease_offers_the_same_work_again_and_the_old_token_is_refused(
    place: Place, engine: WorkflowEngine
) -> None:
    case = await engine.run_case("line", {"n": 1})
    session = await engine.open_work(WorkSubscription(("first",), credit=1, lease=10 * S, worker_id="w"))
    [item] = await some(session)
    place.clock.advance(9)
    session.extend(item.item.item_id)
    place.clock.advance(9)
    await nothing(session)
    place.clock.advance(2)
    assert await revoked(session) == (item.item.item_id,)
    [again] = await some(session)
    assert (again.item.attempt, again.redelivered, body(again.item.data)) == (2, False, {"n": 1})
    [refused] = await session.complete([CompleteRequest(item.item.item_id)])
    assert isinstance(refused, Stale)
    with pytest.raises(Stale):
        session.extend(item.item.item_id)
    await done(session, again)
    types = [event.event_type for event in (await engine.get_case_history(case.case_id)).items]
    assert types.count("item_started") == 2
    assert types.count("item_returned") == 1
    assert types.count("item_completed") == 1


async def test_a_worker_without_a_name_loses_its_items_with_its_connection(engine: WorkflowEngine) -> None:
    case = await engine.run_case("one")
    first = await engine.open_work(WorkSubscription(("sign",), credit=1))
    [item] = await some(first)
    second = await engine.open_work(WorkSubscription(("sign",), credit=1))
    await nothing(second)
    await first.close()
    [again] = await some(second)
    assert (again.item.case_id, again.item.attempt) == (case.case_id, 2)
    with pytest.raises(Stale):
        await engine.complete_work_item(item.item.item_id)
    await done(second, again)


async def test_a_named_worker_gets_its_items_again(place: Place) -> None:
    wanted = WorkSubscription(("sign",), credit=3, lease=10 * S, worker_id="w")
    async with place.engine() as engine:
        await registered(engine)
        case = await engine.run_case("one")
        session = await engine.open_work(wanted)
        [item] = await some(session)
        await session.close()
        place.clock.advance(9)
        session = await engine.open_work(wanted)
        [same] = await some(session)
        assert (same.item.item_id, same.redelivered, same.until) == (item.item.item_id, True, engine.now() + 10 * S)
        twin = await engine.open_work(wanted)
        assert isinstance(session.error, Stale)
        await some(twin)
        stranger = await engine.open_work(wanted, meta=CallMeta(principal="somebody else"))
        await nothing(stranger)
        await engine.run_case("one")
    place.clock.advance(100)
    async with place.engine() as engine:
        session = await engine.open_work(wanted)
        items = await some(session, 2)
        assert sorted(each.redelivered for each in items) == [False, True]
        kept = next(each for each in items if each.redelivered)
        assert (kept.item.item_id, kept.until) == (item.item.item_id, engine.now() + 10 * S)
        assert (await done(session, kept)).case_state == "completed"
        assert (await engine.get_case(case.case_id)).state == "completed"


async def test_a_worker_that_connects_again_while_it_is_given_an_item_gets_it_once(engine: WorkflowEngine) -> None:
    wanted = WorkSubscription(("sign",), worker_id="w")
    for turns in range(20):  # of the event loop: one of them is that between the lease and the handing over
        first = await engine.open_work(wanted)
        running = asyncio.create_task(engine.run_case("one", {"n": turns}))
        for _ in range(turns):
            await asyncio.sleep(0)
        second = await engine.open_work(wanted)
        case = await running
        [item] = await settled(second)
        assert item.item.case_id == case.case_id
        await done(second, item)
        await first.close()
        await second.close()


async def test_after_a_restart_a_lease_has_its_full_period_and_then_ends(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        await engine.run_case("one")
        await some(await engine.open_work(WorkSubscription(("sign",), lease=10 * S)))
    place.clock.advance(100)
    async with place.engine() as engine:
        session = await engine.open_work(WorkSubscription(("sign",)))
        place.clock.advance(9)
        await nothing(session)
        place.clock.advance(1)
        [item] = await some(session)
        assert item.item.attempt == 2


async def test_given_back_work_goes_to_somebody_else_at_once(engine: WorkflowEngine) -> None:
    await engine.run_case("one")
    first = await engine.open_work(WorkSubscription(("sign",)))
    [item] = await some(first)
    second = await engine.open_work(WorkSubscription(("sign",)))
    first.drain()
    first.extend(item.item.item_id, 0)
    [again] = await some(second)
    assert again.item.attempt == 2
    assert first.finished
    assert first.take().revoked == ()


async def test_a_choice_is_made_by_delivery(engine: WorkflowEngine) -> None:
    case = await engine.run_case("rivals")
    session = await engine.open_work(WorkSubscription(("left", "right"), credit=5))
    [item] = await some(session)
    await nothing(session)
    assert len((await engine.get_case(case.case_id)).work) == 1
    await done(session, item)


async def test_what_others_end_is_revoked(engine: WorkflowEngine) -> None:
    case = await engine.run_case("one")
    session = await engine.open_work(WorkSubscription(("sign",)))
    [item] = await some(session)
    await engine.cancel_case(case.case_id)
    assert await revoked(session) == (item.item.item_id,)
    assert session.credit == 1


async def test_a_suspended_case_offers_nothing_until_it_is_resumed(engine: WorkflowEngine) -> None:
    case = await engine.run_case("one")
    await engine.suspend_case(case.case_id)
    session = await engine.open_work(WorkSubscription(("sign",)))
    await nothing(session)
    await engine.resume_case(case.case_id)
    [item] = await some(session)
    await engine.suspend_case(case.case_id)
    session.extend(item.item.item_id, 0)
    await nothing(session)
    await engine.resume_case(case.case_id)
    assert (await some(session))[0].item.attempt == 2


async def test_work_behind_a_mutex_waits_for_its_turn(engine: WorkflowEngine) -> None:
    document = {
        "id": "both",
        "tasks": {
            "split": {},
            "left": {"required_roles": ["clerk"], "mutex": "desk"},
            "right": {"required_roles": ["clerk"], "mutex": "desk"},
            "both": {"join": "and"},
        },
        "flows": [
            {"from": "start", "to": "split"},
            {"from": "split", "to": "left"},
            {"from": "split", "to": "right"},
            {"from": "left", "to": "both"},
            {"from": "right", "to": "both"},
            {"from": "both", "to": "end"},
        ],
    }
    await engine.register_workflow(document)
    await engine.run_case("both")
    session = await engine.open_work(WorkSubscription(("left", "right"), credit=5))
    [item] = await some(session)
    await nothing(session)
    session.extend(item.item.item_id, 0)  # the lock stays with the work that has begun
    [same] = await some(session)
    assert (same.item.task_id, same.item.attempt) == (item.item.task_id, 2)
    await done(session, same)
    [other] = await some(session)
    assert {same.item.task_id, other.item.task_id} == {"left", "right"}
    assert (await done(session, other)).case_state == "completed"


async def test_failures_are_retried_as_told(place: Place, engine: WorkflowEngine) -> None:
    document = {
        "id": "tries",
        "tasks": {"try": {"required_roles": ["clerk"], "retry": {"max_attempts": 3, "backoff": "1h"}}},
        "flows": [{"from": "start", "to": "try"}, {"from": "try", "to": "end"}],
    }
    await engine.register_workflow(document)
    case = await engine.run_case("tries")
    session = await engine.open_work(WorkSubscription(("try",)))
    [item] = await some(session)
    [failed] = await session.fail([FailRequest(item.item.item_id, "busy", retry_after=0)])
    assert isinstance(failed, WorkItemView)
    [item] = await some(session)
    assert item.item.attempt == 2
    [failed] = await session.fail([FailRequest(item.item.item_id, "busy", retry_after=5 * S)])
    assert isinstance(failed, WorkItemView)
    assert failed.retry_at == engine.now() + 5 * S
    await nothing(session)
    place.clock.advance(5)
    await engine.fire_due_timers()
    [item] = await some(session)
    assert item.item.attempt == 3
    [failed] = await session.fail([FailRequest(item.item.item_id, "busy", retry_after=0)])
    assert isinstance(failed, WorkItemView)
    [incident] = (await engine.get_case(case.case_id)).incidents
    assert incident.kind == "task_failed"


async def test_what_does_not_fit_into_memory_is_read_later(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts(engine).dispatch._offers, "_limit", 4)
    early = [(await engine.run_case("one")).case_id for _ in range(20)]
    session = await engine.open_work(WorkSubscription(("sign",), credit=0))
    late = [(await engine.run_case("one")).case_id for _ in range(20)]
    assert len(parts(engine).dispatch._offers) <= 4
    session.add_credit(40)
    found = await some(session, 40)
    assert {each.item.case_id for each in found} == {*early, *late}


async def test_a_backlog_of_one_task_does_not_keep_the_items_of_others(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is full of items whose worker takes no more; other workers get theirs all the same, old and new ones."""
    monkeypatch.setattr(parts(engine).dispatch._offers, "_limit", 8)
    backlog = {(await engine.run_case("one")).case_id for _ in range(30)}
    early = {(await engine.run_case("line")).case_id for _ in range(30)}
    slow = await engine.open_work(WorkSubscription(("sign",), credit=1))
    [kept] = await some(slow)
    await nothing(slow)
    await becomes(lambda: bool(parts(engine).dispatch._offers.short))
    quick = await engine.open_work(WorkSubscription(("first",), credit=100))
    assert {each.item.case_id for each in await some(quick, 30)} == early
    late = {(await engine.run_case("line")).case_id for _ in range(30)}
    assert {each.item.case_id for each in await some(quick, 30)} == late
    assert len(parts(engine).dispatch._offers) <= 16
    slow.add_credit(100)
    assert {kept.item.case_id, *(each.item.case_id for each in await some(slow, 29))} == backlog
    await nothing(slow)
    assert not parts(engine).dispatch._offers.short


async def test_a_worker_that_does_not_read_gets_no_more_than_its_credit(place: Place, engine: WorkflowEngine) -> None:
    for _ in range(10):
        await engine.run_case("one")
    session = await engine.open_work(WorkSubscription(("sign",), credit=3, lease=S))

    async def leased() -> int:
        return len((await engine.list_work_items(WorkItemFilter(state="started"))).items)

    async def three_are_leased() -> bool:
        return await leased() == 3

    async def none_is() -> bool:
        return await leased() == 0

    await becomes(three_are_leased)
    place.clock.advance(1.5)
    await becomes(none_is)
    for _ in range(4):
        for _ in range(200):
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        place.clock.advance(1.5)
    told = session.take()
    assert (told.items, len(told.revoked)) == ((), 3)
    assert len(await some(session, 3)) == 3


async def test_a_worker_that_drains_gets_no_more(engine: WorkflowEngine) -> None:
    session = await engine.open_work(WorkSubscription(("sign",), credit=2))
    session.drain()
    await engine.run_case("one")
    await nothing(session)
    assert session.finished


async def test_a_row_that_was_read_a_moment_too_early_hides_no_item(engine: WorkflowEngine) -> None:
    case = await engine.run_case("one")
    session = await engine.open_work(WorkSubscription(("sign",), credit=1, worker_id="w"))
    [first] = await some(session)
    session.drain()
    session.extend(first.item.item_id, 0)
    await becomes(lambda: len(parts(engine).dispatch._offers) == 1)
    [(task, queue)] = parts(engine).dispatch._offers._queues.items()
    [where] = queue.items
    parts(engine).dispatch._offers.add(task, where, 1)
    other = await engine.open_work(WorkSubscription(("sign",), credit=1, worker_id="v"))
    [again] = await some(other)
    assert (again.item.case_id, again.item.attempt) == (case.case_id, 2)


async def test_an_offer_whose_case_has_left_memory_is_made_again(engine: WorkflowEngine) -> None:
    case = await engine.run_case("one")
    session = await engine.open_work(WorkSubscription(("sign",), credit=0))
    await becomes(lambda: len(parts(engine).dispatch._offers) == 1)
    [(task, queue)] = parts(engine).dispatch._offers._queues.items()
    [where] = queue.items
    parts(engine).dispatch._offers.remove(task, where)
    parts(engine).cases._cases.clear()
    parts(engine).dispatch._not_leased(task, where, 1, WrongState("case", case.case_id, "running", "suspended"), None)
    session.add_credit(1)
    [item] = await some(session)
    assert item.item.case_id == case.case_id


async def test_a_mistake_with_one_case_is_its_own_answer(engine: WorkflowEngine) -> None:
    """The core is broken on purpose for one case of a list."""
    told = listening()
    session = await engine.open_work(WorkSubscription(("sign",), credit=3))
    for name in ("a", "b", "c"):
        await engine.run_case("one", case_id=name)
    items = await some(session, 3)
    live = parts(engine).cases.peek("default", "b")
    assert live is not None
    assert live.state is not None
    live.state.nets.clear()
    requests = [CompleteRequest(each.item.item_id, request_id=f"r{each.item.case_id}") for each in items]
    answers = await session.complete(requests)
    assert [isinstance(answer, WorkItemView) for answer in answers] == [True, False, True]
    [again] = await session.complete([CompleteRequest(items[1].item.item_id)])
    assert isinstance(again, WorkItemView), "nothing of it was kept"
    assert len(told) == 1


@pytest.mark.parametrize(
    "wanted",
    [
        WorkSubscription(()),
        WorkSubscription(("",)),
        WorkSubscription(("a",), credit=10_001),
        WorkSubscription(("a",), credit=-1),
        WorkSubscription(("a",), lease=1),
        WorkSubscription(("a",), lease=3_601 * S),
        WorkSubscription(("a",), worker_id="x" * 300),
    ],
)
async def test_impossible_wishes_are_refused(engine: WorkflowEngine, wanted: WorkSubscription) -> None:
    with pytest.raises(InvalidInput):
        await engine.open_work(wanted)


async def test_a_closing_engine_tells_its_workers(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        session = await engine.open_work(WorkSubscription(("sign",)))
        session.take()
    assert session.news.is_set()
    assert isinstance(session.error, WorkflowError)
