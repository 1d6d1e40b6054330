"""Traps that a net meets when it is registered, before any case runs."""

from __future__ import annotations

import pytest

from knhk_workflow import InvalidDocument
from knhk_workflow.model.parse import parse_spec
from tests.patterns import notation


def test_22a_a_recursion_without_a_way_out_is_refused() -> None:
    document = notation.document(
        "endless",
        [
            "net: Begin runs Level; start -> Begin; Begin -> end",
            "sub-net Level: R runs Level; start -> A; A -> R; R -> end",
        ],
    )
    with pytest.raises(InvalidDocument) as refused:
        parse_spec(document)
    assert [(problem.path, problem.code) for problem in refused.value.problems] == [
        ("nets.Level", "no_terminating_path")
    ]


@pytest.mark.parametrize("many", ["instances: 3", "for_each: data.xs"])
def test_21_a_loop_repeats_one_piece_of_work(many: str) -> None:
    document = notation.document("loop", [f"net: start -> B; B -> end; B is {{{many}, loop: {{until: data.done}}}}"])
    with pytest.raises(InvalidDocument) as refused:
        parse_spec(document)
    assert [(problem.path, problem.code) for problem in refused.value.problems] == [("tasks.B.loop", "conflict")]
