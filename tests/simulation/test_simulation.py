"""The simulation finds nothing; and it would."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import Budget
from tests.repository.tree import ROOT
from tests.simulation.disk import FAULTS
from tests.simulation.planted import BUGS, Bug
from tests.simulation.simulation import Report, simulate

SEED = 20_260
FAULTLESS_SHARE = 10  # one step in so many is simulated without faults
PLANTED_STEPS = 60_000  # the shyest of the planted bugs needs about a third of it


def explained(report: Report, seed: int) -> str:
    return (
        f"scripts/simulate --seed {seed} --episode {report.episode} --steps {report.at_step} --faults all --trace: "
        f"{report.violations}"
    )


@pytest.mark.long
def test_no_violation_under_any_faults(budget: Budget) -> None:
    report = simulate(SEED, budget.steps)
    assert report.violations == [], explained(report, SEED)
    assert report.steps >= budget.steps
    if budget.steps >= 20_000:
        assert all(report.faults[kind] for kind in FAULTS if kind != "slow"), report.faults
        refused = sum(count for outcome, count in report.outcomes.items() if not outcome.startswith("ok"))
        assert refused < report.steps * 0.6, report.outcomes  # most of what is asked is also done


def test_no_violation_without_faults(budget: Budget) -> None:
    report = simulate(SEED, max(budget.steps // FAULTLESS_SHARE, 500), frozenset())
    assert report.violations == []
    assert sum(report.faults.values()) == 0


def test_a_seed_is_one_run() -> None:
    first, again, other = simulate(3, 1_500), simulate(3, 1_500), simulate(4, 1_500)
    assert (first.trace, first.commits, first.events, first.faults) == (
        again.trace,
        again.commits,
        again.events,
        again.faults,
    )
    assert other.trace != first.trace


def test_an_episode_is_the_same_alone() -> None:
    lines: list[str] = []
    simulate(5, 2_500, tell=lines.append)
    alone: list[str] = []
    simulate(5, 500, tell=alone.append, episode=2)
    assert len(alone) > 400
    begin = len(lines) - 1 - lines[::-1].index(alone[0])  # an episode before it may have taken a step more or less
    assert lines[begin : begin + 400] == alone[:400]


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_command_line_does_not_depend_on_hashes(hash_seed: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", "3", "--steps", "1500"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == simulate(3, 1_500).line()


@pytest.mark.long
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    with bug.planted():
        report = simulate(SEED, PLANTED_STEPS)
    assert report.violations, f"{bug.name} in {bug.module} was not found in {report.steps} steps"
    again = simulate(SEED, report.at_step, episode=report.episode)
    assert again.violations == []  # it was the bug


def test_planted_bugs_are_in_many_places() -> None:
    assert len(BUGS) >= 12
    assert len({bug.module for bug in BUGS}) >= 6
