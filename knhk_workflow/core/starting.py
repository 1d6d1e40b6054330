"""Activations that begin: enabled, offered, started, their instances set going.

Tokens are consumed when an activation starts: at once for routing tasks, sub-nets and instances without synchronisation,
with the first outside work for offered tasks, with its signal for a triggered one. How many instances there are is
decided when it is enabled and recorded.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from knhk_workflow.core import events as e
from knhk_workflow.core import locks
from knhk_workflow.core.cancel import cancel_region
from knhk_workflow.core.case import Activation, Instance, NetInstance, place_of
from knhk_workflow.core.data import merge
from knhk_workflow.core.incidents import raise_incident
from knhk_workflow.core.joins import amount, consumed, offers
from knhk_workflow.core.step import Step
from knhk_workflow.model.expression import EvaluationFailed, Expression
from knhk_workflow.model.net import SINGLE, Many, TaskNode
from knhk_workflow.model.spec import START

DEPTH_MAX = 256  # nested sub-nets; recursion in practice stays below 50
OPEN_ITEMS_MAX = 10_000  # open work items of a case
INSTANCES_MAX = 10_000  # instances of one activation

_Count = tuple[int, int, tuple[bytes, ...]]
"""(instances, threshold with 0 = all, the elements they are made from)"""

ONE: _Count = (1, 0, ())


def enable(step: Step, net: NetInstance, node: TaskNode, inputs: tuple[str, ...]) -> None:
    """One activation of `node` over the tokens in `inputs`, begun as far as it can begin by itself."""
    case = step.case
    number = case.last_activation + 1
    count, problem = ONE, ""
    if node.many is not None:
        try:
            count = _count(step, net, node.many)
        except EvaluationFailed as failure:
            problem = failure.message
    at_once = not problem and (node.automatic or (node.many is not None and not node.many.sync))
    step.emit(e.TaskEnabled(net.number, node.id, number, inputs, at_once, *count))
    activation = case.activations[number]
    if problem:
        message = f"how many instances task {node.id!r} has could not be decided: {problem}"
        raise_incident(step, "instances_error", net.number, message, activation)
        return
    if at_once:
        _has_consumed(step, net, node, activation, inputs)
    begin(step, net, node, activation)


def begin(step: Step, net: NetInstance, node: TaskNode, activation: Activation) -> None:
    """Set the first instances of an activation going; with nothing to run it ends at once."""
    from knhk_workflow.core.completion import advance, runs  # noqa: PLC0415  # an activation may end as it begins

    if node.while_ is not None and not activation.instances:
        again = runs(step, activation, node, node.while_)
        if again is None:
            return
        if not again:
            start_without_work(step, activation)
            advance(step, activation, node, over=True)
            return
    if node.task.trigger is not None and not activation.signalled:
        return  # the signal starts it
    if activation.count == 0:
        start_without_work(step, activation)
        advance(step, activation, node)
        return
    if node.carrier == "route":
        advance(step, activation, node)
        return
    first = 1 if node.many is not None and node.many.sequential else activation.count
    for instance in range(1, first + 1):
        if activation.number not in step.case.activations:
            return
        run_instance(step, activation, node, instance)
    if node.many is not None and not node.many.sync and activation.number in step.case.activations:
        advance(step, activation, node)


def run_instance(step: Step, activation: Activation, node: TaskNode, instance: int, attempt: int = 1) -> None:
    """Set one instance going: offer its work, or start its sub-net."""
    if node.carrier == "net":
        start_net(step, step.case.nets[activation.net], node, activation, instance)
    else:
        offer_item(step, node, activation, instance, attempt)


def offer_item(step: Step, node: TaskNode, activation: Activation, instance: int, attempt: int) -> None:
    """Offer one work item, with its recorded input when the task maps one."""
    if step.case.open_items >= OPEN_ITEMS_MAX:
        raise_incident(
            step,
            "open_items_limit",
            activation.net,
            f"the case has {step.case.open_items} open work items, more are not allowed; finish some, then retry",
            activation,
            instance,
        )
        return
    data = b""
    element = element_of(activation, instance)
    if node.in_ is not None:
        mapped = mapping(step, node.in_, step.scope(activation.net), activation, instance, "in")
        if mapped is None:
            return
        data = mapped
    elif element is not None:
        data = msgspec.json.encode({"item": msgspec.Raw(element)})
    step.emit(e.ItemOffered(activation.net, node.id, activation.number, instance, attempt, data))
    step.changed(activation, activation.instances[instance])


def start_item(step: Step, activation: Activation, run: Instance, owner: str) -> None:
    """Begin outside work. The first start of an activation consumes its tokens and ends the choice (WCP-16)."""
    node = step.node(activation)
    net = step.case.nets[activation.net]
    inputs = () if activation.started else binding(step, net, node, activation)
    first = not activation.started
    step.emit(e.ItemStarted(*place_of(activation, run), owner or run.owner, inputs))
    step.changed(activation, run)
    if first:
        _has_consumed(step, net, node, activation, inputs)


def start_without_work(step: Step, activation: Activation) -> None:
    """Consume an activation's tokens although no outside work begins."""
    if activation.started:
        return
    node = step.node(activation)
    net = step.case.nets[activation.net]
    inputs = binding(step, net, node, activation)
    step.emit(e.TaskStarted(net.number, activation.task, activation.number, inputs))
    _has_consumed(step, net, node, activation, inputs)


def binding(step: Step, net: NetInstance, node: TaskNode, activation: Activation) -> tuple[str, ...]:
    """The conditions that an activation consumes when it starts now."""
    if node.join.kind in SINGLE:
        possible = offers(step, node, net)
        if possible:
            return possible[0][0]
    return activation.inputs


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
    data = net.data
    element = element_of(activation, instance)
    if node.in_ is not None:
        mapped = mapping(step, node.in_, step.scope(net.number), activation, instance, "in")
        if mapped is None:
            return
        data = mapped
    elif element is not None:
        data = merge(data, msgspec.json.encode({"item": msgspec.Raw(element)}))
    number = step.case.last_net + 1
    step.emit(e.NetStarted(number, node.net, net.number, activation.number, instance, net.depth + 1, data))
    step.touch(number, (START,))
    for source in step.compiled(number).sources:
        step.again(number, source.id)


def element_of(activation: Activation, instance: int) -> bytes | None:
    """The JSON value that an instance was made from, if it was made from one."""
    return activation.elements[instance - 1] if instance <= len(activation.elements) else None


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
        raise_incident(step, kind, activation.net, message, activation, instance)
        return None


def _has_consumed(
    step: Step, net: NetInstance, node: TaskNode, activation: Activation, inputs: tuple[str, ...]
) -> None:
    """What follows from an activation having taken its tokens: books, locks, a cancelled rest, rivals."""
    if node.join.kind in SINGLE:
        consumed(step, node, net, inputs)
    if node.withdrawn is not None:
        rest = tuple(place for place in node.inputs if place in net.marking)
        if rest:
            step.emit(e.TokensRemoved(net.number, node.id, rest))
        cancel_region(step, net, node.withdrawn, activation)
    if node.sections or node.mutex is not None:
        locks.take(step, net, node, activation)
    if node.shared and inputs:
        step.touch(net.number, inputs)
    elif node.join.kind in SINGLE:
        step.again(net.number, node.id)


def _count(step: Step, net: NetInstance, many: Many) -> _Count:
    """How many instances an activation begins with. Raises EvaluationFailed for what is no possible number."""
    elements: tuple[bytes, ...] = ()
    if many.for_each is not None:
        found = many.for_each.value(step.scope(net.number))
        if not isinstance(found, list):
            raise EvaluationFailed(many.for_each.text, "gives no list", {})
        elements = tuple(msgspec.json.encode(each) for each in found)
        count = len(elements)
    else:
        count = amount(step, many.least, net)
    most = min(amount(step, many.most, net), INSTANCES_MAX) if many.most is not None else INSTANCES_MAX
    threshold = amount(step, many.threshold, net) if many.threshold is not None else 0
    if not 0 <= count <= most:
        raise EvaluationFailed("instances", f"would be {count} instances, between 0 and {most} are possible", {})
    if threshold < 0 or (not many.dynamic and threshold > count > 0):
        raise EvaluationFailed("instances.threshold", f"is {threshold} of {count} instances", {})
    return count, threshold, elements
