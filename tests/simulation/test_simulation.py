"""The simulation finds nothing; and it would."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from functools import partial

import msgspec
import pytest

from tests.conftest import Budget
from tests.repository.tree import ROOT
from tests.simulation import coverage
from tests.simulation.fates import FAULTS, Strike, parse_strikes
from tests.simulation.planted import BUGS, Bug, hunt, hunt_all
from tests.simulation.runs import Report, plans, run
from tests.simulation.shrinking import command_line, grouped, kind_of, only_text, parse_only, shrink
from tests.simulation.simulation import Outcome, Plan, simulate

SEED = 20_260
STEPS_PER_BUDGET = 10  # simulated steps for each one of the budget: 200,000 of them take CI about a minute
FAULTLESS_SHARE = 40  # one step in so many is simulated without faults
PLANTED_STEPS = 1_000_000  # within which every planted bug must be found
LOOK_STEPS = 60_000  # for each bug in CI
EARLY = 1_500  # CI looks for those that were found within so many steps; a larger budget for all of them
TYPES_MET = 42  # of the event types; NetReset and CompletionsForgotten are rare, ItemReturned needs a stream of workers
JOBS = os.cpu_count() or 1


def explained(report: Report, seed: int) -> str:
    assert report.failed is not None
    return f"scripts/simulate --seed {seed} --episode {report.failed.number} --steps 1000 --trace: {report.violations}"


@pytest.mark.long
def test_no_violation_under_any_faults(budget: Budget) -> None:
    steps = budget.steps * STEPS_PER_BUDGET
    report = run(plans(SEED, steps), JOBS)
    print("\n".join(coverage.table(report.met, frozenset(FAULTS))))
    print(coverage.summary(report.met, frozenset(FAULTS)))
    print(report.line())
    assert report.violations == [], explained(report, SEED)
    assert report.steps >= steps
    if steps >= 200_000:
        assert all(report.faults[kind] for kind in FAULTS), report.faults
        refused = sum(count for outcome, count in report.outcomes.items() if not outcome.startswith("ok"))
        assert refused < report.steps * 0.6, report.outcomes  # most of what is asked is also done
        assert len({name for _, name in report.met}) >= TYPES_MET


def test_no_violation_without_faults(budget: Budget) -> None:
    report = run(plans(SEED, max(budget.steps * STEPS_PER_BUDGET // FAULTLESS_SHARE, 500), frozenset()))
    assert report.violations == [], explained(report, SEED)
    assert sum(report.faults.values()) == 0


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_of_fault_can_be_asked_for_alone(kind: str) -> None:
    needed = {"outage": {"outage", "lost"}}.get(kind, {kind})  # recovery fails only when something is to be recovered
    report = Report()
    for plan in plans(SEED, 20_000, frozenset(needed)):
        report = run(iter([plan]))
        assert report.violations == [], explained(report, SEED)
        if report.faults[kind]:
            break
    assert set(report.faults) <= needed
    assert report.faults[kind] > 0


def test_a_seed_is_one_run_and_another_one_is_another() -> None:
    first, again, other = run(plans(3, 1_500)), run(plans(3, 1_500)), run(plans(4, 1_500))
    assert (first.line(), first.faults, first.met) == (again.line(), again.faults, again.met)
    assert other.trace != first.trace
    assert other.hashed != first.hashed


def test_the_command_line_replays_in_any_process() -> None:
    lines = {_told("--seed", "3", "--steps", "2500", *more) for more in (("--jobs", "2"), ())}
    lines.add(_told("--seed", "3", "--steps", "2500", hash_seed="7"))
    assert lines == {run(plans(3, 2_500)).line()}


@pytest.mark.long
def test_the_order_of_sets_decides_nothing(budget: Budget) -> None:
    steps = budget.steps // 5
    told = _told("--seed", "7", "--steps", str(steps), "--jobs", str(JOBS), hash_seed="4")
    assert told == _told("--seed", "7", "--steps", str(steps), "--jobs", str(JOBS), hash_seed="1")


def test_an_episode_is_the_same_alone() -> None:
    together = [simulate(plan) for plan in plans(5, 2_500)]
    assert simulate(Plan(5, 2, 500)) == together[2]


def test_a_run_that_is_told_its_commands_and_faults_is_the_same_run() -> None:
    bug = _bug("ack before commit")
    plan = Plan(SEED, 0)
    with bug.planted():
        found = simulate(plan)
        told = msgspec.structs.replace(plan, commands=grouped(found.commands), strikes=frozenset(found.strikes))
        again = simulate(told)
    assert found.violations
    assert (again.violations, again.hashed, again.trace) == (found.violations, found.hashed, found.trace)


def test_a_failing_episode_is_made_smaller() -> None:
    bug = _bug("stale snapshot")
    report = hunt(bug, SEED, PLANTED_STEPS)
    assert report.failed is not None
    plan = Plan(SEED, report.failed.number)
    small, outcome = shrink(plan, report.failed, partial(_with, bug), 4.0)
    assert small.commands is not None
    assert small.strikes is not None
    assert kind_of(outcome) == kind_of(report.failed)
    assert sum(len(numbers) for _, numbers in small.commands) < len(report.failed.commands)
    assert len(small.strikes) < len(report.failed.strikes)
    ended = _simulated(*shlex.split(command_line(small, f'--plant "{bug.name}"'))[1:])
    assert ended.returncode == 1
    assert outcome.violations[0] in ended.stdout


def test_names_of_commands_and_faults_are_read_as_they_are_written() -> None:
    commands = ((0, (1, 2, 3, 7)), (4, (9,)))
    assert only_text(commands) == "0:1-3,7/4:9"
    assert parse_only(only_text(commands)) == commands
    assert parse_strikes("late@12,crash@80") == {("late", 12), ("crash", 80)}
    for wrong in ("0:", "x:1", "0:3-1", "0:0"):
        with pytest.raises(ValueError, match=r"range of commands|invalid literal"):
            parse_only(wrong)
    with pytest.raises(ValueError, match="kind of fault"):
        parse_strikes("flood@1")


def test_a_fault_that_is_asked_for_happens() -> None:
    struck: frozenset[Strike] = frozenset({("refused", 20), ("crash", 40), ("slow", 3)})
    outcome = simulate(Plan(SEED, 0, 400, strikes=struck))
    assert outcome.violations == []
    assert outcome.faults == {"refused": 1, "crash": 1, "slow": 1}


@pytest.mark.long
def test_planted_bugs_are_found(budget: Budget) -> None:
    wanted = [bug for bug in BUGS if bug.found <= max(EARLY, budget.steps // 10)]
    assert len({bug.module for bug in wanted}) >= 12
    missed = [
        f"{bug.name} in {bug.module}, {report.steps} steps"
        for bug, report in hunt_all(SEED, max(LOOK_STEPS, budget.steps), JOBS, wanted)
        if not report.violations
    ]
    assert missed == []


def test_planted_bugs_are_in_many_files() -> None:
    assert len({bug.module for bug in BUGS}) >= 12
    assert all(bug.found <= PLANTED_STEPS for bug in BUGS)
    assert all((ROOT / "knhk_workflow" / bug.module).is_file() for bug in BUGS)
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def _bug(name: str) -> Bug:
    return next(bug for bug in BUGS if bug.name == name)


def _with(bug: Bug, plan: Plan) -> Outcome:
    with bug.planted():
        return simulate(plan)


def _told(*arguments: str, hash_seed: str = "0") -> str:
    ended = _simulated(*arguments, hash_seed=hash_seed)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()[-1]


def _simulated(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
