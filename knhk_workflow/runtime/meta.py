"""Who calls, and for whom: plain values that come with every operation."""

from __future__ import annotations

import msgspec

from knhk_workflow.errors import DeadlineExceeded

DEFAULT_TENANT = "default"
LIBRARY = "system:library"


class Witness:
    """Of one call: whether the commit of its effect says who asked for it, so that the audit has its entry."""

    __slots__ = ("recorded",)

    def __init__(self) -> None:
        self.recorded = False


class CallMeta(msgspec.Struct, frozen=True, gc=False):
    """The caller of one operation.

    `tenant` scopes every id. `principal` is the SPIFFE id or JWT subject, `system:...` for the engine's own doing.
    `roles` are what the principal is in workflows: with any, it may do the work of tasks that ask for one of them, or
    for none; with none it is an application that answers for its users itself.
    `request_id` (optional, <= 128 bytes) makes a mutation idempotent within (tenant, principal, method).
    `deadline` is nanoseconds of the engine's clock; 0 = none. Policy is decided before the engine is called.
    `witness` is told when a commit records the call; whoever wants every call in the audit gives one.
    """

    tenant: str = DEFAULT_TENANT
    principal: str = LIBRARY
    roles: tuple[str, ...] = ()
    method: str = ""
    request_id: str = ""
    trace_id: str = ""
    deadline: int = 0
    witness: Witness | None = None

    def element(self, index: int | str) -> CallMeta:
        """The caller of one element of a batch: its request id is the batch's with the element's index or name."""
        return msgspec.structs.replace(self, request_id=f"{self.request_id}#{index}") if self.request_id else self


LOCAL = CallMeta()


def too_late() -> DeadlineExceeded:
    """The refusal of a command whose caller has stopped waiting."""
    return DeadlineExceeded("the deadline passed before the command was carried out; nothing was changed")
