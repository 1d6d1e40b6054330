"""A suspended case: results are accepted and wait, nothing begins, and resuming takes up what waited."""

from __future__ import annotations

from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.decide import decide
from tests.core.cases import WORK, Document, Played, flow, path

NET: Document = {
    "tasks": {"A": WORK, "B": WORK, "C": WORK, "D": {**WORK, "join": "and"}},
    "flows": [*path("start", "A", "B", "D", "end"), *path("A", "C", "D")],
}


def both_started() -> Played:
    played = Played(NET)
    played.complete("A")
    played.do(c.StartItem(played.ref("B")))
    played.do(c.StartItem(played.ref("C")))
    return played


def test_results_wait_until_the_case_is_resumed() -> None:
    played = both_started()
    played.do(c.SuspendCase("audit"))
    assert played.case.reason == "audit"
    assert [type(event) for event in played.complete("B", {"b": 1})] == [e.ItemCompleted]
    assert [type(event) for event in played.do(c.SkipItem(played.ref("C")))] == [e.ItemSkipped]
    assert played.data == {}
    assert played.open == []
    assert "its work is done and it goes on when the case is resumed" in played.explained("B").sentence
    played.do(c.ResumeCase())
    assert played.data == {"b": 1}
    assert played.open == ["D"]


def test_a_failure_while_suspended_is_an_incident_that_waits() -> None:
    played = both_started()
    played.do(c.SuspendCase())
    played.do(c.FailItem(played.ref("B"), "broken"))
    assert played.incidents == ["task_failed"]
    played.do(c.ResumeCase())
    assert played.incidents == ["task_failed"]
    played.resolve("skip")
    played.complete("C")
    assert played.open == ["D"]


def test_a_choice_that_fails_on_resuming_is_an_incident() -> None:
    played = Played(
        {
            "tasks": {"A": WORK, "B": WORK},
            "flows": [*path("start", "A"), flow("A", "B", "data.n > 1"), flow("A", "end", "data.n < 1")],
        }
    )
    played.do(c.StartItem(played.ref("A")))
    played.do(c.SuspendCase())
    played.complete("A")
    played.do(c.ResumeCase())
    assert played.incidents == ["guard_error"]
    played.do(c.SuspendCase())
    played.do(c.UpdateCaseData(b'{"n":2}'))
    played.do(c.ResumeCase())
    assert played.incidents == ["guard_error"]
    played.resolve("retry")
    assert played.open == ["B"]


def test_a_suspended_case_can_be_cancelled_with_results_waiting() -> None:
    played = both_started()
    played.do(c.SuspendCase())
    played.complete("B")
    played.do(c.CancelCase())
    assert played.case.state == "cancelled"
    assert played.case.activations == {}


def test_a_suspended_case_fails_by_its_incident() -> None:
    played = both_started()
    played.do(c.SuspendCase())
    played.do(c.FailItem(played.ref("B"), "broken"))
    played.resolve("fail_case")
    assert played.case.state == "failed"


def test_explicit_ends_wait_too() -> None:
    played = Played(
        {
            "termination": "explicit",
            "tasks": {"A": {}, "B": WORK, "C": WORK},
            "flows": [*path("start", "A", "B", "end"), *path("A", "C", "end")],
        }
    )
    played.do(c.StartItem(played.ref("B")))
    played.do(c.StartItem(played.ref("C")))
    played.do(c.SuspendCase())
    played.complete("B")
    played.complete("C")
    assert played.case.state == "suspended"
    played.do(c.ResumeCase())
    assert played.case.state == "completed"


def test_a_paused_cascade_stands_still_while_the_case_is_suspended() -> None:
    played = Played(
        {
            "tasks": {"A": WORK, "B": {"out": {"n": "data.n + 1"}}, "Again": {}, "C": WORK},
            "flows": [
                *path("start", "A", "B"),
                flow("B", "Again", "data.n < 500"),
                flow("B", "C", default=True),
                *path("Again", "B"),
            ],
        },
        {"n": 0},
    )
    decide(played.case, played.model, c.CompleteItem(played.ref("A")), 2_000)
    assert played.case.ready
    decide(played.case, played.model, c.SuspendCase(), 2_001)
    assert decide(played.case, played.model, c.Continue(), 2_002).events == []
    decide(played.case, played.model, c.ResumeCase(), 2_003)
    while played.case.ready:
        decide(played.case, played.model, c.Continue(), 2_004)
    assert played.open == ["C"]
    assert played.data == {"n": 500}


def test_a_rival_whose_token_was_taken_away_meanwhile_is_withdrawn_on_resuming() -> None:
    many = {**WORK, "instances": {"min": 2, "max": 2}}
    net: Document = {
        "tasks": {"A": many, "B": WORK},
        "flows": [*path("start", "A", "end"), *path("start", "B", "end")],
    }
    played = Played(net)
    assert played.open == ["A", "A", "B"]
    played.do(c.SuspendCase())
    played.do(c.CancelInstances("A"))
    assert played.open == ["B"], "nothing begins or ends by itself while the case is suspended"
    played.do(c.ResumeCase())
    assert played.open == []
    assert played.case.state == "completed"
