"""Which command is possible in which state: every pair of case states and work item states, exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from knhk_workflow import NotFound, WorkflowError, WrongState
from knhk_workflow.core import commands as c
from tests.core.cases import WORK, Document, Played, path

NET: Document = {"tasks": {"A": WORK, "B": WORK}, "flows": [*path("start", "A", "end"), *path("A", "B", "end")]}
A = c.ItemRef(1, 1, 1)


def created() -> Played:
    return Played(NET, start=False)


def running() -> Played:
    return Played(NET)


def suspended() -> Played:
    played = running()
    played.do(c.StartItem(A))
    played.do(c.SuspendCase())
    return played


def completed() -> Played:
    played = running()
    for task in ("A", "B"):
        played.complete(task)
    return played


def cancelled() -> Played:
    played = running()
    played.do(c.CancelCase())
    return played


def failed() -> Played:
    played = running()
    played.do(c.FailItem(A, "broken"))
    played.resolve("fail_case")
    return played


CASES: Mapping[str, Callable[[], Played]] = {
    "created": created,
    "running": running,
    "suspended": suspended,
    "completed": completed,
    "cancelled": cancelled,
    "failed": failed,
}
CASE_COMMANDS: Mapping[str, c.Command] = {
    "start": c.StartCase(),
    "execute": c.StartCase(again=True),
    "suspend": c.SuspendCase(),
    "resume": c.ResumeCase(),
    "cancel": c.CancelCase(),
    "update": c.UpdateCaseData(b'{"x":1}'),
}
ALLOWED: Mapping[tuple[str, str], str] = {
    ("created", "start"): "running",
    ("created", "execute"): "running",
    ("created", "cancel"): "cancelled",
    ("created", "update"): "created",
    ("running", "execute"): "running",
    ("running", "suspend"): "suspended",
    ("running", "cancel"): "cancelled",
    ("running", "update"): "running",
    ("suspended", "resume"): "running",
    ("suspended", "cancel"): "cancelled",
    ("suspended", "update"): "suspended",
    ("cancelled", "cancel"): "cancelled",
}


@pytest.mark.parametrize("state", CASES)
@pytest.mark.parametrize("name", CASE_COMMANDS)
def test_a_case_takes_exactly_these_commands(state: str, name: str) -> None:
    played = CASES[state]()
    assert played.case.state == state
    command = CASE_COMMANDS[name]
    after = ALLOWED.get((state, name))
    if after is None:
        with pytest.raises(WrongState) as refused:
            played.refused(command)
        assert refused.value.actual == state
    else:
        played.do(command)
        assert played.case.state == after


def test_cancelling_a_cancelled_case_is_no_event() -> None:
    assert cancelled().do(c.CancelCase()) == []


def test_executing_a_running_case_is_no_event() -> None:
    assert running().do(c.StartCase(again=True)) == []


def test_an_empty_update_is_no_event() -> None:
    assert running().do(c.UpdateCaseData(b"{}")) == []


ITEM_COMMANDS: Mapping[str, c.Command] = {
    "claim": c.ClaimItem(A, "ada"),
    "release": c.ReleaseItem(A),
    "start": c.StartItem(A),
    "complete": c.CompleteItem(A),
    "fail": c.FailItem(A, "broken"),
    "skip": c.SkipItem(A),
}


def offered() -> Played:
    return running()


def allocated() -> Played:
    played = running()
    played.do(c.ClaimItem(A, "ada"))
    return played


def started() -> Played:
    played = running()
    played.do(c.StartItem(A))
    return played


def finished() -> Played:
    played = running()
    played.do(c.CompleteItem(A))
    return played


def broken() -> Played:
    played = running()
    played.do(c.FailItem(A, "broken"))
    return played


ITEMS: Mapping[str, Callable[[], Played]] = {
    "offered": offered,
    "allocated": allocated,
    "started": started,
    "finished": finished,
    "failed": broken,
}
ITEM_ALLOWED = {
    ("offered", "claim"),
    ("offered", "start"),
    ("offered", "complete"),
    ("offered", "fail"),
    ("offered", "skip"),
    ("allocated", "release"),
    ("allocated", "start"),
    ("allocated", "complete"),
    ("allocated", "fail"),
    ("allocated", "skip"),
    ("started", "complete"),
    ("started", "fail"),
    ("started", "skip"),
}


@pytest.mark.parametrize("state", ITEMS)
@pytest.mark.parametrize("name", ITEM_COMMANDS)
def test_a_work_item_takes_exactly_these_commands(state: str, name: str) -> None:
    played = ITEMS[state]()
    command = ITEM_COMMANDS[name]
    if (state, name) in ITEM_ALLOWED:
        assert played.do(command)
    else:
        with pytest.raises(WrongState):
            played.refused(command)


SUSPENDED_ALLOWED = {
    ("offered", "claim"),
    ("allocated", "release"),
    ("started", "complete"),
    ("started", "fail"),
    ("started", "skip"),
}


@pytest.mark.parametrize("state", ["offered", "allocated", "started"])
@pytest.mark.parametrize("name", ITEM_COMMANDS)
def test_a_suspended_case_takes_results_and_begins_nothing(state: str, name: str) -> None:
    played = ITEMS[state]()
    played.do(c.SuspendCase())
    command = ITEM_COMMANDS[name]
    if (state, name) in SUSPENDED_ALLOWED:
        assert played.do(command)
        assert played.case.state == "suspended"
    else:
        with pytest.raises(WrongState):
            played.refused(command)


@pytest.mark.parametrize("state", ["created", "completed", "cancelled", "failed"])
@pytest.mark.parametrize("name", ITEM_COMMANDS)
def test_a_case_that_does_not_run_has_no_work(state: str, name: str) -> None:
    played = CASES[state]()
    with pytest.raises((WrongState, NotFound)):
        played.refused(ITEM_COMMANDS[name])


def test_work_of_another_person_is_not_taken() -> None:
    played = allocated()
    for command in (c.StartItem(A, "bob"), c.CompleteItem(A, b"", "bob"), c.FailItem(A, "x", "", "bob")):
        with pytest.raises(WrongState) as refused:
            played.refused(command)
        assert "ada" in str(refused.value)
    played.do(c.StartItem(A, "ada"))
    played.do(c.CompleteItem(A, b"", "ada"))


@pytest.mark.parametrize("ref", [c.ItemRef(9, 1, 1), c.ItemRef(0, 1, 1), c.ItemRef(-1, 1, 1), c.ItemRef(9, 9, 9)])
def test_unknown_work_is_not_found(ref: c.ItemRef) -> None:
    with pytest.raises(NotFound):
        running().refused(c.CompleteItem(ref))


@pytest.mark.parametrize("ref", [c.ItemRef(1, 2, 1), c.ItemRef(1, 1, 2)])
def test_another_instance_or_attempt_is_refused(ref: c.ItemRef) -> None:
    with pytest.raises(WorkflowError):
        running().refused(c.CompleteItem(ref))


def test_unknown_incidents_are_not_found() -> None:
    with pytest.raises(NotFound):
        running().refused(c.ResolveIncident(1, "retry"))


def test_an_expected_sequence_guards_an_update() -> None:
    played = running()
    seen = played.case.sequence
    played.do(c.UpdateCaseData(b'{"a":1}', seen))
    with pytest.raises(WorkflowError) as refused:
        played.refused(c.UpdateCaseData(b'{"a":2}', seen))
    assert f"sequence {seen}" in str(refused.value)


@pytest.mark.parametrize("state", ["completed", "cancelled", "failed"])
def test_nothing_of_an_ended_case_stays_open(state: str) -> None:
    case = CASES[state]().case
    assert (len(case.nets), case.activations, case.incidents, case.open_items, case.tokens(), case.ready) == (
        1,
        {},
        {},
        0,
        0,
        (),
    )
