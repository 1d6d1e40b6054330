"""Whether a bearer token proves who is calling.

Two kinds of tokens count: those of configured OpenID Connect issuers (access tokens of RFC 9068 and others in JWT form,
ID tokens), chosen by `iss`, and JWT-SVIDs, chosen by the trust domain of the SPIFFE id in `sub`. The choice decides
whose keys are looked at; a signature by anybody else's key, however well known here, is none.

Rules for a token, beside those of its form (jwt_token.py):

    alg     one that the issuer may use and that fits the key
    kid     a look-up among the issuer's keys, nothing else; none only while there is one key
    typ     absent, JWT or at+jwt; of JWT-SVIDs absent, JWT or JOSE (JWT-SVID, 2.1): an ID token, a logout token or
            whatever else an issuer signs for other ends says so there
    exp     a whole number in the future, and not further than the lifetime that is allowed
    nbf iat whole numbers when there are any, at most LEEWAY in the future; exp - iat is bounded like exp
    aud     one of ours, among at most AUDIENCES_MAX texts
    sub     the issuer's name for the caller, ASCII; of JWT-SVIDs a SPIFFE id of the trust domain
    cnf     must not be there: a token that is bound to a key is no bearer token (RFC 8705, 9449)

A token that passed is remembered by its digest until it ends or keys change, so that the next call with it costs a
look-up and a comparison of times.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from knhk_sidecar.identity import principal as principals
from knhk_sidecar.identity.jwks import ALGORITHMS
from knhk_sidecar.identity.jwks_source import KeySource
from knhk_sidecar.identity.jwt_token import TOKEN_BYTES_MAX, RefusedToken, Token, read_token
from knhk_sidecar.identity.oidc import LIFETIME_DEFAULT, Issuer, Wanted
from knhk_sidecar.identity.principal import Principal
from knhk_sidecar.identity.spiffe_id import InvalidSpiffeId, SpiffeId, TrustDomain

LEEWAY: Final = 30  # s; clocks that are kept by NTP differ by less than one
AUDIENCES_MAX: Final = 16  # a token for more parties than this is for nobody in particular
SUBJECT_CHARS_MAX: Final = 255  # OpenID Connect Core 1.0, section 2
CACHE_SIZE: Final = 4_096  # tokens; every caller has one at a time
TIME_MAX: Final = 253_402_300_799  # the last second of the year 9999

OIDC_TYPES: Final = frozenset({"", "JWT", "at+jwt", "application/at+jwt"})
SVID_TYPES: Final = frozenset({"", "JWT", "JOSE"})
_SCHEME = "bearer "
_LISTS = frozenset({"scope", "scp"})  # texts that are lists of words (RFC 8693, 4.2)


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who a token says is calling, and until when (Unix seconds)."""

    principal: Principal
    expires: int


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose tokens count, and which of them."""

    kind: Literal["oidc", "svid"]
    issuer: str
    """`iss` of an issuer's tokens; `spiffe://<trust domain>` for JWT-SVIDs."""
    audiences: frozenset[str]
    keys: KeySource
    algorithms: frozenset[str] = frozenset(ALGORITHMS)
    lifetime: int = LIFETIME_DEFAULT
    subject_claim: str = "sub"
    required: Mapping[str, Wanted] = field(default_factory=dict)


def trust_of(issuer: Issuer, keys: KeySource) -> Trust:
    """The trust in a configured issuer."""
    return Trust(
        "oidc",
        issuer.issuer,
        frozenset(issuer.audiences),
        keys,
        frozenset(issuer.algorithms),
        issuer.lifetime_seconds,
        issuer.subject_claim,
        issuer.required_claims,
    )


def trust_of_domain(domain: TrustDomain, audiences: frozenset[str], keys: KeySource, lifetime: int) -> Trust:
    """The trust in the JWT-SVIDs of a trust domain."""
    return Trust("svid", f"spiffe://{domain}", audiences, keys, lifetime=lifetime)


class TokenCheck:
    """Checks tokens and remembers those that passed."""

    def __init__(self, trusts: Sequence[Trust], clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix seconds."""
        self._issuers = {trust.issuer: trust for trust in trusts if trust.kind == "oidc"}
        self._domains = {TrustDomain.parse(trust.issuer): trust for trust in trusts if trust.kind == "svid"}
        self._clock = clock
        self._passed: dict[bytes, Bearer] = {}
        self.sources: Sequence[KeySource] = [trust.keys for trust in trusts]
        for source in self.sources:
            source.changed = self._passed.clear

    def known(self, credentials: str) -> Bearer | None:
        """Who calls with this value of the header `authorization`, when it passed before. Raises RefusedToken."""
        if len(credentials) > TOKEN_BYTES_MAX + len(_SCHEME):
            raise RefusedToken(f"has more than {TOKEN_BYTES_MAX} bytes")
        digest = _digest(credentials)
        known = self._passed.get(digest)
        if known is not None and self._clock() >= known.expires:
            del self._passed[digest]
            raise RefusedToken("has expired")
        return known

    async def check(self, credentials: str) -> Bearer:
        """Who calls with this value of the header, whether it is known or not. Raises RefusedToken."""
        known = self.known(credentials)
        if known is None:
            token, trust = self._read(credentials)
            if trust.keys.keys.find(token.key_id) is None:
                await trust.keys.renew()
            known = self._keep(credentials, self._verified(token, trust))  # nothing is awaited: these keys count now
        return known

    def confirm(self, credentials: str) -> None:
        """Raises RefusedToken when a token that has passed counts no more: it has ended, or its key is gone."""
        if self.known(credentials) is None:
            self._keep(credentials, self._verified(*self._read(credentials)))

    def left(self, bearer: Bearer) -> float:
        """Seconds until the token ends."""
        return bearer.expires - self._clock()

    def _keep(self, credentials: str, bearer: Bearer) -> Bearer:
        if len(self._passed) >= CACHE_SIZE:  # the oldest goes
            del self._passed[next(iter(self._passed))]
        self._passed[_digest(credentials)] = bearer
        return bearer

    def _read(self, credentials: str) -> tuple[Token, Trust]:
        """The token, and whose it is by what it says; of its rules, those that need no key are kept."""
        if credentials[: len(_SCHEME)].lower() != _SCHEME:
            raise RefusedToken("is not of the scheme Bearer")
        token = read_token(credentials[len(_SCHEME) :])
        trust = self._trust(token.claims)
        judged(token, trust, self._clock())
        return token, trust

    def _verified(self, token: Token, trust: Trust) -> Bearer:
        """Who it says is calling, by the keys of this moment."""
        key = trust.keys.keys.find(token.key_id)
        if key is None:
            raise RefusedToken(f"names the key {token.key_id[:80]!r}, which {trust.keys.name} does not have")
        if token.algorithm not in key.algorithms:
            raise RefusedToken(f"is signed with {token.algorithm}, which its key is not for")
        if not key.verifies(token.algorithm, token.signed, token.signature):
            raise RefusedToken(f"is not signed by the key {token.key_id[:80]!r} of {trust.keys.name}")
        return judged(token, trust, self._clock())

    def _trust(self, claims: Mapping[str, object]) -> Trust:
        """Whose token it claims to be. Raises RefusedToken when that is nobody that counts here."""
        issuer = claims.get("iss")
        if isinstance(issuer, str) and issuer in self._issuers:
            return self._issuers[issuer]
        subject = claims.get("sub")
        if isinstance(subject, str) and subject.startswith("spiffe://"):
            domain = _svid(subject).trust_domain
            if domain in self._domains:
                return self._domains[domain]
            raise RefusedToken(f"is of the trust domain {domain}, whose JWT-SVIDs do not count here")
        if not isinstance(issuer, str):
            raise RefusedToken("has no issuer")
        raise RefusedToken(f"is of the issuer {issuer[:SUBJECT_CHARS_MAX]!r}, which does not count here")


def _digest(credentials: str) -> bytes:
    """Of a token; the token itself is kept nowhere."""
    return hashlib.sha256(credentials.encode("utf-8", "surrogatepass")).digest()


def judged(token: Token, trust: Trust, now: float) -> Bearer:
    """Who the token says is calling, after every rule that needs no key. Raises RefusedToken."""
    if token.algorithm not in trust.algorithms:
        raise RefusedToken(f"has the algorithm {token.algorithm[:40]!r}, which {trust.keys.name} may not use")
    if token.type not in (OIDC_TYPES if trust.kind == "oidc" else SVID_TYPES):
        raise RefusedToken(f"has the type {token.type[:40]!r}")
    claims = token.claims
    end = _end(claims, trust, now)
    _audience(claims.get("aud"), trust.audiences)
    if "cnf" in claims:
        raise RefusedToken("is bound to a key, so that it is no bearer token")
    if "sub" in claims or trust.subject_claim == "sub":
        _subject(claims, "sub")
    _subject(claims, trust.subject_claim)
    for name, wanted in trust.required.items():
        if not _has(name, claims.get(name), wanted):
            raise RefusedToken(f"has not the {name} that is required")
    return Bearer(_principal(claims, trust), end)


def _end(claims: Mapping[str, object], trust: Trust, now: float) -> int:
    """When it ends, after every rule of times. Raises RefusedToken."""
    end = _time(claims, "exp")
    if end is None:
        raise RefusedToken("has no end")
    if now >= end:
        raise RefusedToken("has expired")
    for name, problem in (("nbf", "is not valid yet"), ("iat", "was issued in the future")):
        begin = _time(claims, name)
        if begin is not None and begin > now + LEEWAY:
            raise RefusedToken(problem)
        if begin is not None and begin > end:
            raise RefusedToken("ends before it begins")
    issued = _time(claims, "iat")
    if end - (now if issued is None else min(issued, now)) > trust.lifetime:
        raise RefusedToken(f"lives longer than {trust.lifetime} s")
    return end


def _time(claims: Mapping[str, object], name: str) -> int | None:
    if name not in claims:
        return None
    value = claims[name]
    if type(value) is not int or not 0 <= value <= TIME_MAX:  # True is an int, but no time
        raise RefusedToken(f"has a {name} that is no time in whole seconds")
    return value


def _audience(given: object, ours: frozenset[str]) -> None:
    audiences = [given] if isinstance(given, str) else given
    if not isinstance(audiences, list) or not 0 < len(audiences) <= AUDIENCES_MAX:
        raise RefusedToken("has no audience" if given is None else "has an audience that is no text or short list")
    if not all(isinstance(each, str) for each in audiences):
        raise RefusedToken("has an audience that is no text")
    if ours.isdisjoint(audiences):
        raise RefusedToken("is for another audience")


def _subject(claims: Mapping[str, object], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise RefusedToken(f"has no {name}")
    if len(value) > SUBJECT_CHARS_MAX and not value.startswith("spiffe://"):
        raise RefusedToken(f"has a {name} of more than {SUBJECT_CHARS_MAX} characters")
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise RefusedToken(f"has a {name} that is no printable ASCII")
    return value


def _has(name: str, given: object, wanted: Wanted) -> bool:
    """Whether a claim is, or contains, one of the values that are wanted."""
    values = (
        given if isinstance(given, list) else given.split() if name in _LISTS and isinstance(given, str) else [given]
    )
    any_of = wanted if isinstance(wanted, tuple) else (wanted,)
    return any(type(value) is type(one) and value == one for value in values for one in any_of)


def _svid(subject: str) -> SpiffeId:
    try:
        return SpiffeId.parse(subject)
    except InvalidSpiffeId as error:
        raise RefusedToken(f"has a sub that {error}") from None


def _principal(claims: Mapping[str, object], trust: Trust) -> Principal:
    if trust.kind == "svid":
        return principals.of_jwt_svid(_svid(_subject(claims, "sub")), claims)
    return principals.of_token(trust.issuer, _subject(claims, trust.subject_claim), claims)
