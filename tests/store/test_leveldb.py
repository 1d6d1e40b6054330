"""The embedded store against what can happen to a directory, a process and a disk."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import plyvel
import pytest

from knhk_workflow.errors import NotFound, StoreCorrupt, StoreFormat, StoreLocked, StoreUnavailable
from knhk_workflow.store import Journal, open_store
from knhk_workflow.store.directory import HeadFile
from knhk_workflow.store.leveldb import LevelDBLimits, LevelDBStore
from tests.store.cases import KEYS, Case
from tests.store.load import CASES
from tests.store.logs import follow

ROOT = Path(__file__).parents[2]
SMALL = LevelDBLimits(write_buffer_bytes=64 * 1024)  # reaches tables after a few steps


async def steps(path: Path, count: int, size: int = 200, limits: LevelDBLimits | None = None, name: str = "a") -> Case:
    """A store with so many more steps of one case, closed again."""
    store = await LevelDBStore.open(str(path), limits=limits)
    journal = await Journal.open(store, time.time_ns)
    case = Case(name)
    case.steps = await case.stored_steps(store)
    for _ in range(count):
        await journal.append(case.step(size))
    await journal.close()
    await store.close()
    return case


async def reopened_steps(path: Path, name: str = "a") -> int:
    store = await LevelDBStore.open(str(path), create=False)
    found = await Case(name).stored_steps(store)
    await store.close()
    return found


def files(path: Path, pattern: str) -> list[Path]:
    return sorted((path / "db").glob(pattern))


def cut(file: Path, part: float = 0.5) -> None:
    os.truncate(file, int(file.stat().st_size * part))


# -- what is in the directory ------------------------------------------------------------------------------------------


async def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    for total in (5, 10, 15):
        await steps(tmp_path / "store", 5)
        assert await reopened_steps(tmp_path / "store") == total


async def test_only_an_empty_or_absent_directory_becomes_a_store(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "lost+found").mkdir(parents=True)
    await steps(volume, 1)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"")
    with pytest.raises(StoreFormat, match=r"holiday\.jpg"):
        await open_store(str(foreign))
    assert os.listdir(foreign) == ["holiday.jpg"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreFormat, match="not a directory"):
        await open_store(str(tmp_path / "file"))


async def test_without_permission_nothing_is_created(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await open_store(str(tmp_path / "store"), create=False)
    assert os.listdir(tmp_path) == []
    with pytest.raises(NotFound, match="empty"):
        await open_store(str(tmp_path), create=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("lost", ["FORMAT", "HEAD", "db/CURRENT", "db"])
async def test_half_a_directory_is_refused_and_left_alone(tmp_path: Path, lost: str) -> None:
    await steps(tmp_path / "store", 3)
    saved = tmp_path / "saved"
    shutil.move(tmp_path / "store" / lost, saved)
    before = sorted(str(file) for file in (tmp_path / "store").rglob("*"))
    with pytest.raises(StoreFormat, match=r"backup"):
        await open_store(str(tmp_path / "store"))
    assert sorted(str(file) for file in (tmp_path / "store").rglob("*")) == before
    shutil.move(saved, tmp_path / "store" / lost)
    assert await reopened_steps(tmp_path / "store") == 3


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    await steps(tmp_path / "store", 1)
    form = tmp_path / "store" / "FORMAT"
    made = json.loads(form.read_text())
    assert (made["version"], made["shards"]) == (1, 1)
    form.write_text(json.dumps({"product": made["product"], "version": 2, "surprise": True}))
    with pytest.raises(StoreFormat, match="format 2"):
        await open_store(str(tmp_path / "store"))
    for nonsense in ("", "{}", "[]", json.dumps(made | {"shards": 0})):
        form.write_text(nonsense)
        with pytest.raises(StoreFormat):
            await open_store(str(tmp_path / "store"))


async def test_creation_that_was_interrupted_begins_again(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    await steps(whole, 0)
    for kept in ([], ["db"], ["db", "HEAD"], ["db", "HEAD", "FORMAT"]):
        store = tmp_path / f"store-{len(kept)}"
        store.mkdir()
        (store / "CREATING").write_bytes(b"")
        for name in kept:
            if name == "db":
                shutil.copytree(whole / name, store / name)
            else:
                shutil.copy(whole / name, store / name)
        await steps(store, 2)
        assert not (store / "CREATING").exists()
        assert await reopened_steps(store) == 2


# -- who owns it -------------------------------------------------------------------------------------------------------


async def test_a_second_handle_in_the_process_is_refused(tmp_path: Path) -> None:
    store = await open_store(str(tmp_path / "store"))
    os.symlink(tmp_path / "store", tmp_path / "alias")
    for path in (tmp_path / "store", tmp_path / "alias"):
        with pytest.raises(StoreLocked, match="this process"):
            await open_store(str(path))
    await store.close()
    await (await open_store(str(tmp_path / "alias"))).close()


async def test_a_second_process_is_refused_and_told_who(tmp_path: Path) -> None:
    with Load(tmp_path / "store") as load:
        load.line()
        with pytest.raises(StoreLocked, match=rf"process {load.process.pid};"):
            await open_store(str(tmp_path / "store"))
        load.kill()
    await (await open_store(str(tmp_path / "store"))).close()


async def test_the_lock_outlives_whatever_is_done_to_files_beside_it(tmp_path: Path) -> None:
    store = await open_store(str(tmp_path / "store"))
    shutil.copytree(tmp_path / "store", tmp_path / "copy")  # opens and closes every file, LevelDB's LOCK as well
    attempt = await asyncio.to_thread(run, "tests.store.load", str(tmp_path / "store"))
    assert attempt.returncode != 0
    assert f"process {os.getpid()}" in attempt.stderr
    await store.close()


def test_after_a_fork_the_handle_is_refused(tmp_path: Path) -> None:
    ran = run("tests.store.fork", str(tmp_path / "store"))
    assert ran.stdout == "child refused\nparent goes on\n", ran.stderr


def run(module: str, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """A module of these tests in a process of its own."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


# -- what is lost is noticed -------------------------------------------------------------------------------------------


def cut_log(path: Path) -> None:
    cut(max(files(path, "*.log"), key=lambda file: file.stat().st_size))


def delete_log(path: Path) -> None:
    max(files(path, "*.log"), key=lambda file: file.stat().st_size).unlink()


def empty_log(path: Path) -> None:
    cut(max(files(path, "*.log"), key=lambda file: file.stat().st_size), 0)


def live_table(path: Path) -> Path:
    """A table that holds data. Files that a compaction has made useless may lie beside it until the next opening."""
    database = plyvel.DB(str(path / "db"))
    database.compact_range()
    listed = database.get_property(b"leveldb.sstables").decode("latin-1")
    database.close()
    number = max(int(found) for found in re.findall(r"^ (\d+):\d+\[", listed, re.MULTILINE))
    return path / "db" / f"{number:06d}.ldb"


def delete_table(path: Path) -> None:
    live_table(path).unlink()


def cut_table(path: Path) -> None:
    cut(live_table(path))


def cut_manifest(path: Path) -> None:
    cut(files(path, "MANIFEST-*")[-1])


def spoil_table(path: Path) -> None:
    table = live_table(path)
    data = bytearray(table.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    table.write_bytes(data)


@pytest.mark.parametrize("damage", [cut_log, delete_log, empty_log])
async def test_missing_log_records_are_counted(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "store"
    await steps(path, 40)
    damage(path)
    with pytest.raises(StoreCorrupt, match=r"\d+ acknowledged records are missing") as refused:
        await open_store(str(path))
    missing = re.search(r"(\d+) acknowledged records are missing after record (\d+)", str(refused.value))
    assert missing is not None
    assert int(missing[1]) + int(missing[2]) == 40
    with pytest.raises(StoreCorrupt):  # and not only the first time
        await open_store(str(path))


@pytest.mark.parametrize("damage", [delete_table, cut_table, cut_manifest, spoil_table])
async def test_damaged_tables_are_refused_or_reported_but_never_read_as_less(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "store"
    for _ in range(3):
        case = await steps(path, 150, 2_000, SMALL)
    damage(path)
    with pytest.raises(StoreCorrupt):
        await read_everything(path, case.steps)


async def read_everything(path: Path, expected: int) -> None:
    store = await LevelDBStore.open(str(path), limits=SMALL)
    try:
        assert [link.position async for link in follow(store, 0)] == list(range(1, expected + 1))
        assert await Case("a").stored_steps(store) == expected
    finally:
        await store.close()


async def test_files_of_an_older_copy_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    await steps(path, 10)
    shutil.copytree(path / "db", tmp_path / "old")
    await steps(path, 10)
    shutil.rmtree(path / "db")
    shutil.copytree(tmp_path / "old", path / "db")
    with pytest.raises(StoreCorrupt, match="10 acknowledged records are missing after record 10"):
        await open_store(str(path))


async def test_another_history_of_the_same_length_is_noticed(tmp_path: Path) -> None:
    await steps(tmp_path / "one", 5, name="a")
    await steps(tmp_path / "two", 5, name="b")
    shutil.rmtree(tmp_path / "one" / "db")
    shutil.copytree(tmp_path / "two" / "db", tmp_path / "one" / "db")
    with pytest.raises(StoreCorrupt, match="not the one"):
        await open_store(str(tmp_path / "one"))


async def test_a_torn_head_falls_back_and_two_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    await steps(path, 4)
    head = bytearray((path / "HEAD").read_bytes())
    assert len(head) == len(HeadFile.blank(range(2)))
    newest = max((0, 64), key=lambda slot: int.from_bytes(head[slot + 8 : slot + 16], "big"))
    assert int.from_bytes(head[newest + 8 : newest + 16], "big") == 4
    head[newest + 20] ^= 1
    (path / "HEAD").write_bytes(head)
    assert await reopened_steps(path) == 4
    head[64 - newest + 20] ^= 1
    (path / "HEAD").write_bytes(head)
    with pytest.raises(StoreCorrupt, match="head"):
        await open_store(str(path))


async def test_a_head_that_is_one_behind_is_a_crash_not_a_loss(tmp_path: Path) -> None:
    path = tmp_path / "store"
    await steps(path, 4)
    head = (path / "HEAD").read_bytes()
    await steps(path, 1)
    (path / "HEAD").write_bytes(head)
    assert await reopened_steps(path) == 5
    assert (path / "HEAD").read_bytes() != head


# -- chunks ------------------------------------------------------------------------------------------------------------


async def test_chunks_are_removed_with_their_value_also_after_opening_again(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    large = os.urandom(700_000)
    store = await LevelDBStore.open(path)
    await store.commit([(b"a", large), (b"b", large)], [], True)
    await store.close()
    store = await LevelDBStore.open(path)
    assert await store.get(b"a") == large
    await store.commit([(b"a", b"small"), (b"b", large[:300_000])], [], True)
    assert await store.get(b"b") == large[:300_000]
    await store.commit([(b"b", None)], [(b"b", large[:300_000])], True)
    await store.close()
    database = plyvel.DB(str(tmp_path / "store" / "db"))
    assert list(database) == [(b"a", b"small")]
    database.close()


# -- recovery ----------------------------------------------------------------------------------------------------------


async def test_reads_and_snapshots_around_a_recovery(tmp_path: Path) -> None:
    store = await LevelDBStore.open(str(tmp_path / "store"))
    await store.commit([(b"a", b"1")], [], True)
    moment = await store.snapshot()
    store._fault = "pretend that a write failed"
    reads = [store.get(b"a") for _ in range(20)]
    results = await asyncio.gather(store.recover(), *reads)
    assert results[1:] == [b"1"] * 20
    with pytest.raises(StoreUnavailable):
        await moment.get(b"a")
    await moment.close()
    await store.commit([(b"a", b"2")], [(b"a", b"1")], True)
    await store.close()


async def test_cancelled_calls_leave_the_store_in_order(tmp_path: Path) -> None:
    store = await LevelDBStore.open(str(tmp_path / "store"))
    tasks = [asyncio.ensure_future(store.commit([(b"%d" % n, b"")], [], True)) for n in range(20)]
    tasks += [asyncio.ensure_future(store.commit([], [], True))]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    written = sorted(int(key) for key, _ in await store.scan(b"0", b"a", limit=100))
    assert written == [0, *range(1, 20, 2)]  # what had begun, and whoever waited on; the rest never began
    await store.close()


# -- a process killed, a volume full: the real thing -------------------------------------------------------------------


class Load:
    """A writing process (see load.py) and what it has acknowledged."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.store.load", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.communicate()[1]

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self.process.communicate()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.mark.long
async def test_kill_9_under_load_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "store"
    acknowledged: dict[str, int] = {}
    total = 0
    for lines in (1, 500, 5_000, 3_000):
        with Load(path) as load:
            taken = [load.line() for _ in range(lines)]
            load.kill()
            assert load.process.stdout is not None
            taken += load.process.stdout.read().splitlines()
        for line in taken:
            words = line.split()
            if len(words) == 2:  # the last line may be cut
                acknowledged[words[0]] = max(acknowledged.get(words[0], 0), int(words[1]))
                total += 1
        store = await LevelDBStore.open(str(path), create=False)
        for number in range(CASES):
            case = Case(f"case-{number}")
            assert await case.stored_steps(store) >= acknowledged.get(case.keys.case_id, 0)
        written = 0
        async for link in follow(store, KEYS.shard_of("default", "case-0")):
            written += len(link.record.entries)
        assert written >= total
        await store.close()


def mounting() -> list[str] | None:
    """The command under which a process may mount, or None where that is not allowed."""
    for command in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        try:
            tried = subprocess.run(
                [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False, timeout=20
            )
        except FileNotFoundError:
            return None
        if not tried.returncode:
            return command
    return None


def run_full_volume(path: Path, how: str, prefix: Sequence[str] = ()) -> None:
    ran = run("tests.store.full_volume", str(path), how, prefix=prefix)
    assert ran.stdout.endswith("ok\n"), ran.stdout + ran.stderr


@pytest.mark.long
def test_a_full_volume_loses_nothing_and_resumes(tmp_path: Path) -> None:
    prefix = mounting()
    if prefix is not None:
        run_full_volume(tmp_path, "tmpfs", prefix)
    else:
        run_full_volume(tmp_path, "rlimit")


@pytest.mark.long
def test_a_write_cut_off_in_the_middle_loses_nothing_and_resumes(tmp_path: Path) -> None:
    run_full_volume(tmp_path, "rlimit")
