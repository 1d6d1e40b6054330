"""What happens when a timer is due.

A timer task has got what it waited for: it goes on as a task whose signal came does, and where rivals wait for the same
token they are withdrawn in the same step (WCP-16). A retry offers the work again. A time-out stops one attempt at the
work, a deadline everything that the task still does; the flow to `on_timeout` is taken alone. Without one it counts as
a failure with the code `timeout` or `deadline`: a time-out is tried again while attempts are left (but not a call that
must not be made twice), then `on_error` decides (its own, or that of the nearest composite task around it), then a
person.

A suspended case lets its timers wait; those that are due fire when it is resumed.
"""

from __future__ import annotations

from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core import locks
from knhk_workflow.core.cancel import remove_net
from knhk_workflow.core.case import LIVE_STATES, RETRYING, Activation, Instance, Timer, place_of
from knhk_workflow.core.completion import advance
from knhk_workflow.core.incidents import raise_incident
from knhk_workflow.core.rollback import escape, give_up
from knhk_workflow.core.settle import settle
from knhk_workflow.core.starting import offer_item, run_instance
from knhk_workflow.core.step import Step
from knhk_workflow.core.timers import begun, retry_later
from knhk_workflow.core.triggers import go_on
from knhk_workflow.errors import WrongState
from knhk_workflow.model.net import TaskNode

TIMED_OUT = "timed_out"  # the incident of a task that has waited too long without any work of its own


def fire_timer(step: Step, command: c.FireTimer) -> None:
    """Fire a timer. Nothing happens when it is not there any more, or while it has to wait (`pending` tells)."""
    case = step.case
    if not pending(step, command):
        return
    timer = case.timers[command.timer]
    if step.now < timer.due:
        raise WrongState(
            "timer",
            f"{timer.number}@{case.case_id}",
            f"due at {timer.due} ns",
            f"asked for {timer.due - step.now} ns too early",
        )
    if case.state != "running":
        return
    if case.ready:
        settle(step)  # a cascade is still going on: it may take what this timer is about
        if case.ready or not pending(step, command) or case.state != "running":
            return
    fire(step, timer)
    settle(step)


def pending(step: Step, command: c.FireTimer) -> bool:
    """Whether the timer is still armed."""
    return command.timer in step.case.timers


def fire(step: Step, timer: Timer) -> None:
    """A timer of a running case at rest is due."""
    activation = step.case.activations[timer.activation]
    node = step.node(activation)
    step.emit(
        e.TimerFired(timer.net, timer.task, timer.activation, timer.instance, timer.number, timer.kind, timer.due)
    )
    if timer.kind == "timer":
        go_on(step, step.case.nets[timer.net], node)
    elif timer.kind == "retry":
        run = activation.instances[timer.instance]
        run_instance(step, activation, node, run.number, run.attempt + 1)
    elif timer.kind == "timeout" and timer.instance:
        _too_long(step, node, activation, activation.instances[timer.instance])
    else:
        _too_late(step, node, activation, timer.kind)


def failed(
    step: Step,
    node: TaskNode,
    activation: Activation,
    run: Instance,
    code: str,
    message: str,
    *,
    permanent: bool = False,
    pause: int | None = None,
) -> None:
    """An attempt at the work has failed: another one (unless that is pointless) after `pause` nanoseconds (None: as the
    task's rule says), the error flow, or a person."""
    task, running = node.task, step.case.state == "running"
    if task.retry is not None and run.attempt < task.retry.max_attempts and not permanent:
        if running and not (task.retry.backoff if pause is None else pause):
            offer_item(step, node, activation, run.number, run.attempt + 1)
        else:
            retry_later(step, activation, run, task.retry, pause)
    else:
        what = f"{code}: {message}" if message else code
        give_up(step, node, activation, run.number, f"task {activation.task!r} failed: {what}")


def _too_long(step: Step, node: TaskNode, activation: Activation, run: Instance) -> None:
    """One attempt at the work has taken too long."""
    if _kept_out(step, node, activation):
        begun(step, node, activation, run.number)  # a lock keeps everybody from beginning: that is not its fault
        step.changed(activation, run)
        return
    if node.task.on_timeout is not None and not activation.released:
        escape(step, node, activation, node.task.on_timeout)
        return
    told = f"task {activation.task!r} failed: its sub-net took too long"
    if not _stop(step, activation, run, "timeout", told):
        return
    if activation.released:
        advance(step, activation, node)  # the flow has gone on, nobody waits for this
    elif run.state == "terminated":  # a sub-net: it has no attempts
        give_up(step, node, activation, run.number, told)
    else:
        failed(step, node, activation, run, "timeout", _late(run), permanent=run.calling)


def _late(run: Instance) -> str:
    if run.calling:
        return "it took too long; whether its call was made is unknown, and it must not be made twice"
    return "it took too long"


def _too_late(step: Step, node: TaskNode, activation: Activation, kind: str) -> None:
    """The task as a whole is late: its deadline has passed, or the signal that it waits for did not come."""
    if kind == "timeout" and activation.signalled:
        return  # it came in time, and something else keeps the task
    target = node.task.on_timeout or (node.task.on_error if node.many is None else None)
    if target is not None and not activation.released:
        escape(step, node, activation, target)
        return
    told = f"task {activation.task!r} failed: its deadline has passed"
    live = [run for _, run in sorted(activation.instances.items()) if run.state in LIVE_STATES]
    for run in live:
        if activation.number not in step.case.activations:
            return  # an incident failed the case
        if _stop(step, activation, run, kind, told) and not activation.released:
            give_up(step, node, activation, run.number, told)
    if activation.released:
        advance(step, activation, node)
    elif not live and not activation.incidents:
        late = "its deadline has passed" if kind == "deadline" else "what it waits for did not come in time"
        told = f"task {activation.task!r} is late: {late}"
        raise_incident(step, TIMED_OUT, activation.net, told, activation)


def _kept_out(step: Step, node: TaskNode, activation: Activation) -> bool:
    """Whether offered work could not begin because somebody else holds its lock."""
    if not node.guarded or locks.begun(activation, node):
        return False
    return (
        locks.blocked_by(step.case, step.case.nets[activation.net], node, activation.inputs, activation.left)
        is not None
    )


def _stop(step: Step, activation: Activation, run: Instance, code: str, told: str) -> bool:
    """End one instance that has not ended: its sub-net goes, its work has failed. False: that is undone first."""
    if run.state == RETRYING:
        step.disarm(run.timer)
    elif run.child:
        gone = remove_net(step, step.case.nets[run.child], "incident", told)
        if run.timer:
            step.disarm(run.timer)
        return gone
    else:
        step.emit(e.ItemFailed(*place_of(activation, run), code))
        step.changed(activation, run)
    return True
