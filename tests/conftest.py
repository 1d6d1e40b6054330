"""What every test run shares: the budget of the random suites, and a hypothesis profile that follows from it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, settings

pytest_plugins = ["knhk_workflow.pytest_plugin"]  # of this tree, whatever is installed

SIMULATION_STEPS = 20_000  # enough for every kind of fault to meet every kind of command many times; tens of seconds
SIMULATION_STEPS_SMALL = 500  # a smoke test: about a second
STEPS_PER_EXAMPLE = 200  # one generated example costs about as much as this many simulated steps
EXAMPLES_MIN = 10
EXAMPLES_MAX = 2_000


@dataclass(frozen=True, slots=True)
class Budget:
    """How long the random suites of this run look for a failure."""

    steps: int
    """Simulated steps, over all seeds of one suite together."""

    @property
    def examples(self) -> int:
        """Generated examples per property test."""
        return min(max(self.steps // STEPS_PER_EXAMPLE, EXAMPLES_MIN), EXAMPLES_MAX)


def parse_budget(text: str) -> Budget:
    """`small` or a positive number of steps."""
    if text == "small":
        return Budget(SIMULATION_STEPS_SMALL)
    if text.isdecimal() and int(text) > 0:
        return Budget(int(text))
    raise pytest.UsageError(f"--budget takes `small` or a positive number of steps, not {text!r}")


BUDGET = pytest.StashKey[Budget]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--budget",
        default=str(SIMULATION_STEPS),
        help="how long the random suites look: `small`, or a number of simulated steps (default %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    budget = parse_budget(config.getoption("--budget"))
    config.stash[BUDGET] = budget
    settings.register_profile(
        "knhk",
        max_examples=budget.examples,
        deadline=None,  # the machine is shared; slowness is the benchmark's business
        derandomize=bool(os.environ.get("CI")),  # a red run in CI is red again on the next desk
        print_blob=True,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("knhk")


@pytest.fixture(scope="session")
def budget(pytestconfig: pytest.Config) -> Budget:
    """The run's budget; a random suite takes its number of steps from here."""
    return pytestconfig.stash[BUDGET]
