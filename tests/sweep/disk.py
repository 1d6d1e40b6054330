"""What a volume holds after a loss of power, worked out from what the shim told.

The rules are those of a file system with a journal (ext4, XFS) where they are weakest: what was written to a file is
safe once that file is synced, and its name with it; renamings and removals are safe once a file in that directory or
the directory itself is synced. `strict` is POSIX to the letter: a name is safe only when its directory is synced.

Two losses are worked out. `after_power_loss`: nothing that is not safe is there. `after_disorder`: of what is not safe,
some is there, in any order: of each directory the old or the new names, of each file some of the writes.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from random import Random
from typing import Final

HEAD: Final = struct.Struct("=IIIIqqq")
IGNORED: Final = frozenset({"LOG", "LOG.old"})


class What(IntEnum):
    """Kinds of records in a trace; the numbers are the shim's."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    SYNC_DIRECTORY = 5
    RENAME = 6
    UNLINK = 7
    MKDIR = 8
    RMDIR = 9
    FAULT = 10


@dataclass(frozen=True, slots=True)
class Call:
    """One call that changed something, as it succeeded. `FAULT`: one that was made to fail; `offset` is its point."""

    what: What
    inode: int
    offset: int
    time: int
    path: str
    other: str
    data: bytes


def read_trace(file: Path) -> Iterator[Call]:
    """The calls in a trace, in order."""
    held = file.read_bytes()
    at = 0
    while at < len(held):
        size, path, other, what, inode, offset, time = HEAD.unpack_from(held, at)
        at += HEAD.size
        texts = held[at : at + path].decode(), held[at + path : at + path + other].decode()
        at += path + other
        yield Call(What(what), inode, offset, time, *texts, held[at : at + size])
        at += size


@dataclass(slots=True)
class _File:
    """A file: what it holds, what of it is safe, and what was done since."""

    data: bytearray = field(default_factory=bytearray)
    safe: bytes = b""
    since: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, bytes) of writes; (size, None) of truncations."""

    def write(self, offset: int, data: bytes) -> None:
        self.since.append((offset, data))
        _write(self.data, offset, data)

    def truncate(self, size: int) -> None:
        self.since.append((size, None))
        _truncate(self.data, size)

    def sync(self) -> None:
        self.safe = bytes(self.data)
        self.since.clear()


class Disk:
    """A directory as the kernel shows it, and as the platter has it."""

    def __init__(self, root: Path, *, strict: bool = False) -> None:
        """With what is in `root` now, all of it safe."""
        self.root = root
        self.strict = strict
        self._files: dict[int, _File] = {}
        self._names: dict[str, _File | None] = {}
        """By path; None is a directory."""
        for place, directories, files in os.walk(root):
            for name in directories:
                self._names[os.path.join(place, name)] = None
            for name in set(files) - IGNORED:
                path = os.path.join(place, name)
                with open(path, "rb") as opened:
                    held = _File(bytearray(opened.read()))
                    self._files[os.fstat(opened.fileno()).st_ino] = held
                held.sync()
                self._names[path] = held
        self._safe = dict(self._names)

    def apply(self, call: Call) -> None:
        """One more call."""
        match call.what:
            case What.CREATE:
                made = self._files[call.inode] = _File()
                self._names[call.path] = made
            case What.WRITE:
                self._files[call.inode].write(call.offset, call.data)
            case What.TRUNCATE:
                self._files[call.inode].truncate(call.offset)
            case What.SYNC:
                self._files[call.inode].sync()
                if not self.strict:
                    for path in [path for path, held in self._names.items() if held is self._files[call.inode]]:
                        self._sync_names(os.path.dirname(path))
            case What.SYNC_DIRECTORY:
                self._sync_names(call.path)
            case What.RENAME:
                self._names[call.other] = self._names.pop(call.path)
            case What.UNLINK | What.RMDIR:
                del self._names[call.path]
            case What.MKDIR:
                self._names[call.path] = None
            case What.FAULT:
                pass

    def _sync_names(self, directory: str) -> None:
        """The names in a directory are safe from now on; where names are journaled, those on the way to it are too."""
        for path in [path for path in self._safe if os.path.dirname(path) == directory and path not in self._names]:
            del self._safe[path]
        for path, held in self._names.items():
            if os.path.dirname(path) == directory:
                self._safe[path] = held
        above = directory
        while not self.strict and above != str(self.root) and above in self._names:
            self._safe[above] = None
            above = os.path.dirname(above)

    def content(self) -> dict[str, bytes]:
        """Path and content of every file, as the kernel shows it."""
        return {path: bytes(held.data) for path, held in self._names.items() if held is not None}

    def after_power_loss(self, into: Path) -> None:
        """Put what is safe into `into`."""
        self._put(into, self._safe, {id(held): held.safe for held in self._safe.values() if held is not None})

    def after_disorder(self, into: Path, random: Random) -> None:
        """Put what is safe, and some of what is not, into `into`."""
        names: dict[str, _File | None] = {}
        for directory in sorted({os.path.dirname(path) for path in (*self._safe, *self._names)}):
            chosen = self._safe if random.random() < 0.5 else self._names
            names |= {path: held for path, held in chosen.items() if os.path.dirname(path) == directory}
        contents: dict[int, bytes] = {}
        for _, held in sorted(names.items()):
            if held is None or id(held) in contents:
                continue
            data = bytearray(held.safe)
            for offset, written in held.since:
                if random.random() < 0.5:
                    continue
                if written is None:
                    _truncate(data, offset)
                else:
                    _write(
                        data, offset, written[: random.randint(0, len(written))] if random.random() < 0.3 else written
                    )
            contents[id(held)] = bytes(data)
        self._put(into, names, contents)

    def _put(self, into: Path, names: dict[str, _File | None], contents: dict[int, bytes]) -> None:
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        for path, held in sorted(names.items()):
            target = into / Path(path).relative_to(self.root)
            if held is None:
                target.mkdir(exist_ok=True)
            elif target.parent.is_dir():  # else the directory itself was lost, with all in it
                target.write_bytes(contents[id(held)])


def _write(data: bytearray, offset: int, written: bytes) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(written)] = written


def _truncate(data: bytearray, size: int) -> None:
    if len(data) > size:
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))
