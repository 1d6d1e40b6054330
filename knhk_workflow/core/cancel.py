"""Removing things unsuccessfully: activations, regions, nets, the whole case (WCP-19, 20, 25, 26).

Nothing of what is removed stays behind: items are withdrawn or terminated, sub-nets emptied, timers disarmed, incidents
closed, the bookkeeping of joins dropped. Locks that this frees are noticed by `locks.release`.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import chain

from knhk_workflow.core import compensation
from knhk_workflow.core import events as e
from knhk_workflow.core.case import BEGUN_ITEM_STATES, OPEN_ITEM_STATES, RETRYING, Activation, NetInstance, place_of
from knhk_workflow.core.commands import ENDED
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import Region

_Removal = Generator["_Removal", bool, bool]
"""A removal that hands over what it has to remove first, and is told whether that is gone. Nets nest deeper than calls
may, so what is below is not removed by a call."""


def withdraw(step: Step, activation: Activation, reason: str, detail: str = "") -> None:
    """Remove an activation with everything below it: items, sub-nets, incidents. `detail`: the words of who asked."""
    _carried_out(_withdrawn(step, activation, reason, detail))


def stop_instances(step: Step, activation: Activation, outcome: str = "cancelled", detail: str = "") -> None:
    """Withdraw or terminate every instance that has not ended. `outcome`: what follows a sub-net that is undone first
    (`RollbackBegun`)."""
    _carried_out(_stopped(step, activation, outcome, detail))


def empty_net(step: Step, net: NetInstance) -> None:
    """Remove every activation of a net, oldest first, and its own incident."""
    _carried_out(_emptied(step, net))


def remove_net(step: Step, net: NetInstance, outcome: str = "cancelled", detail: str = "") -> bool:
    """Remove a net instance with everything in it. False: it stays until what was completed in it is undone, then
    `outcome` follows."""
    return _carried_out(_removed(step, net, outcome, detail))


def _carried_out(removal: _Removal) -> bool:
    """Do a removal and all that it hands over; its own answer."""
    pending: list[_Removal] = [removal]
    gone: bool | None = None  # what the removal on top is told
    while pending:
        try:
            pending.append(next(pending[-1]) if gone is None else pending[-1].send(gone))
            gone = None
        except StopIteration as done:
            pending.pop()
            gone = bool(done.value)
    return bool(gone)


def _withdrawn(step: Step, activation: Activation, reason: str, detail: str) -> _Removal:
    if activation.number not in step.case.activations:
        return True
    yield _stopped(step, activation, reason, detail)
    for incident in list(activation.incidents):
        step.emit(e.IncidentResolved(incident, "cancelled"))
    if step.case.timers:
        step.untimed(activation)
    if compensation.pending(step, activation):
        return False  # it is gone when its sub-net is undone
    step.emit(e.TaskCancelled(activation.net, activation.task, activation.number, reason, detail))
    step.nets.add(activation.net)
    return True


def _stopped(step: Step, activation: Activation, outcome: str, detail: str) -> _Removal:
    for _, run in sorted(activation.instances.items()):
        if run.child:
            yield _removed(step, step.case.nets[run.child], outcome, detail)
            if run.timer:
                step.disarm(run.timer)
        elif run.state == RETRYING:
            step.disarm(run.timer)
        elif run.state in OPEN_ITEM_STATES:
            gone = e.ItemTerminated if run.state in BEGUN_ITEM_STATES else e.ItemWithdrawn
            step.emit(gone(*place_of(activation, run)))
            step.changed(activation, run)
    return True


def _emptied(step: Step, net: NetInstance) -> _Removal:
    for number in sorted(chain.from_iterable(net.active.values())):  # maps lose their order in a snapshot
        activation = step.case.activations[number]
        yield _withdrawn(step, activation, "cancelled" if activation.started else "withdrawn", "")
    if net.incident:
        step.emit(e.IncidentResolved(net.incident, "cancelled"))
    step.nets.discard(net.number)
    return True


def _removed(step: Step, net: NetInstance, outcome: str, detail: str) -> _Removal:
    if not net.outcome:
        yield _emptied(step, net)
    if step.model.compensates and compensation.roll_back(step, net, outcome, detail):
        return False
    step.emit(e.NetCancelled(net.number, net.name))
    return True


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
    step.emit(e.StateChanged(case.state, state, step.told(reason)))
    step.rest()
