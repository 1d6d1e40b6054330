"""Basic Control Flow: patterns 1 to 5."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import OUTSIDE, Pattern, completed, flow, moves, outside, path, true

BASIC: Final = (
    Pattern(
        1,
        "Sequence",
        "Basic Control Flow",
        "A task is enabled when the one before it in the same case has completed.",
        "a flow between two tasks",
        "",
        "A construct that orders two tasks without any condition.",
        "Russell et al. 2006: the building block of every process; all evaluated systems support it directly.",
        aliases=("Sequential Routing", "Serial Routing"),
        net={"tasks": outside("A", "B", "C"), "flows": path("start", "A", "B", "C", "end")},
        script=completed("A", "B", "C"),
    ),
    Pattern(
        2,
        "Parallel Split",
        "Basic Control Flow",
        "One thread becomes one thread on every outgoing branch, and all of them run at the same time.",
        "split: and (what several unguarded flows out of a task mean)",
        "",
        "Every branch is enabled together, explicitly or by several plain flows, and the branches really overlap.",
        "Russell et al. 2006: supported nearly everywhere; some systems let the branches only take turns.",
        aliases=("AND-split", "Parallel Routing", "Fork"),
        net={
            "tasks": outside("A", "B", "C"),
            "flows": [flow("start", "A"), flow("A", "B"), flow("A", "C")],
        },
        script=moves("complete A", "start B", "start C", "complete C", "complete B"),
    ),
    Pattern(
        3,
        "Synchronization",
        "Basic Control Flow",
        "A task goes on once every incoming branch has delivered.",
        "join: and",
        "Each incoming branch delivers exactly once for each firing; the join re-arms when all have.",
        "The join waits for all branches and is not bound to one particular split.",
        "Russell et al. 2006: a few block-structured systems offer it only as the end of a matching split. Tokens "
        "beyond one per branch are the matter of pattern 33; here they are kept, never lost.",
        aliases=("AND-join", "Rendezvous", "Synchronizer"),
        net={
            "tasks": {**outside("A", "B", "C"), "D": {**OUTSIDE, "join": "and"}},
            "flows": [*path("start", "A", "B", "D", "end"), flow("A", "C"), flow("C", "D")],
        },
        script=completed("A", "B", "C", "D"),
    ),
    Pattern(
        4,
        "Exclusive Choice",
        "Basic Control Flow",
        "Exactly one of several branches is taken, decided by data.",
        "split: xor (what guarded flows out of a task mean), with a default flow",
        "The decision can be made when the task before it completes.",
        "The construct itself makes the branches exclude each other: guards in order, the first true one wins, and a "
        "default.",
        "Russell et al. 2006: partial where the author alone must keep the guards apart. When no guard is true and "
        "there is no default, the task keeps its place with an incident that can be resolved.",
        aliases=("XOR-split", "Exclusive OR-split", "Conditional Routing", "Switch", "Decision", "Case Statement"),
        net={
            "tasks": {**outside("A", "B", "C", "D"), "M": {"join": "xor"}},
            "flows": [
                flow("start", "A"),
                flow("A", "B", true("p1")),
                flow("A", "C", true("p2")),
                flow("A", "D", default=True),
                flow("B", "M"),
                flow("C", "M"),
                flow("D", "M"),
                flow("M", "end"),
            ],
        },
        data={"p1": True},
        script=completed("A", "B"),
    ),
    Pattern(
        5,
        "Simple Merge",
        "Basic Control Flow",
        "Whichever branch arrives passes through; nothing is waited for.",
        "join: xor (what several flows into a task mean)",
        "The place of the merge is safe: two branches are never active at once.",
        "Branches come together without synchronization.",
        "Russell et al. 2006: partial where a system can neither assure nor check that the branches exclude each "
        "other. When they do not, every token passes, which is pattern 8.",
        aliases=("XOR-join", "Exclusive OR-join", "Asynchronous Join", "Merge"),
        net={
            "tasks": outside("A", "B", "C", "D"),
            "flows": [
                flow("start", "A"),
                flow("A", "B", true("p1")),
                flow("A", "C", default=True),
                *path("B", "D", "end"),
                flow("C", "D"),
            ],
        },
        data={"p1": True},
        script=completed("A", "B", "D"),
    ),
)
