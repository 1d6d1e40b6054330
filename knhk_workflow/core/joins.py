"""Which activations a task could have from the present marking: the rules of joins, as one table.

`offers(step, node, net)` gives each way to bind the task's inputs with the number of times that way could fire from the
marking alone. A binding is the tuple of conditions that one firing consumes (a condition may stand in it several
times). Settling compares this with the activations that exist, and adds or withdraws the difference.

| join | binding | how often | pattern |
|---|---|---|---|
| and | every input | the scarcest input decides | WCP-3, 33: surplus stays for later firings |
| xor | one input | once per token in it | WCP-5, 8: every thread goes on |
| merge k | one input k times | once per k tokens | WCP-41: fewer than k wait |
| partial | `need` marked inputs | once a round | WCP-9, 28..32 |
| or | every marked input | when nothing more can come | WCP-38, see or_join.py |
| structured-or | the inputs that the split announced | when all are there or dead | WCP-7 |
| local-or | every input with a true token | when every input has delivered | WCP-37 |

The last four have one firing at a time and choose their tokens when the task starts. `consumed` does the bookkeeping of
a firing: rounds of partial joins, announcements, false tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from knhk_workflow.core import events as e
from knhk_workflow.core.case import NetInstance
from knhk_workflow.core.incidents import raise_incident
from knhk_workflow.core.or_join import Verdict, or_join
from knhk_workflow.core.step import Step
from knhk_workflow.model.expression import EvaluationFailed
from knhk_workflow.model.net import Amount, Region, TaskNode

Offers = tuple[tuple[tuple[str, ...], int], ...]


def offers(step: Step, node: TaskNode, net: NetInstance) -> Offers:
    """Ways to fire `node` now, in the order of its inputs; only ways that can fire at least once."""
    if not all(condition in net.marking for condition in node.task.reads):
        return ()  # a milestone that is not, or no longer, reached (WCP-18)
    return JOINS[node.join.kind](step, node, net)


def _and(step: Step, node: TaskNode, net: NetInstance) -> Offers:
    times: int | None = None
    marking = net.marking
    for condition in node.inputs:
        here = marking.get(condition)
        if here is None:
            return ()
        if times is None or here < times:
            times = here
    return ((node.inputs, times),) if times else ()


def _xor(step: Step, node: TaskNode, net: NetInstance) -> Offers:
    marking = net.marking
    if len(node.inputs) == 1:
        times = marking.get(node.inputs[0])
        return ((node.inputs, times),) if times else ()
    return tuple(((condition,), marking[condition]) for condition in node.inputs if condition in marking)


def _merge(step: Step, node: TaskNode, net: NetInstance) -> Offers:
    k = node.join.count
    return tuple(
        ((condition,) * k, net.marking[condition] // k)
        for condition in node.inputs
        if net.marking.get(condition, 0) >= k
    )


def _partial(step: Step, node: TaskNode, net: NetInstance) -> Offers:
    if node.id in net.seen:
        return ()  # the round is over only when every branch has been seen
    marked = tuple(condition for condition in node.inputs if condition in net.marking)
    if not marked:
        return ()
    need = _need(step, node, net)
    return ((marked[:need], 1),) if need is not None and len(marked) >= need else ()


def _need(step: Step, node: TaskNode, net: NetInstance) -> int | None:
    """How many branches fire the join; None when the author's expression gives no possible number."""
    most = node.join.of or len(node.inputs)
    try:
        need = amount(step, node.need, net)
        if 1 <= need <= most:
            return need
        why = f"needs {need} of {most} branches"
    except EvaluationFailed as failure:
        why = f"has a `need` that could not be evaluated: {failure.message}"
    if not net.incident:
        raise_incident(step, "join_error", net.number, f"the join of task {node.id!r} {why}")
    return None


def amount(step: Step, found: Amount, net: NetInstance, item: object = None) -> int:
    """A number of the author's. Raises EvaluationFailed when its expression yields no whole number."""
    if isinstance(found, int):
        return found
    value = found.value(step.scope(net.number), item)
    if isinstance(value, bool) or not isinstance(value, int):
        raise EvaluationFailed(found.text, f"gives {value!r}, a whole number is needed", {})
    return value


def _or(step: Step, node: TaskNode, net: NetInstance) -> Offers:
    marked = tuple(condition for condition in node.inputs if condition in net.marking)
    if not marked:
        return ()
    if len(marked) < len(node.inputs):
        verdict = or_join(step.compiled(net.number), node.id).verdict(net.marking, busy(step, net), net.seen)
        if verdict is Verdict.WAIT:
            return ()
        if verdict is Verdict.UNDECIDED:
            if not net.incident:
                message = f"whether the or-join of task {node.id!r} must wait could not be decided within its budget"
                raise_incident(step, "or_join_undecided", net.number, message)
            return ()
    return ((marked, 1),)


def busy(step: Step, net: NetInstance) -> dict[str, int]:
    """Tasks at work in a net: how many of their activations have consumed tokens and not yet ended."""
    found: dict[str, int] = {}
    for task, numbers in net.active.items():
        started = sum(1 for number in numbers if step.case.activations[number].started)
        if started:
            found[task] = started
    return found


def _structured_or(step: Step, node: TaskNode, net: NetInstance) -> Offers:
    expected = net.expected.get(node.id)
    if not expected:
        return ()
    marked = tuple(condition for condition in expected[0] if condition in net.marking)
    if not marked:
        return ()
    for condition in expected[0]:
        if condition not in net.marking and alive(step, net, node.blocks[condition]):
            return ()
    return ((marked, 1),)


def alive(step: Step, net: NetInstance, block: Region) -> bool:
    """Whether a token or an activation is left in a part of the net."""
    return any(place in net.marking for place in block.conditions) or any(
        step.case.activations[number].started for task in block.tasks for number in net.active.get(task, ())
    )


def _local_or(step: Step, node: TaskNode, net: NetInstance) -> Offers:
    if not all(condition in net.marking or condition in net.dead for condition in node.inputs):
        return ()
    marked = tuple(condition for condition in node.inputs if condition in net.marking)
    return ((marked, 1),) if marked else ()


JOINS: Mapping[str, Callable[[Step, TaskNode, NetInstance], Offers]] = {
    "and": _and,
    "xor": _xor,
    "merge": _merge,
    "partial": _partial,
    "or": _or,
    "structured-or": _structured_or,
    "local-or": _local_or,
}


def consumed(step: Step, node: TaskNode, net: NetInstance, inputs: tuple[str, ...]) -> None:
    """A firing has consumed `inputs`: keep the books of its join."""
    kind = node.join.kind
    if kind == "partial":
        if node.join.mode != "cancelling":
            _seen(step, node, net, inputs, ())
    elif kind == "structured-or":
        step.emit(e.ExpectationMet(net.number, node.id))
    elif kind == "local-or":
        dead = tuple(condition for condition in node.inputs if condition not in inputs and condition in net.dead)
        if dead:
            step.emit(e.DeadPathMoved(net.number, node.id, dead))


def absorb(step: Step, node: TaskNode, net: NetInstance) -> None:
    """A partial join that has fired takes one token of each branch not yet seen, without effect (WCP-9, 28)."""
    seen = net.seen.get(node.id)
    if seen is not None:
        late = tuple(place for place in node.inputs if place not in seen and place in net.marking)
        if late:
            _seen(step, node, net, seen + late, late)


def _seen(step: Step, node: TaskNode, net: NetInstance, seen: tuple[str, ...], absorbed: tuple[str, ...]) -> None:
    over = len(seen) >= (node.join.of or len(node.inputs))
    step.emit(e.JoinMoved(net.number, node.id, () if over else tuple(sorted(seen)), absorbed))
    step.again(net.number, node.id)  # the next round, or more that came meanwhile


def skip(step: Step, node: TaskNode, net: NetInstance) -> bool:
    """Let false tokens go past a task (dead path elimination, WCP-37). True when some moved."""
    if not any(condition in net.dead for condition in node.inputs):
        return False
    if node.join.kind in ("xor", "merge"):
        dead: tuple[str, ...] = (next(condition for condition in node.inputs if condition in net.dead),)
        taken: tuple[str, ...] = ()
    else:
        if not all(condition in net.marking or condition in net.dead for condition in node.inputs):
            return False
        if node.join.kind != "and" and any(condition in net.marking for condition in node.inputs):
            return False  # a true branch fires it
        dead = tuple(condition for condition in node.inputs if condition in net.dead)
        taken = tuple(condition for condition in node.inputs if condition not in net.dead)
    produced = tuple(condition for condition in node.outputs if condition in node.carries)
    step.emit(e.DeadPathMoved(net.number, node.id, dead, taken, produced))
    step.again(net.number, node.id)
    if produced:
        step.touch(net.number, produced)
    return True
