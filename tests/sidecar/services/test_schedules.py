"""Schedules over the contract: every field comes back, every call does its work."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from knhk_sidecar.api import pb
from tests.sidecar.services.server import Sidecar, refused


def stamp(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found


async def done(running: Sidecar) -> None:
    """What was asked for has been done."""
    assert running.engine is not None
    await running.engine.fire_due_timers()


async def test_the_life_of_a_schedule(running: Sidecar) -> None:
    far = datetime(2040, 1, 1, tzinfo=UTC)
    spec = pb.ScheduleSpec(
        spec_id="approval",
        version=1,
        every="30 6 * * MON-FRI",
        time_zone="Europe/Berlin",
        data_json=b'{"a":1}',
        business_key="morning",
        time_key="slot",
        overlap=pb.SCHEDULE_OVERLAP_BUFFER_ONE,
        catch_up=pb.SCHEDULE_CATCH_UP_ALL,
        catch_up_window=Duration(seconds=3600),
        start_time=stamp(far),
        end_time=stamp(far + timedelta(days=365)),
        description="every morning",
    )
    wanted = pb.CreateScheduleRequest(schedule_id="morning", spec=spec, request_id="r1")
    made = (await running.schedules.CreateSchedule(wanted)).schedule
    assert made.spec == spec
    assert (await running.schedules.CreateSchedule(wanted)).schedule == made
    assert made.revision == 1
    first = datetime(2040, 1, 2, 5, 30, tzinfo=UTC)
    assert made.next_times[:2] == [stamp(first), stamp(first + timedelta(days=1))]
    taken = await refused(running.schedules.CreateSchedule(pb.CreateScheduleRequest(schedule_id="morning", spec=spec)))
    assert taken.code is grpc.StatusCode.ALREADY_EXISTS

    paused = await running.schedules.PauseSchedule(pb.PauseScheduleRequest(schedule_id="morning", reason="holidays"))
    assert (paused.schedule.paused, paused.schedule.pause_reason, len(paused.schedule.next_times)) == (
        True,
        "holidays",
        0,
    )
    trigger = pb.TriggerScheduleRequest(schedule_id="morning", data_json=b'{"a":2}', request_id="r2")
    answer = (await running.schedules.TriggerSchedule(trigger)).schedule
    (case_id,) = answer.running_case_ids
    assert (await running.schedules.TriggerSchedule(trigger)).schedule == answer
    await done(running)
    case = (await running.cases.GetCase(pb.GetCaseRequest(case_id=case_id))).case
    data = json.loads(case.data_json)
    assert (case.business_key, data["a"], set(data)) == ("morning", 2, {"a", "slot"})
    assert case.created_by == "system:schedule/morning"
    shown = (await running.schedules.GetSchedule(pb.GetScheduleRequest(schedule_id="morning"))).schedule
    (run,) = shown.recent_runs
    assert (run.outcome, run.case_id, shown.started_count) == ("started", case_id, 1)
    resumed = await running.schedules.ResumeSchedule(pb.ResumeScheduleRequest(schedule_id="morning"))
    assert (resumed.schedule.paused, len(resumed.schedule.next_times)) == (False, 5)

    backfill = pb.BackfillScheduleRequest(
        schedule_id="morning",
        start_time=stamp(far),
        end_time=stamp(far + timedelta(days=4)),
        overlap=pb.SCHEDULE_OVERLAP_ALLOW,
    )
    await running.schedules.BackfillSchedule(backfill)
    await done(running)
    shown = (await running.schedules.GetSchedule(pb.GetScheduleRequest(schedule_id="morning"))).schedule
    assert shown.started_count == 4

    spec.ClearField("catch_up_window")
    update = pb.UpdateScheduleRequest(schedule_id="morning", spec=spec, expected_revision=shown.revision)
    changed = (await running.schedules.UpdateSchedule(update)).schedule
    assert changed.spec.catch_up_window.ToTimedelta() == timedelta(days=1)
    stale = await refused(running.schedules.UpdateSchedule(update))
    assert stale.info.reason == "STALE"
    listed = await running.schedules.ListSchedules(pb.ListSchedulesRequest())
    assert [each.schedule_id for each in listed.schedules] == ["morning"]
    await running.schedules.DeleteSchedule(pb.DeleteScheduleRequest(schedule_id="morning"))
    gone = await refused(running.schedules.GetSchedule(pb.GetScheduleRequest(schedule_id="morning")))
    assert gone.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"every": "61 * * * *"}, "every"),
        ({"every": ""}, "spec.every"),
        ({"spec_id": ""}, "spec.spec_id"),
        ({"overlap": 99}, "spec.overlap"),
        ({"catch_up": 99}, "spec.catch_up"),
        ({"time_zone": "Mars/Base"}, "time_zone"),
        ({"data_json": b"[]"}, "data_json"),
    ],
)
async def test_what_is_refused_names_its_field(running: Sidecar, change: dict[str, object], field: str) -> None:
    fields = {"spec_id": "approval", "every": "0 * * * *", **change}
    spec = pb.ScheduleSpec(**fields)  # type: ignore[arg-type]  # wrong on purpose
    answer = await refused(running.schedules.CreateSchedule(pb.CreateScheduleRequest(schedule_id="s", spec=spec)))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.fields == [field]
