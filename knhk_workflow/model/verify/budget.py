"""How much work a verification may take, counted rather than timed, so that the same workflow always gets the same
answer and registration never hangs."""

from __future__ import annotations

import msgspec

MARKINGS_MAX = 100_000  # kept in memory at about 300 bytes each
STEPS_MAX = 400_000  # firings and backward steps; about two seconds of pure Python


class VerifyBudget(msgspec.Struct, frozen=True):
    """What one call of `verify` may spend on all nets of a workflow together."""

    markings: int = MARKINGS_MAX
    steps: int = STEPS_MAX


class Spent(Exception):  # noqa: N818 - a signal inside this package, never seen outside
    """The budget is used up. `what` names the part that ran out."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Meter:
    """What is left of a budget."""

    def __init__(self, budget: VerifyBudget) -> None:
        self._budget = budget
        self.markings = budget.markings
        self.steps = budget.steps

    def marking(self) -> None:
        """One more marking is kept. Raises Spent."""
        self.markings -= 1
        if self.markings < 0:
            raise Spent(f"the budget of {self._budget.markings:,} markings")

    def step(self, count: int = 1) -> None:
        """So many more units of work. Raises Spent."""
        self.steps -= count
        if self.steps < 0:
            raise Spent(f"the budget of {self._budget.steps:,} steps")

    def part(self, markings: int, steps: int) -> Meter:
        """A smaller meter for a first try; what it spends counts here when `settle` is called."""
        return Meter(VerifyBudget(max(0, min(markings, self.markings)), max(0, min(steps, self.steps))))

    def settle(self, part: Meter) -> None:
        """Count what a part has spent. Its markings are forgotten, its steps were work."""
        self.steps -= min(self.steps, part._budget.steps - max(0, part.steps))
