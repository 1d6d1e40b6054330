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

The last four have one firing at a time. A partial join fires by itself (`TaskNode.eager`): the round goes on, and the
rest is cancelled, however long its task lies in somebody's work list. OR-joins take their tokens when the task starts.
`consumed` does the bookkeeping of a firing: rounds of partial joins, announcements, false tokens.

False tokens (WCP-37) reach a task where a local merge lies behind it. Each of its inputs then delivers once a round,
true or false. The task passes one false token on, on every branch towards the merge, when it is sure that it does not
run in this round: an and-join with the first false one once every input has delivered, any other join when all are
false. Where it ran, the false ones that came beside are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from knhk_workflow.core import compensation
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
    reads = node.task.reads
    if reads and not all(condition in net.marking for condition in reads):
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
    marked = _marked(node, net)
    if not marked:
        return ()
    need = _need(step, node, net)
    return ((marked[:need], 1),) if need is not None and len(marked) >= need else ()


def _marked(node: TaskNode, net: NetInstance) -> tuple[str, ...]:
    return tuple(condition for condition in node.inputs if condition in net.marking)


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
    marked = _marked(node, net)
    if not marked:
        return ()
    verdict = _verdict(step, node, net, marked)
    if verdict is Verdict.UNDECIDED and not net.incident:
        message = f"whether the or-join of task {node.id!r} must wait could not be decided within its budget"
        raise_incident(step, "or_join_undecided", net.number, message)
    return ((marked, 1),) if verdict is Verdict.FIRE else ()


def _verdict(step: Step, node: TaskNode, net: NetInstance, marked: tuple[str, ...]) -> Verdict:
    if len(marked) == len(node.inputs):
        return Verdict.FIRE
    return or_join(step.compiled(net.number), node.id).verdict(net.marking, busy(step, net), net.seen)


def busy(step: Step, net: NetInstance) -> dict[str, int]:
    """Tasks at work in a net: how many of their activations have consumed tokens and not yet let the flow go on."""
    found: dict[str, int] = {}
    for task in net.active:
        working = _working(step, net, task)
        if working:
            found[task] = working
    return found


def _working(step: Step, net: NetInstance, task: str) -> int:
    live = (step.case.activations[number] for number in net.active.get(task, ()))
    return sum(
        1
        for activation in live
        if activation.started
        and not activation.released
        and not compensation.pending(step, activation, compensation.GONE)
    )


def _structured_or(step: Step, node: TaskNode, net: NetInstance) -> Offers:
    expected = net.expected.get(node.id)
    if not expected:
        return ()
    marked = tuple(condition for condition in expected[0] if condition in net.marking)
    return ((marked, 1),) if marked and not _awaited(step, node, net, expected[0]) else ()


def _awaited(step: Step, node: TaskNode, net: NetInstance, expected: tuple[str, ...]) -> bool:
    """Whether a branch that the split took has not delivered and still can."""
    return any(place not in net.marking and _alive(step, net, node.blocks[place]) for place in expected)


def _alive(step: Step, net: NetInstance, block: Region) -> bool:
    """Whether a token or work is left in a part of the net."""
    return any(place in net.marking for place in block.conditions) or any(
        _working(step, net, task) for task in block.tasks
    )


def give_up(step: Step, node: TaskNode, net: NetInstance) -> None:
    """Drop what a structured merge was told to expect when every branch of it is gone without delivering."""
    expected = net.expected.get(node.id)
    while expected:
        if any(place in net.marking for place in expected[0]) or _awaited(step, node, net, expected[0]):
            return
        step.emit(e.ExpectationMet(net.number, node.id))
        expected = net.expected.get(node.id)


def _local_or(step: Step, node: TaskNode, net: NetInstance) -> Offers:
    if not all(condition in net.marking or condition in net.dead for condition in node.inputs):
        return ()
    marked = _marked(node, net)
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


def binding(step: Step, node: TaskNode, net: NetInstance, offered: tuple[str, ...]) -> tuple[str, ...] | None:
    """What a task offered over the tokens in `offered` takes when it starts now; None when it can start no more."""
    if node.plain_join:
        if len(offered) == 1:
            return offered if offered[0] in net.marking else None
        return offered if net.marking.keys() >= set(offered) else None
    if not all(condition in net.marking for condition in node.task.reads):
        return None
    kind = node.join.kind
    if not node.single:
        there = all(net.marking.get(condition, 0) >= offered.count(condition) for condition in offered)
        return offered if there else None
    if kind == "local-or":  # what every input delivered was known when it was offered
        return offered if all(condition in net.marking for condition in offered) else None
    if kind == "structured-or":
        possible = _structured_or(step, node, net)
        return possible[0][0] if possible else None
    marked = _marked(node, net)
    if kind == "partial":  # how many branches it needs was decided when it was offered
        return marked[: len(offered)] if len(marked) >= len(offered) and node.id not in net.seen else None
    return marked if marked and _verdict(step, node, net, marked) is Verdict.FIRE else None


def consumed(step: Step, node: TaskNode, net: NetInstance, inputs: tuple[str, ...]) -> None:
    """A firing has consumed `inputs`: keep the books of its join."""
    kind = node.join.kind
    if kind == "partial":
        if node.join.mode != "cancelling":
            _seen(step, node, net, inputs, ())
        return
    if kind == "structured-or":
        step.emit(e.ExpectationMet(net.number, node.id))
    elif kind == "local-or":
        dead = tuple(condition for condition in node.inputs if condition not in inputs and condition in net.dead)
        if dead:
            step.emit(e.DeadPathMoved(net.number, node.id, dead))
    if node.tallies:
        ran = net.seen.get(node.id, ()) + tuple(place for place in node.skips if place in inputs)
        over = all(place in ran for place in node.skips)
        step.emit(e.JoinMoved(net.number, node.id, _without(ran, node.skips) if over else ran))
        step.again(net.number, node.id)


def absorb(step: Step, node: TaskNode, net: NetInstance) -> None:
    """A partial join that has fired takes one token of each branch not yet seen, without effect (WCP-9, 28)."""
    seen = net.seen.get(node.id)
    if seen is None:
        return
    left = (node.join.of or len(node.inputs)) - len(seen)
    late = tuple(place for place in node.inputs if place not in seen and (place in net.marking or place in net.dead))
    if late:
        late = late[:left]
        true = tuple(place for place in late if place in net.marking)
        if len(true) < len(late):
            false = tuple(place for place in late if place not in net.marking)
            step.emit(e.DeadPathMoved(net.number, node.id, false))
        _seen(step, node, net, seen + late, true)


def _seen(step: Step, node: TaskNode, net: NetInstance, seen: tuple[str, ...], absorbed: tuple[str, ...]) -> None:
    over = len(seen) >= (node.join.of or len(node.inputs))
    step.emit(e.JoinMoved(net.number, node.id, () if over else tuple(sorted(seen)), absorbed))
    step.again(net.number, node.id)  # the next round, or more that came meanwhile


def skip(step: Step, node: TaskNode, net: NetInstance) -> bool:
    """Let false tokens go past a task (dead path elimination, WCP-37). True when some moved."""
    if not any(condition in net.dead for condition in node.skips):
        return False
    ran: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    if node.join.kind in ("and", "local-or", "partial"):
        marked = _marked(node, net)
        dead = tuple(condition for condition in node.inputs if condition not in marked and condition in net.dead)
        if len(marked) + len(dead) < len(node.inputs) or not dead or _enough(step, node, net, marked):
            return False  # not every input has delivered, or it fires with those that are true
        taken = marked
    else:
        ran = net.seen.get(node.id, ())
        dead = tuple(condition for condition in node.skips if condition not in ran)
        if not all(condition in net.dead for condition in dead):
            return False
    produced = () if ran else node.carries
    step.emit(e.DeadPathMoved(net.number, node.id, dead, taken, produced))
    if ran:
        step.emit(e.JoinMoved(net.number, node.id, _without(ran, node.skips)))
    step.again(net.number, node.id)
    step.touch(net.number, produced)
    return True


def _enough(step: Step, node: TaskNode, net: NetInstance, marked: tuple[str, ...]) -> bool:
    """Whether the true tokens fire a join of which some inputs are false."""
    if node.join.kind == "and":
        return False
    if node.join.kind == "local-or" or node.id in net.seen or not marked:
        return bool(marked)
    need = _need(step, node, net)
    return need is None or len(marked) >= need


def _without(ran: tuple[str, ...], over: tuple[str, ...]) -> tuple[str, ...]:
    """`ran` with one of each of `over` less: what is left belongs to the next round."""
    left = list(ran)
    for place in over:
        if place in left:
            left.remove(place)
    return tuple(left)
