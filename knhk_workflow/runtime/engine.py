"""The engine: every operation on workflows, cases and work items, made durable before it is answered.

What is here is the surface: each operation says what it does, checks what it is given and hands it on. Behind it:

    parts.py     what an open engine consists of    births.py     how cases come to be
    steps.py     the way of a command through a case
    live.py      cases in memory, and their units   requests.py   the same request twice does its work once
    watching.py  who waits for what happens         query.py      lists, histories and views

A request id makes a mutation idempotent: the record that says what it did is part of the same commit, and the commit
itself expects that there was none. Cancelling a call before its unit is queued takes it back; afterwards it is written
all the same and only the answer is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.errors import (
    InvalidInput,
    NotFound,
    StoreError,
    StoreUnavailable,
    Unsupported,
    WorkflowError,
    WrongState,
)
from knhk_workflow.fortune5.config import Fortune5Config
from knhk_workflow.fortune5.slo import Fortune5Integration
from knhk_workflow.model.fields import duration as parse_duration
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.model.veil import Veil
from knhk_workflow.patterns.catalogue import PATTERNS, find
from knhk_workflow.runtime import dead_letters, messages, query, sandbox
from knhk_workflow.runtime.audit_export import export_audit
from knhk_workflow.runtime.audit_stream import Like
from knhk_workflow.runtime.audit_trail import EVERYTHING, AuditEntry, AuditFilter
from knhk_workflow.runtime.audited import audited
from knhk_workflow.runtime.births import RunRequest
from knhk_workflow.runtime.checkpoint import Checkpoint
from knhk_workflow.runtime.clock import Clock, Ids, SkippingClock, SystemClock, SystemIds, VirtualClock
from knhk_workflow.runtime.connectors import ConnectorConfig, ConnectorSetup
from knhk_workflow.runtime.definitions import Document
from knhk_workflow.runtime.dispatch import WorkSession, WorkSubscription
from knhk_workflow.runtime.export import export
from knhk_workflow.runtime.inputs import (
    JsonObject,
    checked_batch,
    checked_id,
    json_object,
    parse_incident_id,
    parse_item_id,
)
from knhk_workflow.runtime.integrity import Examination, Progress, examine
from knhk_workflow.runtime.meta import LOCAL, CallMeta
from knhk_workflow.runtime.pages import page_size_of
from knhk_workflow.runtime.parts import EngineLimits, EngineSetup, Parts
from knhk_workflow.runtime.pattern_runs import KeptRuns, PatternRun, run_in_memory, script_of
from knhk_workflow.runtime.receipts import EntryProof, Receipt, entry_proof, step_receipt
from knhk_workflow.runtime.records import Operation, ScheduleSpec
from knhk_workflow.runtime.results import CompleteRequest
from knhk_workflow.runtime.retention import PurgeRequest, PurgeView
from knhk_workflow.runtime.signature import SigningKey
from knhk_workflow.runtime.skipping import Skipping, TimeView
from knhk_workflow.runtime.state_store import StateStore
from knhk_workflow.runtime.steps import OnInstances, OnItem
from knhk_workflow.runtime.views import (
    CaseFilter,
    CaseView,
    ConnectorView,
    CountsView,
    DeadLetterView,
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
    Validation,
    WorkflowView,
    WorkItemFilter,
    WorkItemView,
)
from knhk_workflow.store import (
    Unit,
)
from knhk_workflow.store.backup import Piece, take

COUNTING_S: Final = 1.0  # how long who asks for counts waits for the first counting: about 300,000 cases

ALL_CASES: Final = CaseFilter()
ALL_WORK: Final = WorkItemFilter()
NO_CONTEXT: Final = PatternExecutionContext()
RESOLUTIONS: Final[Mapping[str, c.Resolution]] = {
    "retry": "retry",
    "skip": "skip",
    "complete": "complete",
    "fail_case": "fail_case",
}

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class AuditCounts(msgspec.Struct, frozen=True):
    """What the audit took since opening."""

    recorded: int = 0
    """Operations that changed nothing."""
    overflowed: int = 0
    """Of these: refusals that were only counted, because too much was waiting, and what could not be written."""
    waiting: int = 0
    """Entries that are not written yet."""
    sizes: Mapping[int, int] = {}
    """By shard: records in its newest checkpoint."""


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
        connectors: ConnectorSetup | None = None,
    ) -> None:
        self._state_store = state_store
        self._clock: Clock = clock or SystemClock()
        self._fortune5 = Fortune5Integration(fortune5, self._clock.now) if fortune5 is not None else None
        levels = self._fortune5.levels if self._fortune5 is not None else None
        self._setup = EngineSetup(self._clock, ids or SystemIds(), limits or EngineLimits(), connectors, levels)
        self._opening = asyncio.Lock()
        self._parts: Parts | None = None
        self._started_at = self._clock.now()
        self._key: SigningKey | None = None
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
        """Open the store, verify its end, claim it, and take up what was left unfinished. Twice is fine.

        Calls wait until all of that is known, or raise what opening raised; then the next one tries again.
        """
        await self._opened()
        return self

    async def _opened(self) -> Parts:
        async with self._opening:
            if self._parts is None:
                if self._closed:
                    raise StoreUnavailable("the engine is closed")
                parts = await Parts.opened(self._state_store, self._setup)
                parts.trees.key = self._key  # as it is now: see `sign_with`
                self._parts = parts
                parts.begin()
            return self._parts

    async def close(self) -> None:
        """Finish what was accepted and release the store. Twice is fine."""
        self._closed = True
        async with self._opening:
            pass  # whoever opens it now has done so, or failed
        if self._parts is not None:
            await self._parts.close()
            self._parts = None
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
        parts = self._parts
        if parts is None:
            return EngineStatus("", 0, 0, False, False, "not open", 0, self._started_at, 0)
        outage = parts.journal.outage()
        return EngineStatus(
            store=parts.store.kind,
            shards=parts.store.shards,
            position=parts.journal.position(0),
            open=True,
            healthy=outage is None,
            detail=outage.message if outage is not None else "",
            cached_cases=len(parts.cases),
            started_at=self._started_at,
            commits=parts.commits,
        )

    async def count(self, *, meta: CallMeta = LOCAL) -> CountsView:
        """How much there is of the caller's tenant."""
        parts = self._parts or await self._opened()
        cases = await parts.counts.of(meta.tenant, COUNTING_S)
        letters = 0
        if cases is None or cases.open_incidents:  # else there is nothing to read
            letters = await parts.query.count_incidents(meta.tenant, dead_letters.KIND)
        return CountsView(await parts.definitions.count(meta.tenant), cases, letters, await parts.timers.count())

    async def fire_due_timers(self) -> None:
        """Return when no timer is due that could be fired. They fire by themselves; this is for who has moved a virtual
        clock and wants to see what came of it."""
        parts = self._parts or await self._opened()
        await parts.timers.fire_due()
        await parts.schedules.start_due()
        await parts.schedules.settled()

    async def advance_time(
        self, by: float | str | None = None, *, until: int = 0, meta: CallMeta | None = None
    ) -> TimeView:
        """Let time pass, from one moment at which something is due to the next: by seconds or a duration such as `14d`,
        until a time in ns since the epoch, or without either to the next such moment. What is due is done, and what
        follows from it by itself, before time goes on. With a `meta` it is recorded first who does that. Raises
        Unsupported unless the engine's clock can be moved."""
        clock = self._clock
        if not isinstance(clock, VirtualClock | SkippingClock):
            raise Unsupported("skipping time", "start the daemon with `knhk dev --virtual-time`, or use a VirtualClock")
        parts = self._parts or await self._opened()
        if by is not None:
            seconds = 0.0 if by in (0, "0", "0s") else parse_duration(by)
            if seconds is None or until:
                raise InvalidInput.field("by", f"{by!r} is no duration", "for example 14d, or 90 (seconds)")
            until = clock.now() + round(seconds * NS_PER_S)
        elif until and until < clock.now():
            raise InvalidInput.field("until", "has passed", "time does not run backwards")
        if meta is not None:
            await self.audit("time", meta=meta)
        skipping = Skipping(clock, parts.timers, parts.schedules, parts.under_way)
        return await skipping.skip(until or None)

    # -- workflows ----------------------------------------------------------------------------------------------------

    async def register_workflow(
        self, document: Document, *, format: str = "json", allow_unsound: bool = False, meta: CallMeta = LOCAL
    ) -> WorkflowView:
        """Register a workflow. Same content = same version (`created` false); other content = the next version.

        Raises InvalidDocument with every problem at once, and Unsound with the findings when a case could get stuck,
        unless `allow_unsound`; then the findings stay with the version.
        """
        parts = self._parts or await self._opened()
        return await parts.definitions.register(document, format, meta, allow_unsound)

    async def validate_workflow(
        self, document: Document, *, format: str = "json", meta: CallMeta = LOCAL
    ) -> Validation:
        """What registering would say, as findings; nothing is stored."""
        parts = self._parts or await self._opened()
        return await parts.definitions.validate(document, format)

    async def get_workflow(self, spec_id: str, version: int = 0, *, meta: CallMeta = LOCAL) -> WorkflowView:
        """One version of a workflow; 0 is the newest active one."""
        parts = self._parts or await self._opened()
        return await parts.definitions.get(meta.tenant, spec_id, version)

    async def list_workflows(
        self, *, all_versions: bool = False, page_size: int = 0, page_token: str = "", meta: CallMeta = LOCAL
    ) -> Page[WorkflowView]:
        """The newest active version of each workflow, or every active one, by id and version, without documents."""
        parts = self._parts or await self._opened()
        if all_versions:
            return await parts.definitions.versions(meta.tenant, page_size, page_token)
        return await parts.definitions.list(meta.tenant, page_size, page_token)

    async def delete_workflow(self, spec_id: str, version: int = 0, *, meta: CallMeta = LOCAL) -> tuple[int, ...]:
        """Take a version (0 = all) out of use; returns which these were. Raises WrongState while cases are open on
        it."""
        parts = self._parts or await self._opened()
        request = parts.requests.of(meta, ("delete_workflow", spec_id, version)) if meta.request_id else None
        before = await parts.definitions.deleted_by(meta.tenant, request)
        if before is not None:
            return before
        case_id = await parts.query.open_case_of(meta.tenant, spec_id, version)
        if case_id is not None:
            raise WrongState(
                "workflow", spec_id, "without open cases", f"in use by case {case_id!r}", "cancel or finish its cases"
            )
        return await parts.definitions.delete(spec_id, version, request, meta)

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
        parts = self._parts or await self._opened()
        return await parts.births.create(RunRequest(spec_id, data, case_id, business_key, version), False, meta)

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
        parts = self._parts or await self._opened()
        return await parts.births.create(RunRequest(spec_id, data, case_id, business_key, version), True, meta)

    async def run_cases(
        self, requests: Sequence[RunRequest], *, meta: CallMeta = LOCAL
    ) -> list[CaseView | WorkflowError]:
        """`run_case` for each, in one durable write; one element's error is that element's answer."""
        parts = self._parts or await self._opened()
        return await parts.births.create_all(requests, meta)

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
        parts = self._parts or await self._opened()
        body = json_object(data, "data") if data is not None else b""
        if case_id:
            signal = c.Signal(name, body, time_to_live)
            return MessageView(meta.request_id, (await parts.steps.deliver(case_id, signal, meta.element(case_id)),))
        if not meta.request_id:
            meta = msgspec.structs.replace(meta, request_id=f"m-{self._setup.ids.case_id()}")
        request = parts.requests.of(meta, (name, key, body, time_to_live))
        asked = messages.Sending(meta, request.scope, request.fingerprint, name, key, body, time_to_live)
        return await parts.messages.send(asked)

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

    async def resolve_incident(
        self, incident_id: str, action: str, data: JsonObject = None, reason: str = "", *, meta: CallMeta = LOCAL
    ) -> CaseView:
        """Close an incident: `retry`, `skip`, `complete` (with data) or `fail_case`."""
        number, case_id = parse_incident_id(incident_id)
        resolution = RESOLUTIONS.get(action)
        if resolution is None:
            raise InvalidInput.field("action", f"{action!r} is not an action", "use retry, skip, complete or fail_case")
        body = json_object(data, "data") if data is not None else b""
        command = c.ResolveIncident(number, resolution, body, reason)
        return await self._on_case(case_id, command, meta, rest=True)

    async def get_case(self, case_id: str, *, meta: CallMeta = LOCAL) -> CaseView:
        """The case as it was last committed, with data, open work and incidents."""
        parts = self._parts or await self._opened()
        return await parts.steps.look(meta, case_id)

    async def wait_case(self, case_id: str, *, meta: CallMeta = LOCAL) -> CaseView:
        """The case once it has ended, or as it is when the caller's deadline passes."""
        parts = self._parts or await self._opened()
        return await parts.watching.ended(meta, case_id)

    async def list_cases(
        self, filter: CaseFilter = ALL_CASES, *, page_size: int = 0, page_token: str = "", meta: CallMeta = LOCAL
    ) -> Page[CaseView]:
        """Cases by id, filtered, without data."""
        parts = self._parts or await self._opened()
        return await parts.query.cases(meta.tenant, filter, page_size, page_token)

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
        parts = self._parts or await self._opened()
        if after_sequence < 0:
            raise InvalidInput.field("after_sequence", "must not be negative")
        return await parts.query.history(meta.tenant, case_id, after_sequence, page_size_of(page_size), reverse)

    async def watch_case(
        self, case_id: str, *, after_sequence: int = 0, meta: CallMeta = LOCAL
    ) -> AsyncIterator[HistoryEvent]:
        """Every event after a sequence, past ones first, then as they are committed; ends when the case has ended."""
        parts = self._parts or await self._opened()
        async for event in parts.watching.case(meta, case_id, after_sequence):
            yield event

    async def watch_cases(
        self, *, resume_token: str = "", meta: CallMeta = LOCAL
    ) -> AsyncIterator[tuple[HistoryEvent, str]]:
        """Every event of every case of the tenant from now on, or from a token; with the token to resume after it."""
        parts = self._parts or await self._opened()
        async for event, token in parts.watching.cases(meta, resume_token):
            yield event, token

    async def watch_token(self, *, from_start: bool = False) -> str:
        """The token for `watch_cases` from this moment on, or from the oldest event kept."""
        parts = self._parts or await self._opened()
        return parts.watching.token(from_start=from_start)

    async def explain_case(self, case_id: str, *, meta: CallMeta = LOCAL) -> Explanation:
        """Why the case is where it is: for each task of each live net, what it waits for."""
        parts = self._parts or await self._opened()
        async with parts.steps.held(meta, case_id) as live:
            found = query.explanation(*live.loaded(), self._clock.now())
        completed = await parts.query.completions(meta.tenant, case_id, found.sequence)
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
        """Open incidents, of one case or of all; with the resolved ones they are read from the histories: a page may
        be short and still have a token, and of all cases those that are damaged are left out. Raises NotFound, and
        StoreCorrupt for one case."""
        parts = self._parts or await self._opened()
        if include_resolved:
            return await parts.query.all_incidents(meta.tenant, case_id, page_size, page_token)
        return await parts.query.incidents(meta.tenant, case_id, page_size, page_token)

    # -- schedules ----------------------------------------------------------------------------------------------------

    async def create_schedule(
        self, schedule_id: str, spec: ScheduleSpec, *, paused: bool = False, meta: CallMeta = LOCAL
    ) -> ScheduleView:
        """Start cases of a workflow by the calendar. Raises AlreadyExists, NotFound for the workflow, LimitExceeded,
        and StoreCorrupt, as all calls do that name a damaged schedule, but deleting it."""
        parts = self._parts or await self._opened()
        return await self._marked(parts, await parts.schedules.create(schedule_id, spec, paused, meta), meta.tenant)

    async def update_schedule(
        self, schedule_id: str, spec: ScheduleSpec, *, revision: int = 0, meta: CallMeta = LOCAL
    ) -> ScheduleView:
        """Replace what a schedule was asked to be; raises Stale unless `revision` is the present one, or 0."""
        parts = self._parts or await self._opened()
        return await self._marked(parts, await parts.schedules.update(schedule_id, spec, revision, meta), meta.tenant)

    async def get_schedule(self, schedule_id: str, *, meta: CallMeta = LOCAL) -> ScheduleView:
        """A schedule as it was last committed. Raises NotFound."""
        parts = self._parts or await self._opened()
        return await self._marked(parts, parts.schedules.get(meta.tenant, schedule_id), meta.tenant)

    async def list_schedules(
        self, *, page_size: int = 0, page_token: str = "", meta: CallMeta = LOCAL
    ) -> Page[ScheduleView]:
        """Schedules by id; sensitive data that they begin cases with are masked."""
        parts = self._parts or await self._opened()
        page = parts.schedules.list(meta.tenant, page_size, page_token)
        return Page(tuple([await self._masked(parts, view, meta.tenant) for view in page.items]), page.next_token)

    async def _veil_of(self, parts: Parts, spec: ScheduleSpec, tenant: str) -> Veil | None:
        """What the workflow of a schedule hides; None when nobody can tell: there is no such workflow (any more), or it
        cannot be read now. No error, for what was asked is done by then."""
        try:
            version = spec.version or await parts.definitions.latest(tenant, spec.spec_id)
            return await parts.definitions.veil(tenant, spec.spec_id, version)
        except (NotFound, StoreError):
            return None

    async def _marked(self, parts: Parts, view: ScheduleView, tenant: str) -> ScheduleView:
        """A schedule with the names of the sensitive fields in its data: of all when nobody can tell which they are."""
        veil = await self._veil_of(parts, view.spec, tenant)
        names = veil.listed if veil is not None else tuple(sorted(_decode_members(view.spec.data)))
        return msgspec.structs.replace(view, sensitive=names)

    async def _masked(self, parts: Parts, view: ScheduleView, tenant: str) -> ScheduleView:
        """A schedule without what is sensitive in its data."""
        veil = await self._veil_of(parts, view.spec, tenant)
        data = veil.json(view.spec.data) if veil is not None else b"{}"
        return msgspec.structs.replace(view, spec=msgspec.structs.replace(view.spec, data=data))

    async def delete_schedule(self, schedule_id: str, *, meta: CallMeta = LOCAL) -> None:
        """No more of it; cases that it has started stay."""
        parts = self._parts or await self._opened()
        await parts.schedules.delete(schedule_id, meta)

    async def pause_schedule(self, schedule_id: str, reason: str = "", *, meta: CallMeta = LOCAL) -> ScheduleView:
        """No more occurrences until it is resumed."""
        parts = self._parts or await self._opened()
        return await self._marked(parts, await parts.schedules.pause(schedule_id, reason, meta), meta.tenant)

    async def resume_schedule(self, schedule_id: str, *, meta: CallMeta = LOCAL) -> ScheduleView:
        """Go on with the first occurrence after now."""
        parts = self._parts or await self._opened()
        return await self._marked(parts, await parts.schedules.resume(schedule_id, meta), meta.tenant)

    async def trigger_schedule(
        self, schedule_id: str, *, overlap: str = "", data: JsonObject = None, meta: CallMeta = LOCAL
    ) -> ScheduleView:
        """One start now, paused or not. `overlap` and `data` instead of the schedule's own."""
        body = json_object(data, "data") if data is not None else b""
        parts = self._parts or await self._opened()
        return await self._marked(parts, await parts.schedules.trigger(schedule_id, overlap, body, meta), meta.tenant)

    async def backfill_schedule(
        self, schedule_id: str, start: int, end: int, *, overlap: str = "", meta: CallMeta = LOCAL
    ) -> ScheduleView:
        """Take the occurrences from `start` up to, but not at, `end` (ns) as due now; each gets one case at most."""
        parts = self._parts or await self._opened()
        return await self._marked(
            parts, await parts.schedules.backfill(schedule_id, start, end, overlap, meta), meta.tenant
        )

    # -- keeping ------------------------------------------------------------------------------------------------------

    async def backup(self, *, after_token: str = "") -> AsyncIterator[Piece]:
        """The whole store, of all tenants, as it is now, in pieces that joined are a backup file. Calls go on.

        With the token that an earlier backup ended with: only what happened since. Raises InvalidInput for a token of
        another store, StoreCorrupt when the store is damaged, StoreUnavailable when it was opened again meanwhile.
        """
        parts = self._parts or await self._opened()
        async with parts.moment() as reads:
            async for piece in take(reads, parts.keyspace.shards, self._clock.now(), after_token):
                yield piece

    async def verify_store(self, *, progress: Progress | None = None) -> Examination:
        """Examine everything in the store, of all tenants, as it is now; calls go on meanwhile."""
        parts = self._parts or await self._opened()
        async with parts.moment() as reads:
            return await examine(reads, parts.keyspace.shards, progress)

    async def export_case(self, case_id: str, *, meta: CallMeta = LOCAL) -> bytes:
        """A case with its whole history as a JSON document that `prove_export` can prove without the store."""
        parts = self._parts or await self._opened()
        async with parts.moment() as reads:
            veils = parts.definitions.veil
            return await export(reads, parts.keyspace, meta.tenant, case_id, veils, self._key, self._clock.now())

    def sign_with(self, key: SigningKey) -> None:
        """From now on exported cases are signed, and the audit has checkpoints."""
        self._key = key
        if self._parts is not None:
            self._parts.trees.key = key

    def public_key_pem(self) -> str:
        """Who signs here, for anybody; empty without a key."""
        return self._key.public_pem().decode() if self._key is not None else ""

    # -- audit --------------------------------------------------------------------------------------------------------

    def record_operation(self, operation: Operation, tenant: str) -> None:
        """Take an operation that changed nothing (a read, a denial) into the audit, within a second or so. An effect
        needs none of this: its commit says who asked for it. Never blocks."""
        if self._parts is not None:
            self._parts.stream.take(tenant, operation)

    def record_again(self, like: Like) -> bool:
        """Count one more of an operation that was recorded within the same second; False when there is none like it.
        Cheaper than making the operation."""
        return self._parts is not None and self._parts.stream.again(like)

    def audit_full(self) -> bool:
        """Whether nothing more can be recorded for now, so that reads had better be refused."""
        return self._parts is not None and self._parts.stream.full

    def audit_counts(self) -> AuditCounts:
        """What the audit took since opening, for metrics."""
        parts = self._parts
        if parts is None:
            return AuditCounts()
        sizes = {shard: checkpoint.size for shard, checkpoint in parts.trees.newest.items()}
        return AuditCounts(parts.stream.recorded, parts.stream.overflowed, parts.stream.waiting, sizes)

    async def audit(self, resource: str, *, meta: CallMeta) -> None:
        """Record durably, before it is done, what somebody is about to do to something outside of the store."""
        parts = self._parts or await self._opened()
        entry = audited(parts.keyspace, 0, meta, resource, self._clock.now())
        await parts.journal.append(Unit.aside(0, meta.tenant, (entry.write,), audits=(entry.reference,)))

    async def list_audit(
        self, filter: AuditFilter = EVERYTHING, *, page_size: int = 0, page_token: str = "", meta: CallMeta = LOCAL
    ) -> Page[AuditEntry]:
        """The tenant's audit, newest first. A page can be short, or empty, and still have a token."""
        parts = self._parts or await self._opened()
        return await parts.trail.page(meta.tenant, filter, page_size, page_token)

    async def audit_checkpoints(self, *, shard: int | None = None, again: bool = False) -> Sequence[Checkpoint]:
        """A signed checkpoint of every log that has something (or of one), up to what is committed now. Raises
        Unsupported without a key."""
        parts = self._parts or await self._opened()
        if shard is not None:
            return (await parts.trees.checkpoint(shard, again=again),)
        return await parts.trees.checkpoints(again=again)

    async def audit_consistency(self, shard: int, first: int, second: int) -> Sequence[bytes]:
        """The proof (RFC 6962, 2.1.2) that a log of `second` records continues that of `first`. Raises InvalidInput."""
        parts = self._parts or await self._opened()
        return await parts.trees.consistency(shard, first, second)

    async def audit_proof(self, audit_id: str, *, meta: CallMeta = LOCAL) -> EntryProof:
        """That an entry is in the log of a checkpoint. Raises NotFound, Unsupported without a key."""
        parts = self._parts or await self._opened()
        return await entry_proof(parts.trail, parts.trees, audit_id, meta)

    async def receipt(self, case_id: str, sequence: int = 0, *, meta: CallMeta = LOCAL) -> Receipt:
        """That a durable step of a case happened; 0 is the latest. Raises NotFound, Unsupported without a key."""
        parts = self._parts or await self._opened()
        veils = parts.definitions.veil
        return await step_receipt(parts.store, parts.keyspace, veils, parts.trees, case_id, sequence, meta)

    async def check_checkpoint(self, known: Checkpoint) -> str:
        """Why a checkpoint that was kept elsewhere does not fit this store; empty when it does."""
        parts = self._parts or await self._opened()
        return await parts.trees.misfit(known)

    async def export_audit(self, *, full: bool = False) -> AsyncIterator[bytes]:
        """The whole audit, of all tenants, as a file that `prove_audit` proves offline; with `full` all commit records
        are in it. Raises Unsupported without a key, StoreCorrupt when the store is damaged."""
        checkpoints = await self.audit_checkpoints(again=True)
        parts = self._parts or await self._opened()
        store = await parts.trees.identity()
        async with parts.moment() as reads:
            async for piece in export_audit(
                reads,
                parts.keyspace,
                parts.definitions.veil,
                parts.trees,
                checkpoints,
                store,
                self._clock.now(),
                full=full,
            ):
                yield piece

    async def purge_cases(self, asked: PurgeRequest, *, meta: CallMeta = LOCAL) -> PurgeView:
        """Delete ended cases and their content for good; the log proves that they were there (runtime/retention.py).

        Raises InvalidInput when nothing is chosen. A case that is not there or has not ended is left alone and named.
        """
        parts = self._parts or await self._opened()
        if not meta.request_id or asked.dry_run:
            return await parts.retention.purge(asked, meta)
        request = parts.requests.of(meta, (asked.case_ids, asked.filter, asked.mark, asked.limit))
        return await parts.retention.answer(asked, meta, request.scope, request.fingerprint)

    async def apply_retention(self) -> int:
        """Purge now what the retention policy keeps no longer; how many cases went. It happens by itself too."""
        parts = self._parts or await self._opened()
        return await parts.retention.apply()

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
        parts = self._parts or await self._opened()
        return await parts.query.work_items(meta.tenant, filter, page_size, page_token)

    async def get_work_item(self, item_id: str, *, meta: CallMeta = LOCAL) -> WorkItemView:
        """One open work item with its input data."""
        parts = self._parts or await self._opened()
        return await parts.work_item(item_id, meta)

    async def open_work(self, subscription: WorkSubscription, *, meta: CallMeta = LOCAL) -> WorkSession:
        """A worker connects: items come to it, each leased, as long as it has credit (see runtime/dispatch.py).

        `close` the session. Raises InvalidInput.
        """
        parts = self._parts or await self._opened()
        return await parts.dispatch.open(subscription, meta)

    async def claim_work_item(self, item_id: str, user: str, *, meta: CallMeta = LOCAL) -> WorkItemView:
        """offered -> allocated to `user`."""
        checked_id(user, "user")
        ref, case_id = parse_item_id(item_id)
        return await self._on_item(case_id, c.ClaimItem(ref, user), meta)

    async def release_work_item(self, item_id: str, user: str = "", *, meta: CallMeta = LOCAL) -> WorkItemView:
        """allocated -> offered. With a `user`, WrongState when it is allocated to somebody else."""
        ref, case_id = parse_item_id(item_id)
        return await self._on_item(case_id, c.ReleaseItem(ref, user), meta)

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
        parts = self._parts or await self._opened()
        return await parts.steps.on_item(case_id, c.CompleteItem(ref, body, user), meta)

    async def complete_work_items(
        self, requests: Sequence[CompleteRequest], *, meta: CallMeta = LOCAL
    ) -> list[WorkItemView | WorkflowError]:
        """`complete_work_item` for each; different cases share commits. One element's error is its own answer."""
        checked_batch("items", len(requests))
        if self._parts is None:
            await self._opened()  # what it raises is not an element's own

        async def one(index: int, asked: CompleteRequest) -> WorkItemView | WorkflowError:
            try:
                return await self.complete_work_item(asked.item_id, asked.output, asked.user, meta=meta.element(index))
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
        retry_after: int | None = None,
        meta: CallMeta = LOCAL,
    ) -> WorkItemView:
        """The work failed: it is offered again while its task's `retry` says so, unless the failure is `permanent`.
        Then its error flow is taken, or an incident asks a person. `data` stands in the history. `retry_after`:
        nanoseconds until it is offered again; None = as its task says."""
        checked_id(code, "code")
        body = json_object(data, "data") if data is not None else b""
        ref, case_id = parse_item_id(item_id)
        return await self._on_item(case_id, c.FailItem(ref, code, message, user, body, permanent, retry_after), meta)

    async def skip_work_item(
        self, item_id: str, reason: str = "", user: str = "", *, meta: CallMeta = LOCAL
    ) -> WorkItemView:
        """Go on without this work. With a `user`, WrongState when it is somebody else's."""
        ref, case_id = parse_item_id(item_id)
        return await self._on_item(case_id, c.SkipItem(ref, reason, user), meta)

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
        asked = script_of(pattern_id, context)
        if not context.durable:
            return await run_in_memory(asked, self._clock, meta)
        parts = self._parts or await self._opened()
        kept = KeptRuns(parts.definitions, parts.births, parts.steps, parts.requests, parts.query)
        return await kept.run(asked, meta)

    execute_workflow_pattern = execute_pattern

    async def execute_patterns(
        self, requests: Sequence[tuple[int | str, PatternExecutionContext]], *, meta: CallMeta = LOCAL
    ) -> list[PatternResult | WorkflowError]:
        """`execute_pattern` for each, in order; one element's error is that element's answer."""
        checked_batch("patterns", len(requests))
        answers: list[PatternResult | WorkflowError] = []
        for index, (pattern_id, context) in enumerate(requests):
            try:
                answers.append(await self.execute_pattern(pattern_id, context, meta=meta.element(index)))
            except WorkflowError as error:
                answers.append(error)
        return answers

    def pattern_run(
        self, pattern_id: int | str, context: PatternExecutionContext = NO_CONTEXT, *, meta: CallMeta = LOCAL
    ) -> PatternRun:
        """The trace of a run in memory as it happens; the run's `result` once it is exhausted."""
        return PatternRun(sandbox.Run(script_of(pattern_id, context), self._clock, meta.principal))

    # -- connectors ---------------------------------------------------------------------------------------------------

    async def put_connector(
        self, name: str, kind: str, config: JsonObject, *, default: bool = False, meta: CallMeta = LOCAL
    ) -> ConnectorView:
        """Create or replace a connector of the tenant (see runtime/connectors.py). The same again changes nothing."""
        parts = self._parts or await self._opened()
        if self._setup.connectors is None:
            raise Unsupported("connectors", "make the engine with a ConnectorSetup")
        asked = ConnectorConfig(name, kind, json_object(config, "config_json"), default)
        return await parts.connectors.put(asked, meta)

    async def list_connectors(self, *, meta: CallMeta = LOCAL) -> tuple[ConnectorView, ...]:
        """Every connector that the tenant's tasks can name, by name."""
        parts = self._parts or await self._opened()
        return tuple(parts.outbox.told(*each) for each in parts.connectors.views(meta.tenant))

    async def probe_connector(self, name: str, *, meta: CallMeta = LOCAL) -> ConnectorView:
        """A connector with whether its other side can be reached. Raises NotFound."""
        parts = self._parts or await self._opened()
        return parts.outbox.told(*await parts.connectors.probe(meta.tenant, name))

    async def delete_connector(self, name: str, *, force: bool = False, meta: CallMeta = LOCAL) -> None:
        """Remove a connector of the tenant. Raises WrongState while a workflow names it, unless forced."""
        parts = self._parts or await self._opened()
        parts.connectors.check_own(meta.tenant, name)
        user = None if force else await parts.definitions.naming_connector(meta.tenant, name)
        if user is not None:
            raise WrongState("connector", name, "named by no workflow", f"named by {user}", "delete that, or force it")
        await parts.connectors.delete(name, meta)

    def connector_totals(self) -> tuple[int, Sequence[ConnectorView]]:
        """Calls made since opening, and every connector of every tenant, for metrics."""
        parts = self._parts
        if parts is None:
            return 0, ()
        return parts.outbox.made, [parts.outbox.told(*each) for each in parts.connectors.everything()]

    async def list_dead_letters(
        self,
        *,
        case_id: str = "",
        connector: str = "",
        page_size: int = 0,
        page_token: str = "",
        meta: CallMeta = LOCAL,
    ) -> Page[DeadLetterView]:
        """Effects that were given up, by case. A page that is filtered may be short and still have a token."""
        parts = self._parts or await self._opened()
        return await parts.dead_letters.page(meta, case_id, connector, page_size, page_token)

    async def retry_dead_letter(self, dead_letter_id: str, *, meta: CallMeta = LOCAL) -> DeadLetterView:
        """Make the call again, under the same key. Raises NotFound."""
        parts = self._parts or await self._opened()
        return await parts.dead_letters.resolve(dead_letter_id, "retry", "", meta)

    async def discard_dead_letter(
        self, dead_letter_id: str, reason: str = "", *, meta: CallMeta = LOCAL
    ) -> DeadLetterView:
        """Go on without the effect. Raises NotFound."""
        parts = self._parts or await self._opened()
        return await parts.dead_letters.resolve(dead_letter_id, "skip", reason, meta)

    # -- the way of a command -----------------------------------------------------------------------------------------

    async def _on_case(self, case_id: str, command: c.Command, meta: CallMeta, *, rest: bool = False) -> CaseView:
        parts = self._parts or await self._opened()
        return await parts.steps.on_case(case_id, command, meta, rest=rest)

    async def _on_item(self, case_id: str, command: OnItem, meta: CallMeta) -> WorkItemView:
        parts = self._parts or await self._opened()
        return await parts.steps.on_item(case_id, command, meta)

    async def _on_instances(self, case_id: str, command: OnInstances, meta: CallMeta) -> InstancesView:
        checked_id(command.task, "task_id")
        parts = self._parts or await self._opened()
        return await parts.steps.on_instances(case_id, command, meta)
