"""When a general OR-join may fire: as soon as no further token can come (WCP-38).

The rule is YAWL's (Wynn, Edmond, van der Aalst, ter Hofstede 2005; Wynn 2006, chapter 3). An OR-join with a token in
some input fires unless, without firing it, a marking can be reached in which all its marked inputs are still marked and
one more is. Other OR-joins are read as XOR-joins, the optimistic way: two that wait for each other both wait. Data is
not looked at; work that has failed or is suspended can still complete; a task that waits for a signal can still get it.
Only what has no token to begin with (a trigger without incoming flow) is nothing to wait for.

Whether such a marking can be reached is a coverability question over the reset net (`model/reset_net.py`), and most
nets never ask it:

1. All inputs marked: fire. None: nothing to do.
2. No live token has any path to an empty input: fire. Some has a path on which it needs nothing but itself and
   that empties no input of the join: wait. Both are bit masks, found once for each place.
3. Otherwise the part of the net that can produce for the join, with chains of tasks contracted, is searched backwards
   from "what is marked now and one more": minimal predecessors, until the present marking covers one or none is new.
   Where that takes long it is searched forwards for a while, then backwards again. The answer is remembered for the
   marking of that part.

A search (`upstream.py`) is given up after so many predecessors; the verdict is then `UNDECIDED`, never a guess. Places
and transitions are numbered by name, so that a verdict does not depend on the order in which anything was declared.

A verdict changes only when a token of `dependencies` moves: arrives, leaves, or dies.
"""

from __future__ import annotations

import enum
import functools
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from knhk_workflow.core.upstream import USUAL, Effort, Region, Run, carriers, put
from knhk_workflow.model.net import CompiledNet
from knhk_workflow.model.reset_net import Bag, Marking, ResetNet, Transition, compile_reset_net

MEMO_MAX = 1_024  # verdicts kept per join; a loop comes back to a handful of markings
NETS_MAX = 256  # nets whose joins are kept compiled, as many as one workflow may have

NOTHING: Mapping[str, Collection[str]] = {}

Producers = Mapping[int, list[Transition]]
"""The transitions that put tokens into a place; not those that start from nothing or end the net."""


class Verdict(enum.Enum):
    """What an OR-join does now."""

    FIRE = "fire"
    WAIT = "wait"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Witness:
    """Why an OR-join waits: a live token, the empty input that it can reach, and the tasks on the way.

    `token` is a condition, or a task when `busy`. `path` are the tasks that are still to complete, in order; a task at
    work comes first in its own path.
    """

    token: str
    busy: bool
    input: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dependencies:
    """All that a verdict depends on: tokens in `conditions`, activations and rounds of joins of `tasks`."""

    conditions: frozenset[str]
    tasks: frozenset[str]


class OrJoin:
    """One general OR-join of a compiled net. Its analysis is made when first needed and then kept."""

    __slots__ = ("_analysis", "_effort", "_net", "_producers", "inputs", "task")

    def __init__(
        self, task: str, inputs: tuple[str, ...], net: ResetNet, producers: Producers, effort: Effort = USUAL
    ) -> None:
        self.task = task
        self.inputs = inputs
        self._net = net
        self._producers = producers
        self._effort = effort
        self._analysis: _Analysis | None = None

    @property
    def dependencies(self) -> Dependencies:
        """What makes it worth asking again."""
        return self._analysed().dependencies

    def prepare(self) -> None:
        """Make the analysis now: in a net of a thousand tasks it takes a tenth of a second."""
        self._analysed()

    def verdict(
        self,
        marking: Mapping[str, int],
        busy: Mapping[str, int],
        seen: Mapping[str, Collection[str]] = NOTHING,
    ) -> Verdict:
        """Whether the join fires now.

        `marking`: tokens by condition. `busy`: by task, how many of its activations have consumed tokens and not yet
        produced any (multiple instances count once; what was released does not count). `seen`: by partial join that
        has fired, the inputs that its round has seen. None of them holds zeros. With no marked input it waits.
        """
        return self._analysed().decide(marking, busy, seen)[0]

    def witness(
        self,
        marking: Mapping[str, int],
        busy: Mapping[str, int],
        seen: Mapping[str, Collection[str]] = NOTHING,
    ) -> Witness | None:
        """The token that the join waits for; None unless the verdict is WAIT and some input is marked."""
        analysis = self._analysed()
        verdict, why = analysis.decide(marking, busy, seen)
        return None if verdict is not Verdict.WAIT or why is None else analysis.witness(why, marking, busy)

    def _analysed(self) -> _Analysis:
        if self._analysis is None:
            self._analysis = _Analysis(self.task, self.inputs, self._net, self._producers, self._effort)
        return self._analysis


def compile_or_joins(net: CompiledNet, effort: Effort = USUAL) -> Mapping[str, OrJoin]:
    """The general OR-joins of `net` by task. The same net gives the same objects, with what they remember."""
    return _compiled(_Same(net), effort)


def or_join(net: CompiledNet, task: str) -> OrJoin:
    """The general OR-join of one task. Raises KeyError when its join is of another kind."""
    return _compiled(_Same(net), USUAL)[task]


class _Same:
    """A net as a key: equal to itself only. (Comparing what it holds would cost more than compiling it.)"""

    __slots__ = ("net",)

    def __init__(self, net: CompiledNet) -> None:
        self.net = net

    def __hash__(self) -> int:
        return id(self.net)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.net is self.net


@functools.lru_cache(maxsize=NETS_MAX)
def _compiled(key: _Same, effort: Effort) -> Mapping[str, OrJoin]:
    joins = {name: node for name, node in sorted(key.net.tasks.items()) if node.join.kind == "or"}
    if not joins:
        return {}
    net = compile_reset_net(key.net)
    producers: dict[int, list[Transition]] = {}
    for transition in net.transitions:
        if not transition.spontaneous and not transition.final:
            for place, _ in transition.post:
                producers.setdefault(place, []).append(transition)
    return {name: OrJoin(name, node.inputs, net, producers, effort) for name, node in joins.items()}


# ----------------------------------------------------------------------------------------------------------- one join


@dataclass(frozen=True, slots=True)
class _Token:
    """What one token in a place means to the join. Masks have one bit for each input."""

    bit: int  # the place is this input
    reach: int  # inputs that it has any path to
    free: int  # inputs that it can reach needing nothing else
    after: Bag  # where it counts after contraction


@dataclass(frozen=True, slots=True)
class _Lock:
    """A lock's place when it is free, and where tokens are while it is held."""

    after: Bag
    conditions: tuple[str, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Round:
    """The round of a partial join: open with every input unseen, or fired with some seen."""

    open: Bag
    fired: Bag
    unseen: Mapping[str, Bag]
    seen: Mapping[str, Bag]


@dataclass(frozen=True, slots=True)
class _Free:
    """The join waits for a token that gets to this input by itself."""

    input: int


_Decision = tuple[Verdict, _Free | Run | None]
_FIRES: _Decision = (Verdict.FIRE, None)
_IDLE: _Decision = (Verdict.WAIT, None)


class _Analysis:
    """What is known of a join before there is a marking, and what was found out about markings."""

    __slots__ = (
        "_locks",
        "_memo",
        "_net",
        "_region",
        "_rounds",
        "_upstream",
        "all",
        "dependencies",
        "inputs",
        "places",
        "tasks",
    )

    def __init__(self, task: str, names: tuple[str, ...], net: ResetNet, producers: Producers, effort: Effort) -> None:
        self._net = net
        self.inputs = tuple(net.conditions[name] for name in names)
        self.all = (1 << len(names)) - 1
        upstream, places = _upstream(task, self.inputs, producers)
        self.dependencies = _dependencies(net, places)
        reach = [_reach(place, upstream, net) for place in self.inputs]
        free = [_onward(place, upstream, self.inputs).keys() for place in self.inputs]
        self._region = region = Region(net, frozenset(self.inputs), upstream, effort)
        tokens = {
            place: _Token(
                1 << self.inputs.index(place) if place in self.inputs else 0,
                sum(1 << index for index, found in enumerate(reach) if place in found),
                sum(1 << index for index, found in enumerate(free) if place in found),
                region.after(place),
            )
            for place in sorted(places)
        }
        self.places = {name: tokens[place] for name, place in net.conditions.items() if place in tokens}
        self.tasks = {name: tokens[place] for name, place in net.busy.items() if place in tokens}
        self._locks = tuple(
            _Lock(
                region.after(lock.place),
                tuple(net.places[place].name for place in sorted(lock.inside)),
                tuple(net.places[place].name for place in sorted(lock.busy)),
            )
            for lock in net.locks
            if lock.place in places
        )
        self._rounds = {
            name: _Round(
                region.after(found.open),
                region.after(found.fired),
                {condition: region.after(place) for condition, place in found.unseen.items()},
                {condition: region.after(place) for condition, place in found.seen.items()},
            )
            for name, found in net.rounds.items()
            if not places.isdisjoint(found.places)
        }
        self._memo: dict[tuple[int, frozenset[tuple[int, int]]], _Decision] = {}
        self._upstream = upstream

    def decide(
        self, marking: Mapping[str, int], busy: Mapping[str, int], seen: Mapping[str, Collection[str]]
    ) -> _Decision:
        """The verdict and, for WAIT, what it rests on."""
        marked = reach = free = 0
        places = self.places
        for name, count in marking.items():
            token = places.get(name)
            if token is not None:
                reach |= token.reach
                if token.bit:
                    marked |= token.bit
                    if count < 2:
                        continue  # it has to stay
                free |= token.free
        empty = self.all & ~marked
        if not empty:
            return _FIRES
        if not marked:
            return _IDLE
        tasks = self.tasks
        for name in busy:
            token = tasks.get(name)
            if token is not None:
                reach |= token.reach
                free |= token.free
        if not reach & empty:
            return _FIRES
        free &= empty
        if free:
            return Verdict.WAIT, _Free((free & -free).bit_length() - 1)
        now = self._contracted(marking, busy, seen)
        # A token that counts in an input is not in it yet: which inputs are asked about does not show in `now`.
        key = empty & reach, frozenset(now.items())
        known = self._memo.get(key)
        if known is None:
            if len(self._memo) >= MEMO_MAX:
                self._memo.clear()
            wanted = [place for index, place in enumerate(self.inputs) if empty & reach & 1 << index]
            found = self._region.search(now, wanted)
            if isinstance(found, Run):
                known = (Verdict.WAIT, found)
            else:
                known = _FIRES if found == "unreachable" else (Verdict.UNDECIDED, None)
            self._memo[key] = known
        return known

    def _contracted(
        self, marking: Mapping[str, int], busy: Mapping[str, int], seen: Mapping[str, Collection[str]]
    ) -> Marking:
        now: Marking = {}
        for name, count in marking.items():
            token = self.places.get(name)
            if token is not None:
                put(now, token.after, count)
        for name, count in busy.items():
            token = self.tasks.get(name)
            if token is not None:
                put(now, token.after, count)
        for lock in self._locks:
            if not any(name in marking for name in lock.conditions) and not any(name in busy for name in lock.tasks):
                put(now, lock.after, 1)
        for name, round_ in self._rounds.items():
            came = seen.get(name, ())
            put(now, round_.fired if came else round_.open, 1)
            for condition, after in round_.seen.items():
                put(now, after if condition in came else round_.unseen[condition], 1)
        return now

    def witness(self, why: _Free | Run, marking: Mapping[str, int], busy: Mapping[str, int]) -> Witness:
        """The live token behind a WAIT, the one with the least name where there are several."""
        net = self._net
        live = sorted((net.conditions[name], name, count) for name, count in marking.items() if name in self.places)
        working = sorted((net.busy[name], name) for name in busy if name in self.tasks)
        if isinstance(why, _Free):
            goal = self.inputs[why.input]
            onward = _onward(goal, self._upstream, self.inputs)
            free = [(place, name, False) for place, name, count in live if place not in self.inputs or count > 1]
            free += [(place, name, True) for place, name in working]
            place, name, at_work = next(each for each in free if each[0] in onward)
            return Witness(name, at_work, self._name(goal), _follow(place, goal, onward))
        tokens = [place for place, *_ in live] + [place for place, _ in working]
        reached = next(
            place
            for place in self.inputs
            if self._name(place) not in marking and (why.puts(place) or self._region.holds(tokens, place))
        )
        place, path = self._region.trail(why, reached, tokens)
        return Witness(self._name(place), net.places[place].kind == "busy", self._name(reached), path)

    def _name(self, place: int) -> str:
        return self._net.places[place].name


def _upstream(
    task: str, inputs: tuple[int, ...], producers: Producers
) -> tuple[tuple[Transition, ...], frozenset[int]]:
    """The transitions that can help to mark an input, without the starts of the join itself, and all their places.

    Everything else only takes tokens away, which never helps (YAWL's structural restriction)."""
    places = set(inputs)
    pending = list(inputs)
    found: dict[str, Transition] = {}
    while pending:
        for transition in producers.get(pending.pop(), ()):
            if transition.name in found or (transition.task == task and transition.phase == "start"):
                continue
            found[transition.name] = transition
            for place in itertools.chain((place for place, _ in transition.pre), transition.tests):
                if place not in places:
                    places.add(place)
                    pending.append(place)
    return tuple(found[name] for name in sorted(found)), frozenset(places)


def _dependencies(net: ResetNet, places: frozenset[int]) -> Dependencies:
    """The net's own names of `places`. Whether a lock is free shows in the tokens that hold it."""
    held = {place for lock in net.locks if lock.place in places for place in lock.held_by}
    kinds = [net.places[place] for place in places | held]
    return Dependencies(
        frozenset(place.name for place in kinds if place.kind == "condition"),
        frozenset(place.name for place in kinds if place.kind not in ("condition", "lock")),
    )


def _reach(goal: int, upstream: Iterable[Transition], net: ResetNet) -> set[int]:
    """Places from which some path leads to `goal`. Without a token there, none can come: each needs a carrier."""
    sources: dict[int, list[int]] = {}
    for transition in upstream:
        before = carriers(transition, net)
        for place, _ in transition.post:
            sources.setdefault(place, []).extend(before)
    found: set[int] = set()
    pending = [goal]
    while pending:
        for place in sources.get(pending.pop(), ()):
            if place not in found:
                found.add(place)
                pending.append(place)
    return found


def _onward(goal: int, upstream: Iterable[Transition], inputs: tuple[int, ...]) -> dict[int, tuple[Transition, int]]:
    """The next step on a shortest way to `goal` that a token can go alone: every transition takes nothing else, and
    empties no input of the join."""
    producers: dict[int, list[Transition]] = {}
    for transition in upstream:
        alone = len(transition.pre) == 1 and transition.pre[0][1] == 1 and not transition.tests
        if alone and transition.resets.isdisjoint(inputs):
            for place, _ in transition.post:
                producers.setdefault(place, []).append(transition)
    found: dict[int, tuple[Transition, int]] = {}
    pending = deque([goal])
    while pending:
        to = pending.popleft()
        for transition in producers.get(to, ()):
            place = transition.pre[0][0]
            if place not in found:
                found[place] = (transition, to)
                pending.append(place)
    return found


def _follow(place: int, goal: int, onward: Mapping[int, tuple[Transition, int]]) -> tuple[str, ...]:
    """The tasks that complete on the way, in order."""
    path: list[str] = []
    while place != goal:
        transition, place = onward[place]
        if transition.phase in ("end", "escape"):
            path.append(transition.task)
    return tuple(path)
