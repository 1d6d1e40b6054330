from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.cli.daemon import Daemon, running
from tests.sidecar.behaviour.transports import OverGrpc, OverRest, Transport


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for both transports; tests use cases of their own."""
    with running(tmp_path_factory.mktemp("behaviour") / "data") as found:
        yield found


@pytest.fixture(scope="package")
def both(daemon: Daemon) -> Iterator[tuple[Transport, Transport]]:
    """gRPC over mTLS, and REST."""
    with daemon.channel() as channel, httpx2.Client(base_url=daemon.http, timeout=60) as http:
        yield OverGrpc(channel), OverRest(http)


@pytest.fixture(params=["grpc", "rest"])
def transport(request: pytest.FixtureRequest, both: tuple[Transport, Transport]) -> Transport:
    """Each in turn."""
    return both[request.param == "rest"]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """An id that no other test has."""
    return str(request.node.name).replace("[", "-").replace("]", "")
