"""What goes wrong, and when: every place where something can is numbered, and the seed says which numbers are struck.

The places of one kind are counted from the start of an episode: the 12th commit, the 80th read, the 3rd restart of the
engine. So `late@12` names one fault for good. A run that is told its faults has these and no others; what exactly a
fault does (how long, which byte) follows from the seed and its number, so that it is the same when others are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random
from typing import Final

COMMIT_FAULTS: Final = ("refused", "full", "lost", "applied", "late", "crash", "torn")
"""What happens to one commit: definitely not written (twice; `full`: the volume stays so for a while), unknown and not
written, unknown and written, unknown and perhaps written by the time of recovery, the process dies just before
or after it, the process dies in the middle of it: what came after the last synced commit is partly there."""

FAULTS: Final = (
    *COMMIT_FAULTS,
    "unreadable",
    "poison",
    "outage",
    "slow",
    "clock",
    "restart",
    "cancel",
    "deadline",
)
"""All kinds. `unreadable`: a read is refused; `poison`: the records of a case are damaged until somebody restores them;
`outage`: recovery fails some times; `slow`: everything takes time; `clock`: the wall clock is another after a restart;
`restart`: a clean close and open; `cancel`: a caller goes away; `deadline`: a caller's time runs out."""

Strike = tuple[str, int]
"""A fault: its kind, and the number of the place."""

PER_CLIENT: Final = 1_000_000  # the places of a caller's commands: its number times this, plus that of the command
_STREAM: Final = 1 << 64


def mixed(*parts: int) -> int:
    """64 bits that depend on all parts, the same in every process."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = ((state ^ part) * 0xBF58476D1CE4E5B9) % _STREAM
        state ^= state >> 29
        state = (state * 0x94D049BB133111EB) % _STREAM
        state ^= state >> 32
    return state


def named(strike: Strike) -> str:
    """As a command line says it."""
    return f"{strike[0]}@{strike[1]}"


def parse_strikes(text: str) -> frozenset[Strike]:
    """`late@12,crash@80`. Raises ValueError."""
    found = set()
    for word in filter(None, text.split(",")):
        kind, _, place = word.partition("@")
        if kind not in FAULTS:
            raise ValueError(f"{kind!r} is no kind of fault; there are {', '.join(FAULTS)}")
        found.add((kind, int(place)))
    return frozenset(found)


class Fates:
    """The faults of one episode. `struck` are those that happened, in order; `calm`: nothing goes wrong any more."""

    def __init__(
        self,
        seed: int,
        faults: frozenset[str],
        only: Iterable[Strike] | None,
        counts: Counter[str],
    ) -> None:
        self.seed = seed
        self.calm = False
        self.relieved = False
        """Somebody has waited long: no read is refused, or a load of many small ones might never get through."""
        self.struck: list[Strike] = []
        self.counts = counts
        self._random = Random(mixed(seed, 1))
        self.chances = _chances(self._random, faults)
        self._commit = [(kind, self.chances[kind]) for kind in COMMIT_FAULTS if self.chances.get(kind)]
        self._commit_chance = sum(chance for _, chance in self._commit)
        self._slow = self.chances.get("slow", 0.0)
        self._only: dict[int, str] | None = None  # faults of commits that were asked for, by place
        self._asked: frozenset[Strike] = frozenset()
        self._commits = 0
        self._pauses = 0
        self._places: dict[str, int] = {}
        if only is not None:
            self._asked = frozenset(only)
            self._only = {place: kind for kind, place in sorted(self._asked) if kind in COMMIT_FAULTS}
            self._slow = float(any(kind == "slow" for kind, _ in self._asked))

    def of_commit(self) -> tuple[str, int]:
        """What happens to the next commit (empty: nothing), and its number."""
        self._commits += 1
        place = self._commits
        return "" if self.calm else self._drawn() if self._only is None else self._only.get(place, ""), place

    def _drawn(self) -> str:
        if not self._commit_chance:
            return ""
        drawn = self._random.random()
        if drawn < self._commit_chance:
            for kind, chance in self._commit:
                drawn -= chance
                if drawn < 0:
                    return kind
        return ""

    def happened(self, kind: str, place: int) -> None:
        """A fault of a commit has had its effect."""
        self.counts[kind] += 1
        self.struck.append((kind, place))

    def pause(self, most: int) -> int:
        """How many ticks the next operation of the store takes longer than none."""
        if not self._slow:
            return 0
        self._pauses = place = self._pauses + 1
        if self._only is not None:
            if ("slow", place) not in self._asked:
                return 0
        elif self._random.random() >= self._slow:
            return 0
        ticks = mixed(self.seed, 2, place) % (most + 1)
        if ticks:
            self.happened("slow", place)
        return ticks

    def strikes(self, kind: str) -> int:
        """Whether a fault happens at the next place of its kind: the place's number, 0 = it does not."""
        chance = self.chances.get(kind)
        if (not chance and self._only is None) or self.calm or (self.relieved and kind == "unreadable"):
            return 0
        place = self._places[kind] = self._places.get(kind, 0) + 1
        return self._at(kind, place, self._random.random() if self._only is None else 0.0)

    def strikes_command(self, kind: str, place: int, random: Random) -> bool:
        """Whether a fault happens to this command; its own seed decides."""
        drawn = random.random()  # whoever decides, what else is drawn stays the same
        return bool(self._at(kind, place, drawn))

    def _at(self, kind: str, place: int, drawn: float) -> int:
        if self._only is not None:
            if (kind, place) not in self._asked:
                return 0
        elif drawn >= self.chances.get(kind, 0.0):
            return 0
        self.happened(kind, place)
        return place

    def details(self, strike: Strike) -> Random:
        """What exactly a fault does is drawn from here."""
        return Random(mixed(self.seed, 3, FAULTS.index(strike[0]), strike[1]))


def _chances(random: Random, faults: frozenset[str]) -> Mapping[str, float]:
    """How often each kind of fault happens in an episode; most episodes have only some of them."""
    chances: dict[str, float] = {}
    for kind in FAULTS:
        drawn, picked = random.random(), random.random()
        if kind in faults and drawn >= 0.4:
            rates = _RATES[kind]
            chances[kind] = rates[int(picked * len(rates))]
    return chances


_RATES: Final[Mapping[str, tuple[float, ...]]] = {
    **dict.fromkeys(COMMIT_FAULTS, (0.002, 0.01, 0.05)),
    "crash": (0.001, 0.004),
    "torn": (0.0005, 0.002),
    "full": (0.001, 0.003, 0.01),
    "unreadable": (0.005, 0.03, 0.1),
    "poison": (0.001, 0.004),  # per step
    "outage": (0.3,),  # per unknown outcome
    "slow": (0.02, 0.1, 0.4),
    "clock": (0.5, 1.0),  # per life of the engine
    "restart": (0.001, 0.003),  # per step
    "cancel": (0.005, 0.03, 0.1),
    "deadline": (0.005, 0.03, 0.1),
}
