"""What a call is about, as far as its request says so: for rules that are narrowed to workflows, cases or patterns.

Only fields of the request count, read before any work is done. Ids that carry another one tell it (`3.1.1@order-17` is
of case order-17). A request that names several things is about all of them, a filter about the set that it describes.
What the request does not say stays unknown: GetCase names the case and not its workflow, an unfiltered list nothing at
all. Calls that are not in the table say nothing: UpdateSchedule, for one, names the workflow that a schedule is to
have, not the one that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, cast

from google.protobuf.message import Message

from knhk_sidecar.api import pb
from knhk_sidecar.identity.grants import Beginning, Resource

UNKNOWN: Final = (Resource(),)


class _OfCase(Protocol):
    case_id: str


class _OfWorkflow(Protocol):
    spec_id: str


class _OfBoth(_OfCase, _OfWorkflow, Protocol): ...


class _OfItem(Protocol):
    item_id: str


class _OfPattern(Protocol):
    pattern_id: int


class _OfCases(Protocol):
    case_ids: Sequence[str]
    filter: pb.CaseFilter

    def HasField(self, name: str) -> bool:  # noqa: N802  # protobuf's name
        ...


def _case(request: _OfCase) -> Iterable[Resource]:
    yield Resource(case=request.case_id or None)


def _workflow(request: _OfWorkflow) -> Iterable[Resource]:
    yield Resource(workflow=request.spec_id or None)


def _both(request: _OfBoth) -> Iterable[Resource]:
    yield Resource(request.spec_id or None, request.case_id or None)


def _birth(request: _OfBoth) -> Iterable[Resource]:
    """A case to be made: without an id of the request's it gets a new one, which is none that a rule names."""
    yield Resource(request.spec_id or None, request.case_id)


def _item(request: _OfItem) -> Iterable[Resource]:
    yield Resource(case=_case_in(request.item_id))


def _pattern(request: _OfPattern) -> Iterable[Resource]:
    yield Resource(pattern=request.pattern_id or None)


def _workflows(request: pb.ListWorkflowsRequest) -> Iterable[Resource]:
    yield Resource(workflow=Beginning(request.spec_id_prefix) if request.spec_id_prefix else None)


def _filtered(request: pb.ListCasesRequest | pb.WatchCasesRequest) -> Iterable[Resource]:
    yield _described(request.filter)


def _chosen(request: _OfCases) -> Iterable[Resource]:
    for case_id in request.case_ids:
        yield Resource(case=case_id or None)
    if request.HasField("filter"):
        yield _described(request.filter)


def _incident(request: pb.ResolveIncidentRequest) -> Iterable[Resource]:
    named = dict.fromkeys(each for each in (request.case_id, _case_in(request.incident_id)) if each)
    for case_id in named:
        yield Resource(case=case_id)


def _schedule(request: pb.CreateScheduleRequest) -> Iterable[Resource]:
    yield Resource(workflow=request.spec.spec_id or None)


def _runs(request: pb.RunCasesRequest) -> Iterable[Resource]:
    for each in request.cases:
        yield from _birth(each)


def _run(request: pb.StreamRunCaseRequest) -> Iterable[Resource]:
    yield from _birth(request.run)


def _completions(request: pb.CompleteWorkItemsRequest) -> Iterable[Resource]:
    for each in request.completions:
        yield from _item(each)


def _executions(request: pb.ExecutePatternsRequest) -> Iterable[Resource]:
    for each in request.executions:
        yield from _pattern(each)


def _execution(request: pb.StreamExecutePatternRequest) -> Iterable[Resource]:
    yield from _pattern(request.execution)


def _columns(request: pb.DecideRoutesRequest) -> Iterable[Resource]:
    for each in request.columns:
        yield from _pattern(each)


def _described(wanted: pb.CaseFilter) -> Resource:
    case = Beginning(wanted.case_id_prefix) if wanted.case_id_prefix else None
    return Resource(wanted.spec_id or None, case)


def _case_in(name: str) -> str | None:
    return name.partition("@")[2] or None


# What is read -> by which function, of which calls.
_TABLE: Final[Mapping[str, tuple[object, str]]] = {
    "spec_id, case_id (of the case that is made)": (_birth, "CreateCase RunCase"),
    "spec_id, case_id": (_both, "ListIncidents ListWorkItems"),
    "case_id": (
        _case,
        (
            "StartCase ExecuteCase GetCase WaitCase GetCaseHistory WatchCase ExportCase ExplainCase SuspendCase"
            " ResumeCase CancelCase CancelTask TriggerCase UpdateCaseData AddInstance CloseInstances CompleteInstances"
            " CancelInstances"
        ),
    ),
    "case_id, incident_id": (_incident, "ResolveIncident"),
    "item_id": (
        _item,
        (
            "GetWorkItem ClaimWorkItem StartWorkItem CompleteWorkItem FailWorkItem SkipWorkItem OfferWorkItem"
            " AllocateWorkItem ReallocateWorkItem DelegateWorkItem SuspendWorkItem ResumeWorkItem ReleaseWorkItem"
        ),
    ),
    "completions.item_id": (_completions, "CompleteWorkItems"),
    "filter.spec_id, filter.case_id_prefix": (_filtered, "ListCases WatchCases"),
    "case_ids, filter.spec_id, filter.case_id_prefix": (_chosen, "PurgeCases PreviewMigration MigrateCases"),
    "cases.spec_id, cases.case_id": (_runs, "RunCases"),
    "run.spec_id, run.case_id (each message)": (_run, "StreamRunCase"),
    "spec_id": (_workflow, "GetWorkflow DeleteWorkflow"),
    "spec_id_prefix": (_workflows, "ListWorkflows"),
    "spec.spec_id": (_schedule, "CreateSchedule"),
    "pattern_id": (_pattern, "GetPattern ExecutePattern"),
    "executions.pattern_id": (_executions, "ExecutePatterns"),
    "execution.pattern_id (each message)": (_execution, "StreamExecutePattern"),
    "columns.pattern_id": (_columns, "DecideRoutes"),
}

FIELDS: Final[Mapping[str, str]] = {name: told for told, (_, names) in _TABLE.items() for name in names.split()}
"""What of a call's request is looked at, by the call's name."""

_Read = Callable[[Message], Iterable[Resource]]
_READERS: Final = {name: cast(_Read, read) for read, names in _TABLE.values() for name in names.split()}


def durable_runs(request: Message) -> tuple[Resource, ...]:
    """The cases that a request of ExecutePattern, ExecutePatterns or one of StreamExecutePattern's makes."""
    runs: Iterable[pb.ExecutePatternRequest] = ()
    if isinstance(request, pb.ExecutePatternRequest):
        runs = (request,)
    elif isinstance(request, pb.ExecutePatternsRequest):
        runs = request.executions
    elif isinstance(request, pb.StreamExecutePatternRequest):
        runs = (request.execution,)
    return tuple(Resource(f"wcp-{each.pattern_id:02}", each.case_id) for each in runs if each.durable)


def resources_of(name: str, request: Message) -> tuple[Resource, ...]:
    """What a call of this name is about; never empty."""
    read = _READERS.get(name)
    return (tuple(read(request)) or UNKNOWN) if read is not None else UNKNOWN
