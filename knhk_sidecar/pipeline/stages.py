"""The stages around a service, outermost first. Each is one `run`, which calls the next one at most once.

A stage is given the next one when it is made, so the order cannot change while running. A unary call gives its response
back through them; a response stream sends its messages through `call.send` and gives None.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, cast

import grpc
import structlog
from google.protobuf.message import Message

from knhk_sidecar.api import faults
from knhk_sidecar.identity import principal as principals
from knhk_sidecar.identity.certificate import LeafCheck, RefusedCertificate
from knhk_sidecar.identity.grants import Verdict
from knhk_sidecar.identity.jwt_token import RefusedToken
from knhk_sidecar.identity.policy import Policy
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import ANONYMOUS, Principal
from knhk_sidecar.pipeline.call import Call, Method, Request
from knhk_sidecar.pipeline.permissions import Permission
from knhk_sidecar.pipeline.resources import durable_runs, resources_of
from knhk_sidecar.telemetry.counters import Counters
from knhk_sidecar.telemetry.log import Log
from knhk_sidecar.telemetry.sparing import Sparing
from knhk_workflow import Busy, CallMeta, DeadlineExceeded, Unsupported, WorkflowError

if TYPE_CHECKING:
    from knhk_sidecar.identity.jwt_check import Bearer, TokenCheck

Proceed = Callable[[Call, Request], Awaitable[Message | None]]
UnaryHandler = Callable[[Request, CallMeta], Awaitable[Message]]
StreamHandler = Callable[[Request, CallMeta], AsyncGenerator[Message, None]]
Handler = UnaryHandler | StreamHandler

STREAM_LOOK_SECONDS: Final = 1.0  # between two looks at the certificate or token of an open stream: a look-up
LIMITED_A_SECOND: Final = 1.0  # lines about calls that a limit refused
STRANGERS_AT_ONCE: Final = 500  # lines about callers whom nobody knows: enough to find out why a fleet is refused
STRANGERS_A_SECOND: Final = 5.0  # and in the long run: 0.1 GB a day
PRINCIPALS_MAX: Final = 4_096  # as many as leaves are remembered

_log = structlog.get_logger("knhk_sidecar.call")


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

    @property
    def rule(self) -> str:
        """The rule that denied the call; empty when none allows it, and for what policy did not refuse. Never told to
        the caller."""
        return self.error.rule if isinstance(self.error, faults.PermissionDenied) else ""


class Observe:
    """Counts and times every call, and writes its log line: at debug when it went well, at info when not."""

    def __init__(self, proceed: Proceed, log: Log, counters: Counters) -> None:
        self._proceed = proceed
        self._log = log
        self._counters = counters
        self._limited = Sparing(1, LIMITED_A_SECOND, "by limits or deadlines")
        self._strangers = Sparing(STRANGERS_AT_ONCE, STRANGERS_A_SECOND, "of callers whom nobody knows")

    async def run(self, call: Call, request: Request) -> Message | None:
        began = time.perf_counter_ns()
        code, told = "OK", True
        why = {"reason": ""}
        try:
            return await self._proceed(call, request)
        except Refusal as refusal:
            code, why = refusal.code.name, {"reason": refusal.error.reason}
            if isinstance(refusal.error, faults.PermissionDenied):
                why["rule"] = refusal.rule
            told = self._tells(refusal.error)
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            took = time.perf_counter_ns() - began
            self._counters.ended(call.method.path, code, took)
            if code != "OK" and told:
                _log.info("call", **_line(call, request, code, took), **why)
            elif self._log.debug_enabled:
                _log.debug("call", **_line(call, request, code, took), **why)

    def _tells(self, error: WorkflowError) -> bool:
        """Count a refusal; whether it gets a line of its own. Of those that limits and deadlines made, one a second
        does: writing a line costs as much as refusing, and there are many when there is the least time for them."""
        self._counters.refused(error.reason)
        if isinstance(error, Busy | DeadlineExceeded):
            return self._limited.admits()
        return not isinstance(error, faults.Unauthenticated) or self._strangers.admits()


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
    """Says who is calling: by the certificate that TLS verified; without one by a bearer token; else by the listener.

    A certificate decides alone: a token beside it is not looked at, so that it can give nothing. Without a certificate
    a token that is shown has to count: one that does not is refused, and never leads to what the listener alone gives.
    Nothing else that a caller sends says who it is. A stream ends with the certificate or token that it began with.
    """

    def __init__(
        self, proceed: Proceed, leaves: LeafCheck | None, plain: Principal, tokens: TokenCheck | None = None
    ) -> None:
        """`leaves` checks certificates (None without TLS), `tokens` bearer tokens (None: the header means nothing
        here); `plain` is whoever comes without either."""
        self._proceed = proceed
        self._leaves = leaves
        self._plain = plain
        self._tokens = tokens
        self._principals: dict[str, Principal] = {}
        self._told = Sparing(STRANGERS_AT_ONCE, STRANGERS_A_SECOND, "for their certificates or tokens")

    async def who(self, call: Call) -> None:
        """Says who calls before there is a request. Raises Unauthenticated."""
        call.principal = self._without_token(call) or (await self._of_token(call)).principal

    async def run(self, call: Call, request: Request) -> Message | None:
        if call.trouble is not None:
            raise call.trouble
        if call.method.streams:
            return await self._stream(call, request)
        if call.principal is ANONYMOUS:  # else a transport has asked already
            call.principal = self._without_token(call) or (await self._of_token(call)).principal
        return await self._proceed(call, request)

    async def _stream(self, call: Call, request: Request) -> Message | None:
        known = self._without_token(call)
        if known is None:
            bearer = await self._of_token(call)
            call.principal = bearer.principal
            assert self._tokens is not None
            shown = partial(self._of_shown, self._tokens, call, cast(str, call.authorization[0]))
            return await self._as_long_as_good(call, request, shown, self._tokens.left(bearer))
        call.principal = known
        if call.leaf is None:
            return await self._proceed(call, request)
        return await self._as_long_as_good(call, request, partial(self._of_leaf, call.leaf, call.chain, call.peer))

    def _without_token(self, call: Call) -> Principal | None:
        """Who calls, when it is not a token that says so."""
        if call.leaf is not None:
            return self._of_leaf(call.leaf, call.chain, call.peer)
        return self._plain if self._tokens is None or not call.authorization else None

    async def _of_token(self, call: Call) -> Bearer:
        tokens, credentials = self._tokens, call.authorization
        assert tokens is not None
        try:
            if not call.private:
                raise RefusedToken("came over a connection that others can read")
            if len(credentials) > 1 or not isinstance(credentials[0], str):
                raise RefusedToken("is not the only one, or no text")
            return tokens.known(credentials[0]) or await tokens.check(credentials[0])
        except RefusedToken as refused:
            if self._told.admits():
                _log.warning("token_refused", peer=call.peer, problem=f"the token {refused}")
            raise faults.TokenRefused(str(refused)) from refused

    def _of_shown(self, tokens: TokenCheck, call: Call, credentials: str) -> None:
        """Of a token that has passed: whether it still does."""
        try:
            tokens.confirm(credentials)
        except RefusedToken as refused:
            _log.info("token_ended", peer=call.peer, principal=call.principal.name, problem=f"the token {refused}")
            raise faults.TokenRefused(str(refused)) from refused

    async def _as_long_as_good(
        self, call: Call, request: Request, still: Callable[[], object], seconds: float | None = None
    ) -> Message | None:
        """A stream ends with the certificate or token that it was opened with, or with the authority behind that.

        `still` raises Unauthenticated when that counts no more; `seconds` is how long a token does at the longest.
        """
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(seconds)
        problem: list[faults.Unauthenticated] = []
        next_look: asyncio.TimerHandle

        def look() -> None:
            nonlocal next_look
            try:
                still()
            except faults.Unauthenticated as error:
                problem.append(error)
                limit.reschedule(loop.time())
            else:
                next_look = loop.call_later(STREAM_LOOK_SECONDS, look)

        next_look = loop.call_later(STREAM_LOOK_SECONDS, look)
        try:
            async with limit:
                return await self._proceed(call, request)
        except TimeoutError:
            if not limit.expired():
                raise
            raise problem[0] if problem else faults.TokenRefused("has expired") from None
        finally:
            next_look.cancel()

    def _of_leaf(self, pem: bytes, chain: bytes, peer: str) -> Principal:
        if self._leaves is None:
            raise faults.Unauthenticated
        try:
            leaf = self._leaves.check(pem, chain)
        except RefusedCertificate as refused:
            if self._told.admits():
                _log.warning("certificate_refused", peer=peer, rule=refused.rule, problem=f"the certificate {refused}")
            raise faults.Unauthenticated(
                "the client certificate is not an acceptable X509-SVID", rule=f"certificate-{refused.rule}: {refused}"
            ) from refused
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
        if permission is Permission.PATTERN_EXECUTE and not (births := grants.verdict(Permission.CASE_WRITE)).plain:
            request = _kept(method, request, births)
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
            same = same and before.rate == now.rate  # its messages are counted by what held when it began
            if method.permission is Permission.PATTERN_EXECUTE:
                births = Permission.CASE_WRITE
                same = same and before.grants.verdict(births) == now.grants.verdict(births)
        else:
            new = new.about(resources_of(method.name, cast(Message, self.request))) if new.narrowed else new
            if not new.allowed:
                return faults.PermissionDenied(new.rule)
            same = True
        return None if same and (before.tenant, before.roles) == (now.tenant, now.roles) else faults.PolicyChanged()


def _within(method: Method, request: Request, verdict: Verdict) -> Request:
    """The request, when it is about what the caller may do this to; the messages of a stream are looked at as they
    come. Raises PermissionDenied."""
    if verdict.narrowed and method.client_streaming:
        return _checked(method.name, cast("AsyncIterator[Message]", request), verdict)
    judged = verdict.about(resources_of(method.name, cast(Message, request))) if verdict.narrowed else verdict
    if not judged.allowed:
        raise faults.PermissionDenied(judged.rule)
    return request


def _kept(method: Method, request: Request, verdict: Verdict) -> Request:
    """The request, when the caller may make the cases that its durable runs are: a pattern's run that is kept is a case
    like any other. Raises PermissionDenied."""
    if method.client_streaming:
        return _keeping(cast("AsyncIterator[Message]", request), verdict)
    _refuse_births(cast(Message, request), verdict)
    return request


async def _keeping(requests: AsyncIterator[Message], verdict: Verdict) -> AsyncIterator[Message]:
    async for request in requests:
        _refuse_births(request, verdict)
        yield request


def _refuse_births(request: Message, verdict: Verdict) -> None:
    births = durable_runs(request)
    if births and not (judged := verdict.about(births)).allowed:
        raise faults.PermissionDenied(judged.rule)


async def _checked(name: str, requests: AsyncIterator[Message], verdict: Verdict) -> AsyncIterator[Message]:
    """The messages of a stream as long as they are about what the caller may do it to."""
    async for request in requests:
        judged = verdict.about(resources_of(name, request))
        if not judged.allowed:
            raise faults.PermissionDenied(judged.rule)
        yield request


class Invoke:
    """The innermost step: gives the request to its service together with who is calling."""

    def __init__(self, handlers: Mapping[str, Handler], opened: Callable[[Call, Request], None] | None = None) -> None:
        """`opened` is told of each stream before it begins."""
        self._handlers = handlers
        self._opened = opened

    async def run(self, call: Call, request: Request) -> Message | None:
        method = call.method
        handler = self._handlers.get(method.path)
        if handler is None:
            raise Unsupported(f"{method.service.rpartition('.')[2]}.{method.name}")
        caller = call.principal
        request_id = cast(WithRequestId, request).request_id if method.has_request_id else ""
        meta = CallMeta(
            caller.tenant,
            caller.name,
            caller.roles,
            method.path,
            request_id,
            call.trace_id,
            call.deadline,
            call.witness,
        )
        if method.streams and self._opened is not None:
            self._opened(call, request)
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
