"""Signals, instances and single tasks over gRPC."""

from __future__ import annotations

import json

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from knhk_sidecar.api import pb
from tests.sidecar.services.server import Sidecar, refused

ORDER = {
    "id": "order",
    "tasks": {
        "ask": {"required_roles": ["buyer"], "instances": {"min": 2, "max": 3, "create": "dynamic"}},
        "pay": {"trigger": {"name": "paid", "mode": "transient"}},
        "open": {},
    },
    "flows": [
        {"from": "start", "to": "open"},
        {"from": "open", "to": "ask"},
        {"from": "open", "to": "pay"},
    ],
}


@pytest.fixture
async def order(running: Sidecar) -> str:
    """A case of ORDER with the business key `k`."""
    await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=json.dumps(ORDER).encode()))
    request = pb.RunCaseRequest(spec_id="order", case_id="o-1", business_key="k")
    assert len((await running.cases.RunCase(request)).open_work_items) == 2
    return "o-1"


async def test_a_signal_by_case_and_by_key(running: Sidecar, order: str) -> None:
    taken = await running.cases.TriggerCase(
        pb.TriggerCaseRequest(name="paid", key="k", data_json=b'{"amount": 3}', request_id="m-1")
    )
    assert taken.message_id == "m-1"
    (delivery,) = taken.deliveries
    assert (delivery.case_id, delivery.outcome, delivery.task_id) == (order, pb.TRIGGER_OUTCOME_CONSUMED, "pay")
    assert delivery.activation
    lost = await running.cases.TriggerCase(pb.TriggerCaseRequest(name="paid", case_id=order))
    assert [one.outcome for one in lost.deliveries] == [pb.TRIGGER_OUTCOME_DROPPED]
    case = (await running.cases.GetCase(pb.GetCaseRequest(case_id=order))).case
    assert json.loads(case.data_json) == {"amount": 3}


async def test_what_a_signal_needs(running: Sidecar, order: str) -> None:
    nameless = await refused(running.cases.TriggerCase(pb.TriggerCaseRequest(case_id=order)))
    assert nameless.fields == ["name"]
    for length in (Duration(seconds=-1), Duration(seconds=400 * 366 * 24 * 3600)):
        request = pb.TriggerCaseRequest(name="paid", case_id=order, time_to_live=length)
        assert (await refused(running.cases.TriggerCase(request))).fields == ["time_to_live"]
    unknown = await refused(running.cases.TriggerCase(pb.TriggerCaseRequest(name="paid", case_id="nobody")))
    assert unknown.code is grpc.StatusCode.NOT_FOUND


async def test_instances_are_added_closed_and_completed(running: Sidecar, order: str) -> None:
    added = await running.items.AddInstance(
        pb.AddInstanceRequest(case_id=order, task_id="ask", data_json=b'{"supplier": "acme"}')
    )
    assert (added.instance, added.group.created_count, added.group.open_count) == (3, 3, 3)
    assert added.group.accepts_instances
    item = (await running.items.GetWorkItem(pb.GetWorkItemRequest(item_id=added.item_id))).item
    assert json.loads(item.data_json) == {"item": {"supplier": "acme"}}
    full = await refused(running.items.AddInstance(pb.AddInstanceRequest(case_id=order, task_id="ask")))
    assert full.code is grpc.StatusCode.FAILED_PRECONDITION
    closed = await running.items.CloseInstances(pb.CloseInstancesRequest(case_id=order, task_id="ask"))
    assert not closed.group.accepts_instances
    await running.items.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=added.item_id))
    done = await running.items.CompleteInstances(pb.CompleteInstancesRequest(case_id=order, task_id="ask"))
    assert (done.group.open_count, done.group.sequence > closed.group.sequence) == (0, True)
    assert (await running.items.ListWorkItems(pb.ListWorkItemsRequest(case_id=order))).items == []


async def test_instances_and_tasks_are_cancelled(running: Sidecar, order: str) -> None:
    gone = await running.items.CancelInstances(pb.CancelInstancesRequest(case_id=order, task_id="ask"))
    assert (gone.group.created_count, gone.group.completed_count, gone.group.open_count) == (2, 0, 0)
    ended = await running.cases.CancelTask(pb.CancelTaskRequest(case_id=order, task_id="pay", reason="too late"))
    assert ended.case.state == pb.CASE_STATE_COMPLETED
    history = await running.cases.GetCaseHistory(
        pb.GetCaseHistoryRequest(case_id=order, event_types=["task_cancelled"])
    )
    assert [json.loads(event.data_json).get("detail") for event in history.events] == [None, "too late"]
    for task in ("", "nobody"):
        refusal = await refused(running.cases.CancelTask(pb.CancelTaskRequest(case_id=order, task_id=task)))
        assert refusal.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)


MERGE = {
    "id": "merge",
    "tasks": {
        "open": {},
        "pick": {"required_roles": ["r"]},
        "pack": {"required_roles": ["r"]},
        "ship": {"required_roles": ["r"], "join": "or"},
    },
    "flows": [
        {"from": "start", "to": "open"},
        {"from": "open", "to": "pick"},
        {"from": "open", "to": "pack"},
        {"from": "pick", "to": "ship"},
        {"from": "pack", "to": "ship"},
        {"from": "ship", "to": "end"},
    ],
}


async def test_what_keeps_a_task_is_explained(running: Sidecar, order: str) -> None:
    request = pb.ExplainCaseRequest(case_id=order, task_id="pay")
    (pay,) = (await running.cases.ExplainCase(request)).tasks
    assert pay.status == pb.TASK_STATUS_WAITING
    assert [(wait.kind, wait.name) for wait in pay.waits_for] == [("trigger", "paid")]
    assert len(pay.activations) == 1
    await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=json.dumps(MERGE).encode()))
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="merge", case_id="m"))
    pick = next(item for item in run.open_work_items if item.task_id == "pick")
    await running.items.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=pick.item_id))
    (ship,) = (await running.cases.ExplainCase(pb.ExplainCaseRequest(case_id="m", task_id="ship"))).tasks
    (way,) = ship.or_join_paths
    assert (way.token, way.input, list(way.path)) == ("open->pack", "pack->ship", ["pack"])
    assert ship.join_kind == "or"
    assert list(ship.missing) == ["pack->ship"]
