"""Bearer tokens that must not count, each over the real stages: the caller learns nothing, the log says why.

A list of its own for each part of a token; every entry is one test and names what the log has to say, so that nothing
is refused for another reason than the one that is tried.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from knhk_sidecar.api import faults, pb
from knhk_sidecar.identity.certificate import Bundles, LeafCheck
from knhk_sidecar.identity.jwt_check import CACHE_SIZE, LEEWAY, TokenCheck, Trust, trust_of_domain
from knhk_sidecar.identity.policy import Policy
from knhk_sidecar.identity.policy_document import parse
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import ANONYMOUS, Principal
from knhk_sidecar.identity.spiffe_id import TrustDomain
from knhk_sidecar.pipeline import Refusal
from tests.sidecar.identity.authority import Authority, Wish
from tests.sidecar.identity.tokens import NOW, Forge, GivenKeys, b64, jwk, key, key_set
from tests.sidecar.pipeline.road import Road

ISSUER = "https://issuer.example"
OTHER = "https://other.example"
OURS = "spiffe://a.org/sidecar"
GOOD = Forge(ISSUER)
CURVE = Forge(ISSUER, key_id="curve", algorithm="ES256", key=key("curve", "ES256"))
SVID = Forge("", OURS, "spiffe://a.org/web", "svid", "ES256", key("svid", "ES256"))
STRANGER = key("stranger")

Attack = Callable[[], str | Sequence[str]]


class Times:
    """The wall clock of a test."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def trusts() -> list[Trust]:
    """Two issuers that share a key id, and two trust domains that share one too."""
    issuer = GivenKeys(
        "issuer",
        key_set(
            jwk(key("one"), "one"),
            jwk(key("curve", "ES256"), "curve"),
            jwk(key("wide", "ES384"), "wide"),
            jwk(key("pss"), "pss", alg="PS256"),
            jwk(key("weak", bits=1024), "weak"),
        ),
    )
    other = GivenKeys("other", key_set(jwk(key("two"), "one"), jwk(key("two"), "two")))
    own = GivenKeys("spiffe://a.org", key_set(jwk(key("svid", "ES256"), "svid", use="jwt-svid")))
    friend = GivenKeys("spiffe://b.org", key_set(jwk(key("friend", "ES256"), "svid", use="jwt-svid")))
    audiences = frozenset({"knhk"})
    return [
        Trust("oidc", ISSUER, audiences, issuer),
        Trust(
            "oidc", OTHER, audiences, other, frozenset({"RS256"}), 600, "client_id",
            {"azp": ("billing", "shipping"), "groups": "staff", "scope": "knhk.use", "email_verified": True},
        ),
        trust_of_domain(TrustDomain("a.org"), frozenset({OURS}), own, 3600),
        trust_of_domain(TrustDomain("b.org"), frozenset({OURS}), friend, 3600),
    ]  # fmt: skip


def everybody() -> Policies:
    """A policy by which whoever is identified may do everything."""
    document = parse(b"{version: 1, rules: [{id: all, who: {anyone: true}, effect: allow, roles: [admin]}]}")
    return Policies(Policy(document, origin="test"))


class Judge:
    """A road whose callers have tokens only."""

    def __init__(self, plain: Principal = ANONYMOUS, leaves: LeafCheck | None = None) -> None:
        self.times = Times()
        self.trusts = trusts()
        check = TokenCheck(self.trusts, self.times)
        self.road = Road(plain=plain, leaves=leaves, tokens=check, policies=everybody())

    async def ask(self, *credentials: str, peer: str = "ipv4:127.0.0.1:1", leaf: bytes | None = None) -> str:
        """The principal that the engine is told. Raises Refusal."""
        metadata = tuple(("authorization", value) for value in credentials)
        await self.road.get("c", metadata=metadata, peer=peer, leaf=leaf)
        return self.road.cases.metas[-1].principal

    async def refuses(self, *credentials: str, why: str, peer: str = "ipv4:127.0.0.1:1") -> None:
        with pytest.raises(Refusal) as caught:
            await self.ask(*credentials, peer=peer)
        assert isinstance(caught.value.error, faults.TokenRefused)
        assert caught.value.error.message == "the bearer token is not accepted here"
        assert not self.road.cases.metas
        said = self.road.lines.getvalue()
        (refusal,) = (line for line in map(json.loads, said.splitlines()) if line["event"] == "token_refused")
        assert why in refusal["problem"]
        for value in credentials:
            secret = value.rpartition(".")[2] or value
            assert len(secret) < 8 or secret not in said


@pytest.fixture
def judge() -> Judge:
    return Judge()


def bearer(made: str | Sequence[str]) -> Sequence[str]:
    return [f"Bearer {made}"] if isinstance(made, str) else made


def swapped(token: str, part: int, change: Callable[[str], str]) -> str:
    parts = token.split(".")
    parts[part] = change(parts[part])
    return ".".join(parts)


def loose(part: str) -> str:
    """The same bytes, spelled with other unused bits."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return part[:-1] + alphabet[alphabet.index(part[-1]) + 1]


def raw_claims(changes: str) -> bytes:
    """Claims as text, for what no encoder makes."""
    return (json.dumps(GOOD.claims())[:-1] + f", {changes}}}").encode()


def public_pem() -> bytes:
    return key("one").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def json_form(*, flattened: bool) -> str:
    header, payload, signature = GOOD.token().split(".")
    if flattened:
        return json.dumps({"payload": payload, "protected": header, "signature": signature})
    return json.dumps({"payload": payload, "signatures": [{"protected": header, "signature": signature}]})


FORM: Mapping[str, tuple[Attack, str]] = {
    "no-scheme": (lambda: [GOOD.token()], "not of the scheme"),
    "another-scheme": (lambda: [f"Basic {GOOD.token()}"], "not of the scheme"),
    "scheme-alone": (lambda: ["Bearer"], "not of the scheme"),
    "scheme-and-nothing": (lambda: ["Bearer "], "not three parts"),
    "empty-header": (lambda: [""], "not of the scheme"),
    "two-headers": (lambda: [f"Bearer {GOOD.token()}", f"Bearer {GOOD.token()}"], "not the only one"),
    "two-headers-one-bad": (lambda: [f"Bearer {GOOD.token()}", "Basic eA=="], "not the only one"),
    "two-tokens": (lambda: f"{GOOD.token()} {GOOD.token()}", "not three parts"),
    "two-tokens-with-a-comma": (lambda: f"{GOOD.token()},Bearer {GOOD.token()}", "not three parts"),
    "two-spaces": (lambda: f" {GOOD.token()}", "not three parts"),
    "trailing-space": (lambda: f"{GOOD.token()} ", "not three parts"),
    "trailing-line": (lambda: f"{GOOD.token()}\n", "not three parts"),
    "trailing-nul": (lambda: f"{GOOD.token()}\0", "not three parts"),
    "trailing-dot": (lambda: f"{GOOD.token()}.", "not three parts"),
    "tab-for-a-space": (lambda: [f"Bearer\t{GOOD.token()}"], "not of the scheme"),
    "full-width-letters": (lambda: GOOD.token().replace("e", "\uff45", 1), "not three parts"),
    "two-parts": (lambda: GOOD.token().rpartition(".")[0], "not three parts"),
    "five-parts-jwe": (lambda: f"{GOOD.token()}.{b64(b'x' * 12)}.{b64(b'y' * 16)}", "not three parts"),
    "detached-payload": (lambda: swapped(GOOD.token(), 1, lambda _: ""), "not three parts"),
    "no-signature": (lambda: swapped(GOOD.token(), 2, lambda _: ""), "not three parts"),
    "json-serialization": (lambda: json_form(flattened=False), "not three parts"),
    "flattened-json": (lambda: json_form(flattened=True), "not three parts"),
    "padding": (lambda: swapped(GOOD.token(), 2, lambda part: part + "=="), "not three parts"),
    "standard-base64": (lambda: swapped(GOOD.token(), 2, lambda part: "+/" + part[2:]), "not three parts"),
    "unused-bits-of-the-signature": (lambda: swapped(GOOD.token(), 2, loose), "second spelling"),
    "unused-bits-of-the-payload": (
        lambda: GOOD.compact(b64(json.dumps(GOOD.header()).encode()), loose(b64(b'{"a":1 }'))), "second spelling",
    ),
    "one-character-left": (lambda: swapped(GOOD.token(), 2, lambda part: part[:-1]), "base64url"),
    "more-than-8-kb": (lambda: GOOD.token(GOOD.claims(filler="x" * 8192)), "more than 8192 bytes"),
    "one-megabyte": (lambda: ["Bearer " + "a" * 1_000_000], "more than 8192 bytes"),
    "payload-is-a-list": (lambda: GOOD.token(b"[]"), "no object"),
    "payload-is-a-token": (lambda: GOOD.token(GOOD.token().encode()), "is no JSON"),
    "payload-is-a-text": (lambda: GOOD.token(json.dumps(GOOD.token()).encode()), "no object"),
    "payload-is-no-json": (lambda: GOOD.token(b"\x00\x01"), "is no JSON"),
    "payload-is-no-utf-8": (lambda: GOOD.token(b'{"iss":"\xff"}'), "is no JSON"),
    "payload-with-a-byte-order-mark": (lambda: GOOD.token(b"\xef\xbb\xbf" + raw_claims('"a": 1')), "is no JSON"),
    "payload-with-half-a-surrogate": (lambda: GOOD.token(raw_claims('"a": "\\ud800"')), "is no JSON"),
    "payload-and-more": (lambda: GOOD.token(json.dumps(GOOD.claims()).encode() + b"{}"), "is no JSON"),
    "payload-nested-deeply": (lambda: GOOD.token(b'{"a":' + b"[" * 2900 + b"]" * 2900 + b"}"), "nested too deeply"),
    "a-claim-twice": (lambda: GOOD.token(raw_claims('"sub": "root"')), "a payload that has a name twice"),
    "a-claim-twice-inside": (lambda: GOOD.token(raw_claims('"a": {"b": 1, "b": 2}')), "a name twice"),
    "a-claim-twice-escaped": (lambda: GOOD.token(raw_claims('"s\\u0075b": "root"')), "a name twice"),
    "a-header-twice": (
        lambda: GOOD.token(header=b'{"alg":"RS256","kid":"one","alg":"none"}'), "a header that has a name twice",
    ),
}  # fmt: skip


def header(signature: bytes | None = None, **changes: object) -> Attack:
    return lambda: GOOD.token(header=GOOD.header(**changes), signature=signature)


HEADER: Mapping[str, tuple[Attack, str]] = {
    **{
        f"alg-{name}": (header(b"x", alg=name), "has the algorithm")
        for name in ("none", "None", "NONE", "nOnE", "none ", "rs256", "RS1", "RSA1_5", "EdDSA", "ES256K", "dir")
    },
    "alg-none-without-signature": (
        lambda: GOOD.token(header=GOOD.header(alg="none"), signature=b""), "not three parts",
    ),
    "alg-missing": (lambda: GOOD.token(header=GOOD.header(alg=...)), "has the algorithm ''"),
    "alg-empty": (lambda: GOOD.token(header=GOOD.header(alg="")), "no short text"),
    "alg-is-a-list": (lambda: GOOD.token(header=GOOD.header(alg=["RS256"])), "no short text"),
    "alg-is-null": (lambda: GOOD.token(header=GOOD.header(alg=None)), "no short text"),
    **{
        f"{name}-with-the-public-key": (
            partial(GOOD.token, header=GOOD.header(alg=name), algorithm=name, key=public_pem()),
            "has the algorithm",
        )
        for name in ("HS256", "HS384", "HS512")
    },
    "hs256-with-the-jwk": (
        lambda: GOOD.token(
            header=GOOD.header(alg="HS256"), algorithm="HS256", key=json.dumps(jwk(key("one"), "one")).encode()
        ),
        "has the algorithm",
    ),
    "hs256-with-an-empty-key": (
        lambda: GOOD.token(header=GOOD.header(alg="HS256"), algorithm="HS256", key=b""), "has the algorithm",
    ),
    "rsa-algorithm-for-a-curve": (lambda: CURVE.token(header=CURVE.header(alg="RS256")), "which its key is not for"),
    "curve-algorithm-for-rsa": (lambda: GOOD.token(header=GOOD.header(alg="ES256")), "which its key is not for"),
    "es256-with-a-key-of-p-384": (
        lambda: CURVE.token(header=CURVE.header(kid="wide"), key=key("wide", "ES384"), algorithm="ES384"),
        "which its key is not for",
    ),
    "algorithm-that-the-key-is-not-for": (
        lambda: GOOD.token(header=GOOD.header(kid="pss"), key=key("pss")), "which its key is not for",
    ),
    "algorithm-that-the-issuer-may-not-use": (
        lambda: Forge(OTHER, key_id="two", algorithm="PS256", key=key("two")).token(), "may not use",
    ),
    **{
        f"header-{name}": (header(None, **{name: value}), repr(name))
        for name, value in {
            "jku": "https://evil.example/jwks",
            "jwk": jwk(STRANGER, "one"),
            "x5u": "https://evil.example/chain.pem",
            "x5c": ["MIIB"],
            "x5t": "AAAA",
            "crit": ["exp"],
            "b64": False,
            "zip": "DEF",
            "cty": "JWT",
            "enc": "A128GCM",
            "epk": {},
            "alg ": "none",
            "ALG": "none",
        }.items()
    },
    "signed-by-the-key-in-jwk": (
        lambda: GOOD.token(header=GOOD.header(jwk=jwk(STRANGER, "one")), key=STRANGER), "'jwk'",
    ),
    "crit-and-b64": (lambda: GOOD.token(header=GOOD.header(crit=["b64"], b64=False)), "'b64', 'crit'"),
    **{
        f"typ-{name}": (header(typ=name), "has the type")
        for name in ("logout+jwt", "dpop+jwt", "secevent+jwt", "JOSE", "JWE", "jwt", "JWT ", "at+jwt\u0000")
    },
    "typ-is-a-number": (lambda: GOOD.token(header=GOOD.header(typ=1)), "no short text"),
    **{
        f"kid-{name}": (header(kid=value), "names the key")
        for name, value in {
            "unknown": "three",
            "of-another-issuer": "two",
            "with-a-path": "../../../../dev/null",
            "with-sql": "' OR '1'='1",
            "with-an-address": "https://evil.example/key",
            "with-a-command": "one;$(id)",
            "with-a-nul": "one\0",
            "with-a-space": "one ",
            "in-capitals": "ONE",
            "of-a-weak-key": "weak",
        }.items()
    },
    "kid-missing-among-several": (lambda: GOOD.token(header=GOOD.header(kid=...)), "names the key ''"),
    "kid-is-empty": (lambda: GOOD.token(header=GOOD.header(kid="")), "no short text"),
    "kid-is-null": (lambda: GOOD.token(header=GOOD.header(kid=None)), "no short text"),
    "kid-is-a-number": (lambda: GOOD.token(header=GOOD.header(kid=0)), "no short text"),
    "kid-is-a-list": (lambda: GOOD.token(header=GOOD.header(kid=["one"])), "no short text"),
    "kid-is-long": (lambda: GOOD.token(header=GOOD.header(kid="k" * 257)), "no short text"),
    "rsa-key-of-1024-bits": (
        lambda: GOOD.token(header=GOOD.header(kid="weak"), key=key("weak", bits=1024)), "names the key 'weak'",
    ),
}  # fmt: skip


SIGNATURE: Mapping[str, tuple[Attack, str]] = {
    "another-payload": (
        lambda: swapped(GOOD.token(), 1, lambda _: b64(json.dumps(GOOD.claims(sub="root")).encode())), "not signed by",
    ),
    "another-header": (
        lambda: swapped(GOOD.token(), 0, lambda _: b64(json.dumps(GOOD.header(typ=...)).encode())), "not signed by",
    ),
    "a-strangers-key": (lambda: GOOD.token(key=STRANGER), "not signed by"),
    "another-issuers-key-with-the-same-id": (
        lambda: GOOD.token(key=key("two")), "not signed by the key 'one' of issuer",
    ),
    "pss-told-as-pkcs1": (lambda: GOOD.token(algorithm="PS256"), "not signed by"),
    "pkcs1-told-as-pss": (lambda: GOOD.token(header=GOOD.header(alg="PS256")), "not signed by"),
    "another-hash": (lambda: GOOD.token(algorithm="RS384"), "not signed by"),
    "rsa-zeros": (lambda: GOOD.token(signature=bytes(256)), "not signed by"),
    "rsa-one": (lambda: GOOD.token(signature=bytes(255) + b"\1"), "not signed by"),
    "rsa-one-byte-short": (lambda: cut(GOOD, 255), "not signed by"),
    "rsa-one-byte-more": (lambda: cut(GOOD, 256, b"\0"), "not signed by"),
    "psychic-r-and-s-zero": (lambda: CURVE.token(signature=bytes(64)), "not signed by"),
    "psychic-r-zero": (lambda: CURVE.token(signature=bytes(32) + b"\1" * 32), "not signed by"),
    "psychic-order-of-the-curve": (
        lambda: CURVE.token(
            signature=bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551") * 2
        ),
        "not signed by",
    ),
    "es256-in-der": (lambda: CURVE.token(signature=bytes.fromhex("3006020101020101")), "not signed by"),
    "es256-one-byte-more": (lambda: cut(CURVE, 64, b"\0"), "not signed by"),
    "es256-cut": (lambda: cut(CURVE, 63), "not signed by"),
    "es256-by-another-curve": (lambda: CURVE.token(key=key("wide", "ES384"), algorithm="ES384"), "not signed by"),
}  # fmt: skip


def cut(forge: Forge, size: int, more: bytes = b"") -> str:
    def change(part: str) -> str:
        return b64((base64.urlsafe_b64decode(part + "==")[:size]) + more)

    return swapped(forge.token(), 2, change)


def claim(**changes: object) -> Attack:
    return lambda: GOOD.token(GOOD.claims(**changes))


CLAIMS: Mapping[str, tuple[Attack, str]] = {
    "iss-missing": (claim(iss=...), "has no issuer"),
    "iss-null": (claim(iss=None), "has no issuer"),
    "iss-is-a-list": (claim(iss=[ISSUER]), "has no issuer"),
    "iss-unknown": (claim(iss="https://evil.example"), "does not count here"),
    "iss-with-a-slash": (claim(iss=ISSUER + "/"), "does not count here"),
    "iss-in-capitals": (claim(iss=ISSUER.upper()), "does not count here"),
    "iss-of-another": (claim(iss=OTHER, client_id="x"), "has not the azp"),
    "aud-missing": (claim(aud=...), "has no audience"),
    "aud-wrong": (claim(aud="billing"), "another audience"),
    "aud-in-capitals": (claim(aud="KNHK"), "another audience"),
    "aud-with-more": (claim(aud="knhk.evil.example"), "another audience"),
    "aud-empty": (claim(aud=""), "another audience"),
    "aud-empty-list": (claim(aud=[]), "no text or short list"),
    "aud-null": (claim(aud=None), "has no audience"),
    "aud-nested": (claim(aud=[["knhk"]]), "no text"),
    "aud-with-a-number": (claim(aud=["knhk", 1]), "no text"),
    "aud-is-an-object": (claim(aud={"knhk": True}), "no text or short list"),
    "aud-for-everybody": (claim(aud=["knhk", *(str(one) for one in range(16))]), "no text or short list"),
    "sub-missing": (claim(sub=...), "has no sub"),
    "sub-empty": (claim(sub=""), "has no sub"),
    "sub-null": (claim(sub=None), "has no sub"),
    "sub-is-a-number": (claim(sub=7), "has no sub"),
    "sub-is-a-list": (claim(sub=["alice"]), "has no sub"),
    "sub-is-a-space": (claim(sub=" "), "printable"),
    "sub-with-a-space-behind": (claim(sub="alice "), "printable"),
    "sub-with-a-line": (claim(sub="alice\nbob"), "printable"),
    "sub-with-a-nul": (claim(sub="alice\0"), "printable"),
    "sub-that-looks-alike": (claim(sub="\u0430lice"), "printable"),
    "sub-long": (claim(sub="a" * 256), "more than 255"),
    "exp-missing": (claim(exp=...), "has no end"),
    "exp-past": (claim(exp=NOW - 1), "has expired"),
    "exp-now": (claim(exp=NOW), "has expired"),
    "exp-far": (claim(exp=NOW + 86_401), "lives longer than 86400 s"),
    "exp-at-the-end-of-time": (claim(exp=253_402_300_799), "lives longer"),
    "exp-beyond-the-end-of-time": (claim(exp=10**18), "no time in whole seconds"),
    "exp-huge": (lambda: GOOD.token(raw_claims('"x": 1').replace(str(NOW + 600).encode(), b"9" * 5000)), "is no JSON"),
    "exp-1e18": (lambda: GOOD.token(raw_claims('"x": 1').replace(str(NOW + 600).encode(), b"1e18")), "whole seconds"),
    "exp-is-a-text": (claim(exp=str(NOW + 600)), "whole seconds"),
    "exp-is-a-float": (claim(exp=NOW + 600.5), "whole seconds"),
    "exp-is-nan": (claim(exp=float("nan")), "has NaN"),
    "exp-is-infinite": (claim(exp=float("inf")), "has Infinity"),
    "exp-is-negative": (claim(exp=-1), "whole seconds"),
    "exp-is-true": (claim(exp=True), "whole seconds"),
    "exp-is-null": (claim(exp=None), "whole seconds"),
    "exp-is-a-list": (claim(exp=[NOW + 600]), "whole seconds"),
    "nbf-in-the-future": (claim(nbf=NOW + LEEWAY + 1), "not valid yet"),
    "nbf-is-a-text": (claim(nbf="now"), "whole seconds"),
    "iat-in-the-future": (claim(iat=NOW + LEEWAY + 1), "issued in the future"),
    "iat-is-null": (claim(iat=None), "whole seconds"),
    "iat-long-ago": (claim(iat=NOW - 86_400), "lives longer"),
    "nbf-after-exp": (claim(nbf=NOW + 20, exp=NOW + 10), "ends before it begins"),
    "bound-to-a-key": (claim(cnf={"jkt": "x"}), "bound to a key"),
}


def other(**changes: object) -> Attack:
    """A token of the issuer with required claims."""
    forge = Forge(OTHER, key_id="two", key=key("two"))
    base = {
        "client_id": "batch",
        "azp": "billing",
        "groups": ["x", "staff"],
        "scope": "a knhk.use",
        "email_verified": True,
    }
    return lambda: forge.token(forge.claims(**{**base, **changes}))


REQUIRED: Mapping[str, tuple[Attack, str]] = {
    "required-missing": (other(azp=...), "has not the azp"),
    "required-wrong": (other(azp="evil"), "has not the azp"),
    "required-in-a-longer-text": (other(azp="billing shipping"), "has not the azp"),
    "required-not-in-the-list": (other(groups=["staff2"]), "has not the groups"),
    "required-in-an-object": (other(groups={"staff": 1}), "has not the groups"),
    "scope-that-begins-alike": (other(scope="knhk.user"), "has not the scope"),
    "required-as-a-text": (other(email_verified="true"), "has not the email_verified"),
    "required-as-a-number": (other(email_verified=1), "has not the email_verified"),
    "subject-claim-missing": (other(client_id=...), "has no client_id"),
    "subject-claim-empty": (other(client_id=""), "has no client_id"),
    "sub-empty-beside-it": (other(sub=""), "has no sub"),
    "lifetime-of-this-issuer": (other(exp=NOW + 601), "lives longer than 600 s"),
}


def svid(**changes: object) -> Attack:
    return lambda: SVID.token(SVID.claims(iss=..., **changes))


SPIFFE: Mapping[str, tuple[Attack, str]] = {
    "svid-of-another-domain": (svid(sub="spiffe://c.org/web"), "trust domain c.org"),
    "svid-of-a-federated-domain-by-our-key": (svid(sub="spiffe://b.org/web"), "not signed by the key 'svid' of spiffe://b.org"),
    "svid-of-ours-by-a-federated-key": (
        lambda: SVID.token(SVID.claims(iss=...), key=key("friend", "ES256")), "not signed by the key 'svid' of spiffe://a.org",
    ),
    "svid-of-a-domain-in-capitals": (svid(sub="spiffe://A.org/web"), "malformed trust domain"),
    "svid-of-a-domain": (svid(sub="spiffe://a.org"), "no path"),
    "svid-with-a-root-path": (svid(sub="spiffe://a.org/"), "no path"),
    "svid-with-dots": (svid(sub="spiffe://a.org/x/../admin"), "malformed path"),
    "svid-with-a-query": (svid(sub="spiffe://a.org/web?x"), "malformed path"),
    "svid-with-a-port": (svid(sub="spiffe://a.org:1/web"), "malformed trust domain"),
    "svid-with-a-user": (svid(sub="spiffe://a.org@c.org/web"), "malformed trust domain"),
    "svid-of-3000-bytes": (svid(sub="spiffe://a.org/" + "a" * 3000), "longer than"),
    "svid-without-spiffe": (svid(sub="web"), "has no issuer"),
    "svid-in-capitals": (svid(sub="SPIFFE://a.org/web"), "has no issuer"),
    "svid-for-another": (svid(aud="spiffe://a.org/other"), "another audience"),
    "svid-for-nobody": (svid(aud=...), "has no audience"),
    "svid-for-the-issuers-audience": (svid(aud="knhk"), "another audience"),
    "svid-without-end": (svid(exp=...), "has no end"),
    "svid-that-lives-long": (svid(exp=NOW + 3601), "lives longer than 3600 s"),
    "svid-with-the-type-of-access-tokens": (
        lambda: SVID.token(SVID.claims(iss=...), SVID.header(typ="at+jwt")), "has the type",
    ),
    "svid-by-an-issuers-key": (
        lambda: SVID.token(
            SVID.claims(iss=...), SVID.header(alg="RS256", kid="one"), algorithm="RS256", key=key("one")
        ),
        "names the key 'one'",
    ),
    "issuers-token-by-an-svid-key": (lambda: SVID.token(SVID.claims(iss=ISSUER, aud="knhk")), "names the key 'svid'"),
}  # fmt: skip

ATTACKS = {**FORM, **HEADER, **SIGNATURE, **CLAIMS, **REQUIRED, **SPIFFE}


@pytest.mark.parametrize("name", ATTACKS)
async def test_refused(judge: Judge, name: str) -> None:
    attack, why = ATTACKS[name]
    await judge.refuses(*bearer(attack()), why=why)


@pytest.mark.parametrize("name", ["alg-none", "aud-wrong", "signed-by-the-key-in-jwk"])
async def test_a_refused_token_does_not_fall_back_to_the_listener(name: str) -> None:
    developer = Judge(Principal("dev", "spiffe://knhk.dev/dev/local"))
    assert await developer.ask() == "spiffe://knhk.dev/dev/local"
    developer.road.cases.metas.clear()
    await developer.refuses(*bearer(ATTACKS[name][0]()), why=ATTACKS[name][1])


# ------------------------------------------------------------------------------------------------- what does count
@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
async def test_every_rsa_algorithm_counts(judge: Judge, algorithm: str) -> None:
    token = GOOD.token(header=GOOD.header(alg=algorithm), algorithm=algorithm)
    assert await judge.ask(f"Bearer {token}") == f"jwt:{ISSUER}#alice"


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512"])
async def test_every_curve_counts(algorithm: str) -> None:
    keys = GivenKeys("issuer", key_set(jwk(key("any", algorithm), None)))
    check = TokenCheck([Trust("oidc", ISSUER, frozenset({"knhk"}), keys)], Times())
    forge = Forge(ISSUER, algorithm=algorithm, key=key("any", algorithm))
    found = await check.check(f"Bearer {forge.token(header=forge.header(kid=...))}")
    assert found.principal.name == f"jwt:{ISSUER}#alice"
    assert found.principal.kind == "jwt"


@pytest.mark.parametrize(
    "token",
    [
        GOOD.token(header=GOOD.header(typ="at+jwt")),
        GOOD.token(header=GOOD.header(typ=...)),
        GOOD.token(GOOD.claims(aud=["billing", "knhk"])),
        GOOD.token(GOOD.claims(iat=..., nbf=...)),
        GOOD.token(GOOD.claims(iat=NOW + LEEWAY, nbf=NOW + LEEWAY)),
        GOOD.token(GOOD.claims(exp=NOW + 86_400)),
        CURVE.token(),
    ],
)
async def test_what_issuers_send_counts(judge: Judge, token: str) -> None:
    assert await judge.ask(f"bearer {token}") == f"jwt:{ISSUER}#alice"


async def test_another_claim_may_name_the_caller(judge: Judge) -> None:
    made = other()()
    assert await judge.ask(f"Bearer {made}") == f"jwt:{OTHER}#batch"


async def test_the_claims_are_kept_for_the_policy() -> None:
    found = await TokenCheck(trusts(), Times()).check(f"Bearer {GOOD.token(GOOD.claims(groups=['a', 'b']))}")
    assert found.principal.issuer == ISSUER
    assert found.principal.claims["groups"] == ("a", "b")
    assert found.principal.spiffe_id is None


async def test_an_svid_is_the_workload(judge: Judge) -> None:
    token = SVID.token(SVID.claims(iss=...))
    assert await judge.ask(f"Bearer {token}") == "spiffe://a.org/web"
    friend = Forge("", OURS, "spiffe://b.org/web", "svid", "ES256", key("friend", "ES256"))
    token = friend.token(friend.claims(iss="https://spire.b.org"), friend.header(typ="JOSE"))
    assert await judge.ask(f"Bearer {token}") == "spiffe://b.org/web"


async def test_an_issuer_cannot_make_a_spiffe_id(judge: Judge) -> None:
    token = GOOD.token(GOOD.claims(sub="spiffe://a.org/admin"))
    assert await judge.ask(f"Bearer {token}") == f"jwt:{ISSUER}#spiffe://a.org/admin"


# ------------------------------------------------------------------------------------------- connections and time
@pytest.mark.parametrize("peer", ["ipv4:10.0.0.7:1", "ipv6:%5B2001:db8::1%5D:1", "ipv6:[2001:db8::1]:1", "unknown"])
async def test_a_token_that_others_can_read_is_refused(judge: Judge, peer: str) -> None:
    await judge.refuses(f"Bearer {GOOD.token()}", why="others can read", peer=peer)


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:1", "ipv6:%5B::1%5D:1", "ipv6:[::1]:1", "unix:/run/knhk.sock"])
async def test_a_token_from_this_host_counts(judge: Judge, peer: str) -> None:
    assert await judge.ask(f"Bearer {GOOD.token()}", peer=peer) == f"jwt:{ISSUER}#alice"


async def test_a_certificate_decides_alone() -> None:
    authority = Authority()
    leaves = LeafCheck(Bundles.parse({TrustDomain("a.org"): authority.pem}))
    judge = Judge(leaves=leaves)
    good, _ = authority.issue(Wish(uris=("spiffe://a.org/web",)))
    for credentials in ((f"Bearer {GOOD.token()}",), ("Bearer x.y.z",), ("a", "b"), ()):
        assert await judge.ask(*credentials, leaf=good) == "spiffe://a.org/web"
    bad, _ = authority.issue(Wish(uris=("spiffe://b.org/web",)))
    with pytest.raises(Refusal) as caught:
        await judge.ask(f"Bearer {GOOD.token()}", leaf=bad)
    assert caught.value.error.reason == "UNAUTHENTICATED"


async def test_other_headers_say_nothing(judge: Judge) -> None:
    token = f"Bearer {GOOD.token()}"
    headers = ("x-authorization", "proxy-authorization", "x-forwarded-authorization", "cookie", "authorization-bin")
    for header in headers:
        with pytest.raises(Refusal):
            await judge.road.get("c", metadata=((header, token),))
    assert not judge.road.cases.metas


async def test_without_issuers_the_header_means_nothing() -> None:
    road = Road(plain=Principal("dev", "spiffe://knhk.dev/dev/local"))
    await road.get("c", metadata=(("authorization", f"Bearer {GOOD.token()}"),))
    assert road.cases.metas[-1].principal == "spiffe://knhk.dev/dev/local"


async def test_a_known_token_ends_in_time(judge: Judge) -> None:
    token = f"Bearer {GOOD.token()}"
    assert await judge.ask(token) == await judge.ask(token)
    judge.times.now = NOW + 600.0
    judge.road.cases.metas.clear()
    await judge.refuses(token, why="has expired")


async def test_a_known_token_ends_with_its_key(judge: Judge) -> None:
    token = f"Bearer {GOOD.token()}"
    await judge.ask(token)
    keys = judge.trusts[0].keys
    assert isinstance(keys, GivenKeys)
    replacement = GivenKeys("issuer", key_set(jwk(key("curve", "ES256"), "curve")))
    keys.adopt(replacement.keys)
    judge.road.cases.metas.clear()
    await judge.refuses(token, why="names the key 'one'")
    assert keys.asked == 1


async def test_one_principal_for_one_token() -> None:
    check = TokenCheck(trusts(), Times())
    first, second = await check.check(f"Bearer {GOOD.token()}"), await check.check(f"Bearer {GOOD.token()}")
    assert first is second
    assert await check.check(f"bearer {GOOD.token()}") is not first


async def test_remembered_tokens_are_bounded() -> None:
    check = TokenCheck(trusts(), Times())
    token = GOOD.token()
    first = await check.check(f"Bearer {token}")
    check._passed.update({number.to_bytes(32, "big"): first for number in range(CACHE_SIZE - 1)})
    await check.check(f"BEARER {token}")
    assert len(check._passed) == CACHE_SIZE


async def test_a_stream_ends_with_its_token() -> None:
    road = Road(plain=ANONYMOUS, tokens=TokenCheck(trusts(), lambda: NOW + 599.8), act=never, policies=everybody())
    call = road.call("WatchCase", metadata=(("authorization", f"Bearer {GOOD.token()}"),))
    with pytest.raises(Refusal) as caught:
        await road.pipeline.run(call, pb.WatchCaseRequest(case_id="c"))
    assert isinstance(caught.value.error, faults.TokenRefused)
    assert len(road.sent) == 1


async def never(request: pb.GetCaseRequest, meta: object) -> None:
    """Waits for what does not come."""
    import asyncio

    await asyncio.Event().wait()
