"""From start to drain: readiness, health, going down while calls run, and what keeps a daemon from starting."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from knhk_sidecar import KgcSidecarService, PatternExecutionContext
from knhk_sidecar.api import pb
from knhk_sidecar.app import Addresses, CannotStart, Sidecar
from knhk_sidecar.config import SidecarConfig
from knhk_workflow import Unsupported
from tests.sidecar.server.client import ANY_PORT, EOF, developer

SECONDS = 60.0  # all of it takes moments; the machine may be shared
APPROVAL = json.dumps(
    {
        "id": "approval",
        "tasks": {"approve": {"required_roles": ["clerk"]}},
        "flows": [{"from": "start", "to": "approve"}, {"from": "approve", "to": "end"}],
    }
).encode()

DAEMON = """
import sys
from knhk_sidecar.app import main
from knhk_sidecar.config import load
flags = dict(pair.split("=", 1) for pair in sys.argv[1:])
sys.exit(main(load(flags=flags, environ={})))
"""


class Process:
    """A daemon in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, ready: Path) -> None:
        self.process = process
        self._ready = ready

    async def ready(self) -> Addresses:
        async with asyncio.timeout(SECONDS):
            while not self._ready.exists():
                assert self.process.returncode is None, await self.errors()
                await asyncio.sleep(0.02)
        return Addresses(**json.loads(self._ready.read_text()))

    async def errors(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@asynccontextmanager
async def daemon(data: Path, ready: Path, **flags: str) -> AsyncIterator[Process]:
    given = {
        "dev": "true",
        "data_dir": str(data),
        "address": ANY_PORT,
        "plain_address": ANY_PORT,
        "http_address": ANY_PORT,
        "metrics_address": ANY_PORT,
        "ready_file": str(ready),
        **flags,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        DAEMON,
        *(f"{key}={value}" for key, value in given.items()),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process, ready)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_ready_file_says_where_everything_is(tmp_path: Path) -> None:
    async with daemon(tmp_path / "data", tmp_path / "ready.json") as running:
        addresses = await running.ready()
        assert addresses.pid == running.process.pid
        assert set(json.loads((tmp_path / "ready.json").read_text())) >= {
            "grpc", "grpc_plain", "http", "metrics", "ca", "cert", "key", "spiffe_id", "workload_api", "pid",
        }  # fmt: skip
        assert (tmp_path / "data" / "dev" / "daemon.json").read_text() == (tmp_path / "ready.json").read_text()
        async with developer(addresses) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        for file, path, word in ((addresses.http, "/health/ready", b"true"), (addresses.metrics, "/metrics", b"knhk_")):
            assert word in await fetch(file, path)
        running.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.process.wait(), SECONDS) == 0
        assert not (tmp_path / "ready.json").exists()
        assert not (tmp_path / "data" / "dev" / "daemon.json").exists()


async def begun(addresses: Addresses, waiting: asyncio.Future[pb.WaitCaseResponse]) -> None:
    """A call that waits has reached the daemon, or is over already."""
    async with asyncio.timeout(SECONDS):
        while not waiting.done() and b"knhk_calls_waiting 1\n" not in await fetch(addresses.metrics, "/metrics"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def fetch(address: str, path: str) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    content = await reader.read()
    writer.close()
    return content


def files(directory: Path) -> dict[Path, bytes | int]:
    """What is in a directory; of the agent's socket its inode."""
    return {path: path.read_bytes() if path.is_file() else path.stat().st_ino for path in directory.iterdir()}


async def test_a_drain_tells_of_health(sidecar: Sidecar) -> None:
    async with developer(sidecar.addresses) as channel:
        sidecar.pipeline.end_streams(working=False)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert sidecar._health is not None
        sidecar._health.leave()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.read() is EOF


async def test_a_second_daemon_on_the_directory_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    async with daemon(tmp_path / "data", tmp_path / "1.json") as first:
        addresses = await first.ready()
        before = files(tmp_path / "data" / "dev")
        async with daemon(tmp_path / "data", tmp_path / "2.json") as second:
            assert await asyncio.wait_for(second.process.wait(), SECONDS) == 5
            (line,) = (json.loads(line) for line in (await second.errors()).splitlines() if "cannot_start" in line)
        assert str(tmp_path / "data" / "workflow_db") in line["problem"]
        assert "in use" in line["problem"]
        assert line["mend"]
        assert files(tmp_path / "data" / "dev") == before
        async with developer(addresses) as channel:
            assert (await pb.AdminServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=SECONDS)).engine_enabled


@pytest.mark.long
async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async with daemon(tmp_path / "a", tmp_path / "1.json") as first:
        addresses = await first.ready()
        for flag, taken in (
            ("address", addresses.grpc),
            ("http_address", addresses.http),
            ("metrics_address", addresses.metrics),
        ):
            async with daemon(tmp_path / flag, tmp_path / "2.json", **{flag: taken}) as second:
                assert await asyncio.wait_for(second.process.wait(), SECONDS) == 6
                assert taken in await second.errors()


@pytest.mark.long
async def test_sigterm_lets_running_calls_finish_and_ends_watches(tmp_path: Path) -> None:
    async with daemon(tmp_path / "data", tmp_path / "ready.json", drain_seconds="600") as running:
        addresses = await running.ready()
        async with developer(addresses) as channel:
            cases = pb.CaseServiceStub(channel)
            await pb.WorkflowServiceStub(channel).RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=APPROVAL))
            case = (await cases.RunCase(pb.RunCaseRequest(spec_id="approval"))).case
            serving = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await serving.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch = cases.WatchCase(pb.WatchCaseRequest(case_id=case.case_id))
            await watch.read()
            request = pb.WaitCaseRequest(case_id=case.case_id, timeout=Duration(seconds=2))
            waiting = asyncio.ensure_future(cases.WaitCase(request, timeout=SECONDS))
            await begun(addresses, waiting)
            running.process.send_signal(signal.SIGTERM)
            assert (await serving.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await serving.read() is EOF
            assert await serving.code() is grpc.StatusCode.OK
            while (event := await watch_end(watch)) is not None:
                assert event
            assert await watch.code() is grpc.StatusCode.UNAVAILABLE
            assert (await waiting).case.state == pb.CASE_STATE_RUNNING  # when its time was up, not cut by the drain
        assert await asyncio.wait_for(running.process.wait(), SECONDS) == 0
    async with daemon(tmp_path / "data", tmp_path / "ready.json") as again, developer(await again.ready()) as channel:
        found = await pb.CaseServiceStub(channel).GetCase(pb.GetCaseRequest(case_id=case.case_id))
        assert found.case.case_id == case.case_id


async def watch_end(watch: grpc.aio.UnaryStreamCall[pb.WatchCaseRequest, pb.WatchCaseResponse]) -> object:
    """The next message; None at the end, whatever its code."""
    try:
        message = await asyncio.wait_for(watch.read(), SECONDS)
    except grpc.aio.AioRpcError:
        return None
    return None if message is EOF else message


async def test_a_second_interrupt_ends_the_process_at_once(tmp_path: Path) -> None:
    async with daemon(tmp_path / "data", tmp_path / "ready.json", drain_seconds="600") as running:
        addresses = await running.ready()
        async with developer(addresses) as channel:
            cases = pb.CaseServiceStub(channel)
            await pb.WorkflowServiceStub(channel).RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=APPROVAL))
            case = (await cases.RunCase(pb.RunCaseRequest(spec_id="approval"))).case
            serving = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await serving.read()).status == health_pb2.HealthCheckResponse.SERVING
            waiting = asyncio.ensure_future(cases.WaitCase(pb.WaitCaseRequest(case_id=case.case_id), timeout=600))
            await begun(addresses, waiting)
            running.process.send_signal(signal.SIGINT)
            assert (await serving.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await asyncio.sleep(0.5)
            assert running.process.returncode is None
            running.process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(running.process.wait(), SECONDS) == 130
            with pytest.raises(grpc.aio.AioRpcError):
                await waiting


async def test_health_has_a_status_for_each_service(sidecar: Sidecar) -> None:
    async with grpc.aio.insecure_channel(sidecar.addresses.grpc_plain) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", *(service.full_name for service in pb.SERVICES)):
            found = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()
        assert len((await health.List(health_pb2.HealthListRequest())).statuses) == 1 + len(pb.SERVICES)


async def test_without_engine_the_daemon_lives_and_says_so(tmp_path: Path) -> None:
    config = SidecarConfig(
        dev=True,
        workflow_enabled=False,
        data_dir=str(tmp_path),
        address=ANY_PORT,
        plain_address=ANY_PORT,
        http_address="",
        metrics_address="",
    )
    async with Sidecar(config) as running, developer(running.addresses) as channel:
        assert not (await pb.AdminServiceStub(channel).GetStatus(pb.GetStatusRequest())).engine_enabled
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb.CaseServiceStub(channel).GetCase(pb.GetCaseRequest(case_id="c"))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_start_that_fails_leaves_nothing_behind(tmp_path: Path, sidecar: Sidecar) -> None:
    config = SidecarConfig(
        dev=True,
        data_dir=str(tmp_path / "other"),
        address=ANY_PORT,
        plain_address=ANY_PORT,
        http_address=sidecar.addresses.http,
        metrics_address="",
    )
    failing = Sidecar(config)
    with pytest.raises(CannotStart):
        await failing.start()
    async with Sidecar(dataclasses.replace(config, http_address=ANY_PORT)) as running:
        assert running.addresses.pid == os.getpid()


async def test_a_service_can_be_embedded_without_a_daemon(tmp_path: Path) -> None:
    async with KgcSidecarService(SidecarConfig(workflow_db_path=str(tmp_path / "db"))) as service:
        context = PatternExecutionContext(case_id="c", workflow_id="w", variables={})
        result = await service.execute_workflow_pattern(1, context)
        assert result.success
        engine = service.workflow_engine()
        assert engine is not None
        around = KgcSidecarService.with_workflow_engine(service.config, engine)
        assert around.workflow_engine() is engine
        assert (await around.execute_workflow_pattern(2, context)).success
    off = KgcSidecarService(SidecarConfig(workflow_enabled=False))
    assert off.workflow_engine() is None
    with pytest.raises(Unsupported):
        await off.execute_workflow_pattern(1, context)


def quiet(data: Path, **more: str) -> SidecarConfig:
    """A daemon on any port, with a store below `data`."""
    nothing = {"address": ANY_PORT, "plain_address": "", "http_address": "", "metrics_address": ""}
    return SidecarConfig(dev=True, data_dir=str(data), drain_seconds=2, **{**nothing, **more})  # type: ignore[arg-type]  # texts


async def test_one_part_that_does_not_stop_keeps_neither_the_others_nor_the_store(tmp_path: Path) -> None:
    stopped: list[str] = []

    async def broken() -> None:
        raise RuntimeError("does not stop")

    async def other() -> None:
        stopped.append("other")

    async with Sidecar(quiet(tmp_path)) as first:
        first._stops += [broken, other]
        failing = Sidecar(quiet(tmp_path / "failing", http_address=first.addresses.grpc))
        failing._stops += [broken, other]
        with pytest.raises(CannotStart, match="cannot listen"):
            await failing.start()
        assert stopped == ["other"]
        await failing.stop()
        assert stopped == ["other"]
    assert stopped == ["other", "other"]
    for data in (tmp_path, tmp_path / "failing"):
        async with Sidecar(quiet(data)) as again:
            assert again.ready()[0]


async def test_what_never_started_can_be_stopped(tmp_path: Path) -> None:
    never = Sidecar(quiet(tmp_path))
    await never.stop()
    await never.stop()


async def test_a_level_for_a_while_ends_with_the_lasting_one(sidecar: Sidecar) -> None:
    async def level(name: str, seconds: float = 0.0) -> str:
        request = pb.SetLogLevelRequest(level=name)
        if seconds:
            request.duration.FromMilliseconds(int(seconds * 1000))
        return (await admin.SetLogLevel(request)).previous_level

    async with developer(sidecar.addresses) as channel:
        admin = pb.AdminServiceStub(channel)
        await level("debug", 30)
        await level("debug", 0.1)
        async with asyncio.timeout(5):
            while sidecar._log.level != "info":  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
        await level("debug", 0.1)
        await level("warning")
        await asyncio.sleep(0.3)
        assert sidecar._log.level == "warning"
        await level("info")


async def test_what_is_wrong_with_the_settings_is_told_in_the_format_that_they_ask_for(tmp_path: Path) -> None:
    file = tmp_path / "connectors.toml"
    file.write_text("nothing = 1")
    flags = {"connectors_file": str(file), "log_format": "json"}
    async with daemon(tmp_path / "data", tmp_path / "ready.json", **flags) as refused:
        assert await asyncio.wait_for(refused.process.wait(), 20) == 2
        (line,) = (json.loads(line) for line in (await refused.errors()).splitlines() if "cannot_start" in line)
    assert "connectors" in line["problem"]
