"""Offered work in memory: what workers can take, in the order in which they get it.

Items wait in one queue per task, roles and priority; workers with the same wishes form a group and take turns. An item
goes to a worker in constant time: the group's highest priority, its queues in turn, the oldest item, the worker whose
turn it is. Whose items nobody wants is not remembered. What is here is a hint: the case decides whether an item can
really be begun, and an entry that is out of date costs one refused command.

Memory is bounded, and shared: where it is full, a queue below its share still takes items, so that no backlog keeps the
items of others from their workers. A queue that had no room says so until the work list was read again (`wanting`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from knhk_workflow.runtime.leases import Place

OFFERS_MAX: Final = 100_000  # items remembered, about 300 bytes each; the others are read from the store in their turn.
# With n queues it may be ln n times as many: shares shrink as queues come, and nothing is thrown out for that.
QUEUES_MAX: Final = 10_000  # tasks whose wishers are remembered; then those that have no items are forgotten
GROUPS_IDLE_MAX: Final = 32  # groups without workers that are kept, so that workers who come back find their items


class Task(NamedTuple):
    """What decides who may take an item."""

    tenant: str
    spec_id: str
    task: str
    roles: tuple[str, ...]
    priority: int


class Wish(NamedTuple):
    """What a worker wants: tasks as `task` or `workflow/task`; no roles = whatever the item's are."""

    tenant: str
    tasks: frozenset[str]
    roles: frozenset[str]

    def covers(self, task: Task) -> bool:
        """Whether items of the task are wanted."""
        return (
            self.tenant == task.tenant
            and (task.task in self.tasks or f"{task.spec_id}/{task.task}" in self.tasks)
            and not (self.roles and task.roles and self.roles.isdisjoint(task.roles))
        )


class Taker(Protocol):
    """A worker, as far as taking its turn goes."""

    @property
    def room(self) -> int:
        """How many more items it takes."""
        ...


class Group:
    """Workers with the same wish, and the queues that have something for them."""

    __slots__ = ("members", "pending", "ready", "wish")

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.members = 0
        self.ready: OrderedDict[Taker, None] = OrderedDict()
        self.pending: dict[int, OrderedDict[_Queue, None]] = {}  # by priority

    def turn(self) -> Taker:
        """Whose turn it is."""
        taker, _ = self.ready.popitem(last=False)
        if taker.room > 1:
            self.ready[taker] = None
        return taker

    def next(self) -> _Queue | None:
        """The queue whose turn it is."""
        while self.pending:
            priority = max(self.pending)
            queues = self.pending[priority]
            queue, _ = queues.popitem(last=False)
            if len(queue.items) > 1:
                queues[queue] = None
            elif not queues:
                del self.pending[priority]
            if queue.items:
                return queue
        return None


class _Queue:
    """The offered items of one task, oldest first, with their attempts."""

    __slots__ = ("groups", "items", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.items: OrderedDict[Place, int] = OrderedDict()
        self.groups: list[Group] = []


class Offers:
    """The offered items that somebody wants."""

    def __init__(self, limit: int = OFFERS_MAX) -> None:
        self._limit = limit
        self._queues: dict[Task, _Queue] = {}
        self._groups: OrderedDict[Wish, Group] = OrderedDict()
        self._hungry: dict[Group, None] = {}  # those that may have both a worker and an item
        self._count = 0
        self._holding = 0  # queues with items
        self._missed: dict[_Queue, int] = {}  # queues that had no room for an item, and in which round
        self._round = 0

    def __len__(self) -> int:
        return self._count

    @property
    def short(self) -> bool:
        """Whether some item was not remembered."""
        return bool(self._missed)

    def wanting(self, tenant: str) -> bool:
        """Whether it is worth the while to read the work list of a tenant: a queue that had no room for all has some
        now."""
        low = self._share // 2
        return any(queue.task.tenant == tenant and len(queue.items) <= low for queue in self._missed)

    def begin_round(self) -> int:
        """The work list of a tenant is read from the start; the number of this round."""
        self._round += 1
        return self._round

    def end_round(self, tenant: str, number: int) -> None:
        """It was read to the end: what was missed before that round has been seen again."""
        for queue in [each for each, last in self._missed.items() if last < number and each.task.tenant == tenant]:
            del self._missed[queue]

    @property
    def _share(self) -> int:
        """What a queue may hold however much others do."""
        return max(self._limit // max(self._holding, 1), 1)

    def join(self, wish: Wish) -> tuple[Group, bool]:
        """The group of a wish with one more member, and whether it is new: then its items have to be added."""
        group = self._groups.pop(wish, None)
        new = group is None
        if group is None:
            group = Group(wish)
            for queue in self._queues.values():
                if wish.covers(queue.task):
                    queue.groups.append(group)
                    if queue.items:
                        self._tell(group, queue)
        self._groups[wish] = group
        group.members += 1
        return group, new

    def leave(self, group: Group, taker: Taker) -> None:
        """One member less. The group stays for a while, in case its workers come back."""
        group.ready.pop(taker, None)
        group.members -= 1
        idle = [each for each in self._groups.values() if not each.members]
        if group.members or len(idle) <= GROUPS_IDLE_MAX:
            return
        gone = idle[0]
        del self._groups[gone.wish]
        for queue in self._queues.values():
            if gone in queue.groups:
                queue.groups.remove(gone)
                if not queue.groups:
                    self._missed.pop(queue, None)
                    if queue.items:
                        self._holding -= 1
                    self._count -= len(queue.items)
                    queue.items.clear()

    def add(self, task: Task, place: Place, attempt: int) -> bool:
        """An item is on offer. False: somebody wants it, but there is no room."""
        queue = self._queues.get(task) or self._queue(task)
        if not queue.groups:
            return True
        items = queue.items
        if place in items:
            items[place] = attempt
            return True
        if self._count >= self._limit and len(items) >= self._share:
            self._missed[queue] = self._round
            return False
        if not items:
            self._holding += 1
        items[place] = attempt
        self._count += 1
        for group in queue.groups:
            self._tell(group, queue)
        return True

    def ready(self, group: Group, taker: Taker) -> None:
        """A member takes items, after those that are ready already."""
        if taker not in group.ready:
            group.ready[taker] = None
        if group.pending:
            self._hungry[group] = None

    def rest(self, group: Group, taker: Taker) -> None:
        """A member takes no items until it is ready again."""
        group.ready.pop(taker, None)

    @property
    def meeting(self) -> bool:
        """Whether there may be an item for somebody."""
        return bool(self._hungry)

    def remove(self, task: Task, place: Place) -> None:
        """An item is not on offer any more."""
        queue = self._queues.get(task)
        if queue is not None and queue.items.pop(place, None) is not None:
            self._gone(queue)

    def hand_out(self) -> Iterator[tuple[Taker, Task, Place, int]]:
        """Items and who gets them, until one side has nothing left; groups take turns too."""
        hungry = deque(self._hungry)
        self._hungry = {}
        while hungry:
            group = hungry.popleft()
            queue = group.next() if group.ready else None
            if queue is None:
                continue
            place, attempt = queue.items.popitem(last=False)
            self._gone(queue)
            yield group.turn(), queue.task, place, attempt
            if group.ready and group.pending:
                hungry.append(group)

    def _gone(self, queue: _Queue) -> None:
        """An item has left a queue."""
        self._count -= 1
        if not queue.items:
            self._holding -= 1

    def _tell(self, group: Group, queue: _Queue) -> None:
        group.pending.setdefault(queue.task.priority, OrderedDict())[queue] = None
        if group.ready:
            self._hungry[group] = None

    def _queue(self, task: Task) -> _Queue:
        if len(self._queues) >= QUEUES_MAX:
            self._queues = {key: queue for key, queue in self._queues.items() if queue.items or queue in self._missed}
        queue = self._queues[task] = _Queue(task)
        queue.groups = [group for wish, group in self._groups.items() if wish.covers(task)]
        return queue
