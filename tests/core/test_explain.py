"""What explain says, word for word."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.core.case import encode_state
from knhk_workflow.core.explain import explain, summary
from knhk_workflow.core.explanation import Wait
from tests.core.cases import WORK, Document, Played, flow, path

NET: Document = {
    "tasks": {"A": WORK, "B": WORK, "C": {"required_roles": ["chief", "clerk"]}, "D": {**WORK, "join": "and"}},
    "flows": [*path("start", "A", "B", "D", "end"), *path("A", "C", "D")],
}


def test_an_offered_item() -> None:
    played = Played(NET)
    played.complete("A")
    told = played.explained("C")
    assert told.status == "offered"
    assert told.sentence == "C is offered to chief, clerk; it starts when somebody takes it."
    assert told.items == ("3.1.1@case",)
    assert told.waits_for == (Wait("work_item", "3.1.1@case", "its work item is offered"),)


def test_a_waiting_and_join() -> None:
    played = Played(NET)
    played.complete("A")
    played.complete("B")
    told = played.explained("D")
    assert told.status == "waiting"
    assert told.sentence == (
        "D waits at its and-join: 1 of 2 branches arrived (B->D), missing C->D: 'C->D' gets its token from C."
    )
    assert (told.join, told.arrived, told.missing, told.waits_for) == (
        "and",
        ("B->D",),
        ("C->D",),
        (Wait("token", "C->D", "C brings it"),),
    )


def test_a_task_that_nothing_has_reached() -> None:
    told = Played(NET).explained("D")
    assert told.status == "idle"
    assert told.sentence == "D is not enabled: no token in all of B->D, C->D."


def test_started_work_names_who_has_it() -> None:
    played = Played(NET)
    played.do(c.StartItem(played.ref("A"), "ada"))
    assert played.explained("A").sentence == "A has started: its work item is started by ada."


def test_an_incident_shows_its_guards_with_what_they_read() -> None:
    played = Played(
        {
            "tasks": {"A": WORK, "B": WORK, "C": WORK},
            "flows": [*path("start", "A"), flow("A", "B", "data.n > 5"), flow("A", "C", "data.m > 5")],
        },
        {"n": 3, "m": 1},
    )
    played.complete("A")
    told = played.explained("A")
    assert told.status == "incident"
    assert told.sentence.startswith("A: no outgoing flow of task 'A' can be taken")
    assert told.sentence.endswith("(incident 1, no_branch).")
    assert [(guard.flow, guard.expression, guard.result) for guard in told.guards] == [
        ("A->B", "data.n > 5", "false"),
        ("A->C", "data.m > 5", "false"),
    ]
    assert [list(guard.values.values()) for guard in told.guards] == [["3"], ["1"]]


def test_the_data_is_read_once_however_many_guards_there_are() -> None:
    def calls(guards: int, sensitive: list[str]) -> Counter[str]:
        """How often what is linear in the data was done: decodings, and steps into the data of what hides values."""
        names = [f"t{number}" for number in range(guards)]
        document: Document = {
            "tasks": {"pick": {**WORK, "split": "xor"}, **dict.fromkeys(names, WORK)},
            "flows": [
                *path("start", "pick"),
                *(flow("pick", name, f"data.n == {number}") for number, name in enumerate(names)),
                {"from": "pick", "to": "end", "default": True},
                *(flow(name, "end") for name in names),
            ],
            "sensitive": sensitive,
        }
        played = Played(document, {"n": 1, "rows": [{"cell": row} for row in range(50)]})
        found: Counter[str] = Counter()

        def seen(frame: FrameType, event: str, about: object) -> None:
            if event == "c_call" and about is msgspec.json.decode:
                found["decodings"] += 1
            elif event == "call" and frame.f_code.co_filename.endswith("veil.py"):
                found["hidings"] += 1

        sys.setprofile(seen)
        try:
            tasks = explain(played.case, played.model)
        finally:
            sys.setprofile(None)
        assert sum(len(task.guards) for task in tasks) == guards
        return found

    for sensitive in ([], ["secret"]):
        few, many = calls(2, sensitive), calls(40, sensitive)
        assert few == many
        assert many["decodings"] == 1
    assert few["hidings"] > 100, "each value once"


def test_a_running_sub_net_is_named() -> None:
    played = Played(
        {
            "tasks": {"S": {"net": "inner"}},
            "flows": path("start", "S", "end"),
            "nets": {"inner": {"tasks": {"A": WORK}, "flows": path("start", "A", "end")}},
        }
    )
    assert played.explained("S").sentence == "S has started: sub-net 'inner' is running as net instance 2."
    assert played.explained("A").net == "inner"


def test_the_case_in_one_sentence() -> None:
    played = Played(NET, start=False)
    assert summary(played.case, ()) == "The case is created and has not been started."
    played.do(c.StartCase())
    played.complete("A")
    played.complete("B")
    tasks = explain(played.case, played.model)
    assert summary(played.case, tasks) == (
        "The case is running: 1 work item(s) are open, 1 task(s) wait for tokens, signals or locks."
    )
    played.do(c.CancelCase("no longer wanted"))
    assert summary(played.case, ()) == "The case is cancelled: no longer wanted."


def test_what_needs_attention_comes_first_and_nothing_changes() -> None:
    played = Played(NET)
    played.complete("A")
    played.complete("B")
    before = encode_state(played.case)
    tasks = explain(played.case, played.model)
    assert [task.status for task in tasks] == ["offered", "waiting", "idle", "idle"]
    assert encode_state(played.case) == before
