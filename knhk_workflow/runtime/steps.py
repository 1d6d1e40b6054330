"""Steps: the way of a command through a case, and cases looked at between two commands.

    hold the case -> decide (pure, microseconds) -> journal (group commit) -> release -> answer

One command at a time per case; different cases share commits. Cancelling a call before its unit is queued takes it
back; afterwards it is written all the same and only the answer is lost. A cascade that was too long for one step goes
on in the background, slice by slice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.core.case import Case
from knhk_workflow.core.decide import decide
from knhk_workflow.core.step import Step
from knhk_workflow.errors import Busy, Fenced, RoleRequired, StoreError, StoreUnavailable, WorkflowError, WrongState
from knhk_workflow.fortune5.slo import ServiceLevels
from knhk_workflow.model.net import Model
from knhk_workflow.runtime import query
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.live import LiveCase, LiveCases
from knhk_workflow.runtime.meta import CallMeta, too_late
from knhk_workflow.runtime.outbox import CRASHED, CallReport, pending
from knhk_workflow.runtime.poison import poisoned
from knhk_workflow.runtime.problems import tell_operator
from knhk_workflow.runtime.records import CallRecord
from knhk_workflow.runtime.requests import Request, Requests
from knhk_workflow.runtime.timers import Outcome as TimerOutcome
from knhk_workflow.runtime.timers import fired
from knhk_workflow.runtime.views import CaseView, InstancesView, TriggerDelivery, WorkItemView
from knhk_workflow.store import ExpectationFailed, Outcome, OutcomeUnknown

CONTINUE_PAUSE_S: Final = 0.5  # between attempts to carry a cascade on while the store cannot write
SYSTEM: Final = "system:engine"
TIMER: Final = "system:timer"
CONNECTOR: Final = "system:connector"

T = TypeVar("T")
C = TypeVar("C", bound=c.Command)

OnItem = (
    c.ClaimItem | c.ReleaseItem | c.StartItem | c.CompleteItem | c.FailItem | c.SkipItem | c.LeaseItem | c.ReturnItem
)
_DOING: Final = (c.ClaimItem, c.ReleaseItem, c.StartItem, c.CompleteItem, c.FailItem, c.SkipItem)
OnInstances = c.AddInstance | c.CloseInstances | c.CompleteInstances | c.CancelInstances
Spawn = Callable[[Coroutine[object, object, None]], asyncio.Task[None]]


class Steps:
    """The commands of one engine. `levels`: who is told how long steps and commits take."""

    def __init__(
        self, cases: LiveCases, requests: Requests, clock: Clock, levels: ServiceLevels | None, spawn: Spawn
    ) -> None:
        self._cases = cases
        self._requests = requests
        self._clock = clock
        self._levels = levels
        self._spawn = spawn

    # -- commands -----------------------------------------------------------------------------------------------------

    async def on_case(self, case_id: str, command: c.Command, meta: CallMeta, *, rest: bool = False) -> CaseView:
        """Carry a command out; the answer is the case, with `rest` once no automatic firing is left."""
        view = await self._carry_out(case_id, command, meta, _case_after, _no_receipt, _as_it_is)
        if view is None:
            return await self.rest(meta, case_id)
        live = self._cases.peek(meta.tenant, case_id)
        return await self.rest(meta, case_id, view) if rest and live is not None and live.continuing else view

    def on_item(self, case_id: str, command: OnItem, meta: CallMeta) -> Awaitable[WorkItemView]:
        """Carry a command on a work item out; the answer is the item as the command left it."""
        return self._carry_out(case_id, command, meta, _item_after, _encode, _decode_item)

    async def on_items(self, asked: Sequence[tuple[str, OnItem, CallMeta]]) -> list[WorkItemView | WorkflowError]:
        """`on_item` for each; one's error is its own answer, a mistake of ours too. Those whose cases are at hand share
        commits without a task for each."""
        answers: list[WorkItemView | WorkflowError | None] = [None] * len(asked)
        begun: list[tuple[int, WorkItemView, asyncio.Future[Outcome]]] = []
        others: list[int] = []
        for index, (case_id, command, meta) in enumerate(asked):
            live = self._cases.at_hand(meta.tenant, case_id) if not meta.request_id else None
            if live is None:
                others.append(index)
                continue
            try:
                view, told = self._step(live, command, meta, None, _item_after, _encode)
                assert told is not None, "no command on an item leaves everything as it is"
            except Exception as error:  # noqa: BLE001  # the others in the list are not concerned
                answers[index] = _mistake(case_id, error)
                continue
            begun.append((index, view, told))

        async def one(index: int) -> None:
            try:
                answers[index] = await self.on_item(*asked[index])
            except Exception as error:  # noqa: BLE001  # the others in the list are not concerned
                answers[index] = _mistake(asked[index][0], error)

        if others:
            await asyncio.gather(*map(one, others))
        began = self._clock.now() if self._levels is not None else 0
        for index, view, told in begun:
            outcome = await told
            if isinstance(outcome, int):
                answers[index] = view
            elif isinstance(outcome, ExpectationFailed):
                answers[index] = _elsewhere(asked[index][0])
            else:
                answers[index] = outcome
        if begun and self._levels is not None:
            self._levels.committed(self._clock.now() - began)
        return [answer for answer in answers if answer is not None]

    def on_instances(self, case_id: str, command: OnInstances, meta: CallMeta) -> Awaitable[InstancesView]:
        """Carry a command on a multiple-instance task out."""
        return self._carry_out(case_id, command, meta, _instances_after, _encode, _decode_instances)

    def deliver(self, case_id: str, signal: c.Signal, meta: CallMeta) -> Awaitable[TriggerDelivery]:
        """One case's delivery. A message is known to each case by itself, whichever way it was addressed."""
        about = (case_id, msgspec.structs.replace(signal, expires=0))
        return self._carry_out(case_id, signal, meta, _delivery_after, _encode, _decode_delivery, about)

    async def fire_timer(self, tenant: str, case_id: str, number: int) -> TimerOutcome:
        """A timer is due."""
        meta = CallMeta(tenant=tenant, principal=TIMER, method="fire_timer")
        try:
            return await self._carry_out(case_id, c.FireTimer(number), meta, _fired, _no_receipt, lambda _: "done")
        except WorkflowError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever the core did wrong, it is this case's affair
            await poisoned(self._cases, self._clock, case_id, meta, error)
            return "done"

    async def report_call(self, tenant: str, case_id: str, command: CallReport) -> None:
        """What became of a connector's call. When the core makes a mistake with that, the call has failed for good:
        nothing else makes it again before the next start, and whoever retries the incident does."""
        meta = CallMeta(tenant=tenant, principal=CONNECTOR, method="report_call")
        for last in (False, True):
            try:
                await self._carry_out(case_id, command, meta, lambda *_: None, _no_receipt, lambda _: None)
            except WorkflowError:
                raise
            except Exception as error:  # whatever the core did wrong, it is this case's affair
                if last or isinstance(command, c.BeginCall):
                    await poisoned(self._cases, self._clock, case_id, meta, error)
                    raise WrongState("call", case_id, "reported", "stopped by a mistake of the engine") from error
                tell_operator(f"what a call of case {case_id!r} of tenant {tenant!r} gave met a mistake of ours", error)
                message = f"the engine made a mistake with what the call gave ({type(error).__name__}); the log has it"
                command = c.FailCall(command.item, CRASHED, message, permanent=True)
            else:
                return

    async def _carry_out(
        self,
        case_id: str,
        command: C,
        meta: CallMeta,
        view: Callable[[LiveCase, Step, C], T],
        receipt: Callable[[T], bytes],
        replayed: Callable[[bytes], T],
        about: object = None,
    ) -> T:
        """Carry a command out on a case, durably. The answer is a `view` of its step. With a request id `receipt` says
        what is kept of it, and `replayed` makes the answer of that for whoever asks again `about` the same (None: this
        command on this case)."""
        request = self._requests.of(meta, about or (case_id, command)) if meta.request_id else None
        try:
            live = self._cases.at_hand(meta.tenant, case_id) or await self._cases.hold(meta.tenant, case_id)
            result, told = self._step(live, command, meta, request, view, receipt)
            if told is not None:
                began = self._clock.now() if self._levels is not None else 0
                outcome = await told
                if not isinstance(outcome, int):
                    if isinstance(outcome, ExpectationFailed):
                        raise _elsewhere(case_id)
                    raise outcome
                if self._levels is not None:
                    self._levels.committed(self._clock.now() - began)
            elif request is not None:  # nothing is left to do: because it was done before, perhaps
                record = await self._requests.find(request, meta.tenant, case_id)
                if record is not None:
                    return replayed(record.receipt)
        except OutcomeUnknown:
            raise  # a failing look at the request's record must not turn this into "nothing was written"
        except WorkflowError:
            record = await self._requests.find(request, meta.tenant, case_id) if request is not None else None
            if record is None:
                raise
            if meta.witness is not None:
                meta.witness.recorded = False  # what was to be written is not: it was done before
            return replayed(record.receipt)
        return result

    def _step(
        self,
        live: LiveCase,
        command: C,
        meta: CallMeta,
        request: Request | None,
        view: Callable[[LiveCase, Step, C], T],
        receipt: Callable[[T], bytes],
    ) -> tuple[T, asyncio.Future[Outcome] | None]:
        """One step of a held case, in memory and into the journal's queue; it cannot be interrupted. The future is None
        when nothing happened. Whoever holds the case need not release it any more."""
        case, model = live.loaded()
        sequence = case.sequence
        try:
            now = self._clock.now()
            if meta.deadline and now > meta.deadline:
                raise too_late()
            if meta.roles and isinstance(command, _DOING):
                _held_by(meta.roles, case, model, command.item)
            step = decide(case, model, command, now)
            if self._levels is not None:
                self._levels.stepped(self._clock.now() - now)
            result = view(live, step, command)
            if not step.events:
                self._cases.done(live)
                return result, None
            record = None
            if request is not None:
                record = self._requests.record(live.keys, request, case.sequence, receipt(result))
            unit = self._cases.unit(live, step, meta, record)
        except BaseException as error:
            if not isinstance(error, WorkflowError) or case.sequence != sequence:
                self._cases.drop(live)
            live.release()
            raise
        return result, self._cases.commit(live, unit)

    # -- between commands ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def held(self, meta: CallMeta, case_id: str) -> AsyncIterator[LiveCase]:
        """The case, loaded, while no command is at work on it. Raises NotFound."""
        live = await self._cases.hold(meta.tenant, case_id)
        try:
            yield live
        finally:
            self._cases.done(live)

    async def calls(self, tenant: str, case_id: str) -> Mapping[str, CallRecord]:
        """The calls that a case wants, as it was last committed. Raises NotFound, StoreCorrupt, StoreUnavailable."""
        async with self.held(CallMeta(tenant=tenant), case_id) as live:
            return pending(live.loaded()[0])

    async def look(self, meta: CallMeta, case_id: str) -> CaseView:
        """The case as it was last committed. Raises NotFound."""
        async with self.held(meta, case_id) as live:
            return query.case_view(*live.loaded(), live.created_by)

    async def rest(self, meta: CallMeta, case_id: str, done: CaseView | None = None) -> CaseView:
        """The case once no automatic firing is left. `done` is what a command of this call left: it is the answer when
        the case cannot be read again, because an error would say that nothing was written."""
        while True:
            live = self._cases.peek(meta.tenant, case_id)
            if live is None or live.continuing is None:
                try:
                    return await self.look(meta, case_id)
                except StoreError:
                    if done is None:
                        raise
                    return done
            await asyncio.wait([live.continuing])

    def carry_on(self, live: LiveCase) -> None:
        """A case has a paused cascade: carry it on in the background, slice by slice."""
        if live.continuing is None or live.continuing.done():
            live.continuing = task = self._spawn(self._carry_on(live))
            task.add_done_callback(lambda done: _carried(live, done))

    async def _carry_on(self, live: LiveCase) -> None:
        keys = live.keys
        meta = CallMeta(tenant=keys.tenant, principal=SYSTEM, method="continue")
        try:
            while True:
                try:
                    going = await self._carry_out(
                        keys.case_id, c.Continue(), meta, _going_on, _no_receipt, lambda _: True
                    )
                except (StoreUnavailable, Busy):
                    await asyncio.sleep(CONTINUE_PAUSE_S)
                    continue
                if not going:
                    return
        except WorkflowError:
            return  # the case is broken or gone; whoever touches it is told
        except Exception as error:  # noqa: BLE001  # whatever the core did wrong, it is this case's affair
            await poisoned(self._cases, self._clock, keys.case_id, meta, error)


_encode = msgspec.msgpack.Encoder().encode
_decode_item = msgspec.msgpack.Decoder(WorkItemView).decode
_decode_instances = msgspec.msgpack.Decoder(InstancesView).decode
_decode_delivery = msgspec.msgpack.Decoder(TriggerDelivery).decode


def _carried(live: LiveCase, task: asyncio.Task[None]) -> None:
    """A cascade is not carried on any more. Told by its task, since one that is cancelled at once never begins."""
    if live.continuing is task:
        live.continuing = None
    for event in live.changed:
        event.set()


def _held_by(roles: tuple[str, ...], case: Case, model: Model, ref: c.ItemRef) -> None:
    """Raises RoleRequired for work that is not for any of these roles. What does not exist is the command's to say."""
    activation = case.activations.get(ref.activation)
    if activation is None:
        return
    needed = model.nets[case.nets[activation.net].name].tasks[activation.task].task.required_roles
    if needed and not set(needed).intersection(roles):
        raise RoleRequired("work item", ref.name(case.case_id), needed)


def _elsewhere(case_id: str) -> Fenced:
    return Fenced(f"case {case_id!r} was changed by somebody else; nothing was written, try again")


def _mistake(case_id: str, error: Exception) -> WorkflowError:
    """The answer of one element: the error, or that we made a mistake with it, which the log has."""
    if isinstance(error, WorkflowError):
        return error
    problem = f"a command on case {case_id!r} failed by a mistake of ours"
    tell_operator(problem, error)
    return WorkflowError(f"{problem}; the log has the details")


def _no_receipt(_: object) -> bytes:
    return b""


def _as_it_is(_: bytes) -> CaseView | None:
    """A repeated command on a case is answered with the case as it is now."""
    return None


def _going_on(_: LiveCase, step: Step, __: c.Command) -> bool:
    return bool(step.case.ready) and step.case.state == "running"


def _fired(_: LiveCase, step: Step, command: c.FireTimer) -> TimerOutcome:
    return fired(step, command.timer)


def _case_after(live: LiveCase, step: Step, _: c.Command) -> CaseView:
    return query.case_view(step.case, step.model, live.created_by)


def _item_after(_: LiveCase, step: Step, command: OnItem) -> WorkItemView:
    return query.work_item_after(step, command.item, type(command) is c.LeaseItem)


def _instances_after(_: LiveCase, step: Step, __: OnInstances) -> InstancesView:
    return query.instances_after(step)


def _delivery_after(_: LiveCase, step: Step, __: c.Signal) -> TriggerDelivery:
    return query.delivery_after(step)
