"""A small volume of its own for a daemon, in a mount namespace that this process looks into from outside."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024
_WAYS: Sequence[tuple[Sequence[str], Sequence[str]]] = (
    (("unshare", "--mount"), ("nsenter", "--mount")),
    (("unshare", "--map-root-user", "--mount"), ("nsenter", "--user", "--preserve-credentials", "--mount")),
)
_HOLD = 'mount -t tmpfs -o "size=$2m" tmpfs "$1" && echo mounted && exec cat'
"""Mounts, says so, and holds the namespace until its input ends."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A mounted volume at `path` for processes behind `prefix`, whose file system begins at `root` for this one."""

    path: Path
    root: Path
    prefix: Sequence[str]

    @property
    def outside(self) -> Path:
        """The volume as this process sees it."""
        return self.root / self.path.relative_to("/")

    def leave(self, size: int) -> None:
        """Fills it until only `size` bytes are free."""
        space = os.statvfs(self.outside)
        left = space.f_bavail * space.f_frsize - size
        with (self.outside / "filler").open("ab") as filler:
            for at in range(0, left, MIB):
                filler.write(bytes(min(MIB, left - at)))

    def free(self) -> None:
        """Takes out what `leave` put in."""
        (self.outside / "filler").unlink()


@contextmanager
def volume(path: Path, megabytes: int) -> Iterator[Volume | None]:
    """A volume at `path`; None where mounting is not allowed."""
    for unshare, enter in _WAYS:
        try:
            holder = subprocess.Popen(
                [*unshare, "sh", "-c", _HOLD, "sh", str(path), str(megabytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except FileNotFoundError:
            break
        with holder:
            assert holder.stdout is not None
            if holder.stdout.readline() != "mounted\n":
                continue
            prefix = [enter[0], f"--target={holder.pid}", *enter[1:]]
            try:
                yield Volume(path, Path(f"/proc/{holder.pid}/root"), prefix)
            finally:
                holder.kill()
            return
    yield None
