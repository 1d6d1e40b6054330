"""Traps that a net meets when it is registered, before any case runs."""

from __future__ import annotations

import pytest

from knhk_workflow import InvalidDocument
from knhk_workflow.model.net import compile_spec
from knhk_workflow.model.parse import parse_spec
from knhk_workflow.model.verify.verification import verify
from tests.patterns import notation

EITHER = "A xor-split -> B when p | C otherwise"


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


@pytest.mark.parametrize(("branches", "codes"), [("A and-split -> B, C", {"unsafe_merge"}), (EITHER, set())])
def test_5a_a_merge_whose_branches_may_overlap_is_told(branches: str, codes: set[str]) -> None:
    spec = parse_spec(notation.document("merge", [f"net: start -> A; {branches}; B, C -> D; D -> end"]))
    verified = verify(spec, compile_spec(spec, 1, b"digest").nets)
    assert verified.verdict == "sound"
    assert {problem.code for problem in verified.findings if problem.code == "unsafe_merge"} == codes
