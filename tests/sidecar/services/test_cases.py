"""Cases: from creation to their end, and what is said when something is not possible."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import PreconditionFailure

from knhk_sidecar.api import pb
from knhk_sidecar.api.services.cases import CaseService
from knhk_workflow import LOCAL, CallMeta, CaseFilter, CaseView, Page, PurgeRequest, StateStore, WorkflowEngine
from tests.sidecar.services.conftest import APPROVAL
from tests.sidecar.services.server import CALLER, Sidecar, info_of, refused, unpacked


async def test_a_case_lives_from_created_to_completed(running: Sidecar) -> None:
    created = await running.cases.CreateCase(
        pb.CreateCaseRequest(spec_id="approval", case_id="c-1", business_key="k", data_json=b'{"amount": 5}')
    )
    assert created.case_id == created.case.case_id == "c-1"
    assert created.case.state == pb.CASE_STATE_CREATED
    started = await running.cases.StartCase(pb.StartCaseRequest(case_id="c-1"))
    assert started.case.state == pb.CASE_STATE_RUNNING
    (task,) = started.case.live_tasks
    assert (task.task_id, task.status, task.open_instances) == ("approve", "offered", 1)
    executed = await running.cases.ExecuteCase(pb.ExecuteCaseRequest(case_id="c-1", include_history=True))
    (item,) = executed.open_work_items
    assert (item.task_id, list(item.roles), item.state) == ("approve", ["manager"], pb.WORK_ITEM_STATE_OFFERED)
    assert executed.history[0].event_type == "case_created"
    assert executed.history[0].principal == CALLER
    assert [event.sequence for event in executed.history] == list(range(1, len(executed.history) + 1))
    await running.items.CompleteWorkItem(
        pb.CompleteWorkItemRequest(item_id=item.item_id, output_json=b'{"approved": true}')
    )
    got = await running.cases.GetCase(pb.GetCaseRequest(case_id="c-1"))
    assert got.case.state == pb.CASE_STATE_COMPLETED
    assert json.loads(got.case.data_json) == {"amount": 5, "approved": True}
    assert got.case.HasField("end_time")
    assert not got.case.live_tasks
    brief = await running.cases.GetCase(pb.GetCaseRequest(case_id="c-1", view=pb.CASE_VIEW_BASIC))
    assert not brief.case.data_json
    over = await refused(running.cases.ExecuteCase(pb.ExecuteCaseRequest(case_id="c-1")))
    assert (over.code, over.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE")
    (detail,) = unpacked(over.status, PreconditionFailure)
    assert detail.violations[0].subject == "case/c-1"


async def test_suspend_resume_and_cancel(running: Sidecar) -> None:
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="approval"))
    name = run.case.case_id
    held = await running.cases.SuspendCase(pb.SuspendCaseRequest(case_id=name, reason="audit"))
    assert held.case.state == pb.CASE_STATE_SUSPENDED
    again = await refused(running.cases.SuspendCase(pb.SuspendCaseRequest(case_id=name)))
    assert again.code is grpc.StatusCode.FAILED_PRECONDITION
    on = await running.cases.ResumeCase(pb.ResumeCaseRequest(case_id=name))
    assert on.case.state == pb.CASE_STATE_RUNNING
    for _ in range(2):  # cancelling a cancelled case is fine
        ended = await running.cases.CancelCase(pb.CancelCaseRequest(case_id=name, reason="mistake"))
        assert (ended.case.state, ended.case.reason) == (pb.CASE_STATE_CANCELLED, "mistake")


async def test_what_is_missing_or_unreadable_is_named_by_its_field(running: Sidecar) -> None:
    empty = await refused(running.cases.GetCase(pb.GetCaseRequest()))
    assert (empty.code, empty.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["case_id"])
    bad = await refused(running.cases.RunCase(pb.RunCaseRequest(spec_id="routing", data_json=b"[1]")))
    assert (bad.code, bad.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["data_json"])
    long_id = await refused(running.cases.RunCase(pb.RunCaseRequest(spec_id="routing", request_id="x" * 129)))
    assert long_id.fields == ["request_id"]
    state = await refused(running.cases.ListCases(pb.ListCasesRequest(filter=pb.CaseFilter(states=[99]))))  # type: ignore[list-item]  # what a newer client may send
    assert state.fields == ["filter.states[0]"]
    token = await refused(running.cases.ListCases(pb.ListCasesRequest(page_token="%%")))
    assert token.fields == ["page_token"]
    unknown = await refused(running.cases.GetCase(pb.GetCaseRequest(case_id="nobody")))
    assert unknown.code is grpc.StatusCode.NOT_FOUND
    taken = pb.CreateCaseRequest(spec_id="routing", case_id="twice")
    await running.cases.CreateCase(taken)
    assert (await refused(running.cases.CreateCase(taken))).code is grpc.StatusCode.ALREADY_EXISTS


async def test_a_request_id_makes_a_call_happen_once(running: Sidecar) -> None:
    request = pb.RunCaseRequest(spec_id="approval", request_id="r-1", data_json=b'{"n":1}')
    first, second = await running.cases.RunCase(request), await running.cases.RunCase(request)
    assert first.case.case_id == second.case.case_id
    request.data_json = b'{"n":2}'
    refusal = await refused(running.cases.RunCase(request))
    assert (refusal.code, refusal.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")


async def test_a_list_of_cases_answers_in_order_and_fails_one_by_one(running: Sidecar) -> None:
    request = pb.RunCasesRequest(
        request_id="list-1",
        cases=[
            pb.RunCaseRequest(spec_id="routing", case_id="b-0"),
            pb.RunCaseRequest(spec_id="unknown"),
            pb.RunCaseRequest(spec_id="routing", data_json=b"{"),
            pb.RunCaseRequest(spec_id="approval", request_id="own", case_id="b-3"),
            pb.RunCaseRequest(),
            pb.RunCaseRequest(spec_id="approval", include_history=True),
        ],
    )
    for _ in range(2):  # the second time is the same
        results = (await running.cases.RunCases(request)).results
        outcomes = [result.WhichOneof("outcome") for result in results]
        assert outcomes == ["response", "error", "error", "response", "error", "response"]
        assert results[0].response.case.state == pb.CASE_STATE_COMPLETED
        assert results[3].response.case.case_id == "b-3"
        assert results[5].response.history
        assert [info_of(results[n].error).reason for n in (1, 2, 4)] == ["NOT_FOUND", *["INVALID_ARGUMENT"] * 2]
        assert results[1].error.code == grpc.StatusCode.NOT_FOUND.value[0]
    listed = await running.cases.ListCases(pb.ListCasesRequest())
    assert len(listed.cases) == 3
    none = await refused(running.cases.RunCases(pb.RunCasesRequest()))
    assert none.fields == ["cases"]
    many = [pb.RunCaseRequest(spec_id="routing")] * 1001
    too_many = await refused(running.cases.RunCases(pb.RunCasesRequest(cases=many)))
    assert too_many.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_waiting_ends_with_the_case_or_with_the_time(running: Sidecar) -> None:
    run = await running.cases.RunCase(
        pb.RunCaseRequest(spec_id="approval", case_id="w", wait=Duration(nanos=50_000_000))
    )
    assert run.case.state == pb.CASE_STATE_RUNNING, "the wait was over first"
    short = await running.cases.WaitCase(pb.WaitCaseRequest(case_id="w", timeout=Duration(nanos=50_000_000)))
    assert not short.reached

    async def finish() -> None:
        await asyncio.sleep(0.05)
        await running.cases.SuspendCase(pb.SuspendCaseRequest(case_id="w"))
        await running.cases.ResumeCase(pb.ResumeCaseRequest(case_id="w"))
        await asyncio.sleep(0.05)
        item = run.open_work_items[0].item_id
        await running.items.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=item))

    finishing = asyncio.create_task(finish())
    wanted = [pb.CASE_STATE_SUSPENDED]
    # The state may be over again when it is looked at; then the wait goes on, and an end always ends it.
    in_state = await running.cases.WaitCase(
        pb.WaitCaseRequest(case_id="w", states=wanted, timeout=Duration(seconds=60))
    )
    assert in_state.reached
    ended = await running.cases.WaitCase(pb.WaitCaseRequest(case_id="w", timeout=Duration(seconds=60)))
    assert ended.reached
    assert ended.case.state == pb.CASE_STATE_COMPLETED
    await finishing
    negative = pb.WaitCaseRequest(case_id="w", timeout=Duration(seconds=-1))
    assert (await refused(running.cases.WaitCase(negative))).fields == ["timeout"]


async def test_lists_are_filtered_and_their_tokens_are_bound_to_the_filter(running: Sidecar) -> None:
    for n in range(7):
        spec = "approval" if n % 2 else "routing"
        await running.cases.RunCase(pb.RunCaseRequest(spec_id=spec, case_id=f"c-{n}", business_key=f"k-{n % 3}"))

    async def names(**filters: str | bool) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            wanted = pb.CaseFilter(**filters)  # type: ignore[arg-type]  # a few of its fields
            page = await running.cases.ListCases(pb.ListCasesRequest(filter=wanted, page_size=2, page_token=token))
            assert len(page.cases) <= 2
            found += [case.case_id for case in page.cases]
            token = page.next_page_token
            if not token:
                return found

    assert await names() == [f"c-{n}" for n in range(7)]
    assert await names(spec_id="approval") == ["c-1", "c-3", "c-5"]
    assert await names(business_key="k-0") == ["c-0", "c-3", "c-6"]
    assert await names(case_id_prefix="c-6") == ["c-6"]
    assert await names(with_incidents=True) == []
    ended = pb.CaseFilter(states=[pb.CASE_STATE_COMPLETED, pb.CASE_STATE_FAILED])
    some = await running.cases.ListCases(pb.ListCasesRequest(filter=ended, page_size=1))
    assert [case.case_id for case in some.cases] == ["c-0"]
    other = pb.ListCasesRequest(filter=pb.CaseFilter(case_id_prefix="c"), page_token=some.next_page_token)
    assert (await refused(running.cases.ListCases(other))).fields == ["page_token"]
    full = await running.cases.ListCases(pb.ListCasesRequest(view=pb.CASE_VIEW_FULL, page_size=1))
    assert full.cases[0].data_json == b"{}"
    later = pb.CaseFilter()
    later.created_after.GetCurrentTime()
    assert not (await running.cases.ListCases(pb.ListCasesRequest(filter=later))).cases


async def test_history_goes_both_ways_and_says_where_it_goes_on(running: Sidecar) -> None:
    await running.cases.RunCase(pb.RunCaseRequest(spec_id="routing", case_id="h"))
    whole = await running.cases.GetCaseHistory(pb.GetCaseHistoryRequest(case_id="h"))
    assert whole.next_after_sequence == 0
    assert whole.last_sequence == len(whole.events)
    first = await running.cases.GetCaseHistory(pb.GetCaseHistoryRequest(case_id="h", page_size=2))
    assert [event.sequence for event in first.events] == [1, 2]
    assert first.last_sequence == whole.last_sequence
    rest = await running.cases.GetCaseHistory(
        pb.GetCaseHistoryRequest(case_id="h", after_sequence=first.next_after_sequence)
    )
    assert [*first.events, *rest.events] == list(whole.events)
    back = await running.cases.GetCaseHistory(pb.GetCaseHistoryRequest(case_id="h", reverse=True))
    assert list(back.events) == list(reversed(whole.events))
    states = await running.cases.GetCaseHistory(pb.GetCaseHistoryRequest(case_id="h", event_types=["state_changed"]))
    assert [json.loads(event.data_json)["state"] for event in states.events] == ["running", "completed"]


async def test_data_changes_only_from_the_sequence_that_was_seen(running: Sidecar) -> None:
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="approval", case_id="d", data_json=b'{"a":1}'))
    seen = run.case.sequence
    request = pb.UpdateCaseDataRequest(case_id="d", data_json=b'{"a":null,"b":2}', expected_sequence=seen)
    updated = await running.cases.UpdateCaseData(request)
    assert json.loads(updated.case.data_json) == {"a": None, "b": 2}
    late = await refused(running.cases.UpdateCaseData(request))
    assert (late.code, late.info.reason) == (grpc.StatusCode.ABORTED, "STALE")
    assert late.info.metadata["actual"] == f"at sequence {updated.case.sequence}"
    zero = await refused(running.cases.UpdateCaseData(pb.UpdateCaseDataRequest(case_id="d", expected_sequence=0)))
    assert zero.fields == ["expected_sequence"]
    replace = pb.UpdateCaseDataRequest(case_id="d", data_json=b'{"c":3}', mode=pb.DATA_UPDATE_MODE_REPLACE)
    assert json.loads((await running.cases.UpdateCaseData(replace)).case.data_json) == {"c": 3}
    replace.net = "nowhere"
    assert (await refused(running.cases.UpdateCaseData(replace))).code is grpc.StatusCode.NOT_FOUND


NESTED = {
    "id": "nested",
    "tasks": {"twice": {"net": "inner", "instances": {"min": 2}}, "once": {"net": "single"}},
    "flows": [
        {"from": "start", "to": "once"},
        {"from": "once", "to": "twice"},
        {"from": "twice", "to": "end"},
    ],
    "nets": {
        name: {
            "tasks": {"route": {}, "work": {"required_roles": ["r"]}},
            "flows": [
                {"from": "start", "to": "route"},
                {"from": "route", "to": "work"},
                {"from": "work", "to": "end"},
            ],
        }
        for name in ("inner", "single")
    },
}


async def test_the_data_of_a_sub_net_are_changed_by_its_name_or_number(running: Sidecar) -> None:
    await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=json.dumps(NESTED).encode()))
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="nested", case_id="n", data_json=b'{"a":1}'))
    change = pb.UpdateCaseDataRequest(case_id="n", data_json=b'{"b":2}', net="single")
    assert json.loads((await running.cases.UpdateCaseData(change)).case.data_json) == {"a": 1}
    (item,) = run.open_work_items
    found = await running.items.GetWorkItem(pb.GetWorkItemRequest(item_id=item.item_id))
    assert json.loads(found.item.data_json) == {"a": 1, "b": 2}
    explained = await running.cases.ExplainCase(pb.ExplainCaseRequest(case_id="n"))
    assert dict(explained.marking) == {"single/route->work": 1}
    assert {(task.net, task.task_id): task.completed_count for task in explained.tasks if task.completed_count} == {
        ("single", "route"): 1
    }
    await running.items.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=item.item_id))
    both = await refused(
        running.cases.UpdateCaseData(pb.UpdateCaseDataRequest(case_id="n", data_json=b"{}", net="inner"))
    )
    assert (both.code, both.info.metadata["actual"]) == (grpc.StatusCode.FAILED_PRECONDITION, "2 of them: 3, 4")
    gone = await refused(running.cases.UpdateCaseData(change))
    assert gone.code is grpc.StatusCode.FAILED_PRECONDITION
    change.net = "4"
    await running.cases.UpdateCaseData(change)
    explained = await running.cases.ExplainCase(pb.ExplainCaseRequest(case_id="n", task_id="once"))
    assert [(task.status, task.completed_count) for task in explained.tasks] == [(pb.TASK_STATUS_COMPLETED, 1)]
    assert explained.marking["inner/route->work"] == 2


async def test_a_waiting_case_is_explained(running: Sidecar) -> None:
    await running.cases.RunCase(pb.RunCaseRequest(spec_id="approval", case_id="e"))
    explained = await running.cases.ExplainCase(pb.ExplainCaseRequest(case_id="e"))
    assert explained.sentence
    statuses = {task.task_id: task.status for task in explained.tasks}
    assert statuses == {"approve": pb.TASK_STATUS_ENABLED, "notify": pb.TASK_STATUS_IDLE}
    (only,) = (await running.cases.ExplainCase(pb.ExplainCaseRequest(case_id="e", task_id="approve"))).tasks
    assert only.waits_for[0].kind == "work_item"
    assert list(only.activations) == [1]
    missing = await refused(running.cases.ExplainCase(pb.ExplainCaseRequest(case_id="e", task_id="nope")))
    assert missing.code is grpc.StatusCode.NOT_FOUND


async def test_reasons_stand_in_the_history(running: Sidecar) -> None:
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="approval", case_id="r"))
    await running.cases.SuspendCase(pb.SuspendCaseRequest(case_id="r", reason="audit"))
    resumed = await running.cases.ResumeCase(pb.ResumeCaseRequest(case_id="r", reason="audit done"))
    assert resumed.case.reason == ""
    (item,) = run.open_work_items
    await running.items.SkipWorkItem(pb.SkipWorkItemRequest(item_id=item.item_id, reason="not needed"))
    history = await running.cases.GetCaseHistory(pb.GetCaseHistoryRequest(case_id="r"))
    told = {event.event_type: json.loads(event.data_json).get("reason") for event in history.events[:-1]}
    assert (told["state_changed"], told["item_skipped"]) == ("audit done", "not needed")


async def test_an_incident_is_listed_and_resolved(running: Sidecar) -> None:
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="choice", case_id="i"))
    assert run.case.open_incident_count == 1, "the guard reads data.amount, which is missing"
    assert "incident" in {task.status for task in run.case.live_tasks}
    (incident,) = (await running.cases.ListIncidents(pb.ListIncidentsRequest())).incidents
    assert (incident.case_id, incident.spec_id, incident.kind) == ("i", "choice", "guard_error")
    wrong_kind = await running.cases.ListIncidents(pb.ListIncidentsRequest(kind="stuck"))
    assert not wrong_kind.incidents
    explained = await running.cases.ExplainCase(pb.ExplainCaseRequest(case_id="i", task_id="pick"))
    assert explained.tasks[0].status == pb.TASK_STATUS_INCIDENT
    assert any(guard.error for guard in explained.tasks[0].guards)
    await running.cases.UpdateCaseData(pb.UpdateCaseDataRequest(case_id="i", data_json=b'{"amount": 500}'))
    resolved = await running.cases.ResolveIncident(
        pb.ResolveIncidentRequest(
            case_id="i",
            incident_id=incident.incident_id,
            resolution=pb.INCIDENT_RESOLUTION_RETRY,
            reason="amount added",
        )
    )
    assert resolved.case.state == pb.CASE_STATE_COMPLETED
    assert (resolved.incident.resolution, resolved.incident.resolved_by) == (pb.INCIDENT_RESOLUTION_RETRY, CALLER)
    assert not (await running.cases.ListIncidents(pb.ListIncidentsRequest(case_id="i"))).incidents
    everything = pb.ListIncidentsRequest(case_id="i", include_resolved=True)
    (told,) = (await running.cases.ListIncidents(everything)).incidents
    assert (told.resolution, told.resolved_by) == (pb.INCIDENT_RESOLUTION_RETRY, CALLER)
    assert told.resolve_time.ToNanoseconds() >= told.time.ToNanoseconds() > 0
    everything.case_id = ""
    assert list((await running.cases.ListIncidents(everything)).incidents) == [told]
    everything.kind = "stuck"
    assert not (await running.cases.ListIncidents(everything)).incidents
    history = await running.cases.GetCaseHistory(
        pb.GetCaseHistoryRequest(case_id="i", event_types=["incident_resolved"])
    )
    assert [json.loads(event.data_json)["reason"] for event in history.events] == ["amount added"]
    gone = pb.ResolveIncidentRequest(case_id="i", incident_id="1", resolution=pb.INCIDENT_RESOLUTION_RETRY)
    assert (await refused(running.cases.ResolveIncident(gone))).code in (
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
    )


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ResolveIncidentRequest(case_id="i", resolution=pb.INCIDENT_RESOLUTION_RETRY), "incident_id"),
        (pb.ResolveIncidentRequest(case_id="i", incident_id="1"), "resolution"),
        (
            pb.ResolveIncidentRequest(case_id="i", incident_id="1@j", resolution=pb.INCIDENT_RESOLUTION_RETRY),
            "incident_id",
        ),
        (
            pb.ResolveIncidentRequest(
                case_id="i", incident_id="1", resolution=pb.INCIDENT_RESOLUTION_SKIP, data_json=b"{}"
            ),
            "data_json",
        ),
    ],
)
async def test_a_resolution_has_to_make_sense(
    running: Sidecar, request_: pb.ResolveIncidentRequest, field: str
) -> None:
    assert (await refused(running.cases.ResolveIncident(request_))).fields == [field]


def approval(case_id: str, wait: float, request_id: str = "") -> pb.RunCaseRequest:
    """An approval whose end is waited for."""
    request = pb.RunCaseRequest(spec_id="approval", case_id=case_id, request_id=request_id)
    request.wait.FromNanoseconds(round(wait * 1e9))
    return request


async def test_a_wait_that_makes_no_sense_is_refused_before_anything_is_done(running: Sidecar) -> None:
    refusal = await refused(running.cases.RunCase(approval("alone", -1)))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["wait"])
    elements = [approval("good", 0), approval("bad", -1), approval("keyed", 0, "k-1"), approval("bad-keyed", -1, "k-2")]
    results = (await running.cases.RunCases(pb.RunCasesRequest(cases=elements))).results
    assert [result.WhichOneof("outcome") for result in results] == ["response", "error"] * 2
    assert [info_of(results[n].error).reason for n in (1, 3)] == ["INVALID_ARGUMENT"] * 2
    listed = await running.cases.ListCases(pb.ListCasesRequest())
    assert [case.case_id for case in listed.cases] == ["good", "keyed"]


async def test_the_waits_of_a_list_go_by_at_once(running: Sidecar) -> None:
    elements = [approval(f"c-{n}", 0.4, f"k-{n}" if n % 2 else "") for n in range(6)]
    begun = time.monotonic()
    results = (await running.cases.RunCases(pb.RunCasesRequest(cases=elements))).results
    took = time.monotonic() - begun
    assert [result.response.case.state for result in results] == [pb.CASE_STATE_RUNNING] * 6
    assert 0.4 <= took < 1.1  # one wait, and room for a busy machine; one after another they take 1.6 s and more


ALL = CaseFilter()


class _Purging(WorkflowEngine):
    """An engine whose cases are purged as soon as they were listed."""

    async def list_cases(
        self,
        filter: CaseFilter = ALL,  # the engine's name
        *,
        page_size: int = 0,
        page_token: str = "",
        meta: CallMeta = LOCAL,
    ) -> Page[CaseView]:
        page = await super().list_cases(filter, page_size=page_size, page_token=page_token, meta=meta)
        await self.purge_cases(PurgeRequest(("gone",)), meta=meta)
        return page


async def test_a_case_that_is_purged_while_the_list_is_made_is_left_out(tmp_path: Path) -> None:
    async with _Purging(StateStore(str(tmp_path / "db"))) as engine:
        await engine.register_workflow(json.dumps(APPROVAL))
        for name in ("gone", "here"):
            await engine.run_case("approval", case_id=name)
        await engine.cancel_case("gone")
        listed = await CaseService(engine).list_cases(pb.ListCasesRequest(view=pb.CASE_VIEW_FULL), LOCAL)
    assert [case.case_id for case in listed.cases] == ["here"]
