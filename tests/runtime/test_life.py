"""The life of a case: exactly the allowed transitions, and what each leaves behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from knhk_workflow import (
    AlreadyExists,
    CallMeta,
    CaseView,
    InvalidInput,
    LimitExceeded,
    NotFound,
    WorkflowEngine,
    WrongState,
)
from knhk_workflow.errors import Stale
from knhk_workflow.model.document import DATA_MAX
from tests.runtime.place import ONE, Place, body, item_of, registered

Move = Callable[[WorkflowEngine, str], Awaitable[object]]

MOVES: dict[str, Move] = {
    "start": lambda engine, case: engine.start_case(case),
    "execute": lambda engine, case: engine.execute_case(case),
    "suspend": lambda engine, case: engine.suspend_case(case),
    "resume": lambda engine, case: engine.resume_case(case),
    "cancel": lambda engine, case: engine.cancel_case(case),
    "update": lambda engine, case: engine.update_case_data(case, {"a": 1}),
}
ALLOWED = {
    ("created", "start"): "running",
    ("created", "execute"): "running",
    ("created", "cancel"): "cancelled",
    ("created", "update"): "created",
    ("running", "execute"): "running",
    ("running", "suspend"): "suspended",
    ("running", "cancel"): "cancelled",
    ("running", "update"): "running",
    ("suspended", "resume"): "running",
    ("suspended", "cancel"): "cancelled",
    ("suspended", "update"): "suspended",
    ("cancelled", "cancel"): "cancelled",
}
STATES = ("created", "running", "suspended", "completed", "cancelled", "failed")


async def brought_to(engine: WorkflowEngine, state: str) -> CaseView:
    case = await engine.create_case("one", {"n": 1})
    if state != "created":
        case = await engine.start_case(case.case_id)
    if state == "suspended":
        case = await engine.suspend_case(case.case_id, "lunch")
    elif state == "cancelled":
        case = await engine.cancel_case(case.case_id, "mistake")
    elif state == "completed":
        await engine.complete_work_item(case.work[0].item_id)
        case = await engine.get_case(case.case_id)
    elif state == "failed":
        await engine.fail_work_item(case.work[0].item_id, "E1", "no pen")
        [incident] = (await engine.get_case(case.case_id)).incidents
        case = await engine.resolve_incident(incident.incident_id, "fail_case")
    assert case.state == state
    return case


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("state", STATES)
async def test_exactly_the_allowed_transitions(engine: WorkflowEngine, state: str, move: str) -> None:
    case = await brought_to(engine, state)
    after = ALLOWED.get((state, move))
    if after is None:
        with pytest.raises(WrongState) as refused:
            await MOVES[move](engine, case.case_id)
        assert refused.value.actual == state
        assert await engine.get_case(case.case_id) == case
    else:
        await MOVES[move](engine, case.case_id)
        assert (await engine.get_case(case.case_id)).state == after


async def test_a_case_is_the_same_after_a_restart(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        before = [await brought_to(engine, state) for state in STATES]
        explained = [await engine.explain_case(case.case_id) for case in before]
    async with place.engine() as engine:
        for case, explanation in zip(before, explained, strict=True):
            assert await engine.get_case(case.case_id) == case
            assert await engine.explain_case(case.case_id) == explanation


async def test_a_taken_id_is_refused(engine: WorkflowEngine) -> None:
    await engine.run_case("one", case_id="k")
    with pytest.raises(AlreadyExists):
        await engine.run_case("one", case_id="k")
    await engine.cancel_case("k")
    with pytest.raises(AlreadyExists):
        await engine.create_case("one", case_id="k")


@pytest.mark.parametrize("case_id", ["a/b", "ü" * 100, "with space", "0", "x" * 256, "..", "a@b@c", "\u202e"])
async def test_case_ids_are_free_form(engine: WorkflowEngine, case_id: str) -> None:
    case = await engine.run_case("one", case_id=case_id)
    await engine.complete_work_item(case.work[0].item_id)
    assert (await engine.get_case(case_id)).state == "completed"


@pytest.mark.parametrize("case_id", ["x" * 257, "a\x00b", "a\nb", "\ud800"])
async def test_impossible_case_ids(engine: WorkflowEngine, case_id: str) -> None:
    with pytest.raises(InvalidInput):
        await engine.run_case("one", case_id=case_id)


async def test_tenants_do_not_see_each_other(engine: WorkflowEngine) -> None:
    other = CallMeta(tenant="other")
    with pytest.raises(NotFound):
        await engine.run_case("one", case_id="k", meta=other)
    await registered(engine, ONE, tenant="other")
    mine = await engine.run_case("one", {"whose": "mine"}, case_id="k")
    theirs = await engine.run_case("one", {"whose": "theirs"}, case_id="k", meta=other)
    only_mine = await engine.run_case("one", case_id="only-mine")
    assert (body(mine.data), body(theirs.data)) == ({"whose": "mine"}, {"whose": "theirs"})
    await engine.complete_work_item(theirs.work[0].item_id, meta=other)
    assert (await engine.get_case("k")).state == "running"
    for call in (
        engine.get_case("only-mine", meta=other),
        engine.cancel_case("only-mine", meta=other),
        engine.get_work_item(only_mine.work[0].item_id, meta=other),
        engine.complete_work_item(only_mine.work[0].item_id, meta=other),
        engine.get_case_history("only-mine", meta=other),
        engine.explain_case("only-mine", meta=other),
        engine.resolve_incident("1@only-mine", "retry", meta=other),
    ):
        with pytest.raises(NotFound):
            await call
    assert [case.case_id for case in (await engine.list_cases(meta=other)).items] == ["k"]
    assert (await engine.list_work_items(meta=other)).items == ()
    assert {item.case_id for item in (await engine.list_work_items()).items} == {"k", "only-mine"}


async def test_data_is_replaced_by_key_and_guarded_by_sequence(engine: WorkflowEngine) -> None:
    case = await engine.run_case("one", {"a": {"x": 1}, "b": 2})
    updated = await engine.update_case_data(case.case_id, {"a": {"y": 2}, "c": None}, expected_sequence=case.sequence)
    assert body(updated.data) == {"a": {"y": 2}, "b": 2, "c": None}
    with pytest.raises(Stale):
        await engine.update_case_data(case.case_id, {"a": 3}, expected_sequence=case.sequence)
    assert await engine.get_case(case.case_id) == updated


@pytest.mark.parametrize(
    "data",
    [b"[]", b"null", b"1", b'{"a":NaN}', b'{"a":1,"a":2}', b'{"a":', b"\xff", b'{"a":"\xff"}',
     b'{"a":' * 2_000 + b"1" + b"}" * 2_000],
)  # fmt: skip
async def test_data_is_a_strict_json_object(engine: WorkflowEngine, data: bytes) -> None:
    with pytest.raises(InvalidInput):
        await engine.run_case("one", data)
    case = await engine.run_case("one")
    with pytest.raises(InvalidInput):
        await engine.update_case_data(case.case_id, data)
    with pytest.raises(InvalidInput):
        await engine.complete_work_item(case.work[0].item_id, data)
    assert await engine.get_case(case.case_id) == case


async def test_data_has_a_limit(engine: WorkflowEngine) -> None:
    whole = {"a": "x" * (DATA_MAX - len(b'{"a":""}'))}
    case = await engine.run_case("one", whole)
    with pytest.raises(InvalidInput):
        await engine.run_case("one", {"a": whole["a"] + "x"})
    with pytest.raises(InvalidInput):
        await engine.complete_work_item(case.work[0].item_id, {"a": whole["a"] + "x"})
    with pytest.raises(LimitExceeded):
        await engine.update_case_data(case.case_id, {"b": "x" * 200_000})
    assert await engine.get_case(case.case_id) == case
    await engine.complete_work_item(case.work[0].item_id, {"b": "x" * 200_000})  # done is done; the data does not fit
    after = await engine.get_case(case.case_id)
    assert [incident.kind for incident in after.incidents] == ["data_limit"]
    shrunk = await engine.update_case_data(case.case_id, {"a": ""})
    assert shrunk.state == "running"
    done = await engine.resolve_incident(after.incidents[0].incident_id, "retry")
    assert (done.state, body(done.data)) == ("completed", {"a": "", "b": "x" * 200_000})


async def test_explain_names_what_is_waited_for(engine: WorkflowEngine) -> None:
    case = await engine.run_case("line")
    tasks = {task.task_id: task for task in (await engine.explain_case(case.case_id)).tasks}
    assert (tasks["first"].status, tasks["second"].missing) == ("offered", ("first->second",))
    await engine.complete_work_item(item_of(case, "first").item_id)
    tasks = {task.task_id: task for task in (await engine.explain_case(case.case_id)).tasks}
    assert tasks["second"].status == "offered"
