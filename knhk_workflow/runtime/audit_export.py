"""The whole audit as a file that proves itself, and the proof: offline, with the public key only.

The file has a JSON object per line:

    {"format": "knhk-audit-export", ...}                        of which store, when, by whose key
    {"log": 0, "position": 1, "time": ..., "record": "..."}     a batch record: base64 of its stored bytes
    {"case": "order-1", "first_sequence": 1, "by": {...} ...}   behind it, for each commit record in it, who wrote that
    {"audit": "...", "operations": [...]}                       and each audit record, as stored and readable
    {"end": {...}}                                              what there is, a checkpoint of every log, the signature

Every line ends with `sum`: the hash of all lines so far with it. So the first line that was changed is found without
any key; whoever makes the sums anew has to sign them anew. What the signature cannot show is shown by the log: the hash
chain and the root of each checkpoint follow from the batch records alone. A checkpoint that was kept elsewhere shows
whether the end is missing, or all of it is an older state.

With `full` the commit records themselves are in it, with the salts that their digests are keyed by. Then who wrote what
follows from the log as well, and the word of whoever exported is not needed; but all case data are in the file, save
those of cases with sensitive data (model/veil.py), whose records are withheld.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Final, TypeVar

import msgspec

from knhk_workflow.core.events import CaseCreated
from knhk_workflow.errors import InvalidInput, StoreCorrupt, StoreError
from knhk_workflow.runtime.audit_trail import PURGED, Trail, method_name, written
from knhk_workflow.runtime.audit_trees import Trees
from knhk_workflow.runtime.checkpoint import Checkpoint, read_checkpoints, signed
from knhk_workflow.runtime.query import Veils
from knhk_workflow.runtime.records import (
    AUDITS,
    COMMIT_HEADERS,
    COMMITS,
    PURGES,
    AuditRecord,
    Operation,
)
from knhk_workflow.runtime.retention import note_digest
from knhk_workflow.runtime.signature import AUDIT_EXPORT, PUBLIC_BYTES, fingerprint, signed_by
from knhk_workflow.runtime.spelled import from_base64, from_hex
from knhk_workflow.store import (
    CODEC_LOG,
    GENESIS,
    Keyspace,
    LogEntry,
    LogRecord,
    Reads,
    digest,
    seal,
    unseal,
    unseal_log,
)
from knhk_workflow.store.chain import Link, walk
from knhk_workflow.store.codec import UNREADABLE, audit_reference
from knhk_workflow.store.merkle import Edge, leaf_hash

FORMAT: Final = "knhk-audit-export"
VERSION: Final = 1
CHUNK: Final = 256 * 1024
_SALTS_MAX: Final = 100_000  # cases, 10 MB
_SUM: Final = b',"sum":"'
_SUM_BYTES: Final = 16
_SALT_BYTES_MAX: Final = 64
_TAIL: Final = len(_SUM) + 2 * _SUM_BYTES + 3  # the sum's hex, then `"}` and the end of the line


S = TypeVar("S", bound=msgspec.Struct)


class ExportHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line. `key` is the public key of who signs, in hex; times are ns since the epoch."""

    format: str
    version: int
    store: str
    shards: int
    made_at: int
    key: str
    full: bool


class ExportedOperation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who did what."""

    time: int
    principal: str
    method: str
    resource: str = ""
    outcome: str = "OK"
    reason: str = ""
    request_id: str = ""
    peer: str = ""
    trace_id: str = ""
    count: int = 1


class ExportedAuthor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who wrote a commit record that was purged."""

    first_sequence: int
    time: int
    principal: str
    method: str
    request_id: str
    trace_id: str


class LogLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch record. `time` is the commit's."""

    log: int
    position: int
    time: int
    record: str


class CaseLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A commit record of a case, or with a `count` of 0 its purge. `record` and `salt` only in a full export, unless
    they are withheld; the note of a purge always."""

    case: str
    tenant: str
    first_sequence: int
    count: int
    digest: str
    by: ExportedOperation
    record: str = ""
    salt: str = ""
    withheld: bool = False


class AuditLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An audit record: base64 of its stored bytes, and what is in it."""

    audit: str
    tenant: str
    operations: tuple[ExportedOperation, ...] = ()
    case: str = ""
    authors: tuple[ExportedAuthor, ...] = ()


class Ending(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What there is, and the signature over the sum of all lines before."""

    entries: int
    records: int
    checkpoints: tuple[str, ...]
    signature: str


class EndLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last line."""

    end: Ending


class AuditProof(msgspec.Struct, frozen=True):
    """What proving an export found. `problem` is empty when everything fits; then `line` and `entry` are 0 and empty,
    otherwise they name the first wrong line, and the entry that it has (`shard-position`)."""

    entries: int
    records: int
    sizes: Mapping[int, int]
    """By shard: how many batch records."""
    made_at: int
    line: int = 0
    entry: str = ""
    problem: str = ""
    signed_by: str = ""
    full: bool = False
    withheld: int = 0
    """Of a full export: entries whose commit records are not shown; the exporter's signature stands for them."""


async def export_audit(
    reads: Reads,
    keys: Keyspace,
    veils: Veils,
    trees: Trees,
    checkpoints: Sequence[Checkpoint],
    store: str,
    now: int,
    *,
    full: bool,
) -> AsyncIterator[bytes]:
    """The file, in pieces: the log up to `checkpoints`. `reads` is a snapshot taken after these. Raises StoreCorrupt
    where the store is not what was recorded: nothing of that kind is signed."""
    key = trees.key
    assert key is not None, "checkpoints are signed"
    writer = _Writer()
    writer.line(ExportHead(FORMAT, VERSION, store, keys.shards, now, key.public.hex(), full))
    exporter = _Exporter(reads, keys, veils, writer, full)
    for checkpoint in checkpoints:
        async for each in walk(reads, keys, checkpoint.shard, 0, GENESIS):
            if not isinstance(each, Link):
                raise each.error
            if each.position > checkpoint.size:
                break
            await exporter.record(checkpoint.shard, each)
            for piece in writer.pieces():
                yield piece
    signature = await asyncio.to_thread(key.sign, AUDIT_EXPORT, writer.sum)
    notes = tuple(checkpoint.note for checkpoint in checkpoints)
    writer.line(EndLine(Ending(exporter.entries, exporter.records, notes, signature.hex())))
    for piece in writer.pieces(last=True):
        yield piece


class _Exporter:
    def __init__(self, reads: Reads, keys: Keyspace, veils: Veils, writer: _Writer, full: bool) -> None:
        self._reads = reads
        self._veils = veils
        self._keys = keys
        self._trail = Trail(reads, keys)
        self._writer = writer
        self._full = full
        self._salts: dict[tuple[str, str], tuple[bytes, bool]] = {}
        """By case: its salt, and whether it has sensitive data."""
        self.entries = self.records = 0

    async def record(self, shard: int, link: Link) -> None:
        key = self._keys.log(shard, link.position)
        body = b64encode(unseal(key, link.value)).decode()
        self._writer.line(LogLine(shard, link.position, link.record.time_ns, body))
        self.records += 1
        for entry in link.record.entries:
            await self._case(shard, entry)
        for reference in link.record.audits:
            payload = await self._trail.audit(shard, reference)
            if payload is None:
                raise StoreCorrupt(
                    f"an audit record of shard {shard}, log position {link.position} is missing", shard=str(shard)
                )
            record = AUDITS.read_payload(b"", payload)
            self._writer.line(_audit_line(payload, record))
            self.entries += len(record.operations)

    async def _case(self, shard: int, entry: LogEntry) -> None:
        operation, payload = await self._trail.of_case(shard, entry)
        self.entries += 1
        hashed = entry.digest.hex()
        salt, sensitive = b"", False
        if entry.count and payload:
            salt, sensitive = await self._salt(entry, payload)
            if digest(payload, salt) != entry.digest:
                what = f"event {entry.first_sequence} of case {entry.case_id!r}"
                raise StoreCorrupt(f"{what} is not what was recorded", case_id=entry.case_id)
        elif not entry.count and payload and note_digest(payload) != entry.digest:
            raise StoreCorrupt(f"the note of case {entry.case_id!r} is not what was recorded", case_id=entry.case_id)
        elif entry.count and operation.reason != PURGED:
            raise StoreCorrupt(f"event {entry.first_sequence} of case {entry.case_id!r} is missing")
        if entry.count and (sensitive or not self._full):
            payload = salt = b""
        shown = b64encode(payload).decode()
        by = _shown(operation)
        self._writer.line(
            CaseLine(
                entry.case_id,
                entry.tenant,
                entry.first_sequence,
                entry.count,
                hashed,
                by,
                shown,
                salt.hex(),
                sensitive and self._full,
            )
        )

    async def _salt(self, entry: LogEntry, payload: bytes) -> tuple[bytes, bool]:
        name = (entry.tenant, entry.case_id)
        known = self._salts.get(name)
        if known is None:
            key = self._keys.case_record(*name, 1)
            held = payload if entry.first_sequence == 1 else None
            if held is None:
                stored = await self._reads.get(key)
                held = unseal(key, stored) if stored is not None else None
            born = COMMITS.read_payload(key, held).events[0] if held is not None else None
            if not isinstance(born, CaseCreated):
                raise StoreCorrupt(f"the history of case {entry.case_id!r} has no beginning", case_id=entry.case_id)
            if len(self._salts) >= _SALTS_MAX:
                self._salts.clear()
            veil = await self._veils(entry.tenant, born.spec_id, born.version)
            known = self._salts[name] = (born.salt, bool(veil))
        return known


class _Writer:
    """Lines with their sums."""

    def __init__(self) -> None:
        self.sum = b""
        self._out = bytearray()

    def line(self, content: msgspec.Struct) -> None:
        text = msgspec.json.encode(content)[:-1]
        self.sum = _next_sum(self.sum, text)
        self._out += text + _SUM + self.sum.hex().encode() + b'"}\n'

    def pieces(self, last: bool = False) -> Iterable[bytes]:
        if len(self._out) >= CHUNK or last:
            piece, self._out = bytes(self._out), bytearray()
            yield piece


def _next_sum(before: bytes, text: bytes) -> bytes:
    return blake2b(before + text, digest_size=_SUM_BYTES).digest()


def _shown(operation: Operation) -> ExportedOperation:
    return ExportedOperation(*msgspec.structs.astuple(operation))


def _audit_line(payload: bytes, record: AuditRecord) -> AuditLine:
    return AuditLine(
        b64encode(payload).decode(),
        record.tenant,
        tuple(map(_shown, record.operations)),
        record.case_id,
        tuple(ExportedAuthor(*msgspec.structs.astuple(author)) for author in record.authors),
    )


# -- proving ----------------------------------------------------------------------------------------------------------


def prove_audit(lines: Iterable[bytes], key: bytes | None = None, known: Sequence[Checkpoint] = ()) -> AuditProof:
    """Prove an exported audit, given as the lines of its file: from the file alone, with the public key (32 bytes) of
    whoever must have signed it, against checkpoints that were kept elsewhere. Raises InvalidInput for what is none.
    """
    return _Prover(key, known).run(lines)


class _Bad(Exception):
    """What is wrong."""


class _Log:
    """One log as its lines come by."""

    __slots__ = ("edge", "known", "previous")

    def __init__(self, known: Iterable[Checkpoint]) -> None:
        self.edge = Edge()
        self.previous = GENESIS
        self.known: dict[int, list[Checkpoint]] = {}
        """By size: the checkpoints that were kept elsewhere."""
        for checkpoint in known:
            self.known.setdefault(checkpoint.size, []).append(checkpoint)


class _Prover:
    def __init__(self, key: bytes | None, known: Sequence[Checkpoint]) -> None:
        self._key = key
        self._known = known
        self._head: ExportHead | None = None
        self._ended = False
        self._sum = b""
        self._logs: dict[int, _Log] = {}
        self._at = (0, 0)
        self._record: LogRecord | None = None
        self._cases = self._audits = 0
        """Of the batch record at hand: how many of its lines have come by."""
        self._entries = self._records = self._withheld = 0
        self._authors_wanted: dict[tuple[str, str, int], tuple[int, str, ExportedOperation]] = {}
        """Of purged records, what was shown before their authors came by: (line, entry, shown)."""
        self._signed_by = ""

    def run(self, lines: Iterable[bytes]) -> AuditProof:
        number, problem, entry = 0, "", ""
        try:
            for number, line in enumerate(lines, 1):
                try:
                    self._line(number, line)
                except StoreError as error:
                    raise _Bad(f"what was stored cannot be read: {error.message}") from error
            number += 1
            if not self._ended:
                raise _Bad("the end is missing: the file was cut off")
            if self._authors_wanted:
                number, entry, _ = min(self._authors_wanted.values())
                raise _Bad("who wrote a purged record is not what the purge has kept")
            number = 0
        except _Bad as bad:
            problem = str(bad)
            if not entry and self._head is not None and self._at[1]:
                entry = f"{self._at[0]}-{self._at[1]}"
        sizes = {shard: log.edge.size for shard, log in self._logs.items()}
        made_at = self._head.made_at if self._head is not None else 0
        full = self._head is not None and self._head.full
        return AuditProof(
            self._entries,
            self._records,
            sizes,
            made_at,
            number if problem else 0,
            entry if problem else "",
            problem,
            "" if problem else self._signed_by,
            full,
            self._withheld,
        )

    def _line(self, number: int, line: bytes) -> None:
        if self._ended:
            raise _Bad("there is something behind the end")
        text, tail = line[:-_TAIL], line[-_TAIL:]
        if number == 1 and not line.startswith(b'{"format":"' + FORMAT.encode() + b'"'):
            raise InvalidInput.field("document", "is not an exported audit", "use `knhk audit export`")
        before, self._sum = self._sum, _next_sum(self._sum, text)
        if tail != _SUM + self._sum.hex().encode() + b'"}\n':
            raise _Bad("the line is not the one that was exported here: its sum is another")
        body = text + b"}"
        if number == 1:
            self._first(_decoded(body, ExportHead))
        elif body.startswith(b'{"log":'):
            self._log(_decoded(body, LogLine))
        elif body.startswith(b'{"case":'):
            self._case(number, _decoded(body, CaseLine))
        elif body.startswith(b'{"audit":'):
            self._audit(_decoded(body, AuditLine))
        else:
            self._end(_decoded(body, EndLine).end, before)

    def _first(self, head: ExportHead) -> None:
        if head.format != FORMAT or head.version != VERSION:
            raise InvalidInput.field("document", f"has version {head.version}", f"this version reads {VERSION}")
        if len(_unhex(head.key)) != PUBLIC_BYTES:
            raise _Bad("the key of the signature is none")
        if self._key is not None and _unhex(head.key) != self._key:
            stated = fingerprint(_unhex(head.key))
            raise _Bad(f"it is signed with another key, {stated}, not with {fingerprint(self._key)}")
        self._head = head

    def _log(self, line: LogLine) -> None:
        self._whole()
        log = self._logs.get(line.log)
        if log is None:
            log = self._logs[line.log] = _Log(known for known in self._known if known.shard == line.log)
        self._at = (line.log, line.position)
        record, hashed = unseal_log(b"", seal(_unbase64(line.record), codec=CODEC_LOG))
        if line.position != log.edge.size + 1:
            raise _Bad(f"log position {log.edge.size + 1} is missing")
        if record.previous != log.previous:
            raise _Bad("the chain is broken: the record does not follow the one before it")
        if record.time_ns != line.time:
            raise _Bad("the time shown is not that of the record")
        log.previous = hashed
        log.edge.append(leaf_hash(hashed))
        for checkpoint in log.known.pop(log.edge.size, ()):
            if checkpoint.root != log.edge.root():
                raise _Bad(f"up to here the log is not the one of the checkpoint with {checkpoint.size} records")
        self._record, self._cases, self._audits = record, 0, 0
        self._records += 1

    def _case(self, number: int, line: CaseLine) -> None:
        record = self._record
        if record is None or self._cases >= len(record.entries) or self._audits:
            raise _Bad("the batch record names no such commit record")
        entry = record.entries[self._cases]
        shown = LogEntry(line.tenant, line.case, line.first_sequence, line.count, _unhex(line.digest))
        if shown != entry:
            raise _Bad("the batch record names another commit record here")
        self._cases += 1
        self._entries += 1
        if line.by.resource != f"cases/{entry.case_id}" or line.by.outcome != "OK":
            raise _Bad("the entry is not that of its commit record")
        payload = _unbase64(line.record)
        purged = line.by.reason == PURGED
        if not entry.count:
            self._note(line, entry, payload)
        elif purged and line.by.time:
            self._authors_wanted[entry.tenant, entry.case_id, entry.first_sequence] = (
                number,
                f"{self._at[0]}-{self._at[1]}",
                line.by,
            )
        elif line.withheld and self._head is not None and self._head.full and not (line.record or line.salt):
            self._withheld += 1
        elif not purged and self._head is not None and self._head.full:
            salt = _unhex(line.salt)
            if not 1 <= len(salt) <= _SALT_BYTES_MAX or digest(payload, salt) != entry.digest:
                raise _Bad("the commit record does not match its digest")
            if line.by != _shown(written(COMMIT_HEADERS.read_payload(b"", payload), line.by.resource)):
                raise _Bad("who wrote the commit record is not what it says")

    def _note(self, line: CaseLine, entry: LogEntry, payload: bytes) -> None:
        if not payload:
            return  # a store that was restored as of an earlier moment may have lost it; the signature stands for this
        if note_digest(payload) != entry.digest:
            raise _Bad("the note of the purge does not match its digest")
        note = PURGES.read_payload(b"", payload)
        told = (note.tenant, note.case_id, note.purged_at, note.principal, method_name(note.method))
        if told != (entry.tenant, entry.case_id, line.by.time, line.by.principal, line.by.method):
            raise _Bad("who purged the case is not what the note says")

    def _audit(self, line: AuditLine) -> None:
        record = self._record
        if record is None or self._cases < len(record.entries) or self._audits >= len(record.audits):
            raise _Bad("the batch record names no such audit record")
        reference = record.audits[self._audits]
        payload = _unbase64(line.audit)
        if audit_reference(payload, int.from_bytes(reference[:8], "big")) != reference:
            raise _Bad("the audit record is not the one that the batch record names")
        kept = AUDITS.read_payload(b"", payload)
        if _audit_line(payload, kept) != line:
            raise _Bad("what is shown of the audit record is not what is in it")
        self._audits += 1
        self._entries += len(kept.operations)
        for author in kept.authors:
            name = (kept.tenant, kept.case_id, author.first_sequence)
            wanted = self._authors_wanted.pop(name, None)
            if wanted is not None and _shown(written(author, f"cases/{kept.case_id}", PURGED)) != wanted[2]:
                self._authors_wanted[name] = wanted

    def _whole(self) -> None:
        """Before the next batch record: that the one at hand had all its lines."""
        record = self._record
        if record is not None and (self._cases, self._audits) != (len(record.entries), len(record.audits)):
            raise _Bad("entries of the batch record are missing")

    def _end(self, ending: Ending, before: bytes) -> None:
        self._whole()
        head = self._head
        assert head is not None
        self._at = (0, 0)
        public = _unhex(head.key)
        if (ending.entries, ending.records) != (self._entries, self._records):
            raise _Bad(f"{ending.entries} entries were exported, {self._entries} are there")
        if not signed_by(public, AUDIT_EXPORT, before, _unhex(ending.signature)):
            raise _Bad("the file was not signed like this: it was made again after a change, or by somebody else")
        stated: dict[int, Checkpoint] = {}
        for note in ending.checkpoints:
            for checkpoint in _checkpoints(note):
                stated[checkpoint.shard] = checkpoint
                log = self._logs.get(checkpoint.shard)
                if checkpoint.store != head.store or not signed(checkpoint, public):
                    raise _Bad("a checkpoint is of another store, or was not signed by its key")
                if log is None or (log.edge.size, log.edge.root()) != (checkpoint.size, checkpoint.root):
                    raise _Bad(f"the log of shard {checkpoint.shard} is not the one of its checkpoint")
        if stated.keys() != self._logs.keys():
            raise _Bad("a log has no checkpoint")
        for known in self._known:
            log = self._logs.get(known.shard)
            size = log.edge.size if log is not None else 0
            if known.store != head.store:
                raise _Bad(f"the checkpoint that is known is of another store, {known.store}")
            if known.size > size:
                raise _Bad(
                    f"shard {known.shard} has {size} records, a checkpoint of {known.size} was pushed: "
                    "the end is missing, or an older state was brought back"
                )
            if not signed(known, public):
                raise _Bad("the checkpoint that is known was signed with another key")
        self._signed_by = fingerprint(public)
        self._ended = True


def _checkpoints(note: str) -> Sequence[Checkpoint]:
    try:
        return read_checkpoints(note)
    except InvalidInput as error:
        raise _Bad("a checkpoint cannot be read") from error


def _decoded(body: bytes, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(body, type=kind)
    except (*UNREADABLE, RecursionError) as error:
        raise _Bad(f"the line cannot be read: {error}") from error


def _unhex(text: str) -> bytes:
    try:
        return from_hex(text)
    except ValueError as error:
        raise _Bad("something is not hexadecimal") from error


def _unbase64(text: str) -> bytes:
    try:
        return from_base64(text)
    except ValueError as error:
        raise _Bad("something is not base64") from error
