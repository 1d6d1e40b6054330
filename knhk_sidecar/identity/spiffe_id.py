"""A SPIFFE id as a value: parsed strictly once, trusted afterwards.

Source: SPIFFE-ID standard, sections 2.1 to 2.4. Only what the standard allows is accepted; nothing is normalised,
because two spellings of one identity are how a policy is passed by.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

ID_BYTES_MAX: Final = 2048  # SPIFFE-ID 2.3: implementations support 2,048 bytes and must not emit more
TRUST_DOMAIN_BYTES_MAX: Final = 255  # SPIFFE-ID 2.1: the host part of a URI
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
_SCHEME = "spiffe://"


class InvalidSpiffeId(ValueError):
    """A text that is not a SPIFFE id; the message says why."""


@dataclass(frozen=True, slots=True)
class TrustDomain:
    """Name of a trust domain: lower case letters, digits, dots, dashes, underscores."""

    name: str

    @classmethod
    def parse(cls, text: str) -> TrustDomain:
        """From `example.org` or `spiffe://example.org`. Raises InvalidSpiffeId."""
        name = text.removeprefix(_SCHEME)
        if not _TRUST_DOMAIN.fullmatch(name):
            raise InvalidSpiffeId(f"{text[:TRUST_DOMAIN_BYTES_MAX]!r} is not a trust domain")
        return cls(name)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """`spiffe://<trust domain><path>`; the path is never empty: an id without one names a domain, not a workload."""

    trust_domain: TrustDomain
    path: str

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """The id of a workload. Raises InvalidSpiffeId for anything the standard does not allow."""
        if len(text) > ID_BYTES_MAX:
            raise InvalidSpiffeId(f"is longer than {ID_BYTES_MAX} bytes")
        if not text.startswith(_SCHEME):
            raise InvalidSpiffeId("does not begin with spiffe://")
        domain, slash, path = text.removeprefix(_SCHEME).partition("/")
        if not _TRUST_DOMAIN.fullmatch(domain):
            raise InvalidSpiffeId("has a malformed trust domain")
        if not slash or not path:
            raise InvalidSpiffeId("has no path: it names a trust domain, not a workload")
        for segment in path.split("/"):
            if segment in (".", "..") or not _SEGMENT.fullmatch(segment):
                raise InvalidSpiffeId("has a malformed path")
        return cls(TrustDomain(domain), f"/{path}")

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain.name}{self.path}"
