"""How much memory the daemon may use. Near the limit new work is refused, and work that exists goes on.

The limit is the one that would kill the process: that of its cgroup (a container's), or of `ulimit -v`, or a smaller
one from the settings. What counts is resident memory, as Linux tells it; where neither a limit nor the figure can be
had there is no guard.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

MIB: Final = 1024 * 1024
RELAXED: Final = 0.95  # of the soft limit: below it new work is taken again, so that it does not flutter

_PAGE: Final = resource.getpagesize()
_STATM: Final = Path("/proc/self/statm")
_CGROUPS: Final = Path("/proc/self/cgroup")
_CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
_UNLIMITED: Final = 1 << 60  # cgroup v1 writes a number near 2^63 for "no limit"


class Memory:
    """The guard. `look` is to be called now and then; `short` is what the last look found."""

    def __init__(self, limit_bytes: int, soft_percent: float, resident: Callable[[], int] | None = None) -> None:
        """`soft_percent` of the limit is where new work is refused. `resident` tells the present use, in bytes."""
        self.limit_bytes = limit_bytes
        self.soft_bytes = int(limit_bytes * soft_percent / 100)
        self.used_bytes = 0
        self.short = False
        self._resident = resident or resident_bytes
        self._room = asyncio.Event()
        self.look()

    def look(self) -> None:
        """Compare the present use with the limit; about 10 us."""
        self.used_bytes = used = self._resident()
        self.short = used >= (self.soft_bytes * RELAXED if self.short else self.soft_bytes)
        if self.short:
            self._room.clear()
        else:
            self._room.set()

    async def room(self) -> None:
        """Returns once memory is not short."""
        await self._room.wait()

    @property
    def detail(self) -> str:
        """One sentence for people; empty while there is enough."""
        if not self.short:
            return ""
        return (
            f"{self.used_bytes // MIB} MiB of {self.limit_bytes // MIB} MiB are in use; new work is refused, work that "
            "exists goes on"
        )


def resident_bytes() -> int:
    """Resident memory of this process; 0 where it cannot be told."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def limit_bytes(wanted_bytes: int = 0) -> int:
    """The least of what is wanted (0 = nothing), what the cgroups allow and what `ulimit -v` does; 0 = no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    found = [*_cgroup_limits(), *([soft] if soft != resource.RLIM_INFINITY else [])]
    if wanted_bytes:
        found.append(wanted_bytes)
    return min((limit for limit in found if limit < _UNLIMITED), default=0)


def _cgroup_limits() -> Iterator[int]:
    """Of the process's cgroup and those around it, version 2 or 1."""
    try:
        lines = _CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, place = line.split(":", 2)
        if number == "0":
            base, name = _CGROUP_ROOT, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = _CGROUP_ROOT / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = base / place.lstrip("/")
        for directory in (inner, *inner.parents):
            if directory != base and base not in directory.parents:
                break
            try:
                yield int((directory / name).read_text())
            except (OSError, ValueError):  # no file at the root, and `max` is no number
                continue
