"""`python -m tests.fuzz [--target NAME]... [--inputs N] [--seed N] [--number N]`; exit status 1 after a finding."""

from __future__ import annotations

import argparse
import logging
import random
import sys

import structlog

from tests.fuzz.fuzz import feed, fuzz, input_of
from tests.fuzz.targets import targets


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--target", action="append", help="only this one; repeatable (default: all)")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="per target (default %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--number", type=int, help="only this input of the target, with its traceback")
    asked = parser.parse_args()
    chosen = [target for target in targets() if not asked.target or target.name in asked.target]
    if not chosen:
        parser.error("no such target")
    if asked.number is not None:
        for target in chosen:
            data = input_of(target, asked.seed, asked.number)
            print(f"{target.name}: {data!r}")
            print(feed(target, data))
            target.feed(data)
        return 0
    print(f"seed {asked.seed}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # a line for each input
    found = inputs = 0
    for target in chosen:
        result = fuzz(target, asked.inputs, asked.seed)
        inputs += result.inputs
        found += len(result.findings)
        print(
            f"{target.name:22} {result.inputs:10} inputs {result.accepted:10} accepted {result.seconds:8.1f} s "
            f"{len(result.findings):3} findings",
            flush=True,
        )
        for finding in result.findings:
            print(finding)
    print(f"{inputs} inputs, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
