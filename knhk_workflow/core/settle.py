"""Settling: from a changed marking to rest.

A task whose inputs changed is looked at again, first in, first out. Offers of outside work are brought in line with
what could fire (new ones offered, impossible ones withdrawn); routing tasks and sub-nets fire at once. When nothing
is left to fire, nets that have ended are closed, innermost first, which may set more in motion. A net at rest with
tokens that nothing can ever move is `stuck`: an incident, never a completion (WCP-11).

A slice of SLICE_FIRINGS automatic firings ends the step with the rest recorded (SettlePaused); the engine continues in
a further commit, so a long cascade never holds the event loop. SETTLE_FIRINGS_MAX firings without outside work are
taken for a livelock.
"""

from __future__ import annotations

from itertools import chain
from typing import Literal

import msgspec

from knhk_workflow.core import events as e
from knhk_workflow.core.case import BEGUN_ITEM_STATES, OPEN_ITEM_STATES, Activation, Instance, NetInstance, place_of
from knhk_workflow.core.commands import ENDED
from knhk_workflow.core.data import EMPTY, merge
from knhk_workflow.core.joins import offers
from knhk_workflow.core.step import Step
from knhk_workflow.model.expression import EvaluationFailed, Expression
from knhk_workflow.model.net import Branch, CompiledNet, TaskNode
from knhk_workflow.model.spec import END, START

SLICE_FIRINGS = 200  # about 2 ms of pure Python; the event loop must not be held longer
SETTLE_FIRINGS_MAX = 100_000  # a sound net of 1,000 tasks needs < 3,000; beyond that it is a livelock
DEPTH_MAX = 256  # nested sub-nets; recursion in practice stays below 50
TOKENS_MAX = 10_000  # live tokens of a case; snapshots and explain stay small
OPEN_ITEMS_MAX = 10_000  # open work items of a case
DATA_BYTES_MAX = 2 * 1024 * 1024  # data of one net instance; fits a gRPC message with room for the rest


def settle(step: Step) -> None:
    """Fire and offer until the case is at rest, ended, suspended, or the slice is full."""
    case = step.case
    if case.ready and case.state == "running":
        left = case.ready
        step.emit(e.SettleResumed())
        for number, task in left:
            step.again(number, task)
        step.nets.update(case.nets)
    firings = 0
    while case.state == "running":
        if not step.ready:
            if not step.nets or not _close_nets(step):
                return
            continue
        if firings >= SLICE_FIRINGS:
            _pause(step, case.firings + firings)
            return
        key = step.ready.popleft()
        step.queued.discard(key)
        number, task = key
        net = case.nets.get(number)
        if net is not None:
            firings += _visit(step, net, step.compiled(number).tasks[task])


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
    """Bring one task in line with the marking; the number of firings that took."""
    possible = offers(node, net)
    if not node.automatic:
        return _offer(step, net, node, possible)
    if not possible:
        return 0
    inputs, times = possible[0]
    if times > 1 or len(possible) > 1:
        step.again(net.number, node.id)
    case = step.case
    number = case.last_activation + 1
    step.emit(e.TaskEnabled(net.number, node.id, number, inputs, True))
    if node.shared:
        step.touch(net.number, inputs)
    activation = case.activations[number]
    if node.carrier == "route":
        finish(step, activation, node, EMPTY if node.out is not None else b"")
    else:
        start_net(step, net, node, activation, 1)
    return 1


def _offer(step: Step, net: NetInstance, node: TaskNode, possible: tuple[tuple[tuple[str, ...], int], ...]) -> int:
    """Offered activations of outside work: as many per binding as could fire, the newest withdrawn first."""
    case = step.case
    waiting: dict[tuple[str, ...], list[int]] = {}
    live = net.active.get(node.id)
    if live is not None:
        for number in live:
            activation = case.activations[number]
            if not activation.started:
                waiting.setdefault(activation.inputs, []).append(number)
    changes = 0
    for inputs, times in possible:
        existing = waiting.pop(inputs, None)
        if existing is not None:
            for number in reversed(existing[times:]):
                withdraw(step, case.activations[number], "withdrawn")
            times -= len(existing)
        while times > 0 and case.state == "running":  # an incident may fail the case
            times -= 1
            changes += 1
            number = case.last_activation + 1
            step.emit(e.TaskEnabled(net.number, node.id, number, inputs))
            offer_item(step, node, case.activations[number], 1, 1)
    for numbers in waiting.values():
        for number in reversed(numbers):
            withdraw(step, case.activations[number], "withdrawn")
    return changes


def offer_item(step: Step, node: TaskNode, activation: Activation, instance: int, attempt: int) -> None:
    """Offer one work item, with its recorded input when the task maps one."""
    if step.case.open_items >= OPEN_ITEMS_MAX:
        raise_incident(
            step,
            "open_items_limit",
            activation.net,
            f"the case has {step.case.open_items} open work items, more are not allowed; finish some, then retry",
            activation,
            instance,
        )
        return
    data = b""
    if node.in_ is not None:
        mapped = _mapped(step, node.in_, step.scope(activation.net), activation, instance, "in")
        if mapped is None:
            return
        data = mapped
    step.emit(e.ItemOffered(activation.net, node.id, activation.number, instance, attempt, data))
    step.changed(activation, activation.instances[instance])


def start_item(step: Step, activation: Activation, run: Instance, owner: str) -> None:
    """Begin outside work. The first start of an activation consumes its tokens and ends the choice (WCP-16)."""
    consumed = () if activation.started else activation.inputs
    step.emit(e.ItemStarted(*place_of(activation, run), owner or run.owner, consumed))
    step.changed(activation, run)
    if consumed and step.node(activation).shared:
        step.touch(activation.net, consumed)


def start_net(step: Step, net: NetInstance, node: TaskNode, activation: Activation, instance: int) -> None:
    """Begin the sub-net that carries `instance` out; its data is a copy of the parent's unless `in` maps it."""
    assert node.net is not None
    if net.depth + 1 > DEPTH_MAX:
        raise_incident(
            step,
            "depth_limit",
            net.number,
            f"sub-net {node.net!r} would be nested deeper than {DEPTH_MAX}: its recursion does not end",
            activation,
            instance,
        )
        return
    data = net.data
    if node.in_ is not None:
        mapped = _mapped(step, node.in_, step.scope(net.number), activation, instance, "in")
        if mapped is None:
            return
        data = mapped
    number = step.case.last_net + 1
    step.emit(e.NetStarted(number, node.net, net.number, activation.number, instance, net.depth + 1, data))
    step.touch(number, (START,))


def output_of(run: Instance) -> bytes:
    """What `finish` is to merge for work that ended: an empty object when it ended well without output."""
    return run.output or (EMPTY if run.state == "completed" else b"")


def finish(step: Step, activation: Activation, node: TaskNode, output: bytes = b"") -> None:
    """All instances of a started activation are done: update data, cancel, take the split, put the tokens.

    Without `output` (skipped work, a choice taken again) the data stay as they are; an empty object still goes through
    the task's `out` mapping.

    The order is fixed: data is merged before guards read it, cancellation precedes the task's own tokens. A guard
    that cannot be evaluated, or a choice without a true branch, is an incident on the activation, which keeps its
    place and can be retried.
    """
    number = activation.net
    if output and not _merge_output(step, activation, node, output):
        return
    produced = _take_split(step, activation, node)
    if produced is None:
        return
    step.emit(e.TaskCompleted(number, node.id, activation.number, produced))
    step.touch(number, produced)
    net = step.case.nets[number]
    if net.tokens > TOKENS_MAX:
        step.rest()
        if not net.incident:
            message = f"the net holds more than {TOKENS_MAX} tokens: a loop produces faster than it consumes"
            raise_incident(step, "token_limit", number, message)
        return
    if END in produced and step.compiled(number).termination == "explicit":
        _complete_net(step, net)


def _merge_output(step: Step, activation: Activation, node: TaskNode, output: bytes) -> bool:
    net = step.case.nets[activation.net]
    patch = output
    if node.out is not None:
        run = next(iter(activation.instances.values()), None)
        inputs = run.data if run is not None and run.data else net.data
        result = msgspec.json.decode(merge(inputs, output))
        mapped = _mapped(step, node.out, result, activation, run.number if run else 0, "out")
        if mapped is None:
            return False
        patch = mapped
    if patch == EMPTY:
        return True
    if len(net.data) + len(patch) > DATA_BYTES_MAX and len(merge(net.data, patch)) > DATA_BYTES_MAX:
        raise_incident(
            step,
            "data_limit",
            net.number,
            f"the output of task {node.id!r} would make the data larger than {DATA_BYTES_MAX} bytes",
            activation,
        )
        return False
    step.emit(e.DataUpdated(net.number, patch))
    return True


def _mapped(
    step: Step,
    mapping: tuple[tuple[str, Expression], ...],
    data: object,
    activation: Activation,
    instance: int,
    which: Literal["in", "out"],
) -> bytes | None:
    """Evaluate an `in` or `out` mapping; None when that failed and an incident stands for it."""
    try:
        return msgspec.json.encode({key: expression.value(data) for key, expression in mapping})
    except EvaluationFailed as failure:
        message = f"`{which}` of task {activation.task!r} could not be evaluated: {failure.message}"
        kind = "input_error" if which == "in" else "output_error"
        raise_incident(step, kind, activation.net, message, activation, instance)
        return None


def _take_split(step: Step, activation: Activation, node: TaskNode) -> tuple[str, ...] | None:
    """The conditions that get a token; None when the choice failed and an incident stands for it."""
    if node.split.kind == "and":
        return node.outputs
    default: Branch | None = None
    try:
        for branch in node.branches:
            if branch.when is None:
                default = branch
            elif branch.when.holds(step.scope(activation.net)):
                return (branch.condition,)
    except EvaluationFailed as failure:
        message = f"a guard of task {node.id!r} could not be evaluated: {failure.message}"
        raise_incident(step, "guard_error", activation.net, message, activation)
        return None
    if default is not None or not node.branches:
        return (default.condition,) if default else ()
    guards = ", ".join(f"{branch.when.text!r}" for branch in node.branches if branch.when)
    raise_incident(
        step,
        "no_branch",
        activation.net,
        f"no outgoing flow of task {node.id!r} can be taken: {guards} are all false and there is no default flow",
        activation,
    )
    return None


def raise_incident(
    step: Step, kind: str, net: int, message: str, activation: Activation | None = None, instance: int = 0
) -> None:
    """Record that a person is needed. A spec with `on_incident: fail` fails the case instead of keeping it."""
    case = step.case
    step.emit(
        e.IncidentRaised(
            case.last_incident + 1,
            kind,
            net,
            message,
            activation.task if activation else "",
            activation.number if activation else 0,
            instance,
        )
    )
    if step.model.spec.on_incident == "fail":
        end_case(step, "failed", message)


def withdraw(step: Step, activation: Activation, reason: str) -> None:
    """Remove an activation with everything below it: items, sub-nets, incidents."""
    case = step.case
    if activation.number not in case.activations:
        return
    for run in list(activation.instances.values()):
        if run.child:
            _remove_net(step, case.nets[run.child])
        elif run.state in OPEN_ITEM_STATES:
            gone = e.ItemTerminated if run.state in BEGUN_ITEM_STATES else e.ItemWithdrawn
            step.emit(gone(*place_of(activation, run)))
            step.changed(activation, run)
    if activation.incident:
        step.emit(e.IncidentResolved(activation.incident, "cancelled"))
    step.emit(e.TaskCancelled(activation.net, activation.task, activation.number, reason))


def _empty(step: Step, net: NetInstance) -> None:
    """Remove every activation of a net, oldest first, and its own incident."""
    for number in sorted(chain.from_iterable(net.active.values())):  # maps lose their order in a snapshot
        activation = step.case.activations[number]
        withdraw(step, activation, "cancelled" if activation.started else "withdrawn")
    if net.incident:
        step.emit(e.IncidentResolved(net.incident, "cancelled"))
    step.nets.discard(net.number)


def _remove_net(step: Step, net: NetInstance) -> None:
    _empty(step, net)
    step.emit(e.NetCancelled(net.number, net.name))


def end_case(step: Step, state: str, reason: str = "") -> None:
    """End the case unsuccessfully: nothing of it stays open (WCP-20)."""
    case = step.case
    if case.state in ENDED:
        return
    if case.root.marking or case.root.active or case.root.incident:
        _remove_net(step, case.root)
    step.emit(e.StateChanged(case.state, state, reason))
    step.rest()


def _close_nets(step: Step) -> bool:
    """At rest: complete nets that have ended, innermost first. True when that set something in motion."""
    case = step.case
    while step.nets:
        number = max(step.nets)
        step.nets.discard(number)
        net = case.nets.get(number)
        if net is None or net.active:
            continue
        if _ended(net, step.compiled(number)):
            _complete_net(step, net)
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


def _complete_net(step: Step, net: NetInstance) -> None:
    """A net ended properly. What is left in it (explicit termination, WCP-43) goes; then its task goes on."""
    case = step.case
    _empty(step, net)
    step.emit(e.NetCompleted(net.number, net.name))
    if net.number == 1:
        step.emit(e.StateChanged(case.state, "completed"))
        step.rest()
        return
    activation = case.activations[net.activation]
    finish(step, activation, step.compiled(activation.net).tasks[activation.task], net.data)
