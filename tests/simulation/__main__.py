"""`scripts/simulate`: a seed, a number of steps, the faults; exit status 0 when nothing is wrong."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from tests.simulation import coverage
from tests.simulation.fates import FAULTS, named, parse_strikes
from tests.simulation.planted import BUGS, Bug, hunt_all
from tests.simulation.runs import Report, plans, run
from tests.simulation.shrinking import command_line, parse_only, shrink
from tests.simulation.simulation import Outcome, Plan, simulate

TOLD_EVERY_S = 60.0  # of a long run

Planted = Callable[[], AbstractContextManager[None]]


def main() -> int:
    """Run the simulation that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="The engine under simulated faults. The last line says how many steps, faults and violations.",
    )
    parser.add_argument("--seed", type=int, default=1, help="decides everything; the same seed is the same run")
    parser.add_argument("--steps", type=int, default=20_000, help="commands to execute (default %(default)s)")
    parser.add_argument("--faults", default="all", help=f"all, none, or a list of: {','.join(FAULTS)}")
    parser.add_argument("--jobs", type=int, default=1, help="processes; the result is the same for any number of them")
    parser.add_argument("--episode", type=int, default=0, help="begin with this episode of the seed")
    parser.add_argument("--only", help="one episode with these commands: CALLER:FIRST-LAST,...[/CALLER:...]")
    parser.add_argument("--at", help="one episode with these faults: KIND@PLACE,... or none")
    parser.add_argument("--no-shrink", action="store_true", help="do not make a failing episode smaller")
    parser.add_argument("--trace", action="store_true", help="print every command and its outcome")
    parser.add_argument("--outcomes", action="store_true", help="print how often each outcome was met")
    parser.add_argument("--coverage", action="store_true", help="print which types of event met which faults how often")
    parser.add_argument(
        "--plant", metavar="BUG", help="put this bug into the engine: " + "; ".join(b.name for b in BUGS)
    )
    parser.add_argument("--planted", action="store_true", help="find every planted bug within --steps, and say when")
    asked = parser.parse_args()
    faults = {"all": frozenset(FAULTS), "none": frozenset[str]()}.get(asked.faults)
    if faults is None:
        faults = frozenset(filter(None, asked.faults.split(",")))
        if unknown := sorted(faults - set(FAULTS)):
            parser.error(f"unknown faults {', '.join(unknown)}; known are {', '.join(FAULTS)}")
    if asked.planted:
        return _hunt(asked.seed, asked.steps, asked.jobs)
    bug = next((bug for bug in BUGS if bug.name == asked.plant), None)
    if asked.plant and bug is None:
        parser.error(f"no bug {asked.plant!r}; there are: {'; '.join(each.name for each in BUGS)}")
    asked_plans = plans(asked.seed, asked.steps, faults, asked.episode)
    if asked.only is not None or asked.at is not None:
        try:
            commands = parse_only(asked.only) if asked.only is not None else None
            strikes = parse_strikes("" if asked.at == "none" else asked.at) if asked.at is not None else None
        except ValueError as error:
            parser.error(str(error))
        asked_plans = iter([Plan(asked.seed, asked.episode, asked.steps, faults, commands, strikes)])
    print(f"seed {asked.seed}, {asked.steps} steps, faults {asked.faults}", flush=True)
    began = last = time.perf_counter()

    def told(report: Report) -> None:
        nonlocal last
        if time.perf_counter() - last > TOLD_EVERY_S:
            last = time.perf_counter()
            print(f"{last - began:.0f} s: {report.line()}", flush=True)

    alone = asked.trace or bug is not None
    report = run(
        asked_plans,
        1 if alone else asked.jobs,
        print if asked.trace else None,
        bug.planted if bug is not None else None,
        told,
    )
    took = time.perf_counter() - began
    if asked.outcomes:
        for outcome, count in report.outcomes.most_common():
            print(f"{count:9d} {outcome}")
        print("faults: " + ", ".join(f"{count} {kind}" for kind, count in report.faults.most_common()))
    if asked.coverage:
        print("\n".join(coverage.table(report.met, faults)))
    print(coverage.summary(report.met, faults))
    if report.failed is not None:
        plan = Plan(asked.seed, report.failed.number, min(asked.steps, 1_000), faults)
        if asked.only is None and asked.at is None:
            _explain(plan, report.failed, bug, asked.no_shrink)
        else:
            print("\n".join(["", *report.violations, ""]))
    print(f"{report.steps / took:.0f} steps/s, {report.steps / report.processor_s:.0f} per second of one processor")
    print(report.line())
    return 1 if report.violations else 0


def _explain(plan: Plan, outcome: Outcome, bug: Bug | None, as_it_is: bool) -> None:
    """Print what is wrong, a smaller episode in which the same is wrong, and how to see it again."""
    print(f"\nviolations, seed {plan.seed}, episode {plan.number}, after {outcome.steps} steps of it:")
    for violation in outcome.violations:
        print(f"  {violation}")
    plant = f'--plant "{bug.name}"' if bug is not None else ""
    print(f"to see it again: {command_line(plan, plant)} --trace")
    if as_it_is:
        return
    small, found = shrink(plan, outcome, partial(_simulated, bug.planted if bug is not None else nullcontext))
    if small.commands is None or small.strikes is None:
        print("without the rest of the episode it does not happen\n")
        return
    commands = sum(len(numbers) for _, numbers in small.commands)
    print(
        f"smaller, {commands} commands of {len(small.commands)} callers and {len(small.strikes)} faults "
        f"({', '.join(map(named, sorted(small.strikes))) or 'none'}):"
    )
    for violation in found.violations[:3]:
        print(f"  {violation}")
    print(f"to see it again: {command_line(small, plant)} --trace\n", flush=True)


def _simulated(planted: Planted, plan: Plan) -> Outcome:
    with planted():
        return simulate(plan)


def _hunt(seed: int, steps: int, jobs: int) -> int:
    """Find every planted bug."""
    missed = total = 0
    for bug, report in hunt_all(seed, steps, jobs):
        total += report.steps
        if report.violations:
            print(f"{bug.name:44} {bug.module:24} {report.steps:8} steps  {report.violations[0][:60]}", flush=True)
        else:
            missed += 1
            print(f"{bug.name:44} {bug.module:24} not found in {report.steps} steps", flush=True)
    print(f"{total} steps, {len(BUGS) - missed} of {len(BUGS)} planted bugs found, seed {seed}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
