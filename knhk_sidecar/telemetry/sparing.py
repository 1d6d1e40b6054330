"""Lines that others can cause are bounded, so that nobody can fill a disk with them, or take the time they cost."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

_log = structlog.get_logger("knhk_sidecar.call")


class Sparing:
    """Admits `burst` lines at once, and `a_second` in the long run. Those that are left out are counted, and told of as
    `calls_refused` before the next one that is admitted."""

    def __init__(self, burst: int, a_second: float, detail: str, now: Callable[[], float] = time.monotonic) -> None:
        """`detail`: what the lines are about, for people. `now` in seconds."""
        self._burst = burst
        self._a_second = a_second
        self._detail = detail
        self._now = now
        self._room = float(burst)
        self._at = now()
        self._left_out = 0

    def admits(self) -> bool:
        """Whether a line may be written now."""
        now = self._now()
        self._room = min(self._burst, self._room + (now - self._at) * self._a_second)
        self._at = now
        if self._room < 1:
            self._left_out += 1
            return False
        self._room -= 1
        if self._left_out:
            _log.info("calls_refused", count=self._left_out, detail=f"{self._detail}, since the last such line")
            self._left_out = 0
        return True
