"""The short lines that a plain task takes through the core are the general rules, said shorter.

What a task is not concerned with is found when it is compiled (`plain_look`, `plain_join`, `single_item`,
`plain_work`, `busy_start`, `forks`). A model in which every task is treated as if anything concerned it must decide the
same.
"""

from __future__ import annotations

from typing import Final

from hypothesis import assume, given
from hypothesis import strategies as st

from knhk_workflow import InvalidDocument, WorkflowError
from knhk_workflow.core import commands as c
from knhk_workflow.core.case import Case, encode_state
from knhk_workflow.core.decide import create, decide
from knhk_workflow.core.events import EventType
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import Model, compile_spec
from knhk_workflow.model.parse import parse_spec
from tests.core.test_constructs import adorned, any_command
from tests.core.test_replay import CHOICES, DATA, Document, workflow

GENERAL: Final = {
    "plain_look": False,
    "plain_join": False,
    "single_item": False,
    "plain_work": False,
    "busy_start": True,
    "forks": None,
}


def without_short_lines(model: Model) -> Model:
    """The model, every task of it on the long way from now on."""
    for net in model.nets.values():
        for node in net.tasks.values():
            for name, value in GENERAL.items():
                assert hasattr(node, name)
                object.__setattr__(node, name, value)  # frozen for everybody else
    return model


@given(st.one_of(workflow(), adorned()), st.sampled_from(DATA), CHOICES)
def test_short_lines_decide_what_the_general_rules_decide(
    document: Document, data: str, choices: list[tuple[int, int, int]]
) -> None:
    try:
        spec = parse_spec(document)
    except InvalidDocument:
        assume(False)
        raise
    short, long = compile_spec(spec, 1, b"digest"), without_short_lines(compile_spec(spec, 1, b"digest"))
    command = c.CreateCase("default", "case", "random", 1, b"digest", b"salt", data.encode(), start=True)
    steps = create(short, command, 10), create(long, command, 10)
    case, twin = steps[0].case, steps[1].case
    assert told(steps[0]) == told(steps[1])
    for now, (kind, which, how) in enumerate(choices, 11):
        asked = any_command(case, kind, which, how)
        assert decided(case, short, asked, now) == decided(twin, long, asked, now)


def decided(case: Case, model: Model, command: c.Command, now: int) -> object:
    """All that a decision gives, refusals included."""
    try:
        return told(decide(case, model, command, now))
    except WorkflowError as refusal:
        return type(refusal), str(refusal), encode_state(case)


def told(step: Step) -> tuple[list[EventType], list[tuple[int, int]], tuple[int, ...], bytes]:
    """Events, the work that changed, the incidents that changed, and the case."""
    return step.events, list(step.items), step.incidents, encode_state(step.case)
