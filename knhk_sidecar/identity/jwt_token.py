"""A signed token in the compact form (RFC 7515, 7519), read strictly before anybody believes what it says.

The signature is checked elsewhere, with a key that the token did not choose. So that nothing in a token can choose one,
its header has `alg`, `kid` and `typ` and nothing else: no key, no address of one, no extension that would have to be
understood. The text has one spelling (base64url without padding, no unused bits) and its JSON one meaning (no name
twice, no NaN), because two readings of one token are how a check is passed by.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

TOKEN_BYTES_MAX: Final = 8 * 1024  # what servers accept as a header; tokens with many groups have 4 KB
KEY_ID_CHARS_MAX: Final = 256  # the longest seen are thumbprints of 86
HEADER_NAMES: Final = frozenset({"alg", "kid", "typ"})

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class RefusedToken(Exception):
    """A token that proves nothing here. The message is for the log, not for the caller, and never has the token."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says. Nothing of it is true before its signature was checked."""

    algorithm: str
    key_id: str
    """Empty when it names none."""
    type: str
    """`typ`; empty when it has none."""
    claims: Mapping[str, object]
    signed: bytes
    """What the signature is of."""
    signature: bytes


def read_token(text: str) -> Token:
    """The token in a text. Raises RefusedToken."""
    if len(text) > TOKEN_BYTES_MAX:
        raise RefusedToken(f"has more than {TOKEN_BYTES_MAX} bytes")
    found = _COMPACT.fullmatch(text)
    if found is None:
        raise RefusedToken("is not three parts of base64url")
    header = _object(_decoded(found[1], "header"), "header")
    claims = _object(_decoded(found[2], "payload"), "payload")
    strange = header.keys() - HEADER_NAMES
    if strange:
        raise RefusedToken(f"has a header with {', '.join(sorted(repr(name[:40]) for name in strange))}")
    return Token(
        _text(header, "alg"),
        _text(header, "kid"),
        _text(header, "typ"),
        claims,
        text[: found.end(2)].encode("ascii"),
        _decoded(found[3], "signature"),
    )


def _decoded(part: str, name: str) -> bytes:
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise RefusedToken(f"has a {name} that is no base64url") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") != part:
        raise RefusedToken(f"has a {name} with a second spelling")
    return raw


def _object(raw: bytes, name: str) -> Mapping[str, object]:
    try:
        text = raw.decode("utf-8")
        found: object = _DECODER.decode(text)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair is no text
    except RecursionError:
        raise RefusedToken(f"has a {name} that is nested too deeply") from None
    except ValueError as error:
        reason = str(error) if isinstance(error, _Ambiguous) else "is no JSON"
        raise RefusedToken(f"has a {name} that {reason}") from None
    if not isinstance(found, dict):
        raise RefusedToken(f"has a {name} that is no object")
    return cast("Mapping[str, object]", found)


def _text(header: Mapping[str, object], name: str) -> str:
    value = header.get(name, "")
    if not isinstance(value, str) or len(value) > KEY_ID_CHARS_MAX or (name in header and not value):
        raise RefusedToken(f"has a header whose {name} is no short text")
    return value


class _Ambiguous(ValueError):
    """JSON that two readers may read differently."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Ambiguous("has a name twice")
    return found


def _constant(name: str) -> object:
    raise _Ambiguous(f"has {name}")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)
