"""Every story, told by the core, by the engine, across restarts, nested, and twice in a loop."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from knhk_workflow.model.parse import parse_spec
from knhk_workflow.model.spec import Flow, Net
from knhk_workflow.patterns.catalogue import PATTERNS, find
from tests.patterns import golden, traps
from tests.patterns.golden import Story
from tests.patterns.players import CorePlayer, EnginePlayer

STORIES = golden.stories()
NESTS = [story for story in STORIES if story.nests]
LOOPS = [story for story in STORIES if golden.can_loop(story)]
REFUSED = "refused"


def expected(story: Story) -> list[str]:
    return [step.outcome for step in story.steps if step.command]


def without_reasons(outcomes: list[str]) -> list[str]:
    """Outcomes whose refusals are told without the ids in them."""
    return [REFUSED if outcome.startswith(REFUSED) else outcome for outcome in outcomes]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_the_core_tells_the_story(story: Story, rewrite: bool) -> None:
    text = golden.write(story, await golden.tell(story, CorePlayer()))
    if rewrite:
        story.path.write_text(text, encoding="utf-8")
    assert text == story.path.read_text(encoding="utf-8")


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_the_engine_tells_the_same(story: Story) -> None:
    assert await golden.tell(story, EnginePlayer()) == expected(story)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_a_restart_after_every_step_changes_nothing(story: Story) -> None:
    assert await golden.tell(story, EnginePlayer(restart_every=1)) == expected(story)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_the_embedded_store_tells_the_same_across_a_restart(story: Story, tmp_path: Path) -> None:
    middle = max(2, len(expected(story)) // 2)
    assert await golden.tell(story, EnginePlayer(str(tmp_path / "db"), restart_every=middle)) == expected(story)


@pytest.mark.parametrize("story", NESTS, ids=lambda story: story.name)
async def test_nested_in_a_sub_net_the_story_is_the_same(story: Story) -> None:
    assert without_reasons(await golden.tell_nested(story, CorePlayer())) == without_reasons(expected(story))


@pytest.mark.parametrize("story", LOOPS, ids=lambda story: story.name)
async def test_twice_in_a_loop_the_story_is_the_same_both_times(story: Story) -> None:
    first, second = await golden.tell_looped(story, CorePlayer())
    assert without_reasons(first) == without_reasons(expected(story))
    assert without_reasons(second) == without_reasons(expected(story))


def test_every_pattern_that_can_be_executed_has_a_story_of_its_own_net() -> None:
    own = [story for story in STORIES if story.own_net]
    assert [story.pattern for story in own] == [pattern.number for pattern in PATTERNS if pattern.available]
    for story in own:
        told = parse_spec(story.document).nets
        declared = parse_spec(find(story.pattern).document).nets
        assert [shape(net) for net in told] == [shape(net) for net in declared], story.name
        assert f"{story.pattern}: {find(story.pattern).name}" in story.head[0]


def shape(net: Net) -> tuple[object, ...]:
    """A net whatever order it was typed in; only the order of the flows out of one task means something."""
    flows: dict[str, list[Flow]] = {}
    for flow in net.flows:
        flows.setdefault(flow.source, []).append(flow)
    guarded = {
        source: found if any(flow.when for flow in found) else sorted(found, key=lambda flow: flow.target)
        for source, found in flows.items()
    }
    return net.name, net.tasks, net.conditions, net.termination, guarded


def test_every_trap_is_named_by_exactly_one_story() -> None:
    named = Counter(chain.from_iterable(story.traps for story in STORIES))
    assert max(named.values()) == 1
    assert set(named) == set(traps.TRAPS) - set(traps.ELSEWHERE)
    for story in STORIES:
        assert all(trap.startswith(f"{story.pattern}.") for trap in story.traps), story.name


def test_a_trap_that_no_story_can_prove_is_named_by_exactly_one_test() -> None:
    named = re.compile(r"^(?:async )?def test_(\d+)([a-z])_", re.MULTILINE)
    tests = [
        (f"{number}.{letter}", path.name)
        for path in sorted(Path(__file__).parent.glob("test_*.py"))
        for number, letter in named.findall(path.read_text(encoding="utf-8"))
    ]
    assert sorted(tests) == sorted(traps.ELSEWHERE.items())


def test_every_pattern_that_can_be_executed_has_traps_or_is_plain() -> None:
    with_traps = {int(trap.partition(".")[0]) for trap in traps.TRAPS}
    assert with_traps == {pattern.number for pattern in PATTERNS if pattern.available}
