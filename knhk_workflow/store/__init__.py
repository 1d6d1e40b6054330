"""Ordered bytes: where everything durable lies, and the one writer.

Belongs here: the Store protocol and its implementations, the layout of keys, the envelope of values, the journal.
Does not belong here: what a case, a task or a work item is (core), who may do what, when to do it (runtime). A store
knows bytes; the journal knows commits. Implementations do not know each other.

    store.py     the protocol and its errors          memory.py    in memory
    keys.py      where things lie                     leveldb.py   embedded, on disk
                                                      directory.py   its lock, FORMAT, HEAD and RESERVE
                                                      database.py    plyvel with types and without its traps
                                                      shadow.py      a second database in moments
                                                      mending.py     an unfinished write at the end of its log
    codec.py     what values look like, the hashes    journal.py   group commit, hash chain, fencing
    chain.py     reading and proving a log
    portions.py  reading a long range
"""

from __future__ import annotations

from knhk_workflow.store.chain import Link
from knhk_workflow.store.codec import (
    CODEC_LOG,
    CODEC_MSGPACK,
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
from knhk_workflow.store.journal import Batch, Journal, JournalLimits, Outcome, Subscriber, Unit, Waiter
from knhk_workflow.store.keys import META_SHARD, CaseKeys, Keyspace
from knhk_workflow.store.memory import MemoryStore
from knhk_workflow.store.store import (
    Expectation,
    ExpectationFailed,
    OutcomeUnknown,
    Range,
    Reads,
    Snapshot,
    Store,
    Write,
)

MEMORY_PATH = ":memory:"
"""The path that means a store in memory."""

__all__ = [
    "Batch",
    "Waiter",
    "CODEC_LOG",
    "CODEC_MSGPACK",
    "CODEC_RAW",
    "GENESIS",
    "MEMORY_PATH",
    "META_SHARD",
    "CaseKeys",
    "Expectation",
    "ExpectationFailed",
    "Journal",
    "JournalLimits",
    "Keyspace",
    "Lease",
    "Link",
    "LogEntry",
    "LogRecord",
    "MemoryStore",
    "Outcome",
    "OutcomeUnknown",
    "Range",
    "Reads",
    "Snapshot",
    "Store",
    "Subscriber",
    "Unit",
    "Write",
    "digest",
    "open_store",
    "seal",
    "seal_log",
    "unseal",
    "unseal_log",
]


async def open_store(path: str, create: bool = True) -> Store:
    """The store at `path`; `:memory:` is a fresh one in memory. Close it after use.

    `create` permits making one where the directory is absent or empty. Raises StoreLocked, StoreFormat, StoreCorrupt,
    StoreFull, NotFound (absent and not to be created).
    """
    if path == MEMORY_PATH:
        return MemoryStore()
    from knhk_workflow.store.leveldb import LevelDBStore  # noqa: PLC0415  # loads a C extension that memory users do without

    return await LevelDBStore.open(path, create=create)
