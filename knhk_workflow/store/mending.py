"""A database that LevelDB refuses because its newest log ends in a write that was never finished.

A loss of power may keep the later blocks of that write and lose earlier ones. LevelDB, asked to be strict, takes this
for damage and opens nothing, although everything acknowledged is there: a write is acknowledged when all of it is
synced, and only then the next one begins. So what is cut off is mended here if, and only if,

* the damage lies in the newest log, and no complete record follows it: one would mean that this write was acknowledged;
* the database without it opens as strictly as always, and its batch logs are whole, from the first record on, and reach
  the synced heads.

The original is never changed. A shadow is mended, checked, synced and moved to its place; what was refused stays beside
it as `db.refused-N`, and the file MENDED tells of it. A crash in between is carried on from (see `settled`).

Format of a log: https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from knhk_workflow.store.shadow import shadow
from knhk_workflow.store.syncing import sync_content, sync_names

MENDED: Final = "MENDED"
_DATABASE: Final = "db"
_MENDING: Final = "db.mending"
_READY: Final = "db.mended"
_REFUSED: Final = "db.refused-"

_BLOCK: Final = 32 * 1024
_HEADER: Final = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class Mending(msgspec.Struct, frozen=True):
    """One line of MENDED: when, which log, where it was cut, how much was cut off, and where the original is kept."""

    time_ns: int
    log: str
    kept_bytes: int
    dropped_bytes: int
    refused: str


def mendings(path: str) -> tuple[Mending, ...]:
    """What was mended in the store at `path`, oldest first."""
    try:
        with open(os.path.join(path, MENDED), "rb") as file:
            return tuple(msgspec.json.decode(line, type=Mending) for line in file if line.strip())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ()


def mend(path: str, check: Callable[[str], None], now_ns: int) -> bool:
    """Mend the database of the store at `path`, which is not open; whether that could be done.

    `check(database)` opens a database strictly and raises anything unless all that must be there is. Raises OSError.
    """
    database = os.path.join(path, _DATABASE)
    logs = [name for name in os.listdir(database) if name.endswith(".log") and name[:-4].isdecimal()]
    if not logs:
        return False
    newest = max(logs, key=lambda name: int(name[:-4]))
    with open(os.path.join(database, newest), "rb") as file:
        data = file.read()
    end = _unfinished(data)
    if end is None:
        return False
    making = os.path.join(path, _MENDING)
    shutil.rmtree(making, ignore_errors=True)
    try:
        shadow(database, making)
        os.truncate(os.path.join(making, newest), end)
        try:
            check(making)
        except Exception:  # noqa: BLE001  # whatever it is: then the database is refused with its own error
            return False
        sync_content(making)
        number = 1
        while os.path.exists(os.path.join(path, f"{_REFUSED}{number}")):
            number += 1
        refused = f"{_REFUSED}{number}"
        with open(os.path.join(path, MENDED), "ab") as told:
            told.write(msgspec.json.encode(Mending(now_ns, newest, end, len(data) - end, refused)) + b"\n")
            told.flush()
            os.fsync(told.fileno())
        os.rename(making, os.path.join(path, _READY))
        sync_names(path)
        os.rename(database, os.path.join(path, refused))
        settled(path)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return True


def settled(path: str) -> None:
    """Finish what a crash left of a mending: a database that is ready takes its place if the refused one has left it.
    Raises OSError."""
    database, ready = os.path.join(path, _DATABASE), os.path.join(path, _READY)
    if os.path.isdir(ready):
        if os.path.exists(database):
            shutil.rmtree(ready)  # it will be made again
        else:
            os.rename(ready, database)
        sync_names(path)
    if os.path.isdir(os.path.join(path, _MENDING)):
        shutil.rmtree(os.path.join(path, _MENDING))


class _Piece(NamedTuple):
    """One physical record of a log; kind 0 is what cannot be one."""

    at: int
    kind: int
    next: int


def _unfinished(data: bytes) -> int | None:
    """Where the unfinished write begins that a log ends in; None when there is no damage, or not only that."""
    at, began = 0, None
    while (piece := _piece(data, at)) is not None:
        if piece.kind in (_FULL, _FIRST) and began is None:
            began = piece.at if piece.kind == _FIRST else None
        elif piece.kind in (_MIDDLE, _LAST) and began is not None:
            began = None if piece.kind == _LAST else began
        elif piece.kind == 0 and began is None and not any(data[piece.at : piece.next]):
            pass  # a block that was put aside and never written: LevelDB passes over it
        else:
            return None if _complete_after(data, piece) else (piece.at if began is None else began)
        at = piece.next
    return None


def _complete_after(data: bytes, damage: _Piece) -> bool:
    """Whether a whole record follows the damage: in the same block, as far as lengths can be believed, or later."""
    block_end = (damage.at // _BLOCK + 1) * _BLOCK
    starts = [block_end]
    if damage.kind:
        starts.append(damage.at)
    elif len(data) >= damage.at + _HEADER.size:
        starts.append(damage.at + _HEADER.size + _HEADER.unpack_from(data, damage.at)[1])
    for at in starts:
        begun = False
        while (piece := _piece(data, at)) is not None:
            if piece.kind == _FULL or (piece.kind == _LAST and begun):
                return True
            begun = piece.kind == _FIRST or (piece.kind == _MIDDLE and begun)
            at = piece.next
    return False


def _piece(data: bytes, at: int) -> _Piece | None:
    """The physical record at a place, or behind the end of its block; None at the end of the log."""
    left = _BLOCK - at % _BLOCK
    if left < _HEADER.size:
        at, left = at + left, _BLOCK
    if at + _HEADER.size > len(data):
        return None
    checksum, length, kind = _HEADER.unpack_from(data, at)
    end = at + _HEADER.size + length
    block_end = at + left
    if end > block_end:
        return _Piece(at, 0, block_end)
    if end > len(data):
        return None  # cut off in the middle: LevelDB takes it for the end
    if not _FULL <= kind <= _LAST or checksum != _masked(data[at + _HEADER.size - 1 : end]):
        return _Piece(at, 0, block_end)
    return _Piece(at, kind, end)


def _crc32c_table() -> tuple[int, ...]:
    table: list[int] = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE: Final = _crc32c_table()


def _masked(data: bytes) -> int:
    """The CRC-32C of some bytes as LevelDB stores it."""
    value, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
