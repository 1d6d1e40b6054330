"""The one place that knows both the contract's messages and the engine's types.

Requests are parsed here, once: what comes out is trusted inside. Answers are built here, the whole tree in one
constructor call, because reading, writing and copying protobuf fields is what costs. JSON passes through untouched; the
engine checks it.

Errors are InvalidInput with the path in the request, what was expected and an example. What the contract has and this
version does not carry out is `Unsupported` naming the field, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Final, NamedTuple, TypeAlias, TypeVar, cast

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from knhk_sidecar.api import pb
from knhk_sidecar.api.faults import PermissionDenied
from knhk_workflow import (
    AuditEntry,
    CallMeta,
    CaseCounts,
    CaseFilter,
    CaseView,
    Checkpoint,
    CompleteRequest,
    ConnectorView,
    CountsView,
    DeadLetterView,
    Explanation,
    FailRequest,
    GuardReading,
    HistoryEvent,
    IncidentView,
    InstancesView,
    InvalidInput,
    LeasedItem,
    LimitExceeded,
    MessageView,
    PatternExecutionContext,
    PatternResult,
    PatternView,
    Problem,
    RunRequest,
    ScheduleSpec,
    ScheduleView,
    Stale,
    Stimulus,
    TaskExplanation,
    Unsupported,
    Validation,
    WorkflowView,
    WorkItemFilter,
    WorkItemView,
    WorkSubscription,
)

REQUEST_ID_BYTES_MAX = 128  # room for two UUIDs and a prefix; it is part of a key
ID_BYTES_MAX = 256  # the engine's limit of an id
BATCH_MAX = 1_000  # elements of a list; one group commit holds about as many
OPEN_ITEMS_SHOWN = 1_000  # of an executed case; the rest is in ListWorkItems
NS_PER_S = 1_000_000_000
DURATION_NS_MAX = 2**63 - 1  # a record holds 64 bits
LEASE_DEFAULT = 30 * NS_PER_S  # several heart-beats of a worker, and no long wait after its death
FAILED = "failed"  # the code of a failure that its reporter gave none

CASE_DATA_BYTES_MAX = 2 * 1024 * 1024  # the engine's limit of data and of an output

CaseState: TypeAlias = "pb.CaseState.ValueType"

CASE_STATES: Final[Mapping[str, CaseState]] = {
    "created": pb.CASE_STATE_CREATED,
    "running": pb.CASE_STATE_RUNNING,
    "completed": pb.CASE_STATE_COMPLETED,
    "cancelled": pb.CASE_STATE_CANCELLED,
    "failed": pb.CASE_STATE_FAILED,
    "suspended": pb.CASE_STATE_SUSPENDED,
}
ENDED: Final = frozenset({"completed", "cancelled", "failed"})
_CASE_STATE_NAMES: Final = {number: name for name, number in CASE_STATES.items()}
_ITEM_STATES: Final[Mapping[str, pb.WorkItemState.ValueType]] = {
    "offered": pb.WORK_ITEM_STATE_OFFERED,
    "allocated": pb.WORK_ITEM_STATE_ALLOCATED,
    "started": pb.WORK_ITEM_STATE_STARTED,
    "suspended": pb.WORK_ITEM_STATE_SUSPENDED,
    "completed": pb.WORK_ITEM_STATE_COMPLETED,
    "failed": pb.WORK_ITEM_STATE_FAILED,
    "skipped": pb.WORK_ITEM_STATE_SKIPPED,
    "withdrawn": pb.WORK_ITEM_STATE_WITHDRAWN,
    "terminated": pb.WORK_ITEM_STATE_TERMINATED,
    "force_completed": pb.WORK_ITEM_STATE_FORCE_COMPLETED,
}
_ITEM_STATE_NAMES: Final = {number: name for name, number in _ITEM_STATES.items()}
_OPEN_ITEM_STATES: Final = frozenset({"offered", "allocated", "started", "suspended"})
_OUTCOMES: Final[Mapping[str, pb.TriggerOutcome.ValueType]] = {
    "taken": pb.TRIGGER_OUTCOME_CONSUMED,
    "kept": pb.TRIGGER_OUTCOME_KEPT,
    "lost": pb.TRIGGER_OUTCOME_DROPPED,
}
_CHANGED: Final = {"offered": "", "allocated": "allocate_time", "started": "start_time", "suspended": ""}
_SEVERITIES: Final[Mapping[str, pb.Severity.ValueType]] = {
    "error": pb.SEVERITY_ERROR,
    "warning": pb.SEVERITY_WARNING,
    "info": pb.SEVERITY_INFO,
}
_SOUNDNESS: Final[Mapping[str, pb.Soundness.ValueType]] = {
    "sound": pb.SOUNDNESS_SOUND,
    "unsound": pb.SOUNDNESS_UNSOUND,
    "undecided": pb.SOUNDNESS_UNDECIDED,
    "unchecked": pb.SOUNDNESS_UNSPECIFIED,
}
_TASK_STATUS: Final[Mapping[str, pb.TaskStatus.ValueType]] = {
    "waiting": pb.TASK_STATUS_WAITING,
    "offered": pb.TASK_STATUS_ENABLED,
    "started": pb.TASK_STATUS_STARTED,
    "incident": pb.TASK_STATUS_INCIDENT,
    "idle": pb.TASK_STATUS_IDLE,
}
_RESOLUTIONS: Final[Mapping[int, str]] = {
    pb.INCIDENT_RESOLUTION_RETRY: "retry",
    pb.INCIDENT_RESOLUTION_SKIP: "skip",
    pb.INCIDENT_RESOLUTION_COMPLETE: "complete",
    pb.INCIDENT_RESOLUTION_FAIL_CASE: "fail_case",
}
_RESOLUTION_NUMBERS: Final = {
    name: cast("pb.IncidentResolution.ValueType", number) for number, name in _RESOLUTIONS.items()
}
_ATTEMPT = re.compile(r"\d+\.\d+\.(\d+)@")


M = TypeVar("M", bound=Message)


def nested(kind: type[M], fields: dict[str, object]) -> M:
    """A message that will be a field of another one: its fields, which the outer constructor takes as they are.

    A message made first would be copied into the outer one: measured, a case costs half this way. What comes from here
    is good for nothing but a constructor; the type says which one.
    """
    return cast(M, fields)


# -- what every request has -------------------------------------------------------------------------------------------


def mutation(meta: CallMeta, request_id: str) -> CallMeta:
    """The caller of one element, with that element's own idempotency key, or with none."""
    if request_id == meta.request_id:
        return meta
    if len(request_id) * 4 > REQUEST_ID_BYTES_MAX and len(request_id.encode()) > REQUEST_ID_BYTES_MAX:
        raise InvalidInput.field(
            "request_id", f"has {len(request_id.encode())} bytes", f"at most {REQUEST_ID_BYTES_MAX}, for example a UUID"
        )
    return msgspec.structs.replace(meta, request_id=request_id)


def without_deadline(meta: CallMeta) -> CallMeta:
    """The caller, for reading what a change that is already durable led to."""
    return msgspec.structs.replace(meta, deadline=0) if meta.deadline else meta


def required(value: str, field: str, example: str) -> str:
    """An id that must be there; its form is the engine's to check."""
    if not value:
        raise InvalidInput.field(field, "is missing", f'expected an id, for example "{example}"', code="required")
    return value


def case_id(value: str) -> str:
    """The id of a case that exists."""
    return required(value, "case_id", "order-4711")


def item_id(value: str) -> str:
    """The id of a work item."""
    return required(value, "item_id", "3.1.1@order-4711")


def spec_id(value: str) -> str:
    """The id of a workflow."""
    return required(value, "spec_id", "order-approval")


def duration_ns(value: Duration, field: str) -> int:
    """A length of time in nanoseconds. An absent one is 0. Raises InvalidInput for what no record can hold."""
    length = value.seconds * NS_PER_S + value.nanos
    if length < 0:
        raise InvalidInput.field(field, "must not be negative", "for example 1.5s")
    if length > DURATION_NS_MAX:
        raise InvalidInput.field(field, "is longer than 292 years", "for example 1.5s")
    return length


def not_yet(given: bool, feature: str) -> None:
    """Refuse a request that uses a field which this version does not carry out."""
    if given:
        raise Unsupported(feature)


def batch(count: int, field: str) -> None:
    """Refuse an empty or an over-long list."""
    if not count:
        raise InvalidInput.field(field, "is empty", f"expected 1 to {BATCH_MAX} elements", code="required")
    if count > BATCH_MAX:
        raise LimitExceeded(field, BATCH_MAX, count, "split the list")


def element_id(request_id: str, index: int) -> str:
    """The idempotency key of an element that has none of its own."""
    return f"{request_id}#{index}" if request_id else ""


# -- workflows --------------------------------------------------------------------------------------------------------


class SourceText(NamedTuple):
    """A workflow document as it came, and the format to read it in."""

    text: bytes
    format: str


def source(request: pb.RegisterWorkflowRequest | pb.ValidateWorkflowRequest) -> SourceText:
    """The document of a request. Exactly one of its two forms is there."""
    if request.WhichOneof("source") == "spec_json":
        return SourceText(request.spec_json, "json")
    text = request.document
    if not text:
        raise InvalidInput.field(
            "spec_json", "is missing", 'expected a workflow document, for example {"id": "hello"}', code="required"
        )
    form = request.format
    if form in ("yawl", "bpmn"):
        raise Unsupported(f"workflow documents in {form} format")
    if form not in ("", "json", "yaml"):
        raise InvalidInput.field("format", f"{form!r} is not a document format", "expected json, yaml, yawl or bpmn")
    # What begins with a brace is meant as JSON; as YAML it would get messages that do not help its author.
    return SourceText(text, form or ("json" if text.lstrip()[:1] == b"{" else "yaml"))


def finding(problem: Problem) -> pb.Finding:
    """Something that verification has to say."""
    return pb.Finding(
        severity=_SEVERITIES.get(problem.severity, pb.SEVERITY_ERROR),
        code=problem.code,
        element=problem.path,
        message=problem.message,
        hint=problem.hint,
        trace=problem.trace,
    )


def findings(problems: Iterable[Problem]) -> list[pb.Finding]:
    """Findings, errors first."""
    return [finding(problem) for problem in sorted(problems, key=lambda one: one.severity != "error")]


def registered(view: WorkflowView) -> pb.RegisterWorkflowResponse:
    """The answer to a registration."""
    return pb.RegisterWorkflowResponse(
        spec_id=view.spec_id,
        version=view.version,
        findings=findings(view.findings),
        soundness=_SOUNDNESS.get(view.verdict, pb.SOUNDNESS_UNSPECIFIED),
        created=view.created,
        digest=view.digest,
    )


def validated(validation: Validation) -> pb.ValidateWorkflowResponse:
    """The answer to a validation."""
    errors = any(problem.severity == "error" for problem in validation.findings)
    return pb.ValidateWorkflowResponse(
        valid=not errors and validation.verdict != "unsound",
        findings=findings(validation.findings),
        soundness=_SOUNDNESS.get(validation.verdict, pb.SOUNDNESS_UNSPECIFIED),
        spec_id=validation.spec_id,
    )


def unreadable(error: InvalidInput) -> pb.ValidateWorkflowResponse:
    """The answer to validating something that is no document: its problems are findings too."""
    problems = error.problems or (Problem("", "unreadable", error.message),)
    return pb.ValidateWorkflowResponse(valid=False, findings=findings(problems))


def workflow(view: WorkflowView, latest: bool) -> pb.Workflow:
    """A registered version; in lists its document is empty."""
    return pb.Workflow(
        spec_id=view.spec_id,
        version=view.version,
        name=view.name,
        spec_json=view.document,
        digest=view.digest,
        findings=findings(view.findings),
        soundness=_SOUNDNESS.get(view.verdict, pb.SOUNDNESS_UNSPECIFIED),
        register_time=time(view.registered_at),
        registered_by=view.registered_by,
        task_count=_tasks(view.document) if view.document else 0,
        latest=latest,
    )


class _Tasks(msgspec.Struct):
    """The part of a document that holds tasks, in either of its shapes."""

    tasks: list[msgspec.Raw] | dict[str, msgspec.Raw] | None = None
    nets: dict[str, _Net] | list[_Net] | None = None


class _Net(msgspec.Struct):
    tasks: list[msgspec.Raw] | dict[str, msgspec.Raw] | None = None


_read_tasks = msgspec.json.Decoder(_Tasks).decode


def _tasks(document: bytes) -> int:
    found = _read_tasks(document)
    nets = found.nets or {}
    each = nets.values() if isinstance(nets, dict) else nets
    return len(found.tasks or ()) + sum(len(net.tasks or ()) for net in each)


# -- cases ------------------------------------------------------------------------------------------------------------


def run_request(request: pb.RunCaseRequest | pb.CreateCaseRequest) -> RunRequest:
    """What to create."""
    return RunRequest(
        spec_id(request.spec_id), request.data_json or None, request.case_id, request.business_key, request.spec_version
    )


def case(view: CaseView, full: bool = True) -> pb.Case:
    """A case, as a field of an answer. BASIC leaves data and live tasks out."""
    fields: dict[str, object] = {
        "case_id": view.case_id,
        "spec_id": view.spec_id,
        "spec_version": view.spec_version,
        "state": CASE_STATES[view.state],
        "sequence": view.sequence,
        "create_time": time(view.created_at),
        "update_time": time(view.updated_at),
    }
    if full:
        fields["data_json"] = view.data
        if view.sensitive:
            fields["sensitive_fields"] = view.sensitive
        if view.work or view.incidents:
            fields["live_tasks"] = _live_tasks(view)
    if view.open_items:
        fields["open_work_item_count"] = view.open_items
    if view.open_incidents:
        fields["open_incident_count"] = view.open_incidents
    if view.business_key:
        fields["business_key"] = view.business_key
    if view.reason:
        fields["reason"] = view.reason
    if view.created_by:
        fields["created_by"] = view.created_by
    if view.state in ENDED:
        fields["end_time"] = fields["update_time"]
    return nested(pb.Case, fields)


def _live_tasks(view: CaseView) -> list[pb.LiveTask]:
    """One per activation with open work, then one per task that an incident holds."""
    open_instances: dict[tuple[str, str, int], int] = {}
    statuses: dict[tuple[str, str, int], str] = {}
    for item in view.work:
        task = (item.task_id, item.net, item_numbers(item.item_id)[0])
        open_instances[task] = open_instances.get(task, 0) + 1
        if item.state in ("started", "suspended") or task not in statuses:
            statuses[task] = item.state if item.state in ("started", "suspended") else "offered"
    live = [
        nested(
            pb.LiveTask,
            {
                "task_id": task[0],
                "net": task[1],
                "activation": task[2],
                "status": status,
                "open_instances": open_instances[task],
            },
        )
        for task, status in statuses.items()
    ]
    return live + [pb.LiveTask(task_id=one.task_id, status="incident") for one in view.incidents if one.task_id]


def whole(view: pb.CaseView.ValueType) -> bool:
    """Whether a request for one case wants all of it."""
    return view != pb.CASE_VIEW_BASIC


def executed(view: CaseView, full: bool, history: list[pb.HistoryEvent] | None = None) -> pb.ExecuteCaseResponse:
    """A case at rest, with what is left for the outside."""
    return pb.ExecuteCaseResponse(
        case=case(view, full),
        open_work_items=[work_item(item) for item in view.work[:OPEN_ITEMS_SHOWN]] if view.work else None,
        history=history,
    )


def ran(view: CaseView, full: bool, history: list[pb.HistoryEvent] | None = None) -> pb.RunCaseResponse:
    """A case at rest, with what is left for the outside."""
    return pb.RunCaseResponse(
        case=case(view, full),
        open_work_items=[work_item(item) for item in view.work[:OPEN_ITEMS_SHOWN]] if view.work else None,
        history=history,
    )


def states(wanted: Iterable[CaseState], field: str) -> frozenset[str]:
    """Names of case states; an empty set is any."""
    names = set()
    for position, number in enumerate(wanted):
        name = _CASE_STATE_NAMES.get(number)
        if name is None:
            raise InvalidInput.field(f"{field}[{position}]", f"{number} is not a case state", _expected(CASE_STATES))
        names.add(name)
    return frozenset(names)


class CaseSelection(NamedTuple):
    """A case filter: what the engine's index answers, and what is asked of each case beyond that."""

    wanted: CaseFilter
    keep: Callable[[CaseView], bool] | None
    mark: bytes  # stands for the part that the engine does not see, to bind page tokens to it


def case_selection(request: pb.CaseFilter) -> CaseSelection:
    """Take a filter apart."""
    names = states(request.states, "filter.states")
    wanted = CaseFilter(next(iter(names)) if len(names) == 1 else "", request.spec_id, request.business_key)
    rest = pb.CaseFilter()
    rest.CopyFrom(request)
    for field in ("spec_id", "business_key", *(("states",) if len(names) == 1 else ())):
        rest.ClearField(field)
    mark = rest.SerializeToString(deterministic=True)
    return CaseSelection(wanted, _matching(rest), fingerprint(mark)) if mark else CaseSelection(wanted, None, b"")


def watch_selection(request: pb.CaseFilter) -> Callable[[CaseView], bool] | None:
    """Which cases' events to show; None is all. Only by what never changes in a case: a resumed watch sees the same."""
    for field, given in (
        ("states", bool(request.states)),
        ("ended_before", request.HasField("ended_before")),
        ("with_incidents", request.with_incidents),
    ):
        if given:
            raise InvalidInput.field(
                f"filter.{field}", "changes while a case lives and cannot select its events", "use event_types instead"
            )
    return _matching(request) if request.ByteSize() else None


def _matching(request: pb.CaseFilter) -> Callable[[CaseView], bool]:
    names = states(request.states, "filter.states")
    after = moment(request.created_after) if request.HasField("created_after") else None
    before = moment(request.created_before) if request.HasField("created_before") else None
    ended = moment(request.ended_before) if request.HasField("ended_before") else None
    spec, version, key = request.spec_id, request.spec_version, request.business_key
    prefix, incidents = request.case_id_prefix, request.with_incidents

    def keep(view: CaseView) -> bool:
        return (
            spec in ("", view.spec_id)
            and key in ("", view.business_key)
            and version in (0, view.spec_version)
            and (not names or view.state in names)
            and view.case_id.startswith(prefix)
            and (after is None or view.created_at >= after)
            and (before is None or view.created_at < before)
            and (ended is None or (view.state in ENDED and view.updated_at < ended))
            and (not incidents or view.open_incidents > 0)
        )

    return keep


def fingerprint(text: bytes) -> bytes:
    """A short mark of a filter."""
    return blake2b(text, digest_size=6).digest()


def incident(view: IncidentView) -> pb.Incident:
    """An incident."""
    return pb.Incident(
        incident_id=view.incident_id,
        case_id=view.case_id,
        spec_id=view.spec_id,
        kind=view.kind,
        task_id=view.task_id,
        message=view.message,
        time=time(view.raised_at),
        resolve_time=time(view.resolved_at),
        resolution=_RESOLUTION_NUMBERS.get(view.resolution, pb.INCIDENT_RESOLUTION_UNSPECIFIED),
        resolved_by=view.resolved_by,
    )


def incident_id(request: pb.ResolveIncidentRequest) -> str:
    """The engine's id of an incident: `number@case`; callers may give the number alone beside the case."""
    given = required(request.incident_id, "incident_id", "1@order-4711")
    if "@" not in given:
        return f"{given}@{case_id(request.case_id)}"
    if request.case_id and given.partition("@")[2] != request.case_id:
        raise InvalidInput.field(
            "incident_id", f"{given!r} is not an incident of case {request.case_id!r}", "take both from ListIncidents"
        )
    return given


def resolution(request: pb.ResolveIncidentRequest) -> str:
    """The engine's name of what to do."""
    name = _RESOLUTIONS.get(request.resolution)
    if name is None:
        raise InvalidInput.field("resolution", "is missing or unknown", _expected(_RESOLUTIONS.values()))
    if request.data_json and name != "complete":
        raise InvalidInput.field("data_json", f"has no meaning with {name}", "leave it out, or use COMPLETE")
    return name


def replaces(mode: pb.DataUpdateMode.ValueType) -> bool:
    """Whether new data takes the place of the old; otherwise its keys do."""
    if mode not in pb.DataUpdateMode.values():
        raise InvalidInput.field("mode", f"{mode} is not a mode", "expected MERGE or REPLACE")
    return mode == pb.DATA_UPDATE_MODE_REPLACE


def triggered(message: MessageView) -> pb.TriggerCaseResponse:
    """What became of a signal, case by case."""
    return pb.TriggerCaseResponse(
        message_id=message.message_id,
        deliveries=[
            pb.TriggerDelivery(
                case_id=one.case_id,
                outcome=_OUTCOMES[one.outcome],
                task_id=one.task_id,
                activation=one.activation,
            )
            for one in message.deliveries
        ],
    )


def history_event(event: HistoryEvent) -> pb.HistoryEvent:
    """One entry of a history."""
    return pb.HistoryEvent(
        sequence=event.sequence,
        timestamp=time(event.timestamp),
        event_type=event.event_type,
        data_json=event.data,
        case_id=event.case_id,
        principal=_by(event.data).by,
    )


class _By(msgspec.Struct):
    """Who caused an event, as its content says."""

    by: str = ""


_by = msgspec.json.Decoder(_By).decode


def explained(found: Explanation, task_id: str) -> pb.ExplainCaseResponse:
    """Why a case is where it is; of one task, when asked for."""
    return pb.ExplainCaseResponse(
        case_id=found.case_id,
        state=CASE_STATES[found.state],
        sequence=found.sequence,
        sentence=found.sentence,
        tasks=[_task(task, found.completed) for task in found.tasks if not task_id or task.task_id == task_id],
        marking=found.marking,
        incidents=[incident(one) for one in found.incidents],
    )


def _task(task: TaskExplanation, completed: Mapping[str, int]) -> pb.TaskExplanation:
    count = completed.get(f"{task.net}/{task.task_id}" if task.net else task.task_id, 0)
    status = _TASK_STATUS.get(task.status, pb.TASK_STATUS_UNSPECIFIED)
    return pb.TaskExplanation(
        task_id=task.task_id,
        net=task.net,
        status=pb.TASK_STATUS_COMPLETED if count and status == pb.TASK_STATUS_IDLE else status,
        sentence=task.sentence,
        join_kind=task.join,
        arrived=task.arrived,
        missing=task.missing,
        guards=[_guard(guard) for guard in task.guards],
        waits_for=[pb.WaitExplanation(kind=wait.kind, name=wait.name, detail=wait.detail) for wait in task.waits_for],
        or_join_paths=[pb.OrJoinPath(token=way.token, input=way.input, path=way.path) for way in task.paths],
        activations=task.activations,
        completed_count=count,
    )


def _guard(guard: GuardReading) -> pb.GuardExplanation:
    decided = guard.result in ("true", "false")
    return pb.GuardExplanation(
        flow=guard.flow,
        expression=guard.expression,
        value_json=guard.result.encode() if decided else b"",
        error="" if decided else guard.result,
        inputs_json=msgspec.json.encode(guard.values),
    )


# -- work items -------------------------------------------------------------------------------------------------------


def work_item(view: WorkItemView) -> pb.WorkItem:
    """A work item, as a field of an answer. The time of its last change stands at the state that the change led to."""
    activation, instance = item_numbers(view.item_id)
    state = view.state
    fields: dict[str, object] = {
        "item_id": view.item_id,
        "case_id": view.case_id,
        "spec_id": view.spec_id,
        "task_id": view.task_id,
        "activation": activation,
        "instance": instance,
        "state": _ITEM_STATES[state],
        "roles": view.roles,
        "attempt": view.attempt,
        "create_time": time(view.offered_at),
        "title": view.task_name or view.task_id,
    }
    if view.net:
        fields["net"] = view.net
    if view.owner:
        fields["owner"] = view.owner
    if view.data:
        fields["data_json"] = view.data
        if view.sensitive:
            fields["sensitive_fields"] = view.sensitive
    if view.priority:
        fields["priority"] = view.priority
    if view.due_at:
        fields["due_time"] = time(view.due_at)
    if view.leased_until:
        fields["lease_expire_time"] = time(view.leased_until)
    if (changed := _CHANGED.get(state, "end_time")) and view.changed_at:
        fields[changed] = time(view.changed_at)
    return nested(pb.WorkItem, fields)


def item_numbers(name: str) -> tuple[int, int]:
    """Activation and instance in the engine's own item id."""
    activation, instance, _ = name.split(".", 2)
    return int(activation), int(instance)


def present_attempt(name: str, attempt: int) -> None:
    """Refuse a result of another attempt than the item's. 0 means the present one."""
    if attempt and (found := _ATTEMPT.match(name)) and int(found[1]) != attempt:
        raise Stale("work item", name, f"attempt {attempt}", f"attempt {found[1]}", "list the work again")


def item_filter(request: pb.ListWorkItemsRequest) -> WorkItemFilter:
    """Which items to list."""
    state = ""
    if request.state:
        name = _ITEM_STATE_NAMES.get(request.state)
        if name is None:
            raise InvalidInput.field("state", f"{request.state} is not a work item state", _expected(_ITEM_STATES))
        not_yet(name not in _OPEN_ITEM_STATES, "WorkItemService.ListWorkItems of ended items")
        state = name
    return WorkItemFilter(request.role, request.user, state, request.case_id, request.task_id)


def task_id(value: str) -> str:
    """The id of a task."""
    return required(value, "task_id", "check-stock")


def instance_group(view: InstancesView) -> pb.InstanceGroup:
    """A multiple-instance task after a command about its instances."""
    return pb.InstanceGroup(
        case_id=view.case_id,
        task_id=view.task_id,
        activation=view.activation,
        created_count=view.created,
        completed_count=view.done,
        open_count=view.open,
        accepts_instances=view.accepts,
        sequence=view.case_sequence,
    )


def acting(user: str, meta: CallMeta) -> str:
    """For whom the caller acts. Who is something in workflows acts for itself; an application, which is nothing in
    them, for whomever it names. Raises PermissionDenied."""
    if user and meta.roles and user != meta.principal:
        raise PermissionDenied("work_roles: for itself only")
    return user or meta.principal


def completion(request: pb.CompleteWorkItemRequest, user: str) -> CompleteRequest:
    """What to complete."""
    name = item_id(request.item_id)
    present_attempt(name, request.attempt)
    return CompleteRequest(name, request.output_json or None, user)


def failure(request: pb.FailWorkItemRequest, user: str) -> FailRequest:
    """What failed."""
    name = item_id(request.item_id)
    present_attempt(name, request.attempt)
    later = duration_ns(request.retry_after, "retry_after") if request.HasField("retry_after") else None
    return FailRequest(
        name,
        request.code or FAILED,
        request.message,
        user,
        request.data_json or None,
        request.permanent,
        later,
    )


def subscription(request: pb.WorkSubscription) -> WorkSubscription:
    """What a worker wants."""
    not_yet(bool(request.connectors), "WorkSubscription.connectors")
    if not request.credit:
        raise InvalidInput.field("subscribe.credit", "is missing", "how many items at once, for example 8")
    lease = duration_ns(request.lease, "subscribe.lease") if request.HasField("lease") else LEASE_DEFAULT
    return WorkSubscription(tuple(request.tasks), request.credit, lease, request.worker_id, tuple(request.roles))


def streamed_completion(
    request: pb.CompleteWorkItemRequest, request_id: str, index: int, meta: CallMeta
) -> CompleteRequest:
    """A completion in a worker's message."""
    asked = completion(request, acting(request.user, meta))
    return msgspec.structs.replace(asked, request_id=request.request_id or element_id(request_id, index))


def streamed_failure(request: pb.FailWorkItemRequest, request_id: str, index: int, meta: CallMeta) -> FailRequest:
    """A failure in a worker's message."""
    asked = failure(request, acting(request.user, meta))
    own = request.request_id or (f"{element_id(request_id, index)}f" if request_id else "")
    return msgspec.structs.replace(asked, request_id=own)


def leased_item(given: LeasedItem) -> pb.LeasedWorkItem:
    """An item for a worker, with the end of its lease."""
    fields: dict[str, object] = {
        "item": work_item(msgspec.structs.replace(given.item, leased_until=given.until)),
        "lease_expire_time": time(given.until),
    }
    if given.redelivered:
        fields["redelivered"] = True
    return nested(pb.LeasedWorkItem, fields)


def completed(item: WorkItemView) -> pb.CompleteWorkItemResponse:
    """A completed item, with its case as the completion left it."""
    return pb.CompleteWorkItemResponse(
        item=work_item(item),
        case_state=CASE_STATES[item.case_state],
        sequence=item.case_sequence,
        opened_item_ids=item.opened,
    )


# -- patterns ---------------------------------------------------------------------------------------------------------

PATTERNS = 43  # the catalogue of the literature


def pattern(view: PatternView, full: bool) -> pb.Pattern:
    """An entry of the catalogue; in lists without net and script."""
    return pb.Pattern(
        pattern_id=view.pattern_id,
        name=view.name,
        aliases=view.aliases,
        category=view.category,
        construct=view.construct,
        context_conditions=[view.context] if view.context else None,
        literature=view.literature,
        net_json=view.document if full else b"",
        default_script=[_stimulus(one) for one in view.script] if full else None,
        summary=view.semantics,
        available=view.available,
    )


def _stimulus(one: Stimulus) -> pb.Stimulus:
    return pb.Stimulus(move=one.move, task=one.task, name=one.name, data_json=one.data)


def pattern_id(number: int) -> int:
    """The number of a pattern to run."""
    if not 1 <= number <= PATTERNS:
        raise InvalidInput.field(
            "pattern_id", f"{number} is not a pattern", "expected 1 to 43, for example 1 (Sequence)"
        )
    return number


def pattern_context(request: pb.ExecutePatternRequest) -> PatternExecutionContext:
    """The surroundings of one run."""
    return PatternExecutionContext(
        case_id=request.case_id,
        workflow_id=request.workflow_id,
        variables=dict(request.variables),
        data=request.data_json,
        script=tuple(Stimulus(one.move, one.task, one.name, one.data_json) for one in request.script),
        durable=request.durable,
    )


def pattern_ran(result: PatternResult) -> pb.ExecutePatternResponse:
    """What running a pattern gave."""
    return pb.ExecutePatternResponse(
        success=result.success,
        next_state=result.next_state,
        next_activities=result.next_activities,
        variables=result.variables,
        updates_json=result.updates,
        cancel_activities=result.cancel_activities,
        terminates=result.terminates,
        trace=[history_event(event) for event in result.trace],
        case_id=result.case_id,
        message=result.message,
    )


# -- the daemon -------------------------------------------------------------------------------------------------------


def limits(request_bytes: int, streams_per_connection: int) -> pb.Limits:
    """What no request may exceed, as GetStatus tells it; the operator sets some of it."""
    return pb.Limits(
        request_bytes=request_bytes,
        document_bytes=5 * 1024 * 1024,
        case_data_bytes=CASE_DATA_BYTES_MAX,
        batch_elements=BATCH_MAX,
        page_elements=1_000,
        subnet_depth=256,
        live_tokens=10_000,
        open_items=10_000,
        instances=10_000,
        request_id_bytes=REQUEST_ID_BYTES_MAX,
        request_id_window=Duration(seconds=24 * 3600),
        settle_firings=100_000,
        streams_per_connection=streams_per_connection,
    )


# -- times ------------------------------------------------------------------------------------------------------------


def counts(view: CountsView, cached_cases: int) -> pb.Counts:
    """How much there is, as GetStatus says it."""
    cases = view.cases or CaseCounts()
    return pb.Counts(
        workflow_versions=view.workflow_versions,
        cases_created=cases.created,
        cases_running=cases.running,
        cases_suspended=cases.suspended,
        cases_completed=cases.completed,
        cases_cancelled=cases.cancelled,
        cases_failed=cases.failed,
        open_work_items=cases.open_items,
        open_incidents=cases.open_incidents,
        dead_letters=view.dead_letters,
        timers=view.timers,
        cached_cases=cached_cases,
        counting=view.cases is None,
    )


def connector(view: ConnectorView) -> pb.Connector:
    """A connector; its configuration names secrets and holds none."""
    states = [state for _, state in view.breakers]
    return pb.Connector(
        name=view.name,
        kind=view.kind,
        config_json=view.config,
        is_default=view.default,
        delivery=view.delivery,
        breaker_state=max(states, key=_BREAKER_STATES.index, default="closed"),
        pool_active=view.pool_active,
        pool_size=view.pool_size,
        pool_waiting=view.pool_waiting,
        health=_HEALTH[view.healthy],
        update_time=time(view.updated_at),
        message=view.detail,
        shared=view.shared,
        breaker_states=dict(view.breakers),
        call_active=view.active,
        call_waiting=view.waiting,
    )


_BREAKER_STATES: Final = ("closed", "half-open", "open")
_HEALTH: Final = {
    None: pb.HEALTH_STATE_UNSPECIFIED,
    True: pb.HEALTH_STATE_HEALTHY,
    False: pb.HEALTH_STATE_UNHEALTHY,
}


def dead_letter(view: DeadLetterView) -> pb.DeadLetter:
    """An effect that was given up."""
    return pb.DeadLetter(
        dead_letter_id=view.dead_letter_id,
        kind="connector",
        target=view.connector,
        case_id=view.case_id,
        task_id=view.task_id,
        attempt_count=view.attempts,
        last_error=Status(code=_GIVEN_UP, message=f"{view.code}: {view.message}" if view.code else ""),
        payload_json=view.request,
        first_attempt_time=time(view.first_tried_at),
        create_time=time(view.created_at),
        status=view.status,
    )


_GIVEN_UP: Final = 14  # UNAVAILABLE: what the outside said has no code of ours


# -- schedules --------------------------------------------------------------------------------------------------------

_OVERLAPS: Final[Mapping[str, pb.ScheduleOverlap.ValueType]] = {
    "": pb.SCHEDULE_OVERLAP_UNSPECIFIED,
    "skip": pb.SCHEDULE_OVERLAP_SKIP,
    "buffer_one": pb.SCHEDULE_OVERLAP_BUFFER_ONE,
    "buffer_all": pb.SCHEDULE_OVERLAP_BUFFER_ALL,
    "allow": pb.SCHEDULE_OVERLAP_ALLOW,
    "cancel_other": pb.SCHEDULE_OVERLAP_CANCEL_OTHER,
    "terminate_other": pb.SCHEDULE_OVERLAP_TERMINATE_OTHER,
}
_OVERLAP_NAMES: Final = {number: name for name, number in _OVERLAPS.items()}
_CATCH_UPS: Final[Mapping[str, pb.ScheduleCatchUp.ValueType]] = {
    "latest": pb.SCHEDULE_CATCH_UP_LATEST,
    "all": pb.SCHEDULE_CATCH_UP_ALL,
    "none": pb.SCHEDULE_CATCH_UP_NONE,
}
_CATCH_UP_NAMES: Final = {number: name for name, number in _CATCH_UPS.items()}


def schedule_id(value: str) -> str:
    """The id of a schedule."""
    return required(value, "schedule_id", "nightly")


def overlap(value: pb.ScheduleOverlap.ValueType, field: str) -> str:
    """The name of a policy; empty where none was chosen."""
    if value not in _OVERLAP_NAMES:
        raise InvalidInput.field(field, f"{value} is not known", _expected(filter(None, _OVERLAPS)))
    return _OVERLAP_NAMES[value]


def schedule_spec(request: pb.ScheduleSpec) -> ScheduleSpec:
    """What a schedule is to do."""
    if request.catch_up and request.catch_up not in _CATCH_UP_NAMES:
        raise InvalidInput.field("spec.catch_up", f"{request.catch_up} is not known", _expected(_CATCH_UPS))
    plain = ScheduleSpec(
        required(request.spec_id, "spec.spec_id", "order-approval"),
        required(request.every, "spec.every", "0 9 * * MON-FRI"),
        request.time_zone,
        request.version,
        request.data_json or b"{}",
        request.business_key,
        request.time_key,
        overlap(request.overlap, "spec.overlap") or "skip",
        _CATCH_UP_NAMES.get(request.catch_up, "latest"),
        not_before=moment(request.start_time),
        not_after=moment(request.end_time),
        note=request.description,
    )
    if not request.HasField("catch_up_window"):
        return plain
    window = duration_ns(request.catch_up_window, "spec.catch_up_window")
    return msgspec.structs.replace(plain, catch_up_window=window)


def span(start: Timestamp, end: Timestamp) -> tuple[int, int]:
    """From a time up to another, in nanoseconds since the epoch."""
    return moment(start), moment(end)


def schedule(view: ScheduleView) -> pb.Schedule:
    """A schedule."""
    spec = view.spec
    return pb.Schedule(
        schedule_id=view.schedule_id,
        spec=nested(
            pb.ScheduleSpec,
            {
                "spec_id": spec.spec_id,
                "version": spec.version,
                "every": spec.every,
                "time_zone": spec.time_zone,
                "data_json": spec.data,
                "business_key": spec.business_key,
                "time_key": spec.time_key,
                "overlap": _OVERLAPS[spec.overlap],
                "catch_up": _CATCH_UPS[spec.catch_up],
                "catch_up_window": length(spec.catch_up_window),
                "start_time": time(spec.not_before),
                "end_time": time(spec.not_after),
                "description": spec.note,
            },
        ),
        revision=view.revision,
        paused=view.paused,
        pause_reason=view.pause_reason,
        next_times=[_timestamp(at) for at in view.next_times],
        running_case_ids=view.running,
        waiting_count=view.waiting,
        recent_runs=[
            pb.ScheduleRun(
                scheduled_time=time(run.at),
                outcome=run.outcome,
                time=time(run.done_at),
                case_id=run.case_id,
                message=run.message,
            )
            for run in view.recent
        ],
        started_count=view.started,
        skipped_count=view.skipped,
        missed_count=view.missed,
        failed_count=view.failed,
        create_time=time(view.created_at),
        created_by=view.created_by,
        update_time=time(view.updated_at),
        sensitive_fields=view.sensitive,
    )


# -- audit ------------------------------------------------------------------------------------------------------------


def audit_entry(entry: AuditEntry) -> pb.AuditEntry:
    """One entry of the audit."""
    done = entry.operation
    return pb.AuditEntry(
        audit_id=entry.audit_id,
        time=time(done.time),
        principal=done.principal,
        method=done.method,
        resource=done.resource,
        outcome=done.outcome,
        reason=done.reason,
        request_id=done.request_id,
        peer=done.peer,
        count=done.count,
        trace_id=done.trace_id,
    )


def checkpoint(found: Checkpoint) -> pb.Checkpoint:
    """A signed checkpoint of a log."""
    return pb.Checkpoint(
        store_id=found.store,
        shard=found.shard,
        size=found.size,
        root_hash=found.root.hex(),
        time=time(found.time_ns),
        note=found.note,
    )


# -- small things -----------------------------------------------------------------------------------------------------


def time(ns: int) -> Timestamp | None:
    """A point in time, as a field of an answer; 0 is none."""
    return nested(Timestamp, {"seconds": ns // NS_PER_S, "nanos": ns % NS_PER_S}) if ns else None


def length(ns: int) -> Duration:
    """A length of time."""
    return Duration(seconds=ns // NS_PER_S, nanos=ns % NS_PER_S)


def _timestamp(ns: int) -> Timestamp:
    """A point in time, as an element of a list."""
    return Timestamp(seconds=ns // NS_PER_S, nanos=ns % NS_PER_S)


def moment(value: Timestamp) -> int:
    """Nanoseconds since the epoch; an absent one is 0."""
    return value.seconds * NS_PER_S + value.nanos


def _expected(names: Iterable[str]) -> str:
    return f"expected one of {', '.join(sorted(names))}"
