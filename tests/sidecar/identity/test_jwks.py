"""Key sets, and the sources that keep them new: over real HTTP, from files, from a Workload API."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from spiffe._proto import workload_pb2

from knhk_sidecar.config import ConfigError
from knhk_sidecar.identity import dev_ca, jwks_source, workload_api
from knhk_sidecar.identity.dev_agent import DevAgent
from knhk_sidecar.identity.jwks import KEYS_MAX, InvalidKeys, read_key_set
from knhk_sidecar.identity.jwks_source import (
    DISCOVERY,
    DOCUMENT_BYTES_MAX,
    AgentBundles,
    FileKeys,
    IssuerKeys,
    KeySource,
)
from knhk_sidecar.identity.oidc import Issuer, fetchable, read_issuers
from knhk_sidecar.identity.spiffe_id import TrustDomain
from tests.sidecar.identity.tokens import HttpIssuer, http_issuer, jwk, key, key_set

ONE, TWO, CURVE = jwk(key("one"), "one"), jwk(key("two"), "two"), jwk(key("curve", "ES256"), "curve")
PATIENCE = 60.0


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - what is waited for is a number or a text
            await asyncio.sleep(0.01)


class Seconds:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


# ------------------------------------------------------------------------------------------------------------ key sets
def test_what_each_key_is_for() -> None:
    keys = read_key_set(key_set(ONE, CURVE, jwk(key("wide", "ES384"), "wide", alg="ES384", use="sig")), "test").keys
    assert keys["one"].algorithms == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    assert keys["curve"].algorithms == {"ES256"}
    assert keys["wide"].algorithms == {"ES384"}


@pytest.mark.parametrize(
    "bad",
    [
        jwk(key("weak", bits=1024), "bad"),
        jwk(key("bitcoin", "ES256K"), "bad"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "bad"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "bad"},
        {**ONE, "kid": "bad", "d": "AQAB"},
        {**TWO, "kid": "bad", "use": "enc"},
        {**TWO, "kid": "bad", "use": "x509-svid"},
        {**TWO, "kid": "bad", "use": ["sig"]},
        {**TWO, "kid": "bad", "kty": ["RSA"]},
        {**CURVE, "kid": "bad", "crv": ["P-256"]},
        {**ONE, "kid": "bad", "oth": 5, "p": {}, "d": None},
        {**TWO, "kid": "bad", "key_ops": ["sign"]},
        {**TWO, "kid": "bad", "alg": "HS256"},
        {**TWO, "kid": "bad", "alg": "none"},
        {**CURVE, "kid": "bad", "alg": "RS256"},
        {**CURVE, "kid": "bad", "crv": "P-384"},
        {**CURVE, "kid": "bad", "y": CURVE["x"]},
        {**ONE, "kid": "bad", "n": 5},
        {**ONE, "kid": "bad", "e": "Ag"},
        {**ONE, "kid": 7},
        {"kty": "RSA", "kid": "bad"},
        "bad",
    ],
)
def test_a_key_that_cannot_be_trusted_is_left_out(bad: object) -> None:
    raw = json.dumps({"keys": [ONE, bad]}).encode()
    assert set(read_key_set(raw, "test").keys) == {"one"}
    with pytest.raises(InvalidKeys, match="no usable key"):
        read_key_set(json.dumps({"keys": [bad]}).encode(), "test")


def test_an_id_of_two_keys_is_nobodys() -> None:
    assert set(read_key_set(key_set(ONE, {**TWO, "kid": "one"}, CURVE), "test").keys) == {"curve"}


def test_a_key_without_id_counts_alone_only() -> None:
    nameless = jwk(key("two"), None)
    assert read_key_set(key_set(nameless), "test").find("") is not None
    assert read_key_set(key_set(nameless), "test").find("one") is None
    both = read_key_set(key_set(ONE, nameless), "test")
    assert both.find("") == both.find("one")
    assert set(both.keys) == {"one"}


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"<html>", b"\xff", b"[" * 100_000]
)
def test_what_is_no_key_set(raw: bytes) -> None:
    with pytest.raises(InvalidKeys):
        read_key_set(raw, "test")


def test_a_set_is_bounded() -> None:
    with pytest.raises(InvalidKeys, match="more than 64 keys"):
        read_key_set(key_set(*[ONE] * (KEYS_MAX + 1)), "test")


# ------------------------------------------------------------------------------------------------------------- issuers
@pytest.fixture
def issuer() -> Iterator[HttpIssuer]:
    with http_issuer(ONE) as found:
        yield found


@asynccontextmanager
async def following(source: KeySource | AgentBundles) -> AsyncIterator[None]:
    task = asyncio.create_task(source.follow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def source_of(issuer: HttpIssuer, clock: Seconds | None = None, **changes: object) -> IssuerKeys:
    settings = {"issuer": issuer.url, "audiences": ("knhk",), **changes}
    return IssuerKeys("test", Issuer(**settings), clock or Seconds())  # type: ignore[arg-type]  # fields by name


async def test_keys_are_discovered(issuer: HttpIssuer) -> None:
    keys = source_of(issuer)
    await keys.renew()
    assert set(keys.keys.keys) == {"one"}
    assert keys.problem == ""
    assert issuer.asked == [DISCOVERY, "/jwks"]


async def test_an_address_of_keys_needs_no_discovery(issuer: HttpIssuer) -> None:
    await source_of(issuer, jwks_uri=f"{issuer.url}/jwks").renew()
    assert issuer.asked == ["/jwks"]


async def test_unknown_keys_make_one_fetch_in_ten_seconds(issuer: HttpIssuer) -> None:
    clock = Seconds()
    keys = source_of(issuer, clock, jwks_uri=f"{issuer.url}/jwks")
    await asyncio.gather(*(keys.renew() for _ in range(50)))
    assert len(issuer.asked) == 1
    for _ in range(50):
        await keys.renew()
    clock.now += 9.9
    await keys.renew()
    assert len(issuer.asked) == 1
    clock.now += 0.2
    issuer.keys.append(TWO)
    await asyncio.gather(*(keys.renew() for _ in range(50)))
    assert len(issuer.asked) == 2
    assert set(keys.keys.keys) == {"one", "two"}


async def test_who_waits_for_a_fetch_is_bounded(issuer: HttpIssuer) -> None:
    issuer.delay.clear()
    keys = source_of(issuer, jwks_uri=f"{issuer.url}/jwks")
    waiting = [asyncio.create_task(keys.renew()) for _ in range(100)]
    await until(lambda: sum(task.done() for task in waiting) == 36)
    issuer.delay.set()
    await asyncio.gather(*waiting)
    assert len(issuer.asked) == 1


async def test_who_leaves_does_not_end_the_fetch_for_others(issuer: HttpIssuer) -> None:
    issuer.delay.clear()
    keys = source_of(issuer, jwks_uri=f"{issuer.url}/jwks")
    first, second = asyncio.create_task(keys.renew()), asyncio.create_task(keys.renew())
    await until(lambda: bool(issuer.asked))
    first.cancel()
    issuer.delay.set()
    await second
    assert set(keys.keys.keys) == {"one"}


async def test_the_last_good_keys_outlive_their_issuer(issuer: HttpIssuer) -> None:
    clock = Seconds()
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    keys = source_of(issuer, clock)
    keys.changed = changed
    await keys.renew()
    issuer.stop()
    clock.now += 60
    await keys.renew()
    assert "cannot be reached" in keys.problem
    assert set(keys.keys.keys) == {"one"}
    issuer.start()
    clock.now += 60
    await keys.renew()
    assert keys.problem == ""
    assert changes == 1


@pytest.mark.parametrize(
    ("path", "status", "body", "headers", "problem"),
    [
        (DISCOVERY, 302, b"", {"location": "/elsewhere"}, "answers 302"),
        (DISCOVERY, 404, b"", {}, "answers 404"),
        (DISCOVERY, 200, b"<html>", {}, "no discovery document"),
        (DISCOVERY, 200, b'{"issuer": "https://evil.example", "jwks_uri": "https://a"}', {}, "of another issuer"),
        (DISCOVERY, 200, b'{"issuer": "ISSUER/", "jwks_uri": "https://a"}', {}, "of another issuer"),
        (DISCOVERY, 200, b'{"issuer": "ISSUER", "jwks_uri": "http://evil.example/k"}', {}, "no https:// address"),
        (DISCOVERY, 200, b'{"issuer": "ISSUER", "jwks_uri": "file:///etc/passwd"}', {}, "no https:// address"),
        (DISCOVERY, 200, b'{"issuer": "ISSUER"}', {}, "no discovery document"),
        (DISCOVERY, 200, b" " * (DOCUMENT_BYTES_MAX + 1), {}, "has more than"),
        ("/jwks", 301, b"", {"location": "https://evil.example/jwks"}, "answers 301"),
        ("/jwks", 500, b"", {}, "answers 500"),
        ("/jwks", 200, b"{}", {}, "no set of keys"),
        ("/jwks", 200, b" " * (DOCUMENT_BYTES_MAX + 1), {}, "has more than"),
        ("/jwks", 200, gzip.compress(b" " * 10_000_000), {"content-encoding": "gzip"}, "compressed"),
    ],
)
async def test_what_an_issuer_must_not_answer(
    issuer: HttpIssuer, path: str, status: int, body: bytes, headers: dict[str, str], problem: str
) -> None:
    clock = Seconds()
    keys = source_of(issuer, clock)
    await keys.renew()
    issuer.answers[path] = (status, body.replace(b"ISSUER", issuer.url.encode()), headers)
    clock.now += 60
    await keys.renew()
    assert problem in keys.problem
    assert set(keys.keys.keys) == {"one"}
    assert not any("elsewhere" in asked for asked in issuer.asked)


async def test_an_issuer_elsewhere_cannot_make_us_ask_this_host(issuer: HttpIssuer, tmp_path: Path) -> None:
    """Over TLS like any issuer in another place; `http://` is only for those that are here themselves."""
    authority = dev_ca.open_authority(tmp_path / "ca")
    server = authority.issue_server()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server.cert, server.key)
    issuer.secure(context)
    url = issuer.url.replace("127.0.0.1", "localhost")
    document = {"issuer": url, "jwks_uri": "http://127.0.0.1:1/private"}
    issuer.answers[DISCOVERY] = (200, json.dumps(document).encode(), {})
    keys = IssuerKeys("test", Issuer(url, ("knhk",), ca=str(authority.ca)))
    await keys.renew()
    assert "no https:// address" in keys.problem


async def test_an_issuer_is_followed(issuer: HttpIssuer) -> None:
    keys = source_of(issuer)
    async with following(keys):
        await until(lambda: not keys.problem)
    assert set(keys.keys.keys) == {"one"}


# --------------------------------------------------------------------------------------------------- files and agents
async def test_a_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(ONE))
    keys = FileKeys("test", str(path))
    async with following(keys):
        path.with_suffix(".new").write_bytes(b"{")
        path.with_suffix(".new").replace(path)
        await until(lambda: "is no JSON" in keys.problem)
        assert set(keys.keys.keys) == {"one"}
        path.with_suffix(".new").write_bytes(key_set(TWO))
        path.with_suffix(".new").replace(path)
        await until(lambda: not keys.problem)
        assert set(keys.keys.keys) == {"two"}


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidKeys, match="cannot be read"):
        FileKeys("test", str(tmp_path / "none"))


async def test_an_agent_is_followed(tmp_path: Path) -> None:
    authority = dev_ca.open_authority(tmp_path, TrustDomain("a.org"))
    agent = DevAgent(authority, tmp_path / "s")
    bundles = AgentBundles(agent.endpoint, frozenset({TrustDomain("a.org"), TrustDomain("b.org")}))
    own, foreign = bundles.domains[TrustDomain("a.org")], bundles.domains[TrustDomain("b.org")]
    async with following(bundles):
        await until(lambda: "cannot be asked" in own.problem)
        await agent.start()
        await until(lambda: not own.problem)
        assert len(own.keys.keys) == 1
        assert "no keys of this trust domain" in foreign.problem
        await agent.stop()
        await until(lambda: bool(own.problem))
        assert len(own.keys.keys) == 1


# ------------------------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://a.example", True),
        ("https://a.example:8443/realms/x", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("http://localhost", True),
        ("http://a.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("http://localhost.evil.example", False),
        ("https://user:password@a.example", False),
        ("https://a.example#x", False),
        ("ftp://a.example", False),
        ("a.example", False),
        ("https://", False),
        ("https://[", False),
        ("", False),
    ],
)
def test_where_keys_may_come_from(url: str, good: bool) -> None:
    assert fetchable(url) is good


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "issuers.toml"
    path.write_text(text)
    return str(path)


def test_a_file_of_issuers(tmp_path: Path) -> None:
    found = read_issuers(
        written(
            tmp_path,
            '[issuers.a]\nissuer = "https://a.example"\naudiences = ["knhk"]\n'
            '[issuers.b]\nissuer = "https://b.example"\naudiences = ["x", "y"]\nalgorithms = ["ES256"]\n'
            'subject_claim = "client_id"\nrequired_claims = {azp = "billing", groups = ["a", "b"], ok = true}\n',
        )
    )
    assert found["a"] == Issuer("https://a.example", ("knhk",))
    assert found["b"].required_claims == {"azp": "billing", "groups": ("a", "b"), "ok": True}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no table"),
        ("issuers = 1", "has no table"),
        ('[issuers.a]\nissuer = "https://[::1"\naudiences = ["x"]', "no https:// address"),
        ("[issuers.a]", "missing required field `issuer`"),
        ('[issuers.a]\nissuer = "https://a.example"\naudiences = []', "length >= 1"),
        ('[issuers.a]\nissuer = "http://a.example"\naudiences = ["x"]', "no https:// address"),
        ('[issuers.a]\nissuer = "https://a.example?x"\naudiences = ["x"]', "no https:// address"),
        ('[issuers.a]\nissuer = "https://a.example"\naudiences = ["x"]\nalgorithms = ["HS256"]', "HS256 is none of"),
        ('[issuers.a]\nissuer = "https://a.example"\naudiences = ["x"]\nalgorithms = ["none"]', "none is none of"),
        ('[issuers.a]\nissuer = "https://a.example"\naudiences = ["x"]\naudience = "y"', "unknown field `audience`"),
        ('[issuers.a]\nissuer = "https://a.example"\naudiences = ["x"]\njwks_uri = "http://b.example"', "jwks_uri"),
        (
            (
                '[issuers.a]\nissuer = "https://a.example"\naudiences = ["x"]\n'
                '[issuers.b]\nissuer = "https://a.example"\naudiences = ["y"]'
            ),
            "is there already",
        ),
        ("[issuers", "is not TOML"),
    ],
)
def test_issuers_that_cannot_be_used(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_issuers(written(tmp_path, text))


async def test_a_file_of_any_kind_does_not_end_the_following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_source, "LOOK_SECONDS", 0.01)
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(ONE))
    keys = FileKeys("file", str(path))
    following = asyncio.create_task(keys.follow())
    with monkeypatch.context() as breaking:
        breaking.setattr(keys, "adopt", lambda _: 1 // 0)
        path.write_bytes(key_set(ONE, TWO))
        await until(lambda: "ZeroDivisionError" in keys.problem)
    path.write_bytes(key_set(ONE, TWO, CURVE))
    await until(lambda: set(keys.keys.keys) == {"one", "two", "curve"} and not keys.problem)
    following.cancel()


def test_one_bundle_of_an_agent_does_not_spoil_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = workload_pb2.JWTBundlesResponse(
        bundles={"spiffe://a.org": key_set(ONE), "Not A Domain": key_set(TWO), "spiffe://b.org": b"nonsense"}
    )
    state = workload_api.key_sets(answer)
    assert set(state) == {TrustDomain("a.org"), TrustDomain("b.org")}
    bundles = AgentBundles("unix:///nowhere", frozenset(map(TrustDomain, ("a.org", "b.org", "c.org"))))
    monkeypatch.setattr(bundles.domains[TrustDomain("b.org")], "adopt", lambda _: 1 // 0)
    bundles._take({**state, TrustDomain("b.org"): key_set(TWO), TrustDomain("c.org"): key_set(CURVE)})
    assert [set(source.keys.keys) for source in bundles.domains.values()] == [{"one"}, set(), {"curve"}]
    assert "ZeroDivisionError" in bundles.domains[TrustDomain("b.org")].problem
