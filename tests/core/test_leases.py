"""Work with a lease: it begins once, comes back as the next attempt of the same thing, and ends once."""

from __future__ import annotations

import pytest

from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.errors import Stale, WrongState
from tests.core.cases import WORK, Document, Played, path

S = 1_000_000_000
NET: Document = {"tasks": {"A": {**WORK, "timeout": "10s"}}, "flows": path("start", "A", "end")}
RIVALS: Document = {"tasks": {"A": WORK, "B": WORK}, "flows": [*path("start", "A", "end"), *path("start", "B", "end")]}
DESK: Document = {
    "tasks": {
        "S": {"split": "and"},
        "A": {**WORK, "mutex": "desk"},
        "B": {**WORK, "mutex": "desk"},
        "J": {"join": "and"},
    },
    "flows": [*path("start", "S", "A", "J", "end"), *path("S", "B", "J")],
}


def lease(played: Played, task: str, period: int = S) -> c.ItemRef:
    """A worker takes the oldest offer of a task."""
    ref = played.ref(task)
    played.do(c.LeaseItem(ref, "owner", "worker", period))
    return ref


def test_a_lease_is_a_start_with_its_worker_and_period() -> None:
    played = Played(NET)
    ref = lease(played, "A")
    [started] = [event for event in played.events if isinstance(event, e.ItemStarted)]
    assert (started.owner, started.worker, started.lease, started.consumed) == ("owner", "worker", S, ("start",))
    with pytest.raises(WrongState):
        played.refused(c.LeaseItem(ref, "other", "", S))
    played.complete("A")
    assert played.case.state == "completed"


def test_what_comes_back_is_the_same_work_as_its_next_attempt() -> None:
    played = Played(NET, {"n": 1})
    ref = lease(played, "A")
    before = dict(played.case.timers)
    played.do(c.ReturnItem(ref, "expired"))
    assert [type(event) for event in played.events] == [e.TimerDisarmed, e.ItemReturned, e.TimerArmed]
    assert set(played.case.timers) != set(before), "the time-out of the new attempt runs from now"
    [(activation, run)] = played.case.open_work()
    assert (activation.started, run.state, run.attempt, run.owner, run.lease) == (True, "offered", 2, "", 0)
    for command in (c.ReturnItem(ref), c.CompleteItem(ref), c.FailItem(ref, "E")):
        with pytest.raises(Stale):
            played.refused(command)
    played.complete("A")
    assert played.case.state == "completed"
    assert played.case.open_items == 0


def test_only_leased_work_that_has_begun_comes_back() -> None:
    played = Played(NET)
    with pytest.raises(WrongState):
        played.refused(c.ReturnItem(played.ref("A")))
    played.do(c.StartItem(played.ref("A")))
    with pytest.raises(WrongState, match="without a lease"):
        played.refused(c.ReturnItem(played.ref("A")))


def test_a_choice_stays_made() -> None:
    played = Played(RIVALS)
    ref = lease(played, "B")
    assert played.open == ["B"]
    played.do(c.ReturnItem(ref))
    assert played.open == ["B"]
    assert played.case.tokens() == 0


def test_locks_stay_taken() -> None:
    played = Played(DESK)
    ref = lease(played, "A")
    with pytest.raises(WrongState, match="desk"):
        played.refused(c.LeaseItem(played.ref("B"), "owner", "", S))
    played.do(c.ReturnItem(ref))
    with pytest.raises(WrongState, match="desk"):
        played.refused(c.LeaseItem(played.ref("B"), "owner", "", S))
    lease(played, "A")
    played.complete("A")
    lease(played, "B")
    played.complete("B")
    assert played.case.state == "completed"


def test_work_of_a_suspended_case_comes_back_and_waits() -> None:
    played = Played(NET)
    ref = lease(played, "A")
    played.do(c.SuspendCase())
    played.do(c.ReturnItem(ref))
    with pytest.raises(WrongState):
        played.refused(c.LeaseItem(played.ref("A"), "owner", "", S))
    played.do(c.ResumeCase())
    lease(played, "A")


def test_attempts_that_came_back_count_but_do_not_end_the_task() -> None:
    document: Document = {
        "tasks": {"A": {**WORK, "retry": {"max_attempts": 2, "backoff": 0}}},
        "flows": path("start", "A", "end"),
    }
    played = Played(document)
    for _ in range(5):
        played.do(c.ReturnItem(lease(played, "A")))
    assert (played.open, played.incidents) == (["A"], [])
    played.do(c.FailItem(lease(played, "A"), "E"))
    assert played.incidents == ["task_failed"]


@pytest.mark.parametrize(("after", "due"), [(0, None), (5 * S, 5 * S), (None, 3_600 * S)])
def test_whoever_fails_says_when_to_try_again(after: int | None, due: int | None) -> None:
    document: Document = {
        "tasks": {"A": {**WORK, "retry": {"max_attempts": 2, "backoff": "1h"}}},
        "flows": path("start", "A", "end"),
    }
    played = Played(document)
    played.do(c.FailItem(lease(played, "A"), "E", retry_after=after))
    if due is None:
        assert played.ref("A").attempt == 2
        return
    [timer] = played.case.timers.values()
    assert (timer.kind, timer.due) == ("retry", played.now + due)
