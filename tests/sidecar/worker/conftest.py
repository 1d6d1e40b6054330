"""A server whose work is to be done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.sidecar.services.server import Sidecar, sidecar


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Sidecar]:
    """The services over a fresh engine."""
    async with sidecar(str(tmp_path / "store")) as made:
        yield made
