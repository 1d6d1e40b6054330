"""Examining a whole store: is everything there that was acknowledged, and does all of it fit together?

The opening of a store looks at the newest part of its log only. Here every record is read:

    the log        each batch record against its hash, its predecessor and its position
    the records    each entry of the log has its commit record, whose digest agrees; no record is in no entry
    the cases      events dense from 1 on; replaying them gives the head, the snapshot, the open work, the incidents
    the workflows  each document has its digest, each case its workflow
    the values     every other value has its checksum

All of it from one snapshot, so it runs beside a working engine. Nothing is changed and nothing is mended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from hashlib import blake2b
from typing import Final, Protocol

import msgspec

from knhk_workflow.core.apply import replay
from knhk_workflow.core.case import Case, decode_state, encode_state
from knhk_workflow.core.events import CaseCreated
from knhk_workflow.errors import StoreCorrupt, StoreError, StoreFormat
from knhk_workflow.model.parse import spec_digest
from knhk_workflow.runtime.live import CONTINUE, STATE_CODEC
from knhk_workflow.runtime.records import (
    COMMITS,
    DEFINITIONS,
    HEADS,
    INCIDENTS,
    ITEMS,
    MESSAGES,
    REQUESTS,
    SNAPSHOTS,
    CommitRecord,
)
from knhk_workflow.store import GENESIS, META_SHARD, Keyspace, LogEntry, Reads, digest, unseal
from knhk_workflow.store.chain import Link, walk
from knhk_workflow.store.codec import UNREADABLE
from knhk_workflow.store.keys import (
    AUDIT,
    DEFINITION,
    HEAD,
    INCIDENT,
    ITEM,
    LEASE,
    MESSAGE,
    RECORD,
    REQUEST,
    REQUEST_EXPIRY,
    SNAPSHOT,
    kind_of,
    parse_case_head,
    parse_case_record,
    parse_definition,
    parse_incident,
    parse_item,
    shard_range,
)
from knhk_workflow.store.store import Range

PORTION: Final = 64  # keys per read: a few ms of an event loop that others use
AT_ONCE: Final = 32  # records of one batch that are looked up together
FINDINGS_MAX: Final = 1_000  # kept with their text; all are counted
SALTS: Final = 50_000  # remembered, 100 bytes each

_CHECKED: Final = frozenset({REQUEST, AUDIT, LEASE, REQUEST_EXPIRY})


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong. `case_id` is empty and `position` 0 where it concerns none, or none that is known."""

    code: str
    message: str
    shard: int = 0
    position: int = 0
    tenant: str = ""
    case_id: str = ""


class LogEnd(msgspec.Struct, frozen=True):
    """Where a shard's log ends."""

    shard: int
    position: int
    hashed: bytes


class Examination(msgspec.Struct, frozen=True):
    """What examining a store found."""

    batches: int
    """Batch records read."""
    records: int
    """Commit records read."""
    events: int
    cases: int
    values: int
    """Everything read, these included."""
    ends: tuple[LogEnd, ...]
    findings: tuple[Finding, ...]
    """The first FINDINGS_MAX."""
    found: int
    """How many things are wrong."""

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.found


class Progress(Protocol):
    """Told now and then how far it is."""

    def __call__(self, done: int, total: int, /) -> None: ...


async def examine(reads: Reads, shards: int, progress: Progress | None = None) -> Examination:
    """Examine everything that `reads` shows; take a snapshot for a store that is in use.

    `progress` gets (batch and commit records done, in all as estimated). Never raises for what is wrong in the store;
    StoreUnavailable when it cannot be read now.
    """
    return await _Examiner(reads, Keyspace(shards), progress).run()


class _Examiner:
    def __init__(self, reads: Reads, keys: Keyspace, progress: Progress | None) -> None:
        self._reads = reads
        self._keys = keys
        self._progress = progress
        self._findings: list[Finding] = []
        self._found = 0
        self._batches = self._records = self._events = self._cases = self._values = 0
        self._entries: dict[int, int] = {}
        self._salts: dict[tuple[str, str], bytes | None] = {}
        self._definitions: dict[tuple[str, str, int], bytes | None] = {}
        self._total = 0

    async def run(self) -> Examination:
        for shard in self._keys.all_shards():
            last = await self._newest(shard)
            self._total += 2 * last  # most batches have one commit record
        ends = [await self._log(shard) for shard in self._keys.all_shards()]
        for shard in self._keys.all_shards():
            await self._shard(shard)
        if self._progress is not None:
            self._progress(self._total, self._total)
        return Examination(
            self._batches,
            self._records,
            self._events,
            self._cases,
            self._values,
            tuple(ends),
            tuple(self._findings),
            self._found,
        )

    def _wrong(
        self, code: str, message: str, shard: int, position: int = 0, tenant: str = "", case_id: str = ""
    ) -> None:
        self._found += 1
        if len(self._findings) < FINDINGS_MAX:
            self._findings.append(Finding(code, message, shard, position, tenant, case_id))

    def _step(self) -> None:
        if self._progress is not None:
            done = self._batches + self._records
            self._total = max(self._total, done)
            self._progress(done, self._total)

    async def _newest(self, shard: int) -> int:
        last = await self._reads.scan(*self._keys.log_range(shard), limit=1, reverse=True)
        return int.from_bytes(last[0][0][-8:], "big") if last else 0

    # -- the log ------------------------------------------------------------------------------------------------------

    async def _log(self, shard: int) -> LogEnd:
        end = LogEnd(shard, 0, GENESIS)
        entries = 0
        async for each in walk(self._reads, self._keys, shard, 0, GENESIS):
            if not isinstance(each, Link):
                self._wrong("LOG_BROKEN", each.error.message, shard, each.position)
                continue
            self._batches += 1
            end = LogEnd(shard, each.position, each.hashed)
            entries += len(each.record.entries)
            for first in range(0, len(each.record.entries), AT_ONCE):
                some = each.record.entries[first : first + AT_ONCE]
                await asyncio.gather(*(self._entry(shard, each.position, entry) for entry in some))
            self._step()
        self._entries[shard] = entries
        return end

    async def _entry(self, shard: int, position: int, entry: LogEntry) -> None:
        """The commit record that a batch record tells of."""
        tenant, case_id = entry.tenant, entry.case_id
        last = entry.first_sequence + entry.count - 1
        what = f"events {entry.first_sequence} to {last} of case {case_id!r}"
        if self._keys.shard_of(tenant, case_id) != shard:
            self._wrong("ENTRY_MISPLACED", f"{what} belong to another shard", shard, position, tenant, case_id)
            return
        key = self._keys.case_record(tenant, case_id, entry.first_sequence)
        try:
            held = await self._reads.get(key)
            if held is None:
                self._wrong("RECORD_MISSING", f"{what} are missing", shard, position, tenant, case_id)
                return
            payload = unseal(key, held)
            salt = await self._salt(tenant, case_id)
            if salt is None:
                return  # the case's first record is missing, or damaged, and is told of at its own place
            if digest(payload, salt) != entry.digest:
                self._wrong("RECORD_CHANGED", f"{what} are not what was recorded", shard, position, tenant, case_id)
        except (StoreCorrupt, StoreFormat) as error:
            self._wrong("RECORD_DAMAGED", f"{what}: {error.message}", shard, position, tenant, case_id)

    async def _salt(self, tenant: str, case_id: str) -> bytes | None:
        name = (tenant, case_id)
        if name not in self._salts:
            key = self._keys.case_record(tenant, case_id, 1)
            salt = None
            try:
                held = await self._reads.get(key)
                if held is not None:
                    born = COMMITS.read(key, held).events[0]
                    salt = born.salt if isinstance(born, CaseCreated) else None
            except (StoreCorrupt, StoreFormat, IndexError):
                salt = None
            if len(self._salts) >= SALTS:
                self._salts.clear()
            self._salts[name] = salt
        return self._salts[name]

    # -- everything else ----------------------------------------------------------------------------------------------

    async def _rows(self, shard: int, wanted: Range) -> AsyncIterator[tuple[bytes, bytes]]:
        start, end = wanted
        while True:
            try:
                rows = await self._reads.scan(start, end, limit=PORTION)
            except StoreCorrupt as error:
                self._wrong("BLOCK_DAMAGED", f"keys from {start.hex()} on cannot be read: {error.message}", shard)
                return
            for row in rows:
                yield row
            if len(rows) < PORTION:
                return
            start = rows[-1][0] + b"\0"

    async def _shard(self, shard: int) -> None:
        records = 0
        case: _CaseWalk | None = None
        async for key, value in self._rows(shard, shard_range(shard)):
            self._values += 1
            kind = kind_of(key)
            if kind == RECORD:
                records += 1
                tenant, case_id, first = parse_case_record(key)
                if case is None or (case.tenant, case.case_id) != (tenant, case_id):
                    if case is not None:
                        await self._case(shard, case)
                    case = _CaseWalk(tenant, case_id)
                self._record(shard, case, first, key, value)
                continue
            if case is not None:
                await self._case(shard, case)
                case = None
            try:
                await self._value(shard, kind, key, value)
            except (StoreCorrupt, StoreFormat) as error:
                self._wrong("VALUE_DAMAGED", error.message, shard)
        if case is not None:
            await self._case(shard, case)
        if records > self._entries[shard]:
            await self._unknown_records(shard)

    def _record(self, shard: int, case: _CaseWalk, first: int, key: bytes, value: bytes) -> None:
        self._records += 1
        self._step()
        try:
            record = COMMITS.read(key, value)
        except (StoreCorrupt, StoreFormat) as error:
            if case.sound:  # the entry of the log tells of the digest; here it matters that the case ends
                self._wrong("RECORD_DAMAGED", error.message, shard, 0, case.tenant, case.case_id)
            case.sound = False
            return
        self._events += len(record.events)
        problem = case.take(first, record)
        if problem:
            self._wrong("HISTORY_BROKEN", problem, shard, 0, case.tenant, case.case_id)

    async def _case(self, shard: int, walked: _CaseWalk) -> None:
        """After the last record of a case: what is derived from them."""
        self._cases += 1
        tenant, case_id, state = walked.tenant, walked.case_id, walked.state
        keys = self._keys.case(tenant, case_id)

        def wrong(code: str, message: str) -> None:
            self._wrong(code, f"case {case_id!r}: {message}", shard, 0, tenant, case_id)

        try:
            stored = await self._reads.get(keys.head)
            if stored is None:
                wrong("HEAD_MISSING", "its records are there, its head is not")
                return
            head = HEADS.read(keys.head, stored)
            if not walked.sound or state is None:
                return
            if head.sequence != state.sequence:
                wrong("HISTORY_SHORT", f"{head.sequence} events were recorded, {state.sequence} are there")
                return
            told: tuple[object, ...] = (
                head.state,
                head.spec_id,
                head.version,
                head.business_key,
                head.created_at,
                head.updated_at,
                head.open_items,
                head.open_incidents,
                head.reason,
            )
            true: tuple[object, ...] = (
                state.state,
                state.spec_id,
                state.version,
                state.business_key,
                state.created_at,
                state.updated_at,
                state.open_items,
                len(state.incidents),
                state.reason,
            )
            if told != true:
                wrong("HEAD_WRONG", f"its head says {told}, its events say {true}")
            document = await self._definition(tenant, state.spec_id, state.version)
            if document != state.digest:
                wrong("WORKFLOW_WRONG", f"its workflow {state.spec_id!r} version {state.version} is missing or another")
            await self._snapshot(keys.snapshot, walked, wrong)
            await self._work(walked, state, wrong)
            held = await self._reads.get(keys.effect(CONTINUE))
            if (held is not None) != bool(state.ready):
                wrong("EFFECT_WRONG", "what is left to do automatically is not what its events say")
        except (StoreCorrupt, StoreFormat) as error:
            wrong("VALUE_DAMAGED", error.message)

    async def _snapshot(self, key: bytes, walked: _CaseWalk, wrong: Callable[[str, str], None]) -> None:
        """A snapshot against the state that replay had at its place."""
        stored = await self._reads.get(key)
        if stored is None:
            return
        snapshot = SNAPSHOTS.read(key, stored)
        if snapshot.codec != STATE_CODEC:
            return
        if blake2b(snapshot.state, digest_size=16).digest() != snapshot.state_hash:
            wrong("SNAPSHOT_WRONG", "its snapshot does not match its hash")
            return
        try:
            taken = decode_state(snapshot.state)
        except UNREADABLE as error:
            wrong("SNAPSHOT_WRONG", f"its snapshot does not decode: {error}")
            return
        state: Case | None = None
        async for record in self._until(walked, snapshot.sequence):
            state = replay(state, record.time, record.events)
        if state is None or encode_state(state) != encode_state(taken):
            wrong("SNAPSHOT_WRONG", f"its snapshot of event {snapshot.sequence} is not what its events say")

    async def _until(self, walked: _CaseWalk, sequence: int) -> AsyncIterator[CommitRecord]:
        keys = self._keys.case(walked.tenant, walked.case_id)
        start, end = keys.records(1, sequence + 1)
        while True:
            rows = await self._reads.scan(start, end, limit=PORTION)
            for key, value in rows:
                yield COMMITS.read(key, value)
            if len(rows) < PORTION:
                return
            start = rows[-1][0] + b"\0"

    async def _work(self, walked: _CaseWalk, state: Case, wrong: Callable[[str, str], None]) -> None:
        """The rows of the work list and of incidents."""
        keys = self._keys.case(walked.tenant, walked.case_id)
        due = {
            (activation.number, run.number): (activation.task, run.state, run.owner, run.attempt, run.offered_at)
            for activation, run in state.open_work()
        }
        found: dict[tuple[int, int], tuple[str, str, str, int, int]] = {}
        for key, value in await self._reads.scan(*keys.items(), limit=len(due) + PORTION):
            row = ITEMS.read(key, value)
            _, _, number, instance = parse_item(key)
            found[number, instance] = (row.task, row.state, row.owner, row.attempt, row.offered_at)
        if found != due:
            wrong("WORK_WRONG", f"its work list shows {len(found)} items, its events say {len(due)}, or others")
        raised = {number: (each.kind, each.task) for number, each in state.incidents.items()}
        shown = {}
        for key, value in await self._reads.scan(*keys.incidents(), limit=len(raised) + PORTION):
            incident = INCIDENTS.read(key, value)
            shown[parse_incident(key)[2]] = (incident.kind, incident.task)
        if shown != raised:
            wrong("INCIDENTS_WRONG", f"{len(shown)} incidents are listed, its events say {len(raised)}, or others")

    async def _definition(self, tenant: str, spec_id: str, version: int) -> bytes | None:
        """The digest of a workflow's document, None when it is missing."""
        name = (tenant, spec_id, version)
        if name not in self._definitions:
            key = self._keys.definition(tenant, spec_id, version)
            held = await self._reads.get(key)
            self._definitions[name] = DEFINITIONS.read(key, held).digest if held is not None else None
        return self._definitions[name]

    async def _value(self, shard: int, kind: bytes, key: bytes, value: bytes) -> None:
        """A value that is no commit record: its checksum, and that it belongs to something."""
        if kind == HEAD:
            tenant, case_id = parse_case_head(key)
            head = HEADS.read(key, value)
            if await self._reads.get(self._keys.case_record(tenant, case_id, 1)) is None:
                lost = f"case {case_id!r} has a head of {head.sequence} events, but its first record is missing"
                self._wrong("HISTORY_SHORT", lost, shard, 0, tenant, case_id)
        elif kind in (ITEM, INCIDENT, SNAPSHOT):
            unseal(key, value)
        elif kind == REQUEST:
            REQUESTS.read(key, value)
        elif kind == DEFINITION and shard == META_SHARD:
            tenant, spec_id, version = parse_definition(key)
            definition = DEFINITIONS.read(key, value)
            if spec_digest(definition.document) != definition.digest or definition.version != version:
                broken = f"workflow {spec_id!r} version {version} does not match its digest"
                self._wrong("WORKFLOW_WRONG", broken, shard, 0, tenant)
        elif kind == MESSAGE:
            MESSAGES.read(key, value)
        elif kind in _CHECKED:
            unseal(key, value)

    async def _unknown_records(self, shard: int) -> None:
        """There are more records than the log has entries: find out which."""
        known: set[bytes] = set()
        async for each in walk(self._reads, self._keys, shard):
            if isinstance(each, Link):
                known.update(
                    self._keys.case_record(entry.tenant, entry.case_id, entry.first_sequence)
                    for entry in each.record.entries
                )
        async for key, _ in self._rows(shard, shard_range(shard)):
            if kind_of(key) == RECORD and key not in known:
                tenant, case_id, first = parse_case_record(key)
                message = f"event {first} of case {case_id!r} is in no batch record of the log"
                self._wrong("RECORD_UNKNOWN", message, shard, 0, tenant, case_id)


class _CaseWalk:
    """Folds the records of one case as they come by."""

    def __init__(self, tenant: str, case_id: str) -> None:
        self.tenant = tenant
        self.case_id = case_id
        self.state: Case | None = None
        self.sound = True

    def take(self, first: int, record: CommitRecord) -> str:
        """Fold one more; what is wrong with it, or nothing. After the first thing wrong nothing more is said."""
        if not self.sound:
            return ""
        expected = self.state.sequence + 1 if self.state is not None else 1
        if first != expected:
            self.sound = False
            return f"case {self.case_id!r}: events {expected} to {first - 1} are missing"
        try:
            self.state = replay(self.state, record.time, record.events)
        except (AssertionError, AttributeError, KeyError, ValueError, TypeError) as error:
            self.sound = False
            return f"case {self.case_id!r}: event {first} does not follow from those before it: {error!r}"
        if (self.state.tenant, self.state.case_id) != (self.tenant, self.case_id):
            self.sound = False
            return f"case {self.case_id!r}: its record belongs to case {self.state.case_id!r}"
        return ""


def refused(error: StoreError) -> Examination:
    """What an examination says of a store that cannot even be opened."""
    return Examination(0, 0, 0, 0, 0, (), (Finding(type(error).reason, error.message),), 1)
