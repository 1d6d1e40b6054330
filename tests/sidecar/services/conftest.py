"""A running sidecar on a fresh LevelDB store, and a few workflows to run on it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from knhk_sidecar.api import pb
from tests.sidecar.services.server import Sidecar, sidecar

APPROVAL = {
    "id": "approval",
    "name": "Approval",
    "tasks": {"approve": {"required_roles": ["manager"]}, "notify": {}},
    "flows": [
        {"from": "start", "to": "approve"},
        {"from": "approve", "to": "notify"},
        {"from": "notify", "to": "end"},
    ],
}
ROUTING = {"id": "routing", "tasks": {"a": {}}, "flows": [{"from": "start", "to": "a"}, {"from": "a", "to": "end"}]}
CHOICE = {
    "id": "choice",
    "tasks": {"pick": {"split": "xor"}, "big": {}, "small": {}},
    "flows": [
        {"from": "start", "to": "pick"},
        {"from": "pick", "to": "big", "when": "data.amount > 100"},
        {"from": "pick", "to": "small", "default": True},
        {"from": "big", "to": "end"},
        {"from": "small", "to": "end"},
    ],
}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Sidecar]:
    async with sidecar(str(tmp_path / "db")) as found:
        for document in (APPROVAL, ROUTING, CHOICE):
            await found.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=json.dumps(document).encode()))
        yield found


@pytest.fixture
async def engineless() -> AsyncIterator[Sidecar]:
    async with sidecar("", engine_on=False) as found:
        yield found
