"""Every call into the audit, once.

A call that changes something has its entry in the commit of the change, made by the engine: that is where who asked for
it is recorded, or nothing is. What is recorded here is the rest: reads, streams when they are opened, calls that had
nothing left to change, and whatever was refused, with the rule that refused it. It is handed over without waiting.

When the audit cannot take any more, reads are refused: nobody looks without being seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message

from knhk_sidecar.api.faults import PermissionDenied, Unauthenticated
from knhk_sidecar.identity.principal import ANONYMOUS
from knhk_sidecar.pipeline.call import Call, Method, Request
from knhk_sidecar.pipeline.permissions import Permission
from knhk_sidecar.pipeline.stages import Proceed, Refusal
from knhk_workflow import AUDIT_DENIALS, Busy, Like, Operation, Witness, shortened

RETRY_AFTER_MS: Final = 1_000  # what waits is written once a second
REQUEST_ID_MAX: Final = 128
NO_RULE: Final = "no rule allows it"

_READS: Final = frozenset(
    each for each in Permission if each.value.endswith(".read") or each in (Permission.STATUS, Permission.REFLECT)
)
_BEFOREHAND: Final = frozenset({"Backup", "ExportAudit"})
"""Streams whose service records them durably before the first byte leaves."""
_RESOURCES: Final = (
    ("case_id", "cases"),
    ("item_id", "items"),
    ("incident_id", "incidents"),
    ("dead_letter_id", "dead-letters"),
    ("schedule_id", "schedules"),
    ("subscription_id", "subscriptions"),
    ("hold_id", "legal-holds"),
    ("spec_id", "workflows"),
    ("workflow_id", "workflows"),
    ("pattern_id", "patterns"),
)
"""Fields that say what a request is about, the most particular first."""
_NAMED: Final = {"PutConnector": "connectors", "DeleteConnector": "connectors", "TriggerCase": "signals"}
"""What `name` is in these requests."""


@dataclass(frozen=True, slots=True)
class _About:
    """What is known in advance of the calls of a method."""

    name: str
    resources: tuple[tuple[str, str], ...]
    reads: bool
    mutates: bool
    """A unary call with a request id: its effect has an entry of its own."""
    beforehand: bool


class Audit:
    """Hands calls over to the audit. `opened` is called by the innermost stage for streams."""

    def __init__(
        self,
        proceed: Proceed,
        methods: Mapping[str, Method],
        *,
        record: Callable[[Operation, str], None],
        again: Callable[[Like], bool],
        full: Callable[[], bool],
        now: Callable[[], int],
        reads: bool,
    ) -> None:
        """`reads`: whether good reads are recorded as well; `now` is the engine's clock."""
        self._proceed = proceed
        self._record = record
        self._again = again
        self._full = full
        self._now = now
        self._reads = reads
        self._about = {
            path: _about(method) for path, method in methods.items() if method.permission is not Permission.HEALTH
        }

    async def run(self, call: Call, request: Request) -> Message | None:
        about = self._about.get(call.method.path)
        if about is None:
            return await self._proceed(call, request)
        if about.mutates:
            call.witness = Witness()
        elif self._reads and about.reads and self._full():
            raise Refusal(Busy("the audit, which would not have this call", RETRY_AFTER_MS))
        try:
            response = await self._proceed(call, request)
        except Refusal as refusal:
            code = refusal.code.name
            if code in AUDIT_DENIALS or self._reads or not about.reads:
                self._take(call, request, about, code, _reason(refusal))
            raise
        except asyncio.CancelledError:
            if about.mutates and call.witness is not None and not call.witness.recorded:
                self._take(call, request, about, "CANCELLED", "")
            raise
        if about.mutates:
            if call.witness is not None and not call.witness.recorded:
                self._take(call, request, about, "OK", "")
        elif self._reads and not call.method.streams:
            self._take(call, request, about, "OK", "")
        return response

    def opened(self, call: Call, request: Request) -> None:
        """A stream was let in, and begins."""
        about = self._about.get(call.method.path)
        if about is not None and not about.beforehand and (self._reads or not about.reads):
            self._take(call, request, about, "OK", "")

    def turned_away(self, method: str, peer: str, reason: str) -> None:
        """Somebody was refused by a transport, before it was known what call it is. Nothing that was sent is in
        `method` and `reason`."""
        denial = Operation(
            self._now(),
            ANONYMOUS.name,
            method,
            outcome="UNAUTHENTICATED",  # nobody was asked who it is: it counts among the strangers
            reason=reason,
            peer=peer,
        )
        self._record(denial, ANONYMOUS.tenant)

    def _take(self, call: Call, request: Request, about: _About, outcome: str, reason: str) -> None:
        resource = ""
        for field, kind in about.resources:
            if found := getattr(request, field):
                resource = shortened(f"{kind}/{found}")
                break
        caller = call.principal
        peer = call.peer
        shown = "" if outcome in AUDIT_DENIALS else resource
        if self._again((caller.tenant, caller.name, about.name, shown, outcome, reason, peer.rpartition(":")[0])):
            return
        request_id: str = getattr(request, "request_id", "") if about.mutates else ""
        self._record(
            Operation(
                self._now(),
                caller.name,
                about.name,
                resource,
                outcome,
                reason,
                request_id[:REQUEST_ID_MAX],
                peer,
                call.trace_id,
            ),
            caller.tenant,
        )


def _about(method: Method) -> _About:
    fields = () if method.client_streaming else method.request.DESCRIPTOR.fields_by_name
    resources = [(field, kind) for field, kind in _RESOURCES if field in fields]
    if method.name in _NAMED:
        resources.append(("name", _NAMED[method.name]))
    return _About(
        method.path.removeprefix("/"),
        tuple(resources),
        method.permission in _READS,
        method.has_request_id and not method.streams,
        method.name in _BEFOREHAND,
    )


def _reason(refusal: Refusal) -> str:
    """The reason that the caller was told, and the rule behind it, which nobody was."""
    error = refusal.error
    rule: str = getattr(error, "rule", "")
    if not rule and isinstance(error, PermissionDenied):
        rule = NO_RULE
    elif not rule and isinstance(error, Unauthenticated) and error.__cause__ is not None:
        rule = str(error.__cause__)
    return shortened(f"{error.reason}: {rule}") if rule else error.reason
