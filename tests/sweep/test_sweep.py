"""A sample of the crash sweep; `python -m tests.sweep` does all of it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.conftest import Budget
from tests.sweep.sweep import Mode, Sweep, Tally, sweep

STEPS_PER_POINT = 2_000  # a point with all its faults costs about as much as this many simulated steps
POINTS = 150  # about what the workload has
SAMPLE_MIN = 3


@pytest.fixture
def seed() -> int:
    """What the sample is drawn by: printed, and the same every time in CI."""
    chosen = 1 if os.environ.get("CI") else random.randrange(1_000)
    print(f"sweep seed {chosen}")
    return chosen


def every(budget: Budget, weight: int = 1) -> int:
    """The distance between the points of a sample."""
    return max(1, POINTS // max(SAMPLE_MIN, budget.steps // (STEPS_PER_POINT * weight)))


def problems(tallies: dict[Mode, Tally]) -> list[str]:
    return [problem for tally in tallies.values() for problem in tally.problems]


def test_the_shim_sees_every_call_and_a_full_run_acknowledges_everything(tmp_path: Path) -> None:
    made = Sweep(tmp_path)
    try:
        assert made.points() > 100
    finally:
        made.close()


@pytest.mark.long
@pytest.mark.parametrize("strict", [False, True], ids=["journal", "posix"])
def test_nothing_acknowledged_is_lost_by_a_crash_or_a_loss_of_power(
    tmp_path: Path, budget: Budget, seed: int, strict: bool
) -> None:
    step = every(budget)
    tallies = sweep(
        tmp_path,
        ("crash", "torn", "power", "both", "again", "stop"),
        step,
        offset=seed % step,
        seed=seed,
        strict=strict,
    )
    assert not problems(tallies)
    assert all(tally.points >= SAMPLE_MIN - 1 for tally in tallies.values())


@pytest.mark.long
def test_a_full_volume_and_a_failing_device_lose_nothing_and_work_goes_on(
    tmp_path: Path, budget: Budget, seed: int
) -> None:
    step = every(budget, 3)
    tallies = sweep(tmp_path, ("ENOSPC", "EIO"), step, offset=seed % step, seed=seed)
    assert not problems(tallies)
    assert all(tally.points >= SAMPLE_MIN - 1 for tally in tallies.values())


@pytest.mark.long
def test_the_sweep_finds_what_a_store_without_syncing_loses(tmp_path: Path) -> None:
    tallies = sweep(tmp_path, ("power",), 12, offset=60, sync=False)
    assert tallies["power"].lost > 2, tallies["power"]
