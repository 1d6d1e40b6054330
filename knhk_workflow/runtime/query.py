"""Reading: lists and histories from the store, views of a held case. Nothing here changes anything."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.core.case import (
    DONE_STATES,
    LIVE_STATES,
    OPEN_ITEM_STATES,
    RETRYING,
    Activation,
    Case,
    Incident,
    Instance,
)
from knhk_workflow.core.events import (
    IncidentRaised,
    IncidentResolved,
    InstanceAdded,
    NetStarted,
    TaskCompleted,
    TriggerReceived,
)
from knhk_workflow.core.explain import explain, summary
from knhk_workflow.core.step import ItemInNet, Step
from knhk_workflow.errors import InvalidInput, NotFound, StoreCorrupt, StoreFormat
from knhk_workflow.model.net import Model
from knhk_workflow.model.veil import Veil
from knhk_workflow.runtime.history import render
from knhk_workflow.runtime.pages import decode_token, encode_token, page_size_of
from knhk_workflow.runtime.problems import Damaged
from knhk_workflow.runtime.records import COMMITS, HEADS, INCIDENTS, ITEMS, CaseHead, CommitRecord, IncidentRow, ItemRow
from knhk_workflow.runtime.views import (
    CaseFilter,
    CaseView,
    Explanation,
    HistoryEvent,
    IncidentView,
    InstancesView,
    Page,
    TriggerDelivery,
    WorkItemFilter,
    WorkItemView,
)
from knhk_workflow.store import Keyspace, Reads, unseal_log
from knhk_workflow.store.keys import (
    parse_business_key,
    parse_case_head,
    parse_case_record,
    parse_incident,
    parse_item,
    parse_log,
)
from knhk_workflow.store.portions import portions
from knhk_workflow.store.store import Range

SCAN_ROWS_MAX: Final = 5_000  # rows that one filtered page looks at; a page may then be short and still have a token
LOG_PAGE: Final = 64
COUNTED_INCIDENTS: Final = 512  # per read: under 1 ms of decoding
SPECS_MAX: Final = 10_000  # cases whose workflow is remembered; about 300 bytes each
HISTORY_BYTES: Final = 1024 * 1024  # of event data in a page; with one event of 2 MB more still below gRPC's 4 MB
HISTORY_RECORDS: Final = 32  # read at once; each may hold 2 MB
NUMBER_BYTES: Final = 8  # of an incident, in a page token
LOADED_MAX: Final = 1_000  # cases that one page of dead letters loads; about 1 s when none is in memory
HISTORIES_MAX: Final = 500  # records, and cases, that one page of incidents looks at; about 0.1 s
COUNTED_RECORDS: Final = 64  # read at once while counting; about 1 ms of decoding

R = TypeVar("R")

Veils = Callable[[str, str, int], Awaitable[Veil]]
"""What a workflow's version hides: of a tenant, its id and number."""

LogPlace = tuple[int, int]
"""A place in a shard's batch log: after this batch, and after so many events of the next one."""


# -- a held case ------------------------------------------------------------------------------------------------------


def case_view(case: Case, model: Model, created_by: str) -> CaseView:
    """All of a case."""
    return CaseView(
        case.tenant,
        case.case_id,
        case.spec_id,
        case.version,
        case.state,
        case.reason,
        case.business_key,
        case.sequence,
        case.created_at,
        case.updated_at,
        case.open_items,
        len(case.incidents),
        created_by,
        case.root.data,
        tuple(_item_view(case, model, activation, run, run.data) for activation, run in case.open_work())
        if case.open_items
        else (),
        tuple(
            _incident_view(case.case_id, incident.number, incident, case.spec_id)
            for incident in case.incidents.values()
        ),
        model.veil.listed,
    )


def explanation(case: Case, model: Model, now: int = 0) -> Explanation:
    """Why the case is where it is. Without the counts of completions: those are in its history."""
    tasks = explain(case, model, now)
    incidents = tuple(
        _incident_view(case.case_id, incident.number, incident, case.spec_id) for incident in case.incidents.values()
    )
    return Explanation(
        case.case_id, case.state, case.sequence, summary(case, tasks, now), tasks, incidents, _marking(case)
    )


def _marking(case: Case) -> dict[str, int]:
    """Tokens by condition, in sub-nets by `net/condition`; several live instances of one sub-net count together."""
    found: dict[str, int] = {}
    for net in case.nets.values():
        for place, tokens in net.marking.items():
            name = f"{net.name}/{place}" if net.name else place
            found[name] = found.get(name, 0) + tokens
    return dict(sorted(found.items()))


def work_item(case: Case, model: Model, ref: c.ItemRef) -> WorkItemView:
    """One open work item with its data. Raises NotFound; for one that is finished it says so."""
    activation = case.activations.get(ref.activation)
    run = activation.instances.get(ref.instance) if activation is not None else None
    if activation is not None and run is not None and run.attempt == ref.attempt and run.state in OPEN_ITEM_STATES:
        return _item_view(case, model, activation, run, run.data or case.nets[activation.net].data)
    name = ref.name(case.case_id)
    if 0 < ref.activation <= case.last_activation:
        raise NotFound("open work item", name, "it is finished or withdrawn; the case's history tells how")
    raise NotFound("work item", name)


def work_item_after(step: Step, ref: c.ItemRef, whole: bool = False) -> WorkItemView:
    """The item that a step was about as the step left it; by now it may be gone from the case. With its data only when
    the `whole` is wanted, of an item that is still open."""
    case = step.case
    about = step.items[ref.activation, ref.instance]
    net = case.nets.get(about[2].net) if whole else None  # beginning work may end the net around it
    data = about[3].data or net.data if net is not None else b""
    opened: tuple[str, ...] = ()
    if len(step.items) > 1:
        opened = tuple(
            [
                _item_id(case, item[2].number, item[3])
                for item in step.items.values()
                if item[3].state == "offered" and item is not about
            ]
        )
    view = _shown(case, about, data, case.state, case.sequence, opened)
    return msgspec.structs.replace(view, sensitive=step.model.veil.listed) if step.model.veil and data else view


def instances_after(step: Step) -> InstancesView:
    """The multiple-instance task that a step was about, as the step left it; by now it may be gone from the case."""
    case, activation = step.case, step.about
    assert activation is not None
    runs = activation.instances.values()
    added = next((event.instance for event in step.events if isinstance(event, InstanceAdded)), 0)
    item = step.items.get((activation.number, added))
    return InstancesView(
        case.case_id,
        activation.task,
        activation.number,
        activation.count,
        sum(1 for run in runs if run.state in DONE_STATES),
        sum(1 for run in runs if run.state in LIVE_STATES),
        activation.number in case.activations and not activation.closed and not activation.released,
        case.state,
        case.sequence,
        added,
        _item_id(case, item[2].number, item[3]) if item is not None else "",
    )


def delivery_after(step: Step) -> TriggerDelivery:
    """What became of the signal that a step brought."""
    received = next(event for event in step.events if isinstance(event, TriggerReceived))
    return TriggerDelivery(step.case.case_id, received.outcome, received.task, received.activation)


def _item_view(case: Case, model: Model, activation: Activation, run: Instance, data: bytes) -> WorkItemView:
    net = case.nets[activation.net]
    node = model.nets[net.name].tasks[activation.task]
    view = _shown(case, (net.name, node, activation, run), data)
    return msgspec.structs.replace(view, sensitive=model.veil.listed) if model.veil and data else view


def _item_id(case: Case, activation: int, run: Instance) -> str:
    return _item_name(activation, run.number, run.attempt) + case.case_id


@lru_cache(4_096)  # the same few in every case
def _item_name(activation: int, instance: int, attempt: int) -> str:
    return f"{activation}.{instance}.{attempt}@"


def _shown(
    case: Case, item: ItemInNet, data: bytes, state: str = "", sequence: int = 0, opened: tuple[str, ...] = ()
) -> WorkItemView:
    net, node, activation, run = item
    task = node.task
    return WorkItemView(
        _item_id(case, activation.number, run),
        case.case_id,
        case.spec_id,
        task.id,
        task.name,
        net,
        "failed" if run.state == RETRYING else run.state,
        task.required_roles,
        run.owner,
        run.attempt,
        task.priority,
        run.offered_at,
        run.changed_at,
        data,
        state,
        sequence,
        opened,
        case.due(activation, run) if case.timers else 0,
        case.timers[run.timer].due if run.state == RETRYING else 0,
    )


def _incident_view(case_id: str, number: int, incident: Incident | IncidentRow, spec_id: str) -> IncidentView:
    return IncidentView(
        f"{number}@{case_id}", case_id, incident.kind, incident.message, incident.task, incident.raised_at, spec_id
    )


# -- the store --------------------------------------------------------------------------------------------------------


class Query:
    """Lists over committed state."""

    def __init__(self, reads: Reads, keyspace: Keyspace, veils: Veils) -> None:
        self._reads = reads
        self._keys = keyspace
        self._veils = veils
        self._damaged = Damaged()  # cases, by tenant and id
        self._specs: dict[tuple[str, str], tuple[str, int]] = {}  # of cases that watches have shown, which never change

    async def head(self, tenant: str, case_id: str) -> CaseHead:
        """The newest of a case. Raises NotFound."""
        key = self._keys.case_head(tenant, case_id)
        stored = await self._reads.get(key)
        if stored is None:
            raise NotFound("case", case_id)
        return HEADS.read(key, stored)

    async def cases(self, tenant: str, wanted: CaseFilter, page_size: int, page_token: str) -> Page[CaseView]:
        """Cases by shard and id; those with one business key by its index."""

        def read(key: bytes, value: bytes) -> CaseView | None:
            head = HEADS.read(key, value)
            if (wanted.state and head.state != wanted.state) or (wanted.spec_id and head.spec_id != wanted.spec_id):
                return None
            return listed(tenant, parse_case_head(key)[1], head)

        if wanted.business_key:
            indexed = [
                self._keys.business_keys(shard, tenant, wanted.business_key) for shard in range(self._keys.shards)
            ]

            async def look_up(key: bytes, _: bytes) -> CaseView | None:
                head = self._keys.case_head(tenant, parse_business_key(key)[2])
                value = await self._reads.get(head)
                return read(head, value) if value is not None else None

            return await self._page(indexed, look_up, page_size, page_token, f"cases {tenant} {wanted}")
        ranges = [self._keys.cases(shard, tenant) for shard in range(self._keys.shards)]
        return await self._page(ranges, read, page_size, page_token, f"cases {tenant} {wanted}")

    async def open_case_of(self, tenant: str, spec_id: str, version: int) -> str | None:
        """Some case that still runs on a workflow version (0 = any)."""
        for shard in range(self._keys.shards):
            async for rows in portions(self._reads, self._keys.cases(shard, tenant), SCAN_ROWS_MAX):
                for key, value in rows:
                    head = HEADS.read(key, value)
                    if head.spec_id == spec_id and version in (0, head.version) and head.state not in c.ENDED:
                        return parse_case_head(key)[1]
        return None

    async def work_items(
        self, tenant: str, wanted: WorkItemFilter, page_size: int, page_token: str
    ) -> Page[WorkItemView]:
        """Open work items by case."""

        def read(key: bytes, value: bytes) -> WorkItemView | None:
            row = ITEMS.read(key, value)
            if (
                (wanted.role and wanted.role not in row.roles)
                or (wanted.user and wanted.user != row.owner)
                or (wanted.state and wanted.state != row.state)
                or (wanted.task_id and wanted.task_id != row.task)
            ):
                return None
            _, case_id, activation, instance = parse_item(key)
            return _row_view(row, case_id, activation, instance)

        if wanted.case_id:
            await self.head(tenant, wanted.case_id)
            ranges = [self._keys.case(tenant, wanted.case_id).items()]
        else:
            ranges = [self._keys.items(shard, tenant) for shard in range(self._keys.shards)]
        return await self._page(ranges, read, page_size, page_token, f"items {tenant} {wanted}")

    async def incidents(self, tenant: str, case_id: str, page_size: int, page_token: str) -> Page[IncidentView]:
        """Open incidents by case."""
        ranges = await self._incident_rows(tenant, case_id)
        return await self._page(ranges, _open_incident, page_size, page_token, f"incidents {tenant} {case_id}")

    async def known_incidents(
        self,
        tenant: str,
        case_id: str,
        look_up: Callable[[IncidentView], Awaitable[R | None]],
        page_size: int,
        page_token: str,
        bound_to: str,
    ) -> Page[R]:
        """What `look_up` knows of open incidents, by case; None = nothing that is wanted. It may load a case for each,
        so a page looks at LOADED_MAX of them, and may be short and still have a token, which is bound to `bound_to`."""

        def read(key: bytes, value: bytes) -> Awaitable[R | None]:
            return look_up(_open_incident(key, value))

        ranges = await self._incident_rows(tenant, case_id)
        return await self._page(ranges, read, page_size, page_token, bound_to, LOADED_MAX)

    async def _incident_rows(self, tenant: str, case_id: str) -> list[Range]:
        if not case_id:
            return [self._keys.incidents(shard, tenant) for shard in range(self._keys.shards)]
        await self.head(tenant, case_id)
        return [self._keys.case(tenant, case_id).incidents()]

    async def count_incidents(self, tenant: str, kind: str) -> int:
        """How many open incidents are of a kind; damaged ones are of none."""

        def is_one(key: bytes, value: bytes) -> bool:
            try:
                return INCIDENTS.read(key, value).kind == kind
            except (StoreCorrupt, StoreFormat):
                return False  # whoever lists them is told

        count = 0
        for shard in range(self._keys.shards):
            async for rows in portions(self._reads, self._keys.incidents(shard, tenant), COUNTED_INCIDENTS):
                count += sum(is_one(*row) for row in rows)
        return count

    async def all_incidents(self, tenant: str, case_id: str, page_size: int, page_token: str) -> Page[IncidentView]:
        """All incidents that a case, or any case, ever had, by case and in the order of their numbers: read from the
        histories. A page that has looked at HISTORIES_MAX records begins no further case. Of all cases, those that are
        damaged are left out. Raises NotFound, StoreCorrupt for one case."""
        if case_id:
            await self.head(tenant, case_id)
            only = self._keys.case_head(tenant, case_id)
            ranges = [(only, only + b"\0")]
        else:
            ranges = [self._keys.cases(shard, tenant) for shard in range(self._keys.shards)]
        bound_to, size = f"all incidents {tenant} {case_id}", page_size_of(page_size)
        position = decode_token(page_token, bound_to)
        at, after = position[:-NUMBER_BYTES], int.from_bytes(position[-NUMBER_BYTES:], "big")
        found: list[IncidentView] = []
        looked = 0
        for start, end in ranges:
            if at >= end:
                continue
            async for rows in portions(self._reads, (max(start, at), end), COUNTED_RECORDS):
                for key, value in rows:
                    if looked >= HISTORIES_MAX:
                        return Page(tuple(found), encode_token(key + bytes(NUMBER_BYTES), bound_to))
                    looked += 1
                    name = parse_case_head(key)[1]
                    try:
                        incidents, records = await self._incidents_of(tenant, name, HEADS.read(key, value))
                    except (StoreCorrupt, StoreFormat) as error:
                        if case_id:
                            raise
                        problem = f"the history of case {name!r} of tenant {tenant!r} cannot be read"
                        self._damaged.met((tenant, name), f"{problem}; lists of incidents leave it out", error)
                        continue
                    looked += records
                    for number, view in incidents.items():
                        if key == at and number <= after:
                            continue
                        if len(found) == size:
                            last = (number - 1).to_bytes(NUMBER_BYTES, "big")
                            return Page(tuple(found), encode_token(key + last, bound_to))
                        found.append(view)
        return Page(tuple(found), "")

    async def _incidents_of(self, tenant: str, case_id: str, head: CaseHead) -> tuple[dict[int, IncidentView], int]:
        """The incidents that a case ever had, by number, and how many records tell of them."""
        found: dict[int, IncidentView] = {}
        records = 0
        async for record in self._commits(tenant, case_id, head.sequence):
            records += 1
            for event in record.events:
                if isinstance(event, IncidentRaised):
                    found[event.incident] = IncidentView(
                        f"{event.incident}@{case_id}",
                        case_id,
                        event.kind,
                        event.message,
                        event.task,
                        record.time,
                        head.spec_id,
                    )
                elif isinstance(event, IncidentResolved) and event.incident in found:  # else it is being purged
                    found[event.incident] = msgspec.structs.replace(
                        found[event.incident],
                        resolution=event.action,
                        resolved_at=record.time,
                        resolved_by=record.principal,
                    )
        return found, records

    async def history(self, tenant: str, case_id: str, after: int, size: int, reverse: bool) -> Page[HistoryEvent]:
        """Events of a case after (or before) a sequence, fewer than `size` when they are large. Raises NotFound."""
        head = await self.head(tenant, case_id)
        veil = await self._veils(tenant, head.spec_id, head.version)
        found: list[HistoryEvent] = []
        portion = min(size, HISTORY_RECORDS)
        if reverse:
            below = after or head.sequence + 1
            while len(found) < size and below > 1 and _data_size(found) < HISTORY_BYTES:
                page = await self._records(tenant, case_id, 0, below, portion, True)
                for first, record in page:
                    events = [event for event in render(case_id, first, record, veil) if event.sequence < below]
                    found.extend(reversed(events))
                    below = first
                if not page:
                    break
            found = _fitting(found[:size])
            more = bool(found) and found[-1].sequence > 1
        else:
            while len(found) < size and after < head.sequence and _data_size(found) < HISTORY_BYTES:
                page = await self._records(tenant, case_id, after, None, portion, False)
                for first, record in page:
                    for event in render(case_id, first, record, veil):
                        if event.sequence > after:
                            found.append(event)
                            after = event.sequence
                if not page:
                    break
            found = _fitting(found[:size])
            more = bool(found) and found[-1].sequence < head.sequence
        return Page(tuple(found), str(found[-1].sequence) if more else "")

    async def completions(self, tenant: str, case_id: str, until: int) -> dict[str, int]:
        """How often each task was completed up to a sequence, from the history; in sub-nets by `net/task`."""
        found: dict[str, int] = {}
        nets: dict[int, str] = {1: ""}
        async for record in self._commits(tenant, case_id, until):
            for event in record.events:
                if isinstance(event, NetStarted):
                    nets[event.net] = f"{event.name}/" if event.name else ""
                elif isinstance(event, TaskCompleted):
                    name = nets[event.net] + event.task
                    found[name] = found.get(name, 0) + 1
        return found

    async def _commits(self, tenant: str, case_id: str, until: int) -> AsyncIterator[CommitRecord]:
        """The records of a case up to a sequence, from the first."""
        records = self._keys.case(tenant, case_id).records(0, until + 1)
        async for rows in portions(self._reads, records, COUNTED_RECORDS):
            for key, value in rows:
                yield COMMITS.read(key, value)

    async def log(
        self, tenant: str, places: dict[int, LogPlace], newest: Mapping[int, int]
    ) -> AsyncIterator[tuple[HistoryEvent, str]]:
        """Events committed after `places` (changed in place), with the token to resume right after each.

        Nothing beyond `newest` is read: the store may hold a batch that is not acknowledged yet.
        """
        for shard in sorted(places):
            begun, passed = places[shard]
            start, end = self._keys.log(shard, begun + 1), self._keys.log(shard, newest[shard] + 1)
            if start >= end:
                continue
            for key, value in await self._reads.scan(start, end, limit=LOG_PAGE):
                batch, _ = unseal_log(key, value)
                _, position = parse_log(key)
                already, seen = passed if position == begun + 1 else 0, 0
                for entry in batch.entries:
                    before, seen = seen, seen + entry.count
                    if entry.tenant != tenant or seen <= already:
                        continue
                    record_key = self._keys.case_record(tenant, entry.case_id, entry.first_sequence)
                    stored = await self._reads.get(record_key)
                    if stored is None:
                        continue  # purged since
                    record = COMMITS.read(record_key, stored)
                    try:
                        veil = await self._veil_of(tenant, entry.case_id)
                    except NotFound:
                        continue  # purged in this moment
                    events = render(entry.case_id, entry.first_sequence, record, veil)
                    for number, event in enumerate(events, before + 1):
                        if number > already:
                            places[shard] = (position - 1, number)
                            yield event, resume_token(places)
                places[shard] = (position, 0)

    async def _veil_of(self, tenant: str, case_id: str) -> Veil:
        """What is hidden of a case."""
        about = self._specs.get((tenant, case_id))
        if about is None:
            head = await self.head(tenant, case_id)
            if len(self._specs) >= SPECS_MAX:
                self._specs.clear()
            about = self._specs[tenant, case_id] = head.spec_id, head.version
        return await self._veils(tenant, *about)

    async def _records(
        self, tenant: str, case_id: str, after: int, below: int | None, size: int, reverse: bool
    ) -> list[tuple[int, CommitRecord]]:
        """Commit records that hold events after `after` and below `below`, at most `size` of them."""
        keys = self._keys.case(tenant, case_id)
        first = 0
        if after:
            start, end = keys.records(0, after + 2)
            holding = await self._reads.scan(start, end, limit=1, reverse=True)
            first = parse_case_record(holding[0][0])[2] if holding else 0
        start, end = keys.records(first, below)
        rows = await self._reads.scan(start, end, limit=size + 1, reverse=reverse)
        return [(parse_case_record(key)[2], COMMITS.read(key, value)) for key, value in rows]

    async def _page(
        self,
        ranges: list[Range],
        read: Callable[[bytes, bytes], R | None] | Callable[[bytes, bytes], Awaitable[R | None]],
        page_size: int,
        page_token: str,
        bound_to: str,
        most: int = SCAN_ROWS_MAX,
    ) -> Page[R]:
        """Rows of several ranges, one after the other, that `read` does not drop. A page looks at `most` rows."""
        size = page_size_of(page_size)
        after = decode_token(page_token, bound_to)
        found: list[R] = []
        looked = 0
        last = after
        for start, end in ranges:
            if after >= end:
                continue
            begin = max(start, after + b"\0") if after else start
            while True:
                rows = await self._reads.scan(begin, end, limit=min(SCAN_ROWS_MAX, size + 1))
                for key, value in rows:
                    if len(found) == size or looked >= most:
                        return Page(tuple(found), encode_token(last, bound_to))
                    looked += 1
                    last = key
                    made = read(key, value)
                    view = await made if isinstance(made, Awaitable) else made
                    if view is not None:
                        found.append(view)
                if len(rows) < min(SCAN_ROWS_MAX, size + 1):
                    break
                begin = rows[-1][0] + b"\0"
        return Page(tuple(found))


def _open_incident(key: bytes, value: bytes) -> IncidentView:
    _, case_id, number = parse_incident(key)
    row = INCIDENTS.read(key, value)
    return _incident_view(case_id, number, row, row.spec_id)


def _data_size(events: Sequence[HistoryEvent]) -> int:
    return sum(len(event.data) for event in events)


def _fitting(events: list[HistoryEvent]) -> list[HistoryEvent]:
    """The first events, until their data passes HISTORY_BYTES; at least one."""
    size = 0
    for count, event in enumerate(events, 1):
        size += len(event.data)
        if size >= HISTORY_BYTES:
            return events[:count]
    return events


def listed(tenant: str, case_id: str, head: CaseHead) -> CaseView:
    """A case as lists show it."""
    return CaseView(
        tenant,
        case_id,
        head.spec_id,
        head.version,
        head.state,
        head.reason,
        head.business_key,
        head.sequence,
        head.created_at,
        head.updated_at,
        head.open_items,
        head.open_incidents,
        head.created_by,
    )


def _row_view(row: ItemRow, case_id: str, activation: int, instance: int) -> WorkItemView:
    return WorkItemView(
        c.ItemRef(activation, instance, row.attempt).name(case_id),
        case_id,
        row.spec_id,
        row.task,
        row.name,
        row.net,
        row.state,
        row.roles,
        row.owner,
        row.attempt,
        row.priority,
        row.offered_at,
        row.changed_at,
        due_at=row.due_at,
    )


def resume_token(places: Mapping[int, LogPlace]) -> str:
    """The WatchCases token of places in the log, one per shard."""
    return base64.urlsafe_b64encode(msgspec.json.encode({str(s): place for s, place in places.items()})).decode()


def places_of(token: str, newest: Mapping[int, int]) -> dict[int, LogPlace]:
    """The places in a WatchCases token. `newest` are the newest batches of now: a token names the same shards, and
    nothing that has not happened yet. Raises InvalidInput."""
    hint = "use the resume_token of a received message, unchanged"
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(token), type=dict[str, LogPlace])
        places = {int(shard): place for shard, place in found.items()}
    except (binascii.Error, ValueError) as error:
        raise InvalidInput.field("resume_token", "is not a resume token", hint) from error
    if places.keys() != newest.keys() or any(
        position < 0 or passed < 0 or position + (passed > 0) > newest[shard]
        for shard, (position, passed) in places.items()
    ):
        raise InvalidInput.field("resume_token", "is not a resume token of this store", hint)
    return places
