"""Counts and durations of calls, and their Prometheus text.

Label values are method names of the contract and codes, both from closed sets: no caller can grow the number of series.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

# From a cached read to the default deadline; the durable step of the goals lies in the middle.
BUCKETS_MS: Final = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0)


class Series:
    """Calls of one method that ended with one code."""

    __slots__ = ("buckets", "count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(BUCKETS_MS) + 1)  # the last one is for what took longer


@dataclass(frozen=True, slots=True)
class Family:
    """Numbers of one name that differ by their labels."""

    name: str
    doc: str
    kind: Literal["gauge", "counter"]
    values: Sequence[tuple[tuple[tuple[str, str], ...], float]]


def _escaped(text: str) -> str:
    """A label's value."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    """All digits of it: a timestamp has ten before the point, a counter as many as it takes."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(float(value))


class Counters:
    """All series, and gauges that are read when asked for."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], Series] = {}
        self._refused: dict[str, int] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._families: list[Callable[[], Iterable[Family]]] = []

    def ended(self, method: str, code: str, nanoseconds: int) -> None:
        """One call of `method` ended with `code` after this time."""
        series = self._calls.get((method, code))
        if series is None:
            series = self._calls[method, code] = Series()
        series.count += 1
        series.seconds += nanoseconds / 1e9
        series.buckets[bisect_left(BUCKETS_MS, nanoseconds / 1e6)] += 1

    def refused(self, reason: str) -> None:
        """One call was refused, or failed, for this reason: one of the contract's (UPPER_SNAKE)."""
        self._refused[reason] = self._refused.get(reason, 0) + 1

    def refusals(self) -> Mapping[str, int]:
        """How many calls were refused or failed, by reason."""
        return dict(self._refused)

    def gauge(self, name: str, doc: str, value: Callable[[], float]) -> None:
        """`knhk_<name>` is whatever `value` says when somebody reads the metrics."""
        self._gauges[name] = (doc, value)

    def families(self, told: Callable[[], Iterable[Family]]) -> None:
        """Numbers with labels, whatever `told` says when somebody reads the metrics."""
        self._families.append(told)

    def calls(self) -> Mapping[tuple[str, str], int]:
        """How many calls ended, by method and code."""
        return {key: series.count for key, series in self._calls.items()}

    def prometheus(self) -> str:
        """Everything in the text format 0.0.4."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterable[str]:
        yield "# HELP knhk_call_duration_seconds Calls by method and code, gRPC and REST alike."
        yield "# TYPE knhk_call_duration_seconds histogram"
        for (method, code), series in sorted(self._calls.items()):
            labels = f'method="{method}",code="{code}"'
            below = 0
            for bound, count in zip(BUCKETS_MS, series.buckets, strict=False):
                below += count
                yield f'knhk_call_duration_seconds_bucket{{{labels},le="{bound / 1000:g}"}} {below}'
            yield f'knhk_call_duration_seconds_bucket{{{labels},le="+Inf"}} {series.count}'
            yield f"knhk_call_duration_seconds_sum{{{labels}}} {series.seconds:.9f}"
            yield f"knhk_call_duration_seconds_count{{{labels}}} {series.count}"
        yield "# HELP knhk_calls_refused_total Calls that were refused or failed, by reason."
        yield "# TYPE knhk_calls_refused_total counter"
        for reason, count in sorted(self._refused.items()):
            yield f'knhk_calls_refused_total{{reason="{reason}"}} {count}'
        for name, (doc, value) in self._gauges.items():
            yield f"# HELP knhk_{name} {doc}"
            yield f"# TYPE knhk_{name} gauge"
            yield f"knhk_{name} {_number(value())}"
        for told in self._families:
            for family in told():
                yield f"# HELP knhk_{family.name} {family.doc}"
                yield f"# TYPE knhk_{family.name} {family.kind}"
                for pairs, number in family.values:
                    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in pairs)
                    yield f"knhk_{family.name}{{{shown}}} {_number(number)}"
