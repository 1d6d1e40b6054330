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

A search is given up after MANY predecessors; the verdict is then `UNDECIDED`, never a guess. Places and transitions are
numbered by name, so that a verdict does not depend on the order in which anything was declared.

A verdict changes only when a token of `dependencies` moves: arrives, leaves, or dies.
"""

from __future__ import annotations

import enum
import functools
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from knhk_workflow.model.net import CompiledNet
from knhk_workflow.model.reset_net import ResetNet, Transition, compile_reset_net


@dataclass(frozen=True, slots=True)
class Budget:
    """How far a search goes back: predecessors looked at, and minimal markings kept (each is compared with all)."""

    steps: int
    minimal: int


FEW = Budget(400, 200)  # 5 ms; 99 of 100 searches in random nets end here
MARKINGS_MAX = 2_000  # looked at going forward, about 20 ms
MANY = Budget(10_000, 1_000)  # 0.5 s at worst, once for a marking: it is remembered
MEMO_MAX = 1_024  # verdicts kept per join; a loop comes back to a handful of markings
NETS_MAX = 256  # nets whose joins are kept compiled, as many as one workflow may have
WEIGHT_MAX = 10_000  # what one token may stand for after contraction: as many as a case may hold

COUNT_BITS = 32  # of a place's counter in a packed marking; the top bit stays clear for comparing
_COUNT = (1 << COUNT_BITS) - 1
_LARGE = 1 << (COUNT_BITS - 8)  # a count that no case can hold (its tokens are limited): not packed any further

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

    __slots__ = ("_analysis", "_net", "_producers", "inputs", "task")

    def __init__(self, task: str, inputs: tuple[str, ...], net: ResetNet, producers: Producers) -> None:
        self.task = task
        self.inputs = inputs
        self._net = net
        self._producers = producers
        self._analysis: _Analysis | None = None

    @property
    def dependencies(self) -> Dependencies:
        """What makes it worth asking again."""
        return self._analysed().dependencies

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
            self._analysis = _Analysis(self.task, self.inputs, self._net, self._producers)
        return self._analysis


def compile_or_joins(net: CompiledNet) -> Mapping[str, OrJoin]:
    """The general OR-joins of `net` by task. The same net gives the same objects, with what they remember."""
    return _compiled(_Same(net))


def or_join(net: CompiledNet, task: str) -> OrJoin:
    """The general OR-join of one task. Raises KeyError when its join is of another kind."""
    return _compiled(_Same(net))[task]


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
def _compiled(key: _Same) -> Mapping[str, OrJoin]:
    joins = {name: node for name, node in sorted(key.net.tasks.items()) if node.join.kind == "or"}
    if not joins:
        return {}
    net = compile_reset_net(key.net)
    producers: dict[int, list[Transition]] = {}
    for transition in net.transitions:
        if not transition.spontaneous and not transition.final:
            for place, _ in transition.post:
                producers.setdefault(place, []).append(transition)
    return {name: OrJoin(name, node.inputs, net, producers) for name, node in joins.items()}


# ----------------------------------------------------------------------------------------------------------- one join


@dataclass(frozen=True, slots=True)
class _Token:
    """What one token in a place means to the join. Masks have one bit for each input."""

    bit: int  # the place is this input
    reach: int  # inputs that it has any path to
    free: int  # inputs that it can reach needing nothing else
    packed: int  # it, after contraction


@dataclass(frozen=True, slots=True)
class _Lock:
    """A lock, packed, and where tokens are while it is held."""

    packed: int
    conditions: tuple[str, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Round:
    """The round of a partial join, packed: open with every input unseen, or fired with some seen."""

    open: int
    fired: int
    unseen: Mapping[str, int]
    seen: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Free:
    """The join waits for a token that gets to this input by itself."""

    input: int


@dataclass(frozen=True, slots=True)
class _Run:
    """The join waits because these transitions, with what is contracted into them, lead to another marked input."""

    steps: tuple[_Step, ...]

    def puts(self, place: int) -> bool:
        """Whether a token comes into `place` on the way."""
        return any(place in step.post for step in self.steps)


_Decision = tuple[Verdict, _Free | _Run | None]
_FIRES: _Decision = (Verdict.FIRE, None)
_IDLE: _Decision = (Verdict.WAIT, None)
_UNDECIDED: _Decision = (Verdict.UNDECIDED, None)


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

    def __init__(self, task: str, names: tuple[str, ...], net: ResetNet, producers: Producers) -> None:
        self._net = net
        self.inputs = tuple(net.conditions[name] for name in names)
        self.all = (1 << len(names)) - 1
        upstream, places = _upstream(task, self.inputs, producers)
        self.dependencies = _dependencies(net, places)
        reach = [_reach(place, upstream, net) for place in self.inputs]
        free = [_onward(place, upstream, self.inputs).keys() for place in self.inputs]
        self._region = region = _Region(net, frozenset(self.inputs), upstream)
        tokens = {
            place: _Token(
                1 << self.inputs.index(place) if place in self.inputs else 0,
                sum(1 << index for index, found in enumerate(reach) if place in found),
                sum(1 << index for index, found in enumerate(free) if place in found),
                region.packed(place),
            )
            for place in sorted(places)
        }
        self.places = {name: tokens[place] for name, place in net.conditions.items() if place in tokens}
        self.tasks = {name: tokens[place] for name, place in net.busy.items() if place in tokens}
        self._locks = tuple(
            _Lock(
                region.packed(lock.place),
                tuple(net.places[place].name for place in sorted(lock.inside)),
                tuple(net.places[place].name for place in sorted(lock.busy)),
            )
            for lock in net.locks
            if lock.place in places
        )
        self._rounds = {
            name: _Round(
                region.packed(found.open),
                region.packed(found.fired),
                {condition: region.packed(place) for condition, place in found.unseen.items()},
                {condition: region.packed(place) for condition, place in found.seen.items()},
            )
            for name, found in net.rounds.items()
            if not places.isdisjoint(found.places)
        }
        self._memo: dict[int, _Decision] = {}
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
        now = self._packed(marking, busy, seen)
        known = self._memo.get(now)
        if known is None:
            if len(self._memo) >= MEMO_MAX:
                self._memo.clear()
            wanted = [place for index, place in enumerate(self.inputs) if empty & reach & 1 << index]
            known = self._memo[now] = self._region.search(now, self.inputs, wanted)
        return known

    def _packed(self, marking: Mapping[str, int], busy: Mapping[str, int], seen: Mapping[str, Collection[str]]) -> int:
        now = 0
        for name, count in marking.items():
            token = self.places.get(name)
            if token is not None:
                now += token.packed * count
        for name, count in busy.items():
            token = self.tasks.get(name)
            if token is not None:
                now += token.packed * count
        for lock in self._locks:
            if not any(name in marking for name in lock.conditions) and not any(name in busy for name in lock.tasks):
                now += lock.packed
        for name, round_ in self._rounds.items():
            came = seen.get(name, ())
            now += round_.fired if came else round_.open
            for condition, packed in round_.seen.items():
                now += packed if condition in came else round_.unseen[condition]
        return now

    def witness(self, why: _Free | _Run, marking: Mapping[str, int], busy: Mapping[str, int]) -> Witness:
        """The live token behind a WAIT, the one with the least name where there are several."""
        net = self._net
        live = sorted((net.conditions[name], name, count) for name, count in marking.items() if name in self.places)
        working = sorted((net.busy[name], name) for name in busy if name in self.tasks)
        if isinstance(why, _Free):
            onward = _onward(self.inputs[why.input], self._upstream, self.inputs)
            for place, name, count in live:
                if place in onward and (place not in self.inputs or count > 1):
                    return Witness(name, False, self._name(self.inputs[why.input]), _follow(place, onward))
            place, name = next(each for each in working if each[0] in onward)
            return Witness(name, True, self._name(self.inputs[why.input]), _follow(place, onward))
        reached = next(place for place in self.inputs if net.places[place].name not in marking and why.puts(place))
        place, path = self._region.trail(why, reached, [place for place, *_ in live] + [place for place, _ in working])
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


def _carriers(transition: Transition, net: ResetNet) -> list[int]:
    """The places that threads of the net come from; locks and rounds of joins are not."""
    return [place for place, _ in transition.pre if net.places[place].kind in ("condition", "busy")]


def _reach(goal: int, upstream: Iterable[Transition], net: ResetNet) -> set[int]:
    """Places from which some path leads to `goal`. Without a token there, none can come: each needs a carrier."""
    sources: dict[int, list[int]] = {}
    for transition in upstream:
        carriers = _carriers(transition, net)
        for place, _ in transition.post:
            sources.setdefault(place, []).extend(carriers)
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


def _follow(place: int, onward: Mapping[int, tuple[Transition, int]]) -> tuple[str, ...]:
    """The tasks that complete on the way, in order."""
    path: list[str] = []
    passed: set[int] = set()
    while place in onward and place not in passed:
        passed.add(place)
        transition, place = onward[place]
        if transition.phase in ("end", "escape"):
            path.append(transition.task)
    return tuple(path)


# ------------------------------------------------------------------------------------------------ backward coverability


@dataclass(slots=True, eq=False)
class _Step:
    """A transition with what is contracted into it. The masks and packed counts are set when contraction is done."""

    origin: Transition
    pre: dict[int, int]
    tests: set[int]
    resets: frozenset[int]
    post: dict[int, int]
    packed_pre: int = 0
    needed: int = 0  # what it takes or tests
    put: int = 0
    packed_post: tuple[tuple[int, int], ...] = ()  # (shift, count) of the places that it does not empty
    packed_tests: tuple[int, ...] = ()  # shifts
    emptied: int = 0  # mask of the counts that it empties
    refilled: int = 0  # what it puts there afterwards

    @property
    def shape(self) -> tuple[object, ...]:
        """Equal for steps that do the same."""
        return (frozenset(self.pre.items()), frozenset(self.tests), self.resets, frozenset(self.post.items()))

    @property
    def useless(self) -> bool:
        """It puts nothing that it does not take."""
        return all(self.pre.get(place, 0) >= count for place, count in self.post.items())


class _Contraction:
    """The steps upstream of a join, made fewer without changing what can be covered.

    A place whose only use is one step that needs nothing else can always be left at once, and that is never worse as
    long as nobody empties where its token goes. So the step is put into all that come before it (post-agglomeration).
    A token in such a place counts as tokens where it ends up (`moved`).
    """

    def __init__(self, net: ResetNet, inputs: frozenset[int], upstream: tuple[Transition, ...]) -> None:
        self.kept = {place for transition in upstream for place in transition.tests} | inputs
        self.left: dict[int, Transition] = {}  # by which transition a contracted place is left
        self.moved: dict[int, dict[int, int]] = {}
        self._net = net
        self._shapes: dict[tuple[object, ...], _Step] = {}
        self._producers: dict[int, dict[str, _Step]] = {}
        self._consumers: dict[int, dict[str, _Step]] = {}
        self._queue: deque[int] = deque()
        useful = {place for transition in upstream for place, _ in transition.pre} | self.kept
        for transition in upstream:
            post = {place: count for place, count in transition.post if place in useful}
            step = _Step(transition, dict(transition.pre), set(transition.tests), transition.resets & useful, post)
            self._add(step)
        locks = {lock.place for lock in net.locks}
        self._emptied = {
            place for step in self.steps for place in step.resets if place not in locks or place not in step.post
        }
        self._queue.extend(sorted(useful - self.kept))
        while self._queue:
            self._contract(self._queue.popleft())
        for place in reversed(self.left):
            found: dict[int, int] = {}
            for to, count in self.moved[place].items():
                for end, times in self.moved.get(to, {to: 1}).items():
                    found[end] = found.get(end, 0) + count * times
            self.moved[place] = found
        for step in list(self.steps):
            self._borrow(step)

    @property
    def steps(self) -> list[_Step]:
        return list(self._shapes.values())

    def _add(self, step: _Step) -> None:
        if step.useless or self._shapes.setdefault(step.shape, step) is not step:
            self._queue.extend(sorted(step.pre.keys() - self.kept))
            return
        for place in step.pre:
            self._consumers.setdefault(place, {})[step.origin.name] = step
        for place in step.post:
            self._producers.setdefault(place, {})[step.origin.name] = step

    def _remove(self, step: _Step) -> None:
        del self._shapes[step.shape]
        for place in step.pre:
            self._consumers[place].pop(step.origin.name, None)
        for place in step.post:
            self._producers[place].pop(step.origin.name, None)

    def _contract(self, place: int) -> None:
        if place in self.moved or place in self.kept or self._net.places[place].kind not in ("condition", "busy"):
            return
        users = list(self._consumers.get(place, {}).values())
        if len(users) > 1:
            return
        onward: dict[int, int] = {}
        if users:
            user = users[0]
            if user.pre != {place: 1} or user.tests or user.resets or place in user.post:
                return
            most = (
                max(step.post[place] for step in self._producers[place].values()) if self._producers.get(place) else 1
            )
            if not self._emptied.isdisjoint(user.post) or any(most * n > WEIGHT_MAX for n in user.post.values()):
                return
            onward = user.post
            self.left[place] = user.origin
            self._remove(user)
        else:
            self.left[place] = NOWHERE
        self.moved[place] = dict(onward)
        for step in [found for _, found in sorted(self._producers.get(place, {}).items())]:
            self._remove(step)
            times = step.post.pop(place)
            for to, count in onward.items():
                step.post[to] = step.post.get(to, 0) + times * count
            self._add(step)

    def _borrow(self, step: _Step) -> None:
        """What a step takes and gives back it only tests, so that a free lock asks nothing of the search."""
        given = [
            place for place in step.pre if step.pre[place] == 1 and place in step.post and place not in step.resets
        ]
        if given:
            self._remove(step)
            for place in given:
                del step.pre[place]
                step.tests.add(place)
                step.post[place] -= 1
                if not step.post[place]:
                    del step.post[place]
            self._add(step)


class _Region:
    """What is upstream of a join, contracted, with packed markings: a counter of COUNT_BITS for each place."""

    def __init__(self, net: ResetNet, inputs: frozenset[int], upstream: tuple[Transition, ...]) -> None:
        done = _Contraction(net, inputs, upstream)
        self._net = net
        self._moved = done.moved
        self._left = done.left
        self.steps = done.steps
        places = sorted({place for step in self.steps for place in (*step.pre, *step.tests, *step.post)} | inputs)
        self._shift = shift = {place: index * COUNT_BITS for index, place in enumerate(places)}
        self._places = places
        self._producers: dict[int, list[_Step]] = {at: [] for at in shift.values()}
        self._needing: dict[int, list[int]] = {at: [] for at in shift.values()}
        self._needs: list[int] = []
        taken: set[int] = set()
        for number, step in enumerate(self.steps):
            emptied = {place for place in step.resets if place in shift}
            step.packed_pre = sum(count << shift[place] for place, count in step.pre.items())
            step.packed_post = tuple((shift[p], count) for p, count in sorted(step.post.items()) if p not in emptied)
            step.needed = sum(max(step.pre.get(p, 0), 1) << shift[p] for p in step.pre.keys() | step.tests)
            step.put = sum(count << shift[place] for place, count in step.post.items())
            step.packed_tests = tuple(shift[place] for place in sorted(step.tests))
            step.emptied = sum(_COUNT << shift[place] for place in emptied)
            step.refilled = sum(count << shift[place] for place, count in step.post.items() if place in emptied)
            taken |= step.pre.keys() | emptied
            needed = step.pre.keys() | step.tests
            self._needs.append(len(needed))
            for place in needed:
                self._needing[shift[place]].append(number)
            for place in step.post:
                self._producers[shift[place]].append(step)
        self._stable = sum(_COUNT << at for place, at in shift.items() if place not in taken)
        self._ones = sum(1 << at for at in shift.values())
        self._high = self._ones << (COUNT_BITS - 1)
        self._large = sum((_COUNT ^ (_LARGE - 1)) << at for at in shift.values())
        # A lock and the tokens that hold it are one token, unless a thread forks inside: more are never there at once.
        # So it is with the round of a partial join: open or fired; an input unseen, or seen and then not open.
        groups = [{lock.place, *lock.held_by} for lock in net.locks if not lock.forks]
        for round_ in net.rounds.values():
            groups.append({round_.open, round_.fired})
            for condition, seen in round_.seen.items():
                groups += [{round_.unseen[condition], seen}, {round_.open, seen}]
        self._alone = [
            sum(_COUNT << shift[place] for place in group if place in shift)
            for group in groups
            if not group.isdisjoint(shift)
        ]

    def packed(self, place: int) -> int:
        """One token in a place of the net."""
        shift = self._shift
        moved = self._moved.get(place, {place: 1})
        return sum(min(count, WEIGHT_MAX) << shift[to] for to, count in moved.items() if to in shift)

    def search(self, now: int, inputs: tuple[int, ...], wanted: Iterable[int]) -> _Decision:
        """Whether a marking with all marked inputs and one of `wanted` can be reached from `now`.

        Mostly the first few predecessors tell. Where they do not, few markings can often be reached at all, and only
        then the long way is gone.
        """
        markable, usable = self._markable(now)
        held = sum(1 << self._shift[place] for place in inputs if now >> self._shift[place] & _COUNT)
        goals = [held + (1 << self._shift[place]) for place in wanted if markable >> self._shift[place] & 1]
        if not goals:
            return _FIRES
        return (
            self._backward(now, goals, usable, FEW)
            or self._forward(now, goals, usable)
            or self._backward(now, goals, usable, MANY)
            or _UNDECIDED
        )

    def _forward(self, now: int, goals: list[int], usable: set[int]) -> _Decision | None:
        """Every marking that can be reached, when they are few."""
        high = self._high
        steps = [step for step in self.steps if id(step) in usable]
        came: dict[int, tuple[int, _Step] | None] = {now: None}
        pending = deque([now])
        while pending:
            here = pending.popleft()
            for step in steps:
                if ((here | high) - step.needed) & high != high:
                    continue
                after = (here - step.packed_pre & ~step.emptied) + step.put
                if after in came:
                    continue
                came[after] = (here, step)
                if any(((after | high) - goal) & high == high for goal in goals):
                    return Verdict.WAIT, _Run(_trace(after, came)[::-1])
                if len(came) > MARKINGS_MAX:
                    return None
                pending.append(after)
        return _FIRES

    def _backward(self, now: int, goals: list[int], usable: set[int], most: Budget) -> _Decision | None:
        """Coverability from the goals backwards; None when that takes more than `most`."""
        high = self._high
        goals = [self._outstanding(goal, now) for goal in goals]
        came: dict[int, tuple[int, _Step] | None] = dict.fromkeys(goals)
        alone = [group for group in self._alone if not self._several(now & group)]
        producers: dict[int, list[_Step]] = {}
        minimal = list(goals)
        looked = 0
        while goals:
            found: list[int] = []
            for goal in goals:
                steps: dict[int, _Step] = {}
                for at in _counts(goal):
                    if at not in producers:
                        producers[at] = [step for step in self._producers[at] if id(step) in usable]
                    steps.update((id(step), step) for step in producers[at])
                looked += len(steps)
                if looked > most.steps or len(minimal) > most.minimal:
                    return None
                for step in steps.values():
                    before = self._before(goal, step)
                    if before is None or before & self._large:
                        continue
                    before = self._outstanding(before, now)
                    if before in came or any(self._several(before & group) for group in alone):
                        continue
                    if ((now | high) - before) & high == high:
                        return Verdict.WAIT, _Run((step, *_trace(goal, came)))
                    if any(((before | high) - known) & high == high for known in minimal):
                        continue
                    came[before] = (goal, step)
                    found.append(before)
                    minimal.append(before)
            goals = [one for one in found if not self._covers_another(one, found)]
            if len(goals) < len(found):
                minimal = [one for one in minimal if not self._covers_another(one, found)]
        return _FIRES

    def _covers_another(self, one: int, others: Iterable[int]) -> bool:
        high = self._high
        return any(other != one and ((one | high) - other) & high == high for other in others)

    def _before(self, goal: int, step: _Step) -> int | None:
        """The least marking from which `step` leads to `goal` or more; None when it empties what is needed."""
        there = goal & step.emptied
        if there:
            if ((step.refilled | self._high) - there) & self._high != self._high:
                return None
            goal ^= there
        for at, count in step.packed_post:
            here = goal >> at & _COUNT
            if here:
                goal -= min(here, count) << at
        goal += step.packed_pre
        for at in step.packed_tests:
            if not goal >> at & _COUNT:
                goal += 1 << at
        return goal

    def _outstanding(self, goal: int, now: int) -> int:
        """`goal` without what is there and stays there, because nothing takes or empties it."""
        for at in _counts(goal & self._stable):
            if goal >> at & _COUNT <= now >> at & _COUNT:
                goal &= ~(_COUNT << at)
        return goal

    def _several(self, tokens: int) -> bool:
        return bool(tokens & (tokens - 1)) or bool(tokens & ~self._ones)

    def _markable(self, now: int) -> tuple[int, set[int]]:
        """Which places can ever be marked, counts and emptying aside (one bit each), and the steps that can then fire
        (YAWL's active projection)."""
        missing = list(self._needs)
        pending = list(_counts(now))
        markable = sum(1 << at for at in pending)
        usable: set[int] = set()

        def fires(step: _Step) -> None:
            nonlocal markable
            usable.add(id(step))
            for place in step.post:
                at = self._shift[place]
                if not markable >> at & 1:
                    markable |= 1 << at
                    pending.append(at)

        for number, count in enumerate(missing):
            if not count:
                fires(self.steps[number])
        while pending:
            for number in self._needing[pending.pop()]:
                missing[number] -= 1
                if not missing[number]:
                    fires(self.steps[number])
        return markable, usable

    def trail(self, run: _Run, goal: int, live: Iterable[int]) -> tuple[int, tuple[str, ...]]:
        """From which of the `live` places the token comes that `run` brings to `goal`, and by which tasks."""
        path: list[str] = []
        before = len(run.steps)
        while True:
            number = next((i for i in range(before - 1, -1, -1) if goal in run.steps[i].post), None)
            if number is None:
                break
            step = run.steps[number]
            path[:0] = self._tasks([step.origin], goal)
            own = self._net.busy[step.origin.task]
            carriers = _carriers(step.origin, self._net)
            goal, before = own if own in carriers else carriers[0], number
        live = list(live)
        for place in live:
            if place == goal:
                return place, tuple(path)
        place = next(place for place in live if goal in self._moved.get(place, ()))
        return place, (*self._tasks([self._left[place]], goal), *path)

    def _tasks(self, way: list[Transition], goal: int) -> list[str]:
        """The tasks that complete from the first transition of `way` on, through contracted places, to `goal`."""
        came: dict[str, Transition | None] = {way[0].name: None}
        pending = deque(way)
        while pending:
            transition = pending.popleft()
            for place, _ in transition.post:
                if place == goal:
                    found: list[str] = []
                    back: Transition | None = transition
                    while back is not None:
                        if back.phase in ("end", "escape"):
                            found.insert(0, back.task)
                        back = came[back.name]
                    return found
                onward = self._left.get(place)
                if onward is not None and onward.name not in came:
                    came[onward.name] = transition
                    pending.append(onward)
        return []


NOWHERE = Transition("", "", "absorb", (), (), frozenset(), ())
"""How a place is left that nothing useful leaves."""


def _counts(packed: int) -> Iterator[int]:
    """The shifts of the counters that are not zero."""
    while packed:
        at = ((packed & -packed).bit_length() - 1) // COUNT_BITS * COUNT_BITS
        yield at
        packed &= ~(_COUNT << at)


def _trace(marking: int, came: Mapping[int, tuple[int, _Step] | None]) -> tuple[_Step, ...]:
    """The steps by which the search came to `marking`, the last one first."""
    steps = []
    while (reason := came[marking]) is not None:
        marking, step = reason
        steps.append(step)
    return tuple(steps)
