"""Receipts: that an entry of the audit, or a durable step of a case, is in a log, provable offline.

A proof is a JSON object: the batch record that names the entry, the path from it to the root of the tree, the signed
checkpoint with that root, and for a step the record's digest with its salt and bytes. Whoever has the public key checks
all of it without the store (`prove_receipt`), and whoever has a later checkpoint checks that the log still continues
this one. Of a case with sensitive data (model/veil.py) the record and the salt are withheld: the log then shows that
the step was made, and who made it is the daemon's word. A batch record that names other tenants' cases is left out:
then the tree shows that its hash is in the log, and what it names is the daemon's word. What an entry of the audit says
is its word too. So the whole document is signed: nobody else can put words into its mouth.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final

import msgspec

from knhk_workflow.core.events import CaseCreated
from knhk_workflow.errors import InvalidInput, NotFound, StoreCorrupt, StoreError
from knhk_workflow.runtime.audit_trail import POSITION_MAX, AuditEntry, Trail, method_name, parse_audit_id
from knhk_workflow.runtime.audit_trees import Inclusion, Trees
from knhk_workflow.runtime.checkpoint import read_checkpoints, signed
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.query import Veils
from knhk_workflow.runtime.records import COMMIT_HEADERS, COMMITS
from knhk_workflow.runtime.signature import RECEIPT, fingerprint, signed_by
from knhk_workflow.runtime.spelled import from_base64, from_hex
from knhk_workflow.store import CODEC_LOG, Keyspace, LogEntry, LogRecord, Reads, digest, seal, unseal, unseal_log
from knhk_workflow.store.chain import last_before, newest
from knhk_workflow.store.codec import UNREADABLE
from knhk_workflow.store.keys import parse_case_record, parse_log
from knhk_workflow.store.merkle import leaf_hash, root_of_inclusion

FORMAT: Final = "knhk-receipt"
VERSION: Final = 1
SEARCHED_MAX: Final = 2_000  # batch records around a time; the one that is looked for is committed within milliseconds
PORTION: Final = 64


class ReceiptStep(msgspec.Struct, frozen=True):
    """The step of a case: `record` is base64 of the commit record, which the digest is of, keyed by `salt` (hex); both
    empty when they are withheld. Who made it, and when, stands in the record."""

    tenant: str
    case_id: str
    first_sequence: int
    count: int
    digest: str
    salt: str
    record: str
    principal: str
    method: str
    time: int


class ReceiptEntry(msgspec.Struct, frozen=True):
    """The entry of the audit that was asked for, as the daemon tells it."""

    audit_id: str
    principal: str
    method: str
    resource: str
    outcome: str
    reason: str
    time: int


class ReceiptProof(msgspec.Struct, frozen=True):
    """The document. `hash` is that of the batch record at `position`; `path` leads from it to the checkpoint's root.
    `signature` (hex) is over the document with an empty one."""

    format: str
    version: int
    shard: int
    position: int
    hash: str
    batch: str
    path: tuple[str, ...]
    checkpoint: str
    key: str
    step: ReceiptStep | None = None
    entry: ReceiptEntry | None = None
    signature: str = ""


class EntryProof(msgspec.Struct, frozen=True):
    """An entry of the audit with its proof."""

    entry: AuditEntry
    inclusion: Inclusion
    document: bytes


class Receipt(msgspec.Struct, frozen=True):
    """A durable step with its proof."""

    case_id: str
    sequence: int
    count: int
    shard: int
    position: int
    digest: bytes
    previous: bytes
    hashed: bytes
    time: int
    document: bytes


class ReceiptVerdict(msgspec.Struct, frozen=True):
    """What proving a receipt found; `problem` is empty when everything fits. `by` is who made the step."""

    shard: int
    position: int
    size: int
    problem: str = ""
    case_id: str = ""
    sequence: int = 0
    principal: str = ""
    method: str = ""
    time: int = 0
    signed_by: str = ""
    withheld: bool = False
    """The case has sensitive data: who made the step is what the daemon says."""
    audit_id: str = ""
    """The entry of the audit that the proof is of; who and what is what the daemon says."""


async def entry_proof(trail: Trail, trees: Trees, audit_id: str, meta: CallMeta) -> EntryProof:
    """The proof of an entry of the audit."""
    shard, position, _ = parse_audit_id(audit_id)
    entry, record, body = await trail.entry(meta.tenant, audit_id)
    inclusion = await trees.inclusion(shard, position)
    document = _document(trees, shard, position, record, body, inclusion, meta.tenant)
    by = entry.operation
    told = ReceiptEntry(audit_id, by.principal, by.method, by.resource, by.outcome, by.reason, by.time)
    return EntryProof(entry, inclusion, _signed(msgspec.structs.replace(document, entry=told), trees))


async def step_receipt(
    reads: Reads, keys: Keyspace, veils: Veils, trees: Trees, case_id: str, sequence: int, meta: CallMeta
) -> Receipt:
    """The receipt of the step that an event of a case belongs to; 0 is the latest."""
    case = keys.case(meta.tenant, case_id)
    if not 0 <= sequence <= POSITION_MAX:
        raise InvalidInput.field("sequence", f"{sequence} is no sequence", "use one of the case's history")
    start, end = case.records(0, sequence + 1 if sequence else None)
    rows = await reads.scan(start, end, limit=1, reverse=True)
    if not rows:
        if await reads.get(case.head) is None:
            raise NotFound("case", case_id)
        raise NotFound("event", f"{sequence} of case {case_id}")
    key, value = rows[0]
    first, payload = parse_case_record(key)[2], unseal(key, value)
    record = COMMITS.read_payload(key, payload)
    if sequence >= first + len(record.events):
        raise NotFound("event", f"{sequence} of case {case_id}")
    born_key = case.record(1)
    born = record
    if first != 1:
        held = await reads.get(born_key)
        if held is None:
            raise StoreCorrupt(f"the history of case {case_id!r} has no beginning", case_id=case_id)
        born = COMMITS.read(born_key, held)
    creation = born.events[0]
    assert isinstance(creation, CaseCreated)
    hashed = digest(payload, creation.salt)
    entry = LogEntry(meta.tenant, case_id, first, len(record.events), hashed)
    position, batch, body = await _batch_of(reads, keys, case.shard, entry, record.time)
    inclusion = await trees.inclusion(case.shard, position)
    veil = await veils(meta.tenant, creation.spec_id, creation.version)
    step = ReceiptStep(
        meta.tenant,
        case_id,
        first,
        entry.count,
        hashed.hex(),
        "" if veil else creation.salt.hex(),
        "" if veil else b64encode(payload).decode(),
        record.principal,
        method_name(record.method),
        record.time,
    )
    document = _document(trees, case.shard, position, batch, body, inclusion, meta.tenant)
    document = msgspec.structs.replace(document, step=step)
    return Receipt(
        case_id,
        first,
        entry.count,
        case.shard,
        position,
        hashed,
        batch.previous,
        body[:32],
        batch.time_ns,
        _signed(document, trees),
    )


def _signed(document: ReceiptProof, trees: Trees) -> bytes:
    assert trees.key is not None, "checkpoints are signed"
    signature = trees.key.sign(RECEIPT, msgspec.json.encode(document))
    return msgspec.json.encode(msgspec.structs.replace(document, signature=signature.hex()))


def _document(
    trees: Trees, shard: int, position: int, record: LogRecord, body: bytes, inclusion: Inclusion, tenant: str
) -> ReceiptProof:
    assert trees.key is not None, "checkpoints are signed"
    alone = all(entry.tenant == tenant for entry in record.entries)
    return ReceiptProof(
        FORMAT,
        VERSION,
        shard,
        position,
        body[:32].hex(),
        b64encode(body).decode() if alone else "",
        tuple(each.hex() for each in inclusion.path),
        inclusion.checkpoint.note,
        trees.key.public.hex(),
    )


async def _batch_of(
    reads: Reads, keys: Keyspace, shard: int, wanted: LogEntry, time_ns: int
) -> tuple[int, LogRecord, bytes]:
    """The batch record that names a commit record which was made at a time: (position, record, stored bytes)."""
    end = await newest(reads, keys, shard)
    first = await last_before(reads, keys, shard, time_ns) + 1
    for begin in dict.fromkeys((first, 1)):  # a clock that was set back makes the search miss: then all of the log
        at = begin
        while at <= end and (begin == 1 or at < begin + SEARCHED_MAX):
            rows = await reads.scan(keys.log(shard, at), keys.log(shard, at + PORTION), limit=PORTION)
            for key, value in rows:
                record, _ = unseal_log(key, value)
                if wanted in record.entries:
                    return parse_log(key)[1], record, unseal(key, value)
            at += PORTION
    raise StoreCorrupt(
        f"event {wanted.first_sequence} of case {wanted.case_id!r} is in no batch record", case_id=wanted.case_id
    )


def prove_receipt(document: bytes, key: bytes | None = None) -> ReceiptVerdict:
    """Prove a receipt, offline; with the public key (32 bytes) of whoever must have signed its checkpoint. Raises
    InvalidInput for what is none."""
    try:
        proof = msgspec.json.decode(document, type=ReceiptProof)
    except UNREADABLE as error:
        raise InvalidInput.field("document", f"is not a receipt: {error}", "use the proof_json of a receipt") from error
    if proof.format != FORMAT or proof.version != VERSION:
        raise InvalidInput.field("document", "is not a receipt of this version", "use the proof_json of a receipt")
    verdict = ReceiptVerdict(proof.shard, proof.position, 0)
    try:
        return _proven(proof, key)
    except (StoreError, InvalidInput) as error:
        return msgspec.structs.replace(verdict, problem=error.message)
    except ValueError as error:
        return msgspec.structs.replace(verdict, problem=f"something in it cannot be read: {error}")


def _proven(proof: ReceiptProof, key: bytes | None) -> ReceiptVerdict:
    checkpoint = read_checkpoints(proof.checkpoint)[0]
    unsigned = msgspec.json.encode(msgspec.structs.replace(proof, signature=""))
    verdict = ReceiptVerdict(proof.shard, proof.position, checkpoint.size)
    public = from_hex(proof.key)

    def wrong(problem: str) -> ReceiptVerdict:
        return msgspec.structs.replace(verdict, problem=problem)

    if key is not None and public != key:
        return wrong(f"it is signed with another key, {fingerprint(public)}, not with {fingerprint(key)}")
    if not signed(checkpoint, public):
        return wrong("the checkpoint was not signed by this key")
    if checkpoint.shard != proof.shard:
        return wrong("the checkpoint is of another log")
    leaf = leaf_hash(from_hex(proof.hash))
    path = [from_hex(each) for each in proof.path]
    if root_of_inclusion(proof.position - 1, checkpoint.size, leaf, path) != checkpoint.root:
        return wrong("the path does not lead from the batch record to the root of the checkpoint")
    record: LogRecord | None = None
    if proof.batch:
        record, hashed = unseal_log(b"", seal(from_base64(proof.batch), codec=CODEC_LOG))
        if hashed.hex() != proof.hash:
            return wrong("the batch record has another hash")
    step = proof.step
    if step is not None:
        withheld = not (step.record or step.salt)
        if not withheld:
            payload, salt = from_base64(step.record), from_hex(step.salt)
            if not salt or digest(payload, salt).hex() != step.digest:
                return wrong("the record of the step does not match its digest")
            header = COMMIT_HEADERS.read_payload(b"", payload)
            if (header.principal, method_name(header.method), header.time) != (step.principal, step.method, step.time):
                return wrong("who made the step is not what its record says")
        entry = LogEntry(step.tenant, step.case_id, step.first_sequence, step.count, from_hex(step.digest))
        if record is not None and entry not in record.entries:
            return wrong("the batch record does not name the step")
        verdict = msgspec.structs.replace(
            verdict,
            case_id=step.case_id,
            sequence=step.first_sequence,
            principal=step.principal,
            method=step.method,
            time=step.time,
            withheld=withheld,
        )
    if not signed_by(public, RECEIPT, unsigned, from_hex(proof.signature)):
        return wrong("the receipt was not signed like this: it was changed, or made by somebody else")
    told = proof.entry
    if told is not None:
        verdict = msgspec.structs.replace(
            verdict, audit_id=told.audit_id, principal=told.principal, method=told.method, time=told.time
        )
    return msgspec.structs.replace(verdict, signed_by=fingerprint(public))
