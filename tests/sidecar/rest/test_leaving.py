"""Clients that go away while they are waiting."""

from __future__ import annotations

import time

import httpx2
import pytest

from tests.cli.daemon import Daemon

SOON_SECONDS = 10.0


def test_a_client_that_leaves_gives_its_place_back(daemon: Daemon, http: httpx2.Client) -> None:
    http.post("/cases:run", json={"spec_id": "rest-review", "case_id": "left"})
    for _ in range(3):
        with httpx2.Client(base_url=daemon.http, timeout=0.3) as client, pytest.raises(httpx2.ReadTimeout):
            client.get("/cases/left/wait", headers={"prefer": "wait=600"})
    end = time.monotonic() + SOON_SECONDS
    while "knhk_calls_waiting 0\n" not in httpx2.get(f"http://{daemon.ready['metrics']}/metrics").text:
        assert time.monotonic() < end, "nobody waits any more, but their calls do"
        time.sleep(0.05)
