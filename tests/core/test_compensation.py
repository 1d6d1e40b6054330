"""Compensation: completed work is undone, newest first, before a net that failed or was cancelled is gone."""

from __future__ import annotations

import msgspec
import pytest

from knhk_workflow import InvalidDocument, WrongState
from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.case import decode_state, encode_state
from knhk_workflow.core.explain import explain, summary
from knhk_workflow.core.settle import SLICE_FIRINGS
from knhk_workflow.model.parse import findings, parse_spec, unsupported
from tests.core.cases import WORK, Document, Played, flow, path

S = 1_000_000_000  # nanoseconds

TRIP: Document = {
    "tasks": {
        "Hotel": {**WORK, "compensate": "NoHotel"},
        "Car": {**WORK, "compensate": "NoCar"},
        "Pay": WORK,
        "NoHotel": WORK,
        "NoCar": WORK,
    },
    "flows": path("start", "Hotel", "Car", "Pay", "end"),
}


def composite(inner: Document = TRIP, **more: object) -> Document:
    """A trip as a composite task: Sorry follows its failure, Done its success."""
    return {
        "tasks": {"Trip": {"net": "trip", "split": "xor", "on_error": "Sorry", **more}, "Done": WORK, "Sorry": WORK},
        "flows": [
            *path("start", "Trip"),
            flow("Trip", "Sorry", "false"),
            flow("Trip", "Done", default=True),
            *path("Done", "end"),
            *path("Sorry", "end"),
        ],
        "nets": {"trip": inner},
    }


def undone(case: Played) -> list[str]:
    """What was undone so far, in order."""
    return [event.of for event in case.history if isinstance(event, e.CompensationBegun)]


def fail(case: Played, task: str) -> list[e.Event]:
    """The open work of a task fails."""
    return case.do(c.FailItem(case.ref(task), "broken", "it fell"))


def restarted(case: Played) -> None:
    """The case goes on from its snapshot."""
    case.case = decode_state(encode_state(case.case))


def until_cancelled(document: Document, data: object = None) -> Played:
    case = Played(document, data)
    case.complete("Hotel", {"room": 7})
    case.complete("Car", {"car": "red"})
    case.do(c.CancelCase("the weather"))
    return case


def test_cancelling_a_case_undoes_what_was_completed_newest_first() -> None:
    case = until_cancelled(TRIP)
    assert case.case.state == "running"
    assert case.open == ["NoCar"]
    assert case.case.activations[case.ref("NoCar").activation].instances[1].data == b'{"car":"red"}'
    restarted(case)
    case.complete("NoCar", {"returned": True})
    assert case.open == ["NoHotel"]
    restarted(case)
    case.complete("NoHotel")
    assert (case.case.state, case.case.reason) == ("cancelled", "the weather")
    assert undone(case) == ["Car", "Hotel"]
    assert case.data == {"room": 7, "car": "red", "returned": True}
    assert (case.case.activations, case.case.root.completions, case.case.root.outcome) == ({}, [], "")


def test_a_case_that_is_being_undone_is_not_cancelled_twice() -> None:
    case = until_cancelled(TRIP)
    assert case.do(c.CancelCase("again")) == []
    assert case.open == ["NoCar"]


def test_nothing_completed_nothing_undone() -> None:
    case = Played(TRIP)
    case.do(c.CancelCase())
    assert case.case.state == "cancelled"


def test_a_completed_case_forgets() -> None:
    case = Played(TRIP)
    for task in ("Hotel", "Car", "Pay"):
        case.complete(task)
    assert case.case.state == "completed"
    assert case.case.root.completions == []


def test_skipped_and_failed_work_is_not_undone() -> None:
    case = Played(TRIP)
    case.do(c.SkipItem(case.ref("Hotel")))
    fail(case, "Car")
    case.do(c.CancelCase())
    assert (case.case.state, undone(case)) == ("cancelled", [])


def test_work_that_a_person_completed_is_undone() -> None:
    case = Played(TRIP)
    fail(case, "Hotel")
    case.resolve("complete", {"room": 8})
    case.do(c.CancelCase())
    assert case.case.activations[case.ref("NoHotel").activation].instances[1].data == b'{"room":8}'


def test_a_failure_in_a_sub_net_undoes_it_and_takes_the_error_flow() -> None:
    case = Played(composite())
    case.complete("Hotel")
    case.complete("Car")
    fail(case, "Pay")
    assert case.incidents == []
    assert case.open == ["NoCar"]
    case.complete("NoCar")
    restarted(case)
    case.complete("NoHotel")
    assert case.open == ["Sorry"]
    case.complete("Sorry")
    assert case.case.state == "completed"
    assert undone(case) == ["Car", "Hotel"]


def test_without_anything_to_undo_the_error_flow_is_taken_at_once() -> None:
    case = Played(composite())
    fail(case, "Hotel")
    assert case.open == ["Sorry"]


def test_a_sub_net_that_takes_too_long_is_undone() -> None:
    case = Played(composite(timeout=60))
    case.complete("Hotel")
    case.now += 60 * S
    case.do(c.FireTimer(max(case.case.timers)))
    assert (case.open, case.case.timers) == (["NoHotel"], {})
    case.complete("NoHotel")
    assert case.open == ["Sorry"]


def test_a_late_sub_net_without_an_error_flow_is_undone_before_a_person_is_asked() -> None:
    case = Played(composite(deadline="1970-01-01T00:01:00Z", on_error=None))
    case.complete("Hotel")
    case.now = 60 * S
    case.do(c.FireTimer(1))
    assert case.incidents == []
    case.complete("NoHotel")
    assert case.incidents == ["task_failed"]
    case.resolve("retry")
    assert case.open == ["Hotel"]


def test_cancelling_a_composite_task_undoes_it_first() -> None:
    case = Played(composite())
    case.complete("Hotel")
    case.do(c.CancelTask("Trip", reason="enough"))
    assert "Trip" in case.case.root.active
    assert case.do(c.CancelTask("Trip", reason="enough")) == []
    case.complete("NoHotel")
    assert case.case.root.active == {}
    assert [event.detail for event in case.history if isinstance(event, e.TaskCancelled) and event.task == "Trip"] == [
        "enough"
    ]


def test_a_region_around_a_composite_task_undoes_it_beside_the_flow_that_goes_on() -> None:
    document: Document = {
        "tasks": {"A": {}, "Trip": {"net": "trip"}, "Stop": {**WORK, "cancels": ["Trip"]}, "After": WORK},
        "flows": [*path("start", "A", "Trip", "end"), *path("A", "Stop", "After", "end")],
        "nets": {"trip": TRIP},
    }
    case = Played(document)
    case.complete("Hotel")
    case.complete("Stop")
    assert sorted(case.open) == ["After", "NoHotel"]
    case.complete("After")
    assert case.case.state == "running"
    case.complete("NoHotel")
    assert case.case.state == "completed"


def test_an_explicit_end_waits_for_what_is_undone_below_it() -> None:
    document: Document = {
        "termination": "explicit",
        "tasks": {"A": {}, "Trip": {"net": "trip"}, "Stop": {**WORK, "compensate": "Undo"}, "Undo": WORK},
        "flows": [*path("start", "A", "Trip", "end"), *path("A", "Stop", "end")],
        "nets": {"trip": TRIP},
    }
    case = Played(document)
    case.complete("Hotel")
    case.complete("Stop")
    assert (case.open, case.case.state) == (["NoHotel"], "running")
    case.complete("NoHotel")
    assert (case.case.state, undone(case)) == ("completed", ["Hotel"])


def test_nested_scopes_are_undone_from_the_inside() -> None:
    document: Document = {
        "tasks": {"Book": {**WORK, "compensate": "Unbook"}, "Unbook": WORK, "Trip": {"net": "trip"}},
        "flows": path("start", "Book", "Trip", "end"),
        "nets": {"trip": TRIP},
    }
    case = Played(document)
    case.complete("Book")
    case.complete("Hotel")
    case.do(c.CancelCase())
    assert case.open == ["NoHotel"]
    case.complete("NoHotel")
    assert case.open == ["Unbook"]
    case.complete("Unbook")
    assert (case.case.state, undone(case)) == ("cancelled", ["Hotel", "Book"])


def test_a_composite_task_that_waits_to_be_undone_is_overtaken_by_the_end_of_the_case() -> None:
    case = Played(composite())
    case.complete("Hotel")
    case.complete("Car")
    fail(case, "Pay")
    case.complete("NoCar")
    case.do(c.CancelCase())
    assert case.open == ["NoHotel"]
    case.complete("NoHotel")
    assert (case.case.state, undone(case)) == ("cancelled", ["Car", "Hotel"])


def test_a_completed_sub_net_is_final_unless_its_task_can_be_undone() -> None:
    for expected in ([], ["Undo"]):
        document = composite(compensate=expected[0]) if expected else composite()
        document["tasks"] = {**document["tasks"], "Undo": WORK}  # type: ignore[dict-item]  # a document
        case = Played(document)
        for task in ("Hotel", "Car", "Pay"):
            case.complete(task, {task: 1})
        case.do(c.CancelCase())
        assert case.open == expected
    assert case.case.activations[case.ref("Undo").activation].instances[1].data == b'{"Hotel":1,"Car":1,"Pay":1}'


def test_each_round_and_each_turn_and_each_instance_is_undone() -> None:
    document: Document = {
        "tasks": {
            "A": {**WORK, "compensate": "UndoA"},
            "B": {**WORK, "compensate": "UndoB", "loop": {"until": "data.n >= 2"}},
            "C": {**WORK, "compensate": "UndoC", "instances": 3},
            "D": {**WORK, "split": "xor"},
            **{f"Undo{name}": WORK for name in "ABC"},
        },
        "flows": [*path("start", "A", "B", "C", "D"), flow("D", "A", "data.again"), flow("D", "end", default=True)],
    }
    case = Played(document, {"n": 0, "again": True})
    case.complete("A", {"round": 1})
    case.complete("B", {"n": 1})
    case.complete("B", {"n": 2})
    for _ in range(3):
        case.complete("C")
    case.complete("D")
    case.complete("A", {"round": 2})
    case.do(c.CancelCase())
    inputs = []
    while case.open:
        (task,) = case.open
        inputs.append((task, case.case.activations[case.ref(task).activation].instances[1].data))
        case.complete(task)
    assert inputs == [
        ("UndoA", b'{"round":2}'),
        *[("UndoC", b"{}")] * 3,
        ("UndoB", b'{"n":2}'),
        ("UndoB", b'{"n":1}'),
        ("UndoA", b'{"round":1}'),
    ]
    assert case.case.state == "cancelled"


def test_automatic_and_composite_compensations_and_mappings() -> None:
    document: Document = {
        "tasks": {
            "A": {**WORK, "compensate": "Note"},
            "B": {**WORK, "compensate": "Ask"},
            "C": {**WORK, "compensate": "Net"},
            "D": WORK,
            "Note": {"out": {"noted": "data.id + 1"}},
            "Ask": {**WORK, "in": {"who": "data.id"}},
            "Net": {"net": "inner"},
        },
        "flows": path("start", "A", "B", "C", "D", "end"),
        "nets": {"inner": {"tasks": {"E": {**WORK, "in": {"id": "data.id"}}}, "flows": path("start", "E", "end")}},
    }
    case = Played(document)
    for number, task in enumerate("ABC"):
        case.complete(task, {"id": number})
    case.do(c.UpdateCaseData(b'{"id":9}'))
    case.do(c.CancelCase())
    assert case.open == ["E"]
    assert case.case.activations[case.ref("E").activation].instances[1].data == b'{"id":2}'
    case.complete("E")
    case.do(c.UpdateCaseData(b'{"id":9}'))
    assert case.case.activations[case.ref("Ask").activation].instances[1].data == b'{"who":1}'
    case.complete("Ask")
    assert case.case.state == "cancelled"
    assert msgspec.json.decode(case.case.root.data)["noted"] == 1


def test_what_a_signal_brought_is_undone() -> None:
    document: Document = {
        "tasks": {"Paid": {"trigger": "paid", "compensate": "Refund"}, "B": WORK, "Refund": WORK},
        "flows": path("start", "Paid", "B", "end"),
    }
    case = Played(document)
    case.do(c.Signal("paid", b'{"sum":5}'))
    case.do(c.CancelCase())
    assert case.case.activations[case.ref("Refund").activation].instances[1].data == b'{"sum":5}'


def test_a_compensation_that_fails_is_tried_again_and_then_a_person_is_asked() -> None:
    document: Document = {**TRIP, "on_incident": "fail"}
    document["tasks"] = {**TRIP["tasks"], "NoCar": {**WORK, "retry": {"max_attempts": 2, "backoff": 0}}}  # type: ignore[dict-item]  # a document
    case = until_cancelled(document)
    fail(case, "NoCar")
    assert case.open == ["NoCar"]
    fail(case, "NoCar")
    assert (case.incidents, case.case.state) == (["task_failed"], "running")
    case.resolve("skip")
    assert case.open == ["NoHotel"]


def test_fail_case_ends_what_is_being_undone_at_once() -> None:
    case = until_cancelled(TRIP)
    fail(case, "NoCar")
    case.resolve("fail_case")
    assert case.case.state == "failed"
    assert (case.case.activations, case.case.root.completions) == ({}, [])


def test_fail_case_in_a_sub_net_that_is_being_undone_ends_at_once() -> None:
    case = Played(composite())
    case.complete("Hotel")
    fail(case, "Car")
    fail(case, "NoHotel")
    case.resolve("fail_case")
    assert case.case.state == "failed"
    assert list(case.case.nets) == [1]


def test_a_case_that_fails_is_undone() -> None:
    case = Played({**TRIP, "on_incident": "fail"})
    case.complete("Hotel")
    fail(case, "Car")
    assert (case.open, case.incidents) == (["NoHotel"], [])
    case.complete("NoHotel")
    assert case.case.state == "failed"
    person = Played(TRIP)
    person.complete("Hotel")
    fail(person, "Car")
    person.resolve("fail_case")
    assert person.open == ["NoHotel"]
    person.complete("NoHotel")
    assert person.case.state == "failed"


def test_a_suspended_case_is_undone_when_it_is_resumed() -> None:
    case = Played(TRIP)
    case.complete("Hotel")
    case.do(c.StartItem(case.ref("Car")))
    case.do(c.SuspendCase())
    case.complete("Car")
    case.do(c.CancelCase())
    assert (case.case.state, case.open) == ("suspended", [])
    case.do(c.ResumeCase())
    assert case.open == ["NoCar"]
    case.complete("NoCar")
    case.complete("NoHotel")
    assert case.case.state == "cancelled"


def test_forced_completion_undoes_nothing() -> None:
    case = Played(composite())
    case.complete("Hotel")
    case.do(c.CompleteInstances("Trip"))
    assert (case.open, undone(case)) == (["Done"], [])


def test_a_compensation_can_be_called_off() -> None:
    case = until_cancelled(TRIP)
    case.do(c.CancelTask("NoCar"))
    assert case.open == ["NoHotel"]


def test_undoing_much_is_done_in_slices() -> None:
    document: Document = {
        "tasks": {"A": {"compensate": "U", "split": "xor", "out": {"n": "data.n + 1"}}, "B": WORK, "U": {}},
        "flows": [*path("start", "A"), flow("A", "A", "data.n < 500"), flow("A", "B", default=True), *path("B", "end")],
    }
    case = Played(document, {"n": 0})
    events = case.do(c.CancelCase("the weather"))
    first, second = (event.firings for event in events if isinstance(event, e.SettlePaused))
    assert second - first == SLICE_FIRINGS
    assert (case.case.state, case.case.reason, len(undone(case))) == ("cancelled", "the weather", 500)


def test_explanations() -> None:
    case = until_cancelled(TRIP)
    assert case.explained("NoCar").sentence == (
        "NoCar is offered to worker; it starts when somebody takes it. It undoes Car, 1 more to go."
    )
    assert case.explained("Pay").sentence == (
        "Pay does not begin any more: this net has ended, and what was completed in it is undone."
    )
    assert summary(case.case, explain(case.case, case.model)) == (
        "The case is running, and is cancelled when everything completed is undone: 1 work item(s) are open."
    )
    case.complete("NoCar")
    assert case.explained("NoHotel").sentence.endswith("It undoes Hotel, the last one.")
    other = Played(composite())
    other.complete("Hotel")
    assert other.explained("NoHotel").sentence == (
        "NoHotel undoes Hotel when that becomes necessary (1 completed so far)."
    )
    fail(other, "Car")
    assert other.explained("Trip").sentence == (
        "Trip has started: it is stopped, and what sub-net 'trip' completed is being undone."
    )


@pytest.mark.parametrize(
    ("undo", "code"),
    [
        ({"trigger": "t"}, "conflict"),
        ({"timer": 5}, "conflict"),
        ({**WORK, "mutex": "m"}, "conflict"),
        ({**WORK, "instances": 2}, "conflict"),
        ({**WORK, "compensate": "Pay"}, "conflict"),
        ({**WORK, "loop": {"until": "true"}}, "conflict"),
        ({**WORK, "on_error": "Pay"}, "no_flow"),
        ({**WORK, "join": "and"}, "conflict"),
    ],
)
def test_what_a_compensation_cannot_be(undo: Document, code: str) -> None:
    document: Document = {"id": "x", **TRIP, "tasks": {**TRIP["tasks"], "NoCar": undo}}  # type: ignore[dict-item]  # a document
    with pytest.raises(InvalidDocument) as refusal:
        parse_spec(document)
    assert code in {problem.code for problem in refusal.value.problems}


def test_a_compensation_has_no_flows() -> None:
    tasks: Document = {"A": {**WORK, "compensate": "B"}, "B": WORK}
    with pytest.raises(InvalidDocument, match="part of a flow"):
        parse_spec({"id": "x", "tasks": tasks, "flows": path("start", "A", "B")})


def test_what_is_final_is_told() -> None:
    outer = {"T": {"net": "middle", "instances": 2}}
    middle = {"tasks": {"T": {"net": "trip"}}, "flows": path("start", "T", "end")}
    nets = {"middle": middle, "trip": TRIP}
    spec = parse_spec({"id": "x", "tasks": outer, "flows": path("start", "T", "end"), "nets": nets})
    assert unsupported(spec) == ()
    assert [(found.path, found.code) for found in findings(spec)] == [("nets.middle.tasks.T", "final_when_complete")]


# -- regions, joins and instances -------------------------------------------------------------------------------------


def test_a_region_leaves_completed_work_alone_until_the_net_ends() -> None:
    document: Document = {
        "tasks": {"A": {}, "Hotel": {**WORK, "compensate": "U"}, "U": WORK, "Stop": {**WORK, "cancels": ["Hotel"]}},
        "flows": [*path("start", "A", "Hotel", "Join"), *path("A", "Stop", "Next", "Join"), *path("Join", "end")],
    }
    document["tasks"] |= {"Join": {**WORK, "join": "or"}, "Next": WORK}  # type: ignore[operator]  # a document
    early, late = Played(document), Played(document)
    early.complete("Stop")
    early.do(c.CancelCase())
    assert (early.case.state, undone(early)) == ("cancelled", []), "it was stopped before it was done"
    late.complete("Hotel", {"room": 7})
    late.complete("Stop")
    assert late.open == ["Next"], "nothing is undone while the net goes on"
    late.do(c.CancelCase())
    assert (late.open, undone(late)) == (["U"], ["Hotel"])


def test_a_cancelling_join_leaves_completed_work_alone() -> None:
    document: Document = {
        "tasks": {
            "S": {},
            "A": {**WORK, "compensate": "U"},
            "B": WORK,
            "C": WORK,
            "J": {**WORK, "join": {"partial": {"need": 1, "mode": "cancelling"}}},
            "U": WORK,
        },
        "flows": [*path("start", "S", "A", "B", "J", "end"), *path("S", "C", "J")],
    }
    case = Played(document)
    case.complete("A")
    case.complete("C")
    assert (case.open, undone(case)) == (["J"], [])
    case.do(c.CancelCase())
    assert undone(case) == ["A"]


def trips(**more: object) -> Document:
    """Several trips at once; Done when enough of them are."""
    return {
        "tasks": {"Trip": {"net": "trip", **more}, "Done": WORK},
        "flows": path("start", "Trip", "Done", "end"),
        "nets": {"trip": TRIP},
    }


def booked(document: Document, hotels: int = 3) -> Played:
    """All hotels are booked, nothing else yet."""
    case = Played(document)
    for _ in range(hotels):
        case.complete("Hotel")
    return case


@pytest.mark.parametrize("sync", [True, False])
def test_several_sub_nets_are_undone_side_by_side(sync: bool) -> None:
    case = booked(trips(instances={"min": 3, "sync": sync}))
    case.do(c.CancelCase())
    assert case.open == ["NoHotel"] * 3
    for _ in range(3):
        assert case.case.state == "running"
        restarted(case)
        case.complete("NoHotel")
    assert (case.case.state, undone(case)) == ("cancelled", ["Hotel"] * 3)


def test_cancelling_all_instances_undoes_each_and_takes_no_more() -> None:
    case = booked(trips(instances={"min": 3, "create": "dynamic"}))
    case.do(c.CancelInstances("Trip"))
    assert case.open == ["NoHotel"] * 3
    with pytest.raises(WrongState, match="stopped, and what it did is being undone"):
        case.refused(c.AddInstance("Trip"))
    assert case.do(c.CompleteInstances("Trip")) == []
    for _ in range(3):
        case.complete("NoHotel")
    assert (case.case.state, undone(case)) == ("completed", ["Hotel"] * 3)


def test_the_rest_is_undone_behind_a_flow_that_has_gone_on() -> None:
    case = booked(trips(instances={"min": 3, "threshold": 1, "rest": "cancel"}))
    case.complete("Car")
    case.complete("Pay")
    assert sorted(case.open) == ["Done", "NoHotel", "NoHotel"]
    assert case.explained("Trip").sentence == (
        "Trip has 3 instances: 1 done, 2 open (2 being undone); the flow has gone on, and it can be entered again when "
        "the rest is done."
    )
    case.complete("Done")
    assert case.case.state == "running"
    case.complete("NoHotel")
    restarted(case)
    case.complete("NoHotel")
    assert (case.case.state, undone(case)) == ("completed", ["Hotel", "Hotel"])
    assert len([event for event in case.history if isinstance(event, e.TaskCompleted) and event.task == "Trip"]) == 1


def test_one_of_several_sub_nets_that_takes_too_long_is_undone_before_a_person_is_asked() -> None:
    case = booked(trips(instances=3, timeout=60))
    case.now += 60 * S
    case.do(c.FireTimer(min(case.case.timers)))
    assert (sorted(case.open), case.incidents) == (["Car", "Car", "NoHotel"], [])
    case.complete("NoHotel")
    assert case.incidents == ["task_failed"]
    case.resolve("retry")
    assert sorted(case.open) == ["Car", "Car", "Hotel"]


def test_forcing_several_sub_nets_lets_the_one_be_undone_that_had_failed() -> None:
    case = booked(trips(instances=3, timeout=60))
    case.now += 60 * S
    case.do(c.FireTimer(min(case.case.timers)))
    case.do(c.CompleteInstances("Trip"))
    assert sorted(case.open) == ["Done", "NoHotel"]
    case.complete("NoHotel")
    assert (case.open, case.incidents) == (["Done"], [])
    case.complete("Done")
    assert (case.case.state, case.case.timers) == ("completed", {})


def test_a_deadline_of_several_sub_nets_takes_its_flow_when_all_are_undone() -> None:
    document = composite(instances=3, deadline="1970-01-01T00:01:00Z", on_error=None, on_timeout="Sorry")
    case = booked(document)
    case.now = 60 * S
    case.do(c.FireTimer(1))
    for _ in range(3):
        assert case.open[-1] == "NoHotel"
        case.complete("NoHotel")
    assert case.open == ["Sorry"]


def test_an_or_join_does_not_wait_for_what_is_cancelled_and_being_undone() -> None:
    document: Document = {
        "tasks": {
            "S": {"split": "or"},
            "Trip": {"net": "trip"},
            "Stop": {**WORK, "cancels": ["Trip"]},
            "J": {**WORK, "join": "or"},
        },
        "flows": [
            *path("start", "S"),
            flow("S", "Trip", "true"),
            flow("S", "Stop", "true"),
            *path("Trip", "J"),
            *path("Stop", "J", "end"),
        ],
        "nets": {"trip": TRIP},
    }
    case = Played(document)
    case.complete("Hotel")
    case.complete("Stop")
    assert sorted(case.open) == ["J", "NoHotel"]
