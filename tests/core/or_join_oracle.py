"""What an OR-join must do, found the slow way: every marking that can be reached, one by one.

An interpreter of its own over the author's net (`Spec.nets`), forwards, on plain dicts. It shares nothing with the
engine: no compiled net, no reset net, no lock places (a lock is looked up where its holders are), no contraction.
Whether a join fires is the definition itself: no marking that can be reached without firing it has all its marked
inputs still marked and one more.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from knhk_workflow.model.spec import END, START, Condition, Flow, Join, JoinKind, Net, Split, SplitKind, Task

Tokens = dict[str, int]


@dataclass(frozen=True)
class State:
    """Where a net is: tokens by condition, started activations by task, inputs seen by partial joins that fired."""

    marking: frozenset[tuple[str, int]]
    busy: frozenset[tuple[str, int]]
    seen: frozenset[tuple[str, frozenset[str]]] = frozenset()

    @staticmethod
    def of(
        marking: Mapping[str, int], busy: Mapping[str, int], seen: Mapping[str, frozenset[str]] | None = None
    ) -> State:
        return State(
            frozenset((name, count) for name, count in marking.items() if count),
            frozenset((name, count) for name, count in busy.items() if count),
            frozenset((seen or {}).items()),
        )


class Oracle:
    """Walks one net."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.tasks = {task.id: task for task in net.tasks}
        self.inputs: dict[str, list[str]] = {task: [] for task in self.tasks}
        self.outputs: dict[str, list[tuple[str, bool]]] = {task: [] for task in self.tasks}
        self.targets: dict[tuple[str, str], str] = {}
        for flow in net.flows:
            ends = [name in self.tasks for name in (flow.source, flow.target)]
            place = f"{flow.source}->{flow.target}" if all(ends) else flow.target if ends[0] else flow.source
            if ends[0]:
                self.outputs[flow.source].append((place, flow.default))
                self.targets[flow.source, flow.target] = place
            if ends[1]:
                self.inputs[flow.target].append(place)
        self.places = sorted({START, END, *itertools.chain(*self.inputs.values())})
        self.places = sorted({*self.places, *(place for outs in self.outputs.values() for place, _ in outs)})
        self.inside: dict[str, set[str]] = {}
        for section, members in net.sections:
            self.inside[section] = {
                place
                for place in self.places
                if (before := [task for task, outs in self.outputs.items() if place in [name for name, _ in outs]])
                and (after := [task for task, ins in self.inputs.items() if place in ins])
                and set(before) <= set(members)
                and set(after) <= set(members)
            }

    # ------------------------------------------------------------------------------------------------------- verdict

    def fires(self, join: str, state: State, *, states_max: int, tokens_max: int) -> bool | None:
        """Whether `join` fires in `state`; None when that would take more markings than allowed."""
        marked = {place for place in self.inputs[join] if place in dict(state.marking)}
        if not marked:
            return False
        if len(marked) == len(self.inputs[join]):
            return True
        known = {state}
        pending = deque([state])
        complete = True
        while pending:
            here = pending.popleft()
            for after in self.steps(here, join):
                if after in known:
                    continue
                there = {place for place, _ in after.marking}
                if marked <= there and len(there.intersection(self.inputs[join])) > len(marked):
                    return False
                if max((count for _, count in (*after.marking, *after.busy)), default=0) > tokens_max:
                    complete = False
                    continue
                if len(known) >= states_max:
                    return None
                known.add(after)
                pending.append(after)
        return True if complete else None

    # --------------------------------------------------------------------------------------------------------- steps

    def steps(self, state: State, without: str = "") -> Iterator[State]:
        """Every state one step further, when the task `without` never starts."""
        for task in self.tasks.values():
            if task.id != without:
                yield from self._starts(task, state)
            if task.id in dict(state.busy):
                yield from self._ends(task, state)

    def _starts(self, task: Task, state: State) -> Iterator[State]:
        marking = dict(state.marking)
        if not all(place in marking for place in task.reads):
            return
        inputs = self.inputs[task.id]
        kind, seen = task.join.kind, dict(state.seen)
        ways: list[tuple[str, ...]] = []
        if kind == "and":
            ways = [tuple(inputs)] if inputs else []
        elif kind == "partial":
            assert isinstance(task.join.need, int)
            if task.id in seen:
                for place in inputs:
                    if place in marking and place not in seen[task.id]:
                        yield self._round(task, State.of(_less(marking, (place,)), dict(state.busy), seen), {place})
                return
            ways = list(itertools.combinations(inputs, task.join.need))
        elif kind == "merge":
            ways = [(place,) * task.join.count for place in inputs]
        else:
            ways = [(place,) for place in inputs]
        for way in ways:
            if all(marking.get(place, 0) >= way.count(place) for place in way) and self._admitted(task, way, state):
                after, busy = _less(marking, way), dict(state.busy)
                if kind == "partial" and task.join.mode == "cancelling":
                    after = {place: count for place, count in after.items() if place not in inputs}
                    after, busy, seen = self._cancel(task, after, busy, seen)
                busy[task.id] = busy.get(task.id, 0) + 1
                found = State.of(after, busy, seen)
                rounds = kind == "partial" and task.join.mode != "cancelling" and len(inputs) > 1
                yield self._round(task, found, set(way)) if rounds else found

    def _round(self, task: Task, state: State, more: set[str]) -> State:
        seen = dict(state.seen)
        now = seen.pop(task.id, frozenset()) | more
        if len(now) < len(self.inputs[task.id]):
            seen[task.id] = now
        return State(state.marking, state.busy, frozenset(seen.items()))

    def _admitted(self, task: Task, way: tuple[str, ...], state: State) -> bool:
        """Whether nobody else is inside what this task would enter."""
        marking, busy = dict(state.marking), dict(state.busy)
        if task.mutex is not None and any(self.tasks[name].mutex == task.mutex for name in busy):
            return False
        for section, members in self.net.sections:
            inside = self.inside[section]
            held = any(name in busy for name in members) or any(place in marking for place in inside)
            if task.id in members and inside.isdisjoint(way) and held:
                return False
        return True

    def _ends(self, task: Task, state: State) -> Iterator[State]:
        outputs = self.outputs[task.id]
        names = [place for place, _ in outputs]
        kind = task.split.kind
        ways: list[list[str]]
        if not outputs:
            ways = [[]]
        elif kind == "xor":
            ways = [[place] for place in names]
        elif kind == "or":
            guarded = [place for place, default in outputs if not default]
            ways = [list(way) for n in range(1, len(guarded) + 1) for way in itertools.combinations(guarded, n)]
            ways += [[place] for place, default in outputs if default]
        else:
            ways = [names * (task.split.count if kind == "threads" else 1)]
        busy = _less(dict(state.busy), (task.id,))
        for way in ways:
            marking, left, seen = self._left(task, state, busy)
            if END in way and self.net.termination == "explicit":
                yield State.of({END: 1}, {})
                continue
            yield State.of(_more(marking, way), left, seen)
        for escape in (task.on_error, task.on_timeout):
            if escape is not None:
                place = self.targets.get((task.id, escape), escape)
                if place == END and self.net.termination == "explicit":
                    yield State.of({END: 1}, {})
                else:
                    marking, left, seen = self._left(task, state, busy)
                    yield State.of(_more(marking, [place]), left, seen)

    def _left(self, task: Task, state: State, busy: Tokens) -> tuple[Tokens, Tokens, dict[str, frozenset[str]]]:
        left = dict(state.marking), dict(busy), dict(state.seen)
        return left if task.join.mode == "cancelling" else self._cancel(task, *left)

    def _cancel(
        self, task: Task, marking: Tokens, busy: Tokens, seen: dict[str, frozenset[str]]
    ) -> tuple[Tokens, Tokens, dict[str, frozenset[str]]]:
        """Empty the region of `task`: when its cancelling join fires, when any other task completes."""
        for name in task.cancels:
            if name not in self.tasks:
                marking.pop(name, None)
                continue
            busy.pop(name, None)
            if name != task.id:
                seen.pop(name, None)
            for place in self.inputs[name]:
                if place in [f"{source}->{name}" for source in self.tasks]:
                    marking.pop(place, None)
        return marking, busy, seen


def _less(tokens: Tokens, taken: tuple[str, ...]) -> Tokens:
    after = dict(tokens)
    for place in taken:
        after[place] -= 1
        if not after[place]:
            del after[place]
    return after


def _more(tokens: Tokens, put: list[str]) -> Tokens:
    after = dict(tokens)
    for place in put:
        after[place] = after.get(place, 0) + 1
    return after


# --------------------------------------------------------------------------------------------------------- random nets

JOINS: tuple[JoinKind, ...] = ("xor", "xor", "and", "and", "and", "or", "or", "partial", "merge")
SPLITS: tuple[SplitKind, ...] = ("and", "and", "xor", "xor", "or", "or", "threads")


def random_net(seed: int) -> Net:
    """A net of 4 to 8 tasks with at least one OR-join of two inputs; names tell nothing about order."""
    rng = random.Random(seed)
    letters = rng.sample("abcdefghijklmnopqrs", rng.randint(4, 8))
    places = rng.sample("uvwxyz", rng.randint(0, 2))
    flows: dict[tuple[str, str], None] = {(START, letters[0]): None}
    for index in range(1, len(letters)):
        _connect(rng, flows, letters[rng.randrange(index)], letters[index], places)
    for _ in range(rng.randint(len(letters) // 2, len(letters) + 2)):
        source, target = rng.choice(letters), rng.choice(letters)
        _connect(rng, flows, source, target, places)
    for task in letters:
        if rng.random() < 0.2:
            flows[task, END] = None
    entering: dict[str, int] = {}
    leaving: dict[str, int] = {}
    for source, target in flows:
        entering[target] = entering.get(target, 0) + 1
        leaving[source] = leaving.get(source, 0) + 1
    several = [task for task in letters if entering.get(task, 0) > 1]
    if not several:
        return random_net(seed + 1_000_000)
    chosen = rng.choice(several)
    implicit = [f"{source}->{target}" for source, target in flows if source in letters and target in letters]
    locked = set(rng.sample(letters, 2)) if rng.random() < 0.2 else set()
    section = _section(rng, flows, letters) if rng.random() < 0.2 else ()
    default: set[tuple[str, str]] = set()
    tasks = []
    for task in letters:
        join = Join("or") if task == chosen else _join(rng, entering.get(task, 0))
        elements = [*letters, *places, *implicit]
        cancels = rng.sample(elements, min(rng.randint(1, 4), len(elements))) if rng.random() < 0.3 else []
        if cancels and join.kind == "partial":
            join = Join("partial", need=join.need, mode="cancelling")
        kind: SplitKind = rng.choice(SPLITS) if leaving.get(task, 0) > 1 else "and"
        if task in section:
            kind = "xor"  # no thread forks inside a section
        elif kind == "and" and rng.random() < 0.1:
            kind = "threads"
        outgoing = [flow for flow in flows if flow[0] == task]
        if kind in ("xor", "or") and len(outgoing) > 1 and rng.random() < 0.4:
            default.add(rng.choice(outgoing))
        tasks.append(
            Task(
                id=task,
                join=join,
                split=Split(kind, 2 if kind == "threads" else 1),
                cancels=tuple(cancels),
                mutex="one" if task in locked else None,
                reads=(rng.choice([*implicit, *places, START]),) if rng.random() < 0.2 else (),
                on_error=rng.choice(outgoing)[1] if outgoing and rng.random() < 0.1 else None,
            )
        )
    return Net(
        name="",
        tasks=tuple(tasks),
        conditions=tuple(Condition(place) for place in places),
        flows=tuple(Flow(source, target, default=(source, target) in default) for source, target in flows),
        termination="explicit" if rng.random() < 0.15 else "implicit",
        sections=(("s", tuple(section)),) if section else (),
    )


def _connect(
    rng: random.Random, flows: dict[tuple[str, str], None], source: str, target: str, places: list[str]
) -> None:
    if places and rng.random() < 0.25:
        place = rng.choice(places)
        flows[source, place] = None
        flows[place, target] = None
    else:
        flows[source, target] = None


def _join(rng: random.Random, inputs: int) -> Join:
    kind = rng.choice(JOINS) if inputs > 1 else rng.choice(("xor", "xor", "xor", "merge"))
    if kind == "partial":
        return Join("partial", need=rng.randint(1, inputs), mode=rng.choice(("structured", "blocking")))
    return Join(kind, count=2) if kind == "merge" else Join(kind)


def _section(rng: random.Random, flows: Mapping[tuple[str, str], None], letters: list[str]) -> tuple[str, ...]:
    edges = [
        (source, target) for source, target in flows if source in letters and target in letters and source != target
    ]
    return rng.choice(edges) if edges else ()


def random_state(oracle: Oracle, seed: int) -> State:
    """A state that the net may be in: where a random walk leads, or tokens put anywhere a lock allows."""
    rng = random.Random(seed)
    if rng.random() < 0.5:
        state = State.of({START: 1}, {})
        for _ in range(rng.randint(1, 25)):
            steps = sorted(set(oracle.steps(state)), key=_text)
            steps = [step for step in steps if max((n for _, n in (*step.marking, *step.busy)), default=0) <= 3]
            if not steps:
                break
            state = rng.choice(steps)
        return state
    marking = {place: 2 if rng.random() < 0.15 else 1 for place in oracle.places if rng.random() < 0.3}
    busy: Tokens = {}
    for task in rng.sample(sorted(oracle.tasks), len(oracle.tasks)):
        if rng.random() < 0.2 and oracle._admitted(oracle.tasks[task], (), State.of(marking, busy)):
            busy[task] = 1
    seen: dict[str, frozenset[str]] = {}
    for each in oracle.net.tasks:
        inputs = oracle.inputs[each.id]
        if each.join.kind == "partial" and each.join.mode != "cancelling" and rng.random() < 0.3:
            assert isinstance(each.join.need, int)
            if each.join.need < len(inputs):
                seen[each.id] = frozenset(rng.sample(inputs, each.join.need))
    if any(sum(marking.get(place, 0) for place in inside) > 1 for inside in oracle.inside.values()):
        return random_state(oracle, seed + 1_000_000)
    return State.of(marking, busy, seen)


def _text(state: State) -> str:
    return f"{sorted(state.marking)}{sorted(state.busy)}{sorted((task, sorted(ins)) for task, ins in state.seen)}"


def has_cycle(net: Net) -> bool:
    """Whether some task can come again."""
    onward: dict[str, set[str]] = {}
    for flow in net.flows:
        onward.setdefault(flow.source, set()).add(flow.target)
    for first, after in onward.items():
        found: set[str] = set()
        pending = list(after)
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending.extend(onward.get(name, ()))
        if first in found:
            return True
    return False
