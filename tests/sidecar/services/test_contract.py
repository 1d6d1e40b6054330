"""Every call of the contract either works here or says by name that it does not."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from knhk_sidecar.api import pb
from knhk_sidecar.api.services import unavailable
from tests.sidecar.services.server import Refusal, Sidecar, refused, snake

METHODS = [method for service in pb.SERVICES for method in service.methods]
LATER = {
    "PatternService": {"DecideRoutes"},
    "CaseService": {"PreviewMigration", "MigrateCases"},
    "WorkItemService": {
        "OfferWorkItem",
        "AllocateWorkItem",
        "ReallocateWorkItem",
        "DelegateWorkItem",
        "SuspendWorkItem",
        "ResumeWorkItem",
    },
}
NOW_OF_ADMIN = {
    "GetStatus",
    "ExplainPolicy",
    "GetPolicy",
    "AdvanceTime",
    "GetConfig",
    "SetLogLevel",
    "Backup",
    "ListAudit",
    "GetCheckpoint",
    "GetAuditProof",
    "GetReceipt",
    "ExportAudit",
    "VerifyHistory",
    "PutConnector",
    "ListConnectors",
    "DeleteConnector",
    "ListDeadLetters",
    "RetryDeadLetter",
    "DiscardDeadLetter",
}


def later(method: MethodDescriptor) -> bool:
    service = method.containing_service.name
    if service == "SubscriptionService":
        return True
    if service == "AdminService":
        return method.name not in NOW_OF_ADMIN
    return method.name in LATER.get(service, ())


def test_exactly_the_later_calls_are_missing(running: Sidecar) -> None:
    assert unavailable(running.implementations, running.engine) == tuple(
        sorted(f"{method.containing_service.name}.{method.name}" for method in METHODS if later(method))
    )


def test_no_service_has_a_method_that_the_contract_lacks(running: Sidecar) -> None:
    for service in pb.SERVICES:
        calls = {snake(method.name) for method in service.methods}
        assert {name for name in dir(running.implementations[service.full_name]) if name[0] != "_"} <= calls


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.containing_service.name}.{method.name}")
async def test_without_an_engine_every_call_but_admin_names_the_engine(
    engineless: Sidecar, method: MethodDescriptor
) -> None:
    if method.containing_service.name == "AdminService":
        return
    refusal = await called(engineless, method)
    assert refusal.code is grpc.StatusCode.UNIMPLEMENTED
    assert refusal.info.metadata["feature"] == "workflow engine"
    assert "KGC_SIDECAR_WORKFLOW_ENABLED" in refusal.message


async def called(running: Sidecar, method: MethodDescriptor) -> Refusal:
    """How an empty request fares."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    empty = GetMessageClass(method.input_type)()
    read = GetMessageClass(method.output_type).FromString

    async def drained(stream: AsyncIterable[Message]) -> None:
        async for _ in stream:
            pass

    if method.client_streaming:
        return await refused(drained(running.channel.stream_stream(path, WRITE, read)(iter([empty]))))
    if method.server_streaming:
        return await refused(drained(running.channel.unary_stream(path, WRITE, read)(empty)))
    return await refused(running.channel.unary_unary(path, WRITE, read)(empty))


WRITE: Callable[[Message], bytes] = lambda message: message.SerializeToString()  # noqa: E731  # typed, once
