"""Many episodes of one seed, in several processes: added up in their order, so that their number changes nothing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager
from typing import Final

import msgspec

from tests.simulation.fates import FAULTS
from tests.simulation.simulation import EPISODE_STEPS, Outcome, Plan, simulate

TOGETHER: Final = 4  # episodes per errand of a process: less than two seconds of work
AHEAD: Final = 4  # errands per process that are under way or wait
GARBAGE: Final = (100_000, 20, 1_000)  # what an episode leaves behind is mostly free of cycles


class Report(msgspec.Struct):
    """What a run found. A violation was found in `failed`, the first episode that has one."""

    steps: int = 0
    faults: Counter[str] = msgspec.field(default_factory=Counter)
    violations: list[str] = msgspec.field(default_factory=list)
    commits: int = 0
    events: int = 0
    lives: int = 0
    episodes: int = 0
    trace: int = 0
    hashed: int = 0
    processor_s: float = 0.0
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    met: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)
    failed: Outcome | None = None

    def line(self) -> str:
        """The one line."""
        return (
            f"{self.steps} steps, {sum(self.faults.values())} faults, {len(self.violations)} violations, "
            f"{self.commits} commits, {self.events} events, {self.lives} lives, "
            f"trace {self.trace:08x}, log {self.hashed:08x}"
        )

    def add(self, outcome: Outcome) -> None:
        """One more episode, the next one."""
        self.episodes += 1
        self.steps += outcome.steps
        self.faults.update(outcome.faults)
        self.commits += outcome.commits
        self.events += outcome.events
        self.lives += outcome.lives
        self.outcomes.update(outcome.outcomes)
        self.met.update(outcome.met)
        self.trace = zlib.crc32(outcome.trace.to_bytes(4, "big"), self.trace)
        self.hashed = zlib.crc32(outcome.hashed.to_bytes(4, "big"), self.hashed)
        if outcome.violations:
            self.failed, self.violations = outcome, outcome.violations


def plans(seed: int, steps: int, faults: frozenset[str] = frozenset(FAULTS), first: int = 0) -> Iterator[Plan]:
    """The episodes of a run of `steps` commands, from number `first` on."""
    number = first
    while steps > 0:
        yield Plan(seed, number, min(steps, EPISODE_STEPS), faults)
        steps -= EPISODE_STEPS
        number += 1


def run(
    asked: Iterator[Plan],
    jobs: int = 1,
    tell: Callable[[str], None] | None = None,
    planted: Callable[[], AbstractContextManager[None]] | None = None,
    told: Callable[[Report], None] | None = None,
) -> Report:
    """Run episodes until one finds something wrong. With several `jobs` in so many processes."""
    report = Report()
    for outcome, seconds in _here(asked, tell, planted) if jobs == 1 else _beside(asked, jobs):
        report.add(outcome)
        report.processor_s += seconds
        if told is not None:
            told(report)
        if outcome.violations:
            break
    return report


def _here(
    asked: Iterator[Plan],
    tell: Callable[[str], None] | None,
    planted: Callable[[], AbstractContextManager[None]] | None,
) -> Iterator[tuple[Outcome, float]]:
    thresholds = gc.get_threshold()
    gc.set_threshold(*GARBAGE)
    try:
        for plan in asked:
            before = _processor_s()
            if planted is None:
                outcome = simulate(plan, tell)
            else:
                with planted():
                    outcome = simulate(plan, tell)
            yield outcome, _processor_s() - before
    finally:
        gc.set_threshold(*thresholds)


def _beside(asked: Iterator[Plan], jobs: int) -> Iterator[tuple[Outcome, float]]:
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        waiting: list[Future[tuple[bytes, float]]] = []
        try:
            while True:
                while len(waiting) < jobs * AHEAD and (some := _some(asked)):
                    waiting.append(pool.submit(_errand, some))
                if not waiting:
                    return
                packed, seconds = waiting.pop(0).result()
                for outcome in _outcomes.decode(packed):
                    yield outcome, seconds
                    seconds = 0.0
        finally:
            for future in waiting:
                future.cancel()


def _some(asked: Iterator[Plan]) -> list[Plan]:
    return [plan for plan, _ in zip(asked, range(TOGETHER), strict=False)]


def _errand(some: Sequence[Plan]) -> tuple[bytes, float]:
    before = _processor_s()
    found: list[Outcome] = []
    gc.set_threshold(*GARBAGE)
    for plan in some:
        found.append(simulate(plan))
        if found[-1].violations:
            break
    return msgspec.msgpack.encode(found), _processor_s() - before


def _processor_s() -> float:
    spent = os.times()
    return spent.user + spent.system


_outcomes: Final = msgspec.msgpack.Decoder(list[Outcome])
