"""Bearer tokens against a real daemon, with a real issuer: gRPC over TLS without a client certificate, and REST."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from knhk_sidecar.api import pb
from knhk_sidecar.app import Sidecar
from knhk_sidecar.bearer import AgentToken, NoToken, TokenFile, TokenSource
from knhk_sidecar.client import Client, Endpoint, NotReachable
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.identity.dev_agent import DevAgent
from knhk_sidecar.identity.dev_ca import DevAuthority, open_authority
from knhk_sidecar.identity.spiffe_id import TrustDomain
from knhk_sidecar.worker import Worker
from tests.cli.daemon import Daemon, knhk, running
from tests.sidecar.identity.test_jwks import until
from tests.sidecar.identity.test_jwt_attacks import swapped
from tests.sidecar.identity.tokens import Forge, HttpIssuer, b64, http_issuer, jwk, key, key_set

OURS = "spiffe://knhk.dev/sidecar"
PATIENCE = 60.0
STATUS = pb.GetStatusRequest(omit_document_schema=True)


@dataclass
class House:
    """One daemon, its authority, and the issuer that it trusts."""

    daemon: Daemon
    authority: DevAuthority
    issuer: HttpIssuer

    @property
    def forge(self) -> Forge:
        """Makes tokens that count now."""
        return Forge(self.issuer.url, now=int(time.time()))

    @property
    def svid(self) -> Forge:
        return Forge("", OURS, "spiffe://knhk.dev/web", "svid", "ES256", key("svid", "ES256"), int(time.time()))

    def endpoint(self, token: str = "") -> Endpoint:
        source = (lambda: token) if token else None
        return Endpoint(self.daemon.ready["grpc_token"], self.authority.ca, server_name="localhost", token=source)

    def principal(self, token: str = "") -> str:
        """Who the daemon takes a gRPC caller for, or the code of its refusal."""
        with Client(self.endpoint(token)) as client:
            try:
                return client.admin.GetStatus(STATUS, timeout=PATIENCE).principal
            except grpc.RpcError as error:
                return cast("grpc.Call", error).code().name

    def http(self, *, certificate: bool = False) -> httpx2.Client:
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        if certificate:
            context.load_cert_chain(self.authority.directory / "client.pem", self.authority.directory / "client.key")
        port = self.daemon.ready["http"].rpartition(":")[2]
        return httpx2.Client(base_url=f"https://localhost:{port}", verify=context, timeout=PATIENCE)

    def get(self, *credentials: str, certificate: bool = False) -> httpx2.Response:
        with self.http(certificate=certificate) as http:
            headers = [("authorization", value) for value in credentials]
            return http.get("/admin/status?omit_document_schema=true", headers=headers)

    def health(self) -> Mapping[str, str]:
        with self.http() as http:
            found: Mapping[str, str] = http.get("/health").json()["components"]["tokens"]
            return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("tokens")
    authority = open_authority(root / "ca")
    server = authority.issue_server()
    authority.issue_client()
    (root / "svids.json").write_bytes(key_set(jwk(key("svid", "ES256"), "svid", use="jwt-svid")))
    with http_issuer(jwk(key("one"), "one")) as issuer:
        policy = root / "policy.yaml"
        policy.write_text(
            "version: 1\nrules:\n"
            f"  - {{id: some, who: {{issuer: '{issuer.url}'}}, effect: allow, roles: [admin], work_roles: [packer]}}\n"
            "  - {id: workloads, who: {trust_domain: knhk.dev}, effect: allow, roles: [viewer]}\n"
        )
        settings = root / "sidecar.toml"
        settings.write_text(
            f'tls_enabled = true\ntls_cert = "{server.cert}"\ntls_key = "{server.key}"\ntls_ca = "{authority.ca}"\n'
            f'token_address = "127.0.0.1:0"\npolicy_file = "{policy}"\n'
            f'jwt_svid_audiences = ["{OURS}"]\njwt_svid_bundle = "{root / "svids.json"}"\n'
            f'[issuers.test]\nissuer = "{issuer.url}"\naudiences = ["knhk"]\nrefetch_seconds = 1\n'
        )
        arguments = ("--config", str(settings))
        with running(root / "data", *arguments, command="serve", addresses=("grpc", "http", "metrics")) as daemon:
            yield House(daemon, authority, issuer)
            _, out, err = daemon.stop()
            told(out + err)


SHOWN: list[str] = []  # every token that a test has shown to the daemon
WHY: list[str] = []  # what the log has to say of those that it refused


def told(log: str) -> None:
    """The log has the reasons, and no token, not even a part of one."""
    assert SHOWN
    for why in WHY:
        assert why in log
    for token in SHOWN:
        for part in token.split("."):
            assert len(part) < 20 or part not in log


def shown(token: str) -> str:
    SHOWN.append(token)
    return token


def test_a_token_says_who_calls(house: House) -> None:
    token = shown(house.forge.token())
    name = f"jwt:{house.issuer.url}#alice"
    assert house.principal(token) == name
    assert house.get(f"Bearer {token}").json()["principal"] == name


def test_an_svid_says_who_calls(house: House) -> None:
    token = shown(house.svid.token(house.svid.claims(iss=...)))
    assert house.principal(token) == "spiffe://knhk.dev/web"
    assert house.get(f"Bearer {token}").json()["principal"] == "spiffe://knhk.dev/web"


def test_without_a_token_there_is_health_only(house: House) -> None:
    assert house.principal() == "UNAUTHENTICATED"
    answer = house.get()
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    credentials = grpc.ssl_channel_credentials(house.authority.ca.read_bytes())
    options = [("grpc.ssl_target_name_override", "localhost")]
    with grpc.secure_channel(house.daemon.ready["grpc_token"], credentials, options) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)


@pytest.mark.parametrize(
    "attack",
    ["alg-none", "hs256", "audience", "expired", "jku", "tampered", "stranger", "issuer", "svid-domain", "svid-aud"],
)
def test_attacks_are_refused_without_a_word(house: House, attack: str) -> None:
    forge, svid = house.forge, house.svid
    public = json.dumps(jwk(key("one"), "one")).encode()
    attacks: Mapping[str, tuple[Callable[[], str], str]] = {
        "alg-none": (lambda: forge.token(header=forge.header(alg="none"), signature=b"none"), "algorithm 'none'"),
        "hs256": (
            lambda: forge.token(header=forge.header(alg="HS256"), algorithm="HS256", key=public), "algorithm 'HS256'",
        ),
        "audience": (lambda: forge.token(forge.claims(aud="billing")), "for another audience"),
        "expired": (lambda: forge.token(forge.claims(exp=forge.now - 1)), "has expired"),
        "jku": (lambda: forge.token(header=forge.header(jku=f"{house.issuer.url}/evil")), "'jku'"),
        "tampered": (
            lambda: swapped(forge.token(), 1, lambda _: b64(json.dumps(forge.claims(sub="root")).encode())),
            "is not signed by",
        ),
        "stranger": (lambda: forge.token(key=key("stranger")), "is not signed by"),
        "issuer": (lambda: forge.token(forge.claims(iss="https://evil.example")), "of the issuer 'https://evil.example'"),
        "svid-domain": (lambda: svid.token(svid.claims(iss=..., sub="spiffe://evil.org/web")), "trust domain evil.org"),
        "svid-aud": (lambda: svid.token(svid.claims(iss=..., aud="spiffe://knhk.dev/other")), "for another audience"),
    }  # fmt: skip
    made, why = attacks[attack]
    token = shown(made())
    WHY.append(why)
    assert house.principal(token) == "UNAUTHENTICATED"
    answer = house.get(f"Bearer {token}")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert answer.json()["detail"] == "the bearer token is not accepted here"
    assert "/evil" not in house.issuer.asked


def test_the_audit_knows_why_a_token_was_refused(house: House) -> None:
    good, late = house.forge.token(), house.forge.token(house.forge.claims(exp=house.forge.now - 7))
    assert house.principal(shown(late)) == "UNAUTHENTICATED"

    def reasons() -> str:
        with Client(house.endpoint(shown(good))) as client:
            request = pb.ListAuditRequest(outcome="UNAUTHENTICATED", method="GetStatus")
            return "\n".join(each.reason for each in client.admin.ListAudit(request, timeout=PATIENCE).entries)

    assert eventually(lambda: "UNAUTHENTICATED: token: has expired" in reasons())
    assert late not in reasons()


def test_a_token_is_taken_from_its_header_only(house: House) -> None:
    token = shown(house.forge.token())
    assert house.get(f"Bearer {token}", f"Bearer {token}").status_code == 401
    with house.http() as http:
        for answer in (
            http.get(f"/cases?access_token={token}"),
            http.get("/cases", headers={"x-authorization": f"Bearer {token}"}),
            http.get("/cases", headers={"cookie": f"authorization=Bearer {token}"}),
        ):
            assert answer.status_code in (400, 401)


def test_a_certificate_decides_alone(house: House) -> None:
    token = shown(house.forge.token())
    for credentials in (f"Bearer {token}", "Bearer x.y.z"):
        answer = house.get(credentials, certificate=True)
        assert answer.json()["principal"] == "spiffe://knhk.dev/dev/client"
    ca, cert, private = (house.authority.directory / name for name in ("ca.pem", "client.pem", "client.key"))
    with Client(Endpoint(house.daemon.ready["grpc"], ca, cert, private, "localhost", token=lambda: token)) as client:
        assert client.admin.GetStatus(STATUS, timeout=PATIENCE).principal == "spiffe://knhk.dev/dev/client"
    with Client(replace(house.endpoint(token), address=house.daemon.ready["grpc"])) as client:
        with pytest.raises(grpc.RpcError) as refused:
            client.admin.GetStatus(STATUS, timeout=PATIENCE)
        assert (
            cast("grpc.Call", refused.value).code() is grpc.StatusCode.UNAVAILABLE
        )  # the listener for certificates: no handshake


def test_the_client_follows_its_file(house: House, tmp_path: Path) -> None:
    path = tmp_path / "token"
    forge = house.forge
    with Client(replace(house.endpoint(), token=TokenFile(path))) as client:
        for name in ("alice", "bob"):
            path.write_text(shown(forge.token(forge.claims(sub=name))) + "\n")
            assert client.admin.GetStatus(STATUS, timeout=PATIENCE).principal.endswith(f"#{name}")


def test_a_token_goes_over_no_readable_connection() -> None:
    with pytest.raises(NotReachable, match="can be read on the way"):
        Endpoint("192.0.2.1:50051", token=lambda: "x")


def test_the_command_line_takes_tokens(house: House, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(shown(house.forge.token()))
    where = ("--address", house.daemon.ready["grpc_token"], "--ca", str(house.authority.ca))
    done = knhk("case", "list", *where, "--token-file", str(path))
    assert done.returncode == 0, done.stderr
    bad = shown(house.forge.token(house.forge.claims(aud="billing")))
    done = knhk("case", "list", *where, extra={"KNHK_TOKEN": bad})
    assert done.returncode == 4
    assert "not accepted" in done.stderr
    assert bad not in done.stderr


async def test_a_worker_takes_work_with_a_token(house: House) -> None:
    forge = house.forge
    token = shown(forge.token(forge.claims(sub="worker")))
    spec = {
        "id": "tokens",
        "tasks": {"pack": {"required_roles": ["packer"]}},
        "flows": [{"from": "start", "to": "pack"}, {"from": "pack", "to": "end"}],
    }
    with house.http() as http:
        headers = {"authorization": f"Bearer {token}"}
        assert http.post("/workflows", json={"spec": spec}, headers=headers).status_code == 200
        async with Worker(house.endpoint(token), {"tokens/pack": lambda: {"packed": True}}, roles=("packer",)):
            body = {"spec_id": "tokens", "case_id": "packed"}
            assert (await asyncio.to_thread(http.post, "/cases:run", json=body, headers=headers)).status_code == 200
            waiting = "/cases/packed/wait"
            found = await asyncio.to_thread(http.get, waiting, headers={**headers, "prefer": "wait=10"})
        assert found.json()["case"]["data"]["packed"] is True
        events = http.get("/cases/packed/history", headers=headers).text
    assert f"jwt:{house.issuer.url}#worker" in events


async def test_the_agent_says_whose_svids_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Production: mTLS and JWT keys from the Workload API, which goes away meanwhile."""
    own = open_authority(tmp_path / "ca", TrustDomain("a.org"))
    agent = DevAgent(own, tmp_path / "agent.sock", path="/sidecar", dns=("localhost",))
    await agent.start()
    config = SidecarConfig(
        workflow_db_path=":memory:",
        spiffe_enabled=True,
        spiffe_socket=agent.endpoint,
        jwt_svid_audiences=("spiffe://a.org/sidecar",),
        address="127.0.0.1:0",
        token_address="127.0.0.1:0",
        http_address="",
        metrics_address="",
    )
    good, other = (AgentToken(agent.endpoint, f"spiffe://a.org/{name}") for name in ("sidecar", "another"))

    def asked(source: TokenSource) -> str:
        with Client(Endpoint(sidecar.addresses.grpc_token, own.ca, server_name="localhost", token=source)) as client:
            return client.admin.GetStatus(STATUS, timeout=PATIENCE, wait_for_ready=True).principal

    async with Sidecar(config) as sidecar:
        await until(lambda: tokens_of(sidecar) == "Healthy")
        assert await asyncio.to_thread(asked, good) == "spiffe://a.org/sidecar"
        with pytest.raises(grpc.RpcError, match="not accepted"):
            await asyncio.to_thread(asked, other)
        await agent.stop()
        await until(lambda: tokens_of(sidecar) == "Degraded")
        assert await asyncio.to_thread(asked, good) == "spiffe://a.org/sidecar"
        with pytest.raises(NoToken, match="gave no token"):
            AgentToken(agent.endpoint, "spiffe://a.org/sidecar")()
        now = time.time()
        with monkeypatch.context() as later:
            later.setattr(time, "time", lambda: now + 200)  # of five minutes
            assert good() == good(), "what the agent gave counts to its end"
            later.setattr(time, "time", lambda: now + 301)
            with pytest.raises(NoToken, match="gave no token"):
                good()


def test_a_stream_ends_with_its_token(house: House) -> None:
    forge = house.forge
    begun: list[pb.WatchCasesResponse] = []
    for life in (2, 4, 8, 16, 32):  # long enough for the stream to begin
        token = shown(forge.token(forge.claims(exp=int(time.time()) + life)))
        with Client(house.endpoint(token)) as client:
            watch = client.cases.WatchCases(pb.WatchCasesRequest(), timeout=2 * PATIENCE)
            with pytest.raises(grpc.RpcError) as ended:
                begun.extend(watch)
        if begun:
            break
    assert begun, "it told where it begins"
    assert cast("grpc.Call", ended.value).code() is grpc.StatusCode.UNAUTHENTICATED


def test_keys_change_and_their_issuer_goes_and_comes(house: House) -> None:
    """One story, since the parts have to come in this order."""
    old = shown(house.forge.token())
    new = shown(replace(house.forge, key_id="new", key=key("two")).token())
    assert house.principal(old).startswith("jwt:")

    with Client(house.endpoint(old)) as client:
        watch = client.cases.WatchCases(pb.WatchCasesRequest(), timeout=4 * PATIENCE)
        _the_keys_change(house, old, new)
        with pytest.raises(grpc.RpcError) as ended:
            for _ in watch:
                pass
    assert cast("grpc.Call", ended.value).code() is grpc.StatusCode.UNAUTHENTICATED, "its key was taken back"
    house.issuer.keys = [jwk(key("one"), "one")]
    assert eventually(lambda: house.principal(shown(house.forge.token())).startswith("jwt:"))


def _the_keys_change(house: House, old: str, new: str) -> None:
    house.issuer.stop()
    try:
        assert house.principal(shown(house.forge.token(house.forge.claims(sub="bob")))).endswith("#bob")
        assert eventually(lambda: house.principal(new) == "UNAUTHENTICATED" and house.health()["status"] == "Degraded")
        assert "cannot be reached" in house.health()["detail"]
        assert house.principal(old).startswith("jwt:")
        with house.http() as http:
            assert http.get("/health/ready").status_code == 200
    finally:
        house.issuer.keys = [jwk(key("two"), "new")]
        house.issuer.start()
    assert eventually(lambda: house.principal(new).startswith("jwt:"))
    assert house.health() == {"status": "Healthy", "detail": ""}
    assert house.principal(old) == "UNAUTHENTICATED"


def eventually(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def tokens_of(sidecar: Sidecar) -> str:
    (found,) = (part.status for part in sidecar.components() if part.name == "tokens")
    return found


def test_what_a_stranger_sends_is_not_read(house: House) -> None:
    """Who is unknown is refused before the message is parsed, however malformed it is; who is known is told."""
    credentials = grpc.ssl_channel_credentials(house.authority.ca.read_bytes())
    options = [("grpc.ssl_target_name_override", "localhost")]
    with grpc.secure_channel(house.daemon.ready["grpc_token"], credentials, options) as channel:
        unary, stream = (
            channel.unary_unary("/knhk.sidecar.v1.CaseService/RunCases", bytes, bytes),
            channel.unary_stream("/knhk.sidecar.v1.CaseService/WatchCase", bytes, bytes),
        )
        for token, code in ((None, "UNAUTHENTICATED"), (shown(house.forge.token()), "INVALID_ARGUMENT")):
            metadata = (("authorization", f"Bearer {token}"),) if token else None
            with pytest.raises(grpc.RpcError) as one:
                unary(b"\xff\xff\xff", metadata=metadata, timeout=10)
            with pytest.raises(grpc.RpcError) as many:
                list(stream(b"\xff\xff\xff", metadata=metadata, timeout=10))
            for caught in (one, many):
                assert cast("grpc.Call", caught.value).code().name == code


def test_a_stranger_may_ask_for_health(house: House) -> None:
    credentials = grpc.ssl_channel_credentials(house.authority.ca.read_bytes())
    options = [("grpc.ssl_target_name_override", "localhost")]
    with grpc.secure_channel(house.daemon.ready["grpc_token"], credentials, options) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_token_is_refused_before_the_body_is_read(house: House) -> None:
    with house.http() as http:
        answer = http.post("/cases", content=b"{", headers={"authorization": "Bearer once.is.enough"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
