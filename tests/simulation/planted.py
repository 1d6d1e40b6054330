"""Bugs planted into the engine while the simulation runs: each must be found, or the simulation is not worth its time.

A bug is a mistake that somebody could make: it replaces one function of the product by a wrong one and puts the right
one back afterwards. `scripts/simulate --planted` finds them all and says after how many steps.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from knhk_workflow import StoreUnavailable, TriggerDelivery, WorkflowError
from knhk_workflow.core import apply as core_apply
from knhk_workflow.core import cancel, compensation, due, locks
from knhk_workflow.core import commands as c
from knhk_workflow.core import decide as core_decide
from knhk_workflow.core import events as e
from knhk_workflow.core import timers as core_timers
from knhk_workflow.core.case import Case
from knhk_workflow.core.settle import settle
from knhk_workflow.core.step import Step
from knhk_workflow.runtime import live, query
from knhk_workflow.runtime import timers as runtime_timers
from knhk_workflow.runtime.definitions import Definitions
from knhk_workflow.runtime.live import LiveCase, LiveCases
from knhk_workflow.runtime.messages import Messages
from knhk_workflow.runtime.outbox import Outbox
from knhk_workflow.runtime.parts import Parts
from knhk_workflow.runtime.requests import Requests
from knhk_workflow.runtime.timers import NEVER
from knhk_workflow.store import Unit, journal
from knhk_workflow.store.journal import _Shard
from tests.simulation.runs import Report, plans, run


@dataclass(frozen=True)
class Bug:
    """A mistake: when it is found, where it is planted, and the wrong code."""

    found: int
    """After so many steps it was found, with seed 20260. A change of the engine, or of the simulation, moves that."""
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


def _call_before_commit(right: Any) -> Any:
    """A connector's call leaves before what asks for it is written."""

    def commit(cases: LiveCases, live: LiveCase, unit: Unit) -> asyncio.Future[int]:
        if live.calls:
            cases._called(live.keys, live.calls)
        told: asyncio.Future[int] = right(cases, live, unit)
        return told

    return commit


def _call_without_a_word(right: Any) -> Any:
    """A call that must not be made twice is made without writing that it is."""

    async def tell(outbox: Outbox, job: Any, command: c.Command) -> bool:
        told: bool = isinstance(command, c.BeginCall) or await right(outbox, job, command)
        return told

    return tell


def _call_forgotten(right: Any) -> Any:
    """What was to be called when the engine ended is not looked for."""

    async def recover(outbox: Outbox) -> None:
        outbox._behind = False

    return recover


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

    async def recover(engine: Parts) -> None:
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


class _Unsynced:
    """A store that answers before anything is synced."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def commit(self, writes: Any, expect: Any, durable: bool) -> None:
        await self._store.commit(writes, expect, False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _ack_before_sync(right: Any) -> Any:
    """The journal does not ask for the write to be durable."""

    async def commit(shard: Any, *attempt: Any) -> Any:
        if not isinstance(shard._store, _Unsynced):
            shard._store = _Unsynced(shard._store)
        return await right(shard, *attempt)

    return commit


def _link_left_out(right: Any) -> Any:
    """The batch record of a commit of several commands does not name the last one."""

    def seal_log(record: Any) -> Any:
        return right(msgspec.structs.replace(record, entries=record.entries[:1]))

    return seal_log


def _timer_row_lost(right: Any) -> Any:
    """A timer that is armed while another one fires gets no row."""

    def rows(keys: Any, step: Step, writes: list[Any]) -> int:
        before = len(writes)
        nearest: int = right(keys, step, writes)
        if any(isinstance(event, e.TimerFired) for event in step.events):
            writes[before:] = [write for write in writes[before:] if write[1] is None]
        return nearest

    return rows


def _timer_given_up(right: Any) -> Any:
    """A timer that could not be fired because the store was out is not tried again."""

    async def fire_row(timers: Any, key: bytes) -> int:
        await right(timers, key)
        return NEVER

    return fire_row


def _fires_early(right: Any) -> Any:
    """When a timer fires, the next one of the same case fires with it."""

    def fire_timer(step: Step, command: c.FireTimer) -> None:
        right(step, command)
        if any(isinstance(event, e.TimerFired) for event in step.events) and step.case.state == "running":
            for timer in list(step.case.timers.values())[:1]:
                due.fire(step, timer)
                settle(step)

    return lambda table: {**table, c.FireTimer: fire_timer}


def _armed_twice(right: Any) -> Any:
    """The time-out of work that is offered again is armed although the one before still runs."""

    def arm(step: Step, activation: Any, instance: int, kind: str, due_at: int) -> None:
        right(step, activation, instance, kind, due_at)
        if kind == "timeout" and instance and activation.instances[instance].attempt > 1:
            right(step, activation, instance, kind, due_at)

    return arm


def _message_forgotten(right: Any) -> Any:
    """After a restart nobody goes on delivering what was under way."""

    async def recover(messages: Any) -> None:
        return None

    return recover


def _said_before_delivered(right: Any) -> Any:
    """A message whose delivery the store refuses is said to be kept."""

    async def one(messages: Any, case_id: str, signal: Any, meta: Any) -> Any:
        try:
            return await messages._deliver(case_id, signal, meta)
        except StoreUnavailable:
            return TriggerDelivery(case_id, "kept")
        except WorkflowError:
            return None

    return one


def _token_of_whole_batch(right: Any) -> Any:
    """The token of an event in the middle of a batch stands for the whole batch."""
    return lambda places: right({shard: (place[0] + bool(place[1]), 0) for shard, place in places.items()})


def _version_again(right: Any) -> Any:
    """Registering does not look whether this content is there already."""

    async def same(definitions: Any, parsed: Any, tenant: str) -> None:
        return None

    return same


def _not_undone(right: Any) -> Any:
    """What was completed is not undone when a net is removed."""
    return lambda *_, **__: False


def _lock_kept(right: Any) -> Any:
    """A lock is not released in the step in which something was cancelled."""

    def release(step: Step) -> bool:
        if any(isinstance(event, e.TaskCancelled) for event in step.events):
            return False
        released: bool = right(step)
        return released

    return release


def _instance_left(right: Any) -> Any:
    """Of several instances the last one is not stopped."""

    def stopped(step: Step, activation: Any, *more: Any) -> Any:
        held = dict(activation.instances)
        if len(held) > 1:
            del activation.instances[max(held)]
        gone = yield from right(step, activation, *more)
        activation.instances = held
        return gone

    return stopped


def _timers_not_in_snapshots(right: Any) -> Any:
    """What a snapshot gives has no timers."""

    def decode(data: bytes) -> Case:
        case: Case = right(data)
        case.timers = {}
        return case

    return decode


def _applier(kind: type[e.Event], wrong: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A copy of the applier table with one wrong entry."""
    return lambda table: {**table, kind: wrong(table[kind])}


BUGS: Final[tuple[Bug, ...]] = (
    Bug(1, "ack before commit", "runtime/live.py", LiveCases, "commit", _ack_before_commit),
    Bug(1_000, "failed though written", "store/journal.py", _Shard, "_resolve", _failed_though_written),
    Bug(42, "written on without recovery", "store/journal.py", _Shard, "_resolve", _written_without_recovery),
    Bug(303, "ack before sync", "store/journal.py", _Shard, "_commit", _ack_before_sync),
    Bug(5, "link left out", "store/codec.py", journal, "seal_log", _link_left_out),
    Bug(733, "lost timer", "runtime/timers.py", runtime_timers, "rows", _timer_row_lost),
    Bug(2_001, "timer given up", "runtime/timers.py", runtime_timers.Timers, "_fire_row", _timer_given_up),
    Bug(
        721,
        "early timer",
        "core/due.py",
        core_decide,
        "DECIDE",
        lambda table: _fires_early(table[c.FireTimer])(table),
    ),
    Bug(721, "timer armed twice", "core/timers.py", core_timers, "_arm", _armed_twice),
    Bug(1_001, "message forgotten at restart", "runtime/messages.py", Messages, "recover", _message_forgotten),
    Bug(2_677, "message said to be delivered", "runtime/messages.py", Messages, "_one", _said_before_delivered),
    Bug(10_934, "watch token of a whole batch", "runtime/query.py", query, "resume_token", _token_of_whole_batch),
    Bug(0, "workflow registered again", "runtime/definitions.py", Definitions, "_same", _version_again),
    Bug(753, "not undone", "core/compensation.py", compensation, "roll_back", _not_undone),
    Bug(3_501, "lock kept", "core/locks.py", locks, "release", _lock_kept),
    Bug(712, "instance left behind", "core/cancel.py", cancel, "_stopped", _instance_left),
    Bug(320, "snapshot without timers", "core/case.py", live, "decode_state", _timers_not_in_snapshots),
    Bug(9, "call before its commit", "runtime/live.py", LiveCases, "commit", _call_before_commit),
    Bug(169, "call without a word", "runtime/outbox.py", Outbox, "_tell", _call_without_a_word),
    Bug(26_043, "call forgotten at restart", "runtime/outbox.py", Outbox, "recover", _call_forgotten),
    Bug(17, "chain follows what was never written", "store/journal.py", _Shard, "_fail", _chain_forgets),
    Bug(43, "dropped idempotency record", "runtime/requests.py", Requests, "record", _no_request_record),
    Bug(13_021, "cascade forgotten at restart", "runtime/parts.py", Parts, "_recover_cascades", _cascade_forgotten),
    Bug(43, "lost head expectation", "runtime/live.py", LiveCases, "unit", _no_head_expectation),
    Bug(43, "memory ahead of disk", "runtime/live.py", LiveCases, "abandon", _memory_ahead),
    Bug(255, "case stays locked", "runtime/live.py", LiveCases, "abandon", _lock_lost),
    Bug(2_000, "cancelled caller keeps the case", "runtime/live.py", LiveCase, "acquire", _turn_lost),
    Bug(215, "stale snapshot", "runtime/live.py", LiveCases, "_snapshot", _stale_snapshot),
    Bug(237, "snapshot of another moment", "runtime/live.py", live, "encode_state", _early_snapshot),
    Bug(25, "finished work stays listed", "runtime/live.py", LiveCases, "unit", _row_kept),
    Bug(165, "change beside the events", "core/step.py", Step, "emit", _unrecorded_change),
    Bug(69, "item completed twice", "core/decide.py", core_decide, "ended", _completed_twice),
    Bug(16, "token counted twice", "core/apply.py", core_apply, "APPLY", _applier(e.TaskCompleted, _token_twice)),
)


def hunt(bug: Bug, seed: int, steps: int) -> Report:
    """Simulate with a bug until it is found."""
    return run(plans(seed, steps), planted=bug.planted)


def hunt_all(seed: int, steps: int, jobs: int, bugs: Sequence[Bug] = BUGS) -> Iterator[tuple[Bug, Report]]:
    """Every bug in its turn, several at once."""
    if jobs == 1:
        for bug in bugs:
            yield bug, hunt(bug, seed, steps)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        found = [pool.submit(_errand, bug.name, seed, steps) for bug in bugs]
        for bug, future in zip(bugs, found, strict=True):
            yield bug, future.result()


def _errand(name: str, seed: int, steps: int) -> Report:
    return hunt(next(bug for bug in BUGS if bug.name == name), seed, steps)
