"""Dispatch: offered work to the workers that want it, and back on offer when they are gone.

    committed step -> offers (in memory) -> a worker's turn -> LeaseItem (durable, many in one commit) -> the worker
    stream ended, lease over -> ReturnItem (durable) -> the same work as its next attempt -> offers

Live cases tell of every commit, so nothing is polled. When a new wish comes, what is on offer already is read once from
the rows of the work list, in pages, while workers are busy with what was found; what does not fit into memory is read
later. Once the engine is open the leases of before are read from the same rows.

A lease that the case refuses for now (it is suspended, a lock is held, a cascade goes on) waits for the case's next
commit. A worker without a name loses its items with its connection. One with a name keeps them until their leases end,
and whoever connects under that name, as the same principal, gets them again with the leases begun anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Final

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.core.case import Case
from knhk_workflow.core.step import ItemInNet
from knhk_workflow.errors import (
    Busy,
    Fenced,
    InvalidInput,
    NotFound,
    RoleRequired,
    Stale,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
    WorkflowError,
    WrongState,
)
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.inputs import checked_id, json_object, parse_item_id
from knhk_workflow.runtime.leases import (
    PERIOD_DEFAULT,
    PERIOD_MAX,
    PERIOD_MIN,
    Lease,
    Leases,
    Place,
    WorkerKey,
)
from knhk_workflow.runtime.live import LiveCase
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.offers import Group, Offers, Task, Wish
from knhk_workflow.runtime.records import ITEMS, ItemRow
from knhk_workflow.runtime.results import CompleteRequest, FailRequest
from knhk_workflow.runtime.views import WorkItemView
from knhk_workflow.store import Keyspace, OutcomeUnknown, Reads
from knhk_workflow.store.keys import ITEM, kind_of, parse_item, past_kind, shard_range
from knhk_workflow.store.store import Range

CREDIT_MAX: Final = 10_000  # items under way at one worker
TASKS_MAX: Final = 1_000  # names in one subscription
TASK_NAME_MAX: Final = 520  # characters of a workflow's id and a task's
SCAN_ROWS: Final = 512  # per read; about 2 ms of the event loop
AT_ONCE: Final = 256  # commands given to the engine together: they share commits, and others get their turn
PAUSE_S: Final = 0.5  # before what the store could not write is tried again
UNREAD_MAX: Final = 1_024  # items that wait for a worker to read them; one that does not read gets no more
UNREAD_BYTES: Final = 16 * 1024 * 1024  # the same, of their inputs
PRINCIPAL: Final = "system:lease"

Command = c.LeaseItem | c.ReturnItem | c.CompleteItem | c.FailItem
Carry = Callable[[Sequence[tuple[str, Command, CallMeta]]], Awaitable[list[WorkItemView | WorkflowError]]]
"""Carries commands on work items of cases out, durably; an error is that element's answer."""

Result = Callable[[c.ItemRef], c.CompleteItem | c.FailItem]
"""The command that says what came of an item. Raises InvalidInput."""

_LATER = (StoreUnavailable, Busy, Fenced, OutcomeUnknown)


class WorkSubscription(msgspec.Struct, frozen=True):
    """What a worker wants: items of `tasks` (`task`, or `workflow/task`), as many as its `credit` at once, each leased
    for `lease` nanoseconds. `roles`: only items that one of them may take; none = the caller's, if it has any.

    `worker_id` names the worker across its connections; without one, its items go back with the connection.
    """

    tasks: tuple[str, ...]
    credit: int = 1
    lease: int = PERIOD_DEFAULT
    worker_id: str = ""
    roles: tuple[str, ...] = ()


class LeasedItem(msgspec.Struct, frozen=True):
    """An item in a worker's hands. `redelivered`: it had it before its connection broke."""

    item: WorkItemView
    until: int
    redelivered: bool = False


class Delivery(msgspec.Struct, frozen=True):
    """What happened to a worker since it looked last: items to do, items to stop working on, and its credit."""

    items: tuple[LeasedItem, ...]
    revoked: tuple[str, ...]
    credit: int


class WorkSession:
    """A worker's connection. `news` is set when there is something to `take`, or the session has ended.

    Made by `WorkflowEngine.open_work`; `close` it. Nothing but `complete` and `fail` touches the store.
    """

    def __init__(self, dispatch: Dispatch, meta: CallMeta, worker: WorkerKey) -> None:
        self.news = asyncio.Event()
        self.error: WorkflowError | None = None
        """Why it has ended; None while it lives."""
        self.meta = meta
        self.worker = worker
        self.held: dict[Place, Lease] = {}
        self.reserved = 0  # items on their way to it
        self.capacity = 0
        self.draining = False
        self.final = False  # what ends gives no credit back
        self.group: Group | None = None
        self.lease = PERIOD_DEFAULT
        self._dispatch = dispatch
        self._fresh: list[LeasedItem] = []
        self._unread_bytes = 0
        self._revoked: list[str] = []

    @property
    def credit(self) -> int:
        """How many more items it takes now."""
        if self.draining or self.error is not None:
            return 0
        return max(0, self.capacity - len(self.held) - self.reserved)

    @property
    def stuffed(self) -> bool:
        """Too much waits for it to be read."""
        return self._unread_bytes >= UNREAD_BYTES

    @property
    def room(self) -> int:
        """How many items it may be given now: its credit, unless it does not read what it was given already."""
        if self.stuffed:
            return 0
        return min(self.credit, min(self.capacity, UNREAD_MAX) - len(self._fresh) - self.reserved)

    @property
    def finished(self) -> bool:
        """It gets no further items and has none."""
        over = self.draining or (self.final and self.capacity <= 0)
        return over and not self.held and not self.reserved

    def take(self) -> Delivery:
        """What is new. What was revoked before it was taken is not mentioned."""
        self.news.clear()
        fresh, self._fresh = self._fresh, []
        self._unread_bytes = 0
        if fresh:
            self._dispatch.turn(self)
        revoked, self._revoked = self._revoked, []
        known = tuple(each for each in fresh if self._has(each.item.item_id))
        return Delivery(known, tuple(revoked), self.credit)

    def subscribe(self, wanted: WorkSubscription) -> None:
        """Other wishes from now on; what it has stays. Raises InvalidInput."""
        self._dispatch.subscribe(self, wanted)

    def add_credit(self, more: int) -> None:
        """So many more items at once. Raises InvalidInput beyond the most."""
        if self.capacity + more > CREDIT_MAX:
            raise InvalidInput.field("add_credit", f"would make the credit larger than {CREDIT_MAX}")
        self.capacity += more
        self._dispatch.turn(self)

    def drain(self) -> None:
        """No further items; it is `finished` when those under way have ended."""
        self.draining = True
        self._dispatch.rest(self)
        self.news.set()

    def no_more(self) -> None:
        """What ends gives no credit back from now on, because the worker can say nothing any more."""
        self.final = True
        self.news.set()

    async def complete(self, requests: Sequence[CompleteRequest]) -> list[WorkItemView | WorkflowError]:
        """Items done; one's error is its own answer. Different cases share commits."""
        results = [(each.item_id, each.request_id, _completion(each)) for each in requests]
        return await self._dispatch.ended(self, results)

    async def fail(self, requests: Sequence[FailRequest]) -> list[WorkItemView | WorkflowError]:
        """Items failed; one's error is its own answer."""
        results = [(each.item_id, each.request_id, _failure(each)) for each in requests]
        return await self._dispatch.ended(self, results)

    def extend(self, name: str, period: int | None = None) -> None:
        """The lease of an item begins anew (None: with the subscription's period); 0 gives the item back.

        Raises InvalidInput, NotFound, Stale when this worker does not have it (any more).
        """
        place, attempt = self._dispatch.place(name, self.meta)
        lease = self.held.get(place)
        if lease is None or lease.attempt != attempt or lease.over:
            raise Stale("work item", name, "leased to this worker", "not, or not any more", "stop working on it")
        self._dispatch.extend(lease, self.lease if period is None else period)

    async def close(self) -> None:
        """The worker is gone. Twice is fine."""
        self._dispatch.leave(self)

    # -- for the dispatch ---------------------------------------------------------------------------------------------

    def receive(self, lease: Lease, item: WorkItemView, redelivered: bool) -> None:
        """An item is in its hands."""
        self.held[lease.place] = lease
        self._fresh.append(LeasedItem(item, lease.until, redelivered))
        self._unread_bytes += len(item.data)
        self.news.set()

    def lost(self, lease: Lease) -> None:
        """A lease of it has ended: by its own result, or by what somebody else did."""
        if self.held.pop(lease.place, None) is None:
            return
        if not lease.ending:
            self._revoked.append(lease.item_id)
        if self.final:
            self.capacity -= 1
        self._dispatch.turn(self)
        self.news.set()

    def end(self, error: WorkflowError) -> None:
        """It is over; the worker is told why."""
        self.error = error
        self.news.set()

    def _has(self, name: str) -> bool:
        place, attempt = self._dispatch.place(name, self.meta)
        lease = self.held.get(place)
        return lease is not None and lease.attempt == attempt


class Dispatch:
    """The offers, leases and workers of one engine."""

    def __init__(
        self,
        reads: Reads,
        keyspace: Keyspace,
        clock: Clock,
        carry: Carry,
        look: Callable[[str, CallMeta], Awaitable[WorkItemView]],
        peek: Callable[[str, str], LiveCase | None],
        spawn: Callable[[Coroutine[object, object, None]], asyncio.Task[None]],
    ) -> None:
        """`carry`, `look` (one item with its data) and `peek` (a case in memory) are the engine's; so is `spawn`."""
        self._reads = reads
        self._keys = keyspace
        self._carry = carry
        self._look = look
        self._peek = peek
        self._spawn = spawn
        self._offers = Offers()
        self._leases = Leases(clock, self._expired)
        self._sessions: dict[WorkSession, None] = {}
        self._named: dict[WorkerKey, WorkSession] = {}
        self._holders: dict[Place, WorkSession] = {}
        # Offers that wait for a commit of their case, in the order in which they began to.
        self._parked: dict[tuple[str, str], dict[Place, None]] = {}
        self._scans: dict[str, _Scan] = {}
        self._listening = False  # once somebody has subscribed
        self._restored = asyncio.Event()
        self._handing = False
        self._closed = False

    # -- workers ------------------------------------------------------------------------------------------------------

    async def open(self, wanted: WorkSubscription, meta: CallMeta) -> WorkSession:
        """A connection of a worker. Another one under the same name ends: it is the same worker."""
        checked_id(wanted.worker_id, "worker_id", empty=True)
        name = wanted.worker_id
        worker = WorkerKey(meta.tenant, meta.principal, name)
        session = WorkSession(self, msgspec.structs.replace(meta, deadline=0, request_id=""), worker)
        _checked(wanted)
        await self._restored.wait()
        if self._closed:
            raise StoreUnavailable("the engine is closing")
        self._sessions[session] = None
        try:
            if name:
                before = self._named.get(worker)
                self._named[worker] = session
                if before is not None:
                    before.end(Stale("worker", name, "connected once", "connected again elsewhere", "name each worker"))
                    self.leave(before)
                session.lease = wanted.lease
                await self._redeliver(session, worker)
                if session.error is not None:  # it connected again elsewhere meanwhile, or the engine ends
                    raise session.error
            self.subscribe(session, wanted)
        except BaseException:
            self.leave(session)
            raise
        session.news.set()
        return session

    def subscribe(self, session: WorkSession, wanted: WorkSubscription) -> None:
        """What a worker wants from now on."""
        tasks, roles = _checked(wanted)
        own = frozenset(session.meta.roles)
        if own and roles - own:
            raise RoleRequired("subscription", wanted.worker_id, sorted(roles - own))
        if wanted.worker_id != session.worker.name:
            raise InvalidInput.field("worker_id", "cannot change on a stream", "open another one")
        wish = Wish(session.worker.tenant, tasks, roles or own)
        self._listening = True
        before = session.group
        session.group, new = self._offers.join(wish)
        if before is not None:
            self._offers.leave(before, session)
        session.lease = wanted.lease
        session.capacity = wanted.credit
        if new:
            self._read_from_start(wish.tenant)
        self.turn(session)

    def turn(self, session: WorkSession) -> None:
        """A worker may have room for items."""
        if session.room > 0 and session.group is not None and session.error is None:
            self._offers.ready(session.group, session)
            self._meet()

    def rest(self, session: WorkSession) -> None:
        """A worker takes no items for now."""
        if session.group is not None:
            self._offers.rest(session.group, session)

    def leave(self, session: WorkSession) -> None:
        """A worker's connection is over."""
        if session not in self._sessions:
            return
        del self._sessions[session]
        if session.error is None:
            session.error = StoreUnavailable("the worker has left")
        if session.group is not None:
            self._offers.leave(session.group, session)
            session.group = None
        held, session.held = tuple(session.held.values()), {}
        for lease in held:
            self._holders.pop(lease.place, None)
        if not session.worker.name:
            self._give_back(held, "gone")
        elif self._named.get(session.worker) is session:
            del self._named[session.worker]

    def extend(self, lease: Lease, period: int) -> None:
        """A lease begins anew; 0 gives the item back."""
        if not period:
            lease.ending = True  # the worker knows: it need not be told
            self._give_back((lease,), "given back")
            return
        _checked_period(period)
        self._leases.extend(lease, period)

    def place(self, name: str, meta: CallMeta) -> tuple[Place, int]:
        """Where an item is, and its attempt. Raises InvalidInput."""
        ref, case_id = parse_item_id(name)
        return Place(meta.tenant, case_id, ref.activation, ref.instance), ref.attempt

    def leased(self, item: WorkItemView, meta: CallMeta) -> WorkItemView:
        """The item with the end of its lease, if it has one."""
        if not self._leases or item.state != "started":
            return item
        place, attempt = self.place(item.item_id, meta)
        lease = self._leases.find(place)
        if lease is None or lease.attempt != attempt:
            return item
        return msgspec.structs.replace(item, leased_until=lease.until)

    async def ended(
        self, session: WorkSession, results: Sequence[tuple[str, str, Result]]
    ) -> list[WorkItemView | WorkflowError]:
        """Results (item, request id, command), as many as there are in one go; one's error is its own answer."""

        answers: list[WorkItemView | WorkflowError | None] = [None] * len(results)
        commands: list[tuple[int, Lease | None, tuple[str, Command, CallMeta]]] = []
        for index, (name, request_id, make) in enumerate(results):
            meta = session.meta
            if request_id:
                meta = msgspec.structs.replace(meta, request_id=request_id)
            try:
                ref, case_id = parse_item_id(name)
                command = make(ref)
            except WorkflowError as error:
                answers[index] = error
                continue
            lease = session.held.get(Place(meta.tenant, case_id, ref.activation, ref.instance))
            if lease is not None and lease.attempt == ref.attempt:
                lease.ending = True
            commands.append((index, lease, (case_id, command, meta)))
        for first in range(0, len(commands), AT_ONCE):
            some = commands[first : first + AT_ONCE]
            found = await self._carry([asked for _, _, asked in some])
            for (index, lease, _), answer in zip(some, found, strict=True):
                answers[index] = answer
                if lease is not None and isinstance(answer, WorkflowError):
                    lease.ending = False
        return [answer for answer in answers if answer is not None]

    async def _redeliver(self, session: WorkSession, worker: WorkerKey) -> None:
        """What a worker had before its connection broke is still its own."""
        leases = [lease for lease in self._leases.of(worker) if not lease.over and lease.place not in self._holders]
        for first in range(0, len(leases), AT_ONCE):
            some = leases[first : first + AT_ONCE]
            meta = session.meta
            found = await asyncio.gather(*(self._look(each.item_id, meta) for each in some), return_exceptions=True)
            for lease, item in zip(some, found, strict=True):
                valid = self._leases.find(lease.place) is lease and not lease.over
                if lease.place in self._holders:
                    continue  # what it was being given when its connection broke has come to this one
                if valid and isinstance(item, WorkItemView) and session.error is None:
                    self._leases.extend(lease, session.lease)
                    self._holders[lease.place] = session
                    session.receive(lease, item, True)

    # -- commits ------------------------------------------------------------------------------------------------------

    def worked(self, live: LiveCase) -> None:
        """A step of a case is durable. Called for every commit."""
        items, live.items = live.items, None
        if not (self._listening or self._leases):
            return
        state, keys = live.state, live.keys
        if state is None:
            return
        if items:
            for (activation, instance), item in items.items():
                self._changed(Place(keys.tenant, keys.case_id, activation, instance), state, item)
        if self._parked:
            for place in self._parked.pop((keys.tenant, keys.case_id), ()):
                self._offer_again(place)
        self._meet()

    def _changed(self, place: Place, case: Case, item: ItemInNet) -> None:
        _, node, _, run = item
        if run.state == "started" and run.lease:
            lease = self._leases.find(place)
            if lease is None or lease.attempt != run.attempt:
                worker = WorkerKey(place.tenant, run.owner, run.worker)
                self._leases.grant(place, run.attempt, worker, run.lease)
        else:
            self._drop(place)
        if self._listening:
            task = Task(place.tenant, case.spec_id, node.task.id, node.task.required_roles, node.task.priority)
            if run.state == "offered":
                self._offer(task, place, run.attempt)
            else:
                self._offers.remove(task, place)

    def _offer(self, task: Task, place: Place, attempt: int) -> None:
        if not self._offers.add(task, place, attempt):
            self._scan_of(place.tenant)  # it is read there in its turn

    def _drop(self, place: Place) -> None:
        """Nobody has the item any more."""
        lease = self._leases.drop(place)
        holder = self._holders.pop(place, None)
        if lease is not None and holder is not None:
            holder.lost(lease)

    # -- handing out --------------------------------------------------------------------------------------------------

    def _meet(self) -> None:
        """Items and workers may meet: hand out once the present callbacks are over, so that many go together."""
        if not self._handing and (self._offers.meeting or self._offers.short) and not self._closed:
            self._handing = True
            asyncio.get_running_loop().call_soon(self._hand_out)

    def _hand_out(self) -> None:
        self._handing = False
        found: dict[WorkSession, list[tuple[Task, Place, int]]] = {}
        for taker, task, place, attempt in self._offers.hand_out():
            assert isinstance(taker, WorkSession)
            taker.reserved += 1
            found.setdefault(taker, []).append((task, place, attempt))
        for session, some in found.items():
            self._spawn(self._lease_all(session, some))
        for scan in self._scans.values():
            if not scan.running and self._offers.wanting(scan.tenant):
                self._read(scan)

    async def _lease_all(self, session: WorkSession, some: Sequence[tuple[Task, Place, int]]) -> None:
        """Begin items for a worker, durably, and hand them over."""
        for first in range(0, len(some), AT_ONCE):
            part = some[first : first + AT_ONCE]
            if session not in self._sessions or session.stuffed:
                for task, place, attempt in part:
                    session.reserved -= 1
                    self._offer(task, place, attempt)
                self._meet()
                continue
            owner, worker, period = session.worker.principal, session.worker.name, session.lease
            commands: list[tuple[str, Command, CallMeta]] = [
                (
                    place.case_id,
                    c.LeaseItem(c.ItemRef(place.activation, place.instance, attempt), owner, worker, period),
                    session.meta,
                )
                for _, place, attempt in part
            ]
            before = [self._sequence(place) for _, place, _ in part]
            answers = await self._carry(commands)
            for (task, place, attempt), seen, answer in zip(part, before, answers, strict=True):
                if isinstance(answer, WorkflowError):
                    self._not_leased(task, place, attempt, answer, seen)
                self._leased(session, place, attempt, None if isinstance(answer, WorkflowError) else answer)

    def _sequence(self, place: Place) -> int | None:
        """How far the item's case is; None when it is not in memory."""
        live = self._peek(place.tenant, place.case_id)
        return live.state.sequence if live is not None and live.state is not None else None

    def _leased(self, session: WorkSession, place: Place, attempt: int, item: WorkItemView | None) -> None:
        """An item has begun, or could not."""
        session.reserved -= 1
        lease = self._leases.find(place) if item is not None else None
        # Refused, ended in the meantime, or redelivered already: the worker has connected again.
        if item is None or lease is None or lease.attempt != attempt or place in self._holders:
            session.news.set()
            self.turn(session)
            return
        holder = session if session in self._sessions else self._named.get(session.worker)
        if holder is not None:
            self._holders[place] = holder
            holder.receive(lease, item, False)
        elif not session.worker.name:
            self._give_back((lease,), "gone")

    def _not_leased(self, task: Task, place: Place, attempt: int, error: WorkflowError, seen: int | None) -> None:
        """An item could not be begun: is it gone, has it to wait for its case, or for the store? `seen` is how far the
        case was before: it is tried again at once only when that has changed, so that trying comes to an end."""
        if isinstance(error, (*_LATER, StoreError)):
            self._offer_later(task, place, attempt)
            return
        live = self._peek(place.tenant, place.case_id)
        state = live.state if live is not None else None
        activation = state.activations.get(place.activation) if state is not None else None
        run = activation.instances.get(place.instance) if activation is not None else None
        if state is None:
            if not isinstance(error, NotFound) and not (isinstance(error, WrongState) and error.actual in c.ENDED):
                self._offer_later(task, place, attempt)  # its case has left memory, and is asked again
            return
        if live is None or run is None:
            return
        if run.state == "offered" and run.attempt != attempt:  # a row of the work list was read just before
            self._offer(task, place, run.attempt)
            self._meet()
        elif run.state == "offered":
            if seen is not None and self._sequence(place) != seen:  # what kept it may be over
                self._offer(task, place, attempt)
                self._meet()
                return
            self._parked.setdefault((place.tenant, place.case_id), {})[place] = None
            # Busy with a command that may fail, there is no commit to wait for; of a case that was not in memory it is
            # not known whether it has changed.
            if live.busy or seen is None:
                self._offer_later(task, place, attempt)
        elif run.state == "started" and run.lease and self._leases.find(place) is None:
            # A commit whose outcome was unknown for a while had begun it.
            self._leases.grant(place, run.attempt, WorkerKey(place.tenant, run.owner, run.worker), run.lease)

    def _offer_later(self, task: Task, place: Place, attempt: int) -> None:
        def offer() -> None:
            self._offer(task, place, attempt)
            self._meet()

        asyncio.get_running_loop().call_later(PAUSE_S, offer)

    def _offer_again(self, place: Place) -> None:
        """The case of an item that had to wait has changed."""
        live = self._peek(place.tenant, place.case_id)
        if live is None or live.state is None or live.model is None:
            return
        activation = live.state.activations.get(place.activation)
        run = activation.instances.get(place.instance) if activation is not None else None
        if activation is None or run is None or run.state != "offered":
            return
        task = live.model.nets[live.state.nets[activation.net].name].tasks[activation.task].task
        offered = Task(place.tenant, live.state.spec_id, task.id, task.required_roles, task.priority)
        self._offer(offered, place, run.attempt)

    # -- giving back --------------------------------------------------------------------------------------------------

    def _expired(self, leases: Sequence[Lease]) -> None:
        if not self._closed:
            self._spawn(self._return_all(leases, "expired"))

    def _give_back(self, leases: Sequence[Lease], reason: str) -> None:
        mine = [lease for lease in leases if not lease.over]
        for lease in mine:
            lease.over = True
        if mine and not self._closed:
            self._spawn(self._return_all(mine, reason))

    async def _return_all(self, leases: Sequence[Lease], reason: str) -> None:
        """Items are on offer again whose worker is gone. What has ended meanwhile has no lease any more."""
        for first in range(0, len(leases), AT_ONCE):
            some = leases[first : first + AT_ONCE]
            commands: list[tuple[str, Command, CallMeta]] = []
            for lease in some:
                meta = CallMeta(tenant=lease.place.tenant, principal=PRINCIPAL, method="return_item")
                commands.append((lease.place.case_id, c.ReturnItem(lease.ref, reason), meta))
            for lease, answer in zip(some, await self._carry(commands), strict=True):
                if isinstance(answer, (*_LATER, StoreError)):
                    self._leases.again(lease, round(PAUSE_S * NS_PER_S))
                elif isinstance(answer, WorkflowError) and self._leases.find(lease.place) is lease:
                    self._drop(lease.place)

    # -- the rows of the work list ------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Take up the leases that were there when the engine last ended, each with its full period."""
        try:
            for shard in range(self._keys.shards):
                await self._restore_shard(*shard_range(shard))
        finally:
            self._restored.set()

    async def _restore_shard(self, start: bytes, end: bytes) -> None:
        while rows := await self._rows((start, end)):
            for key, value in rows:
                if kind_of(key) != ITEM:
                    start = past_kind(key)
                    break
                start = key + b"\0"
                row = _row(key, value)
                if row is not None and row.state == "started" and row.lease:
                    place = Place(*parse_item(key))
                    if self._leases.find(place) is None:
                        worker = WorkerKey(place.tenant, row.owner, row.worker)
                        self._leases.grant(place, row.attempt, worker, row.lease)

    def _scan_of(self, tenant: str) -> _Scan:
        found = self._scans.get(tenant)
        if found is None:
            found = self._scans[tenant] = _Scan(tenant)
        return found

    def _read_from_start(self, tenant: str) -> None:
        scan = self._scan_of(tenant)
        scan.at = b""
        scan.whole = True
        scan.again = scan.running
        if not scan.running:
            self._read(scan)

    def _read(self, scan: _Scan) -> None:
        scan.running = True
        self._spawn(self._read_all(scan))

    async def _read_all(self, scan: _Scan) -> None:
        """Offer what the work list of a tenant shows, from where the last look ended."""
        try:
            while True:
                scan.again = False
                await self._read_some(scan)
                if not (scan.again or self._offers.wanting(scan.tenant)):
                    return
        finally:
            scan.running = False

    async def _read_some(self, scan: _Scan) -> None:
        """One round: to the end of the list, or, unless the `whole` of it is wanted, until no queue takes more."""
        number = self._offers.begin_round() if not scan.at else 0
        missed = b""
        for shard in range(self._keys.shards):
            start, end = self._keys.items(shard, scan.tenant)
            if scan.at >= end:
                continue
            start = max(start, scan.at)
            while True:
                rows = await self._rows((start, end))
                if scan.again:
                    return
                for key, value in rows:
                    if not self._remember(scan.tenant, key, value) and not missed:
                        missed = key
                self._meet()
                if missed and not scan.whole and not self._offers.wanting(scan.tenant):
                    scan.at = missed
                    return
                if len(rows) < SCAN_ROWS:
                    break
                start = rows[-1][0] + b"\0"
        scan.at = b""
        scan.whole = False
        if number:
            self._offers.end_round(scan.tenant, number)

    def _remember(self, tenant: str, key: bytes, value: bytes) -> bool:
        """Offer what a row shows. False: somebody wants it, but there is no room."""
        row = _row(key, value)
        if row is None or row.state != "offered":
            return True
        place = Place(*parse_item(key))
        if place in self._parked.get((tenant, place.case_id), ()):
            return True  # it waits for its case
        return self._offers.add(Task(tenant, row.spec_id, row.task, row.roles, row.priority), place, row.attempt)

    async def _rows(self, where: Range) -> list[tuple[bytes, bytes]]:
        """A page of rows. While the store cannot be read: later."""
        while True:
            try:
                return await self._reads.scan(*where, limit=SCAN_ROWS)
            except StoreUnavailable:
                await asyncio.sleep(PAUSE_S)

    def close(self) -> None:
        """The engine ends: workers are told, nothing is handed out or given back any more."""
        self._closed = True
        self._leases.close()
        self._restored.set()
        for session in tuple(self._sessions):
            session.end(StoreUnavailable("the engine is closing"))


class _Scan:
    """How far the work list of a tenant has been read."""

    __slots__ = ("again", "at", "running", "tenant", "whole")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.at = b""  # where to go on; empty = from the start
        self.running = False
        self.whole = False  # a wish is new: all of it has to be looked at
        self.again = False  # a new wish came: from the start


def _row(key: bytes, value: bytes) -> ItemRow | None:
    """A row of the work list; None when it is damaged: whoever touches its case is told."""
    try:
        return ITEMS.read(key, value)
    except StoreCorrupt:
        return None


def _completion(asked: CompleteRequest) -> Result:
    def command(ref: c.ItemRef) -> c.CompleteItem:
        output = json_object(asked.output, "output_json") if asked.output is not None else b""
        return c.CompleteItem(ref, output, asked.user)

    return command


def _failure(asked: FailRequest) -> Result:
    def command(ref: c.ItemRef) -> c.FailItem:
        data = json_object(asked.data, "data_json") if asked.data is not None else b""
        code = checked_id(asked.code, "code")
        return c.FailItem(ref, code, asked.message, asked.user, data, asked.permanent, asked.retry_after)

    return command


def _checked(wanted: WorkSubscription) -> tuple[frozenset[str], frozenset[str]]:
    """The names of the tasks and roles. Raises InvalidInput."""
    if not wanted.tasks:
        raise InvalidInput.field("tasks", "is empty", 'name at least one task, for example "order-approval/approve"')
    if len(wanted.tasks) + len(wanted.roles) > TASKS_MAX:
        raise InvalidInput.field("tasks", f"names more than {TASKS_MAX} tasks and roles", "open several streams")
    if not 0 <= wanted.credit <= CREDIT_MAX:
        raise InvalidInput.field("credit", f"must be between 0 and {CREDIT_MAX}")
    _checked_period(wanted.lease)
    for task in wanted.tasks:
        if not task or len(task) > TASK_NAME_MAX:
            raise InvalidInput.field("tasks", f"{task[:100]!r} is not a task", 'for example "order-approval/approve"')
    for role in wanted.roles:
        checked_id(role, "roles")
    return frozenset(wanted.tasks), frozenset(wanted.roles)


def _checked_period(period: int) -> None:
    if not PERIOD_MIN <= period <= PERIOD_MAX:
        raise InvalidInput.field("lease", "must be between 0.1 s and 1 hour", "for example 30s")
