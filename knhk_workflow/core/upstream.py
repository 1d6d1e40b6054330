"""The part of a net upstream of an OR-join, made small, and whether it can mark one more input.

A search over a reset net: it knows places and steps, not tasks and verdicts (`or_join.py` does). Backward coverability
is that of Abdulla, Cerans, Jonsson and Tsay, "General decidability theorems for infinite-state systems", 1996;
contraction is Berthelot's post-agglomeration, kept away from places that a cancellation empties.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from knhk_workflow.model.reset_net import Bag, Marking, ResetNet, Transition

WEIGHT_MAX = 10_000  # what one token may stand for after contraction: as many as a case may hold
COUNT_LARGE = 1_000_000  # tokens in one place that no case can hold, its own limit is 10,000
SETTLED_MAX = 4  # times the number of steps: firings that only bring tokens to where there is a choice


@dataclass(frozen=True, slots=True)
class Budget:
    """How far a search goes back: predecessors looked at, and minimal markings kept (each is compared with all)."""

    steps: int
    minimal: int


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a question is pursued: a little backwards, then through all reachable markings, then far backwards."""

    few: Budget
    markings: int
    many: Budget


USUAL = Effort(
    Budget(400, 200),  # 5 ms; 99 of 100 searches in random nets with cancellation end here
    2_000,  # 20 ms
    Budget(10_000, 1_000),  # 0.5 s at worst, and once for a marking: it is remembered
)


def carriers(transition: Transition, net: ResetNet) -> list[int]:
    """The places that threads of the net come from; locks and rounds of joins are not."""
    return [place for place, _ in transition.pre if net.places[place].kind in ("condition", "busy")]


@dataclass(slots=True, eq=False)
class Step:
    """A transition with what is contracted into it."""

    origin: Transition
    pre: Marking
    tests: set[int]
    resets: frozenset[int]
    post: Marking

    @property
    def shape(self) -> tuple[object, ...]:
        """Equal for steps that do the same."""
        return (frozenset(self.pre.items()), frozenset(self.tests), self.resets, frozenset(self.post.items()))

    @property
    def useless(self) -> bool:
        """It puts nothing that it does not take."""
        return all(self.pre.get(place, 0) >= count for place, count in self.post.items())

    def enabled(self, marking: Marking) -> bool:
        return all(marking.get(place, 0) >= count for place, count in self.pre.items()) and all(
            place in marking for place in self.tests
        )

    def fire(self, marking: Marking, times: int = 1) -> Marking:
        """The marking after firing; more than once only where the step empties nothing."""
        after = dict(marking)
        for place, count in self.pre.items():
            left = after[place] - count * times
            if left:
                after[place] = left
            else:
                del after[place]
        for place in self.resets:
            after.pop(place, None)
        for place, count in self.post.items():
            after[place] = after.get(place, 0) + count * times
        return after


@dataclass(frozen=True, slots=True)
class Run:
    """Steps that mark one more input, in order."""

    steps: tuple[Step, ...]

    def puts(self, place: int) -> bool:
        """Whether a token comes into `place` on the way."""
        return any(place in step.post for step in self.steps)


Finding = Run | Literal["unreachable", "undecided"]
"""How one more input gets marked, or that it does not, or that finding out takes too long."""


class Contraction:
    """The steps upstream of a join, made fewer without changing what can be covered.

    A place whose only use is one step that needs nothing else can always be left at once, and that is never worse as
    long as nobody empties where its token goes. So the step is put into all that come before it (post-agglomeration),
    and a token in such a place counts as tokens where it ends up (`moved`). In the same way a join of threads is put
    into a step that provides all that it takes; where nothing else provides it, what is left only brings tokens
    together that are there already (`closing`). Steps that stay although waiting with them is never better are
    `settling`.
    """

    def __init__(self, net: ResetNet, inputs: frozenset[int], upstream: tuple[Transition, ...]) -> None:
        self.kept = {place for transition in upstream for place in transition.tests} | inputs
        self.left: dict[int, Transition] = {}  # by which transition a contracted place is left
        self.moved: dict[int, Marking] = {}
        self.closing: list[Step] = []
        self.settling: list[Step] = []
        self._net = net
        self._shapes: dict[tuple[object, ...], Step] = {}
        self._producers: dict[int, dict[str, Step]] = {}
        self._consumers: dict[int, dict[str, Step]] = {}
        self._queue: deque[int] = deque()
        useful = {place for transition in upstream for place, _ in transition.pre} | self.kept
        for transition in upstream:
            post = {place: count for place, count in transition.post if place in useful}
            self._add(Step(transition, dict(transition.pre), set(transition.tests), transition.resets & useful, post))
        locks = {lock.place for lock in net.locks}
        self.emptied = {
            place for step in self.steps for place in step.resets if place not in locks or place not in step.post
        }
        waiting = sorted(useful - self.kept)
        while waiting:
            self._queue.extend(waiting)
            while self._queue:
                self._contract(self._queue.popleft())
            waiting = self._free_locks(locks)
        for place in reversed(self.left):
            if place in self.moved:
                self.moved[place] = self._resolved(self.moved[place])
        for step in self.closing:
            step.post = self._resolved(step.post)
        for step in self.steps:
            self._borrow(step, step.pre.keys())
        self.settling = [step for step in self.steps if self._settles(step)]

    @property
    def steps(self) -> list[Step]:
        return list(self._shapes.values())

    def _resolved(self, marking: Marking) -> Marking:
        found: Marking = {}
        for place, count in marking.items():
            for to, times in self.moved.get(place, {place: 1}).items():
                found[to] = found.get(to, 0) + count * times
        return found

    def _add(self, step: Step) -> None:
        if step.useless or self._shapes.setdefault(step.shape, step) is not step:
            self._queue.extend(sorted(step.pre.keys() - self.kept))
            return
        for place in step.pre:
            self._consumers.setdefault(place, {})[step.origin.name] = step
        for place in step.post:
            self._producers.setdefault(place, {})[step.origin.name] = step

    def _remove(self, step: Step) -> None:
        del self._shapes[step.shape]
        for place in step.pre:
            self._consumers[place].pop(step.origin.name, None)
        for place in step.post:
            self._producers[place].pop(step.origin.name, None)

    def _contract(self, place: int) -> None:
        if place in self.moved or place in self.kept or self._net.places[place].kind not in ("condition", "busy"):
            return
        users = list(self._consumers.get(place, {}).values())
        if not users:
            self.left[place] = NOWHERE
            self.moved[place] = {}
            self._append({place: 1}, {})
        elif self._settles(users[0]) and self._append(users[0].pre, users[0].post):
            user = users[0]
            if any(self._producers.get(before) for before in user.pre):
                return
            self._remove(user)
            self.left.update((before, user.origin) for before in user.pre)
            if user.pre == {place: 1}:
                self.moved[place] = user.post
            else:
                self.kept |= user.pre.keys()
                self.closing.append(user)
            self._queue.extend(sorted(user.post.keys() - self.kept))

    def _settles(self, step: Step) -> bool:
        """Whether firing `step` as soon as it can is never worse than waiting."""
        if step.tests or step.resets or not step.pre or not self.emptied.isdisjoint(step.post):
            return False
        return all(
            place not in self.kept
            and place not in step.post
            and len(self._consumers[place]) == 1
            and self._net.places[place].kind in ("condition", "busy")
            for place in step.pre
        )

    def _append(self, taken: Marking, put: Marking) -> bool:
        """Put a step that takes and puts this into every step that provides it. False when a count gets too large."""
        first = next(iter(taken))
        before = [step for _, step in sorted(self._producers.get(first, {}).items())]
        most = max((count for step in before for count in step.post.values()), default=1)
        if any(most * count > WEIGHT_MAX for count in put.values()):
            return False
        for step in before:
            times = min(step.post.get(place, 0) // count for place, count in taken.items())
            if not times:
                continue
            self._remove(step)
            for place, count in taken.items():
                step.post[place] -= times * count
                if not step.post[place]:
                    del step.post[place]
            for place, count in put.items():
                step.post[place] = step.post.get(place, 0) + times * count
            self._add(step)
        return True

    def _borrow(self, step: Step, places: Iterable[int]) -> bool:
        """What a step takes and gives back it only tests."""
        given = [
            place for place in places if step.pre.get(place) == 1 and place in step.post and place not in step.resets
        ]
        if given:
            self._remove(step)
            for place in given:
                del step.pre[place]
                step.tests.add(place)
                self.kept.add(place)
                step.post[place] -= 1
                if not step.post[place]:
                    del step.post[place]
            self._add(step)
        return bool(given)

    def _free_locks(self, locks: Collection[int]) -> list[int]:
        """Locks that count as free all the time, because whoever holds one can leave at once, are no longer asked for.
        Gives the places to look at again."""
        for step in self.steps:
            self._borrow(step, sorted(locks))
        again: set[int] = set()
        for lock in self._net.locks:
            free = not self._consumers.get(lock.place) and lock.place not in self.emptied
            if free and all(lock.place in self._resolved_later(place) for place in lock.held_by):
                for step in self.steps:
                    if lock.place in step.tests or lock.place in step.post:
                        self._remove(step)
                        step.tests.discard(lock.place)
                        step.post.pop(lock.place, None)
                        self._add(step)
                        again |= step.pre.keys()
        return sorted(again - self.kept)

    def _resolved_later(self, place: int) -> set[int]:
        """Where a token in a contracted place ends up, while contraction goes on."""
        found: set[int] = set()
        pending = [place] if place in self.moved else []
        while pending:
            for to in self.moved[pending.pop()]:
                if to not in found:
                    found.add(to)
                    if to in self.moved:
                        pending.append(to)
        return found


class Region:
    """What is upstream of a join, contracted, and the search for a marking with one more input."""

    def __init__(
        self, net: ResetNet, inputs: frozenset[int], upstream: tuple[Transition, ...], effort: Effort = USUAL
    ) -> None:
        done = Contraction(net, inputs, upstream)
        self._net = net
        self._effort = effort
        self._inputs = inputs
        self._moved = done.moved
        self._left = done.left
        self.steps = done.steps
        self._closing = _by_place(done.closing)
        self._settling = _by_place(done.settling)
        self._settled_max = SETTLED_MAX * len(done.settling)
        self._producers: dict[int, list[Step]] = {}
        self._needing: dict[int, list[int]] = {}
        self._needs: list[int] = []
        taken: set[int] = set()
        for number, step in enumerate(self.steps):
            taken |= step.pre.keys() | step.resets
            needed = step.pre.keys() | step.tests
            self._needs.append(len(needed))
            for place in needed:
                self._needing.setdefault(place, []).append(number)
            for place in step.post:
                self._producers.setdefault(place, []).append(step)
        self._taken = taken
        self._onward = {place: self._alone(place) for place in inputs}
        # A lock and the tokens that hold it are one token, unless a thread forks inside: more are never there at once.
        # So it is with the round of a partial join: open or fired; an input unseen, or seen and then not open.
        groups = [{lock.place, *lock.held_by} for lock in net.locks if not lock.forks]
        for round_ in net.rounds.values():
            groups.append({round_.open, round_.fired})
            for condition, seen in round_.seen.items():
                groups += [{round_.unseen[condition], seen}, {round_.open, seen}]
        places = {place for step in self.steps for place in (*step.pre, *step.tests, *step.post)}
        self._groups = [group & places for group in groups if group & places]

    def after(self, place: int) -> Bag:
        """Where one token in a place of the net counts."""
        moved = self._moved.get(place, {place: 1})
        return tuple(sorted((to, min(count, WEIGHT_MAX)) for to, count in moved.items()))

    def holds(self, tokens: Iterable[int], place: int) -> bool:
        """Whether one of `tokens` counts in `place`."""
        return any(place in self._moved.get(token, {token: 1}) for token in tokens)

    def _alone(self, goal: int) -> dict[int, tuple[Step, int]]:
        """The next step, and to where, on a shortest way to `goal` of a token that needs nothing else."""
        found: dict[int, tuple[Step, int]] = {}
        pending = deque([goal])
        while pending:
            to = pending.popleft()
            for step in self._producers.get(to, ()):
                if len(step.pre) == 1 and not step.tests and step.resets.isdisjoint(self._inputs):
                    ((place, count),) = step.pre.items()
                    if count == 1 and place not in found:
                        found[place] = (step, to)
                        pending.append(place)
        return found

    def search(self, now: Marking, wanted: Collection[int]) -> Finding:
        """Whether a marking with all marked inputs and one of `wanted` can be reached from `now`.

        Mostly moving tokens on until they have a choice, or the first few predecessors, tells. Where it does not, few
        markings can often be reached at all, and only then the long way is gone.
        """
        held = tuple(sorted(place for place in self._inputs if place in now))
        now, settled = self._settle(now)
        for goal in wanted:
            if goal in now:
                return Run(settled)
            onward = self._onward[goal]
            for place, count in sorted(now.items()):  # the same answer whatever order they came in
                if place in onward and (place not in self._inputs or count > 1):
                    return Run(settled + self._way(place, goal))
        markable, usable = self._markable(now)
        goals = [tuple(sorted((place, 1) for place in (*held, goal))) for goal in wanted if goal in markable]
        if not goals:
            return "unreachable"
        return (
            self._backward(now, settled, goals, usable, self._effort.few)
            or self._forward(now, settled, goals, usable)
            or self._backward(now, settled, goals, usable, self._effort.many)
            or "undecided"
        )

    def _way(self, place: int, goal: int) -> tuple[Step, ...]:
        """The steps of a token that goes alone from `place` to `goal`."""
        steps: list[Step] = []
        while place != goal:
            step, place = self._onward[goal][place]
            steps.append(step)
        return tuple(steps)

    def _settle(self, now: Marking) -> tuple[Marking, tuple[Step, ...]]:
        """`now` after the firings that are never worse than waiting. Those of `closing` come to an end, because no
        other step feeds them; the rest may go round and is cut off."""
        fired: list[Step] = []
        for settling, most in ((self._closing, None), (self._settling, self._settled_max)):
            pending = sorted(now)
            while pending and (most is None or len(fired) < most):
                for step in settling.get(pending.pop(), ()):
                    times = min(now.get(place, 0) // count for place, count in step.pre.items())
                    if times:
                        now = step.fire(now, times)
                        fired.append(step)
                        pending.extend(sorted(step.post))
        return now, tuple(fired)

    def _forward(
        self, now: Marking, settled: tuple[Step, ...], goals: list[Bag], usable: Collection[int]
    ) -> Finding | None:
        """Every marking that can be reached, when they are few."""
        steps = [step for step in self.steps if id(step) in usable]
        came: dict[frozenset[tuple[int, int]], _Reason[frozenset[tuple[int, int]]]] = {frozenset(now.items()): None}
        pending = deque([now])
        while pending:
            here = pending.popleft()
            key = frozenset(here.items())
            for step in steps:
                if not step.enabled(here):
                    continue
                after = step.fire(here)
                to = frozenset(after.items())
                if to in came:
                    continue
                came[to] = (key, step)
                if any(_covers(after, goal) for goal in goals):
                    return Run(settled + _trace(to, came)[::-1])
                if len(came) > self._effort.markings:
                    return None
                pending.append(after)
        return "unreachable"

    def _backward(
        self, now: Marking, settled: tuple[Step, ...], goals: list[Bag], usable: Collection[int], most: Budget
    ) -> Finding | None:
        """Coverability from the goals backwards; None when that takes more than `most`."""
        groups = [group for group in self._groups if sum(now.get(place, 0) for place in group) <= 1]
        there = {place: count for place, count in now.items() if place not in self._taken}
        pending = deque([self._outstanding(dict(goal), there) for goal in goals])
        came: dict[Bag, _Reason[Bag]] = dict.fromkeys(pending)
        minimal: dict[int, list[Bag]] = {}
        for goal in pending:
            minimal.setdefault(goal[-1][0], []).append(goal)
        producers: dict[int, list[Step]] = {}
        looked = kept = 0
        while pending:
            goal = pending.popleft()
            least = dict(goal)
            if any(known != goal and _covers(least, known) for place, _ in goal for known in minimal.get(place, ())):
                continue  # a smaller one was found meanwhile
            kept += 1
            steps: dict[int, Step] = {}
            for place, _ in goal:
                if place not in producers:
                    producers[place] = [step for step in self._producers.get(place, ()) if id(step) in usable]
                for step in producers[place]:
                    steps[id(step)] = step
            looked += len(steps)
            if looked > most.steps or kept > most.minimal:
                return None
            for step in steps.values():
                marking = _before(goal, step)
                if marking is None or any(count > COUNT_LARGE for count in marking.values()):
                    continue
                if any(sum(marking.get(place, 0) for place in group) > 1 for group in groups):
                    continue
                before = self._outstanding(marking, there)
                if before in came:
                    continue
                if _covers(now, before):
                    return Run((*settled, step, *_trace(goal, came)))
                if any(_covers(marking, known) for place, _ in before for known in minimal.get(place, ())):
                    continue
                came[before] = (goal, step)
                pending.append(before)
                minimal.setdefault(before[-1][0], []).append(before)
        return "unreachable"

    def _outstanding(self, goal: Marking, there: Marking) -> Bag:
        """`goal` without what is there and stays there, because nothing takes or empties it."""
        return tuple(sorted(each for each in goal.items() if there.get(each[0], 0) < each[1]))

    def _markable(self, now: Marking) -> tuple[set[int], set[int]]:
        """Which places can ever be marked, counts and emptying aside, and the steps that can then fire (YAWL's active
        projection)."""
        missing = list(self._needs)
        markable = set(now)
        usable: set[int] = set()
        pending = list(now)
        ready = [number for number, count in enumerate(missing) if not count]
        while pending or ready:
            if not ready:
                for number in self._needing.get(pending.pop(), ()):
                    missing[number] -= 1
                    if not missing[number]:
                        ready.append(number)
                continue
            step = self.steps[ready.pop()]
            usable.add(id(step))
            for place in step.post:
                if place not in markable:
                    markable.add(place)
                    pending.append(place)
        return markable, usable

    def trail(self, run: Run, goal: int, live: Iterable[int]) -> tuple[int, tuple[str, ...]]:
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
            threads = carriers(step.origin, self._net)
            goal, before = own if own in threads else threads[0], number
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


def put(marking: Marking, bag: Bag, times: int) -> None:
    """Add the tokens of `bag`, `times` over."""
    for place, count in bag:
        marking[place] = marking.get(place, 0) + count * times


def _by_place(steps: Iterable[Step]) -> dict[int, list[Step]]:
    """Steps by what they take."""
    found: dict[int, list[Step]] = {}
    for step in steps:
        for place in step.pre:
            found.setdefault(place, []).append(step)
    return found


def _covers(marking: Marking, goal: Bag) -> bool:
    return all(marking.get(place, 0) >= count for place, count in goal)


def _before(goal: Bag, step: Step) -> Marking | None:
    """The least marking from which `step` leads to `goal` or more; None when it empties what is needed."""
    before: Marking = {}
    for place, count in goal:
        left = count - step.post.get(place, 0)
        if left > 0:
            if place in step.resets:
                return None
            before[place] = left
    for place, count in step.pre.items():
        before[place] = before.get(place, 0) + count
    for place in step.tests:
        before.setdefault(place, 1)
    return before


_Key = TypeVar("_Key")
_Reason = tuple[_Key, Step] | None


def _trace(marking: _Key, came: Mapping[_Key, _Reason[_Key]]) -> tuple[Step, ...]:
    """The steps by which the search came to `marking`, the last one first."""
    steps = []
    while (reason := came[marking]) is not None:
        marking, step = reason
        steps.append(step)
    return tuple(steps)
