"""Settling: from a changed marking to rest.

A task whose inputs changed is looked at again, first in, first out. Offers of outside work are brought in line with
what could fire (new ones offered, impossible ones withdrawn); routing tasks and sub-nets fire at once. When nothing
else can fire, or-joins are asked, then locks that nobody holds any more are given on, then nets that have ended are
closed, innermost first; each of these may set more in motion. A net at rest with tokens that nothing can ever move is
`stuck`: an incident, never a completion (WCP-11).

A slice of SLICE_FIRINGS automatic firings ends the step with the rest recorded (SettlePaused); the engine continues in
a further commit, so a long cascade never holds the event loop. SETTLE_FIRINGS_MAX firings without outside work are
taken for a livelock.
"""

from __future__ import annotations

from knhk_workflow.core import events as e
from knhk_workflow.core import locks, rollback
from knhk_workflow.core.cancel import end_case, withdraw
from knhk_workflow.core.case import NetInstance
from knhk_workflow.core.completion import complete_net
from knhk_workflow.core.enabling import enable
from knhk_workflow.core.incidents import raise_incident
from knhk_workflow.core.joins import JOINS, absorb, give_up, offers, skip
from knhk_workflow.core.step import Step
from knhk_workflow.core.triggers import go_on
from knhk_workflow.model.net import CompiledNet, TaskNode
from knhk_workflow.model.spec import START

SLICE_FIRINGS = 200  # about 2 ms of pure Python; the event loop must not be held longer
SETTLE_FIRINGS_MAX = 100_000  # a sound net of 1,000 tasks needs < 3,000; beyond that it is a livelock


def settle(step: Step) -> None:
    """Fire and offer until the case is at rest, ended, suspended, or the slice is full."""
    case, nets = step.case, step.model.nets
    if case.ready and case.state == "running":
        left = case.ready
        step.emit(e.SettleResumed())
        for number, task in left:
            step.again(number, task)
        step.nets.update(case.nets)
    firings = 0
    while case.state == "running":
        ready = step.ready
        for key in [*ready]:
            if firings >= SLICE_FIRINGS:
                _pause(step, case.firings + firings)
                if step.failing is None:
                    return
                break  # the end of an endless cascade has failed the case
            del ready[key]
            number, task = key
            net = case.nets.get(number)
            if net is not None:
                node = nets[net.name].tasks[task]
                firings += _match(step, net, node) if node.plain_look else _visit(step, net, node)
                if step.ready is not ready:
                    break  # the case ended, or the cascade was cut short
        if step.failing is not None:
            told, step.failing = step.failing, None
            end_case(step, "failed", told)
            continue
        if step.ready:
            continue
        if not case.locks and (not step.nets or _quiet(step)):
            return
        if case.state == "running":
            made = _or_joins(step)
            begun = case.last_activation
            moved = made or step.ready or (case.locks and locks.release(step)) or _close_nets(step)
            firings += made + case.last_activation - begun  # what undoes something counts as well
            if not moved and step.failing is None:
                return


def _pause(step: Step, total: int) -> None:
    """End the slice; after SETTLE_FIRINGS_MAX firings in a row, end the cascade."""
    if total < SETTLE_FIRINGS_MAX:
        step.emit(e.SettlePaused(tuple(step.ready), total))
        step.rest()
        return
    step.emit(e.SettlePaused((), 0))
    step.rest()
    if not step.case.root.incident:
        raise_incident(
            step,
            "settle_limit",
            1,
            f"{total} tasks fired without any outside work: this looks like an endless loop; "
            "correct the data that its guards read, then retry",
        )


def _visit(step: Step, net: NetInstance, node: TaskNode) -> int:
    """Bring one task in line with the marking; the number of activations that made."""
    kind = node.join.kind
    if kind == "partial":
        absorb(step, node, net)
    if node.skips and skip(step, node, net):
        return 1
    if kind == "or":
        step.nets.add(net.number)
        return 0  # asked when nothing else can fire
    made = _match(step, net, node)
    if node.awaits:
        go_on(step, net, node)
    return made


def _match(step: Step, net: NetInstance, node: TaskNode) -> int:
    """Activations that have not started: as many per binding as could fire, the newest withdrawn first."""
    case = step.case
    possible = JOINS[node.join.kind](step, node, net) if node.plain_join else offers(step, node, net)
    if node.many is not None and possible and _occupied(step, net, node):
        possible = ()
    live = net.active.get(node.id)
    if live is None and not possible:
        return 0
    waiting: dict[tuple[str, ...], list[int]] = {}
    for number in live or ():
        activation = case.activations[number]
        if not activation.started:
            waiting.setdefault(activation.inputs, []).append(number)
    if node.single and possible and waiting:
        return 0  # its tokens are chosen when it starts, so it stays as it is
    made = 0
    for inputs, times in possible:
        if waiting and inputs in waiting:
            existing = waiting.pop(inputs)
            for number in reversed(existing[times:]):
                withdraw(step, case.activations[number], "withdrawn")
            times -= len(existing)
        while times > 0 and case.state == "running":  # an incident may fail the case
            if node.automatic and (made or (node.guarded and not _free(step, net, node, inputs))):
                if made:
                    step.again(net.number, node.id)  # one at a time, so that others have their turn
                break
            times -= 1
            made += 1
            enable(step, net, node, inputs)
    for numbers in waiting.values():
        for number in reversed(numbers):
            withdraw(step, case.activations[number], "withdrawn")
    return made


def _occupied(step: Step, net: NetInstance, node: TaskNode) -> bool:
    """A multiple-instance task whose flow has gone on is entered again only when its last instance is done (WCP-34)."""
    assert node.many is not None
    return node.many.sync and any(step.case.activations[number].released for number in net.active.get(node.id, ()))


def _free(step: Step, net: NetInstance, node: TaskNode, inputs: tuple[str, ...]) -> bool:
    """Whether an automatic task may start now; otherwise it waits for the lock."""
    lock = locks.blocked_by(step.case, net, node, inputs)
    if lock is not None:
        locks.wait(step, net, node, lock)
    return lock is None


def _quiet(step: Step) -> bool:
    """Whether no net is to be asked or closed: the usual rest, with work open in all of them and no or-joins."""
    nets, compiled = step.case.nets, step.model.nets
    for number in step.nets:
        net = nets.get(number)
        if net is not None and (not net.active or compiled[net.name].asked):
            return False
    step.nets.clear()
    return True


def _or_joins(step: Step) -> int:
    """Ask the or-joins of every net in which something moved or died; the number of activations that made."""
    made = 0
    for number in sorted(step.nets):
        for node in step.compiled(number).asked if number in step.case.nets else ():
            net = step.case.nets.get(number)
            if net is None or step.case.state != "running":
                break
            if node.join.kind == "structured-or":
                give_up(step, node, net)
            made += _match(step, net, node)
            if node.awaits:
                go_on(step, net, node)
            if step.ready:
                return made  # what it set in motion comes before the next or-join
    return made


def _close_nets(step: Step) -> bool:
    """At rest: complete nets that have ended, innermost first. True when that set something in motion."""
    case = step.case
    while step.nets:
        number = max(step.nets)
        step.nets.discard(number)
        net = case.nets.get(number)
        if net is None or net.active:
            continue
        if net.outcome:
            rollback.go_on(step, net)
        elif _ended(net, step.compiled(number)):
            complete_net(step, net)
        else:
            _report_stuck(step, net)
        return True
    return False


def _ended(net: NetInstance, compiled: CompiledNet) -> bool:
    """Whether a net without live activations has ended properly rather than got stuck."""
    if compiled.termination == "explicit" and START not in compiled.sinks:
        return False  # the end would have closed it at once
    return net.marking.keys() <= compiled.sinks


def _report_stuck(step: Step, net: NetInstance) -> None:
    """Tokens that nothing can move any more: say so once."""
    if net.incident:
        return
    sinks = step.compiled(net.number).sinks
    where = ", ".join(f"{count} in {place!r}" for place, count in sorted(net.marking.items()) if place not in sinks)
    name = f"sub-net {net.name!r}" if net.name else "the workflow"
    why = f"tokens are left ({where}) that no task can ever take" if where else "its end was never reached"
    raise_incident(step, "stuck", net.number, f"{name} cannot go on: {why}, and no work is open")
