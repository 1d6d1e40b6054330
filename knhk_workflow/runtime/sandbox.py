"""Running a pattern's own net: the same core as any case, in memory or, when durable, as a real case.

A script is what the outside does. Its moves are checked before anything runs: an unknown move or task, or data that is
no JSON object, is InvalidInput naming the move's index. A move that the net does not allow at its moment is no error:
the run ends there, `success` is false and `message` says which move it was, what it needed and what is open.

`success` = every move was possible, no incident is open, and the case did not fail. A script may leave work open: a
case that rests with offered work is a success that has not ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Final

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.core.case import Case
from knhk_workflow.core.decide import create, decide
from knhk_workflow.core.step import Step
from knhk_workflow.errors import InvalidInput, LimitExceeded, Problem, Unsupported, WorkflowError
from knhk_workflow.model.fields import duration
from knhk_workflow.model.net import Model, compile_spec, nanoseconds
from knhk_workflow.model.parse import canonical, parse_spec, spec_digest
from knhk_workflow.patterns.catalogue import find
from knhk_workflow.patterns.pattern import Pattern
from knhk_workflow.runtime import query
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.history import render
from knhk_workflow.runtime.inputs import checked_id, json_object, parse_item_id
from knhk_workflow.runtime.meta import LIBRARY
from knhk_workflow.runtime.records import CommitRecord
from knhk_workflow.runtime.views import (
    CaseView,
    HistoryEvent,
    PatternExecutionContext,
    PatternResult,
    PatternView,
    Stimulus,
    WorkItemView,
)

SCRIPT_MOVES_MAX: Final = 1_000  # one call; about 0.1 s of steps. Longer stories are cases
SALT: Final = bytes(16)  # what is never stored needs no secret

ITEM_MOVES: Final[Mapping[str, tuple[str, ...]]] = {
    "start": ("allocated", "offered"),
    "complete": ("started", "allocated", "offered"),
    "fail": ("started", "allocated", "offered"),
    "skip": ("started", "allocated", "offered"),
}
"""Moves on a work item, and the states in which it can be made, the most natural first."""
CASE_MOVES: Final[Mapping[str, c.Command]] = {
    "suspend": c.SuspendCase(),
    "resume": c.ResumeCase(),
    "cancel_case": c.CancelCase(),
}
TASK_MOVES: Final[Mapping[str, Callable[[str, bytes], c.Command]]] = {
    "add_instance": lambda task, data: c.AddInstance(task, element=data),
    "close_instances": lambda task, _: c.CloseInstances(task),
    "complete_instances": lambda task, _: c.CompleteInstances(task),
    "cancel_instances": lambda task, _: c.CancelInstances(task),
    "cancel_task": lambda task, _: c.CancelTask(task),
}
"""Moves on a task as a whole, rather than on one of its work items."""
TRIGGER: Final = "trigger"
WITH_DATA: Final = frozenset({"complete", "fail", "add_instance", TRIGGER})
ADVANCE: Final = "advance_clock"
"""Time passes, as long as its name says (`90s`, `PT1H`), and what becomes due meanwhile happens. Only in memory: a
durable run lives in the engine's own time."""


class Refusal(Exception):
    """A move that the net does not allow now. Ends the script; never leaves this package."""


class Script(msgspec.Struct, frozen=True):
    """A pattern's run, checked: its data at the start, and the moves to make."""

    pattern: Pattern
    case_id: str
    workflow_id: str
    data: bytes
    moves: tuple[Stimulus, ...]


@cache
def view(number: int) -> PatternView:
    """The catalogue's entry of a pattern as callers see it."""
    pattern = find(number)
    return PatternView(
        number,
        pattern.name,
        (f"WCP-{number}", *pattern.aliases),
        pattern.category,
        pattern.semantics,
        pattern.construct,
        pattern.context,
        f"{pattern.literature} Full support needs: {pattern.plus}",
        pattern.available,
        canonical(pattern.document) if pattern.available else b"",
        tuple(Stimulus(move.move, move.task, move.name, move.data) for move in pattern.script),
    )


def script(pattern: Pattern, context: PatternExecutionContext) -> Script:
    """What `context` asks for, checked. Raises Unsupported, InvalidInput, LimitExceeded."""
    if not pattern.available:
        raise Unsupported(f"pattern {pattern.number} ({pattern.name})", "list_patterns says which can be executed")
    if len(context.script) > SCRIPT_MOVES_MAX:
        raise LimitExceeded("moves of a script", SCRIPT_MOVES_MAX, len(context.script), "run a case instead")
    given = msgspec.json.decode(json_object(context.data, "data"), type=dict[str, msgspec.Raw])
    merged = {**pattern.data, **context.variables, **given}
    moves = tuple(_checked(move, index, pattern.number) for index, move in enumerate(context.script))
    return Script(
        pattern,
        checked_id(context.case_id, "case_id", empty=True),
        checked_id(context.workflow_id, "workflow_id", empty=True),
        json_object(msgspec.json.encode(merged), "data"),
        moves or view(pattern.number).script,
    )


@cache
def _targets(number: int, move: str) -> frozenset[str]:
    """The tasks of a pattern, in all its nets, that a move can be about."""
    tasks = [task for net in _model(number).spec.nets for task in net.tasks]
    if move in ITEM_MOVES:
        return frozenset(task.id for task in tasks if task.required_roles)
    if move == "cancel_task":
        return frozenset(task.id for task in tasks)
    return frozenset(task.id for task in tasks if task.instances is not None or task.for_each is not None)


@cache
def _model(number: int) -> Model:
    text = canonical(find(number).document)
    return compile_spec(parse_spec(msgspec.json.decode(text)), 1, spec_digest(text))


def _checked(move: Stimulus, index: int, pattern: int) -> Stimulus:
    where = f"script[{index}]"
    name = move.move.strip().lower()
    if name in CASE_MOVES or name in (TRIGGER, ADVANCE):
        if move.task:
            raise InvalidInput.field(f"{where}.task", f"{name} concerns the whole case", "leave the task out")
        if name == TRIGGER:
            checked_id(move.name, f"{where}.name")
        if name == ADVANCE and duration(move.name) is None:
            hint = "for example 90s, 1h30m or PT5M"
            raise InvalidInput.field(f"{where}.name", f"{move.name[:100]!r} is no duration", hint)
    elif name not in ITEM_MOVES and name not in TASK_MOVES:
        known = ", ".join((*ITEM_MOVES, *TASK_MOVES, TRIGGER, *CASE_MOVES, ADVANCE))
        raise InvalidInput.field(f"{where}.move", f"{move.move[:100]!r} is not a move", f"use one of {known}")
    else:
        _checked_target(move, where, _targets(pattern, name), name in ITEM_MOVES)
    data = b""
    if move.data:
        if name not in WITH_DATA:
            raise InvalidInput.field(f"{where}.data_json", f"{name} takes no data", "leave it out")
        data = json_object(move.data, f"{where}.data_json")
    if name == "fail":
        _failure(data, where)
    return Stimulus(name, move.task, move.name, data)


def _checked_target(move: Stimulus, where: str, tasks: frozenset[str], numbered: bool) -> None:
    """The task of a move, and the number of the work item where a move can have one."""
    if move.task not in tasks:
        hint = f"this move can be about {', '.join(sorted(tasks)) or 'no task of this pattern'}"
        raise InvalidInput.field(f"{where}.task", f"there is no such task as {move.task[:100]!r}", hint)
    if move.name and not numbered:
        raise InvalidInput.field(f"{where}.name", "this move is about the task as a whole", "leave the name out")
    if move.name and not (move.name.isascii() and move.name.isdigit() and int(move.name[:9]) > 0):
        hint = "1 is the oldest one that is open; leave it out to mean that"
        raise InvalidInput.field(f"{where}.name", f"{move.name[:100]!r} is not the number of a work item", hint)


class _Failure(msgspec.Struct, frozen=True):
    code: str = "failed"
    message: str = ""


def _failure(data: bytes, where: str = "script") -> _Failure:
    """The code and message of a failure."""
    try:
        failure = msgspec.json.decode(data or b"{}", type=_Failure)
    except msgspec.ValidationError as error:
        hint = 'for example {"code": "rejected", "message": "out of stock"}'
        problem = Problem(f"{where}.data_json", "type", str(error), hint=hint)
        raise InvalidInput(f"{where}.data_json: {error}", (problem,)) from error
    checked_id(failure.code, f"{where}.data_json.code")
    return failure


# -- one move ---------------------------------------------------------------------------------------------------------


def command(move: Stimulus, index: int, case: CaseView) -> c.Command:
    """What a checked move means for the case as it is. Raises Refusal with the reason in one sentence."""
    if move.move in CASE_MOVES:
        return CASE_MOVES[move.move]
    if move.move == TRIGGER:
        return c.Signal(move.name, move.data)
    if move.move in TASK_MOVES:
        return TASK_MOVES[move.move](move.task, move.data)
    ref, _ = parse_item_id(item_of(move, index, case).item_id)
    if move.move == "start":
        return c.StartItem(ref)
    if move.move == "complete":
        return c.CompleteItem(ref, move.data)
    if move.move == "skip":
        return c.SkipItem(ref)
    failure = _failure(move.data)
    return c.FailItem(ref, failure.code, failure.message)


def item_of(move: Stimulus, index: int, case: CaseView) -> WorkItemView:
    """The work item that a move is about: the n-th open one of its task, or the oldest that the move fits."""
    states = ITEM_MOVES[move.move]
    mine = [item for item in case.work if item.task_id == move.task]
    if move.name:
        nth = int(move.name[:9])
        mine = mine[nth - 1 : nth]
    for state in states:
        for item in mine:
            if item.state == state:
                return item
    needed = " or ".join(reversed(states))
    number = f" number {move.name}" if move.name else ""
    raise Refusal(
        f"script[{index}]: cannot {move.move} {move.task}{number}: it must be {needed}, "
        f"but {_found(mine)}; open are {_open(case)}"
    )


def _found(items: Sequence[WorkItemView]) -> str:
    return f"it is {items[0].state}" if items else "no such work is open"


def _open(case: CaseView) -> str:
    shown = ", ".join(f"{item.task_id} ({item.state})" for item in case.work[:20])
    if len(case.work) > 20:
        shown += f" and {len(case.work) - 20} more"
    return shown or f"no work items (the case is {case.state})"


def refused(error: WorkflowError, move: Stimulus, index: int, case: CaseView) -> str:
    """The message of a run whose move the case refused."""
    target = f" {move.task or move.name}" if move.task or move.name else ""
    return f"script[{index}]: cannot {move.move}{target}: {error.message}; open are {_open(case)}"


# -- in memory --------------------------------------------------------------------------------------------------------


class Run:
    """One run in memory. Iterate to make it happen, event by event; then ask for the `result`."""

    def __init__(self, asked: Script, clock: Clock, principal: str = LIBRARY) -> None:
        self._script = asked
        self._clock = clock
        self._ahead = 0  # nanoseconds that the script let pass
        self._principal = principal
        self._case_id = asked.case_id or asked.pattern.spec_id
        self._trace: list[HistoryEvent] = []
        self._message = ""
        self._view: CaseView | None = None

    def __iter__(self) -> Iterator[HistoryEvent]:
        """The trace as it happens. Once only."""
        model = _model(self._script.pattern.number)
        born = c.CreateCase(
            tenant="",
            case_id=self._case_id,
            spec_id=model.spec.id,
            version=model.version,
            digest=model.digest,
            salt=SALT,
            data=self._script.data,
            business_key=self._script.workflow_id,
            start=True,
        )
        step = create(model, born, self._now())
        case = step.case
        yield from self._seen(step, "run")
        for index, move in enumerate(self._script.moves):
            yield from self._rest(case, model)
            if move.move == ADVANCE:
                yield from self._pass(case, model, nanoseconds(duration(move.name) or 0))
                continue
            before = query.case_view(case, model, self._principal)
            try:
                step = decide(case, model, command(move, index, before), self._now())
            except Refusal as refusal:
                self._message = str(refusal)
                break
            except WorkflowError as error:
                self._message = refused(error, move, index, before)
                break
            yield from self._seen(step, move.move)
        yield from self._rest(case, model)
        self._view = query.case_view(case, model, self._principal)

    def _now(self) -> int:
        return self._clock.now() + self._ahead

    def _rest(self, case: Case, model: Model) -> Iterator[HistoryEvent]:
        """Carry a cascade on, and fire the timers that are due."""
        while case.state == "running":
            timer = min(case.timers.values(), key=lambda each: (each.due, each.number), default=None)
            if case.ready:
                yield from self._seen(decide(case, model, c.Continue(), self._now()), "continue")
            elif timer is not None and timer.due <= self._now():
                yield from self._seen(decide(case, model, c.FireTimer(timer.number), self._now()), "fire_timer")
            else:
                return

    def _pass(self, case: Case, model: Model, time: int) -> Iterator[HistoryEvent]:
        """Let time pass, from one timer to the next."""
        end = self._now() + time
        while case.state == "running" and case.timers:
            due = min(timer.due for timer in case.timers.values())
            if due > end:
                break
            self._ahead += max(0, due - self._now())
            yield from self._rest(case, model)
        self._ahead += max(0, end - self._now())

    def _seen(self, step: Step, method: str) -> Iterator[HistoryEvent]:
        record = CommitRecord(step.now, self._principal, method, "", "", tuple(step.events))
        first = step.case.sequence - len(step.events) + 1
        for event in render(self._case_id, first, record, step.model.veil):
            self._trace.append(event)
            yield event

    @property
    def result(self) -> PatternResult:
        """What the run gave. Only after the iteration has ended."""
        if self._view is None:
            raise RuntimeError("the run has not ended: iterate over it first")
        return result(self._script, self._view, self._trace, self._message)


def play(pattern: Pattern, context: PatternExecutionContext, clock: Clock) -> PatternResult:
    """Run a pattern's net in memory, all at once."""
    run = Run(script(pattern, context), clock)
    for _ in run:
        pass
    return run.result


# -- the outcome ------------------------------------------------------------------------------------------------------


class _Activation(msgspec.Struct, frozen=True):
    """What the outcome reads of a task event."""

    activation: int
    task: str


def result(asked: Script, case: CaseView, trace: Sequence[HistoryEvent], message: str) -> PatternResult:
    """The outcome of a run from its last state and its history."""
    live: dict[int, str] = {}
    gone: dict[str, None] = {}
    for event in trace:
        if event.event_type in ("task_enabled", "task_completed", "task_cancelled"):
            told = msgspec.json.decode(event.data, type=_Activation)
            if event.event_type == "task_enabled":
                live[told.activation] = told.task
            else:
                live.pop(told.activation, None)
            if event.event_type == "task_cancelled":
                gone[told.task] = None
    if not message and case.incidents:
        message = "; ".join(f"incident {incident.incident_id}: {incident.message}" for incident in case.incidents)
    if not message and case.state == "failed":
        message = f"the case failed: {case.reason}"
    data: dict[str, msgspec.Raw] = msgspec.json.decode(case.data, type=dict[str, msgspec.Raw])
    before: dict[str, msgspec.Raw] = msgspec.json.decode(asked.data, type=dict[str, msgspec.Raw])
    return PatternResult(
        pattern_id=asked.pattern.number,
        success=not message,
        next_state=case.state,
        next_activities=tuple(sorted(set(live.values()))),
        variables={key: _text(value) for key, value in data.items()},
        updates=msgspec.json.encode({key: value for key, value in data.items() if before.get(key) != value}),
        cancel_activities=tuple(gone),
        terminates=case.state in c.ENDED,
        trace=tuple(trace),
        case_id=case.case_id,
        message=message,
    )


def _text(value: msgspec.Raw) -> str:
    """A variable: texts as they are, other values as JSON."""
    decoded = msgspec.json.decode(value)
    return decoded if isinstance(decoded, str) else bytes(value).decode()
