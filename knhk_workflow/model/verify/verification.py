"""The verdict on a workflow: each of its nets by itself, a called net standing for one task.

Sound: whatever has happened, the net can still come to its end, and every task that flows lead to can happen. What an
end is follows the net's termination: implicit, nothing unfinished is left; explicit, `end` is marked. Tokens that pile
up, that are left in `end` or that are withdrawn there do not make a net unsound: some patterns mean just that.

The way to it: all markings when they are few; otherwise the reduced system, exact and fast for nets of AND and XOR;
otherwise as many markings of it as the budget allows; and when that is not enough, what coverability still says for
certain (no run ends, a task is dead).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import msgspec

from knhk_workflow.errors import Problem
from knhk_workflow.model.graph import dominators, reachable
from knhk_workflow.model.net import CompiledNet, TaskNode
from knhk_workflow.model.spec import START, Spec
from knhk_workflow.model.verify import findings as say
from knhk_workflow.model.verify.budget import Meter, Spent, VerifyBudget
from knhk_workflow.model.verify.coverability import Coverability
from knhk_workflow.model.verify.exploration import Exploration, explore
from knhk_workflow.model.verify.marking import Space, fired, possible
from knhk_workflow.model.verify.reduction import reduce
from knhk_workflow.model.verify.system import Rule, System, TooManyWays, covered, expand, system_of

Verdict = Literal["sound", "unsound", "undecided"]

_FIRST_STEPS: Final = 20_000
_FIRST_RULES: Final = 300  # larger nets have too many markings for that to end, and each costs more
_ROUND_MARKINGS: Final = 1_000  # looked at to name the tasks of an endless loop
_TRACE_MAX: Final = 1_000  # tasks of a counterexample; a longer one is told by its end
_DOUBTS_MAX: Final = 50  # tasks that coverability is asked about

DEFAULT: Final = VerifyBudget()


class Verification(msgspec.Struct, frozen=True):
    """What verification found. `reason` says in one sentence what the verdict rests on."""

    verdict: Verdict
    findings: tuple[Problem, ...]
    reason: str


def verify(spec: Spec, nets: Mapping[str, CompiledNet], *, budget: VerifyBudget = DEFAULT) -> Verification:
    """The verdict on `spec`, whose compiled nets are `nets`. Pure: the same workflow and budget, the same answer."""
    meter = Meter(budget)
    found: list[Problem] = []
    reasons: list[str] = []
    verdicts: set[Verdict] = set()
    for net in spec.nets:
        one = _Verifier(nets[net.name], meter, budget.first).run()
        verdicts.add(one.verdict)
        found.extend(one.findings)
        if one.verdict == "undecided":
            reasons.append(f"net {net.name!r}: {one.reason}" if net.name else one.reason)
    nested = list(_nested_locks(nets))
    found.extend(nested)
    if nested or "unsound" in verdicts:
        first = next(problem for problem in found if problem.severity == "error")
        return Verification("unsound", tuple(found), str(first.message))
    if reasons:
        return Verification("undecided", tuple(found), "; ".join(reasons))
    return Verification("sound", tuple(found), "every run can come to its end, and every task can happen")


def _nested_locks(nets: Mapping[str, CompiledNet]) -> Iterator[Problem]:
    """Tasks that hold a lock which their own sub-net, or one below it, needs."""
    calls = {name: tuple(node.net for node in net.tasks.values() if node.net) for name, net in nets.items()}
    for net in nets.values():
        for node in net.tasks.values():
            locks = {section.lock for section in node.sections} | ({node.mutex} if node.mutex else set())
            if node.net is None or not locks:
                continue
            for called in sorted(reachable(calls, (node.net,))):
                for inner in nets[called].tasks.values():
                    needed = {section.lock for section in inner.sections} | ({inner.mutex} if inner.mutex else set())
                    for lock in sorted(locks & needed):
                        yield say.nested_lock(net, node.id, lock, called, inner.id)


class _Verifier:
    """One net."""

    def __init__(self, net: CompiledNet, meter: Meter, first: int) -> None:
        self.net = net
        self.first = first
        self.meter = meter
        self.found: list[Problem] = []
        edges: dict[str, tuple[str, ...]] = {
            condition: tuple(node.id for node in net.consumers.get(condition, ())) for condition in net.conditions
        }
        self.edges = edges | {node.id: node.outputs for node in net.tasks.values()}
        self.connected = self._connected()

    def _connected(self) -> set[str]:
        """Tasks that are part of a flow at all; the others are drafts, which the structure's warnings name."""
        detours = {
            node.id: tuple(name for name in (node.task.on_error, node.task.on_timeout) if name is not None)
            for node in self.net.tasks.values()
        }
        edges = {name: (*after, *detours.get(name, ())) for name, after in self.edges.items()}
        signalled = [node.id for node in self.net.sources]
        aside = {node.task.compensate for node in self.net.tasks.values()}
        return (reachable(edges, (START, *signalled)) & self.net.tasks.keys()) - aside

    def run(self) -> Verification:
        self._shape()
        try:
            system = system_of(self.net)
        except TooManyWays as ways:
            return self._undecided(f"{ways.task!r} has more branches than can be combined")
        space = Space(system)
        part = self.meter.part(self.first if len(system.rules) <= _FIRST_RULES else 0, _FIRST_STEPS)
        whole = explore(space, part)
        self.meter.settle(part)
        if whole.complete or whole.stuck:
            return self._decided(system, whole)
        try:
            reduced = reduce(system, self.meter)
        except Spent as spent:
            return self._undecided(spent.what)
        smaller = Space(reduced.system)
        explored = explore(smaller, self.meter, [places for places, _ in reduced.echoes])
        if explored.stuck or explored.doomed:
            return self._unsound(system, explored)
        if explored.unfinished:
            return self._weak(system, space, explored)
        paths = [reduced.system.rules[number].path for number in explored.fired]
        for places, path in reduced.echoes:
            mask = [smaller.mask((place,)) for place in places]
            if any(all(marking & each for each in mask) for marking in explored.markings):
                paths.append(path)
        self._regions(explored, system.rules)
        self._or_joins(explored)
        return self._sound(system, {system.rules[number].task for number in covered(paths)})

    # ---------------------------------------------------------------------------------------------------- verdicts

    def _decided(self, system: System, whole: Exploration) -> Verification:
        if whole.stuck or whole.doomed:
            return self._unsound(system, whole)
        self._regions(whole, system.rules)
        self._or_joins(whole)
        self._safety(whole)
        return self._sound(system, {system.rules[number].task for number in whole.fired})

    def _sound(self, system: System, happening: set[str]) -> Verification:
        dead = [self.net.tasks[name] for name in sorted(self.connected - happening)]
        if system.doubtful:
            return self._undecided(system.doubtful)
        if dead:
            self.found.extend(say.dead_task(self.net, node) for node in dead)
            return Verification("unsound", tuple(self.found), self.found[-1].message)
        return Verification("sound", tuple(self.found), "")

    def _undecided(self, reason: str) -> Verification:
        self.found.append(say.undecided(self.net, reason))
        return Verification("undecided", tuple(self.found), reason)

    def _weak(self, system: System, space: Space, explored: Exploration) -> Verification:
        """Too many markings. Coverability may still say for certain that something never happens."""
        part = Meter(VerifyBudget(0, max(self.meter.steps, _FIRST_STEPS)))
        try:
            search = Coverability(space, part)
            if not search.reaches(space.initial, self._ends(space)):
                self.found.append(say.no_completion(self.net))
                return Verification("unsound", tuple(self.found), self.found[-1].message)
            alive = {explored.space.rules[number].rule.path for number in explored.fired}
            happening = {system.rules[number].task for number in covered(alive)}
            dead = [
                self.net.tasks[name]
                for name in sorted(self.connected - happening)[:_DOUBTS_MAX]
                if not search.reaches(space.initial, self._starts(space, name))
            ]
            if dead:
                self.found.extend(say.dead_task(self.net, node) for node in dead)
                return Verification("unsound", tuple(self.found), self.found[-1].message)
        except Spent:
            pass  # then it says nothing for certain, and the reason stays what it is
        return self._undecided(explored.unfinished)

    def _ends(self, space: Space) -> list[int]:
        """Markings of which every run that ends covers one."""
        if space.system.end >= 0:
            return [space.pack({space.system.end: 1})]
        return [
            space.pack(dict.fromkeys(packed.rule.reads, 1) | dict(packed.rule.pre))
            for packed in space.rules
            if not packed.rule.join and space.system.live.isdisjoint(packed.rule.post)
        ] + [one for packed in space.rules for _, one in packed.inputs]

    def _starts(self, space: Space, task: str) -> list[int]:
        """Markings of which one is covered whenever a task starts."""
        found: list[int] = []
        for packed in space.rules:
            if packed.rule.task == task and packed.rule.step in ("fire", "start"):
                found.extend(one for _, one in packed.inputs)
                if not packed.inputs:
                    found.append(space.pack(dict.fromkeys(packed.rule.reads, 1) | dict(packed.rule.pre)))
        return found

    def _unsound(self, system: System, explored: Exploration) -> Verification:
        if system.doubtful:
            return self._undecided(system.doubtful)
        rules = [explored.space.rules[number].rule for number in explored.way]
        numbers = [number for rule in rules for number in expand(rule.path)]
        space = Space(system)
        marking = space.initial
        for number in numbers:
            marking = fired(space.rules[number], marking)
        trace = self._trace(system, space, numbers)
        left = {system.names[place]: count for place, count in space.unpack(marking) if place in system.live}
        if explored.doomed:
            self.found.append(say.livelock(self.net, left, self._round(system, space, marking), trace))
        else:
            self.found.append(self._stuck(system, space, marking, left, trace))
        return Verification("unsound", tuple(self.found), self.found[-1].message)

    def _trace(self, system: System, space: Space, numbers: list[int]) -> list[str]:
        """Names of tasks in the order of their completion; `start X` for work that was begun and then cancelled."""
        steps: list[str] = []
        begun: dict[str, list[int]] = {}
        for number in numbers:
            rule = system.rules[number]
            if rule.step == "end":
                begun[rule.task].pop(0)
                steps.append(rule.task)
            elif rule.step == "fire":
                steps.append(rule.task)
            for task, places in begun.items():
                if system.busy[task] in rule.resets:
                    for place in places:
                        steps[place] = f"start {task}"
                    places.clear()
            if rule.step == "start":
                begun.setdefault(rule.task, []).append(len(steps))
                steps.append("")
        named = [step for step in steps if step]
        if len(named) > _TRACE_MAX:
            named = [f"{len(named) - _TRACE_MAX} tasks before", *named[-_TRACE_MAX:]]
        return named

    # --------------------------------------------------------------------------------------------------- what is stuck

    def _stuck(self, system: System, space: Space, marking: int, left: Mapping[str, int], trace: list[str]) -> Problem:
        for packed in space.rules:
            rule = packed.rule
            if packed.empty & marking and all(marking & mask >= least for mask, least in packed.needs):
                node = self.net.tasks[rule.task]
                if node.sections or node.mutex:
                    lock = node.sections[0].lock if node.sections else node.mutex or ""
                    return say.lock_deadlock(self.net, left, rule.task, lock, trace)
        waiting = sorted(
            (node for name in left for node in self.net.consumers.get(name, ())),
            key=lambda node: (node.join.kind == "xor", node.id),
        )
        if not left and self.net.termination == "explicit":
            return say.end_not_reached(self.net, trace, self._chooser(None, trace))
        if not waiting:
            return say.deadlock(self.net, left, None, (), trace, self._chooser(None, trace))
        node = self._first(waiting)
        missing = [name for name in node.inputs if name not in left] if node.join.kind not in ("xor", "merge") else []
        return say.deadlock(self.net, left, node, missing, trace, self._chooser(node, trace))

    def _first(self, waiting: list[TaskNode]) -> TaskNode:
        """The waiting task that lies deepest: those around it wait because it does."""
        above = dominators(self.edges, START)

        def depth(node: TaskNode) -> int:
            name, steps = node.id, 0
            while above.get(name, name) != name:
                name, steps = above[name], steps + 1
            return steps

        return max(waiting, key=depth)

    def _chooser(self, node: TaskNode | None, trace: list[str]) -> str | None:
        """The choice that the counterexample hangs on: the nearest above the waiting task, or the last one taken."""
        happened = {step for step in trace if step in self.net.tasks}
        choices = {
            name
            for name in happened
            if self.net.tasks[name].split.kind in ("xor", "or") and len(self.net.tasks[name].branches) > 1
        }
        if node is not None and choices:
            above = dominators(self.edges, START)
            name = node.id
            while above.get(name, name) != name:
                name = above[name]
                if name in choices:
                    return name
        return next((step for step in reversed(trace) if step in choices), None)

    def _round(self, system: System, space: Space, marking: int) -> list[str]:
        """Tasks that happen again and again once no end can be reached."""
        seen = {marking}
        pending = [marking]
        names: set[str] = set()
        while pending and len(seen) <= _ROUND_MARKINGS:
            now = pending.pop()
            for packed in space.rules:
                if possible(packed, now):
                    names.add(packed.rule.task)
                    after = fired(packed, now)
                    if after not in seen and not space.beyond(after):
                        seen.add(after)
                        pending.append(after)
        return sorted(names)

    # ------------------------------------------------------------------------------------- warnings and information

    def _shape(self) -> None:
        """What the graph alone tells."""
        net = self.net
        joins = [node.id for node in net.or_joins]
        grouped: set[str] = set()
        for name in joins:
            if name in grouped:
                continue
            after = reachable(self.edges, self.edges[name])
            cycle = {other for other in joins if other in after and name in reachable(self.edges, self.edges[other])}
            if len(cycle | {name}) > 1 and name in after:
                grouped |= cycle
                self.found.append(say.or_joins_in_cycle(net, cycle | {name}))
        for node in net.tasks.values():
            if node.split.kind in ("xor", "or") and len(node.branches) > 1 and all(each.when for each in node.branches):
                self.found.append(say.choice_without_default(net, node))
        self.found.extend(say.one_signal(net, node) for node in net.sources)

    def _regions(self, explored: Exploration, rules: list[Rule]) -> None:
        """Elements of cancellation regions that are always empty by then."""
        system = explored.space.system
        held: dict[str, int] = {}
        for number, marking in explored.emptied.items():
            for original in covered([explored.space.rules[number].rule.path]):
                task = rules[original].task
                held[task] = held.get(task, 0) | marking
        for name in sorted(held):
            node = self.net.tasks[name]
            for element in node.task.cancels:
                places = {system.conditions[element]} if element in system.conditions else set()
                if element in self.net.tasks:
                    inputs = {place for place in self.net.tasks[element].inputs if place.endswith(f"->{element}")}
                    places = {system.conditions[place] for place in inputs} | {system.busy[element]}
                if element != name and places and not held[name] & explored.space.mask(places):
                    self.found.append(say.cancels_nothing(self.net, node, element))

    def _or_joins(self, explored: Exploration) -> None:
        """OR-joins that always behave like another join."""
        counts: dict[str, set[int]] = {}
        for number, sizes in explored.joined.items():
            counts.setdefault(explored.space.rules[number].rule.task, set()).update(sizes)
        for name, sizes in sorted(counts.items()):
            node = self.net.tasks[name]
            if len(node.inputs) < 2:
                continue
            if sizes == {len(node.inputs)}:
                self.found.append(say.immutable_or_join(self.net, node, "and"))
            elif sizes == {1}:
                self.found.append(say.immutable_or_join(self.net, node, "xor"))

    def _safety(self, whole: Exploration) -> None:
        """Places with several tokens, and merges whose branches overlap."""
        space, system = whole.space, whole.space.system
        several = space.full & ~sum(1 << (space.bits * place) for place in range(space.places))
        crowded = 0
        left = 0
        merges = [
            (node, [space.mask((system.conditions[name],)) for name in node.inputs])
            for node in self.net.tasks.values()
            if node.join.kind == "xor" and len(node.inputs) > 1
        ]
        overlapping: list[TaskNode] = []
        for number, marking in enumerate(whole.markings):
            if number in whole.ended:
                left |= marking
                continue
            crowded |= marking & several
            for merge in list(merges):
                if sum(1 for mask in merge[1] if marking & mask) > 1:
                    merges.remove(merge)
                    overlapping.append(merge[0])
        for name, place in system.conditions.items():
            readers = [node.id for node in self.net.consumers.get(name, ())]
            if readers and crowded & space.mask((place,)):
                self.found.append(say.unsafe_place(self.net, name, readers))
        self.found.extend(say.unsafe_merge(self.net, node) for node in overlapping)
        if system.end >= 0:
            places_left = system.conditions | system.busy
            names = {
                name for name, place in places_left.items() if place in system.live and left & space.mask((place,))
            }
            if names:
                self.found.append(say.work_removed(self.net, names))
        for places in system.queues:
            masks = [space.mask((place,)) for place in places]
            if any(sum(1 for mask in masks if marking & mask) > 1 for marking in whole.markings):
                owner = system.names[places[0]].split(" expects ")[0]
                self.found.append(say.merge_reentered(self.net, owner))
                system.doubtful = f"{owner!r} has several rounds at once, whose order was not looked at"
