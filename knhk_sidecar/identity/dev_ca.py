"""The throw-away certificate authority of developer mode and of the tests. Never use it for anything else.

A directory holds `ca.pem`, `ca.key`, and per workload `<name>.pem` and `<name>.key`, ECDSA P-256, key files mode 0600.
Leaves are X509-SVIDs; the server's also carries DNS and IP names, since gRPC clients verify those and not the URI.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from knhk_sidecar import files
from knhk_sidecar.identity.spiffe_id import SpiffeId, TrustDomain

TRUST_DOMAIN: Final = TrustDomain("knhk.dev")
AUTHORITY_LIFE: Final = timedelta(days=30)  # a developer's directory is used for weeks
LEAF_LIFE: Final = timedelta(days=7)  # made anew at each start of the daemon
CLIENT_PATH: Final = "/dev/client"
BACKDATED: Final = timedelta(minutes=5)  # containers and hosts disagree by seconds


@dataclass(frozen=True, slots=True)
class Svid:
    """Where a workload's certificate and key are, and its id."""

    cert: Path
    key: Path
    spiffe_id: SpiffeId


@dataclass(frozen=True, slots=True)
class DevAuthority:
    """An authority of one trust domain with its directory."""

    directory: Path
    trust_domain: TrustDomain
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def ca(self) -> Path:
        """The authority's certificate, which clients and servers trust."""
        return self.directory / "ca.pem"

    def issue(
        self,
        name: str,
        path: str,
        *,
        dns: tuple[str, ...] = (),
        addresses: tuple[str, ...] = (),
        life: timedelta = LEAF_LIFE,
    ) -> Svid:
        """A new key and an X509-SVID for `spiffe://<trust domain><path>` in `<name>.pem` and `<name>.key`."""
        spiffe_id = SpiffeId.parse(f"spiffe://{self.trust_domain}{path}")
        key, leaf = self.sign(name, spiffe_id, dns=dns, addresses=addresses, life=life)
        svid = Svid(self.directory / f"{name}.pem", self.directory / f"{name}.key", spiffe_id)
        files.replace(svid.key, _private(key), 0o600)
        files.replace(svid.cert, leaf.public_bytes(serialization.Encoding.PEM), 0o644)
        return svid

    def sign(
        self,
        name: str,
        spiffe_id: SpiffeId,
        *,
        dns: tuple[str, ...] = (),
        addresses: tuple[str, ...] = (),
        life: timedelta = LEAF_LIFE,
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """A new key and its X509-SVID, in memory."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
        names += [x509.DNSName(each) for each in dns]
        names += [x509.IPAddress(ip_address(each)) for each in addresses]
        leaf = (
            x509.CertificateBuilder()
            .subject_name(_subject(name))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + life)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign=True, authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return key, leaf

    def issue_server(self) -> Svid:
        """The daemon's own: SPIFFE id, `localhost`, both loopback addresses."""
        return self.issue("server", "/sidecar", dns=("localhost",), addresses=("127.0.0.1", "::1"))

    def issue_client(self) -> Svid:
        """The developer's."""
        return self.issue("client", CLIENT_PATH)


def open_authority(directory: str | Path, trust_domain: TrustDomain = TRUST_DOMAIN) -> DevAuthority:
    """The authority in `directory`, made when there is none or when it is old or of another trust domain.

    Keeping it lets clients of an earlier start go on. Raises OSError when the directory cannot be written.
    """
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return _stored(root, trust_domain) or _made(root, trust_domain)


def _stored(root: Path, trust_domain: TrustDomain) -> DevAuthority | None:
    try:
        certificate = x509.load_pem_x509_certificate((root / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((root / "ca.key").read_bytes(), None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (FileNotFoundError, ValueError, x509.ExtensionNotFound):
        return None
    fresh = certificate.not_valid_after_utc > datetime.now(UTC) + LEAF_LIFE
    own = names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://{trust_domain}"]
    if not fresh or not own or not isinstance(key, ec.EllipticCurvePrivateKey):
        return None
    if key.public_key() != certificate.public_key():  # a start that was killed between two files
        return None
    return DevAuthority(root, trust_domain, certificate, key)


def _made(root: Path, trust_domain: TrustDomain) -> DevAuthority:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    subject = _subject("knhk throw-away authority")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign=False, authority=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    files.replace(root / "ca.key", _private(key), 0o600)
    files.replace(root / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return DevAuthority(root, trust_domain, certificate, key)


def _subject(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "knhk"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _key_usage(*, sign: bool, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
