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
HEADS = Reader(CaseHead)
SNAPSHOTS = Reader(SnapshotRecord)
ITEMS = Reader(ItemRow)
INCIDENTS = Reader(IncidentRow)
REQUESTS = Reader(RequestRecord)
DEFINITIONS = Reader(Definition)
MESSAGES = Reader(MessageRecord)
PURGES = Reader(PurgeRecord)
