"""ScheduleService: cases started by the calendar."""

from __future__ import annotations

from knhk_sidecar.api import pb, wire
from knhk_workflow import CallMeta, WorkflowEngine


class ScheduleService:
    """Over the engine's schedules."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self._engine = engine

    async def create_schedule(self, request: pb.CreateScheduleRequest, meta: CallMeta) -> pb.CreateScheduleResponse:
        """A new schedule."""
        name, spec = wire.schedule_id(request.schedule_id), wire.schedule_spec(request.spec)
        view = await self._engine.create_schedule(name, spec, paused=request.paused, meta=meta)
        return pb.CreateScheduleResponse(schedule=wire.schedule(view))

    async def get_schedule(self, request: pb.GetScheduleRequest, meta: CallMeta) -> pb.GetScheduleResponse:
        """One schedule."""
        view = await self._engine.get_schedule(wire.schedule_id(request.schedule_id), meta=meta)
        return pb.GetScheduleResponse(schedule=wire.schedule(view))

    async def list_schedules(self, request: pb.ListSchedulesRequest, meta: CallMeta) -> pb.ListSchedulesResponse:
        """A page of schedules."""
        page = await self._engine.list_schedules(page_size=request.page_size, page_token=request.page_token, meta=meta)
        return pb.ListSchedulesResponse(
            schedules=[wire.schedule(view) for view in page.items], next_page_token=page.next_token
        )

    async def update_schedule(self, request: pb.UpdateScheduleRequest, meta: CallMeta) -> pb.UpdateScheduleResponse:
        """Another specification."""
        name, spec = wire.schedule_id(request.schedule_id), wire.schedule_spec(request.spec)
        view = await self._engine.update_schedule(name, spec, revision=request.expected_revision, meta=meta)
        return pb.UpdateScheduleResponse(schedule=wire.schedule(view))

    async def delete_schedule(self, request: pb.DeleteScheduleRequest, meta: CallMeta) -> pb.DeleteScheduleResponse:
        """No more of it."""
        await self._engine.delete_schedule(wire.schedule_id(request.schedule_id), meta=meta)
        return pb.DeleteScheduleResponse(schedule_id=request.schedule_id)

    async def pause_schedule(self, request: pb.PauseScheduleRequest, meta: CallMeta) -> pb.PauseScheduleResponse:
        """No occurrences for a while."""
        name = wire.schedule_id(request.schedule_id)
        view = await self._engine.pause_schedule(name, request.reason, meta=meta)
        return pb.PauseScheduleResponse(schedule=wire.schedule(view))

    async def resume_schedule(self, request: pb.ResumeScheduleRequest, meta: CallMeta) -> pb.ResumeScheduleResponse:
        """Occurrences again."""
        view = await self._engine.resume_schedule(wire.schedule_id(request.schedule_id), meta=meta)
        return pb.ResumeScheduleResponse(schedule=wire.schedule(view))

    async def trigger_schedule(self, request: pb.TriggerScheduleRequest, meta: CallMeta) -> pb.TriggerScheduleResponse:
        """One case now."""
        name, overlap = wire.schedule_id(request.schedule_id), wire.overlap(request.overlap, "overlap")
        view = await self._engine.trigger_schedule(name, overlap=overlap, data=request.data_json or None, meta=meta)
        return pb.TriggerScheduleResponse(schedule=wire.schedule(view))

    async def backfill_schedule(
        self, request: pb.BackfillScheduleRequest, meta: CallMeta
    ) -> pb.BackfillScheduleResponse:
        """Past occurrences as if they were due now."""
        name, overlap = wire.schedule_id(request.schedule_id), wire.overlap(request.overlap, "overlap")
        start, end = wire.span(request.start_time, request.end_time)
        view = await self._engine.backfill_schedule(name, start, end, overlap=overlap, meta=meta)
        return pb.BackfillScheduleResponse(schedule=wire.schedule(view))
