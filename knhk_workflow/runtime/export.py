"""One case as a document that proves itself, and the proof.

The document is JSON: the case, its workflow, and every commit record in order, readable and as the bytes that were
stored. Each record has its digest, keyed by the case's salt, and the batch record of the log that names this digest;
the hash of a batch record covers the hash of the one before. So nobody can change an event without changing every hash
behind it, and the hash of a later batch record, kept elsewhere (a receipt, a backup's manifest), pins everything.

The document is signed when the engine has a key: each record together with all before it, and the case with the newest
hash of the log. So who changes an event and every hash behind it is found out at that event, by anybody who knows the
public key. Without the key in hand the signature only says that the document is of one piece.

Of a case with sensitive data (model/veil.py) the document shows everything else: events and data with masks, no salt,
no records and no hash of the state, from which short values could be guessed. Nobody can then compute the digests; that
the log names them is still proved, and the signature covers what is shown.

A batch record names whatever was committed together. One that names another tenant's cases is left out, its hash is
not; the proof counts what is tied to the log and what only has its digest.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import blake2b
from typing import Final

import msgspec
import msgspec.inspect

from knhk_workflow.core.apply import replay
from knhk_workflow.core.case import Case, encode_state
from knhk_workflow.core.events import CaseCreated
from knhk_workflow.errors import InvalidInput, NotFound, StoreCorrupt, StoreError
from knhk_workflow.model.parse import spec_digest
from knhk_workflow.model.veil import OPEN
from knhk_workflow.runtime.history import render
from knhk_workflow.runtime.query import Veils
from knhk_workflow.runtime.records import COMMITS, DEFINITIONS, HEADS
from knhk_workflow.runtime.signature import CASE_EXPORT, CASE_RECORD, PUBLIC_BYTES, SigningKey, fingerprint, signed_by
from knhk_workflow.runtime.spelled import from_base64, from_hex
from knhk_workflow.store import CODEC_LOG, Keyspace, LogEntry, LogRecord, Reads, digest, seal, unseal, unseal_log
from knhk_workflow.store.chain import Link, last_before, walk
from knhk_workflow.store.codec import UNREADABLE
from knhk_workflow.store.keys import parse_case_record
from knhk_workflow.store.portions import portions

FORMAT: Final = "knhk-case-export"
VERSION: Final = 1
PAGE: Final = 64

_encode = msgspec.msgpack.Encoder().encode


class ExportedEvent(msgspec.Struct, frozen=True):
    """An event as a history shows it."""

    sequence: int
    timestamp: int
    event_type: str
    data: msgspec.Raw


class ExportedRecord(msgspec.Struct, frozen=True):
    """A commit record: `record` is base64 of the stored bytes (empty: withheld), `position` its place in the log."""

    first_sequence: int
    position: int
    digest: str
    record: str
    events: tuple[ExportedEvent, ...]
    signature: str = ""
    """Hex, over the hash of this record and all before it."""


class ExportedBatch(msgspec.Struct, frozen=True):
    """A batch record: `batch` is base64 of its stored bytes, empty when it is left out."""

    position: int
    hash: str
    batch: str


class ExportedCase(msgspec.Struct, frozen=True):
    """The case at the end of its history; `state_hash` is that of its whole state."""

    tenant: str
    case_id: str
    spec_id: str
    spec_version: int
    state: str
    sequence: int
    state_hash: str
    data: msgspec.Raw
    layout: str = ""
    """Of the state that the hash is of: a version with another layout replays the events, but has another hash."""


class ExportedWorkflow(msgspec.Struct, frozen=True):
    """The workflow that it runs on. `document` is base64 of the canonical JSON, which the digest is of."""

    digest: str
    document: str


class ExportedSignature(msgspec.Struct, frozen=True):
    """Who signed, when, and the signature of the whole, all in hex but the time (ns since the epoch)."""

    key: str
    signed_at: int
    signature: str


class Export(msgspec.Struct, frozen=True):
    """The document. Without a signature it was exported by an engine that has no key; with an empty salt the case has
    sensitive data, and its records are withheld."""

    format: str
    version: int
    case: ExportedCase
    workflow: ExportedWorkflow
    salt: str
    records: tuple[ExportedRecord, ...]
    log: tuple[ExportedBatch, ...]
    signature: ExportedSignature | None = None


class Proof(msgspec.Struct, frozen=True):
    """What proving a document found. `problem` is empty when everything fits; `sequence` is the first bad event, 0 when
    what is wrong concerns none."""

    case_id: str
    events: int
    records: int
    tied: int
    """Records whose batch record is in the document."""
    position: int
    """Of the newest batch record that it names."""
    hash: str
    sequence: int = 0
    problem: str = ""
    signed_by: str = ""
    """Fingerprint of the key that signed it; empty when nobody did, or when the signature is what is wrong."""
    withheld: bool = False
    """The case has sensitive data: what is shown could be compared with the signature only, if there is one."""


async def export(
    reads: Reads,
    keys: Keyspace,
    tenant: str,
    case_id: str,
    veils: Veils,
    signer: SigningKey | None = None,
    now: int = 0,
) -> bytes:
    """The document of a case, signed by `signer`. `reads` is a snapshot. Raises NotFound, StoreCorrupt when the case is
    damaged."""
    case_keys = keys.case(tenant, case_id)
    stored = await reads.get(case_keys.head)
    if stored is None:
        raise NotFound("case", case_id)
    head = HEADS.read(case_keys.head, stored)
    veil = await veils(tenant, head.spec_id, head.version)
    entries, batches = await _chained(reads, keys, tenant, case_id, head.created_at, head.sequence)
    records: list[ExportedRecord] = []
    state: Case | None = None
    async for rows in portions(reads, case_keys.records(), PAGE):
        for key, value in rows:
            first = parse_case_record(key)[2]
            record = COMMITS.read(key, value)
            state = replay(state, record.time, record.events)
            position, entry = entries.get(first, (0, None))
            if entry is None:
                raise StoreCorrupt(f"event {first} of case {case_id!r} is in no batch record", case_id=case_id)
            events = tuple(
                ExportedEvent(event.sequence, event.timestamp, event.event_type, msgspec.Raw(event.data))
                for event in render(case_id, first, record, veil)
            )
            payload = "" if veil else b64encode(unseal(key, value)).decode()
            records.append(ExportedRecord(first, position, entry.digest.hex(), payload, events))
    if state is None or state.sequence != head.sequence:
        raise StoreCorrupt(f"the history of case {case_id!r} is incomplete", case_id=case_id)
    definition_key = keys.definition(tenant, state.spec_id, state.version)
    held = await reads.get(definition_key)
    if held is None:
        raise StoreCorrupt(f"the workflow of case {case_id!r} is missing", case_id=case_id)
    definition = DEFINITIONS.read(definition_key, held)
    case = ExportedCase(
        tenant,
        case_id,
        state.spec_id,
        state.version,
        state.state,
        state.sequence,
        "" if veil else _state_hash(state),
        msgspec.Raw(veil.json(state.root.data)),
        "" if veil else state_layout(),
    )
    workflow = ExportedWorkflow(definition.digest.hex(), b64encode(definition.document).decode())
    salt = "" if veil else state.salt.hex()
    document = Export(FORMAT, VERSION, case, workflow, salt, tuple(records), tuple(batches))
    if signer is not None:
        document = await asyncio.to_thread(_signed, document, signer, now)
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def _signed(document: Export, key: SigningKey, now: int) -> Export:
    """The document with its signatures."""
    records = tuple(
        msgspec.structs.replace(record, signature=key.sign(CASE_RECORD, hashed).hex())
        for record, hashed in zip(document.records, _running(document), strict=True)
    )
    signature = key.sign(CASE_EXPORT, _whole(document, now)).hex()
    told = ExportedSignature(key.public.hex(), now, signature)
    return msgspec.structs.replace(document, records=records, signature=told)


def _running(document: Export) -> Iterator[bytes]:
    """After each record: the hash of the case's name and of all records so far."""
    case = document.case
    hashed = blake2b(_encode((case.tenant, case.case_id, document.salt)), digest_size=32)
    for record in document.records:
        hashed.update(_encode((record.first_sequence, record.position, record.digest)))
        if not record.record:
            hashed.update(_encode(_as_shown(record)))
        yield hashed.digest()


def _as_shown(record: ExportedRecord) -> list[tuple[int, int, str, bytes]]:
    """The events of a withheld record, whatever spaces their text has."""
    return [
        (
            event.sequence,
            event.timestamp,
            event.event_type,
            msgspec.json.encode(_json(bytes(event.data), event.sequence)),
        )
        for event in record.events
    ]


def _whole(document: Export, now: int) -> bytes:
    """What the signature of the whole is over: the case as stated, and every digest and hash."""
    case = document.case
    named = (
        case.tenant,
        case.case_id,
        case.spec_id,
        case.spec_version,
        case.state,
        case.sequence,
        case.state_hash,
        case.layout,
    )
    records = [(record.first_sequence, record.position, record.digest) for record in document.records]
    log = [(batch.position, batch.hash) for batch in document.log]
    if not document.salt:
        records.append((0, 0, msgspec.json.encode(_json(bytes(case.data), 0)).decode()))
    return _encode(
        (document.format, document.version, named, document.workflow.digest, document.salt, records, log, now)
    )


async def _chained(
    reads: Reads, keys: Keyspace, tenant: str, case_id: str, created_at: int, sequence: int
) -> tuple[dict[int, tuple[int, LogEntry]], list[ExportedBatch]]:
    """The log's entries of a case by first sequence with their positions, and the batch records that have them."""
    shard = keys.shard_of(tenant, case_id)
    first = await last_before(reads, keys, shard, created_at)
    for begin in dict.fromkeys((first, 0)):  # a clock that was set back makes the search miss: then all of the log
        entries: dict[int, tuple[int, LogEntry]] = {}
        batches: list[ExportedBatch] = []
        end = 0
        async for each in walk(reads, keys, shard, begin):
            if not isinstance(each, Link):
                raise each.error
            mine = [entry for entry in each.record.entries if (entry.tenant, entry.case_id) == (tenant, case_id)]
            if not mine:
                continue
            entries |= {entry.first_sequence: (each.position, entry) for entry in mine}
            key = keys.log(shard, each.position)
            alone = all(entry.tenant == tenant for entry in each.record.entries)
            body = b64encode(unseal(key, each.value)).decode() if alone else ""
            batches.append(ExportedBatch(each.position, each.hashed.hex(), body))
            end = mine[-1].first_sequence + mine[-1].count - 1
            if end >= sequence:
                break
        if 1 in entries and end >= sequence:
            break
    return entries, batches


def prove(document: bytes, key: bytes | None = None) -> Proof:
    """Prove an exported case: offline, from the document alone, or with the public key (32 bytes) of whoever must have
    signed it. Raises InvalidInput for what is no export.

    What it shows: every event is the one that its record holds, each record has the digest that the log names, the
    log's hashes fit, the events follow from each other and give the case as stated. What it cannot show without the
    key, or a hash kept elsewhere: that somebody did not write a whole other document.
    """
    try:
        export = msgspec.json.decode(document, type=Export)
    except UNREADABLE as error:
        raise InvalidInput.field("document", f"is not an exported case: {error}", "use knhk case export") from error
    if export.format != FORMAT or export.version != VERSION:
        raise InvalidInput.field(
            "document", f"has format {export.format!r} version {export.version}", f"this version reads {VERSION}"
        )
    return _Prover(export, key).run()


class _Bad(Exception):
    """What is wrong, and with which event."""

    def __init__(self, sequence: int, problem: str) -> None:
        super().__init__(problem)
        self.sequence = sequence
        self.problem = problem


class _Prover:
    def __init__(self, export: Export, key: bytes | None) -> None:
        self._export = export
        self._key = key
        self._signed_by = ""
        self._events = self._records = self._tied = 0

    def run(self) -> Proof:
        case = self._export.case
        newest = self._export.log[-1] if self._export.log else ExportedBatch(0, "", "")
        sequence, problem = 0, ""
        try:
            self._all()
        except _Bad as bad:
            sequence, problem = bad.sequence, bad.problem
        return Proof(
            case.case_id,
            self._events,
            self._records,
            self._tied,
            newest.position,
            newest.hash,
            sequence,
            problem,
            self._signed_by,
            not self._export.salt,
        )

    def _all(self) -> None:
        export, case = self._export, self._export.case
        salt = _unhex(export.salt, 0, "the salt") if export.salt else b""
        signer = self._signer()
        running = _running(export)
        batches = {batch.position: batch for batch in export.log}
        decoded: dict[int, LogRecord] = {}
        state: Case | None = None
        before = sequence = 0
        for record in export.records:
            first = record.first_sequence
            if first != sequence + 1:
                raise _Bad(sequence + 1, f"event {sequence + 1} is missing")
            if salt:
                payload = _unbase64(record.record, first, "the record")
                state = self._fold(state, record, payload)
                sequence = state.sequence
                if digest(payload, salt).hex() != record.digest:
                    raise _Bad(first, f"the record of event {first} does not match its digest")
            else:
                sequence = self._shown(record, sequence)
            if record.position < before:
                raise _Bad(first, f"the record of event {first} lies before the one in front of it")
            before = record.position
            batch = batches.get(record.position)
            if batch is None:
                raise _Bad(first, f"log position {record.position} of event {first} is missing")
            if batch.batch:
                self._tie(record, batch, batches, decoded, sequence - first + 1)
            hashed = next(running)
            if signer and not signed_by(signer, CASE_RECORD, hashed, _unhex(record.signature, first, "the signature")):
                raise _Bad(first, f"the record of event {first} was not signed like this")
            self._records += 1
        if not sequence:
            raise _Bad(1, "there are no events")
        document = _unbase64(export.workflow.document, 0, "the workflow")
        if spec_digest(document).hex() != export.workflow.digest:
            raise _Bad(0, "the workflow is not the one that the case runs on")
        if state is not None:
            self._end(state, salt)
        elif case.sequence != sequence:
            raise _Bad(0, f"the case is said to have {case.sequence} events, {sequence} are shown")
        if signer and export.signature is not None:
            signature = _unhex(export.signature.signature, 0, "the signature")
            if not signed_by(signer, CASE_EXPORT, _whole(export, export.signature.signed_at), signature):
                raise _Bad(0, "the whole was not signed like this: the case as stated, its log or its end")
            self._signed_by = fingerprint(signer)

    def _shown(self, record: ExportedRecord, before: int) -> int:
        """The events of a record that is withheld; the number of the last one."""
        if record.record:
            raise _Bad(record.first_sequence, f"the record of event {before + 1} is there, but its salt is not")
        for event in record.events:
            before += 1
            if event.sequence != before:
                raise _Bad(before, f"event {before} is missing")
            self._events += 1
        return before

    def _end(self, state: Case, salt: bytes) -> None:
        """What the events give is what is stated."""
        export, case = self._export, self._export.case
        if (state.case_id, state.tenant, state.salt) != (case.case_id, case.tenant, salt):
            raise _Bad(1, "the events are of another case")
        now_hashed = _state_hash(state) if case.layout == state_layout() else case.state_hash
        stated = (case.state, case.sequence, case.spec_id, case.spec_version, case.state_hash)
        if stated != (state.state, state.sequence, state.spec_id, state.version, now_hashed):
            raise _Bad(0, f"the case is said to be {stated}, its events say otherwise")
        if _json(bytes(case.data), 0) != _json(state.root.data, 0):
            raise _Bad(0, "the data of the case are not what its events say")
        if state.digest.hex() != export.workflow.digest:
            raise _Bad(0, "the workflow is not the one that the case runs on")

    def _signer(self) -> bytes:
        """The public key that must have signed; empty when nobody had to and nobody did."""
        told = self._export.signature
        if told is None:
            if self._key is not None:
                raise _Bad(0, "it is not signed")
            if any(record.signature for record in self._export.records):
                raise _Bad(0, "its records are signed, but it is not")
            return b""
        stated = _unhex(told.key, 0, "the key of the signature")
        if len(stated) != PUBLIC_BYTES:
            raise _Bad(0, f"the key of the signature has {len(stated)} bytes")
        if self._key is not None and stated != self._key:
            raise _Bad(0, f"it is signed with another key, {fingerprint(stated)}, not with {fingerprint(self._key)}")
        return stated

    def _fold(self, state: Case | None, exported: ExportedRecord, payload: bytes) -> Case:
        """Read a record, compare it with what is shown of it, and replay it."""
        first = exported.first_sequence
        try:
            record = COMMITS.read(b"", seal(payload))
        except StoreError as error:
            raise _Bad(first, f"the record of event {first} cannot be read") from error
        true = list(render(self._export.case.case_id, first, record, OPEN))
        for event, shown in zip(true, exported.events, strict=False):
            told = (shown.sequence, shown.timestamp, shown.event_type)
            if told != (event.sequence, event.timestamp, event.event_type):
                raise _Bad(event.sequence, f"event {event.sequence} is shown as {told}, its record says otherwise")
            if _json(bytes(shown.data), event.sequence) != _json(event.data, event.sequence):
                raise _Bad(event.sequence, f"event {event.sequence} is shown with other content than its record has")
            self._events += 1
        if len(true) != len(exported.events):
            sequence = first + min(len(true), len(exported.events))
            raise _Bad(
                sequence, f"the record of event {first} has {len(true)} events, {len(exported.events)} are shown"
            )
        try:
            if state is None and not (record.events and isinstance(record.events[0], CaseCreated)):
                raise _Bad(1, "the history does not begin with case_created")
            return replay(state, record.time, record.events)
        except (AssertionError, AttributeError, KeyError, ValueError, TypeError) as error:
            raise _Bad(first, f"event {first} does not follow from those before it") from error

    def _tie(
        self,
        record: ExportedRecord,
        batch: ExportedBatch,
        batches: Mapping[int, ExportedBatch],
        decoded: dict[int, LogRecord],
        count: int,
    ) -> None:
        """The record's entry in its batch record, and the batch record's hash."""
        first, case = record.first_sequence, self._export.case
        if batch.position not in decoded:
            body = _unbase64(batch.batch, first, "the batch record")
            try:
                decoded[batch.position], hashed = unseal_log(b"", seal(body, codec=CODEC_LOG))
            except StoreError as error:
                raise _Bad(first, f"log position {batch.position} does not match its hash") from error
            if hashed.hex() != batch.hash:
                raise _Bad(first, f"log position {batch.position} does not have the hash that is stated")
            below = batches.get(batch.position - 1)
            if below is not None and decoded[batch.position].previous.hex() != below.hash:
                raise _Bad(first, f"the chain is broken at log position {batch.position}")
        named = LogEntry(case.tenant, case.case_id, first, count, _unhex(record.digest, first, "its digest"))
        if named not in decoded[batch.position].entries:
            raise _Bad(first, f"log position {batch.position} does not name the record of event {first}")
        self._tied += 1


@cache
def state_layout() -> str:
    """A mark of the fields that a case's state has in this version."""
    found: dict[str, tuple[str, ...]] = {}
    left: list[object] = [msgspec.inspect.type_info(Case)]
    while left:
        about = left.pop()
        if isinstance(about, msgspec.inspect.StructType):
            name = about.cls.__qualname__
            if name not in found:
                found[name] = tuple(each.encode_name for each in about.fields)
                left += [each.type for each in about.fields]
        elif isinstance(about, msgspec.inspect.Type):
            for part in (getattr(about, each, None) for each in about.__struct_fields__):
                left += part if isinstance(part, tuple) else [part]
    return blake2b(_encode(sorted(found.items())), digest_size=8).hexdigest()


def _state_hash(state: Case) -> str:
    return blake2b(encode_state(state), digest_size=32).hexdigest()


def _unhex(text: str, sequence: int, what: str) -> bytes:
    try:
        found = from_hex(text)
    except ValueError as error:
        raise _Bad(sequence, f"{what} is not hexadecimal") from error
    if not 1 <= len(found) <= 64:
        raise _Bad(sequence, f"{what} has {len(found)} bytes")
    return found


def _unbase64(text: str, sequence: int, what: str) -> bytes:
    try:
        return from_base64(text)
    except ValueError as error:
        raise _Bad(sequence, f"{what} is not base64") from error


def _json(data: bytes, sequence: int) -> object:
    try:
        return msgspec.json.decode(data)
    except (*UNREADABLE, RecursionError) as error:
        raise _Bad(sequence, "its content is not JSON") from error
