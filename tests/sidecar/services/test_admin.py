"""What the daemon says about itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from knhk_sidecar.api import pb
from knhk_sidecar.api.services.admin import AdminService
from knhk_workflow import (
    LOCAL,
    CallMeta,
    ConnectorSetup,
    ConnectorView,
    InvalidInput,
    RequestMismatch,
    SkippingClock,
    StateStore,
    Unsupported,
    WorkflowEngine,
)
from tests.sidecar.services.server import CALLER, Sidecar, daemon, refused

ANNA = CallMeta(principal="anna", method="AdminService/AdvanceTime")


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
    refusal = await refused(running.admin.SetLogLevel(pb.SetLogLevelRequest(level="info", logger="one")))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["logger"])


async def test_time_is_skipped_once_for_a_request_id_however_often_it_is_asked_at_once(tmp_path: Path) -> None:
    clock = SkippingClock()
    async with WorkflowEngine(StateStore(str(tmp_path / "db")), clock=clock) as engine:
        admin = AdminService(engine, daemon(), tuple)
        begin = clock.now()
        hour = pb.AdvanceTimeRequest(request_id="once", duration=Duration(seconds=3600))
        first, second = await asyncio.gather(admin.advance_time(hour, ANNA), admin.advance_time(hour, ANNA))
        assert first == second == await admin.advance_time(hour, ANNA)
        assert 3600 <= (clock.now() - begin) / 1e9 < 7200
        with pytest.raises(RequestMismatch):
            await admin.advance_time(pb.AdvanceTimeRequest(request_id="once", duration=Duration(seconds=1)), ANNA)
        await admin.advance_time(hour, CallMeta(principal="ben"))
        assert 7200 <= (clock.now() - begin) / 1e9 < 10800


async def test_what_makes_no_sense_is_not_recorded_as_done(tmp_path: Path) -> None:
    clock = SkippingClock()
    async with WorkflowEngine(StateStore(str(tmp_path / "db")), clock=clock) as engine:
        admin = AdminService(engine, daemon(), tuple)
        begin = clock.now()
        negative = pb.AdvanceTimeRequest(request_id="r", duration=Duration(seconds=-1))
        past = pb.AdvanceTimeRequest(until=Timestamp(seconds=begin // 10**9 - 60))
        for wrong in (negative, negative, past, pb.AdvanceTimeRequest(request_id="r")):
            with pytest.raises(InvalidInput):
                await admin.advance_time(wrong, ANNA)
        for level in (pb.SetLogLevelRequest(level="info", logger="one"), pb.SetLogLevelRequest(level="loud")):
            with pytest.raises(InvalidInput):
                await admin.set_log_level(level, ANNA)
        assert not (await engine.list_audit()).items
        await admin.advance_time(pb.AdvanceTimeRequest(request_id="r", duration=Duration(seconds=1)), ANNA)
        assert [entry.operation.resource for entry in (await engine.list_audit()).items] == ["time"]


async def test_without_a_policy_the_call_that_was_made_is_named_as_missing() -> None:
    admin = AdminService(None, replace(daemon(), policy=None), tuple)
    with pytest.raises(Unsupported, match=r"AdminService\.ExplainPolicy"):
        await admin.explain_policy(pb.ExplainPolicyRequest(), ANNA)
    with pytest.raises(Unsupported, match=r"AdminService\.GetPolicy"):
        await admin.get_policy(pb.GetPolicyRequest(), ANNA)


class _Deleting(WorkflowEngine):
    """An engine one of whose connectors is deleted as soon as they were listed."""

    async def list_connectors(self, *, meta: CallMeta = LOCAL) -> tuple[ConnectorView, ...]:
        listed = await super().list_connectors(meta=meta)
        await self.delete_connector("gone", meta=meta)
        return listed


async def test_a_connector_that_is_deleted_while_they_are_probed_is_left_out(tmp_path: Path) -> None:
    setup = ConnectorSetup(allow=("http://127.0.0.1:*",), networks=("127.0.0.0/8",))
    async with _Deleting(StateStore(str(tmp_path / "db")), connectors=setup) as engine:
        for name in ("gone", "here"):
            await engine.put_connector(name, "http", {"base_url": "http://127.0.0.1:1"})
        found = await AdminService(engine, daemon(), tuple).list_connectors(pb.ListConnectorsRequest(probe=True), LOCAL)
    assert [(each.name, each.health) for each in found.connectors] == [("here", pb.HEALTH_STATE_UNHEALTHY)]
