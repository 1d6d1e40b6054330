"""Backup, restore, verify and proof by the command line, against a real daemon."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from tests.cli.daemon import Daemon, knhk, running
from tests.cli.test_commands import REVIEW, mapping


@pytest.mark.long
def test_a_running_daemon_is_backed_up_and_restored(tmp_path: Path) -> None:
    whole, more, proof = tmp_path / "whole.knhk", tmp_path / "more.knhk", tmp_path / "one.json"
    with running(tmp_path / "data") as daemon:
        assert daemon.knhk("workflow", "register", "-", "--format", "yaml", given=REVIEW).returncode == 0
        daemon.json("case", "run", "cli-review", "--id", "one", "--set", "pages=3")
        first = mapping(daemon.json("backup", str(whole)))
        assert first["whole"] is True
        daemon.json("case", "run", "cli-review", "--id", "two")
        done = daemon.knhk("backup", str(more), "--after", str(whole))
        assert done.returncode == 0, done.stderr
        assert "incremental backup" in done.stdout
        done = daemon.knhk("history", "export", "one", "--proof", "--file", str(proof))
        assert done.returncode == 0, done.stderr
        locked = knhk("verify", str(tmp_path / "data"))
        assert (locked.returncode, "in use by process" in locked.stderr) == (6, True)
        answered = over_rest(daemon)
        assert prefix(answered["backup"]) == b"KNHKBKP1"
        assert json.loads(answered["export"])["case"]["case_id"] == "one"
        told = json.loads(answered["verify"])
        assert told["intact"] is True
        channel = daemon.channel()
        with channel:
            verify = channel.unary_unary(
                "/knhk.sidecar.v1.AdminService/VerifyHistory",
                request_serializer=pb.VerifyHistoryRequest.SerializeToString,
                response_deserializer=pb.VerifyHistoryResponse.FromString,
            )
            response = verify(pb.VerifyHistoryRequest(case_id="one"), timeout=60)
            assert response.intact
            assert response.record_count >= 1
            with pytest.raises(grpc.RpcError) as refused:
                verify(pb.VerifyHistoryRequest(case_id="absent"), timeout=60)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert not list(tmp_path.glob("*.partial"))
    checked = knhk("verify", str(whole))
    assert (checked.returncode, "nothing is wrong" in checked.stdout) == (0, True), checked.stderr
    examined = knhk("verify", str(tmp_path / "data"), "-o", "json")
    assert json.loads(examined.stdout)["intact"] is True, examined.stderr
    restored = tmp_path / "restored" / "workflow_db"
    done = knhk("restore", str(whole), str(more), "--into", str(restored), "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cases"] == json.loads(examined.stdout)["cases"]
    with running(tmp_path / "restored") as daemon:
        assert mapping(daemon.json("case", "show", "one"))["data"] == {"pages": 3}
        assert mapping(daemon.json("case", "show", "two"))["state"] == "CASE_STATE_RUNNING"
    again = knhk("restore", str(whole), "--into", str(restored))
    assert (again.returncode, "not an empty directory" in again.stderr) == (2, True)
    at = json.loads(done.stdout)["position"]
    earlier = knhk(
        "restore", str(whole), str(more), "--into", str(tmp_path / "earlier"), "--until-position", str(at - 1)
    )
    assert earlier.returncode == 0, earlier.stderr
    assert f"up to log position {at - 1}" in earlier.stdout
    public = tmp_path / "data" / "workflow_db" / "SIGNING_KEY.pub"
    done = knhk("history", "verify", str(proof), "--key", str(public))
    assert (done.returncode, "signed by key" in done.stdout) == (0, True), done.stderr
    assert (public.with_suffix("").stat().st_mode & 0o777, public.stat().st_mode & 0o777) == (0o600, 0o644)
    stranger = knhk("history", "verify", str(proof), "--key", str(tmp_path / "restored/workflow_db/SIGNING_KEY.pub"))
    assert (stranger.returncode, "another key" in stranger.stderr) == (1, True)
    proven(proof)


def proven(file: Path) -> None:
    done = knhk("history", "verify", str(file))
    assert (done.returncode, "is proven" in done.stdout) == (0, True), done.stderr
    newest = done.stdout.split("hash ")[1].split()[0]
    assert knhk("history", "verify", str(file), "--hash", newest).returncode == 0
    assert knhk("history", "verify", str(file), "--hash", "00").returncode == 1
    document = json.loads(file.read_text())
    event = document["records"][0]["events"][1]
    event["data"]["by"] = "nobody"
    file.write_text(json.dumps(document))
    done = knhk("history", "verify", str(file))
    assert done.returncode == 1
    assert f"the first bad event is {event['sequence']}" in done.stderr


def over_rest(daemon: Daemon) -> Mapping[str, bytes]:
    """The same three calls over REST."""
    asked = {
        "backup": urllib.request.Request(f"{daemon.http}/api/v1/admin/backup", b"{}", method="POST"),
        "export": urllib.request.Request(f"{daemon.http}/api/v1/cases/one/export"),
        "verify": urllib.request.Request(f"{daemon.http}/api/v1/admin/history/verify"),
    }
    answers = {}
    for name, request in asked.items():
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as response:
            answers[name] = response.read()
    return answers


def prefix(data: bytes) -> bytes:
    return data[:8]


def test_damage_is_told_with_the_exit_code(tmp_path: Path) -> None:
    with running(tmp_path / "data") as daemon:
        assert daemon.knhk("backup", str(tmp_path / "whole.knhk")).returncode == 0
    head = tmp_path / "data" / "workflow_db" / "HEAD"
    head.write_bytes(bytes(head.stat().st_size))
    done = knhk("verify", str(tmp_path / "data"))
    assert done.returncode == 1
    assert "1 thing is wrong" in done.stderr
    assert "restore" in done.stderr
    whole = (tmp_path / "whole.knhk").read_bytes()
    (tmp_path / "whole.knhk").write_bytes(whole[:-1])
    for command in (
        ("verify", str(tmp_path / "whole.knhk")),
        ("restore", str(tmp_path / "whole.knhk"), "--into", "x"),
    ):
        done = knhk(*command, cwd=tmp_path)
        assert (done.returncode, "damaged at byte" in done.stderr) == (1, True)
    assert knhk("verify", str(tmp_path / "absent")).returncode == 3
    assert knhk("restore", str(tmp_path / "absent"), "--into", str(tmp_path / "y")).returncode == 3
