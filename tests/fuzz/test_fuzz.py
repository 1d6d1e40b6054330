"""A short run of the fuzzer over every target."""

from __future__ import annotations

import os
import random

import pytest

from tests.conftest import Budget
from tests.fuzz.fuzz import fuzz
from tests.fuzz.targets import Target, targets

TARGETS = {target.name: target for target in targets()}
STEPS_PER_INPUT = 10  # simulated steps that cost about as much as feeding one input to the cheapest target


@pytest.mark.parametrize("name", TARGETS)
def test_only_errors_of_ours_come_out(name: str, budget: Budget) -> None:
    target: Target = TARGETS[name]
    seed = 1 if os.environ.get("CI") else random.randrange(1_000_000)
    print(f"fuzz seed {seed}")
    result = fuzz(target, max(50, budget.steps // (STEPS_PER_INPUT * target.weight)), seed)
    assert not result.findings, "\n".join(str(finding) for finding in result.findings)


@pytest.mark.parametrize("name", TARGETS)
def test_the_examples_are_good(name: str) -> None:
    """Else the fuzzer would only ever see the first check of a decoder."""
    target = TARGETS[name]
    good = 0
    for example in target.examples:
        try:
            target.feed(example)
        except target.may_raise:
            continue
        good += 1
    assert good, "no example is accepted"
