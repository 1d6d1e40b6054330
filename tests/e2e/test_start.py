"""A daemon that cannot start says why in one line, ends with its exit code, and harms nobody."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.identity import dev_ca
from tests.e2e.sidecar import (
    CALL_SECONDS,
    FREE,
    START_SECONDS,
    STOP_SECONDS,
    environment,
    history,
    register,
    run,
    sidecar,
)
from tests.e2e.sidecar import command as command_line

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STORE = 5
EXIT_LISTEN = 6
ALL_FREE = tuple(part for name in ("grpc", "http", "metrics") for part in (f"--{name}-address", FREE))


@pytest.mark.long
@pytest.mark.parametrize("command", ["serve", "dev"])
def test_a_second_daemon_on_a_directory_is_refused(tmp_path: Path, command: str) -> None:
    with sidecar(tmp_path) as daemon, daemon.stubs() as stubs:
        register(stubs)
        stubs.cases.RunCase(pb.RunCaseRequest(spec_id="hello", case_id="case"), timeout=CALL_SECONDS)
        second = run(command, "--data-dir", str(daemon.data_dir), *ALL_FREE)
        assert second.returncode == EXIT_STORE, second.stderr
        assert f"process {daemon.pid}" in second.stderr + second.stdout
        assert "Traceback" not in second.stderr
        stubs.cases.RunCase(pb.RunCaseRequest(spec_id="hello", case_id="another"), timeout=CALL_SECONDS)
        assert len(history(stubs, "case")) == len(history(stubs, "another"))
        assert daemon.stop() == 0
        daemon.start()
        assert daemon.stop() == 0


def test_a_wrong_flag_is_named(tmp_path: Path) -> None:
    done = run("serve", "--grpc-adress", FREE, cwd=tmp_path)
    assert done.returncode == EXIT_USAGE
    assert "--grpc-adress" in done.stderr
    assert "--grpc-address" in done.stderr, "the nearest one is offered"
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings_are_told_all_at_once(tmp_path: Path) -> None:
    done = run(
        "serve",
        "--grpc-address",
        "127.0.0.1:seventy",
        extra={"KGC_SIDECAR_BATCH_SIZE": "0", "KGC_SIDECAR_ADRESS": "x", "KGC_SIDECAR_KMS_PROVIDER": "vault"},
        cwd=tmp_path,
    )
    assert done.returncode == EXIT_USAGE
    for told in ("--address", "KGC_SIDECAR_BATCH_SIZE", "KGC_SIDECAR_ADRESS", "KGC_SIDECAR_KMS_PROVIDER"):
        assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("listener", ["grpc", "http", "metrics"])
def test_a_taken_port_is_named(tmp_path: Path, listener: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "--data-dir", str(tmp_path / "data"), *ALL_FREE, f"--{listener}-address", address)
    assert done.returncode == EXIT_LISTEN, done.stderr
    assert address in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["serve", "dev"])
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("not a directory")
    wanted = tmp_path / "file" / "data"
    done = run(command, "--data-dir", str(wanted), *ALL_FREE)
    assert done.returncode in (EXIT_FAILED, EXIT_STORE), done.stderr
    assert str(wanted) in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "not a directory"


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "data" / "workflow_db"
    foreign.mkdir(parents=True)
    (foreign / "holiday.jpg").write_bytes(b"sea")
    done = run("serve", "--data-dir", str(tmp_path / "data"), *ALL_FREE)
    assert done.returncode == EXIT_STORE
    assert "holiday.jpg" in done.stderr + done.stdout
    assert [file.name for file in foreign.iterdir()] == ["holiday.jpg"]


def test_production_with_certificates_answers_who_has_one(tmp_path: Path) -> None:
    authority = dev_ca.open_authority(tmp_path / "ca")
    server, client = authority.issue_server(), authority.issue_client()
    config = tmp_path / "sidecar.toml"
    config.write_text(f'[tls]\nenabled = true\ncert = "{server.cert}"\nkey = "{server.key}"\nca = "{authority.ca}"\n')
    ready = tmp_path / "ready.json"
    line = command_line(
        "serve", "--config", str(config), "--data-dir", str(tmp_path / "data"), "--ready-file", str(ready), *ALL_FREE
    )
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment())
    try:
        until = time.monotonic() + START_SECONDS
        while not ready.exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        address = json.loads(ready.read_text())["grpc"]
        credentials = grpc.ssl_channel_credentials(
            authority.ca.read_bytes(), client.key.read_bytes(), client.cert.read_bytes()
        )
        with grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", "localhost")]) as channel:
            status = pb.AdminServiceStub(channel).GetStatus(
                pb.GetStatusRequest(omit_document_schema=True), timeout=CALL_SECONDS
            )
        assert status.principal == str(client.spiffe_id)
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
