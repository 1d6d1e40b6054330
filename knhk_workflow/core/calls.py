"""Work that a connector does: its call begins when the task does, and ends as any work ends.

What is to be sent is evaluated in the step that offers the work and recorded as the item's input; attempts that follow
by themselves send the same again, and only a person who retries an incident has it evaluated anew. The shell makes the
call once the step is durable and reports what became of it by a command. An answer passes through `result`; without
one the members of an object are the output, and anything else is the output's member named like the task.

Nothing is lost and nothing is taken twice: a report names the attempt that it is about, and one that comes too late is
recorded as discarded.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.core import compensation, due, timers
from knhk_workflow.core import events as e
from knhk_workflow.core.case import Activation, Instance, place_of
from knhk_workflow.core.commands import ENDED
from knhk_workflow.core.completion import ended
from knhk_workflow.core.data import DATA_BYTES_MAX, EMPTY
from knhk_workflow.core.settle import settle
from knhk_workflow.core.starting import element_of
from knhk_workflow.core.step import Step
from knhk_workflow.errors import LimitExceeded, WrongState
from knhk_workflow.model.expression import EvaluationFailed
from knhk_workflow.model.net import TaskNode

RESULT = "result_error"  # the call was answered, and the answer cannot be used


def begin_call(step: Step, command: c.BeginCall) -> None:
    """Record that a call which must not be repeated is being made. Raises WrongState when it is not wanted any more."""
    found = _calling(step, command.item)
    if found is None or found[2].calling or step.case.state in ENDED:
        raise WrongState(
            "call", command.item.name(step.case.case_id), "still to be made", "taken back, or begun before"
        )
    _, activation, run = found
    step.emit(e.ConnectorBegun(*place_of(activation, run)))
    step.changed(activation, run)


def complete_call(step: Step, command: c.CompleteCall) -> None:
    """A call was answered."""
    found = _calling(step, command.item)
    if found is None:
        _discard(step, command.item, command.status or "answered")
        return
    node, activation, run = found
    try:
        output = _output(node, activation, run, command.answer)
    except EvaluationFailed as failure:
        message = f"its answer ({command.status}) cannot be used: `result` could not be evaluated: {failure.message}"
        message = step.told(message, msgspec.json.decode(command.answer) if command.answer else None)
        said = command.answer if len(command.answer) <= DATA_BYTES_MAX else b""
        _failed(step, node, activation, run, RESULT, message, said, permanent=True)
        return
    if len(output) > DATA_BYTES_MAX:
        message = f"its answer ({command.status}) cannot be used: the output is larger than {DATA_BYTES_MAX} bytes"
        _failed(step, node, activation, run, RESULT, message, b"", permanent=True)
        return
    step.emit(e.ConnectorCompleted(*place_of(activation, run), output, command.status))
    step.changed(activation, run)
    if node.undo is not None:
        compensation.remember(step, activation, node.undo, run.number, run.output)
    if step.case.state == "running":
        ended(step, activation, node, run)
        settle(step)


def fail_call(step: Step, command: c.FailCall) -> None:
    """A call has failed: another attempt, the error flow, or a person."""
    if len(command.data) > DATA_BYTES_MAX:
        raise LimitExceeded("call failure bytes", DATA_BYTES_MAX, len(command.data))
    found = _calling(step, command.item)
    if found is None:
        _discard(step, command.item, command.code)
        return
    _failed(step, *found, command.code, command.message, command.data, permanent=command.permanent, pause=command.pause)


def _failed(
    step: Step,
    node: TaskNode,
    activation: Activation,
    run: Instance,
    code: str,
    message: str,
    data: bytes,
    *,
    permanent: bool = False,
    pause: int = 0,
) -> None:
    message = step.told(message)
    step.emit(e.ConnectorFailed(*place_of(activation, run), code, message, step.reported(data)))
    step.changed(activation, run)
    after = _pause(step, node, activation, run, pause)
    due.failed(step, node, activation, run, code, message, permanent=permanent, pause=after)
    settle(step)


def _pause(step: Step, node: TaskNode, activation: Activation, run: Instance, least: int) -> int:
    """Nanoseconds before the next attempt: those of the task's rule, shortened by up to half (what failed together does
    not come back together), but not less than `least`."""
    if node.task.retry is None:
        return least
    name = f"{activation.number}.{run.number}.{run.attempt}".encode()
    drawn = int.from_bytes(blake2b(name, digest_size=4, key=step.case.salt).digest(), "big") / 2**32
    nanos = timers.pause(node.task.retry, run.attempt)
    return max(nanos - round(nanos * drawn / 2), least)


def _calling(step: Step, ref: c.ItemRef) -> tuple[TaskNode, Activation, Instance] | None:
    """The work that a report is about, if it is still that attempt and still wanted."""
    activation = step.case.activations.get(ref.activation)
    run = activation.instances.get(ref.instance) if activation is not None else None
    if activation is None or run is None or run.attempt != ref.attempt or run.state != "started":
        return None
    node = step.node(activation)
    return (node, activation, run) if node.calls is not None else None


def _discard(step: Step, ref: c.ItemRef, outcome: str) -> None:
    """A report that comes too late. The history of an ended case is complete: then it is only forgotten."""
    if step.case.state not in ENDED:
        step.emit(e.ConnectorDiscarded(ref.activation, ref.instance, ref.attempt, outcome))


def _output(node: TaskNode, activation: Activation, run: Instance, answer: bytes) -> bytes:
    """What an answer gives. Raises EvaluationFailed."""
    calls = node.calls
    assert calls is not None
    whole = msgspec.json.decode(answer)
    if calls.result is None:
        body = whole.get("body")
        if body is None:
            return EMPTY
        return msgspec.json.encode(body if isinstance(body, dict) else {node.id: body})
    element = element_of(activation, run.number)
    item = msgspec.json.decode(element) if element is not None else None
    return msgspec.json.encode({key: expression.value(whole, item) for key, expression in calls.result})
