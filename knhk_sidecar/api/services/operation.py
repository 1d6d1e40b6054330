"""The operations of the contract, each with what carries it out: the one list that gRPC and REST register from.

A service is a plain class whose methods have the names of the contract's calls. `operations` reads the descriptors: a
call without a method answers UNIMPLEMENTED and names itself as the missing feature, so nothing pretends and nothing is
written twice. Three shapes:

    Unary          async def GetCase(self, request, call) -> response
    ServerStream   async def WatchCase(self, request, call) -> AsyncIterator[response]       (an async generator)
    Bidi           async def StreamRunCase(self, requests, call) -> AsyncIterator[response]  (an async generator)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, cast

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from knhk_workflow import CallMeta, Unsupported


class Call(Protocol):
    """What a service needs to know about a call: for whom it is. The pipeline's call is one."""

    @property
    def meta(self) -> CallMeta:
        """Tenant, principal, roles, method and deadline; its request id is empty, services read it from the message."""
        ...


class Service(Protocol):
    """A plain object whose methods are named like the calls of the contract."""


UnaryBehaviour = Callable[[Message, Call], Awaitable[Message]]
StreamBehaviour = Callable[[Message, Call], AsyncIterator[Message]]
BidiBehaviour = Callable[[AsyncIterator[Message], Call], AsyncIterator[Message]]


@dataclass(frozen=True, slots=True)
class Unary:
    """One request, one answer. `missing` names the feature that this build or configuration lacks, if it does."""

    descriptor: MethodDescriptor
    missing: str
    invoke: UnaryBehaviour


@dataclass(frozen=True, slots=True)
class ServerStream:
    """One request, a stream of answers."""

    descriptor: MethodDescriptor
    missing: str
    invoke: StreamBehaviour


@dataclass(frozen=True, slots=True)
class Bidi:
    """A stream of requests, a stream of answers."""

    descriptor: MethodDescriptor
    missing: str
    invoke: BidiBehaviour


Operation = Unary | ServerStream | Bidi


def operations(implementations: Iterable[tuple[ServiceDescriptor, Service | None]]) -> tuple[Operation, ...]:
    """Every call of the given services. None for a service: all its calls need the engine, and there is none."""
    return tuple(
        _operation(method, implementation)
        for descriptor, implementation in implementations
        for method in descriptor.methods
    )


def request_class(operation: Operation) -> type[Message]:
    """The class of its request messages."""
    return GetMessageClass(operation.descriptor.input_type)


def response_class(operation: Operation) -> type[Message]:
    """The class of its response messages."""
    return GetMessageClass(operation.descriptor.output_type)


def method_path(operation: Operation) -> str:
    """The name on the wire, `/knhk.sidecar.v1.CaseService/GetCase`."""
    return f"/{operation.descriptor.containing_service.full_name}/{operation.descriptor.name}"


def mutates(operation: Operation) -> bool:
    """True for calls that change something: those whose request carries an idempotency key."""
    return "request_id" in operation.descriptor.input_type.fields_by_name


def feature_name(method: MethodDescriptor) -> str:
    """How the contract's call is named as a feature: `CaseService.MigrateCases`."""
    return f"{method.containing_service.name}.{method.name}"


def engine_off() -> Unsupported:
    """The error of every call that needs an engine when there is none."""
    return Unsupported("workflow engine", "set KGC_SIDECAR_WORKFLOW_ENABLED=true and restart the sidecar")


def _operation(method: MethodDescriptor, implementation: Service | None) -> Operation:
    behaviour = getattr(implementation, method.name, None)
    if behaviour is not None:
        missing = ""
    elif implementation is None:
        missing, behaviour = "workflow engine", _refusing(method, engine_off)
    else:
        feature = feature_name(method)
        missing, behaviour = feature, _refusing(method, lambda: Unsupported(feature))
    # By name and at run time: that shapes agree with the contract is for the test that calls every one of them.
    if method.client_streaming:
        return Bidi(method, missing, cast("BidiBehaviour", behaviour))
    if method.server_streaming:
        return ServerStream(method, missing, cast("StreamBehaviour", behaviour))
    return Unary(method, missing, cast("UnaryBehaviour", behaviour))


def _refusing(method: MethodDescriptor, error: Callable[[], Unsupported]) -> UnaryBehaviour | StreamBehaviour:
    async def refuse(request: Message, call: Call) -> Message:
        raise error()

    async def refuse_stream(request: object, call: Call) -> AsyncIterator[Message]:
        for never in _raising(error()):
            yield never

    return refuse_stream if method.server_streaming else refuse


def _raising(error: Unsupported) -> Iterable[Message]:
    raise error
