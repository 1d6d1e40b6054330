"""SIGTERM under load: the daemon finishes what it took, ends with 0 well before its grace, and loses nothing."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from tests.e2e.load import Load, check
from tests.e2e.sidecar import code_of, register, sidecar

GRACE_SECONDS = 20.0  # the default of drain_seconds


@pytest.mark.long
def test_sigterm_under_load_drains(tmp_path: Path) -> None:
    with sidecar(tmp_path) as daemon:
        with daemon.stubs() as stubs:
            register(stubs)
        load = Load(daemon)
        load.start()
        load.await_operations(100)
        began = time.monotonic()
        assert daemon.stop() == 0, daemon.log
        took = time.monotonic() - began
        load.stop()
        assert took < GRACE_SECONDS / 2
        daemon.start()
        with daemon.stubs() as stubs:
            print(f"drained in {took:.2f} s, {check(stubs, load.acknowledged)} operations compared")


@pytest.mark.long
def test_an_open_watch_does_not_hold_the_drain(tmp_path: Path) -> None:
    with sidecar(tmp_path) as daemon, daemon.stubs() as stubs:
        register(stubs)
        stubs.cases.RunCase(pb.RunCaseRequest(spec_id="hello", case_id="case"), timeout=10)
        stream = stubs.cases.WatchCase(pb.WatchCaseRequest(case_id="case"))
        assert next(iter(stream)).event.event_type == "case_created"
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < GRACE_SECONDS / 2
        with pytest.raises(grpc.RpcError) as ended:
            for _ in stream:
                pass
        assert code_of(ended.value) is grpc.StatusCode.UNAVAILABLE
        daemon.start()
        assert daemon.stop() == 0
