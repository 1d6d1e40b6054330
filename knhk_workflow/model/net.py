"""A workflow compiled for running: who consumes what, which guard guards which flow, what a construct refers to.

Compiled once per workflow version and shared by all its cases; never changed afterwards. A flow between two tasks
becomes the implicit condition `source->target`. Everything that a rule needs to know about the shape of the net (the
matching split of a structured merge, the inside of a critical section, where false tokens travel) is found here, so
that a step only looks it up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from knhk_workflow.model.expression import Expression, compile_expression
from knhk_workflow.model.fields import moment
from knhk_workflow.model.graph import OUTSIDE, dominators, natural_loops, reachable, reverse, without
from knhk_workflow.model.recurrence import Recurrence, recurrence
from knhk_workflow.model.request import Request, compile_request
from knhk_workflow.model.spec import END, ROOT, START, Assignment, Instances, Join, Net, Spec, Split, Task, Termination
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.model.veil import OPEN, Veil, veil_of

Carrier = Literal["route", "item", "net", "trigger"]
"""What carries a task out: nothing (it completes at once), somebody outside, a sub-net, or what it waits for: a signal,
or a moment."""

Amount = int | Expression
"""A number that the author wrote, or how to find it in the data."""


SINGLE = frozenset({"or", "structured-or", "local-or", "partial"})
"""Joins that have at most one firing at a time, whose tokens are chosen when the task starts."""


def implicit(source: str, target: str) -> str:
    """The name of the condition between two tasks."""
    return f"{source}->{target}"


@dataclass(frozen=True, slots=True)
class Branch:
    """One outgoing flow: where its token goes and what guards it."""

    target: str  # the task or condition that the author named
    condition: str
    when: Expression | None
    default: bool


@dataclass(frozen=True, slots=True)
class Many:
    """Multiple instances of a task, compiled."""

    least: Amount
    most: Amount | None
    threshold: Amount | None
    until: Expression | None
    dynamic: bool
    cancel_rest: bool
    sync: bool
    sequential: bool
    for_each: Expression | None
    collect: str | None


@dataclass(frozen=True, slots=True)
class Times:
    """What a task has to do with time, compiled. Moments are nanoseconds since the epoch, durations nanoseconds."""

    after: Amount | None  # a task that completes by itself: so long after it was enabled,
    at: Amount | None  # or at a moment
    timeout: int | None  # each attempt at the work may take so long
    deadline: Amount | None  # the task must be done at a moment
    every: Recurrence | None = None  # or at the next occurrence, instead of the first two


@dataclass(frozen=True, slots=True)
class Calls:
    """How a connector carries a task out, compiled."""

    connector: str
    request: Request
    result: tuple[tuple[str, Expression], ...] | None
    mapped: bool  # the request sees what `in` gives, not the net's data


@dataclass(frozen=True, slots=True)
class Region:
    """What a task cancels: conditions to empty, tasks to withdraw or stop."""

    conditions: tuple[str, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A critical section: its tasks, and the conditions that lie inside it."""

    lock: str
    tasks: frozenset[str]
    inside: frozenset[str]


@dataclass(frozen=True, slots=True)
class TaskNode:
    """A task in its net. `inputs` are condition names in alphabetical order, so that no rule
    depends on how the document was typed; `branches` and `outputs` keep the author's order, which decides a choice.

    `shared` tells that starting this task can change what another task may do.
    """

    id: str
    carrier: Carrier
    join: Join
    split: Split
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    branches: tuple[Branch, ...]
    shared: bool
    net: str | None
    in_: tuple[tuple[str, Expression], ...] | None
    out: tuple[tuple[str, Expression], ...] | None
    task: Task
    many: Many | None = None
    need: Amount = 1
    while_: Expression | None = None
    until: Expression | None = None
    region: Region | None = None  # cancelled when it completes
    withdrawn: Region | None = None  # cancelled when its cancelling partial join fires
    sections: tuple[Section, ...] = ()
    mutex: str | None = None
    expects: Mapping[str, Mapping[str, tuple[str, ...]]] = field(
        default_factory=dict
    )  # structured merge -> output condition -> its inputs
    blocks: Mapping[str, Region] = field(
        default_factory=dict
    )  # of a structured merge: what lies between the split and each input
    carries: tuple[str, ...] = ()  # outputs that false tokens take
    skips: tuple[str, ...] = ()  # inputs in which false tokens can arrive
    times: Times | None = None
    undo: str | None = None  # the task that undoes it
    undoes: tuple[str, ...] = ()  # of a compensation: the tasks that it undoes
    ends: bool = False  # a token of it can end the net, whatever is left there
    calls: Calls | None = None  # a connector does it

    # What rules ask of every step, found once:
    automatic: bool = field(init=False)
    """It starts when enabled, because nobody outside has to take it."""
    at_once: bool = field(init=False)
    """It takes its tokens when enabled, whether or not its work has begun."""
    guarded: bool = field(init=False)
    """It starts only while it has its locks."""
    eager: bool = field(init=False)
    """Its join takes the tokens although the work is only offered: nobody else can want them, and nothing but the join
    decides that it may start."""
    tallies: bool = field(init=False)
    """It must remember which inputs it ran for, to know what the false tokens in the others mean."""
    single: bool = field(init=False)
    """Its join has at most one firing at a time."""
    plain_look: bool = field(init=False)
    """To look at it is to compare its tokens with its activations: no rounds, false tokens, signals or late verdict."""
    plain_join: bool = field(init=False)
    """It takes one token from each condition that it was offered over, and looks at no other."""
    single_run: bool = field(init=False)
    """One instance, one turn, carried out by somebody: when that is done, so is the task."""
    single_item: bool = field(init=False)
    """Its enabling is one work item on offer that sees the net's data, and takes no token yet."""
    plain_work: bool = field(init=False)
    """That item is all there is to it: its start takes the tokens it was offered over, its output joins the data, and
    its end puts one token on every flow."""
    busy_start: bool = field(init=False)
    """Its start does more than take tokens: it keeps books, cancels, or concerns other tasks."""
    forks: tuple[tuple[str, ...], tuple[str, ...]] | None = field(init=False)
    """What its end produces (tokens, false tokens) when that is no choice: a token on every flow."""
    busy_end: bool = field(init=False)
    """Its end does more than put tokens: it cancels, completes, closes, announces, collects or is remembered."""
    awaits: bool = field(init=False)
    """Something has to come before anything of it happens: a signal, or a moment."""

    def __post_init__(self) -> None:
        kind, task = self.join.kind, self.task
        guarded = bool(self.sections) or self.mutex is not None
        automatic = (self.carrier in ("route", "net") or self.calls is not None) and task.trigger is None
        awaits = task.trigger is not None or task.timer is not None
        eager = kind == "partial" and not (self.shared or task.reads or guarded)
        single = kind in SINGLE
        tallies = len(self.skips) > 1 and kind in ("xor", "merge", "or", "structured-or")
        single_item = (
            self.carrier == "item"
            and self.calls is None
            and not eager
            and self.many is None
            and self.while_ is None
            and self.times is None
            and self.in_ is None
            and not awaits
        )
        plain_look = kind not in ("partial", "or") and not self.skips and not awaits
        plain_join = kind in ("xor", "and") and not task.reads and len(set(self.inputs)) == len(self.inputs)
        busy_start = single or tallies or self.withdrawn is not None or self.shared
        busy_end = bool(
            self.many is not None
            or self.region is not None
            or task.closes
            or task.completes
            or self.expects
            or (self.undo is not None and self.carrier in ("route", "trigger"))
        )
        found: dict[str, object] = {
            "automatic": automatic,
            "awaits": awaits,
            "at_once": automatic or eager or (self.many is not None and not self.many.sync),
            "guarded": guarded,
            "eager": eager,
            "tallies": tallies,
            "single": single,
            "plain_look": plain_look,
            "plain_join": plain_join,
            "single_run": self.carrier in ("item", "net")
            and self.many is None
            and self.while_ is None
            and self.until is None,
            "single_item": single_item,
            "busy_start": busy_start,
            "forks": (self.outputs, ()) if self.split.kind == "and" else None,
            "busy_end": busy_end,
            "plain_work": bool(
                single_item
                and plain_join
                and self.inputs
                and self.until is None
                and self.out is None
                and self.undo is None
                and self.split.kind == "and"
                and not (guarded or busy_start or busy_end or self.ends or self.undoes)
            ),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)  # frozen from here on


@dataclass(frozen=True, slots=True)
class CompiledNet:
    """One net. `consumers[c]` are the tasks that take tokens from condition c, `watchers[c]` those and the tasks that
    only look at it (read arcs); both sorted by id."""

    name: str
    tasks: Mapping[str, TaskNode]
    conditions: tuple[str, ...]
    consumers: Mapping[str, tuple[TaskNode, ...]]
    watchers: Mapping[str, tuple[TaskNode, ...]]
    producers: Mapping[str, tuple[TaskNode, ...]]
    sinks: frozenset[str]  # conditions that nobody consumes: tokens there are done
    termination: Termination
    or_joins: tuple[TaskNode, ...]
    offered: Mapping[str, tuple[TaskNode, ...] | None]  # task: who is looked at when it puts a token on every flow, by
    # id; None when more than offers of work can come of that
    asked: tuple[TaskNode, ...]  # joins that may fire because a token died elsewhere: asked when nothing else moves
    sections: tuple[Section, ...]
    sources: tuple[TaskNode, ...]  # tasks without incoming flow that a trigger starts


@dataclass(frozen=True, slots=True)
class Model:
    """A workflow version ready to run."""

    spec: Spec
    version: int
    digest: bytes
    nets: Mapping[str, CompiledNet]
    compensates: bool = False  # some task has a `compensate`
    veil: Veil = OPEN

    @property
    def root(self) -> CompiledNet:
        """The workflow's own net."""
        return self.nets[ROOT]

    def keeps(self, trigger: str) -> bool:
        """Whether some task waits for this trigger persistently."""
        return any(
            task.trigger is not None and task.trigger.name == trigger and task.trigger.mode == "persistent"
            for net in self.spec.nets
            for task in net.tasks
        )


def compile_spec(spec: Spec, version: int, digest: bytes) -> Model:
    """Compile a parsed spec. Its expressions were checked when it was parsed."""
    compensates = any(task.compensate is not None for net in spec.nets for task in net.tasks)
    nets = {net.name: compile_net(net) for net in spec.nets}
    return Model(spec, version, digest, nets, compensates, veil_of(spec))


def compile_net(net: Net) -> CompiledNet:
    """Compile one net."""
    places = {START: None, END: None} | {condition.id: None for condition in net.conditions}
    tasks = {task.id: task for task in net.tasks}
    inputs: dict[str, list[str]] = {task: [] for task in tasks}
    branches: dict[str, list[Branch]] = {task: [] for task in tasks}
    for flow in net.flows:
        if flow.source in tasks and flow.target in tasks:
            condition = implicit(flow.source, flow.target)
            places[condition] = None
        else:
            condition = flow.target if flow.source in tasks else flow.source
        if flow.source in tasks:
            branches[flow.source].append(Branch(flow.target, condition, _expression(flow.when), flow.default))
        if flow.target in tasks:
            inputs[flow.target].append(condition)
    shape = _Shape(
        net,
        tuple(places),
        {task: tuple(sorted(found)) for task, found in inputs.items()},
        {task: tuple(branch.condition for branch in found) for task, found in branches.items()},
    )
    nodes = {task: _node(shape, tasks[task], tuple(branches[task])) for task in sorted(tasks)}
    consumers: dict[str, list[TaskNode]] = {}
    watchers: dict[str, list[TaskNode]] = {}
    producers: dict[str, list[TaskNode]] = {}
    for node in nodes.values():
        for condition in node.inputs:
            consumers.setdefault(condition, []).append(node)
        for condition in dict.fromkeys((*node.inputs, *node.task.reads)):
            watchers.setdefault(condition, []).append(node)
        for condition in node.outputs:
            producers.setdefault(condition, []).append(node)
    asked = tuple(node for node in nodes.values() if node.join.kind in ("or", "structured-or"))
    return CompiledNet(
        name=net.name,
        tasks=nodes,
        conditions=tuple(places),
        consumers=_frozen(consumers),
        watchers=_frozen(watchers),
        producers=_frozen(producers),
        sinks=frozenset(place for place in places if place not in consumers),
        termination=net.termination,
        or_joins=tuple(node for node in nodes.values() if node.join.kind == "or"),
        offered={task: None if asked else _offered(node, watchers) for task, node in nodes.items()},
        asked=asked,
        sections=tuple(shape.sections),
        sources=tuple(node for node in nodes.values() if not node.inputs and node.task.trigger is not None),
    )


def _offered(node: TaskNode, watchers: Mapping[str, list[TaskNode]]) -> tuple[TaskNode, ...] | None:
    woken = {each.id: each for condition in node.outputs for each in watchers.get(condition, ())}
    if all(each.plain_look and each.single_item for each in woken.values()):
        return tuple(each for _, each in sorted(woken.items()))
    return None


class _Shape:
    """The bare graph of a net, and what is found in it once for all tasks."""

    def __init__(
        self,
        net: Net,
        places: tuple[str, ...],
        inputs: Mapping[str, tuple[str, ...]],
        outputs: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.net = net
        self.places = places
        self.inputs = inputs
        self.outputs = outputs
        edges: dict[str, list[str]] = {place: [] for place in places}
        for task, conditions in inputs.items():
            for condition in conditions:
                edges[condition].append(task)
        self.edges: dict[str, tuple[str, ...]] = {place: tuple(found) for place, found in edges.items()} | dict(outputs)
        self.back = reverse(self.edges)
        reads = {condition for task in net.tasks for condition in task.reads}
        taken: dict[str, int] = {}
        for conditions in inputs.values():
            for condition in conditions:
                taken[condition] = taken.get(condition, 0) + 1
        self.contested = {condition for condition, count in taken.items() if count > 1} | reads
        self.above = _above(self.edges, inputs) if _needs_dominators(net) else {}
        self.sections = [self._section(name, frozenset(members)) for name, members in net.sections]
        self.merges = [task.id for task in net.tasks if task.join.kind == "local-or"]
        self.forward = without(self.edges, natural_loops(self.edges, self.above)) if self.merges else self.edges
        self.false_paths = self._false_paths()
        self.expects: dict[str, dict[str, Mapping[str, tuple[str, ...]]]] = {}
        for each in net.tasks:
            if each.join.kind == "structured-or":
                split = self.matching_split(each.id)
                if split is not None:
                    self.expects.setdefault(split, {})[each.id] = {
                        condition: tuple(
                            place
                            for place in inputs[each.id]
                            if place in reachable(self.edges, (condition,), frozenset({each.id, split}))
                        )
                        for condition in outputs[split]
                    }

    def matching_split(self, task: str) -> str | None:
        """The nearest task that dominates `task` and has several outgoing flows."""
        node = task
        while self.above.get(node, node) != node:
            node = self.above[node]
            if len(self.outputs.get(node, ())) > 1:
                return node
        return None

    def between(self, split: str | None, join: str, ends: Iterable[str]) -> Region:
        """What lies strictly between a split and a join on ways to `ends`."""
        stop = frozenset({join} if split is None else {join, split})
        after = reachable(self.edges, self.outputs[split] if split else (START,), stop)
        found = reachable(self.back, ends, stop) & after - stop
        return Region(tuple(sorted(found & set(self.places))), tuple(sorted(found & self.inputs.keys())))

    def _section(self, name: str, members: frozenset[str]) -> Section:
        inside = frozenset(
            place
            for place in self.places
            if self.edges[place]
            and self.back.get(place)
            and members.issuperset(self.edges[place])
            and members.issuperset(self.back[place])
        )
        path = f"{self.net.name}/{name}" if self.net.name else name
        return Section(f"section {path}", members, inside)

    def _false_paths(self) -> frozenset[str]:
        """Conditions that false tokens may lie in: on the way to a local merge, within one turn of every loop."""
        if not self.merges:
            return frozenset()
        return frozenset(reachable(reverse(self.forward), self.merges) & set(self.places))


def _needs_dominators(net: Net) -> bool:
    return any(
        task.join.kind in ("structured-or", "local-or")
        or (task.join.kind == "partial" and task.join.mode == "cancelling")
        for task in net.tasks
    )


def _above(edges: Mapping[str, tuple[str, ...]], inputs: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Immediate dominators, seen from wherever a token can come from: the start, and tasks that a signal starts."""
    sources = (task for task, conditions in inputs.items() if not conditions)
    return dominators({**edges, OUTSIDE: (START, *sources)}, OUTSIDE)


def _node(shape: _Shape, task: Task, branches: tuple[Branch, ...]) -> TaskNode:
    inputs = shape.inputs[task.id]
    outputs = tuple(branch.condition for branch in branches)
    sections = tuple(section for section in shape.sections if task.id in section.tasks)
    region = _region(shape, task.cancels) if task.cancels else None
    withdrawn = blocks = None
    if task.join.kind == "partial" and task.join.mode == "cancelling":
        withdrawn = region or shape.between(shape.matching_split(task.id), task.id, inputs)
        region = None  # it is for the branches that come too late, not for those of the next round
    if task.join.kind == "structured-or":
        split = shape.matching_split(task.id)
        blocks = {place: shape.between(split, task.id, (place,)) for place in inputs}
    return TaskNode(
        id=task.id,
        carrier=_carrier(task),
        join=task.join,
        split=task.split,
        inputs=inputs,
        outputs=outputs,
        branches=branches,
        shared=not shape.contested.isdisjoint(inputs),
        net=task.net,
        in_=_mapping(task.in_),
        out=_mapping(task.out),
        task=task,
        many=_many(task),
        need=_amount(task.join.need),
        while_=_expression(task.loop.while_) if task.loop else None,
        until=_expression(task.loop.until) if task.loop else None,
        region=region,
        withdrawn=withdrawn,
        sections=sections,
        mutex=f"mutex {task.mutex}" if task.mutex is not None else None,
        expects=shape.expects.get(task.id, {}),
        blocks=blocks or {},
        carries=tuple(place for place in shape.forward[task.id] if place in shape.false_paths),
        skips=tuple(place for place in inputs if place in shape.false_paths and task.id in shape.forward[place]),
        times=_times(task),
        undo=task.compensate,
        undoes=tuple(sorted(each.id for each in shape.net.tasks if each.compensate == task.id)),
        ends=shape.net.termination == "explicit" and END in outputs,
        calls=_calls(task),
    )


def _carrier(task: Task) -> Carrier:
    if task.net is not None:
        return "net"
    if task.required_roles or task.connector is not None:
        return "item"
    return "trigger" if task.trigger is not None or task.timer is not None else "route"


def _calls(task: Task) -> Calls | None:
    if task.connector is None:
        return None
    return Calls(task.connector, compile_request(task.request), _mapping(task.result), task.in_ is not None)


def _times(task: Task) -> Times | None:
    timer = task.timer
    if timer is None and task.timeout is None and task.deadline is None:
        return None
    after = timer.after if timer is not None else None
    return Times(
        compile_expression(after) if isinstance(after, str) else None if after is None else nanoseconds(after),
        _moment(timer.at if timer is not None else None),
        None if task.timeout is None else nanoseconds(task.timeout),
        _moment(task.deadline),
        recurrence(timer.every, timer.time_zone) if timer is not None and timer.every is not None else None,
    )


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds."""
    return round(seconds * NS_PER_S)


def _moment(text: str | None) -> Amount | None:
    if text is None:
        return None
    found = moment(text)
    return compile_expression(text) if found is None else found


def _many(task: Task) -> Many | None:
    spec = task.instances
    if spec is None and task.for_each is None:
        return None
    spec = spec or Instances()
    return Many(
        least=_amount(spec.min),
        most=_amount(spec.max) if spec.max is not None else None,
        threshold=_amount(spec.threshold) if spec.threshold is not None else None,
        until=_expression(spec.until),
        dynamic=spec.create == "dynamic",
        cancel_rest=spec.rest == "cancel",
        sync=spec.sync,
        sequential=spec.sequential,
        for_each=_expression(task.for_each),
        collect=task.collect,
    )


def _region(shape: _Shape, names: Iterable[str]) -> Region:
    """What a `cancels` list names: a task brings the implicit conditions that lead to it alone."""
    conditions: set[str] = set()
    tasks: set[str] = set()
    for name in names:
        if name in shape.inputs:
            tasks.add(name)
            conditions.update(place for place in shape.inputs[name] if place.endswith(f"->{name}"))
        else:
            conditions.add(name)
    return Region(tuple(sorted(conditions)), tuple(sorted(tasks)))


def _expression(text: str | None) -> Expression | None:
    return compile_expression(text) if text is not None else None


def _amount(value: int | str) -> Amount:
    return value if isinstance(value, int) else compile_expression(value)


def _mapping(mapping: tuple[Assignment, ...] | None) -> tuple[tuple[str, Expression], ...] | None:
    if mapping is None:
        return None
    return tuple((each.key, compile_expression(each.expression)) for each in mapping)


def _frozen(found: Mapping[str, list[TaskNode]]) -> dict[str, tuple[TaskNode, ...]]:
    return {name: tuple(nodes) for name, nodes in found.items()}
