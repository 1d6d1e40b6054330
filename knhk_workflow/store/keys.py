"""Keys: where everything lies, in an order that makes every question a range.

Layout (`text` = UTF-8, escaped and terminated; numbers big endian, so byte order is number order):

    shard u16 | text tenant | kind | parts      what belongs to a tenant
    shard u16 | 00 02       | kind | parts      what a shard scans over all tenants: log, lease, timers, effects, audit,
                                                expiry

Escaping: 00 becomes 00 FF, the end is 00 01. Hence no text is a prefix of another, "a" sorts before "a\\0" and before
"ab", and 00 02 is no tenant. Free-form ids may contain anything that UTF-8 can say.

`shard_of` spreads cases by a hash of tenant and case id; it is part of the format and never changes. Definitions lie in
`META_SHARD`. Every key of a case is in the case's shard, so a command is one commit on one shard.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from knhk_workflow.errors import InvalidInput, StoreCorrupt
from knhk_workflow.store.store import Range

META_SHARD: Final = 0xFFF0
"""Definitions, policy, connectors. Above every case shard; 0xFFFF is left to stores for keys of their own."""

SHARDS_MAX: Final = 4_096  # a shard costs a lease and a log; 64 serve dozens of instances
NUMBER_MAX: Final = (1 << 64) - 1

_END: Final = b"\x00\x01"
_SYSTEM: Final = b"\x00\x02"

RECORD: Final = b"c"
HEAD: Final = b"h"
SNAPSHOT: Final = b"s"
ITEM: Final = b"i"
INCIDENT: Final = b"n"
BUSINESS: Final = b"b"
REQUEST: Final = b"r"
DEFINITION: Final = b"d"
DEFINITION_LATEST: Final = b"l"
DEFINITION_DIGEST: Final = b"g"
# kinds below 00 02
LOG: Final = b"L"
LEASE: Final = b"O"
TIMER: Final = b"T"
EFFECT: Final = b"E"
REQUEST_EXPIRY: Final = b"X"
MESSAGE: Final = b"M"
CONNECTOR: Final = b"C"
SCHEDULE: Final = b"S"
PURGED: Final = b"P"
AUDIT: Final = b"A"
PURGING: Final = b"Q"
PURGED_AUDIT: Final = b"R"
TILE: Final = b"H"
IDENTITY: Final = b"I"

_BARE: Final = frozenset({BUSINESS, TIMER, PURGING, PURGED_AUDIT, DEFINITION_LATEST, DEFINITION_DIGEST})
"""Kinds that say everything with their key, or whose values are a number or a reference: these have no envelope."""

_u16 = struct.Struct(">H").pack
_u64 = struct.Struct(">Q").pack
_u64_u64 = struct.Struct(">QQ").pack
_read_u16 = struct.Struct(">H").unpack_from
_read_u64 = struct.Struct(">Q").unpack_from


def _text(value: str) -> bytes:
    data = value.encode()
    if b"\x00" in data:
        data = data.replace(b"\x00", b"\x00\xff")
    return data + _END


def _under(prefix: bytes) -> Range:
    """All keys that begin with `prefix`, which ends with a kind or a terminator and so never with FF."""
    return prefix, prefix[:-1] + bytes((prefix[-1] + 1,))


class CaseKeys:
    """The keys of one case, kept beside the live case: those of every command are ready, the others are put together
    when they are asked for."""

    __slots__ = ("_area", "_case", "_item", "_record", "_tenant", "case_id", "head", "shard", "tenant")

    def __init__(self, shard: int, tenant: str, case_id: str) -> None:
        self.shard = shard
        self.tenant = tenant
        self.case_id = case_id
        self._tenant = _text(tenant)
        self._case = case = _text(case_id)
        self._area = area = _u16(shard) + self._tenant
        self.head = area + HEAD + case
        self._record = area + RECORD + case
        self._item = area + ITEM + case

    @property
    def snapshot(self) -> bytes:
        """The case's newest snapshot."""
        return self._area + SNAPSHOT + self._case

    def record(self, first_sequence: int) -> bytes:
        """The commit record whose first event has this sequence."""
        return self._record + _u64(first_sequence)

    def records(self, first: int = 0, end: int | None = None) -> Range:
        """Commit records with first <= first_sequence < end. The record that contains event n is the last one
        below n + 1: scan `records(0, n + 1)` with reverse and limit 1."""
        if end is not None:
            return self.record(first), self.record(end)
        return self.record(first), _under(self._record)[1]

    def item(self, activation: int, instance: int) -> bytes:
        """The work item of one instance of one activation."""
        return self._item + _u64_u64(activation, instance)

    def items(self) -> Range:
        """All work items of the case, by activation and instance."""
        return _under(self._item)

    def incident(self, number: int) -> bytes:
        """The case's n-th incident."""
        return self._area + INCIDENT + self._case + _u64(number)

    def incidents(self) -> Range:
        """All incidents of the case, in order."""
        return _under(self._area + INCIDENT + self._case)

    def effect(self, effect_id: str) -> bytes:
        """A pending effect; scanned per shard."""
        return self._effects() + _text(effect_id)

    def effects(self) -> Range:
        """All pending effects of the case."""
        return _under(self._effects())

    def timer(self, due_ns: int, timer_id: str) -> bytes:
        """A pending timer; scanned per shard in the order of due time."""
        return _u16(self.shard) + _SYSTEM + TIMER + _u64(due_ns) + self._tenant + self._case + _text(timer_id)

    def request(self, scope: bytes) -> bytes:
        """The idempotency record of a request on this case; `scope` is the hash of principal, method and request id."""
        return self._area + REQUEST + scope

    def business_key(self, key: str) -> bytes:
        """The index entry that leads from a business key to this case."""
        return self._area + BUSINESS + _text(key) + self._case

    def _effects(self) -> bytes:
        return _u16(self.shard) + _SYSTEM + EFFECT + self._tenant + self._case

    def purged(self) -> bytes:
        """The note that the case was purged; there for ever, so that its id is not given again."""
        return _u16(self.shard) + _SYSTEM + PURGED + self._tenant + self._case

    def purging(self) -> bytes:
        """There while records of a purged case are still to be deleted."""
        return _u16(self.shard) + _SYSTEM + PURGING + self._tenant + self._case

    def purged_audit(self, first_sequence: int) -> bytes:
        """Leads to the audit record that tells who wrote the records of a purged case, from this one on."""
        return self._purged_audits() + _u64(first_sequence)

    def purged_audits(self, sequence: int = NUMBER_MAX - 1) -> Range:
        """Those of the records up to the one that begins at `sequence`: the last one is about it."""
        return self._purged_audits(), self.purged_audit(sequence + 1)

    def _purged_audits(self) -> bytes:
        return _u16(self.shard) + _SYSTEM + PURGED_AUDIT + self._tenant + self._case


@dataclass(frozen=True, slots=True)
class Keyspace:
    """All keys of a store with this many shards. Raises InvalidInput unless 1 <= shards <= SHARDS_MAX."""

    shards: int

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= SHARDS_MAX:
            raise InvalidInput.field("shards", f"must be between 1 and {SHARDS_MAX}, not {self.shards}")

    def all_shards(self) -> tuple[int, ...]:
        """Every shard with a log of its own: those of cases, and META_SHARD last."""
        return (*range(self.shards), META_SHARD)

    def shard_of(self, tenant: str, case_id: str) -> int:
        """The case's shard; stable for ever."""
        if self.shards == 1:
            return 0
        hashed = hashlib.blake2b(_text(tenant) + _text(case_id), digest_size=8).digest()
        return int.from_bytes(hashed, "big") % self.shards

    def case(self, tenant: str, case_id: str) -> CaseKeys:
        """All keys of one case."""
        return CaseKeys(self.shard_of(tenant, case_id), tenant, case_id)

    # -- one case, without keeping CaseKeys ---------------------------------------------------------------------------

    def case_record(self, tenant: str, case_id: str, first_sequence: int) -> bytes:
        """See CaseKeys.record."""
        return self.case(tenant, case_id).record(first_sequence)

    def case_records(self, tenant: str, case_id: str, first: int = 0, end: int | None = None) -> Range:
        """See CaseKeys.records."""
        return self.case(tenant, case_id).records(first, end)

    def case_head(self, tenant: str, case_id: str) -> bytes:
        """The case's head: its newest sequence and state, for expectations and lists."""
        return self.case(tenant, case_id).head

    # -- ranges of a tenant in one shard ------------------------------------------------------------------------------

    def cases(self, shard: int, tenant: str) -> Range:
        """The heads of all cases, by case id. Continue a page from `last key + b"\\0"`."""
        return _under(self._area(shard, tenant) + HEAD)

    def items(self, shard: int, tenant: str) -> Range:
        """The work items of all cases."""
        return _under(self._area(shard, tenant) + ITEM)

    def incidents(self, shard: int, tenant: str) -> Range:
        """The incidents of all cases."""
        return _under(self._area(shard, tenant) + INCIDENT)

    def snapshots(self, shard: int, tenant: str) -> Range:
        """The snapshots of all cases."""
        return _under(self._area(shard, tenant) + SNAPSHOT)

    def business_keys(self, shard: int, tenant: str, key: str) -> Range:
        """The index entries of one business key."""
        return _under(self._area(shard, tenant) + BUSINESS + _text(key))

    # -- a shard's own ------------------------------------------------------------------------------------------------

    def log(self, shard: int, pos: int) -> bytes:
        """The batch record at a log position."""
        return self._system(shard) + LOG + _u64(pos)

    def log_range(self, shard: int, first: int = 0) -> Range:
        """Batch records from position `first` on."""
        return self.log(shard, first), _under(self._system(shard) + LOG)[1]

    def lease(self, shard: int) -> bytes:
        """Who owns the shard, with its epoch."""
        return self._system(shard) + LEASE

    def timers(self, shard: int, until_ns: int | None = None, from_ns: int = 0) -> Range:
        """Timers of all tenants by due time; with `until_ns` only those with due_ns <= until_ns."""
        prefix = self._system(shard) + TIMER
        start, end = self._until(prefix, until_ns)
        return (prefix + _u64(min(from_ns, NUMBER_MAX)) if from_ns else start), end

    def effects(self, shard: int) -> Range:
        """Pending effects of all tenants."""
        return _under(self._system(shard) + EFFECT)

    def request(self, shard: int, tenant: str, scope: bytes) -> bytes:
        """An idempotency record; it lies in the shard of what the request changes (META_SHARD for definitions)."""
        return self._area(shard, tenant) + REQUEST + scope

    def request_expiry(self, shard: int, expiry_s: int, pos: int) -> bytes:
        """Index entry: the idempotency keys that were written at log position `pos` and expire at `expiry_s`."""
        return self._system(shard) + REQUEST_EXPIRY + _u64_u64(expiry_s, pos)

    def request_expiries(self, shard: int, until_s: int | None = None) -> Range:
        """Expiry entries in order; with `until_s` only those with expiry_s <= until_s."""
        return self._until(self._system(shard) + REQUEST_EXPIRY, until_s)

    def message(self, shard: int, tenant: str, scope: bytes) -> bytes:
        """A message that is on its way to cases or waits for one; `scope` is the hash of its request."""
        return self._system(shard) + MESSAGE + _text(tenant) + scope

    def messages(self, shard: int) -> Range:
        """The messages of all tenants."""
        return _under(self._system(shard) + MESSAGE)

    def connector(self, tenant: str, name: str) -> bytes:
        """A connector that was configured by a call."""
        return self._system(META_SHARD) + CONNECTOR + _text(tenant) + _text(name)

    def connectors(self) -> Range:
        """The connectors of all tenants."""
        return _under(self._system(META_SHARD) + CONNECTOR)

    def schedule(self, tenant: str, schedule_id: str) -> bytes:
        """A schedule, in the shard that a case of this id would have."""
        return self._system(self.shard_of(tenant, schedule_id)) + SCHEDULE + _text(tenant) + _text(schedule_id)

    def schedules(self, shard: int) -> Range:
        """The schedules of all tenants."""
        return _under(self._system(shard) + SCHEDULE)

    def purged(self, shard: int) -> Range:
        """The notes of purged cases of all tenants."""
        return _under(self._system(shard) + PURGED)

    def purging(self, shard: int) -> Range:
        """The purged cases of all tenants whose records are still to be deleted."""
        return _under(self._system(shard) + PURGING)

    def audit(self, shard: int, time_ns: int, number: int) -> bytes:
        """An audit record; `number` tells those of the same time apart."""
        return self._system(shard) + AUDIT + _u64_u64(time_ns, number)

    def audits(self, shard: int) -> Range:
        """The audit records of all tenants, by time."""
        return _under(self._system(shard) + AUDIT)

    def tile(self, shard: int, level: int, index: int) -> bytes:
        """A tile of the Merkle tree over the shard's log."""
        return self._system(shard) + TILE + _u64_u64(level, index)

    def tiles(self, shard: int, level: int) -> Range:
        """The tiles of one level."""
        return self.tile(shard, level, 0), self.tile(shard, level + 1, 0)

    def identity(self) -> bytes:
        """What tells this store from every other."""
        return self._system(META_SHARD) + IDENTITY

    # -- definitions --------------------------------------------------------------------------------------------------

    def definition(self, tenant: str, spec_id: str, version: int) -> bytes:
        """One version of a workflow."""
        return self._area(META_SHARD, tenant) + DEFINITION + _text(spec_id) + _u64(version)

    def definitions(self, tenant: str, spec_id: str | None = None) -> Range:
        """All versions of all workflows of a tenant, or of one."""
        prefix = self._area(META_SHARD, tenant) + DEFINITION
        return _under(prefix if spec_id is None else prefix + _text(spec_id))

    def definition_latest(self, tenant: str, spec_id: str) -> bytes:
        """The newest version's number."""
        return self._area(META_SHARD, tenant) + DEFINITION_LATEST + _text(spec_id)

    def definitions_latest(self, tenant: str) -> Range:
        """One entry per workflow of a tenant, by spec id."""
        return _under(self._area(META_SHARD, tenant) + DEFINITION_LATEST)

    def definition_digest(self, tenant: str, spec_id: str, digest: bytes) -> bytes:
        """Leads from a document's digest to its version."""
        return self._area(META_SHARD, tenant) + DEFINITION_DIGEST + _text(spec_id) + digest

    def definition_digests(self, tenant: str) -> Range:
        """The digests of all versions that are in use."""
        return _under(self._area(META_SHARD, tenant) + DEFINITION_DIGEST)

    # -----------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _area(shard: int, tenant: str) -> bytes:
        return _u16(shard) + _text(tenant)

    @staticmethod
    def _system(shard: int) -> bytes:
        return _u16(shard) + _SYSTEM

    @staticmethod
    def _until(prefix: bytes, last: int | None) -> Range:
        whole = _under(prefix)
        if last is None or last >= NUMBER_MAX:
            return whole
        return prefix, prefix + _u64(max(last + 1, 0))


# -- the other way: ids out of keys that a scan returned. A key of another kind raises StoreCorrupt. ------------------


def shard_in(key: bytes) -> int:
    """The shard that a key belongs to."""
    return int(_read_u16(key, 0)[0])


def shard_range(shard: int) -> Range:
    """All keys of a shard."""
    return _u16(shard), _u16(shard + 1)


def kind_of(key: bytes) -> bytes:
    """The kind of a key: one of the constants above; empty when it has none."""
    if key[2:4] == _SYSTEM:
        return key[4:5]
    end = key.find(_END, 2)
    return key[end + 2 : end + 3] if end >= 0 else b""


def is_sealed(key: bytes, value: bytes) -> bool:
    """Whether a value is in an envelope with a checksum. That a case goes on by itself is an effect of no content."""
    kind = kind_of(key)
    return kind not in _BARE and (kind != EFFECT or bool(value))


def past_kind(key: bytes) -> bytes:
    """The end of the range of all keys of the same shard, tenant and kind."""
    if key[2:4] == _SYSTEM:
        return _under(key[:5])[1]
    return _under(key[: key.find(_END, 2) + 3])[1]


def tenant_in(key: bytes) -> str:
    """The tenant of a key; empty for a shard's own."""
    return "" if key[2:4] == _SYSTEM else _Reader(key, kind_of(key)).tenant


def past_tenant(key: bytes) -> bytes:
    """The end of the range of all keys of the same shard and tenant; of a shard's own keys, of all of these."""
    if key[2:4] == _SYSTEM:
        return _under(key[:4])[1]
    return _under(key[: key.find(_END, 2) + 2])[1]


def case_in(key: bytes) -> tuple[str, str]:
    """(tenant, case id) of a key that has its case behind its kind: a record, head, snapshot, item or incident."""
    reader = _Reader(key, kind_of(key))
    return reader.tenant, reader.text()


def is_log(key: bytes) -> bool:
    """Whether this is the key of a batch record."""
    return key[2:5] == _SYSTEM + LOG


def parse_case_head(key: bytes) -> tuple[str, str]:
    """(tenant, case id)"""
    reader = _Reader(key, HEAD)
    return reader.tenant, reader.text()


def parse_case_record(key: bytes) -> tuple[str, str, int]:
    """(tenant, case id, first sequence)"""
    reader = _Reader(key, RECORD)
    return reader.tenant, reader.text(), reader.number()


def parse_item(key: bytes) -> tuple[str, str, int, int]:
    """(tenant, case id, activation, instance)"""
    reader = _Reader(key, ITEM)
    return reader.tenant, reader.text(), reader.number(), reader.number()


def parse_incident(key: bytes) -> tuple[str, str, int]:
    """(tenant, case id, number)"""
    reader = _Reader(key, INCIDENT)
    return reader.tenant, reader.text(), reader.number()


def parse_business_key(key: bytes) -> tuple[str, str, str]:
    """(tenant, business key, case id)"""
    reader = _Reader(key, BUSINESS)
    return reader.tenant, reader.text(), reader.text()


def parse_effect(key: bytes) -> tuple[str, str, str]:
    """(tenant, case id, effect id)"""
    reader = _Reader(key, EFFECT)
    return reader.text(), reader.text(), reader.text()


def parse_timer(key: bytes) -> tuple[int, str, str, str]:
    """(due in ns, tenant, case id, timer id)"""
    reader = _Reader(key, TIMER)
    return reader.number(), reader.text(), reader.text(), reader.text()


def parse_request_expiry(key: bytes) -> tuple[int, int]:
    """(expiry in s, log position)"""
    reader = _Reader(key, REQUEST_EXPIRY)
    return reader.number(), reader.number()


def parse_message(key: bytes) -> tuple[str, bytes]:
    """(tenant, scope)"""
    reader = _Reader(key, MESSAGE)
    return reader.text(), key[reader.at :]


def parse_connector(key: bytes) -> tuple[str, str]:
    """(tenant, name)"""
    reader = _Reader(key, CONNECTOR)
    return reader.text(), reader.text()


def parse_schedule(key: bytes) -> tuple[str, str]:
    """(tenant, schedule id)"""
    reader = _Reader(key, SCHEDULE)
    return reader.text(), reader.text()


def parse_purged(key: bytes) -> tuple[str, str]:
    """(tenant, case id) of a note of a purged case, or of one that is being purged."""
    reader = _Reader(key, PURGED if kind_of(key) == PURGED else PURGING)
    return reader.text(), reader.text()


def parse_log(key: bytes) -> tuple[int, int]:
    """(shard, position)"""
    reader = _Reader(key, LOG)
    return shard_in(key), reader.number()


def parse_audit(key: bytes) -> tuple[int, int]:
    """(time in ns, number)"""
    reader = _Reader(key, AUDIT)
    return reader.number(), reader.number()


def parse_purged_audit(key: bytes) -> tuple[str, str, int]:
    """(tenant, case id, first sequence)"""
    reader = _Reader(key, PURGED_AUDIT)
    return reader.text(), reader.text(), reader.number()


def parse_definition(key: bytes) -> tuple[str, str, int]:
    """(tenant, spec id, version)"""
    reader = _Reader(key, DEFINITION)
    return reader.tenant, reader.text(), reader.number()


def parse_definition_latest(key: bytes) -> tuple[str, str]:
    """(tenant, spec id)"""
    reader = _Reader(key, DEFINITION_LATEST)
    return reader.tenant, reader.text()


class _Reader:
    """Takes a key apart from the left."""

    __slots__ = ("at", "key", "tenant")

    def __init__(self, key: bytes, kind: bytes) -> None:
        self.key = key
        self.at = 2
        self.tenant = ""
        if key[2:4] == _SYSTEM:
            self.at = 4
        else:
            self.tenant = self.text()
        if key[self.at : self.at + 1] != kind:
            raise self._bad()
        self.at += 1

    def text(self) -> str:
        end = self.key.find(_END, self.at)
        if end < 0:
            raise self._bad()
        data, self.at = self.key[self.at : end], end + 2
        try:
            return data.replace(b"\x00\xff", b"\x00").decode()
        except UnicodeDecodeError as error:
            raise self._bad() from error

    def number(self) -> int:
        if len(self.key) < self.at + 8:
            raise self._bad()
        value = int(_read_u64(self.key, self.at)[0])
        self.at += 8
        return value

    def _bad(self) -> StoreCorrupt:
        return StoreCorrupt(f"key {self.key.hex()} is not of the expected kind", key=self.key.hex())
