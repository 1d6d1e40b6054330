"""Critical sections and mutexes (WCP-17, 39, 40).

A lock is taken when the work of a task begins, and never while it is only offered. A mutex is held by the activation
until that ends, however it ends. A section is held by the thread that entered it, as long as a token of that thread is
inside: in a condition between two tasks of the section, or in a task of it at work. Work that waits for a person
(an incident) keeps its locks: it is half done. Automatic tasks that find a lock taken wait in order; offered work may
be taken up when the lock is free.
"""

from __future__ import annotations

from knhk_workflow.core import events as e
from knhk_workflow.core.case import Activation, Case, NetInstance
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import Model, TaskNode

NOT_BEGUN = frozenset({"offered", "allocated", "withdrawn"})


def begun(activation: Activation, node: TaskNode) -> bool:
    """Whether work has begun. Some activations consume their tokens before that (`TaskNode.eager`, `sync: false`)."""
    if not activation.started:
        return False
    runs = activation.instances.values()
    if runs:
        return any(run.state not in NOT_BEGUN or run.attempt > 1 for run in runs)
    return not node.awaits or activation.signalled


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
    """The task starts: it holds its locks from now on. (Work that is ended by force takes nobody's lock away.)"""
    for section in node.sections:
        if step.case.holder(section.lock) is None:
            step.emit(e.LockTaken(section.lock, net.number, node.id, 0))
    if node.mutex is not None and step.case.holder(node.mutex) is None:
        step.emit(e.LockTaken(node.mutex, net.number, node.id, activation.number))


def holders(case: Case, model: Model, name: str) -> tuple[str, ...]:
    """What keeps a lock taken: the tasks at work inside, and the conditions inside that hold a token."""
    lock = case.locks[name]
    if lock.activation:
        return (case.activations[lock.activation].task,) if lock.activation in case.activations else ()
    net = case.nets.get(lock.net)
    if net is None:
        return ()
    compiled = model.nets[net.name]
    section = next(each for each in compiled.sections if each.lock == name)
    tasks = (
        task
        for task in sorted(section.tasks)
        if any(begun(case.activations[number], compiled.tasks[task]) for number in net.active.get(task, ()))
    )
    return (*tasks, *(place for place in sorted(section.inside) if place in net.marking))


def wait(step: Step, net: NetInstance, node: TaskNode, lock: str) -> None:
    """An automatic task found a lock taken: it comes up again when the lock is free, in the order of waiting."""
    if (net.number, node.id) not in step.case.locks[lock].waiting:
        step.emit(e.LockAwaited(lock, net.number, node.id))


def release(step: Step) -> bool:
    """Release every lock that nobody is inside of any more. True when a task may go on because of it."""
    case = step.case
    woken = False
    for name, lock in sorted(case.locks.items()):
        if not holders(case, step.model, name):
            waiting = list(lock.waiting)
            step.emit(e.LockReleased(name))
            for net, task in waiting:
                if net in case.nets:
                    step.again(net, task)
                    woken = True
    return woken
