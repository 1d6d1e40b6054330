"""The 28 certificates of the book over real TLS: who calls, who is refused, and where the reason stands.

Bare gRPC lets 17 of them in that are nobody. What TLS itself refuses never becomes a call: gRPC writes the reason on
stderr. What the leaf check refuses has its rule in the log, and in `Refusal.error.rule` for the audit.
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from knhk_sidecar.api import pb
from knhk_sidecar.app import Sidecar
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.telemetry.log import Log
from tests.sidecar.identity.agent import SpokenAgent
from tests.sidecar.identity.authority import Authority, Wish, private_pem
from tests.sidecar.server.client import ANY_PORT, secure

ID = "spiffe://a.org/web"
SIGN = "digital_signature"
TLS = "TLS"  # refused in the handshake


@dataclass(frozen=True)
class Variant:
    """A client certificate and what has to become of it: its id, the rule that it breaks, or TLS and gRPC's reason."""

    wish: Wish
    verdict: str
    reason: str = ""
    signer: str = "own"
    """own, federated, stranger (known to nobody), itself, or forged: own's name with another key."""


def bad(verdict: str, **wish: object) -> Variant:
    return Variant(replace(Wish(), **wish), verdict)  # type: ignore[arg-type]  # fields of Wish


def ids(verdict: str, *uris: str) -> Variant:
    return bad(verdict, uris=uris)


ACCEPTED_BY_BARE_GRPC = {
    "a federated authority issues an id of our domain": Variant(Wish(), "issuer", signer="federated"),
    "two URI names": ids("names", ID, "spiffe://a.org/admin"),
    "no alternative name": ids("names"),
    "DNS names only": bad("names", uris=(), dns=("web.a.org",)),
    "http URI": ids("spiffe-id", "http://a.org/web"),
    "root path": ids("spiffe-id", "spiffe://a.org/"),
    "an authority as leaf": bad("authority-leaf", authority=True),
    "keyCertSign": bad("key-usage", usage=(SIGN, "key_cert_sign")),
    "cRLSign": bad("key-usage", usage=(SIGN, "crl_sign")),
    "no key usage": bad("key-usage", usage=None),
    "key usage not critical": bad("key-usage", usage_critical=False),
    "upper-case domain": ids("spiffe-id", "spiffe://A.org/web"),
    "dots in the path": ids("spiffe-id", "spiffe://a.org/x/../admin"),
    "percent encoding": ids("spiffe-id", "spiffe://a.org/%61"),
    "query": ids("spiffe-id", "spiffe://a.org/web?role=admin"),
    "user info and port": ids("spiffe-id", "spiffe://admin@a.org:443/web"),
    "3,000 bytes": ids("spiffe-id", "spiffe://a.org/" + "w" * 3000),
}
GOOD = {
    "a proper X509-SVID": Variant(Wish(), ID),
    "with DNS names": Variant(Wish(dns=("localhost", "web.a.org")), ID),
    "of a federated domain": Variant(Wish(uris=("spiffe://b.org/web",)), "spiffe://b.org/web", signer="federated"),
}
REFUSED_BY_TLS = {
    "ended": Variant(Wish(begins=timedelta(hours=-2), ends=timedelta(hours=-1)), TLS, "certificate has expired"),
    "not begun": Variant(Wish(begins=timedelta(minutes=30)), TLS, "certificate is not yet valid"),
    "of an unknown authority": Variant(Wish(), TLS, "unable to get local issuer certificate", "stranger"),
    "self-signed": Variant(Wish(), TLS, "unable to get local issuer certificate", "itself"),
    "signed by another key in the authority's name": Variant(Wish(), TLS, "certificate signature failure", "forged"),
    "unknown critical extension": Variant(Wish(unknown_critical=True), TLS, "unhandled critical extension"),
    "extended key usage without clientAuth": Variant(
        Wish(purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)), TLS, "unsupported certificate purpose"
    ),
    "no certificate": Variant(Wish(), TLS, "PEER_DID_NOT_RETURN_A_CERTIFICATE", "nobody"),
}
THE_BOOK = ACCEPTED_BY_BARE_GRPC | GOOD | REFUSED_BY_TLS
AND_MORE = {
    "empty trust domain": ids("spiffe-id", "spiffe:///web"),
    "a domain that nobody federates with": ids("trust-domain", "spiffe://c.org/web"),
    "our authority issues a federated id": ids("issuer", "spiffe://b.org/web"),
    "no path": ids("spiffe-id", "spiffe://a.org"),
    "clientAuth only": bad("extended-key-usage", purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,)),
    "2,049 bytes": ids("spiffe-id", "spiffe://a.org/" + "w" * (2049 - 15)),
    "2,048 bytes": Variant(Wish(uris=("spiffe://a.org/" + "w" * (2048 - 15),)), "spiffe://a.org/" + "w" * (2048 - 15)),
    "zero byte": ids("spiffe-id", "spiffe://a.org/web\0"),
    "the id twice": ids("names", ID, ID),
}
VARIANTS = THE_BOOK | AND_MORE


def test_the_book_has_28() -> None:
    assert (len(ACCEPTED_BY_BARE_GRPC), len(THE_BOOK)) == (17, 28)


@dataclass(frozen=True)
class World:
    """Who signs what. `own` and `federated` are roots, or intermediates of the roots in the bundles."""

    own: Authority
    federated: Authority
    own_root: Authority
    federated_root: Authority

    @classmethod
    def direct(cls) -> World:
        own, federated = Authority("own"), Authority("federated")
        return cls(own, federated, own, federated)

    @classmethod
    def through_intermediates(cls) -> World:
        own, federated = Authority("own root"), Authority("federated root")
        return cls(
            own.intermediate("own upper").intermediate("own lower", path_length=0),
            federated.intermediate("federated lower", path_length=0),
            own,
            federated,
        )

    def issue(self, variant: Variant) -> tuple[bytes | None, bytes | None]:
        """Certificate with its chain, and key."""
        wish, key = variant.wish, ec.generate_private_key(ec.SECP256R1())
        match variant.signer:
            case "own":
                return self.own.issue_chain(wish)
            case "federated":
                return self.federated.issue_chain(wish)
            case "stranger":
                return Authority("stranger").issue(wish)
            case "itself":
                itself = Authority("leaf")
                return itself.sign(wish, itself.key).public_bytes(Encoding.PEM), private_pem(itself.key)
            case "forged":
                signed = self.own.sign(wish, key, ec.generate_private_key(ec.SECP256R1()))
                return signed.public_bytes(Encoding.PEM) + self.own.chain, private_pem(key)
            case _:
                return None, None

    @property
    def roots(self) -> bytes:
        return self.own_root.pem + self.federated_root.pem


@dataclass(frozen=True)
class Daemon:
    """A running daemon of a.org that federates with b.org, its agent and its log."""

    world: World
    agent: SpokenAgent
    sidecar: Sidecar
    lines: io.StringIO

    async def verdict(self, cert: bytes | None, key: bytes | None) -> str:
        """The caller's id, the rule of the log line, or TLS."""
        self.lines.seek(0)
        self.lines.truncate()
        address, ca = self.sidecar.addresses.grpc, self.world.own_root.pem
        async with secure(address, ca, cert, key) as channel:
            try:
                return await principal(channel)
            except aio.AioRpcError as error:
                refused = error
        if refused.code() is grpc.StatusCode.UNAVAILABLE:
            return TLS
        assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
        assert refused.details() == "the client certificate is not an acceptable X509-SVID"
        found = [json.loads(line) for line in self.lines.getvalue().splitlines()]
        (rule,) = {line["rule"] for line in found if line["event"] == "certificate_refused"}
        return str(rule)

    async def rest_verdict(self, cert: bytes | None, key: bytes | None, directory: Path) -> str:
        """The same for REST."""
        context = ssl.create_default_context(cadata=self.world.own_root.pem.decode())
        if cert is not None and key is not None:
            (directory / "client").write_bytes(cert + key)
            context.load_cert_chain(directory / "client")
        host, _, port = self.sidecar.addresses.http.rpartition(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
            request = f"GET /api/v1/admin/status HTTP/1.1\r\nhost: localhost:{port}\r\nconnection: close\r\n\r\n"
            writer.write(request.encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
        except (ssl.SSLError, ConnectionError):
            return TLS
        if not head:
            return TLS
        return str(json.loads(body)["principal"]) if b" 200 " in head else head.split(b" ")[1].decode()


async def principal(channel: aio.Channel) -> str:
    request = pb.GetStatusRequest(omit_document_schema=True)
    return (await pb.AdminServiceStub(channel).GetStatus(request, timeout=60)).principal


@asynccontextmanager
async def daemon(
    directory: Path, world: World, *, federated: Sequence[Authority] | None = None, federates_with: str = "b.org"
) -> AsyncIterator[Daemon]:
    """`federated`: the bundle of b.org, when it is not its root."""
    agent = SpokenAgent(directory / "s")
    own = Wish(uris=("spiffe://a.org/sidecar",), dns=("localhost",))
    others = {"b.org": tuple(federated) if federated is not None else (world.federated_root,)}
    agent.say("spiffe://a.org/sidecar", *world.own.issue_chain(own), world.own_root, federated=others)
    policy = directory / "policy.json"  # whoever has an identity may look: only certificates decide here
    rule = {"id": "all", "who": {"anyone": True}, "effect": "allow", "roles": ["viewer"]}
    policy.write_text(json.dumps({"version": 1, "rules": [rule]}))
    config = SidecarConfig(
        policy_file=str(policy),
        workflow_enabled=False,
        spiffe_enabled=True,
        spiffe_socket=agent.endpoint,
        spiffe_federates_with=federates_with,
        address=ANY_PORT,
        http_address=ANY_PORT,
        metrics_address="",
        drain_seconds=1,
    )
    lines = io.StringIO()
    async with agent.listening(), Sidecar(config, log=Log("info", "json", lines)) as sidecar:
        yield Daemon(world, agent, sidecar, lines)


def expected(variants: Mapping[str, Variant]) -> dict[str, str]:
    return {name: variant.verdict for name, variant in variants.items()}


@pytest.mark.parametrize("world", [World.direct, World.through_intermediates], ids=["direct", "intermediates"])
async def test_every_certificate_gets_the_right_verdict(
    world: Callable[[], World], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with daemon(tmp_path, world()) as running:
        found, reasons = dict[str, str](), dict[str, str]()
        for name, variant in VARIANTS.items():
            capfd.readouterr()
            found[name] = await running.verdict(*running.world.issue(variant))
            if variant.reason:
                reasons[name] = await told(capfd, variant.reason)
        assert found == expected(VARIANTS)
        assert reasons == {name: variant.reason for name, variant in VARIANTS.items() if variant.reason}


async def told(capfd: pytest.CaptureFixture[str], reason: str) -> str:
    """The reason, once gRPC's own log has it; what the log has when it never does."""
    text = ""
    for _ in range(3_000):
        text += capfd.readouterr().err
        if reason in text:
            return reason
        await asyncio.sleep(0.01)
    return text


@pytest.mark.long
async def test_rest_gives_the_same_verdicts(tmp_path: Path) -> None:
    def over_rest(variant: Variant) -> str:
        if variant.signer == "nobody":
            return "401"  # a kubelet has no certificate and may ask for health
        return variant.verdict if variant.verdict == TLS or variant.verdict.startswith("spiffe://") else "401"

    async with daemon(tmp_path, World.through_intermediates()) as running:
        found = {
            name: await running.rest_verdict(*running.world.issue(variant), tmp_path)
            for name, variant in VARIANTS.items()
        }
    assert found == {name: over_rest(variant) for name, variant in VARIANTS.items()}


async def test_bare_grpc_accepts_17_of_them_wrongly() -> None:
    """The check is what makes the difference: the same certificates, gRPC alone, its own idea of the peer's id."""
    world = World.direct()
    cert, key = world.own.issue(Wish(uris=("spiffe://a.org/sidecar",), dns=("localhost",)))
    server = aio.server()

    async def answer(_: bytes, __: aio.ServicerContext[bytes, bytes]) -> bytes:
        return b""

    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x", {"Y": handler}),))
    port = server.add_secure_port(ANY_PORT, grpc.ssl_server_credentials([(key, cert)], world.roots, True))
    await server.start()
    accepted, codes = set(), set()
    for name, variant in THE_BOOK.items():
        async with secure(f"127.0.0.1:{port}", world.own.pem, *world.issue(variant)) as channel:
            try:
                await channel.unary_unary("/x/Y", bytes, bytes)(b"", timeout=60)
                accepted.add(name)
            except aio.AioRpcError as error:
                codes.add(error.code())
    await server.stop(0)
    assert codes == {grpc.StatusCode.UNAVAILABLE}
    assert accepted == {*ACCEPTED_BY_BARE_GRPC, *GOOD}


async def test_chains(tmp_path: Path) -> None:
    """Intermediates come from the caller: each of them is judged, and none of them makes an authority of itself."""
    world = World.through_intermediates()
    own, federated = world.own_root, world.federated_root
    theirs = Wish(uris=("spiffe://b.org/web",))

    def only(*hosts: str) -> x509.NameConstraints:
        return x509.NameConstraints([x509.UniformResourceIdentifier(host) for host in hosts], None)

    def never(*hosts: str) -> x509.NameConstraints:
        return x509.NameConstraints(None, [x509.UniformResourceIdentifier(host) for host in hosts])

    neighbour = own.intermediate("another server of the same domain")
    deep = own.intermediate("1").intermediate("2").intermediate("3").intermediate("4")
    proper, proper_key = own.issue()
    cross = Authority("own lower", issuer=federated)
    past = timedelta(hours=-1)
    chains: dict[str, tuple[tuple[bytes, bytes], str]] = {
        "another intermediate of our root": (neighbour.issue_chain(), ID),
        "four deep": (deep.issue_chain(), ID),
        "five deep": (deep.intermediate("5").issue_chain(), "issuer"),
        "a federated intermediate": (federated.intermediate("b").issue_chain(theirs), "spiffe://b.org/web"),
        "a federated intermediate issues an id of ours": (federated.intermediate("b").issue_chain(), "issuer"),
        "with our own intermediate beside it": (_with(federated.intermediate("b").issue_chain(), world.own), "issuer"),
        "a federated authority names its own as ours": (cross.issue_chain(), "issuer"),
        "path too long": (own.intermediate("short", path_length=0).intermediate("low").issue_chain(), TLS),
        "a leaf that signs": (own.intermediate("leaf", is_authority=False).issue_chain(), TLS),
        "an intermediate that has ended": (own.intermediate("old", ends=past).issue_chain(), TLS),
        "an intermediate that was left out": (neighbour.issue(), TLS),
        "names within the constraint": (own.intermediate("n", constraints=only("a.org")).issue_chain(), ID),
        "names outside of the constraint": (own.intermediate("n", constraints=only("b.org")).issue_chain(), TLS),
        "names that are excluded": (own.intermediate("n", constraints=never("a.org")).issue_chain(), TLS),
        "without intermediates": ((proper, proper_key), ID),
    }
    async with daemon(tmp_path, world) as running:
        found = {name: await running.verdict(*chain) for name, (chain, _) in chains.items()}
    assert found == {name: verdict for name, (_, verdict) in chains.items()}


def _with(issued: tuple[bytes, bytes], authority: Authority) -> tuple[bytes, bytes]:
    return issued[0] + authority.chain, issued[1]


async def test_a_federated_authority_lends_nobody_of_ours_its_power(tmp_path: Path) -> None:
    """What may not sign here is made an authority there: a path leads to the federated root, with which TLS is content.

    In the other order TLS tries the wrong path first, and refuses by itself.
    """
    world = World.through_intermediates()
    own, federated = world.own_root, world.federated_root
    elsewhere = x509.NameConstraints([x509.UniformResourceIdentifier("x.a.org")], None)
    not_here = x509.NameConstraints(
        None, [x509.UniformResourceIdentifier(".org"), x509.UniformResourceIdentifier("a.org")]
    )
    short = own.intermediate("short", path_length=0)
    mine = {
        "a workload of ours": own.intermediate("workload", is_authority=False),
        "an authority of ours that has ended": own.intermediate("old", ends=timedelta(hours=-1)),
        "an authority of ours that is for another name": own.intermediate("elsewhere", constraints=elsewhere),
        "an authority of ours that is not for this name": own.intermediate("not here", constraints=not_here),
        "an authority of ours below one that has none": short.intermediate("too deep"),
    }
    async with daemon(tmp_path, world) as running:
        for who, signer in mine.items():
            cert, key = signer.issue()
            lent = federated.vouch_for(signer)
            verdicts = [await running.verdict(cert + sent, key) for sent in (lent + signer.chain, signer.chain + lent)]
            assert verdicts in (["issuer", TLS], [TLS, "issuer"]), who


async def test_intermediates_in_a_bundle_are_authorities_of_their_domain(tmp_path: Path) -> None:
    """For callers who do not send them, as some agents have it."""
    world = World.through_intermediates()
    theirs = Wish(uris=("spiffe://b.org/web",))
    async with daemon(tmp_path, world, federated=(world.federated_root, world.federated)) as running:
        assert await running.verdict(*world.federated.issue(theirs)) == "spiffe://b.org/web"
        assert await running.verdict(*world.federated.issue()) == "issuer"


@pytest.mark.parametrize("federates_with", ["", "b.org"])
async def test_a_root_that_is_taken_away_takes_its_intermediates_along(tmp_path: Path, federates_with: str) -> None:
    """On open connections too, whose handshake was of another time. Bundles of others that are empty change nothing."""
    world, after = World.through_intermediates(), Authority("the next root")
    async with daemon(tmp_path, world, federates_with=federates_with) as running:
        neighbour = world.own_root.intermediate("another server of the same domain")
        async with secure(running.sidecar.addresses.grpc, world.own_root.pem, *neighbour.issue_chain()) as channel:
            assert await principal(channel) == ID
            server = Wish(uris=("spiffe://a.org/sidecar",), dns=("localhost",))
            running.agent.say(str(server.uris[0]), *after.issue(server), after, federated={"b.org": (), "c.org": ()})
            assert await refusal(channel) is grpc.StatusCode.UNAUTHENTICATED
        assert '"rule":"issuer"' in running.lines.getvalue()


async def refusal(channel: aio.Channel) -> grpc.StatusCode:
    """The code of the first call that fails."""
    async with asyncio.timeout(60):
        while True:
            try:
                await principal(channel)
            except aio.AioRpcError as error:
                return error.code()
            await asyncio.sleep(0.02)


@pytest.mark.long
async def test_a_certificate_that_ends_ends_its_calls_on_open_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call, and the streams that were opened before."""
    world = World.direct()
    async with daemon(tmp_path, world) as running:
        cert, key = world.own.issue(Wish(ends=timedelta(hours=1)))
        async with secure(running.sidecar.addresses.grpc, world.own.pem, cert, key) as channel:
            assert await principal(channel) == ID
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
            tls = running.sidecar._tls
            assert tls is not None
            monkeypatch.setattr(tls.leaves, "_clock", lambda: time.time() + 2 * 3_600)
            assert await refusal(channel) is grpc.StatusCode.UNAUTHENTICATED
            assert await watching.code() is grpc.StatusCode.UNAUTHENTICATED
        rules = [json.loads(line).get("rule") for line in running.lines.getvalue().splitlines()]
        assert "validity" in rules
