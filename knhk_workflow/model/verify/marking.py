"""Markings packed into one integer, and rules as masks over it: what exploration and coverability compute with.

Each place has a field of `bits` bits. Its top bit is a guard: it is never set in a valid marking and lets two markings
be compared in all places by one subtraction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from knhk_workflow.model.verify.system import Rule, System

TOKENS_MAX: Final = 64  # of one place while exploring, beyond what single rules take; more is taken for unbounded


@dataclass(slots=True)
class Packed:
    """A rule over packed markings. `needs` are (mask of a place, least value under it)."""

    rule: Rule
    needs: tuple[tuple[int, int], ...]
    take: int
    keep: int  # mask of what is not emptied
    put: int
    empty: int
    inputs: tuple[tuple[int, int], ...]  # of an OR-join: (mask, one token)


class Space:
    """The markings of a system."""

    def __init__(self, system: System) -> None:
        self.system = system
        rules = system.rules
        heaviest = max((count for rule in rules for count in (*rule.pre.values(), *rule.post.values())), default=1)
        self.tokens_max = TOKENS_MAX + 2 * heaviest
        self.bits = (self.tokens_max + heaviest).bit_length() + 1
        self.places = len(system.names)
        self.guard = sum(1 << (self.bits * place + self.bits - 1) for place in range(self.places))
        self.full = (1 << (self.bits * self.places)) - 1
        self.live = self.mask(system.live)
        self.end = self.mask((system.end,)) if system.end >= 0 else 0
        self.limit = sum(self.tokens_max << (self.bits * place) for place in range(self.places)) | self.guard
        self.initial = self.pack(system.initial)
        self.rules = [self._packed(rule) for rule in rules]

    def mask(self, places: Iterable[int]) -> int:
        """All bits of these places."""
        one = (1 << self.bits) - 1
        found = 0
        for place in places:
            found |= one << (self.bits * place)
        return found

    def pack(self, marking: Mapping[int, int]) -> int:
        """A marking as an integer."""
        found = 0
        for place, count in marking.items():
            found += count << (self.bits * place)
        return found

    def unpack(self, marking: int) -> Iterator[tuple[int, int]]:
        """The marked places with their tokens."""
        one = (1 << self.bits) - 1
        while marking:
            place = ((marking & -marking).bit_length() - 1) // self.bits
            shift = place * self.bits
            yield place, (marking >> shift) & one
            marking &= ~(one << shift)

    def covers(self, more: int, less: int) -> bool:
        """Whether `more` holds at least as much as `less` in every place."""
        return ((more | self.guard) - less) & self.guard == self.guard

    def beyond(self, marking: int) -> bool:
        """Whether some place holds more than `tokens_max`."""
        return (self.limit - marking) & self.guard != self.guard

    def ended(self, marking: int) -> bool:
        """Whether the net has completed: its end is marked, or nothing unfinished is left."""
        return marking & self.end != 0 if self.end else marking & self.live == 0

    def _packed(self, rule: Rule) -> Packed:
        needs = dict(rule.pre)
        for place in rule.reads:
            needs.setdefault(place, 1)
        return Packed(
            rule,
            tuple((self.mask((place,)), count << (self.bits * place)) for place, count in sorted(needs.items())),
            self.pack(rule.pre),
            self.full & ~self.mask(rule.resets),
            self.pack(rule.post),
            self.mask(rule.empty),
            tuple((self.mask((place,)), 1 << (self.bits * place)) for place in rule.join),
        )


def possible(rule: Packed, marking: int) -> bool:
    """Whether the rule can fire, an OR-join's verdict left aside."""
    for mask, least in rule.needs:
        if marking & mask < least:
            return False
    if rule.empty & marking:
        return False
    return not rule.inputs or any(marking & mask for mask, _ in rule.inputs)


def fired(rule: Packed, marking: int) -> int:
    """The marking after a possible rule."""
    marking -= rule.take
    for mask, one in rule.inputs:
        if marking & mask:
            marking -= one
    return (marking & rule.keep) + rule.put
