"""The directory of an embedded store: who owns it, what it is, and how far it got.

    OWNER      lock file, held for life; contains the owner's process id
    FORMAT     JSON: layout version, shards, creation time; written last, so that it marks a complete store
    CREATING   there while a store is being made; with it and without FORMAT nothing was ever acknowledged
    HEAD       the newest acknowledged position and hash of every log, outside of what LevelDB may lose
    RESERVE    space put aside: given back when the volume is full, so that the database can be opened and read
    db/        LevelDB's own files
    MENDED     one line for each time that an unfinished write was cut off; db.refused-N is what was there (`mending`)

LevelDB's own LOCK protects nothing once a process opens the directory twice or opens and closes the file, so it is
never touched: OWNER is an flock of ours, and a registry tells two handles in one process apart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final
from zlib import crc32

import msgspec

from knhk_workflow.errors import NotFound, StoreCorrupt, StoreFormat, StoreLocked, StoreUnavailable
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.store.codec import GENESIS
from knhk_workflow.store.mending import settled
from knhk_workflow.store.shadow import shadow
from knhk_workflow.store.syncing import sync_names

FORMAT_VERSION: Final = 1
PRODUCT: Final = "knhk-workflow-store"
TICK_NS: Final = 20_000_000  # the coarsest clock of a kernel has 10 ms

_OWNER: Final = "OWNER"
_OWNER_BYTES: Final = 16
_FORMAT: Final = "FORMAT"
_CREATING: Final = "CREATING"
_HEAD: Final = "HEAD"
_RESERVE: Final = "RESERVE"
_DATABASE: Final = "db"
_NOT_OURS: Final = frozenset({"lost+found"})  # in the root of a fresh volume

_open_paths: dict[str, int] = {}  # real path -> process id; flock alone does not stop a second handle's close
_open_paths_lock = threading.Lock()


class Format(msgspec.Struct, frozen=True):
    """Content of FORMAT."""

    product: str
    version: int
    shards: int
    created: str


class _Made(msgspec.Struct):
    """Of any version's FORMAT, just enough to say what made it."""

    product: str = ""
    version: int = 0


def is_full(error: BaseException) -> bool:
    """Whether an error says that the volume, or our share of it, has no space left."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    said = str(error)
    return os.strerror(errno.ENOSPC) in said or os.strerror(errno.EDQUOT) in said


class Directory:
    """An owned store directory. `claim` locks and checks it; `close` gives it up."""

    def __init__(self, path: str, lock: int, form: Format) -> None:
        """Use `claim`."""
        self.path = path
        self.database = os.path.join(path, _DATABASE)
        self.format = form
        self._lock = lock
        self._names_at = 0
        self._names_until = 0

    @classmethod
    def claim(
        cls,
        path: str,
        *,
        create: bool,
        shards: int,
        now_ns: Callable[[], int],
        make_database: Callable[[str], None],
        head: bytes,
    ) -> Directory:
        """Lock the directory and see that it is a complete store of ours; make one if permitted and it is empty.

        `make_database(path)` makes an empty database, `head` is the HEAD file of an empty store.
        Raises NotFound, StoreLocked, StoreFormat, StoreUnavailable.
        """
        try:
            return cls._claim(path, create, shards, now_ns, make_database, head)
        except OSError as error:
            raise StoreUnavailable(f"the store at {path} cannot be opened: {error}", path=path) from error

    @classmethod
    def _claim(
        cls,
        path: str,
        create: bool,
        shards: int,
        now_ns: Callable[[], int],
        make_database: Callable[[str], None],
        head: bytes,
    ) -> Directory:
        real = os.path.realpath(path)
        if not os.path.isdir(real):
            if os.path.lexists(real):
                raise StoreFormat(f"{path} is not a directory", path=path)
            if not create:
                raise NotFound("store", path, "no such directory; permit creating it, or check the path")
            os.makedirs(real, mode=0o700, exist_ok=True)
            sync_names(os.path.dirname(real))
        _check_content(path, os.listdir(real), create)  # before the first file of ours: a foreign one stays as it is
        lock = _lock(real, path)
        try:
            content = _check_content(path, os.listdir(real), create)
            if _FORMAT not in content:
                _make(real, Format(PRODUCT, FORMAT_VERSION, shards, _utc(now_ns())), make_database, head)
            elif _CREATING in content:
                os.unlink(os.path.join(real, _CREATING))
            form = _read_format(path, os.path.join(real, _FORMAT))
            settled(real)
            _check_whole(path, real)
            return cls(real, lock, form)
        except BaseException:
            _unlock(real, lock)
            raise

    def head(self, shards: Iterable[int]) -> HeadFile:
        """The file of heads."""
        return HeadFile(os.path.join(self.path, _HEAD), shards)

    def sync_names(self) -> bool:
        """Make the names of LevelDB's files survive a loss of power, if there is a new one since the last call.

        LevelDB syncs a new log but not its name: by the letter of POSIX the whole log may be gone. Times of files move
        in ticks, so a change is looked at again until a tick has certainly passed.
        """
        changed, now = os.stat(self.database).st_mtime_ns, time.monotonic_ns()
        if changed != self._names_at:
            self._names_at, self._names_until = changed, now + TICK_NS
        elif now > self._names_until:
            return False
        sync_names(self.database)
        return True

    def free_bytes(self) -> int:
        """What may still be written to the volume."""
        volume = os.statvfs(self.path)
        return volume.f_bavail * volume.f_frsize

    def has_reserve(self) -> bool:
        """Whether space is put aside."""
        return os.path.exists(os.path.join(self.path, _RESERVE))

    def put_reserve(self, size: int) -> bool:
        """Put space aside; False when there is not enough."""
        name = os.path.join(self.path, _RESERVE)
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            os.unlink(name)
            if is_full(error):
                return False
            raise
        finally:
            os.close(file)
        return True

    def give_reserve(self) -> bool:
        """Give the space back to the volume; False when there was none."""
        try:
            os.unlink(os.path.join(self.path, _RESERVE))
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Give the directory up."""
        _unlock(self.path, self._lock)


def copied(path: str, into: str) -> Format:
    """Make a second store at `into` with the content of the one at `path`, which nobody may have open; its format.

    Its tables are the same files: it costs moments and almost no space. Raises NotFound, StoreLocked, StoreFormat,
    StoreUnavailable.
    """
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise NotFound("store", path, "no such directory")
    _check_content(path, os.listdir(real), create=False)
    lock = _lock(real, path)
    try:
        form = _read_format(path, os.path.join(real, _FORMAT))
        _check_whole(path, real)
        os.mkdir(into, 0o700)
        for name in (_FORMAT, _HEAD):
            shutil.copyfile(os.path.join(real, name), os.path.join(into, name))
        shadow(os.path.join(real, _DATABASE), os.path.join(into, _DATABASE))
        return form
    except OSError as error:
        raise StoreUnavailable(f"the store at {path} cannot be copied: {error}", path=path) from error
    finally:
        _unlock(real, lock)


class HeadFile:
    """Position and hash of every log, each in two slots of 64 bytes. A write goes to the slot that does not hold what
    was synced last, so whatever becomes of it, the newest synced head is there.

    Written after every durable commit (which survives the death of the process) and synced now and then (which survives
    the loss of power). The file has its full size from the start, so writing needs no space, and says of each log that
    it is empty, so that a file of zeros is recognized as damaged.
    """

    SLOT: Final = 64
    _LAYOUT: Final = struct.Struct(">4sH2xQ32s")
    _MAGIC: Final = b"knhH"

    def __init__(self, name: str, shards: Iterable[int]) -> None:
        self._file = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        self._place = {shard: index * 2 * self.SLOT for index, shard in enumerate(shards)}
        self._free = dict.fromkeys(self._place, 0)
        """By shard: the slot that may be written."""
        self._written: set[int] = set()
        """Shards whose newest head is not synced."""

    @property
    def dirty(self) -> bool:
        """Whether there is something to sync."""
        return bool(self._written)

    @classmethod
    def blank(cls, shards: Iterable[int]) -> bytes:
        """The file of a store whose logs are all empty."""
        return b"".join(2 * cls._slot(shard, 0, GENESIS).ljust(cls.SLOT, b"\0") for shard in shards)

    def read(self) -> dict[int, tuple[int, bytes]]:
        """(position, hash) by shard; position 0 for an empty log. What it returns is synced from now on. StoreCorrupt
        when both slots are torn."""
        os.fdatasync(self._file)
        heads: dict[int, tuple[int, bytes]] = {}
        for shard, place in self._place.items():
            for slot in (0, 1):
                found = self._parse(os.pread(self._file, self.SLOT, place + slot * self.SLOT), shard)
                if found is not None and (shard not in heads or found[0] > heads[shard][0]):
                    heads[shard] = found
                    self._free[shard] = 1 - slot
            if shard not in heads:
                raise StoreCorrupt(f"the head of shard {shard} cannot be read; the store cannot be checked without it")
        return heads

    def write(self, shard: int, position: int, hashed: bytes) -> None:
        """Note the newest acknowledged record."""
        data = self._slot(shard, position, hashed)
        os.pwrite(self._file, data, self._place[shard] + self._free[shard] * self.SLOT)
        self._written.add(shard)

    def sync(self) -> None:
        """Make it survive a loss of power."""
        if self._written:
            written, self._written = self._written, set()
            os.fdatasync(self._file)
            for shard in written:
                self._free[shard] = 1 - self._free[shard]

    def close(self) -> None:
        """Close the file; without syncing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @classmethod
    def _slot(cls, shard: int, position: int, hashed: bytes) -> bytes:
        body = cls._LAYOUT.pack(cls._MAGIC, shard, position, hashed)
        return body + crc32(body).to_bytes(4, "big")

    def _parse(self, data: bytes, shard: int) -> tuple[int, bytes] | None:
        size = self._LAYOUT.size
        if len(data) < size + 4 or crc32(data[:size]).to_bytes(4, "big") != data[size : size + 4]:
            return None
        magic, of, position, hashed = self._LAYOUT.unpack_from(data)
        return (position, hashed) if magic == self._MAGIC and of == shard else None


def _lock(real: str, path: str) -> int:
    with _open_paths_lock:
        if _open_paths.get(real) == os.getpid():
            raise StoreLocked(
                f"the store at {path} is open in this process already; share the handle, or close it first",
                path=path,
            )
        file = os.open(os.path.join(real, _OWNER), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(file)
            raise StoreLocked(
                f"the store at {path} is in use by process {owner}; stop that process, or use another directory",
                path=path,
                pid=owner,
            ) from None
        except BaseException:
            os.close(file)
            raise
        with contextlib.suppress(OSError):  # a name for people: a full volume must not keep the store from being read
            os.pwrite(file, f"{os.getpid():<{_OWNER_BYTES - 1}}\n".encode(), 0)  # always as long: needs no space again
            os.ftruncate(file, _OWNER_BYTES)
        _open_paths[real] = os.getpid()
        return file


def _unlock(real: str, lock: int) -> None:
    with _open_paths_lock:
        _open_paths.pop(real, None)
        os.close(lock)


def _check_content(path: str, names: Iterable[str], create: bool) -> set[str]:
    """What is in the directory, unless that is something else or only half of a store."""
    content = set(names) - _NOT_OURS
    if _FORMAT in content:
        return content
    rest = content - {_OWNER}
    if rest and _CREATING not in rest:
        raise StoreFormat(
            f"{path} is not empty and has no {_FORMAT} file (found: {', '.join(sorted(rest)[:5])}): it is no "
            "store, or only a part of one; use an empty directory, or restore the whole store from a backup",
            path=path,
        )
    if not create:
        raise NotFound("store", path, "the directory is empty; permit creating a store, or check that it is mounted")
    return content


def _check_whole(path: str, real: str) -> None:
    needed = (_HEAD, os.path.join(_DATABASE, "CURRENT"))
    missing = [name for name in needed if not os.path.exists(os.path.join(real, name))]
    if missing:
        raise StoreFormat(
            f"the store at {path} is incomplete: {' and '.join(missing)} is missing; restore the whole directory from "
            "a backup (nothing was changed)",
            path=path,
        )


def _read_format(path: str, name: str) -> Format:
    with open(name, "rb") as file:
        data = file.read()
    try:
        made = msgspec.json.decode(data, type=_Made)
        if made.product == PRODUCT and made.version > FORMAT_VERSION:
            raise StoreFormat(
                f"the store at {path} has format {made.version}, this version reads up to {FORMAT_VERSION}; "
                "use the version that made it or a newer one",
                path=path,
            )
        form = msgspec.json.decode(data, type=Format)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreFormat(f"{name} cannot be understood: {error}", path=path) from error
    if form.product != PRODUCT or form.version < 1 or form.shards < 1:
        raise StoreFormat(f"{name} does not describe a store of this product", path=path)
    return form


def _make(real: str, form: Format, make_database: Callable[[str], None], head: bytes) -> None:
    """An empty store. Whatever moment it dies at, the next claim begins again or finds it complete."""
    _write(os.path.join(real, _CREATING), b"")
    sync_names(real)
    database = os.path.join(real, _DATABASE)
    shutil.rmtree(database, ignore_errors=True)
    make_database(database)
    _write(os.path.join(real, _HEAD), head)
    sync_names(database)
    _write(os.path.join(real, _FORMAT + ".new"), msgspec.json.format(msgspec.json.encode(form)) + b"\n")
    os.rename(os.path.join(real, _FORMAT + ".new"), os.path.join(real, _FORMAT))
    sync_names(real)
    os.unlink(os.path.join(real, _CREATING))


def _write(name: str, data: bytes) -> None:
    with open(name, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _utc(now_ns: int) -> str:
    return datetime.fromtimestamp(now_ns // NS_PER_S, UTC).isoformat().replace("+00:00", "Z")
