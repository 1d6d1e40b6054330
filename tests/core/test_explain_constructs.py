"""What explain says of each construct: one sentence and its data, in a situation where it keeps a task."""

from __future__ import annotations

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.core.case import encode_state
from knhk_workflow.core.explain import explain
from knhk_workflow.core.explanation import InstanceCount, TaskExplanation, TokenPath, Wait
from tests.core.cases import Played
from tests.patterns.notation import document


class Told:
    """A case in a situation that commands lead to. Explaining it must not change it."""

    def __init__(self, *lines: str, data: object = None) -> None:
        self.played = Played(document("test", lines), data)

    def after(self, *commands: str) -> Told:
        """`complete A {"x": 1}`, `start A`, `trigger t`, `suspend`, `add B`, `close B`."""
        for each in commands:
            verb, _, rest = each.partition(" ")
            task, _, body = rest.partition(" ")
            if verb == "complete":
                self.played.complete(task, msgspec.json.decode(body or "{}"))
            elif verb == "start":
                self.played.do(c.StartItem(self.played.ref(task)))
            elif verb == "trigger":
                self.played.do(c.Signal(task))
            elif verb == "close":
                self.played.do(c.CloseInstances(task))
            else:
                self.played.do({"suspend": c.SuspendCase(), "resume": c.ResumeCase()}[verb])
        return self

    def __getitem__(self, task: str) -> TaskExplanation:
        before = encode_state(self.played.case)
        found = next(each for each in explain(self.played.case, self.played.model) if each.task_id == task)
        assert encode_state(self.played.case) == before
        return found


def split(*tasks: str, join: str = "", to: str = "J") -> str:
    """A net whose routing task A leads to each of `tasks`, and these to a join."""
    names = ", ".join(tasks)
    return f"net: start -> A; A -> {names}; {names} {join} -> {to}; {to} -> (done); routing: A"


def test_a_partial_join_counts_the_branches_that_it_needs() -> None:
    told = Told(split("B", "C", "D"), "net: J is {join: {partial: {need: 2}}}").after("complete B")["J"]
    assert told.status == "waiting"
    assert told.sentence == (
        "J waits at its partial join: 1 of the 2 branches that it needs, of 3, arrived (B->J); "
        "any of C->J, D->J counts."
    )
    assert (told.arrived, told.missing) == (("B->J",), ("C->J", "D->J"))
    assert told.waits_for[1] == Wait("token", "D->J", "D brings it")


def test_a_partial_join_that_has_fired_tells_its_round() -> None:
    case = Told(split("B", "C", "D"), "net: J is {join: {partial: {need: 1, mode: blocking}}}").after("complete B")
    assert case["J"].sentence == (
        "J is offered to worker; it starts when somebody takes it. The join of J has fired in this round: 1 of 3 "
        "branches came (B->J); 2 more of C->J, D->J must come, without effect, before it fires again."
    )
    told = case.after("complete J", "complete C")["J"]
    assert (told.status, told.missing) == ("waiting", ("D->J",))
    assert told.sentence == (
        "The join of J has fired in this round: 2 of 3 branches came (B->J, C->J); "
        "1 more of D->J must come, without effect, before it fires again."
    )


def test_a_blocked_token_is_told() -> None:
    case = Told(
        "net: start -> A; A -> (b), B, C; (b) -> J; B -> (b); C -> J; J -> (done); routing: A",
        "net: J is {join: {partial: {need: 1, mode: blocking}}}",
    )
    assert case.after("complete J", "complete B")["J"].sentence.endswith("further tokens in b wait for the next round.")


def test_a_thread_merge_counts_its_tokens() -> None:
    case = Told(
        "net: start -> A; A -> B; B -> J; J -> (done); routing: A; A is {split: {threads: 3}}",
        "net: J is {join: {merge: 3}}",
    )
    told = case.after("complete B", "complete B")["J"]
    assert told.sentence == "J waits at its thread merge: it takes 3 tokens of one branch at a time, 2 in B->J arrived."
    assert (told.status, told.arrived, told.missing) == ("waiting", ("B->J",), ("B->J",))


def test_an_or_join_names_the_live_token_and_its_way() -> None:
    case = Told("net: start -> A; A -> B, C; C -> D; B, D or-join -> J; J -> (done); routing: A").after("complete B")
    told = case["J"]
    assert told.sentence == (
        "J waits at its or-join: 1 of 2 branches arrived (B->J), and the token in A->C can still reach D->J "
        "through C, D."
    )
    assert told.missing == ("D->J",)
    assert told.paths == (TokenPath("A->C", "D->J", ("C", "D")),)
    at_work = case.after("start C")["J"]
    assert at_work.sentence.endswith("and the work of C can still reach D->J through D.")
    assert at_work.paths == (TokenPath("C", "D->J", ("C", "D")),)


def test_a_structured_merge_tells_which_branch_is_alive() -> None:
    case = Told(
        "net: start -> A; A or-split -> B when b | C when c | D when d; B, C, D structured-or-join -> J; J -> (done)",
        data={"b": True, "c": True, "d": False},
    ).after("complete A", "complete B", "start C")
    told = case["J"]
    assert told.sentence == (
        "J waits at its structured or-join: its split took B->J, C->J, of these B->J arrived; "
        "C->J is still coming: C is at work."
    )
    assert told.missing == ("C->J",)
    assert told.waits_for == (Wait("token", "C->J", "C brings it"),)


def test_a_local_merge_tells_which_input_has_not_delivered() -> None:
    case = Told(
        "net: start -> A; A or-split -> B when b | C when c | D otherwise; B, C, D local-or-join -> J; J -> (done)",
        data={"b": True, "c": True},
    ).after("complete A", "complete B")
    told = case["J"]
    assert told.sentence == (
        "J waits at its local or-join: B->J delivered a token, D->J told that nothing comes; "
        "C->J has not delivered yet."
    )
    assert (told.arrived, told.missing) == (("B->J",), ("C->J",))


def test_a_milestone_names_the_empty_condition() -> None:
    case = Told("net: start -> A; A -> X, M; X -> (m); (m) -> Y; Y, M -> (done); routing: A; M is {reads: [m]}")
    told = case["M"]
    assert told.status == "waiting"
    assert told.sentence == "M waits for its milestone: no token in m: m gets its token from X."
    assert told.waits_for == (Wait("milestone", "m", "X brings it"),)


def test_a_mutex_names_its_holder() -> None:
    case = Told(
        "net: start -> A; A -> B, P; B, P -> (done); routing: A; P runs Part",
        "net: B is {mutex: m}; P is {mutex: m}",
        "sub-net Part: start -> W; W -> end",
    )
    told = case["B"]
    assert told.status == "waiting"
    assert told.sentence == "B is offered, and it cannot start: mutex m is held by P."
    assert told.waits_for[-1] == Wait("section", "mutex m", "held by P")


def test_a_section_names_who_is_inside() -> None:
    case = Told(
        "net: start -> A; A -> B, C; B -> D; C -> E; D -> P; E -> (done); routing: A, P",
        "net: P -> (done); net is {sections: {s: [B, D, C, E]}}",
    ).after("complete B")
    assert case["C"].sentence == "C is offered, and it cannot start: section s is held by B->D."
    assert case["D"].status == "offered"


def test_a_task_that_starts_by_itself_waits_for_its_lock() -> None:
    case = Told(
        "net: start -> S; S -> B, Go; routing: S; Go -> P; P -> (done); B -> (done); P runs Part",
        "net: B is {mutex: m}; P is {mutex: m}",
        "sub-net Part: start -> W; W -> end",
    )
    told = case.after("start B", "complete Go")["P"]
    assert told.sentence == "P waits for mutex m, held by B."
    assert told.waits_for == (Wait("section", "mutex m", "held by B"),)


TRIGGERED = "net: start -> A; A -> B; B -> end; routing: B; B is {trigger: {name: t, mode: %s}}"


def test_a_trigger_and_what_is_kept_for_it() -> None:
    told = Told(TRIGGERED % "persistent").after("complete A")["B"]
    assert (told.status, told.sentence) == ("waiting", "B waits for the signal 't'.")
    assert told.waits_for == (Wait("trigger", "t", "persistent, 0 kept"),)
    early = Told(TRIGGERED % "persistent").after("trigger t", "trigger t")["B"]
    assert early.status == "idle"
    assert early.sentence == "B is not enabled: no token in one of A->B. 2 signals are kept for it."
    transient = Told(TRIGGERED % "transient").after("complete A")["B"]
    assert transient.sentence == "B waits for the signal 't', which is lost when it comes while nobody waits."
    taken = Told(TRIGGERED % "transient").after("complete A", "suspend", "trigger t")["B"]
    assert taken.sentence == "B has got its signal 't'; it goes on when the case is resumed."
    assert taken.waits_for == (Wait("resume", "case"),)


def test_a_signal_that_waits_for_a_lock() -> None:
    lines = "net: start -> A; A -> B, D; B, D -> (done); routing: A, B; D is {mutex: m}"
    transient = Told(lines, "net: B is {trigger: {name: t, mode: transient}, mutex: m}")
    told = transient.after("start D", "trigger t")["B"]
    assert told.sentence == "B has got its signal 't' and waits for mutex m, held by D."
    persistent = Told(lines, "net: B is {trigger: {name: t, mode: persistent}, mutex: m}")
    kept = persistent.after("start D", "trigger t")["B"]
    assert kept.sentence == "B waits for the signal 't'; a signal is kept for it while mutex m is held by D."


def test_a_task_that_only_signals_start() -> None:
    told = Told("net: start -> A; A -> end; B -> (done); routing: B; B is {trigger: {name: go}}")["B"]
    assert told.sentence == "B has no incoming flow: each signal 'go' starts it."
    assert told.waits_for == (Wait("trigger", "go"),)


def test_instances_are_counted() -> None:
    case = Told("net: start -> B; B -> C; C -> (done); B is {instances: {min: 3, threshold: 2}}")
    told = case.after("complete B", "start B")["B"]
    assert told.status == "started"
    assert told.sentence == (
        "B has 3 instances: 1 done, 2 open (1 started, 1 offered); the flow goes on when 2 are done."
    )
    assert told.instances == (InstanceCount(1, 3, 1, 2, 2, released=False, accepts=False),)
    assert [wait.kind for wait in told.waits_for] == ["work_item", "work_item"]
    released = case.after("complete B")["B"]
    assert released.sentence == (
        "B has 3 instances: 2 done, 1 open (1 offered); the flow has gone on, and it can be entered again when the "
        "rest is done."
    )
    assert released.instances[0].released


def test_instances_that_can_be_added_until_a_condition_holds() -> None:
    case = Told(
        "net: start -> B; B -> end; B is {instances: {min: 2, max: 5, create: dynamic, until: data.enough}}",
        data={"enough": False},
    ).after("complete B")
    told = case["B"]
    assert told.sentence == (
        "B has 2 instances: 1 done, 1 open (1 offered); the flow goes on when all are done, or as soon as data.enough "
        "is true (now false, data.enough = false), more can be added (at most 5)."
    )
    assert [(guard.flow, guard.result, guard.values) for guard in told.guards] == [
        ("until", "false", {"data.enough": "false"})
    ]
    assert told.instances[0].accepts
    closed = case.after("close B")["B"]
    assert closed.sentence.endswith(", closed to new ones.")
    assert not closed.instances[0].accepts


def test_a_loop_tells_its_turn() -> None:
    case = Told("net: start -> B; B -> end; B is {loop: {until: data.n > 2}}", data={"n": 1}).after(
        'complete B {"n": 2}'
    )
    told = case["B"]
    assert told.sentence == "B is in turn 2 of its loop: its work item is offered."
    assert [(guard.flow, guard.expression, guard.result) for guard in told.guards] == [("until", "data.n > 2", "false")]


def test_the_guard_that_kept_a_token_away_is_shown() -> None:
    case = Told(
        "net: start -> A; A xor-split -> B when data.n > 3 | C otherwise; B, C and-join -> D; D -> end", data={"n": 1}
    ).after("complete A")
    [guard] = case["B"].guards
    assert (guard.flow, guard.expression, guard.result, guard.values) == (
        "A->B",
        "data.n > 3",
        "false",
        {"data.n": "1"},
    )


def test_a_suspended_case_says_what_waits_for_it() -> None:
    told = Told("net: start -> A; A -> B, C; B, C and-join -> D; D -> end; routing: A").after("complete B", "start C")
    assert told.after("suspend", "complete C")["C"].sentence == (
        "C has started: its work is done and it goes on when the case is resumed."
    )
