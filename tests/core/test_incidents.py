"""Every kind of incident: what raises it, that the case goes on elsewhere, and each way out of it."""

from __future__ import annotations

import pytest

from knhk_workflow import WorkflowError, WrongState
from knhk_workflow.core import commands as c
from knhk_workflow.core.case import TOKENS_MAX
from knhk_workflow.core.starting import OPEN_ITEMS_MAX
from tests.core.cases import WORK, Document, Played, flow, path

CHOICE: Document = {
    "tasks": {"A": WORK, "B": WORK, "C": WORK},
    "flows": [*path("start", "A"), flow("A", "B", "data.n > 1"), flow("A", "C", "data.n < 1"), *path("B", "end")],
}


def test_guard_error_is_retried_with_corrected_data() -> None:
    played = Played(CHOICE)
    played.complete("A", {"m": 1})
    assert played.incidents == ["guard_error"]
    assert played.data == {"m": 1}
    assert played.open == []
    played.resolve("retry")
    assert played.incidents == ["guard_error"]
    played.do(c.UpdateCaseData(b'{"n":2}'))
    played.resolve("retry")
    assert played.open == ["B"]
    assert played.incidents == []


def test_guard_error_is_completed_with_data() -> None:
    played = Played(CHOICE)
    played.complete("A")
    played.resolve("complete", {"n": 0})
    assert played.open == ["C"]
    assert played.data == {"n": 0}


@pytest.mark.parametrize("data", [{}, {"n": 1}])
def test_a_failed_choice_cannot_be_skipped(data: object) -> None:
    played = Played(CHOICE, data)
    played.complete("A")
    with pytest.raises(WrongState):
        played.refused(c.ResolveIncident(1, "skip"))
    played.resolve("fail_case")
    assert played.case.state == "failed"


def test_no_branch_names_the_guards() -> None:
    played = Played(CHOICE, {"n": 1})
    played.complete("A")
    assert played.incidents == ["no_branch"]
    assert "'data.n > 1', 'data.n < 1' are all false" in played.case.incidents[1].message


def mapped(**mappings: str) -> Document:
    task = {**WORK, **{key: {"x": text} for key, text in mappings.items()}}
    return {"tasks": {"A": task, "B": WORK}, "flows": path("start", "A", "B", "end")}


def test_input_error() -> None:
    document = mapped(**{"in": "data.n"})
    played = Played(document)
    assert played.incidents == ["input_error"]
    assert played.open == []
    played.do(c.UpdateCaseData(b'{"n":3}'))
    played.resolve("retry")
    assert played.open == ["A"]
    assert [run.data for _, run in played.case.open_work()] == [b'{"x":3}']

    skipped = Played(document)
    skipped.resolve("skip")
    assert skipped.open == ["B"]

    done = Played(document)
    done.resolve("complete", {"x": 1})
    assert done.open == ["B"]
    assert done.data == {"x": 1}


def test_output_error_keeps_the_output_for_the_retry() -> None:
    document = mapped(out="data.price * data.rate")
    played = Played(document)
    played.complete("A", {"price": 2})
    assert played.incidents == ["output_error"]
    assert played.data == {}
    played.do(c.UpdateCaseData(b'{"rate":3}'))
    played.resolve("retry")
    assert played.data == {"rate": 3, "x": 6}
    assert played.open == ["B"]

    skipped = Played(document)
    skipped.complete("A", {"price": 2})
    skipped.resolve("skip")
    assert skipped.data == {}
    assert skipped.open == ["B"]


def test_output_error_of_a_routing_task() -> None:
    counting: Document = {"A": {"out": {"n": "data.n + 1"}}, "B": WORK}
    document: Document = {"tasks": counting, "flows": path("start", "A", "B", "end")}
    played = Played(document)
    assert played.incidents == ["output_error"]
    played.do(c.UpdateCaseData(b'{"n":1}'))
    played.resolve("retry")
    assert played.data == {"n": 2}
    assert played.open == ["B"]


def test_task_failed_is_retried_as_a_new_attempt() -> None:
    played = Played({"tasks": {"A": WORK}, "flows": path("start", "A", "end")})
    first = played.ref("A")
    played.do(c.FailItem(first, "broken", "no paper"))
    assert played.incidents == ["task_failed"]
    assert played.case.incidents[1].message == "task 'A' failed: broken: no paper"
    assert played.case.state == "running"
    played.resolve("retry")
    second = played.ref("A")
    assert second == c.ItemRef(first.activation, first.instance, 2)
    with pytest.raises(WorkflowError):
        played.refused(c.CompleteItem(first))
    played.do(c.CompleteItem(second))
    assert played.case.state == "completed"


def test_task_failed_is_skipped_completed_or_fails_the_case() -> None:
    document: Document = {"tasks": {"A": WORK}, "flows": path("start", "A", "end")}
    outcomes = {}
    for action in ("skip", "complete", "fail_case"):
        played = Played(document)
        played.do(c.FailItem(played.ref("A"), "broken"))
        played.resolve(action, {"done": True} if action == "complete" else None)
        outcomes[action] = (played.case.state, played.data)
    assert outcomes == {
        "skip": ("completed", {}),
        "complete": ("completed", {"done": True}),
        "fail_case": ("failed", {}),
    }


def test_an_incident_stops_only_its_own_branch() -> None:
    played = Played({"tasks": {"A": {}, "B": WORK, "C": WORK}, "flows": [*path("start", "A", "B"), flow("A", "C")]})
    played.do(c.FailItem(played.ref("B"), "broken"))
    played.complete("C")
    assert played.case.state == "running"
    assert played.incidents == ["task_failed"]
    played.resolve("skip")
    assert played.case.state == "completed"


def test_on_incident_fail_fails_the_case_with_the_reason() -> None:
    played = Played({**CHOICE, "on_incident": "fail"}, {"n": 1})
    played.complete("A")
    assert played.case.state == "failed"
    assert "no outgoing flow" in played.case.reason
    assert played.incidents == []
    assert played.case.activations == {}


STUCK: Document = {
    "tasks": {"A": WORK, "B": WORK, "C": WORK, "J": {**WORK, "join": "and"}},
    "flows": [
        *path("start", "A"),
        flow("A", "B", "data.b"),
        flow("A", "C", default=True),
        *path("B", "J", "end"),
        *path("C", "J"),
    ],
}


def test_stuck_names_where_the_tokens_are() -> None:
    played = Played(STUCK, {"b": True})
    played.complete("A")
    played.complete("B")
    assert played.incidents == ["stuck"]
    assert "1 in 'B->J'" in played.case.incidents[1].message
    for action in ("skip", "complete"):
        with pytest.raises(WrongState):
            played.refused(c.ResolveIncident(1, action))
    played.resolve("retry")
    assert played.incidents == ["stuck"]
    played.resolve("fail_case")
    assert played.case.state == "failed"


def test_a_stuck_sub_net_leaves_the_rest_alone() -> None:
    inner = {key: value for key, value in STUCK.items() if key != "id"}
    played = Played(
        {
            "tasks": {"Fork": {}, "Part": {"net": "inner"}, "Other": WORK},
            "flows": [*path("start", "Fork", "Part", "end"), flow("Fork", "Other")],
            "nets": {"inner": inner},
        },
        {"b": True},
    )
    played.complete("A")
    played.complete("B")
    assert played.incidents == ["stuck"]
    assert played.open == ["Other"]
    played.complete("Other")
    assert played.case.state == "running"
    played.do(c.CancelCase())
    assert played.incidents == []


def test_an_explicit_net_whose_end_is_never_reached_is_stuck() -> None:
    played = Played({"termination": "explicit", "tasks": {"A": WORK}, "flows": path("start", "A")})
    played.complete("A")
    assert played.incidents == ["stuck"]
    assert "its end was never reached" in played.case.incidents[1].message


@pytest.mark.long
def test_settle_limit_stops_a_loop_that_never_asks_the_outside() -> None:
    played = Played(
        {
            "tasks": {"A": {}, "Again": {}, "B": WORK},
            "flows": [
                *path("start", "A"),
                flow("A", "Again", "data.again"),
                flow("A", "B", default=True),
                *path("Again", "A"),
            ],
        },
        {"again": True},
    )
    assert played.incidents == ["settle_limit"]
    assert played.case.state == "running"
    played.do(c.UpdateCaseData(b'{"again":false}'))
    played.resolve("retry")
    assert played.incidents == []
    assert played.open == ["B"]


def test_token_limit_stops_a_loop_that_produces_faster_than_it_consumes() -> None:
    played = Played(
        {
            "tasks": {"A": {}, "B": {}},
            "conditions": ["kept"],
            "flows": [*path("start", "A", "B"), flow("A", "kept"), *path("B", "A")],
        }
    )
    assert played.incidents == ["token_limit"]
    assert played.case.tokens() == TOKENS_MAX + 1
    played.do(c.CancelCase())
    assert played.case.tokens() == 0


def test_depth_limit_keeps_what_lies_above() -> None:
    played = Played(
        {
            "tasks": {"Begin": {"net": "deep"}},
            "flows": path("start", "Begin", "end"),
            "nets": {
                "deep": {
                    "tasks": {"Ask": {}, "R": {"net": "deep"}},
                    "flows": [
                        *path("start", "Ask"),
                        flow("Ask", "R", "data.deeper"),
                        flow("Ask", "end", default=True),
                        *path("R", "end"),
                    ],
                }
            },
        },
        {"deeper": True},
    )
    assert played.incidents == ["depth_limit"]
    assert len(played.case.nets) == 257
    played.resolve("retry")
    assert played.incidents == ["depth_limit"]
    played.resolve("skip")
    assert played.case.state == "completed"


def test_data_limit_refuses_the_output_and_keeps_the_data() -> None:
    played = Played({"tasks": {"A": WORK, "B": WORK}, "flows": path("start", "A", "B", "end")})
    played.complete("A", {"a": "x" * 1_500_000})
    played.complete("B", {"b": "y" * 1_500_000})
    assert played.incidents == ["data_limit"]
    assert set(played.data) == {"a"}  # type: ignore[call-overload]  # an object
    played.do(c.UpdateCaseData(b'{"a":""}'))
    played.resolve("retry")
    assert played.case.state == "completed"
    assert set(played.data) == {"a", "b"}  # type: ignore[call-overload]  # an object


def test_data_and_outputs_beyond_the_limit_are_refused() -> None:
    played = Played({"tasks": {"A": WORK}, "flows": path("start", "A", "end")})
    big = b'{"x":"' + b"x" * 2_200_000 + b'"}'
    with pytest.raises(WorkflowError, match="limited to"):
        played.refused(c.UpdateCaseData(big))
    with pytest.raises(WorkflowError, match="limited to"):
        played.refused(c.CompleteItem(played.ref("A"), big))


@pytest.mark.long
def test_open_items_limit_spans_all_nets() -> None:
    part: Document = {
        "tasks": {"A": {"out": {"n": "data.n + 1"}}, "Again": {}, "Done": {}, "W": WORK},
        "conditions": ["work"],
        "flows": [
            *path("start", "A", "work", "W", "end"),
            *path("A", "Again"),
            flow("Again", "A", "data.n < 900"),
            flow("Again", "Done", default=True),
            *path("Done", "end"),
        ],
    }
    played = Played(
        {
            "tasks": {"Fork": {}} | {f"Part{number}": {"net": "part"} for number in range(12)},
            "flows": [*path("start", "Fork"), *(flow("Fork", f"Part{number}") for number in range(12))],
            "nets": {"part": part},
        },
        {"n": 0},
    )
    assert played.case.open_items == OPEN_ITEMS_MAX
    assert set(played.incidents) == {"open_items_limit"}
    played.do(c.CompleteItem(played.ref("W")))
    played.resolve("retry")
    assert played.case.open_items == OPEN_ITEMS_MAX
    played.do(c.CancelCase())
    assert played.case.open_items == 0
