"""What the engine stores: one struct per kind of value, and how it becomes bytes.

Every struct is an array behind the store's envelope; fields are only appended, with defaults. The commit record is the
truth; heads, rows and snapshots can be rebuilt from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from knhk_workflow.core.events import EventType
from knhk_workflow.errors import StoreCorrupt
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.store.codec import UNREADABLE, seal, unseal

S = TypeVar("S", bound=msgspec.Struct)


class CommitRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All events of one command, with who caused them: history, audit entry and replay source in one."""

    time: int  # ns since the epoch
    principal: str
    method: str
    request_id: str
    trace_id: str
    events: Sequence[EventType]


class CommitHeader(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The head of a CommitRecord: decoding skips its events."""

    time: int
    principal: str
    method: str
    request_id: str
    trace_id: str


class Operation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who did what, to what, with what outcome, when."""

    time: int  # ns since the epoch; of the first of `count`
    principal: str
    method: str
    resource: str = ""
    outcome: str = "OK"  # name of the gRPC status code
    reason: str = ""
    request_id: str = ""
    peer: str = ""
    trace_id: str = ""
    count: int = 1


class Author(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who wrote a commit record that was purged."""

    first_sequence: int
    time: int
    principal: str
    method: str
    request_id: str
    trace_id: str


class AuditRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the audit keeps beside the commit records of cases: operations that changed nothing of a case, or the
    authors of commit records that a purge has deleted. The log has its digest."""

    tenant: str
    operations: tuple[Operation, ...] = ()
    case_id: str = ""
    authors: tuple[Author, ...] = ()


class CaseHead(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The newest of a case: what lists show, and what the next commit expects to find."""

    sequence: int
    state: str
    spec_id: str
    version: int
    business_key: str
    created_at: int
    updated_at: int
    open_items: int
    open_incidents: int
    reason: str = ""
    created_by: str = ""


class SnapshotRecord(msgspec.Struct, frozen=True, array_like=True):
    """A cached state: valid only for its codec version and when the hash agrees. Never the only copy."""

    codec: int
    sequence: int
    state_hash: bytes
    state: bytes


class ItemRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An open work item, for work lists."""

    task: str
    name: str
    net: str
    state: str
    roles: tuple[str, ...]
    owner: str
    attempt: int
    priority: int
    offered_at: int
    changed_at: int
    spec_id: str
    due_at: int = 0
    worker: str = ""
    lease: int = 0  # ns


class IncidentRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An open incident, for lists."""

    kind: str
    message: str
    task: str
    raised_at: int
    spec_id: str = ""


class RequestRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a request id did: the fingerprint of the command, the case, and the answer's own part."""

    fingerprint: bytes
    case_id: str
    sequence: int
    receipt: bytes = b""
    purged: bool = False  # the case is gone, and the answer with it


class MessageRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message on its way to `targets`, or, without any, waiting for a case that is not there yet."""

    message_id: str
    name: str
    key: str
    data: bytes
    time_to_live: int | None  # ns, as asked; None is the default
    expires: int
    principal: str
    method: str
    fingerprint: bytes
    waits: bool  # no case that was there knew the name: whoever comes first gets it
    targets: tuple[str, ...] = ()
    answered: bool = False  # its request record is written


class CallRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A connector's call that was begun and has not ended: what is to be sent, to whom."""

    key: str
    connector: str
    request: bytes
    attempt: int
    begun: bool = False  # it must not be made twice, and was perhaps made


class ConnectorRecord(msgspec.Struct, frozen=True, array_like=True):
    """A connector that was configured by a call."""

    kind: str
    config: bytes  # JSON
    default: bool
    updated_at: int
    updated_by: str


class ScheduleSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a schedule was asked to be."""

    spec_id: str
    """The workflow whose cases it starts."""
    every: str
    """A cron line or an ISO 8601 repeating interval, as `timer: {every: ...}` has it."""
    time_zone: str = ""
    """Where a cron line's local time is told: an IANA name; empty = UTC."""
    version: int = 0
    """0 = the newest when a case is started."""
    data: bytes = b"{}"
    """What its cases begin with: a JSON object."""
    business_key: str = ""
    time_key: str = ""
    """The data key that gets the occurrence's time (RFC 3339); empty = none."""
    overlap: str = "skip"
    """What happens when a case that it started is still open: one of OVERLAPS."""
    catch_up: str = "latest"
    """Which of the occurrences that were missed are made up for: one of CATCH_UPS."""
    catch_up_window: int = 24 * 3_600 * NS_PER_S
    """Nanoseconds after which a missed occurrence is not made up for any more."""
    not_before: int = 0
    """No occurrence lies before it; nanoseconds since the epoch, 0 = no bound."""
    not_after: int = 0
    """No occurrence lies behind it; 0 = no bound."""
    note: str = ""
    """Text for people."""


class ScheduledStart(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A case that a schedule is going to start."""

    at: int  # the occurrence, ns since the epoch
    case_id: str
    overlap: str
    data: bytes = b""  # instead of the schedule's; empty = that


class ScheduleRun(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of an occurrence. `outcome`: started, skipped, missed, failed."""

    at: int
    outcome: str
    done_at: int
    case_id: str = ""
    message: str = ""


class ScheduleRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A schedule with everything that it still has to do."""

    spec: ScheduleSpec
    revision: int
    created_at: int
    created_by: str
    updated_at: int
    anchor: int  # when an interval without a start began to count
    next: int  # the next occurrence; 0 = none is left
    paused: bool = False
    pause_reason: str = ""
    starting: tuple[ScheduledStart, ...] = ()  # decided, and to be carried out whatever happens
    waiting: tuple[ScheduledStart, ...] = ()  # until the cases before have ended
    running: tuple[str, ...] = ()  # started, and open when they were last looked at
    recent: tuple[ScheduleRun, ...] = ()  # oldest first
    started: int = 0
    skipped: int = 0
    missed: int = 0
    failed: int = 0
    triggered: int = 0


class PurgeRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The note that a case was purged: all that is left of it but the digests in the log. The log has its digest."""

    tenant: str
    case_id: str
    sequence: int  # events that it had
    state: str
    spec_id: str
    version: int
    created_at: int
    ended_at: int
    purged_at: int
    principal: str
    method: str
    request_id: str = ""
    cut: bool = False  # the store was restored as of an earlier moment, and the log ends before the purge
    trace_id: str = ""


class Definition(msgspec.Struct, frozen=True, array_like=True):
    """One version of a workflow."""

    version: int
    name: str
    document: bytes  # canonical JSON
    digest: bytes
    registered_at: int
    registered_by: str
    findings: bytes = b"[]"  # JSON of Problem
    deleted_at: int = 0
    verdict: str = "unchecked"  # of verification: sound, unsound, undecided


_encode = msgspec.msgpack.Encoder().encode


def pack(record: msgspec.Struct) -> bytes:
    """The stored form of a record."""
    return seal(_encode(record))


class Reader(Generic[S]):
    """Decodes one kind of record. A stored value that does not decode is corrupt, and says where it lies."""

    __slots__ = ("_decode",)

    def __init__(self, kind: type[S]) -> None:
        self._decode: Callable[[bytes], S] = msgspec.msgpack.Decoder(kind).decode

    def read(self, key: bytes, value: bytes) -> S:
        """The record in `value`."""
        return self.read_payload(key, unseal(key, value))

    def read_payload(self, key: bytes, payload: bytes) -> S:
        """The record in what an envelope held."""
        try:
            return self._decode(payload)
        except UNREADABLE as error:
            raise StoreCorrupt(f"the value of key {key.hex()} does not decode: {error}", key=key.hex()) from error


COMMITS = Reader(CommitRecord)
COMMIT_HEADERS = Reader(CommitHeader)
AUDITS = Reader(AuditRecord)
HEADS = Reader(CaseHead)
SNAPSHOTS = Reader(SnapshotRecord)
ITEMS = Reader(ItemRow)
INCIDENTS = Reader(IncidentRow)
REQUESTS = Reader(RequestRecord)
DEFINITIONS = Reader(Definition)
MESSAGES = Reader(MessageRecord)
CALLS = Reader(CallRecord)
CONNECTORS = Reader(ConnectorRecord)
SCHEDULES = Reader(ScheduleRecord)
PURGES = Reader(PurgeRecord)
