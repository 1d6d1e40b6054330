"""Case data: a JSON object kept as bytes until somebody must read it.

Merging replaces top-level keys (no deep merge; null stays null) and leaves the values themselves unparsed.
"""

from __future__ import annotations

import msgspec

EMPTY = b"{}"
DATA_BYTES_MAX = 2 * 1024 * 1024  # data of one net instance; fits a gRPC message with room for the rest

_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw])


def merge(data: bytes, patch: bytes) -> bytes:
    """`data` with the top-level keys of `patch` replaced or added."""
    if data == EMPTY:
        return patch
    merged = _shallow.decode(data)
    merged.update(_shallow.decode(patch))
    return msgspec.json.encode(merged)
