"""The audit's part of a commit that changes something else than a case: who did it, in the same unit as its effect.

A case needs nothing of this: its commit record says who, how and when, and so do the notes of purges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.records import AuditRecord, Author, Operation, pack
from knhk_workflow.store import Keyspace, Write, unseal
from knhk_workflow.store.codec import audit_place, audit_reference


class Audited(NamedTuple):
    """What a unit writes for the audit, and what the log says of it."""

    write: Write
    reference: bytes


def audited(keys: Keyspace, shard: int, meta: CallMeta, resource: str, now: int) -> Audited:
    """A call that changes `resource`, for the unit that does it."""
    if meta.witness is not None:
        meta.witness.recorded = True
    operation = Operation(
        now, meta.principal, meta.method, resource, request_id=meta.request_id, trace_id=meta.trace_id
    )
    return recorded(keys, shard, AuditRecord(meta.tenant, (operation,)), now)


def recorded(keys: Keyspace, shard: int, record: AuditRecord, now: int) -> Audited:
    """An audit record. `now` is where it stands among the others of the shard, in ns."""
    value = pack(record)
    reference = audit_reference(unseal(b"", value), now)
    return Audited((keys.audit(shard, *audit_place(reference)), value), reference)


def authors_record(tenant: str, case_id: str, authors: Sequence[Author]) -> AuditRecord:
    """Who wrote what a purge deletes."""
    return AuditRecord(tenant, (), case_id, tuple(authors))
