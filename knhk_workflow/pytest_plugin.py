"""Fixtures for the tests of whoever writes workflows. pytest finds them once the package is installed.

async def test_a_reminder_goes_out(workflow_engine):
    async with workflow_engine as engine:
        await engine.register_workflow(DOCUMENT)
        case = await engine.run_case("reminded")
        await engine.advance_time("14d")
        assert (await engine.get_case(case.case_id)).state == "completed"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from knhk_workflow import WorkflowEngine


@pytest.fixture
def workflow_engine() -> WorkflowEngine:
    """An engine in memory whose time stands still (it begins with 2026) until `advance_time`. Not open yet: use it as
    `async with`, in whatever event loop the test has."""
    from knhk_workflow import StateStore, VirtualClock, WorkflowEngine  # noqa: PLC0415 - every run of pytest loads this

    return WorkflowEngine(StateStore(":memory:"), clock=VirtualClock())
