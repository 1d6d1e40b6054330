"""The embedded store: LevelDB through plyvel, with the rules that keep it from losing what it acknowledged.

Each rule answers a measured fault of LevelDB 1.22 / plyvel 1.5.1:

* After a failed write, later synced writes are acknowledged and gone after the next open. So the first failure fences
  the store: nothing is written until `recover()` has closed it, opened it again (which starts a new log) and compared
  its end with what was acknowledged. No write and no fsync is ever repeated.
* A cut or deleted log file, or half a MANIFEST, opens clean. So every open walks the batch log backwards over more than
  the newest log file can hold: dense positions, unbroken hash chain, and at least as far as the HEAD file says.
* A full volume: writes are refused while there is still room (`free_min_bytes`), and RESERVE is given back when even
  opening needs space. Both are looked at with every commit, so writing resumes by itself.
* plyvel's Iterator ends silently at a damaged block, and `paranoid_checks` does not cover reads: see `database`.
* A damaged store is never repaired here: repairing drops tables and then opens clean. One thing is mended, a write that
  was never finished at the end of the newest log: see `mending`.
* Opening twice, forking: see `directory`; the handle remembers its process.
* Values over 256 KB stall compaction: they are cut into chunks, which the callers do not see.

Threads: one writes (the batch, then the head), a few read. The event loop never waits for the disk: a commit is one hop
to the writer and one call back. What can be done without the disk is done before the hop, on the event loop: objects
that two processors take turns at cost more than the work on them. Hence one commit at a time, and what is known of the
database (`_known`, `_chunked`) belongs to the event loop alone.

Keys that begin with FF FE or FF FF are the store's own.
"""

from __future__ import annotations

import asyncio
import os
import queue
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar
from zlib import crc32

import msgspec

from knhk_workflow.errors import StoreCorrupt, StoreFormat, StoreFull, StoreUnavailable
from knhk_workflow.store.codec import GENESIS, log_hash, log_link
from knhk_workflow.store.database import (
    Batch,
    Database,
    DatabaseError,
    View,
    make_database,
    open_database,
    open_error,
    pairs,
    read_error,
    said,
)
from knhk_workflow.store.directory import Directory, HeadFile, is_full
from knhk_workflow.store.keys import Keyspace, is_log, parse_log
from knhk_workflow.store.mending import mend
from knhk_workflow.store.store import Expectation, ExpectationFailed, OutcomeUnknown, Snapshot, Write

MIB: Final = 1024 * 1024
SHARDS: Final = 1  # one process owns the whole directory: more would only mean more fsyncs
KNOWN_MAX: Final = 20_000  # about 200 bytes each
SPACE_CHECK_S: Final = 0.05  # a disk that fills at 1 GB/s loses less than `free_min_bytes` in it
HEAD_SYNC_S: Final = 0.1  # what a loss of power may hide from the truncation check
LOG_CHECK_RECORDS: Final = 32_768  # most that an open walks, unless twice the write buffer comes first: 0.14 s

_CHUNK_INDEX: Final = b"\xff\xfe"
_CHUNK: Final = b"\xff\xff"
_CHUNKED: Final = b"\xffchunks\xff"  # a value that begins so describes chunks; values that happen to are chunked too
_MARKED: Final = _CHUNKED[:1]  # what sorts before it cannot begin with the marker: all that the engine writes
_chunks = struct.Struct(">8sIQI")  # marker, count, length, crc32
_u32 = struct.Struct(">I").pack

_UNKNOWN: Final = object()

_forks = 0  # how often this process is a fork of the one that imported this


def _forked() -> None:
    global _forks  # noqa: PLW0603  # asking for the process id with every commit is a system call each time
    _forks += 1


os.register_at_fork(after_in_child=_forked)

P = ParamSpec("P")
T = TypeVar("T")


class LevelDBLimits(msgspec.Struct, frozen=True):
    """Bounds of an embedded store. All can be set; the defaults carry their reason."""

    free_min_bytes: int = 64 * MIB
    """Below it writes are refused with StoreFull: compaction in the background needs room for whole tables."""
    reserve_bytes: int = 16 * MIB
    """Put aside, and given back when the volume is full: opening rewrites up to two write buffers and the MANIFEST."""
    write_buffer_bytes: int = 8 * MIB
    block_cache_bytes: int = 32 * MIB
    open_files: int = 512
    chunk_bytes: int = 256 * 1024
    """Longest value stored in one piece: 4 MB values stalled compaction for over a second."""
    reader_threads: int = 4
    """Reads wait for the disk, not for the processor."""


class LevelDBStore:
    """A directory with a LevelDB database, owned by this process until `close`."""

    kind = "leveldb"

    def __init__(self, directory: Directory, limits: LevelDBLimits, loop: asyncio.AbstractEventLoop) -> None:
        """Use `open`. Blocks: opens and checks the database."""
        self.shards = directory.format.shards
        self.path = directory.path
        self._directory = directory
        self._limits = limits
        self._loop = loop
        self._keys = Keyspace(self.shards)
        self._forks = _forks
        self._pid = os.getpid()
        self._gate = _Gate()
        self._chunked: dict[bytes, int] = {}
        self._known: dict[bytes, bytes | None] = {}
        """What this writer, the only one, last wrote under keys that carry expectations: saves reading it back."""
        self._fault: str | None = None
        """Why writing is fenced; set by the first failure, cleared by `recover`."""
        self._low = False
        """Space was short, so that LevelDB may hold an error of its background work."""
        self._space_until = 0.0
        """There was space enough, and until then nobody need look again (monotonic seconds)."""
        self._turn: asyncio.Future[None] | None = None
        """Done when the writer has nothing to do; only waited for, never cancelled."""
        self._head = directory.head(self._keys.all_shards())
        self._db: Database | None = None
        try:
            self._heads = self._head.read()
            self._open_database()
            if not directory.has_reserve() and directory.free_bytes() > limits.reserve_bytes + limits.free_min_bytes:
                directory.put_reserve(limits.reserve_bytes)
        except BaseException:
            self._close_database()
            self._head.close()
            raise
        self._closed = False
        self._readers = ThreadPoolExecutor(limits.reader_threads, thread_name_prefix="store-read")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_jobs, name="store-write", daemon=True)
        self._writer.start()

    @classmethod
    async def open(
        cls,
        path: str,
        *,
        create: bool = True,
        limits: LevelDBLimits | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> LevelDBStore:
        """Own the store at `path`; `create` permits making one where the directory is absent or empty.

        `now_ns` dates FORMAT. Raises NotFound, StoreLocked (with the owner's process id), StoreFormat, StoreCorrupt
        (saying how many records are missing), StoreFull, StoreUnavailable.
        """
        loop = asyncio.get_running_loop()
        chosen = limits or LevelDBLimits()
        logs = Keyspace(SHARDS).all_shards()

        def blocking() -> LevelDBStore:
            directory = Directory.claim(
                path,
                create=create,
                shards=SHARDS,
                now_ns=now_ns,
                make_database=make_database,
                head=HeadFile.blank(logs),
            )
            try:
                if directory.format.shards != SHARDS:
                    raise StoreFormat(
                        f"the store at {path} has {directory.format.shards} shards; an embedded store has {SHARDS}"
                    )
                return cls(directory, chosen, loop)
            except BaseException as error:
                directory.close()
                if isinstance(error, OSError):
                    raise StoreUnavailable(f"the store at {path} cannot be opened: {error}", path=path) from error
                raise

        return await asyncio.to_thread(blocking)

    # -- the protocol -------------------------------------------------------------------------------------------------

    async def commit(self, writes: Sequence[Write], expect: Sequence[Expectation], durable: bool) -> None:
        while self._turn is not None:
            await asyncio.wait([self._turn])
        self._check_open()
        prepared = self._prepare(writes, expect, durable)
        await self._write(lambda: self._commit(prepared), lambda: self._committed(prepared))

    async def recover(self) -> None:
        while self._turn is not None:
            await asyncio.wait([self._turn])
        await self._write(self._recover, self._forget)

    async def get(self, key: bytes) -> bytes | None:
        return await self._read(self._get, None, key)

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        return await self._read(self._scan, None, start, end, limit, reverse)

    async def snapshot(self) -> Snapshot:
        return await self._read(self._snapshot)

    async def close(self) -> None:
        if self._closed:
            return
        self._check_process()
        self._closed = True
        future: asyncio.Future[None] = self._loop.create_future()
        self._jobs.put((self._shut, lambda error: _settle(future, error)))
        self._jobs.put(None)
        try:
            await future
        finally:
            self._readers.shutdown(wait=False)
            self._writer.join()  # it has nothing left to do

    # -- handing over -------------------------------------------------------------------------------------------------

    def _check_process(self) -> None:
        if self._forks != _forks:
            raise StoreUnavailable(
                f"the store was opened by process {self._pid} and cannot be used after a fork; start processes by spawn"
            )

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise StoreUnavailable("the store is closed")

    async def _write(self, job: Callable[[], None], after: Callable[[], None]) -> None:
        """Run a job in the writer thread, and `after` on the event loop when it went well, whoever still waits."""
        self._check_open()
        self._turn = turn = self._loop.create_future()
        future: asyncio.Future[None] = self._loop.create_future()

        def settle(error: Exception | None) -> None:
            self._turn = None
            turn.set_result(None)
            if error is None:
                after()
            elif not isinstance(error, ExpectationFailed):
                self._forget()
            _settle(future, error)

        self._jobs.put((job, settle))
        await future

    async def _read(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a job in a reader thread while the database stays open."""
        self._check_open()

        def blocking() -> T:
            with self._gate.shared():
                return job(*args, **kwargs)

        try:
            return await self._loop.run_in_executor(self._readers, blocking)
        except (DatabaseError, RuntimeError) as error:
            raise read_error(error) from error

    def _write_jobs(self) -> None:
        """The writer thread."""
        sync_due = 0.0
        while True:
            job: _Job | None
            if self._head.dirty:
                try:
                    job = self._jobs.get(timeout=max(0.0, sync_due - time.monotonic()))
                except queue.Empty:
                    self._sync_head()
                    continue
                if time.monotonic() >= sync_due:
                    self._sync_head()
            else:
                job = self._jobs.get()
                sync_due = time.monotonic() + HEAD_SYNC_S
            if job is None:
                return
            run, settle = job
            error: Exception | None = None
            try:
                run()
            except Exception as caught:  # noqa: BLE001  # goes to the caller as it is
                error = caught
            try:
                self._loop.call_soon_threadsafe(settle, error)
            except RuntimeError:  # the loop ended without closing the store; nobody waits any more
                continue

    def _sync_head(self) -> None:
        try:
            self._head.sync()
        except OSError as error:
            self._fault = f"the head file could not be synced: {error}"

    # -- the writer thread's jobs -------------------------------------------------------------------------------------

    def _prepare(self, writes: Sequence[Write], expect: Sequence[Expectation], durable: bool) -> _Prepared:
        """On the event loop, when the writer has nothing to do."""
        known = self._known
        unknown: list[Expectation] = []
        failed: list[bytes] = []
        for pair in expect:
            key, value = pair
            held = known.get(key, _UNKNOWN)
            if held is _UNKNOWN:
                unknown.append(pair)
            elif held != value:
                failed.append(key)
        prepared = _Prepared(writes, expect, durable, {}, unknown, failed, self._db, None)
        if self._db is not None and not failed:
            prepared.batch = self._batch(self._db, prepared)
        return prepared

    def _batch(self, db: Database, prepared: _Prepared) -> Batch:
        batch = db.write_batch(sync=prepared.durable)
        put, delete, chunk_bytes, chunked = batch.put, batch.delete, self._limits.chunk_bytes, self._chunked
        changed = prepared.changed
        changed.clear()
        for key, value in prepared.writes:
            if chunked or changed:
                self._drop_chunks(batch, key, changed)
            if value is None:
                delete(key)
            elif len(value) <= chunk_bytes and (value < _MARKED or not value.startswith(_CHUNKED)):
                put(key, value)
            else:
                self._put_chunks(batch, key, value, changed)
        return batch

    def _committed(self, prepared: _Prepared) -> None:
        """On the event loop: what is known of the database now."""
        for key, count in prepared.changed.items():
            if count:
                self._chunked[key] = count
            else:
                self._chunked.pop(key, None)
        known = self._known
        known.update(prepared.expect)
        written = dict(prepared.writes)
        for key in known.keys() & written.keys():
            known[key] = written[key]  # the next commit on the same thing expects just this
        if len(known) > KNOWN_MAX:
            known.clear()

    def _forget(self) -> None:
        self._known.clear()

    def _commit(self, prepared: _Prepared) -> None:
        db = self._db
        if self._fault is not None or db is None:
            # Unknown rather than refused, so that the caller brings the store back: a head that cannot be synced has no
            # failed commit of its own.
            raise OutcomeUnknown(self._fault or "the database is not open", full=False)
        self._check_space()
        db = self._database()
        failed = prepared.failed
        for key, value in prepared.unknown:
            held = db.get(key, verify_checksums=True)
            if held != value and (held is None or not held.startswith(_CHUNKED) or self._join(key, held) != value):
                failed.append(key)
        if failed:
            raise ExpectationFailed(failed)
        batch = prepared.batch
        if batch is None or prepared.opened is not db:
            batch = self._batch(db, prepared)
        try:
            batch.write()
            if prepared.durable:
                self._directory.sync_names()
            if prepared.durable and prepared.writes and is_log(prepared.writes[-1][0]):
                log_key, log_value = prepared.writes[-1]
                assert log_value is not None
                shard, position = parse_log(log_key)
                head = (position, log_hash(log_value))
                self._head.write(shard, *head)
                self._heads[shard] = head
        except Exception as error:
            full = is_full(error)
            self._low = self._low or full
            self._fault = f"a write failed: {said(error)}"
            raise OutcomeUnknown(self._fault, full=full) from error

    def _check_space(self) -> None:
        """Refuse while space is short; once it is back, put the reserve aside again and clear LevelDB's own errors."""
        now = time.monotonic()
        if now < self._space_until and not self._low:
            return
        directory, limits = self._directory, self._limits
        free = directory.free_bytes()
        if not self._low:
            if free >= limits.free_min_bytes:
                self._space_until = now + SPACE_CHECK_S
                return
            self._low = True
        needed = limits.free_min_bytes + limits.free_min_bytes // 4  # so that it does not flutter
        if not directory.has_reserve():
            needed += limits.reserve_bytes
        if free < needed:
            raise StoreFull(
                f"the volume of {self.path} has {free // MIB} MiB left, writing needs {needed // MIB} MiB; free some, "
                "writing resumes by itself",
                path=self.path,
            )
        if not directory.has_reserve() and not directory.put_reserve(limits.reserve_bytes):
            raise StoreFull(f"the volume of {self.path} has no space left; free some, writing resumes by itself")
        self._low = False
        self._reopen()

    def _recover(self) -> None:
        if self._fault is not None or self._db is None:
            self._reopen()
            self._fault = None

    def _reopen(self) -> None:
        with self._gate.exclusive():
            self._close_database()
            self._head.close()
            self._head = self._directory.head(self._keys.all_shards())
            self._head.read()
            self._open_database()

    def _shut(self) -> None:
        with self._gate.exclusive():
            try:
                self._head.sync()
            finally:
                self._head.close()
                self._close_database()
                self._directory.close()

    def _close_database(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _put_chunks(self, batch: Batch, key: bytes, value: bytes, changed: dict[bytes, int]) -> None:
        size = self._limits.chunk_bytes
        count = (len(value) + size - 1) // size
        for index in range(count):
            batch.put(_CHUNK + key + _u32(index), value[index * size : (index + 1) * size])
        batch.put(_CHUNK_INDEX + key, _u32(count))
        batch.put(key, _chunks.pack(_CHUNKED, count, len(value), crc32(value)))
        changed[key] = count

    def _drop_chunks(self, batch: Batch, key: bytes, changed: dict[bytes, int]) -> None:
        count = changed.get(key, self._chunked.get(key, 0))
        if count:
            for index in range(count):
                batch.delete(_CHUNK + key + _u32(index))
            batch.delete(_CHUNK_INDEX + key)
            changed[key] = 0

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open_database(self) -> None:
        """Open and check. Sets `_db` only when everything acknowledged is there."""
        try:
            db = self._open_or_mend()
        except DatabaseError as error:
            if not is_full(error):
                raise open_error(self.path, error) from error
            self._low = True
            if not self._directory.give_reserve():
                raise self._full() from error
            try:
                db = self._try_open()
            except DatabaseError as again:
                if is_full(again):
                    raise self._full() from again
                raise open_error(self.path, again) from again
        try:
            ends = _check_logs(db, self._keys, self._heads, 2 * self._limits.write_buffer_bytes)
            index = pairs(db, _CHUNK_INDEX, _CHUNK)
            self._chunked = {key[2:]: int.from_bytes(value, "big") for key, value in index}
            self._directory.sync_names()  # CURRENT was renamed: until that is safe, what is read here may still go
            for shard, end in ends.items():
                if self._heads.get(shard) != end:
                    self._head.write(shard, *end)
                    self._heads[shard] = end
        except BaseException as error:
            db.close()
            if isinstance(error, DatabaseError):
                raise open_error(self.path, error) from error
            raise
        self._db = db

    def _open_or_mend(self) -> Database:
        try:
            return self._try_open()
        except DatabaseError as error:
            if is_full(error) or not self._mend():
                raise
            return self._try_open()

    def _mend(self) -> bool:
        """Whether the database could be brought back without a write that was never finished."""

        def check(database: str) -> None:
            db = self._try_open(database)
            try:
                _check_logs(db, self._keys, self._heads, sys.maxsize, sys.maxsize)
            finally:
                db.close()

        try:
            return mend(self.path, check, time.time_ns())
        except OSError:
            return False  # then it is refused with what LevelDB said

    def _try_open(self, database: str = "") -> Database:
        limits = self._limits
        place = database or self._directory.database
        return open_database(place, limits.write_buffer_bytes, limits.block_cache_bytes, limits.open_files)

    def _full(self) -> StoreFull:
        return StoreFull(
            f"the volume of {self.path} has no space left, not even to open the store; free some", path=self.path
        )

    # -- the reader threads' jobs -------------------------------------------------------------------------------------

    def _database(self) -> Database:
        if self._db is None:
            raise StoreUnavailable("the store is being brought back after a failed write; try again")
        return self._db

    def _get(self, view: View | None, key: bytes) -> bytes | None:
        source = view if view is not None else self._database()
        value = source.get(key, verify_checksums=True)
        if value is None or not value.startswith(_CHUNKED):
            return value
        if view is not None:
            return _join(view, key, value)
        with self._database().snapshot() as moment:  # the value and its chunks from one moment
            return self._get(moment, key)

    def _join(self, key: bytes, described: bytes) -> bytes:
        """In the writer thread, where nothing changes meanwhile."""
        return _join(self._database(), key, described)

    def _scan(
        self, view: View | None, start: bytes, end: bytes, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        end = min(end, _CHUNK_INDEX)
        if start >= end or limit <= 0:
            return []
        if view is None:
            with self._database().snapshot() as moment:
                return self._scan(moment, start, end, limit, reverse)
        found: list[tuple[bytes, bytes]] = []
        for key, value in pairs(view, start, end, reverse):
            found.append((key, _join(view, key, value) if value.startswith(_CHUNKED) else value))
            if len(found) == limit:
                break
        return found

    def _snapshot(self) -> Snapshot:
        return _LevelDBSnapshot(self, self._database().snapshot())


class _LevelDBSnapshot:
    """A view of one moment; ends when the store is opened again after a failure."""

    def __init__(self, store: LevelDBStore, view: View) -> None:
        self._store = store
        self._view: View | None = view

    async def get(self, key: bytes) -> bytes | None:
        return await self._store._read(self._store._get, self._held(), key)

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        return await self._store._read(self._store._scan, self._held(), start, end, limit, reverse)

    async def close(self) -> None:
        if self._view is not None:
            view, self._view = self._view, None
            if not self._store._closed:
                await self._store._read(view.close)

    def _held(self) -> View:
        if self._view is None:
            raise StoreUnavailable("the snapshot is closed")
        return self._view


_Job = tuple[Callable[[], None], Callable[["Exception | None"], None]]
"""(what the writer runs, whom the event loop tells how it went)"""


class _Prepared(msgspec.Struct, eq=False):
    """A commit, as far as it can be done without the disk."""

    writes: Sequence[Write]
    expect: Sequence[Expectation]
    durable: bool
    changed: dict[bytes, int]
    """How many chunks the values written under these keys have."""
    unknown: list[Expectation]
    """What the database must be asked about."""
    failed: list[bytes]
    """Keys that are known to hold something else."""
    opened: Database | None
    """The database that `batch` belongs to; when it was opened again since, the batch is made anew."""
    batch: Batch | None


class _Gate:
    """Many readers, or one that closes the database under them (which would crash the process)."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._shut = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            while self._shut:
                self._changed.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if not self._inside:
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._changed:
            self._shut = True
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._shut = False
                self._changed.notify_all()


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():  # the caller went away; what was written stays written
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _join(source: View, key: bytes, described: bytes) -> bytes:
    _, count, length, checksum = _chunks.unpack(described)
    parts = [source.get(_CHUNK + key + _u32(index), verify_checksums=True) or b"" for index in range(count)]
    value = b"".join(parts)
    if len(value) != length or crc32(value) != checksum:
        raise StoreCorrupt(f"the value of key {key.hex()} lacks a part or does not match its checksum", key=key.hex())
    return value


def _check_logs(
    db: Database, keys: Keyspace, heads: dict[int, tuple[int, bytes]], window: int, most: int = LOG_CHECK_RECORDS
) -> dict[int, tuple[int, bytes]]:
    """Walk every log backwards over `window` bytes, at most `most` records: dense, chained, and not shorter than its
    head. The ends by shard.

    A lost log file or MANIFEST entry leaves a hole directly below the newest log file, so a window larger than that
    file cannot miss it.
    """
    ends: dict[int, tuple[int, bytes]] = {}
    for shard in keys.all_shards():
        head_position, head_hash = heads.get(shard, (0, GENESIS))
        start, stop = keys.log_range(shard)
        size = 0
        below: tuple[int, bytes] | None = None  # position and hash that the next older record must have
        for walked, (key, value) in enumerate(pairs(db, start, stop, reverse=True), 1):
            _, position = parse_log(key)
            previous, hashed = log_link(key, value)
            if below is None:
                ends[shard] = (position, hashed)
                if position < head_position:
                    break
            elif (position, hashed) != below:
                raise _missing(shard, f"records are missing or changed between {position} and {below[0] + 1}")
            if position == head_position and hashed != head_hash:
                raise _missing(shard, f"record {position} is not the one that was acknowledged")
            below = (position - 1, previous)
            size += len(value)
            if (position <= head_position or not head_position) and (size > window or walked >= most):
                break
        last = ends[shard][0] if shard in ends else 0
        if last < head_position:
            raise _missing(shard, f"{head_position - last} acknowledged records are missing after record {last}")
    return ends


def _missing(shard: int, what: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"shard {shard}: {what}; files were lost, cut or taken from another copy. Restore a backup; "
        "the store is not repaired by itself",
        shard=str(shard),
    )
