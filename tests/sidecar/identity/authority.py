"""Certificates of every kind, good and bad, for tests: an authority whose leaves are described field by field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER_AND_CLIENT = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


@dataclass(frozen=True)
class Wish:
    """What a leaf shall look like; the default is a proper X509-SVID."""

    uris: Sequence[str] = ("spiffe://a.org/web",)
    dns: Sequence[str] = ()
    authority: bool | None = False
    usage: Sequence[str] | None = ("digital_signature",)
    usage_critical: bool = True
    purposes: Sequence[x509.ObjectIdentifier] | None = SERVER_AND_CLIENT
    begins: timedelta = field(default=timedelta(minutes=-5))
    ends: timedelta = field(default=timedelta(hours=1))


class Authority:
    """A self-signed authority."""

    def __init__(self, name: str = "authority") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, wish: Wish = Wish()) -> tuple[bytes, bytes]:
        """Certificate and key as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + wish.begins)
            .not_valid_after(now + wish.ends)
        )
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in wish.uris]
        names += [x509.DNSName(name) for name in wish.dns]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if wish.authority is not None:
            builder = builder.add_extension(x509.BasicConstraints(wish.authority, None), critical=True)
        if wish.usage is not None:
            builder = builder.add_extension(key_usage(wish.usage), critical=wish.usage_critical)
        if wish.purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(wish.purposes), critical=False)
        leaf = builder.sign(self.key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return leaf.public_bytes(serialization.Encoding.PEM), private


def key_usage(bits: Sequence[str]) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature="digital_signature" in bits,
        content_commitment=False,
        key_encipherment="key_encipherment" in bits,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign="key_cert_sign" in bits,
        crl_sign="crl_sign" in bits,
        encipher_only=False,
        decipher_only=False,
    )
