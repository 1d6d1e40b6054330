"""What the engine answers: immutable values for callers, never its own state.

Times are nanoseconds since the epoch; `data` and other JSON travel as bytes.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from knhk_workflow.core.explanation import TaskExplanation
from knhk_workflow.errors import Problem
from knhk_workflow.runtime.records import ScheduleRun, ScheduleSpec

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A part of a list. `next_token` is empty at the end."""

    items: tuple[T, ...]
    next_token: str = ""


class WorkflowView(msgspec.Struct, frozen=True):
    """One registered version of a workflow."""

    spec_id: str
    version: int
    name: str
    digest: str  # hex BLAKE2b-256 of the canonical document
    document: bytes  # canonical JSON
    registered_at: int
    registered_by: str
    findings: tuple[Problem, ...] = ()
    created: bool = True  # false when the same content was registered before
    verdict: str = "unchecked"  # sound, undecided, or unsound where the caller allowed it


class ScheduleView(msgspec.Struct, frozen=True):
    """A schedule. `next_times`: its next occurrences; `running`: cases that it has started and that were open when they
    were last looked at; `recent`: what became of its last occurrences, newest first."""

    schedule_id: str
    spec: ScheduleSpec
    revision: int
    paused: bool
    pause_reason: str
    next_times: tuple[int, ...]
    running: tuple[str, ...]
    waiting: int
    recent: tuple[ScheduleRun, ...]
    started: int
    skipped: int
    missed: int
    failed: int
    created_at: int
    created_by: str
    updated_at: int
    sensitive: tuple[str, ...] = ()  # fields in the spec's data that are not to be shown to people


class IncidentView(msgspec.Struct, frozen=True, gc=False):
    """An incident. `incident_id` is `number@case_id`; an open one has no `resolution`.

    `resolution`: retry, skip, complete, fail_case, or cancelled where what it was about was removed.
    """

    incident_id: str
    case_id: str
    kind: str
    message: str
    task_id: str
    raised_at: int
    spec_id: str = ""
    resolution: str = ""
    resolved_at: int = 0
    resolved_by: str = ""


class ConnectorView(msgspec.Struct, frozen=True):
    """A connector as it is now. `config` is JSON without secrets: it only names them."""

    name: str
    kind: str
    config: bytes
    default: bool
    shared: bool
    """From the operator's own file: all tenants have it, and calls cannot change it."""
    delivery: str
    pool_active: int = 0
    pool_size: int = 0
    pool_waiting: int = 0
    updated_at: int = 0
    breakers: tuple[tuple[str, str], ...] = ()
    """(target, closed | open | half-open) of the targets called so far."""
    active: int = 0
    """Calls being made."""
    waiting: int = 0
    """Calls that wait for their turn, or for a breaker."""
    healthy: bool | None = None
    """Whether its other side could be reached; None: nobody has tried."""
    detail: str = ""


class DeadLetterView(msgspec.Struct, frozen=True):
    """An effect that was given up after its last attempt; its case waits for somebody. The id is the incident's."""

    dead_letter_id: str
    connector: str
    case_id: str
    task_id: str
    attempts: int
    code: str
    message: str
    request: bytes
    """What was to be sent, JSON."""
    first_tried_at: int
    created_at: int
    status: str = "pending"
    """pending, retrying, discarded."""


class WorkItemView(msgspec.Struct, frozen=True, gc=False):
    """One work item. `item_id` is `activation.instance.attempt@case_id`.

    `state` while it is open: offered, allocated, started or suspended; then completed, failed, skipped, withdrawn
    (before its start) or terminated (after it).
    """

    item_id: str
    case_id: str
    spec_id: str
    task_id: str
    task_name: str
    net: str
    state: str
    roles: tuple[str, ...]
    owner: str
    attempt: int
    priority: int
    offered_at: int
    changed_at: int
    data: bytes = b""  # the work's input: all of it from get_work_item, what `in` maps in a case's work, none in lists
    case_state: str = ""  # these three are filled in answers to operations on the item:
    case_sequence: int = 0  # the case's state and newest event after it
    opened: tuple[str, ...] = ()  # ids of work items that it offered
    due_at: int = (
        0  # by when it is to be done: the nearer one of its time-out and the task's deadline; 0 = no such time
    )
    retry_at: int = 0  # of one that has failed: when it is offered again; 0 = it is not
    leased_until: int = 0  # by when its worker has to finish, or ask for longer; 0 = it is not leased
    sensitive: tuple[str, ...] = ()  # fields in `data` that are not to be shown to people


class InstancesView(msgspec.Struct, frozen=True, gc=False):
    """A multiple-instance task after a command about its instances.

    `created` counts those begun with and those added, `done` those that ended well, `open` those at work. `instance` is
    the number of the one that the command added (0: none), `item_id` its work item when it is work of the outside.
    """

    case_id: str
    task_id: str
    activation: int
    created: int
    done: int
    open: int
    accepts: bool  # false once it takes no further instances
    case_state: str
    case_sequence: int
    instance: int = 0
    item_id: str = ""


class TriggerDelivery(msgspec.Struct, frozen=True):
    """What became of a signal in one case.

    `outcome`: taken (by the task's activation), kept (until somebody waits for it), lost (nobody waits or keeps it).
    """

    case_id: str
    outcome: str
    task_id: str = ""
    activation: int = 0


class MessageView(msgspec.Struct, frozen=True):
    """What became of a signal: one delivery for each case that has it.

    `message_id` is the request id; without one, a message to several cases gets an id of its own. `waits_until`: how
    long the message waits for a case that is not there yet; 0 = it does not.
    """

    message_id: str
    deliveries: tuple[TriggerDelivery, ...]
    waits_until: int = 0


class CaseView(msgspec.Struct, frozen=True, gc=False):
    """A case at one sequence. Lists leave `data`, `work` and `incidents` empty."""

    tenant: str
    case_id: str
    spec_id: str
    spec_version: int
    state: str
    reason: str
    business_key: str
    sequence: int
    created_at: int
    updated_at: int
    open_items: int
    open_incidents: int
    created_by: str = ""
    data: bytes = b""
    work: tuple[WorkItemView, ...] = ()
    incidents: tuple[IncidentView, ...] = ()
    sensitive: tuple[str, ...] = ()  # fields in `data` that are not to be shown to people


class HistoryEvent(msgspec.Struct, frozen=True, gc=False):
    """One recorded fact. `data` is a JSON object; `event_type` is snake case and stable."""

    case_id: str
    sequence: int
    timestamp: int
    event_type: str
    data: bytes


class CaseFilter(msgspec.Struct, frozen=True):
    """Which cases to list; empty fields match everything."""

    state: str = ""
    spec_id: str = ""
    business_key: str = ""


class WorkItemFilter(msgspec.Struct, frozen=True):
    """Which work items to list; empty fields match everything. `user` matches the owner."""

    role: str = ""
    user: str = ""
    state: str = ""
    case_id: str = ""
    task_id: str = ""


class Validation(msgspec.Struct, frozen=True):
    """What registration would say. `verdict`: sound, unsound, undecided, unchecked."""

    spec_id: str
    findings: tuple[Problem, ...]
    verdict: str


class Explanation(msgspec.Struct, frozen=True):
    """Why a case is where it is."""

    case_id: str
    state: str
    sequence: int
    sentence: str
    tasks: tuple[TaskExplanation, ...]
    incidents: tuple[IncidentView, ...]
    marking: dict[str, int] = {}  # tokens by condition; in sub-nets by `net/condition`
    completed: dict[str, int] = {}  # how often each task was completed, by task, in sub-nets by `net/task`


class Stimulus(msgspec.Struct, frozen=True):
    """One move of the outside: start, complete, fail, skip, suspend, resume, cancel_case, ... on `task`."""

    move: str
    task: str = ""
    name: str = ""
    data: bytes = b""


class PatternExecutionContext(msgspec.Struct, frozen=True):
    """The surroundings of one pattern execution. `variables` bind as strings in the case data."""

    case_id: str = ""
    workflow_id: str = ""
    variables: dict[str, str] = {}
    data: bytes = b""
    script: tuple[Stimulus, ...] = ()
    durable: bool = False


class PatternResult(msgspec.Struct, frozen=True):
    """What running a pattern's own net gave. `trace` is the whole history of the run."""

    pattern_id: int
    success: bool
    next_state: str
    next_activities: tuple[str, ...]
    variables: dict[str, str]
    updates: bytes
    cancel_activities: tuple[str, ...]
    terminates: bool
    trace: tuple[HistoryEvent, ...]
    case_id: str = ""
    message: str = ""  # why success is false


class PatternView(msgspec.Struct, frozen=True):
    """One entry of the catalogue."""

    pattern_id: int
    name: str
    aliases: tuple[str, ...]
    category: str
    semantics: str
    construct: str
    context: str
    literature: str
    available: bool
    document: bytes  # the pattern's own net as canonical JSON; empty when not available yet
    script: tuple[Stimulus, ...]


class CaseCounts(msgspec.Struct, frozen=True):
    """How many cases of a tenant are in which state, and how much of their work and how many incidents are open."""

    created: int = 0
    running: int = 0
    suspended: int = 0
    completed: int = 0
    cancelled: int = 0
    failed: int = 0
    open_items: int = 0
    open_incidents: int = 0


class CountsView(msgspec.Struct, frozen=True):
    """How much there is of a tenant."""

    workflow_versions: int
    """Those that are in use."""
    cases: CaseCounts | None
    """None for a while after the start of an engine with very many cases: they are being counted."""
    dead_letters: int
    """Effects that were given up and are neither retried nor discarded."""
    timers: int
    """Armed timers of all tenants, as of at most five seconds ago."""


class EngineStatus(msgspec.Struct, frozen=True):
    """The engine at a glance."""

    store: str
    shards: int
    position: int
    open: bool
    healthy: bool
    detail: str
    cached_cases: int
    started_at: int
    commits: int
