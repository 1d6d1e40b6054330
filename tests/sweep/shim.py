"""Builds the shim, and says what it is to do."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import msgspec

SOURCE: Final = Path(__file__).with_name("shim.c")
MODES: Final = {"none": 0, "crash": 1, "torn": 2, "fail": 3, "stop": 4}


class Plan(msgspec.Struct, frozen=True):
    """One run of the workload, and the point at which something happens to it."""

    directory: str
    trace: str
    mode: str = "none"
    """none, crash (killed before the point's call), torn (killed in the middle of it), fail (the call fails), stop
    (stopped before the call, and let go on later)."""
    point: int = -1
    error: int = 0
    """errno of a failing call."""
    count: int = 1
    """How many points fail."""
    hold_ms: int = 0
    """And for how long everything fails after the first."""
    cut: int = 128
    """How much of a torn or failing write is written, of 256."""
    sync: bool = True
    """False: the workload does without durable commits, which must show."""


def build(directory: Path) -> Path:
    """The shim as a shared object, below `directory`. Raises CalledProcessError with the compiler's words."""
    made = directory / "shim.so"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", made, SOURCE, "-ldl", "-lpthread"], check=True)
    return made
