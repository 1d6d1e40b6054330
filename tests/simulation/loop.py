"""An asyncio event loop without sockets, threads or sleeping: when nothing is ready, time jumps to the next timer.

Callbacks of one moment run in the order asyncio promises. Timers that are due at the same moment have no promised
order: the seed decides it, and so which of several reads, writes and clients goes first.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from random import Random
from typing import Any, Final, TypeVar

from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime.clock import Alarm, VirtualClock

T = TypeVar("T")

ASKED_MAX: Final = 20_000  # askings of the time by one callback: a coroutine that goes round without ever waiting
TURNS_MAX: Final = 200_000  # turns of the loop in one moment of virtual time: tasks that wake each other for ever


class Stalled(Exception):
    """Nothing can ever run again, or something runs for ever without time passing."""


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """What a coroutine yields on a loop of its own, where nothing takes time but sleeping: the machine's speed decides
    nothing. It may wait for no thread, process or socket."""
    loop = SimulationLoop(SimulatedClock(), Random(0))
    try:
        return loop.run_until_complete(main)
    finally:
        left = loop.unfinished()
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left) if left else asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class SimulatedClock(VirtualClock):
    """Virtual time that notices when a coroutine asks for it again and again without letting the loop turn.

    `wrong` is by how many nanoseconds the wall clock differs from the time that passes: a new process starts with
    another one, while one runs it stays.
    """

    __slots__ = ("asked", "start", "wrong")

    def __init__(self) -> None:
        super().__init__()
        self.start = self._now
        self.asked = 0
        self.wrong = 0

    def now(self) -> int:
        """Nanoseconds since the epoch."""
        self.asked += 1
        if self.asked > ASKED_MAX:
            raise Stalled("a coroutine goes round and round without waiting for anything")
        return self._now + self.wrong

    def call_at(self, due: int, wake: Callable[[], None]) -> Alarm:
        """By the loop, which runs on this clock."""
        return asyncio.get_running_loop().call_later(max(0, due - self._now - self.wrong) / NS_PER_S, wake)

    def seconds(self) -> float:
        """Since the start."""
        return (self._now - self.start) / NS_PER_S

    def advance_to(self, seconds: float) -> None:
        """To a number of seconds since the start."""
        self._now = max(self._now, self.start + math.ceil(seconds * NS_PER_S))


class SimulationLoop(asyncio.BaseEventLoop):
    """Runs on the clock's time. `tasks` are the unfinished ones, in the order of their making."""

    _ready: deque[asyncio.Handle]  # of asyncio.BaseEventLoop, which does not declare them
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, clock: SimulatedClock, random: Random) -> None:
        super().__init__()
        self._clock = clock
        self._random = random
        self._made = 0
        self._turns = 0
        self.set_debug(False)

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._clock.seconds()

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """A task whose name begins with its number, so that tasks have an order that does not depend on addresses."""
        self._made += 1
        return super().create_task(coro, name=f"{self._made:09d} {name or ''}", context=context)

    def unfinished(self) -> list[asyncio.Task[Any]]:
        """All tasks but the running one, oldest first."""
        current = asyncio.current_task(self)
        found = [task for task in asyncio.all_tasks(self) if task is not current]
        return sorted(found, key=asyncio.Task.get_name)

    def forget_timers(self) -> None:
        """No timer that is set goes off: whoever set them is gone."""
        for timer in self._scheduled:
            timer.cancel()

    def _run_once(self) -> None:
        """One turn: due timers join what is ready; all of that runs."""
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)
        now = 0.0
        if ready:
            self._turns += 1
            if self._turns > TURNS_MAX:
                raise Stalled(f"{TURNS_MAX} turns of the event loop without time passing")
        else:
            if not scheduled:
                raise Stalled("nothing is ready and no timer is set: everybody waits for somebody else")
            self._turns = 0
            now = scheduled[0].when()
            self._clock.advance_to(now)
        if scheduled:
            now = max(now, self._clock.seconds())  # nanoseconds do not hold every float: the timer counts
            due: list[asyncio.Handle] = []
            while scheduled and scheduled[0].when() <= now:
                timer = heapq.heappop(scheduled)
                if not timer._cancelled:
                    due.append(timer)
            if len(due) > 1:
                self._random.shuffle(due)
            ready.extend(due)
        clock = self._clock
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                clock.asked = 0
                handle._run()

    def run_in_executor(self, executor: object, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]  # the loop's own stub asks for unpacked types
        """No threads here: what others do beside the loop happens at once, so that a seed stays one run."""
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  # it is the caller's
            done.set_exception(error)
        return done

    def _write_to_self(self) -> None:
        """There are no other threads to wake this one."""

    def _process_events(self, event_list: list[object]) -> None:
        """There are no events but timers."""
