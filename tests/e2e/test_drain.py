"""SIGTERM under load: the daemon finishes what it took, ends with 0 well before its grace, and loses nothing."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from tests.e2e.load import Load, check
from tests.e2e.sidecar import CALL_SECONDS, code_of, register, sidecar

GRACE_SECONDS = 600  # ten times as long as `stop` waits for the end


def patient(directory: Path) -> tuple[str, str]:
    """The arguments of a daemon that would wait long for what does not end."""
    config = directory / "knhk.toml"
    config.write_text(f"drain_seconds = {GRACE_SECONDS}\n")
    return "--config", str(config)


@pytest.mark.long
def test_sigterm_under_load_drains(tmp_path: Path) -> None:
    with sidecar(tmp_path, *patient(tmp_path)) as daemon:
        with daemon.stubs() as stubs:
            register(stubs)
        load = Load(daemon)
        load.start()
        load.await_operations(100)
        began = time.monotonic()
        assert daemon.stop() == 0, daemon.log
        took = time.monotonic() - began
        load.stop()
        daemon.start()
        with daemon.stubs() as stubs:
            print(f"drained in {took:.2f} s, {check(stubs, load.acknowledged)} operations compared")


@pytest.mark.long
def test_an_open_watch_does_not_hold_the_drain(tmp_path: Path) -> None:
    with sidecar(tmp_path, *patient(tmp_path)) as daemon, daemon.stubs() as stubs:
        register(stubs)
        stubs.cases.RunCase(pb.RunCaseRequest(spec_id="hello", case_id="case"), timeout=CALL_SECONDS)
        stream = stubs.cases.WatchCase(pb.WatchCaseRequest(case_id="case"))
        assert next(iter(stream)).event.event_type == "case_created"
        assert daemon.stop() == 0
        with pytest.raises(grpc.RpcError) as ended:
            for _ in stream:
                pass
        assert code_of(ended.value) is grpc.StatusCode.UNAVAILABLE
        daemon.start()
        assert daemon.stop() == 0
