"""Calls of unary methods of any gRPC service.

A task's `request`: `method` (`package.Service/Method`), `message` (an expression: the request message as JSON by the
protobuf mapping), `metadata`, and `target` (`host:port`) where the connector has none of its own. The answer is
{status, headers, body}: `body` is the response message as JSON with the field names of the proto file, `headers` are
the members of the initial metadata that `response_headers` names.

What a service looks like comes from the server's own reflection, or from `descriptors`, a file with a FileDescriptorSet
(`protoc --include_imports --descriptor_set_out`). Descriptions are kept; a method that is not among them is asked for
once more, because the server may have been replaced.

Every call carries the effect's key as metadata `idempotency-key`; that is the delivery `keyed`.

The name is resolved here, every address checked, and the channel made to the checked ones; TLS still is for the name.
No proxy and no service configuration of the environment is used, and gRPC itself makes no second attempt.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import grpc
import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from knhk_workflow import (
    Allowance,
    Answer,
    Call,
    CallFailed,
    ConnectorDelivery,
    ConnectorSettings,
    InvalidInput,
    PoolState,
    Secret,
    Surroundings,
    parse_settings,
    scrubbed,
)

KEY: Final = "idempotency-key"
MESSAGE_BYTES_MAX: Final = 1024 * 1024  # half of what case data may hold
FILES_MAX: Final = 1_000  # of one service's description; real ones have fewer than 100
CHANNELS_MAX: Final = 256  # targets that tasks name themselves
DESCRIPTION_BYTES_MAX: Final = 16 * 1024 * 1024  # of all answers of reflection; a large service has some 100 KB
PLACE_SHARE: Final = 0.5  # of a call's time: who waits longer for a place is told so, and not by the other side
_MEMBERS: Final = frozenset({"method", "message", "metadata", "target"})

_Code = grpc.StatusCode
_AGAIN: Final = frozenset(
    {
        _Code.UNAVAILABLE,
        _Code.RESOURCE_EXHAUSTED,
        _Code.ABORTED,
        _Code.DEADLINE_EXCEEDED,
        _Code.INTERNAL,
        _Code.UNKNOWN,
        _Code.CANCELLED,
        _Code.DATA_LOSS,
    }
)
_DONE_PERHAPS: Final = frozenset(
    {_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.INTERNAL, _Code.UNKNOWN, _Code.CANCELLED, _Code.DATA_LOSS}
)
_ILL: Final = frozenset(
    {
        _Code.UNAVAILABLE,
        _Code.DEADLINE_EXCEEDED,
        _Code.INTERNAL,
        _Code.UNKNOWN,
        _Code.RESOURCE_EXHAUSTED,
        _Code.DATA_LOSS,
    }
)


class Certificates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files for TLS, read when a channel is made; `name` is the one that the server's certificate has."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    name: str = ""


class GrpcSettings(ConnectorSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of a gRPC connector."""

    target: str = ""
    plaintext: bool = False
    tls: Certificates = Certificates()
    descriptors: str = ""
    metadata: Mapping[str, str | Secret] = {}
    bearer: Secret | None = None
    response_headers: tuple[str, ...] = ()


class _Sent(msgspec.Struct, frozen=True):
    """A task's request, read."""

    host: str
    port: int
    service: str
    method: str
    message: object
    metadata: tuple[tuple[str, str], ...]


class _Line:
    """The channel to one target, with what is known of its services."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.methods: dict[tuple[str, str], MethodDescriptor] = {}
        self.asking = asyncio.Lock()


class GrpcConnector:
    """One gRPC connector. See the module."""

    def __init__(
        self, settings: GrpcSettings, surroundings: Surroundings, known: descriptor_pool.DescriptorPool | None
    ) -> None:
        self._settings = settings
        self._vault = surroundings.vault
        self._allowance = surroundings.allowance
        self._narrower = Allowance(settings.allow) if settings.allow else None
        self._known = known
        self.timeout = settings.timeout
        self.max_concurrent = settings.max_concurrent
        self.breaker = settings.breaker
        self.declared: ConnectorDelivery = settings.delivery or "keyed"
        self._lines: OrderedDict[tuple[str, int, str], _Line] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(settings.pool.size)
        self._active = 0
        self._waiting = 0

    def target(self, request: bytes) -> str:
        """Scheme, host and port."""
        sent = self._read(request)
        return self._origin(sent.host, sent.port)

    def delivery(self, request: bytes) -> ConnectorDelivery:
        """What the connector says."""
        return self.declared

    async def call(self, call: Call) -> Answer:
        """Call a unary method."""
        sent = self._read(call.request)
        own, secrets = self._credentials()
        self._waiting += 1
        try:
            async with asyncio.timeout(self.timeout * PLACE_SHARE):
                await self._places.acquire()
        except TimeoutError:
            raise CallFailed("pool_timeout", "all places of the connector are in use", blame=False) from None
        finally:
            self._waiting -= 1
        self._active += 1
        try:
            line = await self._line(sent.host, sent.port)
            method = await self._method(line, sent.service, sent.method)
            lines = {name.lower(): value for name, value in (*sent.metadata, *own)} | {KEY: call.key}
            return await self._exchange(line, method, sent, tuple(lines.items()), secrets)
        finally:
            self._active -= 1
            self._places.release()

    async def verify(self, call: Call) -> Answer | None:
        """gRPC has no way to look a call up: such a connector cannot be configured."""
        raise CallFailed("not_verifiable", "a gRPC connector cannot look a call up", permanent=True, blame=False)

    async def probe(self) -> str:
        """Connect, and ask for the services unless they are described here."""
        if not self._settings.target:
            return "it has no target: each task says where to"
        host, port = _place(self._settings.target)
        self._check(host, port)
        where = self._origin(host, port)
        line = await self._line(host, port)
        try:
            async with asyncio.timeout(self._settings.pool.connect_timeout):
                await line.channel.channel_ready()
        except TimeoutError:
            raise CallFailed("connect_timeout", f"{where} does not accept the connection in time") from None
        if self._known is not None:
            return f"{where} accepts connections"
        answers = await self._reflect(line, [reflection_pb2.ServerReflectionRequest(list_services="*")])
        names = [each.name for answer in answers for each in answer.list_services_response.service]
        return f"{where} has {len(names)} services"

    def pool(self) -> PoolState:
        """Calls under way, and channels: one carries many calls."""
        return PoolState(self._active, len(self._lines), self._waiting)

    async def close(self) -> None:
        """Close all channels."""
        lines = list(self._lines.values())
        self._lines.clear()
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*(line.channel.close(0) for line in lines), *self._closing, return_exceptions=True)

    # ---------------------------------------------------------------------------------------------------------- request

    def _read(self, request: bytes) -> _Sent:
        members: dict[str, object] = msgspec.json.decode(request) if request else {}
        unknown = sorted(members.keys() - _MEMBERS)
        if unknown:
            raise _unfit(f"{unknown[0]!r} is not known; there are {', '.join(sorted(_MEMBERS))}")
        name = members.get("method", "")
        service, slash, method = str(name).strip("/").rpartition("/")
        if not slash or not service or not method:
            raise _unfit(f"method must be package.Service/Method, not {name!r}")
        target = members.get("target", "") or self._settings.target
        if not isinstance(target, str) or not target:
            raise _unfit("target must be host:port, because the connector has none")
        if self._settings.target and target != self._settings.target:
            raise _unfit("the connector has a target of its own")
        metadata = members.get("metadata", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise _unfit("metadata must be a map of texts")
        try:
            host, port = _place(target)
        except InvalidInput as error:
            raise _unfit(error.message) from error
        self._check(host, port)
        return _Sent(host, port, service, method, members.get("message", {}), tuple(metadata.items()))

    def _check(self, host: str, port: int) -> None:
        self._allowance.check(self._scheme, host, port)
        if self._narrower is not None:
            self._narrower.check(self._scheme, host, port)

    @property
    def _scheme(self) -> str:
        return "grpc" if self._settings.plaintext else "grpcs"

    def _origin(self, host: str, port: int) -> str:
        return f"{self._scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def _credentials(self) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
        lines: list[tuple[str, str]] = []
        secrets: list[str] = []
        for name, value in self._settings.metadata.items():
            if isinstance(value, Secret):
                value = self._vault.read(value)
                secrets.append(value)
            lines.append((name, value))
        if self._settings.bearer is not None:
            token = self._vault.read(self._settings.bearer)
            secrets.append(token)
            lines.append(("authorization", f"Bearer {token}"))
        return lines, tuple(secrets)

    # ---------------------------------------------------------------------------------------------------------- channel

    async def _line(self, host: str, port: int) -> _Line:
        """The channel to the addresses that a host has now; an earlier one is closed when they have changed."""
        addresses = await self._allowance.addresses(host, port)
        name = host, port, ",".join(sorted(addresses))
        line = self._lines.get(name)
        if line is None:
            made = _Line(self._channel(host, port, addresses))
            for old in [each for each in self._lines if each[:2] == (host, port)]:
                self._let_go(self._lines.pop(old))
            if len(self._lines) >= CHANNELS_MAX:
                self._let_go(self._lines.popitem(last=False)[1])
            line = self._lines[name] = made
        self._lines.move_to_end(name)
        return line

    def _let_go(self, line: _Line) -> None:
        """Close a channel once its calls have ended. Nobody waits for that: other calls go on by the new one."""

        async def later() -> None:
            await asyncio.sleep(self.timeout)  # a call that has the channel in hand may not have begun
            await line.channel.close(self.timeout)

        task = asyncio.get_running_loop().create_task(later())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _channel(self, host: str, port: int, addresses: list[str]) -> grpc.aio.Channel:
        six = any(":" in address for address in addresses)
        family = "ipv6" if six else "ipv4"
        places = [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in addresses if six == (":" in each)]
        authority = f"{f'[{host}]' if ':' in host else host}:{port}"
        options: list[tuple[str, str | int]] = [
            ("grpc.default_authority", authority),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.client_idle_timeout_ms", max(1_000, round(self._settings.pool.idle_timeout * 1000))),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ]
        target = f"{family}:{','.join(places)}"
        if self._settings.plaintext:
            return grpc.aio.insecure_channel(target, options=options)
        tls = self._settings.tls
        options.append(("grpc.ssl_target_name_override", tls.name or host))
        try:
            files = [_content(each) if each else None for each in (tls.ca, tls.key, tls.cert)]
        except OSError as error:
            problem = f"{error.filename} cannot be read: {error.strerror}"
            raise CallFailed("no_credentials", problem, blame=False) from error
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(*files), options=options)

    async def _exchange(
        self,
        line: _Line,
        method: MethodDescriptor,
        sent: _Sent,
        metadata: tuple[tuple[str, str], ...],
        secrets: tuple[str, ...],
    ) -> Answer:
        where = self._origin(sent.host, sent.port)
        message = message_factory.GetMessageClass(method.input_type)()
        try:
            json_format.Parse(json.dumps(sent.message), message)
        except json_format.ParseError as error:
            raise _unfit(f"message is no {method.input_type.full_name}: {error}") from error
        response = message_factory.GetMessageClass(method.output_type)
        stub = line.channel.unary_unary(
            f"/{sent.service}/{sent.method}",
            request_serializer=type(message).SerializeToString,
            response_deserializer=bytes,
        )
        call = stub(message, metadata=metadata, timeout=self.timeout)
        try:
            content = await call
            initial = {name: value for name, value in await call.initial_metadata() if isinstance(value, str)}
        except grpc.aio.AioRpcError as error:
            raise self._failure(error, where, secrets) from None
        except (ValueError, TypeError) as error:  # metadata that cannot be sent
            raise _unfit(f"metadata: {error}") from error
        try:
            answer = response.FromString(content)
        except DecodeError as error:
            told = f"{where} answered what is no {method.output_type.full_name}"
            raise CallFailed("bad_response", told, received="maybe", permanent=True) from error
        text = scrubbed(json_format.MessageToJson(answer, preserving_proto_field_name=True, indent=None), secrets)
        headers = {
            name: scrubbed(initial[name], secrets) for name in self._settings.response_headers if name in initial
        }
        return Answer(json.dumps({"status": "OK", "headers": headers, "body": json.loads(text)}).encode(), "OK")

    def _failure(self, error: grpc.aio.AioRpcError, where: str, secrets: tuple[str, ...]) -> CallFailed:
        code = error.code()
        said = scrubbed(error.details() or "", secrets)
        unsent = code is _Code.UNAVAILABLE and "failed to connect" in said
        return CallFailed(
            f"grpc_{code.name.lower()}",
            f"{where} answered {code.name}: {said}"[:2_000],
            received="no" if unsent else "maybe" if code in _DONE_PERHAPS else "yes",
            permanent=code not in _AGAIN,
            data=json.dumps({"status": code.name, "message": said[:2_000]}).encode(),
            blame=code in _ILL,
        )

    # ------------------------------------------------------------------------------------------------------ description

    async def _method(self, line: _Line, service: str, method: str) -> MethodDescriptor:
        """How a method looks. Raises CallFailed when there is no such one."""
        known = line.methods.get((service, method))
        if known is not None:
            return known
        async with line.asking:
            known = line.methods.get((service, method))
            if known is None:
                pool = self._known if self._known is not None else await self._reflected(line, service)
                known = line.methods[service, method] = _found(pool, service, method)
        return known

    async def _reflected(self, line: _Line, service: str) -> descriptor_pool.DescriptorPool:
        """The files that describe a service, and those that they import."""
        files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)]
        while asked:
            for answer in await self._reflect(line, asked):
                if answer.HasField("error_response"):
                    problem = answer.error_response.error_message
                    raise CallFailed(
                        "no_method", f"the server has no {service}: {problem}", permanent=True, blame=False
                    )
                for content in answer.file_descriptor_response.file_descriptor_proto:
                    file = descriptor_pb2.FileDescriptorProto.FromString(content)
                    files[file.name] = file
            if len(files) > FILES_MAX:
                raise CallFailed("no_method", f"{service} is described by too many files", permanent=True, blame=False)
            missing = {name for file in files.values() for name in file.dependency} - files.keys()
            asked = [reflection_pb2.ServerReflectionRequest(file_by_filename=name) for name in sorted(missing)]
        return _pool(files)

    async def _reflect(
        self, line: _Line, asked: list[reflection_pb2.ServerReflectionRequest]
    ) -> list[reflection_pb2.ServerReflectionResponse]:
        own, secrets = self._credentials()
        stub = reflection_pb2_grpc.ServerReflectionStub(line.channel)
        call = stub.ServerReflectionInfo(iter(asked), metadata=tuple(own), timeout=self.timeout)
        answers: list[reflection_pb2.ServerReflectionResponse] = []
        size = 0
        try:
            async for answer in call:
                answers.append(answer)
                size += answer.ByteSize()
                if size > DESCRIPTION_BYTES_MAX:
                    call.cancel()
                    raise CallFailed("no_method", "the server's description is too large", permanent=True, blame=False)
                if len(answers) == len(asked):  # one for each; a server may have more to say, for ever
                    call.cancel()
                    break
            return answers
        except grpc.aio.AioRpcError as error:
            if error.code() is _Code.UNIMPLEMENTED:
                told = "the server has no reflection; give the connector a file of descriptors"
                raise CallFailed("no_method", told, permanent=True, blame=False) from None
            failure = self._failure(error, "reflection", secrets)
            failure.received = "no"
            raise failure from None


def make(data: bytes, surroundings: Surroundings) -> GrpcConnector:
    """A gRPC connector of its settings. Raises InvalidInput."""
    settings = parse_settings(GrpcSettings, data)
    if settings.target:
        _place(settings.target)
    if settings.delivery == "verifiable":
        raise InvalidInput.field("config.delivery", "gRPC has no way to look a call up", "keyed or at-most-once")
    secret = False
    for name, value in settings.metadata.items():
        if isinstance(value, Secret):
            secret = True
            surroundings.vault.check(value, f"config.metadata.{name}")
        elif name.lower() in ("authorization", "cookie", "x-api-key", "proxy-authorization"):
            raise InvalidInput.field(f"config.metadata.{name}", "a secret is given by reference", 'as {"env": "..."}')
    if settings.bearer is not None:
        surroundings.vault.check(settings.bearer, "config.bearer")
    tls = settings.tls
    named = (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key))
    files = {name: surroundings.vault.path(file, f"config.tls.{name}") for name, file in named if file}
    settings = msgspec.structs.replace(settings, tls=Certificates(**files, name=tls.name))
    known = None
    if settings.descriptors:
        known = _described(surroundings.vault.path(settings.descriptors, "config.descriptors"))
    if (secret or settings.bearer is not None or tls.cert) and not settings.target and not settings.allow:
        raise InvalidInput.field(
            "config.target", "is missing: a task would choose who gets the credentials", "set it, or allow"
        )
    return GrpcConnector(settings, surroundings, known)


def _described(path: str) -> descriptor_pool.DescriptorPool:
    try:
        described = descriptor_pb2.FileDescriptorSet.FromString(_content(path))
        return _pool({file.name: file for file in described.file})
    except (OSError, DecodeError, TypeError) as error:
        raise InvalidInput.field("config.descriptors", f"is no file with a FileDescriptorSet: {error}") from error


def _pool(files: Mapping[str, descriptor_pb2.FileDescriptorProto]) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(name: str) -> None:
        if name in added or name not in files:
            return
        added.add(name)
        for other in files[name].dependency:
            add(other)
        pool.Add(files[name])

    for name in files:
        add(name)
    return pool


def _found(pool: descriptor_pool.DescriptorPool, service: str, method: str) -> MethodDescriptor:
    try:
        found = pool.FindServiceByName(service).methods_by_name.get(method)
    except KeyError:
        found = None
    if found is None:
        raise CallFailed("no_method", f"the server has no {service}/{method}", permanent=True, blame=False)
    if found.client_streaming or found.server_streaming:
        raise CallFailed("no_method", f"{service}/{method} is a stream", permanent=True, blame=False)
    return found


def _place(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535 or "/" in host:
        raise InvalidInput.field("config.target", f"{target!r} is not host:port", "for example billing.example.org:443")
    return host.strip("[]"), int(port)


def _content(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _unfit(problem: str) -> CallFailed:
    return CallFailed("bad_request", f"the task's request cannot be sent: {problem}", permanent=True, blame=False)
