"""The meaning of every call: one plain class per service of the contract, over the engine's public API.

Belongs here: which engine operation answers a call, with what arguments, and what its answer says. Does not belong
here: who may call (pipeline), how messages travel (rpc, rest), how fields become values (wire), what errors look like
(faults).
"""

from __future__ import annotations

from knhk_sidecar.api import pb
from knhk_sidecar.api.services.admin import AdminService, Component, Daemon, Setting
from knhk_sidecar.api.services.cases import CaseService
from knhk_sidecar.api.services.operation import (
    Bidi,
    Call,
    Operation,
    ServerStream,
    Unary,
    method_path,
    mutates,
    operations,
    request_class,
    response_class,
)
from knhk_sidecar.api.services.patterns import PatternService
from knhk_sidecar.api.services.subscriptions import SubscriptionService
from knhk_sidecar.api.services.work_items import WorkItemService
from knhk_sidecar.api.services.workflows import WorkflowService
from knhk_workflow import WorkflowEngine

__all__ = [
    "services",
    "Operation",
    "Unary",
    "ServerStream",
    "Bidi",
    "Call",
    "method_path",
    "mutates",
    "request_class",
    "response_class",
    "Daemon",
    "Component",
    "Setting",
]


def services(engine: WorkflowEngine | None, daemon: Daemon) -> tuple[Operation, ...]:
    """Every operation of the contract, in its order. Without an engine all but AdminService answer UNIMPLEMENTED."""
    found: tuple[Operation, ...] = ()
    admin = AdminService(engine, daemon, lambda: [one.missing for one in found if one.missing])
    implementations = {
        "PatternService": PatternService(engine) if engine else None,
        "WorkflowService": WorkflowService(engine) if engine else None,
        "CaseService": CaseService(engine) if engine else None,
        "WorkItemService": WorkItemService(engine) if engine else None,
        "AdminService": admin,
        "SubscriptionService": SubscriptionService() if engine else None,
    }
    found = operations((descriptor, implementations[descriptor.name]) for descriptor in pb.SERVICES)
    return found
