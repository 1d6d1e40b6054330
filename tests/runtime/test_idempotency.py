"""A request id: the same command once, the same answer each time, another command never."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from knhk_workflow import (
    AlreadyExists,
    CallMeta,
    CaseView,
    CompleteRequest,
    InvalidInput,
    RequestMismatch,
    RunRequest,
    WorkflowEngine,
    WorkflowError,
    WorkItemView,
)
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime import parts as parts_module
from tests.inside import parts
from tests.runtime.place import Place, body, damage, item_of, registered, store_of

ASKED = CallMeta(method="m", request_id="r1")
HOUR_S = 3_600


async def events(engine: WorkflowEngine, case_id: str) -> list[str]:
    return [event.event_type for event in (await engine.get_case_history(case_id, page_size=1_000)).items]


async def test_a_case_is_created_once(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        first = await engine.run_case("one", {"n": 1}, meta=ASKED)
        assert await engine.run_case("one", {"n": 1}, meta=ASKED) == first
        for other in (
            engine.run_case("one", {"n": 2}, meta=ASKED),
            engine.run_case("line", {"n": 1}, meta=ASKED),
            engine.run_case("one", {"n": 1}, business_key="k", meta=ASKED),
            engine.create_case("one", {"n": 1}, meta=ASKED),
            engine.run_case("one", {"n": 1}, case_id="k", meta=ASKED),
        ):
            with pytest.raises(RequestMismatch):
                await other
        await engine.complete_work_item(first.work[0].item_id)
    async with place.engine() as engine:
        again = await engine.run_case("one", {"n": 1}, meta=ASKED)
        assert (again.case_id, again.state) == (first.case_id, "completed")
        with pytest.raises(RequestMismatch):
            await engine.run_case("one", {"n": 2}, meta=ASKED)
        assert len((await engine.list_cases()).items) == 1


async def test_the_scope_is_principal_and_method(engine: WorkflowEngine) -> None:
    cases = {
        (await engine.run_case("one", meta=msgspec.structs.replace(ASKED, **change))).case_id
        for change in ({}, {"principal": "ann"}, {"method": "n"}, {"request_id": "r2"})
    }
    assert len(cases) == 4


@pytest.mark.parametrize("case_id", ["", "k"])
async def test_concurrent_repeats_share_one_case(engine: WorkflowEngine, case_id: str) -> None:
    answers = await asyncio.gather(*(engine.run_case("one", {"n": 1}, case_id=case_id, meta=ASKED) for _ in range(20)))
    assert len({answer.case_id for answer in answers}) == 1
    assert (await events(engine, answers[0].case_id)).count("case_created") == 1


async def test_repeated_work_gives_the_first_answer(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        case = await engine.run_case("line")
        item = item_of(case, "first").item_id
        answers: list[WorkItemView] = []
        moves: dict[str, Callable[[CallMeta], Awaitable[WorkItemView]]] = {
            "claim": lambda meta: engine.claim_work_item(item, "ann", meta=meta),
            "release": lambda meta: engine.release_work_item(item, meta=meta),
            "start": lambda meta: engine.start_work_item(item, "ann", meta=meta),
            "complete": lambda meta: engine.complete_work_item(item, {"n": 1}, meta=meta),
        }
        for method, call in moves.items():
            meta = CallMeta(method=method, request_id="r")
            answers.append(await call(meta))
            assert await call(meta) == answers[-1]
        assert [answer.state for answer in answers] == ["allocated", "offered", "started", "completed"]
        with pytest.raises(RequestMismatch):
            await engine.complete_work_item(item, {"n": 2}, meta=CallMeta(method="complete", request_id="r"))
    async with place.engine() as engine:
        meta = CallMeta(method="complete", request_id="r")
        assert await engine.complete_work_item(item, {"n": 1}, meta=meta) == answers[-1]
        assert await engine.claim_work_item(item, "ann", meta=CallMeta(method="claim", request_id="r")) == answers[0]
        assert (await events(engine, case.case_id)).count("item_completed") == 1


async def test_many_repeats_of_a_completion_at_once(engine: WorkflowEngine) -> None:
    item = item_of(await engine.run_case("line"), "first")
    answers = await asyncio.gather(*(engine.complete_work_item(item.item_id, {"n": 1}, meta=ASKED) for _ in range(20)))
    assert len({msgspec.json.encode(answer) for answer in answers}) == 1
    assert (await events(engine, item.case_id)).count("item_completed") == 1


async def test_a_repeat_that_has_nothing_left_to_do_gets_the_first_answer(engine: WorkflowEngine) -> None:
    await engine.register_workflow(
        {
            "id": "many",
            "tasks": {"a": {"instances": {"min": 1, "max": 9, "create": "dynamic"}, "required_roles": ["clerk"]}},
            "flows": [{"from": "start", "to": "a"}, {"from": "a", "to": "end"}],
        }
    )
    case = await engine.run_case("many")
    await engine.start_work_item(item_of(case, "a").item_id)
    closed = await engine.close_instances(case.case_id, "a", meta=ASKED)
    assert not closed.accepts
    await engine.update_case_data(case.case_id, {"later": True})
    assert await engine.close_instances(case.case_id, "a", meta=ASKED) == closed


Mutation = Callable[[WorkflowEngine, str, CallMeta], Awaitable[CaseView]]

MUTATIONS: dict[str, Mutation] = {
    "start": lambda engine, case, meta: engine.start_case(case, meta=meta),
    "update": lambda engine, case, meta: engine.update_case_data(case, {"n": 1}, meta=meta),
    "cancel": lambda engine, case, meta: engine.cancel_case(case, meta=meta),
}


@pytest.mark.parametrize("name", MUTATIONS)
async def test_a_repeated_change_of_a_case_changes_it_once(engine: WorkflowEngine, name: str) -> None:
    case = await engine.create_case("one", case_id="k")
    first = await MUTATIONS[name](engine, case.case_id, ASKED)
    assert first.sequence > case.sequence
    for _ in range(3):
        assert await MUTATIONS[name](engine, case.case_id, ASKED) == first
    other = await engine.create_case("one", case_id="other")
    with pytest.raises(RequestMismatch):
        await MUTATIONS[name](engine, other.case_id, ASKED)
    assert await engine.get_case("other") == other


async def test_another_command_that_would_change_nothing_is_refused_too(engine: WorkflowEngine) -> None:
    for case_id in ("a", "b"):
        await engine.create_case("one", case_id=case_id)
    await engine.cancel_case("b")
    await engine.cancel_case("a", meta=ASKED)
    with pytest.raises(RequestMismatch):
        await engine.cancel_case("b", meta=ASKED)


async def test_elements_of_a_batch(place: Place) -> None:
    requests = [RunRequest("one", {"n": number}) for number in range(5)]
    requests += [RunRequest("absent"), RunRequest("one", {"n": 9}, case_id="k"), RunRequest("one", case_id="k")]
    async with place.engine() as engine:
        await registered(engine)
        first = await engine.run_cases(requests, meta=ASKED)
        assert [isinstance(answer, WorkflowError) for answer in first] == [False] * 5 + [True, False, True]
        assert isinstance(first[7], AlreadyExists)
    async with place.engine() as engine:
        again = await engine.run_cases(requests, meta=ASKED)
        assert [answer for answer in again if isinstance(answer, CaseView)] == [
            answer for answer in first if isinstance(answer, CaseView)
        ]
        assert len((await engine.list_cases()).items) == 6
        changed = await engine.run_cases([RunRequest("one", {"n": -1}), *requests[1:]], meta=ASKED)
        assert isinstance(changed[0], RequestMismatch)
        items = [answer.work[0].item_id for answer in again if isinstance(answer, CaseView)]
        done = [CompleteRequest(item, {"done": True}) for item in items]
        completed = await engine.complete_work_items(done, meta=CallMeta(method="c", request_id="r"))
        assert await engine.complete_work_items(done, meta=CallMeta(method="c", request_id="r")) == completed
        assert all(isinstance(answer, WorkItemView) for answer in completed)


async def test_a_refusal_is_not_remembered(engine: WorkflowEngine) -> None:
    case = await engine.create_case("one")
    with pytest.raises(WorkflowError):
        await engine.suspend_case(case.case_id, meta=ASKED)
    await engine.start_case(case.case_id)
    assert (await engine.suspend_case(case.case_id, meta=ASKED)).state == "suspended"


async def test_the_id_has_a_length(engine: WorkflowEngine) -> None:
    await engine.run_case("one", meta=CallMeta(request_id="x" * 128))
    for wrong in ("x" * 129, "ü" * 65):
        with pytest.raises(InvalidInput):
            await engine.run_case("one", meta=CallMeta(request_id=wrong))


async def test_a_damaged_entry_does_not_end_the_sweep(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "SWEEP_EVERY_S", 0.01)
    async with place.engine() as engine:
        await registered(engine)
        for number in range(3):
            await engine.run_case("one", {"n": number}, meta=CallMeta(request_id=f"r{number}"))
        store, keys = store_of(engine), parts(engine).keyspace
        entries = await store.scan(*keys.request_expiries(0), limit=10)
        assert len(entries) == 3
        await damage(engine, entries[0][0])
        place.clock.advance(25 * HOUR_S)
        async with asyncio.timeout(10):
            while len(await store.scan(*keys.request_expiries(0), limit=10)) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert [finding.code for finding in (await engine.verify_store()).findings] == ["VALUE_DAMAGED"]


async def test_records_are_swept_when_their_time_is_over(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        first = await engine.run_case("one", {"n": 1}, meta=ASKED)
        place.clock.advance(23 * HOUR_S)
        assert await parts(engine).journal.sweep_requests(0) == 0
        assert await engine.run_case("one", {"n": 1}, meta=ASKED) == first
        place.clock.advance(2 * HOUR_S)
        assert await parts(engine).journal.sweep_requests(0) == 1
        keys = parts(engine).keyspace
        assert await store_of(engine).scan(*keys.request_expiries(0, place.clock.now() // NS_PER_S), limit=10) == []
        with pytest.raises(AlreadyExists):  # its case id came from the request: the case is there, the answer is not
            await engine.run_case("one", {"n": 1}, meta=ASKED)
    assert body(first.data) == {"n": 1}
