"""The stages around a service, outermost first. Each is one `run`, which calls the next one at most once.

A stage is given the next one when it is made, so the order cannot change while running. A unary call gives its response
back through them; a response stream sends its messages through `call.send` and gives None.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Final, Protocol, cast

import grpc
import structlog
from google.protobuf.message import Message

from knhk_sidecar.api import faults
from knhk_sidecar.identity import principal as principals
from knhk_sidecar.identity.certificate import LeafCheck, RefusedCertificate
from knhk_sidecar.identity.principal import Principal
from knhk_sidecar.pipeline.call import Call, Request
from knhk_sidecar.pipeline.permissions import Permission
from knhk_sidecar.telemetry.counters import Counters
from knhk_sidecar.telemetry.log import Log
from knhk_workflow import Busy, CallMeta, DeadlineExceeded, StoreUnavailable, Unsupported, WorkflowError

Proceed = Callable[[Call, Request], Awaitable[Message | None]]
UnaryHandler = Callable[[Request, CallMeta], Awaitable[Message]]
StreamHandler = Callable[[Request, CallMeta], AsyncGenerator[Message, None]]
Handler = UnaryHandler | StreamHandler

REFUSALS_TOLD_SECONDS: Final = 1.0  # from one line about a call that a limit refused to the next
PRINCIPALS_MAX: Final = 4_096  # as many as leaves are remembered

_log = structlog.get_logger("knhk_sidecar.call")


class Stage(Protocol):
    """One step of a call's way."""

    async def run(self, call: Call, request: Request) -> Message | None:
        """Does its part and lets the next stage do the rest."""
        ...


class Refusal(Exception):
    """How a call ends that did not succeed; the only exception besides CancelledError that leaves the pipeline.

    `fault` is the gRPC form, made when it is sent; REST makes its own from `error`.
    """

    def __init__(self, error: WorkflowError) -> None:
        super().__init__(error.message)
        self.error = error

    @property
    def fault(self) -> faults.Fault:
        """The gRPC form."""
        return faults.to_rpc(self.error)

    @property
    def code(self) -> grpc.StatusCode:
        """The status code of the call."""
        return faults.answer(self.error).code


class Leaving(StoreUnavailable):
    """The daemon is going down; a stream can be opened again elsewhere or later, after what was received, and a call
    that only waited can be sent again."""

    reason = "LEAVING"

    def __init__(self) -> None:
        super().__init__("the sidecar is going down; ask again, a stream for what comes after what was received")


class Observe:
    """Counts and times every call, and writes its log line: at debug when it went well, at info when not."""

    def __init__(self, proceed: Proceed, log: Log, counters: Counters) -> None:
        self._proceed = proceed
        self._log = log
        self._counters = counters
        self._silent_until = 0.0
        self._untold = 0

    async def run(self, call: Call, request: Request) -> Message | None:
        began = time.perf_counter_ns()
        code, reason, told = "OK", "", True
        try:
            return await self._proceed(call, request)
        except Refusal as refusal:
            code, reason = refusal.code.name, refusal.error.reason
            told = self._tells(refusal.error)
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            took = time.perf_counter_ns() - began
            self._counters.ended(call.method.path, code, took)
            if code != "OK" and told:
                _log.info("call", **_line(call, request, code, took), reason=reason)
            elif self._log.debug_enabled:
                _log.debug("call", **_line(call, request, code, took), reason=reason)

    def _tells(self, error: WorkflowError) -> bool:
        """Count a refusal; whether it gets a line of its own. Of those that limits and deadlines made, one a second
        does: writing a line costs as much as refusing, and there are many when there is the least time for them."""
        self._counters.refused(error.reason)
        if not isinstance(error, Busy | DeadlineExceeded):
            return True
        now = time.monotonic()
        if now < self._silent_until:
            self._untold += 1
            return False
        if self._untold:
            _log.info("calls_refused", count=self._untold, detail="by limits or deadlines, since the last such line")
        self._silent_until, self._untold = now + REFUSALS_TOLD_SECONDS, 0
        return True


def _line(call: Call, request: Request, code: str, took: int) -> dict[str, str | float]:
    line: dict[str, str | float] = {
        "operation": call.method.name,
        "method": call.method.path,
        "protocol": call.protocol,
        "code": code,
        "duration_ms": round(took / 1e6, 3),
        "principal": call.principal.name,
        "peer": call.peer,
    }
    if trace_id := call.trace_id:
        line["trace_id"] = trace_id
    for subject in call.method.subjects:
        if value := getattr(request, subject):
            line["workflow_id" if subject == "spec_id" else subject] = value
    return line


class Translate:
    """Whatever went wrong becomes a Refusal. What callers cannot use is logged under an id and told as that id."""

    def __init__(self, proceed: Proceed) -> None:
        self._proceed = proceed

    async def run(self, call: Call, request: Request) -> Message | None:
        try:
            return await self._proceed(call, request)
        except Exception as error:
            raise Refusal(faults.known(error)) from error


class Identify:
    """Says who is calling: by the certificate that TLS verified, else by the listener. Never by what a caller sent."""

    def __init__(self, proceed: Proceed, leaves: LeafCheck | None, plain: Principal) -> None:
        """`leaves` checks certificates (None without TLS); `plain` is whoever comes without one."""
        self._proceed = proceed
        self._leaves = leaves
        self._plain = plain
        self._principals: dict[str, Principal] = {}

    async def run(self, call: Call, request: Request) -> Message | None:
        call.principal = self._plain if call.leaf is None else self._of_leaf(call.leaf, call.peer)
        return await self._proceed(call, request)

    def _of_leaf(self, pem: bytes, peer: str) -> Principal:
        if self._leaves is None:
            raise faults.Unauthenticated
        try:
            leaf = self._leaves.check(pem)
        except RefusedCertificate as refused:
            _log.warning("certificate_refused", peer=peer, problem=f"the certificate {refused}")
            raise faults.Unauthenticated("the client certificate is not an acceptable X509-SVID") from refused
        known = self._principals.get(leaf.fingerprint)
        if known is None:
            if len(self._principals) >= PRINCIPALS_MAX:
                self._principals.clear()
            known = self._principals[leaf.fingerprint] = principals.of_certificate(leaf.spiffe_id)
        return known


class Authorize:
    """Default deny: a method without a permission is nobody's, and without identity there is health only."""

    def __init__(self, proceed: Proceed) -> None:
        self._proceed = proceed

    async def run(self, call: Call, request: Request) -> Message | None:
        permission = call.method.permission
        if permission is not Permission.HEALTH:
            if not call.principal.identified:
                raise faults.Unauthenticated
            if permission is None:
                raise faults.PermissionDenied
        return await self._proceed(call, request)


class Invoke:
    """The innermost step: gives the request to its service together with who is calling."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    async def run(self, call: Call, request: Request) -> Message | None:
        method = call.method
        handler = self._handlers.get(method.path)
        if handler is None:
            raise Unsupported(f"{method.service.rpartition('.')[2]}.{method.name}")
        caller = call.principal
        request_id = cast(WithRequestId, request).request_id if method.has_request_id else ""
        meta = CallMeta(caller.tenant, caller.name, caller.roles, method.path, request_id, call.trace_id, call.deadline)
        if not method.server_streaming:
            return await cast(UnaryHandler, handler)(request, meta)
        assert call.send is not None, "a response stream needs somewhere to go"
        async with aclosing(cast(StreamHandler, handler)(request, meta)) as messages:
            async for message in messages:
                await call.send(message)
        return None


class WithRequestId(Protocol):
    """A request that carries an idempotency key."""

    request_id: str
