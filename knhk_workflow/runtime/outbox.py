"""The outbox: what connectors are to do, from the commit that decided it until the commit that has its outcome.

The row of a call is written in the commit that begins it and deleted in the one that ends it, so the rows are exactly
the calls that are wanted and not yet answered, whatever happens in between. A call leaves once its row is durable; its
outcome comes back as a command of its own; a daemon that was killed in between finds the row and makes the call again,
under the same key. Whether it may is a matter of its connector's delivery: a call that must not be made twice is
marked as begun, durably, before it is made, and one that is found marked is an incident for a person.

Calls to one target share a lane: a bound on how many are under way, and a circuit breaker. While that is open its calls
wait here and use up no attempt; a task's own time-out still counts. How often and when a failed call is tried again is
the core's decision (`core/due.py`), so that it survives as everything does.

In memory are at most QUEUED_MAX calls, and of those that wait for one target at most WAITING_MAX, while that is left
alone LEFT_ALONE_MAX, so that a target which is down or slow takes no room from the others. The rest stays in the store
and is read when there is room. Calls that wait when their connector is replaced or deleted are for what is there then.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from hashlib import blake2b
from typing import Final, TypeVar

import msgspec

from knhk_workflow.connectors.breaker import Breaker
from knhk_workflow.connectors.connector import Answer, Call, CallFailed, Connector, Delivery
from knhk_workflow.core import commands as c
from knhk_workflow.core.case import Activation, Case, Instance
from knhk_workflow.core.step import ItemInNet
from knhk_workflow.errors import (
    Busy,
    Fenced,
    InvalidInput,
    StoreCorrupt,
    StoreError,
    StoreFormat,
    StoreUnavailable,
    WorkflowError,
)
from knhk_workflow.model.document import DEPTH_MAX, json_object
from knhk_workflow.model.parse import DEFAULT_CONNECTOR
from knhk_workflow.runtime.clock import Alarm, Clock
from knhk_workflow.runtime.problems import Damaged, tell_operator
from knhk_workflow.runtime.records import CALLS, CallRecord, pack
from knhk_workflow.runtime.views import ConnectorView
from knhk_workflow.store import CaseKeys, Keyspace, OutcomeUnknown, Reads, Write
from knhk_workflow.store.keys import parse_effect

PREFIX: Final = "call "
QUEUED_MAX: Final = 10_000  # calls in memory; with requests of 1 KB about 20 MB
WAITING_MAX: Final = 2_500  # for one target; a target that is slow leaves three quarters of the room to others
LEFT_ALONE_MAX: Final = 100  # for one target that is left alone: one call goes there a minute
LANES_MAX: Final = 1_000  # targets that are remembered; the idle and healthy ones go first
PAGE: Final = 256  # rows per read; a row may hold a large request
PAUSE_S: Final = 0.2  # before an outcome that could not be written is written again
LOOK_PAUSE_S: Final = 5.0  # before the store is looked into again when that has failed
KEY_BYTES: Final = 16
SAID_BYTES_MAX: Final = 64 * 1024  # of what the other side said about a failure; a history is no archive of them
SAID_CHARS_MAX: Final = 4_000  # of a failure's message
UNKNOWN: Final = "outcome_unknown"
CRASHED: Final = "connector_error"

T = TypeVar("T")

Place = tuple[str, str, int, int]
"""Tenant, case, activation, instance."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """What a step did to a call: it is wanted (`record`), or not any more."""

    activation: int
    instance: int
    record: CallRecord | None


CallReport = c.BeginCall | c.CompleteCall | c.FailCall
"""What the core is told of a call."""

Report = Callable[[str, str, CallReport], Awaitable[None]]
"""Carries a command out on a case of a tenant, durably."""

Wanted = Callable[[str, str], Awaitable[Mapping[str, CallRecord]]]
"""The calls that a case of a tenant wants now, by the ids of their effects: what its rows say. Raises WorkflowError."""

Find = Callable[[str, str], Connector]
"""The connector of a tenant by its name. Raises CallFailed when there is none."""


def effect(activation: int, instance: int) -> str:
    """The id of a call among the effects of its case."""
    return f"{PREFIX}{activation}.{instance}"


def rows(keys: CaseKeys, case: Case, item: ItemInNet, writes: list[Write]) -> Change:
    """Add what a step writes for an item that a connector does."""
    activation, run = item[2], item[3]
    record = call_record(case, activation, run)
    writes.append((keys.effect(effect(activation.number, run.number)), None if record is None else pack(record)))
    return Change(activation.number, run.number, record)


def pending(case: Case) -> dict[str, CallRecord]:
    """All calls of a case that are wanted, by the ids of their effects."""
    return {
        effect(activation.number, run.number): record
        for activation, run in case.open_work()
        if (record := call_record(case, activation, run)) is not None
    }


def call_record(case: Case, activation: Activation, run: Instance) -> CallRecord | None:
    """The call that an item stands for; None when it is not wanted (any more)."""
    if not run.connector or run.state != "started":
        return None
    name = f"{activation.number}.{run.number}".encode()
    key = blake2b(name, digest_size=KEY_BYTES, key=case.salt).hexdigest()
    return CallRecord(key, run.connector, run.data, run.attempt, run.calling)


class _Job(msgspec.Struct, eq=False):
    """A call in memory."""

    place: Place
    record: CallRecord
    recovered: bool
    sent: bool = False
    lane: _Lane | None = None  # where it waits


class _Lane:
    """The calls to one target of one connector."""

    __slots__ = ("active", "alarm", "behind", "breaker", "connector", "name", "queue", "target")

    def __init__(self, name: str, target: str, connector: Connector) -> None:
        self.name = name
        self.target = target
        self.connector = connector
        self.breaker = Breaker(connector.breaker)
        self.queue: OrderedDict[_Job, None] = OrderedDict()
        self.behind = False  # the store has calls for it that are not in memory
        self.active = 0
        self.alarm: Alarm | None = None


class Outbox:
    """The outbox of one engine."""

    def __init__(
        self,
        reads: Reads,
        keyspace: Keyspace,
        clock: Clock,
        find: Find,
        report: Report,
        wanted: Wanted,
        spawn: Callable[[Coroutine[object, object, None]], asyncio.Task[None]],
        *,
        idle: bool = False,
    ) -> None:
        """`idle`: of an engine that is not to call anybody; the calls wait in the store for one that is."""
        self._idle = idle
        self._reads = reads
        self._keyspace = keyspace
        self._clock = clock
        self._find = find
        self._report = report
        self._wanted_of = wanted
        self._spawn = spawn
        self._jobs: dict[Place, list[_Job]] = {}  # several: an attempt that was taken back while it was under way
        self._count = 0
        self._lanes: dict[tuple[int, str], _Lane] = {}
        self._behind = False  # there was no room for a call
        self._wanted: set[_Lane] = set()  # lanes that have room for calls that are in the store
        self._at = 0, b""  # the shard and the row where reading stopped
        self._closed = False
        self._reading = asyncio.Lock()
        self._scanning = False
        self._catching = False
        self._damaged = Damaged()  # rows, by Place
        self._unread: set[Place] = set()  # of these: what their cases are still to be asked, or could not tell
        self._asking: deque[Place] = deque()
        self._ended: set[Place] = set()  # while the store is scanned: what a page may still show
        self.made = 0
        """Calls that were made."""

    def told(self, view: ConnectorView, connector: Connector) -> ConnectorView:
        """A connector's view with its calls and breakers."""
        lanes = [lane for lane in self._lanes.values() if lane.connector is connector]
        return msgspec.structs.replace(
            view,
            breakers=tuple(sorted((lane.target, lane.breaker.state) for lane in lanes)),
            active=sum(lane.active for lane in lanes),
            waiting=sum(len(lane.queue) for lane in lanes),
        )

    def note(self, keys: CaseKeys, changes: Sequence[Change]) -> None:
        """A commit began or ended calls."""
        if self._idle:
            return
        for change in changes:
            place = keys.tenant, keys.case_id, change.activation, change.instance
            record = change.record
            for job in list(self._jobs.get(place, ())):
                if not job.sent and (record is None or record.attempt != job.record.attempt):
                    lane = job.lane
                    self._forget(job)
                    if lane is not None:
                        self._refill(lane)
            self._unread.discard(place)
            if record is not None:
                self._take(place, record, recovered=False)
            elif self._scanning:
                self._ended.add(place)

    async def recover(self) -> None:
        """Take up what the store holds, as far as there is room."""
        if not self._idle:
            await self._take_up(whole=True)

    async def _take_up(self, *, whole: bool) -> None:
        """Take up what the store holds until there is no room: for any call, or, unless `whole`, for those that the
        lanes want which have room."""
        async with self._reading:
            wanted, self._wanted = self._wanted, set()
            self._scanning = True
            self._behind = False
            try:
                await self._read(None if whole else wanted)
            except BaseException:
                self._wanted |= wanted
                self._behind = self._behind or whole
                raise
            finally:
                self._scanning = False
                self._ended.clear()

    async def _read(self, wanted: Collection[_Lane] | None) -> None:
        """One round through the store, from where the last one stopped: rows that are in memory, or have no room
        there, are not read again for each of the others. A round that stops leaves every lane whose calls it did not
        reach behind, or all of them."""
        first, begin = self._at
        for turn in range(self._keyspace.shards + 1):
            shard = (first + turn) % self._keyspace.shards
            start, end = self._keyspace.effects(shard)
            if turn == 0:
                start = begin or start
            elif turn == self._keyspace.shards:
                end = begin or start
            while start < end:
                page = await self._reads.scan(start, end, limit=PAGE)
                for key, value in page:
                    if self._taken(key, value):
                        continue
                    if self._behind or (wanted is not None and all(lane.behind for lane in wanted)):
                        self._at = shard, key
                        return
                if len(page) < PAGE:
                    break
                start = page[-1][0] + b"\0"

    def _taken(self, key: bytes, value: bytes) -> bool:
        """Take a row up. False: there is no room for it. One that is damaged says nothing that its case does not say:
        that is asked, while the others go on."""
        tenant, case_id, effect_id = parse_effect(key)
        if not effect_id.startswith(PREFIX):
            return True
        activation, instance = map(int, effect_id.removeprefix(PREFIX).split("."))
        place = tenant, case_id, activation, instance
        if place in self._ended or place in self._unread:
            return True
        try:
            record = CALLS.read(key, value)
        except (StoreCorrupt, StoreFormat) as error:
            row = f"the row of call {activation}.{instance} of case {case_id!r} of tenant {tenant!r}"
            self._damaged.met(place, f"{row} cannot be read; its case is asked instead", error)
            self._unread.add(place)
            self._asking.append(place)
            if len(self._asking) == 1:
                self._spawn(self._ask())
            return True
        return self._take(place, record, recovered=True)

    async def _ask(self) -> None:
        """Take up the calls whose rows are damaged, one after the other."""
        while self._asking:
            place = self._asking[0]
            tenant, case_id, activation, instance = place
            try:
                wanted = await self._wanted_of(tenant, case_id)
            except (StoreUnavailable, Busy):
                await asyncio.sleep(LOOK_PAUSE_S)
                continue
            except WorkflowError:
                wanted = {}  # the case cannot be read either; whoever touches it is told
            except Exception as error:  # noqa: BLE001  # one case must not stop the calls of all others
                wanted = {}
                tell_operator(f"case {case_id!r} of tenant {tenant!r} does not say which calls it wants", error)
            self._asking.popleft()
            record = wanted.get(effect(activation, instance))
            if record is not None and place in self._unread:  # else a commit has said since what is wanted
                self._unread.remove(place)
                self._take(place, record, recovered=True)

    def moved(self, tenant: str, name: str) -> None:
        """A tenant's connector was put or deleted: the calls that wait for it are for what is there now."""
        for lane in list(self._lanes.values()):
            for job in list(lane.queue):
                mine = job.place[0] == tenant and job.record.connector in (name, DEFAULT_CONNECTOR)
                if mine and self._connector(job) is not lane.connector:
                    self._forget(job, ended=False)
                    self._take(job.place, job.record, recovered=job.recovered)
            self._refill(lane)

    def _connector(self, job: _Job) -> Connector | None:
        try:
            return self._find(job.place[0], job.record.connector)
        except CallFailed:
            return None

    def close(self) -> None:
        """Make no further calls. What is under way is the caller's to cancel; it is taken up again after opening."""
        self._closed = True
        for lane in self._lanes.values():
            if lane.alarm is not None:
                lane.alarm.cancel()

    # ------------------------------------------------------------------------------------------------------------ lanes

    def _take(self, place: Place, record: CallRecord, *, recovered: bool) -> bool:
        """Have a call in memory. False: there is no room for it, it stays in the store."""
        known = self._jobs.get(place)
        if known is not None and any(job.record.attempt >= record.attempt for job in known):
            return True
        if self._count >= QUEUED_MAX:
            self._behind = True
            return False
        job = _Job(place, record, recovered)
        lane = self._lane(job)
        if lane is not None and (len(lane.queue) >= _room(lane) or (lane.behind and not recovered)):
            lane.behind = True  # who comes later does not overtake those that are in the store
            return False
        self._jobs.setdefault(place, []).append(job)
        self._count += 1
        if lane is not None:
            job.lane = lane
            lane.queue[job] = None
            self._pump(lane)
        return True

    def _lane(self, job: _Job) -> _Lane | None:
        """Where a call waits; None: it cannot be made, and that is being told."""
        record = job.record
        try:
            connector = self._find(job.place[0], record.connector)
            target = connector.target(record.request)
        except CallFailed as failure:
            job.sent = True
            self._spawn(self._refused(job, failure))
            return None
        except Exception as error:  # noqa: BLE001  # a connector may be anybody's code, and this may be a commit's end
            job.sent = True
            self._spawn(self._refused(job, _crash(record.connector, error)))
            return None
        lane = self._lanes.get((id(connector), target))
        if lane is None or lane.connector is not connector:
            self._make_room()
            lane = self._lanes[id(connector), target] = _Lane(record.connector, target, connector)
        return lane

    def _make_room(self) -> None:
        if len(self._lanes) < LANES_MAX:
            return
        idle = [key for key, lane in self._lanes.items() if not (lane.active or lane.queue or lane.behind)]
        healthy = [key for key in idle if self._lanes[key].breaker.state == "closed"]
        if idle:
            self._drop((healthy or idle)[0])

    def _drop(self, key: tuple[int, str]) -> None:
        alarm = self._lanes.pop(key).alarm
        if alarm is not None:
            alarm.cancel()

    def _pump(self, lane: _Lane) -> None:
        """Make calls as far as the lane lets them."""
        if self._closed:
            return
        while lane.queue and lane.active < lane.connector.max_concurrent:
            now = self._clock.now()
            if not lane.breaker.admits(now):
                if lane.breaker.state == "open":
                    self._left_alone(lane)
                break
            job, _ = lane.queue.popitem(last=False)
            job.lane = None
            job.sent = True
            lane.active += 1
            self._spawn(self._run(lane, job))
        self._refill(lane)

    def _left_alone(self, lane: _Lane) -> None:
        """A target that is down keeps a few calls here; the others are in the store, and wait there."""
        while len(lane.queue) > LEFT_ALONE_MAX:
            self._forget(next(reversed(lane.queue)), ended=False)
            lane.behind = True
        if lane.alarm is None:
            lane.alarm = self._clock.call_at(lane.breaker.reopens, lambda: self._again(lane))

    def _refill(self, lane: _Lane) -> None:
        """Look into the store when it has calls for a lane that has room for them."""
        least = WAITING_MAX // 2 if lane.breaker.state == "closed" else 0
        if lane.behind and len(lane.queue) <= least:
            lane.behind = False
            self._wanted.add(lane)
            self._look()

    def _again(self, lane: _Lane) -> None:
        lane.alarm = None
        self._pump(lane)

    def _forget(self, job: _Job, *, ended: bool = True) -> None:
        """A call is not in memory any more. `ended`: nor wanted."""
        if job.lane is not None:
            del job.lane.queue[job]
            job.lane = None
        jobs = self._jobs.get(job.place)
        if jobs is None or job not in jobs:
            return
        jobs.remove(job)
        if not jobs:
            del self._jobs[job.place]
        self._count -= 1
        if self._scanning and ended:
            self._ended.add(job.place)
        self._look()

    def _look(self) -> None:
        """Read what is only in the store, when there is room again."""
        if self._lacks() and not self._catching and not self._closed:
            self._catching = True
            self._spawn(self._catch_up())

    def _lacks(self) -> bool:
        """Whether the store has calls that there is room for: for enough of them to be worth the look."""
        return (self._behind and self._count <= QUEUED_MAX // 2) or (
            bool(self._wanted) and self._count <= QUEUED_MAX - WAITING_MAX // 2
        )

    async def _catch_up(self) -> None:
        try:
            while self._lacks():
                try:
                    await self._take_up(whole=self._behind)
                except StoreError:
                    await asyncio.sleep(LOOK_PAUSE_S)
        finally:
            self._catching = False

    # ------------------------------------------------------------------------------------------------------------ calls

    async def _refused(self, job: _Job, failure: CallFailed) -> None:
        """A call that cannot be made at all."""
        try:
            await self._tell(job, _failed(job, failure))
        finally:
            self._forget(job)

    async def _run(self, lane: _Lane, job: _Job) -> None:
        try:
            try:
                command = await self._called(lane, job)
            except BaseException:
                lane.breaker.undecided()
                raise
            await self._tell(job, command)
        finally:
            self._forget(job)
            lane.active -= 1
            self._pump(lane)

    async def _called(self, lane: _Lane, job: _Job) -> CallReport:
        """Make the call; the command that reports it."""
        connector, record = lane.connector, job.record
        call = Call(record.key, record.request, record.attempt)
        delivery: Delivery = "at-most-once"
        try:
            delivery = connector.delivery(record.request)
            if delivery == "at-most-once":
                if record.begun:
                    lane.breaker.undecided()
                    return _unknown(job, "the engine stopped while the call was made")
                if not await self._tell(job, c.BeginCall(_ref(job))):
                    lane.breaker.undecided()
                    return _unknown(job, "it was taken back, or the record of its beginning is in doubt")
            answer: Answer | None = None
            if delivery == "verifiable" and self._repeats(job):
                answer = await self._within(connector, connector.verify(call))
            if answer is None:
                answer = await self._within(connector, connector.call(call))
            body = _checked(answer)
        except CallFailed as failure:
            if failure.blame:
                lane.breaker.failed(self._clock.now())
            elif failure.received == "no":
                lane.breaker.undecided()
            else:
                lane.breaker.succeeded()
            if delivery == "at-most-once" and failure.received == "maybe":
                return _unknown(job, failure.message)
            return _failed(job, failure)
        # A connector may be anybody's code: its fault is the call's failure.
        except (asyncio.CancelledError, Exception) as error:
            if isinstance(error, asyncio.CancelledError) and self._stopped():
                raise
            lane.breaker.undecided()
            crash = _crash(lane.name, error)
            return _unknown(job, crash.message) if delivery == "at-most-once" else _failed(job, crash)
        lane.breaker.succeeded()
        return c.CompleteCall(_ref(job), body, answer.status)

    def _stopped(self) -> bool:
        """Whether it is us who end this call, and not something in the connector."""
        task = asyncio.current_task()
        return self._closed or task is None or bool(task.cancelling())

    def _repeats(self, job: _Job) -> bool:
        """Whether this may not be the first time that the effect is asked for."""
        return job.recovered or job.record.attempt > 1

    async def _within(self, connector: Connector, work: Coroutine[object, object, T]) -> T:
        self.made += 1
        try:
            async with asyncio.timeout(connector.timeout):
                return await work
        except TimeoutError:
            message = f"there was no answer within {connector.timeout:g} s"
            raise CallFailed("timeout", message, received="maybe") from None

    async def _tell(self, job: _Job, command: CallReport) -> bool:
        """Report durably, however long that takes. False: the case does not want it, or is not there any more."""
        tenant, case_id, _, _ = job.place
        while True:
            try:
                await self._report(tenant, case_id, command)
                return True
            except (StoreUnavailable, Busy, Fenced, OutcomeUnknown):
                await asyncio.sleep(PAUSE_S)
            except WorkflowError:
                return False  # what the case has become is told to whoever touches it


def _ref(job: _Job) -> c.ItemRef:
    return c.ItemRef(job.place[2], job.place[3], job.record.attempt)


def _room(lane: _Lane) -> int:
    """How many calls may wait in a lane."""
    return WAITING_MAX if lane.breaker.state == "closed" else LEFT_ALONE_MAX


def _checked(answer: Answer) -> bytes:
    """The answer as case data may hold it. Raises CallFailed for one that is not: what would be made of it is a mistake
    that nobody is told of. How much of it comes into the data is checked when `result` has made something of it."""
    problem = "empty"
    if answer.body:
        try:
            return json_object(answer.body, max_bytes=len(answer.body))[1]
        except InvalidInput as error:
            problem = error.problems[0].code  # the rest may quote what is sensitive
    message = (
        f"the connector's answer cannot be used: it is no JSON object, nested at most {DEPTH_MAX} deep, with integers "
        f"of 64 bits ({problem})"
    )
    raise CallFailed(CRASHED, message, received="maybe", permanent=True, blame=False)


def _said(data: bytes) -> bytes:
    """What a connector's other side said about a failure, if a history can hold it."""
    try:
        return json_object(data, max_bytes=SAID_BYTES_MAX)[1] if data else data
    except InvalidInput:
        return b""


def _crash(name: str, error: Exception | asyncio.CancelledError) -> CallFailed:
    """A mistake of the connector itself, for the log and for the case."""
    tell_operator(f"connector {name!r} has failed", error)
    return CallFailed(CRASHED, f"the connector itself failed: {type(error).__name__}", received="maybe")


def _failed(job: _Job, failure: CallFailed) -> c.FailCall:
    message = failure.message[:SAID_CHARS_MAX]
    return c.FailCall(_ref(job), failure.code, message, _said(failure.data), failure.permanent, failure.pause)


def _unknown(job: _Job, why: str) -> c.FailCall:
    message = f"whether the call was made is unknown, and it must not be made twice: {why}"
    return c.FailCall(_ref(job), UNKNOWN, message, permanent=True)
