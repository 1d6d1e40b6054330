"""WorkItemService: work for people and for application workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from knhk_sidecar.api import pb, wire
from knhk_sidecar.api.faults import to_status
from knhk_sidecar.api.services.pages import filtered
from knhk_sidecar.api.services.streams import closed_after
from knhk_sidecar.api.services.work_stream import work_stream
from knhk_workflow import (
    CallMeta,
    CaseView,
    Page,
    WorkflowEngine,
    WorkflowError,
    WorkItemView,
)


class WorkItemService:
    """Over the engine's work items. The participant acted for is the caller unless the request names one."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self._engine = engine

    async def list_work_items(self, request: pb.ListWorkItemsRequest, meta: CallMeta) -> pb.ListWorkItemsResponse:
        """Open items."""
        wanted, spec = wire.item_filter(request), request.spec_id

        async def fetch(size: int, token: str) -> Page[WorkItemView]:
            return await self._engine.list_work_items(wanted, page_size=size, page_token=token, meta=meta)

        def keep(item: WorkItemView) -> bool:
            return item.spec_id == spec

        mark = wire.fingerprint(spec.encode())
        page = await filtered(fetch, keep if spec else None, request.page_size, request.page_token, mark)
        return pb.ListWorkItemsResponse(
            items=[wire.work_item(item) for item in page.items], next_page_token=page.next_token
        )

    async def get_work_item(self, request: pb.GetWorkItemRequest, meta: CallMeta) -> pb.GetWorkItemResponse:
        """One open item with its input."""
        item = await self._engine.get_work_item(wire.item_id(request.item_id), meta=meta)
        return pb.GetWorkItemResponse(item=wire.work_item(item))

    async def claim_work_item(self, request: pb.ClaimWorkItemRequest, meta: CallMeta) -> pb.ClaimWorkItemResponse:
        """offered -> allocated."""
        user = wire.acting(request.user, meta)
        item = await self._engine.claim_work_item(wire.item_id(request.item_id), user, meta=meta)
        return pb.ClaimWorkItemResponse(item=wire.work_item(item))

    async def start_work_item(self, request: pb.StartWorkItemRequest, meta: CallMeta) -> pb.StartWorkItemResponse:
        """offered or allocated -> started."""
        user = wire.acting(request.user, meta)
        item = await self._engine.start_work_item(wire.item_id(request.item_id), user, meta=meta)
        return pb.StartWorkItemResponse(item=wire.work_item(item))

    async def complete_work_item(
        self, request: pb.CompleteWorkItemRequest, meta: CallMeta
    ) -> pb.CompleteWorkItemResponse:
        """End an item with its output."""
        asked = wire.completion(request, wire.acting(request.user, meta))
        item = await self._engine.complete_work_item(asked.item_id, asked.output, asked.user, meta=meta)
        return wire.completed(item)

    async def complete_work_items(
        self, request: pb.CompleteWorkItemsRequest, meta: CallMeta
    ) -> pb.CompleteWorkItemsResponse:
        """End a list of items. Elements fail one by one; those of one case are carried out in order."""
        elements = request.completions
        wire.batch(len(elements), "completions")
        results: list[pb.CompleteWorkItemResult | None] = [None] * len(elements)

        async def one(index: int) -> None:
            element = elements[index]
            try:
                own = wire.mutation(meta, element.request_id) if element.request_id else meta.element(index)
                results[index] = pb.CompleteWorkItemResult(response=await self.complete_work_item(element, own))
            except WorkflowError as error:
                results[index] = pb.CompleteWorkItemResult(error=to_status(error))

        await asyncio.gather(*map(one, range(len(elements))))  # begun in order, and they share commits
        return pb.CompleteWorkItemsResponse(results=[result for result in results if result is not None])

    async def fail_work_item(self, request: pb.FailWorkItemRequest, meta: CallMeta) -> pb.FailWorkItemResponse:
        """Report a failure. Without a retry rule on the task it becomes an incident."""
        asked = wire.failure(request, wire.acting(request.user, meta))
        item = await self._engine.fail_work_item(
            asked.item_id,
            asked.code,
            asked.message,
            asked.user,
            data=asked.data,
            permanent=asked.permanent,
            retry_after=asked.retry_after,
            meta=meta,
        )
        case = await self._case(item, meta)
        raised = [one for one in case.incidents if one.task_id == item.task_id and one.raised_at >= item.changed_at]
        return pb.FailWorkItemResponse(
            item=wire.work_item(item),
            will_retry=item.state == "offered" or item.retry_at > 0,
            incident_id=raised[-1].incident_id if raised else "",
        )

    async def skip_work_item(self, request: pb.SkipWorkItemRequest, meta: CallMeta) -> pb.SkipWorkItemResponse:
        """Pass over an item."""
        name = wire.item_id(request.item_id)
        item = await self._engine.skip_work_item(name, request.reason, _named(request.user, meta), meta=meta)
        return pb.SkipWorkItemResponse(
            item=wire.work_item(item), case_state=wire.CASE_STATES[item.case_state], sequence=item.case_sequence
        )

    async def release_work_item(self, request: pb.ReleaseWorkItemRequest, meta: CallMeta) -> pb.ReleaseWorkItemResponse:
        """allocated -> offered."""
        name = wire.item_id(request.item_id)
        item = await self._engine.release_work_item(name, _named(request.user, meta), meta=meta)
        return pb.ReleaseWorkItemResponse(item=wire.work_item(item))

    async def add_instance(self, request: pb.AddInstanceRequest, meta: CallMeta) -> pb.AddInstanceResponse:
        """One more instance of a task with dynamic instances."""
        found = await self._engine.add_instance(
            wire.case_id(request.case_id),
            wire.task_id(request.task_id),
            request.data_json or None,
            activation=request.activation,
            meta=meta,
        )
        return pb.AddInstanceResponse(group=wire.instance_group(found), instance=found.instance, item_id=found.item_id)

    async def close_instances(self, request: pb.CloseInstancesRequest, meta: CallMeta) -> pb.CloseInstancesResponse:
        """No further instances."""
        found = await self._engine.close_instances(
            wire.case_id(request.case_id), wire.task_id(request.task_id), activation=request.activation, meta=meta
        )
        return pb.CloseInstancesResponse(group=wire.instance_group(found))

    async def complete_instances(
        self, request: pb.CompleteInstancesRequest, meta: CallMeta
    ) -> pb.CompleteInstancesResponse:
        """End the task now; the flow goes on."""
        found = await self._engine.complete_instances(
            wire.case_id(request.case_id), wire.task_id(request.task_id), activation=request.activation, meta=meta
        )
        return pb.CompleteInstancesResponse(group=wire.instance_group(found))

    async def cancel_instances(self, request: pb.CancelInstancesRequest, meta: CallMeta) -> pb.CancelInstancesResponse:
        """Stop the task; nothing flows on."""
        found = await self._engine.cancel_instances(
            wire.case_id(request.case_id), wire.task_id(request.task_id), activation=request.activation, meta=meta
        )
        return pb.CancelInstancesResponse(group=wire.instance_group(found))

    async def stream_work_items(
        self, requests: AsyncIterator[pb.StreamWorkItemsRequest], meta: CallMeta
    ) -> AsyncIterator[pb.StreamWorkItemsResponse]:
        """A worker's channel."""
        async with closed_after(work_stream(self._engine, requests, meta)) as responses:
            async for response in responses:
                yield response

    async def _case(self, item: WorkItemView, meta: CallMeta) -> CaseView:
        """The item's case. The change is durable already: a deadline that has passed meanwhile must not hide that."""
        return await self._engine.get_case(item.case_id, meta=wire.without_deadline(meta))


def _named(user: str, meta: CallMeta) -> str:
    """Whose item it must be when it is anybody's: the caller's, when it is something in workflows, otherwise that of
    whom an application names; it need not name anybody. Raises PermissionDenied."""
    return wire.acting(user, meta) if meta.roles else user
