"""The engine: every operation on workflows, cases and work items, made durable before it is answered.

    hold the case -> step (pure, microseconds) -> journal (group commit) -> release -> answer

One command at a time per case; different cases share commits. A request id makes a mutation idempotent: the record that
says what it did is part of the same commit, and the commit itself expects that there was none. Cancelling a call before
its unit is queued takes it back; afterwards it is written all the same and only the answer is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import blake2b
from typing import Final, TypeVar

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.core.decide import create, decide
from knhk_workflow.core.step import Step
from knhk_workflow.errors import (
    AlreadyExists,
    Busy,
    DeadlineExceeded,
    Fenced,
    InvalidInput,
    LimitExceeded,
    NotFound,
    RequestMismatch,
    StoreError,
    StoreUnavailable,
    Unsupported,
    WorkflowError,
    WrongState,
)
from knhk_workflow.fortune5.config import Fortune5Config
from knhk_workflow.fortune5.slo import Fortune5Integration
from knhk_workflow.model.net import Model
from knhk_workflow.model.verify import VerifyBudget
from knhk_workflow.patterns.catalogue import HINT, PATTERNS, find
from knhk_workflow.runtime import messages, query, sandbox
from knhk_workflow.runtime.clock import NS_PER_S, Clock, Ids, SystemClock, SystemIds
from knhk_workflow.runtime.definitions import VERIFY_BUDGET, Definitions, Document
from knhk_workflow.runtime.export import export
from knhk_workflow.runtime.inputs import (
    JsonObject,
    checked_id,
    checked_schema,
    json_object,
    parse_incident_id,
    parse_item_id,
)
from knhk_workflow.runtime.integrity import Examination, Progress, examine
from knhk_workflow.runtime.live import CACHED_CASES, LiveCase, LiveCases
from knhk_workflow.runtime.meta import LOCAL, CallMeta
from knhk_workflow.runtime.pages import PAGE_SIZE_MAX, page_size_of
from knhk_workflow.runtime.records import REQUESTS, RequestRecord, ScheduleSpec, pack
from knhk_workflow.runtime.schedules import Asked, Schedules
from knhk_workflow.runtime.state_store import StateStore
from knhk_workflow.runtime.timers import Outcome as TimerOutcome
from knhk_workflow.runtime.timers import Timers, fired
from knhk_workflow.runtime.views import (
    CaseFilter,
    CaseView,
    EngineStatus,
    Explanation,
    HistoryEvent,
    IncidentView,
    InstancesView,
    MessageView,
    Page,
    PatternExecutionContext,
    PatternResult,
    PatternView,
    ScheduleView,
    TriggerDelivery,
    Validation,
    WorkflowView,
    WorkItemFilter,
    WorkItemView,
)
from knhk_workflow.store import (
    ExpectationFailed,
    Journal,
    JournalLimits,
    Keyspace,
    Outcome,
    OutcomeUnknown,
    Snapshot,
    Store,
    Unit,
)
from knhk_workflow.store.backup import Piece, take
from knhk_workflow.store.keys import META_SHARD, parse_effect

REQUEST_ID_BYTES_MAX: Final = 128
BATCH_MAX: Final = 1_000  # cases or items in one call; one group commit holds about as many
SWEEP_EVERY_S: Final = 60.0
CONTINUE_PAUSE_S: Final = 0.5  # between attempts to carry a cascade on while the store cannot write
RECOVER_PAGE: Final = 1_000
SYSTEM: Final = "system:engine"
TIMER: Final = "system:timer"

ALL_CASES: Final = CaseFilter()
ALL_WORK: Final = WorkItemFilter()
NO_CONTEXT: Final = PatternExecutionContext()
RUN_EVENTS: Final = 50  # of a pattern's run in memory, before others get a turn; about 1 ms

T = TypeVar("T")
C = TypeVar("C", bound=c.Command)

_OnItem = c.ClaimItem | c.ReleaseItem | c.StartItem | c.CompleteItem | c.FailItem | c.SkipItem
_Instances = c.AddInstance | c.CloseInstances | c.CompleteInstances | c.CancelInstances


class EngineLimits(msgspec.Struct, frozen=True):
    """Bounds of one engine that an operator may set."""

    cached_cases: int = CACHED_CASES
    verification: VerifyBudget = VERIFY_BUDGET
    """What verifying one workflow may take; counted, so that the same workflow always gets the same verdict."""
    message_cases: int = messages.CASES_MAX
    """Most cases that one message may reach."""
    journal: JournalLimits = JournalLimits()


class RunRequest(msgspec.Struct, frozen=True):
    """One case to create, as in `create_case`."""

    spec_id: str
    data: JsonObject = None
    case_id: str = ""
    business_key: str = ""
    version: int = 0


class CompleteRequest(msgspec.Struct, frozen=True):
    """One work item to complete, as in `complete_work_item`."""

    item_id: str
    output: JsonObject = None
    user: str = ""


class _Request(msgspec.Struct, frozen=True, gc=False):
    """A request id at work: the hash that names its record, and that of the command it must be about."""

    scope: bytes
    fingerprint: bytes
    request_id: str


class _Birth(msgspec.Struct, frozen=True, gc=False):
    """A case about to be created: checked input, and who asks."""

    case_id: str
    data: bytes
    business_key: str
    model: Model
    start: bool
    meta: CallMeta
    request: _Request | None


class PatternRun:
    """A pattern's run in memory, as an asynchronous iteration over its trace."""

    def __init__(self, run: sandbox.Run) -> None:
        self._run = run

    async def __aiter__(self) -> AsyncIterator[HistoryEvent]:
        for event in self._run:
            yield event
            await asyncio.sleep(0)

    @property
    def result(self) -> PatternResult:
        """What the run gave. Only after the iteration has ended."""
        return self._run.result


class WorkflowEngine:
    """A workflow engine over one store. Use as `async with WorkflowEngine(StateStore(path)) as engine`.

    All operations raise errors of `knhk_workflow.errors`; what they raise before the commit has changed nothing.
    """

    def __init__(
        self,
        state_store: StateStore,
        *,
        clock: Clock | None = None,
        ids: Ids | None = None,
        limits: EngineLimits | None = None,
        fortune5: Fortune5Config | None = None,
    ) -> None:
        self._state_store = state_store
        self._clock: Clock = clock or SystemClock()
        self._ids: Ids = ids or SystemIds()
        self._limits = limits or EngineLimits()
        self._fortune5 = Fortune5Integration(fortune5, self._clock.now) if fortune5 is not None else None
        self._levels = self._fortune5.levels if self._fortune5 is not None else None
        self._opening = asyncio.Lock()
        self._store: Store | None = None
        self._started_at = self._clock.now()
        self._tasks: dict[asyncio.Task[None], None] = {}  # ordered, so that they end in the same order in every run
        self._log_watchers: set[asyncio.Event] = set()  # told of every commit
        self._case_watchers: set[asyncio.Event] = set()  # told by their cases (runtime/live.py), and of the end
        self._commits = 0
        self._closed = False

    @classmethod
    def with_fortune5(cls, state_store: StateStore, config: Fortune5Config) -> WorkflowEngine:
        """An engine that measures its service levels. Raises Unsupported for parts that this version lacks."""
        return cls(state_store, fortune5=config)

    def fortune5_integration(self) -> Fortune5Integration | None:
        """The service-level features, None for an engine made without them."""
        return self._fortune5

    async def check_slo_compliance(self) -> bool:
        """Whether every measured class keeps its limit; true when nothing is measured."""
        return self._fortune5 is None or self._fortune5.get_slo_metrics().compliant

    # -- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> WorkflowEngine:
        """Open the store, verify its end, claim it, and take up what was left unfinished. Twice is fine."""
        async with self._opening:
            if self._store is None:
                if self._closed:
                    raise StoreUnavailable("the engine is closed")
                store = await self._state_store.open()
                journal: Journal | None = None
                try:
                    keyspace = Keyspace(store.shards)
                    journal = await Journal.open(store, self._clock.now, limits=self._limits.journal)
                    self._journal = journal
                    self._journal.on_commit(self._committed)
                    self._definitions = Definitions(
                        store, self._journal, keyspace, self._clock, self._limits.verification
                    )
                    self._timers = Timers(store, keyspace, self._clock, self._fire_timer)
                    self._cases = LiveCases(
                        store,
                        self._journal,
                        self._definitions,
                        self._clock,
                        keyspace,
                        self._continue,
                        self._timers.expect,
                        self._limits.cached_cases,
                    )
                    self._query = query.Query(store, keyspace)
                    self._messages = messages.Messages(
                        store,
                        self._journal,
                        keyspace,
                        self._definitions,
                        self._clock,
                        self._deliver,
                        self._spawn,
                        self._limits.message_cases,
                    )
                    self._schedules = Schedules(
                        store,
                        self._journal,
                        keyspace,
                        self._definitions,
                        self._clock,
                        self._start_scheduled,
                        lambda case_id, reason, meta: self.cancel_case(case_id, reason, meta=meta),
                        self._spawn,
                    )
                    self._keyspace = keyspace
                    self._store = store
                    await self._recover()
                    await self._messages.recover()
                    await self._schedules.recover()
                except BaseException:
                    self._store = None
                    for task in self._tasks:
                        task.cancel()
                    if journal is not None:
                        await journal.close()
                    await self._state_store.close()
                    raise
                self._spawn(self._sweep())
                self._spawn(self._timers.run())
                self._spawn(self._schedules.run())
        return self

    async def close(self) -> None:
        """Finish what was accepted and release the store. Twice is fine."""
        self._closed = True
        if self._store is not None:
            self._messages.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for event in (*self._log_watchers, *self._case_watchers):
            event.set()
        if self._store is not None:
            await self._journal.close()
            self._store = None
        await self._state_store.close()

    async def __aenter__(self) -> WorkflowEngine:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def now(self) -> int:
        """The engine's time: nanoseconds since the epoch."""
        return self._clock.now()

    def status(self) -> EngineStatus:
        """The engine at a glance."""
        if self._store is None:
            return EngineStatus("", 0, 0, False, False, "not open", 0, 0, self._started_at, self._commits)
        outage = self._journal.outage()
        return EngineStatus(
            store=self._store.kind,
            shards=self._store.shards,
            position=self._journal.position(0),
            open=True,
            healthy=outage is None,
            detail=outage.message if outage is not None else "",
            cached_cases=len(self._cases),
            queued=0,
            started_at=self._started_at,
            commits=self._commits,
        )

    async def fire_due_timers(self) -> None:
        """Return when no timer is due that could be fired. They fire by themselves; this is for who has moved a virtual
        clock and wants to see what came of it."""
        if self._store is None:
            await self.open()
        await self._timers.fire_due()
        await self._schedules.start_due()
        await self._schedules.settled()

    # -- workflows ----------------------------------------------------------------------------------------------------

    async def register_workflow(
        self, document: Document, *, format: str = "json", allow_unsound: bool = False, meta: CallMeta = LOCAL
    ) -> WorkflowView:
        """Register a workflow. Same content = same version (`created` false); other content = the next version.

        Raises InvalidDocument with every problem at once, and Unsound with the findings when a case could get stuck,
        unless `allow_unsound`; then the findings stay with the version.
        """
        if self._store is None:
            await self.open()
        return await self._definitions.register(document, format, meta, allow_unsound)

    async def validate_workflow(
        self, document: Document, *, format: str = "json", meta: CallMeta = LOCAL
    ) -> Validation:
        """What registering would say, as findings; nothing is stored."""
        if self._store is None:
            await self.open()
        return await self._definitions.validate(document, format)

    async def get_workflow(self, spec_id: str, version: int = 0, *, meta: CallMeta = LOCAL) -> WorkflowView:
        """One version of a workflow; 0 is the newest active one."""
        if self._store is None:
            await self.open()
        return await self._definitions.get(meta.tenant, spec_id, version)

    async def list_workflows(
        self, *, all_versions: bool = False, page_size: int = 0, page_token: str = "", meta: CallMeta = LOCAL
    ) -> Page[WorkflowView]:
        """The newest active version of each workflow, or every active one, by id and version, without documents."""
        if self._store is None:
            await self.open()
        if all_versions:
            return await self._definitions.versions(meta.tenant, page_size, page_token)
        return await self._definitions.list(meta.tenant, page_size, page_token)

    async def delete_workflow(self, spec_id: str, version: int = 0, *, meta: CallMeta = LOCAL) -> None:
        """Take a version (0 = all) out of use. Raises WrongState while cases are open on it."""
        if self._store is None:
            await self.open()
        case_id = await self._query.open_case_of(meta.tenant, spec_id, version)
        if case_id is not None:
            raise WrongState(
                "workflow", spec_id, "without open cases", f"in use by case {case_id!r}", "cancel or finish its cases"
            )
        await self._definitions.delete(meta.tenant, spec_id, version)

    # -- cases --------------------------------------------------------------------------------------------------------

    async def create_case(
        self,
        spec_id: str,
        data: JsonObject = None,
        *,
        case_id: str = "",
        business_key: str = "",
        version: int = 0,
        meta: CallMeta = LOCAL,
    ) -> CaseView:
        """Create a case without starting it. Without `case_id` a new one is made (from the request id, if given)."""
        return await self._create(RunRequest(spec_id, data, case_id, business_key, version), False, meta)

    async def run_case(
        self,
        spec_id: str,
        data: JsonObject = None,
        *,
        case_id: str = "",
        business_key: str = "",
        version: int = 0,
        meta: CallMeta = LOCAL,
    ) -> CaseView:
        """Create a case and run it to rest: until it ends or only outside work is left. One durable write."""
        return await self._create(RunRequest(spec_id, data, case_id, business_key, version), True, meta)

    async def run_cases(
        self, requests: Sequence[RunRequest], *, meta: CallMeta = LOCAL
    ) -> list[CaseView | WorkflowError]:
        """`run_case` for each, in one durable write; one element's error is that element's answer."""
        _batch_size("cases", len(requests))
        if self._store is None:
            await self.open()
        answers: dict[int, CaseView | WorkflowError] = {}
        births: dict[str, tuple[int, _Birth]] = {}
        for index, asked in enumerate(requests):
            element = _element(meta, index)
            try:
                birth = await self._birth(asked, True, element)
                if birth.case_id in births:
                    raise AlreadyExists("case", birth.case_id, "it stands twice in this batch")
                births[birth.case_id] = (index, birth)
            except WorkflowError as error:
                answers[index] = error
        refused: list[tuple[int, _Birth, WorkflowError]] = []
        held: list[tuple[int, _Birth, LiveCase, Unit, CaseView]] = []
        try:
            for case_id in sorted(births):  # one order for all batches, so that two of them cannot wait for each other
                index, birth = births[case_id]
                try:
                    held.append((index, birth, *(await self._conceive(birth))))
                except WorkflowError as error:
                    refused.append((index, birth, error))
        except BaseException:
            self._cases.abandon([live for _, _, live, _, _ in held])
            raise
        outcomes = await self._cases.commit_all([(live, unit) for _, _, live, unit, _ in held])
        for (index, birth, _, _, view), outcome in zip(held, outcomes, strict=True):
            if isinstance(outcome, int):
                answers[index] = view
            else:
                refused.append((index, birth, _taken(outcome, birth.case_id)))
        for index, birth, refusal in refused:
            answers[index] = await self._replayed_or(refusal, birth)
        for index, _, live, _, view in held:
            if live.continuing is not None and answers[index] is view:  # not somebody else's case by now
                answers[index] = await self._rest(meta, live.keys.case_id, view)
        return [answers[index] for index in range(len(requests))]

    async def start_case(self, case_id: str, *, meta: CallMeta = LOCAL) -> CaseView:
        """created -> running."""
        return await self._on_case(case_id, c.StartCase(), meta, rest=True)

    async def execute_case(self, case_id: str, *, wait: bool = False, meta: CallMeta = LOCAL) -> CaseView:
        """Start the case if need be and run it to rest; with `wait`, until it has ended or the deadline passes."""
        view = await self._on_case(case_id, c.StartCase(again=True), meta, rest=True)
        return await self.wait_case(case_id, meta=meta) if wait and view.state not in c.ENDED else view

    async def suspend_case(self, case_id: str, reason: str = "", *, meta: CallMeta = LOCAL) -> CaseView:
        """running -> suspended: results of started work are accepted and wait, nothing else goes on."""
        return await self._on_case(case_id, c.SuspendCase(reason), meta)

    async def resume_case(self, case_id: str, reason: str = "", *, meta: CallMeta = LOCAL) -> CaseView:
        """suspended -> running; what waited is taken up."""
        return await self._on_case(case_id, c.ResumeCase(reason), meta, rest=True)

    async def cancel_case(self, case_id: str, reason: str = "", *, meta: CallMeta = LOCAL) -> CaseView:
        """End the case as cancelled, with all its work. Cancelling a cancelled case is fine."""
        return await self._on_case(case_id, c.CancelCase(reason), meta)

    async def update_case_data(
        self,
        case_id: str,
        patch: JsonObject,
        *,
        expected_sequence: int = 0,
        replace: bool = False,
        net: str = "",
        meta: CallMeta = LOCAL,
    ) -> CaseView:
        """Replace top-level keys of the case's data; `expected_sequence` guards against a change in between.

        `replace`: the object given becomes the data. `net`: a live sub-net's name, or its number where several live.
        """
        checked_id(net, "net", empty=True)
        command = c.UpdateCaseData(json_object(patch, "data"), expected_sequence, replace, net)
        return await self._on_case(case_id, command, meta)

    async def cancel_task(
        self, case_id: str, task_id: str, reason: str = "", *, activation: int = 0, meta: CallMeta = LOCAL
    ) -> CaseView:
        """Withdraw or stop one activation of a task; nothing flows on. 0: the only one that there is."""
        checked_id(task_id, "task_id")
        return await self._on_case(case_id, c.CancelTask(task_id, activation, reason), meta, rest=True)

    async def trigger_case(
        self,
        name: str,
        data: JsonObject = None,
        *,
        case_id: str = "",
        key: str = "",
        time_to_live: int | None = None,
        meta: CallMeta = LOCAL,
    ) -> MessageView:
        """Deliver a signal to one case; without one to the open cases with a business key; without either to every open
        case whose workflow waits for it (see runtime/messages.py). With a request id each case takes it once, however
        often it is sent.

        `time_to_live`: nanoseconds for which a persistent signal is kept when nobody waits for it. None: as long as the
        case lives, or one hour when it is not addressed to a case; 0: not at all. Raises NotFound for an unknown case.
        A key that no case has gives an empty answer, and the message waits.
        """
        checked_id(name, "name")
        checked_id(case_id, "case_id", empty=True)
        checked_id(key, "key", empty=True)
        if time_to_live is not None and not 0 <= time_to_live <= messages.TIME_TO_LIVE_MAX:
            raise InvalidInput.field("time_to_live", "must be between 0 and ten years", "for example 1h")
        if self._store is None:
            await self.open()
        body = json_object(data, "data") if data is not None else b""
        if case_id:
            signal = c.Signal(name, body, time_to_live)
            return MessageView(meta.request_id, (await self._deliver(case_id, signal, _element(meta, case_id)),))
        if not meta.request_id:
            meta = msgspec.structs.replace(meta, request_id=f"m-{self._ids.case_id()}")
        request = self._request(meta, (name, key, body, time_to_live))
        asked = messages.Sending(meta, request.scope, request.fingerprint, name, key, body, time_to_live)
        return await self._messages.send(asked)

    async def _deliver(self, case_id: str, signal: c.Signal, meta: CallMeta) -> TriggerDelivery:
        """One case's delivery. A message is known to each case by itself, whichever way it was addressed."""
        about = (case_id, msgspec.structs.replace(signal, expires=0))
        return await self._command(case_id, signal, meta, _delivery_after, _encode, _decode_delivery, about)

    async def add_instance(
        self, case_id: str, task_id: str, data: JsonObject = None, *, activation: int = 0, meta: CallMeta = LOCAL
    ) -> InstancesView:
        """One more instance of a task with dynamic instances; `data` is what it is made from (`item`).

        Raises WrongState when the task is closed to new ones, its flow has gone on, or several activations are live and
        none is named; LimitExceeded at its maximum.
        """
        element = json_object(data, "data") if data is not None else b""
        return await self._on_instances(case_id, c.AddInstance(task_id, activation, element), meta)

    async def close_instances(
        self, case_id: str, task_id: str, *, activation: int = 0, meta: CallMeta = LOCAL
    ) -> InstancesView:
        """No further instances."""
        return await self._on_instances(case_id, c.CloseInstances(task_id, activation), meta)

    async def complete_instances(
        self, case_id: str, task_id: str, *, activation: int = 0, meta: CallMeta = LOCAL
    ) -> InstancesView:
        """End the task now: what runs counts as done, what was not started is withdrawn, the flow goes on."""
        return await self._on_instances(case_id, c.CompleteInstances(task_id, activation), meta)

    async def cancel_instances(
        self, case_id: str, task_id: str, *, activation: int = 0, meta: CallMeta = LOCAL
    ) -> InstancesView:
        """Stop the task: the flow does not go on, finished instances keep their effect."""
        return await self._on_instances(case_id, c.CancelInstances(task_id, activation), meta)

    async def _on_instances(self, case_id: str, command: _Instances, meta: CallMeta) -> InstancesView:
        checked_id(command.task, "task_id")
        return await self._command(case_id, command, meta, _instances_after, _encode, _decode_instances)

    async def resolve_incident(
        self, incident_id: str, action: str, data: JsonObject = None, reason: str = "", *, meta: CallMeta = LOCAL
    ) -> CaseView:
        """Close an incident: `retry`, `skip`, `complete` (with data) or `fail_case`."""
        number, case_id = parse_incident_id(incident_id)
        if action not in ("retry", "skip", "complete", "fail_case"):
            raise InvalidInput.field("action", f"{action!r} is not an action", "use retry, skip, complete or fail_case")
        body = json_object(data, "data") if data is not None else b""
        command = c.ResolveIncident(number, action, body, reason)  # type: ignore[arg-type]  # checked above
        return await self._on_case(case_id, command, meta, rest=True)

    async def get_case(self, case_id: str, *, meta: CallMeta = LOCAL) -> CaseView:
        """The case as it was last committed, with data, open work and incidents."""
        async with self._reading(case_id, meta) as live:
            return self._view(live)

    async def wait_case(self, case_id: str, *, meta: CallMeta = LOCAL) -> CaseView:
        """The case once it has ended, or as it is when the caller's deadline passes."""
        async with self._watching(case_id, meta) as changed:
            while True:
                changed.clear()
                view = await self.get_case(case_id, meta=msgspec.structs.replace(meta, deadline=0))
                if view.state in c.ENDED:
                    return view
                try:
                    async with asyncio.timeout(self._left(meta)):
                        await changed.wait()
                except TimeoutError:
                    return view
                if self._closed:
                    raise StoreUnavailable("the engine is closing")

    async def list_cases(
        self, filter: CaseFilter = ALL_CASES, *, page_size: int = 0, page_token: str = "", meta: CallMeta = LOCAL
    ) -> Page[CaseView]:
        """Cases by id, filtered, without data."""
        if self._store is None:
            await self.open()
        return await self._query.cases(meta.tenant, filter, page_size, page_token)

    async def get_case_history(
        self,
        case_id: str,
        *,
        after_sequence: int = 0,
        page_size: int = 0,
        reverse: bool = False,
        meta: CallMeta = LOCAL,
    ) -> Page[HistoryEvent]:
        """Events after (with `reverse`: before) a sequence, in order. `next_token` is the sequence to go on from.

        With `reverse`, `after_sequence` 0 begins at the newest event.
        """
        if self._store is None:
            await self.open()
        if after_sequence < 0:
            raise InvalidInput.field("after_sequence", "must not be negative")
        return await self._query.history(meta.tenant, case_id, after_sequence, page_size_of(page_size), reverse)

    async def watch_case(
        self, case_id: str, *, after_sequence: int = 0, meta: CallMeta = LOCAL
    ) -> AsyncIterator[HistoryEvent]:
        """Every event after a sequence, past ones first, then as they are committed; ends when the case has ended."""
        async with self._watching(case_id, meta) as changed:
            while True:
                changed.clear()
                page = await self._query.history(meta.tenant, case_id, after_sequence, 100, False)
                for event in page.items:
                    after_sequence = event.sequence
                    yield event
                if page.items:
                    continue
                head = await self._query.head(meta.tenant, case_id)
                if head.state in c.ENDED and head.sequence <= after_sequence:
                    return
                if head.sequence <= after_sequence:
                    await changed.wait()
                if self._closed:
                    return

    async def watch_cases(
        self, *, resume_token: str = "", meta: CallMeta = LOCAL
    ) -> AsyncIterator[tuple[HistoryEvent, str]]:
        """Every event of every case of the tenant from now on, or from a token; with the token to resume after it."""
        if self._store is None:
            await self.open()
        newest = self._positions()
        places = query.places_of(resume_token, newest) if resume_token else {s: (at, 0) for s, at in newest.items()}
        news = asyncio.Event()
        self._log_watchers.add(news)
        try:
            while not self._closed:
                news.clear()
                before = dict(places)
                async for event, token in self._query.log(meta.tenant, places, self._positions()):
                    yield event, token
                if places == before:  # a portion of other tenants' events moves on without yielding any
                    await news.wait()
        finally:
            self._log_watchers.discard(news)

    async def watch_token(self, *, from_start: bool = False) -> str:
        """The token for `watch_cases` from this moment on, or from the oldest event kept."""
        if self._store is None:
            await self.open()
        return query.resume_token({s: (0 if from_start else at, 0) for s, at in self._positions().items()})

    async def explain_case(self, case_id: str, *, meta: CallMeta = LOCAL) -> Explanation:
        """Why the case is where it is: for each task of each live net, what it waits for."""
        async with self._reading(case_id, meta) as live:
            found = query.explanation(*live.loaded(), self._clock.now())
        completed = await self._query.completions(meta.tenant, case_id, found.sequence)
        return msgspec.structs.replace(found, completed=completed)

    async def list_incidents(
        self,
        *,
        case_id: str = "",
        include_resolved: bool = False,
        page_size: int = 0,
        page_token: str = "",
        meta: CallMeta = LOCAL,
    ) -> Page[IncidentView]:
        """Open incidents, of one case or of all; of one case the resolved ones too, from its history."""
        if self._store is None:
            await self.open()
        if include_resolved:
            if not case_id:
                raise Unsupported("listing the resolved incidents of all cases", "name a case")
            return await self._query.all_incidents(meta.tenant, case_id, page_size, page_token)
        return await self._query.incidents(meta.tenant, case_id, page_size, page_token)

    # -- schedules ----------------------------------------------------------------------------------------------------

    async def create_schedule(
        self, schedule_id: str, spec: ScheduleSpec, *, paused: bool = False, meta: CallMeta = LOCAL
    ) -> ScheduleView:
        """Start cases of a workflow by the calendar. Raises AlreadyExists, NotFound for the workflow, LimitExceeded."""
        return await (await self._calendar()).create(
            schedule_id, spec, paused, self._asked(meta, (schedule_id, spec, paused))
        )

    async def update_schedule(
        self, schedule_id: str, spec: ScheduleSpec, *, revision: int = 0, meta: CallMeta = LOCAL
    ) -> ScheduleView:
        """Replace what a schedule was asked to be; raises Stale unless `revision` is the present one, or 0."""
        asked = self._asked(meta, (schedule_id, spec, revision))
        return await (await self._calendar()).update(schedule_id, spec, revision, asked)

    async def get_schedule(self, schedule_id: str, *, meta: CallMeta = LOCAL) -> ScheduleView:
        """A schedule as it was last committed. Raises NotFound."""
        return (await self._calendar()).get(meta.tenant, schedule_id)

    async def list_schedules(
        self, *, page_size: int = 0, page_token: str = "", meta: CallMeta = LOCAL
    ) -> Page[ScheduleView]:
        """Schedules by id."""
        return (await self._calendar()).list(meta.tenant, page_size, page_token)

    async def delete_schedule(self, schedule_id: str, *, meta: CallMeta = LOCAL) -> None:
        """No more of it; cases that it has started stay."""
        await (await self._calendar()).delete(schedule_id, Asked(meta))

    async def pause_schedule(self, schedule_id: str, reason: str = "", *, meta: CallMeta = LOCAL) -> ScheduleView:
        """No more occurrences until it is resumed."""
        return await (await self._calendar()).pause(schedule_id, reason, self._asked(meta, (schedule_id, reason)))

    async def resume_schedule(self, schedule_id: str, *, meta: CallMeta = LOCAL) -> ScheduleView:
        """Go on with the first occurrence after now."""
        return await (await self._calendar()).resume(schedule_id, self._asked(meta, schedule_id))

    async def trigger_schedule(
        self, schedule_id: str, *, overlap: str = "", data: JsonObject = None, meta: CallMeta = LOCAL
    ) -> ScheduleView:
        """One start now, paused or not. `overlap` and `data` instead of the schedule's own."""
        body = json_object(data, "data") if data is not None else None
        asked = self._asked(meta, (schedule_id, overlap, body))
        return await (await self._calendar()).trigger(schedule_id, overlap, body, asked)

    async def backfill_schedule(
        self, schedule_id: str, start: int, end: int, *, overlap: str = "", meta: CallMeta = LOCAL
    ) -> ScheduleView:
        """Take the occurrences from `start` up to, but not at, `end` (ns) as due now; each gets one case at most."""
        asked = self._asked(meta, (schedule_id, start, end, overlap))
        return await (await self._calendar()).backfill(schedule_id, start, end, overlap, asked)

    async def _calendar(self) -> Schedules:
        if self._store is None:
            await self.open()
        return self._schedules

    def _asked(self, meta: CallMeta, about: object) -> Asked:
        request = self._request(meta, about) if meta.request_id else None
        return Asked(meta, request.scope, request.fingerprint) if request is not None else Asked(meta)

    async def _start_scheduled(self, spec: ScheduleSpec, data: bytes, case_id: str, meta: CallMeta) -> CaseView:
        asked = RunRequest(spec.spec_id, data, case_id, spec.business_key, spec.version)
        return await self._create(asked, True, meta)

    # -- keeping ------------------------------------------------------------------------------------------------------

    async def backup(self, *, after_token: str = "") -> AsyncIterator[Piece]:
        """The whole store, of all tenants, as it is now, in pieces that joined are a backup file. Calls go on.

        With the token that an earlier backup ended with: only what happened since. Raises InvalidInput for a token of
        another store, StoreCorrupt when the store is damaged, StoreUnavailable when it was opened again meanwhile.
        """
        async with self._moment() as reads:
            async for piece in take(reads, self._keyspace.shards, self._clock.now(), after_token):
                yield piece

    async def verify_store(self, *, progress: Progress | None = None) -> Examination:
        """Examine everything in the store, of all tenants, as it is now; calls go on meanwhile."""
        async with self._moment() as reads:
            return await examine(reads, self._keyspace.shards, progress)

    async def export_case(self, case_id: str, *, meta: CallMeta = LOCAL) -> bytes:
        """A case with its whole history as a JSON document that `prove_export` can prove without the store."""
        async with self._moment() as reads:
            return await export(reads, self._keyspace, meta.tenant, case_id)

    @asynccontextmanager
    async def _moment(self) -> AsyncIterator[Snapshot]:
        """A snapshot of the store."""
        if self._store is None:
            await self.open()
        assert self._store is not None
        snapshot = await self._store.snapshot()
        try:
            yield snapshot
        finally:
            await snapshot.close()

    # -- work items ---------------------------------------------------------------------------------------------------

    async def list_work_items(
        self,
        filter: WorkItemFilter = ALL_WORK,
        *,
        page_size: int = 0,
        page_token: str = "",
        meta: CallMeta = LOCAL,
    ) -> Page[WorkItemView]:
        """Open work items by case, filtered, without data."""
        if self._store is None:
            await self.open()
        return await self._query.work_items(meta.tenant, filter, page_size, page_token)

    async def get_work_item(self, item_id: str, *, meta: CallMeta = LOCAL) -> WorkItemView:
        """One open work item with its input data."""
        ref, case_id = parse_item_id(item_id)
        async with self._reading(case_id, meta) as live:
            return query.work_item(*live.loaded(), ref)

    async def claim_work_item(self, item_id: str, user: str, *, meta: CallMeta = LOCAL) -> WorkItemView:
        """offered -> allocated to `user`."""
        checked_id(user, "user")
        ref, case_id = parse_item_id(item_id)
        return await self._on_item(case_id, c.ClaimItem(ref, user), meta)

    async def release_work_item(self, item_id: str, *, meta: CallMeta = LOCAL) -> WorkItemView:
        """allocated -> offered."""
        ref, case_id = parse_item_id(item_id)
        return await self._on_item(case_id, c.ReleaseItem(ref), meta)

    async def start_work_item(self, item_id: str, user: str = "", *, meta: CallMeta = LOCAL) -> WorkItemView:
        """offered or allocated -> started; rivals in a deferred choice are withdrawn."""
        ref, case_id = parse_item_id(item_id)
        return await self._on_item(case_id, c.StartItem(ref, user), meta)

    async def complete_work_item(
        self, item_id: str, output: JsonObject = None, user: str = "", *, meta: CallMeta = LOCAL
    ) -> WorkItemView:
        """The work is done. An item that was not started yet is started in the same step."""
        body = json_object(output, "output") if output is not None else b""
        ref, case_id = parse_item_id(item_id)
        return await self._on_item(case_id, c.CompleteItem(ref, body, user), meta)

    async def complete_work_items(
        self, requests: Sequence[CompleteRequest], *, meta: CallMeta = LOCAL
    ) -> list[WorkItemView | WorkflowError]:
        """`complete_work_item` for each; different cases share commits. One element's error is its own answer."""
        _batch_size("items", len(requests))
        if self._store is None:
            await self.open()

        async def one(index: int, asked: CompleteRequest) -> WorkItemView | WorkflowError:
            try:
                return await self.complete_work_item(
                    asked.item_id, asked.output, asked.user, meta=_element(meta, index)
                )
            except WorkflowError as error:
                return error

        return list(await asyncio.gather(*(one(index, asked) for index, asked in enumerate(requests))))

    async def fail_work_item(
        self,
        item_id: str,
        code: str,
        message: str = "",
        user: str = "",
        *,
        data: JsonObject = None,
        permanent: bool = False,
        meta: CallMeta = LOCAL,
    ) -> WorkItemView:
        """The work failed: it is offered again while its task's `retry` says so, unless the failure is `permanent`.
        Then its error flow is taken, or an incident asks a person. `data` stands in the history."""
        checked_id(code, "code")
        body = json_object(data, "data") if data is not None else b""
        ref, case_id = parse_item_id(item_id)
        return await self._on_item(case_id, c.FailItem(ref, code, message, user, body, permanent), meta)

    async def skip_work_item(self, item_id: str, reason: str = "", *, meta: CallMeta = LOCAL) -> WorkItemView:
        """Go on without this work."""
        ref, case_id = parse_item_id(item_id)
        return await self._on_item(case_id, c.SkipItem(ref, reason), meta)

    # -- patterns -----------------------------------------------------------------------------------------------------

    def list_patterns(self) -> tuple[PatternView, ...]:
        """The catalogue: all 43, in the order of their numbers."""
        return tuple(sandbox.view(pattern.number) for pattern in PATTERNS)

    def get_pattern(self, id_or_alias: int | str) -> PatternView:
        """One pattern by number, `WCP-n`, name or alias. Raises NotFound."""
        return sandbox.view(find(id_or_alias).number)

    async def execute_pattern(
        self, pattern_id: int | str, context: PatternExecutionContext = NO_CONTEXT, *, meta: CallMeta = LOCAL
    ) -> PatternResult:
        """Run a pattern's own net: in memory, or with `durable` as a case of the workflow `wcp-NN`.

        Raises Unsupported for a pattern that cannot be executed yet, InvalidInput for an unknown pattern or an
        impossible script, AlreadyExists when a durable run's case id is taken. A move that the net does not allow is
        no error: see `PatternResult.message`.
        """
        asked = self._script(pattern_id, context)
        if context.durable:
            if any(move.move == sandbox.ADVANCE for move in asked.moves):
                raise Unsupported(
                    "advance_clock in a durable run", "it lives in the engine's own time; run it in memory"
                )
            return await self._kept_run(asked, meta)
        run = sandbox.Run(asked, self._clock, meta.principal)
        for count, _ in enumerate(run):
            if count % RUN_EVENTS == 0:
                if meta.deadline and self._clock.now() > meta.deadline:
                    raise _too_late()
                if count:
                    await asyncio.sleep(0)
        return run.result

    execute_workflow_pattern = execute_pattern

    async def execute_patterns(
        self, requests: Sequence[tuple[int | str, PatternExecutionContext]], *, meta: CallMeta = LOCAL
    ) -> list[PatternResult | WorkflowError]:
        """`execute_pattern` for each, in order; one element's error is that element's answer."""
        _batch_size("patterns", len(requests))
        answers: list[PatternResult | WorkflowError] = []
        for index, (pattern_id, context) in enumerate(requests):
            try:
                answers.append(await self.execute_pattern(pattern_id, context, meta=_element(meta, index)))
            except WorkflowError as error:
                answers.append(error)
        return answers

    def pattern_run(
        self, pattern_id: int | str, context: PatternExecutionContext = NO_CONTEXT, *, meta: CallMeta = LOCAL
    ) -> PatternRun:
        """The trace of a run in memory as it happens; the run's `result` once it is exhausted."""
        return PatternRun(sandbox.Run(self._script(pattern_id, context), self._clock, meta.principal))

    def _script(self, pattern_id: int | str, context: PatternExecutionContext) -> sandbox.Script:
        try:
            pattern = find(pattern_id)
        except NotFound as error:
            raise InvalidInput.field("pattern_id", f"{pattern_id!r} is not a pattern", HINT) from error
        return sandbox.script(pattern, context)

    async def _kept_run(self, asked: sandbox.Script, meta: CallMeta) -> PatternResult:
        """The run as a case. Repeated with its request id, it takes up where it was left and makes no move twice."""
        workflow = await self.register_workflow(asked.pattern.document, meta=meta)
        case = await self.run_case(
            workflow.spec_id,
            asked.data,
            case_id=asked.case_id,
            business_key=asked.workflow_id,
            version=workflow.version,
            meta=meta,
        )
        case_id, message = case.case_id, ""
        for index, move in enumerate(asked.moves):
            element = _element(meta, index)
            if element.request_id and await self._made(element, case_id):
                continue
            case = await self.get_case(case_id, meta=meta)
            try:
                await self._on_case(case_id, sandbox.command(move, index, case), element, rest=True)
            except sandbox.Refusal as refusal:
                message = str(refusal)
                break
            except (WrongState, LimitExceeded) as error:
                message = sandbox.refused(error, move, index, case)
                break
        case = await self.get_case(case_id, meta=meta)
        trace: list[HistoryEvent] = []
        while len(trace) < case.sequence:
            page = await self.get_case_history(case_id, after_sequence=len(trace), page_size=PAGE_SIZE_MAX, meta=meta)
            trace.extend(page.items)
        return sandbox.result(asked, case, trace, message)

    async def _made(self, meta: CallMeta, case_id: str) -> bool:
        """Whether this request id did something to the case before."""
        assert self._store is not None
        key = self._keyspace.case(meta.tenant, case_id).request(self._request(meta, None).scope)
        return await self._store.get(key) is not None

    # -- the way of a command -----------------------------------------------------------------------------------------

    async def _create(self, asked: RunRequest, start: bool, meta: CallMeta) -> CaseView:
        if self._store is None:
            await self.open()
        birth = await self._birth(asked, start, meta)
        try:
            live, unit, view = await self._conceive(birth)
            outcome = await self._cases.commit(live, unit)
            if not isinstance(outcome, int):
                raise _taken(outcome, birth.case_id)
        except WorkflowError as error:
            answer = await self._replayed_or(error, birth)
            if isinstance(answer, WorkflowError):
                raise answer from None
            return answer
        return await self._rest(meta, birth.case_id, view) if live.continuing is not None else view

    async def _birth(self, asked: RunRequest, start: bool, meta: CallMeta) -> _Birth:
        """Check what a new case is asked with. Raises InvalidInput, NotFound."""
        data = json_object(asked.data, "data")
        checked_id(asked.business_key, "business_key", empty=True)
        request = None
        if meta.request_id:
            request = self._request(
                meta, (asked.spec_id, asked.version, asked.case_id, asked.business_key, data, start)
            )
        case_id = checked_id(asked.case_id, "case_id", empty=True)
        if not case_id:
            case_id = f"c-{request.scope.hex()}" if request is not None else self._ids.case_id()
        model = self._definitions.cached(meta.tenant, asked.spec_id, asked.version)
        if model is None or asked.version:
            model = await self._definitions.active_model(meta.tenant, asked.spec_id, asked.version)
        checked_schema(model.spec, data)
        return _Birth(case_id, data, asked.business_key, model, start, meta, request)

    async def _conceive(self, birth: _Birth) -> tuple[LiveCase, Unit, CaseView]:
        """The new case, held, what it writes, and its view. Whatever it raises (AlreadyExists), nothing is held."""
        meta, model = birth.meta, birth.model
        live = self._cases.entry(meta.tenant, birth.case_id)
        if live.busy:
            await live.acquire()
        live.busy = True
        try:
            if live.state is not None:
                raise AlreadyExists("case", birth.case_id, "choose another case_id")
            now = self._clock.now()
            if meta.deadline and now > meta.deadline:
                raise _too_late()
            command = c.CreateCase(
                meta.tenant,
                birth.case_id,
                model.spec.id,
                model.version,
                model.digest,
                self._ids.salt(),
                birth.data,
                birth.business_key,
                birth.start,
            )
            step = create(model, command, now)
            live.state, live.model, live.created_by = step.case, model, meta.principal
            record = self._record(live, birth.request, step.case.sequence, b"")
            return live, self._cases.unit(live, step, meta, record), self._view(live)
        except AlreadyExists:
            self._cases.done(live)
            raise
        except BaseException:
            self._cases.drop(live)
            live.release()
            raise

    async def _on_case(self, case_id: str, command: c.Command, meta: CallMeta, *, rest: bool = False) -> CaseView:
        view = await self._command(case_id, command, meta, _case_after, _no_receipt, _as_it_is)
        if view is None:
            return await self._rest(meta, case_id)
        live = self._cases.peek(meta.tenant, case_id)
        return await self._rest(meta, case_id, view) if rest and live is not None and live.continuing else view

    def _on_item(self, case_id: str, command: _OnItem, meta: CallMeta) -> Awaitable[WorkItemView]:
        return self._command(case_id, command, meta, _item_after, _encode, _decode_item)

    async def _command(
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
        if self._store is None:
            await self.open()
        request = self._request(meta, about or (case_id, command)) if meta.request_id else None
        try:
            live = self._cases.at_hand(meta.tenant, case_id) or await self._cases.hold(meta.tenant, case_id)
            result, told = self._step(live, command, meta, request, view, receipt)
            if told is not None:
                began = self._clock.now() if self._levels is not None else 0
                outcome = await told
                if not isinstance(outcome, int):
                    if isinstance(outcome, ExpectationFailed):
                        raise Fenced(f"case {case_id!r} was changed by somebody else; nothing was written, try again")
                    raise outcome
                if self._levels is not None:
                    self._levels.committed(self._clock.now() - began)
            elif request is not None:
                await self._recorded(request, meta, case_id)  # raises when the id stands for another command
        except OutcomeUnknown:
            raise  # a failing look at the request's record must not turn this into "nothing was written"
        except WorkflowError:
            record = await self._recorded(request, meta, case_id) if request is not None else None
            if record is None:
                raise
            return replayed(record.receipt)
        return result

    def _step(
        self,
        live: LiveCase,
        command: C,
        meta: CallMeta,
        request: _Request | None,
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
                raise _too_late()
            step = decide(case, model, command, now)
            if self._levels is not None:
                self._levels.stepped(self._clock.now() - now)
            result = view(live, step, command)
            if not step.events:
                self._cases.done(live)
                return result, None
            record = None
            if request is not None:
                record = self._record(live, request, case.sequence, receipt(result))
            unit = self._cases.unit(live, step, meta, record)
        except BaseException as error:
            if not isinstance(error, WorkflowError) or case.sequence != sequence:
                self._cases.drop(live)
            live.release()
            raise
        return result, self._cases.commit(live, unit)

    async def _fire_timer(self, tenant: str, case_id: str, number: int) -> TimerOutcome:
        meta = CallMeta(tenant=tenant, principal=TIMER, method="fire_timer")
        return await self._command(case_id, c.FireTimer(number), meta, _fired, _no_receipt, lambda _: "done")

    def _continue(self, live: LiveCase) -> None:
        """A case has a paused cascade: carry it on in the background, slice by slice."""
        if live.continuing is None and not self._closed:
            live.continuing = self._spawn(self._carry_on(live))

    async def _carry_on(self, live: LiveCase) -> None:
        keys = live.keys
        meta = CallMeta(tenant=keys.tenant, principal=SYSTEM, method="continue")
        try:
            while True:
                try:
                    going = await self._command(
                        keys.case_id, c.Continue(), meta, _going_on, _no_receipt, lambda _: True
                    )
                except (StoreUnavailable, Busy):
                    await asyncio.sleep(CONTINUE_PAUSE_S)
                    continue
                if not going:
                    return
        except WorkflowError:
            return  # the case is broken or gone; whoever touches it is told
        finally:
            live.continuing = None
            for event in live.changed:
                event.set()

    async def _rest(self, meta: CallMeta, case_id: str, done: CaseView | None = None) -> CaseView:
        """The case once no automatic firing is left. `done` is what a command of this call left: it is the answer when
        the case cannot be read again, because an error would say that nothing was written."""
        while True:
            live = self._cases.peek(meta.tenant, case_id)
            if live is None or live.continuing is None:
                try:
                    return await self.get_case(case_id, meta=meta)
                except StoreError:
                    if done is None:
                        raise
                    return done
            await asyncio.wait([live.continuing])

    # -- idempotency --------------------------------------------------------------------------------------------------

    def _request(self, meta: CallMeta, about: object) -> _Request:
        """The request id of a call. `about` is what the command means, whichever protocol it came by."""
        if len(meta.request_id.partition("#")[0].encode()) > REQUEST_ID_BYTES_MAX:  # a batch adds the element's index
            raise InvalidInput.field("request_id", f"must be at most {REQUEST_ID_BYTES_MAX} bytes", "use a UUID")
        scope = blake2b(_encode((meta.principal, meta.method, meta.request_id)), digest_size=16).digest()
        return _Request(scope, blake2b(_encode(about), digest_size=16).digest(), meta.request_id)

    def _record(
        self, live: LiveCase, request: _Request | None, sequence: int, receipt: bytes
    ) -> tuple[bytes, bytes] | None:
        if request is None:
            return None
        record = RequestRecord(request.fingerprint, live.keys.case_id, sequence, receipt)
        return live.keys.request(request.scope), pack(record)

    async def _recorded(self, request: _Request, meta: CallMeta, case_id: str) -> RequestRecord | None:
        """What this request id did before, if anything. Raises RequestMismatch when that was something else."""
        if self._store is None:
            raise StoreUnavailable("the engine is closed")
        key = self._keyspace.case(meta.tenant, case_id).request(request.scope)
        stored = await self._store.get(key)
        if stored is None:
            return None
        record = REQUESTS.read(key, stored)
        if record.fingerprint != request.fingerprint:
            raise RequestMismatch(request.request_id)
        return record

    async def _replayed_or(self, error: WorkflowError, birth: _Birth) -> CaseView | WorkflowError:
        """The answer of an earlier creation with the same request id; otherwise the error."""
        if birth.request is None or isinstance(error, OutcomeUnknown):
            return error
        try:
            record = await self._recorded(birth.request, birth.meta, birth.case_id)
            if record is None:
                return error
            return await self._rest(msgspec.structs.replace(birth.meta, deadline=0), record.case_id)
        except WorkflowError as other:
            return other

    # -- small things -------------------------------------------------------------------------------------------------

    def _left(self, meta: CallMeta) -> float | None:
        """Seconds until the caller's deadline."""
        return max(0.0, (meta.deadline - self._clock.now()) / NS_PER_S) if meta.deadline else None

    def _positions(self) -> dict[int, int]:
        return {shard: self._journal.position(shard) for shard in range(self._keyspace.shards)}

    def _view(self, live: LiveCase) -> CaseView:
        return query.case_view(*live.loaded(), live.created_by)

    @asynccontextmanager
    async def _reading(self, case_id: str, meta: CallMeta) -> AsyncIterator[LiveCase]:
        if self._store is None:
            await self.open()
        live = await self._cases.hold(meta.tenant, case_id)
        try:
            yield live
        finally:
            self._cases.done(live)

    @asynccontextmanager
    async def _watching(self, case_id: str, meta: CallMeta) -> AsyncIterator[asyncio.Event]:
        """An event that is set after every commit of the case. Raises NotFound."""
        if self._store is None:
            await self.open()
        await self._query.head(meta.tenant, case_id)
        live = self._cases.entry(meta.tenant, case_id)
        event = asyncio.Event()
        live.changed.add(event)
        self._case_watchers.add(event)
        try:
            yield event
        finally:
            live.changed.discard(event)
            self._case_watchers.discard(event)

    def _committed(self, shard: int, position: int, units: Sequence[Unit]) -> None:
        self._commits += 1
        self._messages.notice(units)
        self._schedules.notice(units)
        for event in self._log_watchers:
            event.set()

    async def _recover(self) -> None:
        """Take up what was pending when the engine last ended."""
        assert self._store is not None
        for shard in range(self._keyspace.shards):
            start, end = self._keyspace.effects(shard)
            while True:
                rows = await self._store.scan(start, end, limit=RECOVER_PAGE)
                for key, _ in rows:
                    tenant, case_id, _ = parse_effect(key)
                    self._continue(self._cases.entry(tenant, case_id))
                if len(rows) < RECOVER_PAGE:
                    break
                start = rows[-1][0] + b"\0"

    async def _sweep(self) -> None:
        """Delete expired idempotency records and messages, now and then."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            with suppress(StoreUnavailable, OutcomeUnknown, Busy):  # the next round does it
                await self._messages.sweep()
            for shard in (*range(self._keyspace.shards), META_SHARD):
                try:
                    swept = 1
                    while swept:
                        swept = await self._journal.sweep_requests(shard)
                except (StoreUnavailable, Busy):
                    continue  # the next round does it

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task


_encode = msgspec.msgpack.Encoder().encode
_decode_item = msgspec.msgpack.Decoder(WorkItemView).decode
_decode_instances = msgspec.msgpack.Decoder(InstancesView).decode
_decode_delivery = msgspec.msgpack.Decoder(TriggerDelivery).decode


def _batch_size(what: str, count: int) -> None:
    if count > BATCH_MAX:
        raise LimitExceeded(f"{what} in one call", BATCH_MAX, count, "split the list")


def _element(meta: CallMeta, index: int | str) -> CallMeta:
    """The caller of one element of a batch: the batch's request id and the element's index or name."""
    return msgspec.structs.replace(meta, request_id=f"{meta.request_id}#{index}") if meta.request_id else meta


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the command was carried out; nothing was changed")


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


def _item_after(_: LiveCase, step: Step, command: _OnItem) -> WorkItemView:
    return query.work_item_after(step, command.item)


def _instances_after(_: LiveCase, step: Step, __: _Instances) -> InstancesView:
    return query.instances_after(step)


def _delivery_after(_: LiveCase, step: Step, __: c.Signal) -> TriggerDelivery:
    return query.delivery_after(step)


def _taken(outcome: WorkflowError, case_id: str) -> WorkflowError:
    """A creation whose expectations did not hold found its id taken."""
    if isinstance(outcome, ExpectationFailed):
        return AlreadyExists("case", case_id, "choose another case_id")
    return outcome
