"""Every error has a code, a status and details; nothing that is not meant for callers leaves the process."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.rpc.error_details_pb2 import (
    BadRequest,
    PreconditionFailure,
    QuotaFailure,
    ResourceInfo,
    RetryInfo,
)

from knhk_sidecar.api import faults
from knhk_workflow import (
    AlreadyExists,
    Busy,
    InvalidDocument,
    InvalidInput,
    LimitExceeded,
    NotFound,
    Problem,
    RequestMismatch,
    StoreFull,
    Unsound,
    Unsupported,
    WorkflowError,
    WrongState,
)
from tests.sidecar.services.server import info_of, unpacked


def tree(base: type[WorkflowError]) -> Iterator[type[WorkflowError]]:
    yield base
    for kind in base.__subclasses__():
        yield from tree(kind)


def the_products(kinds: Iterator[type[WorkflowError]]) -> list[type[WorkflowError]]:
    return [kind for kind in kinds if kind.__module__ in ("knhk_workflow.errors", "knhk_sidecar.api.faults")]


@pytest.mark.parametrize("kind", the_products(tree(WorkflowError)))
def test_every_public_error_has_its_own_line_in_the_table(kind: type[WorkflowError]) -> None:
    assert kind in faults.FAULTS


@pytest.mark.parametrize("kind", list(faults.FAULTS))
def test_unavailable_is_promised_only_by_errors_that_may_be_retried(kind: type[WorkflowError]) -> None:
    if faults.FAULTS[kind].code is grpc.StatusCode.UNAVAILABLE:
        assert kind.retry


def test_a_wrong_field_is_named_with_what_was_expected() -> None:
    error = InvalidInput.field("data.amount", "is a text", "expected a number, for example 120")
    status = faults.to_status(error)
    (detail,) = unpacked(status, BadRequest)
    (violation,) = detail.field_violations
    assert violation.field == "data_json.amount"
    assert violation.description == "is a text (expected a number, for example 120)"
    problem = faults.to_problem(error)
    assert problem["status"] == 400
    assert problem["errors"] == [
        {
            "field": "data.amount",
            "code": "invalid",
            "message": "is a text",
            "hint": "expected a number, for example 120",
        }
    ]


def test_a_path_in_the_contracts_words_is_told_over_rest_in_its_words() -> None:
    problem = faults.to_problem(InvalidInput.field("cases[2].data_json.total", "is missing"))
    assert [one["field"] for one in problem["errors"]] == ["cases[2].data.total"]


def test_paths_in_a_document_stay_as_they_are() -> None:
    error = InvalidDocument("bad", [Problem("data.schema", "unknown", "is not a key")])
    (detail,) = unpacked(faults.to_status(error), BadRequest)
    assert detail.field_violations[0].field == "data.schema"


def test_states_limits_and_things_have_their_details() -> None:
    (state,) = unpacked(faults.to_status(WrongState("case", "c-1", "running", "completed")), PreconditionFailure)
    assert (state.violations[0].type, state.violations[0].subject) == ("STATE", "case/c-1")
    (missing,) = unpacked(faults.to_status(NotFound("case", "c-1")), ResourceInfo)
    assert (missing.resource_type, missing.resource_name) == ("case", "c-1")
    (taken,) = unpacked(faults.to_status(AlreadyExists("case", "c-1")), ResourceInfo)
    assert taken.resource_name == "c-1"
    (quota,) = unpacked(faults.to_status(LimitExceeded("live tokens", 10, 11)), QuotaFailure)
    assert quota.violations[0].subject == "live tokens"
    assert not unpacked(faults.to_status(LimitExceeded("live tokens", 10, 11)), RetryInfo), "waiting does not help"
    (reused,) = unpacked(faults.to_status(RequestMismatch("r-1")), PreconditionFailure)
    assert reused.violations[0].subject == "request_id"


def test_who_is_told_to_wait_is_told_how_long() -> None:
    fault = faults.to_rpc(Busy("the queue", 250))
    assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "250") in fault.trailing
    (retry,) = unpacked(faults.to_status(Busy("the queue", 250)), RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 250
    (full,) = unpacked(faults.to_status(StoreFull("no space")), RetryInfo)
    assert full.retry_delay.ToSeconds() == 5
    assert faults.to_problem(Busy("the queue", 250))["retry_after_ms"] == 250


def test_a_missing_feature_is_named() -> None:
    info = info_of(faults.to_status(Unsupported("CaseService.MigrateCases")))
    assert info.reason == "UNIMPLEMENTED_FEATURE"
    assert info.metadata["feature"] == "CaseService.MigrateCases"


def test_an_unsound_workflow_comes_with_its_findings_and_their_traces() -> None:
    finding = Problem("tasks.ship", "deadlock", "can wait for ever", trace=("receive", "approve"))
    (detail,) = unpacked(faults.to_status(Unsound("order", [finding])), PreconditionFailure)
    violation = detail.violations[0]
    assert (violation.type, violation.subject) == ("DEADLOCK", "tasks.ship")
    assert violation.description == "can wait for ever; after receive, approve"


def test_whatever_is_wrong_fits_into_the_metadata_that_clients_accept() -> None:
    problems = [Problem(f"tasks.{'ü' * 400}{n}", "bad", "ü" * 2_000, hint="ü" * 900) for n in range(3_000)]
    for error in (
        InvalidDocument("ü" * 9_000, problems),
        Unsound("ü" * 9_000, problems),
        NotFound("case", "ü" * 9_000),
    ):
        fault = faults.to_rpc(error)
        details = dict(fault.trailing)["grpc-status-details-bin"]
        assert len(details) * 4 / 3 + len(fault.message.encode()) * 3 < 8_192
        assert len(faults.to_problem(error).get("errors", ())) in (0, 3_000), "REST has room for all"
    (detail,) = unpacked(faults.to_status(InvalidDocument("bad", problems)), BadRequest)
    assert detail.field_violations[-1].description.startswith("and ")


def test_an_unknown_exception_tells_nothing_but_an_id() -> None:
    fault = faults.to_rpc(KeyError("password=hunter2"))
    assert fault.code is grpc.StatusCode.INTERNAL
    assert "hunter2" not in fault.message
    assert b"hunter2" not in dict(fault.trailing)["grpc-status-details-bin"]
    known = faults.known(RuntimeError("secret"))
    assert isinstance(known, faults.Internal)
    assert known.error_id in known.message
    assert faults.known(known) is known, "logged once"


def test_a_class_of_a_later_engine_is_answered_like_its_base() -> None:
    class Vanished(NotFound):
        """Not in the table."""

    assert faults.to_problem(Vanished("case", "x"))["status"] == 404
