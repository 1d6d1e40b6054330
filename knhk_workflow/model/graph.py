"""Questions about a net's shape: who dominates whom, what lies between, what is on a cycle.

Nodes are the names of conditions and tasks, as edges `source -> targets`; a name is one or the other, never both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet

Edges = Mapping[str, tuple[str, ...]]

OUTSIDE = ""  # where tokens come from, before the start and before tasks that nothing leads to; no element's name


def reachable(edges: Edges, sources: Iterable[str], stop: AbstractSet[str] = frozenset()) -> set[str]:
    """Every node reachable from `sources`, themselves included, without going through (but into) a node of `stop`."""
    found: set[str] = set()
    pending = list(sources)
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found.add(node)
        if node not in stop:
            pending.extend(edges.get(node, ()))
    return found


def reverse(edges: Edges) -> dict[str, tuple[str, ...]]:
    """The edges the other way round."""
    back: dict[str, list[str]] = {}
    for source, targets in edges.items():
        for target in targets:
            back.setdefault(target, []).append(source)
    return {target: tuple(sources) for target, sources in back.items()}


def dominators(edges: Edges, root: str) -> dict[str, str]:
    """Immediate dominators of all that `root` reaches (Cooper, Harvey, Kennedy 2001); the root's is itself."""
    order: list[str] = []
    seen = {root}
    stack = [(root, iter(edges.get(root, ())))]
    while stack:
        node, targets = stack[-1]
        for target in targets:
            if target not in seen:
                seen.add(target)
                stack.append((target, iter(edges.get(target, ()))))
                break
        else:
            order.append(node)
            stack.pop()
    number = {node: index for index, node in enumerate(order)}
    back = reverse(edges)
    found = {root: root}
    changed = True
    while changed:
        changed = False
        for node in reversed(order[:-1]):
            known = [source for source in back.get(node, ()) if source in found]
            nearest = known[0]
            for other in known[1:]:
                nearest = _common(found, number, nearest, other)
            if found.get(node) != nearest:
                found[node] = nearest
                changed = True
    return found


def _common(found: Mapping[str, str], number: Mapping[str, int], one: str, other: str) -> str:
    while one != other:
        while number[one] < number[other]:
            one = found[one]
        while number[other] < number[one]:
            other = found[other]
    return one


def natural_loops(edges: Edges, above: Mapping[str, str]) -> dict[tuple[str, str], set[str]]:
    """The edges that lead back to a dominator of their source, each with the body of its loop, both ends included.

    `above` are the immediate dominators. What is on a cycle without such an edge lies in no structured loop.
    """
    back = reverse(edges)
    within = _intervals(above)
    found: dict[tuple[str, str], set[str]] = {}
    for source in above:
        for target in edges.get(source, ()):
            if within[target][0] <= within[source][0] and within[source][1] <= within[target][1]:
                found[source, target] = reachable(back, (source,), frozenset({target}))
    return found


def _intervals(above: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Each node's interval in a walk through the tree of dominators: that of a dominator holds it."""
    below: dict[str, list[str]] = {}
    roots: list[str] = []
    for node, parent in above.items():
        (roots if parent == node else below.setdefault(parent, [])).append(node)
    first: dict[str, int] = {}
    found: dict[str, tuple[int, int]] = {}
    stack = roots
    while stack:
        node = stack.pop()
        if node in first:
            found[node] = (first[node], len(first))
        else:
            first[node] = len(first)
            stack.append(node)
            stack.extend(below.get(node, ()))
    return found


def without(edges: Edges, left_out: Collection[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """The edges without some of them."""
    return {
        source: tuple(target for target in targets if (source, target) not in left_out)
        for source, targets in edges.items()
    }


def knotted(edges: Edges, nodes: AbstractSet[str]) -> set[str]:
    """Those of `nodes` that lie on a cycle within them, or between two."""
    found = set(nodes)
    for onward, backward in ((edges, reverse(edges)), (reverse(edges), edges)):
        before = {node: sum(1 for each in backward.get(node, ()) if each in found) for node in found}
        free = [node for node, count in before.items() if count == 0]
        while free:
            node = free.pop()
            found.discard(node)
            for each in onward.get(node, ()):
                if each in found:
                    before[each] -= 1
                    if before[each] == 0:
                        free.append(each)
    return found
