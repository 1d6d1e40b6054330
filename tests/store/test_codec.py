"""The envelope of values and the batch record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk_workflow.errors import StoreCorrupt, StoreFormat
from knhk_workflow.store import (
    CODEC_RAW,
    GENESIS,
    Lease,
    LogEntry,
    LogRecord,
    digest,
    seal,
    seal_log,
    unseal,
    unseal_log,
)
from knhk_workflow.store.codec import log_hash, log_link, seal_keys, seal_lease, unseal_keys, unseal_lease

KEY = b"key"
RECORD = LogRecord(GENESIS, (LogEntry("t", "c", 1, 2, b"d" * 32), LogEntry("t", "d", 7, 1, b"e" * 32)), (b"a",), 5, 3)


@given(st.binary(max_size=300))
def test_payloads_come_back(payload: bytes) -> None:
    assert unseal(KEY, seal(payload)) == payload
    assert unseal(KEY, seal(payload, codec=CODEC_RAW)) == payload


@given(st.binary(max_size=60), st.data())
def test_every_flipped_bit_is_noticed(payload: bytes, data: st.DataObject) -> None:
    value = bytearray(seal(payload))
    bit = data.draw(st.integers(0, len(value) * 8 - 1))
    value[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StoreCorrupt, match=KEY.hex()):
        unseal(KEY, bytes(value))


@given(st.integers(0, 8))
def test_a_cut_value_is_noticed(length: int) -> None:
    with pytest.raises(StoreCorrupt, match=KEY.hex()):
        unseal(KEY, seal(b"payload")[:length])


@pytest.mark.parametrize(
    "header", [bytes([2, 1, 0, 0, 0]), bytes([1, 9, 0, 0, 0]), bytes([1, 1, 0, 7, 0]), b"\1\1\0\0\1"]
)
def test_a_newer_value_is_not_guessed_at(header: bytes) -> None:
    from zlib import crc32

    with pytest.raises(StoreFormat, match="newer"):
        unseal(KEY, header + crc32(b"payload", crc32(header)).to_bytes(4, "big") + b"payload")


def test_the_layout_of_values_never_changes() -> None:
    assert seal(b"payload").hex() == "0101000000febee0ab" + b"payload".hex()
    assert unseal_log(KEY, seal_log(RECORD)[0])[0] == RECORD


def test_a_batch_record_comes_back_with_its_hash() -> None:
    value, hashed = seal_log(RECORD)
    assert unseal_log(KEY, value) == (RECORD, hashed)
    assert log_hash(value) == hashed
    assert log_link(KEY, value) == (RECORD.previous, hashed)


def test_a_batch_record_under_a_wrong_hash_is_refused() -> None:
    value, _ = seal_log(RECORD)
    other = seal(bytes(32) + unseal(KEY, value)[32:], codec=2)
    with pytest.raises(StoreCorrupt, match="hash"):
        unseal_log(KEY, other)
    with pytest.raises(StoreCorrupt, match="hash"):
        log_link(KEY, other)


def test_leases_and_key_lists_come_back() -> None:
    lease = Lease(4, "me", 9)
    assert unseal_lease(KEY, seal_lease(lease)) == lease
    assert unseal_keys(KEY, seal_keys([b"a", b"b"])) == [b"a", b"b"]
    with pytest.raises(StoreCorrupt):
        unseal_lease(KEY, seal_keys([b"a"]))


def test_a_digest_needs_its_salt() -> None:
    assert digest(b"record", b"salt") == digest(b"record", b"salt")
    assert digest(b"record", b"salt") != digest(b"record", b"other")
    assert len(digest(b"record", b"salt")) == 32
