"""Every marking that a net can reach, cheapest first, until one is stuck, all are known, or the budget is spent.

Cheapest means: fewest tasks completed. The first stuck marking that is met is therefore one with a shortest way to it.
When all markings are known and none is stuck, those from which no end can be reached are what is left: a livelock.

An OR-join is enabled by its true rule in each marking (`coverability.py`), remembered for what its verdict depends on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from knhk_workflow.model.verify.budget import Meter, Spent
from knhk_workflow.model.verify.coverability import Coverability
from knhk_workflow.model.verify.marking import Packed, Space, fired, possible

_Buckets = dict[int, deque[tuple[int, Sequence[int]]]]
"""By cost: markings that are still to be looked at, with the rules that can fire there."""


@dataclass(slots=True)
class Exploration:
    """What was found. `way` is the sequence of rules to the stuck or doomed marking `at`."""

    space: Space
    markings: list[int] = field(default_factory=list)
    fired: set[int] = field(default_factory=set)  # rules that can fire
    ended: set[int] = field(default_factory=set)  # numbers of markings in which the net has completed
    stuck: bool = False
    doomed: bool = False
    at: int = 0
    way: list[int] = field(default_factory=list)
    unfinished: str = ""  # why not all markings are known
    emptied: dict[int, int] = field(default_factory=dict)  # rule -> whatever it found in the places that it empties
    joined: dict[int, set[int]] = field(default_factory=dict)  # rule of an OR-join -> how many inputs were marked

    @property
    def complete(self) -> bool:
        """Whether every reachable marking is known."""
        return not self.unfinished and not self.stuck


def explore(space: Space, meter: Meter, idle: Sequence[frozenset[int]] = ()) -> Exploration:
    """The reachable markings of `space` from its initial one. While all places of one of `idle` are marked, something
    can happen that changes nothing: that is no way on, but it is not being stuck either."""
    return _Explorer(space, meter, idle).run()


class _Explorer:
    def __init__(self, space: Space, meter: Meter, idle: Sequence[frozenset[int]]) -> None:
        self.space = space
        self.meter = meter
        self.idle = [[space.mask((place,)) for place in places] for places in idle]
        self.found = Exploration(space)
        self.numbers: dict[int, int] = {}
        self.costs: list[int] = []
        self.parents: list[tuple[int, int]] = []
        self.sources: list[list[int]] = []
        self.verdicts = {
            number: _Verdict(space, packed, meter) for number, packed in enumerate(space.rules) if packed.inputs
        }
        groups: dict[int, list[int]] = {}
        for number, packed in enumerate(space.rules):
            if packed.rule.urgent >= 0:
                groups.setdefault(packed.rule.urgent, []).append(number)
        self.urgent = [groups[group] for group in sorted(groups, reverse=True)]
        self.free = [number for number, packed in enumerate(space.rules) if packed.rule.urgent < 0]
        self.affected = self._affected()

    def _affected(self) -> list[tuple[list[int], frozenset[int]]]:
        """For each rule, the free rules that its firing may enable or disable."""
        watching: dict[int, list[int]] = {}
        for number in self.free:
            rule = self.space.rules[number].rule
            for place in {*rule.pre, *rule.reads, *rule.empty, *rule.join}:
                watching.setdefault(place, []).append(number)
        found = []
        for packed in self.space.rules:
            rule = packed.rule
            touched = {*rule.pre, *rule.post, *rule.resets, *rule.join}
            numbers = sorted({number for place in touched for number in watching.get(place, ())})
            found.append((numbers, frozenset(numbers)))
        return found

    def run(self) -> Exploration:
        found, rules = self.found, self.space.rules
        initial = self.space.initial
        enabled = [number for number in self.free if possible(rules[number], initial)]
        buckets: _Buckets = {}
        done: set[int] = set()
        cost = 0
        try:
            buckets[0] = deque([(self._number(initial, 0, (-1, -1)), enabled)])
            while buckets:
                bucket = buckets.get(cost)
                if not bucket:
                    buckets.pop(cost, None)
                    cost += 1
                    continue
                number, enabled_ = bucket.popleft()
                if number in done:
                    continue
                done.add(number)
                if self._expand(number, enabled_, cost, buckets):
                    return found
        except Spent as spent:
            found.unfinished = spent.what
            return found
        if not found.unfinished and not found.doomed:
            self._look_for_doom()
        return found

    def _expand(self, number: int, enabled: Sequence[int], cost: int, buckets: _Buckets) -> bool:
        """Take note of one marking and its successors. True when nothing leads on from it."""
        found, space = self.found, self.space
        marking = found.markings[number]
        if space.ended(marking):
            found.ended.add(number)
            return False
        chosen = self._urgent(marking) or [
            each for each in enabled if each not in self.verdicts or self.verdicts[each].fires(marking)
        ]
        if not chosen:
            found.doomed = any(all(marking & mask for mask in masks) for masks in self.idle)
            found.stuck = not found.doomed
            found.at = marking
            found.way = self._way(number)
            return True
        self.meter.step(len(chosen))
        found.fired.update(chosen)
        for each in chosen:
            packed = space.rules[each]
            rule = packed.rule
            if rule.resets:
                found.emptied[each] = found.emptied.get(each, 0) | (marking - packed.take)
            if packed.inputs:
                count = sum(1 for mask, _ in packed.inputs if marking & mask)
                found.joined.setdefault(each, set()).add(count)
            after = fired(packed, marking)
            if space.beyond(after):
                found.unfinished = "the tokens in one place may grow without bound"
                continue
            known = self.numbers.get(after)
            reached = cost + rule.cost
            if known is None:
                known = self._number(after, reached, (number, each))
            elif reached < self.costs[known]:
                self.costs[known] = reached
                self.parents[known] = (number, each)
            else:
                self.sources[known].append(number)
                continue
            self.sources[known].append(number)
            numbers, affected = self.affected[each]
            still = [other for other in enabled if other not in affected]
            still.extend(other for other in numbers if possible(space.rules[other], after))
            buckets.setdefault(reached, deque()).append((known, still))
        return False

    def _urgent(self, marking: int) -> list[int]:
        """The urgent rules of the first group that has any that can fire."""
        for group in self.urgent:
            chosen = [each for each in group if possible(self.space.rules[each], marking)]
            if chosen:
                return chosen
        return []

    def _number(self, marking: int, cost: int, parent: tuple[int, int]) -> int:
        self.meter.marking()
        number = self.numbers[marking] = len(self.found.markings)
        self.found.markings.append(marking)
        self.costs.append(cost)
        self.parents.append(parent)
        self.sources.append([])
        return number

    def _way(self, number: int) -> list[int]:
        way: list[int] = []
        while True:
            number, rule = self.parents[number]
            if number < 0:
                return way[::-1]
            way.append(rule)

    def _look_for_doom(self) -> None:
        """The cheapest marking that no end can be reached from."""
        found = self.found
        hopeful = set(found.ended)
        pending = list(hopeful)
        while pending:
            for source in self.sources[pending.pop()]:
                if source not in hopeful:
                    hopeful.add(source)
                    pending.append(source)
        doomed = [number for number in range(len(found.markings)) if number not in hopeful]
        if doomed:
            first = min(doomed, key=lambda number: (self.costs[number], number))
            found.doomed = True
            found.at = found.markings[first]
            found.way = self._way(first)


class _Verdict:
    """Whether one OR-join may fire: not while one more of its inputs can still be marked."""

    def __init__(self, space: Space, packed: Packed, meter: Meter) -> None:
        self.inputs = packed.inputs
        self.search = Coverability(space, meter, join=packed)
        self.above = space.mask(self.search.closure(packed.rule.join))
        self.known: dict[int, bool] = {}

    def fires(self, marking: int) -> bool:
        marked = sum(one for mask, one in self.inputs if marking & mask)
        empty = [one for mask, one in self.inputs if not marking & mask]
        if not empty:
            return True
        part = marking & self.above
        verdict = self.known.get(part)
        if verdict is None:
            verdict = self.known[part] = not self.search.reaches(part, [marked + one for one in empty])
        return verdict
