"""Signatures: that this engine said something, provable by anybody who has its public key.

Ed25519 (RFC 8032) over `KNHK signed 1`, the purpose and the content, each ended by a zero byte but the last. The
purpose keeps what is signed for one use from passing for another, so one key serves them all.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from knhk_workflow.errors import InvalidInput

CASE_RECORD: Final = "case record"
CASE_EXPORT: Final = "case export"
AUDIT_EXPORT: Final = "audit export"
RECEIPT: Final = "receipt"

PUBLIC_BYTES: Final = 32
_DOMAIN: Final = b"KNHK signed 1\0"


class SigningKey:
    """A private key. Signing takes 50 us and lets other threads run."""

    __slots__ = ("_private", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        """The public key, 32 bytes."""

    @classmethod
    def generate(cls) -> SigningKey:
        """A new one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """From PKCS #8, not encrypted. Raises InvalidInput for anything else."""
        try:
            found = load_pem_private_key(pem, None)
        except (ValueError, TypeError) as error:
            raise _no_key("an Ed25519 private key", str(error)) from error
        if not isinstance(found, Ed25519PrivateKey):
            raise _no_key("an Ed25519 private key", type(found).__name__)
        return cls(found)

    def pem(self) -> bytes:
        """PKCS #8, not encrypted."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def public_pem(self) -> bytes:
        """What may be given to anybody."""
        return self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, purpose: str, content: bytes) -> bytes:
        """The signature, 64 bytes. `purpose` is one of the constants above."""
        return self._private.sign(_message(purpose, content))

    def sign_note(self, text: bytes) -> bytes:
        """The signature of a note, over its text alone as the format has it. A note begins with its origin, so nothing
        that is signed for a purpose can pass for one."""
        return self._private.sign(text)


def note_signed_by(public: bytes, text: bytes, signature: bytes) -> bool:
    """Whether the owner of a public key signed this note."""
    return _verifies(public, signature, text)


def public_key(pem: bytes) -> bytes:
    """The 32 bytes of an Ed25519 public key in PEM, or of the private key in a PEM. Raises InvalidInput."""
    if b"PRIVATE KEY" in pem:
        return SigningKey.from_pem(pem).public
    try:
        found = load_pem_public_key(pem)
    except (ValueError, TypeError) as error:
        raise _no_key("an Ed25519 public key", str(error)) from error
    if not isinstance(found, Ed25519PublicKey):
        raise _no_key("an Ed25519 public key", type(found).__name__)
    return found.public_bytes(Encoding.Raw, PublicFormat.Raw)


def fingerprint(public: bytes) -> str:
    """A short name of a public key."""
    return blake2b(public, digest_size=16).hexdigest()


def signed_by(public: bytes, purpose: str, content: bytes, signature: bytes) -> bool:
    """Whether the owner of a public key signed this for this purpose."""
    return _verifies(public, signature, _message(purpose, content))


def _verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _message(purpose: str, content: bytes) -> bytes:
    return _DOMAIN + purpose.encode() + b"\0" + content


def _no_key(what: str, found: str) -> InvalidInput:
    return InvalidInput.field("key", f"is not {what}: {found}", "use the PEM file that the daemon wrote")
