"""Rows and verdicts, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from tests.benchmark.hops import Hop
from tests.benchmark.samples import Estimate

EMPTY = "empty call, bare"


class Goal(msgspec.Struct, frozen=True):
    """What is wanted of a row; about the median, and about the interval's worse end too where it says so."""

    wanted: str
    reached: bool
    value: float

    def __str__(self) -> str:
        return f"{'ok' if self.reached else 'below'}: {self.wanted}, is {self.value:.3g}"


class Row(msgspec.Struct, frozen=True):
    """One measurement: what, how many at once, how fast, compared with what, what limits it, what is wanted."""

    group: str
    name: str
    at_once: int
    unit: str
    rate: Estimate
    cpu_us: Estimate
    """Processor time of the server (in process: of everything) per unit."""
    p50_ms: float
    against: str
    ratio: Estimate | None
    cpu_ratio: Estimate | None
    limit: str
    goals: tuple[Goal, ...] = ()
    later: tuple[Goal, ...] = ()
    """What it shall reach one day."""


class Figure(msgspec.Struct, frozen=True):
    """A single figure."""

    name: str
    value: Estimate
    unit: str
    goals: tuple[Goal, ...] = ()
    later: tuple[Goal, ...] = ()


class Machine(msgspec.Struct, frozen=True):
    """What it was measured on."""

    processors: int
    python: str
    grpcio: str
    others: float
    """Processors that were busy with something else, on average."""


class Report(msgspec.Struct, frozen=True):
    """A run."""

    machine: Machine
    pairs: int
    slice_seconds: float
    rows: tuple[Row, ...]
    hops: tuple[Hop, ...]
    figures: tuple[Figure, ...]

    def json(self) -> str:
        """For programs."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def text(self) -> str:
        """For people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        machine = self.machine
        yield (
            f"{machine.processors} processors, Python {machine.python}, grpcio {machine.grpcio}; "
            f"{machine.others:.1f} processors were busy with other things."
        )
        yield (
            f"{self.pairs} interleaved pairs of {self.slice_seconds:g} s; medians, in brackets 95% intervals. "
            "Compare ratios: single figures repeat to about 20%."
        )
        group = ""
        for row in self.rows:
            if row.group != group:
                group = row.group
                yield ""
                yield group
                yield _columns("", "at once", "per second", "CPU us each", "p50 ms", "rate ratio", "CPU ratio", "limit")
            yield _columns(
                row.name,
                str(row.at_once),
                f"{row.rate.median:,.0f} {row.unit}",
                f"{row.cpu_us.median:,.0f}",
                f"{row.p50_ms:.2f}" if row.p50_ms else "",
                _bracketed(row.ratio),
                _bracketed(row.cpu_ratio),
                row.limit,
            )
            for goal in row.goals:
                yield f"{'':36}{goal}"
            for goal in row.later:
                yield f"{'':36}later, {goal}"
        yield ""
        yield "One CompleteWorkItem hop by hop, CPU us per call (a stage: all stages minus all but that one)"
        for hop in self.hops:
            yield f"  {hop.name:<32}{hop.us.median:8.2f}  [{hop.us.low:.2f} to {hop.us.high:.2f}]"
        yield f"  {'sum':<32}{sum(hop.us.median for hop in self.hops):8.2f}"
        for row in self.rows:
            if row.name == EMPTY and row.at_once > 1:
                name = f"goal: 1/4 of an empty call, {row.at_once}"
                yield f"  {name:<32}{row.cpu_us.median / 4:8.2f}  one day"
        yield ""
        yield "Figures"
        for figure in self.figures:
            value = figure.value
            yield f"  {figure.name:<44}{value.median:10,.2f} {figure.unit:<6} [{value.low:,.2f} to {value.high:,.2f}]"
            for goal in figure.goals:
                yield f"{'':36}{goal}"
            for goal in figure.later:
                yield f"{'':36}later, {goal}"


def _columns(name: str, *rest: str) -> str:
    widths: Sequence[int] = (8, 18, 12, 9, 23, 23)
    cells = [f"{text:>{width}}" for text, width in zip(rest, widths, strict=False)]
    return f"  {name:<34}{''.join(cells)}  {rest[-1]}".rstrip()


def _bracketed(value: Estimate | None) -> str:
    return f"{value.median:.3g} [{value.low:.3g}-{value.high:.3g}]" if value is not None else ""
