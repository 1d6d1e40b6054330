"""Time in a case: timer tasks, time-outs, deadlines and retries, armed, fired and disarmed in every way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from knhk_workflow import InvalidDocument, WrongState
from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.case import encode_state
from knhk_workflow.core.decide import decide
from tests.core.cases import WORK, Document, Played

S = 1_000_000_000  # nanoseconds


def flows(*ways: str) -> list[Document]:
    """`A>B, A>C` as flows."""
    return [{"from": source, "to": target} for source, _, target in (way.partition(">") for way in ways)]


def kinds(case: Played) -> list[str]:
    """The kinds of the timers that are armed, oldest first."""
    return [case.case.timers[number].kind for number in sorted(case.case.timers)]


def fire(case: Played, nth: int = 0) -> list[str]:
    """Let time pass until the n-th timer is due and fire it; the types of the events."""
    timer = case.case.timers[sorted(case.case.timers)[nth]]
    case.now = max(case.now, timer.due - 1)
    return [type(event).__name__ for event in case.do(c.FireTimer(timer.number))]


CHOICE: Document = {
    "tasks": {"B": WORK, "T": {"timer": 60, "out": {"late": "true"}}},
    "flows": flows("start>B", "start>T", "B>end", "T>end"),
}


def limited(**more: object) -> Played:
    """A task A with limits, and what follows it: B as a rule, C when somebody says so."""
    body: Document = {**WORK, "split": "xor", **more}
    return Played(
        {
            "tasks": {"A": body, "B": WORK, "C": WORK},
            "flows": [
                {"from": "start", "to": "A"},
                {"from": "A", "to": "C", "when": "false"},
                {"from": "A", "to": "B", "default": True},
                *flows("B>end", "C>end"),
            ],
        },
        {"due": "1970-01-01T00:01:00Z", "wait": 5},
    )


def test_a_timer_task_wins_a_deferred_choice_when_it_is_due() -> None:
    case = Played(CHOICE)
    assert kinds(case) == ["timer"]
    assert case.case.timers[1].due == 1_000 + 60 * S
    assert fire(case) == [
        "TimerFired",
        "TaskStarted",
        "DataUpdated",
        "TaskCompleted",
        "ItemWithdrawn",
        "TaskCancelled",
        "NetCompleted",
        "StateChanged",
    ]
    assert case.case.state == "completed"
    assert case.data == {"late": True}


def test_a_timer_task_loses_a_deferred_choice_when_somebody_starts_before() -> None:
    case = Played(CHOICE)
    case.do(c.StartItem(case.ref("B")))
    assert case.case.timers == {}
    assert case.do(c.FireTimer(1)) == []


@pytest.mark.parametrize(
    ("timer", "due"),
    [
        ({"after": "data.wait"}, 1_000 + 5 * S),
        ({"after": "'1m' + '30s'"}, 1_000 + 90 * S),
        ({"after": "duration('2s')"}, 1_000 + 2 * S),
        ({"after": "data.wait - 5"}, 1_000),
        ({"at": "1970-01-01T00:01:00Z"}, 60 * S),
        ({"at": "data.due"}, 60 * S),
        ({"at": "timestamp('1970-01-01T01:01:00+01:00')"}, 60 * S),
        ({"at": "1969-12-31T00:00:00Z"}, 1_000),
        ({"at": "9999-12-31T00:00:00Z"}, 2**64 - 1),
    ],
)
def test_when_a_timer_is_due(timer: Document, due: int) -> None:
    tasks = {"T": {"timer": timer}}
    case = Played({"tasks": tasks, "flows": flows("start>T", "T>end")}, {"wait": 5, "due": "1970-01-01T01:01:00+01:00"})
    assert case.case.timers[1].due == due


@pytest.mark.parametrize("timer", [{"after": "data.wait"}, {"after": "-5"}, {"at": "data.wait"}, {"at": "'soon'"}])
def test_a_time_that_cannot_be_found_is_an_incident_and_can_be_mended(timer: Document) -> None:
    case = Played({"tasks": {"T": {"timer": timer}}, "flows": flows("start>T", "T>end")})
    assert case.incidents == ["timer_error"]
    assert case.case.timers == {}
    if timer == {"after": "data.wait"}:
        case.do(c.UpdateCaseData(b'{"wait": "PT5M"}'))
        case.resolve("retry")
        assert kinds(case) == ["timer"]
        fire(case)
    else:
        case.resolve("skip")
    assert case.case.state == "completed"


def test_too_early_is_refused_and_too_late_is_fine() -> None:
    case = Played(CHOICE)
    with pytest.raises(WrongState, match="too early"):
        case.refused(c.FireTimer(1))
    case.now += 3600 * S
    case.do(c.FireTimer(1))
    assert case.case.state == "completed"


def test_a_suspended_case_lets_its_timers_wait() -> None:
    case = Played(CHOICE)
    case.do(c.SuspendCase())
    before = encode_state(case.case)
    case.now += 61 * S
    assert case.do(c.FireTimer(1)) == []
    assert encode_state(case.case) == before
    case.do(c.ResumeCase())
    case.do(c.FireTimer(1))
    assert case.case.state == "completed"


def test_a_timer_that_is_due_waits_for_a_lock() -> None:
    case = Played(
        {
            "tasks": {"F": {}, "B": {**WORK, "mutex": "m"}, "T": {"timer": 60, "mutex": "m"}},
            "flows": flows("start>F", "F>B", "F>T", "B>end", "T>end"),
        }
    )
    case.do(c.StartItem(case.ref("B")))
    assert fire(case) == ["TimerFired", "LockAwaited"]
    case.complete("B")
    assert case.case.state == "completed"


# -- time-outs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("started", [False, True])
def test_overdue_work_takes_the_flow_to_on_timeout_alone(started: bool) -> None:
    case = limited(timeout=60, on_timeout="C")
    if started:
        case.do(c.StartItem(case.ref("A")))
    told = fire(case)
    assert ("ItemTerminated" if started else "ItemWithdrawn") in told
    assert case.open == ["C"]
    assert case.case.timers == {}


def test_overdue_work_without_a_flow_counts_as_failed() -> None:
    case = limited(timeout=60)
    fire(case)
    assert case.incidents == ["task_failed"]
    assert "timeout: it took too long" in next(iter(case.case.incidents.values())).message
    case.resolve("retry")
    assert case.open == ["A"]
    assert kinds(case) == ["timeout"], "the next attempt has its own time"
    case = limited(timeout=60, on_error="C")
    fire(case)
    assert case.open == ["C"]


def test_a_time_out_is_tried_again_while_attempts_are_left() -> None:
    case = limited(timeout=60, retry={"max_attempts": 2, "backoff": 5})
    fire(case)
    assert (case.open, kinds(case)) == ([], ["retry"])
    fire(case)
    assert (case.open, kinds(case)) == (["A"], ["timeout"])
    assert case.ref("A").attempt == 2
    fire(case)
    assert case.incidents == ["task_failed"]


def test_time_runs_for_each_instance_and_each_turn() -> None:
    case = limited(timeout=60, instances=3)
    assert kinds(case) == ["timeout"] * 3
    fire(case, 1)
    assert (len(case.open), case.incidents) == (2, ["task_failed"])
    case = limited(timeout=60, loop={"until": "data.done"})
    case.complete("A", {"done": False})
    assert kinds(case) == ["timeout"]
    assert case.case.last_timer == 2


def test_time_runs_for_a_signal_and_for_a_sub_net() -> None:
    case = limited(timeout=60, required_roles=None, trigger="paid", on_timeout="C")
    fire(case)
    assert case.open == ["C"]
    case = limited(timeout=60, required_roles=None, trigger="paid")
    fire(case)
    assert case.incidents == ["timed_out"]
    case.resolve("retry")
    case.do(c.Signal("paid"))
    assert case.open == ["B"]
    assert case.case.timers == {}
    for more, opened in (({"on_timeout": "C"}, ["C"]), ({}, [])):
        case = Played(
            {
                "tasks": {"A": {"net": "n", "timeout": 60, "split": "xor", **more}, "B": WORK, "C": WORK},
                "flows": [
                    *flows("start>A", "B>end", "C>end"),
                    {"from": "A", "to": "C", "when": "false"},
                    {"from": "A", "to": "B", "default": True},
                ],
                "nets": {"n": {"tasks": {"X": {**WORK, "timeout": 120}}, "flows": flows("start>X", "X>end")}},
            }
        )
        assert kinds(case) == ["timeout", "timeout"]
        fire(case)
        assert case.open == opened
        if not opened:
            case.resolve("retry")
            case.complete("X")
            assert case.open == ["B"]
        assert case.case.timers == {}


def test_work_that_a_lock_keeps_from_beginning_is_not_overdue() -> None:
    case = Played(
        {
            "tasks": {"F": {}, "B": {**WORK, "mutex": "m"}, "C": {**WORK, "mutex": "m", "timeout": 60}},
            "flows": flows("start>F", "F>B", "F>C", "B>end", "C>end"),
        }
    )
    case.do(c.StartItem(case.ref("B")))
    assert fire(case) == ["TimerFired", "TimerArmed"]
    case.complete("B")
    fire(case)
    assert case.incidents == ["task_failed"]


# -- deadlines --------------------------------------------------------------------------------------------------------


def test_a_deadline_ends_the_task_whatever_it_does() -> None:
    case = limited(deadline="data.due", on_timeout="C", instances=2, retry=5)
    assert case.case.timers[1].due == 60 * S
    case.do(c.StartItem(case.ref("A")))
    assert "ItemTerminated" in fire(case)
    assert (case.open, case.case.timers) == (["C"], {})
    case = limited(deadline="data.due", retry=5)
    case.do(c.FailItem(case.ref("A"), "broken"))
    assert kinds(case) == ["deadline", "retry"]
    case.now = 60 * S
    case.do(c.FireTimer(1))
    assert (case.incidents, case.case.timers) == (["task_failed"], {})
    case.resolve("complete", {"ok": True})
    assert case.open == ["B"]


def test_a_deadline_after_an_incident_takes_its_flow() -> None:
    case = limited(deadline="data.due", on_timeout="C")
    case.do(c.FailItem(case.ref("A"), "broken"))
    fire(case)
    assert (case.open, case.incidents) == (["C"], [])


def test_behind_a_flow_that_has_gone_on_a_deadline_only_ends_the_rest() -> None:
    case = limited(deadline="data.due", on_timeout="C", instances={"min": 3, "threshold": 1})
    case.complete("A")
    assert case.open == ["A", "A", "B"]
    fire(case)
    assert case.open == ["B"]
    assert case.incidents == []


# -- retries ----------------------------------------------------------------------------------------------------------


def test_failed_work_is_offered_again_after_a_growing_pause() -> None:
    case = limited(retry={"max_attempts": 5, "backoff": 2, "factor": 3, "max_backoff": 10})
    pauses = []
    for attempt in range(1, 5):
        assert case.ref("A").attempt == attempt
        case.do(c.FailItem(case.ref("A"), "broken"))
        assert case.open == []
        assert case.case.state == "running"
        [timer] = case.case.timers.values()
        pauses.append((timer.due - case.now) // S)
        fire(case)
    assert pauses == [2, 6, 10, 10]
    case.do(c.FailItem(case.ref("A"), "broken"))
    assert case.incidents == ["task_failed"]


def test_without_a_pause_it_is_offered_again_at_once() -> None:
    case = limited(retry={"max_attempts": 2, "backoff": 0})
    case.do(c.FailItem(case.ref("A"), "broken"))
    assert (case.open, case.case.timers) == (["A"], {})


def test_a_failure_of_a_suspended_case_is_tried_again_after_its_resumption() -> None:
    case = limited(retry={"max_attempts": 2, "backoff": 0})
    case.do(c.StartItem(case.ref("A")))
    case.do(c.SuspendCase())
    case.do(c.FailItem(case.ref("A"), "broken"))
    assert kinds(case) == ["retry"]
    assert case.do(c.FireTimer(1)) == []
    case.do(c.ResumeCase())
    fire(case)
    assert case.open == ["A"]


def test_work_that_waits_for_a_retry_cannot_be_acted_on() -> None:
    case = limited(retry=3)
    item = case.ref("A")
    case.do(c.FailItem(item, "broken"))
    with pytest.raises(WrongState):
        case.refused(c.CompleteItem(item))


def test_an_instance_that_waits_for_a_retry_is_waited_for() -> None:
    case = limited(retry=3, instances=2)
    case.do(c.FailItem(case.ref("A"), "broken"))
    case.complete("A")
    assert case.open == []
    fire(case)
    case.complete("A")
    assert case.open == ["B"]


# -- nothing stays behind ---------------------------------------------------------------------------------------------

ENDINGS: dict[str, Callable[[Played], object]] = {
    "completed": lambda case: case.complete("A"),
    "skipped": lambda case: case.do(c.SkipItem(case.ref("A"))),
    "cancelled": lambda case: case.do(c.CancelTask("A")),
    "forced": lambda case: case.do(c.CompleteInstances("A")),
    "instances cancelled": lambda case: case.do(c.CancelInstances("A")),
    "case cancelled": lambda case: case.do(c.CancelCase()),
    "withdrawn": lambda case: case.do(c.StartItem(case.ref("R"))),
    "region": lambda case: case.complete("X"),
    "explicit end": lambda case: case.complete("E"),
    "retry, then forced": lambda case: (
        case.do(c.FailItem(case.ref("A"), "broken")),
        case.do(c.CompleteInstances("A")),
    ),
    "retry, then cancelled": lambda case: (
        case.do(c.FailItem(case.ref("A"), "broken")),
        case.do(c.CancelTask("A")),
    ),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_timer_ends_with_what_it_is_about(ending: str, nested: bool) -> None:
    net: Document = {
        "tasks": {
            "S": {},
            "A": {**WORK, "timeout": 60, "deadline": "1970-01-02T00:00:00Z", "retry": 3},
            "R": WORK,
            "X": {**WORK, "cancels": ["A", "p"]},
            "E": WORK,
            "L": WORK,
        },
        "conditions": ["p", "x", "e", "l"],
        "flows": flows("start>S", "S>p", "p>A", "p>R", "S>x", "x>X", "S>e", "e>E", "E>end", "S>l", "l>L"),
        "termination": "explicit",
    }
    document: Document = (
        {"tasks": {"N": {"net": "n"}}, "flows": flows("start>N", "N>end"), "nets": {"n": net}} if nested else net
    )
    case = Played(document)
    assert sorted(kinds(case)) == ["deadline", "timeout"]
    ENDINGS[ending](case)
    assert case.case.timers == {}
    disarmed = [event for event in case.events if isinstance(event, e.TimerDisarmed)]
    assert {event.timer for event in disarmed} <= set(range(1, case.case.last_timer + 1))
    assert "deadline" in {event.kind for event in disarmed}
    assert case.do(c.FireTimer(1)) == []


def test_a_timer_that_is_gone_is_no_error_in_an_ended_case() -> None:
    case = Played(CHOICE)
    case.do(c.CancelCase())
    assert decide(case.case, case.model, c.FireTimer(1), case.now).events == []


def test_a_timer_waits_for_the_next_occurrence() -> None:
    case = Played(
        {
            "tasks": {"T": {"timer": {"every": "0 9 * * *", "time_zone": "Europe/Berlin"}}},
            "flows": flows("start>T", "T>end"),
        }
    )
    assert [timer.due for timer in case.case.timers.values()] == [8 * 3_600 * S]
    fire(case)
    assert case.case.state == "completed"
    for every in ("R3/PT1H", "soon", "0 0 30 2 *"):
        with pytest.raises(InvalidDocument):
            Played({"tasks": {"T": {"timer": {"every": every}}}, "flows": flows("start>T", "T>end")})
