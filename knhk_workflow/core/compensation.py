"""What can be undone: the completions of tasks with `compensate: T`, remembered in their net instance, oldest first.

Each completed instance counts (each turn of a loop, each round through the net), with what it gave; skipped, forced and
failed work does not. The memory goes when the net completes: what a sub-net did is then final, unless its composite
task names a `compensate` of its own. When the net ends unsuccessfully instead (its composite task is cancelled, fails,
is late, or the case is cancelled or fails) it stays, without tokens, until all of it is undone: `rollback.py`.
"""

from __future__ import annotations

import msgspec

from knhk_workflow.core import events as e
from knhk_workflow.core.case import Activation, NetInstance
from knhk_workflow.core.commands import ENDED
from knhk_workflow.core.data import EMPTY, merge
from knhk_workflow.core.step import Step

COMPLETED = "completed"  # the outcome of a net that completed while something below it is still being undone
STOPPED = "stopped"  # the outcome of one of several sub-nets of a task, when the task goes on without it
GONE = frozenset({"cancelled", "withdrawn"})  # outcomes after which the task around the net is no more
OVER = GONE | {"leave"}  # outcomes that are those of the task as a whole


def remember(step: Step, activation: Activation, undo: str, instance: int, data: bytes) -> None:
    """Work was completed that the task `undo` can undo."""
    place = activation.net, activation.task, activation.number, instance
    step.emit(e.CompletionRemembered(*place, undo, data or EMPTY))


def forget(step: Step, net: NetInstance) -> None:
    """Nothing that was completed in a net, or below it, is going to be undone."""
    nets = step.case.nets
    for number, each in sorted(nets.items()):
        if each.completions or each.outcome:
            above = each
            while above.number not in (net.number, 1):
                above = nets[above.parent]
            if above.number == net.number:
                step.emit(e.CompletionsForgotten(number))


def roll_back(step: Step, net: NetInstance, outcome: str, detail: str) -> bool:
    """A net that is emptied ends unsuccessfully. True: something has to be undone first, or is being undone already."""
    if not net.outcome and not net.completions and not net.active:
        return False
    if (net.outcome, net.detail) != (outcome, detail):
        step.emit(e.RollbackBegun(net.number, outcome, detail))
        step.nets.add(net.number)
    return True


def pending(step: Step, activation: Activation, outcomes: frozenset[str] = frozenset()) -> bool:
    """Whether an activation that was stopped has to wait until its sub-net is undone: for one of these outcomes
    (OVER: it was stopped as a whole), or for any when none are named."""
    if not step.model.compensates:
        return False
    nets = step.case.nets
    found = (nets[run.child].outcome for run in activation.instances.values() if run.child)
    return any(outcome in outcomes if outcomes else outcome for outcome in found)


def ending(net: NetInstance) -> bool:
    """Whether a case's own net is being undone, and the case ends then."""
    return net.outcome in ENDED and net.outcome != COMPLETED


def given(step: Step, activation: Activation) -> bytes:
    """What a compensation sees: its net's data, and over it what the undone work gave."""
    data = step.case.nets[activation.net].data
    return data if activation.undoes is None else merge(data, activation.undoes.data)


def seen(step: Step, activation: Activation) -> object:
    """The same, decoded, for mappings. Must not be changed by the reader."""
    return step.scope(activation.net) if activation.undoes is None else msgspec.json.decode(given(step, activation))
