"""Removing things unsuccessfully: activations, regions, nets, the whole case (WCP-19, 20, 25, 26).

Nothing of what is removed stays behind: items are withdrawn or terminated, sub-nets emptied, timers disarmed, incidents
closed, the bookkeeping of joins dropped. Locks that this frees are noticed by `locks.release`.
"""

from __future__ import annotations

from itertools import chain

from knhk_workflow.core import compensation
from knhk_workflow.core import events as e
from knhk_workflow.core.case import BEGUN_ITEM_STATES, OPEN_ITEM_STATES, RETRYING, Activation, NetInstance, place_of
from knhk_workflow.core.commands import ENDED
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import Region


def withdraw(step: Step, activation: Activation, reason: str, detail: str = "") -> None:
    """Remove an activation with everything below it: items, sub-nets, incidents. `detail`: the words of who asked."""
    if activation.number not in step.case.activations:
        return
    stop_instances(step, activation, reason, detail)
    for incident in list(activation.incidents):
        step.emit(e.IncidentResolved(incident, "cancelled"))
    if step.case.timers:
        step.untimed(activation)
    if compensation.pending(step, activation):
        return  # it is gone when its sub-net is undone
    step.emit(e.TaskCancelled(activation.net, activation.task, activation.number, reason, detail))
    step.nets.add(activation.net)


def stop_instances(step: Step, activation: Activation, outcome: str = "cancelled", detail: str = "") -> None:
    """Withdraw or terminate every instance that has not ended. `outcome`: what follows a sub-net that is undone first
    (`RollbackBegun`)."""
    for _, run in sorted(activation.instances.items()):
        if run.child:
            remove_net(step, step.case.nets[run.child], outcome, detail)
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


def remove_net(step: Step, net: NetInstance, outcome: str = "cancelled", detail: str = "") -> bool:
    """Remove a net instance with everything in it. False: it stays until what was completed in it is undone, then
    `outcome` follows."""
    if not net.outcome:
        empty_net(step, net)
    if step.model.compensates and compensation.roll_back(step, net, outcome, detail):
        return False
    step.emit(e.NetCancelled(net.number, net.name))
    return True


def end_case(step: Step, state: str, reason: str = "", *, at_once: bool = False) -> None:
    """End the case unsuccessfully: nothing of it stays open (WCP-20). What was completed is undone before, unless it
    is to be `at_once`."""
    case = step.case
    root = case.root
    if case.state in ENDED:
        return
    if at_once:
        compensation.forget(step, root)
    elif compensation.ending(root):
        return
    if (root.marking or root.active or root.incident or root.completions) and not remove_net(step, root, state, reason):
        return
    step.emit(e.StateChanged(case.state, state, reason))
    step.rest()
