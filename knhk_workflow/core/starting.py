"""Work that begins: items offered and started, sub-nets started, tokens consumed.

Tokens are consumed when an activation starts: at once for routing tasks, sub-nets and instances without
synchronisation and partial joins, with the first outside work for offered tasks, with its signal for a triggered one.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from knhk_workflow.core import compensation, locks, timers
from knhk_workflow.core import events as e
from knhk_workflow.core.cancel import cancel_region
from knhk_workflow.core.case import Activation, Instance, NetInstance
from knhk_workflow.core.data import merge
from knhk_workflow.core.incidents import raise_incident
from knhk_workflow.core.joins import binding, consumed
from knhk_workflow.core.step import Step
from knhk_workflow.model.expression import EvaluationFailed, Expression
from knhk_workflow.model.net import Calls, Region, TaskNode
from knhk_workflow.model.spec import START

DEPTH_MAX = 256  # nested sub-nets; recursion in practice stays below 50
OPEN_ITEMS_MAX = 10_000  # open work items of a case


def run_instance(
    step: Step, activation: Activation, node: TaskNode, instance: int, attempt: int = 1, *, afresh: bool = False
) -> None:
    """Set one instance going: offer its work, start its sub-net, or call its connector (see `offer_item`)."""
    if node.carrier == "net":
        start_net(step, step.case.nets[activation.net], node, activation, instance)
    else:
        offer_item(step, node, activation, instance, attempt, afresh=afresh)


def offer_item(
    step: Step, node: TaskNode, activation: Activation, instance: int, attempt: int, *, afresh: bool = False
) -> None:
    """Offer one work item, with its recorded input when the task maps one. What a connector does begins at once; its
    later attempts send what the first one did, unless the request is to be evaluated `afresh`."""
    case = step.case
    if case.open_items >= OPEN_ITEMS_MAX:
        raise_incident(
            step,
            "open_items_limit",
            activation.net,
            f"the case has {case.open_items} open work items, more are not allowed; finish some, then retry",
            activation,
            instance,
        )
        return
    data = b""
    number, net = activation.number, activation.net
    if node.in_ is not None:
        mapped = mapping(step, node.in_, compensation.seen(step, activation), activation, instance, "in")
        if mapped is None:
            return
        data = mapped
    elif activation.undoes is not None:
        data = activation.undoes.data
    elif activation.elements:
        element = element_of(activation, instance)
        if element is not None:
            data = msgspec.json.encode({"item": msgspec.Raw(element)})
    if node.calls is not None:
        start_without_work(step, activation)
        before = activation.instances.get(instance)
        if before is not None and before.data and before.attempt < attempt and not afresh:
            data = before.data
        else:
            evaluated = _request(step, node.calls, activation, instance, data)
            if evaluated is None:
                return
            data = evaluated
    step.emit(e.ItemOffered(net, node.id, number, instance, attempt, data))
    step.items[number, instance] = case.nets[net].name, node, activation, activation.instances[instance]
    if node.times is not None:
        timers.begun(step, node, activation, instance)
    if node.calls is not None:
        if node.guarded and not locks.begun(activation, node):
            locks.take(step, case.nets[net], node, activation)
        step.emit(e.ConnectorCalled(net, node.id, number, instance, attempt, node.calls.connector))


def _request(step: Step, calls: Calls, activation: Activation, instance: int, inputs: bytes) -> bytes | None:
    """What a connector is to send; None when that could not be evaluated and an incident stands for it."""
    element = element_of(activation, instance)
    item = msgspec.json.decode(element) if element is not None else None
    mapped = msgspec.json.decode(inputs) if calls.mapped else compensation.seen(step, activation)
    try:
        return calls.request.evaluated(mapped, item)
    except EvaluationFailed as failure:
        message = f"`request` of task {activation.task!r} could not be evaluated: {failure.message}"
        raise_incident(step, "input_error", activation.net, step.told(message, mapped), activation, instance)
        return None


def start_item(
    step: Step,
    net: NetInstance,
    node: TaskNode,
    activation: Activation,
    run: Instance,
    owner: str,
    worker: str = "",
    lease: int = 0,
) -> None:
    """Begin outside work. The first start of an activation consumes its tokens and ends the choice (WCP-16)."""
    first = not activation.started
    inputs: tuple[str, ...] = ()
    if first:
        inputs = _taken(step, net, node, activation) if node.single else activation.inputs
    begun = not node.guarded or locks.begun(activation, node)
    place = net.number, node.id, activation.number, run.number, run.attempt
    step.emit(e.ItemStarted(*place, owner or run.owner, inputs, worker, lease))
    if first and node.busy_start:
        has_consumed(step, net, node, activation, inputs)
    if not begun:
        locks.take(step, net, node, activation)


def start_without_work(step: Step, activation: Activation) -> None:
    """Consume an activation's tokens although no outside work begins."""
    if activation.started:
        return
    node = step.node(activation)
    net = step.case.nets[activation.net]
    inputs = _taken(step, net, node, activation)
    step.emit(e.TaskStarted(net.number, activation.task, activation.number, inputs))
    has_consumed(step, net, node, activation, inputs)
    if node.guarded:
        locks.take(step, net, node, activation)


def outrun(step: Step, activation: Activation) -> bool:
    """Whether others have taken the tokens of an activation that has not started: it is there only until the cascade
    that did so comes to it."""
    if activation.started:
        return False
    net = step.case.nets[activation.net]
    return binding(step, step.node(activation), net, activation.inputs) is None


def _taken(step: Step, net: NetInstance, node: TaskNode, activation: Activation) -> tuple[str, ...]:
    """The conditions that an activation consumes when it starts now."""
    found = binding(step, node, net, activation.inputs) if node.single else None
    return activation.inputs if found is None else found


def start_net(step: Step, net: NetInstance, node: TaskNode, activation: Activation, instance: int) -> None:
    """Begin the sub-net that carries `instance` out; its data is a copy of the parent's unless `in` maps it."""
    assert node.net is not None
    if net.depth + 1 > DEPTH_MAX:
        raise_incident(
            step,
            "depth_limit",
            net.number,
            f"sub-net {node.net!r} would be nested deeper than {DEPTH_MAX}: its recursion does not end",
            activation,
            instance,
        )
        return
    data = compensation.given(step, activation)
    element = element_of(activation, instance)
    if node.in_ is not None:
        mapped = mapping(step, node.in_, compensation.seen(step, activation), activation, instance, "in")
        if mapped is None:
            return
        data = mapped
    elif element is not None:
        data = merge(data, msgspec.json.encode({"item": msgspec.Raw(element)}))
    number = step.case.last_net + 1
    step.emit(e.NetStarted(number, node.net, net.number, activation.number, instance, net.depth + 1, data))
    if node.times is not None:
        timers.begun(step, node, activation, instance)
    step.touch(number, (START,))
    for source in step.compiled(number).sources:
        step.again(number, source.id)


def element_of(activation: Activation, instance: int) -> bytes | None:
    """The JSON value that an instance was made from, if it was made from one."""
    return (activation.elements[instance - 1] or None) if 0 < instance <= len(activation.elements) else None


def mapping(
    step: Step,
    assignments: tuple[tuple[str, Expression], ...],
    data: object,
    activation: Activation,
    instance: int,
    which: Literal["in", "out"],
) -> bytes | None:
    """Evaluate an `in` or `out` mapping; None when that failed and an incident stands for it."""
    element = element_of(activation, instance)
    item = msgspec.json.decode(element) if element is not None else None
    try:
        return msgspec.json.encode({key: expression.value(data, item) for key, expression in assignments})
    except EvaluationFailed as failure:
        message = f"`{which}` of task {activation.task!r} could not be evaluated: {failure.message}"
        kind = "input_error" if which == "in" else "output_error"
        raise_incident(step, kind, activation.net, step.told(message, data), activation, instance)
        return None


def has_consumed(step: Step, net: NetInstance, node: TaskNode, activation: Activation, inputs: tuple[str, ...]) -> None:
    """What follows from an activation having taken its tokens: books, a cancelled rest, rivals."""
    if node.single or node.tallies:
        consumed(step, node, net, inputs)
    if node.withdrawn is not None:
        rest = (place for place in node.inputs if place not in inputs and place not in node.withdrawn.conditions)
        everything = Region((*node.withdrawn.conditions, *rest), node.withdrawn.tasks)
        cancel_region(step, net, everything, activation)
    if node.shared and inputs:
        step.touch(net.number, inputs)
    elif node.single:
        step.again(net.number, node.id)
