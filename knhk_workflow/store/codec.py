"""What values look like: an envelope around a payload, the batch record, and the hashes that bind them.

Envelope: format u8 | codec u8 | key id u16 | flags u8 | crc32 u32 | payload. The checksum covers everything but itself.
`format` is this layout, `codec` the payload's, `key id` names the encryption key (0 = plain), `flags` are reserved. A
value with a number that this version does not know was made by a newer one: StoreFormat, never a guess.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final
from zlib import crc32

import msgspec

from knhk_workflow.errors import StoreCorrupt, StoreFormat

FORMAT: Final = 1
CODEC_RAW: Final = 0
"""Bytes that the caller understands."""
CODEC_MSGPACK: Final = 1
"""A msgspec struct as MessagePack array; fields are only appended."""
CODEC_LOG: Final = 2
"""A batch record: its 32 byte hash, then its MessagePack."""

HASH_BYTES: Final = 32
GENESIS: Final = bytes(HASH_BYTES)
"""`previous` of a shard's first batch record."""

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError)
"""What msgspec raises for bytes that are not what they should be."""

_HEADER = struct.Struct(">BBHB")
_FULL = struct.Struct(">BBHBI")
_PAYLOAD: Final = _FULL.size
_LOG_PAYLOAD: Final = _PAYLOAD + HASH_BYTES
_AUDIT_KEY: Final = b"knhk audit record"
"""Keeps the digests of audit records apart from those of commit records, which are keyed by a salt of 16 bytes."""
_LOG_PERSON: Final = b"knhk batch log"  # keeps these hashes apart from any other BLAKE2b over the same bytes

_PLAIN: Final = {codec: _HEADER.pack(FORMAT, codec, 0, 0) for codec in (CODEC_RAW, CODEC_MSGPACK, CODEC_LOG)}
_SEALS: Final = {codec: (header, crc32(header)) for codec, header in _PLAIN.items()}
_PLAIN_CRC: Final = {codec: seed for codec, (_, seed) in _SEALS.items()}
_unpack = _FULL.unpack_from


def seal(payload: bytes, *, codec: int = CODEC_MSGPACK) -> bytes:
    """The stored form of a payload. `codec` is one of the CODEC_ constants."""
    header, seed = _SEALS[codec]
    return header + crc32(payload, seed).to_bytes(4, "big") + payload


def unseal(key: bytes, value: bytes) -> bytes:
    """The payload of a stored value. StoreCorrupt naming `key` when the checksum is wrong, StoreFormat if too new."""
    if len(value) < _PAYLOAD:
        raise _corrupt(key, f"has {len(value)} bytes, less than its header")
    layout, codec, key_id, flags, crc = _unpack(value)
    payload = value[_PAYLOAD:]
    seed = _PLAIN_CRC.get(codec)
    if layout == FORMAT and seed is not None and key_id == 0 and flags == 0:
        if crc32(payload, seed) != crc:
            raise _corrupt(key, "does not match its checksum")
        return payload
    if crc32(payload, crc32(value[: _HEADER.size])) != crc:
        raise _corrupt(key, "does not match its checksum")
    raise StoreFormat(
        f"the value of key {key.hex()} has format {layout}, codec {codec}, key {key_id}, flags {flags}; this version "
        f"reads format {FORMAT} without encryption; use the version that wrote it or a newer one",
        key=key.hex(),
    )


def digest(payload: bytes, salt: bytes) -> bytes:
    """Keyed BLAKE2b (32 bytes) over a plaintext record. `salt` is the case's, 1 to 64 bytes; without it the digest
    proves nothing about the content, so purging salt and content leaves the chain whole."""
    return blake2b(payload, digest_size=HASH_BYTES, key=salt).digest()


def audit_reference(payload: bytes, time_ns: int) -> bytes:
    """What the log says of an audit record: where it lies (time u64) and its digest. The content is nobody's secret
    from whoever reads the log, so the digest needs no salt."""
    return time_ns.to_bytes(8, "big") + digest(payload, _AUDIT_KEY)


def audit_place(reference: bytes) -> tuple[int, int]:
    """(time, number) in the key of the audit record that a reference is of."""
    return int.from_bytes(reference[:8], "big"), int.from_bytes(reference[8:16], "big")


class LogEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One commit record of one case: events first_sequence .. first_sequence + count - 1, and their digest."""

    tenant: str
    case_id: str
    first_sequence: int
    count: int
    digest: bytes


class LogRecord(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """What one group commit did to one shard: hash chain, truncation check and the order of everything in one."""

    previous: bytes
    """Hash of the record at the position before, GENESIS for the first."""
    entries: tuple[LogEntry, ...]
    audits: tuple[bytes, ...]
    """References of the audit records that were written with it: see `audit_reference`."""
    time_ns: int
    epoch: int = 0
    """Of the lease under which it was written."""


class Lease(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Who may write a shard. The epoch grows by one with every claim; each commit expects the exact record."""

    epoch: int
    owner: str
    since_ns: int


class _Link(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The head of a LogRecord; decoding skips the rest."""

    previous: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_log = msgspec.msgpack.Decoder(LogRecord).decode
_decode_link = msgspec.msgpack.Decoder(_Link).decode
_decode_lease = msgspec.msgpack.Decoder(Lease).decode
_decode_keys = msgspec.msgpack.Decoder(list[bytes]).decode


def seal_log(record: LogRecord) -> tuple[bytes, bytes]:
    """(stored value, hash) of a batch record."""
    payload = _encode(record)
    hashed = _hash(payload)
    return seal(hashed + payload, codec=CODEC_LOG), hashed


def unseal_log(key: bytes, value: bytes) -> tuple[LogRecord, bytes]:
    """(record, hash). StoreCorrupt when the hash is not that of the content."""
    body = unseal(key, value)
    payload = body[HASH_BYTES:]
    if _hash(payload) != body[:HASH_BYTES]:
        raise _corrupt(key, "does not match its hash")
    try:
        return _decode_log(payload), body[:HASH_BYTES]
    except UNREADABLE as error:
        raise _corrupt(key, f"is no batch record: {error}") from error


def log_link(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """(previous hash, hash) of a stored batch record, checked like unseal_log but without decoding its entries."""
    body = unseal(key, value)
    payload = body[HASH_BYTES:]
    if _hash(payload) != body[:HASH_BYTES]:
        raise _corrupt(key, "does not match its hash")
    try:
        return _decode_link(payload).previous, body[:HASH_BYTES]
    except UNREADABLE as error:
        raise _corrupt(key, f"is no batch record: {error}") from error


def log_hash(value: bytes) -> bytes:
    """The hash inside a stored batch record, unchecked: for a writer that has just sealed it."""
    return value[_PAYLOAD:_LOG_PAYLOAD]


def seal_lease(lease: Lease) -> bytes:
    """The stored form of a lease."""
    return seal(_encode(lease))


def unseal_lease(key: bytes, value: bytes) -> Lease:
    """The lease in a stored value."""
    try:
        return _decode_lease(unseal(key, value))
    except UNREADABLE as error:
        raise _corrupt(key, f"is no lease: {error}") from error


def seal_keys(keys: list[bytes]) -> bytes:
    """The stored form of a list of keys (an entry of the idempotency expiry index)."""
    return seal(_encode(keys))


def unseal_keys(key: bytes, value: bytes) -> list[bytes]:
    """The keys in such an entry."""
    try:
        return _decode_keys(unseal(key, value))
    except UNREADABLE as error:
        raise _corrupt(key, f"is no list of keys: {error}") from error


def _hash(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=HASH_BYTES, person=_LOG_PERSON).digest()


def _corrupt(key: bytes, what: str) -> StoreCorrupt:
    return StoreCorrupt(f"the value of key {key.hex()} {what}", key=key.hex())
