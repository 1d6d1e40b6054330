"""What opening a store with this version would do to it, found out without touching it.

The store's files are linked or copied beside it; the copy is opened, every record read, every case replayed. So the
answer is not a guess: what the dry run can read, the start can. The first format is the only one so far; a newer one is
refused by name.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from knhk_workflow.errors import StoreError
from knhk_workflow.runtime.integrity import Examination, Progress, examine
from knhk_workflow.runtime.live import STATE_CODEC
from knhk_workflow.runtime.records import SNAPSHOTS
from knhk_workflow.store import open_store
from knhk_workflow.store.directory import FORMAT_VERSION, copied
from knhk_workflow.store.keys import PURGING, SNAPSHOT, kind_of, past_kind, shard_range
from knhk_workflow.store.store import Store

PORTION: Final = 64


class UpgradePlan(msgspec.Struct, frozen=True):
    """What a start would do."""

    path: str
    made: int
    """Format of the store."""
    reads: int
    """Format of this version."""
    changes: tuple[str, ...]
    """What would be changed, one sentence each; empty: nothing but the log going on."""
    snapshots: int
    """Cached states of another version: ignored at first, and made again as cases go on."""
    unfinished: int
    """Purges that would be carried on."""
    examination: Examination


async def plan_upgrade(path: str, progress: Progress | None = None) -> UpgradePlan:
    """Find out what this version would do to the store at `path`, which no process may have open.

    Raises NotFound, StoreLocked, StoreFormat for a newer format or for what is no store, StoreCorrupt.
    """
    beside = Path(f"{path.rstrip('/')}.dry-run-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        made = await asyncio.to_thread(copied, path, str(beside))
        store = await open_store(str(beside), create=False)
        try:
            snapshots, unfinished = await _old(store)
            examination = await examine(store, store.shards, progress)
        finally:
            await store.close()
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return UpgradePlan(path, made.version, FORMAT_VERSION, (), snapshots, unfinished, examination)


async def _old(store: Store) -> tuple[int, int]:
    snapshots = unfinished = 0
    for shard in range(store.shards):
        start, end = shard_range(shard)
        while rows := await store.scan(start, end, limit=PORTION):
            start = rows[-1][0] + b"\0"
            for key, value in rows:
                kind = kind_of(key)
                if kind == SNAPSHOT:
                    snapshots += _is_old(key, value)
                elif kind == PURGING:
                    unfinished += 1
                else:
                    start = past_kind(key)
                    break
    return snapshots, unfinished


def _is_old(key: bytes, value: bytes) -> bool:
    try:
        return SNAPSHOTS.read(key, value).codec != STATE_CODEC
    except StoreError:
        return True
