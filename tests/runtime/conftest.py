"""Engines over every kind of store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from knhk_workflow import WorkflowEngine
from tests.runtime.place import KINDS, Place, registered


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A fresh place of each kind."""
    return Place(request.param, tmp_path)


@pytest.fixture
async def engine(place: Place) -> AsyncIterator[WorkflowEngine]:
    """An open engine with the small workflows registered."""
    async with place.engine() as opened:
        await registered(opened)
        yield opened
