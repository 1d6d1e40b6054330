"""The stages around a service, outermost first. Each is one `run`, which calls the next one at most once.

A stage is given the next one when it is made, so the order cannot change while running. A unary call gives its response
back through them; a response stream sends its messages through `call.send` and gives None.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Final, Protocol, cast

import grpc
import structlog
from google.protobuf.message import Message

from knhk_sidecar.api import faults
from knhk_sidecar.identity import principal as principals
from knhk_sidecar.identity.certificate import LeafCheck, RefusedCertificate
from knhk_sidecar.identity.grants import Verdict
from knhk_sidecar.identity.policy import Policy
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import Principal
from knhk_sidecar.pipeline.call import Call, Method, Request
from knhk_sidecar.pipeline.permissions import Permission
from knhk_sidecar.pipeline.resources import resources_of
from knhk_sidecar.telemetry.counters import Counters
from knhk_sidecar.telemetry.log import Log
from knhk_workflow import Busy, CallMeta, DeadlineExceeded, StoreUnavailable, Unsupported, WorkflowError

Proceed = Callable[[Call, Request], Awaitable[Message | None]]
UnaryHandler = Callable[[Request, CallMeta], Awaitable[Message]]
StreamHandler = Callable[[Request, CallMeta], AsyncGenerator[Message, None]]
Handler = UnaryHandler | StreamHandler

RETRY_AFTER_MS: Final = 100  # a full queue is worked off in about a quarter of a second
STREAM_RETRY_AFTER_MS: Final = 1_000  # streams end when their reader ends them
PRINCIPALS_MAX: Final = 4_096  # as many as leaves are remembered

_log = structlog.get_logger("knhk_sidecar.call")


class Stage(Protocol):
    """One step of a call's way."""

    async def run(self, call: Call, request: Request) -> Message | None:
        """Does its part and lets the next stage do the rest."""
        ...


class Refusal(Exception):
    """How a call ends that did not succeed; the only exception besides CancelledError that leaves the pipeline.

    `fault` is the gRPC form; REST makes its own from `error`.
    """

    def __init__(self, error: WorkflowError) -> None:
        super().__init__(error.message)
        self.error = error
        self.fault = faults.to_rpc(error)

    @property
    def code(self) -> grpc.StatusCode:
        """The status code of the call."""
        return self.fault.code

    @property
    def rule(self) -> str:
        """The rule that denied the call; empty when none allows it, and for what policy did not refuse. Never told to
        the caller."""
        return self.error.rule if isinstance(self.error, faults.PermissionDenied) else ""


class Leaving(StoreUnavailable):
    """The daemon is going down; a stream can be opened again elsewhere or later, after what was received, and a call
    that only waited can be sent again."""

    reason = "LEAVING"

    def __init__(self) -> None:
        super().__init__("the sidecar is going down; ask again, a stream for what comes after what was received")


class PolicyChanged(StoreUnavailable):
    """Another policy is in force, under which this stream would have begun otherwise: with another tenant, other roles
    in workflows, other narrowings. Nothing of it was lost; it can be opened again after what was received."""

    reason = "POLICY_CHANGED"

    def __init__(self) -> None:
        super().__init__("the policy has changed; open the stream again, for what comes after what was received")


class Observe:
    """Counts and times every call, and writes its log line: at debug when it went well, at info when not."""

    def __init__(self, proceed: Proceed, log: Log, counters: Counters) -> None:
        self._proceed = proceed
        self._log = log
        self._counters = counters

    async def run(self, call: Call, request: Request) -> Message | None:
        began = time.perf_counter_ns()
        code, why = "OK", {"reason": ""}
        try:
            return await self._proceed(call, request)
        except Refusal as refusal:
            code, why = refusal.code.name, {"reason": refusal.error.reason}
            if isinstance(refusal.error, faults.PermissionDenied):
                why["rule"] = refusal.rule
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            took = time.perf_counter_ns() - began
            self._counters.ended(call.method.path, code, took)
            if code != "OK":
                _log.info("call", **_line(call, request, code, took), **why)
            elif self._log.debug_enabled:
                _log.debug("call", **_line(call, request, code, took))


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
    """Default deny: what no rule of the policy in force allows is refused, and without identity there is health only.

    The caller gets its tenant, its roles and its grants here. Who opened a stream, or waits for a case, is judged again
    when another policy comes into force; calls that change something are not: what they were allowed to begin, they may
    have the answer of.
    """

    def __init__(self, proceed: Proceed, policies: Policies) -> None:
        self._proceed = proceed
        self._policies = policies
        self._open: dict[asyncio.Task[object], _Judged] = {}
        policies.changed.append(self.judge_again)

    async def run(self, call: Call, request: Request) -> Message | None:
        method = call.method
        permission = method.permission
        if permission is Permission.HEALTH:
            return await self._proceed(call, request)
        came = call.principal
        if came.kind == "anonymous":
            raise faults.Unauthenticated
        policy = self._policies.current
        caller = call.principal = policy.known.get(came) or policy.decide(came)
        grants = caller.grants
        verdict = grants.verdict(permission)
        if not verdict.plain:
            request = _within(method, request, verdict)
        if not grants.may_allow_unsound and getattr(request, "allow_unsound", False):
            raise faults.PermissionDenied(grants.unsound_rule)
        if method.server_streaming or method.client_streaming or (method.waits and not method.has_request_id):
            return await self._judged(call, request, came)
        return await self._proceed(call, request)

    def judge_again(self) -> None:
        """Another policy is in force: whoever may no longer do what it has under way is ended."""
        for task, judged in tuple(self._open.items()):
            if judged.ending is None:
                judged.ending = judged.under(self._policies.current)
                if judged.ending is not None:
                    task.cancel()

    async def _judged(self, call: Call, request: Request, came: Principal) -> Message | None:
        """What `judge_again` may end while it runs."""
        task = asyncio.current_task()
        assert task is not None
        judged = self._open[task] = _Judged(call, request, came)
        try:
            return await self._proceed(call, request)
        except asyncio.CancelledError:
            if judged.ending is None or task.uncancel():
                raise
            raise judged.ending from None
        finally:
            del self._open[task]


class _Judged:
    """A stream, or a call that waits, and what it was allowed as."""

    __slots__ = ("call", "came", "ending", "request")

    def __init__(self, call: Call, request: Request, came: Principal) -> None:
        self.call = call
        self.request = request
        self.came = came
        self.ending: WorkflowError | None = None
        """What it is being ended with."""

    def under(self, policy: Policy) -> WorkflowError | None:
        """Why it has to end under this policy; None: it may go on."""
        method, before, now = self.call.method, self.call.principal, policy.decide(self.came)
        old, new = before.grants.verdict(method.permission), now.grants.verdict(method.permission)
        if method.client_streaming:
            if not new.allowed and not new.allowances:
                return faults.PermissionDenied(new.rule)
            same = (old.narrowed, new.narrowed) == (False, False) or old == new
        else:
            new = new.about(resources_of(method.name, cast(Message, self.request))) if new.narrowed else new
            if not new.allowed:
                return faults.PermissionDenied(new.rule)
            same = True
        return None if same and (before.tenant, before.roles) == (now.tenant, now.roles) else PolicyChanged()


def _within(method: Method, request: Request, verdict: Verdict) -> Request:
    """The request, when it is about what the caller may do this to; the messages of a stream are looked at as they
    come. Raises PermissionDenied."""
    if verdict.narrowed and method.client_streaming:
        return _checked(method.name, cast("AsyncIterator[Message]", request), verdict)
    judged = verdict.about(resources_of(method.name, cast(Message, request))) if verdict.narrowed else verdict
    if not judged.allowed:
        raise faults.PermissionDenied(judged.rule)
    return request


async def _checked(name: str, requests: AsyncIterator[Message], verdict: Verdict) -> AsyncIterator[Message]:
    """The messages of a stream as long as they are about what the caller may do it to."""
    async for request in requests:
        judged = verdict.about(resources_of(name, request))
        if not judged.allowed:
            raise faults.PermissionDenied(judged.rule)
        yield request


class Admit:
    """Bounds what is executed at once. Beyond it calls wait in order, and beyond that they are refused before any work.

    Streams and calls that wait for a case are bounded on their own: they hold no processor. Health is always admitted.
    """

    def __init__(
        self,
        proceed: Proceed,
        *,
        now: Callable[[], int],
        in_flight: int,
        queued: int,
        waiting: int,
        streams_per_connection: int,
    ) -> None:
        self._proceed = proceed
        self._now = now
        self._in_flight_max = in_flight
        self._queued_max = queued
        self._waiting_max = waiting
        self._streams_max = streams_per_connection
        self._queue: deque[asyncio.Future[None]] = deque()
        self._streams: dict[str, int] = {}
        self._open: dict[asyncio.Task[object], Method] = {}
        self._ended: set[asyncio.Task[object]] = set()
        self._leaving = False
        self.in_flight = 0
        self.waiting = 0

    @property
    def queued(self) -> int:
        """Calls that wait for their turn."""
        return sum(not turn.done() for turn in self._queue)

    @property
    def streams(self) -> int:
        """Open streams of all connections."""
        return sum(self._streams.values())

    async def run(self, call: Call, request: Request) -> Message | None:
        method = call.method
        if method.streams:
            return await self._stream(call, request)
        if method.waits and (not method.wait_field or cast(Message, request).HasField("wait")):
            return await self._wait(call, request)
        if method.permission is Permission.HEALTH:
            return await self._proceed(call, request)
        if self.in_flight < self._in_flight_max:
            self.in_flight += 1
        else:
            await self._turn()
        try:
            if call.deadline and self._now() >= call.deadline:
                raise DeadlineExceeded("the deadline passed before the call was begun; nothing was executed")
            return await self._proceed(call, request)
        finally:
            self._leave()

    def end_streams(self, *, working: bool) -> None:
        """The daemon is going down: no new streams, and those that only watch end now; with `working`, all of them do.
        Calls that only wait for a case end with the latter; one that changed something keeps its answer.

        Health ends its own, after it told its watchers.
        """
        self._leaving = True
        for task, method in tuple(self._open.items()):
            if method.permission is not Permission.HEALTH and (
                working or (method.streams and not method.client_streaming)
            ):
                self._ended.add(task)
                task.cancel()

    async def _turn(self) -> None:
        """Waits until a call that leaves hands its place over."""
        if len(self._queue) >= self._queued_max and self.queued >= self._queued_max:
            raise Busy("the queue of calls", RETRY_AFTER_MS)
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the place was ours already
                self._leave()
            raise

    def _leave(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.in_flight -= 1

    async def _wait(self, call: Call, request: Request) -> Message | None:
        if self.waiting >= self._waiting_max:
            raise Busy("the number of calls that wait for a case", STREAM_RETRY_AFTER_MS)
        self.waiting += 1
        try:
            return await (self._proceed if call.method.has_request_id else self._ending)(call, request)
        finally:
            self.waiting -= 1

    async def _stream(self, call: Call, request: Request) -> Message | None:
        count = self._streams.get(call.peer, 0)
        if count >= self._streams_max:
            raise Busy("the number of open streams of this connection", STREAM_RETRY_AFTER_MS)
        self._streams[call.peer] = count + 1
        try:
            return await self._ending(call, request)
        finally:
            rest = self._streams[call.peer] - 1
            if rest:
                self._streams[call.peer] = rest
            else:
                del self._streams[call.peer]

    async def _ending(self, call: Call, request: Request) -> Message | None:
        """What `end_streams` may end while it runs."""
        if self._leaving:
            raise Leaving
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = call.method
        try:
            return await self._proceed(call, request)
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            raise Leaving from None
        finally:
            del self._open[task]
            self._ended.discard(task)


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
