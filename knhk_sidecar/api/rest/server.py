"""The HTTP server in the daemon's event loop: uvicorn's protocol under our rules.

uvicorn gets neither the signals nor the logging nor the socket: the daemon owns them. What it lacks is added here: the
client's certificate in the scope, certificates that change while running, a bound on the head of a request and on the
time it may take, and a bound on connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, cast

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from knhk_sidecar.api import pb
from knhk_sidecar.api.rest.routes import RouteTable
from knhk_sidecar.api.rest.surface import CHAIN, LEAF, LOOPBACK, Surface
from knhk_sidecar.config import SidecarConfig, is_loopback, join_address, split_address

if TYPE_CHECKING:
    from knhk_sidecar.identity.tls import Material, TlsSource
    from knhk_sidecar.pipeline import Pipeline
    from knhk_sidecar.pipeline.health import HealthView

HEAD_BYTES_MAX: Final = 32 * 1024  # read at all; above max_metadata_bytes a request is then refused with a reason
HEAD_SECONDS: Final = 10.0  # from connecting to the end of the head; a browser that connects ahead of need reconnects
KEEP_ALIVE_SECONDS: Final = 75  # longer than what usual proxies keep an idle connection
CONNECTIONS_MAX: Final = 1_024  # half of the usual limit of open files; the rest is the store's and gRPC's
BACKLOG: Final = 512
STOP_SECONDS: Final = 1.0  # for responses that are being written once the daemon has drained


class RestServer:
    """The REST listener.

    `start` binds and serves, `stop` drains; `address` is the real one, with a port of 0 resolved.
    """

    def __init__(
        self, pipeline: Pipeline, health: HealthView, config: SidecarConfig, tls: TlsSource | None = None
    ) -> None:
        """With `tls` it speaks HTTPS: a client certificate is then asked for, and demanded by the pipeline except for
        health."""
        self._config = config
        self._tls = tls
        self._leaving = asyncio.Event()
        table = RouteTable(pb.SERVICES, pipeline.methods)
        self._server = _Server(
            Config(
                Surface(pipeline, health, table, config.max_message_bytes, config.max_metadata_bytes, self._leaving),
                loop="none",
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        self._server.handshake_seconds = config.handshake_timeout_ms / 1000
        self._serving: asyncio.Task[None] | None = None
        self.address = ""

    async def start(self) -> None:
        """Listens. Raises OSError when the address cannot be had."""
        host, port = split_address(self._config.http_address)
        listener = _listen(host, port)
        self.address = join_address(host, listener.getsockname()[1])
        config = self._server.config
        config.load()
        config.http_protocol_class = _LoopbackProtocol if is_loopback(self._config.http_address) else _Protocol
        if self._tls is not None:
            config.ssl = _Contexts(self._tls).first
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="rest")
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(0)

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ends streams, stops listening, gives running requests `seconds`, then cuts what is left."""
        if self._serving is None:
            return
        serving, self._serving = self._serving, None
        self._leaving.set()
        self._server.config.timeout_graceful_shutdown = max(1, round(seconds))
        self._server.should_exit = True
        await serving
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()


class _Server(Server):
    """uvicorn's server without its hand on the process's signals, and with a bound on handshakes."""

    handshake_seconds = 5.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        context = self.config.ssl
        seconds = self.handshake_seconds if context is not None else None
        self.servers = [
            await loop.create_server(
                self._connection, sock=each, ssl=context, backlog=BACKLOG, ssl_handshake_timeout=seconds
            )
            for each in sockets or ()
        ]
        self.started = True

    def _connection(self) -> asyncio.Protocol:
        protocol = cast("type[_Protocol]", self.config.http_protocol_class)
        return protocol(self.config, self.server_state, {})

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(HttpToolsProtocol):
    """One connection."""

    loopback = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(transport)
        self._leaf, self._chain = _certificates_of(transport)
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, transport.abort)
        self._in_head = True
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            # The parser has no bound of its own. What follows the head in one piece is counted with it: a piece is at
            # most 256 KB, and only what comes while the head is still incomplete adds up.
            if self._head_bytes > HEAD_BYTES_MAX:
                self.send_400_response("The head of the request is too large.")
                return
            self._head_bytes += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, object] = {LOOPBACK: self.loopback}
        if self._leaf:
            extensions[LEAF] = self._leaf
            extensions[CHAIN] = self._chain
        self.scope["extensions"] = extensions  # type: ignore[typeddict-item]  # values are not only mappings here
        self._in_head = True
        self._head_bytes = 0
        self._head_timer.cancel()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_timer.cancel()
        super().on_headers_complete()


class _LoopbackProtocol(_Protocol):
    """One connection of a listener that only this host reaches."""

    loopback = True


def _certificates_of(transport: asyncio.Transport) -> tuple[str, str]:
    """The client's certificate and what came with it, as PEM; empty without one.

    What came with it has a public name since Python 3.13 only; where it has neither name, it counts as unknown.
    """
    connection = transport.get_extra_info("ssl_object")
    der = connection.getpeercert(binary_form=True) if connection is not None else None
    if not der:
        return "", ""
    chain = getattr(getattr(connection, "_sslobj", None), "get_unverified_chain", None)
    sent = chain() if chain is not None else None
    pem = [each.public_bytes() for each in sent or ()]  # the leaf first; nothing in a resumed session
    return ssl.DER_cert_to_PEM_cert(der), "".join(pem[1:])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


class _Contexts:
    """TLS contexts that follow the certificates: each handshake gets the newest."""

    def __init__(self, source: TlsSource) -> None:
        self._source = source
        self._material = source.material
        self._newest = _context(source.material)
        self.first = _context(source.material)
        self.first.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        material = self._source.material
        if material is not self._material:
            self._newest = _context(material)
            self._material = material
        connection.context = self._newest


def _context(material: Material) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # each connection shows its certificates, to the authorities of that moment
    context.options |= ssl.OP_NO_TICKET
    context.verify_mode = ssl.CERT_OPTIONAL  # a kubelet has none; the pipeline lets it ask for health only
    context.load_verify_locations(cadata=material.roots.decode("ascii"))
    descriptor, path = tempfile.mkstemp(prefix="knhk-")  # mode 0600; the library reads keys from files only
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(material.key + b"\n" + material.cert)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
    return context
