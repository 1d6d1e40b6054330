"""Backups: a store as one file, taken beside its work, whole or since an earlier one.

A backup is what a snapshot shows, so it is consistent and nobody waits for it. The file:

    8 bytes KNHKBKP1, then frames: length u32 | crc32 u32 | MessagePack of one of the structs below

    Begin      what it is of: shards, where each log began (after) and ended (until), with hashes
    Touched    incremental only: the cases that changed since
    Pairs      keys and values
    End        counts, and the hash of everything before it

Three kinds of keys. The log, the commit records, those of the audit and the notes of purged cases never change: an
incremental backup has those behind the position where the earlier one ended. What is kept for each case (head,
snapshot, work, incidents) it has for the cases that the log names since. Of everything else (definitions, requests,
timers, messages ...) it has all, which replaces what the earlier ones have. So restoring takes the first backup and all
that follow, in order, and deletes nothing; the records of cases that a note says were purged are left out. The Merkle
tree over the log is not part of a backup: it is made again.

Reading checks every frame, the hash of the whole, the chain of each log, and that backups follow each other.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import BinaryIO, Final
from zlib import crc32

import msgspec

from knhk_workflow.errors import InvalidInput, StoreCorrupt, StoreFormat
from knhk_workflow.store.chain import Link, walk
from knhk_workflow.store.codec import GENESIS, UNREADABLE, audit_place, unseal, unseal_log
from knhk_workflow.store.keys import (
    AUDIT,
    HEAD,
    INCIDENT,
    ITEM,
    LOG,
    PURGED,
    RECORD,
    SNAPSHOT,
    TILE,
    Keyspace,
    case_in,
    is_sealed,
    kind_of,
    parse_log,
    past_kind,
    shard_range,
)
from knhk_workflow.store.store import Reads

MAGIC: Final = b"KNHKBKP1"
FORMAT: Final = 1
FRAME_BYTES: Final = 256 * 1024  # of pairs gathered before they become a frame; one value alone may be longer
FRAME_MAX: Final = 64 * 1024 * 1024  # a frame longer than that is damage: the largest value has some MB
READ_ROWS: Final = 128
CHUNK: Final = 1024 * 1024

PER_CASE: Final = frozenset({HEAD, SNAPSHOT, ITEM, INCIDENT})
KEPT: Final = frozenset({AUDIT, LOG, RECORD, PURGED})
MADE_AGAIN: Final = frozenset({TILE})
"""What follows from the log, and is not part of a backup."""
_frame = struct.Struct(">II")


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A position in a shard's log with the hash of the record there; position 0 is before the first."""

    shard: int
    position: int
    hashed: bytes


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """What a backup is of. `after` is empty for a whole one; `estimate` is about how many records follow."""

    format: int
    shards: int
    made_at: int
    after: tuple[Place, ...]
    until: tuple[Place, ...]
    estimate: int


class Touched(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Cases that changed since: (tenant, case id)."""

    cases: tuple[tuple[str, str], ...]


class Pairs(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Keys and values."""

    pairs: tuple[tuple[bytes, bytes], ...]


class End(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """How many pairs and commit records there were, and the BLAKE2b-256 of every byte before this frame."""

    pairs: int
    records: int
    digest: bytes


Part = Begin | Touched | Pairs | End


class Piece(msgspec.Struct, frozen=True):
    """Bytes to append to a backup, and how far it is. The last one has the token and the digest."""

    chunk: bytes
    records: int
    estimate: int
    token: str = ""
    digest: str = ""


class Archive(msgspec.Struct, frozen=True):
    """A backup file that was read to its end and found whole."""

    begin: Begin
    end: End
    size: int

    @property
    def token(self) -> str:
        """What the next incremental backup begins with."""
        return token_of(self.begin.until)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Part).decode


def token_of(places: Iterable[Place]) -> str:
    """The token of a backup that ended at these places."""
    return base64.urlsafe_b64encode(_encode(tuple(places))).decode().rstrip("=")


def places_of(token: str) -> tuple[Place, ...]:
    """The places in a token. Raises InvalidInput."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        found = msgspec.msgpack.decode(raw, type=tuple[Place, ...])
        if not found:
            raise ValueError("no places")
    except (binascii.Error, ValueError, *UNREADABLE) as error:
        raise InvalidInput.field(
            "after_token", "is not the token of a backup", "use the one that the earlier backup ended with"
        ) from error
    return found


# -- taking -----------------------------------------------------------------------------------------------------------


async def take(reads: Reads, shards: int, now: int, after_token: str = "") -> AsyncIterator[Piece]:
    """A backup of what `reads`, a snapshot, shows: whole, or what happened after the one that ended with the token.

    Chunks of at most CHUNK bytes. Raises InvalidInput for a token that is not of this store, StoreCorrupt when
    something that would go into the backup is damaged: there is no silent backup of a damaged store. An incremental
    one lacks what is derived of cases that nobody has touched since, so damage there does not keep it from being made,
    and restoring it behind the one before brings back what was damaged.
    """
    keys = Keyspace(shards)
    after = places_of(after_token) if after_token else ()
    until = [await _newest(reads, keys, shard) for shard in keys.all_shards()]
    await _check_follows(reads, keys, after, until)
    began = {place.shard: place for place in after}
    estimate = sum(place.position - (began[place.shard].position if after else 0) for place in until)
    writer = _Writer(estimate)
    writer.frame(Begin(FORMAT, shards, now, after, tuple(until), estimate), MAGIC)
    touched: dict[tuple[str, str], None] = {}
    for place in until:
        first = began.get(place.shard, Place(place.shard, 0, GENESIS))
        async for each in walk(reads, keys, place.shard, first.position, first.hashed):
            if not isinstance(each, Link):
                raise each.error
            writer.pair(keys.log(place.shard, each.position), each.value)
            if after:
                for reference in each.record.audits:
                    audit = keys.audit(place.shard, *audit_place(reference))
                    value = await reads.get(audit)
                    if value is not None:
                        writer.pair(audit, value)
                for entry in each.record.entries:
                    touched[entry.tenant, entry.case_id] = None
                    record = keys.case_record(entry.tenant, entry.case_id, entry.first_sequence)
                    value = await reads.get(record)
                    if value is not None:  # else purged since: the digest in the log stays
                        writer.pair(record, value)
            for piece in writer.pieces():
                yield piece
    if after:
        writer.frame(Touched(tuple(touched)))
        for tenant, case_id in touched:
            case = keys.case(tenant, case_id)
            for key in (case.head, case.snapshot, case.purged()):
                value = await reads.get(key)
                if value is not None:
                    writer.pair(key, value)
            for start, end in (case.items(), case.incidents()):
                async for key, value in _rows(reads, start, end, frozenset()):
                    writer.pair(key, value)
            for piece in writer.pieces():
                yield piece
    skipped = MADE_AGAIN | (KEPT | PER_CASE if after else frozenset({LOG}))
    for shard in keys.all_shards():
        async for key, value in _rows(reads, *shard_range(shard), skipped):
            writer.pair(key, value)
            for piece in writer.pieces():
                yield piece
    writer.end()
    for piece in writer.pieces(last=True):
        yield piece
    yield Piece(b"", writer.records, estimate, token_of(until), writer.whole.hexdigest())


async def _newest(reads: Reads, keys: Keyspace, shard: int) -> Place:
    last = await reads.scan(*keys.log_range(shard), limit=1, reverse=True)
    if not last:
        return Place(shard, 0, GENESIS)
    key, value = last[0]
    return Place(shard, parse_log(key)[1], unseal_log(key, value)[1])


async def _check_follows(reads: Reads, keys: Keyspace, after: Sequence[Place], until: Sequence[Place]) -> None:
    """That a token is of this store: at its positions the log has its hashes."""
    if not after:
        return
    for place, end in zip(after, until, strict=False):
        held = await reads.get(keys.log(place.shard, place.position)) if place.position else None
        hashed = unseal_log(keys.log(place.shard, place.position), held)[1] if held is not None else GENESIS
        if place.shard != end.shard or place.position > end.position or hashed != place.hashed:
            break
    else:
        if len(after) == len(until):
            return
    raise InvalidInput.field("after_token", "is of another store", "take a whole backup first")


async def _rows(
    reads: Reads, start: bytes, end: bytes, skipped: frozenset[bytes]
) -> AsyncIterator[tuple[bytes, bytes]]:
    """Pairs of a range without the skipped kinds, which are jumped over."""
    while start < end:
        rows = await reads.scan(start, end, limit=READ_ROWS)
        if not rows:
            return
        start = rows[-1][0] + b"\0"
        for key, value in rows:
            if kind_of(key) in skipped:
                start = past_kind(key)
                break
            yield key, value
        else:
            if len(rows) < READ_ROWS:
                return


class _Writer:
    """Gathers pairs into frames and frames into pieces."""

    def __init__(self, estimate: int) -> None:
        self.records = self._pairs = 0
        self._estimate = estimate
        self._held: list[tuple[bytes, bytes]] = []
        self._size = 0
        self._out = bytearray()
        self._hash = blake2b(digest_size=32)
        self.whole = blake2b(digest_size=32)

    def pair(self, key: bytes, value: bytes) -> None:
        """Raises StoreCorrupt for a value that does not match its checksum."""
        if is_sealed(key, value):
            _check_whole(key, value)
        self._held.append((key, value))
        self._pairs += 1
        self.records += kind_of(key) == RECORD
        self._size += len(key) + len(value)
        if self._size >= FRAME_BYTES:
            self._flush()

    def frame(self, part: Part, before: bytes = b"") -> None:
        self._flush()
        self._put(part, before)

    def end(self) -> None:
        self._flush()
        self._put(End(self._pairs, self.records, self._hash.digest()))

    def pieces(self, last: bool = False) -> Iterator[Piece]:
        while len(self._out) >= CHUNK or (last and self._out):
            chunk = bytes(self._out[:CHUNK])
            del self._out[:CHUNK]
            self.whole.update(chunk)
            yield Piece(chunk, self.records, self._estimate)

    def _flush(self) -> None:
        if self._held:
            held, self._held, self._size = tuple(self._held), [], 0
            self._put(Pairs(held))

    def _put(self, part: Part, before: bytes = b"") -> None:
        payload = _encode(part)
        framed = before + _frame.pack(len(payload), crc32(payload)) + payload
        self._hash.update(framed)
        self._out += framed


def _check_whole(key: bytes, value: bytes) -> None:
    try:
        unseal(key, value)
    except StoreCorrupt as error:
        advice = "no backup is made of what is damaged: verify the store, and restore the last good backup"
        if kind_of(key) in PER_CASE:
            advice += ", with an incremental one after it if the case was not touched since"
        raise StoreCorrupt(f"{error.message}; {advice}", key=key.hex()) from error


# -- reading ----------------------------------------------------------------------------------------------------------


def parts(file: BinaryIO, name: str) -> Iterator[Part]:
    """The parts of a backup, each checked, the whole at the end. Raises StoreCorrupt (saying at which byte), and
    StoreFormat for what is no backup or one of a newer version. Nothing may be believed before the iteration has ended.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise StoreFormat(f"{name} is not a backup", path=name)
    hashed = blake2b(MAGIC, digest_size=32)
    at = len(MAGIC)
    pairs = records = 0
    begun = False
    while True:
        head = file.read(_frame.size)
        if len(head) < _frame.size:
            raise _broken(name, at, "it is cut off")
        length, checksum = _frame.unpack(head)
        if length > FRAME_MAX:
            raise _broken(name, at, "it does not fit together")
        payload = file.read(length)
        if len(payload) < length:
            raise _broken(name, at, "it is cut off")
        if crc32(payload) != checksum:
            raise _broken(name, at, "a part does not match its checksum")
        try:
            part = _decode(payload)
        except UNREADABLE as error:
            raise _broken(name, at, f"a part cannot be understood ({error})") from error
        if isinstance(part, Begin):
            if part.format != FORMAT:
                raise StoreFormat(
                    f"{name} has format {part.format}, this version reads {FORMAT}; use the version that made it",
                    path=name,
                )
            begun = True
        elif not begun:
            raise _broken(name, at, "its beginning is missing")
        elif isinstance(part, Pairs):
            pairs += len(part.pairs)
            records += sum(kind_of(key) == RECORD for key, _ in part.pairs)
        elif isinstance(part, End):
            if (part.pairs, part.records, part.digest) != (pairs, records, hashed.digest()):
                raise _broken(name, at, "the whole does not match its digest")
            if file.read(1):
                raise _broken(name, at, "there is something behind its end")
            yield part
            return
        yield part
        hashed.update(head)
        hashed.update(payload)
        at += _frame.size + length


def check(file: BinaryIO, name: str) -> Archive:
    """Read a whole backup: frames, digest, and the chain of each log. Raises as `parts`."""
    begin: Begin | None = None
    at: dict[int, Place] = {}
    for part in parts(file, name):
        if isinstance(part, Begin):
            begin = part
            at = {place.shard: place for place in part.after}
        elif isinstance(part, Pairs):
            for key, value in part.pairs:
                if kind_of(key) != LOG:
                    continue
                shard, position = parse_log(key)
                record, hashed = unseal_log(key, value)
                before = at.get(shard, Place(shard, 0, GENESIS))
                if position != before.position + 1 or record.previous != before.hashed:
                    raise StoreCorrupt(
                        f"{name}: shard {shard}: the chain is broken at log position {position}", path=name
                    )
                at[shard] = Place(shard, position, hashed)
        elif isinstance(part, End):
            assert begin is not None
            if any(at.get(place.shard, Place(place.shard, 0, GENESIS)) != place for place in begin.until):
                raise StoreCorrupt(f"{name}: a log does not end where the backup says", path=name)
            return Archive(begin, part, file.tell())
    raise AssertionError("parts end with End")


def check_sequence(archives: Sequence[tuple[str, Archive]]) -> None:
    """That these backups follow each other, the first one whole. Raises InvalidInput naming the one that does not."""
    before: Archive | None = None
    for name, archive in archives:
        if before is None:
            if archive.begin.after:
                raise InvalidInput.field("archives", f"{name} is not a whole backup", "begin with a whole one")
        elif archive.begin.after != before.begin.until:
            raise InvalidInput.field(
                "archives", f"{name} does not begin where the one before it ends", "give all of them, in order"
            )
        before = archive


class Selection:
    """Of several backups that follow each other, what of each is still so after the last."""

    def __init__(self) -> None:
        self._later: set[tuple[str, str]] = set()
        self._last = True

    def copy(self) -> Selection:
        """The same, to be kept."""
        made = Selection()
        made._later, made._last = set(self._later), self._last
        return made

    def behind(self, touched: Iterable[tuple[str, str]]) -> None:
        """From now on about the backup before one that has these cases."""
        self._later.update(touched)
        self._last = False

    def has(self, key: bytes) -> bool:
        """Whether a pair of the backup at hand is to be restored."""
        kind = kind_of(key)
        if kind in KEPT:
            return True
        if kind in PER_CASE:
            return not self._later or case_in(key) not in self._later
        return self._last


def _broken(name: str, at: int, what: str) -> StoreCorrupt:
    return StoreCorrupt(f"the backup {name} is damaged at byte {at}: {what}; use another one", path=name, at=str(at))
