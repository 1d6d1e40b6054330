"""`scripts/simulate`: a seed, a number of steps, the faults; exit status 0 when nothing is wrong."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.disk import FAULTS
from tests.simulation.simulation import simulate


def main() -> int:
    """Run the simulation that the command line asks for."""
    parser = argparse.ArgumentParser(prog="scripts/simulate", description="The engine under simulated faults.")
    parser.add_argument("--seed", type=int, default=1, help="decides everything; the same seed is the same run")
    parser.add_argument("--steps", type=int, default=20_000, help="commands to execute (default %(default)s)")
    parser.add_argument("--faults", default="all", help=f"all, none, or a list of: {','.join(FAULTS)}")
    parser.add_argument("--episode", type=int, default=0, help="begin with this episode of the seed")
    parser.add_argument("--trace", action="store_true", help="print every command and its outcome")
    parser.add_argument("--outcomes", action="store_true", help="print how often each outcome was met")
    asked = parser.parse_args()
    faults = {"all": frozenset(FAULTS), "none": frozenset()}.get(asked.faults) or frozenset(
        kind for kind in asked.faults.split(",") if kind and asked.faults != "none"
    )
    unknown = sorted(faults - set(FAULTS))
    if unknown:
        parser.error(f"unknown faults {', '.join(unknown)}; known are {', '.join(FAULTS)}")
    print(f"seed {asked.seed}, {asked.steps} steps, faults {asked.faults}", flush=True)
    began, busy = time.perf_counter(), time.process_time()
    report = simulate(asked.seed, asked.steps, faults, print if asked.trace else None, asked.episode)
    took, busy = time.perf_counter() - began, time.process_time() - busy
    if asked.outcomes:
        for outcome, count in report.outcomes.most_common():
            print(f"{count:9d} {outcome}")
        print("faults: " + ", ".join(f"{count} {kind}" for kind, count in report.faults.most_common()))
    if report.violations:
        print(f"\nviolations, seed {asked.seed}, episode {report.episode}, step {report.at_step} of it:")
        for violation in report.violations:
            print(f"  {violation}")
        print(
            f"to see it again: scripts/simulate --seed {asked.seed} --episode {report.episode} "
            f"--steps {report.at_step} --faults {asked.faults} --trace\n"
        )
    print(f"{report.steps / took:.0f} steps/s, {report.steps / busy:.0f} per second of processor time")
    print(report.line())
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
