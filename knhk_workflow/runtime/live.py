"""Live cases: the cached state of a case, its lock, and the way of a step to the disk.

A case is locked from the start of a command until its step is durable, so nobody reads what is not committed. A commit
that fails throws the cached state away: the next touch replays from the store, and there is no rollback code.

The step of a command becomes one `Unit` of the journal: the commit record, the case's head (which the next commit
expects unchanged), the rows of the work list, timers, incidents, connectors' calls, the effect that keeps a paused
cascade alive, the idempotency record, and every SNAPSHOT_RECORDS records a snapshot. All of it is there or nothing is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from knhk_workflow.core.apply import replay
from knhk_workflow.core.case import OPEN_ITEM_STATES, Case, Incident, decode_state, encode_state
from knhk_workflow.core.commands import ENDED
from knhk_workflow.core.step import ItemInNet, Step
from knhk_workflow.errors import NotFound, StoreCorrupt, StoreFormat
from knhk_workflow.model.net import Model
from knhk_workflow.runtime import outbox, timers
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.definitions import Definitions
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.records import (
    COMMITS,
    HEADS,
    SNAPSHOTS,
    CaseHead,
    CommitRecord,
    IncidentRow,
    ItemRow,
    SnapshotRecord,
    pack,
)
from knhk_workflow.store import (
    Batch,
    CaseKeys,
    Expectation,
    Journal,
    Keyspace,
    Outcome,
    Reads,
    Unit,
    Waiter,
    Write,
    digest,
    seal,
)
from knhk_workflow.store.codec import UNREADABLE
from knhk_workflow.store.keys import parse_case_record

SNAPSHOT_RECORDS: Final = 64  # replaying 64 records takes about 1 ms
SNAPSHOT_BYTES: Final = 64 * 1024
STATE_CODEC: Final = 1  # grows when the meaning of the encoded state changes; older snapshots are then ignored
REPLAY_PAGE: Final = 512  # records per read while replaying
CACHED_CASES: Final = 10_000  # live cases in memory, about 4 KB each
CONTINUE: Final = "continue"
ROW_BYTES: Final = 200  # a key with its row, for the journal's account of what waits

Items = Mapping[tuple[int, int], ItemInNet]
"""Work items of a case, by activation and instance."""

_encode = msgspec.msgpack.Encoder().encode


class LiveCase:
    """One case in memory. `state` is None until it is loaded, and again after a failed commit.

    It is what the journal tells how its unit fared (`settle`).
    """

    __slots__ = (
        "busy",
        "bytes",
        "calls",
        "cases",
        "changed",
        "continuing",
        "created_by",
        "due",
        "head",
        "items",
        "keys",
        "model",
        "name",
        "records",
        "state",
        "told",
        "turns",
        "used",
    )

    def __init__(self, keys: CaseKeys, cases: LiveCases) -> None:
        self.keys = keys
        self.cases = cases
        self.name = (keys.tenant, keys.case_id)
        self.state: Case | None = None
        self.model: Model | None = None
        self.head: bytes | None = None
        self.created_by = ""
        self.calls: list[outbox.Change] = []  # of connectors, that the step on its way to the disk begins or ends
        self.due = 0  # of the nearest timer that the step on its way to the disk made; 0 = none
        self.items: Items | None = None  # work that the step on its way to the disk has changed
        self.records = 0
        self.bytes = 0
        self.busy = False
        self.used = False  # since the cache was last short of room
        self.told: asyncio.Future[Outcome] | None = None  # of who waits for the step on its way to the disk
        self.turns: deque[asyncio.Future[None]] | None = None  # made for the first who has to wait
        self.changed: set[asyncio.Event] = set()
        self.continuing: asyncio.Task[None] | None = None

    def loaded(self) -> tuple[Case, Model]:
        """The state and the workflow of a held case."""
        assert self.state is not None
        assert self.model is not None
        return self.state, self.model

    async def acquire(self) -> None:
        """Wait for the case; first come, first served."""
        if not self.busy:
            self.busy = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turns = self.turns
        if turns is None:
            turns = self.turns = deque()
        turns.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()  # it was given to us in the same moment: pass it on
            elif turn in turns:  # a release in this very moment may have passed it over already
                turns.remove(turn)
            raise

    def release(self) -> None:
        """Give the case to the next in line."""
        while self.turns:
            turn = self.turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.busy = False

    def settle(self, outcome: Outcome) -> None:
        """The unit of this held case has its outcome: tell who watches, let the next command in, tell the caller."""
        if isinstance(outcome, int):
            if self.changed:
                for event in self.changed:
                    event.set()
            self.cases.committed(self)
        else:
            self.cases.abandon((self,))
        told = self.told
        if told is not None and not told.done():
            told.set_result(outcome)


class LiveCases:
    """The cache of live cases of one engine. Bounded: the least recently used one that is at rest goes first."""

    def __init__(
        self,
        reads: Reads,
        journal: Journal,
        definitions: Definitions,
        clock: Clock,
        keyspace: Keyspace,
        unsettled: Callable[[LiveCase], None],
        armed: Callable[[int], None],
        worked: Callable[[LiveCase], None],
        called: Callable[[CaseKeys, Sequence[outbox.Change]], None],
        limit: int = CACHED_CASES,
    ) -> None:
        self._reads = reads
        self._journal = journal
        self._definitions = definitions
        self._clock = clock
        self._keyspace = keyspace
        self._unsettled = unsettled
        self._armed = armed
        self._worked = worked
        self._called = called
        self._limit = limit
        self.purges = False
        """There are purged cases: a new one must not take the id of one of them."""
        self._cases: dict[tuple[str, str], LiveCase] = {}
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._cases)

    def peek(self, tenant: str, case_id: str) -> LiveCase | None:
        """The case if it is in memory."""
        return self._cases.get((tenant, case_id))

    def entry(self, tenant: str, case_id: str) -> LiveCase:
        """The place of a case in the cache, made when absent; it counts as used now."""
        name = (tenant, case_id)
        live = self._cases.get(name)
        if live is None:
            if len(self._cases) >= self._limit:
                self._evict()
            live = self._cases[name] = LiveCase(self._keyspace.case(tenant, case_id), self)
        live.used = True
        return live

    def at_hand(self, tenant: str, case_id: str) -> LiveCase | None:
        """The case, locked, if it is in memory and free; otherwise `hold` it."""
        live = self._cases.get((tenant, case_id))
        if live is None or live.busy or live.state is None:
            return None
        live.busy = live.used = True
        return live

    async def hold(self, tenant: str, case_id: str) -> LiveCase:
        """The case, locked and loaded. Raises NotFound, StoreCorrupt; then it is not locked."""
        live = self.entry(tenant, case_id)
        await live.acquire()
        if live.state is None:
            try:
                await self._load(live)
            except BaseException:
                self.drop(live)
                live.release()
                raise
        return live

    def done(self, live: LiveCase) -> None:
        """Release a held case that was only read."""
        live.release()
        self._forget_ended(live)

    def drop(self, live: LiveCase) -> None:
        """Throw the cached state away; the next touch reads the store."""
        live.state = None
        live.model = None
        live.head = None
        live.due = 0
        live.calls = []
        live.items = None
        if not live.turns and not live.changed and live.continuing is None:
            self._cases.pop(live.name, None)

    def unit(self, live: LiveCase, step: Step, meta: CallMeta, request: tuple[bytes, bytes] | None) -> Unit:
        """What a step writes. `request` is the key and value of its idempotency record."""
        case = step.case
        keys = live.keys
        events = step.events
        if meta.witness is not None:
            meta.witness.recorded = True
        count = len(events)
        first = case.sequence - count + 1
        payload = _encode(
            CommitRecord(case.updated_at, meta.principal, meta.method, meta.request_id, meta.trace_id, events)
        )
        head = seal(_encode(head_of(case, live.created_by)))
        writes: list[Write] = [(keys.record(first), seal(payload)), (keys.head, head)]
        expect: tuple[Expectation, ...] = ((keys.head, live.head),)
        for (number, instance), item in step.items.items():
            row = item_row(case, item) if item[3].state in OPEN_ITEM_STATES else None
            writes.append((keys.item(number, instance), row))
            if item[3].connector:
                live.calls.append(outbox.rows(keys, case, item, writes))
        live.items = step.items
        if case.last_incident and step.incidents:
            _incident_rows(keys, step, writes)
        if case.ready or step.paused:
            writes.append((keys.effect(CONTINUE), b"" if case.ready else None))
        if case.last_timer and (case.timers or step.timed):
            live.due = timers.rows(keys, step, writes)
        if live.head is None:
            if case.business_key:
                writes.append((keys.business_key(case.business_key), b""))
            if self.purges:
                expect = (*expect, (keys.purged(), None))
        named = None
        if request is not None:
            named = request[0]
            writes.append(request)
            expect = (*expect, (named, None))
        size = len(payload) + ROW_BYTES * len(writes)
        live.records += 1
        live.bytes += len(payload)
        if live.records >= SNAPSHOT_RECORDS or live.bytes >= SNAPSHOT_BYTES:
            live.records = live.bytes = 0
            state = encode_state(case)
            writes.append((keys.snapshot, pack(SnapshotRecord(STATE_CODEC, case.sequence, _hash(state), state))))
            size += len(state)
        change = keys.head, live.head, head
        live.head = head
        return Unit(
            keys.shard,
            keys.tenant,
            keys.case_id,
            first,
            count,
            digest(payload, case.salt),
            writes,
            expect,
            named,
            (),
            size,
            meta.deadline,
            change,
        )

    def commit(self, live: LiveCase, unit: Unit) -> asyncio.Future[Outcome]:
        """Queue the unit of a held case; the future has its outcome.

        The case is released once its outcome is known, whoever still listens. Raises Busy or StoreUnavailable when
        nothing was queued; then the case is dropped and released.
        """
        live.told = told = self._loop.create_future()
        try:
            self._journal.put(unit, live)
        except BaseException:
            self.abandon((live,))
            raise
        return told

    def commit_all(self, units: Sequence[tuple[LiveCase, Unit]]) -> asyncio.Future[list[Outcome]]:
        """As `commit`, all or none of them; the future has one outcome per unit."""
        batch = Batch(self._loop, len(units))
        try:
            self._journal.put_all(
                [(unit, _Both(live, batch.element(index))) for index, (live, unit) in enumerate(units)]
            )
        except BaseException:
            self.abandon([live for live, _ in units])
            raise
        return batch.told

    def abandon(self, lives: Sequence[LiveCase]) -> None:
        """Give up held cases whose step will not be written: the cached states are ahead of the store and go."""
        for live in lives:
            self.drop(live)
            live.release()

    def committed(self, live: LiveCase) -> None:
        """The unit of a held case is durable: let the next command in."""
        if live.due:
            self._armed(live.due)
            live.due = 0
        if live.calls:
            self._called(live.keys, live.calls)
            live.calls = []
        self._worked(live)
        state = live.state
        if state is not None and state.ready and state.state == "running":
            self._unsettled(live)
        if live.turns:
            live.release()
            return
        live.busy = False
        if state is not None and state.state in ENDED:
            self._forget_ended(live)

    async def _load(self, live: LiveCase) -> None:
        """Snapshot, then the records after it; checked against the head."""
        keys = live.keys
        stored = await self._reads.get(keys.head)
        if stored is None:
            raise NotFound("case", keys.case_id)
        head = HEADS.read(keys.head, stored)
        case = await self._snapshot(keys, head.sequence)
        records = size = 0
        while case is None or case.sequence < head.sequence:
            start, end = keys.records(case.sequence + 1 if case is not None else 0)
            page = await self._reads.scan(start, end, limit=REPLAY_PAGE)
            for key, value in page:
                record = COMMITS.read(key, value)
                first = parse_case_record(key)[2]
                if first != (case.sequence + 1 if case is not None else 1):
                    raise StoreCorrupt(
                        f"the history of case {keys.case_id!r} lacks what was before event {first}; "
                        "restore it from a backup",
                        case_id=keys.case_id,
                    )
                case = replayed(case, record, keys)
                records += 1
                size += len(value)
            if not page:
                break
        if case is None or case.sequence != head.sequence or case.state != head.state:
            found = case.sequence if case is not None else 0
            raise StoreCorrupt(
                f"the history of case {keys.case_id!r} ends at event {found}, but {head.sequence} were recorded; "
                "restore it from a backup",
                case_id=keys.case_id,
            )
        live.model = await self._definitions.model(keys.tenant, case.spec_id, case.version)
        live.state = case
        live.head = stored
        live.created_by = head.created_by
        live.records = records
        live.bytes = size

    async def _snapshot(self, keys: CaseKeys, sequence: int) -> Case | None:
        """The cached state, if it is one that this version can trust."""
        stored = await self._reads.get(keys.snapshot)
        if stored is None:
            return None
        try:
            record = SNAPSHOTS.read(keys.snapshot, stored)
            if record.codec != STATE_CODEC or _hash(record.state) != record.state_hash:
                return None
            case = decode_state(record.state)
        except (StoreCorrupt, StoreFormat, *UNREADABLE):
            return None  # a cache that cannot be read is no cache; the records decide
        mine = (case.tenant, case.case_id) == (keys.tenant, keys.case_id) and case.sequence <= sequence
        return case if mine else None

    def _forget_ended(self, live: LiveCase) -> None:
        if live.busy or live.turns or live.changed or live.state is None or live.continuing is not None:
            return
        if live.state.state in ENDED:
            self._cases.pop(live.name, None)

    def _evict(self) -> None:
        """Make room for one more, and give back what a large batch took beyond the limit. Whoever was used since the
        last time stays this time."""
        for _ in range(2):
            wanted = len(self._cases) - self._limit + 1
            staying: list[LiveCase] = []
            going: list[LiveCase] = []
            for live in self._cases.values():
                if len(going) == wanted:
                    break
                if live.used or live.busy or live.changed or live.continuing is not None:
                    staying.append(live)
                else:
                    going.append(live)
            for live in (*staying, *going):
                del self._cases[live.name]
            for live in staying:
                live.used = False
                self._cases[live.name] = live
            if len(going) == wanted:
                return


class _Both:
    """Tells the case, then who waits for the batch that it is part of."""

    __slots__ = ("_live", "_waiter")

    def __init__(self, live: LiveCase, waiter: Waiter) -> None:
        self._live = live
        self._waiter = waiter

    def settle(self, outcome: Outcome) -> None:
        self._live.settle(outcome)
        self._waiter.settle(outcome)


def replayed(case: Case | None, record: CommitRecord, keys: CaseKeys) -> Case:
    """One record folded. Events that cannot follow this state were damaged, or written by something else."""
    try:
        return replay(case, record.time, record.events)
    except (AssertionError, AttributeError, KeyError, ValueError) as error:
        raise StoreCorrupt(
            f"the history of case {keys.case_id!r} does not fit together: {error!r}; restore it from a backup",
            case_id=keys.case_id,
        ) from error


def _hash(state: bytes) -> bytes:
    return blake2b(state, digest_size=16).digest()


def head_of(case: Case, created_by: str) -> CaseHead:
    """What lists show of a case."""
    return CaseHead(
        case.sequence,
        case.state,
        case.spec_id,
        case.version,
        case.business_key,
        case.created_at,
        case.updated_at,
        case.open_items,
        len(case.incidents),
        case.reason,
        created_by,
    )


def item_row(case: Case, item: ItemInNet) -> bytes:
    """What the work list shows of an open item."""
    net, node, activation, run = item
    task = node.task
    return seal(
        _encode(
            ItemRow(
                task.id,
                task.name,
                net,
                run.state,
                task.required_roles,
                run.owner,
                run.attempt,
                task.priority,
                run.offered_at,
                run.changed_at,
                case.spec_id,
                case.due(activation, run) if case.timers else 0,
                run.worker,
                run.lease,
            )
        )
    )


def _incident_rows(keys: CaseKeys, step: Step, writes: list[Write]) -> None:
    for number in step.incidents:
        incident = step.case.incidents.get(number)
        row = incident_row(incident, step.case.spec_id) if incident is not None else None
        writes.append((keys.incident(number), row))


def incident_row(incident: Incident, spec_id: str) -> bytes:
    """What lists show of an incident."""
    return pack(IncidentRow(incident.kind, incident.message, incident.task, incident.raised_at, spec_id))
