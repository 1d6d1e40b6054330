"""What registering does with a verdict: refuses, allows when told to, keeps it; and it never holds the loop."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from knhk_sidecar import KgcSidecarService, SidecarConfig
from knhk_workflow import EngineLimits, StateStore, Unsound, VerifyBudget, WorkflowEngine
from knhk_workflow.core.or_join import compile_or_joins
from knhk_workflow.runtime import definitions
from tests.inside import parts

SIMPLE = {"id": "simple", "tasks": {"A": {}}, "flows": [{"from": "start", "to": "A"}, {"from": "A", "to": "end"}]}
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


def many_markings(count: int = 12) -> dict[str, object]:
    """An OR-join behind branches that may be cancelled; behind twelve, more markings than the budget allows."""
    branches = [f"B{number}" for number in range(count)]
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


async def test_undecided_is_a_warning_and_others_go_on_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verification is held until others have gone on; if it held them, it would wait for itself."""
    engine = WorkflowEngine(StateStore(str(tmp_path / "store")))
    await engine.open()
    begun, go = threading.Event(), threading.Event()
    real = definitions.verified

    def held(parsed: definitions.Parsed, budget: VerifyBudget) -> definitions.Verified:
        begun.set()
        assert go.wait(60), "the loop was held"
        return real(parsed, budget)

    await engine.register_workflow(SIMPLE)
    monkeypatch.setattr(definitions, "verified", held)
    registering = asyncio.create_task(engine.register_workflow(many_markings()))
    assert await asyncio.to_thread(begun.wait, 60)
    for _ in range(10):
        assert (await engine.run_case("simple")).state == "completed"
    assert not registering.done()
    go.set()
    view = await registering
    assert view.verdict == "undecided"
    assert [problem.severity for problem in view.findings if problem.code == "undecided"] == ["warning"]
    await engine.close()


async def test_the_budget_is_a_setting() -> None:
    verdicts = []
    for budget in (VerifyBudget(markings=5, steps=50), VerifyBudget()):
        async with WorkflowEngine(StateStore(":memory:"), limits=EngineLimits(verification=budget)) as engine:
            verdicts.append((await engine.validate_workflow(many_markings(4))).verdict)
    assert verdicts == ["undecided", "sound"]
    config = SidecarConfig(workflow_db_path=":memory:", verification_markings=100, verification_steps=1_000)
    async with KgcSidecarService(config) as service:
        engine_of_settings = service.workflow_engine()
        assert engine_of_settings is not None
        assert (await engine_of_settings.validate_workflow(many_markings())).verdict == "undecided"


async def test_or_joins_are_analysed_before_a_case_asks(tmp_path: Path) -> None:
    for opened in ("first", "again"):  # at registration, and when the definition is read again
        async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
            if opened == "first":
                await engine.register_workflow(many_markings(3), allow_unsound=True)
            model = await parts(engine).definitions.model("default", "many", 1)
            (join,) = compile_or_joins(model.root).values()
            assert join._analysis is not None


async def test_a_sound_workflow_says_so(tmp_path: Path) -> None:
    engine = WorkflowEngine(StateStore(str(tmp_path / "store")))
    view = await engine.register_workflow({"id": "fine", "tasks": ["A"], "flows": {"start": "A", "A": "end"}})
    assert (view.verdict, view.findings) == ("sound", ())
    await engine.close()
