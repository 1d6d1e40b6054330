"""Signals from outside (WCP-23, 24).

A signal goes to the oldest activation that waits for its name. When nobody waits it starts a task without incoming
flow; otherwise it is kept, first in, first out, when some task of the workflow waits for it persistently, and lost when
not. For a task that only waits, the signal is the work and its data the output; for one with roles it makes the work
offered.
"""

from __future__ import annotations

from knhk_workflow.core import events as e
from knhk_workflow.core import locks
from knhk_workflow.core.case import Activation, NetInstance
from knhk_workflow.core.completion import advance, take_output
from knhk_workflow.core.data import EMPTY
from knhk_workflow.core.enabling import begin, enable
from knhk_workflow.core.starting import start_without_work
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import TaskNode

SIGNALS_MAX = 10_000  # kept signals of a case


def receive(step: Step, name: str, data: bytes) -> str:
    """A signal comes in; the outcome: taken, kept, lost."""
    case = step.case
    number = case.last_trigger + 1
    if case.state == "running":
        waiting = _waiting(step, name) or _sourced(step, name)
        if waiting is not None:
            node = step.node(waiting)
            step.emit(e.TriggerReceived(number, name, "taken", data, waiting.net, node.id, waiting.number))
            _go(step, waiting, node, data)
            return "taken"
    keep = step.model.keeps(name) and case.state in ("running", "suspended", "created")
    outcome = "kept" if keep and len(case.signals) < SIGNALS_MAX else "lost"
    step.emit(e.TriggerReceived(number, name, outcome, data))
    return outcome


def take_kept(step: Step, net: NetInstance, node: TaskNode) -> None:
    """A task may have begun to wait: give it the oldest signal that was kept for it."""
    trigger = node.task.trigger
    if trigger is None or trigger.mode != "persistent" or not step.case.signals:
        return
    for number in list(net.active.get(node.id, ())):
        activation = step.case.activations.get(number)
        if activation is None or not _waits(step, activation, node):
            continue
        kept = next((each for each in step.case.signals if each.name == trigger.name), None)
        if kept is None:
            return
        step.emit(e.TriggerTaken(kept.number, kept.name, net.number, node.id, number))
        _go(step, activation, node, kept.data)


def _waiting(step: Step, name: str) -> Activation | None:
    for _, activation in sorted(step.case.activations.items()):  # the oldest first
        node = step.node(activation)
        if node.task.trigger is not None and node.task.trigger.name == name and _waits(step, activation, node):
            return activation
    return None


def _waits(step: Step, activation: Activation, node: TaskNode) -> bool:
    if activation.signalled or activation.incidents:
        return False
    net = step.case.nets[activation.net]
    return activation.started or locks.blocked_by(step.case, net, node, activation.inputs) is None


def _sourced(step: Step, name: str) -> Activation | None:
    """A task without incoming flow that this signal starts, enabled for it."""
    for _, net in sorted(step.case.nets.items()):
        for node in step.compiled(net.number).sources:
            if node.task.trigger is not None and node.task.trigger.name == name:
                enable(step, net, node, ())
                return step.case.activations.get(step.case.last_activation)
    return None


def _go(step: Step, activation: Activation, node: TaskNode, data: bytes) -> None:
    """The signal has come: it is the work of a waiting task, and the start of one with work of its own."""
    net = step.case.nets[activation.net]
    if node.carrier != "trigger":
        begin(step, net, node, activation)
        return
    start_without_work(step, activation)
    if take_output(step, activation, node, data or EMPTY):
        advance(step, activation, node)
