"""A net as a plain rewriting system: places, and rules that move tokens between them.

Every construct becomes rules over counters, so that one explorer, one reduction and one coverability search serve all
of them. A rule needs `pre` and `reads`, is held back by tokens in `empty`, empties `resets` after it has consumed, then
puts `post`. An OR-join is the one rule whose consumption depends on the marking (`join`).

A task is one rule where nothing can tell its start from its completion; otherwise it starts into a place of its own
(`busy`) and ends from there. Bookkeeping of joins lies in places too; they do not count as tokens (`live`). Rules that
the engine performs at once (a structured join absorbs a late branch) are `urgent`: while one can fire, nothing else
does.

What is abstracted: guards are ignored (every outcome of a split can happen), outside work always ends some day, any
signal can come, multiple instances and loops of one task count as one piece of work, and a called net as one task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, Literal

from knhk_workflow.model.net import CompiledNet, Region, TaskNode
from knhk_workflow.model.spec import END, START

WAYS_MAX: Final = 1_023  # ways to take a split or a join: ten branches of an OR; more is not enumerated
_PAIRS_MAX: Final = 16  # ways in times ways out of a task that is kept as one rule

Step = Literal["fire", "start", "end", "move"]

Path = int | tuple[Literal["then", "or"], "Path", "Path"]
"""Which rules of the original system a rule stands for: one, a sequence, or two alternatives, the shorter first."""


class TooManyWays(Exception):
    """A split or join has more outcomes than can be enumerated. Seen in this package only."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task


@dataclass(slots=True)
class Rule:
    """One way in which tokens move. `cost` is the number of tasks that complete in it."""

    task: str
    step: Step
    pre: Mapping[int, int]
    post: Mapping[int, int]
    resets: frozenset[int] = frozenset()
    reads: frozenset[int] = frozenset()
    empty: frozenset[int] = frozenset()
    join: tuple[int, ...] = ()
    urgent: int = -1
    path: Path = -1
    cost: int = 1

    @property
    def simple(self) -> bool:
        """Nothing but consuming and producing."""
        return not (self.resets or self.reads or self.empty or self.join or self.urgent >= 0)


@dataclass(slots=True)
class System:
    """The rules of one net. `names[p]` is a condition's name, or the task's for a busy place."""

    names: list[str] = field(default_factory=list)
    live: set[int] = field(default_factory=set)  # a token here is unfinished business
    busy: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, int] = field(default_factory=dict)
    initial: dict[int, int] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    signals: set[int] = field(default_factory=set)  # one signal for each task that nothing leads to
    queues: list[tuple[int, ...]] = field(default_factory=list)  # what structured merges expect: a place for each set
    end: int = -1  # the place that ends the net at once, if it ends explicitly
    doubtful: str = ""  # why the rules do not say exactly what the engine does

    def place(self, name: str, live: bool = False) -> int:
        self.names.append(name)
        index = len(self.names) - 1
        if live:
            self.live.add(index)
        return index


def system_of(net: CompiledNet) -> System:
    """The rules of `net`. Raises TooManyWays."""
    return _Builder(net).build()


@dataclass(slots=True)
class _Way:
    """One way to enable a task."""

    pre: dict[int, int]
    post: dict[int, int] = field(default_factory=dict)
    empty: frozenset[int] = frozenset()
    join: tuple[int, ...] = ()


class _Builder:
    def __init__(self, net: CompiledNet) -> None:
        self.net = net
        self.system = System()
        self.dead: dict[str, int] = {}
        self.expecting: dict[str, dict[frozenset[str], int]] = {}
        self.books: dict[str, list[int]] = {}  # task -> places of its join's bookkeeping
        self.fresh: dict[str, dict[int, int]] = {}  # task -> how that bookkeeping looks in the beginning
        self.asks: dict[str, tuple[dict[int, int], dict[int, int]]] = {}  # where `need` is computed: (asked, answers)
        self.ran: dict[str, dict[str, int]] = {}  # task -> input that false tokens reach -> runs for it in this round
        self.groups = 0
        self.forced = {name for node in net.tasks.values() for name in node.task.completes if name in net.tasks}
        self.force: dict[str, int] = {}
        self.blocked = {task for node in net.tasks.values() for block in node.blocks.values() for task in block.tasks}

    def build(self) -> System:
        net, system = self.net, self.system
        read = {condition for node in net.tasks.values() for condition in node.task.reads}
        for condition in net.conditions:
            if condition in net.sinks and condition not in read and not self._ends(condition):
                continue
            index = system.place(condition, live=condition not in net.sinks)
            system.conditions[condition] = index
            if self._ends(condition):
                system.end = index
        if START in system.conditions:
            system.initial[system.conditions[START]] = 1
        regions = [region for node in net.tasks.values() for region in (node.region, node.withdrawn) if region]
        touched = {name for region in regions for name in region.tasks}
        emptied = {name for region in regions for name in region.conditions}
        for node in net.tasks.values():
            if self._visible(node, touched, emptied):
                system.busy[node.id] = system.place(node.id, live=True)
        self._bookkeeping()
        for name in sorted(self.forced):
            self.force[name] = system.place(f"force {name}")
        for node in net.tasks.values():
            self._task(node)
        for name in sorted(self.forced):
            self._forced(net.tasks[name])
            if any(set(other.outputs) & set(net.tasks[name].inputs) for other in self._forcing(name)):
                system.doubtful = f"whoever completes {name!r} also leads into it"
        for number, rule in enumerate(system.rules):
            rule.path = number
        return system

    def _ends(self, condition: str) -> bool:
        return condition == END and self.net.termination == "explicit" and START not in self.net.sinks

    def _forcing(self, name: str) -> list[TaskNode]:
        """The tasks that complete `name`, and itself: its own tokens may enable it again."""
        return [node for node in self.net.tasks.values() if name in node.task.completes or node.id == name]

    def _visible(self, node: TaskNode, touched: set[str], emptied: set[str]) -> bool:
        """Whether something can tell that the task has started but not ended."""
        if node.id in touched or node.id in self.forced or not emptied.isdisjoint(node.inputs):
            return True
        if node.mutex is not None or node.sections or node.task.reads or node.withdrawn or node.task.completes:
            return True
        if node.join.kind in ("or", "structured-or"):
            return True
        if node.id in self.blocked:
            return True
        if self.net.or_joins:
            shared = any(len(self.net.consumers[condition]) > 1 for condition in node.inputs)
            return shared or node.region is not None or node.join.kind not in ("and", "xor")
        return False

    # ------------------------------------------------------------------------------------------------- bookkeeping

    def _bookkeeping(self) -> None:
        system = self.system
        for condition in sorted({name for node in self.net.tasks.values() for name in (*node.carries, *node.skips)}):
            self.dead[condition] = system.place(f"skipped {condition}")
        for node in self.net.tasks.values():
            for taken in (*self._choices(node), *((name,) for name in node.outputs)) if node.expects else ():
                for join, inputs in self._told(node, taken).items():
                    sets = self.expecting.setdefault(join, {})
                    if inputs not in sets:
                        sets[inputs] = system.place(f"{join} expects {sorted(inputs)}")
        for join, found in self.expecting.items():
            self.books.setdefault(join, []).extend(found.values())
            system.queues.append(tuple(found.values()))
        for node in self.net.tasks.values():
            if node.join.kind == "partial" and node.join.mode != "cancelling":
                idle, fired = system.place(f"{node.id} idle"), system.place(f"{node.id} fired")
                unseen = [system.place(f"{node.id} waits for {name}") for name in node.inputs]
                seen = [system.place(f"{node.id} has seen {name}") for name in node.inputs]
                self.books[node.id] = [idle, fired, *unseen, *seen]
                self.fresh[node.id] = dict.fromkeys((idle, *unseen), 1)
                system.initial.update(self.fresh[node.id])
            if node.join.kind == "partial" and not isinstance(node.join.need, int):
                most = min(node.join.of or len(node.inputs), len(node.inputs))
                ask = {system.place(f"{node.id} asks"): 1}
                answers = {need: system.place(f"{node.id} needs {need}") for need in range(1, most + 1)}
                self.asks[node.id] = (ask, answers)
                self.books.setdefault(node.id, []).extend((*ask, *answers.values()))
                self.fresh[node.id] = self.fresh.get(node.id, {}) | ask
                system.initial.update(ask)
            if node.tallies:
                self.ran[node.id] = {name: system.place(f"{node.id} ran for {name}") for name in node.skips}
                self.books.setdefault(node.id, []).extend(self.ran[node.id].values())
            if node.task.trigger is not None and not node.inputs:
                signal = system.place(f"signal {node.id}")
                system.signals.add(signal)
                system.initial[signal] = 1

    # ------------------------------------------------------------------------------------------------------- tasks

    def _task(self, node: TaskNode) -> None:
        system = self.system
        busy = system.busy.get(node.id)
        reads = frozenset(system.conditions[name] for name in node.task.reads if name in system.conditions)
        ways = list(self._ways(node))
        outcomes = list(self._outcomes(node))
        withdrawn = self._resets(node, node.withdrawn)
        if node.withdrawn is not None:
            withdrawn |= {system.conditions[name] for name in node.inputs}
        if busy is None and len(ways) * len(outcomes) > max(_PAIRS_MAX, len(ways) + len(outcomes)):
            busy = system.busy[node.id] = system.place(node.id, live=True)
        if busy is None:
            for way in ways:
                way.post = _sum(way.post, self._tally(node, way.pre))
                for post, resets in outcomes:
                    system.rules.append(Rule(node.id, "fire", way.pre, _sum(way.post, post), resets, empty=way.empty))
            return
        for way in ways:
            way.post = _sum(way.post, self._tally(node, way.pre))
            fresh = self._fresh(node, node.withdrawn)
            system.rules.append(
                Rule(
                    node.id,
                    "start",
                    way.pre,
                    _sum(way.post, {busy: 1}, fresh),
                    withdrawn,
                    reads,
                    way.empty | self._locks(node, way.pre),
                    way.join,
                    urgent=0 if node.eager else -1,
                    cost=0,
                )
            )
        for post, resets in outcomes:
            system.rules.append(Rule(node.id, "end", {busy: 1}, post, resets))

    def _locks(self, node: TaskNode, pre: Mapping[int, int]) -> frozenset[int]:
        """Places that must be empty for the locks of a task to be free."""
        system = self.system
        held: set[int] = set()
        if node.mutex is not None:
            held.update(system.busy[other.id] for other in self.net.tasks.values() if other.mutex == node.mutex)
        for section in node.sections:
            inside = {system.conditions[name] for name in section.inside}
            if inside.isdisjoint(pre):
                held |= inside | {system.busy[name] for name in section.tasks if name in system.busy}
        return frozenset(held)

    def _resets(self, node: TaskNode, region: Region | None) -> frozenset[int]:
        """Everything that a cancellation by `node` empties; the books of its own join stay."""
        if region is None:
            return frozenset()
        found = {self.system.conditions[name] for name in region.conditions if name in self.system.conditions}
        found |= {self.dead[name] for name in region.conditions if name in self.dead}
        found |= {self.system.busy[name] for name in region.tasks}
        found |= {place for name in region.tasks if name != node.id for place in self.books.get(name, ())}
        return frozenset(found)

    def _fresh(self, node: TaskNode, region: Region | None) -> dict[int, int]:
        """Bookkeeping that a cancellation puts back to its beginning."""
        return _sum(*(self.fresh.get(name, {}) for name in (region.tasks if region else ()) if name != node.id))

    # ------------------------------------------------------------------------------------------------------- joins

    def _ways(self, node: TaskNode) -> Iterator[_Way]:
        places = self.system.conditions
        inputs = [places[name] for name in node.inputs]
        kind = node.join.kind
        if not inputs:
            signal = f"signal {node.id}"
            if node.task.trigger is not None:
                yield _Way({self.system.names.index(signal): 1})
        elif kind == "and":
            yield _Way(dict.fromkeys(inputs, 1))
        elif kind in ("xor", "merge"):
            count = node.join.count if kind == "merge" else 1
            for place in inputs:
                yield _Way({place: count})
        elif kind == "or":
            yield _Way({}, join=tuple(inputs))
        elif kind == "partial":
            yield from self._partial(node, inputs)
        elif kind == "structured-or":
            yield from self._structured(node)
        else:
            yield from self._local(node)
        if node.skips:
            self._skipped(node)

    def _partial(self, node: TaskNode, inputs: list[int]) -> Iterator[_Way]:
        """n of m. A round: idle, then fired with the branches that were seen; late ones are absorbed, then idle."""
        system = self.system
        branches = min(node.join.of or len(inputs), len(inputs))
        ask, answers = self.asks.get(node.id, ({}, {}))
        needs: list[int] = [node.join.need] if isinstance(node.join.need, int) else sorted(answers)
        chosen: dict[int, dict[int, int]] = {need: {answers[need]: 1} if answers else {} for need in needs}
        for need in answers:
            for place in inputs:
                reads = frozenset({place})
                system.rules.append(Rule(node.id, "move", ask, chosen[need], reads=reads, cost=0))
        if node.join.mode == "cancelling":
            for need in needs:
                for places in _subsets(node, inputs, need):
                    yield _Way(_sum(dict.fromkeys(places, 1), chosen[need]), ask)
            return
        idle, fired, *others = self.books[node.id]
        unseen = dict(zip(inputs, others, strict=False))
        seen = dict(zip(inputs, others[len(inputs) :], strict=False))
        begin = self.fresh[node.id]
        for need in needs:
            for places in _subsets(node, inputs, need):
                if need >= branches:  # the round is over as soon as it has begun
                    yield _Way(_sum(dict.fromkeys(places, 1), chosen[need], {idle: 1}), _sum({idle: 1}, ask))
                    continue
                pre = _sum(dict.fromkeys(places, 1), chosen[need], {idle: 1}, {unseen[place]: 1 for place in places})
                yield _Way(pre, _sum({fired: 1}, {seen[place]: 1 for place in places}))
        group = self._group()
        for place in inputs:
            pre = {place: 1, fired: 1, unseen[place]: 1}
            post = {fired: 1, seen[place]: 1}
            system.rules.append(Rule(node.id, "move", pre, post, urgent=group, cost=0))
        for name in node.skips:
            place = system.conditions[name]
            pre = {self.dead[name]: 1, fired: 1, unseen[place]: 1}
            post = {fired: 1, seen[place]: 1}
            system.rules.append(Rule(node.id, "move", pre, post, urgent=group, cost=0))
        for places in _subsets(node, inputs, branches):
            pre = _sum({fired: 1}, {seen[place]: 1 for place in places})
            resets = frozenset((*unseen.values(), *seen.values()))
            system.rules.append(Rule(node.id, "move", pre, begin, resets, urgent=group - 1, cost=0))

    def _group(self) -> int:
        """Urgent rules are looked at by group, the highest first; each gets two numbers, the upper one first."""
        self.groups += 2
        return self.groups

    def _structured(self, node: TaskNode) -> Iterator[_Way]:
        places = self.system.conditions
        for expected, token in self.expecting.get(node.id, {}).items():
            for size in range(len(expected), 0, -1):
                for present in combinations(sorted(expected), size):
                    empty: set[int] = set()
                    for name in expected.difference(present):
                        block = node.blocks[name]
                        empty |= {places[each] for each in (*block.conditions, name)}
                        empty |= {self.system.busy[task] for task in block.tasks}
                    yield _Way(_sum({places[name]: 1 for name in present}, {token: 1}), empty=frozenset(empty))
            gone = {places[each] for name in expected for each in (*node.blocks[name].conditions, name)}
            gone |= {self.system.busy[task] for name in expected for task in node.blocks[name].tasks}
            given_up = Rule(node.id, "move", {token: 1}, {}, empty=frozenset(gone), urgent=self._group(), cost=0)
            self.system.rules.append(given_up)  # every branch died without delivering

    def _local(self, node: TaskNode) -> Iterator[_Way]:
        """Every input has delivered true or false; fires with the true ones, passes false on when there is none."""
        places = self.system.conditions
        if 2 ** len(node.inputs) > WAYS_MAX:
            raise TooManyWays(node.id)
        for size in range(1, len(node.inputs) + 1):
            for present in combinations(node.inputs, size):
                absent = [name for name in node.inputs if name not in present]
                if set(absent) <= set(node.skips):
                    yield _Way(_sum({places[name]: 1 for name in present}, {self.dead[name]: 1 for name in absent}))

    def _tally(self, node: TaskNode, pre: Mapping[int, int]) -> dict[int, int]:
        """What a start notes of the inputs that it ran for, to know what false tokens in the others mean."""
        places = self.system.conditions
        return {place: 1 for name, place in self.ran.get(node.id, {}).items() if places[name] in pre}

    def _skipped(self, node: TaskNode) -> None:
        """False tokens go past a task that is sure not to run in this round (dead path elimination)."""
        if 2 ** len(node.inputs) > WAYS_MAX:
            raise TooManyWays(node.id)
        if node.join.kind in ("and", "local-or", "partial"):
            for size in range(1, len(node.skips) + 1):
                for absent in combinations(node.skips, size):
                    self._passed_over(node, absent, [name for name in node.inputs if name not in absent])
            return
        ran = self.ran.get(node.id, {})
        for size in range(len(ran) + 1):
            for done in combinations(ran, size):
                rest = [name for name in node.skips if name not in done]
                pre = _sum({self.dead[name]: 1 for name in rest}, {ran[name]: 1 for name in done})
                others = frozenset(place for name, place in ran.items() if name not in done)
                self._skip(node, pre, others, passed=not done)

    def _passed_over(self, node: TaskNode, absent: tuple[str, ...], present: list[str]) -> None:
        """Every input has delivered, those of `absent` false, and the others do not fire the join."""
        places = self.system.conditions
        pre = _sum({self.dead[name]: 1 for name in absent}, {places[name]: 1 for name in present})
        empty = frozenset(places[name] for name in absent)
        if node.join.kind == "and" or not present:
            self._skip(node, pre, empty)
        elif node.join.kind == "partial":
            idle = {self.books[node.id][0]: 1} if node.join.mode != "cancelling" else {}
            if isinstance(node.join.need, int) and len(present) < node.join.need:
                self._skip(node, _sum(pre, idle), empty, kept=idle)
            ask, answers = self.asks.get(node.id, ({}, {}))
            for need, answer in answers.items():
                if len(present) < need:
                    self._skip(node, _sum(pre, idle, {answer: 1}), empty, kept=_sum(idle, ask))

    def _skip(
        self,
        node: TaskNode,
        pre: dict[int, int],
        empty: frozenset[int] = frozenset(),
        kept: Mapping[int, int] | None = None,
        passed: bool = True,
    ) -> None:
        post = _sum(kept or {}, {self.dead[name]: 1 for name in node.carries} if passed else {})
        self.system.rules.append(Rule(node.id, "move", pre, post, empty=empty, urgent=self._group(), cost=0))

    # ------------------------------------------------------------------------------------------------------ splits

    def _choices(self, node: TaskNode) -> Iterator[tuple[str, ...]]:
        """The sets of output conditions that a completion may put a token in."""
        branches = node.branches
        if node.split.kind in ("and", "threads") or len(branches) < 2:
            yield node.outputs
        elif node.split.kind == "xor":
            for branch in branches:
                yield (branch.condition,)
        else:
            guarded = [branch.condition for branch in branches if branch.when is not None]
            if 2 ** len(guarded) > WAYS_MAX + 1:
                raise TooManyWays(node.id)
            for size in range(1, len(guarded) + 1):
                yield from combinations(guarded, size)
            yield from ((branch.condition,) for branch in branches if branch.when is None)

    def _outcomes(self, node: TaskNode) -> Iterator[tuple[dict[int, int], frozenset[int]]]:
        """What a completion puts, and what it empties before. Failing or overdue work takes one flow alone."""
        places = self.system.conditions
        count = node.split.count if node.split.kind == "threads" else 1
        resets = self._resets(node, node.region)
        force = {self.force[name]: 1 for name in node.task.completes if name in self.force}
        always = _sum(self._fresh(node, node.region), force)
        found = [(taken, count) for taken in self._choices(node)]
        for target in (node.task.on_error, node.task.on_timeout):
            detours = [(branch.condition,) for branch in node.branches if target in (branch.target, branch.condition)]
            found.extend((taken, 1) for taken in detours[:1] if target is not None and (taken, 1) not in found)
        for taken, times in found:
            post = _sum({places[name]: times for name in taken if name in places}, always)
            for name in node.outputs:
                if name in node.carries and name not in taken:
                    post = _sum(post, {self.dead[name]: 1})
            for join, inputs in self._told(node, taken).items():
                post = _sum(post, {self.expecting[join][inputs]: 1})
            yield post, resets

    def _told(self, node: TaskNode, taken: tuple[str, ...]) -> Mapping[str, frozenset[str]]:
        """What a split that took these branches tells its structured merges to wait for."""
        found = {
            join: frozenset(place for name in taken for place in table.get(name, ()))
            for join, table in node.expects.items()
        }
        return {join: inputs for join, inputs in found.items() if inputs}

    def _forced(self, node: TaskNode) -> None:
        """`completes`: what is live of the task ends at once, its tokens go on."""
        system, force = self.system, self.force[node.id]
        busy, group = system.busy[node.id], self._group()
        for post, resets in list(self._outcomes(node)):
            system.rules.append(Rule(node.id, "end", {busy: 1, force: 1}, _sum(post, {force: 1}), resets, urgent=group))
        for way in [rule for rule in system.rules if rule.task == node.id and rule.step == "start" and not rule.join]:
            pre, post = _sum(way.pre, {force: 1}), _sum(way.post, {force: 1})
            system.rules.append(
                Rule(node.id, "start", pre, post, way.resets, way.reads, way.empty, urgent=group, cost=0)
            )
        system.rules.append(Rule(node.id, "move", {force: 1}, {}, frozenset({force}), urgent=group - 1, cost=0))


def _subsets(node: TaskNode, places: list[int], size: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for subset in combinations(places, size):
        found.append(subset)
        if len(found) > WAYS_MAX:
            raise TooManyWays(node.id)
    return found


def _sum(*markings: Mapping[int, int]) -> dict[int, int]:
    total: dict[int, int] = {}
    for marking in markings:
        for place, count in marking.items():
            total[place] = total.get(place, 0) + count
    return total


def expand(path: Path) -> Iterable[int]:
    """The original rules of a path, in order."""
    stack = [path]
    while stack:
        step = stack.pop()
        if isinstance(step, int):
            yield step
        elif step[0] == "then":
            stack.extend((step[2], step[1]))
        else:
            stack.append(step[1])


def covered(paths: Iterable[Path]) -> set[int]:
    """Every original rule that paths stand for, alternatives included."""
    found: set[int] = set()
    seen: set[int] = set()
    stack = list(paths)
    while stack:
        step = stack.pop()
        if isinstance(step, int):
            found.add(step)
        elif id(step) not in seen:
            seen.add(id(step))
            stack.extend((step[1], step[2]))
    return found
