"""A real daemon in this process, on free loopback ports, with a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from knhk_sidecar.app import Sidecar
from knhk_sidecar.config import SidecarConfig
from tests.sidecar.server.client import ANY_PORT


@pytest.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[Sidecar]:
    """Developer mode: certificates below tmp_path/data/dev, mTLS, plain and HTTP ports, reflection."""
    config = SidecarConfig(
        dev=True,
        data_dir=str(tmp_path / "data"),
        address=ANY_PORT,
        plain_address=ANY_PORT,
        http_address=ANY_PORT,
        metrics_address=ANY_PORT,
        drain_seconds=5,
    )
    async with Sidecar(config) as running:
        yield running


@pytest.fixture
async def guarded(sidecar: Sidecar, tmp_path: Path) -> AsyncIterator[Sidecar]:
    """Production with the certificates of `sidecar`'s authority, and a plain port where only health answers."""
    dev = tmp_path / "data" / "dev"
    config = SidecarConfig(
        workflow_db_path=":memory:",
        tls_enabled=True,
        tls_cert=str(dev / "server.pem"),
        tls_key=str(dev / "server.key"),
        tls_ca=str(dev / "ca.pem"),
        address=ANY_PORT,
        health_address=ANY_PORT,
        http_address="",
        metrics_address="",
        drain_seconds=5,
    )
    async with Sidecar(config) as running:
        yield running
