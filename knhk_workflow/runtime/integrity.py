"""Examining a whole store: is everything there that was acknowledged, and does all of it fit together?

The opening of a store looks at the newest part of its log only. Here every record is read:

    the log        each batch record against its hash, its predecessor and its position
    the records    each entry of the log has its commit record, whose digest agrees; no record is in no entry
    the cases      events dense from 1 on; replaying them gives the head, the snapshot, the open work, the incidents
    the workflows  each document has its digest, each case its workflow
    the tree       each stored tile is the one that the log gives
    the audit      each of its records is in the log with its digest, none is missing
    the purges     a case that is named by the log and not there has the note that the log has the digest of
    the values     every other value has its checksum

All of it from one snapshot, so it runs beside a working engine. Nothing is changed and nothing is mended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from hashlib import blake2b
from typing import Final, Protocol

import msgspec

from knhk_workflow.core.apply import replay
from knhk_workflow.core.case import Case, decode_state, encode_state
from knhk_workflow.core.events import CaseCreated
from knhk_workflow.errors import StoreCorrupt, StoreError, StoreFormat
from knhk_workflow.model.parse import spec_digest
from knhk_workflow.runtime import outbox
from knhk_workflow.runtime.live import CONTINUE, STATE_CODEC, head_of
from knhk_workflow.runtime.records import (
    AUDITS,
    CALLS,
    COMMITS,
    CONNECTORS,
    DEFINITIONS,
    HEADS,
    INCIDENTS,
    ITEMS,
    MESSAGES,
    PURGES,
    REQUESTS,
    SCHEDULES,
    SNAPSHOTS,
    CallRecord,
    CommitRecord,
)
from knhk_workflow.runtime.retention import note_digest
from knhk_workflow.store import GENESIS, META_SHARD, CaseKeys, Keyspace, LogEntry, Reads, digest, unseal
from knhk_workflow.store.chain import Link, newest, walk
from knhk_workflow.store.codec import UNREADABLE, audit_place, audit_reference
from knhk_workflow.store.keys import (
    AUDIT,
    CONNECTOR,
    DEFINITION,
    HEAD,
    IDENTITY,
    INCIDENT,
    ITEM,
    LEASE,
    LOG,
    MESSAGE,
    RECORD,
    REQUEST,
    REQUEST_EXPIRY,
    SCHEDULE,
    SNAPSHOT,
    TILE,
    case_in,
    kind_of,
    parse_audit,
    parse_case_record,
    parse_definition,
    parse_effect,
    parse_incident,
    parse_item,
    parse_purged,
    parse_schedule,
    parse_timer,
    past_kind,
    shard_range,
)
from knhk_workflow.store.merkle import Edge, TileName, leaf_hash
from knhk_workflow.store.portions import portions
from knhk_workflow.store.store import Range

PORTION: Final = 256  # keys per read: a thread is asked and answers in 0.1 ms, so a single one would cost too much
TURN: Final = 32  # records, about 1 ms, before others on the event loop get theirs
FINDINGS_MAX: Final = 1_000  # kept with their text; all are counted

_CHECKED: Final = frozenset({IDENTITY, LEASE, REQUEST_EXPIRY, TILE})
_ELSEWHERE: Final = frozenset({LOG, HEAD, SNAPSHOT, ITEM, INCIDENT})
_NAMES: Final = {HEAD: "a head", SNAPSHOT: "a snapshot", ITEM: "a work item", INCIDENT: "an incident"}


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
    purged: int
    """Cases that were purged, as the log says."""
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
        self._told: dict[tuple[str, str], _Sum] = {}
        """By case: the sum of the entries that the log has of it."""
        self._purged: dict[tuple[str, str], bytes] = {}
        """Cases that were purged, with the digests that their notes must have; empty once the note was found."""
        self._purging: set[tuple[str, str]] = set()
        """Purged cases that may still have records."""
        self._purges = 0
        self._suspects: set[tuple[str, str]] = set()
        """Cases whose records do not add up to that: looked at one by one."""
        self._continuing: set[tuple[str, str]] = set()
        self._calls: dict[tuple[str, str], dict[str, CallRecord]] = {}
        self._timers: dict[tuple[str, str], set[tuple[int, str]]] = {}
        self._definitions: dict[tuple[str, str, int], bytes | None] = {}
        self._audits: dict[bytes, int] = {}
        """References of audit records that the log has and that were not found yet, with their log positions."""
        self._total = 0

    async def run(self) -> Examination:
        for shard in self._keys.all_shards():
            self._total += 2 * await self._newest(shard)  # most batches have one commit record
        ends: list[LogEnd] = []
        for shard in self._keys.all_shards():
            self._told.clear()
            self._purged.clear()
            self._suspects.clear()
            self._audits.clear()
            ends.append(await self._log(shard))
            await self._notes(shard)
            await self._shard(shard)
            self._suspects.update(self._told)  # cases without any record
            if self._suspects:
                await self._suspected(shard)
            for position in self._audits.values():
                self._wrong("AUDIT_MISSING", "an audit record is missing, or is another one", shard, position)
        if self._progress is not None:
            self._progress(self._total, self._total)
        return Examination(
            self._batches,
            self._records,
            self._events,
            self._cases,
            self._values,
            self._purges,
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
        try:
            return await newest(self._reads, self._keys, shard)
        except StoreCorrupt:
            return 0  # an estimate: walking the log tells of the damage

    # -- the log ------------------------------------------------------------------------------------------------------

    async def _log(self, shard: int) -> LogEnd:
        """Walk the log, and add up what it tells of each case."""
        end = LogEnd(shard, 0, GENESIS)
        edge, unbroken = Edge(), True
        async for each in walk(self._reads, self._keys, shard, 0, GENESIS):
            if not isinstance(each, Link):
                self._wrong("LOG_BROKEN", each.error.message, shard, each.position)
                unbroken = False
                continue
            for place, tile in edge.append(leaf_hash(each.hashed)) if unbroken else ():
                await self._tile(shard, each.position, place, tile)
            self._batches += 1
            self._values += 1
            end = LogEnd(shard, each.position, each.hashed)
            for reference in each.record.audits:
                self._audits[reference] = each.position
            for entry in each.record.entries:
                name = (entry.tenant, entry.case_id)
                if self._keys.shard_of(*name) != shard:
                    misplaced = f"case {entry.case_id!r} belongs to another shard"
                    self._wrong("ENTRY_MISPLACED", misplaced, shard, each.position, *name)
                    continue
                if not entry.count:
                    self._purged[name] = entry.digest
                    self._told.pop(name, None)
                    continue
                if name in self._purged:
                    again = f"case {entry.case_id!r} has events after it was purged"
                    self._wrong("ENTRY_MISPLACED", again, shard, each.position, *name)
                    continue
                told = self._told.get(name)
                if told is None:
                    told = self._told[name] = _Sum()
                told.add(entry.first_sequence, entry.count, entry.digest)
            self._step()
        return end

    async def _tile(self, shard: int, position: int, name: TileName, tile: bytes) -> None:
        """A tile of the tree over the log, where it was stored already."""
        key = self._keys.tile(shard, name.level, name.number)
        try:
            held = await self._reads.get(key)
            stored = unseal(key, held) if held is not None else tile
        except (StoreCorrupt, StoreFormat) as error:
            self._wrong("TREE_WRONG", error.message, shard, position)
            return
        if stored != tile[: len(stored)]:
            problem = f"tile {name.number} of level {name.level} of the tree is not what the log gives"
            self._wrong("TREE_WRONG", problem, shard, position)

    async def _notes(self, shard: int) -> None:
        """The notes of purged cases against the log."""
        self._purging.clear()
        async for key, _ in self._rows(shard, self._keys.purging(shard)):
            self._purging.add(parse_purged(key))
        async for key, value in self._rows(shard, self._keys.purged(shard)):
            tenant, case_id = parse_purged(key)
            try:
                payload = unseal(key, value)
                note = PURGES.read_payload(key, payload)
            except (StoreCorrupt, StoreFormat) as error:
                self._wrong("PURGE_WRONG", f"the note of case {case_id!r}: {error.message}", shard, 0, tenant, case_id)
                continue
            told = self._purged.get((tenant, case_id))
            if told is None and note.cut:
                self._told.pop((tenant, case_id), None)
            elif told != note_digest(payload) or (note.tenant, note.case_id) != (tenant, case_id):
                unknown = f"case {case_id!r} is noted as purged, but the log does not say so, or otherwise"
                self._wrong("PURGE_WRONG", unknown, shard, 0, tenant, case_id)
                continue
            self._purges += 1
            self._purged[tenant, case_id] = b""
        for (tenant, case_id), digest_left in self._purged.items():
            if digest_left:
                missing = f"case {case_id!r} was purged, as the log says, and the note of it is missing or another"
                self._wrong("PURGE_WRONG", missing, shard, 0, tenant, case_id)

    async def _suspected(self, shard: int) -> None:
        """Say of the cases that do not add up which records are missing, changed or unknown."""
        known: set[bytes] = set()
        async for each in walk(self._reads, self._keys, shard):
            if not isinstance(each, Link):
                continue
            for entry in each.record.entries:
                if (entry.tenant, entry.case_id) in self._suspects:
                    known.add(self._keys.case_record(entry.tenant, entry.case_id, entry.first_sequence))
                    await self._entry(shard, each.position, entry)
        for tenant, case_id in sorted(self._suspects):
            async for key, _ in self._rows(shard, self._keys.case_records(tenant, case_id)):
                if key not in known:
                    message = f"event {parse_case_record(key)[2]} of case {case_id!r} is in no batch record of the log"
                    self._wrong("RECORD_UNKNOWN", message, shard, 0, tenant, case_id)

    async def _entry(self, shard: int, position: int, entry: LogEntry) -> None:
        """The commit record that a batch record tells of."""
        tenant, case_id = entry.tenant, entry.case_id
        last = entry.first_sequence + entry.count - 1
        what = f"events {entry.first_sequence} to {last} of case {case_id!r}"
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
        key = self._keys.case_record(tenant, case_id, 1)
        try:
            held = await self._reads.get(key)
            born = COMMITS.read(key, held).events[0] if held is not None else None
        except (StoreCorrupt, StoreFormat, IndexError):
            return None
        return born.salt if isinstance(born, CaseCreated) else None

    # -- everything else ----------------------------------------------------------------------------------------------

    async def _rows(self, shard: int, wanted: Range) -> AsyncIterator[tuple[bytes, bytes]]:
        """Pairs of a range; kinds that are read beside the records, and the log, are jumped over."""
        start, end = wanted
        while start < end:
            try:
                rows = await self._reads.scan(start, end, limit=PORTION)
            except StoreCorrupt as error:
                self._wrong("BLOCK_DAMAGED", f"keys from {start.hex()} on cannot be read: {error.message}", shard)
                return
            if not rows:
                return
            start = rows[-1][0] + b"\0"
            for row in rows:
                if kind_of(row[0]) in _ELSEWHERE:
                    start = past_kind(row[0])
                    break
                yield row
            else:
                if len(rows) < PORTION:
                    return

    async def _shard(self, shard: int) -> None:
        await self._pending(shard)
        case: _CaseWalk | None = None
        beside: _Beside | None = None
        async for key, value in self._rows(shard, shard_range(shard)):
            self._values += 1
            kind = kind_of(key)
            if kind == RECORD:
                tenant, case_id, first = parse_case_record(key)
                if (tenant, case_id) in self._purged:
                    if (tenant, case_id) not in self._purging:
                        left = f"case {case_id!r} was purged, but event {first} of it is there"
                        self._wrong("PURGE_WRONG", left, shard, 0, tenant, case_id)
                    continue
                if case is None or (case.tenant, case.case_id) != (tenant, case_id):
                    if case is not None and beside is not None:
                        await self._case(shard, case, beside)
                    if beside is None or beside.tenant != tenant:
                        await self._leave(shard, beside)
                        beside = _Beside(self._reads, self._keys, shard, tenant)
                    case = _CaseWalk(tenant, case_id)
                self._record(shard, case, first, key, value)
                if not self._records % TURN:
                    await asyncio.sleep(0)
                continue
            if case is not None and beside is not None:
                await self._case(shard, case, beside)
                case = None
            try:
                await self._value(shard, kind, key, value)
            except (StoreCorrupt, StoreFormat) as error:
                self._wrong("VALUE_DAMAGED", error.message, shard)
        if case is not None and beside is not None:
            await self._case(shard, case, beside)
        await self._leave(shard, beside)
        for tenant, case_id in sorted(self._timers):
            lost = f"case {case_id!r} has timers, but no records"
            self._wrong("HISTORY_MISSING", lost, shard, 0, tenant, case_id)

    async def _pending(self, shard: int) -> None:
        """Which cases have something left to do automatically, and which timers there are."""
        self._continuing.clear()
        self._calls.clear()
        self._timers.clear()
        async for key, _ in self._rows(shard, self._keys.timers(shard)):
            due, tenant, case_id, timer = parse_timer(key)
            self._timers.setdefault((tenant, case_id), set()).add((due, timer))
        async for key, value in self._rows(shard, self._keys.effects(shard)):
            tenant, case_id, effect = parse_effect(key)
            if effect == CONTINUE:
                self._continuing.add((tenant, case_id))
            else:
                try:
                    self._calls.setdefault((tenant, case_id), {})[effect] = CALLS.read(key, value)
                except (StoreCorrupt, StoreFormat) as error:
                    self._wrong("VALUE_DAMAGED", error.message, shard, 0, tenant, case_id)

    async def _leave(self, shard: int, beside: _Beside | None) -> None:
        """After the last case of a tenant: rows that belong to none."""
        if beside is not None:
            for each in beside.kinds:
                await each.of(None)
                self._strange(shard, each)

    def _strange(self, shard: int, rows: _RowsBeside) -> None:
        self._values += rows.read
        rows.read = 0
        for key in rows.strange:
            tenant, case_id = case_in(key)
            lost = f"case {case_id!r} has {_NAMES[kind_of(key)]}, but no records"
            self._wrong("HISTORY_MISSING", lost, shard, 0, tenant, case_id)
        rows.strange.clear()
        if rows.damage:
            self._wrong("BLOCK_DAMAGED", rows.damage, shard)
            rows.damage = ""

    def _record(self, shard: int, case: _CaseWalk, first: int, key: bytes, value: bytes) -> None:
        self._records += 1
        self._step()
        try:
            payload = unseal(key, value)
            record = COMMITS.read_payload(key, payload)
        except (StoreCorrupt, StoreFormat) as error:
            if case.sound:  # the entry of the log tells of the digest; here it matters that the case ends
                self._wrong("RECORD_DAMAGED", error.message, shard, 0, case.tenant, case.case_id)
            case.sound = False
            return
        self._events += len(record.events)
        problem = case.take(first, record, payload)
        if problem:
            self._wrong("HISTORY_BROKEN", problem, shard, 0, case.tenant, case.case_id)

    async def _case(self, shard: int, walked: _CaseWalk, beside: _Beside) -> None:
        """After the last record of a case: the log's account of it, and what is derived from them."""
        self._cases += 1
        tenant, case_id, state = walked.tenant, walked.case_id, walked.state
        told = self._told.pop((tenant, case_id), None)
        timers = self._timers.pop((tenant, case_id), set())
        if told is None or not walked.sound or not told.equals(walked.sum):
            self._suspects.add((tenant, case_id))
        keys = self._keys.case(tenant, case_id)

        def wrong(code: str, message: str) -> None:
            self._wrong(code, f"case {case_id!r}: {message}", shard, 0, tenant, case_id)

        heads, snapshots, items, incidents = [await each.of(keys) for each in beside.kinds]
        for each in beside.kinds:
            self._strange(shard, each)
        try:
            if not heads:
                wrong("HEAD_MISSING", "its records are there, its head is not")
                return
            head = HEADS.read(*heads[0])
            if not walked.sound or state is None:
                return
            if head.sequence != state.sequence:
                wrong("HISTORY_SHORT", f"{head.sequence} events were recorded, {state.sequence} are there")
                return
            if head != head_of(state, head.created_by):
                wrong("HEAD_WRONG", "its head is not what its events say")
            document = await self._definition(tenant, state.spec_id, state.version)
            if document != state.digest:
                wrong("WORKFLOW_WRONG", f"its workflow {state.spec_id!r} version {state.version} is missing or another")
            if ((tenant, case_id) in self._continuing) != bool(state.ready):
                wrong("EFFECT_WRONG", "what is left to do automatically is not what its events say")
            armed = {(timer.due, str(number)) for number, timer in state.timers.items()}
            if timers != armed:
                wrong("TIMERS_WRONG", "its timers are not those that its events say")
            if self._calls.pop((tenant, case_id), {}) != outbox.pending(state):
                wrong("CALLS_WRONG", "what its connectors are to do is not what its events say")
            _work(state, items, incidents, wrong)
            if snapshots:
                await self._snapshot(*snapshots[0], walked, wrong)
        except (StoreCorrupt, StoreFormat) as error:
            wrong("VALUE_DAMAGED", error.message)

    async def _snapshot(self, key: bytes, stored: bytes, walked: _CaseWalk, wrong: Callable[[str, str], None]) -> None:
        """A snapshot against the state that replay had at its place."""
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
        async for rows in portions(self._reads, keys.records(1, sequence + 1), TURN):
            for key, value in rows:
                yield COMMITS.read(key, value)

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
        if kind == REQUEST:
            REQUESTS.read(key, value)
        elif kind == DEFINITION and shard == META_SHARD:
            tenant, spec_id, version = parse_definition(key)
            definition = DEFINITIONS.read(key, value)
            if spec_digest(definition.document) != definition.digest or definition.version != version:
                broken = f"workflow {spec_id!r} version {version} does not match its digest"
                self._wrong("WORKFLOW_WRONG", broken, shard, 0, tenant)
        elif kind == MESSAGE:
            MESSAGES.read(key, value)
        elif kind == CONNECTOR:
            CONNECTORS.read(key, value)
        elif kind == SCHEDULE:
            tenant, schedule_id = parse_schedule(key)
            SCHEDULES.read(key, value)
            if self._keys.shard_of(tenant, schedule_id) != shard:
                misplaced = f"schedule {schedule_id!r} belongs to another shard"
                self._wrong("SCHEDULE_MISPLACED", misplaced, shard, 0, tenant)
        elif kind == AUDIT:
            payload = unseal(key, value)
            AUDITS.read_payload(key, payload)
            reference = audit_reference(payload, parse_audit(key)[0])
            if audit_place(reference) != parse_audit(key) or self._audits.pop(reference, None) is None:
                self._wrong("AUDIT_UNKNOWN", "an audit record is in no batch record of the log", shard)
        elif kind in _CHECKED:
            unseal(key, value)


class _Sum:
    """A set of records as a number: equal sets give equal sums, whatever the order."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count = self.value = 0

    def add(self, first: int, count: int, hashed: bytes) -> None:
        self.count += 1
        whole = b"%d %d " % (first, count) + hashed
        self.value += int.from_bytes(blake2b(whole, digest_size=16).digest(), "big")

    def equals(self, other: _Sum) -> bool:
        return (self.count, self.value) == (other.count, other.value)


class _RowsBeside:
    """Rows of one kind, read in the order of cases beside the records of these."""

    def __init__(self, reads: Reads, range_: Range) -> None:
        self._reads = reads
        self._start, self._end = range_
        self._kind = range_[0]
        self._prefix = len(self._kind)
        self._held: deque[tuple[bytes, bytes]] = deque()
        self._more = True
        self.read = 0
        self.strange: list[bytes] = []
        """Keys of rows whose case has no records."""
        self.damage = ""
        """Why reading them in order came to an end."""
        self._broken = False

    async def of(self, keys: CaseKeys | None) -> list[tuple[bytes, bytes]]:
        """The rows of the next case; None: of no case any more."""
        if self._broken and keys is not None:
            return await self._one_by_one(keys)
        wanted = keys.head[self._prefix :] if keys is not None else None
        found: list[tuple[bytes, bytes]] = []
        while True:
            if not self._held and not await self._fetch():
                if self._broken and keys is not None:
                    return await self._one_by_one(keys)
                return found
            key = self._held[0][0]
            case = key[self._prefix :]
            if wanted is not None and case.startswith(wanted):
                found.append(self._held.popleft())
            elif wanted is None or case < wanted:
                self.strange.append(key)
                self._held.popleft()
            else:
                return found

    async def _fetch(self) -> bool:
        if not self._more:
            return False
        try:
            rows = await self._reads.scan(self._start, self._end, limit=PORTION)
        except StoreCorrupt as error:
            self.damage = f"keys from {self._start.hex()} on cannot be read: {error.message}"
            self._broken, self._more = True, False
            return False
        self._held.extend(rows)
        self.read += len(rows)
        self._more = len(rows) == PORTION
        if rows:
            self._start = rows[-1][0] + b"\0"
        return bool(rows)

    async def _one_by_one(self, keys: CaseKeys) -> list[tuple[bytes, bytes]]:
        """A block is damaged: what lies in others can still be read."""
        prefix = self._kind + keys.head[self._prefix :]
        try:
            return await self._reads.scan(prefix, prefix + b"\xff" * 17, limit=PORTION)
        except StoreCorrupt:
            return []


class _Beside:
    """What lies beside the records of a tenant's cases: heads, snapshots, items, incidents."""

    def __init__(self, reads: Reads, keys: Keyspace, shard: int, tenant: str) -> None:
        self.tenant = tenant
        self.kinds = tuple(
            _RowsBeside(reads, wanted)
            for wanted in (
                keys.cases(shard, tenant),
                keys.snapshots(shard, tenant),
                keys.items(shard, tenant),
                keys.incidents(shard, tenant),
            )
        )


def _work(
    state: Case,
    items: list[tuple[bytes, bytes]],
    incidents: list[tuple[bytes, bytes]],
    wrong: Callable[[str, str], None],
) -> None:
    """The rows of the work list and of incidents against the state."""
    due = {
        (activation.number, run.number): (activation.task, run.state, run.owner, run.attempt, run.offered_at)
        for activation, run in state.open_work()
    }
    found: dict[tuple[int, int], tuple[str, str, str, int, int]] = {}
    for key, value in items:
        row = ITEMS.read(key, value)
        found[parse_item(key)[2:]] = (row.task, row.state, row.owner, row.attempt, row.offered_at)
    if found != due:
        wrong("WORK_WRONG", f"its work list shows {len(found)} items, its events say {len(due)}, or others")
    raised = {number: (each.kind, each.task) for number, each in state.incidents.items()}
    shown: dict[int, tuple[str, str]] = {}
    for key, value in incidents:
        incident = INCIDENTS.read(key, value)
        shown[parse_incident(key)[2]] = (incident.kind, incident.task)
    if shown != raised:
        wrong("INCIDENTS_WRONG", f"{len(shown)} incidents are listed, its events say {len(raised)}, or others")


class _CaseWalk:
    """Folds the records of one case as they come by."""

    def __init__(self, tenant: str, case_id: str) -> None:
        self.tenant = tenant
        self.case_id = case_id
        self.state: Case | None = None
        self.sound = True
        self.sum = _Sum()

    def take(self, first: int, record: CommitRecord, payload: bytes) -> str:
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
        self.sum.add(first, len(record.events), digest(payload, self.state.salt))
        return ""


def refused(error: StoreError) -> Examination:
    """What an examination says of a store that cannot even be opened."""
    return Examination(0, 0, 0, 0, 0, 0, (), (Finding(type(error).reason, error.message),), 1)
