"""Can a marking with at least these tokens be reached? Backward coverability in reset nets.

Backward from the wanted marking, each rule gives the least marking from which it leads there; only minimal ones are
kept. That ends for every reset net (Abdulla, Cerans, Jonsson, Tsay 1996; Dufourd, Finkel, Schnoebelen 1998). What a
reset net cannot say is left out so that more is possible, never less: places that must be empty are not looked at,
urgent rules need not be hurried, an OR-join may fire over any one input (the optimistic reading, YAWL). So "no" is
certain here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from knhk_workflow.model.verify.budget import Meter, Spent
from knhk_workflow.model.verify.marking import Packed, Space
from knhk_workflow.model.verify.system import Rule


class Coverability:
    """Questions about one space. With `join`, an OR-join's rule, they are asked for its verdict: it may not fire
    itself, the end of an explicit net leads nowhere, a signal that comes from nowhere is nothing to wait for."""

    def __init__(self, space: Space, meter: Meter, join: Packed | None = None) -> None:
        self.space = space
        self.meter = meter
        self.producers: dict[int, list[_Backward]] = {}
        self.feeding: dict[int, set[int]] = {}  # place -> places that a producer of it needs
        for packed in space.rules:
            rule = packed.rule
            if join is not None and (
                (rule.join and rule.task == join.rule.task)
                or space.system.end in rule.post
                or not space.system.signals.isdisjoint(rule.pre)
            ):
                continue
            for step in _backwards(rule):
                for place in step.puts:
                    self.producers.setdefault(place, []).append(step)
                    self.feeding.setdefault(place, set()).update(step.needs)

    def closure(self, places: Iterable[int]) -> set[int]:
        """Every place from which a token may come into one of `places`."""
        found: set[int] = set()
        pending = list(places)
        while pending:
            place = pending.pop()
            if place not in found:
                found.add(place)
                pending.extend(self.feeding.get(place, ()))
        return found

    def reaches(self, marking: int, wanted: Iterable[int]) -> bool:
        """Whether from `marking` one can be reached that covers one of `wanted`. Raises Spent."""
        space = self.space
        minimal: list[int] = []
        pending: deque[int] = deque()
        for goal in wanted:
            if space.covers(marking, goal):
                return True
            minimal.append(goal)
            pending.append(goal)
        while pending:
            goal = pending.popleft()
            if goal not in minimal:
                continue
            for step in self._towards(goal):
                self.meter.step()
                before = step.before(space, goal)
                if before is None:
                    continue
                if space.covers(marking, before):
                    return True
                self.meter.step(1 + len(minimal) // 32)
                if space.beyond(before):
                    raise Spent("a place may hold more tokens than are looked at")
                if any(space.covers(before, known) for known in minimal):
                    continue
                minimal = [known for known in minimal if not space.covers(known, before)]
                minimal.append(before)
                pending.append(before)
        return False

    def _towards(self, goal: int) -> list[_Backward]:
        found: dict[int, _Backward] = {}
        for place, _ in self.space.unpack(goal):
            for step in self.producers.get(place, ()):
                found[id(step)] = step
        return list(found.values())


@dataclass(frozen=True, slots=True)
class _Backward:
    """One rule, read backwards."""

    pre: Mapping[int, int]
    reads: frozenset[int]
    puts: Mapping[int, int]
    resets: frozenset[int]

    @property
    def needs(self) -> Iterable[int]:
        return (*self.pre, *self.reads)

    def before(self, space: Space, goal: int) -> int | None:
        """The least marking from which the rule leads to one that covers `goal`; None when it empties what that has."""
        needed: dict[int, int] = dict(self.pre)
        for place, count in space.unpack(goal):
            left = count - self.puts.get(place, 0)
            if left > 0:
                if place in self.resets:
                    return None
                needed[place] = needed.get(place, 0) + left
        for place in self.reads:
            needed.setdefault(place, 1)
        return space.pack(needed)


def _backwards(rule: Rule) -> Iterable[_Backward]:
    ways: list[Mapping[int, int]] = [{place: 1} for place in rule.join]
    for pre in ways or [rule.pre]:
        yield _Backward(pre, rule.reads, rule.post, rule.resets)
