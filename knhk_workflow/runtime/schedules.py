"""Schedules: cases that are started by the calendar, once for each occurrence.

    occurrence due -> decided (durable) -> its case is started -> noted (durable)

What an occurrence leads to is decided in `occurrences.py` and written before it is done. What was decided and not yet
noted when the engine ended is done again after the next start: the case's id says which occurrence it belongs to, so a
second attempt finds the first one's case and no occurrence gets two.

Occurrences follow the calendar (`Clock.wall`), not the time that has passed, so the calendar is looked at every LOOK_S
as long as there are schedules. When it was set ahead, what was passed over counts as missed; when it was set back, the
occurrences that come again find that they have had their cases. Those due are taken in the order of their times.

All schedules are in memory, and each is one record in the store, on its own key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
from sortedcontainers import SortedList

from knhk_workflow.core.commands import ENDED
from knhk_workflow.errors import (
    AlreadyExists,
    Busy,
    InvalidInput,
    LimitExceeded,
    NotFound,
    Stale,
    StoreCorrupt,
    StoreError,
    StoreFormat,
    StoreUnavailable,
    WorkflowError,
)
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime.audited import audited
from knhk_workflow.runtime.births import RunRequest
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.definitions import Definitions
from knhk_workflow.runtime.inputs import checked_id, checked_schema, json_object
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.occurrences import (
    CATCH_UPS,
    OVERLAPS,
    TIMES_SHOWN,
    Rule,
    admitted,
    between,
    carried_out,
    chosen_of,
    next_times,
    occurred,
    planned,
    rule_of,
    stamp,
    start_at,
    text_of,
)
from knhk_workflow.runtime.pages import decode_token, encode_token, page_size_of
from knhk_workflow.runtime.problems import Damaged, tell_operator
from knhk_workflow.runtime.records import (
    HEADS,
    SCHEDULES,
    CaseHead,
    ScheduledStart,
    ScheduleRecord,
    ScheduleRun,
    ScheduleSpec,
    pack,
)
from knhk_workflow.runtime.requests import Request, Requests
from knhk_workflow.runtime.turns import Turns
from knhk_workflow.runtime.views import Page, ScheduleView
from knhk_workflow.store import ExpectationFailed, Journal, Keyspace, OutcomeUnknown, Reads, Unit, Write
from knhk_workflow.store.keys import parse_schedule
from knhk_workflow.store.portions import portions

SCHEDULES_MAX: Final = 10_000  # in one store; all are in memory, about 2 KB each
SCHEDULE_ID_BYTES_MAX: Final = 200  # its cases' ids are longer by up to 45 bytes, and are 256 at most
DATA_BYTES_MAX: Final = 64 * 1024  # it is written again with every occurrence
BACKFILL_MAX: Final = 1_000  # occurrences in one call; the record holds those that wait
TOGETHER: Final = 64  # schedules, or starts of one, that are worked on at once: they share commits
LOOK_S: Final = 60  # how late it is noticed that the calendar was set
PAUSE_S: Final = 0.5  # between attempts while the store cannot write
PAGE: Final = 256  # records per read at the start

Begin = Callable[[RunRequest, CallMeta], Awaitable[object]]
"""Creates a case and starts it, durably."""
Cancel = Callable[[str, str, CallMeta], Awaitable[object]]
"""Ends a case, saying why."""
Spawn = Callable[[Coroutine[object, object, None]], asyncio.Task[None]]

_Name = tuple[str, str]
"""(tenant, schedule id)"""

_DAMAGED: Final = CaseHead(0, "", "", 0, "", 0, 0, 0, 0, "", "")
"""Stands for what is stored of a case and cannot be read."""


class _Asked(NamedTuple):
    """A call: for whom, and its request id if it has one."""

    meta: CallMeta
    request: Request | None


class _Live:
    """A schedule in memory. `record` is None before it is created, once it was deleted, and as long as what is stored
    (`value`) cannot be read, which `damage` says; `watched` those of its cases whose end a start waits for."""

    __slots__ = ("again", "carrying", "damage", "name", "record", "turns", "value", "watched")

    def __init__(self, name: _Name) -> None:
        self.name = name
        self.record: ScheduleRecord | None = None
        self.value: bytes | None = None
        self.damage: StoreError | None = None
        self.turns = Turns()
        self.carrying: asyncio.Task[None] | None = None
        self.again = False
        self.watched: set[tuple[str, str]] = set()

    def __str__(self) -> str:
        return f"schedule {self.name[1]!r} of tenant {self.name[0]!r}"


class Schedules:
    """The schedules of every tenant."""

    def __init__(
        self,
        reads: Reads,
        journal: Journal,
        keyspace: Keyspace,
        definitions: Definitions,
        requests: Requests,
        clock: Clock,
        begin: Begin,
        cancel: Cancel,
        spawn: Spawn,
    ) -> None:
        self._reads = reads
        self._journal = journal
        self._keys = keyspace
        self._definitions = definitions
        self._requests = requests
        self._clock = clock
        self._begin = begin
        self._cancel = cancel
        self._spawn = spawn
        self._all: dict[_Name, _Live] = {}
        self._due: SortedList[tuple[int, _Name]] = SortedList()
        self._watched: dict[tuple[str, str], _Live] = {}  # cases whose end somebody waits for
        self._damaged = Damaged()  # cases, by tenant and id
        self._seen = 0  # what the calendar said when it was last looked at
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Know all schedules, and go on with what was decided when the engine last ended."""
        wall = self._seen = self._clock.wall()
        for shard in range(self._keys.shards):
            async for rows in portions(self._reads, self._keys.schedules(shard), PAGE):
                for key, value in rows:
                    self._recovered(_Live(parse_schedule(key)), key, value, wall)

    def _recovered(self, live: _Live, key: bytes, value: bytes, wall: int) -> None:
        """One schedule as it is stored. One that is damaged stands still alone, until it is deleted."""
        self._all[live.name] = live
        self._know(live, key, value)
        if live.record is None:
            return
        try:
            record = self._again(live.record, wall)
        except InvalidInput as error:  # a time zone that this machine does not know any more
            record = msgspec.structs.replace(live.record, paused=True, pause_reason=error.message)
        self._take(live, record, value)
        self._carry_on(live)

    async def run(self) -> None:
        """Take what is due, for ever."""
        while True:
            try:
                await self.start_due()
            except WorkflowError:
                await asyncio.sleep(PAUSE_S)
                continue
            self._woken.clear()
            due = self.nearest()
            if due is None and not self._all:
                await self._woken.wait()
                continue
            ahead = LOOK_S * NS_PER_S if due is None else min(due - self._clock.wall(), LOOK_S * NS_PER_S)
            alarm = self._clock.call_at(self._clock.now() + max(ahead, 0), self._woken.set)
            try:
                await self._woken.wait()
            finally:
                alarm.cancel()

    async def start_due(self) -> None:
        """Return when everything that is due by now has been decided on."""
        async with self._turn:
            while True:
                wall = self._clock.wall()
                if wall < self._seen:
                    await self._set_back(wall)
                self._seen = wall
                due = [self._all[name] for at, name in self._due.islice(0, TOGETHER) if at <= wall]
                if not due:
                    return
                await asyncio.gather(*(self._due_now(live, wall) for live in due))

    async def settled(self) -> None:
        """Return once everything that was decided has been done, as far as it can be now."""
        while tasks := [live.carrying for live in self._all.values() if live.carrying is not None]:
            await asyncio.wait(tasks)

    def nearest(self) -> int | None:
        """When the next occurrence is due, by the calendar."""
        return self._due[0][0] if self._due else None

    def notice(self, units: Sequence[Unit]) -> None:
        """Cases were committed: one of them may be what a start waits for. Never blocks."""
        if self._watched:
            for unit in units:
                live = self._watched.get((unit.tenant, unit.case_id)) if unit.case_id else None
                if live is not None:
                    self._carry_on(live)

    # -- calls --------------------------------------------------------------------------------------------------------

    async def create(self, schedule_id: str, spec: ScheduleSpec, paused: bool, meta: CallMeta) -> ScheduleView:
        """A new schedule. Raises AlreadyExists, LimitExceeded, InvalidInput, NotFound for the workflow, StoreCorrupt
        when there is one that cannot be read; so does every call that names such a one, but `delete`."""
        checked_id(schedule_id, "schedule_id")
        if len(schedule_id.encode()) > SCHEDULE_ID_BYTES_MAX:
            raise InvalidInput.field("schedule_id", f"has more than {SCHEDULE_ID_BYTES_MAX} bytes")
        asked = self._asked(meta, (schedule_id, spec, paused))
        spec, rule = await self._checked(spec, meta.tenant)
        name = (meta.tenant, schedule_id)
        while True:
            live = self._all.setdefault(name, _Live(name))
            async with live.turns.turn():
                if self._all.get(name) is not live:
                    continue  # it was deleted while this call waited
                try:
                    return await self._create(live, spec, rule, paused, asked)
                finally:
                    if not live.turns.writing:
                        self._unless_there(live)

    async def _create(self, live: _Live, spec: ScheduleSpec, rule: Rule, paused: bool, asked: _Asked) -> ScheduleView:
        answered = await self._answered(live.name, asked)
        if answered is not None:
            return answered
        _whole(live)
        if live.record is not None:
            raise AlreadyExists("schedule", live.name[1], "choose another schedule_id, or update it")
        if len(self._all) > SCHEDULES_MAX:
            raise LimitExceeded("schedules", SCHEDULES_MAX, len(self._all))
        now, wall = self._clock.now(), self._clock.wall()
        coming = rule.after(wall, wall)
        record = ScheduleRecord(spec, 1, now, asked.meta.principal, now, wall, coming, paused)
        return await self._answer(live, record, asked)

    async def update(self, schedule_id: str, spec: ScheduleSpec, revision: int, meta: CallMeta) -> ScheduleView:
        """Another spec for a schedule. `revision`: the one that the caller has seen, 0 = whatever it is; raises Stale.
        The next occurrence is the first one after now; what was decided before goes on."""
        asked = self._asked(meta, (schedule_id, spec, revision))
        spec, _ = await self._checked(spec, meta.tenant)

        async def change(live: _Live, record: ScheduleRecord) -> ScheduleRecord:
            if revision and revision != record.revision:
                raise Stale(
                    "schedule", schedule_id, f"revision {revision}", f"revision {record.revision}", "read it again"
                )
            wall = self._clock.wall()
            same = (spec.every, spec.time_zone) == (record.spec.every, record.spec.time_zone)
            changed = msgspec.structs.replace(record, spec=spec, anchor=record.anchor if same else wall)
            return planned(changed, wall)

        return await self._change(schedule_id, asked, change)

    async def pause(self, schedule_id: str, reason: str, meta: CallMeta) -> ScheduleView:
        """No more occurrences until it is resumed; what was decided before goes on. Twice is fine."""

        async def change(live: _Live, record: ScheduleRecord) -> ScheduleRecord:
            return msgspec.structs.replace(record, paused=True, pause_reason=reason)

        return await self._change(schedule_id, self._asked(meta, (schedule_id, reason)), change)

    async def resume(self, schedule_id: str, meta: CallMeta) -> ScheduleView:
        """Go on with the first occurrence after now; those that came while it was paused are not made up for."""

        async def change(live: _Live, record: ScheduleRecord) -> ScheduleRecord:
            if not record.paused:
                return record
            return planned(msgspec.structs.replace(record, paused=False, pause_reason=""), self._clock.wall())

        return await self._change(schedule_id, self._asked(meta, schedule_id), change)

    async def trigger(self, schedule_id: str, overlap: str, data: bytes, meta: CallMeta) -> ScheduleView:
        """One start now, whether it is paused or not. `overlap` empty: as the schedule says; `data` empty: likewise."""
        _choice(overlap, "overlap", OVERLAPS, empty=True)
        body = _data(data) if data else b""

        async def change(live: _Live, record: ScheduleRecord) -> ScheduleRecord:
            now = self._clock.wall()
            number = record.triggered + 1
            case_id = f"{schedule_id}-{stamp(now)}-{now % NS_PER_S:09d}-{number}"
            start = ScheduledStart(now, case_id, overlap or record.spec.overlap, body)
            record, open_ = await self._opened(live, record)
            return admitted(msgspec.structs.replace(record, triggered=number), start, now, open_=open_)

        return await self._change(schedule_id, self._asked(meta, (schedule_id, overlap, data)), change)

    async def backfill(self, schedule_id: str, start: int, end: int, overlap: str, meta: CallMeta) -> ScheduleView:
        """The occurrences from `start` up to, but not at, `end`, as if they were due now one after the other. Those
        that have had their case do not get another one. Raises LimitExceeded for more than BACKFILL_MAX."""
        _choice(overlap, "overlap", OVERLAPS, empty=True)
        if not 0 <= start < end:
            raise InvalidInput.field("end_time", "must be later than start_time")

        async def change(live: _Live, record: ScheduleRecord) -> ScheduleRecord:
            times = between(record, start, end, BACKFILL_MAX)
            if len(times) > BACKFILL_MAX:
                raise LimitExceeded("occurrences in one backfill", BACKFILL_MAX, len(times), "choose a shorter time")
            now = self._clock.wall()
            record, open_ = await self._opened(live, record)
            for at in times:
                found = start_at(record.spec, schedule_id, at, overlap)
                if not await self._had(live, found.case_id):
                    record = admitted(record, found, now, open_=open_)
            return record

        return await self._change(schedule_id, self._asked(meta, (schedule_id, start, end, overlap)), change)

    async def delete(self, schedule_id: str, meta: CallMeta) -> None:
        """No more of it; cases that it has started stay. What waits is not started. So goes a damaged one.
        Raises NotFound."""
        live = self._all.get((meta.tenant, schedule_id))
        if live is None:
            raise NotFound("schedule", schedule_id)
        async with live.turns.turn():
            if live.value is None:
                raise NotFound("schedule", schedule_id)
            await self._write(live, None, (), None, meta)

    def get(self, tenant: str, schedule_id: str) -> ScheduleView:
        """One schedule, as it was last committed."""
        live = self._found(tenant, schedule_id)
        assert live.record is not None
        return view_of(schedule_id, live.record)

    def list(self, tenant: str, page_size: int, page_token: str) -> Page[ScheduleView]:
        """By id, each with its next occurrence alone: finding more takes 0.1 ms."""
        size = page_size_of(page_size)
        after = decode_token(page_token, "schedules").decode(errors="replace")
        mine = sorted(
            name[1]
            for name, live in self._all.items()
            if name[0] == tenant and name[1] > after and live.record is not None
        )
        found = ((schedule_id, self._found(tenant, schedule_id).record) for schedule_id in mine[:size])
        views = tuple(view_of(schedule_id, record, 1) for schedule_id, record in found if record is not None)
        return Page(views, encode_token(mine[size - 1].encode(), "schedules") if len(mine) > size else "")

    # -- deciding -----------------------------------------------------------------------------------------------------

    async def _due_now(self, live: _Live, wall: int) -> None:
        try:
            await self._occur(live, wall)
        except (StoreCorrupt, StoreFormat) as error:
            self._stands_still(live, error)
        except WorkflowError:
            raise
        except Exception as error:  # noqa: BLE001  # one schedule must not stop all others
            self._stands_still(live, error)

    def _stands_still(self, live: _Live, error: Exception) -> None:
        """What is wrong with one schedule does not stop the others."""
        if live.record is not None:
            self._due.discard((live.record.next, live.name))
        tell_operator(f"{live} stands still until the next start", error)

    async def _occur(self, live: _Live, wall: int) -> None:
        """Decide on what is due of one schedule, durably."""
        async with live.turns.turn():
            record = live.record
            if record is None or record.paused or not 0 < record.next <= wall:
                return
            chosen = chosen_of(record, wall)
            had = bool(chosen) and await self._had(live, start_at(record.spec, live.name[1], chosen).case_id)
            record, open_ = await self._opened(live, record)
            await self._write(live, occurred(record, live.name[1], chosen, wall, open_=open_, had=had), ())

    async def _set_back(self, wall: int) -> None:
        """The calendar was set back: occurrences come again, unless they have had their cases."""
        for live in list(self._all.values()):
            async with live.turns.turn():
                if live.record is not None:
                    record = self._again(live.record, wall)
                    if record is not live.record:
                        await self._write(live, record, ())

    def _again(self, record: ScheduleRecord, wall: int) -> ScheduleRecord:
        """The record as it has to be when the calendar is behind what it says."""
        if record.paused or not record.next:
            return record
        sooner = planned(record, wall)
        return sooner if 0 < sooner.next < record.next else record

    async def _opened(self, live: _Live, record: ScheduleRecord) -> tuple[ScheduleRecord, bool]:
        """The record with those of its cases that are open, and whether there are any."""
        open_ = await self._open(live, record.running)
        return msgspec.structs.replace(record, running=open_), bool(open_)

    async def _open(self, live: _Live, case_ids: tuple[str, ...]) -> tuple[str, ...]:
        """Those of these cases that are open. One that cannot be read will not end: it counts as ended."""
        heads = await asyncio.gather(*(self._head(live.name[0], case_id) for case_id in case_ids))
        return tuple(
            case_id
            for case_id, head in zip(case_ids, heads, strict=True)
            if head is not None and head is not _DAMAGED and head.state not in ENDED
        )

    async def _had(self, live: _Live, case_id: str) -> bool:
        """Whether this schedule has started a case, or has decided to, whatever became of it."""
        tenant, schedule_id = live.name
        if live.record is not None:
            decided = (*live.record.starting, *live.record.waiting)
            if any(start.case_id == case_id for start in decided):
                return True
        head = await self._head(tenant, case_id)
        if head is not None:
            return _made(schedule_id, head)
        return await self._reads.get(self._keys.case(tenant, case_id).purged()) is not None

    async def _head(self, tenant: str, case_id: str) -> CaseHead | None:
        """What is stored of a case; `_DAMAGED`, which is told once, when that cannot be read."""
        key = self._keys.case_head(tenant, case_id)
        stored = await self._reads.get(key)
        if stored is None:
            return None
        try:
            return HEADS.read(key, stored)
        except (StoreCorrupt, StoreFormat) as error:
            problem = f"case {case_id!r} of tenant {tenant!r}, started by a schedule, cannot be read"
            self._damaged.met((tenant, case_id), problem, error)
            return _DAMAGED

    # -- doing --------------------------------------------------------------------------------------------------------

    def _carry_on(self, live: _Live) -> None:
        """Do in the background what was decided."""
        live.again = True
        record = live.record
        if live.carrying is None and record is not None and (record.starting or record.waiting):
            live.carrying = self._spawn(self._carry(live))

    async def _carry(self, live: _Live) -> None:
        try:
            while live.again:
                live.again = False
                pause = False
                try:
                    async with live.turns.turn():
                        while await self._carried(live):
                            pass
                        pause = live.record is not None and bool(live.record.starting)
                except (StoreUnavailable, Busy, OutcomeUnknown, ExpectationFailed):
                    pause = True
                except Exception as error:  # noqa: BLE001  # its next occurrence comes here again
                    tell_operator(f"{live} cannot do what was decided", error)
                    return
                if pause:
                    live.again = True
                    await asyncio.sleep(PAUSE_S)
        finally:
            live.carrying = None

    async def _carried(self, live: _Live) -> bool:
        """Do the next of what was decided. False: nothing can be done now."""
        record = live.record
        if record is None:
            return False
        if record.starting:
            first = record.starting[0]
            together: tuple[ScheduledStart, ...] = (first,)
            if first.overlap == "terminate_other":
                await self._end(live, await self._open(live, record.running))
            else:
                together = tuple(start for start in record.starting if start.overlap != "terminate_other")[:TOGETHER]
            runs = await asyncio.gather(*(self._start(live, record, start) for start in together))
            done = [run for run in runs if run is not None]
            if done:
                await self._write(live, carried_out(record, done), ())
            return len(done) == len(runs)
        self._unwatch(live)
        if not record.waiting:
            return False
        open_ = await self._open(live, record.running)
        if open_:
            live.watched = {(live.name[0], case_id) for case_id in open_}
            self._watched.update(dict.fromkeys(live.watched, live))
            if record.waiting[0].overlap == "cancel_other":
                await self._end(live, open_)
            open_ = await self._open(live, open_)  # what ended before it was watched is not noticed
            if open_:
                return False
        self._unwatch(live)
        starting, *waiting = record.waiting
        left = msgspec.structs.replace(record, starting=(starting,), waiting=tuple(waiting), running=())
        await self._write(live, left, ())
        return True

    def _unwatch(self, live: _Live) -> None:
        """Nobody waits any more for the end of a case of this schedule."""
        for case in live.watched:
            if self._watched.get(case) is live:
                del self._watched[case]
        live.watched = set()

    async def _start(self, live: _Live, record: ScheduleRecord, start: ScheduledStart) -> ScheduleRun | None:
        """Start one case, durably; how far its cascade gets is nothing to wait for. None: it has to be tried again."""
        tenant, schedule_id = live.name
        meta = CallMeta(tenant=tenant, principal=_principal(schedule_id), method="start_scheduled_case")
        outcome, message = "started", ""
        try:
            spec = record.spec
            data = _with_time(spec, start)
            await self._begin(RunRequest(spec.spec_id, data, start.case_id, spec.business_key, spec.version), meta)
        except (StoreUnavailable, Busy, OutcomeUnknown):
            return None
        except AlreadyExists as error:
            head = await self._head(tenant, start.case_id)
            if head is None or not _made(schedule_id, head):
                outcome, message = "failed", error.message
        except WorkflowError as error:
            outcome, message = "failed", error.message
        return ScheduleRun(start.at, outcome, self._clock.now(), start.case_id, message)

    async def _end(self, live: _Live, case_ids: Iterable[str]) -> None:
        tenant, schedule_id = live.name
        meta = CallMeta(tenant=tenant, principal=_principal(schedule_id), method="cancel_case")
        for case_id in case_ids:
            try:
                await self._cancel(case_id, f"schedule {schedule_id} starts its next case", meta)
            except (StoreUnavailable, Busy, OutcomeUnknown):
                raise
            except WorkflowError:
                continue  # it has ended in this moment, or cannot be read; whoever touches it is told

    # -- records ------------------------------------------------------------------------------------------------------

    def _found(self, tenant: str, schedule_id: str) -> _Live:
        live = self._all.get((tenant, schedule_id))
        if live is not None:
            _whole(live)
        if live is None or live.record is None:
            raise NotFound("schedule", schedule_id)
        return live

    async def _change(
        self,
        schedule_id: str,
        asked: _Asked,
        change: Callable[[_Live, ScheduleRecord], Awaitable[ScheduleRecord]],
    ) -> ScheduleView:
        live = self._found(asked.meta.tenant, schedule_id)
        async with live.turns.turn():
            answered = await self._answered(live.name, asked)
            if answered is not None:
                return answered
            if live.record is None:
                raise NotFound("schedule", schedule_id)
            changed = await change(live, live.record)
            record = msgspec.structs.replace(changed, revision=live.record.revision + 1, updated_at=self._clock.now())
            return await self._answer(live, record, asked)

    async def _answer(self, live: _Live, record: ScheduleRecord, asked: _Asked) -> ScheduleView:
        """Write a record with the answer to the call that asked for it."""
        view = view_of(live.name[1], record)
        writes: list[Write] = []
        shard = self._keys.shard_of(*live.name)
        kept = self._requests.record_in(shard, live.name[0], asked.request, _encode(view))
        if kept is not None:
            writes.append(kept)
        await self._write(live, record, writes, kept[0] if kept is not None else None, asked.meta)
        return view

    async def _write(
        self,
        live: _Live,
        record: ScheduleRecord | None,
        writes: Iterable[Write],
        request: bytes | None = None,
        meta: CallMeta | None = None,
    ) -> None:
        """Commit a change of one schedule, in its turn. `meta`: the call that asked for it; None: the calendar.
        The cases that the calendar starts say so themselves."""
        key = self._keys.schedule(*live.name)
        value = pack(record) if record is not None else None
        shard = self._keys.shard_of(*live.name)
        expect = [(key, live.value), *([(request, None)] if request is not None else [])]
        audits: tuple[bytes, ...] = ()
        if meta is not None:
            entry = audited(self._keys, shard, meta, f"schedules/{live.name[1]}", self._clock.now())
            writes, audits = [*writes, entry.write], (entry.reference,)
        unit = Unit.aside(shard, live.name[0], [(key, value), *writes], expect, request, audits)
        appended = self._journal.append(unit)
        try:
            await asyncio.shield(live.turns.write(appended, lambda done: self._written(live, record, value, done)))
        except (ExpectationFailed, OutcomeUnknown):
            self._know(live, key, await self._reads.get(key))
            raise

    def _written(self, live: _Live, record: ScheduleRecord | None, value: bytes | None, done: bool) -> None:
        """A change has its outcome, whoever still waits for it."""
        if done:
            self._take(live, record, value)
            if live.carrying is None:
                self._carry_on(live)
        elif not live.turns.taken:  # its call has gone
            self._unless_there(live)

    def _unless_there(self, live: _Live) -> None:
        """Forget a schedule that does not exist."""
        if live.value is None and self._all.get(live.name) is live:
            del self._all[live.name]

    def _know(self, live: _Live, key: bytes, value: bytes | None) -> None:
        """Read what is stored of a schedule."""
        record, damage = None, None
        try:
            record = SCHEDULES.read(key, value) if value is not None else None
        except (StoreCorrupt, StoreFormat) as error:
            damage = error
            tell_operator(f"{live} cannot be read", error)
        self._take(live, record, value, damage)

    def _take(
        self, live: _Live, record: ScheduleRecord | None, value: bytes | None, damage: StoreError | None = None
    ) -> None:
        """This is what is stored of a schedule now."""
        before = live.record
        if before is not None and before.next and not before.paused:
            self._due.discard((before.next, live.name))
        live.record, live.value, live.damage = record, value, damage
        if record is not None and record.next and not record.paused:
            self._due.add((record.next, live.name))
            if self._due[0][1] == live.name:
                self._woken.set()
        if record is None:
            self._unwatch(live)
            self._unless_there(live)

    async def _checked(self, spec: ScheduleSpec, tenant: str) -> tuple[ScheduleSpec, Rule]:
        rule = rule_of(spec)
        _choice(spec.overlap, "overlap", OVERLAPS)
        _choice(spec.catch_up, "catch_up", CATCH_UPS)
        checked_id(spec.business_key, "business_key", empty=True)
        checked_id(spec.time_key, "time_key", empty=True)
        if spec.catch_up_window < 0:
            raise InvalidInput.field("catch_up_window", "must not be negative", "for example 1h")
        if spec.not_after and spec.not_after < spec.not_before:
            raise InvalidInput.field("end_time", "must not be earlier than start_time")
        spec = msgspec.structs.replace(spec, data=_data(spec.data))
        model = await self._definitions.active_model(tenant, spec.spec_id, spec.version)
        checked_schema(model.spec, _with_time(spec, ScheduledStart(self._clock.wall(), "", "")))
        return spec, rule

    def _asked(self, meta: CallMeta, about: object) -> _Asked:
        return _Asked(meta, self._requests.of(meta, about) if meta.request_id else None)

    async def _answered(self, name: _Name, asked: _Asked) -> ScheduleView | None:
        """The answer that this request id got before."""
        receipt = await self._requests.receipt(self._keys.shard_of(*name), name[0], asked.request)
        return None if receipt is None else _decode(receipt)


def view_of(schedule_id: str, record: ScheduleRecord, times: int = TIMES_SHOWN) -> ScheduleView:
    """What callers see of a schedule."""
    return ScheduleView(
        schedule_id,
        record.spec,
        record.revision,
        record.paused,
        record.pause_reason,
        next_times(record, times),
        (*record.running, *(start.case_id for start in record.starting)),
        len(record.waiting),
        record.recent[::-1],
        record.started,
        record.skipped,
        record.missed,
        record.failed,
        record.created_at,
        record.created_by,
        record.updated_at,
    )


def _whole(live: _Live) -> None:
    """Raises StoreCorrupt, or StoreFormat, for what is stored of a schedule and cannot be read."""
    if live.damage is not None:
        advice = "; delete it, then create it anew" if isinstance(live.damage, StoreCorrupt) else ""
        raise type(live.damage)(f"{live} cannot be read ({live.damage.message}){advice}")


def _principal(schedule_id: str) -> str:
    return f"system:schedule/{schedule_id}"


def _made(schedule_id: str, head: CaseHead) -> bool:
    """Whether a case is one of this schedule's. One that cannot be read has an id of its cases: it gets no second."""
    return head is _DAMAGED or head.created_by == _principal(schedule_id)


def _with_time(spec: ScheduleSpec, start: ScheduledStart) -> bytes:
    data = start.data or spec.data
    if not spec.time_key:
        return data
    return msgspec.json.encode({**msgspec.json.decode(data), spec.time_key: text_of(start.at)})


def _data(data: bytes) -> bytes:
    body = json_object(data, "data")
    if len(body) > DATA_BYTES_MAX:
        raise LimitExceeded("bytes of a schedule's data", DATA_BYTES_MAX, len(body), "let the workflow fetch the rest")
    return body


def _choice(value: str, path: str, options: tuple[str, ...], *, empty: bool = False) -> None:
    if value not in options and not (empty and not value):
        raise InvalidInput.field(path, f"{value!r} is not known", f"one of {', '.join(options)}")


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ScheduleView).decode
