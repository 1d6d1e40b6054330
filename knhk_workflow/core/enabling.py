"""Activations that come to be, begun as far as they can begin by themselves.

How many instances an activation has is decided here, once, and recorded.
"""

from __future__ import annotations

import msgspec

from knhk_workflow.core import events as e
from knhk_workflow.core import locks, plain_work, timers
from knhk_workflow.core.case import Activation, NetInstance
from knhk_workflow.core.completion import advance, runs
from knhk_workflow.core.incidents import raise_incident
from knhk_workflow.core.joins import amount
from knhk_workflow.core.starting import OPEN_ITEMS_MAX, has_consumed, run_instance, start_without_work
from knhk_workflow.core.step import Step
from knhk_workflow.model.expression import EvaluationFailed
from knhk_workflow.model.net import Many, TaskNode

INSTANCES_MAX = 10_000  # instances of one activation

_Count = tuple[int, int, tuple[bytes, ...]]
"""(instances, threshold with 0 = all, the elements they are made from)"""

ONE: _Count = (1, 0, ())


def enable(step: Step, net: NetInstance, node: TaskNode, inputs: tuple[str, ...]) -> None:
    """One activation of `node` over the tokens in `inputs`, begun as far as it can begin by itself."""
    case = step.case
    if node.single_item and case.open_items < OPEN_ITEMS_MAX:
        plain_work.offer(step, net, node, inputs)
        return
    number = case.last_activation + 1
    count, problem = ONE, ""
    if node.many is not None:
        try:
            count = _count(step, net, node.many)
        except EvaluationFailed as failure:
            problem = failure.message
    at_once = node.at_once and not problem
    step.emit(e.TaskEnabled(net.number, node.id, number, inputs, at_once, *count))
    activation = case.activations[number]
    if problem:
        message = f"how many instances task {node.id!r} has could not be decided: {problem}"
        raise_incident(step, "instances_error", net.number, message, activation)
        return
    if at_once:
        if node.busy_start:
            has_consumed(step, net, node, activation, inputs)
        if node.automatic and node.guarded:
            locks.take(step, net, node, activation)
    if node.times is not None and not timers.enabled(step, node, activation):
        return
    begin(step, net, node, activation)


def begin(step: Step, net: NetInstance, node: TaskNode, activation: Activation) -> None:
    """Set the first instances of an activation going; with nothing to run it ends at once."""
    if node.while_ is not None and not activation.instances:
        again = runs(step, activation, node, node.while_)
        if again is None:
            return
        if not again:
            start_without_work(step, activation)
            advance(step, activation, node, over=True)
            return
    if node.awaits and not activation.signalled:
        return  # its signal, or its moment, starts it
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
