"""The crash sweep: `python -m tests.sweep [--mode MODE]... [--every N | --point N] [--seed N] [--strict]`.

Prints a table, and what is wrong with the command that shows it; the exit status is 1 when anything is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.sweep.sweep import MODES, sweep


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description="Every I/O point, every kind of fault.")
    parser.add_argument("--mode", action="append", choices=MODES, help="only this kind of fault; repeatable")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th point (default: all)")
    parser.add_argument("--point", type=int, metavar="N", help="only this point")
    parser.add_argument("--seed", type=int, default=1, help="of what is torn and kept (default %(default)s)")
    parser.add_argument("--strict", action="store_true", help="names are safe only when their directory was synced")
    parser.add_argument("--without-sync", action="store_true", help="let the workload do without durable commits")
    asked = parser.parse_args()
    began = time.monotonic()
    every, offset = (1_000_000, asked.point) if asked.point is not None else (asked.every, 0)
    with tempfile.TemporaryDirectory(prefix="sweep-") as place:
        tallies = sweep(
            Path(place),
            tuple(asked.mode or MODES),
            every,
            offset=offset,
            seed=asked.seed,
            strict=asked.strict,
            sync=not asked.without_sync,
        )
    columns = ("points", "volumes", "lost", "twice", "partial", "refused", "slowest ms")
    print(f"{'fault':8}", *(f"{column:>10}" for column in columns))
    for mode, tally in tallies.items():
        counts = (tally.points, tally.faults, tally.lost, tally.twice, tally.partial, tally.refused, tally.slowest_ms)
        print(f"{mode:8}", *(f"{count:10}" for count in counts))
    problems = [problem for tally in tallies.values() for problem in tally.problems]
    for problem in problems[:200]:
        print(problem)
    print(f"{len(problems)} problems, {time.monotonic() - began:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
