"""What the mTLS listeners show and whom they accept, replaced as a whole while calls go on.

gRPC asks for key, chain and authorities at each new connection, on one of its own threads, through a function that may
neither block nor raise. So that function only hands out what is in memory, and a source adopts new material when it has
it complete and checked: from files (here), from the SPIFFE Workload API (workload_source.py). Material that does not
fit together is logged once, and what was in use stays.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from knhk_sidecar.files import Stamp, stamp
from knhk_sidecar.identity.certificate import Bundles, LeafCheck
from knhk_sidecar.identity.spiffe_id import SpiffeId, TrustDomain

LOOK_INTERVAL: Final = 1.0  # s; agents replace certificates minutes before they end, and three stats cost nothing
STAYS: Final = "the previous certificate stays in use"
FILE_BYTES_MAX: Final = 1024 * 1024  # a bundle of many authorities has some tens of KB

_log = structlog.get_logger(__name__)


class InvalidMaterial(Exception):
    """Key, certificate and authorities cannot be used together; the message names the file."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of the PEM files."""

    cert: str
    key: str
    ca: str


@dataclass(frozen=True, slots=True)
class Material:
    """One consistent set, PEM. `spiffe_id` is the server's own, None when its certificate has none."""

    cert: bytes
    """The server's certificate and its intermediates."""
    key: bytes
    ca: bytes
    """The authorities of the callers' trust domain."""
    spiffe_id: SpiffeId | None
    not_after: float
    """End of the server's own certificate, Unix seconds."""
    federated: Mapping[TrustDomain, bytes] = field(default_factory=dict)
    """The authorities of other trust domains whose workloads may call."""

    @property
    def roots(self) -> bytes:
        """What TLS verifies callers against: all authorities. Which domain each may vouch for is the leaf check's."""
        return b"\n".join((self.ca, *self.federated.values()))

    @property
    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """As gRPC wants it."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], self.roots)


class TlsSource(ABC):
    """Credentials for the mTLS listeners and the check of their callers, both of the newest material."""

    def __init__(self, material: Material, trust_domain: TrustDomain) -> None:
        """`trust_domain` is whose ids may call, besides those of the material's federated domains."""
        self.trust_domain = trust_domain
        self.material = material
        self.leaves = LeafCheck(self._bundles(material))
        self.problem = ""
        """Why the material may not be the newest one; empty while all is well."""

    @property
    def renewed_by_itself(self) -> bool:
        """Whether somebody sends the next certificate before this one ends, however short its life is."""
        return False

    def credentials(self, *, client_certificate: bool = True) -> grpc.ServerCredentials:
        """Credentials of one listener; new connections get the newest material.

        A client certificate is required, or never asked for: gRPC has nothing between.
        """
        offered = self.material

        def newer() -> grpc.ServerCertificateConfiguration | None:
            """For gRPC, on its threads: the new configuration, or None when nothing changed."""
            nonlocal offered
            material = self.material
            if offered is material:
                return None
            offered = material
            return material.configuration

        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", newer)  # the stubs do not know of None
        return grpc.dynamic_ssl_server_credentials(offered.configuration, fetch, client_certificate)

    @abstractmethod
    async def follow(self) -> None:
        """Keeps up with where the material comes from, until cancelled."""

    def adopt(self, material: Material) -> None:
        """From now on this counts, for new connections and for every call of open ones."""
        self.leaves.replace(self._bundles(material))
        self.material = material
        _log.info("tls_material_replaced", spiffe_id=str(material.spiffe_id or ""), not_after=int(material.not_after))

    def _bundles(self, material: Material) -> Bundles:
        bundles = Bundles.parse({self.trust_domain: material.ca, **material.federated})
        return bundles.with_intermediates(self.trust_domain, x509.load_pem_x509_certificates(material.cert)[1:])


class FileSource(TlsSource):
    """Material from PEM files that may be replaced at any time."""

    def __init__(self, files: TlsFiles, trust_domain: TrustDomain | None = None) -> None:
        """Reads the files. Without `trust_domain`, callers have to be of the server's own. Raises InvalidMaterial."""
        self._files = files
        self._stamps = _stamps(files)
        material = read_material(files)
        if trust_domain is None:
            if material.spiffe_id is None:
                raise InvalidMaterial(f"{files.cert} has no SPIFFE id: set spiffe_trust_domain to that of the callers")
            trust_domain = material.spiffe_id.trust_domain
        super().__init__(material, trust_domain)

    def refresh(self) -> bool:
        """Looks at the files now; True when new material is in use."""
        material = self._changed()
        if material is None:
            return False
        self.adopt(material)
        return True

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            try:
                material = await asyncio.to_thread(self._changed)
                if material is not None:
                    self.adopt(material)
            except Exception as error:  # noqa: BLE001  # whoever stops looking never sees the files that mend it
                self.problem = f"the new files are refused: {error!r}"
                _log.error("tls_material_refused", problem=self.problem, consequence=STAYS, exc_info=error)

    def _changed(self) -> Material | None:
        """The files' new content when they changed and fit together."""
        stamps = _stamps(self._files)
        if stamps == self._stamps:
            return None
        self._stamps = stamps
        try:
            material = read_material(self._files)
        except InvalidMaterial as error:
            self.problem = f"the new files are refused: {error}"
            _log.error("tls_material_refused", problem=str(error), consequence=STAYS)
            return None
        self.problem = ""
        return material


def read_material(files: TlsFiles) -> Material:
    """The files as one set: they parse, and the key belongs to the certificate. Raises InvalidMaterial."""
    cert, key, ca = _read(files.cert), _read(files.key), _read(files.ca)
    try:
        leaf = x509.load_pem_x509_certificates(cert)[0]
    except ValueError as error:
        raise InvalidMaterial(f"{files.cert} is not a PEM certificate: {error}") from error
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidMaterial(f"{files.key} is not an unencrypted PEM key") from error
    try:
        x509.load_pem_x509_certificates(ca)
    except ValueError as error:
        raise InvalidMaterial(f"{files.ca} has no PEM certificate: {error}") from error
    if not belongs(private, leaf):
        raise InvalidMaterial(f"the key in {files.key} does not belong to the certificate in {files.cert}")
    return Material(cert, key, ca, own_id(leaf), leaf.not_valid_after_utc.timestamp())


def belongs(private: PrivateKeyTypes, leaf: x509.Certificate) -> bool:
    """Whether a private key is the one of a certificate."""
    try:
        return private.public_key() == leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False


def own_id(leaf: x509.Certificate) -> SpiffeId | None:
    """The SPIFFE id in a certificate of our own; None when it has none, or several names."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return SpiffeId.parse(uris[0]) if len(uris) == 1 else None
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            content = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidMaterial(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > FILE_BYTES_MAX:
        raise InvalidMaterial(f"{path} has more than {FILE_BYTES_MAX} bytes")
    return content


def _stamps(files: TlsFiles) -> tuple[Stamp, ...]:
    return tuple(stamp(path) for path in (files.cert, files.key, files.ca))
