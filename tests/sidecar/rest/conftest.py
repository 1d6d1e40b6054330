from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.cli.daemon import Daemon, running

REVIEW = {
    "id": "rest-review",
    "tasks": {"write": {"required_roles": ["author"]}, "review": {"required_roles": ["editor"]}},
    "flows": [{"from": "start", "to": "write"}, {"from": "write", "to": "review"}, {"from": "review", "to": "end"}],
}


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the package; tests use cases of their own."""
    with running(tmp_path_factory.mktemp("rest") / "data", "--no-samples") as found:
        yield found


@pytest.fixture(scope="package")
def http(daemon: Daemon) -> Iterator[httpx2.Client]:
    """A client of the daemon's REST port, with a workflow of two tasks registered."""
    with httpx2.Client(base_url=daemon.http, timeout=60) as client:
        assert client.post("/api/v1/workflows", json={"spec": REVIEW}).status_code == 200
        yield client
