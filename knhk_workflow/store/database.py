"""LevelDB through plyvel: the parts that are used, with types, and without the traps.

* plyvel's Iterator ends silently at a damaged block, and in reverse it loses the only key of a range when that is the
  range's start. So scans go by RawIterator, which reports the status of each move.
* `paranoid_checks` covers opening and compaction, not reads: every read asks for verification.
* `Invalid argument` and `No such file` are what a short or missing table looks like.

Deleting the database while another thread is in one of these calls crashes the process: the caller keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import plyvel

from knhk_workflow.errors import StoreCorrupt, StoreError, StoreUnavailable

DatabaseError: type[Exception] = plyvel.Error
"""Base of what LevelDB reports."""


def make_database(path: str) -> None:
    """Make an empty database."""
    plyvel.DB(path, create_if_missing=True, error_if_exists=True).close()


def open_database(path: str, write_buffer: int, block_cache: int, open_files: int) -> Database:
    """Open what `make_database` made. Blocks; raises DatabaseError."""
    opened: Database = plyvel.DB(
        path,
        create_if_missing=False,
        paranoid_checks=True,  # compaction verifies what it copies
        write_buffer_size=write_buffer,
        lru_cache_size=block_cache,
        max_open_files=open_files,
        compression=None,  # snappy took 15% of the processor time of a loaded engine, to save half of 2 KB per case
        bloom_filter_bits=10,  # 1% false positives: "must be absent" rarely touches the disk
    )
    return opened


def pairs(view: View, start: bytes, end: bytes, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values with start <= key < end, in order. Raises DatabaseError at a damaged block."""
    with view.raw_iterator(verify_checksums=True) as at:
        if not reverse:
            at.seek(start)
            while at.valid() and (key := at.key()) < end:
                yield key, at.value()
                at.next()
            return
        at.seek(end)
        if at.valid():
            at.prev()
        else:
            at.seek_to_last()
        while at.valid() and (key := at.key()) >= start:
            yield key, at.value()
            at.prev()


def open_error(path: str, error: Exception) -> StoreError:
    """Our error for one of opening."""
    if _is_damage(error):
        return StoreCorrupt(
            f"the database at {path} is damaged: {said(error)}. Restore a backup; the store is not repaired by itself",
            path=path,
        )
    return StoreUnavailable(f"the database at {path} cannot be opened: {said(error)}", path=path)


def read_error(error: Exception) -> StoreError:
    """Our error for one of reading."""
    if _is_damage(error):
        return StoreCorrupt(f"a stored block is damaged: {said(error)}. Restore a backup")
    if isinstance(error, DatabaseError):
        return StoreUnavailable(f"the store cannot be read: {said(error)}")
    if isinstance(error, RuntimeError) and "closed" in str(error):
        return StoreUnavailable("the store or the snapshot was closed in the meantime")
    return StoreError(f"reading failed: {error}")


def said(error: Exception) -> str:
    """LevelDB's own words; plyvel passes them as bytes."""
    words = error.args[0] if error.args else ""
    return words.decode(errors="replace") if isinstance(words, bytes) else str(error)


def _is_damage(error: Exception) -> bool:
    # A table that is gone, or shorter than its index says (mapping it fails), is an I/O error for LevelDB.
    words = said(error)
    return isinstance(error, plyvel.CorruptionError) or "No such file" in words or "Invalid argument" in words


class View(Protocol):
    """What plyvel's database and snapshot have in common."""

    def get(self, key: bytes, *, verify_checksums: bool) -> bytes | None: ...
    def raw_iterator(self, *, verify_checksums: bool) -> Moves: ...
    def close(self) -> None: ...
    def __enter__(self) -> View: ...
    def __exit__(self, kind: object, error: object, trace: object) -> object: ...


class Moves(Protocol):
    def valid(self) -> bool: ...
    def seek(self, target: bytes) -> None: ...
    def seek_to_last(self) -> None: ...
    def next(self) -> None: ...
    def prev(self) -> None: ...
    def key(self) -> bytes: ...
    def value(self) -> bytes: ...
    def __enter__(self) -> Moves: ...
    def __exit__(self, kind: object, error: object, trace: object) -> object: ...


class Batch(Protocol):
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def write(self) -> None: ...


class Database(View, Protocol):
    def write_batch(self, *, sync: bool) -> Batch: ...
    def snapshot(self) -> View: ...
