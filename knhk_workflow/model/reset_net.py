"""A net as a reset net: integer places, and transitions that take, test, empty and put.

This is what questions about all reachable markings are asked of (general OR-joins, soundness). A task is a start
transition for every way that its join can fire, a busy place with one token per started activation, and an end
transition for every outcome of its split (Wynn, Edmond, van der Aalst, ter Hofstede: "Achieving a general, formal and
decidable approach to the OR-join in workflow using reset nets", 2005). Data is not looked at: any guard may hold.

- join and: all inputs. xor: one start for each input. merge k: one start for each input, weight k.
- join or, structured-or, local-or: as xor, the optimistic reading, which can only reach more.
- join partial, structured or blocking: a start for each choice of `need` inputs while its round is open; afterwards one
  `absorb` for each input not yet seen, and `rearm` when `of` (all, if not told) were seen.
- join partial, cancelling: a start for each choice of `need` inputs; it empties its region and its other inputs.
- split and, threads k: all outputs, weight k. xor: one end for each output.
- split or: one end for all guarded outputs, one for the default; reset nets are monotone, so for coverability the union
  stands for all its parts. Every subset on request.
- instances, sub-net, loop, timer, trigger, retry: inside the busy place; they may complete, whatever they wait for.
- on_error, on_timeout: an `escape` from the busy place to that target alone. compensate: nothing, its net has ended.
- cancels: the end empties conditions, busy places and rounds of joins other than its own.
- reads: places that a start tests and does not take.
- sections, mutex: a lock place, 1 = free. A start takes it unless a token that it consumes is inside already; an end
  that leaves nothing inside gives it back.
- `end` of an explicit net: the transition that puts a token there empties everything else.
- a trigger without incoming flow: a `spontaneous` start that takes nothing.

Where a construct cannot be expressed exactly, more can happen here than in a case, never less; `approximated` names the
tasks and why: a section that forks inside (its lock is free again when the first thread leaves), a forced completion
(`completes`: the other task may complete, but does not have to at that moment), more than PARTIAL_CHOICES_MAX choices
or a computed number of branches of a partial join (one branch is taken as enough), more than VARIANTS_MAX
combinations of held locks that one region cancels, and more than OR_BRANCHES_MAX branches of an or-split whose subsets
are asked for (they fire all at once).

Places and transitions are numbered by name, never by the order of declarations.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import comb
from typing import Literal

from knhk_workflow.model.net import CompiledNet, Region, TaskNode, implicit
from knhk_workflow.model.spec import END, START

PARTIAL_CHOICES_MAX = 252  # 5 of 10; joins drawn by people stay below 4 of 8
VARIANTS_MAX = 64  # which task held which lock when a region is cancelled: six locks with one member each
OR_BRANCHES_MAX = 10  # 1,023 subsets; only asked for by whoever explores markings one by one

Bag = tuple[tuple[int, int], ...]
"""Places with how many tokens, sorted by place, no zeros."""

Marking = dict[int, int]
"""Tokens by place, no zeros."""

PlaceKind = Literal["condition", "busy", "lock", "open", "fired", "unseen", "seen"]
Phase = Literal["start", "end", "escape", "absorb", "rearm"]


@dataclass(frozen=True, slots=True)
class Place:
    """What a number stands for. `name` is the condition, the task (busy, and rounds of its join), or the lock;
    `input` the condition that a partial join has or has not seen in its round."""

    kind: PlaceKind
    name: str
    input: str = ""


@dataclass(frozen=True, slots=True)
class Transition:
    """A step. It needs `pre` and one token in each of `tests`; it takes `pre`, then empties `resets`, then puts `post`.

    `taken` and `put` are the conditions whose tokens a start consumes and an end produces, as the net's author knows
    them.
    """

    name: str
    task: str
    phase: Phase
    pre: Bag
    tests: tuple[int, ...]
    resets: frozenset[int]
    post: Bag
    taken: tuple[str, ...] = ()
    put: tuple[str, ...] = ()
    spontaneous: bool = False
    final: bool = False  # it ends an explicit net


@dataclass(frozen=True, slots=True)
class LockPlace:
    """A section or mutex as a place, and the places whose tokens mean that somebody is inside."""

    name: str
    place: int
    busy: frozenset[int]
    inside: frozenset[int]
    forks: bool  # several tokens of one thread can be inside at once

    @property
    def held_by(self) -> frozenset[int]:
        return self.busy | self.inside


@dataclass(frozen=True, slots=True)
class RoundPlaces:
    """The round of a partial join that does not cancel: open, or fired and waiting for the inputs not yet seen."""

    task: str
    open: int
    fired: int
    unseen: Mapping[str, int]
    seen: Mapping[str, int]

    @property
    def places(self) -> frozenset[int]:
        return frozenset({self.open, self.fired, *self.unseen.values(), *self.seen.values()})

    @property
    def armed(self) -> tuple[int, ...]:
        return (self.open, *self.unseen.values())


@dataclass(frozen=True, slots=True)
class ResetNet:
    """The reset net of one net. `conditions` and `busy` give places by name of condition and of task."""

    places: tuple[Place, ...]
    transitions: tuple[Transition, ...]
    conditions: Mapping[str, int]
    busy: Mapping[str, int]
    locks: tuple[LockPlace, ...]
    rounds: Mapping[str, RoundPlaces]
    approximated: tuple[tuple[str, str], ...]  # (task, why): more can happen here than in a case

    def marking(
        self,
        marking: Mapping[str, int],
        busy: Mapping[str, int],
        seen: Mapping[str, Collection[str]],
    ) -> Marking:
        """The marking of a live net: tokens by condition, started activations that have not produced yet by task,
        and for partial joins that have fired the inputs seen in this round."""
        found = {self.conditions[name]: count for name, count in marking.items() if count}
        found.update((self.busy[name], count) for name, count in busy.items() if count)
        for lock in self.locks:
            if found.keys().isdisjoint(lock.held_by):
                found[lock.place] = 1
        for name, places in self.rounds.items():
            came = seen.get(name, ())
            found[places.fired if came else places.open] = 1
            for condition, place in places.seen.items():
                found[place if condition in came else places.unseen[condition]] = 1
        return found

    @property
    def initial(self) -> Marking:
        """The marking that a net begins with."""
        return self.marking({START: 1}, {}, {})


def enabled(transition: Transition, marking: Mapping[int, int]) -> bool:
    """Whether `transition` can fire in `marking`."""
    return all(marking.get(place, 0) >= count for place, count in transition.pre) and all(
        place in marking for place in transition.tests
    )


def fire(transition: Transition, marking: Mapping[int, int]) -> Marking:
    """The marking after an enabled `transition`."""
    after = dict(marking)
    for place, count in transition.pre:
        left = after[place] - count
        if left:
            after[place] = left
        else:
            del after[place]
    for place in transition.resets:
        after.pop(place, None)
    for place, count in transition.post:
        after[place] = after.get(place, 0) + count
    return after


def compile_reset_net(net: CompiledNet, *, subsets: bool = False) -> ResetNet:
    """The reset net of `net`. `subsets`: an or-split gets one end for every subset of its branches, for exploring
    markings one by one; coverability does not need them."""
    draft = _Draft(net, subsets)
    for name in sorted(net.tasks):
        draft.add_task(net.tasks[name])
    return ResetNet(
        places=draft.places,
        transitions=tuple(sorted(draft.transitions, key=lambda each: each.name)),
        conditions=draft.conditions,
        busy=draft.busy,
        locks=draft.locks,
        rounds=draft.rounds,
        approximated=tuple(sorted(draft.approximated)),
    )


def _rounds(node: TaskNode) -> bool:
    """Whether the join has rounds. One that needs every branch has not: firing, it has seen them all."""
    return node.join.kind == "partial" and node.join.mode != "cancelling" and node.need != len(node.inputs)


@dataclass(frozen=True, slots=True)
class _Effect:
    """One way in which a region is cancelled: which places a token must have been in, what becomes empty and full."""

    pre: Mapping[int, int]
    resets: frozenset[int]
    post: Mapping[int, int]


@dataclass(slots=True)
class _Draft:
    net: CompiledNet
    subsets: bool
    places: tuple[Place, ...] = ()
    conditions: dict[str, int] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    locks: tuple[LockPlace, ...] = ()
    rounds: dict[str, RoundPlaces] = field(default_factory=dict)
    transitions: list[Transition] = field(default_factory=list)
    approximated: set[tuple[str, str]] = field(default_factory=set)
    locks_of: dict[str, list[LockPlace]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        members: dict[str, set[str]] = {}
        inside: dict[str, frozenset[str]] = {}
        for section in self.net.sections:
            members[section.lock] = set(section.tasks)
            inside[section.lock] = section.inside
        for node in self.net.tasks.values():
            if node.mutex is not None:
                members.setdefault(node.mutex, set()).add(node.id)
        places = [Place("condition", name) for name in sorted(self.net.conditions)]
        places += [Place("busy", name) for name in sorted(self.net.tasks)]
        places += [Place("lock", name) for name in sorted(members)]
        for name, node in sorted(self.net.tasks.items()):
            if _rounds(node):
                places += [Place("open", name), Place("fired", name)]
                places += [Place("unseen", name, condition) for condition in node.inputs]
                places += [Place("seen", name, condition) for condition in node.inputs]
        self.places = tuple(places)
        index = {place: number for number, place in enumerate(places)}
        self.conditions = {place.name: number for place, number in index.items() if place.kind == "condition"}
        self.busy = {place.name: number for place, number in index.items() if place.kind == "busy"}
        self.rounds = {
            name: RoundPlaces(
                name,
                index[Place("open", name)],
                index[Place("fired", name)],
                {condition: index[Place("unseen", name, condition)] for condition in node.inputs},
                {condition: index[Place("seen", name, condition)] for condition in node.inputs},
            )
            for name, node in sorted(self.net.tasks.items())
            if _rounds(node)
        }
        locks = []
        for name in sorted(members):
            within = inside.get(name, frozenset())
            lock = LockPlace(
                name,
                index[Place("lock", name)],
                frozenset(self.busy[task] for task in members[name] if task in self.busy),
                frozenset(self.conditions[condition] for condition in within),
                any(self._forks(self.net.tasks[task], within) for task in members[name] if task in self.net.tasks),
            )
            locks.append(lock)
            for task in sorted(members[name]):
                self.locks_of.setdefault(task, []).append(lock)
                if lock.forks:
                    self.approximated.add((task, "section_forks"))
        self.locks = tuple(locks)

    @staticmethod
    def _forks(node: TaskNode, inside: Collection[str]) -> bool:
        within = sum(1 for condition in node.outputs if condition in inside)
        if node.split.kind == "threads":
            return within * node.split.count > 1
        return node.split.kind != "xor" and within > 1

    # ------------------------------------------------------------------------------------------------------ tasks

    def add_task(self, node: TaskNode) -> None:
        if node.task.completes:
            self.approximated.add((node.id, "completes"))
        self._starts(node)
        self._ends(node)

    def _starts(self, node: TaskNode) -> None:
        if not node.inputs:
            if node.task.trigger is not None:
                self._start(node, (), 1, spontaneous=True)
            return
        kind = node.join.kind
        if kind == "and":
            self._start(node, node.inputs, 1)
        elif kind == "partial":
            self._partial(node)
        else:
            for condition in node.inputs:
                self._start(node, (condition,), node.join.count if kind == "merge" else 1)

    def _start(
        self,
        node: TaskNode,
        taken: tuple[str, ...],
        weight: int,
        *,
        spontaneous: bool = False,
        effect: _Effect | None = None,
        variant: int = 0,
    ) -> None:
        pre: Marking = {self.conditions[condition]: weight for condition in taken}
        post: Marking = {self.busy[node.id]: 1}
        for lock in self.locks_of.get(node.id, ()):
            if lock.inside.isdisjoint(pre):
                pre[lock.place] = 1
        resets: frozenset[int] = frozenset()
        if effect is not None:
            _put(pre, effect.pre)
            _put(post, effect.post)
            resets = effect.resets
        round_ = self.rounds.get(node.id)
        if round_ is not None:
            _put(pre, {round_.open: 1} | {round_.unseen[condition]: 1 for condition in taken})
            _put(post, {round_.fired: 1} | {round_.seen[condition]: 1 for condition in taken})
        self.transitions.append(
            Transition(
                name=_name(node.id, "start", taken, variant),
                task=node.id,
                phase="start",
                pre=_bag(pre),
                tests=tuple(sorted(self.conditions[condition] for condition in set(node.task.reads))),
                resets=resets,
                post=_bag(post),
                taken=tuple(condition for condition in taken for _ in range(weight)),
                spontaneous=spontaneous,
            )
        )

    def _partial(self, node: TaskNode) -> None:
        need = node.need if isinstance(node.need, int) else 1
        need = max(1, min(need, node.join.of or len(node.inputs)))
        if not isinstance(node.need, int):
            self.approximated.add((node.id, "partial_need_computed"))
        elif comb(len(node.inputs), need) > PARTIAL_CHOICES_MAX:
            self.approximated.add((node.id, "partial_choices"))
            need = 1
        for taken in itertools.combinations(node.inputs, need):
            if node.join.mode != "cancelling":
                self._start(node, taken, 1)
                continue
            others = tuple(condition for condition in node.inputs if condition not in taken)
            region = node.withdrawn or Region((), ())
            emptied = Region((*region.conditions, *others), region.tasks)
            for variant, effect in enumerate(self._cancelled(node, emptied)):
                self._start(node, taken, 1, effect=effect, variant=variant)
        round_ = self.rounds.get(node.id)
        if round_ is None:
            return
        for condition in node.inputs:
            place = self.conditions[condition]
            post = {round_.fired: 1, round_.seen[condition]: 1}
            left = [lock.place for lock in self.locks if place in lock.inside]  # nobody is inside any more
            _put(post, dict.fromkeys(left, 1))
            pre = {place: 1, round_.fired: 1, round_.unseen[condition]: 1}
            name = _name(node.id, "absorb", (condition,), 0)
            self.transitions.append(
                Transition(name, node.id, "absorb", _bag(pre), (), frozenset(left), _bag(post), (condition,))
            )
        of = node.join.of or len(node.inputs)
        if comb(len(node.inputs), of) > PARTIAL_CHOICES_MAX:
            self.approximated.add((node.id, "partial_choices"))
            of = 1
        armed = _bag(dict.fromkeys(round_.armed, 1))
        for came in itertools.combinations(node.inputs, of):
            pre = {round_.fired: 1} | {round_.seen[condition]: 1 for condition in came}
            name = _name(node.id, "rearm", came, 0)
            self.transitions.append(Transition(name, node.id, "rearm", _bag(pre), (), round_.places, armed))

    def _ends(self, node: TaskNode) -> None:
        effects = list(self._cancelled(node, node.region)) if node.region is not None else [_NOTHING]
        outcomes = self._outcomes(node)
        for put in outcomes:
            for variant, effect in enumerate(effects):
                self._end(node, "end", put, effect, variant)
        for put in self._escapes(node):
            if put not in outcomes:
                for variant, effect in enumerate(effects):
                    self._end(node, "escape", put, effect, variant)

    def _end(self, node: TaskNode, phase: Phase, put: tuple[str, ...], effect: _Effect, variant: int) -> None:
        name = _name(node.id, phase, put, variant)
        pre: Marking = {self.busy[node.id]: 1}
        if END in put and self.net.termination == "explicit":
            if variant == 0:
                everything = frozenset(range(len(self.places)))
                post = ((self.conditions[END], put.count(END)),)
                self.transitions.append(
                    Transition(name, node.id, phase, _bag(pre), (), everything, post, put=put, final=True)
                )
            return
        after: Marking = {}
        for condition in put:
            _put(after, {self.conditions[condition]: 1})
        _put(pre, effect.pre)
        resets = set(effect.resets)
        given = dict(effect.post)
        for lock in self.locks_of.get(node.id, ()):
            if lock.inside.isdisjoint(after):
                given[lock.place] = 1
                if lock.forks:
                    resets.add(lock.place)
        _put(after, given)
        self.transitions.append(
            Transition(name, node.id, phase, _bag(pre), (), frozenset(resets), _bag(after), put=put)
        )

    # --------------------------------------------------------------------------------------------------- outcomes

    def _outcomes(self, node: TaskNode) -> list[tuple[str, ...]]:
        """What the split may produce, as sorted conditions; a repetition is several tokens."""
        kind = node.split.kind
        if not node.outputs:
            return [()]
        if kind == "xor":
            return sorted({(condition,) for condition in node.outputs})
        if kind == "threads":
            return [tuple(sorted(node.outputs * node.split.count))]
        if kind == "and":
            return [tuple(sorted(node.outputs))]
        defaults = sorted(branch.condition for branch in node.branches if branch.default)
        guarded = sorted(branch.condition for branch in node.branches if not branch.default)
        found: set[tuple[str, ...]] = {(condition,) for condition in defaults}
        if self.subsets and len(guarded) <= OR_BRANCHES_MAX:
            for size in range(1, len(guarded) + 1):
                found.update(itertools.combinations(guarded, size))
        else:
            if self.subsets:
                self.approximated.add((node.id, "or_split_branches"))
            found.update(self._unions(node, guarded))
        return sorted(found)

    def _unions(self, node: TaskNode, guarded: Collection[str]) -> Iterator[tuple[str, ...]]:
        """The subsets that stand for all others: everything, and whatever avoids a place that makes a difference
        beyond its token: the end of an explicit net, and the insides of sections."""
        avoided = [frozenset({END})] if self.net.termination == "explicit" and END in guarded else []
        for lock in self.locks_of.get(node.id, ()):
            inside = frozenset(condition for condition in guarded if self.conditions[condition] in lock.inside)
            if inside:
                avoided.append(inside)
        for size in range(len(avoided) + 1):
            for chosen in itertools.combinations(avoided, size):
                left = tuple(condition for condition in guarded if not any(condition in each for each in chosen))
                if left:
                    yield left

    def _escapes(self, node: TaskNode) -> Iterator[tuple[str, ...]]:
        """Where a failed or overdue task sends its one token."""
        for target in sorted({node.task.on_error, node.task.on_timeout} - {None}, key=str):
            assert target is not None
            named = sorted(branch.condition for branch in node.branches if branch.target == target)
            if named:
                yield (named[0],)
            elif target in self.conditions:
                yield (target,)
            elif implicit(node.id, target) in self.conditions:
                yield (implicit(node.id, target),)

    # ------------------------------------------------------------------------------------------------ cancellation

    def _cancelled(self, node: TaskNode, region: Region) -> Iterator[_Effect]:
        """The ways to cancel `region`. Its tokens go; a lock whose holder goes is free again, so that it matters who
        held it, unless the region covers everybody who can."""
        gone = {self.conditions[name] for name in region.conditions} | {self.busy[name] for name in region.tasks}
        rounds = [self.rounds[name] for name in region.tasks if name in self.rounds and name != node.id]
        resets = set(gone)
        given: Marking = {}
        for round_ in rounds:
            resets |= round_.places
            _put(given, dict.fromkeys(round_.armed, 1))
        own = {lock.name for lock in self.locks_of.get(node.id, ())}
        choices: list[tuple[tuple[int, LockPlace] | None, ...]] = []
        for lock in self.locks:
            held = lock.held_by & gone
            if not held or lock.name in own:
                continue
            if held == lock.held_by:
                resets.add(lock.place)
                given[lock.place] = 1
            else:
                choices.append((None, *((place, lock) for place in sorted(held))))
        count = 1
        for choice in choices:
            count *= len(choice)
        if count > VARIANTS_MAX:
            self.approximated.add((node.id, "cancelled_locks"))
            for choice in choices:
                for held_by in choice:
                    if held_by is not None:
                        resets.add(held_by[1].place)
                        given[held_by[1].place] = 1
            choices = []
        for chosen in itertools.product(*choices):
            pre: Marking = {}
            emptied = set(resets)
            post = dict(given)
            for held_by in chosen:
                if held_by is not None:
                    pre[held_by[0]] = 1
                    post[held_by[1].place] = 1
                    if held_by[1].forks:
                        emptied.add(held_by[1].place)
            yield _Effect(pre, frozenset(emptied), post)


_NOTHING = _Effect({}, frozenset(), {})


def _put(marking: Marking, more: Mapping[int, int]) -> None:
    for place, count in more.items():
        marking[place] = marking.get(place, 0) + count


def _bag(marking: Mapping[int, int]) -> Bag:
    return tuple(sorted(marking.items()))


def _name(task: str, phase: str, conditions: Iterable[str], variant: int) -> str:
    return f"{task} {phase} {' '.join(conditions)}" + (f" #{variant}" if variant else "")
