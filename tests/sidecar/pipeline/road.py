"""A pipeline around a service of the test's making, driven without a transport."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import Message

from knhk_sidecar.api import pb
from knhk_sidecar.identity.certificate import LeafCheck
from knhk_sidecar.identity.jwt_check import TokenCheck
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import Principal
from knhk_sidecar.pipeline import Auditing, Call, Limits, Pipeline
from knhk_sidecar.pipeline.call import methods_of
from knhk_sidecar.telemetry.counters import Counters
from knhk_sidecar.telemetry.log import Log
from knhk_workflow import CallMeta, Operation

DEVELOPER = Principal("dev", "spiffe://knhk.dev/dev/local")
CASES = "knhk.sidecar.v1.CaseService"
METHODS = {path: method for service in pb.SERVICES for path, method in methods_of(service).items()}


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.time = 1_000_000_000

    def __call__(self) -> int:
        return self.time


@dataclass
class Cases:
    """A case service whose GetCase and WaitCase do what the test says; everything it was told is kept."""

    act: Callable[[pb.GetCaseRequest, CallMeta], Awaitable[None]]
    metas: list[CallMeta] = field(default_factory=list)

    async def get_case(self, request: pb.GetCaseRequest, meta: CallMeta) -> pb.GetCaseResponse:
        self.metas.append(meta)
        await self.act(request, meta)
        return pb.GetCaseResponse(case=pb.Case(case_id=request.case_id))

    async def wait_case(self, request: pb.WaitCaseRequest, meta: CallMeta) -> pb.WaitCaseResponse:
        self.metas.append(meta)
        await self.act(pb.GetCaseRequest(case_id=request.case_id), meta)
        return pb.WaitCaseResponse()

    async def create_case(self, request: pb.CreateCaseRequest, meta: CallMeta) -> pb.CreateCaseResponse:
        self.metas.append(meta)
        return pb.CreateCaseResponse()

    async def watch_case(
        self, request: pb.WatchCaseRequest, meta: CallMeta
    ) -> AsyncGenerator[pb.WatchCaseResponse, None]:
        self.metas.append(meta)
        yield pb.WatchCaseResponse()
        await self.act(pb.GetCaseRequest(case_id=request.case_id), meta)
        yield pb.WatchCaseResponse()

    async def stream_run_case(
        self, requests: AsyncIterator[pb.StreamRunCaseRequest], meta: CallMeta
    ) -> AsyncGenerator[pb.StreamRunCaseResponse, None]:
        self.metas.append(meta)
        async for request in requests:
            yield pb.StreamRunCaseResponse(correlation_id=request.correlation_id)
            await self.act(pb.GetCaseRequest(), meta)


async def at_once(request: pb.GetCaseRequest, meta: CallMeta) -> None:
    """Answers without doing anything."""


class Road:
    """A pipeline with its service, its log and its counters."""

    def __init__(
        self,
        act: Callable[[pb.GetCaseRequest, CallMeta], Awaitable[None]] = at_once,
        *,
        plain: Principal = DEVELOPER,
        leaves: LeafCheck | None = None,
        limits: Limits | None = None,
        tokens: TokenCheck | None = None,
        level: str = "debug",
        policies: Policies | None = None,
        services: Mapping[str, object] | None = None,
        audited: bool = False,
    ) -> None:
        """`services`: beside the case service. `audited`: what the audit is given is in `operations`."""
        self.clock = Clock()
        self.cases = Cases(act)
        self.counters = Counters()
        self.lines = io.StringIO()
        self.log = Log(level, "json", self.lines)
        self.sent: list[Message] = []
        self.operations: list[Operation] = []
        self.pipeline = Pipeline(
            METHODS,
            {CASES: self.cases, **(services or {})},
            leaves=leaves,
            plain=plain,
            now=self.clock,
            log=self.log,
            counters=self.counters,
            limits=limits or Limits(),
            tokens=tokens,
            policies=policies,
            auditing=Auditing(lambda operation, _: self.operations.append(operation), lambda _: False, lambda: False)
            if audited
            else None,
        )

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def call(
        self,
        name: str,
        *,
        service: str = CASES,
        peer: str = "ipv4:127.0.0.1:1",
        leaf: bytes | None = None,
        deadline: int = 0,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> Call:
        method = METHODS[f"/{service}/{name}"]
        return Call(
            method,
            protocol="grpc",
            peer=peer,
            leaf=leaf,
            deadline=deadline,
            metadata=metadata,
            send=self.send if method.server_streaming else None,
        )

    async def get(self, case_id: str = "c", **about: object) -> Message | None:
        """GetCase."""
        call = self.call("GetCase", **about)  # type: ignore[arg-type]  # as in `call`
        return await self.pipeline.run(call, pb.GetCaseRequest(case_id=case_id))


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits until it holds; AssertionError after a minute."""
    import asyncio

    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.005)
