"""The check of a peer's leaf certificate that TLS does not do: is it an X509-SVID, signed by who may vouch for it?

TLS has verified the chain against the listener's authorities before any of this runs. It accepts much that the
X509-SVID standard (sections 4 and 5) forbids, and it does not know that an authority may sign ids of its own trust
domain only.

Rules for a leaf: exactly one URI SAN, a SPIFFE id with a path; not a CA; key usage present, critical, with
digitalSignature and without keyCertSign and cRLSign; an extended key usage, when present, has serverAuth and
clientAuth; inside its validity; signed by an authority of the id's own trust domain, or by one that it vouches for:
of the certificates that the caller sent along, a path leads there (RFC 5280, 6.1: each of them an authority inside
its validity, with its path length and its URI name constraints kept).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from knhk_sidecar.identity.spiffe_id import InvalidSpiffeId, SpiffeId, TrustDomain

LEAF_BYTES_MAX: Final = 16 * 1024  # a leaf with the longest id has 4 KB; larger ones are not worth parsing
CACHE_SIZE: Final = 4_096  # leaves; every client has one at a time, and a rotation twice as many for a moment
REMOVED_MAX: Final = 64  # authorities; what they signed was forgotten by TLS with the connection, an hour at most
CHAIN_BYTES_MAX: Final = 64 * 1024  # some ten intermediates of any make; TLS itself stops at 100 KB
PATH_MAX: Final = 4  # intermediates between a leaf and its root; SPIRE nests two or three deep
ISSUERS_MAX: Final = 16  # sent along by one caller: bounds the signatures that have to be verified

Rule = Literal[
    "size", "form", "names", "spiffe-id", "authority-leaf", "key-usage", "extended-key-usage", "validity",
    "trust-domain", "issuer",
]  # fmt: skip
"""What a leaf did not keep to, in one word for logs and audits."""


class RefusedCertificate(Exception):
    """A certificate that is no X509-SVID for this listener. The message is for the log, not for the caller."""

    def __init__(self, rule: Rule, problem: str) -> None:
        super().__init__(problem)
        self.rule = rule


def authorities_for_ssl(pem: bytes) -> bytes:
    """The certificates of a PEM bundle as `ssl.SSLContext.load_verify_locations` takes them: DER, one after the other.
    It takes PEM as ASCII only, and what stands between the certificates of a bundle may be anything. Raises ValueError
    for a bundle without certificates."""
    return b"".join(each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(pem))


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf that passed: whose it is, until when (Unix seconds), and its SHA-256 in hex."""

    spiffe_id: SpiffeId
    not_after: float
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Bundles:
    """The authorities of every trust domain that a listener accepts, intermediates included where they are known."""

    authorities: Mapping[TrustDomain, tuple[x509.Certificate, ...]]

    @property
    def all(self) -> tuple[x509.Certificate, ...]:
        """The authorities of every domain."""
        return tuple(each for authorities in self.authorities.values() for each in authorities)

    @classmethod
    def parse(cls, pem: Mapping[TrustDomain, bytes]) -> Bundles:
        """From PEM. Raises ValueError when one is not PEM or has no certificate."""
        return cls({domain: tuple(x509.load_pem_x509_certificates(text)) for domain, text in pem.items()})

    def with_intermediates(self, domain: TrustDomain, chain: Iterable[x509.Certificate]) -> Bundles:
        """These bundles and the intermediates of a chain that leads to the domain's own authorities.

        Those of our own chain are the ones that sign our neighbours too, who need not send them, and a resumed session
        does not tell what its first handshake was shown.
        """
        own = self.authorities[domain]
        for issuer in reversed(tuple(chain)):
            if _signed_by(issuer, own):
                own = (*own, issuer)
        return Bundles({**self.authorities, domain: own})


class LeafCheck:
    """Checks leaves against bundles and remembers those that passed, until they expire or the bundles change."""

    def __init__(self, bundles: Bundles, clock: Callable[[], float] = time.time) -> None:
        self._bundles = bundles
        self._clock = clock
        self._passed: dict[bytes, Leaf] = {}
        self._removed: tuple[x509.Certificate, ...] = ()

    def replace(self, bundles: Bundles) -> None:
        """From now on these authorities count; every leaf is checked anew, those of open connections too."""
        gone = [old for old in (*self._removed, *self._bundles.all) if old not in bundles.all]
        self._removed = tuple(gone[-REMOVED_MAX:])
        self._bundles = bundles
        self._passed = {}

    def check(self, pem: bytes, chain: bytes = b"") -> Leaf:
        """The leaf's identity. Raises RefusedCertificate. A known leaf is a look-up; its end is compared each time.

        `chain` is what the caller sent along, PEM; empty when it sent nothing or that is not known any more.
        """
        leaf = self._passed.get(pem)
        now = self._clock()
        if leaf is None:
            leaf = parse_leaf(pem, self._bundles, now, self._removed, chain)
            if len(self._passed) >= CACHE_SIZE:  # the oldest goes
                del self._passed[next(iter(self._passed))]
            self._passed[pem] = leaf
        elif now > leaf.not_after:
            raise RefusedCertificate("validity", "has expired")
        return leaf


def parse_leaf(
    pem: bytes, bundles: Bundles, now: float, removed: Sequence[x509.Certificate] = (), chain: bytes = b""
) -> Leaf:
    """The identity in a leaf that TLS accepted; every rule of the module's docstring. Raises RefusedCertificate.

    `removed` are authorities that TLS may have accepted when the connection was made and that count no more.
    """
    if len(pem) > LEAF_BYTES_MAX:
        raise RefusedCertificate("size", f"has more than {LEAF_BYTES_MAX} bytes")
    if len(chain) > CHAIN_BYTES_MAX:
        raise RefusedCertificate("size", f"came with more than {CHAIN_BYTES_MAX} bytes of intermediates")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        sent = x509.load_pem_x509_certificates(chain)[:ISSUERS_MAX] if chain else []
        extensions = certificate.extensions
        spiffe_id = _spiffe_id(extensions)
        _usage(extensions)
    except _MALFORMED as error:
        raise RefusedCertificate("form", f"cannot be parsed: {error}") from error
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if not begin <= now <= end:
        raise RefusedCertificate("validity", "has expired" if now > end else "is not valid yet")
    _authority(certificate, spiffe_id, bundles, removed, sent, now)
    return Leaf(spiffe_id, end, certificate.fingerprint(hashes.SHA256()).hex())


_MALFORMED: Final = (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


def _spiffe_id(extensions: x509.Extensions) -> SpiffeId:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise RefusedCertificate("names", "has no subject alternative name") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise RefusedCertificate("names", f"has {len(uris)} URI names, not one")
    try:
        return SpiffeId.parse(uris[0])
    except InvalidSpiffeId as error:
        raise RefusedCertificate("spiffe-id", f"has an id that {error}") from None


def _usage(extensions: x509.Extensions) -> None:
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise RefusedCertificate("authority-leaf", "is an authority")
    except x509.ExtensionNotFound:
        pass  # absent means: not an authority
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound:
        raise RefusedCertificate("key-usage", "has no key usage") from None
    if not usage.critical:
        raise RefusedCertificate("key-usage", "has a key usage that is not critical")
    if not usage.value.digital_signature:
        raise RefusedCertificate("key-usage", "may not sign")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise RefusedCertificate("key-usage", "may sign certificates or revocations")
    try:
        purposes: Iterable[x509.ObjectIdentifier] = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= set(purposes):
        raise RefusedCertificate("extended-key-usage", "has an extended key usage without serverAuth and clientAuth")


def _authority(
    leaf: x509.Certificate,
    spiffe_id: SpiffeId,
    bundles: Bundles,
    removed: Sequence[x509.Certificate],
    sent: Sequence[x509.Certificate],
    now: float,
) -> None:
    """A path leads to an authority of the leaf's own domain. What the caller sent along is no authority by itself.

    TLS has verified a path too, but to any domain's authority, and as they were when the connection was made. Where it
    is not known what was sent (a resumed session) and there is one domain only, TLS's word counts, unless the signer
    has been removed since.
    """
    own = bundles.authorities.get(spiffe_id.trust_domain)
    if own is None:
        raise RefusedCertificate(
            "trust-domain", f"is of the trust domain {spiffe_id.trust_domain}, which may not call here"
        )
    if _leads_to(own, leaf, spiffe_id, sent, now, 0):
        return
    if sent or len(bundles.authorities) > 1:
        raise RefusedCertificate("issuer", f"is not signed by an authority of {spiffe_id.trust_domain}")
    if _signed_by(leaf, removed):
        raise RefusedCertificate("issuer", "is signed by an authority that counts no more")


def _leads_to(
    roots: Sequence[x509.Certificate],
    certificate: x509.Certificate,
    spiffe_id: SpiffeId,
    sent: Sequence[x509.Certificate],
    now: float,
    below: int,
) -> bool:
    """Whether a path goes from a certificate, with that many intermediates below it, to one of the roots."""
    if _signed_by(certificate, roots):
        return True
    return below < PATH_MAX and any(
        _may_issue(issuer, spiffe_id, now, below)
        and _signed_by(certificate, (issuer,))
        and _leads_to(roots, issuer, spiffe_id, tuple(each for each in sent if each is not issuer), now, below + 1)
        for issuer in sent
    )


def _may_issue(issuer: x509.Certificate, spiffe_id: SpiffeId, now: float, below: int) -> bool:
    """Whether a certificate is an intermediate that may stand above that many others, for this id."""
    if not issuer.not_valid_before_utc.timestamp() <= now <= issuer.not_valid_after_utc.timestamp():
        return False
    authority = False
    try:
        for extension in issuer.extensions:
            match extension.value:
                case x509.BasicConstraints(ca=ca, path_length=most):
                    authority = ca and (most is None or below <= most)
                case x509.KeyUsage(key_cert_sign=False):
                    return False
                case x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=excluded):
                    if not _permits(permitted, excluded, spiffe_id.trust_domain.name):
                        return False
    except _MALFORMED:
        return False
    return authority


def _permits(
    permitted: Iterable[x509.GeneralName] | None, excluded: Iterable[x509.GeneralName] | None, host: str
) -> bool:
    """RFC 5280, 4.2.1.10, for URIs: a host, or every host below one when the constraint begins with a dot."""

    def within(names: Iterable[x509.GeneralName] | None) -> list[bool]:
        found = (each.value for each in names or () if isinstance(each, x509.UniformResourceIdentifier))
        return [host.endswith(each) if each.startswith(".") else host == each for each in found]

    allowed = within(permitted)
    return (not allowed or any(allowed)) and not any(within(excluded))


def _signed_by(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> bool:
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return True
    return False
