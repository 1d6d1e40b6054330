"""PatternService: the catalogue of the 43 patterns, and running one as a case of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from knhk_sidecar.api import pb, wire
from knhk_sidecar.api.faults import to_status
from knhk_sidecar.api.services.streams import Tell, multiplexed
from knhk_workflow import CallMeta, InvalidInput, Unsupported, WorkflowEngine, WorkflowError


class PatternService:
    """Over the engine's catalogue."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self._engine = engine

    async def list_patterns(self, request: pb.ListPatternsRequest, meta: CallMeta) -> pb.ListPatternsResponse:
        """The catalogue by number. The token is the last number shown."""
        token, category = request.page_token, request.category
        if token and not (token.isdecimal() and len(token) < 3):
            raise InvalidInput.field("page_token", "is not a page token", "use the next_page_token of a page")
        after = int(token or 0)
        wanted = [
            view for view in self._engine.list_patterns() if view.pattern_id > after and category in ("", view.category)
        ]
        size = request.page_size or len(wanted)
        return pb.ListPatternsResponse(
            patterns=[wire.pattern(view, False) for view in wanted[:size]],
            next_page_token=str(wanted[size - 1].pattern_id) if len(wanted) > size else "",
        )

    async def get_pattern(self, request: pb.GetPatternRequest, meta: CallMeta) -> pb.GetPatternResponse:
        """One pattern with net and script."""
        return pb.GetPatternResponse(pattern=wire.pattern(self._engine.get_pattern(request.pattern_id), True))

    async def execute_pattern(self, request: pb.ExecutePatternRequest, meta: CallMeta) -> pb.ExecutePatternResponse:
        """Run one pattern's net."""
        return await self._run(request, meta)

    async def execute_patterns(self, request: pb.ExecutePatternsRequest, meta: CallMeta) -> pb.ExecutePatternsResponse:
        """Run a list. Elements fail one by one; they are begun in order."""
        elements = request.executions
        wire.batch(len(elements), "executions")
        results: list[pb.ExecutePatternResult | None] = [None] * len(elements)

        async def one(index: int) -> None:
            element = elements[index]
            try:
                own = wire.mutation(meta, element.request_id or wire.element_id(request.request_id, index))
                results[index] = pb.ExecutePatternResult(response=await self._run(element, own))
            except WorkflowError as error:
                results[index] = pb.ExecutePatternResult(error=to_status(error))

        await asyncio.gather(*map(one, range(len(elements))))  # begun in order, and durable runs share commits
        return pb.ExecutePatternsResponse(results=[result for result in results if result is not None])

    async def stream_execute_pattern(
        self, requests: AsyncIterator[pb.StreamExecutePatternRequest], meta: CallMeta
    ) -> AsyncIterator[pb.StreamExecutePatternResponse]:
        """Run patterns as they arrive; those that are asked for live tell what happens as it happens."""

        async def carry_out(
            request: pb.StreamExecutePatternRequest, tell: Tell[pb.StreamExecutePatternResponse]
        ) -> pb.StreamExecutePatternResponse:
            execution = request.execution
            try:
                own = wire.mutation(meta, execution.request_id or request.request_id)
                if request.live:
                    response = await self._told(request, own, tell)
                else:
                    response = await self._run(execution, own)
            except Exception as error:  # noqa: BLE001  # an element's error is the element's answer; unknown ones are logged
                return pb.StreamExecutePatternResponse(correlation_id=request.correlation_id, error=to_status(error))
            return pb.StreamExecutePatternResponse(correlation_id=request.correlation_id, response=response)

        async for response in multiplexed(requests, carry_out):
            yield response

    async def _told(
        self, request: pb.StreamExecutePatternRequest, meta: CallMeta, tell: Tell[pb.StreamExecutePatternResponse]
    ) -> pb.ExecutePatternResponse:
        """Run one pattern and tell each of its events."""
        execution, name = request.execution, request.correlation_id
        if execution.durable:
            response = await self._run(execution, meta)
            for event in response.trace:
                await tell(pb.StreamExecutePatternResponse(correlation_id=name, event=event))
            response.ClearField("trace")
            return response
        number, context = self._available(execution.pattern_id), wire.pattern_context(execution)
        run = self._engine.pattern_run(number, context, meta=meta)
        async for seen in run:
            await tell(pb.StreamExecutePatternResponse(correlation_id=name, event=wire.history_event(seen)))
        return wire.pattern_ran(msgspec.structs.replace(run.result, trace=()))

    async def _run(self, request: pb.ExecutePatternRequest, meta: CallMeta) -> pb.ExecutePatternResponse:
        number = self._available(request.pattern_id)
        return wire.pattern_ran(await self._engine.execute_pattern(number, wire.pattern_context(request), meta=meta))

    def _available(self, number: int) -> int:
        view = self._engine.get_pattern(wire.pattern_id(number))
        if not view.available:
            raise Unsupported(f"pattern {view.pattern_id} ({view.name})", "ListPatterns says which can be executed")
        return view.pattern_id
