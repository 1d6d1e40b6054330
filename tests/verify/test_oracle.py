"""Verdicts on random small nets against a judge that shares no code; counterexamples are played and are shortest."""

from __future__ import annotations

import re

import pytest

from knhk_workflow.errors import Problem
from knhk_workflow.model.net import compile_spec
from knhk_workflow.model.parse import parse_spec
from knhk_workflow.model.verify import Verification, VerifyBudget, verify
from tests.conftest import Budget
from tests.verify.oracle import Game, Judgement, State, ToyNet, judge
from tests.verify.toys import random_net

STEPS_PER_NET = 8  # one net costs about as much as this many simulated steps
BUDGET = VerifyBudget(markings=20_000, steps=40_000)
SMALLER = VerifyBudget(markings=20_000, steps=40_000, first=0)  # every net by way of the reduced system
STUCK = ("deadlock", "end_not_reached", "lock_deadlock")


def verified(net: ToyNet, budget: VerifyBudget = BUDGET) -> Verification:
    model = compile_spec(parse_spec(net.document()), 1, b"")
    return verify(model.spec, model.nets, budget=budget)


def play(game: Game, steps: list[str]) -> set[State]:
    """All states that a sequence of tasks may lead to. `start X` tells that this work was begun and then cancelled."""
    states = game.at_rest({game.first})
    for step in steps:
        if step.startswith("start "):
            continue
        done = {
            after for state in states for what, name, after in game.moves(state) if (what, name) == ("complete", step)
        }
        assert done, f"{step} cannot complete there"
        states = game.at_rest(done)
    return states


def told(game: Game, state: State) -> str:
    """What the last line of a trace says of a state."""
    left = {place: count for place, count in state.tokens if place in game.taken} | dict(state.work)
    parts = [f"{count} token{'s' if count > 1 else ''} in {name!r}" for name, count in sorted(left.items())]
    return ", ".join(parts[:4]) + (f", tokens in {len(parts) - 4} more" if len(parts) > 4 else "")


def check(seed: int, net: ToyNet, right: Judgement, found: Verification) -> None:
    where = f"replay: random_net({seed}) -> {net}"
    assert found.verdict == ("sound" if right.sound else "unsound"), f"{found.reason}; {where}"
    if found.verdict == "sound":
        return
    errors = [problem for problem in found.findings if problem.severity == "error"]
    for problem in errors:
        assert problem.hint, where
        assert problem.trace, where
    game = Game(net)
    problem = errors[0]
    if problem.code == "dead_task":
        assert {str(re.fullmatch(r"tasks\.(\w+)", each.path)[1]) for each in errors} == right.dead, where  # type: ignore[index]
        return
    states = play(game, list(problem.trace[:-1]))
    if problem.code in STUCK:
        ends = [state for state in states if state in right.stuck]
        assert len([step for step in problem.trace[:-1] if not step.startswith("start ")]) == right.fewest, where
        if problem.code != "end_not_reached":
            sentences = [told(game, state) for state in ends]
            assert any(problem.trace[-1].startswith(f"left: {each}") for each in sentences), (problem.trace, where)
    else:
        assert problem.code == "livelock", where
        assert any(state in right.doomed for state in states), where
        assert not right.stuck or found_smaller(net, problem), where


def found_smaller(net: ToyNet, problem: Problem) -> bool:
    """A deadlock has precedence over a livelock, except where the reduced system met an idle loop first."""
    return verified(net, SMALLER).findings[0].code == problem.code


@pytest.mark.long
def test_verdicts_agree_with_the_judge(budget: Budget) -> None:
    wanted = budget.steps // STEPS_PER_NET
    seed = decided = sound = 0
    undecided = {"judge": 0, "verification": 0}
    while decided < wanted:
        net = random_net(seed)
        right = judge(net)
        found = verified(net)
        if right is None:
            undecided["judge"] += 1
        elif found.verdict == "undecided":
            undecided["verification"] += 1
        else:
            check(seed, net, right, found)
            by_rules = verified(net, SMALLER)
            if by_rules.verdict != "undecided":
                check(seed, net, right, by_rules)
            decided += 1
            sound += right.sound
        seed += 1
    print(f"{decided} nets decided, {sound} of them sound; undecided: {undecided}")
    assert decided / 10 < sound < decided * 9 / 10, "a judge needs both kinds"
    assert undecided["verification"] <= decided / 50


def test_unsafe_places_are_those_that_the_judge_saw(budget: Budget) -> None:
    for seed in range(budget.steps // 100):
        net = random_net(seed)
        right = judge(net)
        found = verified(net)
        if right is not None and found.verdict == "sound":
            named = {
                re.findall(r"'([^']*)'", problem.message)[0]
                for problem in found.findings
                if problem.code == "unsafe_place"
            }
            taken = Game(net).taken
            assert named == {place for place in right.several if place in taken}, f"random_net({seed}) -> {net}"
