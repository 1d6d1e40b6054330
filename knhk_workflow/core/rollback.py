"""Undoing what was completed in a net that ended unsuccessfully, and failures that find their way out of a task.

A net that is rolled back has no tokens. First what still runs in it is stopped, sub-nets undone in the same way; then
its completions are undone one by one, newest first, each by an ordinary activation of the task that its `compensate`
names: offered or automatic, with what the undone work gave as its input, tried again by its own `retry`. One that fails
for good is an incident, whatever `on_incident` says, and the rest waits for a person. Only then does what caused it
happen: the case is cancelled or failed, the composite task is gone, or goes on by its error flow. A second CancelCase
changes nothing; `fail_case` ends a case that is being undone at once, leaving the rest as it is.
"""

from __future__ import annotations

from knhk_workflow.core import compensation, timers
from knhk_workflow.core import events as e
from knhk_workflow.core.cancel import stop_instances, withdraw
from knhk_workflow.core.case import Activation, NetInstance
from knhk_workflow.core.completion import advance, complete_net, leave
from knhk_workflow.core.enabling import begin
from knhk_workflow.core.incidents import raise_incident
from knhk_workflow.core.starting import start_without_work
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import TaskNode


def go_on(step: Step, net: NetInstance) -> None:
    """Nothing runs in a net that is rolled back: undo the next completion, or let happen what follows."""
    if net.completions and net.outcome != compensation.COMPLETED:
        undo_next(step, net)
    else:
        finish(step, net)


def undo_next(step: Step, net: NetInstance) -> None:
    """An activation of the task that undoes the newest completion."""
    newest = net.completions[-1]
    node = step.compiled(net.number).tasks[newest.undo]
    number = step.case.last_activation + 1
    step.emit(e.TaskEnabled(net.number, node.id, number, (), True))
    step.emit(
        e.CompensationBegun(net.number, node.id, number, newest.task, newest.activation, newest.instance),
    )
    step.again(net.number, node.id)  # so that a slice that is full can end here
    activation = step.case.activations[number]
    if node.times is None or timers.enabled(step, node, activation):
        begin(step, net, node, activation)


def finish(step: Step, net: NetInstance) -> None:
    """Everything is undone."""
    outcome, detail = net.outcome, net.detail
    if outcome == compensation.COMPLETED:
        complete_net(step, net)
        return
    step.emit(e.NetCancelled(net.number, net.name))
    if net.number == 1:
        step.emit(e.StateChanged(step.case.state, outcome, detail))
        step.rest()
        return
    step.nets.add(net.parent)
    activation = step.case.activations[net.activation]
    node = step.node(activation)
    if outcome == compensation.STOPPED or (outcome == "incident" and activation.released):
        advance(step, activation, node)  # the flow has gone on, nobody waits for this one
    elif outcome == "leave":
        if not compensation.pending(step, activation):
            leave(step, activation, node, via=detail)
    elif outcome == "incident":
        give_up(step, node, activation, net.instance, detail)
    else:
        withdraw(step, activation, outcome, detail)


def escape(step: Step, node: TaskNode, activation: Activation, target: str) -> None:
    """Leave a task by one flow alone, whatever it still does."""
    stop_instances(step, activation, "leave", target)
    for incident in list(activation.incidents):
        step.emit(e.IncidentResolved(incident, "cancelled"))
    if compensation.pending(step, activation):
        step.untimed(activation)
        return
    start_without_work(step, activation)
    leave(step, activation, node, via=target)


def give_up(step: Step, node: TaskNode, activation: Activation, instance: int, told: str) -> None:
    """A task has failed for good: its error flow, that of the nearest composite task around it, or a person."""
    found: Activation | None = None
    if step.case.state == "running":
        own = node.task.on_error is not None and node.many is None
        found = activation if own else _catcher(step, activation)
    if found is None:
        raise_incident(step, "task_failed", activation.net, told, activation, instance)
        return
    outer = step.node(found)
    assert outer.task.on_error is not None
    escape(step, outer, found, outer.task.on_error)


def _catcher(step: Step, activation: Activation) -> Activation | None:
    """The nearest composite task around an activation that says what follows its failure. None inside a rollback."""
    net = step.case.nets[activation.net]
    while net.number != 1 and not net.outcome:
        outer = step.case.activations[net.activation]
        node = step.node(outer)
        if node.task.on_error is not None and node.many is None:
            return outer
        net = step.case.nets[outer.net]
    return None
