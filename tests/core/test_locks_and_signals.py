"""Locks and signals where they meet other constructs."""

from __future__ import annotations

import pytest

from knhk_workflow.core import commands as c
from knhk_workflow.core.commands import ItemRef
from knhk_workflow.errors import LimitExceeded, WrongState
from tests.core.cases import Action, Played
from tests.patterns.notation import document


def played(*lines: str, data: object = None) -> Played:
    return Played(document("test", lines), data)


def locks(case: Played) -> list[str]:
    return sorted(case.case.locks)


def refused_start(case: Played, task: str) -> None:
    with pytest.raises(WrongState, match="free to start"):
        case.refused(c.StartItem(case.ref(task)))


def test_instances_without_synchronization_hold_a_mutex_from_the_first_start_to_the_last_end() -> None:
    case = played(
        "net: start -> A; A -> B, D; B, D -> (done); routing: A; B is {instances: {min: 2, sync: false}}",
        "net: B is {mutex: m}; D is {mutex: m}",
    )
    assert case.open == ["B", "B", "D"]
    assert locks(case) == []
    case.do(c.StartItem(case.ref("D")))
    refused_start(case, "B")
    case.complete("D")
    case.do(c.StartItem(case.ref("B")))
    case.do(c.StartItem(case.ref("B", 1)))
    case.complete("B")
    assert locks(case) == ["mutex m"]
    case.complete("B")
    assert case.case.state == "completed"
    assert locks(case) == []


def test_several_instances_share_the_section_of_their_task() -> None:
    case = played(
        "net: start -> A; A -> B, D; B, D -> (done); routing: A; B is {instances: 2}",
        "net: net is {sections: {s: [B, D]}}",
    )
    case.do(c.StartItem(case.ref("B")))
    refused_start(case, "D")
    case.do(c.StartItem(case.ref("B", 1)))
    case.complete("B")
    case.complete("B")
    case.complete("D")
    assert case.case.state == "completed"


def test_a_partial_join_in_a_mutex_waits_for_it() -> None:
    case = played(
        "net: start -> A; A -> P, Q, D; P, Q -> J; J, D -> (done); routing: A",
        "net: J is {join: {partial: {need: 1, mode: cancelling}}, mutex: m}; D is {mutex: m}",
    )
    case.do(c.StartItem(case.ref("D")))
    case.complete("P")
    refused_start(case, "J")
    case.complete("D")
    case.complete("J")
    assert case.case.state == "completed"


def test_a_signal_is_the_start_of_a_sub_net_in_a_deferred_choice() -> None:
    lines = (
        "net: start -> A; A -> (p); (p) -> R, C; R, C -> end; R runs Part; R is {trigger: {name: t}}",
        "sub-net Part: start -> W; W -> end",
    )
    case = played(*lines)
    case.complete("A")
    assert case.open == ["C"]
    case.do(c.Signal("t"))
    assert case.open == ["W"]
    case = played(*lines)
    case.complete("A")
    case.complete("C")
    assert case.case.state == "completed"


def test_a_sub_net_that_waits_for_its_signal_holds_no_lock() -> None:
    case = played(
        "net: start -> A; A -> R, D; R, D -> (done); routing: A; R runs Part; D is {mutex: m}",
        "net: R is {trigger: {name: t, mode: transient}, mutex: m}",
        "sub-net Part: start -> W; W -> end",
    )
    case.do(c.StartItem(case.ref("D")))
    case.do(c.Signal("t"))
    assert case.open == ["D"]
    case.complete("D")
    assert case.open == ["W"]
    assert locks(case) == ["mutex m"]
    case.complete("W")
    assert case.case.state == "completed"


def test_work_ended_by_force_takes_no_lock_away() -> None:
    case = played(
        "net: start -> A; A -> B, D; B, D -> (done); routing: A; B is {instances: 2, mutex: m}", "net: D is {mutex: m}"
    )
    case.do(c.StartItem(case.ref("D")))
    case.do(c.CompleteInstances("B"))
    assert case.open == ["D"]
    assert locks(case) == ["mutex m"]
    case.complete("D")
    assert case.case.state == "completed"


def test_resolving_an_incident_waits_for_the_lock_like_starting() -> None:
    case = played(
        "net: start -> A; A -> B, D; B, D -> (done); routing: A; B is {in: {x: data.missing}, mutex: m}",
        "net: D is {mutex: m}",
    )
    assert case.incidents == ["input_error"]
    case.do(c.StartItem(case.ref("D")))
    with pytest.raises(WrongState, match="mutex m, held at D"):
        case.refused(c.ResolveIncident(1, "complete", b"{}"))
    case.complete("D")
    case.resolve("complete", {})
    assert case.case.state == "completed"


def test_a_sub_net_that_goes_takes_its_locks_with_it() -> None:
    case = played(
        "net: start -> A; A -> R, X; X is {cancels: [R]}; R, X -> (done); routing: A; R runs Part",
        "net: X -> D; D is {mutex: m}; D -> (done)",
        "sub-net Part: start -> B; B -> C; C -> end; B is {mutex: m}; net is {sections: {s: [B, C]}}",
    )
    case.do(c.StartItem(case.ref("B")))
    assert locks(case) == ["mutex m", "section Part/s"]
    case.complete("X")
    assert locks(case) == []
    case.complete("D")
    assert case.case.state == "completed"


def test_tasks_that_start_by_themselves_take_turns_in_order() -> None:
    case = played(
        "net: start -> A; A -> P, Q, R; P, Q, R -> (done); routing: A; P runs N; Q runs N; R runs N",
        "net: P is {mutex: m}; Q is {mutex: m}; R is {mutex: m}",
        "sub-net N: start -> W; W -> end",
    )
    order = []
    for _ in range(3):
        [running] = [each.task for each in case.case.activations.values() if each.task in "PQR"]
        order.append(running)
        case.complete("W")
    assert order == ["P", "Q", "R"]
    assert case.case.state == "completed"


def test_signals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knhk_workflow.core.triggers.SIGNALS_MAX", 2)
    case = played("net: start -> A; A -> B; B -> end; routing: B; B is {trigger: {name: t}}")
    case.do(c.Signal("t"))
    case.do(c.Signal("t"))
    with pytest.raises(LimitExceeded):
        case.refused(c.Signal("t"))


def test_of_two_tasks_with_one_signal_the_one_that_can_go_on_takes_it() -> None:
    case = played(
        "net: start -> A; A -> B, C, D; B, C, D -> (done); routing: A, B, C; D is {mutex: m}",
        "net: B is {trigger: {name: t}, mutex: m}; C is {trigger: {name: t}}",
    )
    case.do(c.StartItem(case.ref("D")))
    case.do(c.Signal("t"))
    assert "C" not in case.case.root.active
    case.do(c.Signal("t"))
    assert [kept.name for kept in case.case.signals] == ["t"]
    case.complete("D")
    assert case.case.state == "completed"


def test_what_was_cancelled_does_not_take_a_kept_signal() -> None:
    case = played(
        "net: start -> A; A -> B, D; B, D -> (done); routing: A, B; D is {cancels: [B]}",
        "net: B is {trigger: {name: t, mode: transient}}",
    )
    case.complete("D")
    assert case.case.state == "completed"


def failing(case: Played, task: str) -> None:
    ref = case.ref(task)
    case.do(c.StartItem(ref))
    case.do(c.FailItem(ref, "broken"))


def test_a_started_item_of_an_earlier_attempt_keeps_the_lock() -> None:
    case = played(
        "net: start -> A; A -> B, D; B, D -> (done); routing: A; D is {mutex: m}",
        "net: B is {mutex: m, retry: {max_attempts: 2, backoff: 0}}",
    )
    ref = case.ref("B")
    case.do(c.StartItem(ref))
    case.do(c.FailItem(ref, "broken"))
    assert case.ref("B") == ItemRef(ref.activation, 1, 2)
    refused_start(case, "D")
    case.complete("B")
    case.complete("D")
    assert case.case.state == "completed"


BOTH = "net: start -> A; A -> B, D; B, D -> (done); routing: A; B is {mutex: m}; D is {mutex: m}"
INSIDE = "net: start -> A; A -> B, D; B -> C; C, D -> (done); routing: A; net is {sections: {s: [B, C, D]}}"


@pytest.mark.parametrize("net", [BOTH, INSIDE])
@pytest.mark.parametrize("action", ["retry", "skip", "complete"])
def test_failed_work_lets_go_of_its_lock_and_takes_it_again_before_it_goes_on(net: str, action: Action) -> None:
    case = played(net)
    failing(case, "B")
    assert locks(case) == []
    assert "has let go of" in case.explained("B").sentence
    case.do(c.StartItem(case.ref("D")))
    assert [wait.kind for wait in case.explained("B").waits_for] == ["incident", "section"]
    if action == "retry":
        case.resolve("retry")
        refused_start(case, "B")
        assert case.explained("B").status == "waiting"
    else:
        with pytest.raises(WrongState, match="held at D"):
            case.refused(c.ResolveIncident(1, action))
    case.complete("D")
    assert locks(case) == []
    if action == "retry":
        case.do(c.StartItem(case.ref("B")))
        assert len(locks(case)) == 1
        case.complete("B")
    else:
        case.resolve(action)
    if net is INSIDE:
        assert locks(case) == ["section s"], "its thread is inside again"
        case.complete("C")
    assert (case.case.state, locks(case)) == ("completed", [])


def test_a_section_stays_with_its_thread_while_another_part_of_it_is_inside() -> None:
    case = played(
        "net: start -> A; A -> E, D; E -> B, C; B, C -> J; J, D -> (done); routing: A, E",
        "net: net is {sections: {s: [E, B, C, J, D]}}; J is {join: and}",
    )
    failing(case, "B")
    assert locks(case) == ["section s"]
    refused_start(case, "D")
    case.resolve("retry")
    case.complete("B")
    case.complete("C")
    case.complete("J")
    case.complete("D")
    assert case.case.state == "completed"


def test_a_thread_fails_in_the_middle_of_its_section() -> None:
    case = played("net: start -> A; A -> B, D; B -> C; C, D -> (done); routing: A; net is {sections: {s: [B, C, D]}}")
    case.complete("B")
    failing(case, "C")
    assert locks(case) == []
    case.do(c.StartItem(case.ref("D")))
    case.resolve("retry")
    refused_start(case, "C")
    failing_ref = case.ref("D")
    case.do(c.FailItem(failing_ref, "broken"))
    case.complete("C")
    case.resolve("complete", {})
    assert (case.case.state, locks(case)) == ("completed", [])


def test_cancelling_failed_work_leaves_nothing_of_its_lock() -> None:
    case = played(BOTH)
    failing(case, "B")
    case.do(c.StartItem(case.ref("D")))
    case.do(c.CancelTask("B"))
    assert locks(case) == ["mutex m"]
    case.complete("D")
    assert (case.case.state, locks(case)) == ("completed", [])


@pytest.mark.parametrize("join", ["or", "structured-or", "local-or"])
def test_cancelling_an_offered_merge_ends_its_round(join: str) -> None:
    case = played(
        f"net: start -> A; A or-split -> B when b | C otherwise; B, C {join}-join -> J; J -> end", data={"b": True}
    )
    case.complete("A")
    case.complete("B")
    assert case.open == ["J"]
    case.do(c.CancelTask("J"))
    assert case.case.state == "completed"
    assert not case.case.root.dead
    assert not case.case.root.expected
