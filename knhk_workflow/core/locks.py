"""Critical sections and mutexes (WCP-17, 39, 40).

A lock is taken when a task starts and never while it is only offered. A mutex is held by the activation until that
ends, however it ends. A section is held by the thread that entered it, as long as a token of that thread is inside: in
a condition between two tasks of the section, or in a started task of it. Automatic tasks that find a lock taken wait
in order; offered work may be taken up when the lock is free.
"""

from __future__ import annotations

from knhk_workflow.core import events as e
from knhk_workflow.core.case import Activation, Case, Lock, NetInstance
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import Section, TaskNode


def blocked_by(case: Case, net: NetInstance, node: TaskNode, inputs: tuple[str, ...]) -> str | None:
    """The lock that keeps the task from starting over these inputs, if any."""
    for section in node.sections:
        held = case.holder(section.lock)
        if held is not None and (held.net != net.number or section.inside.isdisjoint(inputs)):
            return section.lock
    if node.mutex is not None and case.holder(node.mutex) is not None:
        return node.mutex
    return None


def take(step: Step, net: NetInstance, node: TaskNode, activation: Activation) -> None:
    """The task starts: it holds its locks from now on."""
    for section in node.sections:
        if step.case.holder(section.lock) is None:
            step.emit(e.LockTaken(section.lock, net.number, node.id, 0))
    if node.mutex is not None:
        step.emit(e.LockTaken(node.mutex, net.number, node.id, activation.number))


def wait(step: Step, net: NetInstance, node: TaskNode, lock: str) -> None:
    """An automatic task found a lock taken: it comes up again when the lock is free, in the order of waiting."""
    if (net.number, node.id) not in step.case.locks[lock].waiting:
        step.emit(e.LockAwaited(lock, net.number, node.id))


def release(step: Step) -> bool:
    """Release every lock that nobody is inside of any more. True when a task may go on because of it."""
    case = step.case
    woken = False
    for name, lock in sorted(case.locks.items()):
        if (lock.net or lock.activation) and not _inside(step, name, lock):
            waiting = list(lock.waiting)
            step.emit(e.LockReleased(name))
            for net, task in waiting:
                if net in case.nets:
                    step.again(net, task)
                    woken = True
    return woken


def _inside(step: Step, name: str, lock: Lock) -> bool:
    case = step.case
    if lock.activation:
        return lock.activation in case.activations
    net = case.nets.get(lock.net)
    if net is None:
        return False
    section = next(each for each in step.compiled(net.number).sections if each.lock == name)
    return occupied(case, net, section)


def occupied(case: Case, net: NetInstance, section: Section) -> bool:
    """Whether a token is inside a section."""
    return any(place in net.marking for place in section.inside) or any(
        case.activations[number].started for task in section.tasks for number in net.active.get(task, ())
    )
