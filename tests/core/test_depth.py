"""Nets nested as deep as they may be, and cascades longer than one slice: everything still ends and still begins."""

from __future__ import annotations

import pytest

from knhk_workflow import WrongState
from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.decide import decide
from knhk_workflow.core.starting import DEPTH_MAX
from knhk_workflow.core.step import Step
from tests.core.cases import WORK, Document, Played, flow, path


def recursion(termination: str) -> Document:
    """A net that calls itself, until the work `L` at its lowest level."""
    level: Document = {
        "termination": termination,
        "tasks": {
            "A": {"split": "xor"},
            "R": {"net": "level", "in": {"d": "data.d - 1"}},
            "B": WORK,
            "L": {**WORK, "compensate": "U"},
            "U": WORK,
        },
        "flows": [
            *path("start", "A"),
            flow("A", "R", "data.d > 0"),
            flow("A", "L", default=True),
            *path("R", "end"),
            *path("L", "B", "end"),
        ],
    }
    return {"tasks": {"Top": {"net": "level"}}, "flows": path("start", "Top", "end"), "nets": {"level": level}}


def deep(termination: str) -> Played:
    case = Played(recursion(termination), {"d": DEPTH_MAX - 1})
    assert len(case.case.nets) == DEPTH_MAX + 1
    return case


@pytest.mark.parametrize("termination", ["implicit", "explicit"])
def test_the_deepest_recursion_unwinds(termination: str) -> None:
    case = deep(termination)
    case.complete("L")
    case.complete("B")
    assert case.case.state == "completed"


@pytest.mark.parametrize("termination", ["implicit", "explicit"])
def test_the_deepest_recursion_can_be_cancelled_and_undone(termination: str) -> None:
    early = deep(termination)
    early.do(c.CancelCase())
    assert (early.case.state, early.case.activations) == ("cancelled", {})
    late = deep(termination)
    late.complete("L")
    late.do(c.CancelCase())
    assert (late.case.state, late.open) == ("running", ["U"])
    late.complete("U")
    assert (late.case.state, len(late.case.nets)) == ("cancelled", 1)


class Sliced(Played):
    """A case that stops after its first slice."""

    def _took(self, step: Step) -> None:
        self.history.extend(step.events)


def outrun(waiting: Document) -> Sliced:
    """In the middle of a cascade: `Rival` has taken the token that `First` waits over, and First is not told yet."""
    crowd = [f"T{number:03}" for number in range(300)]
    tasks = {"Begin": {}, "First": waiting, "Rival": {}, **{name: {} for name in crowd}}
    flows = [*path("start", "Begin", "p", "First", "end"), *path("p", "Rival", "end")]
    for name in crowd:
        flows += path("Begin", name, "end")
    case = Sliced({"conditions": ["p"], "tasks": tasks, "flows": flows}, {"n": "three"})
    assert case.case.ready
    assert "First" in case.case.root.active
    assert "p" not in case.case.root.marking
    return case


def test_a_signal_does_not_start_what_has_lost_its_token() -> None:
    case = outrun({"trigger": {"name": "s", "mode": "persistent"}})
    step = decide(case.case, case.model, c.Signal("s"), 2_000)
    assert [event.outcome for event in step.events if isinstance(event, e.TriggerReceived)] == ["kept"]
    assert "First" not in step.case.root.active


def test_nor_is_it_completed_or_resolved() -> None:
    case = outrun({**WORK, "instances": {"min": 2}})
    decide(case.case, case.model, c.CompleteInstances("First"), 2_000)
    assert "First" not in case.case.root.active
    case = outrun({**WORK, "in": {"x": "data.missing"}})
    with pytest.raises(WrongState, match="whose tokens others have taken"):
        case.refused(c.ResolveIncident(1, "complete"))
