"""Cancellation and Force Completion: patterns 19, 20 and 25 to 27."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import Category, Pattern

_GROUP: Final[Category] = "Cancellation and Force Completion"

CANCELLATION: Final = (
    Pattern(
        19,
        "Cancel Task",
        _GROUP,
        "An enabled task is withdrawn, or a running one is stopped.",
        "cancels: [task]",
        "",
        "Before the start and during execution, and the thread of control is removed with it.",
        "Russell et al. 2006: partial where the task ends with a wrong status or needs an event at its border.",
        aliases=("Cancel Activity", "Withdraw Task", "Withdraw Activity"),
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
        "output.",
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
    ),
    Pattern(
        27,
        "Complete Multiple Instance Task",
        _GROUP,
        "A task with several instances is completed by force: the rest is removed and the flow goes on.",
        "the operation CompleteInstances, or completes: [task]",
        "One run of the task at a time, or the activation is named.",
        "An explicit command, at any time.",
        "Russell et al. 2006: no evaluated product supports it fully.",
        aliases=("Complete MI Task", "Complete MI Activity", "Complete Multiple Instance Activity"),
    ),
)
