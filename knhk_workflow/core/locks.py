"""Critical sections and mutexes (WCP-17, 39, 40).

A lock is taken when the work of a task begins, and never while it is only offered. A mutex is held by the activation
until that ends, however it ends. A section is held by the thread that entered it, as long as a token of that thread is
inside: in a condition between two tasks of the section, or in a task of it at work. Automatic tasks that find a lock
taken wait in order; offered work may be taken up when the lock is free.

Work that has failed for good (an incident stands for it) lets go of its locks, so that nobody waits for a person; work
that is merely tried again keeps them. Before a failed task goes on, it takes them again, like work that has not begun.
"""

from __future__ import annotations

from collections.abc import Sequence

from knhk_workflow.core import events as e
from knhk_workflow.core.case import LIVE_STATES, Activation, Case, NetInstance
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import Model, TaskNode

NOT_BEGUN = frozenset({"offered", "allocated", "withdrawn"})


def begun(activation: Activation, node: TaskNode) -> bool:
    """Whether work has begun. Some activations consume their tokens before that (`TaskNode.eager`, `sync: false`); what
    let go of its locks begins anew."""
    if not activation.started or activation.left:
        return False
    runs = activation.instances.values()
    if runs:
        return any(run.state not in NOT_BEGUN or run.attempt > 1 for run in runs)
    return not node.awaits or activation.signalled


def failed(activation: Activation) -> bool:
    """Whether nothing is at work in an activation because it has failed, and a person is asked."""
    if not activation.incidents:
        return False
    states = {run.state for run in activation.instances.values()}
    return "failed" in states and states.isdisjoint(LIVE_STATES)


def blocked_by(
    case: Case, net: NetInstance, node: TaskNode, inputs: tuple[str, ...], left: Sequence[str] = ()
) -> str | None:
    """The lock that keeps the task from starting over these inputs, if any. `left`: locks that it had let go of."""
    for section in node.sections:
        held = case.holder(section.lock)
        if held is None:
            continue
        if held.net != net.number or section.lock in left or section.inside.isdisjoint(inputs):
            return section.lock
    if node.mutex is not None and case.holder(node.mutex) is not None:
        return node.mutex
    return None


def take(step: Step, net: NetInstance, node: TaskNode, activation: Activation) -> None:
    """The task starts: it holds its locks from now on. (Work that is ended by force takes nobody's lock away.)"""
    for section in node.sections:
        if step.case.holder(section.lock) is None:
            again = activation.number if section.lock in activation.left else 0
            step.emit(e.LockTaken(section.lock, net.number, node.id, 0, again))
    if node.mutex is not None and step.case.holder(node.mutex) is None:
        again = activation.number if node.mutex in activation.left else 0
        step.emit(e.LockTaken(node.mutex, net.number, node.id, activation.number, again))


def holders(case: Case, model: Model, name: str) -> tuple[str, ...]:
    """What keeps a lock taken: the tasks at work inside, and the conditions inside that hold a token."""
    lock = case.locks[name]
    if lock.activation:
        holder = case.activations.get(lock.activation)
        return (holder.task,) if holder is not None and not failed(holder) else ()
    net = case.nets.get(lock.net)
    if net is None:
        return ()
    compiled = model.nets[net.name]
    section = next(each for each in compiled.sections if each.lock == name)
    tasks = (
        task
        for task in sorted(section.tasks)
        if any(_inside(case.activations[number], compiled.tasks[task]) for number in net.active.get(task, ()))
    )
    return (*tasks, *(place for place in sorted(section.inside) if place in net.marking))


def _inside(activation: Activation, node: TaskNode) -> bool:
    return begun(activation, node) and not failed(activation)


def _failed_in(case: Case, model: Model, name: str) -> tuple[int, ...]:
    """The activations that had a lock until they failed."""
    lock = case.locks[name]
    if lock.activation:
        return (lock.activation,) if lock.activation in case.activations else ()
    net = case.nets.get(lock.net)
    if net is None:
        return ()
    section = next(each for each in model.nets[net.name].sections if each.lock == name)
    members = (number for task in sorted(section.tasks) for number in net.active.get(task, ()))
    return tuple(
        number for number in members if failed(case.activations[number]) and name not in case.activations[number].left
    )


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
            step.emit(e.LockReleased(name, _failed_in(case, step.model, name)))
            for net, task in waiting:
                if net in case.nets:
                    step.again(net, task)
                    woken = True
    return woken
