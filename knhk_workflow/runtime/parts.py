"""The parts of an open engine, and the life that they share.

They are made together once the store is open, in the order in which one needs the other; where two need each other, the
one that is made first asks for the other one when it is used. Then each takes up what was left unfinished, and only
then do calls come in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Mapping, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.errors import Busy, StoreError, WorkflowError
from knhk_workflow.fortune5.slo import ServiceLevels
from knhk_workflow.model.verify import VerifyBudget
from knhk_workflow.runtime import messages
from knhk_workflow.runtime.audit_stream import AuditStream
from knhk_workflow.runtime.audit_trail import Trail
from knhk_workflow.runtime.audit_trees import Trees
from knhk_workflow.runtime.births import Births
from knhk_workflow.runtime.clock import Clock, Ids, SkippingClock
from knhk_workflow.runtime.connectors import Connectors, ConnectorSetup
from knhk_workflow.runtime.counts import Counts
from knhk_workflow.runtime.dead_letters import DeadLetters
from knhk_workflow.runtime.definitions import VERIFY_BUDGET, Definitions
from knhk_workflow.runtime.dispatch import Dispatch
from knhk_workflow.runtime.inputs import parse_item_id
from knhk_workflow.runtime.live import CACHED_CASES, CONTINUE, LiveCase, LiveCases
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.outbox import CallReport, Outbox
from knhk_workflow.runtime.query import Query, work_item
from knhk_workflow.runtime.records import CallRecord
from knhk_workflow.runtime.requests import Requests
from knhk_workflow.runtime.retention import KEEP, Retention, RetentionPolicy
from knhk_workflow.runtime.schedules import Schedules
from knhk_workflow.runtime.skipping import go_on_from
from knhk_workflow.runtime.state_store import StateStore
from knhk_workflow.runtime.steps import OnItem, Steps
from knhk_workflow.runtime.timers import Outcome as TimerOutcome
from knhk_workflow.runtime.timers import Timers
from knhk_workflow.runtime.views import WorkItemView
from knhk_workflow.runtime.watching import Watching
from knhk_workflow.store import Journal, JournalLimits, Keyspace, Snapshot, Store, Unit
from knhk_workflow.store.keys import parse_effect
from knhk_workflow.store.portions import portions

SWEEP_EVERY_S: Final = 60.0
RECOVER_PAGE: Final = 1_000


class EngineLimits(msgspec.Struct, frozen=True):
    """Bounds of one engine that an operator may set."""

    cached_cases: int = CACHED_CASES
    verification: VerifyBudget = VERIFY_BUDGET
    """What verifying one workflow may take; counted, so that the same workflow always gets the same verdict."""
    message_cases: int = messages.CASES_MAX
    """Most cases that one message may reach."""
    journal: JournalLimits = JournalLimits()
    retention: RetentionPolicy = KEEP
    """How long ended cases are kept."""


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """What an engine is made with. `connectors` None: it calls nobody."""

    clock: Clock
    ids: Ids
    limits: EngineLimits
    connectors: ConnectorSetup | None
    levels: ServiceLevels | None


class Parts:
    """See the module."""

    def __init__(self, store: Store, journal: Journal, setup: EngineSetup) -> None:
        """Use `opened`."""
        clock, limits = setup.clock, setup.limits
        keyspace = Keyspace(store.shards)
        self.store = store
        self.journal = journal
        self.keyspace = keyspace
        self.commits = 0
        self._closed = False
        self._tasks: dict[asyncio.Task[None], None] = {}  # ordered, so that they end in the same order in every run
        self._services: set[asyncio.Task[None]] = set()  # these end with the engine, the other tasks by themselves
        journal.on_commit(self._committed)
        self.requests = Requests(store, keyspace)
        self.definitions = Definitions(store, journal, keyspace, self.requests, clock, limits.verification)
        self.timers = Timers(store, keyspace, clock, self._fire_timer)
        self.connectors = Connectors(
            setup.connectors or ConnectorSetup(), store, journal, keyspace, clock, self._connector_moved
        )
        self.outbox = Outbox(
            store,
            keyspace,
            clock,
            self.connectors.find,
            self._report_call,
            self._wanted_calls,
            self.spawn,
            idle=setup.connectors is None,
        )
        self.dispatch = Dispatch(store, keyspace, clock, self._on_items, self.work_item, self._peek, self.spawn)
        self.cases = LiveCases(
            store,
            journal,
            self.definitions,
            clock,
            keyspace,
            self._continue,
            self.timers.expect,
            self.dispatch.worked,
            self.outbox.note,
            limits.cached_cases,
        )
        self.query = Query(store, keyspace, self.definitions.veil)
        self.steps = Steps(self.cases, self.requests, clock, setup.levels, self.spawn)
        self.births = Births(self.cases, self.definitions, self.requests, self.steps, clock, setup.ids)
        self.dead_letters = DeadLetters(self.query, self.steps)
        self.watching = Watching(self.query, self.cases, self.steps, journal, clock, keyspace.shards)
        self.messages = messages.Messages(
            store,
            journal,
            keyspace,
            self.definitions,
            clock,
            self.steps.deliver,
            self.spawn,
            limits.message_cases,
        )
        self.schedules = Schedules(
            store,
            journal,
            keyspace,
            self.definitions,
            self.requests,
            clock,
            lambda asked, meta: self.births.create(asked, True, meta, rest=False),
            lambda case_id, reason, meta: self.steps.on_case(case_id, c.CancelCase(reason), meta),
            self.spawn,
        )
        self.retention = Retention(
            store, journal, keyspace, self.cases, clock, limits.retention, limits.journal.request_window_s
        )
        self.counts = Counts(store, journal, keyspace)
        self.trail = Trail(store, keyspace)
        self.trees = Trees(store, journal, keyspace, clock)
        self.stream = AuditStream(journal, keyspace, clock)

    @classmethod
    async def opened(cls, state_store: StateStore, setup: EngineSetup) -> Parts:
        """Open the store, verify its end, claim it, and know what was left unfinished. Then `begin`. Raises StoreError,
        and InvalidInput for a configured connector that cannot be used; nothing is left open then."""
        async with AsyncExitStack() as undo:
            store = await state_store.open()
            undo.push_async_callback(state_store.close)
            if isinstance(setup.clock, SkippingClock):
                await go_on_from(setup.clock, store, Keyspace(store.shards))
            journal = await Journal.open(store, setup.clock.now, limits=setup.limits.journal)
            undo.push_async_callback(journal.close)
            parts = cls(store, journal, setup)
            undo.push_async_callback(parts.close)
            await parts._recover()
            undo.pop_all()
        return parts

    async def _recover(self) -> None:
        """Take up what was pending when the engine last ended."""
        await self.connectors.load()
        await self.retention.recover()
        await self._recover_cascades()
        await self.messages.recover()
        await self.outbox.recover()
        await self.schedules.recover()

    async def _recover_cascades(self) -> None:
        for shard in range(self.keyspace.shards):
            async for rows in portions(self.store, self.keyspace.effects(shard), RECOVER_PAGE):
                for key, _ in rows:
                    tenant, case_id, effect = parse_effect(key)
                    if effect == CONTINUE:
                        self._continue(self.cases.entry(tenant, case_id))

    def begin(self) -> None:
        """From now on the services run."""
        for service in (
            self._sweep(),
            self.timers.run(),
            self.schedules.run(),
            self.retention.run(),
            self.stream.run(),
        ):
            self._services.add(self.spawn(service))
        self.spawn(self.dispatch.restore())
        self.spawn(self.counts.run())

    async def close(self) -> None:
        """End the services and the tasks, and write what was accepted; what they have not finished is taken up after
        the next opening. The store stays open."""
        self._closed = True
        self.messages.close()
        self.outbox.close()
        self.dispatch.close()
        await self.stream.close()
        await self._end_tasks()
        self.watching.close()
        await self.journal.close()
        await self._end_tasks()  # those that its last commits have begun
        await self.connectors.close()

    async def _end_tasks(self) -> None:
        """End everything that goes on in the background, and what begins by that."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)  # they leave the list by callbacks

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Do something in the background, until the engine is closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    def under_way(self) -> Set[asyncio.Task[None]]:
        """What goes on in the background and ends by itself."""
        return self._tasks.keys() - self._services

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[Snapshot]:
        """A snapshot of the store."""
        snapshot = await self.store.snapshot()
        try:
            yield snapshot
        finally:
            await snapshot.close()

    async def work_item(self, item_id: str, meta: CallMeta) -> WorkItemView:
        """One open work item with its input data, and its lease. Raises NotFound."""
        ref, case_id = parse_item_id(item_id)
        async with self.steps.held(meta, case_id) as live:
            return self.dispatch.leased(work_item(*live.loaded(), ref), meta)

    # -- what parts ask of those that are made after them --------------------------------------------------------------

    def _fire_timer(self, tenant: str, case_id: str, number: int) -> Awaitable[TimerOutcome]:
        return self.steps.fire_timer(tenant, case_id, number)

    def _report_call(self, tenant: str, case_id: str, command: CallReport) -> Awaitable[None]:
        return self.steps.report_call(tenant, case_id, command)

    def _wanted_calls(self, tenant: str, case_id: str) -> Awaitable[Mapping[str, CallRecord]]:
        return self.steps.calls(tenant, case_id)

    def _connector_moved(self, tenant: str, name: str) -> None:
        self.outbox.moved(tenant, name)

    def _on_items(self, asked: Sequence[tuple[str, OnItem, CallMeta]]) -> Awaitable[list[WorkItemView | WorkflowError]]:
        return self.steps.on_items(asked)

    def _peek(self, tenant: str, case_id: str) -> LiveCase | None:
        return self.cases.peek(tenant, case_id)

    def _continue(self, live: LiveCase) -> None:
        """A case has a paused cascade."""
        if not self._closed:
            self.steps.carry_on(live)

    def _committed(self, shard: int, position: int, units: Sequence[Unit]) -> None:
        self.commits += 1
        self.counts.committed(units)
        self.trees.noted(shard, position)
        self.messages.notice(units)
        self.schedules.notice(units)
        self.watching.committed()

    async def _sweep(self) -> None:
        """Delete expired idempotency records and messages, now and then."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            with suppress(StoreError, Busy):  # the next round does it
                await self.messages.sweep()
            for shard in self.keyspace.all_shards():
                with suppress(StoreError, Busy):
                    while await self.journal.sweep_requests(shard):
                        pass
