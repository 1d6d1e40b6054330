"""Which activations a task could have from the present marking: the rules of joins, as one table.

`offers(node, net)` gives each way to bind the task's inputs with the number of times that way could fire from the
marking alone. A binding is the tuple of conditions that one firing consumes. Settling compares this with the
activations that exist, and adds or withdraws the difference.

| join | binding | how often | pattern |
|---|---|---|---|
| and | every input | the scarcest input decides | WCP-3, 33: surplus stays for later firings |
| xor | one input | once per token in it | WCP-5, 8: every thread goes on |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from knhk_workflow.core.case import NetInstance
from knhk_workflow.model.net import TaskNode

Offers = tuple[tuple[tuple[str, ...], int], ...]


def offers(node: TaskNode, net: NetInstance) -> Offers:
    """Ways to fire `node` now, in the order of its inputs; only ways that can fire at least once."""
    return JOINS[node.join.kind](node, net.marking)


def _and(node: TaskNode, marking: Mapping[str, int]) -> Offers:
    times: int | None = None
    for condition in node.inputs:
        here = marking.get(condition)
        if here is None:
            return ()
        if times is None or here < times:
            times = here
    return ((node.inputs, times),) if times else ()


def _xor(node: TaskNode, marking: Mapping[str, int]) -> Offers:
    return tuple(((condition,), marking[condition]) for condition in node.inputs if condition in marking)


JOINS: Mapping[str, Callable[[TaskNode, Mapping[str, int]], Offers]] = {"and": _and, "xor": _xor}
