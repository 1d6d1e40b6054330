"""Termination: patterns 11 and 43."""

from __future__ import annotations

from typing import Final

from knhk_workflow.patterns.pattern import Category, Pattern, completed, flow, outside, path

_GROUP: Final[Category] = "Termination"

TERMINATION: Final = (
    Pattern(
        11,
        "Implicit Termination",
        _GROUP,
        "A net ends when nothing is left to do, now or later, and it is not stuck.",
        "termination: implicit (the default)",
        "",
        "An objective test of success: several ends are fine, no end is needed, and stuck is told from done.",
        "Russell et al. 2006: not supported where one final node is demanded. Tokens that no task can ever take are "
        "an incident, never a completion.",
        net={
            "tasks": outside("A", "B", "C", "D"),
            "flows": [flow("start", "A"), flow("A", "B"), *path("A", "C", "D")],
        },
        script=completed("A", "C", "B", "D"),
    ),
    Pattern(
        43,
        "Explicit Termination",
        _GROUP,
        "Reaching the designated end completes the net, and what is left in it is removed.",
        "termination: explicit",
        "Every task lies on a path from the start to a designated end.",
        "The net counts as completed, not as cancelled, and its leftovers are gone.",
        "Russell et al. 2006: partial where there may be several end nodes and the last one decides.",
        net={
            "termination": "explicit",
            "tasks": outside("A", "B", "C"),
            "flows": [*path("start", "A", "B", "end"), *path("A", "C", "end")],
        },
        script=completed("A", "B"),
    ),
)
