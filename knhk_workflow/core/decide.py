"""What each command does to a case, as one table.

A decision checks first and raises a typed error while nothing has changed; then it emits, then it settles. `step`
returns the events of one command; the same case, model, command and time always give the same events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from knhk_workflow.core import calls, compensation, due, locks, plain_work, timers
from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.apply import born
from knhk_workflow.core.cancel import end_case, withdraw
from knhk_workflow.core.case import (
    DONE_STATES,
    LIVE_STATES,
    OPEN_ITEM_STATES,
    RETRYING,
    TOKENS_MAX,
    Activation,
    Case,
    Instance,
    NetInstance,
    item_ref,
    place_of,
)
from knhk_workflow.core.completion import CHOICE_INCIDENTS, advance, another_turn, ended, force, leave
from knhk_workflow.core.data import DATA_BYTES_MAX, EMPTY, merge
from knhk_workflow.core.enabling import INSTANCES_MAX, begin
from knhk_workflow.core.incidents import undoing
from knhk_workflow.core.joins import amount, binding, consumed
from knhk_workflow.core.settle import settle, settle_after
from knhk_workflow.core.starting import outrun, run_instance, start_item, start_without_work
from knhk_workflow.core.step import Step
from knhk_workflow.core.step import begin as begin_step
from knhk_workflow.core.triggers import deliver, receive
from knhk_workflow.errors import LimitExceeded, NotFound, Stale, WorkflowError, WrongState
from knhk_workflow.model.net import SINGLE, Model, TaskNode

UNBEGUN = ("offered", "allocated")
UNDONE = ("started", *UNBEGUN)


def create(model: Model, command: c.CreateCase, now: int) -> Step:
    """The first step of a case: its creation, and its start when asked for."""
    first = e.CaseCreated(
        command.tenant,
        command.case_id,
        command.spec_id,
        command.version,
        command.digest,
        command.salt,
        command.data,
        command.business_key,
    )
    if len(command.data) > DATA_BYTES_MAX:
        raise LimitExceeded("case data bytes", DATA_BYTES_MAX, len(command.data))
    step = begin_step(born(first, now), model, now)
    step.events.append(first)
    if command.start:
        _start(step)
        settle(step)
    return step


def decide(case: Case, model: Model, command: c.Command, now: int) -> Step:
    """Carry out `command` on a live case. Raises a WorkflowError with the case unchanged."""
    step = begin_step(case, model, now)
    DECIDE[type(command)](step, command)
    return step


def _start(step: Step) -> None:
    step.emit(e.StateChanged(step.case.state, "running"))
    root = step.case.root
    step.emit(e.NetStarted(1, root.name))
    step.touch(1, ("start",))
    for source in step.compiled(1).sources:
        step.again(1, source.id)


def _start_case(step: Step, command: c.StartCase) -> None:
    state = step.case.state
    if state == "created":
        _start(step)
    elif not (command.again and state == "running"):
        expected = "created or running" if command.again else "created"
        raise WrongState("case", step.case.case_id, expected, state)
    settle(step)


def _suspend(step: Step, command: c.SuspendCase) -> None:
    _need(step, "running")
    step.emit(e.StateChanged("running", "suspended", step.told(command.reason)))


def _resume(step: Step, command: c.ResumeCase) -> None:
    _need(step, "suspended")
    held = [
        (number, instance)
        for number, activation in sorted(step.case.activations.items())
        for instance, run in sorted(activation.instances.items())
        if run.held and step.node(activation).many is not None
    ]
    step.emit(e.StateChanged("suspended", "running", step.told(command.reason)))
    for number, instance in held:
        found = step.case.activations.get(number)
        if found is not None:
            ended(step, found, step.node(found), found.instances[instance])
    _look_again(step)
    settle(step)


def _cancel(step: Step, command: c.CancelCase) -> None:
    if step.case.state == "cancelled":
        return
    _need(step, "created", "running", "suspended")
    end_case(step, "cancelled", command.reason)
    settle(step)


def _update(step: Step, command: c.UpdateCaseData) -> None:
    case = step.case
    _need(step, "created", "running", "suspended")
    if command.expected_sequence and command.expected_sequence != case.sequence:
        raise Stale(
            "case",
            case.case_id,
            f"at sequence {command.expected_sequence}",
            f"at sequence {case.sequence}",
            "read it again and repeat the change",
        )
    net = _net(step, command.net) if command.net else case.root
    size = len(command.patch if command.replace else merge(net.data, command.patch))
    if size > DATA_BYTES_MAX:
        raise LimitExceeded("case data bytes", DATA_BYTES_MAX, size)
    if command.replace or command.patch != EMPTY:
        step.emit(e.DataUpdated(net.number, command.patch, command.replace))


def _net(step: Step, name: str) -> NetInstance:
    """The live net instance with this name or number. Raises NotFound, WrongState when several have the name."""
    case = step.case
    found = [net for _, net in sorted(case.nets.items()) if net.name == name and net.number != 1]
    found = found or [net for net in case.nets.values() if str(net.number) == name]
    if not found and name not in step.model.nets:
        raise NotFound("net", name)
    if len(found) != 1:
        live = f"{len(found)} of them: " + ", ".join(str(net.number) for net in found) if found else "none"
        hint = "name one by its number" if found else "its data begins with net_started"
        raise WrongState("net", f"{name}@{case.case_id}", "one live instance", live, hint)
    return found[0]


def _claim(step: Step, command: c.ClaimItem) -> None:
    _, _, activation, run = _item(step, command.item, "claim", ("offered",))
    step.emit(e.ItemAllocated(*place_of(activation, run), command.owner))
    step.changed(activation, run)


def _release(step: Step, command: c.ReleaseItem) -> None:
    _, _, activation, run = _item(step, command.item, "release", ("allocated",))
    _own(step, activation, run, command.owner)
    step.emit(e.ItemReleased(*place_of(activation, run)))
    step.changed(activation, run)


def _start_item(step: Step, command: c.StartItem) -> None:
    _need(step, "running")
    net, node, activation, run = _item(step, command.item, "start", UNBEGUN)
    _own(step, activation, run, command.owner)
    step.items[activation.number, run.number] = net.name, node, activation, run
    start_item(step, net, node, activation, run, command.owner)
    settle(step)


def _lease_item(step: Step, command: c.LeaseItem) -> None:
    _need(step, "running")
    net, node, activation, run = _item(step, command.item, "start", ("offered",))
    step.items[activation.number, run.number] = net.name, node, activation, run
    start_item(step, net, node, activation, run, command.owner, command.worker, command.period)
    settle(step)


def _return_item(step: Step, command: c.ReturnItem) -> None:
    """Tokens and locks stay with the work: whoever takes it next goes on with the same instance."""
    _need(step, "running", "suspended")
    net, node, activation, run = _item(step, command.item, "return", ("started",))
    if not run.lease:
        raise WrongState("work item", command.item.name(step.case.case_id), "leased", "started without a lease")
    step.items[activation.number, run.number] = net.name, node, activation, run
    if run.timer:
        step.disarm(run.timer)
    step.emit(e.ItemReturned(*place_of(activation, run), command.reason))
    timers.begun(step, node, activation, run.number)


Found = tuple[NetInstance, TaskNode, Activation, Instance]
"""A work item in its place."""


def _begin(step: Step, ref: c.ItemRef, verb: str, owner: str) -> Found:
    """The item of a result. One that was not started yet is started, so that a single call can do the work.

    It is noted as changed; that its end disarms its timer is left to the caller.
    """
    found = _item(step, ref, verb, UNDONE)
    _start_unbegun(step, found, owner)
    return found


def _start_unbegun(step: Step, found: Found, owner: str) -> None:
    net, node, activation, run = found
    if owner:
        _own(step, activation, run, owner)
    step.items[activation.number, run.number] = net.name, node, activation, run
    if run.state != "started":
        if step.case.state != "running":
            _need(step, "running")
        start_item(step, net, node, activation, run, owner)


def _complete_item(step: Step, command: c.CompleteItem) -> None:
    case, output = step.case, command.output
    if len(output) > DATA_BYTES_MAX:
        raise LimitExceeded("work item output bytes", DATA_BYTES_MAX, len(output))
    if case.state != "running":
        _need(step, "running", "suspended")
    found = net, node, activation, run = _item(step, command.item, "complete", UNDONE)
    if (
        node.plain_work
        and case.state == "running"
        and not activation.incidents
        and len(net.data) + len(output) <= DATA_BYTES_MAX
        and net.tokens + len(node.outputs) <= TOKENS_MAX
    ):
        if command.owner:
            _own(step, activation, run, command.owner)
        plain_work.complete(step, net, node, activation, run, command.owner, output)
        settle_after(step, net, node)
        return
    _start_unbegun(step, found, command.owner)
    step.emit(e.ItemCompleted(*place_of(activation, run), output))
    if run.timer:
        step.disarm(run.timer)
    if node.undo is not None:
        compensation.remember(step, activation, node.undo, run.number, run.output)
    if step.case.state == "running":
        ended(step, activation, node, run)
        settle(step)


def _skip_item(step: Step, command: c.SkipItem) -> None:
    _need(step, "running", "suspended")
    _, node, activation, run = _begin(step, command.item, "skip", command.owner)
    step.emit(e.ItemSkipped(*place_of(activation, run), step.told(command.reason)))
    if run.timer:
        step.disarm(run.timer)
    if step.case.state == "running":
        ended(step, activation, node, run)
        settle(step)


def _fail_item(step: Step, command: c.FailItem) -> None:
    if len(command.data) > DATA_BYTES_MAX:
        raise LimitExceeded("work item failure bytes", DATA_BYTES_MAX, len(command.data))
    _need(step, "running", "suspended")
    _, node, activation, run = _begin(step, command.item, "fail", command.owner)
    message = step.told(command.message)
    step.emit(e.ItemFailed(*place_of(activation, run), command.code, message, step.reported(command.data)))
    if run.timer:
        step.disarm(run.timer)
    due.failed(
        step,
        node,
        activation,
        run,
        command.code,
        message,
        permanent=command.permanent or run.calling,  # a call that was begun must not be made twice
        pause=command.retry_after,
    )
    settle(step)


def _resolve(step: Step, command: c.ResolveIncident) -> None:
    case = step.case
    incident = case.incidents.get(command.incident)
    if incident is None:
        raise NotFound("incident", f"{command.incident}@{case.case_id}", "it may be resolved already")
    _need(step, "running", "suspended")
    if command.action == "fail_case":
        found = case.activations.get(incident.activation)
        at_once = compensation.ending(case.root) or (found is not None and undoing(step, found))
        step.emit(e.IncidentResolved(incident.number, command.action, step.told(command.reason)))
        end_case(step, "failed", incident.message, at_once=at_once)
        settle(step)
        return
    _need(step, "running")
    activation = case.activations.get(incident.activation)
    if activation is None:
        if command.action != "retry":
            raise WrongState(
                "incident",
                f"{incident.number}@{case.case_id}",
                "about a task",
                f"about a net ({incident.kind})",
                "only retry or fail_case can resolve it",
            )
        step.emit(e.IncidentResolved(incident.number, command.action, step.told(command.reason)))
        _look_again(step)
        settle(step)
        return
    if command.action == "skip" and incident.kind in CHOICE_INCIDENTS:
        raise WrongState(
            "incident",
            f"{incident.number}@{case.case_id}",
            "retried, or completed with data that makes a guard true",
            "a failed choice, which cannot be skipped",
            "correct the case data and retry",
        )
    if outrun(step, activation):
        name = f"{incident.number}@{case.case_id}"
        raise WrongState("incident", name, "about a task that can go on", "about one whose tokens others have taken")
    beginning = command.action != "retry" or step.node(activation).calls is not None
    if beginning and not locks.begun(activation, step.node(activation)):
        _unlocked(step, activation, "incident", f"{incident.number}@{case.case_id}")
    step.emit(e.IncidentResolved(incident.number, command.action, step.told(command.reason)))
    _resume_activation(step, activation, incident.kind, incident.instance, command)
    settle(step)


def _resume_activation(
    step: Step, activation: Activation, kind: str, instance: int, command: c.ResolveIncident
) -> None:
    """Take an activation up where its incident left it."""
    node = step.node(activation)
    net = step.case.nets[activation.net]
    run = activation.instances.get(instance)
    if command.action == "retry":
        if kind == "instances_error":
            withdraw(step, activation, "withdrawn")  # the next look at its tokens decides anew
            step.touch(net.number, activation.inputs)
        elif kind in ("output_error", "data_limit") and run is not None:
            ended(step, activation, node, run)
        elif kind in ("output_error", "data_limit") and node.carrier == "trigger":
            deliver(step, node, activation)
        elif kind in ("input_error", "depth_limit", "open_items_limit", "task_failed", "connector_failed"):
            attempt = run.attempt + 1 if run is not None else 1
            run_instance(step, activation, node, instance, attempt, afresh=True)
        elif node.carrier == "route" and kind in ("condition_error", "loop_limit"):
            again = another_turn(step, activation, node)
            if again is not None:
                advance(step, activation, node, over=not again)
        elif kind == "timer_error":
            if timers.enabled(step, node, activation):
                begin(step, net, node, activation)
        elif kind == due.TIMED_OUT:
            timers.again(step, node, activation)
            step.again(net.number, node.id)  # a signal may be kept by now
        elif kind == "condition_error" and not activation.instances:
            begin(step, net, node, activation)
        else:
            advance(step, activation, node)
        return
    start_without_work(step, activation)
    if activation.left:
        locks.take(step, net, node, activation)
    if kind in CHOICE_INCIDENTS or node.carrier in ("route", "trigger"):
        if command.data:
            step.emit(e.DataUpdated(net.number, command.data))
        live = any(each.state in LIVE_STATES for each in activation.instances.values())
        leave(step, activation, node, release=live)
        return
    place = (net.number, node.id, activation.number, instance or 1, run.attempt if run is not None else 1)
    if command.action == "skip":
        step.emit(e.ItemSkipped(*place))
    else:
        step.emit(e.ItemCompleted(*place, command.data or EMPTY))
        if node.undo is not None:
            compensation.remember(step, activation, node.undo, instance or 1, command.data)
    ended(step, activation, node, activation.instances[instance or 1])


def _continue(step: Step, command: c.Continue) -> None:
    settle(step)


def _look_again(step: Step) -> None:
    """Queue everything that could go on, or has to go: every marked place, every activation whose work is done, every
    kept signal, every offer, since what was done to a rival while the case was suspended may have taken its tokens."""
    case = step.case
    for number, activation in sorted(case.activations.items()):
        runs = [run for _, run in sorted(activation.instances.items())]
        done = runs and all(run.state in DONE_STATES for run in runs)
        if number not in case.activations or step.node(activation).many is not None:
            continue
        if activation.started and done and not activation.incidents:
            ended(step, activation, step.node(activation), runs[-1])
    for _, net in sorted(case.nets.items()):
        step.touch(net.number, sorted(net.marking))
        for node in step.compiled(net.number).tasks.values():
            if node.awaits or any(not case.activations[each].started for each in net.active.get(node.id, ())):
                step.again(net.number, node.id)


def _signal(step: Step, command: c.Signal) -> None:
    _need(step, "created", "running", "suspended")
    receive(step, command)
    settle(step)


def _cancel_task(step: Step, command: c.CancelTask) -> None:
    _need(step, "running", "suspended")
    activation = _one(step, command.task, command.activation)
    withdraw(step, activation, "cancelled" if activation.started else "withdrawn", command.reason)
    if not activation.started:
        _take_away(step, activation)
    settle(step)


def _take_away(step: Step, activation: Activation) -> None:
    """Cancelling an offered task takes its tokens too: the thread ends there (WCP-19)."""
    net = step.case.nets[activation.net]
    node = step.node(activation)
    inputs = binding(step, node, net, activation.inputs)
    if inputs:  # otherwise a paused cascade took them already
        step.emit(e.TokensRemoved(net.number, activation.task, inputs))
        if node.join.kind in SINGLE or node.tallies:
            consumed(step, node, net, inputs)
        step.touch(net.number, inputs)


def _add_instance(step: Step, command: c.AddInstance) -> None:
    _need(step, "running")
    activation = _one(step, command.task, command.activation)
    node = step.node(activation)
    many = node.many
    name = f"{command.task}@{step.case.case_id}"
    if many is None or not many.dynamic:
        raise WrongState("task", name, "a task with dynamic instances", "not one")
    if compensation.pending(step, activation, compensation.OVER):
        raise WrongState("task", name, "collecting instances", "stopped, and what it did is being undone")
    if activation.closed:
        raise WrongState("task", name, "open to new instances", "closed to them")
    if activation.released and many.sync:
        raise WrongState("task", name, "collecting instances", "complete, its flow has gone on")
    if sum(1 for run in activation.instances.values() if run.state in DONE_STATES) >= activation.count:
        raise WrongState("task", name, "at work on some instance", "done with all of them")
    most = amount(step, many.most, step.case.nets[activation.net]) if many.most is not None else INSTANCES_MAX
    if many.most is not None and activation.count >= most:
        raise WrongState("task", name, f"below its maximum of {most} instances", f"at {activation.count}")
    if activation.count >= INSTANCES_MAX:
        raise LimitExceeded(f"instances of task {command.task}", INSTANCES_MAX, activation.count + 1)
    number = activation.count + 1
    step.emit(e.InstanceAdded(activation.net, activation.task, activation.number, number, command.element))
    if not many.sequential:
        run_instance(step, activation, node, number)
    settle(step)


def _close_instances(step: Step, command: c.CloseInstances) -> None:
    _need(step, "running", "suspended")
    activation = _one(step, command.task, command.activation)
    if not activation.closed:
        step.emit(e.InstancesClosed(activation.net, activation.task, activation.number))


def _complete_instances(step: Step, command: c.CompleteInstances) -> None:
    _need(step, "running")
    force(step, _one(step, command.task, command.activation))
    settle(step)


def _cancel_instances(step: Step, command: c.CancelInstances) -> None:
    _need(step, "running", "suspended")
    activation = _one(step, command.task, command.activation)
    offered = not activation.started
    withdraw(step, activation, "cancelled")
    if offered:
        _take_away(step, activation)
    settle(step)


def _one(step: Step, task: str, number: int) -> Activation:
    """The live activation that is meant; with several the caller must say which. Raises NotFound, WrongState."""
    if not any(task in net.tasks for net in step.model.nets.values()):
        raise NotFound("task", task)
    found = [each for _, each in sorted(step.case.activations.items()) if each.task == task]
    if number:
        found = [each for each in found if each.number == number]
    if not found:
        what = f"{task}@{step.case.case_id}" + (f" (activation {number})" if number else "")
        raise WrongState("task", what, "enabled or running", "neither")
    if len(found) > 1:
        which = ", ".join(str(each.number) for each in found)
        raise WrongState(
            "task", f"{task}@{step.case.case_id}", "one activation", f"{len(found)} of them: {which}", "name one"
        )
    step.about = found[0]
    return found[0]


def _need(step: Step, *states: str) -> None:
    if step.case.state not in states:
        raise WrongState("case", step.case.case_id, " or ".join(states), step.case.state)


def _item(step: Step, ref: c.ItemRef, verb: str, states: tuple[str, ...]) -> Found:
    """The item, if it is in one of `states` and can be acted on; otherwise an error that tells what it is instead."""
    case = step.case
    activation = case.activations.get(ref.activation)
    run = activation.instances.get(ref.instance) if activation is not None else None
    if activation is None or run is None or run.attempt != ref.attempt or run.state not in states:
        raise _unfit(case, ref, run, states)
    net = case.nets[activation.net]
    node = step.model.nets[net.name].tasks[activation.task]
    # An offer is only good while its tokens are there and its locks are free.
    if not activation.started and binding(step, node, net, activation.inputs) is None:
        # A paused cascade has taken the token already and will withdraw the offer when it goes on.
        raise WrongState("work item", ref.name(case.case_id), " or ".join(states), "finished or withdrawn")
    if node.guarded and verb in ("start", "complete", "fail", "skip") and not locks.begun(activation, node):
        _unlocked(step, activation, "work item", ref.name(case.case_id))
    return net, node, activation, run


def _unfit(case: Case, ref: c.ItemRef, run: Instance | None, states: tuple[str, ...]) -> WorkflowError:
    """Why an item cannot be acted on: it is unknown, gone, another attempt, or in another state."""
    name = ref.name(case.case_id)
    if run is None:
        if 0 < ref.activation <= case.last_activation:
            return WrongState("work item", name, " or ".join(states), "finished or withdrawn")
        return NotFound("work item", name)
    if run.attempt != ref.attempt:
        return Stale("work item", name, f"attempt {run.attempt}", f"attempt {ref.attempt}", "list the work again")
    shown = run.state if run.state in OPEN_ITEM_STATES else f"{run.state} already"
    if run.state == RETRYING:
        shown = "failed, and waits to be tried again"
    return WrongState("work item", name, " or ".join(states), shown)


def _unlocked(step: Step, activation: Activation, kind: str, name: str) -> None:
    """Refuse work whose lock somebody else holds."""
    node = step.node(activation)
    lock = locks.blocked_by(step.case, step.case.nets[activation.net], node, activation.inputs, activation.left)
    if lock is not None:
        at = " and ".join(locks.holders(step.case, step.model, lock)) or "a cascade that is still going on"
        raise WrongState(kind, name, "free to start", f"waiting for {lock}, held at {at}", "it can when that has ended")


def _own(step: Step, activation: Activation, run: Instance, owner: str) -> None:
    if owner and run.owner and run.owner != owner:
        ref = item_ref(activation, run)
        name = ref.name(step.case.case_id)
        raise WrongState("work item", name, f"allocated to {owner!r}", f"allocated to {run.owner!r}")


DECIDE: Mapping[type[c.Command], Callable[..., None]] = {  # each takes (step, its own command type)
    c.StartCase: _start_case,
    c.SuspendCase: _suspend,
    c.ResumeCase: _resume,
    c.CancelCase: _cancel,
    c.UpdateCaseData: _update,
    c.ClaimItem: _claim,
    c.ReleaseItem: _release,
    c.StartItem: _start_item,
    c.CompleteItem: _complete_item,
    c.FailItem: _fail_item,
    c.SkipItem: _skip_item,
    c.ResolveIncident: _resolve,
    c.Continue: _continue,
    c.Signal: _signal,
    c.CancelTask: _cancel_task,
    c.AddInstance: _add_instance,
    c.CloseInstances: _close_instances,
    c.CompleteInstances: _complete_instances,
    c.CancelInstances: _cancel_instances,
    c.FireTimer: due.fire_timer,
    c.LeaseItem: _lease_item,
    c.ReturnItem: _return_item,
    c.BeginCall: calls.begin_call,
    c.CompleteCall: calls.complete_call,
    c.FailCall: calls.fail_call,
}
