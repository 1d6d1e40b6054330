"""All methods x all roles x tenants, over gRPC and REST, unary and streams, reflection and health: every decision is
what the policy says. The expectation is the built-in roles' sets and the table of permissions, nothing else."""

from __future__ import annotations

import asyncio
import http.client
import re
from collections.abc import Mapping

import grpc.aio
import pytest
from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule

from knhk_sidecar.api import pb
from knhk_sidecar.api.health import SERVICE as HEALTH
from knhk_sidecar.api.reflection import NAME_OF_TODAY
from knhk_sidecar.api.reflection import SERVICE as REFLECTION
from knhk_sidecar.identity.policy_document import BUILT_IN_ROLES
from knhk_sidecar.pipeline import Method
from knhk_sidecar.pipeline.call import methods_of
from knhk_sidecar.pipeline.permissions import PERMISSIONS, Permission
from tests.sidecar.policy.daemon import NO_ROLE, ROLES, TENANTS, Guarded
from tests.sidecar.server.client import code_of

METHODS: Mapping[str, Method] = {
    path: method
    for service, name in (*((each, "") for each in (*pb.SERVICES, HEALTH, REFLECTION)), (REFLECTION, NAME_OF_TODAY))
    for path, method in methods_of(service, name).items()
}
AT_ONCE = 24
NEVER = {"UNAUTHENTICATED", "UNKNOWN", "INTERNAL", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}


def allowed(role: str, path: str) -> bool:
    permission = PERMISSIONS[path]
    return permission is Permission.HEALTH or (role != NO_ROLE and permission in BUILT_IN_ROLES[role].permissions)


def test_the_matrix_has_every_method() -> None:
    assert set(METHODS) == set(PERMISSIONS)


@pytest.mark.parametrize("tenant", TENANTS)
@pytest.mark.parametrize("role", ROLES)
async def test_grpc(daemon: Guarded, role: str, tenant: str) -> None:
    """An empty request: who is let in is told that something is missing, or is answered; nobody else is."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(channel: grpc.aio.Channel, path: str) -> str:
        async with room:
            return await code_of(channel, METHODS[path], let_in=allowed(role, path))

    async with daemon.as_role(role, tenant) as channel:
        codes = dict(zip(METHODS, await asyncio.gather(*(one(channel, path) for path in METHODS)), strict=True))
    wrong = {path: code for path, code in codes.items() if (code != "PERMISSION_DENIED") != allowed(role, path)}
    assert wrong == {}
    assert {path: code for path, code in codes.items() if code in NEVER} == {}


def routes() -> list[tuple[str, str, str]]:
    """Verb, path with example ids, and RPC path of every route of the contract."""
    found = []
    for service in pb.SERVICES:
        for method in service.methods:
            rule: HttpRule = method.GetOptions().Extensions[annotations_pb2.http]  # type: ignore[index]  # an untyped extension
            for each in (rule, *rule.additional_bindings):
                verb = each.WhichOneof("pattern")
                if verb is not None:
                    path = re.sub(r"\{[^}]*\}", "1", getattr(each, verb))
                    found.append((verb.upper(), path, f"/{service.full_name}/{method.name}"))
    return found


def status_of(connection: http.client.HTTPSConnection, verb: str, path: str) -> int:
    """Only the head of the answer is read: some are streams."""
    body = b"{}" if verb in ("POST", "PUT", "PATCH") else None
    connection.request(verb, path, body, {"content-type": "application/json", "host": "localhost"})
    answer = connection.getresponse()
    if "event-stream" in (answer.getheader("content-type") or ""):
        connection.close()
    else:
        answer.read()
    return answer.status


@pytest.mark.parametrize("role", ROLES)
async def test_rest(daemon: Guarded, role: str) -> None:
    found = routes()
    assert len({path for _, _, path in found}) > 80

    def ask() -> dict[tuple[str, str, str], int]:
        connection = daemon.rest(f"/role/{role}/red")
        codes = {route: status_of(connection, *route[:2]) for route in found}
        for path in ("/health", "/health/ready", "/api/v1/health/live"):
            assert status_of(connection, "GET", path) == 200
        codes["GET", "/openapi.json", "/knhk.sidecar.v1.AdminService/GetStatus"] = status_of(
            connection, "GET", "/openapi.json"
        )
        connection.close()
        return codes

    codes = await asyncio.to_thread(ask)
    assert {route: code for route, code in codes.items() if (code != 403) != allowed(role, route[2])} == {}
    assert {route: code for route, code in codes.items() if code == 401 or (code >= 500 and code != 501)} == {}


async def test_without_a_certificate_there_is_health_only(daemon: Guarded) -> None:
    """The listener for probes has the same pipeline behind it."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(channel: grpc.aio.Channel, path: str) -> str:
        async with room:
            return await code_of(channel, METHODS[path], let_in=PERMISSIONS[path] is Permission.HEALTH)

    async with grpc.aio.insecure_channel(daemon.ready["health"]) as channel:
        codes = dict(zip(METHODS, await asyncio.gather(*(one(channel, path) for path in METHODS)), strict=True))
    for path, code in codes.items():
        assert code == ("OK" if PERMISSIONS[path] is Permission.HEALTH else "UNAUTHENTICATED"), path
