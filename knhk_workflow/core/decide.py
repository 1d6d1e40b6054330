"""What each command does to a case, as one table.

A decision checks first and raises a typed error while nothing has changed; then it emits, then it settles. `step`
returns the events of one command; the same case, model, command and time always give the same events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.apply import born
from knhk_workflow.core.case import OPEN_ITEM_STATES, Activation, Case, Instance, item_ref, place_of
from knhk_workflow.core.data import EMPTY, merge
from knhk_workflow.core.settle import (
    DATA_BYTES_MAX,
    end_case,
    finish,
    offer_item,
    output_of,
    raise_incident,
    settle,
    start_item,
    start_net,
)
from knhk_workflow.core.step import Step
from knhk_workflow.errors import LimitExceeded, NotFound, Stale, WrongState
from knhk_workflow.model.net import Model

CHOICE_INCIDENTS = frozenset({"guard_error", "no_branch"})


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
    step = Step(born(first, now), model, now)
    step.events.append(first)
    if command.start:
        _start(step)
        settle(step)
    return step


def decide(case: Case, model: Model, command: c.Command, now: int) -> Step:
    """Carry out `command` on a live case. Raises a WorkflowError with the case unchanged."""
    step = Step(case, model, now)
    DECIDE[type(command)](step, command)
    return step


def _start(step: Step) -> None:
    step.emit(e.StateChanged(step.case.state, "running"))
    root = step.case.root
    step.emit(e.NetStarted(1, root.name))
    step.touch(1, ("start",))


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
    step.emit(e.StateChanged("running", "suspended", command.reason))


def _resume(step: Step, command: c.ResumeCase) -> None:
    _need(step, "suspended")
    step.emit(e.StateChanged("suspended", "running"))
    _look_again(step)
    settle(step)


def _cancel(step: Step, command: c.CancelCase) -> None:
    if step.case.state == "cancelled":
        return
    _need(step, "created", "running", "suspended")
    end_case(step, "cancelled", command.reason)


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
    size = len(merge(case.root.data, command.patch))
    if size > DATA_BYTES_MAX:
        raise LimitExceeded("case data bytes", DATA_BYTES_MAX, size)
    if command.patch != EMPTY:
        step.emit(e.DataUpdated(1, command.patch))


def _claim(step: Step, command: c.ClaimItem) -> None:
    activation, run = _item(step, command.item, "claim", "offered")
    step.emit(e.ItemAllocated(*place_of(activation, run), command.owner))
    step.changed(activation, run)


def _release(step: Step, command: c.ReleaseItem) -> None:
    activation, run = _item(step, command.item, "release", "allocated")
    step.emit(e.ItemReleased(*place_of(activation, run)))
    step.changed(activation, run)


def _start_item(step: Step, command: c.StartItem) -> None:
    _need(step, "running")
    activation, run = _item(step, command.item, "start", "offered", "allocated")
    _own(step, activation, run, command.owner)
    start_item(step, activation, run, command.owner)
    settle(step)


def _begin(step: Step, ref: c.ItemRef, verb: str, owner: str) -> tuple[Activation, Instance]:
    """The item of a result. One that was not started yet is started, so that a single call can do the work."""
    activation, run = _item(step, ref, verb, "started", "offered", "allocated")
    _own(step, activation, run, owner)
    if run.state != "started":
        _need(step, "running")
        start_item(step, activation, run, owner)
    return activation, run


def _complete_item(step: Step, command: c.CompleteItem) -> None:
    if len(command.output) > DATA_BYTES_MAX:
        raise LimitExceeded("work item output bytes", DATA_BYTES_MAX, len(command.output))
    _need(step, "running", "suspended")
    activation, run = _begin(step, command.item, "complete", command.owner)
    step.emit(e.ItemCompleted(*place_of(activation, run), command.output))
    _item_done(step, activation, run)


def _skip_item(step: Step, command: c.SkipItem) -> None:
    _need(step, "running", "suspended")
    activation, run = _begin(step, command.item, "skip", "")
    step.emit(e.ItemSkipped(*place_of(activation, run)))
    _item_done(step, activation, run)


def _item_done(step: Step, activation: Activation, run: Instance) -> None:
    step.changed(activation, run)
    if step.case.state == "running":
        finish(step, activation, step.node(activation), output_of(run))
        settle(step)


def _fail_item(step: Step, command: c.FailItem) -> None:
    _need(step, "running", "suspended")
    activation, run = _begin(step, command.item, "fail", command.owner)
    step.emit(e.ItemFailed(*place_of(activation, run), command.code, command.message))
    step.changed(activation, run)
    what = f"{command.code}: {command.message}" if command.message else command.code
    message = f"task {activation.task!r} failed: {what}"
    raise_incident(step, "task_failed", activation.net, message, activation, run.number)
    settle(step)


def _resolve(step: Step, command: c.ResolveIncident) -> None:
    case = step.case
    incident = case.incidents.get(command.incident)
    if incident is None:
        raise NotFound("incident", f"{command.incident}@{case.case_id}", "it may be resolved already")
    _need(step, "running", "suspended")
    if command.action == "fail_case":
        step.emit(e.IncidentResolved(incident.number, command.action))
        end_case(step, "failed", incident.message)
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
        step.emit(e.IncidentResolved(incident.number, command.action))
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
    step.emit(e.IncidentResolved(incident.number, command.action))
    _resume_activation(step, activation, incident.kind, incident.instance, command)
    settle(step)


def _resume_activation(
    step: Step, activation: Activation, kind: str, instance: int, command: c.ResolveIncident
) -> None:
    """Take an activation up where its incident left it."""
    node = step.node(activation)
    run = activation.instances.get(instance) or next(iter(activation.instances.values()), None)
    if command.action != "retry":
        if not activation.started:
            step.emit(e.TaskStarted(activation.net, activation.task, activation.number, activation.inputs))
            step.touch(activation.net, activation.inputs)
        output = (command.data or EMPTY) if command.action == "complete" else b""
        finish(step, activation, node, output)
    elif kind in CHOICE_INCIDENTS:
        finish(step, activation, node)
    elif kind in ("output_error", "data_limit"):
        finish(step, activation, node, output_of(run) if run else EMPTY)
    elif node.carrier == "net":
        start_net(step, step.case.nets[activation.net], node, activation, instance)
    else:
        offer_item(step, node, activation, instance, run.attempt + 1 if run else 1)


def _continue(step: Step, command: c.Continue) -> None:
    settle(step)


def _look_again(step: Step) -> None:
    """Queue everything that could go on: every marked place, every activation whose work is done."""
    case = step.case
    for activation in list(case.activations.values()):
        runs = activation.instances.values()
        done = runs and all(run.state in ("completed", "skipped") for run in runs)
        if activation.number in case.activations and activation.started and done and not activation.incident:
            finish(step, activation, step.node(activation), output_of(next(iter(runs))))
    for net in list(case.nets.values()):
        step.touch(net.number, sorted(net.marking))


def _need(step: Step, *states: str) -> None:
    if step.case.state not in states:
        raise WrongState("case", step.case.case_id, " or ".join(states), step.case.state)


def _item(step: Step, ref: c.ItemRef, verb: str, *states: str) -> tuple[Activation, Instance]:
    """The item, if it is in one of `states`; otherwise an error that tells what it is instead."""
    case = step.case
    name = f"{ref.activation}.{ref.instance}.{ref.attempt}@{case.case_id}"
    activation = case.activations.get(ref.activation)
    if activation is None or ref.instance not in activation.instances:
        if 0 < ref.activation <= case.last_activation:
            raise WrongState("work item", name, " or ".join(states), "finished or withdrawn")
        raise NotFound("work item", name)
    run = activation.instances[ref.instance]
    if run.attempt != ref.attempt:
        raise Stale("work item", name, f"attempt {run.attempt}", f"attempt {ref.attempt}", "list the work again")
    if run.state not in states:
        shown = run.state if run.state in OPEN_ITEM_STATES else f"{run.state} already"
        raise WrongState("work item", name, " or ".join(states), shown)
    marking = case.nets[activation.net].marking
    if not activation.started and not all(condition in marking for condition in activation.inputs):
        # A paused cascade has taken the token already and will withdraw the offer when it goes on.
        raise WrongState("work item", name, " or ".join(states), "finished or withdrawn")
    return activation, run


def _own(step: Step, activation: Activation, run: Instance, owner: str) -> None:
    if owner and run.owner and run.owner != owner:
        ref = item_ref(activation, run)
        name = f"{ref.activation}.{ref.instance}.{ref.attempt}@{step.case.case_id}"
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
}
