"""The operations that the suite uses, over gRPC and over REST, with the same plain answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, TypeVar, cast

import grpc
import httpx2
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from knhk_sidecar.api import pb

Plain: TypeAlias = Mapping[str, object]
R = TypeVar("R", bound=Message)
SECONDS = 60.0


class Refused(Exception):
    """The daemon refused; `reason` is stable and the same over every transport."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class Transport(Protocol):
    """What the suite asks of a daemon. Raises `Refused`."""

    def register(self, document: Plain) -> Plain: ...
    def create(self, spec_id: str, data: Plain, case_id: str = "", request_id: str = "") -> Plain: ...
    def run(self, spec_id: str, data: Plain, case_id: str = "", request_id: str = "", key: str = "") -> Plain: ...
    def execute(self, case_id: str) -> Plain: ...
    def get(self, case_id: str) -> Plain: ...
    def move(self, case_id: str, move: str, reason: str = "") -> Plain: ...
    def update(
        self, case_id: str, data: Plain, expected_sequence: int | None = None, replace: bool = False
    ) -> Plain: ...
    def history(self, case_id: str, after: int = 0, size: int = 0, reverse: bool = False) -> Plain: ...
    def cases(self, spec_id: str, size: int = 0, token: str = "") -> Plain: ...
    def items(self, case_id: str) -> Plain: ...
    def complete(self, item_id: str, output: Plain, request_id: str = "") -> Plain: ...
    def trigger(
        self, name: str, data: Plain, case_id: str = "", key: str = "", seconds: int | None = None
    ) -> Plain: ...
    def instances(self, case_id: str, task_id: str, verb: str) -> Plain: ...
    def cancel_task(self, case_id: str, task_id: str, reason: str = "") -> Plain: ...
    def incidents(self, case_id: str, resolved: bool = False) -> Plain: ...
    def explain(self, case_id: str) -> Plain: ...
    def pattern(self, number: int, variables: Mapping[str, str]) -> Plain: ...


def encoded(value: Plain) -> bytes:
    return json.dumps(value).encode()


def plain(message: Message) -> Plain:
    """A message as the contract says that REST has it; written without the sidecar's own code."""
    found = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return cast(Plain, _natural(found))


def _natural(value: object) -> object:
    if isinstance(value, list):
        return [_natural(each) for each in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, object] = {}
    for name, each in value.items():
        if name.endswith("_json"):
            text = base64.b64decode(each)
            if text:
                found[name.removesuffix("_json")] = json.loads(text)
        elif name.endswith(("sequence", "activation", "completed_count")):
            found[name] = int(each)
        elif name == "activations":
            found[name] = [int(number) for number in each]
        elif name == "marking":
            found[name] = {place: int(tokens) for place, tokens in each.items()}
        else:
            found[name] = _natural(each)
    return found


class OverGrpc:
    """Generated stubs on a channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._patterns = pb.PatternServiceStub(channel)
        self._workflows = pb.WorkflowServiceStub(channel)
        self._cases = pb.CaseServiceStub(channel)
        self._work = pb.WorkItemServiceStub(channel)

    def register(self, document: Plain) -> Plain:
        return plain(_told(self._workflows.RegisterWorkflow, pb.RegisterWorkflowRequest(spec_json=encoded(document))))

    def create(self, spec_id: str, data: Plain, case_id: str = "", request_id: str = "") -> Plain:
        request = pb.CreateCaseRequest(spec_id=spec_id, data_json=encoded(data), case_id=case_id, request_id=request_id)
        return plain(_told(self._cases.CreateCase, request).case)

    def run(self, spec_id: str, data: Plain, case_id: str = "", request_id: str = "", key: str = "") -> Plain:
        request = pb.RunCaseRequest(
            spec_id=spec_id, data_json=encoded(data), case_id=case_id, request_id=request_id, business_key=key
        )
        return plain(_told(self._cases.RunCase, request))

    def execute(self, case_id: str) -> Plain:
        return plain(_told(self._cases.ExecuteCase, pb.ExecuteCaseRequest(case_id=case_id)))

    def get(self, case_id: str) -> Plain:
        return plain(_told(self._cases.GetCase, pb.GetCaseRequest(case_id=case_id)).case)

    def move(self, case_id: str, move: str, reason: str = "") -> Plain:
        match move:
            case "start":
                return plain(_told(self._cases.StartCase, pb.StartCaseRequest(case_id=case_id)).case)
            case "suspend":
                return plain(_told(self._cases.SuspendCase, pb.SuspendCaseRequest(case_id=case_id, reason=reason)).case)
            case "resume":
                return plain(_told(self._cases.ResumeCase, pb.ResumeCaseRequest(case_id=case_id, reason=reason)).case)
            case _:
                return plain(_told(self._cases.CancelCase, pb.CancelCaseRequest(case_id=case_id, reason=reason)).case)

    def update(self, case_id: str, data: Plain, expected_sequence: int | None = None, replace: bool = False) -> Plain:
        mode = pb.DATA_UPDATE_MODE_REPLACE if replace else pb.DATA_UPDATE_MODE_UNSPECIFIED
        request = pb.UpdateCaseDataRequest(case_id=case_id, data_json=encoded(data), mode=mode)
        if expected_sequence is not None:
            request.expected_sequence = expected_sequence
        return plain(_told(self._cases.UpdateCaseData, request).case)

    def history(self, case_id: str, after: int = 0, size: int = 0, reverse: bool = False) -> Plain:
        request = pb.GetCaseHistoryRequest(case_id=case_id, after_sequence=after, page_size=size, reverse=reverse)
        return plain(_told(self._cases.GetCaseHistory, request))

    def cases(self, spec_id: str, size: int = 0, token: str = "") -> Plain:
        request = pb.ListCasesRequest(filter=pb.CaseFilter(spec_id=spec_id), page_size=size, page_token=token)
        return plain(_told(self._cases.ListCases, request))

    def items(self, case_id: str) -> Plain:
        return plain(_told(self._work.ListWorkItems, pb.ListWorkItemsRequest(case_id=case_id)))

    def complete(self, item_id: str, output: Plain, request_id: str = "") -> Plain:
        request = pb.CompleteWorkItemRequest(item_id=item_id, output_json=encoded(output), request_id=request_id)
        return plain(_told(self._work.CompleteWorkItem, request))

    def trigger(self, name: str, data: Plain, case_id: str = "", key: str = "", seconds: int | None = None) -> Plain:
        request = pb.TriggerCaseRequest(name=name, data_json=encoded(data), case_id=case_id, key=key)
        if seconds is not None:
            request.time_to_live.FromSeconds(seconds)
        return plain(_told(self._cases.TriggerCase, request))

    def instances(self, case_id: str, task_id: str, verb: str) -> Plain:
        match verb:
            case "add":
                request = pb.AddInstanceRequest(case_id=case_id, task_id=task_id)
                return plain(_told(self._work.AddInstance, request).group)
            case "close":
                closing = pb.CloseInstancesRequest(case_id=case_id, task_id=task_id)
                return plain(_told(self._work.CloseInstances, closing).group)
            case "complete":
                completing = pb.CompleteInstancesRequest(case_id=case_id, task_id=task_id)
                return plain(_told(self._work.CompleteInstances, completing).group)
            case _:
                cancelling = pb.CancelInstancesRequest(case_id=case_id, task_id=task_id)
                return plain(_told(self._work.CancelInstances, cancelling).group)

    def cancel_task(self, case_id: str, task_id: str, reason: str = "") -> Plain:
        request = pb.CancelTaskRequest(case_id=case_id, task_id=task_id, reason=reason)
        return plain(_told(self._cases.CancelTask, request).case)

    def incidents(self, case_id: str, resolved: bool = False) -> Plain:
        request = pb.ListIncidentsRequest(case_id=case_id, include_resolved=resolved)
        return plain(_told(self._cases.ListIncidents, request))

    def explain(self, case_id: str) -> Plain:
        return plain(_told(self._cases.ExplainCase, pb.ExplainCaseRequest(case_id=case_id)))

    def pattern(self, number: int, variables: Mapping[str, str]) -> Plain:
        request = pb.ExecutePatternRequest(pattern_id=number, variables=dict(variables))
        return plain(_told(self._patterns.ExecutePattern, request))


def _told(call: Callable[..., R], request: Message) -> R:
    try:
        return call(request, timeout=SECONDS)
    except grpc.RpcError as error:
        refused = cast(grpc.Call, error)
        status, info = Status(), ErrorInfo()
        for key, value in refused.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                status.ParseFromString(cast(bytes, value))
        assert status.details, f"an error without details: {refused.code()} {refused.details()}"
        assert status.details[0].Unpack(info)
        raise Refused(info.reason, refused.details() or "") from error


class OverRest:
    """JSON over HTTP."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def _post(self, path: str, body: Plain, request_id: str = "", verb: str = "POST") -> Plain:
        headers = {"Idempotency-Key": request_id} if request_id else {}
        return _read(self._http.request(verb, path, json=body, headers=headers))

    def _get(self, path: str, **parameters: str | int | bool) -> Plain:
        chosen = {name: value for name, value in parameters.items() if value}
        return _read(self._http.get(path, params=chosen))

    def register(self, document: Plain) -> Plain:
        return self._post("/api/v1/workflows", {"spec": document})

    def create(self, spec_id: str, data: Plain, case_id: str = "", request_id: str = "") -> Plain:
        return self._post("/api/v1/cases", {"spec_id": spec_id, "data": data, "case_id": case_id}, request_id)

    def run(self, spec_id: str, data: Plain, case_id: str = "", request_id: str = "", key: str = "") -> Plain:
        body = {"spec_id": spec_id, "data": data, "case_id": case_id, "business_key": key}
        return self._post("/api/v1/cases:run", body, request_id)

    def execute(self, case_id: str) -> Plain:
        return self._post(f"/api/v1/cases/{case_id}/execute", {})

    def get(self, case_id: str) -> Plain:
        return self._get(f"/api/v1/cases/{case_id}")

    def move(self, case_id: str, move: str, reason: str = "") -> Plain:
        return self._post(f"/api/v1/cases/{case_id}/{move}", {"reason": reason} if reason else {})

    def update(self, case_id: str, data: Plain, expected_sequence: int | None = None, replace: bool = False) -> Plain:
        body: dict[str, object] = {"data": data}
        if replace:
            body["mode"] = "DATA_UPDATE_MODE_REPLACE"
        if expected_sequence is not None:
            body["expected_sequence"] = expected_sequence
        return self._post(f"/api/v1/cases/{case_id}/data", body, verb="PATCH")

    def history(self, case_id: str, after: int = 0, size: int = 0, reverse: bool = False) -> Plain:
        return self._get(f"/api/v1/cases/{case_id}/history", after_sequence=after, page_size=size, reverse=reverse)

    def cases(self, spec_id: str, size: int = 0, token: str = "") -> Plain:
        return self._get("/api/v1/cases", spec_id=spec_id, page_size=size, page_token=token)

    def items(self, case_id: str) -> Plain:
        return self._get("/api/v1/work-items", case_id=case_id)

    def complete(self, item_id: str, output: Plain, request_id: str = "") -> Plain:
        return self._post(f"/api/v1/work-items/{item_id}/complete", {"output": output}, request_id)

    def trigger(self, name: str, data: Plain, case_id: str = "", key: str = "", seconds: int | None = None) -> Plain:
        body: dict[str, object] = {"name": name, "data": data, "case_id": case_id, "key": key}
        if seconds is not None:
            body["time_to_live"] = f"{seconds}s"
        return self._post("/api/v1/cases:trigger", body)

    def instances(self, case_id: str, task_id: str, verb: str) -> Plain:
        path = f"/api/v1/cases/{case_id}/tasks/{task_id}/instances"
        answer = self._post(path if verb == "add" else f"{path}:{verb}", {})
        return cast(Plain, answer["group"])

    def cancel_task(self, case_id: str, task_id: str, reason: str = "") -> Plain:
        return self._post(f"/api/v1/cases/{case_id}/tasks/{task_id}/cancel", {"reason": reason})

    def incidents(self, case_id: str, resolved: bool = False) -> Plain:
        return self._get(f"/api/v1/cases/{case_id}/incidents", include_resolved="true" if resolved else "")

    def explain(self, case_id: str) -> Plain:
        return self._get(f"/api/v1/cases/{case_id}/explain")

    def pattern(self, number: int, variables: Mapping[str, str]) -> Plain:
        return self._post(f"/api/v1/patterns/{number}/execute", {"variables": variables})


def _read(answer: httpx2.Response) -> Plain:
    body = answer.json()
    assert isinstance(body, dict), body
    if answer.status_code != 200:
        assert body["status"] == answer.status_code
        raise Refused(str(body["reason"]), str(body["detail"]))
    return body
