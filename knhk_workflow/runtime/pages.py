"""Page sizes and page tokens.

A token is opaque to callers: where the next page starts, bound to the list and the filter that it came from, so that
it cannot be used with another one by mistake.
"""

from __future__ import annotations

import base64
import binascii
from hashlib import blake2b
from typing import Final

from knhk_workflow.errors import InvalidInput

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000  # keeps a page well below the 4 MB of a gRPC message
_BOUND: Final = 8


def page_size_of(asked: int) -> int:
    """The size to use: 0 is the default, more than the maximum is the maximum."""
    if asked < 0:
        raise InvalidInput.field("page_size", f"must not be negative, got {asked}", "0 means the default of 100")
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def encode_token(position: bytes, bound_to: str) -> str:
    """The token for the page after `position` of the list described by `bound_to`."""
    return base64.urlsafe_b64encode(_mark(bound_to) + position).decode().rstrip("=")


def decode_token(token: str, bound_to: str) -> bytes:
    """The position in a token; empty for the first page. Raises InvalidInput for a token of another list."""
    if not token:
        return b""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError) as error:
        raise InvalidInput.field("page_token", "is not a page token", "use the next_page_token of a page") from error
    if raw[:_BOUND] != _mark(bound_to):
        raise InvalidInput.field(
            "page_token", "belongs to another list or filter", "repeat the filter that the first page was asked with"
        )
    return raw[_BOUND:]


def _mark(bound_to: str) -> bytes:
    return blake2b(bound_to.encode(), digest_size=_BOUND).digest()
