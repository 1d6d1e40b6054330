"""Memory and disk of a real daemon: what is refused, what goes on, and what health says."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import grpc
import httpx2
import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.app import Sidecar
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.pipeline.memory import MIB, resident_bytes
from tests.sidecar.limits.conftest import until
from tests.sidecar.server.client import ANY_PORT, developer

PIECE_MB = 64  # what is as large as this is given back to the system as soon as it is free
DOCUMENT = json.dumps(
    {
        "id": "two",
        "tasks": {"a": {"required_roles": ["clerk"]}, "b": {"required_roles": ["clerk"]}},
        "flows": [{"from": "start", "to": "a"}, {"from": "a", "to": "b"}, {"from": "b", "to": "end"}],
    }
).encode()


def settings(path: Path, **more: float) -> SidecarConfig:
    return SidecarConfig(
        dev=True,
        data_dir=str(path),
        address=ANY_PORT,
        plain_address=ANY_PORT,
        http_address=ANY_PORT,
        metrics_address="",
        drain_seconds=2,
        **more,  # type: ignore[arg-type]  # of the right types
    )


async def health(sidecar: Sidecar) -> tuple[int, str, dict[str, dict[str, str]]]:
    async with httpx2.AsyncClient() as http:
        answer = await http.get(f"http://{sidecar.addresses.http}/health")
        body = answer.json()
        return answer.status_code, body["status"], body["components"]


async def test_near_the_memory_limit_work_is_finished_and_none_begun(tmp_path: Path) -> None:
    gc.collect()
    now = resident_bytes()
    limit, soft = now + 300 * MIB, now + 150 * MIB
    config = settings(tmp_path, memory_limit_mb=limit // MIB, memory_soft_percent=100 * soft / limit)
    async with Sidecar(config) as sidecar, developer(sidecar.addresses) as channel:
        memory = sidecar.memory
        assert memory is not None
        assert not memory.short
        cases, work = pb.CaseServiceStub(channel), pb.WorkItemServiceStub(channel)
        await pb.WorkflowServiceStub(channel).RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=DOCUMENT))
        begun = await cases.RunCase(pb.RunCaseRequest(spec_id="two"), timeout=60)
        ballast: list[bytes] = []
        while resident_bytes() < soft:  # what tests before this one have left may go away at any time
            ballast.append(b"\1" * (PIECE_MB * MIB))
        await until(lambda: memory.short)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cases.RunCase(pb.RunCaseRequest(spec_id="two"), timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "memory" in str(caught.value.details())
        assert sidecar.counters.refusals()["MEMORY_SHORT"] == 1
        item = begun.open_work_items[0].item_id
        done = await work.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=item), timeout=60)
        assert done.case_state == pb.CASE_STATE_RUNNING
        code, status, components = await health(sidecar)
        assert (code, status) == (200, "Degraded"), "it still wants calls"
        assert "new work is refused" in components["memory"]["detail"]
        assert "knhk_memory_used_bytes" in sidecar.counters.prometheus()
        ballast.clear()
        await until(lambda: not memory.short)
        await cases.RunCase(pb.RunCaseRequest(spec_id="two"), timeout=60)
        assert (await health(sidecar))[1] == "Healthy"


async def test_a_volume_that_fills_up_shows_in_health(tmp_path: Path) -> None:
    async with Sidecar(settings(tmp_path, disk_low_mb=1 << 40)) as sidecar:
        code, status, components = await health(sidecar)
        assert (code, status) == (200, "Degraded")
        assert components["disk"]["status"] == "Degraded"
        assert "MiB left" in components["disk"]["detail"]
        assert components["store"]["status"] == "Healthy"
