"""How many steps the deterministic simulation takes in a second of one processor: what a long run costs."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from tests.benchmark.processes import serve_questions
from tests.benchmark.samples import Estimate, estimate
from tests.simulation.runs import plans, run

SEED: Final = 11
WARM_UP_STEPS: Final = 500  # documents are parsed, verified and compiled once per process


class Simulate(msgspec.Struct):
    """Simulate so many steps, in so many portions."""

    steps: int
    portions: int


class Simulated(msgspec.Struct):
    """Steps per second of processor time, and what was wrong."""

    steps: int
    rate: Estimate
    violations: int


class Simulation:
    """Answers in a process of its own."""

    async def answer(self, asked: Simulate) -> Simulated:
        """Measures; in a thread, because the simulation brings its own event loop."""
        return await asyncio.to_thread(_measured, asked)


def _measured(asked: Simulate) -> Simulated:
    run(plans(SEED - 1, WARM_UP_STEPS))
    rates: list[float] = []
    steps = violations = 0
    for portion in range(asked.portions):
        report = run(plans(SEED + portion, max(1, asked.steps // asked.portions)))
        rates.append(report.steps / report.processor_s)
        steps += report.steps
        violations += len(report.violations)
    return Simulated(steps, estimate(rates), violations)


if __name__ == "__main__":
    asyncio.run(serve_questions(Simulate, Simulation().answer))
