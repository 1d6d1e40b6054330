"""The policy of a running daemon: another file, explanations, and what the command line says of both."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.identity.policy_document import BUILT_IN_ROLES
from tests.e2e.sidecar import run
from tests.sidecar.policy.daemon import Guarded, document, who
from tests.sidecar.policy.test_document import SAMPLE

CALL_SECONDS = 60


@pytest.fixture
async def admin(daemon: Guarded) -> AsyncIterator[pb.AdminServiceAsyncStub]:
    async with daemon.as_role("admin", "red") as channel:
        yield pb.AdminServiceStub(channel)


async def health(admin: pb.AdminServiceAsyncStub) -> pb.ComponentHealth:
    status = await admin.GetStatus(pb.GetStatusRequest(omit_document_schema=True), timeout=CALL_SECONDS)
    return next(each for each in status.components if each.name == "policy")


async def becomes(admin: pb.AdminServiceAsyncStub, state: pb.HealthState.ValueType) -> pb.ComponentHealth:
    async with asyncio.timeout(CALL_SECONDS):
        while True:
            found = await health(admin)
            if found.state == state:
                return found
            await asyncio.sleep(0.05)


async def test_another_file_while_running(daemon: Guarded, admin: pb.AdminServiceAsyncStub) -> None:
    """A bad one is told and changes nothing; a good one ends the streams of who has lost the right, over gRPC and REST,
    and leaves the others."""
    viewer, worker = daemon.as_role("viewer", "red"), daemon.as_role("admin", "blue")
    watching = pb.CaseServiceStub(viewer).WatchCases(pb.WatchCasesRequest(from_start=True))
    staying = pb.CaseServiceStub(worker).WatchCases(pb.WatchCasesRequest(from_start=True))
    ended = asyncio.ensure_future(end_of(watching))
    other = asyncio.ensure_future(end_of(staying))
    rest = asyncio.ensure_future(asyncio.to_thread(events_over_rest, daemon))

    daemon.replace("version: 1\nrules: [{id: broken, effect: secret-word}]")
    told = await becomes(admin, pb.HEALTH_STATE_DEGRADED)
    assert str(daemon.policy) in told.message
    assert "in force" in told.message
    assert "secret-word" not in told.message  # /health tells it to anybody
    whole = await admin.GetPolicy(pb.GetPolicyRequest(), timeout=CALL_SECONDS)
    assert ("secret-word" in whole.problem, whole.origin) == (True, str(daemon.policy))
    assert not ended.done()

    gone: dict[str, object] = {
        "id": "viewers-are-gone",
        "who": {"spiffe_prefix": "spiffe://shop.example/role/viewer"},
        "effect": "deny",
        "permissions": ["*"],
    }
    try:
        daemon.replace(document(gone))
        assert (await asyncio.wait_for(ended, CALL_SECONDS)).code() is grpc.StatusCode.PERMISSION_DENIED
        assert "PERMISSION_DENIED" in await asyncio.wait_for(rest, CALL_SECONDS)
        assert "viewers-are-gone" not in rest.result()
        await becomes(admin, pb.HEALTH_STATE_HEALTHY)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb.CaseServiceStub(viewer).ListCases(pb.ListCasesRequest(), timeout=CALL_SECONDS)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "viewers-are-gone" not in (caught.value.details() or "")
        assert '"rule":"viewers-are-gone"' in daemon.log
        assert not other.done()
    finally:
        daemon.replace(document())
        async with asyncio.timeout(CALL_SECONDS):
            while True:
                now = await admin.GetPolicy(pb.GetPolicyRequest(), timeout=CALL_SECONDS)
                if now.digest == whole.digest:
                    break
                await asyncio.sleep(0.05)
        staying.cancel()
        await asyncio.wait([other])
        await viewer.close(None)
        await worker.close(None)


async def end_of(
    watch: grpc.aio.UnaryStreamCall[pb.WatchCasesRequest, pb.WatchCasesResponse],
) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in watch:
            pass
    return caught.value


def events_over_rest(daemon: Guarded) -> str:
    """All of a server-sent stream, which ends when policy ends it."""
    connection = daemon.rest("/role/viewer/red")
    connection.request("GET", "/api/v1/cases:watch?from_start=true", headers={"host": "localhost"})
    answer = connection.getresponse()
    assert answer.status == 200
    text = answer.read().decode()
    connection.close()
    return text


# --------------------------------------------------------------------------------------------------------- explanation
async def test_the_daemon_explains_itself(admin: pb.AdminServiceAsyncStub) -> None:
    question = pb.ExplainPolicyRequest(principal=who("viewer", "red"), method="CreateCase")
    answer = await admin.ExplainPolicy(question, timeout=CALL_SECONDS)
    assert (answer.allowed, answer.rule, answer.tenant) == (False, "", "red")
    assert (list(answer.roles), answer.permission) == (["viewer"], "case.write")
    assert {each.rule for each in answer.rules} == {"narrowed", "people", *(f"role-{name}" for name in BUILT_IN_ROLES)}
    assert [each.outcome for each in answer.rules if each.rule == "role-viewer"] == ["silent"]
    assert "application, operator" in answer.needed[0].replace("admin, ", "")
    own = await admin.ExplainPolicy(pb.ExplainPolicyRequest(method="Backup"), timeout=CALL_SECONDS)
    assert (own.allowed, own.rule) == (True, "role-admin")


@pytest.mark.parametrize(
    ("question", "field"),
    [
        (pb.ExplainPolicyRequest(method="DropEverything"), "method"),
        (pb.ExplainPolicyRequest(method=""), "method"),
        (pb.ExplainPolicyRequest(method="GetCase", principal="ann"), "principal"),
        (pb.ExplainPolicyRequest(method="GetCase", resource="tables/x"), "resource"),
        (pb.ExplainPolicyRequest(method="GetCase", resource="patterns/x"), "resource"),
        (pb.ExplainPolicyRequest(method="GetCase", claims_json=b"[]"), "claims_json"),
        (pb.ExplainPolicyRequest(method="GetCase", claims_json=b'{"a":1,"a":2}'), "claims_json"),
    ],
)
async def test_names_that_mean_nothing_are_refused(
    admin: pb.AdminServiceAsyncStub, question: pb.ExplainPolicyRequest, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await admin.ExplainPolicy(question, timeout=CALL_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (caught.value.details() or "")


@pytest.mark.parametrize("name", ["GetCase", "CaseService/GetCase", "knhk.sidecar.v1.CaseService.GetCase"])
async def test_methods_go_by_several_names(admin: pb.AdminServiceAsyncStub, name: str) -> None:
    full = name if name.startswith(("knhk", "GetCase")) else f"/knhk.sidecar.v1.{name}"
    answer = await admin.ExplainPolicy(pb.ExplainPolicyRequest(method=full), timeout=CALL_SECONDS)
    assert answer.permission == "case.read"


# ------------------------------------------------------------------------------------------------------- command line
def cli(daemon: Guarded, role: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    svid = daemon.svid(f"/role/{role}/red")
    place = ["--address", daemon.ready["grpc"], "--ca", str(daemon.authority.ca), "--cert", str(svid.cert)]
    return run(*arguments, *place, "--key", str(svid.key), "--server-name", "localhost")


def test_the_command_line_asks_the_daemon(daemon: Guarded) -> None:
    asked = ("policy", "explain", "--principal", who("worker", "red"), "--method", "ResolveIncident")
    done = cli(daemon, "auditor", *asked)
    assert done.returncode == 0, done.stderr
    for told in ("denied: no rule allows it", "case.operate", "role-worker", "What would be needed:"):
        assert told in done.stdout
    denied = cli(daemon, "worker", *asked)
    assert denied.returncode == 4
    assert "role-" not in denied.stderr
    shown = cli(daemon, "auditor", "policy", "show")
    assert all(text in shown.stdout for text in ("role-admin", str(daemon.policy), "backup"))


def test_the_command_line_asks_a_file() -> None:
    line = ["policy", "explain", "--file", str(SAMPLE), "--principal", "jwt:https://idp.shop.example#ann"]
    done = run(*line, "--method", "CompleteWorkItem", "--claims", '{"groups": ["clerks"]}', "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["allowed"], told["rule"], told["tenant"]) == (True, "clerks", "shop")
    assert told["work_roles"] == ["clerks"]


def test_the_command_line_finds_everything_that_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(document({"id": "X", "who": {"anyone": True}, "effect": "maybe"}))
    done = run("policy", "validate", str(bad))
    assert done.returncode == 1
    assert "rules[8].id" in done.stderr
    assert "rules[8].effect" in done.stderr


# ---------------------------------------------------------------------------------------------------------- narrowing
async def test_narrowing_holds_over_grpc_and_rest(daemon: Guarded) -> None:
    """What is in the path of a REST call is in the request all the same. What is allowed does not exist here."""
    async with daemon.channel("/narrow/red") as channel:
        cases = pb.CaseServiceStub(channel)
        for case_id, code in (("n-1", "NOT_FOUND"), ("m-1", "PERMISSION_DENIED")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cases.GetCase(pb.GetCaseRequest(case_id=case_id), timeout=CALL_SECONDS)
            assert caught.value.code().name == code

    def ask() -> dict[str, int]:
        connection = daemon.rest("/narrow/red")
        codes = {}
        for path in (
            "cases/n-1",
            "cases/m-1",
            "cases/n-1/history",
            "cases",
            "cases?filter.case_id_prefix=n-",
            "workflows",
        ):
            connection.request("GET", f"/api/v1/{path}", headers={"host": "localhost"})
            answer = connection.getresponse()
            answer.read()
            codes[path] = answer.status
        connection.close()
        return codes

    assert await asyncio.to_thread(ask) == {
        "cases/n-1": 404,
        "cases/m-1": 403,
        "cases/n-1/history": 404,
        "cases": 403,
        "cases?filter.case_id_prefix=n-": 200,
        "workflows": 403,
    }
