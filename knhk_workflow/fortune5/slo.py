"""Service levels: the true 99th percentile of each runtime class over a sliding window.

Samples are counted in one histogram per second with 128 buckets per power of two, so a percentile is exact to 0.8% of
its value, costs the same however many samples there were, and forgets a second at a time. An empty window has no
percentile and breaks no limit.

    R1  hot    nanoseconds per routing decision of patterns 1-5, amortised over a batch; never a single call. No part of
               the engine routes in batches yet, so there are no samples of it, and its limit is kept
    W1  warm   one engine step in memory
    C1  cold   from the step to its durable commit
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from knhk_workflow.errors import Unsupported
from knhk_workflow.fortune5.config import Fortune5Config, SloConfig
from knhk_workflow.model.units import NS_PER_S

NS_PER_MS: Final = 1_000_000
_BITS: Final = 7  # 128 buckets per power of two
_PERCENTILE: Final = 0.99


class SloMetrics(msgspec.Struct, frozen=True):
    """The 99th percentiles of the window; None where nothing was measured. `samples` counts (R1, W1, C1)."""

    r1_p99_ns: float | None
    w1_p99_ms: float | None
    c1_p99_ms: float | None
    samples: tuple[int, int, int]
    window_seconds: int
    compliant: bool


class Window:
    """Durations in nanoseconds, remembered for `seconds`."""

    __slots__ = ("_by_second", "_now", "_seconds")

    def __init__(self, seconds: int, now: Callable[[], int]) -> None:
        self._seconds = seconds
        self._now = now
        self._by_second: dict[int, dict[int, int]] = {}

    def record(self, duration_ns: int) -> None:
        """Count one duration."""
        second = self._now() // NS_PER_S
        counts = self._by_second.get(second)
        if counts is None:
            self._forget(second)
            counts = self._by_second[second] = {}
        bucket = _bucket(duration_ns)
        counts[bucket] = counts.get(bucket, 0) + 1

    def p99(self) -> tuple[float | None, int]:
        """(99th percentile in ns, number of samples) of the window."""
        self._forget(self._now() // NS_PER_S)
        merged: dict[int, int] = {}
        for counts in self._by_second.values():
            for bucket, count in counts.items():
                merged[bucket] = merged.get(bucket, 0) + count
        total = sum(merged.values())
        left = total * _PERCENTILE
        for bucket in sorted(merged):
            left -= merged[bucket]
            if left <= 0:
                return _upper(bucket), total
        return None, 0

    def _forget(self, second: int) -> None:
        for old in [each for each in self._by_second if each <= second - self._seconds]:
            del self._by_second[old]


class ServiceLevels:
    """The windows of one engine."""

    __slots__ = ("_c1", "_config", "_w1")

    def __init__(self, config: SloConfig, now: Callable[[], int]) -> None:
        self._config = config
        self._w1 = Window(config.window_size_seconds, now)
        self._c1 = Window(config.window_size_seconds, now)

    def stepped(self, duration_ns: int) -> None:
        """An engine step took this long in memory (W1)."""
        self._w1.record(duration_ns)

    def committed(self, duration_ns: int) -> None:
        """A step took this long to become durable (C1)."""
        self._c1.record(duration_ns)

    def metrics(self) -> SloMetrics:
        """The window as it is now."""
        (w1, w1_count), (c1, c1_count) = self._w1.p99(), self._c1.p99()
        config = self._config
        return SloMetrics(
            r1_p99_ns=None,
            w1_p99_ms=w1 / NS_PER_MS if w1 is not None else None,
            c1_p99_ms=c1 / NS_PER_MS if c1 is not None else None,
            samples=(0, w1_count, c1_count),
            window_seconds=config.window_size_seconds,
            compliant=(w1 is None or w1 <= config.w1_p99_max_ms * NS_PER_MS)
            and (c1 is None or c1 <= config.c1_p99_max_ms * NS_PER_MS),
        )


class Fortune5Integration:
    """What `WorkflowEngine.with_fortune5` switched on. Raises Unsupported for parts that this version lacks."""

    __slots__ = ("config", "levels")

    def __init__(self, config: Fortune5Config, now: Callable[[], int]) -> None:
        for name in ("spiffe", "kms", "multi_region", "promotion"):
            if getattr(config, name) is not None:
                raise Unsupported(f"Fortune5Config.{name}", "leave it None")
        self.config = config
        self.levels = ServiceLevels(config.slo or SloConfig(), now)

    def get_slo_metrics(self) -> SloMetrics:
        """The 99th percentiles: r1 in ns, w1 and c1 in ms."""
        return self.levels.metrics()


def _bucket(value: int) -> int:
    """Power of two and the 7 bits below it; small values have a bucket each."""
    shift = value.bit_length() - _BITS - 1
    if shift <= 0:
        return max(value, 0)
    return (shift << (_BITS + 1)) | (value >> shift)


def _upper(bucket: int) -> float:
    """The largest value of a bucket."""
    shift, mantissa = bucket >> (_BITS + 1), bucket & ((1 << (_BITS + 1)) - 1)
    return float(((mantissa + 1) << shift) - 1) if shift else float(mantissa)
