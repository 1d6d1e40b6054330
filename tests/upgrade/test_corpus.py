"""Each recorded directory opens, shows what it showed, replays to the same states, and its cases can be finished."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from knhk_workflow import (
    AlreadyExists,
    Moment,
    NotFound,
    StateStore,
    StoreFormat,
    StoreLocked,
    VirtualClock,
    WorkflowEngine,
    plan_upgrade,
    prove_export,
    read_public_key,
    restore_store,
    verify_store,
)
from tests.cli.daemon import knhk
from tests.inside import parts
from tests.upgrade.record import CORPUS, TENANTS, Look, brought_to_an_end, looked_at

RECORDED = sorted(CORPUS.glob("*.tar.xz"))


@pytest.fixture(params=RECORDED, ids=[file.name for file in RECORDED])
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """One recorded directory, unpacked."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def expected(recorded: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((recorded / "expected.json").read_text())
    return told


def same(found: Look, told: Look) -> None:
    """What was shown is shown, event by event. More may be shown than then."""
    assert {name: found[name] for name in told if name != "history"} == {
        name: told[name] for name in told if name != "history"
    }
    for now, then in zip(found["history"], told["history"], strict=True):
        assert now[:3] == then[:3]
        assert {name: now[3].get(name) for name in then[3]} == then[3]


def test_there_is_a_record_of_the_first_format() -> None:
    assert RECORDED


async def test_a_recorded_store_is_what_it_was_and_goes_on(recorded: Path) -> None:
    told = expected(recorded)
    clock = VirtualClock(told["now"])
    async with WorkflowEngine(StateStore(str(recorded / "store"), create=False), clock=clock) as engine:
        found = await engine.verify_store()
        assert found.intact, found.findings
        assert found.purged == len(told["purged"])
        for tenant in TENANTS:
            looks = await looked_at(engine, tenant)
            assert looks.keys() == told["cases"][tenant].keys()
            for name, look in looks.items():
                same(look, told["cases"][tenant][name])
        for name in told["purged"]:
            with pytest.raises(NotFound):
                await engine.get_case(name)
            with pytest.raises(AlreadyExists):
                await engine.create_case("line", {}, case_id=name)
        await engine.run_case("line", {}, case_id="new", business_key="key-1")
        for tenant in TENANTS:
            states = await brought_to_an_end(engine, clock, tenant)
            open_yet = {name for name, state in states.items() if state not in ("completed", "cancelled")}
            assert not open_yet
        assert (await engine.verify_store()).intact
    assert (await verify_store(str(recorded / "store"))).intact


async def test_recorded_backups_are_restored(recorded: Path) -> None:
    told = expected(recorded)
    archives = [str(recorded / "whole"), str(recorded / "more")]
    restored = await restore_store(archives, str(recorded / "restored"))
    assert restored.examination.intact
    async with WorkflowEngine(StateStore(str(recorded / "restored")), clock=VirtualClock(told["now"])) as engine:
        for tenant in TENANTS:
            for name, look in (await looked_at(engine, tenant)).items():
                same(look, told["cases"][tenant][name])
        await engine.run_case("waits", {}, case_id="late", business_key="key-of-nobody")
        await parts(engine).messages.flush()
        page = await engine.get_case_history("late")
        assert "trigger_received" in [event.event_type for event in page.items], "the message that waited"
    half = await restore_store(archives, str(recorded / "half"), until=Moment(position=20))
    assert half.examination.intact


def test_a_recorded_export_is_proven(recorded: Path) -> None:
    public = read_public_key((recorded / "key.pub").read_bytes())
    proof = prove_export((recorded / "export.json").read_bytes(), public)
    assert not proof.problem
    assert proof.signed_by


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def test_a_dry_run_reads_everything_and_changes_nothing(recorded: Path) -> None:
    store = recorded / "store"
    async with WorkflowEngine(StateStore(str(store))) as engine:
        with pytest.raises(StoreLocked):
            await plan_upgrade(str(store))
        assert engine.status().open
    before = content(store)
    plan = await plan_upgrade(str(store))
    assert (plan.made, plan.reads, plan.changes, plan.unfinished) == (1, 1, (), 0)
    assert plan.examination.intact
    assert plan.examination.cases > 10
    assert {name: data for name, data in content(store).items() if name != "OWNER"} == {
        name: data for name, data in before.items() if name != "OWNER"
    }
    assert sorted(os.listdir(recorded)) == ["expected.json", "export.json", "key.pub", "more", "store", "whole"]
    with pytest.raises(NotFound):
        await plan_upgrade(str(recorded / "absent"))


def test_the_command_says_what_a_start_would_do(recorded: Path) -> None:
    (recorded / "data").mkdir()
    shutil.move(recorded / "store", recorded / "data" / "workflow_db")
    done = knhk("serve", "--dry-run", "--data-dir", str(recorded / "data"))
    assert done.returncode == 0, done.stderr
    assert "nothing would be changed" in done.stdout
    form = recorded / "data" / "workflow_db" / "FORMAT"
    form.write_text(form.read_text().replace('"version": 1', '"version": 2'))
    for arguments in (("serve", "--dry-run"), ("serve",)):
        done = knhk(*arguments, "--data-dir", str(recorded / "data"))
        assert done.returncode == 5, done.stdout
        assert "has format 2, this version reads up to 1" in done.stderr
    looked = knhk("doctor", "--data-dir", str(recorded / "data"))
    assert "has format 2" in looked.stdout
    damaged = recorded / "data" / "workflow_db"
    form.write_text(form.read_text().replace('"version": 2', '"version": 1'))
    for table in (*damaged.glob("db/*.ldb"), *damaged.glob("db/*.log")):
        table.unlink()
    done = knhk("serve", "--dry-run", "--data-dir", str(recorded / "data"))
    assert done.returncode == 5, done.stdout


async def test_a_newer_format_is_refused_before_anything_is_touched(recorded: Path) -> None:
    form = recorded / "store" / "FORMAT"
    form.write_text(form.read_text().replace('"version": 1', '"version": 7, "shape": "unknown"'))
    before = content(recorded / "store")
    for attempt in (plan_upgrade(str(recorded / "store")), WorkflowEngine(StateStore(str(recorded / "store"))).open()):
        with pytest.raises(StoreFormat, match="use the version that made it or a newer one"):
            await attempt
    assert {name: data for name, data in content(recorded / "store").items() if name != "OWNER"} == before
