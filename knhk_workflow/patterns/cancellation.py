"""Cancellation and Force Completion: patterns 19, 20 and 25 to 27."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import OUTSIDE, Category, Net, Pattern, flow, moves, outside, path

_GROUP: Final[Category] = "Cancellation and Force Completion"


def _three(effect: str) -> Net:
    """B in three instances beside X, which has an effect on them."""
    return {
        "tasks": {**outside("A", "C"), "B": {**OUTSIDE, "instances": 3}, "X": {**OUTSIDE, effect: ["B"]}},
        "flows": [*path("start", "A", "B", "C", "end"), *path("A", "X", "end")],
    }


CANCELLATION: Final = (
    Pattern(
        19,
        "Cancel Task",
        _GROUP,
        "An enabled task is withdrawn, or a running one is stopped.",
        "cancels: [task]",
        "",
        "Before the start and during execution, and the thread of control is removed with it.",
        "Russell et al. 2006: partial where the task ends with a wrong status or needs an event at its border. The "
        "operation CancelTask does the same from outside; work that never began is withdrawn, work that had begun is "
        "terminated. A token in a place that the task shares with others stays unless the place is named as well.",
        aliases=("Cancel Activity", "Withdraw Task", "Withdraw Activity"),
        net={
            "tasks": {**outside("A", "B", "D"), "C": {**OUTSIDE, "cancels": ["B"]}},
            "flows": [*path("start", "A", "B", "D", "end"), *path("A", "C", "end")],
        },
        script=moves("complete A", "start B", "complete C"),
    ),
    Pattern(
        20,
        "Cancel Case",
        _GROUP,
        "A whole case is removed with everything below it, and ends unsuccessfully.",
        "the operation CancelCase",
        "",
        "All work, timers and sub-nets go, and the case is recorded as cancelled.",
        "Russell et al. 2006: partial where the case is recorded as completed.",
        aliases=("Withdraw Case",),
        net={
            "tasks": {**outside("A"), "Wait": {"timer": "1d"}, "Outer": {"net": "Outer"}},
            "flows": [*path("start", "A", "Wait", "end"), *path("A", "Outer", "end")],
            "nets": {
                "Outer": {
                    "tasks": {"Fork": {}, "P": {**OUTSIDE, "instances": 3}, "Inner": {"net": "Inner"}},
                    "flows": [flow("start", "Fork"), *path("Fork", "P", "end"), *path("Fork", "Inner", "end")],
                },
                "Inner": {"tasks": outside("Q"), "flows": path("start", "Q", "end")},
            },
        },
        script=moves("complete A", "complete P", "start P", "start Q", "cancel_case"),
    ),
    Pattern(
        25,
        "Cancel Region",
        _GROUP,
        "Any set of tasks and places is emptied when a task completes.",
        "cancels: [tasks and conditions]",
        "The set lies in one net; it need not be connected.",
        "An arbitrary set, with the cancelling task inside or outside of it.",
        "Russell et al. 2006: partial where the region must be a sub-process. Cancellation precedes the task's own "
        "output. A task in the region brings the places that lead to it alone; what lies outside runs on and may put "
        "a token into the region later.",
        net={
            "tasks": {
                **outside("A", "B", "C", "E", "F"),
                "D": {**OUTSIDE, "cancels": ["B", "C->F", "F"]},
            },
            "flows": [
                *path("start", "A", "B", "E", "end"),
                *path("A", "C", "F", "end"),
                *path("A", "D", "end"),
            ],
        },
        script=moves("complete A", "start B", "complete D", "complete C", "complete F"),
    ),
    Pattern(
        26,
        "Cancel Multiple Instance Task",
        _GROUP,
        "A task with several instances is stopped as a whole; what is done keeps its effect, nothing goes on.",
        "the operation CancelInstances, or cancels: [task]",
        "One run of the task at a time, or the activation is named.",
        "At any time before its completion, for instances that run together and one after the other.",
        "Russell et al. 2006: partial where it cannot be told from completion.",
        aliases=("Cancel MI Task", "Cancel MI Activity", "Cancel Multiple Instance Activity"),
        net=_three("cancels"),
        script=moves("complete A", 'complete B {"b1": "kept"}', "start B", "complete X"),
    ),
    Pattern(
        27,
        "Complete Multiple Instance Task",
        _GROUP,
        "A task with several instances is completed by force: the rest is removed and the flow goes on.",
        "the operation CompleteInstances, or completes: [task]",
        "One run of the task at a time, or the activation is named.",
        "An explicit command, at any time.",
        "Russell et al. 2006: no evaluated product supports it fully. Instances that had begun count as completed "
        "without output, those that had not are withdrawn.",
        aliases=("Complete MI Task", "Complete MI Activity", "Complete Multiple Instance Activity"),
        net=_three("completes"),
        script=moves("complete A", "complete B", "start B", "complete X", "complete C"),
    ),
)
