"""Signals from outside (WCP-23, 24).

A signal goes to the oldest activation that waits for its name. When nobody waits it starts a task without incoming
flow; otherwise it is kept, first in, first out, when some task of the workflow waits for it persistently, and lost when
not. For a task that only waits, the signal is the work and its data the output; for one with roles it makes the work
offered; for one with a sub-net it starts that.

A task that waits persistently is given a signal only when it can go on at once: not while the case is suspended or its
lock is held. What waits transiently would lose it: it takes the signal and goes on when it can.
"""

from __future__ import annotations

from knhk_workflow.core import events as e
from knhk_workflow.core import locks
from knhk_workflow.core.case import Activation, Case, Kept, NetInstance
from knhk_workflow.core.commands import Signal
from knhk_workflow.core.completion import advance, take_output
from knhk_workflow.core.data import EMPTY
from knhk_workflow.core.enabling import begin, enable
from knhk_workflow.core.starting import outrun, start_without_work
from knhk_workflow.core.step import Step
from knhk_workflow.errors import LimitExceeded
from knhk_workflow.model.net import TaskNode

SIGNALS_MAX = 10_000  # kept signals of a case; an unbounded list would make every snapshot slower


def receive(step: Step, signal: Signal) -> None:
    """A signal comes in; TriggerReceived tells its outcome: taken, kept, lost. Raises LimitExceeded."""
    case, name, data = step.case, signal.name, signal.data
    _expire(step)
    number = case.last_trigger + 1
    waiting = _receiver(step, name)
    if waiting is not None:
        node = step.node(waiting)
        step.emit(e.TriggerReceived(number, name, "taken", data, waiting.net, node.id, waiting.number))
        if case.state == "running":
            go_on(step, case.nets[waiting.net], node)
        return
    expires = signal.expires or (step.now + signal.time_to_live if signal.time_to_live else 0)
    over = signal.time_to_live == 0 or 0 < expires <= step.now
    if over or not step.model.keeps(name):
        step.emit(e.TriggerReceived(number, name, "lost", data))
        return
    if len(case.signals) >= SIGNALS_MAX:
        raise LimitExceeded("kept signals of a case", SIGNALS_MAX, len(case.signals) + 1)
    step.emit(e.TriggerReceived(number, name, "kept", data, expires=expires))


def _expire(step: Step) -> None:
    """Forget the kept signals whose time is over. Until a signal comes or is looked for they merely do not count."""
    for kept in list(step.case.signals):
        if 0 < kept.expires <= step.now:
            step.emit(e.TriggerExpired(kept.number, kept.name))


def go_on(step: Step, net: NetInstance, node: TaskNode) -> None:
    """Give a task the signals that are kept for it, and let those activations go on that have got theirs."""
    case, trigger = step.case, node.task.trigger
    name = trigger.name if trigger is not None and trigger.mode == "persistent" else ""
    if case.signals:
        _expire(step)
    for number in list(net.active.get(node.id, ())):
        activation = case.activations.get(number)
        if activation is not None and activation.signalled:
            _go(step, net, node, activation)
        elif activation is not None and _waits(step, activation):
            kept = _kept(case, name)
            if kept is not None and _ready(step, net, node, activation):
                step.emit(e.TriggerTaken(kept.number, kept.name, net.number, node.id, number))
                _go(step, net, node, activation)
    while not node.inputs and net.number in case.nets and not net.outcome and case.state == "running":
        kept = _kept(case, name)
        if kept is None or not _free(step, net, node, ()):
            return
        enable(step, net, node, ())
        source = case.activations[case.last_activation]
        step.emit(e.TriggerTaken(kept.number, kept.name, net.number, node.id, source.number))
        _go(step, net, node, source)


def _receiver(step: Step, name: str) -> Activation | None:
    """Who takes a signal that comes now: the oldest waiting activation, first of those that can go on at once."""
    later: Activation | None = None
    for _, activation in sorted(step.case.activations.items()):
        node = step.node(activation)
        trigger = node.task.trigger
        if trigger is None or trigger.name != name or not _waits(step, activation):
            continue
        if step.case.state == "running" and _ready(step, step.case.nets[activation.net], node, activation):
            return activation
        if trigger.mode == "transient" and later is None:
            later = activation
    return later or (_sourced(step, name) if step.case.state == "running" else None)


def _sourced(step: Step, name: str) -> Activation | None:
    """A task without incoming flow that this signal starts, enabled for it."""
    for _, net in sorted(step.case.nets.items()):
        for node in step.compiled(net.number).sources if not net.outcome else ():
            trigger = node.task.trigger
            if trigger is not None and trigger.name == name and _free(step, net, node, ()):
                enable(step, net, node, ())
                return step.case.activations[step.case.last_activation]
    return None


def _kept(case: Case, name: str) -> Kept | None:
    return next((each for each in case.signals if each.name == name), None)


def _waits(step: Step, activation: Activation) -> bool:
    return not activation.signalled and not activation.incidents and not outrun(step, activation)


def _ready(step: Step, net: NetInstance, node: TaskNode, activation: Activation) -> bool:
    """Whether nothing else keeps an activation from going on with its signal. Offered work takes no lock yet."""
    return node.carrier == "item" or _free(step, net, node, activation.inputs)


def _free(step: Step, net: NetInstance, node: TaskNode, inputs: tuple[str, ...]) -> bool:
    lock = locks.blocked_by(step.case, net, node, inputs)
    if lock is not None:
        locks.wait(step, net, node, lock)
    return lock is None


def _go(step: Step, net: NetInstance, node: TaskNode, activation: Activation) -> None:
    """The signal has come: it is the work of a waiting task, and the start of one with work of its own."""
    if activation.instances or activation.incidents or outrun(step, activation):
        return
    if not _ready(step, net, node, activation):
        return
    if node.carrier == "item":
        begin(step, net, node, activation)
        return
    if not activation.started:
        start_without_work(step, activation)
    elif node.guarded:
        locks.take(step, net, node, activation)
    if node.carrier == "net":
        begin(step, net, node, activation)
    else:
        deliver(step, node, activation)


def deliver(step: Step, node: TaskNode, activation: Activation) -> None:
    """The work of a task that only waits is what its signal brought."""
    if take_output(step, activation, node, activation.signal or EMPTY):
        advance(step, activation, node)
