"""The journal: the only writer, and the place where a command becomes durable.

Units (one per command) are queued without blocking. One task per shard takes everything that is queued, joins it into
one `store.commit` and adds the batch record at `log | pos`: the hash chain, the truncation check and the order of
everything in one. While a commit is on its way the next group gathers, so the group grows with the load and an idle
journal costs nothing: it is woken, never polled. It has no thread and knows no wall clock, hence it runs the same in a
virtual-time loop.

What a future says:

    result                 the log position; the unit is durable, and `on_commit` callbacks have run
    ExpectationFailed      this unit alone was refused; nothing of it was written, the rest of its group was
    StoreUnavailable,      nothing of it was written and nothing ever will be
    StoreFull, Fenced
    TooLate                its deadline passed while it waited; nothing of it was written
    OutcomeUnknown         the journal ended before the store could tell; the request id tells after the next start

Once queued, cancelling the future changes nothing: the unit is written all the same.

When a commit ends with an unknown outcome the shard is fenced: what was not acknowledged waits, the store recovers, and
the batch record at our position decides. There: acknowledged. Not there: failed. Nothing is ever sent twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, Protocol

import msgspec

from knhk_workflow.errors import (
    Busy,
    DeadlineExceeded,
    Fenced,
    StoreCorrupt,
    StoreError,
    StoreFormat,
    StoreFull,
    StoreUnavailable,
)
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.store.codec import (
    GENESIS,
    Lease,
    LogEntry,
    LogRecord,
    seal_keys,
    seal_lease,
    seal_log,
    unseal_keys,
    unseal_lease,
    unseal_log,
)
from knhk_workflow.store.keys import Keyspace
from knhk_workflow.store.store import Expectation, ExpectationFailed, OutcomeUnknown, Store, Write

RECOVER_PAUSE_S: Final = 0.05  # first pause between attempts to recover; doubles
RECOVER_PAUSE_MAX_S: Final = 1.0  # a disk that has space again is noticed within 5 s, with margin
GATHER_S: Final = 0.004  # longest wait for company: ten calls over gRPC
GATHER_EACH_S: Final = 0.0005  # and for each unit of company that was there before: what one call takes
SWEEP_ENTRIES: Final = 16  # expiry entries per sweep; each names up to a group's worth of requests


class JournalLimits(msgspec.Struct, frozen=True):
    """Bounds of the journal. All of them can be set; the defaults carry their reason."""

    batch_units: int = 1_024
    """Most units per commit: with 2,048 and 4,096 no gain was seen, while a commit took 12 ms, 31 ms and 56 ms."""
    batch_bytes: int = 4 * 1024 * 1024
    """Most bytes per commit, half a LevelDB write buffer; a larger unit goes alone."""
    queue_units: int = 8_192
    """Units that may wait, over all shards: under half a second of work. More is Busy."""
    queue_bytes: int = 64 * 1024 * 1024
    """Bytes that may wait, over all shards."""
    linger_s: float = 0.0
    """Fixed wait for company before a commit that is not full; 0 waits as `_Shard._gather` says: not at all for whoever
    calls alone."""
    request_window_s: int = 24 * 3_600
    """How long an idempotency record is kept before the expiry index names it."""


HeadChange = tuple[bytes, bytes | None, bytes | None]
"""The key of a case's head, its value before, and the one afterwards; None: there is no such case."""


class Unit(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What one command writes. Atomic: all of it or nothing.

    A unit without a case (a definition, audit entries, a sweep) leaves `case_id` empty; with an empty digest it has no
    entry in the batch record. The request record named by `request` is among `writes`; the journal adds it to the
    expiry index.
    """

    shard: int
    tenant: str
    case_id: str
    first_sequence: int
    count: int
    digest: bytes
    writes: Sequence[Write]
    expect: Sequence[Expectation] = ()
    request: bytes | None = None
    audits: tuple[bytes, ...] = ()
    size: int = 0
    """About how many bytes the writes hold, when the caller knows; 0 = count them."""
    deadline: int = 0
    """In nanoseconds of the journal's clock: a unit that still waits then is dropped, and nothing of it is written;
    0 = it waits as long as it takes."""
    head: HeadChange | None = None
    """What becomes of the head of its case, when that changes."""

    @classmethod
    def aside(
        cls,
        shard: int,
        tenant: str,
        writes: Sequence[Write],
        expect: Sequence[Expectation] = (),
        request: bytes | None = None,
        audits: tuple[bytes, ...] = (),
        *,
        case_id: str = "",
    ) -> Unit:
        """One without an entry in the batch record."""
        return cls(shard, tenant, case_id, 0, 0, b"", writes, expect, request, audits)


class TooLate(DeadlineExceeded, StoreError):
    """The caller's deadline passed while the unit waited for its commit."""

    reason = DeadlineExceeded.reason
    retry = True


Outcome = int | StoreError
"""Of one unit: its log position, or why nothing of it was written."""


class Waiter(Protocol):
    """Who is told the outcome of a queued unit, on the event loop, before anybody whom a future wakes."""

    def settle(self, outcome: Outcome) -> None:
        """The unit has this outcome. Must not block or raise."""
        ...


Subscriber = Callable[[int, int, Sequence[Unit]], None]
"""Called with (shard, position, units) once they are durable, before their futures wake anyone. Must not block."""


class Journal:
    """The only writer of a store. Create it with `await Journal.open(...)` on the event loop that uses it."""

    def __init__(self, store: Store, clock: Callable[[], int], limits: JournalLimits) -> None:
        """Use `open`."""
        self._store = store
        self._keys = Keyspace(store.shards)
        self._clock = clock
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._shards: dict[int, _Shard] = {}
        self._subscribers: list[Subscriber] = []
        self._room = _Room(limits.queue_units, limits.queue_bytes)
        self._closed = False

    @classmethod
    async def open(
        cls,
        store: Store,
        clock: Callable[[], int],
        *,
        limits: JournalLimits | None = None,
        owner: str = "",
        shards: Iterable[int] | None = None,
    ) -> Journal:
        """Read the end of every shard's log and claim its lease with the next epoch.

        `clock` yields nanoseconds since the epoch, `owner` names this instance for people, `shards` defaults to all.
        Raises StoreCorrupt when a log's end does not check, Fenced when somebody else claims at the same moment.
        """
        journal = cls(store, clock, limits or JournalLimits())
        try:
            for number in journal._keys.all_shards() if shards is None else shards:
                lease_key = journal._keys.lease(number)
                held = await store.get(lease_key)
                epoch = unseal_lease(lease_key, held).epoch if held is not None else 0
                lease = seal_lease(Lease(epoch + 1, owner, clock()))
                try:
                    await store.commit([(lease_key, lease)], [(lease_key, held)], True)
                except ExpectationFailed as error:
                    raise Fenced(f"shard {number} was claimed by somebody else at the same moment") from error
                position, previous = 0, GENESIS
                last = await store.scan(*journal._keys.log_range(number), limit=1, reverse=True)
                if last:
                    key, value = last[0]
                    _, previous = unseal_log(key, value)
                    position = int.from_bytes(key[-8:], "big")
                journal._shards[number] = _Shard(journal, number, epoch + 1, (lease_key, lease), position, previous)
        except BaseException:
            await journal.close()  # the shards that were claimed already have a task each
            raise
        return journal

    def append(self, unit: Unit) -> asyncio.Future[int]:
        """Queue a unit; never blocks. Raises as `put`."""
        future: asyncio.Future[int] = self._loop.create_future()
        self.put(unit, _Single(future))
        return future

    def put(self, unit: Unit, waiter: Waiter) -> None:
        """Queue a unit and tell `waiter` its outcome; never blocks.

        Raises Busy when the queue is full, StoreUnavailable (or StoreFull, Fenced) when the shard cannot write now: in
        both cases nothing was queued.
        """
        shard = self._shards.get(unit.shard)
        if shard is None or shard.refusal is not None or self._closed:
            raise self._refused(unit.shard)
        size = unit.size or _size(unit)
        self._room.take(1, size)
        shard.put((unit, size, waiter))

    def put_all(self, units: Sequence[tuple[Unit, Waiter]]) -> None:
        """As `put`, all of them or none."""
        sized = [(unit, unit.size or _size(unit), waiter) for unit, waiter in units]
        for unit, _, _ in sized:
            shard = self._shards.get(unit.shard)
            if shard is None or shard.refusal is not None or self._closed:
                raise self._refused(unit.shard)
        self._room.take(len(sized), sum(size for _, size, _ in sized))
        for queued in sized:
            self._shards[queued[0].shard].put(queued)

    def on_commit(self, subscriber: Subscriber) -> None:
        """Call `subscriber` after every commit, in the order of positions of a shard. What it raises goes to the event
        loop's exception handler and changes nothing."""
        self._subscribers.append(subscriber)

    def position(self, shard: int) -> int:
        """The newest durable log position of a shard; 0 before the first."""
        return self._shards[shard].position

    def head(self, shard: int) -> tuple[int, bytes]:
        """The newest durable log position of a shard and the hash of its batch record."""
        found = self._shards[shard]
        return found.position, found.previous

    def outage(self) -> StoreError | None:
        """Why a shard cannot write at the moment, or None."""
        reasons = (shard.refusal or shard.shortage for shard in self._shards.values())
        return next((reason for reason in reasons if reason is not None), None)

    async def flush(self) -> None:
        """Return once everything queued before this call has its outcome."""
        await asyncio.gather(*(shard.settled() for shard in self._shards.values()))

    async def close(self) -> None:
        """Write what is queued, then end. During an outage what waits fails with OutcomeUnknown or StoreUnavailable.
        The store stays open. Twice is fine."""
        self._closed = True
        await asyncio.gather(*(shard.close() for shard in self._shards.values()))

    async def sweep_requests(self, shard: int) -> int:
        """Delete expired idempotency records of a shard, a bounded portion per call; how many went, 0 when done. An
        entry of the index that is damaged stays."""
        start, end = self._keys.request_expiries(shard, self._clock() // NS_PER_S)
        expired = await self._store.scan(start, end, limit=SWEEP_ENTRIES)
        writes: list[Write] = []
        requests = 0
        for key, value in expired:
            try:
                named = unseal_keys(key, value)
            except (StoreCorrupt, StoreFormat):
                continue  # examining the store tells of it
            requests += len(named)
            writes.extend((request, None) for request in named)
            writes.append((key, None))
        if writes:
            await self.append(Unit.aside(shard, "", writes))
        return requests

    def _refused(self, number: int) -> StoreError:
        """Why a shard takes no units."""
        shard = self._shards.get(number)
        if shard is None:
            return Fenced(f"shard {number} is not held by this instance")
        if shard.refusal is not None:
            return _again(shard.refusal)
        return StoreUnavailable("the journal is closed")


class _Single:
    """Tells a future. A cancelled call has a done one."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[int]) -> None:
        self._future = future

    def settle(self, outcome: Outcome) -> None:
        if self._future.done():
            return
        if isinstance(outcome, int):
            self._future.set_result(outcome)
        else:
            self._future.set_exception(outcome)


class Batch:
    """Collects the outcomes of `count` units; `told` has them all, in order, once the last one is known."""

    __slots__ = ("_missing", "_outcomes", "told")

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.told: asyncio.Future[list[Outcome]] = loop.create_future()
        self._missing = count
        self._outcomes: list[Outcome] = [0] * count
        if not count:
            self.told.set_result([])

    def element(self, index: int) -> Waiter:
        """Who waits for one of them."""
        return _Element(self, index)

    def settle(self, index: int, outcome: Outcome) -> None:
        """One of them has this outcome."""
        self._outcomes[index] = outcome
        self._missing -= 1
        if not self._missing and not self.told.done():
            self.told.set_result(self._outcomes)


class _Element:
    __slots__ = ("_batch", "_index")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index

    def settle(self, outcome: Outcome) -> None:
        self._batch.settle(self._index, outcome)


_Queued = tuple[Unit, int, Waiter]
"""(unit, its size in bytes, who waits)"""


class _Room:
    """What may wait, over all shards."""

    __slots__ = ("_bytes", "_bytes_max", "_units", "_units_max")

    def __init__(self, units_max: int, bytes_max: int) -> None:
        self._units = self._bytes = 0
        self._units_max = units_max
        self._bytes_max = bytes_max

    def take(self, units: int, size: int) -> None:
        # An empty queue accepts anything, so that a unit or batch larger than the bound is slow but not impossible.
        if self._units and (self._units + units > self._units_max or self._bytes + size > self._bytes_max):
            raise Busy("the journal's queue")
        self._units += units
        self._bytes += size

    def give(self, units: int, size: int) -> None:
        self._units -= units
        self._bytes -= size


class _Attempt(msgspec.Struct, eq=False):
    """One commit: the units in it and what is sent."""

    group: list[_Queued]
    writes: list[Write]
    expect: list[Expectation]
    log_key: bytes
    log_value: bytes
    hashed: bytes


class _Shard:
    """One shard's queue, task and place in its log."""

    def __init__(
        self, journal: Journal, number: int, epoch: int, lease: tuple[bytes, bytes], position: int, previous: bytes
    ) -> None:
        self._journal = journal
        self._store = journal._store
        self._keys = journal._keys
        self._limits = journal._limits
        self._room = journal._room
        self.number = number
        self.epoch = epoch
        self._lease = lease
        self.position = position
        self.previous = previous
        self.queue: list[_Queued] = []
        self._waits = 0
        """How many bytes are in the queue."""
        self._taken = 0
        """How many units ever left the queue."""
        self._settled = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self.sleeping: asyncio.Future[None] | None = None
        self.gathering: asyncio.Future[None] | None = None
        self.company = 1
        """How many units there were at once lately: in the last group, and come while it was written."""
        self.refusal: StoreError | None = None
        """Set while the shard cannot write: new units are refused with it."""
        self.shortage: StoreUnavailable | None = None
        """Set while the store itself refuses. New units are tried all the same: they may be the first to succeed."""
        self.closing = False
        self._task = journal._loop.create_task(self._run(), name=f"journal-{number}")

    def put(self, queued: _Queued) -> None:
        """Queue a unit, and let the task know if it waits for one."""
        queue = self.queue
        queue.append(queued)
        self._waits += queued[1]
        if self.sleeping is not None:
            self.wake()
        elif self.gathering is not None and len(queue) >= self.company:
            self.gathered()

    def wake(self) -> None:
        if self.sleeping is not None and not self.sleeping.done():
            self.sleeping.set_result(None)
        self.sleeping = None

    def gathered(self) -> None:
        if self.gathering is not None and not self.gathering.done():
            self.gathering.set_result(None)

    async def settled(self) -> None:
        """Return once everything queued so far has its outcome."""
        count = self._taken + len(self.queue)
        if self._settled < count:
            future: asyncio.Future[None] = self._journal._loop.create_future()
            self._waiting.append((count, future))
            await future

    async def close(self) -> None:
        self.closing = True
        self.wake()
        self.gathered()
        if self.refusal is not None:
            self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        group: list[_Queued] = []
        attempt: _Attempt | None = None
        try:
            while True:
                while not self.queue:
                    if self.closing:
                        return
                    self.sleeping = self._journal._loop.create_future()
                    if self.shortage is None:
                        await self.sleeping
                        self.sleeping = None
                        continue
                    # Whoever is told that nothing can be written sends nothing more: then nobody else would notice.
                    await asyncio.wait([self.sleeping], timeout=RECOVER_PAUSE_MAX_S)
                    self.sleeping = None
                    if self.shortage is not None and not self.queue and not self.closing:
                        await self._probe()
                await self._gather()
                group = self._take()
                units = len(group)
                group = self._in_time(group)
                while group:
                    attempt, group = self._attempt(group)
                    if attempt is None:
                        break
                    group = await self._commit(attempt)
                    attempt = None
                self.company = units + len(self.queue)
        except Exception as error:
            self.refusal = StoreUnavailable(f"the journal of shard {self.number} stopped: {error!r}")
            raise
        finally:
            # Ends here by close(), by cancellation from outside or by an error of ours: nobody may be left waiting.
            self.refusal = self.refusal or StoreUnavailable("the journal is closed")
            closed = self.refusal
            if attempt is None:
                self._fail(group, lambda: _again(closed))
            else:
                unknown = f"the journal ended while position {self.position + 1} of shard {self.number} was on its way"
                self._fail(attempt.group, lambda: OutcomeUnknown(unknown, full=False))
            self._refuse_queued()

    async def _gather(self) -> None:
        """Wait for as many units as there were at once lately, but not long.

        A commit costs as much processor time as a dozen units in it, and a sync can take less time than a call. Then
        each of many callers would get a commit of his own, and all of them would wait for the processor instead of the
        disk. Whoever calls alone never waits: there was no company.
        """
        if self.closing or len(self.queue) >= self._limits.batch_units:
            return
        if self._limits.linger_s:
            await asyncio.sleep(self._limits.linger_s)
            return
        if len(self.queue) >= self.company:
            return
        loop = self._journal._loop
        self.gathering = loop.create_future()
        timer = loop.call_later(min(GATHER_S, GATHER_EACH_S * self.company), self.gathered)
        try:
            await self.gathering
        finally:
            timer.cancel()
            self.gathering = None

    def _take(self) -> list[_Queued]:
        """As much of the queue as one commit may hold, at least one unit."""
        queue, limits = self.queue, self._limits
        if len(queue) <= limits.batch_units and self._waits <= limits.batch_bytes:
            return self._take_all()
        room, count = limits.batch_bytes, 0
        for _, size, _ in queue[: limits.batch_units]:
            room -= size
            if room < 0 and count:
                break
            count += 1
            self._waits -= size
        group, self.queue = queue[:count], queue[count:]
        self._taken += count
        return group

    def _take_all(self) -> list[_Queued]:
        group, self.queue, self._waits = self.queue, [], 0
        self._taken += len(group)
        return group

    def _in_time(self, group: list[_Queued]) -> list[_Queued]:
        """The group without those whose caller has stopped waiting: these fail here."""
        now = self._journal._clock()
        late = [queued for queued in group if queued[0].deadline and queued[0].deadline <= now]
        if not late:
            return group
        self._fail(late, _too_late)
        return [queued for queued in group if not (queued[0].deadline and queued[0].deadline <= now)]

    def _attempt(self, group: list[_Queued]) -> tuple[_Attempt | None, list[_Queued]]:
        """The commit of a group, and the group without units that cannot hold beside those before them: these fail
        here. None when no unit is left.

        A unit may build on an earlier one of its group: what that one writes answers its expectations.
        """
        lease_key, lease_value = self._lease
        known: dict[bytes, bytes | None] = {lease_key: lease_value}
        expect: list[Expectation] = [self._lease]
        writes: list[Write] = []
        entries: list[LogEntry] = []
        audits: tuple[bytes, ...] = ()
        requests: list[bytes] = []
        kept: list[_Queued] = []
        for queued in group:
            unit = queued[0]
            wrong = [key for key, value in unit.expect if key in known and known[key] != value]
            if wrong:
                self._fail([queued], partial(ExpectationFailed, wrong))
                continue
            for pair in unit.expect:
                if pair[0] not in known:
                    known[pair[0]] = pair[1]
                    expect.append(pair)
            known.update(unit.writes)
            writes += unit.writes
            if unit.digest:
                entries.append(LogEntry(unit.tenant, unit.case_id, unit.first_sequence, unit.count, unit.digest))
            if unit.request is not None:
                requests.append(unit.request)
            if unit.audits:
                audits += unit.audits
            kept.append(queued)
        if not kept:
            return None, kept
        pos = self.position + 1
        now = self._journal._clock()
        if requests:
            expiry = now // NS_PER_S + self._limits.request_window_s
            writes.append((self._keys.request_expiry(self.number, expiry, pos), seal_keys(requests)))
        log_key = self._keys.log(self.number, pos)
        log_value, hashed = seal_log(LogRecord(self.previous, tuple(entries), audits, now, self.epoch))
        writes.append((log_key, log_value))  # last: the store finds it there for its head
        return _Attempt(kept, writes, expect, log_key, log_value, hashed), kept

    async def _commit(self, attempt: _Attempt) -> list[_Queued]:
        """Write it and settle its units; those that are still to be written come back."""
        try:
            await self._store.commit(attempt.writes, attempt.expect, True)
        except ExpectationFailed as error:
            return self._without_refused(attempt.group, error)
        except StoreUnavailable as error:
            refused = self.shortage = error  # nothing was written
            self._fail(attempt.group, lambda: _again(refused))
        except Exception as error:  # noqa: BLE001  # whatever it is, the outcome is unknown: the store is asked
            await self._resolve(attempt, error)
        else:
            self._acknowledge(attempt)
        return []

    async def _probe(self) -> None:
        """Ask a store that refused whether it would write again, without anything to write."""
        try:
            await self._store.recover()
            await self._store.commit((), (), False)
        except StoreUnavailable as error:
            self.shortage = error
        except (StoreError, OSError):
            return  # the next unit meets the same, and `_resolve` knows what to do with it
        else:
            self.shortage = None

    def _acknowledge(self, attempt: _Attempt) -> None:
        self.shortage = None
        self.position = pos = self.position + 1
        self.previous = attempt.hashed
        group = attempt.group
        if self._journal._subscribers:
            units = [queued[0] for queued in group]
            for subscriber in self._journal._subscribers:
                try:
                    subscriber(self.number, pos, units)
                except Exception as error:  # noqa: BLE001  # a watcher's mistake must not stop the writer
                    self._journal._loop.call_exception_handler(
                        {"message": f"a subscriber of the journal failed at position {pos}", "exception": error}
                    )
        size = 0
        for _, unit_size, waiter in group:
            size += unit_size
            waiter.settle(pos)
        self._done(len(group), size)

    def _without_refused(self, group: list[_Queued], error: ExpectationFailed) -> list[_Queued]:
        """Fail the units whose own expectation did not hold; the others may go on."""
        refused = set(error.keys)
        if self._lease[0] in refused:
            taken = f"shard {self.number} was taken over by another instance; its cases are there now"
            self.refusal = Fenced(taken)
            self._fail(group, lambda: Fenced(taken))
            self._refuse_queued()
            return []
        left: list[_Queued] = []
        answered: set[bytes] = set()  # keys that an earlier unit decided: not refused by the store
        for queued in group:
            unit = queued[0]
            wrong = [key for key, _ in unit.expect if key in refused and key not in answered]
            answered.update(key for key, _ in unit.expect)
            answered.update(key for key, _ in unit.writes)
            if wrong:
                self._fail([queued], partial(ExpectationFailed, wrong))
            else:
                left.append(queued)
        if len(left) == len(group):  # a store that names keys nobody asked about: failing is all that ends
            self._fail(group, lambda: ExpectationFailed(error.keys))
            return []
        return left

    async def _resolve(self, attempt: _Attempt, error: Exception) -> None:
        """After an unknown outcome: wait for the store, then let the batch record at our position decide."""
        pause = RECOVER_PAUSE_S
        full = isinstance(error, OutcomeUnknown) and error.full
        while True:
            try:
                await self._store.recover()
                held = await self._store.get(attempt.log_key)
                break
            except (StoreUnavailable, OSError) as outage:  # temporary
                self.refusal = outage if isinstance(outage, StoreUnavailable) else StoreUnavailable(str(outage))
            except StoreError as broken:  # final: corrupt, locked by somebody else, wrong format
                self.refusal = broken
                message = f"the outcome of the last write cannot be found out: {broken.message}"
                self._fail(attempt.group, partial(OutcomeUnknown, message, full=False))
                self._refuse_queued()
                return
            if self.closing:
                self._fail(attempt.group, lambda: OutcomeUnknown("the journal closed during an outage", full=full))
                self._refuse_queued()  # what waits must not be written behind an unknown outcome
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, RECOVER_PAUSE_MAX_S)
        self.refusal = None
        if held == attempt.log_value:
            self._acknowledge(attempt)
        elif held is not None:
            other = f"another instance wrote position {self.position + 1} of shard {self.number}"
            self.refusal = Fenced(other)
            self._fail(attempt.group, lambda: Fenced(other))
            self._refuse_queued()
        elif full:
            self._fail(attempt.group, lambda: StoreFull("no space left on the volume; nothing was written"))
        else:
            self._fail(attempt.group, lambda: StoreUnavailable(f"the write failed and was not applied: {error}"))

    def _refuse_queued(self) -> None:
        """Fail everything that waits, with the shard's refusal."""
        refusal = self.refusal
        if refusal is not None and self.queue:
            self._fail(self._take_all(), lambda: _again(refusal))

    def _fail(self, group: Sequence[_Queued], make: Callable[[], StoreError]) -> None:
        """Each waiter gets an error of its own: one that several raise collects all their tracebacks."""
        size = 0
        for _, unit_size, waiter in group:
            size += unit_size
            waiter.settle(make())
        self._done(len(group), size)

    def _done(self, units: int, size: int) -> None:
        self._room.give(units, size)
        self._settled += units
        if self._waiting:
            still: list[tuple[int, asyncio.Future[None]]] = []
            for count, future in self._waiting:
                if count > self._settled:
                    still.append((count, future))
                elif not future.done():
                    future.set_result(None)
            self._waiting = still


def _too_late() -> TooLate:
    return TooLate("the deadline passed before the commit; nothing was changed")


def _size(unit: Unit) -> int:
    size = 0
    for key, value in unit.writes:
        size += len(key)
        if value is not None:
            size += len(value)
    return size


def _again(error: StoreError) -> StoreError:
    """An equal error without the traceback of the first."""
    return type(error)(error.message, **error.details)
