"""The stage that bounds what is executed at once, and decides who waits and who is refused.

Calls beyond the places wait by class (precedence.py), each class in order of arrival; a place that comes free goes to
the first class that has anybody waiting. So that no class starves:

    one place in FAIR_EVERY goes to whoever has waited longest, whatever the class
    each class may have a SHARE-th of the queue, which nobody else can take from it

When the queue is full, whoever comes displaces the newest call of the last class that has more than its share; if there
is none, it is refused. What has expired is dropped when its turn comes, before any work. Streams and calls that wait
for a case are bounded on their own: they hold no processor. A call that works before it waits has a place like any
other until that work must be done (WORK_SECONDS). Health is always admitted.

While memory is short what makes new work is refused, and streams that do are kept waiting; what brings work to its end
goes on.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Final, cast

from google.protobuf.message import Message

from knhk_sidecar.api.faults import Leaving, MemoryShort
from knhk_sidecar.pipeline.call import Call, Method, Request
from knhk_sidecar.pipeline.memory import Memory
from knhk_sidecar.pipeline.permissions import Permission
from knhk_sidecar.pipeline.precedence import CLASSES, START
from knhk_sidecar.pipeline.stages import Proceed
from knhk_workflow import Busy, DeadlineExceeded, LimitExceeded

RETRY_AFTER_MS: Final = 100  # a full queue is worked off in about a quarter of a second
RETRY_SPREAD_MS: Final = 100  # so that those refused together do not come back together
STREAM_RETRY_AFTER_MS: Final = 1_000  # streams end when their reader ends them
MARGIN_NS: Final = 50_000_000  # within this an answer is made and arrives, when the processor is short
LATE_STEP: Final = 4  # a call that is too late counts as much as so many that are not, the other way
LATE_OFTEN: Final = 16
LATE_MOST: Final = 64
LATE_NS: Final = 1_000_000_000  # after which no call was too late, the overload counts as over
FAIR_EVERY: Final = 8
SHARE: Final = 8
WORK_SECONDS: Final = 0.1  # a durable step takes some ms; what still runs then waits for its case


class _Turn:
    """A call in the queue."""

    __slots__ = ("deadline", "place", "precedence")

    def __init__(self, place: asyncio.Future[None], precedence: int, deadline: int) -> None:
        self.place = place
        self.precedence = precedence
        self.deadline = deadline


class Admit:
    """See above."""

    def __init__(
        self,
        proceed: Proceed,
        *,
        now: Callable[[], int],
        in_flight: int,
        queued: int,
        waiting: int,
        streams_per_connection: int,
        stream_messages: int,
        memory: Memory | None = None,
    ) -> None:
        """`memory` None: it is not watched."""
        self._proceed = proceed
        self._now = now
        self._in_flight_max = in_flight
        self._queued_max = queued
        self._share = queued // SHARE
        self._waiting_max = waiting
        self._streams_max = streams_per_connection
        self._messages_max = stream_messages
        self._memory = memory
        self._queues: tuple[OrderedDict[int, _Turn], ...] = tuple(OrderedDict() for _ in CLASSES)
        self._arrived = 0
        self._given = 0
        self._streams: dict[str, int] = {}
        self._open: dict[asyncio.Task[object], Method] = {}
        self._ended: set[asyncio.Task[object]] = set()
        self._leaving = False
        self._late = 0
        self._late_until = 0
        self.in_flight = 0
        self.queued = 0
        """Calls that wait for their turn."""
        self.waiting = 0
        self.expired = 0
        """Calls whose deadline passed in the queue."""

    @property
    def streams(self) -> int:
        """Open streams of all connections."""
        return sum(self._streams.values())

    def queued_of(self, precedence: int) -> int:
        """Calls of one class that wait for their turn."""
        return len(self._queues[precedence])

    async def run(self, call: Call, request: Request) -> Message | None:
        method = call.method
        if method.streams:
            return await self._stream(call, request)
        if self._memory is not None and self._memory.short and method.precedence == START:
            raise MemoryShort
        waits = method.waits and (not method.wait_field or cast(Message, request).HasField("wait"))
        if waits:
            if not method.has_request_id:
                return await self._wait(call, request)
            if self.waiting >= self._waiting_max:
                raise _waiters()
        if method.permission is Permission.HEALTH:
            return await self._proceed(call, request)
        if self.in_flight < self._in_flight_max:
            self.in_flight += 1
        else:
            await self._turn(method.precedence, call.deadline)
        if waits:
            return await self._work_and_wait(call, request)
        try:
            if call.deadline and self._hopeless(self._now(), call.deadline):
                raise _too_late()
            return await self._proceed(call, request)
        finally:
            self._leave()

    async def _work_and_wait(self, call: Call, request: Request) -> Message | None:
        """A call that has got a place, which it gives back when its work must be done."""
        placed = True

        def leave() -> None:
            nonlocal placed
            placed = False
            self._leave()

        timer = asyncio.get_running_loop().call_later(WORK_SECONDS, leave)
        self.waiting += 1
        try:
            if call.deadline and self._hopeless(self._now(), call.deadline):
                raise _too_late()
            return await self._proceed(call, request)
        finally:
            timer.cancel()
            self.waiting -= 1
            if placed:
                self._leave()

    def _hopeless(self, now: int, deadline: int) -> bool:
        """Whether a call's deadline has passed, or will have before its answer is there.

        In an overload every call reaches its turn just before its deadline: all processor time goes into answers that
        come too late. So once calls have come too late again and again, those with little time left are dropped too,
        until none has been too late for a while: callers that never have more time would else not be let in again.
        """
        if now >= deadline:
            self._late = min(self._late + LATE_STEP, LATE_MOST)
            self._late_until = now + LATE_NS
            self.expired += 1
            return True
        if self._late:
            if self._late >= LATE_OFTEN and now < self._late_until and now + MARGIN_NS >= deadline:
                self.expired += 1
                return True
            self._late -= 1
        return False

    def end_streams(self, *, working: bool) -> None:
        """The daemon is going down: no new streams, and those that only watch end now; with `working`, all of them do,
        downloads too. Calls that only wait for a case end with the latter; one that changed something keeps its answer.

        Health ends its own, after it told its watchers, and tells whoever asks until the last moment.
        """
        self._leaving = True
        for task, method in tuple(self._open.items()):
            if working or method.watches:
                self._ended.add(task)
                task.cancel()

    async def _turn(self, precedence: int, deadline: int) -> None:
        """Waits until a call that leaves hands its place over."""
        number = self._arrived = self._arrived + 1
        if self.queued >= self._queued_max and not self._displace(precedence):
            raise _full(number)
        turn = _Turn(asyncio.get_running_loop().create_future(), precedence, deadline)
        self._queues[precedence][number] = turn
        self.queued += 1
        try:
            await turn.place
        except asyncio.CancelledError:
            if self._queues[precedence].pop(number, None) is not None:
                self.queued -= 1
            elif not turn.place.cancelled() and turn.place.exception() is None:  # the place was ours already
                self._leave()
            raise

    def _displace(self, precedence: int) -> bool:
        """Make room in the full queue for a call of this class, by refusing another one; whether there was one."""
        for lower in reversed(CLASSES[precedence + 1 :]):
            if len(self._queues[lower]) > self._share:
                break
        else:
            if len(self._queues[precedence]) >= self._share:
                return False
            lower = max(CLASSES, key=lambda each: len(self._queues[each]))
        number, turn = self._queues[lower].popitem(last=True)
        self.queued -= 1
        if not turn.place.done():  # it is, when its caller has just left
            turn.place.set_exception(_full(number))
        return True

    def _leave(self) -> None:
        """A call has ended: its place goes to the next in line."""
        while self.queued:
            turn = self._next()
            if turn.place.done():  # its caller has just left
                continue
            if turn.deadline and self._hopeless(self._now(), turn.deadline):
                turn.place.set_exception(_too_late())
                continue
            turn.place.set_result(None)
            return
        self.in_flight -= 1

    def _next(self) -> _Turn:
        self._given += 1
        waiting = [queue for queue in self._queues if queue]
        chosen = min(waiting, key=_oldest) if self._given % FAIR_EVERY == 0 else waiting[0]
        self.queued -= 1
        return chosen.popitem(last=False)[1]

    async def _wait(self, call: Call, request: Request) -> Message | None:
        """A call that only waits."""
        if self.waiting >= self._waiting_max:
            raise _waiters()
        self.waiting += 1
        try:
            return await self._ending(call, request)
        finally:
            self.waiting -= 1

    async def _stream(self, call: Call, request: Request) -> Message | None:
        count = self._streams.get(call.peer, 0)
        if count >= self._streams_max:
            raise Busy("the number of open streams of this connection", STREAM_RETRY_AFTER_MS)
        if call.method.client_streaming:
            request = self._messages(call.method, cast("AsyncIterator[Message]", request))
        self._streams[call.peer] = count + 1
        try:
            health = call.method.permission is Permission.HEALTH
            return await (self._proceed if health else self._ending)(call, request)
        finally:
            rest = self._streams[call.peer] - 1
            if rest:
                self._streams[call.peer] = rest
            else:
                del self._streams[call.peer]

    async def _messages(self, method: Method, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        """What a stream sends, within its limits. Raises LimitExceeded."""
        memory = self._memory if method.precedence == START else None
        count = 0
        async for request in requests:
            count += 1
            if count > self._messages_max:
                raise LimitExceeded("messages on one stream", self._messages_max, count, "go on with another stream")
            if memory is not None and memory.short:
                await memory.room()
            yield request

    async def _ending(self, call: Call, request: Request) -> Message | None:
        """What `end_streams` may end while it runs."""
        if self._leaving:
            raise Leaving
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = call.method
        try:
            return await self._proceed(call, request)
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            raise Leaving from None
        finally:
            del self._open[task]
            self._ended.discard(task)


def _oldest(queue: OrderedDict[int, _Turn]) -> int:
    return next(iter(queue))


def _full(number: int) -> Busy:
    return Busy("the queue of calls", RETRY_AFTER_MS + number * 61 % RETRY_SPREAD_MS)


def _waiters() -> Busy:
    return Busy("the number of calls that wait for a case", STREAM_RETRY_AFTER_MS)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the call was begun; nothing was executed")
