"""A store with a bit of everything that the audit tells of, and its exports."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from knhk_workflow import (
    CallMeta,
    Checkpoint,
    Operation,
    PurgeRequest,
    ScheduleSpec,
    SigningKey,
    StateStore,
    WorkflowEngine,
)

ALICE = "spiffe://example.org/alice"
BOB = "spiffe://example.org/bob"
SERVICE = "/knhk.sidecar.v1.CaseService/"
SIGN = {
    "id": "sign",
    "tasks": {"sign": {"required_roles": ["clerk"]}},
    "flows": [{"from": "start", "to": "sign"}, {"from": "sign", "to": "end"}],
}


def by(principal: str, method: str, tenant: str = "default", request_id: str = "") -> CallMeta:
    """A call of this method."""
    return CallMeta(tenant, principal, method=SERVICE + method, request_id=request_id, trace_id="ab" * 16)


def read_of(principal: str, resource: str, now: int, outcome: str = "OK", reason: str = "") -> Operation:
    """A call that changes nothing."""
    method = "knhk.sidecar.v1.CaseService/GetCase"
    return Operation(now, principal, method, resource, outcome, reason, peer="ipv4:10.0.0.1:7")


@dataclass(frozen=True)
class History:
    """A store that is closed, its key, what was exported from it, and checkpoints of its way: early and at the end."""

    path: Path
    key: SigningKey
    plain: bytes
    full: bytes
    early: tuple[Checkpoint, ...]
    late: tuple[Checkpoint, ...]


async def lived(engine: WorkflowEngine, cases: int) -> None:
    """Workflows, cases of two tenants, one of them purged, a schedule, a signal, reads and denials."""
    for tenant in ("default", "other"):
        await engine.register_workflow(SIGN, meta=by(ALICE, "RegisterWorkflow", tenant))
    for number in range(cases):
        tenant = "other" if number % 3 == 2 else "default"
        await engine.run_case("sign", {"n": number}, case_id=f"case-{number}", meta=by(ALICE, "RunCase", tenant))
    await engine.cancel_case("case-1", "enough", meta=by(BOB, "CancelCase"))
    await engine.purge_cases(PurgeRequest(case_ids=("case-1",)), meta=by(BOB, "PurgeCases"))
    await engine.create_schedule("nightly", ScheduleSpec("sign", "0 3 * * *"), meta=by(ALICE, "CreateSchedule"))
    await engine.trigger_case("hello", key="nobody", meta=by(ALICE, "TriggerCase"))
    for number in range(5):
        engine.record_operation(read_of(BOB, f"cases/case-{number}", engine.now()), "default")
    for _ in range(7):
        why = "UNAUTHENTICATED: two URI names"
        refused = read_of("anonymous", "cases/case-0", engine.now(), "UNAUTHENTICATED", why)
        engine.record_operation(refused, "default")


@pytest.fixture(scope="package")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    path = tmp_path_factory.mktemp("audit") / "store"

    async def live() -> History:
        key = SigningKey.generate()
        async with WorkflowEngine(StateStore(str(path))) as engine:
            engine.sign_with(key)
            await engine.register_workflow({"id": "first", "tasks": {}}, meta=by(ALICE, "RegisterWorkflow"))
            await engine.run_case("first", case_id="first", meta=by(ALICE, "RunCase"))
            early = tuple(await engine.audit_checkpoints())
            await lived(engine, 12)
        async with WorkflowEngine(StateStore(str(path))) as engine:
            engine.sign_with(key)
            plain = b"".join([piece async for piece in engine.export_audit()])
            full = b"".join([piece async for piece in engine.export_audit(full=True)])
            late = tuple(await engine.audit_checkpoints())
        return History(path, key, plain, full, early, late)

    return asyncio.run(live())
