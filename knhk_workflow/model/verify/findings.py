"""What verification has to say, in words that an author can act on. Each code has one function here.

Paths are those of the document: `tasks.ship.join`, `nets.checks.tasks.assess.cancels[1]`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from knhk_workflow.errors import Problem
from knhk_workflow.model.net import CompiledNet, TaskNode
from knhk_workflow.model.spec import ROOT

GUARDS: str = "guards were not looked at: when the data rule this way out, register it with allow_unsound"
_LISTED = 4  # names that a sentence tells one by one


def at(net: CompiledNet, task: str = "", key: str = "") -> str:
    """The path of a task of `net`, or of one of its keys."""
    parts = ([f"nets.{net.name}"] if net.name != ROOT else []) + ([f"tasks.{task}"] if task else [])
    return ".".join([*parts, *([key] if key else [])])


def listed(names: Iterable[str]) -> str:
    """Names for a sentence: 'a', 'b' and 'c'."""
    found = [repr(name) for name in names]
    if len(found) > _LISTED:
        found = [*found[:_LISTED], f"{len(found) - _LISTED} more"]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else "nothing"


def tokens(left: Mapping[str, int]) -> str:
    """Which tokens are left where."""
    parts = [f"{count} token{'s' if count > 1 else ''} in {name!r}" for name, count in sorted(left.items())]
    if len(parts) > _LISTED:
        parts = [*parts[:_LISTED], f"tokens in {len(parts) - _LISTED} more"]
    return ", ".join(parts) if parts else "no token at all"


# ---------------------------------------------------------------------------------------------------------- errors


def deadlock(
    net: CompiledNet,
    left: Mapping[str, int],
    waiting: TaskNode | None,
    missing: Sequence[str],
    trace: Sequence[str],
    chosen: str | None,
) -> Problem:
    """A marking in which nothing can happen, short of the end."""
    rest = f"left: {tokens(left)}"
    if waiting is None:
        message = f"the net can get stuck: {tokens(left)}, and nobody ever takes them"
        hint = "lead a flow from there to an end"
        return Problem(at(net), "deadlock", message, hint=_guarded(hint, chosen), trace=(*trace, rest))
    arrived = [name for name in waiting.inputs if name in left]
    rest += f"; {waiting.id!r} still waits for {listed(missing)}" if missing else f"; {waiting.id!r} cannot start"
    message = f"{waiting.id!r} can wait for ever: {listed(arrived)} arrived, {listed(missing)} never will"
    if waiting.join.kind == "merge":
        message = f"{waiting.id!r} can wait for ever: it merges {waiting.join.count} threads, fewer are left"
        hint = f"let the number of threads that arrive be a multiple of {waiting.join.count}"
    elif waiting.task.reads and not missing:
        message = f"{waiting.id!r} can wait for ever: {listed(waiting.task.reads)} will not be marked again"
        hint = "give the token another way on, for example a task that takes it once the milestone is over"
    elif chosen is not None and waiting.join.kind == "and":
        hint = (
            f"{chosen!r} does not take every branch, but {waiting.id!r} waits for all of them: "
            f"use join: or (or xor) at {waiting.id!r}, or split: and at {chosen!r}"
        )
    elif waiting.join.kind == "partial":
        hint = "lower need, or see that enough branches arrive in each round"
    elif waiting.join.kind in ("or", "structured-or", "local-or"):
        hint = "the join waits for a branch that cannot come: look at what is cancelled, and at joins that wait for it"
    else:
        hint = f"use join: or at {waiting.id!r}, or see that all its branches arrive equally often"
    return Problem(at(net, waiting.id, "join"), "deadlock", message, hint=_guarded(hint, chosen), trace=(*trace, rest))


def lock_deadlock(net: CompiledNet, left: Mapping[str, int], blocked: str, lock: str, trace: Sequence[str]) -> Problem:
    """Stuck because of a critical section that is never left."""
    message = f"{blocked!r} can wait for ever for {lock}, which is never left"
    hint = "let the section be left without anything that waits for it: take the waiting task out of it, or the tokens"
    rest = f"left: {tokens(left)}; {blocked!r} waits for {lock}"
    return Problem(at(net, blocked), "lock_deadlock", message, hint=hint, trace=(*trace, rest))


def nested_lock(net: CompiledNet, task: str, lock: str, called: str, inner: str) -> Problem:
    """A task holds a lock that its own sub-net needs."""
    message = f"{task!r} holds {lock} while its sub-net runs, and {inner!r} in net {called!r} needs the same lock"
    hint = f"take the lock away from {task!r} or from {inner!r}"
    trace = (f"start {task}", f"left: {task!r} is at work and waits for {inner!r}, which waits for {lock}")
    return Problem(at(net, task), "lock_deadlock", message, hint=hint, trace=trace)


def end_not_reached(net: CompiledNet, trace: Sequence[str], chosen: str | None) -> Problem:
    """An explicit net that runs dry before its end."""
    message = "nothing is left to do although `end` was not reached, and this net ends explicitly"
    hint = "lead every way to `end`, or use termination: implicit"
    where = at(net, "", "termination")
    rest = "left: no token, and `end` is not marked"
    return Problem(where, "end_not_reached", message, hint=_guarded(hint, chosen), trace=(*trace, rest))


def livelock(net: CompiledNet, left: Mapping[str, int], round_: Sequence[str], trace: Sequence[str]) -> Problem:
    """Things go on for ever, but never to an end."""
    message = f"the net can go on for ever without a way to an end: {listed(round_)} happen again and again"
    hint = "give the loop a way out"
    rest = f"left: {tokens(left)}; from here no end can be reached"
    where = at(net, round_[0]) if round_ else at(net)
    return Problem(where, "livelock", message, hint=hint, trace=(*trace, rest))


def no_completion(net: CompiledNet) -> Problem:
    """Coverability says that no run ends."""
    message = "no run of this net can reach an end"
    hint = "look for joins that wait for branches which are never taken together, and for loops without a way out"
    trace = ("left: after any sequence of tasks, some token that cannot come to an end",)
    return Problem(at(net), "no_completion", message, hint=hint, trace=trace)


def dead_task(net: CompiledNet, node: TaskNode) -> Problem:
    """A task that flows lead to, but that can never start."""
    message = f"{node.id!r} can never start"
    if len(node.inputs) > 1 and node.join.kind == "and":
        hint = f"its branches {listed(node.inputs)} are never marked together: use join: xor or join: or"
    elif node.task.reads:
        hint = f"{listed(node.task.reads)} is never marked while a token waits for it"
    else:
        hint = "the net has ended, or its tokens were cancelled, before it can: remove it or lead another flow to it"
    trace = (f"left: whatever happens, {node.id!r} does not get the tokens it needs",)
    return Problem(at(net, node.id), "dead_task", message, hint=hint, trace=trace)


# -------------------------------------------------------------------------------------------------------- warnings


def undecided(net: CompiledNet, reason: str) -> Problem:
    """The analysis did not come to an end."""
    message = f"whether this net can always end was not decided: {reason}"
    hint = "make the net smaller with sub-nets, which are verified one by one, or allow a larger budget"
    return Problem(at(net), "undecided", message, "warning", hint)


def cancels_nothing(net: CompiledNet, node: TaskNode, name: str) -> Problem:
    """An element of a cancellation region that is always empty then (irreducible region, YAWL)."""
    index = node.task.cancels.index(name) if name in node.task.cancels else -1
    key = f"cancels[{index}]" if index >= 0 else "cancels"
    message = f"{name!r} can never hold a token when {node.id!r} completes, so cancelling it has no effect"
    return Problem(at(net, node.id, key), "cancels_nothing", message, "warning", "leave it out of cancels")


def immutable_or_join(net: CompiledNet, node: TaskNode, kind: str) -> Problem:
    """An OR-join that always behaves like a cheaper join."""
    when = "all its branches have arrived" if kind == "and" else "one branch has arrived, never two"
    message = f"the or-join of {node.id!r} always fires when {when}"
    hint = f"use join: {kind}, which is cheaper"
    return Problem(at(net, node.id, "join"), "immutable_or_join", message, "warning", hint)


def or_joins_in_cycle(net: CompiledNet, names: Collection[str]) -> Problem:
    """OR-joins that may wait for each other."""
    message = f"the or-joins of {listed(sorted(names))} lie on one cycle: each may wait for the other"
    hint = "use another join for one of them, for example xor where the loop comes back"
    return Problem(at(net, min(names), "join"), "or_joins_in_cycle", message, "warning", hint)


def merge_reentered(net: CompiledNet, task: str) -> Problem:
    """WCP-7's context condition is broken."""
    message = f"the split of {task!r} can happen again before its structured merge has fired"
    hint = "use join: or, which needs no structure"
    return Problem(at(net, task, "join"), "merge_reentered", message, "warning", hint)


# ----------------------------------------------------------------------------------------------------- information


def unsafe_place(net: CompiledNet, name: str, readers: Sequence[str]) -> Problem:
    """More than one token: patterns 8 and 33 rather than 5 and 3."""
    where = at(net, readers[0], "join") if readers else at(net, "", f"conditions.{name}")
    message = f"{name!r} can hold several tokens at once, so {listed(readers)} may run once for each of them"
    hint = "fine when that is meant (patterns 8, 12, 28, 33, 41, 42); otherwise synchronize the branches before it"
    return Problem(where, "unsafe_place", message, "info", hint)


def unsafe_merge(net: CompiledNet, node: TaskNode) -> Problem:
    """A simple merge (5) that is a multi-merge (8)."""
    message = f"several branches can arrive at {node.id!r} at once: it runs once for each of them"
    hint = f"fine when that is meant (pattern 8); otherwise use join: and or join: or at {node.id!r}"
    return Problem(at(net, node.id, "join"), "unsafe_merge", message, "info", hint)


def work_removed(net: CompiledNet, left: Iterable[str]) -> Problem:
    """Explicit termination with something left (43)."""
    message = f"when `end` is reached, work may be left and is withdrawn then: tokens in {listed(sorted(left))}"
    hint = "fine when that is meant (pattern 43); otherwise join these branches before `end`"
    return Problem(at(net, "", "termination"), "work_removed_at_end", message, "info", hint)


def one_signal(net: CompiledNet, node: TaskNode) -> Problem:
    """A task that only signals start."""
    message = f"{node.id!r} starts with each signal; one signal was looked at"
    return Problem(at(net, node.id, "trigger"), "one_signal_assumed", message, "info", "two may run side by side")


def choice_without_default(net: CompiledNet, node: TaskNode) -> Problem:
    """A choice that may find no branch."""
    message = f"when no guard after {node.id!r} holds, the case waits with an incident; that was not looked at"
    hint = "mark one flow with default: true"
    return Problem(at(net, node.id, "split"), "choice_without_default", message, "info", hint)


def _guarded(hint: str, chosen: str | None) -> str:
    return hint if chosen is None else f"{hint}; {GUARDS}"
