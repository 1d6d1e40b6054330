"""A workflow compiled for running: who consumes what, which guard guards which flow.

Compiled once per workflow version and shared by all its cases; never changed afterwards. A flow between two tasks
becomes the implicit condition `source->target`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from knhk_workflow.model.expression import Expression, compile_expression
from knhk_workflow.model.spec import END, ROOT, START, Assignment, Join, Net, Spec, Split, Task, Termination

Carrier = Literal["route", "item", "net"]
"""What carries a task out: nothing (it completes at once), somebody outside, or a sub-net."""


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
class TaskNode:
    """A task in its net. `inputs` are condition names in alphabetical order, so that no rule
    depends on how the document was typed; `branches` and `outputs` keep the author's order, which decides a choice.

    `shared` tells that some input has another consumer: starting this task can take a rival's token.
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

    @property
    def automatic(self) -> bool:
        """It starts when enabled, because nobody outside has to take it."""
        return self.carrier != "item"


@dataclass(frozen=True, slots=True)
class CompiledNet:
    """One net. `consumers[c]` are the tasks that take tokens from condition c, sorted by id."""

    name: str
    tasks: Mapping[str, TaskNode]
    conditions: tuple[str, ...]
    consumers: Mapping[str, tuple[TaskNode, ...]]
    producers: Mapping[str, tuple[TaskNode, ...]]
    sinks: frozenset[str]  # conditions that nobody consumes: tokens there are done
    termination: Termination


@dataclass(frozen=True, slots=True)
class Model:
    """A workflow version ready to run."""

    spec: Spec
    version: int
    digest: bytes
    nets: Mapping[str, CompiledNet]

    @property
    def root(self) -> CompiledNet:
        """The workflow's own net."""
        return self.nets[ROOT]


def compile_spec(spec: Spec, version: int, digest: bytes) -> Model:
    """Compile a parsed spec. Its expressions were checked when it was parsed."""
    return Model(spec, version, digest, {net.name: compile_net(net) for net in spec.nets})


def compile_net(net: Net) -> CompiledNet:
    """Compile one net."""
    places = {START: None, END: None} | {condition.id: None for condition in net.conditions}
    tasks = {task.id for task in net.tasks}
    inputs: dict[str, list[str]] = {task: [] for task in tasks}
    branches: dict[str, list[Branch]] = {task: [] for task in tasks}
    for flow in net.flows:
        if flow.source in tasks and flow.target in tasks:
            condition = implicit(flow.source, flow.target)
            places[condition] = None
        else:
            condition = flow.target if flow.source in tasks else flow.source
        if flow.source in tasks:
            when = compile_expression(flow.when) if flow.when is not None else None
            branches[flow.source].append(Branch(flow.target, condition, when, flow.default))
        if flow.target in tasks:
            inputs[flow.target].append(condition)

    taken: dict[str, int] = dict.fromkeys(places, 0)
    for conditions in inputs.values():
        for condition in conditions:
            taken[condition] += 1
    nodes = {
        task.id: _node(task, tuple(sorted(inputs[task.id])), tuple(branches[task.id]), taken)
        for task in sorted(net.tasks, key=lambda each: each.id)
    }
    consumers: dict[str, list[TaskNode]] = {}
    producers: dict[str, list[TaskNode]] = {}
    for node in nodes.values():
        for condition in node.inputs:
            consumers.setdefault(condition, []).append(node)
        for condition in node.outputs:
            producers.setdefault(condition, []).append(node)
    return CompiledNet(
        name=net.name,
        tasks=nodes,
        conditions=tuple(places),
        consumers={condition: tuple(found) for condition, found in consumers.items()},
        producers={condition: tuple(found) for condition, found in producers.items()},
        sinks=frozenset(place for place in places if place not in consumers),
        termination=net.termination,
    )


def _node(task: Task, inputs: tuple[str, ...], branches: tuple[Branch, ...], taken: Mapping[str, int]) -> TaskNode:
    return TaskNode(
        id=task.id,
        carrier="net" if task.net is not None else "item" if task.required_roles else "route",
        join=task.join,
        split=task.split,
        inputs=inputs,
        outputs=tuple(branch.condition for branch in branches),
        branches=branches,
        shared=any(taken[condition] > 1 for condition in inputs),
        net=task.net,
        in_=_mapping(task.in_),
        out=_mapping(task.out),
        task=task,
    )


def _mapping(mapping: tuple[Assignment, ...] | None) -> tuple[tuple[str, Expression], ...] | None:
    if mapping is None:
        return None
    return tuple((each.key, compile_expression(each.expression)) for each in mapping)
