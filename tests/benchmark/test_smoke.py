"""The benchmark runs through, every row of it, with as little as possible. No figure is asserted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.benchmark.__main__ import Plan, measure
from tests.benchmark.report import Report
from tests.benchmark.samples import Estimate, estimate, ratio

SMALLEST = Plan(
    pairs=1,
    slice_seconds=0.001,
    at_once=(1, 2),
    starts=1,
    syncs=4,
    weighed_cases=5,
    hop_calls=10,
    most_calls=2,
    connector_calls=2,
    verifications=1,
    verified_tasks=30,
    verdicts=3,
    sizes=(20, 50),
    simulated_steps=50,
    open_seconds=0.005,
)


@pytest.mark.long
def test_every_row_is_measured_and_printed(tmp_path: Path) -> None:
    told: list[str] = []
    report = measure(SMALLEST, tmp_path, told.append)

    assert [(row.at_once, row.name) for row in report.rows if row.group.startswith("Over mTLS; ")] == [
        (at_once, name)
        for at_once in (1, 2)
        for name in (
            "empty call, bare",
            "empty call, our pipeline",
            "durable step (CompleteWorkItem)",
            "whole case (RunCase)",
            "RunCases of 100",
            "StreamRunCase",
            "GetCase",
        )
    ]
    assert all(row.rate.median > 0 and row.limit for row in report.rows)
    assert {figure.unit for figure in report.figures} == {"us", "s", "MiB", "KB", "/s"}
    text = report.text()
    names = [row.name for row in report.rows] + [hop.name for hop in report.hops]
    for name in names + [figure.name for figure in report.figures]:
        assert name in text
    assert msgspec.json.decode(report.json(), type=Report) == report
    assert told


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(1, 0, 0), (5, 0, 4), (6, 0, 5), (15, 3, 11), (30, 9, 20)],
)
def test_the_interval_of_a_median_is_the_binomial_one(count: int, low: int, high: int) -> None:
    """The ranks of the tables for n = 6, 15 and 30: 1 and 6, 4 and 12, 10 and 21."""
    values = [float(number) for number in range(count)]
    assert estimate(values[::-1]) == Estimate((count - 1) / 2, low, high)


def test_a_ratio_is_taken_pair_by_pair() -> None:
    assert ratio([(1.0, 2.0), (10.0, 20.0), (100.0, 200.0)]) == Estimate(2.0, 2.0, 2.0)
