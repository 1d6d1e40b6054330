"""The Workload API: our client against the agent of developer mode, over a real socket.

That agent stands in for SPIRE's: it speaks the same protocol and can be told what to say.
"""

from __future__ import annotations

import asyncio
import json
import socket as sockets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from spiffe._proto import workload_pb2

from knhk_sidecar.api import pb
from knhk_sidecar.app import CannotStart, Sidecar
from knhk_sidecar.bearer import AgentToken, NoToken
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.identity import dev_ca
from knhk_sidecar.identity.dev_agent import DevAgent
from knhk_sidecar.identity.spiffe_id import SpiffeId, TrustDomain
from knhk_sidecar.identity.tls import FileSource, InvalidMaterial, TlsFiles
from knhk_sidecar.identity.workload_api import HEADER, SERVICE, parse_x509, target_of, workload_api
from knhk_sidecar.identity.workload_source import Agent, WorkloadSource
from tests.conftest import Budget
from tests.sidecar.server.client import ANY_PORT, developer, secure

OWN = TrustDomain("a.org")
OTHER = TrustDomain("b.org")
ROTATION = 0.25  # s between two SVIDs
ROTATIONS = 3  # SVIDs that are seen, at least
PATIENCE = 60.0


async def until(true: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            found = true()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


def authority(directory: Path, domain: TrustDomain = OWN) -> dev_ca.DevAuthority:
    return dev_ca.open_authority(directory, domain)


def pem_of(ours: dev_ca.DevAuthority, name: str = "client", path: str = "/client") -> tuple[bytes, bytes, bytes]:
    """Authority, certificate and key of a client."""
    svid = ours.issue(name, path)
    return ours.ca.read_bytes(), svid.cert.read_bytes(), svid.key.read_bytes()


@asynccontextmanager
async def serving(agent: DevAgent) -> AsyncIterator[DevAgent]:
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop()


def config_for(agent: DevAgent, **settings: str) -> SidecarConfig:
    base = SidecarConfig(
        workflow_db_path=":memory:",
        spiffe_enabled=True,
        spiffe_socket=agent.endpoint,
        address=ANY_PORT,
        health_address=ANY_PORT,
        http_address="",
        metrics_address="",
        drain_seconds=5,
        rate_limit_enabled=False,
    )
    return replace(base, **settings)  # type: ignore[arg-type]  # settings of type str only


async def principal(channel: aio.Channel) -> str:
    request = pb.GetStatusRequest(omit_document_schema=True)
    return (await pb.AdminServiceStub(channel).GetStatus(request, timeout=PATIENCE)).principal


async def code(channel: aio.Channel) -> str:
    try:
        return await principal(channel)
    except aio.AioRpcError as error:
        return str(error.code().name)


async def health(sidecar: Sidecar) -> str:
    """What a kubelet is told."""
    async with aio.insecure_channel(sidecar.addresses.health) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


async def healthy(sidecar: Sidecar, status: str) -> bool:
    return await health(sidecar) == status


async def ready(sidecar: Sidecar) -> bool:
    return sidecar.ready()[0]


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [("unix:///a/b.sock", "unix:/a/b.sock"), ("unix:/a/b", "unix:/a/b"), ("tcp://127.0.0.1:8", "127.0.0.1:8")],
)
def test_endpoints(endpoint: str, target: str) -> None:
    assert target_of(endpoint) == target


def test_what_is_no_endpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="Workload API"):
        target_of("/a/b.sock")


async def test_everything_that_an_agent_says(tmp_path: Path) -> None:
    ours = authority(tmp_path)
    async with serving(DevAgent(ours, tmp_path / "s", path="/web")) as agent, workload_api(agent.endpoint) as api:
        async with aclosing(api.x509()) as states:
            material = (await anext(states)).of("")
            assert str(material.spiffe_id) == "spiffe://a.org/web"
            assert material.ca == ours.ca.read_bytes()
            agent.renew(ours)
            assert (await anext(states)).of("spiffe://a.org/web").cert != material.cert
        async with aclosing(api.jwt_bundles()) as bundles:
            assert b'"kid":"' in (await anext(bundles))[OWN]
        assert (await asyncio.to_thread(AgentToken(agent.endpoint, "x"))).count(".") == 2
        with pytest.raises(NoToken, match="only identity"):
            await asyncio.to_thread(AgentToken(agent.endpoint, "x", "spiffe://a.org/somebody-else"))


async def test_requests_without_the_header_are_refused(tmp_path: Path) -> None:
    """A browser or a proxy can be made to connect; it cannot be made to send the header."""
    agent = DevAgent(authority(tmp_path), tmp_path / "s")
    async with serving(agent), aio.insecure_channel(target_of(agent.endpoint)) as channel:
        for metadata in (None, ((HEADER[0][0], "false"),)):
            with pytest.raises(aio.AioRpcError) as refused:
                await channel.unary_stream(f"/{SERVICE}/FetchX509SVID", bytes, bytes)(b"", metadata=metadata).read()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_id_that_is_wanted_has_to_be_among_them(tmp_path: Path) -> None:
    async with serving(DevAgent(authority(tmp_path), tmp_path / "s")) as agent:
        with pytest.raises(InvalidMaterial, match=r"no SVID for spiffe://a.org/x, only for spiffe://a.org/dev/client"):
            await Agent(agent.endpoint, "spiffe://a.org/x").first()


@pytest.mark.long
async def test_rotation_of_svid_and_authority_fails_no_call(tmp_path: Path, budget: Budget) -> None:
    """A new SVID every 250 ms and a new authority now and then, each known to both sides before it signs."""
    old, new = authority(tmp_path / "old"), authority(tmp_path / "new")
    callers = {"old": pem_of(old), "new": pem_of(new)}
    both = b"".join(each[0] for each in callers.values())
    calls = max(1_000, budget.steps // 20)
    agent = DevAgent(old, tmp_path / "s", path="/sidecar", dns=("localhost",))
    async with serving(agent), Sidecar(config_for(agent)) as sidecar:
        agent.renew(old, new)
        await until(lambda: sidecar._tls is not None and new.ca.read_bytes() in sidecar._tls.material.ca)
        done, seen = 0, set[bytes]()

        async def caller(which: str) -> None:
            nonlocal done
            while done < calls or len(seen) < ROTATIONS:
                _, cert, key = callers[which]
                async with secure(sidecar.addresses.grpc, both, cert, key) as channel:
                    for _ in range(100):
                        assert await principal(channel) == "spiffe://a.org/client"
                        done += 1

        async def rotate() -> None:
            for turn in count():
                await asyncio.sleep(ROTATION)
                agent.renew(*((old, new) if turn % 8 < 4 else (new, old)))
                assert sidecar._tls is not None
                seen.add(sidecar._tls.material.cert)

        rotation = asyncio.create_task(rotate())
        await asyncio.gather(*(caller(which) for which in ("old", "new") * 4))
        rotation.cancel()
        print(f"{done} calls, {len(seen)} SVIDs, 0 failed")


async def test_an_authority_that_is_gone_counts_no_more_on_open_connections(tmp_path: Path) -> None:
    old, new = authority(tmp_path / "old"), authority(tmp_path / "new")
    agent = DevAgent(old, tmp_path / "s", path="/sidecar", dns=("localhost",))
    async with serving(agent), Sidecar(config_for(agent)) as sidecar:
        agent.renew(old, new)
        await until(lambda: sidecar._tls is not None and new.ca.read_bytes() in sidecar._tls.material.ca)
        async with (
            secure(sidecar.addresses.grpc, *pem_of(old)) as before,
            secure(sidecar.addresses.grpc, new.ca.read_bytes(), *pem_of(new)[1:]) as after,
        ):
            assert await code(before) == "spiffe://a.org/client"
            agent.renew(new)

            async def gone() -> bool:
                return await code(before) == "UNAUTHENTICATED"

            await until(gone)
            assert await code(after) == "spiffe://a.org/client"
            async with secure(sidecar.addresses.grpc, new.ca.read_bytes(), *pem_of(old)[1:]) as again:
                assert await code(again) == "UNAVAILABLE"  # a new connection is refused by TLS


async def test_a_new_svid_is_shown_at_once(tmp_path: Path) -> None:
    """To the next connection, over gRPC and REST; how soon is printed."""
    ours = authority(tmp_path)
    agent = DevAgent(ours, tmp_path / "s", path="/sidecar", dns=("localhost",))
    took = []
    async with serving(agent), Sidecar(config_for(agent, http_address=ANY_PORT)) as sidecar:
        for address in (sidecar.addresses.grpc, sidecar.addresses.http) * 5:
            before = await shown(address, ours)
            began = time.perf_counter()
            agent.renew(ours)

            async def other(address: str = address, before: bytes = before) -> bool:
                return await shown(address, ours) != before

            await until(other)
            took.append(time.perf_counter() - began)
    print(f"a new SVID is shown after {max(took) * 1000:.0f} ms at most")


async def shown(address: str, ours: dev_ca.DevAuthority) -> bytes:
    """The certificate that a new connection gets to see."""
    context = ssl.create_default_context(cafile=str(ours.ca))
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    assert isinstance(certificate, bytes)
    return certificate


async def test_the_agent_may_die_and_come_back(tmp_path: Path) -> None:
    """First it dies while the certificate has long to live, then while it has not."""
    ours = authority(tmp_path)

    def agent_for(life: timedelta) -> DevAgent:
        return DevAgent(ours, tmp_path / "s", path="/sidecar", dns=("localhost",), life=life)

    long, short = timedelta(hours=1), timedelta(seconds=4)
    agent = agent_for(long)
    await agent.start()
    async with Sidecar(config_for(agent)) as sidecar:

        def told() -> str:
            (part,) = (part for part in sidecar.components() if part.name == "identity")
            return f"{part.status} {part.detail}"

        assert told() == "Healthy "
        async with secure(sidecar.addresses.grpc, *pem_of(ours)) as channel:
            await agent.stop()
            await until(lambda: told().startswith("Degraded the agent"))
            assert await code(channel) == "spiffe://a.org/client"
            assert sidecar.ready() == (True, "")
            assert await health(sidecar) == "SERVING"
        async with serving(agent_for(short)):
            tls = sidecar._tls
            assert tls is not None
            await until(lambda: tls.material.not_after < time.time() + short.total_seconds())
        await until(lambda: told().startswith("Unhealthy the certificate has ended"))
        assert not await ready(sidecar)
        await until(partial(healthy, sidecar, "NOT_SERVING"))
        async with serving(agent_for(long)):
            await until(lambda: told() == "Healthy ")
            assert await ready(sidecar)
            await until(partial(healthy, sidecar, "SERVING"))
            async with secure(sidecar.addresses.grpc, *pem_of(ours)) as channel:
                assert await code(channel) == "spiffe://a.org/client"


async def test_files_stand_in_until_the_agent_is_there(tmp_path: Path) -> None:
    ours = authority(tmp_path)
    server = ours.issue("server", "/from/files", dns=("localhost",))
    agent = DevAgent(ours, tmp_path / "s", path="/from/agent", dns=("localhost",))
    config = config_for(agent, tls_cert=str(server.cert), tls_key=str(server.key), tls_ca=str(ours.ca))
    async with Sidecar(config) as sidecar:
        assert sidecar._tls is not None
        assert str(sidecar._tls.material.spiffe_id) == "spiffe://a.org/from/files"
        assert sidecar.ready() == (True, "")
        assert "from files" in sidecar._tls.problem or "agent" in sidecar._tls.problem
        async with serving(agent):
            await until(lambda: sidecar._tls is not None and str(sidecar._tls.material.spiffe_id).endswith("agent"))
            async with secure(sidecar.addresses.grpc, *pem_of(ours)) as channel:
                assert await code(channel) == "spiffe://a.org/client"


async def test_callers_of_another_domain_are_let_in_by_name_and_only_with_its_own_authority(tmp_path: Path) -> None:
    ours, partner = authority(tmp_path / "a"), authority(tmp_path / "b", OTHER)
    third = authority(tmp_path / "c", TrustDomain("c.org"))
    der = {f"spiffe://{each.trust_domain}": _der(each) for each in (partner, third)}
    agent = DevAgent(ours, tmp_path / "s", path="/sidecar", dns=("localhost",), federated=der)
    liar = dev_ca.DevAuthority(tmp_path / "b", OWN, partner.certificate, partner.key)  # of b.org, says it is a.org
    rule = {"id": "both", "who": [{"trust_domain": "a.org"}, {"trust_domain": "b.org"}], "effect": "allow"}
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"version": 1, "rules": [{**rule, "roles": ["viewer"]}]}))
    config = config_for(agent, spiffe_federates_with="b.org", policy_file=str(policy))
    async with serving(agent), Sidecar(config) as sidecar:

        async def of(who: dev_ca.DevAuthority) -> str:
            _, cert, key = pem_of(who)
            async with secure(sidecar.addresses.grpc, ours.ca.read_bytes(), cert, key) as channel:
                return await code(channel)

        assert await of(ours) == "spiffe://a.org/client"
        assert await of(partner) == "spiffe://b.org/client"
        assert await of(liar) == "UNAUTHENTICATED"
        assert await of(third) == "UNAVAILABLE"  # the handshake fails


async def test_callers_of_another_domain_have_no_right_without_a_policy(tmp_path: Path) -> None:
    ours, partner = authority(tmp_path / "a"), authority(tmp_path / "b", OTHER)
    agent = DevAgent(ours, tmp_path / "s", path="/x", dns=("localhost",), federated={"spiffe://b.org": _der(partner)})
    async with serving(agent), Sidecar(config_for(agent, spiffe_federates_with="b.org")) as sidecar:
        _, cert, key = pem_of(partner)
        async with secure(sidecar.addresses.grpc, ours.ca.read_bytes(), cert, key) as channel:
            assert await code(channel) == "PERMISSION_DENIED"


def _der(of: dev_ca.DevAuthority) -> bytes:
    return of.certificate.public_bytes(Encoding.DER)


async def test_a_trust_domain_that_is_not_the_agents_is_refused(tmp_path: Path) -> None:
    async with serving(DevAgent(authority(tmp_path), tmp_path / "s")) as agent:
        with pytest.raises(CannotStart, match=r"spiffe_trust_domain is b\.org, but the agent's is a.org"):
            await Sidecar(config_for(agent, spiffe_trust_domain="b.org")).start()
        with pytest.raises(CannotStart, match=r"spiffe_federates_with: 'B\.org' is not a trust domain"):
            await Sidecar(config_for(agent, spiffe_federates_with="b.org, B.org")).start()


async def test_developers_find_their_svid_at_the_socket_of_the_daemon(sidecar: Sidecar) -> None:
    source = await WorkloadSource.open(Agent(sidecar.addresses.workload_api))
    assert str(source.material.spiffe_id) == sidecar.addresses.spiffe_id
    material = source.material
    async with secure(sidecar.addresses.grpc, material.ca, material.cert, material.key) as channel:
        assert await principal(channel) == sidecar.addresses.spiffe_id
    async with developer(sidecar.addresses) as channel:
        assert await principal(channel) == sidecar.addresses.spiffe_id


def test_a_certificate_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """The id that the agent names and the one in the certificate differ."""
    ours = authority(tmp_path)
    key, leaf = ours.sign("x", SpiffeId.parse("spiffe://a.org/other"))
    svid = workload_pb2.X509SVID(
        spiffe_id="spiffe://a.org/sidecar",
        x509_svid=leaf.public_bytes(Encoding.DER),
        x509_svid_key=key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        bundle=_der(ours),
    )
    with pytest.raises(InvalidMaterial, match=r"is a certificate of spiffe://a.org/other"):
        parse_x509(workload_pb2.X509SVIDResponse(svids=[svid]))


def test_a_key_of_a_kind_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    ours = authority(tmp_path)
    _, leaf = ours.sign("x", SpiffeId.parse("spiffe://a.org/x"))
    unknown = bytes.fromhex("3010020100 3005 06032a0304 0404 00000000".replace(" ", ""))  # PKCS 8, algorithm 1.2.3.4
    svid = workload_pb2.X509SVID(
        spiffe_id="spiffe://a.org/x",
        x509_svid=leaf.public_bytes(Encoding.DER),
        x509_svid_key=unknown,
        bundle=_der(ours),
    )
    with pytest.raises(InvalidMaterial, match="cannot be parsed"):
        parse_x509(workload_pb2.X509SVIDResponse(svids=[svid]))


async def test_what_nobody_thought_of_does_not_end_the_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = authority(tmp_path)
    agent = DevAgent(ours, tmp_path / "s", path="/sidecar", dns=("localhost",))
    async with serving(agent):
        source = await WorkloadSource.open(Agent(agent.endpoint))
        following = asyncio.create_task(source.follow())

        def broken(_: object) -> None:
            raise ArithmeticError("nobody thought of this")

        with monkeypatch.context() as breaking:
            breaking.setattr(source, "adopt", broken)
            await until(lambda: "nobody thought of this" in source.problem)
        before = source.material
        await until(lambda: source.material is not before and not source.problem)
        following.cancel()


async def test_the_socket_of_a_living_daemon_is_not_taken_away(tmp_path: Path) -> None:
    ours, path = authority(tmp_path), tmp_path / "s"
    async with serving(DevAgent(ours, path)) as agent:
        assert path.stat().st_mode & 0o777 == 0o600
        second = DevAgent(ours, path)
        with pytest.raises(OSError, match="another daemon listens there"):
            await second.start()
        await second.stop()
        await Agent(agent.endpoint).first()
    with sockets.socket(sockets.AF_UNIX) as killed:
        killed.bind(str(path))
    async with serving(DevAgent(ours, path)) as agent:
        await Agent(agent.endpoint).first()


async def test_files_of_another_domain_do_not_stand_in(tmp_path: Path) -> None:
    ours, others = authority(tmp_path / "a"), authority(tmp_path / "b", OTHER)
    svid = others.issue("web", "/web", life=timedelta(days=30))
    files = FileSource(TlsFiles(str(svid.cert), str(svid.key), str(others.ca)))
    agent = DevAgent(ours, tmp_path / "s", path="/sidecar")
    async with serving(agent):
        source = await WorkloadSource.open(Agent(agent.endpoint), files)
    source._stand_in()
    assert str(source.material.spiffe_id) == "spiffe://a.org/sidecar"
