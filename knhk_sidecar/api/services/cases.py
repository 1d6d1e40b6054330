"""CaseService: executions of registered workflows."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import aclosing, suppress

import msgspec

from knhk_sidecar.api import pb, wire
from knhk_sidecar.api.faults import SlowReader, to_status
from knhk_sidecar.api.services.pages import filtered
from knhk_sidecar.api.services.streams import QUIET, Tell, closed_after, followed, multiplexed
from knhk_workflow import (
    CallMeta,
    CaseView,
    HistoryEvent,
    IncidentView,
    InvalidInput,
    NotFound,
    Page,
    PurgeRequest,
    RunRequest,
    Unsupported,
    WorkflowEngine,
    WorkflowError,
)

CHUNK_BYTES = 1024 * 1024  # of an export in one message
HISTORY_SHOWN = 1_000  # events that an execution may bring along; the rest is in GetCaseHistory
WATCHED_CASES = 10_000  # whose workflow a filtered watch remembers, about 200 bytes each


class CaseService:
    """Over the engine's cases."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self._engine = engine

    # -- create and run -----------------------------------------------------------------------------------------------

    async def create_case(self, request: pb.CreateCaseRequest, meta: CallMeta) -> pb.CreateCaseResponse:
        """Create without starting."""
        view = await self._engine.create_case(
            wire.spec_id(request.spec_id),
            request.data_json or None,
            case_id=request.case_id,
            business_key=request.business_key,
            version=request.spec_version,
            meta=meta,
        )
        return pb.CreateCaseResponse(case_id=view.case_id, case=wire.case(view))

    async def start_case(self, request: pb.StartCaseRequest, meta: CallMeta) -> pb.StartCaseResponse:
        """created -> running."""
        view = await self._engine.start_case(wire.case_id(request.case_id), meta=meta)
        return pb.StartCaseResponse(case=wire.case(view))

    async def execute_case(self, request: pb.ExecuteCaseRequest, meta: CallMeta) -> pb.ExecuteCaseResponse:
        """Start if need be and run to rest, or until the wait is over."""
        wait = _wait(request)
        view = await self._engine.execute_case(wire.case_id(request.case_id), meta=meta)
        view = await self._waited(view, wait, meta)
        history = await self._history(view, meta) if request.include_history else None
        return wire.executed(view, wire.whole(request.view), history)

    async def run_case(self, request: pb.RunCaseRequest, meta: CallMeta) -> pb.RunCaseResponse:
        """Create and execute, in one durable write."""
        return await self._run(request, meta)

    async def run_cases(self, request: pb.RunCasesRequest, meta: CallMeta) -> pb.RunCasesResponse:
        """Run a list. All elements without an idempotency key of their own share one durable write."""
        elements = request.cases
        wire.batch(len(elements), "cases")
        results: list[pb.RunCaseResult | None] = [None] * len(elements)
        together: list[tuple[int, RunRequest, int]] = []
        alone: list[int] = []
        for index, element in enumerate(elements):
            try:
                if element.request_id:
                    alone.append(index)
                else:
                    together.append((index, wire.run_request(element), _wait(element)))
            except WorkflowError as error:
                results[index] = pb.RunCaseResult(error=to_status(error))

        async def one(index: int) -> None:
            element = elements[index]
            try:
                response = await self._run(element, wire.mutation(meta, element.request_id))
                results[index] = pb.RunCaseResult(response=response)
            except WorkflowError as error:
                results[index] = pb.RunCaseResult(error=to_status(error))

        async def ran(index: int, view: CaseView, wait_ns: int) -> None:
            try:
                response = await self._ran(view, elements[index], wait_ns, meta)
                results[index] = pb.RunCaseResult(response=response)
            except WorkflowError as error:
                results[index] = pb.RunCaseResult(error=to_status(error))

        async def batch() -> None:
            outcomes = await self._engine.run_cases([run for _, run, _ in together], meta=meta)
            begun: list[Awaitable[None]] = []
            for (index, _, wait_ns), outcome in zip(together, outcomes, strict=True):
                if isinstance(outcome, WorkflowError):
                    results[index] = pb.RunCaseResult(error=to_status(outcome))
                else:
                    begun.append(ran(index, outcome, wait_ns))
            await asyncio.gather(*begun)

        await asyncio.gather(*([batch()] if together else []), *map(one, alone))
        return pb.RunCasesResponse(results=[result for result in results if result is not None])

    async def stream_run_case(
        self, requests: AsyncIterator[pb.StreamRunCaseRequest], meta: CallMeta
    ) -> AsyncIterator[pb.StreamRunCaseResponse]:
        """Run cases as they arrive."""

        async def carry_out(
            request: pb.StreamRunCaseRequest, _: Tell[pb.StreamRunCaseResponse]
        ) -> pb.StreamRunCaseResponse:
            run = request.run
            try:
                response = await self._run(run, wire.mutation(meta, run.request_id or request.request_id))
            except Exception as error:  # noqa: BLE001  # an element's error is the element's answer; unknown ones are logged
                return pb.StreamRunCaseResponse(correlation_id=request.correlation_id, error=to_status(error))
            return pb.StreamRunCaseResponse(correlation_id=request.correlation_id, response=response)

        async for response in multiplexed(requests, carry_out):
            yield response

    # -- look ---------------------------------------------------------------------------------------------------------

    async def get_case(self, request: pb.GetCaseRequest, meta: CallMeta) -> pb.GetCaseResponse:
        """The case as it was last committed."""
        view = await self._engine.get_case(wire.case_id(request.case_id), meta=meta)
        return pb.GetCaseResponse(case=wire.case(view, wire.whole(request.view)))

    async def wait_case(self, request: pb.WaitCaseRequest, meta: CallMeta) -> pb.WaitCaseResponse:
        """The case once it is in a wanted state or has ended, or as it is when the time is up."""
        name = wire.case_id(request.case_id)
        wanted = wire.states(request.states, "states") | wire.ENDED
        limited = meta
        if request.HasField("timeout"):
            limited = self._until(meta, wire.duration_ns(request.timeout, "timeout"))
        if wanted == wire.ENDED:
            view = await self._engine.wait_case(name, meta=limited)
        else:
            view = await self._wait_for(name, wanted, limited, meta)
        return pb.WaitCaseResponse(case=wire.case(view, wire.whole(request.view)), reached=view.state in wanted)

    async def list_cases(self, request: pb.ListCasesRequest, meta: CallMeta) -> pb.ListCasesResponse:
        """Cases by id. The FULL view reads every case of the page."""
        selection = wire.case_selection(request.filter)

        async def fetch(size: int, token: str) -> Page[CaseView]:
            return await self._engine.list_cases(selection.wanted, page_size=size, page_token=token, meta=meta)

        page = await filtered(fetch, selection.keep, request.page_size, request.page_token, selection.mark)
        views: tuple[CaseView, ...] = page.items
        full = request.view == pb.CASE_VIEW_FULL
        if full:
            views = tuple([view async for view in self._whole(views, meta)])
        return pb.ListCasesResponse(cases=[wire.case(view, full) for view in views], next_page_token=page.next_token)

    async def _whole(self, listed: Iterable[CaseView], meta: CallMeta) -> AsyncIterator[CaseView]:
        """Listed cases with everything that is known about them, without those that were purged since."""
        for view in listed:
            with suppress(NotFound):
                yield await self._engine.get_case(view.case_id, meta=meta)

    async def list_incidents(self, request: pb.ListIncidentsRequest, meta: CallMeta) -> pb.ListIncidentsResponse:
        """Open incidents, or the resolved ones too."""
        spec, kind = request.spec_id, request.kind

        async def fetch(size: int, token: str) -> Page[IncidentView]:
            return await self._engine.list_incidents(
                case_id=request.case_id,
                include_resolved=request.include_resolved,
                page_size=size,
                page_token=token,
                meta=meta,
            )

        def keep(one: IncidentView) -> bool:
            return kind in ("", one.kind) and spec in ("", one.spec_id)

        mark = wire.fingerprint(f"{spec}\0{kind}".encode())
        page = await filtered(fetch, keep if spec or kind else None, request.page_size, request.page_token, mark)
        return pb.ListIncidentsResponse(
            incidents=[wire.incident(one) for one in page.items], next_page_token=page.next_token
        )

    async def get_case_history(self, request: pb.GetCaseHistoryRequest, meta: CallMeta) -> pb.GetCaseHistoryResponse:
        """A page of events."""
        name, after, types = wire.case_id(request.case_id), request.after_sequence, frozenset(request.event_types)
        page = await self._engine.get_case_history(
            name, after_sequence=after, page_size=request.page_size, reverse=request.reverse, meta=meta
        )
        if not request.reverse and page.items and not page.next_token:
            last = page.items[-1].sequence
        elif request.reverse and page.items and not after:
            last = page.items[0].sequence
        else:
            newest = await self._engine.get_case_history(name, page_size=1, reverse=True, meta=meta)
            last = newest.items[0].sequence if newest.items else 0
        return pb.GetCaseHistoryResponse(
            events=[wire.history_event(event) for event in page.items if not types or event.event_type in types],
            next_after_sequence=int(page.next_token or 0),
            last_sequence=last,
        )

    async def explain_case(self, request: pb.ExplainCaseRequest, meta: CallMeta) -> pb.ExplainCaseResponse:
        """Why the case is where it is."""
        found = await self._engine.explain_case(wire.case_id(request.case_id), meta=meta)
        response = wire.explained(found, request.task_id)
        if request.task_id and found.tasks and not response.tasks:
            raise NotFound("task", request.task_id, f"case {found.case_id!r} has no such task in a live net")
        return response

    # -- change -------------------------------------------------------------------------------------------------------

    async def suspend_case(self, request: pb.SuspendCaseRequest, meta: CallMeta) -> pb.SuspendCaseResponse:
        """running -> suspended."""
        view = await self._engine.suspend_case(wire.case_id(request.case_id), request.reason, meta=meta)
        return pb.SuspendCaseResponse(case=wire.case(view))

    async def resume_case(self, request: pb.ResumeCaseRequest, meta: CallMeta) -> pb.ResumeCaseResponse:
        """suspended -> running."""
        view = await self._engine.resume_case(wire.case_id(request.case_id), request.reason, meta=meta)
        return pb.ResumeCaseResponse(case=wire.case(view))

    async def cancel_case(self, request: pb.CancelCaseRequest, meta: CallMeta) -> pb.CancelCaseResponse:
        """End the case as cancelled."""
        view = await self._engine.cancel_case(wire.case_id(request.case_id), request.reason, meta=meta)
        return pb.CancelCaseResponse(case=wire.case(view))

    async def cancel_task(self, request: pb.CancelTaskRequest, meta: CallMeta) -> pb.CancelTaskResponse:
        """End one activation of a task; nothing flows on."""
        view = await self._engine.cancel_task(
            wire.case_id(request.case_id),
            wire.task_id(request.task_id),
            request.reason,
            activation=request.activation,
            meta=meta,
        )
        return pb.CancelTaskResponse(case=wire.case(view))

    async def trigger_case(self, request: pb.TriggerCaseRequest, meta: CallMeta) -> pb.TriggerCaseResponse:
        """Deliver a signal to a case, to the open cases with a business key, or to all that wait for it."""
        name = wire.required(request.name, "name", "payment-received")
        lives = wire.duration_ns(request.time_to_live, "time_to_live") if request.HasField("time_to_live") else None
        found = await self._engine.trigger_case(
            name,
            request.data_json or None,
            case_id=request.case_id,
            key=request.key,
            time_to_live=lives,
            meta=meta,
        )
        return wire.triggered(found)

    async def update_case_data(self, request: pb.UpdateCaseDataRequest, meta: CallMeta) -> pb.UpdateCaseDataResponse:
        """Replace top-level keys of a net's data, or all of it."""
        name, expected = wire.case_id(request.case_id), request.expected_sequence
        if request.HasField("expected_sequence") and not expected:
            raise InvalidInput.field(
                "expected_sequence", "0 is no sequence of a case", "the case's sequence, or leave it out to accept any"
            )
        if not request.data_json:
            raise InvalidInput.field(
                "data_json", "is missing", 'expected a JSON object, for example {"amount": 120}', code="required"
            )
        view = await self._engine.update_case_data(
            name,
            request.data_json,
            expected_sequence=expected,
            replace=wire.replaces(request.mode),
            net=request.net,
            meta=meta,
        )
        return pb.UpdateCaseDataResponse(case=wire.case(view))

    async def resolve_incident(self, request: pb.ResolveIncidentRequest, meta: CallMeta) -> pb.ResolveIncidentResponse:
        """Decide an open incident."""
        name, action = wire.incident_id(request), wire.resolution(request)
        case_id = name.partition("@")[2]
        before = await self._engine.get_case(case_id, meta=meta)
        view = await self._engine.resolve_incident(name, action, request.data_json or None, request.reason, meta=meta)
        was = next((one for one in before.incidents if one.incident_id == name), None)
        # A repeated call finds the incident resolved already: then only what the request itself says is known.
        resolved = wire.incident(was) if was else pb.Incident(incident_id=name, case_id=case_id)
        resolved.resolution = request.resolution
        if was:
            resolved.resolve_time.FromNanoseconds(view.updated_at)
            resolved.resolved_by = meta.principal
        return pb.ResolveIncidentResponse(case=wire.case(view), incident=resolved)

    async def purge_cases(self, request: pb.PurgeCasesRequest, meta: CallMeta) -> pb.PurgeCasesResponse:
        """Delete ended cases for good."""
        selection = wire.case_selection(request.filter) if request.HasField("filter") else None
        asked = PurgeRequest(
            tuple(wire.case_id(each) for each in request.case_ids),
            selection.wanted if selection is not None else None,
            selection.keep if selection is not None else None,
            selection.mark if selection is not None else b"",
            request.dry_run,
            request.limit,
        )
        done = await self._engine.purge_cases(asked, meta=meta)
        return pb.PurgeCasesResponse(
            purged_count=done.purged,
            skipped=[pb.SkippedCase(case_id=each.case_id, reason=to_status(each.error)) for each in done.skipped],
            more=done.more,
        )

    # -- watch --------------------------------------------------------------------------------------------------------

    async def export_case(self, request: pb.ExportCaseRequest, meta: CallMeta) -> AsyncIterator[pb.ExportCaseResponse]:
        """The case as a document that proves itself."""
        if request.format not in ("", "json"):
            raise Unsupported(f"export as {request.format}", "use json")
        case_id = wire.case_id(request.case_id)
        document = await self._engine.export_case(case_id, meta=meta)
        name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in case_id)
        for at in range(0, len(document), CHUNK_BYTES):
            first = not at
            yield pb.ExportCaseResponse(
                chunk=document[at : at + CHUNK_BYTES],
                media_type="application/json" if first else "",
                file_name=f"{name}.json" if first else "",
            )

    async def watch_case(self, request: pb.WatchCaseRequest, meta: CallMeta) -> AsyncIterator[pb.WatchCaseResponse]:
        """A case's events, past ones first, until the case has ended."""
        types, sequence = frozenset(request.event_types), request.after_sequence
        delivered = sequence
        events = self._engine.watch_case(wire.case_id(request.case_id), after_sequence=sequence, meta=meta)

        def slow() -> SlowReader:
            return SlowReader("after_sequence", str(delivered))

        async with aclosing(followed(events, slow)) as stream:
            async for event in stream:
                if event is QUIET:
                    yield pb.WatchCaseResponse(sequence=sequence)
                    continue
                sequence = event.sequence
                if not types or event.event_type in types:
                    yield pb.WatchCaseResponse(event=wire.history_event(event), sequence=sequence)
                delivered = sequence

    async def watch_cases(self, request: pb.WatchCasesRequest, meta: CallMeta) -> AsyncIterator[pb.WatchCasesResponse]:
        """Events of all cases that match, in commit order, from now on, from the beginning or from a token."""
        selection = wire.watch_selection(request.filter)
        types, token = frozenset(request.event_types), request.resume_token
        if not token:  # told at once, so that a watcher whose connection breaks before the first event misses none
            token = await self._engine.watch_token(from_start=request.from_start)
            yield pb.WatchCasesResponse(resume_token=token)
        delivered, known = token, _Known(self._engine, meta)
        events = self._engine.watch_cases(resume_token=token, meta=meta)

        def slow() -> SlowReader:
            return SlowReader("resume_token", delivered)

        async with aclosing(followed(events, slow)) as stream:
            async for found in stream:
                if found is QUIET:
                    yield pb.WatchCasesResponse(resume_token=token)
                    continue
                event, token = found
                wanted = not types or event.event_type in types
                if wanted and selection is not None:
                    try:
                        wanted = selection(await known.case(event))
                    except NotFound:
                        wanted = False  # purged since
                if wanted:
                    yield pb.WatchCasesResponse(event=wire.history_event(event), resume_token=token)
                delivered = token

    # -- shared -------------------------------------------------------------------------------------------------------

    async def _run(self, request: pb.RunCaseRequest, meta: CallMeta) -> pb.RunCaseResponse:
        wait_ns = _wait(request)  # before anything is done
        view = await self._engine.run_case(
            wire.spec_id(request.spec_id),
            request.data_json or None,
            case_id=request.case_id,
            business_key=request.business_key,
            version=request.spec_version,
            meta=meta,
        )
        return await self._ran(view, request, wait_ns, meta)

    async def _ran(
        self, view: CaseView, request: pb.RunCaseRequest, wait_ns: int, meta: CallMeta
    ) -> pb.RunCaseResponse:
        view = await self._waited(view, wait_ns, meta)
        history = await self._history(view, meta) if request.include_history else None
        return wire.ran(view, wire.whole(request.view), history)

    async def _waited(self, view: CaseView, wait_ns: int, meta: CallMeta) -> CaseView:
        """The case once it has ended or `wait_ns` is over."""
        if not wait_ns or view.state in wire.ENDED:
            return view
        return await self._engine.wait_case(view.case_id, meta=self._until(meta, wait_ns))

    async def _wait_for(self, name: str, wanted: frozenset[str], meta: CallMeta, reader: CallMeta) -> CaseView:
        """The case once it is in one of `wanted`, or as it is at the deadline of `meta`."""
        view = await self._engine.get_case(name, meta=reader)
        left = (meta.deadline - self._engine.now()) / wire.NS_PER_S if meta.deadline else None
        if view.state in wanted:
            return view
        try:
            async with (
                asyncio.timeout(left),
                closed_after(self._engine.watch_case(name, after_sequence=view.sequence, meta=reader)) as events,
            ):
                async for event in events:
                    if event.event_type == "state_changed":
                        view = await self._engine.get_case(name, meta=reader)
                        if view.state in wanted:
                            return view
        except TimeoutError:
            return view
        return await self._engine.get_case(name, meta=reader)

    def _until(self, meta: CallMeta, wait_ns: int) -> CallMeta:
        """The caller with a deadline that is not later than in `wait_ns`."""
        end = self._engine.now() + wait_ns
        return msgspec.structs.replace(meta, deadline=min(end, meta.deadline) if meta.deadline else end)

    async def _history(self, view: CaseView, meta: CallMeta) -> list[pb.HistoryEvent]:
        page = await self._engine.get_case_history(view.case_id, page_size=HISTORY_SHOWN, meta=meta)
        return [wire.history_event(event) for event in page.items]


def _wait(request: pb.RunCaseRequest | pb.ExecuteCaseRequest) -> int:
    """How long the caller waits for the case to end, in nanoseconds; 0: not at all."""
    return wire.duration_ns(request.wait, "wait") if request.HasField("wait") else 0


class _Known:
    """The cases of watched events. What a watch may filter by never changes, so each case is read once."""

    def __init__(self, engine: WorkflowEngine, meta: CallMeta) -> None:
        self._engine = engine
        self._meta = meta
        self._cases: OrderedDict[str, CaseView] = OrderedDict()

    async def case(self, event: HistoryEvent) -> CaseView:
        found = self._cases.get(event.case_id)
        if found is None:
            view = await self._engine.get_case(event.case_id, meta=self._meta)
            found = self._cases[event.case_id] = msgspec.structs.replace(view, data=b"", work=(), incidents=())
            if len(self._cases) > WATCHED_CASES:
                self._cases.popitem(last=False)
        return found
