"""A grpc.aio server with nothing between a call and its service: what these tests are about is the meaning of calls."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import aio
from grpc_status import rpc_status

from knhk_sidecar.api import faults, pb
from knhk_sidecar.api.services import Component, Daemon, Setting, services
from knhk_workflow import CallMeta, StateStore, WorkflowEngine

Context = aio.ServicerContext[Message, Message]
UnaryMethod = Callable[[Message, CallMeta], Awaitable[Message]]
StreamMethod = Callable[[Message | AsyncIterator[Message], CallMeta], AsyncIterator[Message]]

M = TypeVar("M", bound=Message)

CALLER = "spiffe://test.example/app"
START_NS = 1_700_000_000_000_000_000

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def snake(name: str) -> str:
    """`GetCase` as `get_case`."""
    return _WORD.sub("_", name).lower()


@dataclass
class Levels:
    """Log levels set so far."""

    level: str = "info"

    def change(self, level: str, logger: str, seconds: float) -> str:
        before, self.level = self.level, level
        return before


def daemon() -> Daemon:
    """A daemon with one healthy and one degraded part and two settings."""
    return Daemon(
        version="0.0.1",
        instance_id="test",
        started_at=START_NS,
        region="",
        features=("rest", "mtls"),
        document_schema=b'{"type":"object"}',
        now=lambda: START_NS + 2_500_000_000,
        components=lambda: (Component("store", "healthy"), Component("otel", "degraded", "no collector")),
        settings=lambda: (
            Setting("log_level", "debug", "flag", "--log-level", "info", "How much is logged.", False),
            Setting("workflow.db_path", "./workflow_db", "default", "", "./workflow_db", "Where.", False),
        ),
        set_log_level=Levels().change,
    )


@dataclass(frozen=True)
class Sidecar:
    """A running server and stubs for it."""

    engine: WorkflowEngine | None
    channel: aio.Channel
    implementations: Mapping[str, object]
    workflows: pb.WorkflowServiceAsyncStub
    cases: pb.CaseServiceAsyncStub
    items: pb.WorkItemServiceAsyncStub
    patterns: pb.PatternServiceAsyncStub
    admin: pb.AdminServiceAsyncStub


@asynccontextmanager
async def sidecar(path: str, *, engine_on: bool = True) -> AsyncIterator[Sidecar]:
    """The services over an engine whose store is at `path`."""
    if not engine_on:
        async with _served(None) as running:
            yield running
        return
    async with WorkflowEngine(StateStore(path)) as engine, _served(engine) as running:
        yield running


@asynccontextmanager
async def _served(engine: WorkflowEngine | None) -> AsyncIterator[Sidecar]:
    implementations = services(engine, daemon())
    server = aio.server()
    for service in pb.SERVICES:
        handlers = {
            method.name: _handler(method, getattr(implementations[service.full_name], snake(method.name)))
            for method in service.methods
            if hasattr(implementations[service.full_name], snake(method.name))
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Sidecar(
            engine,
            channel,
            implementations,
            pb.WorkflowServiceStub(channel),
            pb.CaseServiceStub(channel),
            pb.WorkItemServiceStub(channel),
            pb.PatternServiceStub(channel),
            pb.AdminServiceStub(channel),
        )
    await server.stop(None)


def _handler(method: MethodDescriptor, invoke: UnaryMethod | StreamMethod) -> grpc.RpcMethodHandler[Message, Message]:
    def meta(request: object) -> CallMeta:
        request_id = "" if method.client_streaming else getattr(request, "request_id", "")
        return CallMeta(principal=CALLER, roles=("clerk",), method=method.full_name, request_id=request_id)

    async def unary(request: Message, context: Context) -> Message:
        try:
            return await cast("UnaryMethod", invoke)(request, meta(request))
        except Exception as error:  # noqa: BLE001  # what the daemon's pipeline does with every error
            return await _refuse(error, context)

    async def streaming(request: Message | AsyncIterator[Message], context: Context) -> AsyncIterator[Message]:
        try:
            async for message in cast("StreamMethod", invoke)(request, meta(request)):
                yield message
        except Exception as error:  # noqa: BLE001  # as above
            await _refuse(error, context)

    read, write = GetMessageClass(method.input_type).FromString, GetMessageClass(method.output_type).SerializeToString
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(streaming, read, write)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(streaming, read, write)
    return grpc.unary_unary_rpc_method_handler(unary, read, write)


async def _refuse(error: Exception, context: Context) -> Message:
    fault = faults.to_rpc(error)
    await context.abort(fault.code, fault.message, fault.trailing)
    raise AssertionError("abort returns never")


@dataclass(frozen=True)
class Refusal:
    """A failed call: its code, and what its details say."""

    code: grpc.StatusCode
    message: str
    status: Status
    trailing: Mapping[str, str | bytes]

    @property
    def info(self) -> ErrorInfo:
        """The ErrorInfo that every error has exactly once."""
        return info_of(self.status)

    @property
    def fields(self) -> list[str]:
        """The paths in BadRequest."""
        return [
            violation.field for detail in unpacked(self.status, BadRequest) for violation in detail.field_violations
        ]


async def refused(call: Awaitable[object]) -> Refusal:
    """How the call failed; it is an error when it did not."""
    try:
        answer = await call
    except aio.AioRpcError as error:
        return refusal_of(error)
    raise AssertionError(f"the call succeeded: {answer}")


def refusal_of(error: aio.AioRpcError) -> Refusal:
    """What a client library makes of a failed call."""
    status = rpc_status.from_call(cast("grpc.Call", error))
    assert status is not None, "no grpc-status-details-bin"
    return Refusal(
        error.code(),
        error.details() or "",
        status,
        dict(cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata())),
    )


def info_of(status: Status) -> ErrorInfo:
    """The ErrorInfo of a status."""
    (info,) = unpacked(status, ErrorInfo)
    assert info.domain == "sidecar.knhk.org"
    return info


def unpacked(status: Status, kind: type[M]) -> list[M]:
    """A status's details of one type."""
    found = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found
