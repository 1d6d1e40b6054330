"""The services behind the daemon's own pipeline and gRPC server, on a loopback port, over an engine on disk."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import aio
from grpc_status import rpc_status

from knhk_sidecar.api import pb
from knhk_sidecar.api.rpc import Listeners, RpcServer
from knhk_sidecar.api.services import Component, Daemon, Setting, services
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import Principal
from knhk_sidecar.pipeline.call import methods_of
from knhk_sidecar.pipeline.explaining import Explaining
from knhk_sidecar.pipeline.pipeline import Pipeline
from knhk_sidecar.telemetry.counters import Counters
from knhk_sidecar.telemetry.log import Log
from knhk_workflow import Clock, StateStore, WorkflowEngine

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

    def change(self, level: str, seconds: float) -> str:
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
        request_bytes=SidecarConfig().max_message_bytes,
        streams_per_connection=SidecarConfig().max_streams_per_connection,
        now=lambda: START_NS + 2_500_000_000,
        components=lambda: (Component("store", "healthy"), Component("otel", "degraded", "no collector")),
        settings=lambda: (
            Setting("log_level", "debug", "flag", "--log-level", "info", "How much is logged.", False),
            Setting("workflow.db_path", "./workflow_db", "default", "", "./workflow_db", "Where.", False),
        ),
        set_log_level=Levels().change,
        policy=Explaining(Policies.developer()),
    )


@dataclass(frozen=True)
class Sidecar:
    """A running server and stubs for it."""

    engine: WorkflowEngine | None
    address: str
    channel: aio.Channel
    implementations: Mapping[str, object]
    workflows: pb.WorkflowServiceAsyncStub
    cases: pb.CaseServiceAsyncStub
    items: pb.WorkItemServiceAsyncStub
    patterns: pb.PatternServiceAsyncStub
    admin: pb.AdminServiceAsyncStub
    schedules: pb.ScheduleServiceAsyncStub


@asynccontextmanager
async def sidecar(path: str, *, engine_on: bool = True, clock: Clock | None = None) -> AsyncIterator[Sidecar]:
    """The services over an engine whose store is at `path`, by the machine's clock unless another one is given."""
    if not engine_on:
        async with _served(None) as running:
            yield running
        return
    async with WorkflowEngine(StateStore(path), clock=clock) as engine, _served(engine) as running:
        yield running


@asynccontextmanager
async def _served(engine: WorkflowEngine | None) -> AsyncIterator[Sidecar]:
    implementations = services(engine, daemon())
    pipeline = Pipeline(
        {path: method for service in pb.SERVICES for path, method in methods_of(service).items()},
        implementations,
        leaves=None,
        plain=Principal("dev", CALLER),
        now=engine.now if engine else time.time_ns,
        log=Log("warning"),
        counters=Counters(),
    )
    server = RpcServer(pipeline, SidecarConfig())
    real = await server.start(Listeners("127.0.0.1:0", None))
    try:
        async with aio.insecure_channel(real.main) as channel:
            yield Sidecar(
                engine,
                real.main,
                channel,
                implementations,
                pb.WorkflowServiceStub(channel),
                pb.CaseServiceStub(channel),
                pb.WorkItemServiceStub(channel),
                pb.PatternServiceStub(channel),
                pb.AdminServiceStub(channel),
                pb.ScheduleServiceStub(channel),
            )
    finally:
        await server.stop(0)


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
