"""`knhk audit`: listing, exporting, verifying, checking."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from knhk_sidecar.cli.root import run
from knhk_workflow import SigningKey, StateStore, WorkflowEngine
from tests.cli.daemon import Daemon

DOCUMENT = {
    "id": "audited",
    "tasks": {"sign": {"required_roles": ["clerk"]}},
    "flows": [{"from": "start", "to": "sign"}, {"from": "sign", "to": "end"}],
}


Said = tuple[int, str, str]
"""Exit code, standard output, standard error."""
Knhk = Callable[..., Said]


@pytest.fixture
def knhk(daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Knhk:
    """One command in this process: starting Python for each would take most of the time."""
    monkeypatch.setenv("KGC_SIDECAR_DATA_DIR", str(daemon.data_dir))

    def called(*arguments: str) -> Said:
        capsys.readouterr()
        code = run(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return called


@pytest.fixture(scope="module")
def worked(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A daemon on which somebody has done something."""
    file = tmp_path_factory.mktemp("audit") / "audited.json"
    file.write_text(json.dumps(DOCUMENT))
    for arguments in (
        ("workflow", "register", str(file)),
        ("case", "run", "audited", "--id", "audited-1", "--request-id", "from-the-test"),
        ("case", "cancel", "audited-1"),
    ):
        done = daemon.knhk(*arguments)
        assert done.returncode == 0, done.stderr
    return daemon


@pytest.fixture
def key(worked: Daemon) -> str:
    return str(worked.data_dir / "workflow_db" / "SIGNING_KEY.pub")


def entries(knhk: Knhk, *arguments: str) -> list[dict[str, str]]:
    code, out, err = knhk("audit", "list", *arguments, "-o", "json")
    assert code == 0, err
    found: list[dict[str, str]] = json.loads(out)["entries"]
    return found


def test_list_follows_pages_and_filters(worked: Daemon, knhk: Knhk) -> None:
    found = entries(knhk, "--resource", "cases/audited-1", "--outcome", "ok")
    effects = [one for one in found if one["method"].rpartition("/")[2] in ("RunCase", "CancelCase")]
    assert [one["method"].rpartition("/")[2] for one in effects] == ["CancelCase", "RunCase"]
    assert effects[1]["request_id"] == "from-the-test"
    assert all(one["principal"] == worked.ready["spiffe_id"] for one in effects)
    assert len(entries(knhk, "--limit", "1")) == 1
    assert entries(knhk, "--after", "2001-01-01T00:00:00Z", "--before", "2001-01-02T00:00:00Z") == []
    table = knhk("audit", "list", "--method", "CancelCase")[1]
    assert "cases/audited-1" in table
    assert "CancelCase" in table


def test_what_was_refused_is_found_with_its_reason(worked: Daemon, knhk: Knhk) -> None:
    assert knhk("case", "show", "never-there")[0] == 3
    until = time.monotonic() + 60
    found: list[dict[str, str]] = []
    while not found and time.monotonic() < until:
        found = entries(knhk, "--resource", "cases/never-there")
    assert {(one["outcome"], one["reason"]) for one in found} == {("NOT_FOUND", "NOT_FOUND")}


def test_export_verify_and_every_way_of_being_wrong(worked: Daemon, knhk: Knhk, key: str, tmp_path: Path) -> None:
    out, kept, spoilt = tmp_path / "audit.jsonl", tmp_path / "kept.checkpoint", tmp_path / "spoilt.jsonl"
    assert knhk("audit", "checkpoint", "--out", str(kept))[0] == 0
    assert knhk("audit", "export", "--full", "--out", str(out))[0] == 0
    code, said, err = knhk("audit", "verify", str(out), "--key", key, "--checkpoint", str(kept))
    assert code == 0, err
    assert "entries are proven" in said
    lines = out.read_bytes().splitlines(keepends=True)
    spoilt.write_bytes(b"".join([*lines[:2], lines[2].replace(b"spiffe", b"spoffe"), *lines[3:]]))
    code, said, err = knhk("audit", "verify", str(spoilt), "-o", "json")
    assert (code, "line 3" in err) == (1, True)
    told = json.loads(said)
    assert (told["line"], told["proven"]) == (3, False)
    spoilt.write_bytes(b"".join(lines[:-4]))
    assert "cut off" in knhk("audit", "verify", str(spoilt))[2]
    assert knhk("audit", "verify", str(kept))[0] == 2
    assert knhk("audit", "verify")[0] == 2
    assert knhk("audit", "verify", str(tmp_path / "missing"))[0] == 2


def test_the_running_daemon_continues_what_was_kept(worked: Daemon, knhk: Knhk, key: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept.checkpoint"
    assert knhk("audit", "checkpoint", "--out", str(kept))[0] == 0
    assert knhk("case", "run", "audited", "--id", f"later-{tmp_path.name}")[0] == 0
    code, said, err = knhk("audit", "check", str(kept), "--signed-by", key)
    assert code == 0, err
    assert "continues what was kept" in said
    text = kept.read_text()
    size = text.splitlines()[1]
    kept.write_text(text.replace(f"\n{size}\n", f"\n{int(size) + 1_000_000}\n", 1))
    code, _, err = knhk("audit", "check", str(kept), "--signed-by", key)
    assert (code, "not signed" in err) == (1, True)
    code, _, err = knhk("audit", "check", str(kept))
    assert (code, "older state" in err) == (1, True)


def test_receipts_are_proven_offline(worked: Daemon, knhk: Knhk, key: str, tmp_path: Path) -> None:
    file = tmp_path / "receipt"
    assert knhk("audit", "receipt", "audited-1", "--sequence", "1", "--out", str(file))[0] == 0
    code, said, err = knhk("audit", "verify", str(file), "--key", key)
    assert code == 0, err
    assert "audited-1" in said
    file.write_bytes(file.read_bytes().replace(b'"position":', b'"position":1'))
    assert knhk("audit", "verify", str(file), "--key", key)[0] == 1
    kept = tmp_path / "kept.checkpoint"
    assert knhk("audit", "checkpoint", "--out", str(kept))[0] == 0
    code, _, told = knhk("audit", "verify", str(file), "--checkpoint", str(kept))
    assert (code, "knhk audit check" in told) == (2, True), "a receipt shows nothing about another checkpoint"
    assert knhk("audit", "receipt", "nobody", "--out", str(file))[0] == 3


def test_a_store_in_use_is_not_verified_by_its_directory(worked: Daemon, knhk: Knhk) -> None:
    code, _, err = knhk("audit", "verify", "--dir", str(worked.data_dir))
    assert (code, "knhk audit check" in err) == (6, True), err


async def test_a_store_that_nobody_has_open_is_held_against_a_checkpoint(tmp_path: Path) -> None:
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        engine.sign_with(SigningKey.generate())
        await engine.register_workflow(DOCUMENT)
        notes = [each.note for each in await engine.audit_checkpoints()]
        await engine.register_workflow({**DOCUMENT, "name": "Another version"})
    kept = tmp_path / "kept.checkpoint"
    kept.write_text("\n".join(notes))
    verify = ("audit", "verify", "--dir", str(tmp_path / "store"), "--checkpoint", str(kept))
    assert await asyncio.to_thread(run, verify) == 0
    kept.write_text("\n".join(notes).replace("\n1\n", "\n9\n").replace("\n2\n", "\n9\n"))
    assert await asyncio.to_thread(run, verify) == 1
    assert await asyncio.to_thread(run, ("audit", "verify", "--dir", str(tmp_path / "nowhere"))) == 3
