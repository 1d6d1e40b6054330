"""The gRPC transport: listeners, hardening, and each operation as a handler that does nothing but run the pipeline.

Handlers are made here from the pipeline's own list of methods, health and reflection included; the server has no other
way to get one. The server's options are answers to attacks and accidents that were tried; each says which.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from knhk_sidecar.api import faults
from knhk_sidecar.config import SidecarConfig, join_address, split_address
from knhk_sidecar.pipeline import Call, Method, Pipeline, Refusal
from knhk_workflow import InvalidInput

Context = grpc.aio.ServicerContext[Message, Message]


class CannotListen(Exception):
    """An address cannot be listened on; the message names it."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where to listen; an empty address is no listener. `credentials` None: the main one is plain (loopback only)."""

    main: str
    credentials: grpc.ServerCredentials | None
    plain: str = ""
    health: str = ""
    token: str = ""
    token_credentials: grpc.ServerCredentials | None = None
    """TLS that asks for no client certificate; without them there is no such listener."""


class Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Handlers by path.

    Not as "registered methods" of grpc.aio: it waits for the next call of each of those on its own, which with the 90
    of our contract took more than half of the time of a call.
    """

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Message, Message]]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Message, Message] | None:
        """The handler of this call; None is UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)


class RpcServer:
    """The gRPC server over one pipeline."""

    def __init__(self, pipeline: Pipeline, config: SidecarConfig) -> None:
        self._pipeline = pipeline
        logging.getLogger("grpc._cython.cygrpc").addFilter(_of_somebody)
        self._server = grpc.aio.server(options=server_options(config))
        handlers = {path: self._handler(method) for path, method in pipeline.methods.items()}
        self._server.add_generic_rpc_handlers([Methods(handlers)])

    async def start(self, listeners: Listeners) -> Listeners:
        """Listens; returns the addresses with their real ports. Raises CannotListen."""
        real = Listeners(
            self._listen(listeners.main, listeners.credentials),
            listeners.credentials,
            self._listen(listeners.plain, None),
            self._listen(listeners.health, None),
            self._listen(listeners.token, listeners.token_credentials) if listeners.token_credentials else "",
            listeners.token_credentials,
        )
        await self._server.start()
        return real

    async def stop(self, grace: float) -> None:
        """Takes no new call and lets those that run finish within `grace` seconds. Open streams hold it: end them."""
        await self._server.stop(grace)

    def _listen(self, address: str, credentials: grpc.ServerCredentials | None) -> str:
        if not address:
            return ""
        host, port = split_address(address)
        try:
            if credentials is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise CannotListen(f"cannot listen on {join_address(host, port)} for gRPC: is the port taken?") from error
        return join_address(host, bound)

    def _handler(self, method: Method) -> grpc.RpcMethodHandler[Message, Message]:
        make = _MAKERS[method.client_streaming, method.server_streaming]
        behaviour = self._stream(method) if method.streams else self._unary(method)
        # A single request is parsed in the handler, when it is known who sends it; those of a stream are read there.
        parse = _parser(method) if method.client_streaming else None
        handler = make(behaviour, parse, method.response.SerializeToString)
        return cast("grpc.RpcMethodHandler[Message, Message]", handler)

    def _unary(self, method: Method) -> Callable[[bytes, Context], Awaitable[Message]]:
        run, deadline, identify = self._pipeline.run, self._pipeline.deadline, self._pipeline.identify
        unknown, parse = self._pipeline.unknown_callers, _parser(method)

        async def unary(raw: bytes, context: Context) -> Message:
            call = _call(method, context, deadline(context.time_remaining()))
            try:
                if unknown and call.leaf is None:  # who has a certificate was let in by TLS
                    await identify(call)
                return cast(Message, await run(call, parse(raw)))
            except Refusal as refusal:
                await _abort(context, refusal.fault)
            except InvalidInput as error:
                await self._refuse_unreadable(call, error, context)

        return unary

    def _stream(self, method: Method) -> Callable[[bytes | AsyncIterator[Message], Context], Awaitable[Message | None]]:
        run, deadline, identify = self._pipeline.run, self._pipeline.deadline, self._pipeline.identify
        unknown, parse = self._pipeline.unknown_callers, _parser(method)

        async def stream(given: bytes | AsyncIterator[Message], context: Context) -> Message | None:
            remaining = context.time_remaining()
            send = context.write if method.server_streaming else None
            call = _call(method, context, 0 if remaining is None else deadline(remaining), send)
            try:
                if unknown and call.leaf is None:
                    await identify(call)
                return await run(call, parse(given) if isinstance(given, bytes) else given)
            except Refusal as refusal:
                await _abort(context, refusal.fault)
            except InvalidInput as error:
                await self._refuse_unreadable(call, error, context)

        return stream

    async def _refuse_unreadable(self, call: Call, error: InvalidInput, context: Context) -> NoReturn:
        """For a request that is not what its method takes; whoever sends that is counted and recorded too."""
        try:
            if not call.principal.identified:
                await self._pipeline.identify(call)
            await self._pipeline.refuse(call, error)
        except Refusal as refusal:
            await _abort(context, refusal.fault)


_MAKERS: Final[Mapping[tuple[bool, bool], Callable[..., object]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def server_options(config: SidecarConfig) -> list[tuple[str, int]]:
    """Channel arguments of the server, each with its reason."""
    return [
        ("grpc.so_reuseport", 0),  # a second daemon must fail, not take half of the connections
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # a full page of history may be larger than what we accept
        # Rapid reset: without it one client's open-and-cancel makes innocent calls fail.
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        # Counts a stream until our side has let go of it: a client that keeps to the limit and sends the next call at
        # once was refused, 866 of 2,000 calls at 100 in flight. Against rapid reset the limit alone suffices.
        ("grpc.http.overload_protection", 0),
        # Silent connections would hold a socket for ever.
        ("grpc.server_handshake_timeout_ms", config.handshake_timeout_ms),
        # max_metadata_size alone is a soft limit that is not enforced.
        ("grpc.max_metadata_size", config.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", config.max_metadata_bytes),
        ("grpc.max_connection_idle_ms", config.connection_idle_seconds * 1000),
        # Old connections keep the certificate that they began with.
        ("grpc.max_connection_age_ms", config.connection_age_seconds * 1000),
        ("grpc.max_connection_age_grace_ms", config.connection_age_grace_seconds * 1000),
        ("grpc.keepalive_time_ms", config.keepalive_seconds * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", config.keepalive_min_client_seconds * 1000),
        ("grpc.http2.max_ping_strikes", PING_STRIKES_MAX),
    ]


KEEPALIVE_TIMEOUT_MS: Final = 20_000  # gRPC's default; a paused container answers late
PING_STRIKES_MAX: Final = 2  # gRPC's default
_TLS = b"ssl"


def _parser(method: Method) -> Callable[[bytes], Message]:
    """What reads a request of a method. Raises InvalidInput."""
    parse, name = method.request.FromString, method.request.DESCRIPTOR.full_name

    def read(raw: bytes) -> Message:
        try:
            return parse(raw)
        except DecodeError as error:
            problem = f"what was sent ({len(raw)} bytes) is no {name}: it is no protobuf, or text in it is no UTF-8"
            raise InvalidInput(f"{problem}; send what the stubs of this version make") from error

    return read


def _call(
    method: Method, context: Context, deadline: int, send: Callable[[Message], Awaitable[None]] | None = None
) -> Call:
    leaf, chain, tls = _security(context)
    return Call(
        method,
        protocol="grpc",
        peer=context.peer(),
        leaf=leaf,
        tls=tls,
        chain=chain,
        deadline=deadline,
        metadata=cast("tuple[tuple[str, str | bytes], ...]", context.invocation_metadata()),
        send=send,
    )


def _security(context: Context) -> tuple[bytes | None, bytes, bool]:
    """The PEM of the client certificate that TLS verified, None without one, and of what came with it; and whether the
    connection is TLS."""
    about = context.auth_context()
    leaf = about.get("x509_pem_cert")
    if leaf:
        return next(iter(leaf)), b"".join(about.get("x509_pem_cert_chain", ())), True
    return None, b"", _TLS in about.get("transport_security_type", ())


def _of_somebody(record: logging.LogRecord) -> bool:
    """Not what grpc says, with a stack, of each answer to a caller who has gone: under overload nobody needs it."""
    return not str(record.msg).startswith("ExecuteBatchError raised in core")


async def _abort(context: Context, fault: faults.Fault) -> NoReturn:
    await context.abort(fault.code, fault.message, fault.trailing)
