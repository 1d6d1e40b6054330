"""A real daemon in this process with narrow limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from knhk_sidecar.app import Addresses, Sidecar
from knhk_sidecar.client import Endpoint
from knhk_sidecar.config import SidecarConfig
from tests.sidecar.server.client import ANY_PORT

RATE = 40.0
BURST = 10


@pytest.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[Sidecar]:
    """Developer mode, with a low rate for each caller and small messages."""
    config = SidecarConfig(
        dev=True,
        data_dir=str(tmp_path / "data"),
        address=ANY_PORT,
        plain_address=ANY_PORT,
        http_address=ANY_PORT,
        metrics_address="",
        rate_limit_per_second=RATE,
        rate_limit_burst=BURST,
        max_message_bytes=64 * 1024,
        max_metadata_bytes=8_192,
        max_stream_messages=20,
        max_streams_per_connection=15,
        drain_seconds=2,
    )
    async with Sidecar(config) as running:
        yield running


def endpoint_of(addresses: Addresses) -> Endpoint:
    """How the developer's client reaches it."""
    ca, cert, key = (Path(path) for path in (addresses.ca, addresses.cert, addresses.key))
    return Endpoint(addresses.grpc, ca, cert, key, "localhost")


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until it holds; AssertionError when it does not come to pass."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "it did not come to pass"
        await asyncio.sleep(0.005)
