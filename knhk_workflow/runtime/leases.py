"""Leases: which worker has which started item, and until when.

That an item is leased, to whom and for how long is an event of its case; when the lease ends is known here alone.
Extensions need no commit, and after a restart every lease begins anew with its full period: the row of each leased item
says how long that is. What is over is told by one alarm for the lease that ends first; nothing is looked through.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from knhk_workflow.core.commands import ItemRef
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime.clock import Alarm, Clock

PERIOD_DEFAULT: Final = 30 * NS_PER_S  # several heart-beats of a worker, and no long wait after its death
PERIOD_MAX: Final = 3_600 * NS_PER_S
PERIOD_MIN: Final = NS_PER_S // 10  # shorter ones would end on their way to the worker
LEFT_OVER_MAX: Final = 1_000  # entries of ended leases that may stand in line beside as many as there are live ones


class Place(NamedTuple):
    """Where a work item is, whatever its attempt."""

    tenant: str
    case_id: str
    activation: int
    instance: int


class WorkerKey(NamedTuple):
    """A worker across its connections; `name` is its own choice within its principal."""

    tenant: str
    principal: str
    name: str


class Lease:
    """One item in somebody's hands. `until` is nanoseconds of the engine's clock."""

    __slots__ = ("attempt", "ending", "over", "period", "place", "until", "worker")

    def __init__(self, place: Place, attempt: int, worker: WorkerKey, period: int, until: int) -> None:
        self.place = place
        self.attempt = attempt
        self.worker = worker
        self.period = period
        self.until = until
        self.ending = False
        """A result of it is on its way to the case."""
        self.over = False
        """Its time is up, and the item on its way back."""

    @property
    def ref(self) -> ItemRef:
        """The item in commands."""
        return ItemRef(self.place.activation, self.place.instance, self.attempt)

    @property
    def item_id(self) -> str:
        """The item for callers; with its attempt in it, this is the token of the lease."""
        return self.ref.name(self.place.case_id)


class Leases:
    """All leases of one engine. `expired` is told of those whose time is up, and takes them from there."""

    def __init__(self, clock: Clock, expired: Callable[[Sequence[Lease]], None]) -> None:
        self._clock = clock
        self._expired = expired
        self._leases: dict[Place, Lease] = {}
        self._workers: dict[WorkerKey, dict[Place, Lease]] = {}
        self._order: list[tuple[int, int, Lease]] = []  # a heap; a lease stands once in it, maybe too early
        self._made = 0
        self._alarm: Alarm | None = None
        self._alarm_at = 0

    def __len__(self) -> int:
        return len(self._leases)

    def find(self, place: Place) -> Lease | None:
        """The lease on an item."""
        return self._leases.get(place)

    def of(self, worker: WorkerKey) -> Iterator[Lease]:
        """What a worker has."""
        return iter(tuple(self._workers.get(worker, {}).values()))

    def grant(self, place: Place, attempt: int, worker: WorkerKey, period: int) -> Lease:
        """A new lease from now on, in place of whatever was."""
        self.drop(place)
        lease = Lease(place, attempt, worker, period, self._clock.now() + period)
        self._leases[place] = lease
        self._workers.setdefault(worker, {})[place] = lease
        self._stand(lease)
        return lease

    def extend(self, lease: Lease, period: int) -> None:
        """Its time begins anew with another period."""
        earlier = lease.until
        lease.until = self._clock.now() + period
        if lease.until < earlier:
            self._stand(lease)

    def drop(self, place: Place) -> Lease | None:
        """The lease on an item is over, for whatever reason."""
        lease = self._leases.pop(place, None)
        if lease is not None:
            held = self._workers[lease.worker]
            del held[place]
            if not held:
                del self._workers[lease.worker]
        return lease

    def again(self, lease: Lease, pause: int) -> None:
        """What was over could not be given back: once more after a pause."""
        if self._leases.get(lease.place) is lease:
            lease.over = False
            lease.until = self._clock.now() + pause
            self._stand(lease)

    def close(self) -> None:
        """No alarm any more."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _stand(self, lease: Lease) -> None:
        self._made += 1
        heapq.heappush(self._order, (lease.until, self._made, lease))
        if len(self._order) > 2 * len(self._leases) + LEFT_OVER_MAX:
            self._order = [entry for entry in self._order if self._leases.get(entry[2].place) is entry[2]]
            heapq.heapify(self._order)
        self._set_alarm()

    def _set_alarm(self) -> None:
        if not self._order:
            return
        first = self._order[0][0]
        if self._alarm is not None:
            if first >= self._alarm_at:
                return
            self._alarm.cancel()
        self._alarm_at = first
        self._alarm = self._clock.call_at(first, self._look)

    def _look(self) -> None:
        """Tell of what is over; what was extended stands in line again."""
        self._alarm = None
        now = self._clock.now()
        over: list[Lease] = []
        while self._order and self._order[0][0] <= now:
            lease = heapq.heappop(self._order)[2]
            if self._leases.get(lease.place) is not lease or lease.over:
                continue
            if lease.until <= now:
                lease.over = True
                over.append(lease)
            else:
                self._made += 1
                heapq.heappush(self._order, (lease.until, self._made, lease))
        self._set_alarm()
        if over:
            self._expired(over)
