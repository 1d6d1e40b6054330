"""Making a system smaller without changing whether it can always end.

Four rules, applied until none fits. A *plain* rule only consumes and produces.

- A place whose consumers are all plain and need nothing else is skipped: whoever produces a token there is combined
  with each consumer (post-agglomeration, Berthelot 1986). It could have fired right then, and nothing can stop it.
- Two places with the same producers and consumers always hold the same number of tokens: one of them goes.
- Two rules that do the same: the one that stands for fewer tasks stays.
- A plain rule that puts back what it took goes; that it can happen is remembered in `echoes`.

What they keep: whether a marking without an end can be reached, the least number of tasks on the way to it, which rules
can ever fire. They are sound with resets, read arcs and OR-joins as long as the places that these look at stay, and
complete for nets that are built of nested blocks and for state machines: such a net, sound, shrinks to a single rule.
Desel and Esparza's rules for free-choice nets go further; what they would still reduce is left to the exploration.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Final

from knhk_workflow.model.verify.budget import Meter
from knhk_workflow.model.verify.system import Path, Rule, System

_POST_MAX: Final = 6  # places that a rule may produce in to be multiplied by a choice behind it
_PRODUCT_MAX: Final = 64  # rules that skipping one place may make
_WEIGHT_MAX: Final = 4_096  # tokens that one rule may put into one place

_Signature = tuple[object, ...]


@dataclass(slots=True)
class Reduced:
    """A system with fewer rules. `echoes`: places, and what can happen while they are marked without changing them."""

    system: System
    echoes: list[tuple[frozenset[int], Path]] = field(default_factory=list)


def reduce(system: System, meter: Meter) -> Reduced:
    """The smallest system that the rules lead to. Raises Spent."""
    return _Reduction(system, meter).run()


class _Reduction:
    def __init__(self, system: System, meter: Meter) -> None:
        self.system = system
        self.meter = meter
        self.rules: dict[int, Rule] = {}
        self.number = 0
        self.producers: dict[int, set[int]] = {place: set() for place in range(len(system.names))}
        self.consumers: dict[int, set[int]] = {place: set() for place in range(len(system.names))}
        self.signatures: dict[_Signature, int] = {}
        self.echoes: dict[frozenset[int], Path] = {}
        self.queue: list[tuple[int, int, int]] = []
        self.queued: set[int] = set()
        self.watched = set(system.initial) | ({system.end} if system.end >= 0 else set())
        self.emptied: set[int] = set()
        for rule in system.rules:
            self.watched |= rule.reads | rule.empty | rule.resets | set(rule.join)
            self.emptied |= rule.resets | rule.empty | ({system.end} if system.end >= 0 else set())
            if rule.urgent >= 0:
                self.watched.update(rule.pre)
        self.changed: set[int] = set()

    def run(self) -> Reduced:
        for rule in self._possible():
            ending = self.system.end in rule.post
            self._add(replace(rule, post={self.system.end: 1}) if ending else rule)  # nothing else is left then
        while self.changed:
            for place in sorted(self.changed):
                self._enqueue(place)
            self.changed.clear()
            while self.queue:
                _, _, place = heappop(self.queue)
                self.queued.discard(place)
                if not self._skip(place):
                    self._drop_twin(place)
                for other in sorted(self.changed):
                    self._enqueue(other)
                self.changed.clear()
        rules = [self.rules[number] for number in sorted(self.rules)]
        return Reduced(replace(self.system, rules=rules), list(self.echoes.items()))

    def _possible(self) -> list[Rule]:
        """The rules without those that need a token which nothing ever puts."""
        missing: list[int] = []
        wanting: dict[int, list[int]] = {}
        marked: set[int] = set()
        ready: list[int] = []
        found: list[int] = []
        for number, rule in enumerate(self.system.rules):
            self.meter.step()
            needed = set(rule.join) or (set(rule.pre) | rule.reads)
            missing.append(1 if rule.join else len(needed))
            for place in needed:
                wanting.setdefault(place, []).append(number)
            if not needed:
                ready.append(number)
        came = list(self.system.initial)
        while came or ready:
            while ready:
                number = ready.pop()
                found.append(number)
                came.extend(self.system.rules[number].post)
            while came:
                place = came.pop()
                if place not in marked:
                    marked.add(place)
                    for number in wanting.get(place, ()):
                        missing[number] -= 1
                        if missing[number] == 0:
                            ready.append(number)
        return [self.system.rules[number] for number in sorted(found)]

    def _enqueue(self, place: int) -> None:
        if place not in self.queued:
            self.queued.add(place)
            before, after = len(self.producers[place]), len(self.consumers[place])
            heappush(self.queue, (after > 1, before * after, place))

    # ----------------------------------------------------------------------------------------------------- changes

    def _add(self, rule: Rule) -> None:
        self.meter.step(1 + len(rule.post) // 16)
        if rule.simple and rule.pre == rule.post:
            places = frozenset(rule.pre)
            known = self.echoes.get(places)
            self.echoes[places] = rule.path if known is None else ("or", known, rule.path)
            return
        signature: _Signature = (
            frozenset(rule.pre.items()),
            frozenset(rule.post.items()),
            rule.resets,
            rule.reads,
            rule.empty,
            rule.join,
            rule.urgent,
        )
        twin = self.signatures.get(signature)
        if twin is not None:
            known_rule = self.rules[twin]
            first, second = (known_rule, rule) if known_rule.cost <= rule.cost else (rule, known_rule)
            self.rules[twin] = replace(first, path=("or", first.path, second.path))
            return
        number = self.number
        self.number += 1
        self.rules[number] = rule
        self.signatures[signature] = number
        for place in rule.pre:
            self.consumers[place].add(number)
        for place in rule.post:
            self.producers[place].add(number)
        self.changed.update(rule.pre)
        self.changed.update(rule.post)

    def _remove(self, number: int) -> Rule:
        rule = self.rules.pop(number)
        signature: _Signature = (
            frozenset(rule.pre.items()),
            frozenset(rule.post.items()),
            rule.resets,
            rule.reads,
            rule.empty,
            rule.join,
            rule.urgent,
        )
        del self.signatures[signature]
        for place in rule.pre:
            self.consumers[place].discard(number)
        for place in rule.post:
            self.producers[place].discard(number)
        self.changed.update(rule.pre)
        self.changed.update(rule.post)
        return rule

    # ------------------------------------------------------------------------------------------------------- rules

    def _skip(self, place: int) -> bool:
        """Combine the producers of `place` with its consumers, if that keeps what is asked for."""
        if place in self.watched or not self.consumers[place] or not self.producers[place]:
            return False
        after = [self.rules[number] for number in sorted(self.consumers[place])]
        before = [self.rules[number] for number in sorted(self.producers[place])]
        if any(not rule.simple or dict(rule.pre) != {place: 1} or place in rule.post for rule in after):
            return False
        if any(not self.emptied.isdisjoint(rule.post) for rule in after):
            return False
        if any(rule.post[place] > 1 and len(after) > 1 for rule in before):
            return False
        if len(after) > 1 and (
            len(before) * len(after) > max(_PRODUCT_MAX, len(before) + len(after))
            or any(len(rule.post) > _POST_MAX for rule in before)
        ):
            return False
        if any(place in places and places != {place} for places in self.echoes):
            return False
        if any(
            count * rule.post[place] + rule.post.get(other, 0) > _WEIGHT_MAX
            for rule in before
            for choice in after
            for other, count in choice.post.items()
        ):
            return False
        echo = self.echoes.pop(frozenset({place}), None)
        for number in sorted(self.producers[place]):
            self._remove(number)
        for number in sorted(self.consumers[place]):
            self._remove(number)
        for rule in before:
            for choice in after:
                self._add(self._combined(rule, choice, place, echo))
        return True

    def _combined(self, rule: Rule, choice: Rule, place: int, echo: Path | None) -> Rule:
        times = rule.post[place]
        post = {other: count for other, count in rule.post.items() if other != place}
        for other, count in choice.post.items():
            post[other] = post.get(other, 0) + count * times
        path = rule.path
        for _ in range(times):
            path = ("then", path, choice.path)
        if echo is not None:
            path = ("or", path, echo)
        return replace(rule, post=post, path=path, cost=rule.cost + choice.cost * times)

    def _drop_twin(self, place: int) -> None:
        """Remove `place` when another one always holds as much."""
        if place in self.watched or not (self.consumers[place] and self.producers[place]):
            return
        one = self.rules[min(self.consumers[place])]
        for other in sorted(one.pre):
            if other != place and other not in self.watched and self._twins(place, other):
                break
        else:
            return
        for number in sorted(self.consumers[place] | self.producers[place]):
            rule = self._remove(number)
            pre = {name: count for name, count in rule.pre.items() if name != place}
            post = {name: count for name, count in rule.post.items() if name != place}
            self._add(replace(rule, pre=pre, post=post))
        self.changed.discard(place)
        self._forget(place)

    def _forget(self, place: int) -> None:
        """A twin is gone: what its tokens told is told by the other's."""
        for places in [each for each in self.echoes if place in each]:
            path = self.echoes.pop(places)
            left = places - {place}
            known = self.echoes.get(left)
            self.echoes[left] = path if known is None else ("or", known, path)

    def _twins(self, one: int, other: int) -> bool:
        if self.consumers[one] != self.consumers[other] or self.producers[one] != self.producers[other]:
            return False
        self.meter.step(1 + len(self.consumers[one]) // 16)
        return all(
            self.rules[number].pre[one] == self.rules[number].pre[other] for number in self.consumers[one]
        ) and all(self.rules[number].post[one] == self.rules[number].post[other] for number in self.producers[one])
