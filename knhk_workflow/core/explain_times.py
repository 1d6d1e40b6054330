"""What an explanation says of time: what a task waits for, and until when."""

from __future__ import annotations

import datetime as dt

from knhk_workflow.core import locks
from knhk_workflow.core.case import RETRYING, Activation, Instance, Timer
from knhk_workflow.core.explain_joins import Look, listed
from knhk_workflow.core.explanation import Status, Wait
from knhk_workflow.model.net import TaskNode
from knhk_workflow.model.units import NS_PER_S

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def time_text(moment: int) -> str:
    """RFC 3339 in UTC; parts of a second where there are any."""
    found = _EPOCH + dt.timedelta(seconds=moment // NS_PER_S)
    part = f"{moment % NS_PER_S:09d}".rstrip("0")
    return f"{found:%Y-%m-%dT%H:%M:%S}{'.' + part if part else ''}Z"


def moment(look: Look, node: TaskNode, live: list[Activation]) -> tuple[str, Status, tuple[Wait, ...]]:
    """A task that waits for its moment, or whose moment has come and which something else keeps."""
    timers = [look.case.timers[number] for each in live for number in each.timers]
    if not timers:
        lock = locks.blocked_by(look.case, look.net, node, live[0].inputs)
        if lock is None:
            return f"{node.id} is due, and goes on when the case is resumed.", "waiting", (_resume(look),)
        at = " and ".join(locks.holders(look.case, look.model, lock)) or "what is about to leave it"
        return f"{node.id} is due and waits for {lock}, held by {at}.", "waiting", (Wait("section", lock, at),)
    waits: tuple[Wait, ...] = tuple(_wait(timer) for timer in timers)
    sentence = f"{node.id} waits until {listed(time_text(timer.due) for timer in timers)}."
    if look.case.state == "suspended":
        return f"{sentence[:-1]}, and for the case to be resumed.", "waiting", (*waits, _resume(look))
    return sentence, "waiting", waits


def limits(look: Look, node: TaskNode, live: list[Activation]) -> tuple[str, tuple[Wait, ...]]:
    """What else time has to say about a live task: a sentence more, and what it waits for."""
    said: list[str] = []
    waits: list[Wait] = []
    for activation in live:
        for _, run in sorted(activation.instances.items()):
            if run.timer and run.state == RETRYING:
                timer = look.case.timers[run.timer]
                said.append(f"{_which(activation, run)} waits for {_attempt(node, run)} until {time_text(timer.due)}.")
                waits.append(_wait(timer))
        own = [look.case.timers[number] for number in activation.timers]
        runs = [look.case.timers[run.timer] for _, run in sorted(activation.instances.items()) if run.timer]
        for kind, what in (("timeout", "Its time is over at"), ("deadline", "It must be done by")):
            due = [timer.due for timer in (*own, *runs) if timer.kind == kind]
            if due:
                said.append(f"{what} {time_text(min(due))}.")
    return " ".join(dict.fromkeys(said)), tuple(waits)


def _which(activation: Activation, run: Instance) -> str:
    return f"Instance {run.number}" if activation.count > 1 else "It"


def _attempt(node: TaskNode, run: Instance) -> str:
    assert node.task.retry is not None
    return f"retry {run.attempt} of {node.task.retry.max_attempts - 1}"


def _wait(timer: Timer) -> Wait:
    return Wait("timer", str(timer.number), f"{timer.kind}, due at {time_text(timer.due)}")


def _resume(look: Look) -> Wait:
    return Wait("resume", look.case.case_id)
