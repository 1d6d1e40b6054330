"""Certificates of every kind, good and bad, for tests: authorities, and leaves that are described field by field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

SERVER_AND_CLIENT = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
NOBODY_KNOWS = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")


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
    unknown_critical: bool = False


class Authority:
    """A self-signed authority, or an intermediate of one. `chain` is what its leaves are sent with, PEM."""

    def __init__(
        self,
        name: str = "authority",
        *,
        issuer: Authority | None = None,
        path_length: int | None = None,
        constraints: x509.NameConstraints | None = None,
        is_authority: bool = True,
        begins: timedelta = timedelta(days=-2),
        ends: timedelta = timedelta(days=2),
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1()) if key is None else key
        self.common_name = name
        self.name = _name(name)
        signer = self if issuer is None else issuer
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(signer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(is_authority, path_length), critical=True)
        )
        if constraints is not None:
            builder = builder.add_extension(constraints, critical=True)
        self.certificate = builder.sign(signer.key, hashes.SHA256())
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)
        self.der = self.certificate.public_bytes(serialization.Encoding.DER)
        self.chain: bytes = b"" if issuer is None else self.pem + issuer.chain

    def intermediate(
        self,
        name: str,
        *,
        path_length: int | None = None,
        constraints: x509.NameConstraints | None = None,
        is_authority: bool = True,
        begins: timedelta = timedelta(days=-2),
        ends: timedelta = timedelta(days=2),
    ) -> Authority:
        """An authority that this one vouches for."""
        return Authority(
            name,
            issuer=self,
            path_length=path_length,
            constraints=constraints,
            is_authority=is_authority,
            begins=begins,
            ends=ends,
        )

    def vouch_for(self, other: Authority) -> bytes:
        """A certificate, PEM, that makes an authority of the other one's key and name, whatever it is elsewhere."""
        return Authority(other.common_name, issuer=self, key=other.key).pem

    def issue(self, wish: Wish = Wish()) -> tuple[bytes, bytes]:
        """Certificate, without the chain, and key as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self.sign(wish, key).public_bytes(serialization.Encoding.PEM), private_pem(key)

    def issue_chain(self, wish: Wish = Wish()) -> tuple[bytes, bytes]:
        """Certificate with the intermediates, and key as PEM."""
        cert, key = self.issue(wish)
        return cert + self.chain, key

    def sign(
        self, wish: Wish, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey | None = None
    ) -> x509.Certificate:
        """The wished certificate of this key; `by` signs in place of the authority's own key."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name("leaf"))
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
        if wish.unknown_critical:
            builder = builder.add_extension(NOBODY_KNOWS, critical=True)
        return builder.sign(by or self.key, hashes.SHA256())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


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
