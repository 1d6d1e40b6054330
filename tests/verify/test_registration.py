"""What registering does with a verdict: refuses, allows when told to, keeps it; and it never holds the loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from knhk_workflow.errors import Unsound
from knhk_workflow.runtime.engine import WorkflowEngine
from knhk_workflow.runtime.state_store import StateStore

STUCK = {
    "id": "stuck",
    "tasks": {"A": {}, "B": {"required_roles": ["r"]}, "C": {"required_roles": ["r"]}, "D": {"join": "and"}},
    "flows": [
        {"from": "start", "to": "A"},
        {"from": "A", "to": "B", "when": "data.x"},
        {"from": "A", "to": "C", "default": True},
        {"from": "B", "to": "D"},
        {"from": "C", "to": "D"},
        {"from": "D", "to": "end"},
    ],
}


def many_markings() -> dict[str, object]:
    """An OR-join behind twelve branches that may be cancelled: more markings than the budget allows."""
    branches = [f"B{number}" for number in range(12)]
    tasks: dict[str, object] = {"A": {}, "J": {"join": "or"}, "X": {"cancels": branches}}
    tasks |= {name: {"required_roles": ["r"]} for name in branches}
    flows: list[dict[str, object]] = [
        {"from": "start", "to": "A"},
        {"from": "J", "to": "end"},
        {"from": "A", "to": "X"},
    ]
    for name in branches:
        flows += [{"from": "A", "to": name}, {"from": name, "to": "J"}]
    return {"id": "many", "tasks": tasks, "flows": [*flows, {"from": "X", "to": "end"}]}


async def test_an_unsound_workflow_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    engine = WorkflowEngine(StateStore(str(tmp_path / "store")))
    checked = await engine.validate_workflow(STUCK)
    assert checked.verdict == "unsound"
    with pytest.raises(Unsound) as refused:
        await engine.register_workflow(STUCK)
    problem = refused.value.findings[0]
    assert (problem.path, problem.code) == ("tasks.D.join", "deadlock")
    assert problem.trace == ("A", "B", "left: 1 token in 'B->D'; 'D' still waits for 'C->D'")

    allowed = await engine.register_workflow(STUCK, allow_unsound=True)
    assert (allowed.version, allowed.verdict) == (1, "unsound")
    again = await engine.register_workflow(STUCK)
    assert (again.version, again.created) == (1, False), "it is there already"
    await engine.close()

    reopened = WorkflowEngine(StateStore(str(tmp_path / "store")))
    kept = await reopened.get_workflow("stuck")
    assert kept.verdict == "unsound"
    assert kept.findings == allowed.findings
    await reopened.close()


async def test_undecided_is_a_warning_and_others_go_on_meanwhile(tmp_path: Path) -> None:
    engine = WorkflowEngine(StateStore(str(tmp_path / "store")))
    await engine.open()
    registering = asyncio.create_task(engine.register_workflow(many_markings()))
    turns = 0
    while not registering.done():
        await asyncio.sleep(0.01)
        turns += 1
    view = await registering
    assert view.verdict == "undecided"
    assert [problem.severity for problem in view.findings if problem.code == "undecided"] == ["warning"]
    assert turns > 5, "the loop was held"
    await engine.close()


async def test_a_sound_workflow_says_so(tmp_path: Path) -> None:
    engine = WorkflowEngine(StateStore(str(tmp_path / "store")))
    view = await engine.register_workflow({"id": "fine", "tasks": ["A"], "flows": {"start": "A", "A": "end"}})
    assert (view.verdict, view.findings) == ("sound", ())
    await engine.close()
