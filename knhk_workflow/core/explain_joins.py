"""Why a join has not fired: one rule for each kind, beside the rule in `joins.py` that fires it.

Each rule gives None when the join itself is satisfied, so that something else must keep the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import msgspec

from knhk_workflow.core.case import Case, NetInstance
from knhk_workflow.core.explanation import Status, TokenPath, Wait
from knhk_workflow.core.joins import amount, busy
from knhk_workflow.core.or_join import Verdict, or_join
from knhk_workflow.core.step import Step
from knhk_workflow.model.expression import EvaluationFailed
from knhk_workflow.model.net import CompiledNet, Model, TaskNode


@dataclass(frozen=True, eq=False)
class Look:
    """What is looked at: a net of a case. `step` is never emitted to; rules of the core read through it."""

    case: Case
    model: Model
    net: NetInstance
    compiled: CompiledNet
    step: Step

    @cached_property
    def data(self) -> object:
        """The net's data for guards, decoded once for all of them: they may be 2 MB, and there may be 10,000."""
        return msgspec.json.decode(self.net.data)

    @cached_property
    def shown(self) -> object:
        """The data as people may see them, likewise made once."""
        return self.model.veil.value(self.data)


class Reason(NamedTuple):
    """Why a task does not start: in words, and what is missing."""

    sentence: str
    missing: tuple[str, ...] = ()
    waits_for: tuple[Wait, ...] = ()
    paths: tuple[TokenPath, ...] = ()
    status: Status = "waiting"


def unsatisfied(look: Look, node: TaskNode) -> Reason | None:
    """Why the join of a task cannot fire now; None when it can."""
    return _RULES[node.join.kind](look, node)


def marked(look: Look, node: TaskNode) -> tuple[str, ...]:
    """The inputs that hold a token."""
    return tuple(place for place in node.inputs if place in look.net.marking)


def sources(compiled: CompiledNet, place: str) -> str:
    """Who brings a token into a condition."""
    if place == "start":
        return "the start of the net"
    return " or ".join(node.id for node in compiled.producers.get(place, ())) or "nobody"


def tokens(look: Look, places: Iterable[str]) -> tuple[Wait, ...]:
    """Waiting for tokens in some conditions."""
    return tuple(Wait("token", place, f"{sources(look.compiled, place)} brings it") for place in places)


def listed(places: Iterable[str]) -> str:
    """Names in a sentence."""
    return ", ".join(places)


def _nothing(look: Look, node: TaskNode, needs: str) -> Reason:
    if not node.inputs:
        return Reason(f"{node.id} has no incoming flow: nothing ever enables it.", status="idle")
    sentence = f"{node.id} is not enabled: no token in {needs} {listed(node.inputs)}."
    return Reason(sentence, node.inputs, tokens(look, node.inputs), status="idle")


def _and(look: Look, node: TaskNode) -> Reason | None:
    arrived = marked(look, node)
    if not arrived:
        return _nothing(look, node, "all of")
    missing = tuple(place for place in node.inputs if place not in arrived)
    if not missing:
        return None
    from_where = "; ".join(f"{place!r} gets its token from {sources(look.compiled, place)}" for place in missing)
    sentence = (
        f"{node.id} waits at its and-join: {len(arrived)} of {len(node.inputs)} branches arrived "
        f"({listed(arrived)}), missing {listed(missing)}: {from_where}."
    )
    return Reason(sentence, missing, tokens(look, missing))


def _xor(look: Look, node: TaskNode) -> Reason | None:
    return None if marked(look, node) else _nothing(look, node, "one of")


def _merge(look: Look, node: TaskNode) -> Reason | None:
    k = node.join.count
    arrived = marked(look, node)
    if not arrived:
        return _nothing(look, node, "one of")
    if any(look.net.marking[place] >= k for place in arrived):
        return None
    counts = listed(f"{look.net.marking[place]} in {place}" for place in arrived)
    sentence = f"{node.id} waits at its thread merge: it takes {k} tokens of one branch at a time, {counts} arrived."
    return Reason(sentence, arrived, tokens(look, arrived))


def _partial(look: Look, node: TaskNode) -> Reason | None:
    arrived = marked(look, node)
    over = round_of(look, node)
    if over is not None:
        return over
    if not arrived:
        return _nothing(look, node, "enough of")
    of = node.join.of or len(node.inputs)
    missing = tuple(place for place in node.inputs if place not in arrived)
    try:
        need = amount(look.step, node.need, look.net)
    except EvaluationFailed as failure:
        why = look.step.told(failure.message)
        sentence = f"{node.id} waits at its partial join: how many branches it needs is unknown: {why}."
        return Reason(sentence, missing)
    if len(arrived) >= need:
        return None
    sentence = (
        f"{node.id} waits at its partial join: {len(arrived)} of the {need} branches that it needs, of {of}, arrived "
        f"({listed(arrived)}); any of {listed(missing)} counts."
    )
    return Reason(sentence, missing, tokens(look, missing))


def round_of(look: Look, node: TaskNode) -> Reason | None:
    """The round of a partial join that has fired and is not over; None when there is none."""
    seen = look.net.seen.get(node.id) if node.join.kind == "partial" else None
    if seen is None:
        return None
    of = node.join.of or len(node.inputs)
    missing = tuple(place for place in node.inputs if place not in seen)
    held = tuple(place for place in seen if place in look.net.marking)
    sentence = (
        f"the join of {node.id} has fired in this round: {len(seen)} of {of} branches came ({listed(seen)}); "
        f"{of - len(seen)} more of {listed(missing)} must come, without effect, before it fires again"
    )
    if held:
        sentence += f"; further tokens in {listed(held)} wait for the next round"
    return Reason(f"{sentence[0].upper()}{sentence[1:]}.", missing, tokens(look, missing))


def _or(look: Look, node: TaskNode) -> Reason | None:
    arrived = marked(look, node)
    if not arrived:
        return _nothing(look, node, "one of")
    if len(arrived) == len(node.inputs):
        return None
    join = or_join(look.compiled, node.id)
    state = (look.net.marking, busy(look.step, look.net), look.net.seen)
    verdict = join.verdict(*state)
    if verdict is Verdict.FIRE:
        return None
    head = f"{node.id} waits at its or-join: {len(arrived)} of {len(node.inputs)} branches arrived ({listed(arrived)})"
    missing = tuple(place for place in node.inputs if place not in arrived)
    witness = join.witness(*state)
    if verdict is Verdict.UNDECIDED or witness is None:
        return Reason(f"{head}; whether another one can still come could not be decided within its budget.", missing)
    what = f"the work of {witness.token}" if witness.busy else f"the token in {witness.token}"
    path = tuple(task for task in witness.path if not (witness.busy and task == witness.token))
    way = f" through {listed(path)}" if path else ""
    return Reason(
        f"{head}, and {what} can still reach {witness.input}{way}.",
        (witness.input,),
        (Wait("token", witness.input, f"{what} can still reach it{way}"),),
        (TokenPath(witness.token, witness.input, witness.path),),
    )


def _structured_or(look: Look, node: TaskNode) -> Reason | None:
    expected = look.net.expected.get(node.id)
    if not expected:
        arrived = marked(look, node)
        if not arrived:
            return _nothing(look, node, "what its split announced of")
        return Reason(f"{node.id} waits at its structured or-join: its split has announced no branch.", arrived)
    arrived = tuple(place for place in expected[0] if place in look.net.marking)
    alive = {place: _alive(look, node, place) for place in expected[0] if place not in arrived}
    missing = tuple(place for place, where in alive.items() if where)
    if arrived and not missing:
        return None
    on_the_way = "; ".join(f"{place} is still coming: {listed(alive[place])}" for place in missing)
    gone = listed(place for place, where in alive.items() if not where)
    sentence = (
        f"{node.id} waits at its structured or-join: its split took {listed(expected[0])}, of these "
        f"{listed(arrived) or 'none'} arrived; {on_the_way or 'none can come any more'}"
        + (f"; {gone} was given up" if gone and on_the_way else "")
    )
    return Reason(f"{sentence}.", missing, tokens(look, missing))


def _alive(look: Look, node: TaskNode, place: str) -> tuple[str, ...]:
    """Where the branch towards an input of a structured merge still lives."""
    block = node.blocks[place]
    at_work = busy(look.step, look.net)
    return (
        *(f"{task} is at work" for task in block.tasks if task in at_work),
        *(f"a token is in {condition}" for condition in block.conditions if condition in look.net.marking),
    )


def _local_or(look: Look, node: TaskNode) -> Reason | None:
    arrived = marked(look, node)
    false = tuple(place for place in node.inputs if place not in arrived and place in look.net.dead)
    missing = tuple(place for place in node.inputs if place not in arrived and place not in false)
    if arrived and not missing:
        return None
    if not arrived and not false:
        return _nothing(look, node, "one of")
    told = f"{listed(arrived) or 'none'} delivered a token"
    if false:
        told += f", {listed(false)} told that nothing comes"
    sentence = f"{node.id} waits at its local or-join: {told}; {listed(missing)} has not delivered yet."
    return Reason(sentence, missing, tokens(look, missing))


_RULES: Mapping[str, Callable[[Look, TaskNode], Reason | None]] = {
    "and": _and,
    "xor": _xor,
    "merge": _merge,
    "partial": _partial,
    "or": _or,
    "structured-or": _structured_or,
    "local-or": _local_or,
}
