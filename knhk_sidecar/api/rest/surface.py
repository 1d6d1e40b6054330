"""The ASGI application: one generic way from an HTTP request to the pipeline and back.

    request -> route -> Call -> who calls -> message (path, query, body, Idempotency-Key) -> pipeline.run -> JSON, or
    server-sent events

Health answers whoever asks; everything else is authorized by the pipeline like a gRPC call. A body is read when it is
known who sends it, a large one beside the event loop: reading costs more than anything else that a request does. What
cannot be read is refused through the pipeline, so that it is counted and recorded. Browsers are kept out by
default: a request with a foreign `Origin`, and on a loopback listener one with a foreign `Host`, is refused, because a
web page must not be able to drive the sidecar of the person who reads it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from knhk_sidecar.api import pb
from knhk_sidecar.api.faults import Leaving, known, to_problem
from knhk_sidecar.api.rest import canonical
from knhk_sidecar.api.rest.bodies import request_body
from knhk_sidecar.api.rest.events import Stream, resume_field
from knhk_sidecar.api.rest.openapi import description
from knhk_sidecar.api.rest.page import CONTENT_SECURITY_POLICY, PAGE
from knhk_sidecar.api.rest.problems import Refused, fault_response
from knhk_sidecar.api.rest.routes import Route, RouteTable
from knhk_sidecar.api.wire import batch
from knhk_sidecar.pipeline import Call, Refusal
from knhk_sidecar.pipeline.health import HealthView, worst
from knhk_workflow import InvalidInput, LimitExceeded

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from starlette.types import Receive, Scope, Send

    from knhk_sidecar.pipeline import Pipeline

LEAF: Final = "knhk.leaf"  # scope extension: the PEM of the certificate that TLS verified
CHAIN: Final = "knhk.chain"  # scope extension: the PEM of those that came with it
LOOPBACK: Final = "knhk.loopback"  # scope extension: the listener is reached from this host only
BODY_SECONDS: Final = 30.0  # a body of 4 MB at 1 Mbit/s
WAIT_SECONDS_MAX: Final = 3_600.0  # of `Prefer: wait=`; beyond an hour a connection does not survive what is between
BODY_AT_ONCE_BYTES: Final = 64 * 1024  # read in the event loop: the worst of this size takes 20 ms, the usual one
LENGTH_DIGITS_MAX: Final = 20  # of Content-Length: 2^64
OPEN_SECONDS: Final = 0.25  # a stream with nothing to say opens after this; an error is told as a status until then
REQUEST_ID_HEADER: Final = "idempotency-key"

_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6}(?:\.\d{1,3})?)")
_LOCAL_HOST = re.compile(r"(localhost|[a-z0-9.-]+\.localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_SAFE: Final = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
_STATUS_PATH: Final = "/knhk.sidecar.v1.AdminService/GetStatus"


@dataclass(frozen=True, slots=True)
class Surface:
    """The application.

    `body_bytes_max` bounds a request's body, `head_bytes_max` its path and headers; `leaving` is set when the daemon
    drains and streams have to end.
    """

    pipeline: Pipeline
    health: HealthView
    table: RouteTable
    body_bytes_max: int
    head_bytes_max: int
    leaving: asyncio.Event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Only HTTP; raises only for cancellation, and when it broke in the middle of a response."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        request = Request(scope, receive)
        if request.method == "HEAD":
            send = _without_body(send)
        begun = False

        async def noting(message: MutableMapping[str, object]) -> None:
            nonlocal begun
            begun = True
            await out(message)

        out, send = send, noting
        try:
            response = await self._answer(request, send)
        except Refused as refused:
            if refused.problem["status"] == HTTPStatus.FORBIDDEN:
                self.pipeline.turned_away("rest", _peer(request), refused.problem["reason"])
            response = refused.response()
        except Refusal as refusal:
            response = fault_response(refusal.error, takes_tokens=self.pipeline.takes_tokens)
        except ClientDisconnect:
            return
        except Exception as error:  # a path that cannot be read; or a mistake of ours, which is logged under its id
            if begun:
                raise
            response = fault_response(known(error))
        if response is not None:
            for name, value in _SAFE.items():
                response.headers.setdefault(name, value)
            await response(scope, receive, send)

    async def _answer(self, request: Request, send: Send) -> Response | None:
        """The response, or None when it was sent already."""
        self._refuse_large_head(request.scope)
        raw_path = cast("bytes", request.scope.get("raw_path") or b"/").decode("latin-1")
        bare = raw_path.removeprefix("/api/v1").rstrip("/") or "/"
        health = self._health_answer(bare)
        if health is not None:
            _allow(request, ("GET",))
            return health
        _refuse_foreign_pages(request)
        if bare in ("/openapi.json", "/swagger", "/"):
            _allow(request, ("GET",))
            if bare == "/":
                return Response(status_code=307, headers={"location": "/swagger"})
            await self._authorize_description(request)
            return _openapi(self.table) if bare == "/openapi.json" else _swagger()
        found = self.table.find(raw_path)
        if found is None:
            nearest = self.table.nearest(raw_path)
            hint = f"; did you mean {nearest}?" if nearest else "; /openapi.json lists every path"
            raise Refused(404, "UNKNOWN_PATH", "Unknown path", f"{raw_path[:200]} is no path of this API{hint}")
        _allow(request, found.routes)
        verb = "GET" if request.method == "HEAD" else request.method
        route = found.routes[verb]
        if route.method.server_streaming and request.method == "HEAD":
            raise Refused(
                405, "METHOD", "Method not allowed", "a stream has no head of its own; use GET", {"allow": "GET"}
            )
        call = self._make_call(request, route.method.path)
        await self.pipeline.identify(call)
        try:
            message = await self._message(request, route, found.values)
        except (Refused, ClientDisconnect):
            raise
        except Exception as error:  # noqa: BLE001 - told as the pipeline tells whatever goes wrong inside
            await self.pipeline.refuse(call, error)
        if route.method.server_streaming:
            return await self._stream(request, route, call, message, send)
        call.deadline = self.pipeline.deadline(_wait_of(request))  # the time that the body took is not the call's
        return await self._call(request, route, call, message)

    def _refuse_large_head(self, scope: Scope) -> None:
        size = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        for name, value in scope["headers"]:
            size += len(name) + len(value)
        if size > self.head_bytes_max:
            raise Refused(
                431,
                LimitExceeded.reason,
                "Request head too large",
                f"path and headers have at most {self.head_bytes_max} bytes, these have {size}",
                {"connection": "close"},
            )

    # ------------------------------------------------------------------------------------------------------- health
    def _health_answer(self, path: str) -> Response | None:
        match path:
            case "/health/live" | "/live" | "/healthz":
                return _json({"alive": True})
            case "/health/ready" | "/ready" | "/readyz":
                ready, reason = self.health.ready()
                return _json({"ready": True}) if ready else _json({"ready": False, "reason": reason}, 503)
            case "/health":
                return self._health()
            case _:
                return None

    def _health(self) -> Response:
        components = self.health.components()
        status = worst(components)
        body = {
            "status": status,
            "service": self.health.service,
            "version": self.health.version,
            "components": {each.name: {"status": each.status, "detail": each.detail} for each in components},
        }
        return _json(body, 503 if status == "Unhealthy" else 200)

    async def _authorize_description(self, request: Request) -> None:
        """Who may ask for the status may read the description of the API; nobody else."""
        call = self._make_call(request, _STATUS_PATH)
        call.deadline = self.pipeline.deadline(None)
        await self.pipeline.run(call, pb.GetStatusRequest(omit_document_schema=True))

    # ------------------------------------------------------------------------------------------------------ request
    async def _message(self, request: Request, route: Route, values: tuple[str, ...]) -> Message:
        message = route.method.request()
        canonical.read_query(request.query_params.multi_items(), message)
        if route.has_body:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            raw = await self._body(request)
            if len(raw) > BODY_AT_ONCE_BYTES:
                await asyncio.to_thread(_read_body, raw, media_type, route, message)
            else:
                _read_body(raw, media_type, route, message)
        for name, value in zip(route.variables, values, strict=True):
            _put(message, name, value, "the path")
        if route.method.has_request_id:
            key = request.headers.get(REQUEST_ID_HEADER, "")
            if key:
                _put(message, "request_id", _unquoted(key), "the header Idempotency-Key")
        last = request.headers.get("last-event-id", "")
        if last and route.method.server_streaming:
            name = resume_field(canonical.descriptor_of(route.method.request))
            if name:
                message.ClearField(name)
                canonical.read({name: last}, message)
        return message

    async def _body(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "0")
        if len(declared) > LENGTH_DIGITS_MAX or (declared.isdecimal() and int(declared) > self.body_bytes_max):
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    if size > self.body_bytes_max:
                        raise self._too_large()
                    parts.append(part)
        except TimeoutError as error:
            raise Refused(
                408,
                "BODY_TIMEOUT",
                "Request time-out",
                f"the body did not arrive within {BODY_SECONDS:g} s",
                {"connection": "close"},
            ) from error
        return b"".join(parts)

    def _too_large(self) -> Refused:
        limit = self.body_bytes_max
        return Refused(
            413, LimitExceeded.reason, "Body too large", f"a body has at most {limit} bytes", {"connection": "close"}
        )

    # --------------------------------------------------------------------------------------------------------- call
    async def _call(self, request: Request, route: Route, call: Call, message: Message) -> Response | None:
        working = asyncio.ensure_future(self.pipeline.run(call, message))
        gone = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return None  # nobody is there to be answered: the call gives its place back
            answer = await working
        finally:
            working.cancel()
            gone.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)
        assert answer is not None, "a unary call has an answer"
        return Response(canonical.dump(answer, route.member), media_type="application/json")

    def _make_call(self, request: Request, path: str) -> Call:
        method = self.pipeline.methods[path]
        extensions = cast("Mapping[str, str]", request.scope.get("extensions") or {})
        leaf = extensions.get(LEAF)
        trace = request.headers.get("traceparent")
        metadata = [("authorization", value) for value in request.headers.getlist("authorization")]
        return Call(
            method,
            protocol="rest",
            peer=_peer(request),
            leaf=leaf.encode() if leaf else None,
            tls=request.scope.get("scheme") == "https",
            chain=extensions.get(CHAIN, "").encode(),
            metadata=[*metadata, ("traceparent", trace)] if trace else metadata,
        )

    async def _stream(
        self, request: Request, route: Route, call: Call, message: Message, send: Send
    ) -> Response | None:
        """Runs a stream until it ends, the client leaves, or the daemon does."""
        stream = Stream(
            send, tuple((name.encode(), value.encode()) for name, value in _SAFE.items() if name != "cache-control")
        )
        call.send = stream.message
        working = asyncio.ensure_future(self.pipeline.run(call, message))
        gone = asyncio.ensure_future(_left(request))
        # A download has until the pipeline ends what still works.
        leaving = asyncio.ensure_future(self.leaving.wait() if call.method.watches else asyncio.Event().wait())
        try:
            done, _ = await asyncio.wait(
                (working, gone, leaving), timeout=OPEN_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not done and call.method.watches:
                await stream.open()
            await asyncio.wait((working, gone, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                if gone.done():
                    return None
                if not stream.started:
                    raise Refusal(Leaving())
                await stream.cut()  # without a last word: the client reconnects, and goes on where it was
                return None
            try:
                await working
            except Refusal as refusal:
                if not stream.started:
                    raise
                await stream.fail(to_problem(refusal.error))
                return None
            if stream.started:
                await stream.end()
                return None
            return Response(status_code=204)  # nothing is left to tell: a browser stops reconnecting
        finally:
            for task in (working, gone, leaving):
                task.cancel()
            await asyncio.gather(working, gone, leaving, return_exceptions=True)


def _allow(request: Request, routes: Mapping[str, Route] | tuple[str, ...]) -> None:
    verbs = sorted({*routes, *(("HEAD",) if "GET" in routes else ()), "OPTIONS"})
    allowed = ", ".join(verbs)
    if request.method == "OPTIONS":
        raise Refused(
            405,
            "METHOD",
            "Method not allowed",
            f"this path takes {allowed}; there is no cross-origin access",
            {"allow": allowed},
        )
    if request.method not in verbs:
        raise Refused(
            405,
            "METHOD",
            "Method not allowed",
            f"{request.method} is not possible here, only {allowed}",
            {"allow": allowed},
        )


def _refuse_foreign_pages(request: Request) -> None:
    hosts = request.headers.getlist("host")
    if len(hosts) > 1:  # RFC 9112, 3.2: what is between us may have believed the other one
        raise Refused(400, "SEVERAL_HOSTS", "Several hosts", "a request names one host", {"connection": "close"})
    host = hosts[0] if hosts else ""
    if (request.scope.get("extensions") or {}).get(LOOPBACK) and not _LOCAL_HOST.fullmatch(host):
        raise Refused(
            403,
            "FOREIGN_HOST",
            "Foreign host",
            f"this listener is for this host only, not for {host[:100]!r}; use localhost",
        )
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Refused(403, "FOREIGN_ORIGIN", "Foreign origin", f"pages of {origin[:100]} may not call this API")


def _read_body(raw: bytes, media_type: str, route: Route, message: Message) -> None:
    """Fills the message from a body. Raises Refused, InvalidInput, LimitExceeded."""
    method = route.method
    try:
        body = request_body(method.path, media_type, raw)
    except KeyError as error:
        raise Refused(
            415,
            "MEDIA_TYPE",
            "Unsupported media type",
            f"{media_type} is not understood here; send application/json",
        ) from error
    if isinstance(body, Mapping):
        for name in method.batches:
            elements = body.get(name)
            if isinstance(elements, list) and elements:
                batch(len(elements), name)  # before a message is made of each
    canonical.read(body, message)


def _put(message: Message, name: str, value: str, source: str) -> None:
    """Sets a field from outside the body; a body that says something else is a mistake worth telling."""
    other = type(message)()
    canonical.read({name: value}, other)
    given, wanted = getattr(message, name), getattr(other, name)
    if given and given != wanted:
        raise InvalidInput.field(
            name, f"is {given!r} in the body, but {source} says {wanted!r}", "send one of them", code="conflict"
        )
    setattr(message, name, wanted)


def _unquoted(key: str) -> str:
    """The value of Idempotency-Key; the header's draft writes it as a quoted string."""
    return key[1:-1] if len(key) >= 2 and key[0] == key[-1] == '"' else key


def _wait_of(request: Request) -> float | None:
    """Seconds that the client is willing to wait (`Prefer: wait=`, RFC 7240)."""
    found = _WAIT.search(request.headers.get("prefer", ""))
    return min(float(found[1]), WAIT_SECONDS_MAX) if found else None


def _peer(request: Request) -> str:
    client = request.client
    if client is None:
        return "unknown"
    return f"ipv6:[{client.host}]:{client.port}" if ":" in client.host else f"ipv4:{client.host}:{client.port}"


async def _left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _without_body(send: Send) -> Send:
    async def head(message: MutableMapping[str, object]) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return head


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _openapi(table: RouteTable) -> Response:
    return Response(description(table), media_type="application/json")


def _swagger() -> Response:
    return Response(PAGE, media_type="text/html", headers={"content-security-policy": CONTENT_SECURITY_POLICY})
