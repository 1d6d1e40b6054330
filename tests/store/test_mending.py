"""What a loss of power leaves of a write that was never finished is cut off; nothing else is, and nothing silently."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Final

import pytest

from knhk_workflow import StateStore, StoreCorrupt, StoreError, WorkflowEngine, verify_store
from knhk_workflow.store.leveldb import LevelDBStore
from knhk_workflow.store.mending import _BLOCK, mendings
from tests.cli.daemon import knhk
from tests.runtime.place import ONE

CASES: Final = 5


def newest_log(path: Path) -> Path:
    return max((path / "db").glob("*.log"), key=lambda file: int(file.stem))


@pytest.fixture
async def torn(tmp_path: Path) -> tuple[Path, int]:
    """A store that lost power while a write of several blocks was under way, all of it there yet; where that begins."""
    path = tmp_path / "store"
    async with WorkflowEngine(StateStore(str(path))) as engine:
        await engine.register_workflow(ONE)
        for number in range(CASES):
            await engine.run_case("one", {"text": "x" * 3_000}, case_id=f"case-{number}")
        head = (path / "HEAD").read_bytes()
        log = newest_log(path)
        before = log.stat().st_size
        await engine.run_case("one", {"text": random.Random(1).randbytes(60_000).hex()}, case_id="never")
        shutil.copytree(path, tmp_path / "torn", ignore=shutil.ignore_patterns("OWNER", "LOCK"))
    (tmp_path / "torn" / "HEAD").write_bytes(head)
    return tmp_path / "torn", before


def spoil(path: Path, place: int, size: int, value: bytes = b"\0") -> None:
    with newest_log(path).open("r+b") as file:
        file.seek(place)
        file.write(value * size)


async def test_blocks_lost_out_of_an_unfinished_write_are_cut_off(torn: tuple[Path, int]) -> None:
    path, began = torn
    hole = (began // _BLOCK + 1) * _BLOCK
    spoil(path, hole, _BLOCK)
    size = newest_log(path).stat().st_size
    async with WorkflowEngine(StateStore(str(path), create=False)) as engine:
        assert [case.case_id for case in (await engine.list_cases()).items] == [f"case-{n}" for n in range(CASES)]
        assert (await engine.verify_store()).intact
        await engine.run_case("one", {}, case_id="never")
    [told] = mendings(str(path))
    assert (told.kept_bytes, told.dropped_bytes) == (began, size - began)
    assert (path / told.refused / told.log).stat().st_size == size, "what was refused is kept as it was"
    assert (await verify_store(str(path))).intact
    assert len(mendings(str(path))) == 1, "once"


async def test_any_hole_in_the_unfinished_write_is_mended_or_was_no_damage(torn: tuple[Path, int]) -> None:
    path, began = torn
    size = newest_log(path).stat().st_size
    draw = random.Random(5)
    for number in range(12):
        copy = path.with_name(f"copy-{number}")
        shutil.copytree(path, copy)
        place = draw.randrange(began, size - 1)
        spoil(copy, place, draw.randint(1, size - place), draw.choice((b"\0", b"\xa5")))
        async with WorkflowEngine(StateStore(str(copy), create=False)) as engine:
            cases = [case.case_id for case in (await engine.list_cases()).items]
            assert cases[:CASES] == [f"case-{n}" for n in range(CASES)]
            assert (await engine.verify_store()).intact
        shutil.rmtree(copy)


async def test_nothing_acknowledged_is_ever_cut_off(torn: tuple[Path, int]) -> None:
    """The same holes before the end of what was acknowledged: refused, and the directory stays as it is."""
    path, began = torn
    draw = random.Random(6)
    for number in range(12):
        copy = path.with_name(f"copy-{number}")
        shutil.copytree(path, copy)
        spoil(copy, draw.randrange(0, began - 8), draw.randint(4, 400), b"\xa5")
        with pytest.raises(StoreCorrupt):
            await LevelDBStore.open(str(copy))
        assert not mendings(str(copy))
        assert not [name for name in os.listdir(copy) if name.startswith("db.")]
        shutil.rmtree(copy)


async def test_a_write_that_others_follow_was_acknowledged(torn: tuple[Path, int]) -> None:
    """Damage to a finished write at the end of which nobody kept a newer head: a whole record behind it tells."""
    path, _ = torn
    async with WorkflowEngine(StateStore(str(path), create=False)) as engine:
        head = (path / "HEAD").read_bytes()
        await engine.run_case("one", {"text": "y" * 500}, case_id="first")
        await engine.run_case("one", {"text": "z" * 500}, case_id="second")
        shutil.copytree(path, path.with_name("acked"), ignore=shutil.ignore_patterns("OWNER", "LOCK"))
    copy = path.with_name("acked")
    (copy / "HEAD").write_bytes(head)
    data = newest_log(copy).read_bytes()
    spoil(copy, data.index(b"y" * 100), 1, b"#")
    with pytest.raises(StoreCorrupt):
        await LevelDBStore.open(str(copy))
    assert not mendings(str(copy))


async def test_a_head_that_knows_more_refuses(torn: tuple[Path, int]) -> None:
    path, _ = torn
    async with WorkflowEngine(StateStore(str(path), create=False)):
        pass
    copied = path.with_name("copied")
    shutil.copytree(path, copied)
    async with WorkflowEngine(StateStore(str(copied))) as engine:
        await engine.run_case("one", {"text": "w" * 200_000}, case_id="acknowledged")
        shutil.copytree(copied, path.with_name("cut"), ignore=shutil.ignore_patterns("OWNER", "LOCK"))
    cut = path.with_name("cut")
    spoil(cut, newest_log(cut).stat().st_size // 2, _BLOCK)
    with pytest.raises(StoreError):
        await LevelDBStore.open(str(cut))
    assert not mendings(str(cut))


async def test_a_crash_in_the_middle_of_mending_is_carried_on_from(torn: tuple[Path, int]) -> None:
    path, began = torn
    spoil(path, (began // _BLOCK + 1) * _BLOCK, _BLOCK)
    mended = path.with_name("mended")
    shutil.copytree(path, mended)
    await (await LevelDBStore.open(str(mended))).close()
    for moment in ("making", "ready", "between"):
        copy = path.with_name(moment)
        shutil.copytree(path, copy)
        shutil.copytree(mended / "db", copy / ("db.mending" if moment == "making" else "db.mended"))
        if moment == "between":
            (copy / "db").rename(copy / "db.refused-1")
        async with WorkflowEngine(StateStore(str(copy), create=False)) as engine:
            assert (await engine.verify_store()).intact
            assert len((await engine.list_cases()).items) == CASES
        assert {name for name in os.listdir(copy) if name.startswith("db")} == {"db", "db.refused-1"}


@pytest.mark.long
def test_doctor_tells_of_it_while_the_original_is_kept(torn: tuple[Path, int]) -> None:
    path, began = torn
    spoil(path, (began // _BLOCK + 1) * _BLOCK, _BLOCK)
    (path.parent / "data").mkdir()
    place = path.rename(path.parent / "data" / "workflow_db")
    told = knhk("doctor", "--data-dir", str(place.parent))
    assert "bytes of an unfinished write were cut off" in told.stdout
    assert f"rm -r {place}/db.refused-1" in told.stdout.replace("\n", "")
    shutil.rmtree(place / "db.refused-1")
    assert "unfinished write" not in knhk("doctor", "--data-dir", str(place.parent)).stdout
