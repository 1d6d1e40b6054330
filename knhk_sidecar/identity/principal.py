"""Who a call is made by, after identification, and what policy made of that.

Identification says kind, name and the facts that somebody vouched for: a SPIFFE id, or a token's issuer, subject and
claims. Policy adds tenant, roles and grants (`policy.Policy.decide`); until then they are those of nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from knhk_sidecar.identity.grants import NOTHING, Grants, Rate
from knhk_sidecar.identity.spiffe_id import SpiffeId, TrustDomain
from knhk_workflow import DEFAULT_TENANT

Kind = Literal["mtls", "jwt", "dev", "local", "anonymous"]

NO_CLAIMS: Final[Mapping[str, object]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """A caller. `name` is what the engine records: the SPIFFE id, the issuer and subject of a token, or `anonymous`.

    mtls: by certificate. jwt: by token. dev: on a plain port of developer mode. local: on loopback while auth_enabled
    is false. anonymous: anybody; may ask for health only.

    One object per certificate or token, kept by who identifies: what policy decides is remembered by the object.
    """

    kind: Kind
    name: str
    tenant: str = DEFAULT_TENANT
    roles: tuple[str, ...] = ()
    """What the caller is in workflows: the roles that tasks ask for. They say nothing about calls."""
    spiffe_id: SpiffeId | None = None
    """Proven by a certificate or a JWT-SVID; a token's claims never make one."""
    issuer: str = ""
    """Who vouches for a token; empty for certificates."""
    subject: str = ""
    """The subject of a token."""
    claims: Mapping[str, object] = field(default_factory=lambda: NO_CLAIMS)
    """What the issuer says, never to be changed; see `frozen`."""
    grants: Grants = NOTHING

    @property
    def rate(self) -> Rate | None:
        """How many requests policy grants; None: as many as the settings do."""
        return self.grants.limits

    @property
    def identified(self) -> bool:
        """Whether anything is known about the caller."""
        return self.kind != "anonymous"


ANONYMOUS: Final = Principal("anonymous", "anonymous")


def of_certificate(spiffe_id: SpiffeId) -> Principal:
    """The caller with this certificate."""
    return Principal("mtls", str(spiffe_id), spiffe_id=spiffe_id)


def of_token(issuer: str, subject: str, claims: Mapping[str, object]) -> Principal:
    """The caller with this OIDC token, already verified. Its name cannot be taken for a SPIFFE id, nor for the same
    subject of another issuer."""
    return Principal("jwt", f"jwt:{issuer}#{subject}", issuer=issuer, subject=subject, claims=frozen(claims))


def of_jwt_svid(spiffe_id: SpiffeId, claims: Mapping[str, object]) -> Principal:
    """The caller with this JWT-SVID, already verified against its trust domain's bundle: the same workload as with a
    certificate."""
    name = str(spiffe_id)
    issuer = f"spiffe://{spiffe_id.trust_domain}"
    return Principal("jwt", name, spiffe_id=spiffe_id, issuer=issuer, subject=name, claims=frozen(claims))


def of_developer(trust_domain: TrustDomain) -> Principal:
    """Whoever calls the plain port of developer mode."""
    spiffe_id = SpiffeId(trust_domain, "/dev/local")
    return Principal("dev", str(spiffe_id), spiffe_id=spiffe_id)


def of_local(trust_domain: TrustDomain) -> Principal:
    """Whoever calls on loopback while authentication is switched off."""
    spiffe_id = SpiffeId(trust_domain, "/local")
    return Principal("local", str(spiffe_id), spiffe_id=spiffe_id)


def frozen(claims: Mapping[str, object]) -> Mapping[str, object]:
    """Claims that nobody can change any more, all the way down."""
    return MappingProxyType({name: _frozen(value) for name, value in claims.items()})


def _frozen(value: object) -> object:
    if isinstance(value, Mapping):
        return frozen(value)
    return tuple(_frozen(each) for each in value) if isinstance(value, list | tuple) else value
