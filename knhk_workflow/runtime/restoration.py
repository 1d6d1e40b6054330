"""Restoring a store from backups, whole or as it was at an earlier moment, and proving what came out.

The store is made beside its place and moved there when it is complete and examined: a restore that dies leaves nothing
that could be taken for a store. What happened after the moment is left out: batch records, the commit records that they
tell of, requests, versions of workflows. For the cases concerned everything derived (head, work list, incidents, what
is left to do) is made again from their events. Messages under way at that moment are not part of it. A case that was
purged later is there again when the backups still have its records; otherwise it stays purged.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from knhk_workflow.core.apply import replay
from knhk_workflow.core.case import Case
from knhk_workflow.errors import InvalidInput, NotFound, StoreCorrupt, StoreFormat
from knhk_workflow.model.net import Model
from knhk_workflow.runtime import outbox
from knhk_workflow.runtime.definitions import recompiled
from knhk_workflow.runtime.integrity import Examination, Progress, examine, refused
from knhk_workflow.runtime.live import CONTINUE, head_of, incident_row, item_row
from knhk_workflow.runtime.records import COMMITS, DEFINITIONS, PURGES, REQUESTS, SCHEDULES, pack
from knhk_workflow.store import META_SHARD, Keyspace, Store, Write, open_store, unseal_log
from knhk_workflow.store.backup import (
    PER_CASE,
    Archive,
    Pairs,
    Part,
    Selection,
    Touched,
    check,
    check_sequence,
    parts,
)
from knhk_workflow.store.chain import newest
from knhk_workflow.store.codec import audit_place, unseal_keys
from knhk_workflow.store.keys import (
    BUSINESS,
    DEFINITION,
    DEFINITION_DIGEST,
    DEFINITION_LATEST,
    EFFECT,
    LOG,
    MESSAGE,
    PURGED,
    PURGED_AUDIT,
    PURGING,
    RECORD,
    REQUEST,
    REQUEST_EXPIRY,
    TILE,
    TIMER,
    case_in,
    kind_of,
    parse_business_key,
    parse_effect,
    parse_log,
    parse_purged,
    parse_purged_audit,
    parse_request_expiry,
    parse_timer,
    shard_in,
)
from knhk_workflow.store.portions import portions
from knhk_workflow.store.syncing import sync_names

BATCH_BYTES: Final = 1024 * 1024
READ_RECORDS: Final = 64  # of one case; each may hold 2 MB
READ_SCHEDULES: Final = 1_000


class Restored(msgspec.Struct, frozen=True):
    """What a restore made."""

    path: str
    pairs: int
    position: int
    """Of the newest batch record of shard 0."""
    examination: Examination


class Moment(msgspec.Struct, frozen=True):
    """Up to where to restore: a log position of shard 0, or a time in ns since the epoch; 0 is no bound."""

    position: int = 0
    time_ns: int = 0

    @property
    def newest(self) -> bool:
        """Whether everything is wanted."""
        return not self.position and not self.time_ns


NEWEST: Final = Moment()


async def verify_store(path: str, progress: Progress | None = None) -> Examination:
    """Examine the store at `path`, which no process may have open. A store that is refused is one finding.

    Raises StoreLocked while it is in use, NotFound, StoreUnavailable. Opening completes what a crash left, nothing else
    is changed.
    """
    try:
        store = await open_store(path, create=False)
    except (StoreCorrupt, StoreFormat) as error:
        return refused(error)
    try:
        return await examine(store, store.shards, progress)
    finally:
        await store.close()


def check_backup(path: str) -> Archive:
    """Read a backup file to its end. Raises StoreCorrupt, StoreFormat, NotFound."""
    try:
        with open(path, "rb") as file:
            return check(file, path)
    except FileNotFoundError as error:
        raise NotFound("backup", path) from error


async def restore_store(
    archives: Sequence[str], into: str, *, until: Moment = NEWEST, progress: Progress | None = None
) -> Restored:
    """Make the store at `into` (absent or empty) from a whole backup and the incremental ones that follow it, in order.

    Raises InvalidInput when they do not follow each other, or `into` is in use or `until` is not in them; StoreCorrupt
    and StoreFormat when one is damaged or the result does not pass its examination. Then there is nothing at `into`.
    """
    if not archives:
        raise InvalidInput.field("archives", "must not be empty", "name a backup file")
    target = Path(into)
    making = await asyncio.to_thread(_beside, target)
    checked = [(name, await asyncio.to_thread(check_backup, name)) for name in archives]
    check_sequence(checked)
    try:
        restored = await _Restoration(checked, making, until, progress).run()
        if not restored.examination.intact:
            first = restored.examination.findings[0]
            raise StoreCorrupt(
                f"what was restored is not intact ({restored.examination.found} findings, the first: {first.message})",
                path=into,
            )
        os.rename(making, target)
        sync_names(target.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return msgspec.structs.replace(restored, path=into)


class _Cut(NamedTuple):
    """The end of a shard's log in what is restored."""

    position: int
    time_ns: int


class _Restoration:
    def __init__(
        self, archives: Sequence[tuple[str, Archive]], path: Path, until: Moment, progress: Progress | None
    ) -> None:
        self._archives = archives
        self._path = str(path)
        self._until = until
        self._progress = progress
        self._total = 2 * sum(archive.end.pairs for _, archive in archives)
        self._done = 0
        self._shards = archives[-1][1].begin.shards
        self._keys = Keyspace(self._shards)
        self._cuts: dict[int, _Cut] = {}
        self._late: set[bytes] = set()
        """Keys of commit records, requests and audit records behind the moment."""
        self._again: set[tuple[str, str]] = set()
        """Cases that have such records: what is derived from their events is made again."""
        self._gone: set[tuple[str, str]] = set()
        """Cases whose records are left out, because they were purged by the moment, or later and are not complete."""
        self._back: set[tuple[str, str]] = set()
        """Cases that were purged after the moment, and are there again or did not exist yet."""

    async def run(self) -> Restored:
        touched = await asyncio.to_thread(self._touched)
        await asyncio.to_thread(self._find_purged)
        if not self._until.newest:
            await asyncio.to_thread(self._find_cuts)
            await asyncio.to_thread(self._find_back)
        store = await open_store(self._path)
        try:
            if store.shards != self._shards:
                raise StoreFormat(f"the backup is of a store with {self._shards} shards, this one has {store.shards}")
            written = await self._copy(store, touched)
            if not self._until.newest:
                await self._derive(store)
                await self._workflows(store)
                await self._schedules(store)
        finally:
            await store.close()
        store = await open_store(self._path, create=False)  # once more from the disk, as whoever uses it will
        try:
            position = await newest(store, self._keys, 0)
            examination = await examine(store, store.shards, None)
        finally:
            await store.close()
        self._tell(self._total)
        return Restored(self._path, written, position, examination)

    def _tell(self, done: int) -> None:
        self._done = done
        if self._progress is not None:
            self._progress(min(done, self._total), self._total)

    def _parts(self, name: str) -> Iterator[Part]:
        with open(name, "rb") as file:
            yield from parts(file, name)

    def _touched(self) -> list[list[tuple[str, str]]]:
        """The cases that each backup has anew."""
        found: list[list[tuple[str, str]]] = []
        for name, archive in self._archives:
            cases: list[tuple[str, str]] = []
            if archive.begin.after:
                for part in self._parts(name):
                    if isinstance(part, Touched):
                        cases.extend(part.cases)
            found.append(cases)
        return found

    def _find_cuts(self) -> None:
        """Where each log ends at the moment, and what lies behind it."""
        moment = self._until.time_ns
        cuts: dict[int, _Cut] = {shard: _Cut(0, 0) for shard in self._keys.all_shards()}
        if self._until.position:
            if self._shards != 1:
                raise InvalidInput.field("until", "a position names one log, and this store has several", "give a time")
            for shard, position, time_ns in self._log_times():
                if shard == 0 and position == self._until.position:
                    moment = time_ns
                    cuts[0] = _Cut(position, time_ns)
            if not moment:
                raise InvalidInput.field(
                    "until", f"position {self._until.position} is not in the backup", "give one that is"
                )
        for shard, position, time_ns in self._log_times():
            if shard == 0 and self._until.position:
                continue
            if time_ns <= moment and position == cuts[shard].position + 1:
                cuts[shard] = _Cut(position, time_ns)
        self._cuts = cuts
        for name, _ in self._archives:
            for part in self._parts(name):
                if isinstance(part, Pairs):
                    for key, value in part.pairs:
                        self._note(key, value)

    def _find_purged(self) -> None:
        for name, _ in self._archives:
            for part in self._parts(name):
                if isinstance(part, Pairs):
                    self._gone.update(parse_purged(key) for key, _ in part.pairs if kind_of(key) == PURGED)

    def _find_back(self) -> None:
        """Of the cases purged after the moment, those that the backups still have as they were, and those that began
        later."""
        later: set[tuple[str, str]] = set()
        wanted: dict[bytes, tuple[str, str]] = {}
        for name, _ in self._archives:
            for part in self._parts(name):
                if not isinstance(part, Pairs):
                    continue
                for key, value in part.pairs:
                    if kind_of(key) != LOG:
                        continue
                    shard, position = parse_log(key)
                    for entry in unseal_log(key, value)[0].entries:
                        case = (entry.tenant, entry.case_id)
                        if case not in self._gone:
                            continue
                        if position > self._cuts[shard].position:
                            if not entry.count:
                                later.add(case)
                        elif entry.count:
                            wanted[self._keys.case_record(*case, entry.first_sequence)] = case
        for name, _ in self._archives:
            for part in self._parts(name):
                if isinstance(part, Pairs):
                    for key, _ in part.pairs:
                        wanted.pop(key, None)
        self._back = later - set(wanted.values())
        self._gone -= self._back

    def _log_times(self) -> Iterator[tuple[int, int, int]]:
        for name, _ in self._archives:
            for part in self._parts(name):
                if isinstance(part, Pairs):
                    for key, value in part.pairs:
                        if kind_of(key) == LOG:
                            yield *parse_log(key), unseal_log(key, value)[0].time_ns

    def _note(self, key: bytes, value: bytes) -> None:
        """What of the moment's future this pair tells of."""
        kind = kind_of(key)
        if kind == LOG:
            shard, position = parse_log(key)
            if position > self._cuts[shard].position:
                record = unseal_log(key, value)[0]
                for entry in record.entries:
                    self._late.add(self._keys.case_record(entry.tenant, entry.case_id, entry.first_sequence))
                    self._again.add((entry.tenant, entry.case_id))
                for reference in record.audits:
                    self._late.add(self._keys.audit(shard, *audit_place(reference)))
        elif kind == REQUEST_EXPIRY and parse_request_expiry(key)[1] > self._cuts[shard_in(key)].position:
            self._late.update(unseal_keys(key, value))

    def _before(self, key: bytes) -> bool:
        """Whether a pair is to be copied when not everything is wanted."""
        kind = kind_of(key)
        if kind == LOG:
            shard, position = parse_log(key)
            return position <= self._cuts[shard].position
        if kind == REQUEST_EXPIRY:
            return parse_request_expiry(key)[1] <= self._cuts[shard_in(key)].position
        if kind in PER_CASE:
            return case_in(key) not in self._again
        if kind == EFFECT:
            return parse_effect(key)[:2] not in self._again
        if kind == TIMER:
            return parse_timer(key)[1:3] not in self._again
        if kind == BUSINESS:
            tenant, _, case_id = parse_business_key(key)
            return (tenant, case_id) not in self._again
        if kind == PURGED:
            return parse_purged(key) not in self._back
        if kind == PURGED_AUDIT:
            return parse_purged_audit(key)[:2] not in self._back
        if kind == TILE:
            return False  # they are made again from the log
        if kind == PURGING:
            return False  # none of the records of such a case are restored
        if kind == MESSAGE:
            return False
        return key not in self._late

    async def _copy(self, store: Store, touched: Sequence[Sequence[tuple[str, str]]]) -> int:
        """Every pair that is still so at the end, backup by backup."""
        selections: list[Selection] = []
        selection = Selection()
        for cases in reversed(touched):
            selections.insert(0, selection.copy())
            selection.behind(cases)
        written = 0
        batch: list[Write] = []
        size = 0
        for (name, _), chosen in zip(self._archives, selections, strict=True):
            for part in self._parts(name):
                if not isinstance(part, Pairs):
                    continue
                for key, value in part.pairs:
                    if self._gone and kind_of(key) == RECORD and case_in(key) in self._gone:
                        continue
                    if self._back and kind_of(key) == REQUEST and REQUESTS.read(key, value).purged:
                        continue  # its answer is gone, though its case may be there again
                    if chosen.has(key) and (self._until.newest or self._before(key)):
                        batch.append((key, self._as_of(key, value)))
                        size += len(key) + len(value)
                        written += 1
                if size >= BATCH_BYTES:
                    await store.commit(batch, (), True)
                    batch, size = [], 0
                self._tell(self._done + len(part.pairs))
        await store.commit(batch, (), True)
        return written

    def _as_of(self, key: bytes, value: bytes) -> bytes:
        """The value of a pair as it is restored: a note of a purge behind the moment says that the log lacks it."""
        if kind_of(key) == PURGED and parse_purged(key) in self._again:
            return pack(msgspec.structs.replace(PURGES.read(key, value), cut=True))
        return value

    async def _derive(self, store: Store) -> None:
        """For cases whose newest events are left out: what is derived from the others."""
        models: dict[tuple[str, str, int], Model] = {}
        for tenant, case_id in sorted(self._again - self._gone):
            keys = self._keys.case(tenant, case_id)
            state: Case | None = None
            created_by = ""
            async for rows in portions(store, keys.records(), READ_RECORDS):
                for key, value in rows:
                    record = COMMITS.read(key, value)
                    created_by = created_by or record.principal
                    state = replay(state, record.time, record.events)
            if state is None:
                continue  # it began later
            name = (tenant, state.spec_id, state.version)
            if name not in models:
                key = self._keys.definition(*name)
                held = await store.get(key)
                if held is None:
                    raise StoreCorrupt(f"the workflow of case {case_id!r} is not in the backup", case_id=case_id)
                models[name] = await asyncio.to_thread(recompiled, DEFINITIONS.read(key, held))
            model = models[name]
            writes: list[Write] = [(keys.head, pack(head_of(state, created_by)))]
            for activation, run in state.open_work():
                net = state.nets[activation.net].name
                node = model.nets[net].tasks[activation.task]
                writes.append((keys.item(activation.number, run.number), item_row(state, (net, node, activation, run))))
            writes += [
                (keys.incident(number), incident_row(incident, state.spec_id))
                for number, incident in state.incidents.items()
            ]
            if state.ready:
                writes.append((keys.effect(CONTINUE), b""))
            writes += [(keys.effect(name), pack(record)) for name, record in outbox.pending(state).items()]
            writes += [(keys.timer(timer.due, str(number)), b"") for number, timer in state.timers.items()]
            if state.business_key:
                writes.append((keys.business_key(state.business_key), b""))
            await store.commit(writes, (), True)

    async def _schedules(self, store: Store) -> None:
        """Schedules that were made later go. The others stay as they were last: what they started later comes no more,
        for the calendar has gone on since."""
        for shard in range(self._shards):
            async for rows in portions(store, self._keys.schedules(shard), READ_SCHEDULES):
                made = [(key, SCHEDULES.read(key, value).created_at) for key, value in rows]
                later: list[Write] = [(key, None) for key, at in made if at > self._cuts[shard].time_ns]
                await store.commit(later, (), True)

    async def _workflows(self, store: Store) -> None:
        """Versions that were registered or deleted later."""
        moment = max((cut.time_ns for cut in self._cuts.values()), default=0)
        whole = (META_SHARD.to_bytes(2, "big"), (META_SHARD + 1).to_bytes(2, "big"))
        rows = await store.scan(*whole, limit=1_000_000)
        active: dict[tuple[str, str], int] = {}
        writes: list[Write] = [(key, None) for key, _ in rows if kind_of(key) in (DEFINITION_LATEST, DEFINITION_DIGEST)]
        for key, value in rows:
            if kind_of(key) != DEFINITION:
                continue
            tenant, spec_id = case_in(key)
            definition = DEFINITIONS.read(key, value)
            if definition.registered_at > moment:
                writes.append((key, None))
                continue
            if definition.deleted_at > moment:
                definition = msgspec.structs.replace(definition, deleted_at=0)
                writes.append((key, pack(definition)))
            if not definition.deleted_at:
                active[tenant, spec_id] = max(active.get((tenant, spec_id), 0), definition.version)
                number = definition.version.to_bytes(8, "big")
                writes.append((self._keys.definition_digest(tenant, spec_id, definition.digest), number))
        for (tenant, spec_id), version in active.items():
            writes.append((self._keys.definition_latest(tenant, spec_id), version.to_bytes(8, "big")))
        await store.commit(writes, (), True)


def _beside(target: Path) -> Path:
    """Where the store is made before it is moved to its place; what an earlier attempt left there is removed."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInput.field("into", f"{target} exists and is not an empty directory", "restore into a new one")
    target.parent.mkdir(parents=True, exist_ok=True)
    making = target.parent / f".{target.name}.restoring-{os.getpid()}"
    shutil.rmtree(making, ignore_errors=True)
    return making
