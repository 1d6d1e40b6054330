"""What the daemon says about itself."""

from __future__ import annotations

import grpc

from knhk_sidecar.api import pb
from tests.sidecar.services.server import CALLER, Sidecar, refused


async def test_status_says_what_works_and_what_does_not(running: Sidecar) -> None:
    status = await running.admin.GetStatus(pb.GetStatusRequest())
    assert (status.version, status.engine_enabled, status.store_kind) == ("0.0.1", True, "leveldb")
    assert status.health == pb.HEALTH_STATE_DEGRADED, "as its worst part"
    assert [part.name for part in status.components] == ["store", "otel"]
    assert "CaseService.MigrateCases" in status.unavailable_features
    assert not any("GetStatus" in feature for feature in status.unavailable_features)
    assert list(status.features) == ["mtls", "rest"]
    assert (status.principal, list(status.roles)) == (CALLER, [])
    assert status.uptime.ToMilliseconds() == 2500
    assert status.document_schema_json
    assert set(status.pattern_ids) >= {1, 2, 3, 4, 5, 8, 10, 11, 22, 33, 43}
    short = await running.admin.GetStatus(pb.GetStatusRequest(omit_document_schema=True))
    assert not short.document_schema_json


async def test_status_counts_what_there_is(running: Sidecar) -> None:
    await running.cases.RunCase(pb.RunCaseRequest(spec_id="approval"))
    await running.cases.RunCase(pb.RunCaseRequest(spec_id="routing"))
    await running.cases.CreateCase(pb.CreateCaseRequest(spec_id="approval"))
    counts = (await running.admin.GetStatus(pb.GetStatusRequest(omit_document_schema=True))).counts
    assert (counts.workflow_versions, counts.open_work_items) == (3, 1)
    assert (counts.cases_created, counts.cases_running, counts.cases_completed) == (1, 1, 1)
    assert (counts.open_incidents, counts.dead_letters, counts.counting) == (0, 0, False)


async def test_status_works_without_an_engine(engineless: Sidecar) -> None:
    status = await engineless.admin.GetStatus(pb.GetStatusRequest())
    assert not status.engine_enabled
    assert "workflow engine" in status.unavailable_features


async def test_settings_are_shown_with_their_origin(running: Sidecar) -> None:
    everything = (await running.admin.GetConfig(pb.GetConfigRequest())).values
    assert [one.key for one in everything] == ["log_level", "workflow.db_path"]
    (some,) = (await running.admin.GetConfig(pb.GetConfigRequest(key_prefix="log"))).values
    assert (some.value, some.origin, some.origin_name, some.default_value) == ("debug", "flag", "--log-level", "info")


async def test_the_log_level_changes(running: Sidecar) -> None:
    answer = await running.admin.SetLogLevel(pb.SetLogLevelRequest(level="WARNING"))
    assert (answer.previous_level, answer.level) == ("info", "warning")
    refusal = await refused(running.admin.SetLogLevel(pb.SetLogLevelRequest(level="loud")))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["level"])
