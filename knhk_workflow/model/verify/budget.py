"""How much work a verification may take, counted rather than timed, so that the same workflow always gets the same
answer and registration never hangs."""

from __future__ import annotations

import msgspec

MARKINGS_MAX = 100_000  # kept in memory at about 300 bytes each
FIRST_MARKINGS = 3_000  # a net of people's size has fewer; everything is known of it then
STEPS_MAX = 400_000  # firings and backward steps; about two seconds of pure Python


class VerifyBudget(msgspec.Struct, frozen=True):
    """What one call of `verify` may spend on all nets of a workflow together.

    `first`: markings of each net that are looked at as it is, before it is made smaller.
    """

    markings: int = MARKINGS_MAX
    steps: int = STEPS_MAX
    first: int = FIRST_MARKINGS


class Spent(Exception):
    """The budget is used up. `what` says which part. Seen in this package only."""

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
            raise Spent(f"its {self._budget.markings:,} markings did not suffice")

    def step(self, count: int = 1) -> None:
        """So many more units of work. Raises Spent."""
        self.steps -= count
        if self.steps < 0:
            raise Spent(f"its {self._budget.steps:,} steps did not suffice")

    def part(self, markings: int, steps: int) -> Meter:
        """A smaller meter for a first try; what it spends counts here when `settle` is called."""
        return Meter(VerifyBudget(max(0, min(markings, self.markings)), max(0, min(steps, self.steps))))

    def settle(self, part: Meter) -> None:
        """Count what a part has spent. Its markings are forgotten, its steps were work."""
        self.steps -= min(self.steps, part._budget.steps - max(0, part.steps))
