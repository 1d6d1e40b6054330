"""Work items: taken, given back, started, finished, failed and passed over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Mapping
from itertools import pairwise
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from knhk_sidecar.api import pb
from knhk_sidecar.api.services.work_items import WorkItemService
from knhk_workflow import LOCAL, CallMeta, StateStore, WorkflowEngine, WorkItemView
from tests.sidecar.services.server import CALLER, Sidecar, info_of, refused


async def offered(running: Sidecar, case_id: str) -> pb.WorkItem:
    """The one item of a fresh case."""
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="approval", case_id=case_id, data_json=b'{"a": 1}'))
    return run.open_work_items[0]


async def test_an_item_is_claimed_released_started_and_completed(running: Sidecar) -> None:
    item_id = (await offered(running, "c-1")).item_id
    claimed = await running.items.ClaimWorkItem(pb.ClaimWorkItemRequest(item_id=item_id))
    assert (claimed.item.state, claimed.item.owner) == (pb.WORK_ITEM_STATE_ALLOCATED, CALLER)
    assert claimed.item.HasField("allocate_time")
    other = await refused(running.items.ReleaseWorkItem(pb.ReleaseWorkItemRequest(item_id=item_id, user="bob")))
    assert other.code is grpc.StatusCode.FAILED_PRECONDITION
    released = await running.items.ReleaseWorkItem(pb.ReleaseWorkItemRequest(item_id=item_id))
    assert (released.item.state, released.item.owner) == (pb.WORK_ITEM_STATE_OFFERED, "")
    started = await running.items.StartWorkItem(pb.StartWorkItemRequest(item_id=item_id, user="alice"))
    assert (started.item.state, started.item.owner) == (pb.WORK_ITEM_STATE_STARTED, "alice")
    assert started.item.HasField("start_time")
    mine = await refused(running.items.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=item_id)))
    assert mine.code is grpc.StatusCode.FAILED_PRECONDITION, "it is alice's"
    got = await running.items.GetWorkItem(pb.GetWorkItemRequest(item_id=item_id))
    assert json.loads(got.item.data_json) == {"a": 1}
    assert (got.item.activation, got.item.instance, got.item.attempt) == (1, 1, 1)
    done = await running.items.CompleteWorkItem(
        pb.CompleteWorkItemRequest(item_id=item_id, user="alice", output_json=b'{"ok": true}')
    )
    assert (done.item.state, done.case_state) == (pb.WORK_ITEM_STATE_COMPLETED, pb.CASE_STATE_COMPLETED)
    case = (await running.cases.GetCase(pb.GetCaseRequest(case_id="c-1"))).case
    assert done.sequence == case.sequence
    again = await refused(running.items.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=item_id, user="alice")))
    assert again.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_completion_names_the_items_that_it_brought_about(running: Sidecar) -> None:
    chain = {
        "id": "chain",
        "tasks": {"one": {"required_roles": ["r"]}, "two": {"required_roles": ["r"]}},
        "flows": [{"from": "start", "to": "one"}, {"from": "one", "to": "two"}, {"from": "two", "to": "end"}],
    }
    await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=json.dumps(chain).encode()))
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="chain", case_id="n"))
    request = pb.CompleteWorkItemRequest(item_id=run.open_work_items[0].item_id, request_id="once")
    done = await running.items.CompleteWorkItem(request)
    assert done.case_state == pb.CASE_STATE_RUNNING
    (opened,) = done.opened_item_ids
    assert (await running.items.GetWorkItem(pb.GetWorkItemRequest(item_id=opened))).item.task_id == "two"
    again = await running.items.CompleteWorkItem(request)
    assert again.item.state == pb.WORK_ITEM_STATE_COMPLETED
    assert again.sequence == done.sequence


async def test_another_attempts_result_is_refused(running: Sidecar) -> None:
    item_id = (await offered(running, "c-1")).item_id
    wrong = await refused(running.items.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=item_id, attempt=2)))
    assert (wrong.code, wrong.info.reason) == (grpc.StatusCode.ABORTED, "STALE")
    later = item_id.replace("1.1.1@", "1.1.2@")
    stale = await refused(running.items.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=later)))
    assert stale.code is grpc.StatusCode.ABORTED


async def test_a_list_of_completions_fails_one_by_one(running: Sidecar) -> None:
    items = [(await offered(running, f"c-{n}")).item_id for n in range(4)]
    completions = [
        pb.CompleteWorkItemRequest(item_id=items[0]),
        pb.CompleteWorkItemRequest(item_id="nonsense"),
        pb.CompleteWorkItemRequest(item_id=items[1], output_json=b"[]"),
        pb.CompleteWorkItemRequest(item_id=items[2], request_id="own"),
        pb.CompleteWorkItemRequest(),
        pb.CompleteWorkItemRequest(item_id=items[3], attempt=7),
    ]
    answer = await running.items.CompleteWorkItems(pb.CompleteWorkItemsRequest(completions=completions))
    outcomes = [result.WhichOneof("outcome") for result in answer.results]
    assert outcomes == ["response", "error", "error", "response", "error", "error"]
    assert [answer.results[n].response.case_state for n in (0, 3)] == [pb.CASE_STATE_COMPLETED] * 2
    reasons = [info_of(answer.results[n].error).reason for n in (1, 2, 4, 5)]
    assert reasons == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "STALE"]


async def test_a_failure_becomes_an_incident(running: Sidecar) -> None:
    item_id = (await offered(running, "f")).item_id
    failed = await running.items.FailWorkItem(pb.FailWorkItemRequest(item_id=item_id, message="no stock"))
    assert (failed.item.state, failed.will_retry) == (pb.WORK_ITEM_STATE_FAILED, False)
    (incident,) = (await running.cases.ListIncidents(pb.ListIncidentsRequest(case_id="f"))).incidents
    assert failed.incident_id == incident.incident_id
    assert (incident.kind, incident.task_id) == ("task_failed", "approve")
    assert "no stock" in incident.message
    resolved = await running.cases.ResolveIncident(
        pb.ResolveIncidentRequest(
            case_id="f",
            incident_id=failed.incident_id,
            resolution=pb.INCIDENT_RESOLUTION_COMPLETE,
            data_json=b'{"by": "hand"}',
        )
    )
    assert resolved.case.state == pb.CASE_STATE_COMPLETED


async def test_an_item_is_passed_over(running: Sidecar) -> None:
    item_id = (await offered(running, "s")).item_id
    skipped = await running.items.SkipWorkItem(pb.SkipWorkItemRequest(item_id=item_id))
    assert (skipped.item.state, skipped.case_state) == (pb.WORK_ITEM_STATE_SKIPPED, pb.CASE_STATE_COMPLETED)


async def test_work_is_listed_by_role_owner_state_task_and_workflow(running: Sidecar) -> None:
    items = [(await offered(running, f"c-{n}")).item_id for n in range(3)]
    await running.items.ClaimWorkItem(pb.ClaimWorkItemRequest(item_id=items[0], user="alice"))

    async def ids(**wanted: str | int) -> list[str]:
        request = pb.ListWorkItemsRequest(**wanted)  # type: ignore[arg-type]  # a few of its fields
        return [item.item_id for item in (await running.items.ListWorkItems(request)).items]

    assert sorted(await ids()) == sorted(items)
    assert len(await ids(role="manager")) == 3
    assert await ids(role="clerk") == []
    assert await ids(user="alice") == [items[0]]
    assert await ids(state=int(pb.WORK_ITEM_STATE_ALLOCATED)) == [items[0]]
    assert await ids(case_id="c-1") == [items[1]]
    assert len(await ids(task_id="approve", spec_id="approval")) == 3
    assert await ids(spec_id="routing") == []
    ended = pb.ListWorkItemsRequest(state=pb.WORK_ITEM_STATE_COMPLETED)
    assert (await refused(running.items.ListWorkItems(ended))).code is grpc.StatusCode.UNIMPLEMENTED


async def test_whoever_reports_a_failure_can_say_when_to_try_again(running: Sidecar) -> None:
    document = {**RETRIED, "id": "patient", "tasks": {"call": {"required_roles": ["r"], "retry": SLOW}}}
    await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=json.dumps(document).encode()))
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="patient", case_id="p"))
    (item,) = run.open_work_items
    request = pb.FailWorkItemRequest(item_id=item.item_id, retry_after=Duration(seconds=0))
    assert (await running.items.FailWorkItem(request)).will_retry
    (again,) = (await running.items.ListWorkItems(pb.ListWorkItemsRequest(case_id="p"))).items
    assert again.attempt == 2
    request = pb.FailWorkItemRequest(item_id=again.item_id, retry_after=Duration(seconds=3_600))
    assert (await running.items.FailWorkItem(request)).will_retry
    assert not (await running.items.ListWorkItems(pb.ListWorkItemsRequest(case_id="p"))).items
    negative = pb.FailWorkItemRequest(item_id=again.item_id, retry_after=Duration(seconds=-1))
    assert (await refused(running.items.FailWorkItem(negative))).fields == ["retry_after"]


SLOW = {"max_attempts": 3, "backoff": "2h"}
RETRIED = {
    "id": "retried",
    "tasks": {"call": {"required_roles": ["r"], "retry": {"max_attempts": 3, "backoff": 0}}},
    "flows": [{"from": "start", "to": "call"}, {"from": "call", "to": "end"}],
}


async def test_a_permanent_failure_gives_the_remaining_attempts_up_and_says_what_is_known(running: Sidecar) -> None:
    await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=json.dumps(RETRIED).encode()))
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="retried", case_id="f"))
    (item,) = run.open_work_items
    first = await running.items.FailWorkItem(pb.FailWorkItemRequest(item_id=item.item_id, message="busy"))
    assert (first.will_retry, first.incident_id) == (True, "")
    (again,) = (await running.items.ListWorkItems(pb.ListWorkItemsRequest(case_id="f"))).items
    assert again.attempt == 2
    request = pb.FailWorkItemRequest(
        item_id=again.item_id, message="gone", permanent=True, data_json=b'{"status": 410}'
    )
    last = await running.items.FailWorkItem(request)
    assert last.incident_id
    assert not last.will_retry
    history = await running.cases.GetCaseHistory(pb.GetCaseHistoryRequest(case_id="f", event_types=["item_failed"]))
    assert [json.loads(event.data_json).get("data") for event in history.events] == [None, {"status": 410}]


async def test_nobody_passes_over_what_somebody_else_claims_in_the_same_moment(running: Sidecar) -> None:
    ids = [(await offered(running, f"c-{n}")).item_id for n in range(12)]
    calls: list[Awaitable[object]] = []
    for each in ids:  # while the first is under way, the others queue for the case
        case_id = each.partition("@")[2]
        calls.append(running.cases.UpdateCaseData(pb.UpdateCaseDataRequest(case_id=case_id, data_json=b'{"a":2}')))
        calls.append(running.items.SkipWorkItem(pb.SkipWorkItemRequest(item_id=each, user="anna")))
        calls.append(running.items.ClaimWorkItem(pb.ClaimWorkItemRequest(item_id=each, user="ben")))
    outcomes = await asyncio.gather(*map(succeeds, calls))
    assert [skipped + claimed for skipped, claimed in zip(outcomes[1::3], outcomes[2::3], strict=True)] == [1] * 12


async def test_what_is_somebody_elses_is_neither_passed_over_nor_given_back(running: Sidecar) -> None:
    item_id = (await offered(running, "c-1")).item_id
    await running.items.ClaimWorkItem(pb.ClaimWorkItemRequest(item_id=item_id, user="ben"))
    assert not await succeeds(running.items.SkipWorkItem(pb.SkipWorkItemRequest(item_id=item_id, user="anna")))
    assert not await succeeds(running.items.ReleaseWorkItem(pb.ReleaseWorkItemRequest(item_id=item_id, user="anna")))
    assert await succeeds(running.items.ReleaseWorkItem(pb.ReleaseWorkItemRequest(item_id=item_id, user="ben")))
    assert await succeeds(running.items.SkipWorkItem(pb.SkipWorkItemRequest(item_id=item_id, user="anna")))


async def test_a_skip_that_is_repeated_is_answered_as_the_first_time(running: Sidecar) -> None:
    item_id = (await offered(running, "c-1")).item_id
    request = pb.SkipWorkItemRequest(item_id=item_id, user="anna", request_id="once")
    first, second = await running.items.SkipWorkItem(request), await running.items.SkipWorkItem(request)
    assert (first.sequence, first.item.state) == (second.sequence, second.item.state)


async def succeeds(call: Awaitable[object]) -> bool:
    """Whether a call is carried out; it is refused when the item is not for the caller."""
    try:
        await call
    except aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND):
            raise
        return False
    return True


class Counting(WorkflowEngine):
    """An engine that counts how many completions are under way at once."""

    under_way = most = 0

    async def complete_work_item(
        self,
        item_id: str,
        output: Mapping[str, object] | bytes | None = None,
        user: str = "",
        *,
        meta: CallMeta = LOCAL,
    ) -> WorkItemView:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await super().complete_work_item(item_id, output, user, meta=meta)
        finally:
            self.under_way -= 1


async def test_completions_with_keys_of_their_own_share_commits_and_go_in_order(tmp_path: Path) -> None:
    tasks: dict[str, object] = {name: {"required_roles": ["r"]} for name in ("one", "two", "three")}
    names = ["start", *tasks, "end"]
    flows = [{"from": a, "to": b} for a, b in pairwise(names)]
    engine = Counting(StateStore(str(tmp_path / "db")))
    async with engine:
        await engine.register_workflow(json.dumps({"id": "line", "tasks": tasks, "flows": flows}))
        for n in range(10):
            await engine.run_case("line", case_id=f"c-{n}")
        completions = [
            pb.CompleteWorkItemRequest(
                item_id=f"{activation}.1.1@c-{n}",
                request_id=f"{activation}-{n}" if activation != 2 else "",
                output_json=b'{"last":%d}' % activation,
            )
            for n in range(10)
            for activation in (1, 2, 3)
        ]
        request = pb.CompleteWorkItemsRequest(completions=completions, request_id="list")
        for _ in range(2):  # the second time is the same
            results = (await WorkItemService(engine).complete_work_items(request, CallMeta(request_id="list"))).results
            ended = pb.CASE_STATE_COMPLETED
            assert [result.response.case_state == ended for result in results] == [False, False, True] * 10
        assert engine.most == 30
        assert [json.loads((await engine.get_case(f"c-{n}")).data)["last"] for n in range(10)] == [3] * 10
