"""Who a call is made by, after identification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from knhk_sidecar.identity.spiffe_id import SpiffeId, TrustDomain
from knhk_workflow import DEFAULT_TENANT

Kind = Literal["mtls", "dev", "local", "anonymous"]


@dataclass(frozen=True, slots=True)
class Rate:
    """How many requests somebody may make: `per_second` in the long run, `burst` of them at once after a pause."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. `name` is what the engine records: the SPIFFE id, or `anonymous`.

    mtls: by certificate. dev: on a plain port of developer mode. local: on loopback while auth_enabled is false.
    anonymous: anybody; may ask for health only.
    """

    kind: Kind
    name: str
    tenant: str = DEFAULT_TENANT
    roles: tuple[str, ...] = ()
    rate: Rate | None = None
    """What the policy grants; None: what the settings do."""

    @property
    def identified(self) -> bool:
        """Whether anything is known about the caller."""
        return self.kind != "anonymous"


ANONYMOUS: Final = Principal("anonymous", "anonymous")


def of_certificate(spiffe_id: SpiffeId) -> Principal:
    """The caller with this certificate. Policy gives roles and tenant; without one they are the default."""
    return Principal("mtls", str(spiffe_id))


def of_developer(trust_domain: TrustDomain) -> Principal:
    """Whoever calls the plain port of developer mode."""
    return Principal("dev", f"spiffe://{trust_domain}/dev/local")


def of_local(trust_domain: TrustDomain) -> Principal:
    """Whoever calls on loopback while authentication is switched off."""
    return Principal("local", f"spiffe://{trust_domain}/local")
