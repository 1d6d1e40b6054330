"""Connectors of a daemon: configured by calls, probed, listed, counted, and what they gave up."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from tests.connectors.conftest import Started
from tests.e2e.sidecar import Sidecar, code_of, register, run, sidecar

WAIT_SECONDS = 60.0
DOCUMENT = json.dumps(
    {
        "id": "pay",
        "tasks": {
            "pay": {
                "connector": "bank",
                "request": {"method": "POST", "url": "/status/${data.status}", "body": "{'amount': data.amount}"},
                "result": {"paid": "data.status"},
                "retry": 1,
            }
        },
        "flows": [{"from": "start", "to": "pay"}, {"from": "pay", "to": "end"}],
    }
).encode()


@pytest.fixture
def daemon(tmp_path: Path, start_outside: Started) -> Iterator[tuple[Sidecar, str]]:
    """A daemon that may call the server, and the server's address."""
    base = f"http://127.0.0.1:{start_outside()}"
    config = tmp_path / "knhk.toml"
    config.write_text(f'connector_allow = ["{base}"]\nconnector_networks = ["127.0.0.0/8"]\n')
    with sidecar(tmp_path, "--config", str(config)) as running:
        yield running, base


def put(running: Sidecar, name: str, **config: object) -> pb.Connector:
    """Puts an HTTP connector."""
    with running.stubs() as stubs:
        request = pb.PutConnectorRequest(name=name, kind="http", config_json=json.dumps(config).encode())
        return stubs.admin.PutConnector(request, timeout=60).connector


def connectors(running: Sidecar, *, probe: bool = False) -> dict[str, pb.Connector]:
    """Every connector by its name."""
    with running.stubs() as stubs:
        request = pb.ListConnectorsRequest(probe=probe)
        return {each.name: each for each in stubs.admin.ListConnectors(request, timeout=60).connectors}


def pay(running: Sidecar, case_id: str, status: int) -> pb.Case:
    """Runs a case until it has ended or waits for a person."""
    until = time.monotonic() + WAIT_SECONDS
    with running.stubs() as stubs:
        data = json.dumps({"status": status, "amount": 5}).encode()
        stubs.cases.RunCase(pb.RunCaseRequest(spec_id="pay", case_id=case_id, data_json=data), timeout=60)
        while True:
            case = stubs.cases.GetCase(pb.GetCaseRequest(case_id=case_id), timeout=60).case
            if case.state != pb.CASE_STATE_RUNNING or case.open_incident_count:
                return case
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_connector_is_put_used_kept_over_a_restart_and_deleted(daemon: tuple[Sidecar, str]) -> None:
    running, base = daemon
    made = put(running, "bank", base_url=base)
    assert (made.kind, made.delivery, made.breaker_state, made.shared) == ("http", "keyed", "closed", False)
    with running.stubs() as stubs:
        register(stubs, DOCUMENT)
    assert pay(running, "one", 200).state == pb.CASE_STATE_COMPLETED
    running.kill()
    running.start()
    assert pay(running, "two", 201).state == pb.CASE_STATE_COMPLETED
    with running.stubs() as stubs:
        with pytest.raises(grpc.RpcError) as refused:
            stubs.admin.DeleteConnector(pb.DeleteConnectorRequest(name="bank"), timeout=60)
        assert code_of(refused.value) is grpc.StatusCode.FAILED_PRECONDITION
        stubs.admin.DeleteConnector(pb.DeleteConnectorRequest(name="bank", force=True), timeout=60)
        assert connectors(running) == {}
        with pytest.raises(grpc.RpcError) as absent:
            stubs.admin.DeleteConnector(pb.DeleteConnectorRequest(name="bank"), timeout=60)
        assert code_of(absent.value) is grpc.StatusCode.NOT_FOUND
    assert pay(running, "three", 200).open_incident_count == 1


def test_what_is_wrong_with_a_connector_is_said_with_its_path(daemon: tuple[Sidecar, str]) -> None:
    running, base = daemon
    for config, path in (
        ({"base_url": base, "timeout": "long"}, "config.timeout"),
        ({"base_url": base, "colour": "red"}, "config"),
        ({"base_url": "ftp://x"}, "config.base_url"),
        ({"base_url": base, "breaker": {"failures": 0}}, "config.breaker.failures"),
        ({"base_url": base, "headers": {"Authorization": "Bearer x"}}, "config.headers.Authorization"),
        ({"base_url": base, "auth": {"bearer": {"env": "HOME"}}}, "config.auth.bearer"),
        ({"base_url": base, "auth": {"bearer": {"file": "/etc/passwd"}}}, "config.auth.bearer"),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            put(running, "bank", **config)
        assert code_of(refused.value) is grpc.StatusCode.INVALID_ARGUMENT
        assert path in str(refused.value)


def test_dead_letters_through_every_door(daemon: tuple[Sidecar, str]) -> None:
    running, base = daemon
    put(running, "bank", base_url=base)
    with running.stubs() as stubs:
        register(stubs, DOCUMENT)
        for case_id in ("a", "b", "c"):
            assert pay(running, case_id, 422).open_incident_count == 1
        letters = stubs.admin.ListDeadLetters(pb.ListDeadLettersRequest(target="bank"), timeout=60).dead_letters
        assert [(each.case_id, each.task_id, each.kind, each.status) for each in letters] == [
            (case_id, "pay", "connector", "pending") for case_id in ("a", "b", "c")
        ]
        assert json.loads(letters[0].payload_json)["body"] == {"amount": 5}
        assert "http_422" in letters[0].last_error.message
        patch = pb.UpdateCaseDataRequest(case_id="a", data_json=b'{"status": 200}')
        stubs.cases.UpdateCaseData(patch, timeout=60)
        again = pb.RetryDeadLetterRequest(dead_letter_id=letters[0].dead_letter_id, request_id="again")
        assert stubs.admin.RetryDeadLetter(again, timeout=60).dead_letter.status == "retrying"
        ended = stubs.cases.WaitCase(pb.WaitCaseRequest(case_id="a"), timeout=60).case
        assert ended.state == pb.CASE_STATE_COMPLETED
    status, body = running.http(f"/api/v1/admin/dead-letters/{letters[1].dead_letter_id}/discard", b'{"reason": "x"}')
    assert (status, json.loads(body)["status"]) == (200, "discarded")
    place = ("--data-dir", str(running.data_dir))
    listed = run("dead-letter", "list", "-o", "json", *place)
    assert [each["case_id"] for each in json.loads(listed.stdout)["dead_letters"]] == ["c"]
    gone = run("dead-letter", "discard", letters[2].dead_letter_id, "--reason", "by hand", *place)
    assert (gone.returncode, "discarded" in gone.stdout) == (0, True), gone.stderr
    assert "No dead letters" in run("dead-letter", "list", *place).stdout


def test_doctor_probes_and_metrics_count(daemon: tuple[Sidecar, str], tmp_path: Path) -> None:
    running, base = daemon
    put(running, "bank", base_url=base, pool={"size": 3})
    with running.stubs() as stubs:
        register(stubs, DOCUMENT)
    assert pay(running, "one", 200).state == pb.CASE_STATE_COMPLETED
    place = ("--data-dir", str(running.data_dir))
    assert f"bank (http): {base} accepts connections" in run("doctor", *place).stdout
    file = tmp_path / "nowhere.json"
    file.write_text('{"base_url": "http://127.0.0.1:1"}')
    assert run("connector", "put", "nowhere", str(file), *place).returncode == 0
    found = connectors(running, probe=True)
    assert found["bank"].health == pb.HEALTH_STATE_HEALTHY
    assert found["nowhere"].health == pb.HEALTH_STATE_UNHEALTHY
    assert "not on the list" in found["nowhere"].message
    doctor = run("doctor", *place)
    assert (doctor.returncode, "nowhere (http)" in doctor.stdout) == (1, True)
    assert "nowhere" in run("connector", "list", *place).stdout
    with urllib.request.urlopen(f"http://{running.ready['metrics']}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    assert "knhk_connector_calls_total{} 1" in text
    assert 'knhk_connector_pool_size{connector="bank",kind="http"} 1' in text
