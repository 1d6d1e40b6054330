"""A rule that no story needs is a rule that nobody has proved: each is taken away in turn, and some story must break.

A mutant replaces one rule of the core by the plausible mistake next to it, wherever the core has imported it, while the
stories of the patterns that live by that rule are told by the core. Endless mistakes end: a step that emits more than
EVENTS_MAX events counts as broken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final, NamedTuple

import pytest

from knhk_workflow.core import (
    apply,
    cancel,
    compensation,
    completion,
    due,
    joins,
    locks,
    rollback,
    settle,
    step,
    timers,
    triggers,
)
from knhk_workflow.core.case import Completion, NetInstance
from knhk_workflow.core.events import EventType
from knhk_workflow.core.or_join import Verdict
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import TaskNode
from tests.patterns import golden
from tests.patterns.golden import Story
from tests.patterns.players import CorePlayer

EVENTS_MAX: Final = 30_000

Mistake = Callable[..., object]


class Mutant(NamedTuple):
    """One rule, the mistake in its place, and the patterns whose stories live by it."""

    rule: str
    original: Mistake
    mistake: Mistake
    patterns: frozenset[int]


def _any_input(_: Step, node: TaskNode, net: NetInstance) -> joins.Offers:
    marked = tuple(place for place in node.inputs if place in net.marking)
    return ((marked, 1),) if marked else ()


def _all_inputs(_: Step, node: TaskNode, net: NetInstance) -> joins.Offers:
    return ((node.inputs, 1),) if all(place in net.marking for place in node.inputs) else ()


def _once(_: Step, node: TaskNode, net: NetInstance) -> joins.Offers:
    marked = [place for place in node.inputs if place in net.marking]
    return (((marked[0],), 1),) if marked else ()


def _first_of_many(_: Step, node: TaskNode, net: NetInstance) -> joins.Offers:
    return tuple(((place,), net.marking[place]) for place in node.inputs if place in net.marking)


def _nothing(*_: object, **__: object) -> None:
    return None


def _nobody(*_: object, **__: object) -> tuple[int, ...]:
    return ()


def _false(*_: object, **__: object) -> bool:
    return False


def _true(*_: object, **__: object) -> bool:
    return True


def _minute(*_: object, **__: object) -> int:
    return 60 * 10**9


def _fires(*_: object, **__: object) -> Verdict:
    return Verdict.FIRE


def _oldest(net: NetInstance) -> Completion:
    return net.completions.pop(0)


def _waits(*_: object, **__: object) -> Verdict:
    return Verdict.WAIT


def _unread(step: Step, node: TaskNode, net: NetInstance) -> joins.Offers:
    return joins.JOINS[node.join.kind](step, node, net)


def _patterns(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


MUTANTS: Final = (
    Mutant("and: every input", joins._and, _any_input, _patterns(3, 33)),
    Mutant("xor: every token goes on", joins._xor, _once, _patterns(8, 41, 42)),
    Mutant("merge: k tokens", joins._merge, _first_of_many, _patterns(41)),
    Mutant("partial: need branches", joins._partial, _all_inputs, _patterns(9, 28, 30, 31)),
    Mutant("partial: late branches are absorbed", joins.absorb, _nothing, _patterns(9, 28, 30, 31)),
    Mutant("partial: a round has a memory", joins._seen, _nothing, _patterns(9, 28, 30, 31)),
    Mutant("or: waits", joins._verdict, _fires, _patterns(38)),
    Mutant("or: fires when nothing can come", joins._verdict, _waits, _patterns(38)),
    Mutant("structured or: the announced branches", joins._structured_or, _any_input, _patterns(7)),
    Mutant("structured or: only the announced branches", joins._structured_or, _all_inputs, _patterns(7)),
    Mutant("local or: every input delivers", joins._local_or, _any_input, _patterns(37)),
    Mutant("local or: false tokens go past", joins.skip, _false, _patterns(37)),
    Mutant("milestone: the condition is read", joins.offers, _unread, _patterns(18)),
    Mutant("cancel: a region is emptied", cancel.cancel_region, _nothing, _patterns(19, 25, 29, 32)),
    Mutant("cancel: work is taken back", cancel.stop_instances, _nothing, _patterns(19, 20, 25, 26, 35)),
    Mutant("instances: the threshold", completion._met, _false, _patterns(34, 35, 36)),
    Mutant("instances: not before the threshold", completion._met, _true, _patterns(34, 35, 36)),
    Mutant("instances: outputs are collected", completion._collect, _true, _patterns(14)),
    Mutant("instances: forced to complete", completion.force, _nothing, _patterns(27)),
    Mutant("instances: not entered again before the rest is done", settle._occupied, _false, _patterns(34)),
    Mutant("loop: another turn", completion.another_turn, _false, _patterns(21)),
    Mutant("trigger: kept signals are taken", triggers._kept, _nothing, _patterns(24)),
    Mutant("trigger: a waiting task receives", triggers._receiver, _nothing, _patterns(23, 24)),
    Mutant("trigger: starts a task without incoming flow", triggers._sourced, _nothing, _patterns(24)),
    Mutant("time: a timer is armed", timers.enabled, _true, _patterns(16, 19)),
    Mutant("time: a time-out is armed", timers.begun, _nothing, _patterns(16, 21)),
    Mutant("time: a failure is tried again later", timers.retry_later, _nothing, _patterns(21)),
    Mutant("time: the pause grows", timers.pause, _minute, _patterns(21)),
    Mutant("time: overdue work is stopped", due._too_long, _nothing, _patterns(16, 21)),
    Mutant("time: a deadline stops the task", due._too_late, _nothing, _patterns(19)),
    Mutant("time: the flow to on_timeout alone", rollback.escape, _nothing, _patterns(16, 19)),
    Mutant("undoing: what was completed is undone", rollback.undo_next, rollback.finish, _patterns(19, 20)),
    Mutant("undoing: a failure finds the composite task", rollback._catcher, _nothing, _patterns(19)),
    Mutant("undoing: newest first", apply._newest, _oldest, _patterns(19, 20)),
    Mutant("undoing: a task waits until its sub-net is undone", compensation.pending, _false, _patterns(19, 35)),
    Mutant("section: keeps others out", locks.blocked_by, _nothing, _patterns(17, 39, 40)),
    Mutant("section: is released", locks.release, _false, _patterns(17, 39, 40)),
    Mutant("section: is taken", locks.take, _nothing, _patterns(17, 39, 40)),
    Mutant("section: failed work lets go", locks.failed, _false, _patterns(17)),
    Mutant("section: failed work takes it again", locks._failed_in, _nobody, _patterns(17)),
    Mutant("ending: stuck is not completed", settle._ended, _true, _patterns(11, 41)),
    Mutant("ending: sinks are done", settle._ended, _false, _patterns(11)),
)


class Endless(Exception):
    """A mistake that does not end."""


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The mistake instead of the rule, under every name that the core has for it."""
    changed: list[tuple[ModuleType, str]] = []
    tables: list[str] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("knhk_workflow.core."):
            for attribute, value in list(vars(module).items()):
                if value is mutant.original:
                    setattr(module, attribute, mutant.mistake)
                    changed.append((module, attribute))
    rules = joins.JOINS
    assert isinstance(rules, dict)
    for kind, rule in rules.items():
        if rule is mutant.original:
            tables.append(kind)
    for kind in tables:
        rules[kind] = mutant.mistake
    emit = step.Step.emit

    def counted(self: Step, event: EventType) -> None:
        if len(self.events) > EVENTS_MAX:
            raise Endless
        emit(self, event)

    step.Step.emit = counted  # type: ignore[method-assign]  # put back below
    try:
        yield
    finally:
        step.Step.emit = emit  # type: ignore[method-assign]  # as it was
        for module, attribute in changed:
            setattr(module, attribute, mutant.original)
        for kind in tables:
            rules[kind] = mutant.original
    assert changed or tables, f"{mutant.rule}: the core does not use {mutant.original!r}"


async def breaks(story: Story) -> bool:
    """Whether the story is told differently now, or cannot be told at all."""
    try:
        told = golden.write(story, await golden.tell(story, CorePlayer()))
    except Exception:  # noqa: BLE001  # a mistake may break anything; that is what is asked
        return True
    return told != story.path.read_text(encoding="utf-8")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule)
async def test_without_this_rule_a_story_breaks(mutant: Mutant) -> None:
    stories = [story for story in golden.stories() if story.pattern in mutant.patterns]
    assert stories
    with planted(mutant):
        broken = [story.name for story in stories if await breaks(story)]
    assert broken, f"no story of {sorted(mutant.patterns)} needs this rule"
