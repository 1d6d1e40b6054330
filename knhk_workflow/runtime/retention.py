"""Retention: ended cases that nobody needs any more go, by policy or on demand, and what is left proves that they went.

A purge deletes what is kept of a case: its records with the salt, its head, snapshot and rows, its business key, what
its requests were answered with. The log stays as it is: its digests prove nothing about content without the salt. It
gets one entry more, of no events, with the digest of a note (`PurgeRecord`): who purged which case, when, and how much
there was. So a case that is missing was either purged, as the log says, or lost. The note also keeps the case's id from
being given again, and a request id that made or changed the case answers NotFound for as long as it is remembered.

Who did what to the case, and when, stays: the audit keeps the heads of its commit records (time, principal, method,
request id, trace id), with a digest in the log too.

The first commit takes all of it away when the case has at most RECORDS_MAX records. A larger one is gone with the first
commit as well; its remaining records follow in portions, and a mark makes the next start go on where a crash ended it.

The policy looks at all heads now and then, in portions, and purges in small batches with pauses: calls go first. A case
that is damaged stays as it is, for whoever mends it, and keeps no other one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import msgspec

from knhk_workflow.core.commands import ENDED
from knhk_workflow.errors import (
    Busy,
    Fenced,
    InvalidInput,
    NotFound,
    RequestMismatch,
    StoreCorrupt,
    StoreFormat,
    StoreUnavailable,
    WorkflowError,
    WrongState,
)
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime.audited import authors_record, recorded
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.live import LiveCases
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.query import listed
from knhk_workflow.runtime.records import (
    COMMIT_HEADERS,
    HEADS,
    REQUESTS,
    Author,
    CaseHead,
    PurgeRecord,
    RequestRecord,
    pack,
)
from knhk_workflow.runtime.requests import request_scope
from knhk_workflow.runtime.views import CaseFilter, CaseView
from knhk_workflow.store import (
    META_SHARD,
    CaseKeys,
    Expectation,
    ExpectationFailed,
    Journal,
    Keyspace,
    OutcomeUnknown,
    Reads,
    Unit,
    Write,
    digest,
    unseal,
)
from knhk_workflow.store.keys import (
    parse_business_key,
    parse_case_head,
    parse_case_record,
    parse_purged,
    past_tenant,
    shard_range,
    tenant_in,
)
from knhk_workflow.store.portions import portions

RECORDS_MAX: Final = 32  # in one commit; each is read for its request id and may hold 2 MB
ROWS_MAX: Final = 500  # open work or incidents that an ended case may have left, per read
TOGETHER: Final = 16  # cases at once: they share a commit of about 100 writes, which takes 1 ms
PAUSE_S: Final = 0.02  # between batches and portions of the policy; purges then take a tenth of what calls can
HEADS_PAGE: Final = 256  # about 1 ms of decoding
LIMIT: Final = 1_000  # cases in one call that names no limit
LIMIT_MAX: Final = 10_000
ROUND_S: Final = 600.0
RETRY_S: Final = 1.0
NOTE_KEY: Final = b"knhk purge note"
"""Keeps the digests of notes apart from those of records, which are keyed by a salt of 16 bytes."""

SYSTEM: Final = "system:retention"

_EXHAUSTED: Final = (StoreUnavailable, OutcomeUnknown, Busy, Fenced)


class RetentionPolicy(msgspec.Struct, frozen=True):
    """How long ended cases are kept, in seconds since their end; None is for ever."""

    completed_s: float | None = None
    cancelled_s: float | None = None
    failed_s: float | None = None
    every_s: float = ROUND_S
    """From the end of one look at all cases to the next."""

    @property
    def purges(self) -> bool:
        """Whether anything goes by this policy."""
        return not (self.completed_s is None and self.cancelled_s is None and self.failed_s is None)

    def due(self, head: CaseHead, now: int) -> bool:
        """Whether a case has been kept long enough at `now`."""
        kept = {"completed": self.completed_s, "cancelled": self.cancelled_s, "failed": self.failed_s}.get(head.state)
        return kept is not None and head.updated_at + round(kept * NS_PER_S) <= now


KEEP: Final = RetentionPolicy()


class PurgeRequest(msgspec.Struct, frozen=True):
    """What to purge: the cases named, and the ended ones that `filter` and `keep` choose. At least one is given.

    `mark` stands for `keep` where a repeated request is compared with the first. `limit` 0 is LIMIT.
    """

    case_ids: tuple[str, ...] = ()
    filter: CaseFilter | None = None
    keep: Callable[[CaseView], bool] | None = None
    mark: bytes = b""
    dry_run: bool = False
    limit: int = 0


class Skipped(msgspec.Struct, frozen=True):
    """A case that was left alone: in this state, or not there when that is empty."""

    case_id: str
    state: str = ""

    @property
    def error(self) -> WorkflowError:
        """The same as an error."""
        return WrongState("case", self.case_id, "ended", self.state) if self.state else NotFound("case", self.case_id)


class PurgeView(msgspec.Struct, frozen=True):
    """What a purge did. `more`: the limit was reached and there may be more that match."""

    purged: int
    skipped: tuple[Skipped, ...] = ()
    more: bool = False


def note_digest(payload: bytes) -> bytes:
    """What the log says of a note."""
    return digest(payload, NOTE_KEY)


class Retention:
    """The purges of one engine."""

    def __init__(
        self,
        reads: Reads,
        journal: Journal,
        keyspace: Keyspace,
        cases: LiveCases,
        clock: Clock,
        policy: RetentionPolicy,
        window_s: int,
    ) -> None:
        """`window_s` is how long requests are remembered."""
        self._reads = reads
        self._journal = journal
        self._keys = keyspace
        self._cases = cases
        self._clock = clock
        self._policy = policy
        self._window = window_s * NS_PER_S
        self._left: dict[tuple[str, str], None] = {}
        """Purged cases that still have records."""
        self._unfinished = asyncio.Event()
        """Set when there is one more of them, or one to be tried again."""
        self._under_way: Counter[tuple[str, str]] = Counter()
        """Cases that somebody is purging now, who goes on to the last record."""

    async def recover(self) -> None:
        """Know what was purged, and what an earlier life left half done."""
        for shard in range(self._keys.shards):
            if await self._reads.scan(*self._keys.purged(shard), limit=1):
                self._cases.purges = True
            async for rows in portions(self._reads, self._keys.purging(shard), HEADS_PAGE):
                self._left.update((parse_purged(key), None) for key, _ in rows)
                self._unfinished.set()

    async def run(self) -> None:
        """Apply the policy now and then, and finish what was left half done, for ever."""
        await asyncio.gather(self._finish(), self._apply())

    async def _finish(self) -> None:
        while True:
            await self._unfinished.wait()
            self._unfinished.clear()
            for name in tuple(self._left):
                if self._under_way[name]:
                    continue  # this is for those whose purger went away
                try:
                    await self._rest(self._keys.case(*name))
                except WorkflowError:  # the store cannot write now, or calls need all of it, or a record is damaged
                    self._unfinished.set()
            await asyncio.sleep(RETRY_S)

    async def _apply(self) -> None:
        while self._policy.purges:
            try:
                await self.apply()
                await asyncio.sleep(self._policy.every_s)
            except _EXHAUSTED:
                await asyncio.sleep(RETRY_S)
            except WorkflowError:
                await asyncio.sleep(self._policy.every_s)  # something is damaged; whoever touches it is told

    async def apply(self) -> int:
        """Purge what the policy does not keep any longer; how many cases went. Raises what keeps the store from it."""
        count = 0
        for shard in range(self._keys.shards):
            async for tenant in self._tenants(shard):
                meta = CallMeta(tenant=tenant, principal=SYSTEM, method="retention")
                due: list[str] = []
                async for rows in portions(self._reads, self._keys.cases(shard, tenant), HEADS_PAGE):
                    for key, value in rows:
                        head = _readable(key, value)
                        if head is not None and self._policy.due(head, self._clock.now()):
                            due.append(parse_case_head(key)[1])
                        if len(due) == TOGETHER:
                            count += await self._batch(due, meta)
                            due.clear()
                            await asyncio.sleep(PAUSE_S)
                    if len(rows) == HEADS_PAGE:
                        await asyncio.sleep(PAUSE_S)
                count += await self._batch(due, meta)
        return count

    async def answer(self, asked: PurgeRequest, meta: CallMeta, scope: bytes, fingerprint: bytes) -> PurgeView:
        """`purge` for a request with an id: repeated, it is answered as the first time."""
        key = self._keys.request(META_SHARD, meta.tenant, scope)
        while True:
            held = await self._reads.get(key)
            if held is not None:
                record = REQUESTS.read(key, held)
                if record.fingerprint != fingerprint:
                    raise RequestMismatch(meta.request_id)
                return _decode(record.receipt)
            view = await self.purge(asked, meta)
            receipt = (key, pack(RequestRecord(fingerprint, "", 0, _encode(view))))
            unit = Unit.aside(META_SHARD, meta.tenant, (receipt,), ((key, None),), key)
            try:
                await self._journal.append(unit)
            except ExpectationFailed:
                continue  # the same request at the same time
            return view

    async def purge(self, asked: PurgeRequest, meta: CallMeta) -> PurgeView:
        """Purge ended cases. Raises InvalidInput for a request that chooses nothing, StoreUnavailable in the middle of
        it: then what was purged until then stays purged, and the same request goes on."""
        if not asked.case_ids and asked.filter is None:
            raise InvalidInput.field("filter", "neither it nor case_ids is given", "say which cases to purge")
        limit = asked.limit or LIMIT
        if not 0 < limit <= LIMIT_MAX:
            raise InvalidInput.field("limit", f"must be between 1 and {LIMIT_MAX}, not {limit}")
        if len(asked.case_ids) > limit:
            raise InvalidInput.field("case_ids", f"has {len(asked.case_ids)} ids, the limit is {limit}", "split it")
        skipped: list[Skipped] = []
        chosen: dict[str, None] = {}
        for case_id in dict.fromkeys(asked.case_ids):
            found = await self._head(self._keys.case(meta.tenant, case_id))
            if found is not None and found[1].state in ENDED:
                chosen[case_id] = None
            else:
                skipped.append(Skipped(case_id, found[1].state if found is not None else ""))
        more = False
        if asked.filter is not None:
            async for case_id in self._matching(asked, meta.tenant):
                if case_id not in chosen:
                    if len(chosen) == limit:
                        more = True
                        break
                    chosen[case_id] = None
        names = list(chosen)
        if asked.dry_run:
            return PurgeView(len(names), tuple(skipped), more)
        count = 0
        for at in range(0, len(names), TOGETHER):
            count += await self._batch(names[at : at + TOGETHER], meta)
        return PurgeView(count, tuple(skipped), more)

    # -- choosing -----------------------------------------------------------------------------------------------------

    async def _matching(self, asked: PurgeRequest, tenant: str) -> AsyncIterator[str]:
        wanted = asked.filter or CaseFilter()

        def fits(case_id: str, head: CaseHead | None) -> bool:
            return (
                head is not None
                and head.state in ENDED
                and wanted.state in ("", head.state)
                and wanted.spec_id in ("", head.spec_id)
                and (asked.keep is None or asked.keep(listed(tenant, case_id, head)))
            )

        for shard in range(self._keys.shards):
            if wanted.business_key:
                indexed = self._keys.business_keys(shard, tenant, wanted.business_key)
                async for rows in portions(self._reads, indexed, HEADS_PAGE):
                    for key, _ in rows:
                        case_id = parse_business_key(key)[2]
                        head_key = self._keys.case_head(tenant, case_id)
                        stored = await self._reads.get(head_key)
                        if stored is not None and fits(case_id, _readable(head_key, stored)):
                            yield case_id
                continue
            async for rows in portions(self._reads, self._keys.cases(shard, tenant), HEADS_PAGE):
                for key, value in rows:
                    case_id = parse_case_head(key)[1]
                    if fits(case_id, _readable(key, value)):
                        yield case_id

    async def _tenants(self, shard: int) -> AsyncIterator[str]:
        start, end = shard_range(shard)
        while rows := await self._reads.scan(start, end, limit=1):
            key = rows[0][0]
            start = past_tenant(key)
            if tenant := tenant_in(key):
                yield tenant

    async def _head(self, keys: CaseKeys) -> tuple[bytes, CaseHead] | None:
        stored = await self._reads.get(keys.head)
        return (stored, HEADS.read(keys.head, stored)) if stored is not None else None

    # -- purging ------------------------------------------------------------------------------------------------------

    async def _batch(self, case_ids: Sequence[str], meta: CallMeta) -> int:
        """Purge cases beside each other; how many went. One that is gone or not ended by now is no error; one that is
        damaged stays as it is, to be looked at."""
        outcomes = await asyncio.gather(*(self._one(case_id, meta) for case_id in case_ids), return_exceptions=True)
        count = 0
        for outcome in outcomes:
            if isinstance(outcome, NotFound | WrongState | StoreCorrupt | StoreFormat):
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            count += 1
        return count

    async def _one(self, case_id: str, meta: CallMeta) -> None:
        """Purge one case."""
        keys = self._keys.case(meta.tenant, case_id)
        name = (meta.tenant, case_id)
        self._under_way[name] += 1
        try:
            if not await self._take_away(keys, meta):
                await self._rest(keys)
        finally:
            self._under_way[name] -= 1
            if not self._under_way[name]:
                del self._under_way[name]
                if name in self._left:
                    self._unfinished.set()

    async def _take_away(self, keys: CaseKeys, meta: CallMeta) -> bool:
        """The first commit of a purge; whether it was the last as well. Whoever wants the case meanwhile waits, as for
        any command."""
        case_id = keys.case_id
        live = self._cases.entry(meta.tenant, case_id)
        await live.acquire()
        try:
            found = await self._head(keys)
            if found is None or found[1].state not in ENDED:
                raise Skipped(case_id, found[1].state if found is not None else "").error
            stored, head = found
            writes, expect, whole, audits = await self._records(keys)
            expect.append((keys.head, stored))
            writes += [(keys.head, None), (keys.snapshot, None)]
            if head.business_key:
                writes.append((keys.business_key(head.business_key), None))
            rows = [keys.effects()]
            rows += [keys.items()] if head.open_items else []
            rows += [keys.incidents()] if head.open_incidents else []
            for start, end in rows:
                writes += [(key, None) for key, _ in await self._reads.scan(start, end, limit=ROWS_MAX)]
            note = pack(
                PurgeRecord(
                    meta.tenant,
                    case_id,
                    head.sequence,
                    head.state,
                    head.spec_id,
                    head.version,
                    head.created_at,
                    head.updated_at,
                    self._clock.now(),
                    meta.principal,
                    meta.method,
                    meta.request_id,
                    trace_id=meta.trace_id,
                )
            )
            if meta.witness is not None:
                meta.witness.recorded = True
            writes.append((keys.purged(), note))
            if not whole:
                writes.append((keys.purging(), b""))
            self._cases.purges = True
            hashed = note_digest(unseal(keys.purged(), note))
            unit = Unit(
                keys.shard,
                meta.tenant,
                case_id,
                head.sequence + 1,
                0,
                hashed,
                writes,
                expect,
                audits=audits,
                head=(keys.head, stored, None),
            )
            told = self._journal.append(unit)
            told.add_done_callback(lambda done: self._begun(keys, whole, done))
            await asyncio.shield(told)
        except ExpectationFailed as error:
            raise Fenced(f"case {case_id!r} was changed by somebody else; nothing was written, try again") from error
        finally:
            self._cases.drop(live)
            live.release()
            for event in live.changed:
                event.set()
        return whole

    def _begun(self, keys: CaseKeys, whole: bool, done: asyncio.Future[int]) -> None:
        """The first commit of a purge has its outcome, whoever still waits for it."""
        if done.exception() is None and not whole:
            self._left[keys.tenant, keys.case_id] = None
            self._unfinished.set()

    async def _rest(self, keys: CaseKeys) -> None:
        """Delete the records that a purged case still has, in portions."""
        if await self._reads.get(keys.purging()) is None:
            self._left.pop((keys.tenant, keys.case_id), None)
            return
        while True:
            writes, expect, whole, audits = await self._records(keys)
            if whole:
                writes.append((keys.purging(), None))
            try:
                await self._journal.append(
                    Unit.aside(keys.shard, keys.tenant, writes, expect, audits=audits, case_id=keys.case_id)
                )
            except ExpectationFailed:
                continue  # a request was forgotten in this very moment
            if whole:
                self._left.pop((keys.tenant, keys.case_id), None)
                return
            await asyncio.sleep(0)

    async def _records(self, keys: CaseKeys) -> tuple[list[Write], list[Expectation], bool, tuple[bytes, ...]]:
        """What deletes the next records of a case and the answers to its requests, and keeps who wrote them; whether
        these are the last ones; what the log is to say of their authors."""
        start, end = keys.records()
        rows = await self._reads.scan(start, end, limit=RECORDS_MAX + 1)
        writes: list[Write] = []
        expect: list[Expectation] = []
        now = self._clock.now()
        remembered = now - self._window
        authors: list[Author] = []
        for key, value in rows[:RECORDS_MAX]:
            writes.append((key, None))
            record = COMMIT_HEADERS.read(key, value)
            first = parse_case_record(key)[2]
            authors.append(
                Author(first, record.time, record.principal, record.method, record.request_id, record.trace_id)
            )
            if not record.request_id or record.time < remembered:
                continue
            request_key = keys.request(request_scope(record.principal, record.method, record.request_id))
            held = await self._reads.get(request_key)
            if held is None:
                continue
            request = REQUESTS.read(request_key, held)
            if request.case_id == keys.case_id and not request.purged:
                writes.append((request_key, pack(msgspec.structs.replace(request, receipt=b"", purged=True))))
                expect.append((request_key, held))
        audits: tuple[bytes, ...] = ()
        if authors:
            kept = recorded(self._keys, keys.shard, authors_record(keys.tenant, keys.case_id, authors), now)
            writes += [kept.write, (keys.purged_audit(authors[0].first_sequence), kept.reference)]
            audits = (kept.reference,)
        return writes, expect, len(rows) <= RECORDS_MAX, audits


def _readable(key: bytes, value: bytes) -> CaseHead | None:
    """A head; None when it is damaged: whoever touches the case, or examines the store, is told."""
    try:
        return HEADS.read(key, value)
    except (StoreCorrupt, StoreFormat):
        return None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PurgeView).decode
