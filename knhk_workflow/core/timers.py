"""Timers: what happens by itself after a while, or at a moment.

A timer belongs to an activation, or to one instance of it, and is armed in the step that makes it needed: a timer task
and a deadline when the task is enabled, a time-out when work is offered (a sub-net: started; a task that only waits for
a signal: enabled), a retry when work has failed. When it is due is computed then, once, and recorded. It is gone when
it fires, or in the same step in which what it is about ends, however that ends: nothing stays behind.

A moment that has passed already is due at once, and the shell fires it like any other. `due.py` says what follows.
"""

from __future__ import annotations

from knhk_workflow.core import events as e
from knhk_workflow.core.case import Activation, Instance
from knhk_workflow.core.incidents import raise_incident
from knhk_workflow.core.step import Step
from knhk_workflow.model.expression import EvaluationFailed, Expression
from knhk_workflow.model.fields import DURATION_MAX, duration, moment
from knhk_workflow.model.net import TaskNode, nanoseconds
from knhk_workflow.model.recurrence import Recurrence
from knhk_workflow.model.spec import Retry
from knhk_workflow.model.units import NS_PER_S

DUE_MAX = 2**64 - 1  # the largest moment that a key holds, in the year 2554


def enabled(step: Step, node: TaskNode, activation: Activation) -> bool:
    """A task was enabled: arm what counts from now. False: an incident stands for a time that could not be found."""
    times = node.times
    if times is None or activation.signalled or activation.timers:
        return True
    try:
        if times.deadline is not None:
            _arm(step, activation, 0, "deadline", _moment(step, activation, times.deadline, "deadline"))
        if times.after is not None:
            _arm(step, activation, 0, "timer", step.now + _duration(step, activation, times.after))
        elif times.at is not None:
            _arm(step, activation, 0, "timer", _moment(step, activation, times.at, "timer.at"))
        elif times.every is not None:
            _arm(step, activation, 0, "timer", _next(step, times.every))
    except EvaluationFailed as failure:
        step.untimed(activation)
        message = f"when task {node.id!r} is due could not be found out: {failure.message}"
        raise_incident(step, "timer_error", activation.net, message, activation)
        return False
    if times.timeout is not None and node.carrier == "trigger":
        _arm(step, activation, 0, "timeout", step.now + times.timeout)
    return True


def begun(step: Step, node: TaskNode, activation: Activation, instance: int) -> None:
    """Work is offered, or a sub-net started: its time runs."""
    if node.times is not None and node.times.timeout is not None:
        _arm(step, activation, instance, "timeout", step.now + node.times.timeout)


def retry_later(step: Step, activation: Activation, run: Instance, rule: Retry, after: int | None = None) -> None:
    """Failed work is offered again after its pause, or `after` nanoseconds."""
    _arm(step, activation, run.number, "retry", step.now + (pause(rule, run.attempt) if after is None else after))


def pause(rule: Retry, attempt: int) -> int:
    """Nanoseconds between the failure of an attempt and the next one: growing, up to the longest."""
    seconds = rule.backoff
    for _ in range(attempt - 1):
        if seconds >= rule.max_backoff or rule.factor == 1:
            break
        seconds *= rule.factor
    return nanoseconds(min(seconds, max(rule.max_backoff, rule.backoff)))


def again(step: Step, node: TaskNode, activation: Activation) -> None:
    """A task that has waited in vain goes on waiting, as long as before."""
    if node.times is not None and node.times.timeout is not None and node.carrier == "trigger":
        _arm(step, activation, 0, "timeout", step.now + node.times.timeout)


def _arm(step: Step, activation: Activation, instance: int, kind: str, due: int) -> None:
    number = step.case.last_timer + 1
    due = min(max(due, step.now), DUE_MAX)
    step.emit(e.TimerArmed(activation.net, activation.task, activation.number, instance, number, kind, due))


def _moment(step: Step, activation: Activation, given: int | Expression, what: str) -> int:
    """Nanoseconds since the epoch. Raises EvaluationFailed for what is no moment."""
    if isinstance(given, int):
        return given
    found = given.value(step.scope(activation.net))
    due = moment(found) if isinstance(found, str) else None
    if due is None:
        problem = 'gives no time with its offset, such as "2030-01-31T12:00:00Z"'
        raise EvaluationFailed(given.text, f"{what} {problem}", {})
    return due


def _next(step: Step, every: Recurrence) -> int:
    """The first occurrence after now: those that came before, while nobody waited, are over."""
    due = every.after(step.now, step.now)
    if due is None:
        raise EvaluationFailed(every.cron, "timer.every never comes again", {})
    return due


def _duration(step: Step, activation: Activation, given: int | Expression) -> int:
    """Nanoseconds. Raises EvaluationFailed for what is no duration; none at all is one."""
    if isinstance(given, int):
        return given
    found = given.value(step.scope(activation.net))
    if found in (0, "0", "0s") and not isinstance(found, bool):
        return 0
    seconds = duration(found)
    if seconds is None:
        problem = f"gives no duration: seconds, up to {DURATION_MAX:.0f}, or a text such as 5m or PT5M"
        raise EvaluationFailed(given.text, f"timer.after {problem}", {})
    return round(seconds * NS_PER_S)
