"""Work items: their life, who may do what, and who wins."""

from __future__ import annotations

import asyncio

import pytest

from knhk_workflow import (
    CallMeta,
    CompleteRequest,
    NotFound,
    RoleRequired,
    WorkflowEngine,
    WorkflowError,
    WorkItemView,
    WorkSubscription,
    WrongState,
)
from tests.runtime.place import body, item_of


async def test_from_offered_to_completed(engine: WorkflowEngine) -> None:
    case = await engine.run_case("line", {"n": 1})
    item = item_of(case, "first")
    assert (item.state, item.owner, item.data) == ("offered", "", b""), "a case's answer does not repeat its data"
    assert body((await engine.get_work_item(item.item_id)).data) == {"n": 1}
    claimed = await engine.claim_work_item(item.item_id, "ann")
    assert (claimed.state, claimed.owner) == ("allocated", "ann")
    with pytest.raises(WrongState):
        await engine.claim_work_item(item.item_id, "bob")
    with pytest.raises(WrongState):
        await engine.start_work_item(item.item_id, "bob")
    assert (await engine.release_work_item(item.item_id)).owner == ""
    started = await engine.start_work_item(item.item_id, "bob")
    assert (started.state, started.owner) == ("started", "bob")
    assert (await engine.get_work_item(item.item_id)).state == "started"
    with pytest.raises(WrongState):
        await engine.complete_work_item(item.item_id, user="ann")
    completed = await engine.complete_work_item(item.item_id, {"signed": True}, "bob")
    assert (completed.state, completed.owner) == ("completed", "bob")
    after = await engine.get_case(case.case_id)
    assert body(after.data) == {"n": 1, "signed": True}
    assert [each.task_id for each in after.work] == ["second"]
    for call in (
        engine.complete_work_item(item.item_id),
        engine.start_work_item(item.item_id),
        engine.skip_work_item(item.item_id),
        engine.fail_work_item(item.item_id, "E1"),
        engine.claim_work_item(item.item_id, "ann"),
        engine.release_work_item(item.item_id),
    ):
        with pytest.raises(WrongState):
            await call
    assert await engine.get_case(case.case_id) == after


async def test_failed_work_is_an_incident_that_somebody_resolves(engine: WorkflowEngine) -> None:
    case = await engine.run_case("line")
    item = item_of(case, "first")
    assert (await engine.fail_work_item(item.item_id, "E1", "no pen")).state == "failed"
    [incident] = (await engine.list_incidents(case_id=case.case_id)).items
    assert incident.kind == "task_failed"
    assert "no pen" in incident.message
    again = await engine.resolve_incident(incident.incident_id, "retry")
    retried = item_of(again, "first")
    assert (retried.attempt, retried.item_id == item.item_id) == (2, False)
    with pytest.raises(WrongState):
        await engine.complete_work_item(item.item_id)  # the first attempt's id
    await engine.fail_work_item(retried.item_id, "E1")
    [incident] = (await engine.get_case(case.case_id)).incidents
    gone_on = await engine.resolve_incident(incident.incident_id, "complete", {"by": "hand"})
    assert body(gone_on.data) == {"by": "hand"}
    item_of(gone_on, "second")
    assert (await engine.list_incidents()).items == ()
    with pytest.raises(NotFound):
        await engine.resolve_incident(incident.incident_id, "retry")


async def test_skipped_work_goes_on(engine: WorkflowEngine) -> None:
    case = await engine.run_case("line")
    await engine.skip_work_item(item_of(case, "first").item_id)
    await engine.skip_work_item(item_of(await engine.get_case(case.case_id), "second").item_id)
    assert (await engine.get_case(case.case_id)).state == "completed"


@pytest.mark.parametrize("item_id", ["9.1.1", "1.1.9", "1.9.1", "0.0.0"])
async def test_items_that_never_were(engine: WorkflowEngine, item_id: str) -> None:
    case = await engine.run_case("one")
    with pytest.raises((NotFound, WrongState)):
        await engine.complete_work_item(f"{item_id}@{case.case_id}")
    assert await engine.get_case(case.case_id) == case


async def test_a_deferred_choice_has_one_winner(engine: WorkflowEngine) -> None:
    for _ in range(20):
        case = await engine.run_case("rivals")
        ids = [item.item_id for item in case.work] * 3
        answers = await asyncio.gather(*(engine.start_work_item(each) for each in ids), return_exceptions=True)
        won = [answer for answer in answers if isinstance(answer, WorkItemView)]
        assert len(won) == 1
        assert all(isinstance(answer, WrongState) for answer in answers if answer is not won[0])
        after = await engine.get_case(case.case_id)
        assert [item.item_id for item in after.work] == [won[0].item_id]
        await engine.complete_work_item(won[0].item_id)
        assert (await engine.get_case(case.case_id)).state == "completed"


async def test_the_same_item_completed_by_many_is_completed_once(engine: WorkflowEngine) -> None:
    case = await engine.run_case("line")
    item = item_of(case, "first").item_id
    answers = await asyncio.gather(
        *(engine.complete_work_item(item, {"by": number}) for number in range(20)), return_exceptions=True
    )
    assert [type(answer) for answer in answers].count(WorkItemView) == 1
    history = (await engine.get_case_history(case.case_id, page_size=1_000)).items
    assert [event.event_type for event in history].count("item_completed") == 1


async def test_a_batch_answers_each_element(engine: WorkflowEngine) -> None:
    cases = [await engine.run_case("one") for _ in range(5)]
    requests = [CompleteRequest(case.work[0].item_id) for case in cases]
    requests += [CompleteRequest("1.1.1@absent"), CompleteRequest("nonsense"), requests[0]]
    answers = await engine.complete_work_items(requests)
    assert [isinstance(answer, WorkflowError) for answer in answers] == [False] * 5 + [True] * 3
    assert all([(await engine.get_case(case.case_id)).state == "completed" for case in cases])


async def test_work_of_a_suspended_case(engine: WorkflowEngine) -> None:
    case = await engine.run_case("line")
    item = item_of(case, "first").item_id
    await engine.start_work_item(item)
    await engine.suspend_case(case.case_id)
    await engine.complete_work_item(item, {"done": True})  # begun work may end; nothing goes on
    waiting = await engine.get_case(case.case_id)
    assert waiting.work == ()
    resumed = await engine.resume_case(case.case_id)
    assert [each.task_id for each in resumed.work] == ["second"]
    assert body(resumed.data) == {"done": True}
    await engine.suspend_case(case.case_id)
    with pytest.raises(WrongState):
        await engine.complete_work_item(resumed.work[0].item_id)  # not begun: it may not begin now


@pytest.mark.parametrize("own", ["clerk", ""])
async def test_who_is_something_in_workflows_does_the_work_of_that_role_only(engine: WorkflowEngine, own: str) -> None:
    tasks = {"sign": {"required_roles": ["manager", "director"]}}
    flows = [{"from": "start", "to": "sign"}, {"from": "sign", "to": "end"}]
    await engine.register_workflow({"id": "signing", "tasks": tasks, "flows": flows})
    case = await engine.run_case("signing")
    item = item_of(case, "sign").item_id
    clerk, director = CallMeta(roles=(own,)), CallMeta(roles=(own, "director"))
    for call in (
        engine.claim_work_item(item, "ann", meta=clerk),
        engine.start_work_item(item, meta=clerk),
        engine.complete_work_item(item, meta=clerk),
        engine.fail_work_item(item, "E", meta=clerk),
        engine.skip_work_item(item, meta=clerk),
        engine.release_work_item(item, meta=clerk),
    ):
        with pytest.raises(RoleRequired, match="is for manager, director only"):
            await call
    [answer] = await engine.complete_work_items([CompleteRequest(item)], meta=clerk)
    assert isinstance(answer, RoleRequired)
    with pytest.raises(NotFound):
        await engine.complete_work_item("9.1.1@" + case.case_id, meta=clerk)
    assert await engine.get_case(case.case_id) == case
    with pytest.raises(RoleRequired, match="is for manager only"):
        await engine.open_work(WorkSubscription(("sign",), 1, roles=("manager",)), meta=clerk)
    wanting = await engine.open_work(WorkSubscription(("sign",), 1, worker_id="w"), meta=clerk)
    assert wanting.take().items == ()
    await wanting.close()
    assert (await engine.complete_work_item(item, meta=director)).state == "completed"
