"""What the contract promises to clients: names, routes, idempotency keys, comments.

The tables are written out on purpose. A client depends on these names, so changing one has to be done twice.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from knhk_sidecar.api import pb

PROTO = Path(__file__).resolve().parents[2] / "proto"
PACKAGE = "knhk.sidecar.v1"

READING = {
    "PatternService": ["ListPatterns", "GetPattern", "DecideRoutes"],
    "WorkflowService": ["ValidateWorkflow", "GetWorkflow", "ListWorkflows"],
    "CaseService": [
        "GetCase",
        "WaitCase",
        "ListCases",
        "ListIncidents",
        "GetCaseHistory",
        "WatchCase",
        "WatchCases",
        "ExportCase",
        "PreviewMigration",
        "ExplainCase",
    ],
    "WorkItemService": ["ListWorkItems", "GetWorkItem"],
    "AdminService": [
        "GetStatus",
        "GetSlo",
        "GetPromotion",
        "ListAudit",
        "GetCheckpoint",
        "GetAuditProof",
        "VerifyHistory",
        "GetReceipt",
        "ListDeadLetters",
        "ListConnectors",
        "Backup",
        "ExportAudit",
        "GetConfig",
        "ExplainPolicy",
        "GetPolicy",
        "ListLegalHolds",
    ],
    "ScheduleService": ["GetSchedule", "ListSchedules"],
    "SubscriptionService": ["GetSubscription", "ListSubscriptions", "ListDeliveries"],
}
CHANGING = {
    "PatternService": ["ExecutePattern", "ExecutePatterns", "StreamExecutePattern"],
    "WorkflowService": ["RegisterWorkflow", "DeleteWorkflow"],
    "CaseService": [
        "CreateCase",
        "StartCase",
        "ExecuteCase",
        "RunCase",
        "RunCases",
        "StreamRunCase",
        "SuspendCase",
        "ResumeCase",
        "CancelCase",
        "CancelTask",
        "TriggerCase",
        "UpdateCaseData",
        "PurgeCases",
        "MigrateCases",
        "ResolveIncident",
    ],
    "WorkItemService": [
        "ClaimWorkItem",
        "StartWorkItem",
        "CompleteWorkItem",
        "CompleteWorkItems",
        "FailWorkItem",
        "SkipWorkItem",
        "OfferWorkItem",
        "AllocateWorkItem",
        "ReallocateWorkItem",
        "DelegateWorkItem",
        "SuspendWorkItem",
        "ResumeWorkItem",
        "ReleaseWorkItem",
        "AddInstance",
        "CloseInstances",
        "CompleteInstances",
        "CancelInstances",
        "StreamWorkItems",
    ],
    "AdminService": [
        "SetPromotion",
        "RetryDeadLetter",
        "DiscardDeadLetter",
        "PutConnector",
        "DeleteConnector",
        "SetLogLevel",
        "AdvanceTime",
        "CreateLegalHold",
        "ReleaseLegalHold",
    ],
    "ScheduleService": [
        "CreateSchedule",
        "UpdateSchedule",
        "DeleteSchedule",
        "PauseSchedule",
        "ResumeSchedule",
        "TriggerSchedule",
        "BackfillSchedule",
    ],
    "SubscriptionService": ["CreateSubscription", "DeleteSubscription", "ReplayDeliveries"],
}
BIDIRECTIONAL = {"StreamExecutePattern", "StreamRunCase", "StreamWorkItems"}
SERVER_STREAMS = {"WatchCase", "WatchCases", "ExportCase", "Backup", "ExportAudit"}

FIXED_ROUTES = {
    "POST /api/v1/workflows": "RegisterWorkflow",
    "GET /api/v1/workflows": "ListWorkflows",
    "GET /api/v1/workflows/{spec_id}": "GetWorkflow",
    "DELETE /api/v1/workflows/{spec_id}": "DeleteWorkflow",
    "POST /api/v1/cases": "CreateCase",
    "GET /api/v1/cases": "ListCases",
    "GET /api/v1/cases/{case_id}": "GetCase",
    "POST /api/v1/cases/{case_id}/execute": "ExecuteCase",
    "POST /api/v1/cases/{case_id}/start": "StartCase",
    "POST /api/v1/cases/{case_id}/cancel": "CancelCase",
    "POST /api/v1/cases/{case_id}/suspend": "SuspendCase",
    "POST /api/v1/cases/{case_id}/resume": "ResumeCase",
    "GET /api/v1/cases/{case_id}/history": "GetCaseHistory",
    "GET /api/v1/cases/{case_id}/explain": "ExplainCase",
    "GET /api/v1/cases/{case_id}/watch": "WatchCase",
    "POST /api/v1/cases:run": "RunCase",
    "GET /api/v1/patterns": "ListPatterns",
    "GET /api/v1/patterns/{pattern_id}": "GetPattern",
    "POST /api/v1/patterns/{pattern_id}/execute": "ExecutePattern",
    "GET /api/v1/work-items": "ListWorkItems",
    "POST /api/v1/work-items/{item_id}/complete": "CompleteWorkItem",
    "GET /api/v1/admin/status": "GetStatus",
}

FIXED_FIELDS = {
    "ExecutePatternRequest": "pattern_id case_id workflow_id variables data_json script durable request_id",
    "ExecutePatternResponse": (
        "success next_state next_activities variables updates_json cancel_activities terminates trace"
    ),
    "Stimulus": "move task name data_json",
    "RegisterWorkflowRequest": "spec_json document format allow_unsound request_id",
    "RegisterWorkflowResponse": "spec_id version findings",
    "Finding": "severity code element message trace",
    "CreateCaseRequest": "spec_id data_json case_id business_key request_id",
    "TriggerCaseRequest": "name key data_json request_id",
    "GetCaseHistoryRequest": "case_id after_sequence page_size reverse",
    "HistoryEvent": "sequence timestamp event_type data_json",
    "ListCasesRequest": "filter page_size page_token",
    "ListWorkItemsRequest": "role user state case_id",
    "CompleteWorkItemRequest": "item_id output_json request_id",
}


def methods() -> Iterator[MethodDescriptor]:
    for service in pb.SERVICES:
        yield from service.methods


def messages() -> Iterator[Descriptor]:
    for file in pb.FILES:
        yield from file.message_types_by_name.values()


def rules(method: MethodDescriptor) -> Iterator[HttpRule]:
    """The method's routes, the main one first; none for a method that REST does not offer."""
    options = method.GetOptions()
    # The stubs of googleapis call the extension a plain FieldDescriptor.
    if options.HasExtension(annotations_pb2.http):  # type: ignore[arg-type]
        rule: HttpRule = options.Extensions[annotations_pb2.http]  # type: ignore[index]
        yield rule
        yield from rule.additional_bindings


def verb_and_path(rule: HttpRule) -> tuple[str, str]:
    verb = rule.WhichOneof("pattern")
    assert verb is not None
    assert verb != "custom"
    return verb.upper(), getattr(rule, verb)


def test_every_method_is_there_and_no_other() -> None:
    present = {service.name: sorted(method.name for method in service.methods) for service in pb.SERVICES}
    assert present == {name: sorted(READING[name] + CHANGING[name]) for name in READING}


@pytest.mark.parametrize("method", list(methods()), ids=lambda method: method.name)
def test_requests_and_responses_are_the_methods_own(method: MethodDescriptor) -> None:
    assert method.input_type.full_name == f"{PACKAGE}.{method.name}Request"
    assert method.output_type.full_name == f"{PACKAGE}.{method.name}Response"
    assert method.client_streaming == (method.name in BIDIRECTIONAL)
    assert method.server_streaming == (method.name in BIDIRECTIONAL | SERVER_STREAMS)


@pytest.mark.parametrize("method", list(methods()), ids=lambda method: method.name)
def test_what_changes_something_has_a_request_id(method: MethodDescriptor) -> None:
    field = method.input_type.fields_by_name.get("request_id")
    assert (field is not None) == (method.name in CHANGING[method.containing_service.name])
    if field is not None:
        assert (field.type, field.is_repeated) == (FieldDescriptor.TYPE_STRING, False)


@pytest.mark.parametrize("method", list(methods()), ids=lambda method: method.name)
def test_routes_fit_their_messages(method: MethodDescriptor) -> None:
    found = list(rules(method))
    assert bool(found) != (method.name in BIDIRECTIONAL)
    for rule in found:
        verb, path = verb_and_path(rule)
        assert path.startswith("/api/v1/")
        assert rule.body == ("*" if verb in {"POST", "PUT", "PATCH"} else "")
        for variable in re.findall(r"\{([^}]*)\}", path):
            field = method.input_type.fields_by_name[variable]
            assert not field.is_repeated
            assert field.message_type is None
        if rule.response_body:
            assert method.output_type.fields_by_name[rule.response_body].message_type is not None
        if method.name in READING[method.containing_service.name] and verb != "GET":
            assert verb == "POST"  # a question too large for a query string


def test_no_two_methods_share_a_route() -> None:
    seen: dict[tuple[str, str], str] = {}
    for method in methods():
        for rule in rules(method):
            verb, path = verb_and_path(rule)
            shape = (verb, re.sub(r"\{[^}]*\}", "{}", path))
            assert shape not in seen, f"{method.name} and {seen[shape]}"
            seen[shape] = method.name


def test_the_documented_routes_lead_where_they_say() -> None:
    routes = {" ".join(verb_and_path(rule)): method.name for method in methods() for rule in rules(method)}
    assert {route: routes.get(route) for route in FIXED_ROUTES} == FIXED_ROUTES


@pytest.mark.parametrize("name", FIXED_FIELDS)
def test_documented_fields_are_there(name: str) -> None:
    message = next(message for message in messages() if message.name == name)
    assert set(FIXED_FIELDS[name].split()) <= set(message.fields_by_name)


@pytest.mark.parametrize("message", list(messages()), ids=lambda message: message.name)
def test_json_is_bytes_and_times_are_timestamps(message: Descriptor) -> None:
    for field in message.fields:
        if field.name.endswith("_json"):
            assert (field.type, field.is_repeated) == (FieldDescriptor.TYPE_BYTES, False), field.full_name
        if field.name.endswith("_time") or field.name == "timestamp":
            assert field.message_type is not None, field.full_name
            assert field.message_type.full_name == "google.protobuf.Timestamp"
        if field.message_type is not None:
            assert not field.message_type.full_name.startswith("google.protobuf.Struct"), field.full_name


def test_case_states_are_the_six_of_the_life_cycle() -> None:
    assert [name.removeprefix("CASE_STATE_").lower() for name in pb.CaseState.keys()] == [  # noqa: SIM118 - not a dict
        "unspecified",
        "created",
        "running",
        "completed",
        "cancelled",
        "failed",
        "suspended",
    ]


def test_every_method_says_what_it_does(tmp_path: Path) -> None:
    image = tmp_path / "contract.binpb"
    googleapis = Path(annotations_pb2.__file__).parents[2]
    files = [str(path) for path in PROTO.rglob("*.proto")]
    call = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{googleapis}", "--include_source_info"]
    subprocess.run([*call, f"--descriptor_set_out={image}", *files], check=True, timeout=60)
    for file in FileDescriptorSet.FromString(image.read_bytes()).file:
        comments = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
        for service_index, service in enumerate(file.service):
            for index, method in enumerate(service.method):
                # 6 and 2 are the field numbers of `service` and `method` in descriptor.proto.
                assert comments[6, service_index, 2, index].strip().endswith("."), f"{service.name}.{method.name}"
