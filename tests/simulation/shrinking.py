"""Makes a failing episode smaller: fewer callers, faults and commands, as long as the same kind of thing is wrong.

Delta debugging (Zeller and Hildebrandt 2002): leave out halves, then quarters, and so on, of what is left. Commands and
faults have names that do not depend on each other, so any subset of them is an episode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

import msgspec

from tests.simulation.fates import PER_CLIENT, Strike, named
from tests.simulation.simulation import Outcome, Plan

TRIES_MAX: Final = 600
SECONDS_MAX: Final = 60.0
T = TypeVar("T")

Command = tuple[int, int]
"""(caller, number)"""


def kind_of(outcome: Outcome) -> str:
    """What kind of thing is wrong first: the word before the colon."""
    return outcome.violations[0].partition(":")[0] if outcome.violations else ""


def shrink(plan: Plan, outcome: Outcome, simulate: Callable[[Plan], Outcome]) -> tuple[Plan, Outcome]:
    """The smallest failing plan that is found, and what it gives. `outcome` is that of `plan`, and failing."""
    return _Shrinking(plan, outcome, simulate).run()


class _Shrinking:
    def __init__(self, plan: Plan, outcome: Outcome, simulate: Callable[[Plan], Outcome]) -> None:
        self._simulate = simulate
        self._kind = kind_of(outcome)
        self._best = (plan, outcome)
        self._commands: list[Command] = list(outcome.commands)
        self._strikes: list[Strike] = list(dict.fromkeys(outcome.strikes))
        self._tries = 0
        self._until = time.monotonic() + SECONDS_MAX

    def run(self) -> tuple[Plan, Outcome]:
        if not self._fails(self._commands, self._strikes):
            return self._best  # it depends on more than commands and faults
        before = -1
        while before != self._size() and self._going():
            before = self._size()
            self._without_groups()
            self._commands = self._less(self._commands, self._fails_with)
            self._strikes = self._less(self._strikes, self._fails_under)
        return self._best

    def _size(self) -> int:
        return len(self._commands) + len(self._strikes)

    def _without_groups(self) -> None:
        """Leave out whole callers, and whole kinds of faults."""
        for caller in dict.fromkeys(who for who, _ in self._commands):
            commands = [command for command in self._commands if command[0] != caller]
            if self._fails_with(commands):
                self._commands = commands
        for kind in dict.fromkeys(kind for kind, _ in self._strikes):
            strikes = [strike for strike in self._strikes if strike[0] != kind]
            if self._fails_under(strikes):
                self._strikes = strikes

    def _going(self) -> bool:
        return self._tries < TRIES_MAX and time.monotonic() < self._until

    def _fails_with(self, commands: list[Command]) -> bool:
        return self._fails(commands, self._strikes)

    def _fails_under(self, strikes: list[Strike]) -> bool:
        return self._fails(self._commands, strikes)

    def _fails(self, commands: Sequence[Command], strikes: Iterable[Strike]) -> bool:
        if not commands or not self._going():
            return False
        self._tries += 1
        plan = msgspec.structs.replace(
            self._best[0], commands=grouped(commands), strikes=frozenset(strikes), steps=len(commands)
        )
        outcome = self._simulate(plan)
        if kind_of(outcome) != self._kind:
            return False
        self._best = (plan, outcome)
        return True

    def _less(self, parts: list[T], fails: Callable[[list[T]], bool]) -> list[T]:
        """As few of the parts as can be found that still fail."""
        if parts and fails([]):
            return []
        pieces = 2
        while len(parts) > 1 and self._going():
            size = -(-len(parts) // pieces)
            for first in range(0, len(parts), size):
                rest = parts[:first] + parts[first + size :]
                if rest and fails(rest):
                    parts, pieces = rest, max(pieces - 1, 2)
                    break
            else:
                if size == 1:
                    break
                pieces = min(pieces * 2, len(parts))
        return parts


def grouped(commands: Iterable[Command]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Commands by caller, in order."""
    found: dict[int, list[int]] = {}
    for caller, number in sorted(commands):
        found.setdefault(caller, []).append(number)
    return tuple((caller, tuple(numbers)) for caller, numbers in found.items())


def command_line(plan: Plan, more: str = "") -> str:
    """What shows an episode again."""
    words = ["scripts/simulate", f"--seed {plan.seed}", f"--episode {plan.number}", f"--steps {plan.steps}"]
    if plan.commands is not None:
        words.append(f"--only {only_text(plan.commands)}")
    if plan.strikes is not None:
        words.append(f"--at {','.join(map(named, sorted(plan.strikes))) or 'none'}")
    return " ".join(filter(None, (*words, more)))


def only_text(commands: Iterable[tuple[int, Sequence[int]]]) -> str:
    """`0:1-5,9/2:3`: the first to fifth and the ninth command of caller 0, the third of caller 2."""
    return "/".join(f"{caller}:{_ranges(numbers)}" for caller, numbers in commands)


def _ranges(numbers: Sequence[int]) -> str:
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ",".join("-".join(map(str, each)) for each in found)


def parse_only(text: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """What `only_text` wrote. Raises ValueError."""
    found: list[Command] = []
    for part in text.split("/"):
        caller, _, ranges = part.partition(":")
        for one in ranges.split(","):
            first, _, last = one.partition("-")
            if not 0 < int(first) <= int(last or first) < PER_CLIENT:
                raise ValueError(f"{one!r} is no range of commands")
            found += ((int(caller), number) for number in range(int(first), int(last or first) + 1))
    return grouped(found)
