"""Activations that end: instances done, the flow that goes on, nets that are complete.

`advance` is asked whenever an instance has ended and decides what follows: another turn of a loop, the next sequential
instance, the flow going on while the rest runs, or the end of the activation. The order inside one step is fixed: the
instance's output, the data, the cancel set, then the task's own tokens. Guards read the merged data. A guard that
cannot be evaluated, or a choice without a true branch, is an incident on the activation, which keeps its place and can
be retried.
"""

from __future__ import annotations

import msgspec

from knhk_workflow.core import compensation
from knhk_workflow.core import events as e
from knhk_workflow.core.cancel import cancel_region, empty_net, remove_net, stop_instances
from knhk_workflow.core.case import (
    DONE_STATES,
    LIVE_STATES,
    OPEN_ITEM_STATES,
    RETRYING,
    STOPPED_STATES,
    TOKENS_MAX,
    Activation,
    Instance,
    NetInstance,
    place_of,
)
from knhk_workflow.core.data import DATA_BYTES_MAX, EMPTY, merge
from knhk_workflow.core.incidents import raise_incident
from knhk_workflow.core.starting import mapping, outrun, run_instance, start_without_work
from knhk_workflow.core.step import Step
from knhk_workflow.model.expression import EvaluationFailed, Expression
from knhk_workflow.model.net import Branch, TaskNode
from knhk_workflow.model.spec import END

TURNS_MAX = 1_000  # of a loop around a task that nobody carries out: its turns are one step, about 10 ms

CHOICE_INCIDENTS = frozenset({"guard_error", "no_branch"})

Produced = tuple[tuple[str, ...], tuple[str, ...]]
"""(conditions that get a token, conditions that get a false one)"""


def ended(step: Step, activation: Activation, node: TaskNode, run: Instance) -> None:
    """An instance has ended well: take its output over and go on."""
    if run.timer:
        step.disarm(run.timer)
    if run.state == "completed" and (node.many is None or node.many.collect is None):
        output = run.output or EMPTY
        if node.out is not None:
            inputs = run.data if node.calls is None else b""  # of a connector that is what was sent
            if not take_output(step, activation, node, output, run.number, inputs):
                return
        elif output != EMPTY and not _update(step, activation, output, run.number):
            return
    if node.single_run and not activation.incidents and run.state in DONE_STATES:
        leave(step, activation, node)  # as `advance` would find out: the only instance is done
    else:
        advance(step, activation, node)


def take_output(
    step: Step, activation: Activation, node: TaskNode, output: bytes, instance: int = 0, inputs: bytes = b""
) -> bool:
    """Merge an output into the net's data, through `out` when the task maps it. False: an incident stands for it."""
    patch = output
    if node.out is not None:
        net = step.case.nets[activation.net]
        result = msgspec.json.decode(merge(inputs or net.data, output))
        mapped = mapping(step, node.out, result, activation, instance, "out")
        if mapped is None:
            return False
        patch = mapped
    return patch == EMPTY or _update(step, activation, patch, instance)


def _update(step: Step, activation: Activation, patch: bytes, instance: int = 0) -> bool:
    number = activation.net
    net = step.case.nets[number]
    if len(net.data) + len(patch) > DATA_BYTES_MAX and len(merge(net.data, patch)) > DATA_BYTES_MAX:
        message = f"the output of task {activation.task!r} would make the data larger than {DATA_BYTES_MAX} bytes"
        raise_incident(step, "data_limit", number, message, activation, instance)
        return False
    step.emit(e.DataUpdated(number, patch))
    return True


def advance(step: Step, activation: Activation, node: TaskNode, over: bool = False) -> None:
    """What follows from the instances as they are now. `over`: a loop decided to run no further turn."""
    if node.carrier == "route":
        _routed(step, activation, node, over)
        return
    if node.carrier == "trigger":
        leave(step, activation, node)
        return
    runs_ = activation.instances.values()
    done = sum(1 for run in runs_ if run.state in DONE_STATES)
    live = any(run.state in LIVE_STATES for run in runs_)
    if node.while_ is not None or node.until is not None:
        if over or _last_turn(step, activation, node):
            leave(step, activation, node)
        return
    stopped = any(run.state in STOPPED_STATES for run in runs_)  # what did not run to its end is not waited for
    all_done = (done >= activation.count or stopped) and not live and not activation.incidents
    many = node.many
    if many is None:
        if all_done:
            leave(step, activation, node)
        return
    if activation.released:
        if all_done:
            _close(step, activation, node, True if many.sync and many.until is not None else None)
            return
    elif all_done:
        verdict = _met(step, activation, node, done) if many.until is not None else False
        if verdict is not None:
            leave(step, activation, node, met=verdict if many.until is not None else None)
        return
    elif any(step.case.incidents[number].kind in CHOICE_INCIDENTS for number in activation.incidents):
        pass  # the flow could not go on and a person is asked: once is enough
    else:
        met = _met(step, activation, node, done)
        if met is None:
            return
        if met:
            if many.sync and many.cancel_rest:
                stop_instances(step, activation, compensation.STOPPED)
                for incident in list(activation.incidents):
                    step.emit(e.IncidentResolved(incident, "cancelled"))
                undone = compensation.pending(step, activation)  # beside the flow, which does not wait for that
                leave(step, activation, node, release=undone, met=True if many.until is not None else None)
                return
            if not leave(step, activation, node, release=True):
                return
    if many.sequential and not live and len(runs_) < activation.count and activation.number in step.case.activations:
        run_instance(step, activation, node, len(runs_) + 1)


def _close(step: Step, activation: Activation, node: TaskNode, met: bool | None) -> None:
    """The last instance behind a flow that has gone on is done: the task can be entered again."""
    if step.case.timers:
        step.untimed(activation)
    step.emit(e.TaskCompleted(activation.net, node.id, activation.number, (), condition_met=met))
    step.nets.add(activation.net)
    step.again(activation.net, node.id)


def _routed(step: Step, activation: Activation, node: TaskNode, over: bool) -> None:
    """A task that nobody carries out: its mappings are its work, in a loop if it has one."""
    turns = 0
    while not over:
        for instance in range(1, activation.count + 1):
            inputs = compensation.given(step, activation) if activation.undoes is not None else b""
            if node.out is not None and not take_output(step, activation, node, EMPTY, instance, inputs):
                return
        again = another_turn(step, activation, node)
        if again is None:
            return
        turns += 1
        if again and turns == TURNS_MAX:
            message = f"the loop of task {node.id!r} does not end: {turns} turns were made"
            raise_incident(step, "loop_limit", activation.net, message, activation)
            return
        over = not again
    leave(step, activation, node)


def _met(step: Step, activation: Activation, node: TaskNode, done: int) -> bool | None:
    """Whether the flow may go on before all instances are done; None when that could not be evaluated."""
    many = node.many
    assert many is not None
    if not many.sync:
        return True
    if activation.threshold and done >= activation.threshold:
        return True
    if many.until is None or not done:
        return False
    counts = {
        "completed": done,
        "active": sum(1 for run in activation.instances.values() if run.state in LIVE_STATES),
        "total": activation.count,
    }
    return runs(step, activation, node, many.until, counts)


def _last_turn(step: Step, activation: Activation, node: TaskNode) -> bool:
    """After a turn of a structured loop (WCP-21): false when another one began or an incident stands for it."""
    last = max(activation.instances, default=0)
    if last and activation.instances[last].state not in DONE_STATES:
        return False
    again = another_turn(step, activation, node)
    if again:
        run_instance(step, activation, node, last + 1)
    return again is False


def another_turn(step: Step, activation: Activation, node: TaskNode) -> bool | None:
    """Whether a loop has another turn; None when that could not be evaluated."""
    if node.until is not None:
        until = runs(step, activation, node, node.until)
        if until is None or until:
            return None if until is None else False
    elif node.while_ is None:
        return False
    return True if node.while_ is None else runs(step, activation, node, node.while_)


def runs(step: Step, activation: Activation, node: TaskNode, condition: Expression, item: object = None) -> bool | None:
    """The value of a loop or completion condition; None when it failed and an incident stands for it."""
    try:
        return condition.holds(step.scope(activation.net), item)
    except EvaluationFailed as failure:
        message = f"a condition of task {node.id!r} could not be evaluated: {failure.message}"
        raise_incident(step, "condition_error", activation.net, message, activation)
        return None


def leave(
    step: Step,
    activation: Activation,
    node: TaskNode,
    *,
    release: bool = False,
    via: str | None = None,
    met: bool | None = None,
) -> bool:
    """The flow goes on. `release`: instances run on behind it. `via`: the flow to this target alone is taken.
    `met`: whether a completion condition held. False: nothing else follows, an incident stands for it or its net has
    ended."""
    number = activation.net
    if node.busy_end:
        return _leave_busily(step, activation, node, release, via, met)
    produced = node.forks
    if produced is None or via is not None:
        produced = _branch(node, via) if via is not None else _take_split(step, activation, node)
        if produced is None:
            return False
    if step.case.timers:
        step.untimed(activation)
    step.emit(e.TaskCompleted(number, node.id, activation.number, produced[0], produced[1], met))
    return _arrived(step, step.case.nets[number], produced)


def _leave_busily(
    step: Step, activation: Activation, node: TaskNode, release: bool, via: str | None, met: bool | None
) -> bool:
    """`leave` for a task whose end does more than put tokens."""
    number = activation.net
    if node.many is not None and node.many.collect is not None and not _collect(step, activation, node.many.collect):
        return False
    produced = _branch(node, via) if via is not None else _take_split(step, activation, node)
    if produced is None:
        return False
    net = step.case.nets[number]
    if node.region is not None and not activation.released:
        cancel_region(step, net, node.region, activation)
    for task in sorted(node.task.closes):
        for other in net.active.get(task, ()):
            if not step.case.activations[other].closed:
                step.emit(e.InstancesClosed(number, task, other))
    forced = [
        other
        for task in sorted(node.task.completes)
        for other in net.active.get(task, ())
        if other != activation.number
    ]
    if release:
        step.emit(e.TaskReleased(number, node.id, activation.number, *produced))
    else:
        if node.undo is not None and node.carrier in ("route", "trigger") and via is None:
            compensation.remember(step, activation, node.undo, 0, activation.signal)
        if step.case.timers:
            step.untimed(activation)
        step.emit(e.TaskCompleted(number, node.id, activation.number, *produced, met))
    if node.many is not None:
        step.again(number, node.id)  # whether it can be entered has changed
    for join, inputs in sorted(node.expects.items()):
        expected = tuple(sorted({place for branch in produced[0] for place in inputs.get(branch, ())}))
        if expected:
            step.emit(e.BranchesExpected(number, join, expected))
            step.again(number, join)
    if not _arrived(step, net, produced):
        return False
    for other in forced:
        found = step.case.activations.get(other)
        if found is not None:
            force(step, found)
    return True


def _arrived(step: Step, net: NetInstance, produced: Produced) -> bool:
    """Tokens were put: who is concerned is looked at. False: nothing else follows, because that was the end of the net
    or there are too many."""
    step.touch(net.number, produced[0] + produced[1] if produced[1] else produced[0])
    if net.tokens > TOKENS_MAX:
        step.rest()
        if not net.incident:
            message = f"the net holds more than {TOKENS_MAX} tokens: a loop produces faster than it consumes"
            raise_incident(step, "token_limit", net.number, message)
        return False
    if END in produced[0] and step.compiled(net.number).termination == "explicit":
        complete_net(step, net)
        return False
    return True


def force(step: Step, activation: Activation) -> None:
    """End an activation now as if it were done: what runs counts as completed, the flow goes on (WCP-27)."""
    if outrun(step, activation):
        return
    node = step.node(activation)
    undone = compensation.pending(step, activation)
    if undone and (node.many is None or compensation.pending(step, activation, compensation.OVER)):
        return  # it was stopped before
    start_without_work(step, activation)
    for _, run in sorted(activation.instances.items()):
        if run.child and step.case.nets[run.child].outcome:  # it is undone to the end, and nothing follows from that
            compensation.roll_back(step, step.case.nets[run.child], compensation.STOPPED, "")
            if run.timer:
                step.disarm(run.timer)
        elif run.child:
            if step.model.compensates:
                compensation.forget(step, step.case.nets[run.child])
            remove_net(step, step.case.nets[run.child])
            if run.timer:
                step.disarm(run.timer)
            step.emit(e.ItemForceCompleted(*place_of(activation, run)))
        elif run.state == RETRYING:
            step.disarm(run.timer)
            step.emit(e.ItemForceCompleted(*place_of(activation, run)))
        elif run.state in OPEN_ITEM_STATES:
            begun = run.state in ("started", "suspended")
            step.emit((e.ItemForceCompleted if begun else e.ItemWithdrawn)(*place_of(activation, run)))
            step.changed(activation, run)
    for incident in list(activation.incidents):
        step.emit(e.IncidentResolved(incident, "complete"))
    if not activation.released:
        leave(step, activation, node, release=undone)
    elif not undone:
        _close(step, activation, node, None)


def _collect(step: Step, activation: Activation, key: str) -> bool:
    """The outputs of the instances that are done, as a list in the case's data."""
    outputs = [
        msgspec.Raw(run.output if run.output and run.state == "completed" else b"null")
        for _, run in sorted(activation.instances.items())
        if run.state in DONE_STATES
    ]
    return _update(step, activation, msgspec.json.encode({key: outputs}))


def _branch(node: TaskNode, target: str) -> Produced:
    """One token for the flow to `target`, nothing for the others."""
    condition = next(branch.condition for branch in node.branches if target in (branch.target, branch.condition))
    return _with_dead(node, (condition,))


def _with_dead(node: TaskNode, produced: tuple[str, ...]) -> Produced:
    dead = tuple(condition for condition in node.outputs if condition in node.carries and condition not in produced)
    return produced, dead


def _take_split(step: Step, activation: Activation, node: TaskNode) -> Produced | None:
    """The conditions that get a token; None when the choice failed and an incident stands for it."""
    kind = node.split.kind
    if kind == "and":
        return node.outputs, ()
    if kind == "threads":
        return tuple(condition for condition in node.outputs for _ in range(node.split.count)), ()
    chosen: list[str] = []
    default: Branch | None = None
    scope = step.scope(activation.net)
    try:
        for branch in node.branches:
            if branch.when is None:
                default = branch
            elif branch.when.holds(scope):
                chosen.append(branch.condition)
                if kind == "xor":
                    break
    except EvaluationFailed as failure:
        message = f"a guard of task {node.id!r} could not be evaluated: {failure.message}"
        raise_incident(step, "guard_error", activation.net, message, activation)
        return None
    if not chosen and default is not None:
        chosen.append(default.condition)
    if chosen or not node.branches:
        return _with_dead(node, tuple(chosen))
    guards = ", ".join(f"{branch.when.text!r}" for branch in node.branches if branch.when)
    raise_incident(
        step,
        "no_branch",
        activation.net,
        f"no outgoing flow of task {node.id!r} can be taken: {guards} are all false and there is no default flow",
        activation,
    )
    return None


def complete_net(step: Step, net: NetInstance) -> None:
    """A net ended properly. What is left in it (explicit termination, WCP-43) goes; then its task goes on.

    That may end the net around it, and so on: one after the other, for nets nest deeper than calls may."""
    step.closing.append(net)
    if len(step.closing) > 1:
        return
    while step.closing:
        _complete(step, step.closing[0])
        del step.closing[0]


def _complete(step: Step, net: NetInstance) -> None:
    case = step.case
    if not net.outcome:
        empty_net(step, net)
        if net.active:  # a sub-net in it was stopped and has to be undone first
            compensation.roll_back(step, net, compensation.COMPLETED, "")
            return
    step.emit(e.NetCompleted(net.number, net.name))
    if net.number == 1:
        step.emit(e.StateChanged(case.state, "completed"))
        step.rest()
        return
    activation = case.activations[net.activation]
    node = step.compiled(activation.net).tasks[activation.task]
    if node.undo is not None:
        compensation.remember(step, activation, node.undo, net.instance, net.data)
    ended(step, activation, node, activation.instances[net.instance])
