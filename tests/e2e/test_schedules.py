"""kill -9 between and within the occurrences of schedules: each second has exactly one case, and none came early."""

from __future__ import annotations

import json
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from knhk_sidecar.api import pb
from tests.conftest import Budget
from tests.e2e.sidecar import CALL_SECONDS, Stubs, register, sidecar

STEPS_PER_KILL = 10_000  # a kill with its restart takes about three seconds
KILLS_MAX = 20
AWAIT_SECONDS = 120.0
NAMES = ("SCHEDULE_OVERLAP_ALLOW", "SCHEDULE_OVERLAP_BUFFER_ALL")
ROUTED = json.dumps(
    {"id": "routed", "tasks": {"note": {}}, "flows": [{"from": "start", "to": "note"}, {"from": "note", "to": "end"}]}
).encode()


@pytest.mark.long
def test_every_occurrence_has_one_case_over_kill_minus_nine(tmp_path: Path, budget: Budget) -> None:
    kills = min(max(budget.steps // STEPS_PER_KILL, 1), KILLS_MAX)
    with sidecar(tmp_path) as daemon:
        with daemon.stubs() as stubs:
            register(stubs, ROUTED)
            for overlap in (pb.SCHEDULE_OVERLAP_ALLOW, pb.SCHEDULE_OVERLAP_BUFFER_ALL):
                spec = pb.ScheduleSpec(
                    spec_id="routed", every="R/PT1S", overlap=overlap, catch_up=pb.SCHEDULE_CATCH_UP_ALL
                )
                name = pb.ScheduleOverlap.Name(overlap)
                pb.ScheduleServiceStub(stubs.channel).CreateSchedule(
                    pb.CreateScheduleRequest(schedule_id=name, spec=spec), timeout=10
                )
        for number in range(kills + 1):
            if number:
                time.sleep(random.uniform(0.0, 1.2))
                daemon.kill()
                daemon.start()
            with daemon.stubs() as stubs:
                for name in NAMES:
                    await_occurrence(stubs, name, after=datetime.now(tz=UTC))
        with daemon.stubs() as stubs:
            for name in NAMES:
                schedule = (
                    pb.ScheduleServiceStub(stubs.channel)
                    .PauseSchedule(pb.PauseScheduleRequest(schedule_id=name), timeout=CALL_SECONDS)
                    .schedule
                )
                assert (schedule.skipped_count, schedule.missed_count, schedule.failed_count) == (0, 0, 0)
                times = occurrences(stubs, name)
                assert len(times) > kills
                assert times == [times[0] + timedelta(seconds=n) for n in range(len(times))], "none missing"
        assert daemon.stop() == 0


def await_occurrence(stubs: Stubs, schedule_id: str, after: datetime) -> None:
    """Waits for a case that was due after a moment."""
    until = time.monotonic() + AWAIT_SECONDS
    while not (times := occurrences(stubs, schedule_id)) or times[-1] <= after:
        assert time.monotonic() < until, times
        time.sleep(0.05)


def occurrences(stubs: Stubs, schedule_id: str) -> list[datetime]:
    """When the schedule's cases say that they were due; none was created before."""
    page = stubs.cases.ListCases(
        pb.ListCasesRequest(filter=pb.CaseFilter(case_id_prefix=f"{schedule_id}-"), page_size=1_000), timeout=10
    )
    found = []
    for case in page.cases:
        due = datetime.strptime(case.case_id.rpartition("-")[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        assert case.create_time.ToDatetime(tzinfo=UTC) >= due, "none early"
        assert case.state == pb.CASE_STATE_COMPLETED
        found.append(due)
    return sorted(found)
