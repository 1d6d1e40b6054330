"""Operations that changed nothing in the store, on their way into the audit: reads, denials, refusals.

They are gathered and written together a moment later, so a read costs no sync and waits for none. Like ones within that
moment become one entry with a count: reads of the same thing by the same caller, denials of the same caller for the
same reason. What is gathered is bounded. When it is full, reads are to be refused rather than go unrecorded (`full`);
denials, which nobody can refuse any more, are then only counted, as one entry per tenant. Refusals of callers without
identity have a smaller bound of their own: no stranger can fill the audit, and with it lock out those who read.

A loss of power or kill -9 loses the moment that was not written yet; effects have their entries in their own commit.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from knhk_workflow.errors import Busy, StoreError
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime.audited import recorded
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.problems import tell_operator
from knhk_workflow.runtime.records import AuditRecord, Operation
from knhk_workflow.store import Journal, Keyspace, Unit

GATHER_S: Final = 1.0  # like denials are told once a second; one sync a second is nothing
ENTRIES_MAX: Final = 20_000  # about 10 MB; twenty seconds of an idle disk at 1,000 different reads a second
ENTRIES_SOON: Final = 2_000  # written without waiting for the second to end
STRANGERS_A_SECOND: Final = 500  # entries of callers whom nobody knows: what they send makes each refusal another
TOGETHER: Final = 500  # entries in one record: 100 KB, and 0.3 ms of encoding
PAUSE_S: Final = 0.5  # between attempts while the store cannot write
CLOSE_S: Final = 2.0  # for the last entries; a store that cannot write by then has failed calls for longer
TEXT_MAX: Final = 300  # characters of what callers send: an id has at most 256 bytes
DROPPED: Final = "AUDIT_OVERFLOW"

UNKNOWN: Final = "UNAUTHENTICATED"
"""The outcome of calls of callers whom nobody knows."""

SHARD: Final = 0  # of the records; not the one of definitions, whose commits make everybody look again


Like = tuple[str, str, str, str, str, str, str]
"""What makes operations count as one: tenant, principal, method, resource (empty for DENIALS), outcome, reason, and
the peer without its port."""

DENIALS: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"})
"""Outcomes of calls that got nowhere: they can be many, and count as one whatever they were about."""


def like_of(tenant: str, operation: Operation) -> Like:
    """What an operation is counted as."""
    return (
        tenant,
        operation.principal,
        operation.method,
        "" if operation.outcome in DENIALS else operation.resource,
        operation.outcome,
        operation.reason,
        operation.peer.rpartition(":")[0],
    )


class AuditStream:
    """The operations of one engine that wait to be written."""

    def __init__(self, journal: Journal, keyspace: Keyspace, clock: Clock) -> None:
        self._journal = journal
        self._keys = keyspace
        self._clock = clock
        self._waiting: dict[Like, Operation] = {}
        self._counts: dict[Like, int] = {}
        self._writing = 0
        self._dropped: dict[str, int] = {}
        self._strangers = (0, 0)
        """The second that is counted, and the entries of strangers that it has."""
        self._some = asyncio.Event()
        self._soon = asyncio.Event()
        self._turn = asyncio.Lock()
        self.recorded = 0
        """Operations taken since opening."""
        self.overflowed = 0
        """Of these: refusals that were only counted, and entries that could not be written."""

    @property
    def waiting(self) -> int:
        """Entries that are not written yet."""
        return len(self._waiting) + self._writing

    @property
    def full(self) -> bool:
        """Whether a read must be refused, because it could not be recorded."""
        return len(self._waiting) + self._writing >= ENTRIES_MAX

    def again(self, like: Like) -> bool:
        """Count one more of an operation that waits already; False when there is none like it."""
        count = self._counts.get(like)
        if count is None:
            return False
        self._counts[like] = count + 1
        self.recorded += 1
        return True

    def take(self, tenant: str, operation: Operation) -> None:
        """Record an operation soon. Never blocks, never raises."""
        like = like_of(tenant, operation)
        if self.again(like):
            return
        self.recorded += 1
        if self.full or (operation.outcome == UNKNOWN and self._too_many(operation.time // NS_PER_S)):
            self.overflowed += 1
            self._dropped[tenant] = self._dropped.get(tenant, 0) + 1
            return
        self._waiting[like] = operation
        self._counts[like] = 1
        if len(self._waiting) == 1:
            self._some.set()
        elif len(self._waiting) >= ENTRIES_SOON:
            self._soon.set()

    def _too_many(self, second: int) -> bool:
        counted, so_far = self._strangers
        self._strangers = (second, so_far + 1 if second == counted else 1)
        return self._strangers[1] > STRANGERS_A_SECOND

    async def run(self) -> None:
        """Write what was gathered, again and again, for ever."""
        while True:
            await self._some.wait()
            try:
                async with asyncio.timeout(GATHER_S):
                    await self._soon.wait()
            except TimeoutError:
                self._soon.clear()
            await self.flush()

    async def close(self) -> None:
        """Write what there is, unless the store cannot: then it counts as overflowed, and so does what `run` was
        writing when that is cancelled."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        except TimeoutError:
            self.overflowed += len(self._waiting)

    async def flush(self) -> None:
        """Write everything that was taken before, as soon as the store can."""
        async with self._turn:
            self._some.clear()
            self._soon.clear()
            taken, self._waiting = self._waiting, {}
            counts, self._counts = self._counts, {}
            dropped, self._dropped = self._dropped, {}
            self._writing = len(taken) + len(dropped)
            try:
                await self._write(taken, counts, dropped)
            finally:
                self.overflowed += self._writing  # nothing, unless the writing was cancelled
                self._writing = 0

    async def _write(self, taken: dict[Like, Operation], counts: dict[Like, int], dropped: dict[str, int]) -> None:
        by_tenant: dict[str, list[Operation]] = {}
        for like, operation in taken.items():
            count = counts[like]
            by_tenant.setdefault(like[0], []).append(
                msgspec.structs.replace(operation, count=count) if count > 1 else operation
            )
        for tenant, count in dropped.items():
            told = Operation(self._clock.now(), "system:audit", DROPPED, outcome="RESOURCE_EXHAUSTED", count=count)
            by_tenant.setdefault(tenant, []).append(told)
        for tenant, operations in by_tenant.items():
            for at in range(0, len(operations), TOGETHER):
                part = tuple(operations[at : at + TOGETHER])
                try:
                    await self._commit(AuditRecord(tenant, part))
                except Exception as error:  # noqa: BLE001  # what cannot be written must not keep everything else out
                    tell_operator(f"{len(part)} entries of the audit cannot be written", error)
                    self.overflowed += len(part)
                self._writing -= len(part)

    async def _commit(self, record: AuditRecord) -> None:
        while True:
            try:
                entry = recorded(self._keys, SHARD, record, self._clock.now())
            except UnicodeEncodeError:  # half a character, as JSON of a token may have
                record = msgspec.structs.replace(record, operations=tuple(map(_whole, record.operations)))
                continue
            unit = Unit.aside(SHARD, record.tenant, (entry.write,), audits=(entry.reference,))
            try:
                await self._journal.append(unit)
            except (StoreError, Busy):
                # An outcome that is not known is resolved by the journal before anything else is written; if it was
                # written all the same, the audit tells of these operations twice rather than not at all.
                await asyncio.sleep(PAUSE_S)
                continue
            return


def _whole(operation: Operation) -> Operation:
    """An operation whose texts can be written as UTF-8."""
    texts = {
        name: value.encode("utf-8", "replace").decode()
        for name in operation.__struct_fields__
        if isinstance(value := getattr(operation, name), str)
    }
    return msgspec.structs.replace(operation, **texts)


def shortened(text: str) -> str:
    """What a caller sent, as much of it as an id may have."""
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 3] + "..."
