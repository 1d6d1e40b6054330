"""Iteration: patterns 10, 21 and 22."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import OUTSIDE, Category, Pattern, completed, flow, moves, path, true

_GROUP: Final[Category] = "Iteration"

ITERATION: Final = (
    Pattern(
        10,
        "Arbitrary Cycles",
        _GROUP,
        "A loop with more than one entry or exit.",
        "flows that lead back",
        "",
        "Unstructured loops, drawn as they are.",
        "Russell et al. 2006: not supported where loops must be blocks. Every round is a new activation.",
        aliases=("Unstructured Loop", "Iteration", "Cycle"),
        net={
            "tasks": {name: {**OUTSIDE, "join": "xor"} for name in ("A", "B", "C")},
            "flows": [
                flow("start", "A"),
                flow("A", "C", true("skip")),
                flow("A", "B", default=True),
                flow("B", "C", true("q")),
                flow("B", "A", default=True),
                flow("C", "B", true("r")),
                flow("C", "end", default=True),
            ],
        },
        script=moves(
            "complete A",
            'complete B {"q": false}',
            "complete A",
            'complete B {"q": true}',
            'complete C {"r": true}',
            "complete B",
            'complete C {"r": false}',
        ),
    ),
    Pattern(
        21,
        "Structured Loop",
        _GROUP,
        "A task or block runs repeatedly, with a test before or after each run, one entry and one exit.",
        "loop: {while | until}",
        "",
        "A construct with a test before or after.",
        "Russell et al. 2006: partial where only one of the two tests exists. All turns are one activation; the first "
        "test of `while` is made when the task is enabled. A block is a sub-net.",
        aliases=("While Loop", "Repeat Loop", "Loop"),
        net={
            "tasks": {
                "Before": {**OUTSIDE, "loop": {"while": "int(data.n) < 2"}, "out": {"n": "int(data.n) + 1"}},
                "After": {**OUTSIDE, "loop": {"until": true("done")}},
            },
            "flows": path("start", "Before", "After", "end"),
        },
        data={"n": 0},
        script=moves(
            "complete Before", "complete Before", 'complete After {"done": false}', 'complete After {"done": true}'
        ),
    ),
    Pattern(
        22,
        "Recursion",
        _GROUP,
        "A task invokes itself, or one that it is part of, while it runs.",
        "net: a net that contains the task",
        "Some path through the net does not lead into it again.",
        "Direct recursion, not by starting another case.",
        "Russell et al. 2006: few of the evaluated systems support it. Every level has data of its own; nesting "
        "deeper than 256 is an incident.",
        net={
            "tasks": {"Begin": {"net": "Level"}},
            "flows": path("start", "Begin", "end"),
            "nets": {
                "Level": {
                    "tasks": {
                        "A": OUTSIDE,
                        "L": OUTSIDE,
                        "R": {"net": "Level", "in": {"d": "int(data.d) - 1"}, "out": {}},
                    },
                    "flows": [
                        flow("start", "A"),
                        flow("A", "R", "int(data.d) > 0"),
                        flow("A", "L", default=True),
                        flow("R", "end"),
                        flow("L", "end"),
                    ],
                }
            },
        },
        data={"d": 2},
        script=completed("A", "A", "A", "L"),
    ),
)
