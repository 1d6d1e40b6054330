"""Time and identity, injected: the engine never asks the machine for either by itself.

`SystemClock` is wall time at its start plus monotonic time since, so it never runs backwards when somebody sets the
machine's clock. `SkippingClock` runs as that does and skips ahead when told to: for trying a workflow out.
`VirtualClock` stands still until it is told to move: for tests, for the simulator, for users' own tests.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol

import uuid_utils
from sortedcontainers import SortedDict

from knhk_workflow.model.units import NS_PER_S

SALT_BYTES = 16


class Clock(Protocol):
    """Where now comes from."""

    def now(self) -> int:
        """Nanoseconds since the epoch, never less than before."""
        ...

    def wall(self) -> int:
        """What the calendar says, in nanoseconds since the epoch: it jumps when somebody sets the machine's clock."""
        ...

    def call_at(self, due: int, wake: Callable[[], None]) -> Alarm:
        """Call `wake` once in the running event loop when it is `due`, or soon after it; a little early is possible.
        Never before this returns: whoever keeps the alarm has it by then."""
        ...


class Alarm(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """It is not wanted any more. After it has come: nothing."""
        ...


class SystemClock:
    """Wall time when created, monotonic from then on."""

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def now(self) -> int:
        """Nanoseconds since the epoch."""
        return self._offset + time.monotonic_ns()

    def wall(self) -> int:
        """What the machine's clock is set to."""
        return time.time_ns()

    def call_at(self, due: int, wake: Callable[[], None]) -> Alarm:
        """By the event loop, which has the same monotonic time."""
        return asyncio.get_running_loop().call_later(max(0, due - self.now()) / NS_PER_S, wake)


class _SkippingAlarm:
    """A call that comes after real time, or sooner when some is skipped."""

    __slots__ = ("_alarms", "_wake", "due", "real")

    def __init__(self, alarms: set[_SkippingAlarm], due: int, wake: Callable[[], None]) -> None:
        self._alarms = alarms
        self._wake = wake
        self.due = due
        self.real: Alarm | None = None
        alarms.add(self)

    def __call__(self) -> None:
        self._alarms.discard(self)
        self._wake()

    def cancel(self) -> None:
        self._alarms.discard(self)
        if self.real is not None:
            self.real.cancel()


class SkippingClock:
    """The machine's time, and on top of it what was skipped."""

    __slots__ = ("_alarms", "_real", "_skipped")

    def __init__(self) -> None:
        self._real = SystemClock()
        self._skipped = 0
        self._alarms: set[_SkippingAlarm] = set()

    def now(self) -> int:
        """Nanoseconds since the epoch."""
        return self._real.now() + self._skipped

    def wall(self) -> int:
        """The calendar, as far ahead of the machine's."""
        return self._real.wall() + self._skipped

    def skip_to(self, now: int) -> None:
        """Let time pass until `now`; never backwards."""
        self._skipped += max(0, now - self.now())
        for alarm in list(self._alarms):
            if alarm.real is not None:
                alarm.real.cancel()
            self._set(alarm)

    def call_at(self, due: int, wake: Callable[[], None]) -> Alarm:
        """By the event loop, sooner when time is skipped."""
        alarm = _SkippingAlarm(self._alarms, due, wake)
        self._set(alarm)
        return alarm

    def _set(self, alarm: _SkippingAlarm) -> None:
        alarm.real = self._real.call_at(alarm.due - self._skipped, alarm)


_Alarms = SortedDict[tuple[int, int], Callable[[], None]]
"""What is to be called, by (due, in which order it was asked for)."""


class _VirtualAlarm:
    """A call that comes when somebody lets enough time pass."""

    __slots__ = ("_alarms", "_place")

    def __init__(self, alarms: _Alarms, place: tuple[int, int]) -> None:
        self._alarms = alarms
        self._place = place

    def cancel(self) -> None:
        self._alarms.pop(self._place, None)


class VirtualClock:
    """A clock that stands still until it is advanced."""

    __slots__ = ("_alarms", "_made", "_now", "_set")

    def __init__(self, start: int = 1_767_225_600 * NS_PER_S) -> None:
        self._now = start
        self._made = 0
        self._set = 0
        self._alarms: _Alarms = SortedDict()

    def now(self) -> int:
        """Nanoseconds since the epoch."""
        return self._now

    def wall(self) -> int:
        """The same time, unless somebody has set the calendar."""
        return self.now() + self._set

    def set_wall(self, seconds: float) -> None:
        """Set the calendar that much ahead of `now`, or behind it; `now` does not notice."""
        self._set = round(seconds * NS_PER_S)

    def advance(self, seconds: float) -> None:
        """Let time pass; never backwards."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self.skip_to(self._now + round(seconds * NS_PER_S))

    def skip_to(self, now: int) -> None:
        """Let time pass until `now`; never backwards."""
        self._now = max(self._now, now)
        while self._alarms and self._alarms.peekitem(0)[0][0] <= self._now:
            self._alarms.popitem(0)[1]()

    def call_at(self, due: int, wake: Callable[[], None]) -> Alarm:
        """When `advance` gets there; in the next turn of the loop when it is there already."""
        if due <= self._now:
            return asyncio.get_running_loop().call_soon(wake)
        self._made += 1
        place = due, self._made
        self._alarms[place] = wake
        return _VirtualAlarm(self._alarms, place)


class Ids(Protocol):
    """Where new ids and salts come from."""

    def case_id(self) -> str:
        """A fresh case id."""
        ...

    def salt(self) -> bytes:
        """SALT_BYTES unpredictable bytes."""
        ...


class SystemIds:
    """UUIDv7 case ids (sorted by time of creation) and salts from the system's random source."""

    __slots__ = ("_random",)

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def case_id(self) -> str:
        """A UUIDv7."""
        return str(uuid_utils.uuid7())

    def salt(self) -> bytes:
        """Random bytes."""
        return self._random.randbytes(SALT_BYTES)


class SeededIds:
    """The same ids in the same order for the same seed."""

    __slots__ = ("_count", "_random")

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._count = 0

    def case_id(self) -> str:
        """case-1, case-2, ..."""
        self._count += 1
        return f"case-{self._count}"

    def salt(self) -> bytes:
        """Bytes that the seed decides."""
        return self._random.randbytes(SALT_BYTES)
