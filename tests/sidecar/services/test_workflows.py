"""Workflows: what registration, validation and lists say."""

from __future__ import annotations

import json

import grpc
from google.rpc.error_details_pb2 import ResourceInfo

from knhk_sidecar.api import pb
from tests.sidecar.services.conftest import APPROVAL, ROUTING
from tests.sidecar.services.server import CALLER, Sidecar, refused, unpacked


async def test_the_same_content_is_the_same_version_and_other_content_the_next(running: Sidecar) -> None:
    same = await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=json.dumps(APPROVAL).encode()))
    assert (same.spec_id, same.version, same.created) == ("approval", 1, False)
    other = json.dumps(APPROVAL | {"name": "Other"}).encode()
    next_one = await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=other))
    assert (next_one.version, next_one.created) == (2, True)
    first = await running.workflows.GetWorkflow(pb.GetWorkflowRequest(spec_id="approval", version=1))
    assert (first.workflow.name, first.workflow.latest) == ("Approval", False)
    latest = await running.workflows.GetWorkflow(pb.GetWorkflowRequest(spec_id="approval"))
    assert (latest.workflow.name, latest.workflow.latest, latest.workflow.task_count) == ("Other", True, 2)
    assert latest.workflow.registered_by == CALLER
    assert json.loads(latest.workflow.spec_json)["id"] == "approval"


async def test_a_document_may_be_yaml_and_says_so_or_not(running: Sidecar) -> None:
    text = b"id: from-yaml\ntasks: {a: {}}\nflows: [{from: start, to: a}, {from: a, to: end}]\n"
    for form in ("yaml", ""):
        answer = await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(document=text, format=form))
        assert (answer.spec_id, answer.version) == ("from-yaml", 1)


async def test_what_is_wrong_with_a_document_is_told_field_by_field(running: Sidecar) -> None:
    broken = json.dumps(ROUTING | {"flows": [{"from": "start", "to": "nowhere"}], "colour": "red"}).encode()
    refusal = await refused(running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=broken)))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.info.reason == "INVALID_DOCUMENT"
    assert len(refusal.fields) >= 2
    validated = await running.workflows.ValidateWorkflow(pb.ValidateWorkflowRequest(spec_json=broken))
    assert not validated.valid
    assert {finding.element for finding in validated.findings} >= set(refusal.fields)
    garbage = await running.workflows.ValidateWorkflow(pb.ValidateWorkflowRequest(spec_json=b"{nonsense"))
    assert not garbage.valid
    assert garbage.findings
    good = await running.workflows.ValidateWorkflow(pb.ValidateWorkflowRequest(spec_json=json.dumps(ROUTING).encode()))
    assert good.valid
    assert good.spec_id == "routing"


async def test_no_document_and_unknown_formats_are_named(running: Sidecar) -> None:
    nothing = await refused(running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest()))
    assert (nothing.code, nothing.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["spec_json"])
    toml = await refused(running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(document=b"a=1", format="toml")))
    assert (toml.code, toml.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["format"])
    bpmn = await refused(
        running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(document=b"<a/>", format="bpmn"))
    )
    assert bpmn.code is grpc.StatusCode.UNIMPLEMENTED


async def test_lists_are_paged_and_filtered_by_prefix(running: Sidecar) -> None:
    everything = await running.workflows.ListWorkflows(pb.ListWorkflowsRequest())
    assert [one.spec_id for one in everything.workflows] == ["approval", "choice", "routing"]
    assert not everything.workflows[0].spec_json
    names, token = [], ""
    while True:
        page = await running.workflows.ListWorkflows(pb.ListWorkflowsRequest(page_size=1, page_token=token))
        names += [one.spec_id for one in page.workflows]
        token = page.next_page_token
        if not token:
            break
    assert names == ["approval", "choice", "routing"]
    some = await running.workflows.ListWorkflows(pb.ListWorkflowsRequest(spec_id_prefix="ro"))
    assert [one.spec_id for one in some.workflows] == ["routing"]


async def test_every_version_is_listed_when_asked_for(running: Sidecar) -> None:
    for name in ("second", "third"):
        document = {"id": "routing", "name": name}
        await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=json.dumps(document).encode()))
    await running.workflows.DeleteWorkflow(pb.DeleteWorkflowRequest(spec_id="routing", version=2))
    found, token = [], ""
    while True:
        request = pb.ListWorkflowsRequest(spec_id_prefix="rou", all_versions=True, page_size=1, page_token=token)
        page = await running.workflows.ListWorkflows(request)
        found += [(one.version, one.latest) for one in page.workflows]
        token = page.next_page_token
        if not token:
            break
    assert found == [(1, False), (3, True)]


async def test_a_workflow_in_use_is_kept_and_a_deleted_one_is_gone(running: Sidecar) -> None:
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="approval", case_id="c-1"))
    refusal = await refused(running.workflows.DeleteWorkflow(pb.DeleteWorkflowRequest(spec_id="approval")))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    await running.cases.CancelCase(pb.CancelCaseRequest(case_id=run.case.case_id))
    answer = await running.workflows.DeleteWorkflow(pb.DeleteWorkflowRequest(spec_id="approval"))
    assert list(answer.deleted_versions) == [1]
    gone = await refused(running.workflows.GetWorkflow(pb.GetWorkflowRequest(spec_id="approval")))
    assert (gone.code, gone.info.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    (resource,) = unpacked(gone.status, ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("workflow", "approval")
