"""The meaning of every call: one plain class per service of the contract, over the engine's public API.

A method has the call's name in snake case:

    unary           async def get_case(self, request, meta) -> response
    server stream   async def watch_case(self, request, meta) -> AsyncIterator[response]        (an async generator)
    both stream     async def stream_run_case(self, requests, meta) -> AsyncIterator[response]  (an async generator)

`meta` says for whom, until when, and carries the idempotency key of a unary request. What raises is a WorkflowError.

Belongs here: which engine operation answers a call, with what arguments, and what its answer says. Does not belong
here: who may call (pipeline), how messages travel (rpc, rest), how fields become values (wire), what errors look like
(faults).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from types import SimpleNamespace

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from knhk_sidecar.api import pb
from knhk_sidecar.api.services.absence import ENGINE, engine_off
from knhk_sidecar.api.services.admin import AdminService, Component, Daemon, Health, Setting
from knhk_sidecar.api.services.cases import CaseService
from knhk_sidecar.api.services.patterns import PatternService
from knhk_sidecar.api.services.schedules import ScheduleService
from knhk_sidecar.api.services.subscriptions import SubscriptionService
from knhk_sidecar.api.services.work_items import WorkItemService
from knhk_sidecar.api.services.workflows import WorkflowService
from knhk_workflow import CallMeta, Unsupported, WorkflowEngine

__all__ = ["services", "unavailable", "function_of", "Daemon", "Component", "Health", "Setting"]

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

Refusing = Callable[[object, CallMeta], Awaitable[Message]] | Callable[[object, CallMeta], AsyncIterator[Message]]


def services(engine: WorkflowEngine | None, daemon: Daemon) -> Mapping[str, object]:
    """What carries out each service, by its full name in the contract.

    A call without a method is one that this version lacks. Without an engine there is a method for every call that
    refuses it, naming the engine as what is missing; AdminService works all the same.
    """
    found: dict[str, object] = {}
    by_name: dict[str, object] = {"AdminService": AdminService(engine, daemon, lambda: unavailable(found, engine))}
    if engine is not None:
        by_name |= {
            "PatternService": PatternService(engine),
            "WorkflowService": WorkflowService(engine),
            "CaseService": CaseService(engine),
            "WorkItemService": WorkItemService(engine),
            "ScheduleService": ScheduleService(engine),
            "SubscriptionService": SubscriptionService(),
        }
    for descriptor in pb.SERVICES:
        found[descriptor.full_name] = by_name.get(descriptor.name) or _switched_off(descriptor)
    return found


def unavailable(implementations: Mapping[str, object], engine: WorkflowEngine | None) -> tuple[str, ...]:
    """The features of the contract that answer UNIMPLEMENTED, sorted: `CaseService.MigrateCases`, the engine itself."""
    missing = [
        f"{service.name}.{method.name}"
        for service in pb.SERVICES
        for method in service.methods
        if not hasattr(implementations.get(service.full_name), function_of(method.name))
    ]
    return tuple(sorted(missing if engine is not None else [*missing, ENGINE]))


def function_of(call: str) -> str:
    """The name of the method that carries a call out: `GetCase` -> `get_case`."""
    return _WORD.sub("_", call).lower()


def _switched_off(service: ServiceDescriptor) -> SimpleNamespace:
    return SimpleNamespace(**{function_of(method.name): _refusing(method) for method in service.methods})


def _refusing(method: MethodDescriptor) -> Refusing:
    async def refuse(request: object, meta: CallMeta) -> Message:
        raise engine_off()

    async def refuse_stream(request: object, meta: CallMeta) -> AsyncIterator[Message]:
        for never in _raising(engine_off()):
            yield never

    return refuse_stream if method.server_streaming else refuse


def _raising(error: Unsupported) -> Iterator[Message]:
    raise error
