"""Registered workflows: versions side by side, compiled once, kept in the meta shard.

The same content under the same id is the same version; other content is the next one. A case is created on the newest
active version unless it names one, and stays on it. A deleted version takes no new cases; it stays readable for the
history of those that ran on it.

New content is verified before it is stored, in a thread, because that may take two seconds of computing. What cannot
always come to its end is refused unless the caller allows it; findings and verdict stay with the version.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from knhk_workflow.core.or_join import compile_or_joins
from knhk_workflow.errors import InvalidDocument, InvalidInput, NotFound, Problem, Unsound
from knhk_workflow.model.document import DOCUMENT_MAX, strict_json, strict_yaml
from knhk_workflow.model.net import Model, compile_spec
from knhk_workflow.model.parse import canonical, findings, parse_spec, spec_digest, unsupported
from knhk_workflow.model.spec import Spec
from knhk_workflow.model.veil import OPEN, Veil, veil_of
from knhk_workflow.model.verify import VerifyBudget, verify
from knhk_workflow.runtime.audited import audited
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.pages import decode_token, encode_token, page_size_of
from knhk_workflow.runtime.records import DEFINITIONS, Definition, pack
from knhk_workflow.runtime.requests import Request, Requests
from knhk_workflow.runtime.views import Page, Validation, WorkflowView
from knhk_workflow.store import META_SHARD, Expectation, ExpectationFailed, Journal, Keyspace, Reads, Unit, Write
from knhk_workflow.store.keys import parse_definition, parse_definition_latest
from knhk_workflow.store.portions import portions

MODELS_MAX: Final = 1_000  # compiled versions in memory, about 20 KB each
VERIFY_BUDGET: Final = VerifyBudget()  # about two seconds of one core, in a thread
CHANGE_TRIES: Final = 8  # what another instance, or a call whose caller has gone, writes at the same moment

COUNT_PAGE: Final = 1_000  # entries of 70 bytes
VEILS_MAX: Final = 10_000  # versions whose veil is kept; most of them have none
SENSITIVE: Final = b'"sensitive":'  # in every document that names sensitive fields, and in few others

NAMING_PAGE: Final = 64  # documents per read; one may have 1 MB

Document = Mapping[str, object] | bytes | str

_u64 = 8
_encode = msgspec.msgpack.Encoder().encode
_decode_numbers = msgspec.msgpack.Decoder(tuple[int, ...]).decode


class Parsed(msgspec.Struct, frozen=True):
    """A document that can be registered."""

    spec: Spec
    canonical: bytes
    digest: bytes
    findings: tuple[Problem, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
    """A document that was verified, compiled for version 0. Findings are sorted, errors first."""

    model: Model
    findings: tuple[Problem, ...]
    verdict: str


def read_document(document: Document, form: str) -> object:
    """The plain value of a document given as a mapping or as JSON or YAML text."""
    if isinstance(document, Mapping):
        document = msgspec.json.encode(document)
    elif form == "yaml":
        return strict_yaml(document.decode("utf-8", "strict") if isinstance(document, bytes) else document)
    elif form != "json":
        raise InvalidInput.field("format", f"{form!r} is not a document format", "use json or yaml")
    data = document.encode() if isinstance(document, str) else document
    return strict_json(data, max_bytes=DOCUMENT_MAX)


def check(document: Document, form: str) -> Parsed:
    """Parse a document, or raise InvalidDocument with every problem at once."""
    value = read_document(document, form)
    spec = parse_spec(value)
    missing = unsupported(spec)
    if missing:
        raise InvalidDocument(
            f"workflow {spec.id!r} uses constructs that this version does not execute: "
            + "; ".join(str(problem) for problem in missing[:5]),
            missing,
        )
    text = canonical(value)
    return Parsed(spec, text, spec_digest(text), findings(spec))


def compiled(spec: Spec, version: int, digest: bytes) -> Model:
    """Compile a workflow, its or-joins analysed: what takes long is done here, not when a case first asks."""
    model = compile_spec(spec, version, digest)
    for net in model.nets.values():
        if any(node.join.kind == "or" for node in net.tasks.values()):
            for join in compile_or_joins(net).values():
                join.prepare()
    return model


def verified(parsed: Parsed, budget: VerifyBudget) -> Verified:
    """Compile a document and verify it."""
    model = compiled(parsed.spec, 0, parsed.digest)
    verification = verify(parsed.spec, model.nets, budget=budget)
    everything = sorted((*verification.findings, *parsed.findings), key=lambda problem: problem.severity != "error")
    return Verified(model, tuple(everything), verification.verdict)


class Definitions:
    """The workflows of every tenant."""

    def __init__(
        self,
        reads: Reads,
        journal: Journal,
        keyspace: Keyspace,
        requests: Requests,
        clock: Clock,
        budget: VerifyBudget = VERIFY_BUDGET,
    ) -> None:
        self._reads = reads
        self._journal = journal
        self._keys = keyspace
        self._requests = requests
        self._clock = clock
        self._budget = budget
        self._models: OrderedDict[tuple[str, str, int], Model] = OrderedDict()
        self._latest: dict[tuple[str, str], int] = {}
        self._veils: dict[tuple[str, str, int], Veil] = {}
        self._changes = 0
        self._changing = asyncio.Lock()  # one registration or deletion at a time: the next one sees what it left
        journal.on_commit(self._changed)

    async def register(
        self, document: Document, form: str, meta: CallMeta, allow_unsound: bool = False
    ) -> WorkflowView:
        """Register a document: the version that has its content, or the next one. Raises Unsound unless allowed."""
        parsed = check(document, form)
        known = await self._same(parsed, meta.tenant)
        if known is not None:
            return known
        analysed = await asyncio.to_thread(verified, parsed, self._budget)
        if analysed.verdict == "unsound" and not allow_unsound:
            raise Unsound(parsed.spec.id, analysed.findings)
        async with self._changing:
            for _ in range(CHANGE_TRIES):
                view = await self._register(parsed, analysed, meta)
                if view is not None:
                    return view
        raise ExpectationFailed(())

    async def validate(self, document: Document, form: str) -> Validation:
        """What registering would say; nothing is stored."""
        try:
            parsed = check(document, form)
        except InvalidDocument as refused:
            return Validation("", refused.problems, "unchecked")
        analysed = await asyncio.to_thread(verified, parsed, self._budget)
        return Validation(parsed.spec.id, analysed.findings, analysed.verdict)

    async def get(self, tenant: str, spec_id: str, version: int = 0) -> WorkflowView:
        """One version; 0 is the newest active one."""
        number = version or await self.latest(tenant, spec_id)
        return _view(spec_id, await self._definition(tenant, spec_id, number))

    async def list(self, tenant: str, page_size: int, page_token: str) -> Page[WorkflowView]:
        """The newest active version of every workflow, by id, without documents."""
        size = page_size_of(page_size)
        start, end = self._keys.definitions_latest(tenant)
        after = decode_token(page_token, "workflows")
        rows = await self._reads.scan(max(start, after + b"\0") if after else start, end, limit=size + 1)
        views: list[WorkflowView] = []
        for key, value in rows[:size]:
            spec_id = parse_definition_latest(key)[1]
            view = _view(spec_id, await self._definition(tenant, spec_id, int.from_bytes(value, "big")))
            views.append(msgspec.structs.replace(view, document=b""))
        return Page(tuple(views), encode_token(rows[size - 1][0], "workflows") if len(rows) > size else "")

    async def versions(self, tenant: str, page_size: int, page_token: str) -> Page[WorkflowView]:
        """Every active version of every workflow, by id and version, without documents."""
        size = page_size_of(page_size)
        start, end = self._keys.definitions(tenant)
        after = decode_token(page_token, "versions")
        rows = await self._reads.scan(max(start, after + b"\0") if after else start, end, limit=size + 1)
        found = [(parse_definition(key)[1], DEFINITIONS.read(key, value)) for key, value in rows[:size]]
        views = (
            msgspec.structs.replace(_view(spec_id, definition), document=b"")
            for spec_id, definition in found
            if not definition.deleted_at
        )
        return Page(tuple(views), encode_token(rows[size - 1][0], "versions") if len(rows) > size else "")

    async def count(self, tenant: str) -> int:
        """How many versions are in use: each has one entry by its digest."""
        return sum(
            [len(rows) async for rows in portions(self._reads, self._keys.definition_digests(tenant), COUNT_PAGE)]
        )

    async def delete(self, spec_id: str, version: int, request: Request | None, meta: CallMeta) -> tuple[int, ...]:
        """Take a version (0 = all) out of use; returns which these were. The caller has made sure that no case is open
        on it, and that the request was not carried out before."""
        async with self._changing:
            for _ in range(CHANGE_TRIES):
                deleted = await self._delete(spec_id, version, request, meta)
                if deleted is not None:
                    return deleted
                before = await self.deleted_by(meta.tenant, request)
                if before is not None:
                    return before
        raise ExpectationFailed(())

    async def deleted_by(self, tenant: str, request: Request | None) -> tuple[int, ...] | None:
        """The versions that this request took out of use before; None when it is new."""
        receipt = await self._requests.receipt(META_SHARD, tenant, request)
        return None if receipt is None else _decode_numbers(receipt)

    async def _delete(
        self, spec_id: str, version: int, request: Request | None, meta: CallMeta
    ) -> tuple[int, ...] | None:
        """None: somebody registered or deleted a version of it at the same moment, or did the same."""
        tenant = meta.tenant
        latest = self._keys.definition_latest(tenant, spec_id)
        newest = await self._reads.get(latest)
        start, end = self._keys.definitions(tenant, spec_id)
        rows = await self._reads.scan(start, end, limit=10_000)
        now = self._clock.now()
        writes: list[Write] = []
        deleted: list[int] = []
        remaining = 0
        for key, value in rows:
            definition = DEFINITIONS.read(key, value)
            if definition.deleted_at:
                continue
            if version in (0, definition.version):
                deleted.append(definition.version)
                writes.append((key, pack(msgspec.structs.replace(definition, deleted_at=now))))
                digest_key = self._keys.definition_digest(tenant, spec_id, definition.digest)
                writes.append((digest_key, None))
            else:
                remaining = max(remaining, definition.version)
        if not writes:
            raise NotFound("workflow", spec_id if not version else f"{spec_id}@{version}")
        writes.append((latest, remaining.to_bytes(_u64, "big") if remaining else None))
        expect: list[Expectation] = [(latest, newest)]
        record = self._requests.record_in(META_SHARD, tenant, request, _encode(deleted))
        if record is not None:
            writes.append(record)
            expect.append((record[0], None))
        named = record[0] if record is not None else None
        try:
            entry = audited(self._keys, META_SHARD, meta, f"workflows/{spec_id}", now)
            writes.append(entry.write)
            await self._journal.append(Unit.aside(META_SHARD, tenant, writes, expect, named, audits=(entry.reference,)))
        except ExpectationFailed:
            return None
        return tuple(deleted)

    async def naming_connector(self, tenant: str, connector: str) -> str | None:
        """An active version that names a connector, as `id@version`."""
        needle = b'"connector":' + msgspec.json.encode(connector)  # documents are kept in their canonical form
        async for rows in portions(self._reads, self._keys.definitions(tenant), NAMING_PAGE):
            for key, value in rows:
                definition = DEFINITIONS.read(key, value)
                if not definition.deleted_at and needle in definition.document:
                    return f"{parse_definition(key)[1]}@{definition.version}"
        return None

    def _changed(self, shard: int, position: int, units: Sequence[Unit]) -> None:
        """A definition was committed, whoever still waits for it: what was read before counts no more."""
        if shard == META_SHARD:
            self._latest.clear()
            self._changes += 1

    async def latest(self, tenant: str, spec_id: str) -> int:
        """The newest active version's number."""
        known = self._latest.get((tenant, spec_id))
        if known is None:
            changes = self._changes
            stored = await self._reads.get(self._keys.definition_latest(tenant, spec_id))
            if stored is None:
                raise NotFound("workflow", spec_id, "register it first")
            known = int.from_bytes(stored, "big")
            if changes == self._changes:
                self._latest[tenant, spec_id] = known
        return known

    def cached(self, tenant: str, spec_id: str, version: int) -> Model | None:
        """The compiled version, if it is in memory: the way of the hot path."""
        number = version or self._latest.get((tenant, spec_id), 0)
        name = (tenant, spec_id, number)
        found = self._models.get(name)
        if found is not None:
            self._models.move_to_end(name)
        return found

    async def model(self, tenant: str, spec_id: str, version: int) -> Model:
        """The compiled version; 0 is the newest active one. Deleted versions still run the cases they have."""
        number = version or await self.latest(tenant, spec_id)
        name = (tenant, spec_id, number)
        found = self._models.get(name)
        if found is None:
            definition = await self._definition(tenant, spec_id, number)
            made = await asyncio.to_thread(recompiled, definition)
            found = self._keep(name, made)
        else:
            self._models.move_to_end(name)
        return found

    def _keep(self, name: tuple[str, str, int], made: Model) -> Model:
        """Have a compiled version in memory; the one that is there when somebody needed it in the meantime."""
        kept = self._models.setdefault(name, made)
        while len(self._models) > MODELS_MAX:
            self._models.popitem(last=False)  # the one that nobody has used for longest
        return kept

    async def veil(self, tenant: str, spec_id: str, version: int) -> Veil:
        """What a version hides of its cases' data."""
        name = (tenant, spec_id, version)
        found = self._veils.get(name)
        if found is None:
            definition = await self._definition(tenant, spec_id, version)
            found = OPEN
            if SENSITIVE in definition.document:
                found = veil_of(await asyncio.to_thread(_spec, definition))
            if len(self._veils) >= VEILS_MAX:
                self._veils.clear()
            self._veils[name] = found
        return found

    async def active_model(self, tenant: str, spec_id: str, version: int) -> Model:
        """The compiled version for a new case: it must not be deleted."""
        if version:
            definition = await self._definition(tenant, spec_id, version)
            if definition.deleted_at:
                raise NotFound("workflow", f"{spec_id}@{version}", "this version was deleted")
        return await self.model(tenant, spec_id, version)

    async def _same(self, parsed: Parsed, tenant: str) -> WorkflowView | None:
        """The version that has this content already."""
        same = await self._reads.get(self._keys.definition_digest(tenant, parsed.spec.id, parsed.digest))
        if same is None:
            return None
        definition = await self._definition(tenant, parsed.spec.id, int.from_bytes(same, "big"))
        return msgspec.structs.replace(_view(parsed.spec.id, definition), created=False)

    async def _register(self, parsed: Parsed, analysed: Verified, meta: CallMeta) -> WorkflowView | None:
        """None: somebody registered the same id at the same moment."""
        tenant, spec_id = meta.tenant, parsed.spec.id
        known = await self._same(parsed, tenant)
        if known is not None:
            return known
        digest_key = self._keys.definition_digest(tenant, spec_id, parsed.digest)
        start, end = self._keys.definitions(tenant, spec_id)
        newest = await self._reads.scan(start, end, limit=1, reverse=True)
        number = DEFINITIONS.read(*newest[0]).version + 1 if newest else 1
        definition = Definition(
            number,
            parsed.spec.name,
            parsed.canonical,
            parsed.digest,
            self._clock.now(),
            meta.principal,
            msgspec.json.encode(analysed.findings),
            verdict=analysed.verdict,
        )
        key = self._keys.definition(tenant, spec_id, number)
        written = number.to_bytes(_u64, "big")
        latest_key = self._keys.definition_latest(tenant, spec_id)
        entry = audited(self._keys, META_SHARD, meta, f"workflows/{spec_id}", definition.registered_at)
        unit = Unit.aside(
            META_SHARD,
            tenant,
            [(key, pack(definition)), (latest_key, written), (digest_key, written), entry.write],
            [(key, None), (digest_key, None)],
            audits=(entry.reference,),
        )
        try:
            await self._journal.append(unit)
        except ExpectationFailed:
            return None
        self._keep((tenant, spec_id, number), dataclasses.replace(analysed.model, version=number))
        return _view(spec_id, definition)

    async def _definition(self, tenant: str, spec_id: str, version: int) -> Definition:
        key = self._keys.definition(tenant, spec_id, version)
        stored = await self._reads.get(key)
        if stored is None:
            raise NotFound("workflow", f"{spec_id}@{version}")
        return DEFINITIONS.read(key, stored)


def recompiled(definition: Definition) -> Model:
    return compiled(_spec(definition), definition.version, definition.digest)


def _spec(definition: Definition) -> Spec:
    return parse_spec(strict_json(definition.document, max_bytes=DOCUMENT_MAX))


def _view(spec_id: str, definition: Definition) -> WorkflowView:
    return WorkflowView(
        spec_id,
        definition.version,
        definition.name,
        definition.digest.hex(),
        definition.document,
        definition.registered_at,
        definition.registered_by,
        msgspec.json.decode(definition.findings, type=tuple[Problem, ...]),
        verdict=definition.verdict,
    )
