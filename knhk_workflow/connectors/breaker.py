"""A circuit breaker: who keeps failing is left alone for a while, then tried once.

    closed -> open        `failures` in a row within `window`
    open -> half-open     after `pause`: one call is let through
    half-open -> closed   it succeeded;  -> open again when it failed

Time comes in as an argument: nanoseconds that never decrease.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from knhk_workflow.model.units import NS_PER_S

BreakerState = Literal["closed", "open", "half-open"]


class BreakerRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a breaker opens, and for how long. Seconds."""

    failures: int = 5
    window: float = 60.0
    pause: float = 60.0


class Breaker:
    """The breaker of one target."""

    __slots__ = ("_failed", "_opened", "_rule", "_trying", "state")

    def __init__(self, rule: BreakerRule) -> None:
        self._rule = rule
        self._failed: list[int] = []  # when, since the last success; never more than the rule asks for
        self._opened = 0
        self._trying = False
        self.state: BreakerState = "closed"

    def admits(self, now: int) -> bool:
        """Whether a call may be made now. True in half-open state takes the one place: report what became of it."""
        if self.state == "closed":
            return True
        if self.state == "open":
            if now < self.reopens:
                return False
            self.state = "half-open"
            self._trying = False
        if self._trying:
            return False
        self._trying = True
        return True

    @property
    def reopens(self) -> int:
        """When an open breaker lets a call through again."""
        return self._opened + round(self._rule.pause * NS_PER_S)

    def succeeded(self) -> None:
        """A call was answered."""
        self.state = "closed"
        self._failed.clear()
        self._trying = False

    def failed(self, now: int) -> None:
        """A call was not answered as it should be."""
        if self.state == "half-open":
            self._open(now)
            return
        if self.state == "open":
            return  # a call that was under way when it opened
        self._failed.append(now)
        self._failed = [then for then in self._failed if now - then <= self._rule.window * NS_PER_S]
        if len(self._failed) >= self._rule.failures:
            self._open(now)

    def undecided(self) -> None:
        """A call ended without telling anything about the other side: the place in half-open state is free again."""
        self._trying = False

    def _open(self, now: int) -> None:
        self.state = "open"
        self._opened = now
        self._failed.clear()
        self._trying = False
