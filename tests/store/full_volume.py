"""A process that fills a volume and goes on when there is space: `python -m tests.store.full_volume DIRECTORY HOW`.

HOW is `tmpfs` (mounts one of its own on DIRECTORY; needs a mount namespace), or `rlimit` (no file may grow beyond a
size, which is what is left where mounting is not allowed). Exits 0 when nothing acknowledged was lost.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from knhk_workflow.errors import StoreError, StoreFull, StoreUnavailable
from knhk_workflow.store import Journal
from knhk_workflow.store.leveldb import MIB, LevelDBLimits, LevelDBStore
from tests.store.cases import KEYS, Case
from tests.store.logs import follow

STEP_BYTES = 20_000
RESUME_S = 60.0  # what was promised is less (test_journal.py, in virtual time); here the machine may be shared


def main(directory: Path, how: str) -> None:
    if how == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(directory)], check=True)
        asyncio.run(fills_and_resumes(directory))
        asyncio.run(refuses_early(directory))
    else:
        asyncio.run(file_size_limit(directory))
    print("ok")


async def fills_and_resumes(directory: Path) -> None:
    """Really no space: no early refusal."""
    path = str(directory / "store")
    limits = LevelDBLimits(free_min_bytes=0, reserve_bytes=12 * MIB)
    store = await LevelDBStore.open(path, limits=limits)
    journal = await Journal.open(store, time.time_ns)
    case = Case("a")
    for _ in range(100):
        await journal.append(case.step(STEP_BYTES))
    filler = directory / "filler"
    for again in range(3):
        space = os.statvfs(directory)
        write(filler, space.f_bavail * space.f_frsize - MIB)
        error = await until_refused(journal, case)
        assert isinstance(error, StoreFull), error
        for _ in range(20):  # and it stays refused, without harm
            error = await until_refused(journal, case)
            assert isinstance(error, StoreUnavailable), error
        assert await case.stored_steps(store) == case.steps, "reading goes on"
        filler.unlink()
        await resumed(journal, case)
        print(f"filled and resumed {again + 1} times, {case.steps} steps")
    await finish(journal, store, path, case)


async def refuses_early(directory: Path) -> None:
    """Nearly no space: refused before anything fails."""
    path = str(directory / "early")
    limits = LevelDBLimits(free_min_bytes=8 * MIB, reserve_bytes=4 * MIB)
    store = await LevelDBStore.open(path, limits=limits)
    journal = await Journal.open(store, time.time_ns)
    case = Case("a")
    await journal.append(case.step())
    filler = directory / "filler"
    space = os.statvfs(directory)
    write(filler, space.f_bavail * space.f_frsize - 7 * MIB)
    error = await until_refused(journal, case)
    assert isinstance(error, StoreFull), error
    assert "MiB" in str(error), error
    assert await case.stored_steps(store) == case.steps
    filler.unlink()
    await resumed(journal, case)
    await finish(journal, store, path, case)


async def file_size_limit(directory: Path) -> None:
    """Writes fail in the middle of a record when a log file reaches the limit; the next log begins at zero."""
    path = str(directory / "store")
    store = await LevelDBStore.open(path)
    journal = await Journal.open(store, time.time_ns)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))
    case = Case("a")
    for _ in range(3):
        error = await until_refused(journal, case)
        assert isinstance(error, StoreUnavailable), error
        await resumed(journal, case)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await finish(journal, store, path, case)


async def until_refused(journal: Journal, case: Case) -> StoreError:
    """Steps until one is refused."""
    while True:
        error = await refusal(journal, case)
        if error is not None:
            return error


async def refusal(journal: Journal, case: Case) -> StoreError | None:
    """Why the next step was refused, or None; the case counts what was acknowledged."""
    before = case.steps
    try:
        await journal.append(case.step(STEP_BYTES))
    except StoreError as error:
        case.steps = before
        return error
    return None


async def resumed(journal: Journal, case: Case) -> None:
    """Steps as a caller with retries does."""
    began = time.monotonic()
    while (error := await refusal(journal, case)) is not None:
        assert isinstance(error, StoreUnavailable), error
        assert time.monotonic() - began < RESUME_S, error
        await asyncio.sleep(0.05)


async def finish(journal: Journal, store: LevelDBStore, path: str, case: Case) -> None:
    """Close, open again, and look."""
    await journal.close()
    await store.close()
    store = await LevelDBStore.open(path)
    assert await case.stored_steps(store) == case.steps
    entries = [entry async for link in follow(store, KEYS.shard_of("default", "a")) for entry in link.record.entries]
    assert [entry.first_sequence for entry in entries] == list(range(1, case.steps + 1))
    await store.close()


def write(file: Path, size: int) -> None:
    with file.open("wb") as out:
        for at in range(0, size, MIB):
            out.write(bytes(min(MIB, size - at)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
