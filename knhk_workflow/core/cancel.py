"""Removing things unsuccessfully: activations, regions, nets, the whole case (WCP-19, 20, 25, 26).

Nothing of what is removed stays behind: items are withdrawn or terminated, sub-nets emptied, timers disarmed, incidents
closed, the bookkeeping of joins dropped. Locks that this frees are noticed by `locks.release`.
"""

from __future__ import annotations

from itertools import chain

from knhk_workflow.core import events as e
from knhk_workflow.core.case import BEGUN_ITEM_STATES, OPEN_ITEM_STATES, RETRYING, Activation, NetInstance, place_of
from knhk_workflow.core.commands import ENDED
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import Region


def withdraw(step: Step, activation: Activation, reason: str, detail: str = "") -> None:
    """Remove an activation with everything below it: items, sub-nets, incidents. `detail`: the words of who asked."""
    if activation.number not in step.case.activations:
        return
    stop_instances(step, activation)
    for incident in list(activation.incidents):
        step.emit(e.IncidentResolved(incident, "cancelled"))
    if step.case.timers:
        step.untimed(activation)
    step.emit(e.TaskCancelled(activation.net, activation.task, activation.number, reason, detail))
    step.nets.add(activation.net)


def stop_instances(step: Step, activation: Activation) -> None:
    """Withdraw or terminate every instance that has not ended."""
    for _, run in sorted(activation.instances.items()):
        if run.child:
            remove_net(step, step.case.nets[run.child])
            if run.timer:
                step.disarm(run.timer)
        elif run.state == RETRYING:
            step.disarm(run.timer)
        elif run.state in OPEN_ITEM_STATES:
            gone = e.ItemTerminated if run.state in BEGUN_ITEM_STATES else e.ItemWithdrawn
            step.emit(gone(*place_of(activation, run)))
            step.changed(activation, run)


def cancel_region(step: Step, net: NetInstance, region: Region, by: Activation) -> None:
    """Empty the region's conditions and remove its tasks' activations, all but the canceller itself."""
    for task in region.tasks:
        for number in list(net.active.get(task, ())):
            if number != by.number:
                found = step.case.activations[number]
                withdraw(step, found, "cancelled" if found.started else "withdrawn")
    tokens = tuple(place for place in region.conditions for _ in range(net.marking.get(place, 0)))
    if tokens:
        step.emit(e.TokensRemoved(net.number, by.task, tokens))
    false = tuple(place for place in region.conditions for _ in range(net.dead.get(place, 0)))
    if false:
        step.emit(e.DeadPathMoved(net.number, by.task, false))
    books = tuple(task for task in region.tasks if task != by.task and (task in net.seen or task in net.expected))
    if books:
        step.emit(e.NetReset(net.number, books))
    step.touch(net.number, region.conditions)
    for task in region.tasks:
        step.again(net.number, task)  # a token in a place that the region does not cover enables it anew


def empty_net(step: Step, net: NetInstance) -> None:
    """Remove every activation of a net, oldest first, and its own incident."""
    for number in sorted(chain.from_iterable(net.active.values())):  # maps lose their order in a snapshot
        activation = step.case.activations[number]
        withdraw(step, activation, "cancelled" if activation.started else "withdrawn")
    if net.incident:
        step.emit(e.IncidentResolved(net.incident, "cancelled"))
    step.nets.discard(net.number)


def remove_net(step: Step, net: NetInstance) -> None:
    """Remove a net instance with everything in it."""
    empty_net(step, net)
    step.emit(e.NetCancelled(net.number, net.name))


def end_case(step: Step, state: str, reason: str = "") -> None:
    """End the case unsuccessfully: nothing of it stays open (WCP-20)."""
    case = step.case
    if case.state in ENDED:
        return
    if case.root.marking or case.root.active or case.root.incident:
        remove_net(step, case.root)
    step.emit(e.StateChanged(case.state, state, reason))
    step.rest()
