"""Bugs planted into the engine while the simulation runs: each must be found, or the simulation is not worth its time.

A bug is a mistake that somebody could make: it replaces one function of the product by a wrong one and puts the right
one back afterwards.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from knhk_workflow import StoreUnavailable, WorkflowEngine
from knhk_workflow.core import apply as core_apply
from knhk_workflow.core import decide as core_decide
from knhk_workflow.core import events as e
from knhk_workflow.core.case import Case
from knhk_workflow.core.step import Step
from knhk_workflow.runtime import live
from knhk_workflow.runtime.live import LiveCase, LiveCases
from knhk_workflow.runtime.requests import Requests
from knhk_workflow.store import Unit
from knhk_workflow.store.journal import _Shard


@dataclass(frozen=True)
class Bug:
    """A mistake: where it is planted, and the wrong code."""

    name: str
    module: str
    owner: object
    attribute: str
    wrong: Callable[[Any], Any]
    """Makes the wrong function from the right one."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The product with this bug in it."""
        right = vars(self.owner)[self.attribute]
        setattr(self.owner, self.attribute, self.wrong(right))
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, right)


def _ack_before_commit(right: Any) -> Any:
    """The caller hears of success as soon as the unit is on its way."""

    def commit(cases: LiveCases, live: LiveCase, unit: Unit) -> asyncio.Future[int]:
        right(cases, live, unit)
        early: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        early.set_result(1)
        return early

    return commit


def _failed_though_written(right: Any) -> Any:
    """After an unknown outcome the journal says "not written" without looking."""

    async def resolve(shard: Any, attempt: Any, error: Exception) -> None:
        held, attempt.log_value = attempt.log_value, b"never this"
        try:
            await right(shard, attempt, error)
        finally:
            attempt.log_value = held

    return resolve


def _written_without_recovery(right: Any) -> Any:
    """After an unknown outcome the journal takes the write for failed at once and writes on."""

    async def resolve(shard: Any, attempt: Any, error: Exception) -> None:
        shard._fail(attempt.group, lambda: StoreUnavailable("not written"))

    return resolve


def _chain_forgets(right: Any) -> Any:
    """After a refused write the chain goes on from a record that was never written."""

    def fail(shard: Any, group: Any, make: Any) -> None:
        shard._previous = bytes(reversed(shard._previous))
        right(shard, group, make)

    return fail


def _no_request_record(right: Any) -> Any:
    """The record that makes a request id work is not written."""
    return lambda *_: None


def _no_head_expectation(right: Any) -> Any:
    """A commit does not check that the case is where the step began."""

    def unit(cases: LiveCases, *arguments: Any, **named: Any) -> Unit:
        made: Unit = right(cases, *arguments, **named)
        return msgspec.structs.replace(made, expect=())

    return unit


def _memory_ahead(right: Any) -> Any:
    """A failed commit leaves the case in memory as if it had been written."""

    def abandon(cases: LiveCases, lives: Sequence[LiveCase]) -> None:
        for each in lives:
            each.release()

    return abandon


def _lock_lost(right: Any) -> Any:
    """A failed commit does not let the next command in."""

    def abandon(cases: LiveCases, lives: Sequence[LiveCase]) -> None:
        for each in lives:
            cases.drop(each)

    return abandon


def _turn_lost(right: Any) -> Any:
    """A caller who goes away in the moment when it gets the case keeps it."""

    async def acquire(case: LiveCase) -> None:
        if not case.busy:
            case.busy = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        case.turns = case.turns or deque()
        case.turns.append(turn)
        await turn

    return acquire


def _stale_snapshot(right: Any) -> Any:
    """A snapshot is taken for the newest state; the records after it are not replayed."""

    async def snapshot(cases: LiveCases, keys: Any, sequence: int) -> Case | None:
        case: Case | None = await right(cases, keys, sequence)
        if case is not None:
            case.sequence = sequence
        return case

    return snapshot


def _early_snapshot(right: Any) -> Any:
    """The snapshot says that it is one event older than the state in it."""
    return lambda case: right(msgspec.structs.replace(case, sequence=case.sequence - 1))


def _cascade_forgotten(right: Any) -> Any:
    """After a restart nobody carries on what was paused."""

    async def recover(engine: WorkflowEngine) -> None:
        return None

    return recover


def _row_kept(right: Any) -> Any:
    """Finished work stays in the work list."""

    def unit(cases: LiveCases, *arguments: Any, **named: Any) -> Unit:
        made: Unit = right(cases, *arguments, **named)
        kept = [write for write in made.writes if write[1] is not None]
        return msgspec.structs.replace(made, writes=kept)

    return unit


def _unrecorded_change(right: Any) -> Any:
    """A step changes the case beside its events."""

    def emit(step: Step, event: e.Event) -> None:
        right(step, event)
        if isinstance(event, e.ItemFailed):
            step.case.reason = event.code

    return emit


def _token_twice(right: Any) -> Any:
    """Completing a task counts a token that it does not put."""

    def completed(case: Case, event: e.TaskCompleted) -> None:
        right(case, event)
        net = case.nets.get(event.net)
        if net is not None and len(event.produced) > 1:
            net.tokens += 1

    return completed


def _completed_twice(right: Any) -> Any:
    """An item that was completed is completed again by the same command."""

    def ended(step: Step, *about: Any) -> None:
        for event in reversed(step.events):
            if isinstance(event, e.ItemCompleted) and step.case.sequence % 7 == 0:
                step.events.append(event)
                step.case.sequence += 1
                break
        right(step, *about)

    return ended


def _applier(kind: type[e.Event], wrong: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A copy of the applier table with one wrong entry."""
    return lambda table: {**table, kind: wrong(table[kind])}


BUGS: Final[tuple[Bug, ...]] = (
    Bug("ack before commit", "runtime/live.py", LiveCases, "commit", _ack_before_commit),
    Bug("failed though written", "store/journal.py", _Shard, "_resolve", _failed_though_written),
    Bug("written on without recovery", "store/journal.py", _Shard, "_resolve", _written_without_recovery),
    Bug("chain follows what was never written", "store/journal.py", _Shard, "_fail", _chain_forgets),
    Bug("dropped idempotency record", "runtime/requests.py", Requests, "record", _no_request_record),
    Bug("cascade forgotten at restart", "runtime/engine.py", WorkflowEngine, "_recover", _cascade_forgotten),
    Bug("lost head expectation", "runtime/live.py", LiveCases, "unit", _no_head_expectation),
    Bug("memory ahead of disk", "runtime/live.py", LiveCases, "abandon", _memory_ahead),
    Bug("case stays locked", "runtime/live.py", LiveCases, "abandon", _lock_lost),
    Bug("cancelled caller keeps the case", "runtime/live.py", LiveCase, "acquire", _turn_lost),
    Bug("stale snapshot", "runtime/live.py", LiveCases, "_snapshot", _stale_snapshot),
    Bug("snapshot of another moment", "runtime/live.py", live, "encode_state", _early_snapshot),
    Bug("finished work stays listed", "runtime/live.py", LiveCases, "unit", _row_kept),
    Bug("change beside the events", "core/step.py", Step, "emit", _unrecorded_change),
    Bug("item completed twice", "core/decide.py", core_decide, "ended", _completed_twice),
    Bug("token counted twice", "core/apply.py", core_apply, "APPLY", _applier(e.TaskCompleted, _token_twice)),
)
