"""kill -9 in the middle of work: every effect that is there has its entry, and no entry is without its effect."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from knhk_workflow import AuditEntry, AuditFilter, Page, StateStore, WorkflowEngine, WorkflowView
from tests.audit.conftest import SIGN
from tests.cli.daemon import Daemon, running

CALLERS = 4
WORKED = 150  # acknowledged effects before the kill


def _work(daemon: Daemon, caller: int, done: list[str], stop: threading.Event) -> None:
    """Register workflows and run cases until the daemon is gone."""
    with daemon.channel() as channel:
        workflows, cases = pb.WorkflowServiceStub(channel), pb.CaseServiceStub(channel)
        number = 0
        while not stop.is_set():
            number += 1
            name = f"{caller}-{number}"
            document = json.dumps({**SIGN, "id": f"w{name}"}).encode()
            try:
                workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=document), timeout=60)
                cases.RunCase(pb.RunCaseRequest(spec_id=f"w{name}", case_id=f"c{name}"), timeout=60)
            except grpc.RpcError:
                return
            done += [f"workflows/w{name}", f"cases/c{name}"]


async def _audited(engine: WorkflowEngine, method: str) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page: Page[AuditEntry] = await engine.list_audit(AuditFilter(method=method), page_size=500, page_token=token)
        found += [entry.operation.resource for entry in page.items if entry.operation.outcome == "OK"]
        token = page.next_token
        if not token:
            return sorted(found)


async def _registered(engine: WorkflowEngine) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page: Page[WorkflowView] = await engine.list_workflows(page_size=500, page_token=token)
        found += [f"workflows/{view.spec_id}" for view in page.items]
        token = page.next_token
        if not token:
            return sorted(found)


@pytest.mark.long
async def test_effects_and_entries_are_the_same_after_a_kill(tmp_path: Path) -> None:
    done: list[str] = []
    stop = threading.Event()
    with running(tmp_path / "data") as daemon:
        callers = [threading.Thread(target=_work, args=(daemon, number, done, stop)) for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        until = time.monotonic() + 120
        while len(done) < WORKED and time.monotonic() < until:
            time.sleep(0.01)  # noqa: ASYNC251  # nothing else runs in this loop
        daemon.process.kill()
        daemon.process.wait()
        stop.set()
        for caller in callers:
            caller.join()
    assert len(done) >= WORKED
    async with WorkflowEngine(StateStore(str(tmp_path / "data" / "workflow_db"), create=False)) as engine:
        registered = [name for name in await _registered(engine) if name.startswith("workflows/w")]
        entries = [name for name in await _audited(engine, "RegisterWorkflow") if name.startswith("workflows/w")]
        assert entries == registered
        assert {name for name in done if name.startswith("workflows/")} <= set(registered)
        ran = await _audited(engine, "RunCase")
        assert {name for name in done if name.startswith("cases/")} <= set(ran)
        assert len(ran) == len(set(ran))
        examination = await engine.verify_store()
        assert not examination.findings
