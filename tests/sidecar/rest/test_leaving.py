"""Clients that go away while they wait, and a daemon that does."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.cli.daemon import Daemon, running
from tests.sidecar.rest.conftest import REVIEW

SOON_SECONDS = 60.0  # it takes moments; the machine may be shared


def test_a_client_that_leaves_gives_its_place_back(daemon: Daemon, http: httpx2.Client) -> None:
    http.post("/cases:run", json={"spec_id": "rest-review", "case_id": "left"})
    for _ in range(3):
        with (
            httpx2.Client(base_url=daemon.http, timeout=httpx2.Timeout(60, read=0.3)) as client,
            pytest.raises(httpx2.ReadTimeout),
        ):
            client.get("/cases/left/wait", headers={"prefer": "wait=600"})
    end = time.monotonic() + SOON_SECONDS
    while "knhk_calls_waiting 0\n" not in httpx2.get(f"http://{daemon.ready['metrics']}/metrics").text:
        assert time.monotonic() < end, "nobody waits any more, but their calls do"
        time.sleep(0.05)


def test_a_drain_does_not_wait_for_those_who_wait(tmp_path: Path) -> None:
    with (
        running(tmp_path / "data", "--no-samples", extra={"KGC_SIDECAR_DRAIN_SECONDS": "600"}) as daemon,
        httpx2.Client(base_url=daemon.http, timeout=120) as client,
        ThreadPoolExecutor() as pool,
    ):
        client.post("/workflows", json=REVIEW)
        client.post("/cases:run", json={"spec_id": "rest-review", "case_id": "open"})
        waiting = pool.submit(client.get, "/cases/open/wait", headers={"prefer": "wait=600"})
        while "knhk_calls_waiting 1\n" not in httpx2.get(f"http://{daemon.ready['metrics']}/metrics").text:
            time.sleep(0.02)
        began = time.monotonic()
        daemon.stop()
        assert time.monotonic() - began < SOON_SECONDS
        answer = waiting.result()
    assert (answer.status_code, answer.json()["reason"]) == (503, "LEAVING")
