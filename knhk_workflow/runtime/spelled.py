"""Bytes that the text of a proof spells. Each has one spelling: with two, a changed file could pass for whole."""

from __future__ import annotations

from base64 import b64decode, b64encode


def from_hex(text: str) -> bytes:
    """Of lower-case hexadecimal digits and nothing else. Raises ValueError."""
    found = bytes.fromhex(text)
    if found.hex() != text:
        raise ValueError("hexadecimal digits are written in lower case, without spaces")
    return found


def from_base64(text: str) -> bytes:
    """Of base64 (RFC 4648, section 4), padded, with zero bits at its end. Raises ValueError."""
    found = b64decode(text, validate=True)
    if b64encode(found) != text.encode():
        raise ValueError("there is another way to write it in base64")
    return found
