"""Clocks: an alarm comes once, in its order, and not at all once it was cancelled."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from knhk_workflow import SkippingClock, VirtualClock

NS = 1_000_000_000


async def turns() -> None:
    """What was to be called in the next turns of the loop has been."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_is_due_already_comes_once_and_not_before_its_alarm_is_known() -> None:
    for clock in (VirtualClock(), SkippingClock()):
        came: list[str] = []
        alarm = clock.call_at(clock.now() - NS, partial(came.append, "past"))
        cancelled = clock.call_at(clock.now() - NS, lambda: pytest.fail("it was cancelled"))
        assert not came, "whoever keeps the alarm could take it for one that is still to come"
        cancelled.cancel()
        await asyncio.sleep(0.01)
        assert came == ["past"]
        clock.skip_to(clock.now() + NS)
        await turns()
        assert came == ["past"]
        alarm.cancel()


async def test_virtual_alarms_come_in_their_order() -> None:
    clock = VirtualClock()
    came: list[int] = []
    for seconds in (3, 1, 2, 2):
        clock.call_at(clock.now() + seconds * NS, partial(came.append, seconds))
    clock.advance(2)
    assert came == [1, 2, 2]
    clock.advance(0.5)
    assert came == [1, 2, 2]
    clock.advance(0.5)
    assert came == [1, 2, 2, 3]


async def test_cancelled_alarms_are_forgotten() -> None:
    """A service sets one for what is far away each time that it has looked."""
    clock = VirtualClock()
    for _ in range(1_000):
        alarm = clock.call_at(clock.now() + 365 * 86_400 * NS, lambda: pytest.fail("it was cancelled"))
        alarm.cancel()
        alarm.cancel()
    assert not clock._alarms
    clock.advance(366 * 86_400)
