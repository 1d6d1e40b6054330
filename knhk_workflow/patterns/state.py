"""State-based patterns: 16 to 18, 39 and 40."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import OUTSIDE, Category, Pattern, completed, flow, moves, outside, path

_GROUP: Final[Category] = "State-based"

STATE: Final = (
    Pattern(
        16,
        "Deferred Choice",
        _GROUP,
        "The outside chooses: all branches are offered, and the first one that starts withdraws the others.",
        "a condition with several tasks after it",
        "",
        "All branches are offered together, the choice falls at the start and as late as possible, and the withdrawal "
        "is atomic.",
        "Russell et al. 2006: partial where only messages and timers can choose, or the choice falls at completion. "
        "Work, signals and timers compete alike; a timer chooses when it is due.",
        aliases=("External Choice", "Implicit Choice", "Deferred XOR-split"),
        net={
            "tasks": {
                **outside("A", "B", "C"),
                "G": {"trigger": {"name": "go", "mode": "transient"}},
                "T": {"timer": "1h"},
            },
            "conditions": ["p"],
            "flows": [
                *path("start", "A", "p", "B", "end"),
                *path("p", "C", "end"),
                *path("p", "G", "end"),
                *path("p", "T", "end"),
            ],
        },
        script=moves("complete A", "start B", "complete B"),
    ),
    Pattern(
        17,
        "Interleaved Parallel Routing",
        _GROUP,
        "Tasks in a partial order, each once, no two of them active at the same time.",
        "sections, or mutex on the tasks",
        "A task that has started finishes before another one starts.",
        "Any partial order and tasks that take time.",
        "Russell et al. 2006: partial where the order is fixed at design time or only single steps are kept apart. "
        "The mutex is taken when work starts, not when it is offered; until it ends, starting another task of the same "
        "mutex is refused, and tasks that start by themselves wait in order. Completion, cancellation and failure "
        "release it; work that has failed for good and is taken up by a person takes it again before it goes on.",
        aliases=("Unordered Sequence",),
        net={
            "tasks": {
                "A": OUTSIDE,
                "B": {**OUTSIDE, "mutex": "m"},
                "C": {**OUTSIDE, "mutex": "m"},
                "D": {**OUTSIDE, "mutex": "m"},
                "E": {**OUTSIDE, "join": "and"},
            },
            "flows": [*path("start", "A", "B", "C", "E", "end"), *path("A", "D", "E")],
        },
        script=moves("complete A", "complete B", "start D", "complete D", "complete C", "complete E"),
    ),
    Pattern(
        18,
        "Milestone",
        _GROUP,
        "A task is enabled only while the case is in a given state; the test does not consume it.",
        "reads: [condition]",
        "The state is one of the net.",
        "A test of state; the offer is withdrawn when the state is left.",
        "Russell et al. 2006: partial where data flags are polled. The test is made until the task starts: one that "
        "has started finishes though the state is left meanwhile.",
        aliases=("Test Arc", "State Condition", "Withdraw Message"),
        net={
            "tasks": {
                "A": OUTSIDE,
                "X": OUTSIDE,
                "Y": OUTSIDE,
                "M": {**OUTSIDE, "reads": ["m"]},
                "Z": {**OUTSIDE, "join": "and"},
            },
            "conditions": ["p2", "m"],
            "flows": [
                *path("start", "A", "X", "m", "Y", "Z", "end"),
                *path("A", "p2", "M"),
                flow("M", "p2"),
                flow("p2", "Z"),
            ],
        },
        script=completed("A", "X", "M", "M", "Y", "Z"),
    ),
    Pattern(
        39,
        "Critical Section",
        _GROUP,
        "Two or more parts of a net are never active at the same time; who is in one finishes it.",
        "sections",
        "The parts are connected parts of the same net.",
        "Mutual exclusion of parts, not only of single tasks.",
        "Russell et al. 2006: partial where only one task can be protected. The lock is taken at the start of the "
        "first task inside and held while a token of the thread is inside. The parts that exclude each other are the "
        "tasks of one section; a condition lies inside when all tasks around it do.",
        net={
            "tasks": outside("A", "B1", "B2", "C1", "C2", "D"),
            "sections": {"s": ["B1", "B2", "C1", "C2"]},
            "flows": [*path("start", "A", "B1", "B2"), *path("A", "C1", "C2"), *path("A", "D")],
        },
        script=completed("A", "B1", "D", "B2", "C1", "C2"),
    ),
    Pattern(
        40,
        "Interleaved Routing",
        _GROUP,
        "A set of tasks, each once, in any order, one at a time; then the flow goes on.",
        "sections, or mutex on the tasks",
        "A task that has started finishes before another one starts.",
        "Any order, and what follows runs once when all are done.",
        "Russell et al. 2006: partial for ad-hoc blocks whose completion is not clear.",
        net={
            "tasks": {
                "A": OUTSIDE,
                **{task: {**OUTSIDE, "mutex": "m"} for task in "BCDE"},
                "F": {**OUTSIDE, "join": "and"},
            },
            "flows": [
                flow("start", "A"),
                *(step for task in "BCDE" for step in path("A", task, "F")),
                flow("F", "end"),
            ],
        },
        script=moves("complete A", "start D", "complete D", "complete B", "complete E", "complete C", "complete F"),
    ),
)
