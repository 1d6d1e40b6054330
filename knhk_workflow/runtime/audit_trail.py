"""Reading the audit: who did what to what, with what outcome, newest first.

There is no second log: the entries are those of the batch records, read backwards. One that names commit records of a
case leads to these, whose head says who and how; one that names audit records leads to those; the note of a purge is
the entry of the purge. A case that was purged is still told of: who wrote its records was kept.

An entry's id is its place: shard, position in the log, number within the batch record. The batch record's hash is a
leaf of the shard's tree, so the same numbers lead to the proof.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

import msgspec

from knhk_workflow.errors import InvalidInput, NotFound, StoreCorrupt
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime.pages import decode_token, encode_token, page_size_of
from knhk_workflow.runtime.records import AUDITS, COMMIT_HEADERS, PURGES, AuditRecord, Author, CommitHeader, Operation
from knhk_workflow.runtime.views import Page
from knhk_workflow.store import Keyspace, LogEntry, LogRecord, Reads, unseal, unseal_log
from knhk_workflow.store.chain import last_before, newest
from knhk_workflow.store.codec import audit_place, audit_reference
from knhk_workflow.store.keys import parse_log

PORTION: Final = 64  # most batch records per read
TOGETHER: Final = 32  # commit records of one batch that are read at once
LOOKED_MAX: Final = 1_000  # batch records and values read for one page, about 0.1 s; then the page ends with a token
LOOK_BYTES: Final = 64 * 1024  # of a value count as one more: a page over records of 2 MB reads 64 MB at most
POSITION_MAX: Final = 1 << 62  # a log that gets a record every nanosecond is shorter after a hundred years
LATE_NS: Final = 120 * NS_PER_S  # how long after an operation its batch record may be written, outages aside
PURGED: Final = "PURGED"
"""Reason of an entry whose case was purged since: who and when is told, what exactly is gone."""
MISSING: Final = "MISSING"
"""Reason of an entry whose commit record is lost: `knhk verify` says more."""

_encode = msgspec.msgpack.Encoder().encode


class AuditFilter(msgspec.Struct, frozen=True):
    """Fields are combined by AND; empty and 0 are no condition. Times are ns since the epoch, `before` is exclusive."""

    principal: str = ""
    method: str = ""
    """Full name (`knhk.sidecar.v1.CaseService/CreateCase`) or bare one."""
    resource_prefix: str = ""
    outcome: str = ""
    after: int = 0
    before: int = 0


EVERYTHING: Final = AuditFilter()


class AuditEntry(msgspec.Struct, frozen=True):
    """One entry. `audit_id` is `shard-position-number`."""

    audit_id: str
    operation: Operation


class Told(NamedTuple):
    """One element of a batch record: what the audit says of it, for whom, and the stored bytes behind it."""

    tenant: str
    number: int
    operation: Operation
    payload: bytes = b""


def parse_audit_id(audit_id: str) -> tuple[int, int, int]:
    """(shard, position, number). Raises InvalidInput."""
    parts = audit_id.split("-")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) <= 19 for part in parts):
        raise InvalidInput.field("audit_id", f"{audit_id!r} is not the id of an audit entry", "use one of ListAudit")
    shard, position, number = map(int, parts)
    return shard, position, number


def method_name(method: str) -> str:
    """Without the slash that a path begins with."""
    return method.removeprefix("/")


def written(by: CommitHeader | Author, resource: str, reason: str = "") -> Operation:
    """A commit record of a case as an operation on `resource`, from what is known of who wrote it."""
    return Operation(
        by.time,
        by.principal,
        method_name(by.method),
        resource,
        reason=reason,
        request_id=by.request_id,
        trace_id=by.trace_id,
    )


class Trail:
    """The audit of one store."""

    def __init__(self, reads: Reads, keyspace: Keyspace) -> None:
        self._reads = reads
        self._keys = keyspace

    async def page(self, tenant: str, wanted: AuditFilter, page_size: int, page_token: str) -> Page[AuditEntry]:
        """A tenant's entries, newest first. A filter that matches little gives a short page with a token."""
        size = page_size_of(page_size)
        bound = f"audit {tenant} {wanted!r}"
        raw = decode_token(page_token, bound)
        places = _read_places(raw, self._keys.all_shards())
        walks = {shard: _Walk(shard, position, number) for shard, position, number in places}
        if not raw:
            for shard in self._keys.all_shards():
                position = await self._newest(shard, wanted.before)
                if position:
                    walks[shard] = _Walk(shard, position, -1)
        found: list[AuditEntry] = []
        budget = _Budget(LOOKED_MAX, len(walks))
        heads: list[tuple[int, int]] = []
        for shard, walk in walks.items():
            if await self._fill(walk, tenant, wanted, budget):
                heapq.heappush(heads, (-walk.time, shard))
        while heads and len(found) < size:
            _, shard = heapq.heappop(heads)
            walk = walks[shard]
            if walk.ready:
                told = walk.ready.pop(0)
                if _matches(told.operation, wanted):
                    found.append(AuditEntry(f"{shard}-{walk.position}-{told.number}", told.operation))
                walk.number = told.number
            if not walk.ready:
                if budget.spent:
                    heapq.heappush(heads, (-walk.time, shard))
                    break
                if not await self._fill(walk, tenant, wanted, budget):
                    continue
            heapq.heappush(heads, (-walk.time, shard))
        left = [walks[shard] for _, shard in heads]
        going_on = [(walk.shard, walk.position, walk.number) for walk in left if walk.position]
        return Page(tuple(found), encode_token(_encode(going_on), bound) if going_on else "")

    async def entry(self, tenant: str, audit_id: str) -> tuple[AuditEntry, LogRecord, bytes]:
        """An entry with its batch record and the bytes of that. Raises NotFound."""
        shard, position, number = parse_audit_id(audit_id)
        if shard not in self._keys.all_shards():
            raise NotFound("audit entry", audit_id)
        key = self._keys.log(shard, position)
        held = await self._reads.get(key)
        if held is None:
            raise NotFound("audit entry", audit_id)
        record, _ = unseal_log(key, held)
        async for told in self.told(shard, record):
            if told.number == number and told.tenant == tenant:
                return AuditEntry(audit_id, told.operation), record, unseal(key, held)
        raise NotFound("audit entry", audit_id)

    async def told(self, shard: int, record: LogRecord, only: str | None = None) -> AsyncIterator[Told]:
        """What the audit has of a batch record, newest first; `only`: of one tenant."""
        number = len(record.entries)
        references = [await self._audit(shard, reference) for reference in record.audits]
        last = number + sum(len(found.operations) for found in references if found is not None)
        for kept in reversed(references):
            if kept is None:
                continue
            for operation in reversed(kept.operations):
                last -= 1
                if only in (None, kept.tenant):
                    yield Told(kept.tenant, last, _named(operation))
        mine = [at for at in range(number - 1, -1, -1) if only in (None, record.entries[at].tenant)]
        for first in range(0, len(mine), TOGETHER):
            some = mine[first : first + TOGETHER]
            found = await asyncio.gather(*(self.of_case(shard, record.entries[at]) for at in some))
            for at, (operation, payload) in zip(some, found, strict=True):
                yield Told(record.entries[at].tenant, at, operation, payload)

    async def of_case(self, shard: int, entry: LogEntry) -> tuple[Operation, bytes]:
        """Who wrote a commit record of a case, or purged the case; the record's bytes, or those of the purge's note.
        A purged record has no bytes, only an author."""
        keys = self._keys.case(entry.tenant, entry.case_id)
        resource = f"cases/{entry.case_id}"
        if not entry.count:
            held = await self._reads.get(keys.purged())
            if held is None:
                return Operation(0, "", "", resource, reason=MISSING), b""
            note = PURGES.read(keys.purged(), held)
            by = Operation(
                note.purged_at,
                note.principal,
                method_name(note.method),
                resource,
                request_id=note.request_id,
                trace_id=note.trace_id,
            )
            return by, unseal(keys.purged(), held)
        key = keys.record(entry.first_sequence)
        held = await self._reads.get(key)
        if held is not None:
            payload = unseal(key, held)
            return written(COMMIT_HEADERS.read_payload(key, payload), resource), payload
        return await self._author(shard, entry, resource), b""

    async def audit(self, shard: int, reference: bytes) -> bytes | None:
        """The bytes of an audit record that the log has a reference of; None when it is not there. Raises StoreCorrupt
        when it is another one."""
        key = self._keys.audit(shard, *audit_place(reference))
        held = await self._reads.get(key)
        if held is None:
            return None
        payload = unseal(key, held)
        if audit_reference(payload, audit_place(reference)[0]) != reference:
            raise StoreCorrupt(f"an audit record of shard {shard} is not what was recorded", shard=str(shard))
        return payload

    async def _audit(self, shard: int, reference: bytes) -> AuditRecord | None:
        payload = await self.audit(shard, reference)
        return AUDITS.read_payload(b"", payload) if payload is not None else None

    async def _author(self, shard: int, entry: LogEntry, resource: str) -> Operation:
        """Of a record that was purged."""
        keys = self._keys.case(entry.tenant, entry.case_id)
        rows = await self._reads.scan(*keys.purged_audits(entry.first_sequence), limit=1, reverse=True)
        kept = await self._audit(shard, rows[0][1]) if rows else None
        for author in kept.authors if kept is not None else ():
            if author.first_sequence == entry.first_sequence:
                return written(author, resource, PURGED)
        purged = await self._reads.get(keys.purged()) is not None
        return Operation(0, "", "", resource, reason=PURGED if purged else MISSING)

    async def _fill(self, walk: _Walk, tenant: str, wanted: AuditFilter, budget: _Budget) -> bool:
        """Let a walk have the next entries of the tenant; False when there are none any more. It stops early when the
        budget is spent."""
        while not walk.ready:
            if walk.read:
                walk.position, walk.number, walk.read = walk.position - 1, -1, False
            if not walk.position:
                return False
            if budget.spent:
                return True
            if not walk.rows:
                low = self._keys.log(walk.shard, max(walk.position - budget.portion + 1, 1))
                high = self._keys.log(walk.shard, walk.position + 1)
                walk.rows = await self._reads.scan(low, high, limit=budget.portion)
                budget.spend(len(walk.rows))
                if not walk.rows:
                    walk.position = 0
                    return False
            key, value = walk.rows.pop()
            walk.position, walk.read = parse_log(key)[1], True
            record, _ = unseal_log(key, value)
            walk.time = record.time_ns
            if wanted.after and record.time_ns < wanted.after:
                walk.position, walk.read = 0, False
                return False
            if not record.audits and all(entry.tenant != tenant for entry in record.entries):
                continue
            if wanted.resource_prefix and not record.audits and not _about(record, tenant, wanted.resource_prefix):
                continue
            budget.spend(len(record.entries) + len(record.audits))
            async for told in self.told(walk.shard, record, tenant):
                if walk.number < 0 or told.number < walk.number:
                    walk.ready.append(told._replace(payload=b""))
                budget.spend(len(told.payload) // LOOK_BYTES)
        return True

    async def _newest(self, shard: int, before: int) -> int:
        """The position to begin with: the newest, or one that is certainly not older than `before`."""
        end = await newest(self._reads, self._keys, shard)
        if not before:
            return end
        return min(await last_before(self._reads, self._keys, shard, before + LATE_NS) + 1, end)


class _Walk:
    """Going back through one log. `number`: of the last entry told of the record at `position`, -1 before the first;
    `read`: whether what is left of that record is in `ready`."""

    __slots__ = ("number", "position", "read", "ready", "rows", "shard", "time")

    def __init__(self, shard: int, position: int, number: int) -> None:
        self.shard = shard
        self.position = position
        self.number = number
        self.read = False
        self.time = 0
        self.ready: list[Told] = []
        self.rows: list[tuple[bytes, bytes]] = []


class _Budget:
    """How much may still be looked at, and how many batch records at once: the first of every log together cost half of
    it at most, or a page over many logs would get no further."""

    __slots__ = ("left", "portion")

    def __init__(self, left: int, logs: int) -> None:
        self.left = left
        self.portion = max(1, min(PORTION, left // (2 * max(logs, 1))))

    def spend(self, count: int) -> None:
        self.left -= count

    @property
    def spent(self) -> bool:
        return self.left <= 0


def _read_places(raw: bytes, shards: Sequence[int]) -> Sequence[tuple[int, int, int]]:
    if not raw:
        return ()
    refusal = InvalidInput.field("page_token", "is not a page token", "use the next_page_token of a page")
    try:
        places = msgspec.msgpack.decode(raw, type=list[tuple[int, int, int]])
    except msgspec.DecodeError as error:
        raise refusal from error
    if not all(shard in shards and 0 < position <= POSITION_MAX for shard, position, _ in places):
        raise refusal
    return places


def _named(operation: Operation) -> Operation:
    name = method_name(operation.method)
    return operation if name == operation.method else msgspec.structs.replace(operation, method=name)


def _about(record: LogRecord, tenant: str, prefix: str) -> bool:
    return any(entry.tenant == tenant and f"cases/{entry.case_id}".startswith(prefix) for entry in record.entries)


def _matches(operation: Operation, wanted: AuditFilter) -> bool:
    method = wanted.method.removeprefix("/")
    return (
        wanted.principal in ("", operation.principal)
        and (not method or operation.method == method or operation.method.rpartition("/")[2] == method)
        and operation.resource.startswith(wanted.resource_prefix)
        and wanted.outcome in ("", operation.outcome)
        and (not wanted.after or operation.time >= wanted.after)
        and (not wanted.before or operation.time < wanted.before)
    )
