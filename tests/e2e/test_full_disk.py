"""A volume without space: what was acknowledged is safe, refusals are clear, and it comes back by itself."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from tests.e2e.sidecar import CALL_SECONDS, Sidecar, Stubs, case_ids, code_of, reason_of, register, sidecar
from tests.e2e.volume import MIB, volume

VOLUME_MB = 192  # the refusal begins at 64 MiB, the reserve takes 16, the rest is for cases
RESUME_SECONDS = 60.0  # what was promised is less (tests/store/test_journal.py); here the machine may be shared
BLOB = "x" * 20_000
FULL = {"STORE_FULL", "STORE_UNAVAILABLE", "FENCED"}


@pytest.mark.long
def test_a_full_volume_is_told_and_survived(tmp_path: Path) -> None:
    mounted = tmp_path / "volume"
    mounted.mkdir()
    with volume(mounted, VOLUME_MB) as small:
        if small is None:  # no mount here: the other way to fail a write is the next test
            cut_off(tmp_path)
            return
        with sidecar(tmp_path, data_dir=mounted / "data", prefix=small.prefix, root=small.root) as daemon:
            with daemon.stubs() as stubs:
                register(stubs)
                acknowledged = [run(stubs, f"before-{number}") for number in range(50)]
                for left in (40 * MIB, 0):  # early refusal, and not a byte
                    small.leave(left)
                    error = until_refused(stubs, acknowledged, f"filling-{left}")
                    assert code_of(error) is grpc.StatusCode.UNAVAILABLE
                    assert reason_of(error) == "STORE_FULL", error
                    told_as_full(daemon, stubs, acknowledged)
                    small.free()
                    began = time.monotonic()
                    until_ready(daemon)
                    acknowledged.append(run(stubs, f"after-{left}"))
                    print(
                        f"with {left // MIB} MiB left: resumed {time.monotonic() - began:.2f} s after space came back"
                    )
                small.leave(0)
                until_refused(stubs, acknowledged, "again")
            daemon.kill()  # in the worst moment
            small.free()
            daemon.start()
            with daemon.stubs() as stubs:
                assert sorted(case_ids(stubs)) == sorted(acknowledged)
                run(stubs, "last")
            assert daemon.stop() == 0


@pytest.mark.long
def test_a_write_that_is_cut_off_is_told_and_survived(tmp_path: Path) -> None:
    cut_off(tmp_path)


def cut_off(home: Path) -> None:
    """No file of the daemon may grow beyond 1 MiB: writes fail in the middle of a record, whenever a log is so long."""
    with sidecar(home) as daemon:
        with daemon.stubs() as stubs:
            register(stubs)
            acknowledged = [run(stubs, "before")]
            resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))
            for turn in range(3):
                error = until_refused(stubs, acknowledged, f"cut-{turn}")
                assert code_of(error) is grpc.StatusCode.UNAVAILABLE, error
                assert reason_of(error) in FULL, error
                resumed(stubs, acknowledged, f"resumed-{turn}")
            resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        daemon.kill()
        daemon.start()
        with daemon.stubs() as stubs:
            assert sorted(case_ids(stubs)) == sorted(acknowledged)
        assert daemon.stop() == 0


def run(stubs: Stubs, name: str) -> str:
    """One case of 20 KB; its id."""
    data = json.dumps({"blob": BLOB}).encode()
    request = pb.RunCaseRequest(spec_id="hello", case_id=name, data_json=data, request_id=name)
    return stubs.cases.RunCase(request, timeout=CALL_SECONDS).case.case_id


def until_refused(stubs: Stubs, acknowledged: list[str], name: str) -> grpc.RpcError:
    """Runs cases until one is refused."""
    for number in range(10_000):
        try:
            acknowledged.append(run(stubs, f"{name}-{number}"))
        except grpc.RpcError as error:
            return error
    raise AssertionError("never refused")


def told_as_full(daemon: Sidecar, stubs: Stubs, acknowledged: Sequence[str]) -> None:
    """Readiness, health and REST say it; reading goes on; refusing again does no harm."""
    for number in range(20):
        with pytest.raises(grpc.RpcError) as refused:
            run(stubs, f"refused-{number}")
        assert reason_of(refused.value) == "STORE_FULL"
    status, body = daemon.http("/health/ready")
    assert status == 503
    assert "store" in json.loads(body)["reason"]
    status, body = daemon.http("/health")
    assert status == 503
    assert json.loads(body)["status"] == "Unhealthy"
    status, body = daemon.http("/health/live")
    assert (status, json.loads(body)) == (200, {"alive": True})
    status, body = daemon.http("/api/v1/cases:run", json.dumps({"spec_id": "hello", "data": {}}).encode())
    assert status == 507, body
    problem = json.loads(body)
    assert problem["reason"] == "STORE_FULL"
    assert "MiB" in problem["detail"] or "space" in problem["detail"]
    assert sorted(case_ids(stubs)) == sorted(acknowledged)


def until_ready(daemon: Sidecar) -> None:
    """Waits for readiness without writing anything."""
    until = time.monotonic() + RESUME_SECONDS
    while (answer := daemon.http("/health/ready"))[0] != 200:
        assert time.monotonic() < until, answer
        time.sleep(0.05)


def resumed(stubs: Stubs, acknowledged: list[str], name: str) -> None:
    """Writes as a client with retries does."""
    until = time.monotonic() + RESUME_SECONDS
    while True:
        try:
            acknowledged.append(run(stubs, name))
            return
        except grpc.RpcError as error:
            if code_of(error) is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise
            time.sleep(0.05)
