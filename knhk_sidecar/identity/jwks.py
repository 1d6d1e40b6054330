"""Keys that tokens are verified with (RFC 7517), and which algorithms each of them may be used for.

The algorithm follows from the key, never from the token: an RSA key verifies RS and PS, a curve its one ES. A set is
trusted as far as whoever publishes it, but not to be well made: keys that are weak, private, symmetric, for another
use, or named twice are left out; what is left is looked up by `kid` in a dictionary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import structlog
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm, get_default_algorithms

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""All that may be allowed: signatures by a private key. `none` and HMAC have no public key."""
KEYS_MAX: Final = 64  # large providers publish about ten
RSA_BITS_MIN: Final = 2048  # RFC 7518, 3.3
RSA_BITS_MAX: Final = 8192  # verifying takes 1 ms there, and grows with the square
USES: Final = frozenset({"sig", "jwt-svid"})  # SPIFFE Trust Domain and Bundle, 4.2.2 has the latter

_RSA = frozenset(name for name in ALGORITHMS if not name.startswith("ES"))
_CURVES: Final[Mapping[str, frozenset[str]]] = {
    "P-256": frozenset({"ES256"}),
    "P-384": frozenset({"ES384"}),
    "P-521": frozenset({"ES512"}),
}
_VERIFIERS = get_default_algorithms()
_log = structlog.get_logger(__name__)

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class InvalidKeys(Exception):
    """A document that is no set of keys, or whose keys are all unusable."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One public key and what it may verify."""

    key: PublicKey
    algorithms: frozenset[str]

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Whether the signature is one of this key. `algorithm` is one of the key's."""
        assert algorithm in self.algorithms, "the caller compares the algorithm with the key's"
        return _VERIFIERS[algorithm].verify(signed, self.key, signature)


@dataclass(frozen=True, slots=True)
class KeySet:
    """Keys by `kid`. A key without one can only be used when it is the only one."""

    keys: Mapping[str, VerificationKey] = field(default_factory=dict)

    def find(self, key_id: str) -> VerificationKey | None:
        """The key with this id; without an id, the only key there is."""
        if key_id:
            return self.keys.get(key_id)
        return next(iter(self.keys.values())) if len(self.keys) == 1 else None


def read_key_set(raw: bytes, source: str) -> KeySet:
    """The usable keys of a JWK set. `source` names it in the log. Raises InvalidKeys."""
    try:
        document: object = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidKeys("is no JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise InvalidKeys("is no set of keys")
    if len(entries) > KEYS_MAX:
        raise InvalidKeys(f"has more than {KEYS_MAX} keys")
    found: dict[str, VerificationKey] = {}
    twice: set[str] = set()
    for position, entry in enumerate(entries):
        try:
            key_id, key = _read(entry)
        except InvalidKeys as error:
            _log.warning("key_left_out", source=source, position=position, problem=f"the key {error}")
            continue
        if key is None:
            continue
        if key_id in found:
            twice.add(key_id)
        found[key_id] = key
    for key_id in twice:
        _log.warning("key_left_out", source=source, problem=f"several keys have the id {key_id[:80]!r}")
        del found[key_id]
    if not found:
        raise InvalidKeys("has no usable key")
    if len(found) > 1:
        found.pop("", None)
    return KeySet(found)


def _read(entry: object) -> tuple[str, VerificationKey | None]:
    """One key with its id; None for a key that is for something else. Raises InvalidKeys for one that is bad."""
    if not isinstance(entry, dict):
        raise InvalidKeys("is no object")
    jwk = cast("Mapping[str, object]", entry)
    use, operations = jwk.get("use", "sig"), jwk.get("key_ops")
    if not isinstance(use, str):
        raise InvalidKeys("has a use that is no text")
    if use not in USES or (isinstance(operations, list) and "verify" not in operations):
        return "", None
    if jwk.get("kty") not in ("RSA", "EC"):
        return "", None  # RFC 7517, section 5: kinds that are not understood are passed over
    if "d" in jwk:
        raise InvalidKeys("is private: whoever can read the set can sign with it")
    key_id = jwk.get("kid", "")
    if not isinstance(key_id, str):
        raise InvalidKeys("has an id that is no text")
    algorithms, key = _rsa(jwk) if jwk["kty"] == "RSA" else _ec(jwk)
    declared = jwk.get("alg")
    if declared is not None:
        algorithms &= {declared} if isinstance(declared, str) else set()
    if not algorithms:
        raise InvalidKeys("is for no algorithm that is allowed")
    return key_id, VerificationKey(key, frozenset(algorithms))


def _rsa(jwk: Mapping[str, object]) -> tuple[frozenset[str], PublicKey]:
    try:
        key = RSAAlgorithm.from_jwk(dict(jwk))
    except Exception as error:  # noqa: BLE001  # whatever a library makes of one key, the others count
        raise InvalidKeys(f"cannot be read: {type(error).__name__}") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise InvalidKeys("is private")
    if not RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
        raise InvalidKeys(f"has {key.key_size} bits, not {RSA_BITS_MIN} to {RSA_BITS_MAX}")
    return _RSA, key


def _ec(jwk: Mapping[str, object]) -> tuple[frozenset[str], PublicKey]:
    algorithms = _CURVES.get(str(jwk.get("crv")))
    if algorithms is None:
        raise InvalidKeys("is on a curve that is not allowed")
    try:
        key = ECAlgorithm.from_jwk(dict(jwk))
    except Exception as error:  # noqa: BLE001  # as above
        raise InvalidKeys(f"cannot be read: {type(error).__name__}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidKeys("is private")
    return algorithms, key
