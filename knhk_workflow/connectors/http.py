"""Calls over HTTP/1.1.

A task's `request`: `method` (GET, or POST when there is a body), `url` (absolute, or a path below the connector's
`base_url`), `headers`, `query`, `body` (any JSON; a text is sent as text/plain unless a content type says otherwise),
and `accept`, a list of statuses that are answers although they are not 2xx. Every call carries the effect's key in the
header that `key_header` names, so that the server can recognise a repetition; that is the delivery `keyed`. Calls by
GET, HEAD, OPTIONS, PUT and DELETE are idempotent by RFC 9110 9.2.2, whatever the connector says, except when it says
at-most-once.

A `verifiable` connector looks a call of unknown outcome up by GET of the path `verify`, with `{key}` in it: 2xx is the
answer that was missed, 404 says that nothing was done.

The answer is {status, headers, body}: `headers` are those that `response_headers` names, in small letters, `body` is
the JSON of a JSON response and the text of any other one. Redirects are not followed. No proxy of the environment is
used. Secrets are read for each call and taken out of whatever the server repeats. A connector that has credentials and
a `base_url` calls nobody else: a task must not choose who gets them.

The name in the URL is resolved once for a connection, every address checked, and the connection made to a checked one;
the certificate is still that of the name.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import select
import ssl
from collections.abc import Iterable, Mapping
from typing import Final

import httpcore2
import httpx2
import msgspec

from knhk_workflow.connectors.allowance import PORTS, Allowance
from knhk_workflow.connectors.connector import Answer, Call, CallFailed, Delivery, PoolState, Received
from knhk_workflow.connectors.secrets import Secret, scrubbed
from knhk_workflow.connectors.settings import Settings, Surroundings, parse
from knhk_workflow.errors import InvalidInput
from knhk_workflow.model.units import NS_PER_S

RESPONSE_BYTES_MAX: Final = 1024 * 1024  # half of what case data may hold
SAID_CHARS: Final = 2_000  # of an error's body, for people
RETRY_AFTER_MAX: Final = 3_600

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})  # the same call may succeed later
_NOT_DONE: Final = frozenset({408, 425, 429})  # the server says that it did nothing; a 503 may be a gateway's
PLACE_SHARE: Final = 0.5  # of a call's time: who waits longer for a connection is told so, and not by the other side
_MEMBERS: Final = frozenset({"method", "url", "headers", "query", "body", "accept"})
_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH"})
_HELD: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "trailer"})
"""Headers that are the protocol's, not the task's."""


class Basic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """User and password (RFC 7617)."""

    user: str
    password: Secret


class Authentication(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a call says who makes it: at most one of both, besides secret headers."""

    bearer: Secret | None = None
    basic: Basic | None = None


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files for TLS; they are read when the connector is made."""

    ca: str = ""
    cert: str = ""
    key: str = ""


class HttpSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of an HTTP connector."""

    base_url: str = ""
    headers: Mapping[str, str | Secret] = {}
    auth: Authentication = Authentication()
    tls: Certificate = Certificate()
    key_header: str = "Idempotency-Key"
    response_headers: tuple[str, ...] = ("content-type", "location", "etag")
    response_bytes: int = RESPONSE_BYTES_MAX
    verify: str = ""
    probe: str = ""
    """Path that a probe gets; empty: a probe only connects."""


class _Sent(msgspec.Struct, frozen=True):
    """A task's request, read."""

    method: str
    url: httpx2.URL
    headers: tuple[tuple[str, str], ...]
    content: bytes
    accept: frozenset[int]


class HttpConnector:
    """One HTTP connector. See the module."""

    def __init__(self, settings: HttpSettings, surroundings: Surroundings) -> None:
        self._settings = settings
        self._vault = surroundings.vault
        self._allowance = surroundings.allowance
        self._narrower = Allowance(settings.allow) if settings.allow else None
        self.timeout = settings.timeout
        self.max_concurrent = settings.max_concurrent
        self.breaker = settings.breaker
        self.declared: Delivery = settings.delivery or "keyed"
        self._network = _CheckedNetwork(surroundings.allowance)
        self._only = _origin(httpx2.URL(settings.base_url)) if settings.base_url and _credentials(settings) else ""
        self._active = 0
        self._waiting = 0
        self._places = asyncio.Semaphore(settings.pool.size)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_tls(_placed(settings.tls, surroundings)),
            max_connections=settings.pool.size,
            max_keepalive_connections=settings.pool.size,
            keepalive_expiry=settings.pool.idle_timeout,
            network_backend=self._network,
        )

    def target(self, request: bytes) -> str:
        """Scheme, host and port."""
        return _origin(self._read(request).url)

    def delivery(self, request: bytes) -> Delivery:
        """Idempotent by its method, otherwise what the connector says."""
        said = self.declared
        if said == "at-most-once":
            return said
        members = _members(request)
        method = members.get("method", "GET" if members.get("body") is None else "POST")
        return "idempotent" if str(method).upper() in _IDEMPOTENT else said

    async def call(self, call: Call) -> Answer:
        """Send a request and read its response."""
        sent = self._read(call.request)
        return await self._exchange(sent, ((self._settings.key_header, call.key),))

    async def verify(self, call: Call) -> Answer | None:
        """Look a call up by its key."""
        path = self._settings.verify.replace("{key}", call.key)
        url = self._url(path)
        self._check(url)
        try:
            return await self._exchange(_Sent("GET", url, (), b"", frozenset()), ())
        except CallFailed as failure:
            if failure.code in ("http_404", "http_410"):
                return None
            raise

    async def probe(self) -> str:
        """Get the probe's path, or only connect to the base."""
        if not self._settings.base_url:
            return "it has no base_url: each task says where to"
        url = self._url(self._settings.probe)
        self._check(url)
        if self._settings.probe:
            answer = await self._exchange(_Sent("GET", url, (), b"", frozenset()), ())
            return f"{_origin(url)} answers {answer.status}"
        try:
            stream = await self._network.connect_tcp(
                url.host, url.port or PORTS[url.scheme], self._settings.pool.connect_timeout
            )
        except httpcore2.ConnectTimeout:
            raise CallFailed("connect_timeout", f"{_origin(url)} does not accept the connection in time") from None
        except httpcore2.ConnectError as error:
            raise CallFailed("connect_failed", f"{_origin(url)} cannot be reached: {error}") from error
        await stream.aclose()
        return f"{_origin(url)} accepts connections"

    def pool(self) -> PoolState:
        """Connections now."""
        return PoolState(self._active, self._network.open, self._waiting)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    # ---------------------------------------------------------------------------------------------------------- request

    def _read(self, request: bytes) -> _Sent:
        """A task's request. Raises CallFailed, permanently, for one that cannot be sent."""
        members = _members(request)
        unknown = sorted(members.keys() - _MEMBERS)
        if unknown:
            raise _unfit(f"{unknown[0]!r} is not known; there are {', '.join(sorted(_MEMBERS))}")
        body = members.get("body")
        method = members.get("method", "GET" if body is None else "POST")
        if not isinstance(method, str) or method.upper() not in _METHODS:
            raise _unfit(f"{method!r} is not a method of {', '.join(sorted(_METHODS))}")
        given = members.get("url", "")
        if not isinstance(given, str):
            raise _unfit("url must be a text")
        url = self._url(given)
        query = members.get("query", {})
        if not isinstance(query, dict):
            raise _unfit("query must be a map")
        for name, value in query.items():
            for each in value if isinstance(value, list) else [value]:
                url = url.copy_add_param(name, _text(each))
        self._check(url)
        headers = members.get("headers", {})
        if not isinstance(headers, dict):
            raise _unfit("headers must be a map")
        lines = [(name, _text(value)) for name, value in headers.items() if value is not None]
        content = b""
        if body is not None:
            plain = isinstance(body, str)
            content = body.encode() if isinstance(body, str) else msgspec.json.encode(body)
            if not any(name.lower() == "content-type" for name, _ in lines):
                lines.append(("Content-Type", "text/plain; charset=utf-8" if plain else "application/json"))
        accept = members.get("accept", [])
        if not isinstance(accept, list) or not all(isinstance(each, int) for each in accept):
            raise _unfit("accept must be a list of statuses")
        return _Sent(method.upper(), url, tuple(lines), content, frozenset(accept))

    def _url(self, given: str) -> httpx2.URL:
        base = self._settings.base_url
        try:
            if given.startswith(("http://", "https://")):
                url = httpx2.URL(given)
            elif base:
                url = httpx2.URL(base.rstrip("/") + ("/" + given.lstrip("/") if given else ""))
            else:
                raise _unfit("url must begin with http:// or https://, because the connector has no base_url")
        except httpx2.InvalidURL as error:
            raise _unfit(f"url: {error}") from error
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise _unfit("url must be scheme://host[:port]/path without a user")
        if self._only and _origin(url) != self._only:
            raise _unfit(f"the connector's credentials are for {self._only}, not for {_origin(url)}")
        return url

    def _check(self, url: httpx2.URL) -> None:
        """Raises CallFailed for a place that is not on the lists."""
        place = url.scheme, url.host, url.port or PORTS[url.scheme]
        self._allowance.check(*place)
        if self._narrower is not None:
            self._narrower.check(*place)

    # --------------------------------------------------------------------------------------------------------- exchange

    def _credentials(self) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
        """The headers that the connector adds, and the secrets in them."""
        lines: list[tuple[str, str]] = []
        secrets: list[str] = []
        for name, value in self._settings.headers.items():
            if isinstance(value, Secret):
                value = self._vault.read(value)
                secrets.append(value)
            lines.append((name, value))
        auth = self._settings.auth
        if auth.bearer is not None:
            token = self._vault.read(auth.bearer)
            secrets.append(token)
            lines.append(("Authorization", f"Bearer {token}"))
        elif auth.basic is not None:
            password = self._vault.read(auth.basic.password)
            both = base64.b64encode(f"{auth.basic.user}:{password}".encode()).decode()
            secrets += [password, both]
            lines.append(("Authorization", f"Basic {both}"))
        return lines, tuple(secrets)

    async def _exchange(self, sent: _Sent, extra: tuple[tuple[str, str], ...]) -> Answer:
        own, secrets = self._credentials()
        headers = {name.lower(): (name, value) for name, value in (*sent.headers, *own, *extra)}
        for name in _HELD & headers.keys():
            del headers[name]
        host = sent.url.host if ":" not in sent.url.host else f"[{sent.url.host}]"
        headers["host"] = ("Host", host if sent.url.port is None else f"{host}:{sent.url.port}")
        headers.setdefault("accept", ("Accept", "application/json, */*;q=0.5"))
        headers["accept-encoding"] = ("Accept-Encoding", "identity")
        if sent.content or sent.method in ("POST", "PUT", "PATCH"):
            headers["content-length"] = ("Content-Length", str(len(sent.content)))
        await self._place()
        try:
            status, got, content = await self._send(
                sent, [(name.encode(), value.encode()) for name, value in headers.values()]
            )
        except UnicodeEncodeError:
            raise _unfit("a header holds what cannot be sent") from None
        finally:
            self._active -= 1
            self._places.release()
        return self._answer(sent, status, got, content, secrets)

    async def _place(self) -> None:
        """Wait for one of the pool's places."""
        self._waiting += 1
        try:
            async with asyncio.timeout(self.timeout * PLACE_SHARE):
                await self._places.acquire()
        except TimeoutError:
            raise CallFailed("pool_timeout", "all connections of the connector are in use", blame=False) from None
        finally:
            self._waiting -= 1
        self._active += 1

    async def _send(self, sent: _Sent, headers: list[tuple[bytes, bytes]]) -> tuple[int, Mapping[str, str], bytes]:
        url = sent.url
        times = self._settings
        request = httpcore2.Request(
            method=sent.method,
            url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=headers,
            content=sent.content,
            extensions={
                "timeout": {
                    "connect": times.pool.connect_timeout,
                    "read": times.timeout,
                    "write": times.timeout,
                    "pool": times.timeout,
                }
            },
        )
        where = _origin(url)
        try:
            response = await self._pool.handle_async_request(request)
            try:
                content = bytearray()
                async for part in response.aiter_stream():
                    content += part
                    if len(content) > times.response_bytes:
                        raise CallFailed(
                            "response_too_large",
                            f"the response of {where} is larger than {times.response_bytes} bytes",
                            received="maybe",
                            permanent=True,
                            blame=False,
                        )
            finally:
                await response.aclose()
        except httpcore2.ConnectTimeout:
            raise CallFailed("connect_timeout", f"{where} does not accept the connection in time") from None
        except httpcore2.ConnectError as error:
            raise CallFailed("connect_failed", f"{where} cannot be reached: {error}") from error
        except httpcore2.PoolTimeout:
            raise CallFailed("pool_timeout", f"no connection to {where} was free in time", blame=False) from None
        except httpcore2.TimeoutException as error:
            raise CallFailed("timeout", f"{where} does not answer in time", received="maybe") from error
        except httpcore2.LocalProtocolError:  # whose words repeat the header, and that may be a secret
            raise _unfit("a header, the url or a secret holds what HTTP does not allow, such as a line's end") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            said = str(error) or type(error).__name__
            raise CallFailed("connection_lost", f"the connection to {where} broke: {said}", received="maybe") from error
        got = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        return response.status, got, bytes(content)

    def _answer(
        self, sent: _Sent, status: int, got: Mapping[str, str], content: bytes, secrets: tuple[str, ...]
    ) -> Answer:
        headers = {
            name: scrubbed(got[name], secrets)
            for name in (each.lower() for each in self._settings.response_headers)
            if name in got
        }
        body = _body(scrubbed(content.decode("utf-8", "replace"), secrets), got.get("content-type", ""))
        if 200 <= status < 300 or status in sent.accept:
            whole = {"status": status, "headers": headers, "body": body}
            return Answer(msgspec.json.encode(whole), str(status))
        said = body if isinstance(body, str) else msgspec.json.encode(body).decode()
        data = msgspec.json.encode({"status": status, "headers": headers, "body": said[:SAID_CHARS]})
        where = _origin(sent.url)
        if 300 <= status < 400:
            message = f"{where} answered {status}: redirects are not followed"
            raise CallFailed("redirect_refused", message, received="yes", permanent=True, data=data, blame=False)
        received: Received = "no" if status in _NOT_DONE else "maybe" if status >= 500 else "yes"
        raise CallFailed(
            f"http_{status}",
            f"{where} answered {status}",
            received=received,
            permanent=status not in _AGAIN and status < 500,
            pause=_retry_after(got.get("retry-after", "")),
            data=data,
            blame=status >= 500 or status == 429,
        )


class _CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to checked addresses only, and counts what is open."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._below = httpcore2.AnyIOBackend()
        self.open = 0

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # the protocol of httpcore2
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._allowance.addresses(host, port)
        except TimeoutError:
            raise httpcore2.ConnectTimeout("the name was not resolved in time") from None
        problem: Exception = httpcore2.ConnectError("no address")
        for address in addresses:
            try:
                below = await self._below.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                problem = error
                continue
            self.open += 1
            return _Counted(below, self)
        raise problem

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109  # the protocol of httpcore2
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.ConnectError("Unix sockets are not for connectors")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Counted(httpcore2.AsyncNetworkStream):
    """A connection that tells when it is closed. TLS takes the place of what it is over."""

    def __init__(self, below: httpcore2.AsyncNetworkStream, network: _CheckedNetwork) -> None:
        self._below = below
        self._network: _CheckedNetwork | None = network
        self._look = select.poll()
        self._look.register(below.get_extra_info("socket").fileno(), select.POLLIN)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        return await self._below.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._below.write(buffer, timeout)

    async def aclose(self) -> None:
        if self._network is not None:
            self._network.open -= 1
            self._network = None
        await self._below.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        try:
            self._below = await self._below.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await self.aclose()
            raise
        return self

    def get_extra_info(self, info: str) -> object:
        if (
            info == "is_readable"
        ):  # the pool asks it of every idle connection before every call: 1 us here, 150 us there
            return self._network is None or bool(self._look.poll(0))
        return self._below.get_extra_info(info)


def make(data: bytes, surroundings: Surroundings) -> HttpConnector:
    """An HTTP connector of its settings. Raises InvalidInput."""
    settings = parse(HttpSettings, data)
    if settings.base_url:
        try:
            url = httpx2.URL(settings.base_url)
        except httpx2.InvalidURL as error:
            raise InvalidInput.field("config.base_url", str(error)) from error
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
            raise InvalidInput.field("config.base_url", "must be http(s)://host[:port][/path]")
    if settings.delivery == "verifiable" and "{key}" not in settings.verify:
        raise InvalidInput.field("config.verify", "a verifiable connector needs the path that looks a {key} up")
    for name, value in settings.headers.items():
        if isinstance(value, Secret):
            surroundings.vault.check(value, f"config.headers.{name}")
        elif name.lower() in ("authorization", "cookie", "x-api-key", "proxy-authorization"):
            raise InvalidInput.field(f"config.headers.{name}", "a secret is given by reference", 'as {"env": "..."}')
    if settings.auth.bearer is not None:
        surroundings.vault.check(settings.auth.bearer, "config.auth.bearer")
    if settings.auth.basic is not None:
        surroundings.vault.check(settings.auth.basic.password, "config.auth.basic.password")
    if _credentials(settings) and not settings.base_url and not settings.allow:
        raise InvalidInput.field(
            "config.base_url", "is missing: a task would choose who gets the credentials", "set it, or allow"
        )
    return HttpConnector(settings, surroundings)


def _credentials(settings: HttpSettings) -> bool:
    """Whether its calls carry what only one other side should see."""
    headers = any(isinstance(value, Secret) for value in settings.headers.values())
    return headers or settings.auth != Authentication() or bool(settings.tls.cert)


def _placed(files: Certificate, surroundings: Surroundings) -> Certificate:
    """The same with the files where they may be read. Raises InvalidInput."""
    found = {
        name: surroundings.vault.path(file, f"config.tls.{name}")
        for name, file in (("ca", files.ca), ("cert", files.cert), ("key", files.key))
        if file
    }
    return Certificate(**found)


@functools.lru_cache(maxsize=64)  # reading the authorities takes 10 ms, and most connectors trust the same ones
def _tls(files: Certificate) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=files.ca or None)
        if files.cert:
            context.load_cert_chain(files.cert, files.key or None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput.field("config.tls", f"cannot be read: {error}") from error
    return context


def _members(request: bytes) -> dict[str, object]:
    members: dict[str, object] = msgspec.json.decode(request) if request else {}
    return members


def _unfit(problem: str) -> CallFailed:
    return CallFailed("bad_request", f"the task's request cannot be sent: {problem}", permanent=True, blame=False)


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _origin(url: httpx2.URL) -> str:
    host = url.host if ":" not in url.host else f"[{url.host}]"
    return f"{url.scheme}://{host}:{url.port or PORTS[url.scheme]}"


def _body(text: str, kind: str) -> object:
    """A response's content: JSON where it says so and is, otherwise the text; nothing is null."""
    if not text:
        return None
    if "json" in kind:
        try:
            found: object = msgspec.json.decode(text)
            json.dumps(found, allow_nan=False)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return text
        return found
    return text


def _retry_after(text: str) -> int:
    """Nanoseconds; the form with a date is not used by those who limit rates."""
    return min(int(text), RETRY_AFTER_MAX) * NS_PER_S if text.isdecimal() and len(text) < 10 else 0
