"""WorkItemService: work for people and for application workers."""

# ruff: noqa: N802  # methods are named like the contract's calls

from __future__ import annotations

from knhk_sidecar.api import pb, wire
from knhk_sidecar.api.faults import to_status
from knhk_sidecar.api.services.operation import Call
from knhk_sidecar.api.services.pages import filtered
from knhk_workflow import (
    CallMeta,
    CaseView,
    CompleteRequest,
    Page,
    WorkflowEngine,
    WorkflowError,
    WorkItemView,
    WrongState,
)

FAILED = "failed"  # the code of a failure that its reporter gave none


class WorkItemService:
    """Over the engine's work items. The participant acted for is the caller unless the request names one."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self._engine = engine

    async def ListWorkItems(self, request: pb.ListWorkItemsRequest, call: Call) -> pb.ListWorkItemsResponse:
        """Open items."""
        wanted, spec, meta = wire.item_filter(request), request.spec_id, call.meta

        async def fetch(size: int, token: str) -> Page[WorkItemView]:
            return await self._engine.list_work_items(wanted, page_size=size, page_token=token, meta=meta)

        def keep(item: WorkItemView) -> bool:
            return item.spec_id == spec

        mark = wire.fingerprint(spec.encode())
        page = await filtered(fetch, keep if spec else None, request.page_size, request.page_token, mark)
        return pb.ListWorkItemsResponse(
            items=[wire.work_item(item) for item in page.items], next_page_token=page.next_token
        )

    async def GetWorkItem(self, request: pb.GetWorkItemRequest, call: Call) -> pb.GetWorkItemResponse:
        """One open item with its input."""
        item = await self._engine.get_work_item(wire.item_id(request.item_id), meta=call.meta)
        return pb.GetWorkItemResponse(item=wire.work_item(item))

    async def ClaimWorkItem(self, request: pb.ClaimWorkItemRequest, call: Call) -> pb.ClaimWorkItemResponse:
        """offered -> allocated."""
        meta = wire.mutation(call.meta, request.request_id)
        user = request.user or meta.principal
        item = await self._engine.claim_work_item(wire.item_id(request.item_id), user, meta=meta)
        return pb.ClaimWorkItemResponse(item=wire.work_item(item))

    async def StartWorkItem(self, request: pb.StartWorkItemRequest, call: Call) -> pb.StartWorkItemResponse:
        """offered or allocated -> started."""
        meta = wire.mutation(call.meta, request.request_id)
        user = request.user or meta.principal
        item = await self._engine.start_work_item(wire.item_id(request.item_id), user, meta=meta)
        return pb.StartWorkItemResponse(item=wire.work_item(item))

    async def CompleteWorkItem(self, request: pb.CompleteWorkItemRequest, call: Call) -> pb.CompleteWorkItemResponse:
        """End an item with its output."""
        meta = wire.mutation(call.meta, request.request_id)
        asked = wire.completion(request, request.user or meta.principal)
        try:
            item = await self._engine.complete_work_item(asked.item_id, asked.output, asked.user, meta=meta)
        except WrongState as error:
            raise wire.stale(error) from error
        return wire.completed(item, await self._case(item, call.meta))

    async def CompleteWorkItems(self, request: pb.CompleteWorkItemsRequest, call: Call) -> pb.CompleteWorkItemsResponse:
        """End a list of items; elements fail one by one."""
        elements = request.completions
        wire.batch(len(elements), "completions")
        results: list[pb.CompleteWorkItemResult | None] = [None] * len(elements)
        together: list[tuple[int, CompleteRequest]] = []
        for index, element in enumerate(elements):
            try:
                if element.request_id:
                    response = await self.CompleteWorkItem(element, call)
                    results[index] = pb.CompleteWorkItemResult(response=response)
                else:
                    together.append((index, wire.completion(element, element.user or call.meta.principal)))
            except WorkflowError as error:
                results[index] = pb.CompleteWorkItemResult(error=to_status(error))
        if together:
            meta = wire.mutation(call.meta, request.request_id)
            outcomes = await self._engine.complete_work_items([asked for _, asked in together], meta=meta)
            for (index, _), outcome in zip(together, outcomes, strict=True):
                if isinstance(outcome, WorkflowError):
                    refusal = wire.stale(outcome) if isinstance(outcome, WrongState) else outcome
                    results[index] = pb.CompleteWorkItemResult(error=to_status(refusal))
                else:
                    response = wire.completed(outcome, await self._case(outcome, call.meta))
                    results[index] = pb.CompleteWorkItemResult(response=response)
        return pb.CompleteWorkItemsResponse(results=[result for result in results if result is not None])

    async def FailWorkItem(self, request: pb.FailWorkItemRequest, call: Call) -> pb.FailWorkItemResponse:
        """Report a failure. Without a retry rule on the task it becomes an incident."""
        wire.not_yet(request.HasField("retry_after"), "WorkItemService.FailWorkItem.retry_after")
        wire.not_yet(bool(request.data_json), "WorkItemService.FailWorkItem.data_json")
        meta = wire.mutation(call.meta, request.request_id)
        name = wire.item_id(request.item_id)
        wire.present_attempt(name, request.attempt)
        user = request.user or meta.principal
        try:
            item = await self._engine.fail_work_item(name, request.code or FAILED, request.message, user, meta=meta)
        except WrongState as error:
            raise wire.stale(error) from error
        case = await self._case(item, call.meta)
        raised = [one for one in case.incidents if one.task_id == item.task_id and one.raised_at >= item.changed_at]
        return pb.FailWorkItemResponse(item=wire.work_item(item), incident_id=raised[-1].incident_id if raised else "")

    async def SkipWorkItem(self, request: pb.SkipWorkItemRequest, call: Call) -> pb.SkipWorkItemResponse:
        """Pass over an item."""
        wire.not_yet(bool(request.reason), "WorkItemService.SkipWorkItem.reason")
        meta = wire.mutation(call.meta, request.request_id)
        name = wire.item_id(request.item_id)
        await self._owned(name, request.user, call.meta)
        item = await self._engine.skip_work_item(name, meta=meta)
        case = await self._case(item, call.meta)
        return pb.SkipWorkItemResponse(
            item=wire.work_item(item), case_state=wire.CASE_STATES[case.state], sequence=case.sequence
        )

    async def ReleaseWorkItem(self, request: pb.ReleaseWorkItemRequest, call: Call) -> pb.ReleaseWorkItemResponse:
        """allocated -> offered."""
        meta = wire.mutation(call.meta, request.request_id)
        name = wire.item_id(request.item_id)
        await self._owned(name, request.user, call.meta)
        item = await self._engine.release_work_item(name, meta=meta)
        return pb.ReleaseWorkItemResponse(item=wire.work_item(item))

    async def _case(self, item: WorkItemView, meta: CallMeta) -> CaseView:
        """The item's case. The change is durable already: a deadline that has passed meanwhile must not hide that."""
        return await self._engine.get_case(item.case_id, meta=wire.without_deadline(meta))

    async def _owned(self, name: str, user: str, meta: CallMeta) -> None:
        """Refuse when the item belongs to somebody else than the participant that the request names."""
        if user:
            item = await self._engine.get_work_item(name, meta=meta)
            if item.owner and item.owner != user:
                raise WrongState("work item", name, f"allocated to {user!r}", f"allocated to {item.owner!r}")
