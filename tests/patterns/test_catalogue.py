"""The catalogue: complete, found by every name, and true about itself."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from knhk_workflow import NotFound, SystemClock
from knhk_workflow.model.parse import findings, parse_spec, unsupported
from knhk_workflow.patterns.catalogue import PATTERNS, find
from knhk_workflow.patterns.pattern import Pattern
from knhk_workflow.runtime import sandbox
from knhk_workflow.runtime.views import PatternExecutionContext

RUN = [pattern for pattern in PATTERNS if pattern.available]
CANCEL_CASE = 20  # the one pattern whose proper end is no completion


def test_there_are_43_in_the_order_of_their_numbers() -> None:
    assert [pattern.number for pattern in PATTERNS] == list(range(1, 44))


def test_the_groups_are_those_of_the_literature() -> None:
    assert Counter(pattern.category for pattern in PATTERNS) == {
        "Basic Control Flow": 5,
        "Advanced Branching and Synchronization": 14,
        "Multiple Instances": 7,
        "State-based": 5,
        "Cancellation and Force Completion": 5,
        "Iteration": 3,
        "Termination": 2,
        "Trigger": 2,
    }


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.spec_id)
def test_an_entry_says_everything(pattern: Pattern) -> None:
    for text in (pattern.semantics, pattern.construct, pattern.plus, pattern.literature):
        assert text
    assert "Russell et al. 2006" in pattern.literature
    assert pattern.available == bool(pattern.script)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (1, 1),
        (43, 43),
        ("7", 7),
        ("WCP-13", 13),
        ("wcp-07", 7),
        ("sequence", 1),
        ("PARALLEL SPLIT", 2),
        ("and-join", 3),
        ("AND join", 3),
        ("Cancel Activity", 19),
        ("cancel case", 20),
        ("MI with a priori run-time knowledge", 14),
        ("MI without a priori Run-Time Knowledge", 15),
        ("MI with knowledge", 14),
        ("MI without knowledge", 15),
        ("Acyclic Synchronizing Merge", 37),
        ("Cancel MI Activity", 26),
        ("Complete MI Activity", 27),
        ("Discriminator", 9),
    ],
)
def test_a_pattern_is_found_by_number_name_and_alias(name: int | str, number: int) -> None:
    assert find(name).number == number


def test_no_name_means_two_patterns() -> None:
    names = Counter(name.lower().replace("-", " ") for pattern in PATTERNS for name in {pattern.name, *pattern.aliases})
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("name", [0, 44, -1, "", "44", "WCP-0", "wcp-1.5", "teleport"])
def test_what_is_no_pattern_is_not_found(name: int | str) -> None:
    with pytest.raises(NotFound, match="patterns are 1 to 43"):
        find(name)


@pytest.mark.parametrize("pattern", RUN, ids=lambda pattern: pattern.spec_id)
def test_a_net_is_a_valid_document_without_warnings(pattern: Pattern) -> None:
    spec = parse_spec(pattern.document)
    assert spec.id == pattern.spec_id
    assert findings(spec) == ()
    assert unsupported(spec) == ()
    assert msgspec.json.decode(sandbox.view(pattern.number).document) == pattern.document


@pytest.mark.parametrize("pattern", RUN, ids=lambda pattern: pattern.spec_id)
def test_the_default_script_runs_the_net_to_its_end(pattern: Pattern) -> None:
    result = sandbox.play(pattern, PatternExecutionContext(), SystemClock())
    assert result.success
    assert result.next_state == ("cancelled" if pattern.number == CANCEL_CASE else "completed")
    assert result.terminates
    assert result.next_activities == ()
