"""What the graph of a document must satisfy before anybody analyses its behaviour, and what deserves a warning.

`check_nets` refuses: references into nothing, arcs that a net cannot have, bounds that cannot be met, a recursion
that no path leaves. `findings` warns about a valid spec. `unsupported` lists the constructs that are part of the
document's contract but not executed yet; a row of its table disappears when its construct works.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from knhk_workflow.errors import Problem
from knhk_workflow.model.fields import Problems
from knhk_workflow.model.graph import (
    OUTSIDE,
    Edges,
    dominators,
    knotted,
    natural_loops,
    reachable,
    reverse,
    without,
)
from knhk_workflow.model.spec import END, ROOT, START, Join, Net, Spec, Task

SHARED_OUTPUT_TASKS_MAX: Final = 500  # above this the search for concurrent writers of a key (quadratic) is left out


@dataclass(slots=True)
class Places:
    """Where the parts of one net stand in the document. Flows are addressed by position."""

    path: str
    flows: list[str] = field(default_factory=list)
    guarded: list[bool] = field(default_factory=list)  # carries `when`, even one that does not compile
    explicit_splits: set[str] = field(default_factory=set)

    def task(self, task_id: str, key: str = "") -> str:
        prefix = f"{self.path}." if self.path else ""
        return f"{prefix}tasks.{task_id}" + (f".{key}" if key else "")


def check_nets(problems: Problems, spec: Spec, places: Mapping[str, Places]) -> None:
    """Notes everything in `spec` that no case could run."""
    names = {net.name for net in spec.nets} - {ROOT}
    for net in spec.nets:
        _check_flows(problems, net, places[net.name])
        _check_references(problems, net, places[net.name], names)
    _check_recursion(problems, spec, places)
    if not problems:
        for net in spec.nets:
            _check_merges(problems, net, places[net.name])


def _check_flows(problems: Problems, net: Net, places: Places) -> None:
    tasks = {task.id for task in net.tasks}
    conditions = {condition.id for condition in net.conditions} | {START, END}
    known = tasks | conditions
    seen: dict[tuple[str, str], str] = {}
    implied: dict[str, str] = {}
    for flow, at, guarded in zip(net.flows, places.flows, places.guarded, strict=True):
        for key, name in (("from", flow.source), ("to", flow.target)):
            if name not in known:
                hint = problems.nearest(name, known)
                problems.add(f"{at}.{key}", "unknown_element", f"there is no task or condition {name!r}", hint)
        if flow.target == START:
            problems.add(f"{at}.to", "flow_into_start", "no flow leads into start", "add a condition to loop back to")
        if flow.source == END:
            problems.add(f"{at}.from", "flow_out_of_end", "no flow leaves end")
        if flow.source in conditions and flow.target in conditions:
            message = f"{flow.source!r} and {flow.target!r} are both conditions; a flow joins a task and something else"
            problems.add(at, "condition_to_condition", message, "put a task between them")
        if flow.source in conditions and (guarded or flow.default):
            message = f"{flow.source!r} is a condition: what follows it is taken by whoever starts first, not by guards"
            problems.add(at, "guarded_condition", message, "put a routing task before the guards")
        before = seen.setdefault((flow.source, flow.target), at)
        if before != at:
            message = f"the flow from {flow.source!r} to {flow.target!r} exists already ({before})"
            problems.add(at, "duplicate_flow", message, "put a routing task into one of them")
        elif flow.source in tasks and flow.target in tasks:
            name = f"{flow.source}->{flow.target}"
            other = implied.setdefault(name, at)
            if name in known or other != at:
                message = f"the condition implied here is named {name!r}, which is taken"
                problems.add(at, "ambiguous_name", message, "choose ids without ->")


def _check_times(problems: Problems, task: Task, places: Places) -> None:
    """What time can be asked of: work, a sub-net, a signal; and a task that waits for a moment does nothing else."""
    if task.timer is not None:
        given = {"trigger": task.trigger, "instances": task.instances, "for_each": task.for_each, "loop": task.loop}
        for key, other in given.items():
            if other is not None:
                hint = "put both behind one condition, and the first one wins" if key == "trigger" else ""
                message = "a task with a timer does nothing but wait for its moment"
                problems.add(places.task(task.id, key), "conflict", message, hint)
    elif any((task.required_roles, task.net, task.trigger, task.connector, task.workflow)):
        return
    for key, limit in (("timeout", task.timeout), ("deadline", task.deadline)):
        if limit is not None:
            message = "limits work, a sub-net, or the wait for a signal, and this task has none of them"
            problems.add(places.task(task.id, key), "no_work", message, "give it required_roles, a net or a trigger")


def _check_references(problems: Problems, net: Net, places: Places, nets: Collection[str]) -> None:
    tasks = {task.id: task for task in net.tasks}
    conditions = {condition.id for condition in net.conditions}
    conditions |= {f"{flow.source}->{flow.target}" for flow in net.flows if {flow.source, flow.target} <= tasks.keys()}
    cancellable = conditions | tasks.keys()
    readable = conditions | {START, END}
    follow_ups = cancellable | {END}
    incoming: dict[str, int] = {}
    onward: dict[str, set[str]] = {}
    for flow in net.flows:
        onward.setdefault(flow.source, set()).update((flow.target, f"{flow.source}->{flow.target}"))
        incoming[flow.target] = incoming.get(flow.target, 0) + 1

    def expect(path: str, name: str, known: Collection[str], what: str) -> None:
        if name not in known:
            problems.add(path, "unknown_element", f"there is no {what} {name!r}", problems.nearest(name, known))

    for task in net.tasks:
        for index, name in enumerate(task.cancels):
            expect(f"{places.task(task.id, 'cancels')}[{index}]", name, cancellable, "task or condition")
        for index, name in enumerate(task.reads):
            expect(f"{places.task(task.id, 'reads')}[{index}]", name, readable, "condition")
        for index, name in enumerate(task.completes):
            expect(f"{places.task(task.id, 'completes')}[{index}]", name, tasks, "task")
        for index, name in enumerate(task.closes):
            at = f"{places.task(task.id, 'closes')}[{index}]"
            expect(at, name, tasks, "task")
            closed = tasks[name].instances if name in tasks else None
            if name in tasks and (closed is None or closed.create != "dynamic"):
                problems.add(at, "not_dynamic", f"{name!r} takes no further instances anyway")
        for key, follow in (("on_error", task.on_error), ("on_timeout", task.on_timeout)):
            if follow is not None:
                expect(places.task(task.id, key), follow, follow_ups, "task or condition")
                if follow in follow_ups and follow not in onward.get(task.id, ()):
                    message = f"is taken instead of the usual flows, and no flow leads from {task.id!r} to {follow!r}"
                    hint = 'add the flow; with `when: "false"` in a xor or or split it is taken only then'
                    problems.add(places.task(task.id, key), "no_flow", message, hint)
        if task.compensate is not None:
            expect(places.task(task.id, "compensate"), task.compensate, tasks, "task")
            if task.compensate in tasks:
                _check_compensation(problems, task.id, tasks[task.compensate], net, places)
        if task.net is not None:
            expect(places.task(task.id, "net"), task.net, nets, "net")
        _check_times(problems, task, places)
        if task.trigger is not None and task.net is None and not task.required_roles:
            for key, given in (("instances", task.instances), ("for_each", task.for_each)):
                if given is not None:
                    message = "a task that only waits for its signal has no work to do several times"
                    problems.add(places.task(task.id, key), "no_work", message, "give it required_roles or a net")
        _check_join(problems, task.join, incoming.get(task.id, 0), places.task(task.id, "join.partial"))
    prefix = f"{places.path}." if places.path else ""
    for section, members in net.sections:
        for index, name in enumerate(members):
            expect(f"{prefix}sections.{section}[{index}]", name, tasks, "task")


def _check_compensation(problems: Problems, undone: str, task: Task, net: Net, places: Places) -> None:
    """A task that undoes another one stands outside of all flows, and does nothing but its work, once."""
    at = places.task(undone, "compensate")
    if any(task.id in (flow.source, flow.target) for flow in net.flows):
        hint = "take it out of the flows; it runs when what was completed has to be undone"
        problems.add(at, "has_flows", f"{task.id!r} undoes {undone!r} and is part of a flow", hint)
    given = {
        "join": task.join != Join(),
        "instances": task.instances is not None,
        "for_each": task.for_each is not None,
        "loop": task.loop is not None,
        "trigger": task.trigger is not None,
        "timer": task.timer is not None,
        "mutex": task.mutex is not None,
        "reads": bool(task.reads),
        "cancels": bool(task.cancels),
        "completes": bool(task.completes),
        "closes": bool(task.closes),
        "compensate": task.compensate is not None,
        "sections": any(task.id in members for _, members in net.sections),
    }
    for key, used in given.items():
        if used:
            problems.add(at, "conflict", f"{task.id!r} undoes {undone!r} and has no use for {key}")


def _check_join(problems: Problems, join: Join, inputs: int, path: str) -> None:
    if join.kind != "partial":
        return
    if join.of > inputs:
        problems.add(f"{path}.of", "bounds", f"is {join.of}, but {_count(inputs, 'flow leads', 'flows lead')} here")
    most = min(join.of or inputs, inputs)
    if isinstance(join.need, int) and join.need > most:
        problems.add(f"{path}.need", "bounds", f"is {join.need}, but at most {most} branches can arrive")


def _check_merges(problems: Problems, net: Net, places: Places) -> None:
    """A structured merge needs its split; a local one needs every branch to tell it once whether it comes."""
    merges = [task for task in net.tasks if task.join.kind in ("structured-or", "local-or")]
    if not merges:
        return
    tasks = {task.id: task for task in net.tasks}
    onward = _onward(net)
    edges = {name: tuple(sorted(targets)) for name, targets in onward.items()}
    back = reverse(edges)
    above = dominators({**edges, OUTSIDE: (START, *(name for name in sorted(tasks) if name not in back))}, OUTSIDE)
    for task in merges:
        if task.join.kind == "structured-or":
            _check_matching_split(problems, task.id, tasks, edges, above, places)
    local = [task.id for task in merges if task.join.kind == "local-or"]
    if local:
        loops = natural_loops(edges, above)
        forward = without(edges, loops)
        for name in local:
            _check_branches(problems, name, tasks, edges, forward, loops, places)


def _check_matching_split(
    problems: Problems, join: str, tasks: Mapping[str, Task], edges: Edges, above: Mapping[str, str], places: Places
) -> None:
    name = above.get(join, OUTSIDE)
    while name != OUTSIDE and len(edges.get(name, ())) < 2:
        name = above[name]
    if name not in tasks or tasks[name].split.kind != "or":
        found = f"what parts before it is {name!r}, {_parting(tasks.get(name))}" if name else "nothing parts before it"
        hint = "let all its branches begin at one task with split: or, or use join: or"
        message = f"{join!r} waits for what its or-split took, but {found}"
        problems.add(places.task(join, "join"), "no_matching_split", message, hint)


def _parting(task: Task | None) -> str:
    return "a condition" if task is None else f"a task with split: {task.split.kind}"


def _check_branches(
    problems: Problems,
    join: str,
    tasks: Mapping[str, Task],
    edges: Edges,
    forward: Edges,
    loops: Mapping[tuple[str, str], Collection[str]],
    places: Places,
) -> None:
    """False tokens go forward, once for each branch: no loop before the merge, no place where ways part or meet."""
    before = reachable(reverse(forward), (join,))
    hint = "use join: or, which looks at the whole state"
    at = places.task(join, "join")
    looping = knotted(forward, before)
    for body in loops.values():
        if not before.isdisjoint(body) and join not in body:
            looping |= before.intersection(body)
    if any(target == join for _, target in loops):
        looping.add(join)
    if looping:
        message = f"{join!r} must hear of every branch once, but there is a loop before it, at {min(looping)!r}"
        problems.add(at, "loop_before_merge", message, hint)
    back = reverse(forward)
    for name in sorted(before - tasks.keys()):
        for many, what in ((edges.get(name, ()), "lead on from"), (back.get(name, ()), "lead to")):
            if len(many) > 1:
                message = (
                    f"{join!r} must hear of every branch once, but {len(many)} tasks {what} the condition {name!r}"
                )
                problems.add(at, "condition_before_merge", message, f"put a task there, or {hint}")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _check_recursion(problems: Problems, spec: Spec, places: Mapping[str, Places]) -> None:
    """A net that contains itself needs a path on which it does not. Joins are taken for met, so only what can never
    end is refused."""
    nets = {net.name: net for net in spec.nets}
    calls = {net.name: {task.net for task in net.tasks if task.net in nets} for net in spec.nets}
    ending: set[str] = set()
    grown = True
    while grown:
        grown = False
        for name, net in nets.items():
            if name not in ending and _can_end(net, ending):
                ending.add(name)
                grown = True
    for name in sorted(nets.keys() - ending):
        if name in _closure(calls.get(name, set()), calls):
            at = places[name].path or "nets"
            hint = "add a path from start to end around the task that repeats it"
            problems.add(at, "no_terminating_path", f"every path through net {name!r} leads into itself again", hint)


def _can_end(net: Net, ending: Collection[str]) -> bool:
    """Whether some path from start gets to where nothing follows, through tasks that can complete."""
    passable = {
        task.id
        for task in net.tasks
        if task.net is None or task.net in ending or task.for_each is not None or task.instances is not None
    }
    tasks = {task.id for task in net.tasks}
    onward = _onward(net)
    reached = _closure(
        {START}, {name: after for name, after in onward.items() if name not in tasks or name in passable}
    )
    return any(not onward.get(name) and (name not in tasks or name in passable) for name in reached)


def _onward(net: Net) -> dict[str, set[str]]:
    onward: dict[str, set[str]] = {}
    for flow in net.flows:
        onward.setdefault(flow.source, set()).add(flow.target)
    return onward


def _closure(roots: Iterable[str | None], edges: Mapping[str, Collection[str | None]]) -> set[str]:
    """Everything that can be reached from `roots`, and they themselves."""
    reached: set[str] = set()
    waiting = [root for root in roots if root is not None]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(after for after in edges.get(name, ()) if after is not None)
    return reached


# --------------------------------------------------------------------------------------------------------- warnings


def findings(spec: Spec) -> tuple[Problem, ...]:
    """What is probably not meant, in a spec that is valid. All are warnings."""
    found: list[Problem] = []
    used = _closure({ROOT}, {net.name: {task.net for task in net.tasks} for net in spec.nets})
    for net in spec.nets:
        places = Places(f"nets.{net.name}" if net.name != ROOT else "")
        if net.name not in used:
            found.append(_warning(places.path, "unused_net", f"nothing uses the net {net.name!r}"))
        found.extend(_reachability(net, places))
        found.extend(_lost_choices(net, places))
        found.extend(_shared_outputs(net, places))
        found.extend(_final(spec, net, places))
    return tuple(found)


def _warning(path: str, code: str, message: str, hint: str = "") -> Problem:
    return Problem(path, code, message, severity="warning", hint=hint)


def _reachability(net: Net, places: Places) -> Iterable[Problem]:
    onward = _onward(net)
    backward: dict[str, set[str]] = {}
    for flow in net.flows:
        backward.setdefault(flow.target, set()).add(flow.source)
    reached = _closure({START}, onward)
    aside = {task.compensate for task in net.tasks}
    tasks = [task.id for task in net.tasks if task.id not in aside]
    ends = {END} | {name for name in {*tasks, *onward, *backward} if not onward.get(name)}
    ending = _closure(ends, backward)
    for name in tasks:
        if name not in reached:
            yield _warning(places.task(name), "unreachable_task", f"no flow leads from start to {name!r}")
        elif name not in ending:
            yield _warning(places.task(name), "no_path_to_end", f"no flow leads from {name!r} to an end")
    if net.termination == "explicit" and tasks and END not in reached:
        at = f"{places.path}.termination" if places.path else "termination"
        yield _warning(at, "end_unreachable", "the net ends explicitly, but no flow leads from start to end")


def _lost_choices(net: Net, places: Places) -> Iterable[Problem]:
    """Tasks that start by themselves take the token before anybody outside can choose the other one."""
    tasks = {task.id: task for task in net.tasks}
    for condition, consumers in sorted(_onward(net).items()):
        rivals = sorted(consumers & tasks.keys())
        if condition in tasks or len(rivals) < 2:
            continue
        automatic = [name for name in rivals if _automatic(tasks[name])]
        offered = [name for name in rivals if tasks[name].required_roles]
        if automatic and offered:
            message = f"{automatic[0]!r} starts by itself, so {offered[0]!r} can never be chosen at {condition!r}"
            hint = "give it required_roles, a timer or a trigger"
            yield _warning(places.task(automatic[0]), "automatic_in_deferred_choice", message, hint)


def _final(spec: Spec, net: Net, places: Places) -> Iterable[Problem]:
    """Composite tasks whose sub-net can be undone while it runs, and no more once it has completed."""
    undone = {each.name for each in spec.nets if any(task.compensate is not None for task in each.tasks)}
    for task in net.tasks:
        if task.net in undone and task.compensate is None:
            message = f"when {task.net!r} has completed, what was done in it is final"
            hint = "give the task a compensate of its own"
            yield _warning(places.task(task.id), "final_when_complete", message, hint)


def _automatic(task: Task) -> bool:
    return not task.required_roles and task.trigger is None and task.timer is None


def _shared_outputs(net: Net, places: Places) -> Iterable[Problem]:
    """Keys that tasks on different branches of one parallel split write: whoever commits last wins."""
    tasks = {task.id: task for task in net.tasks}
    writes = {task.id: {each.key for each in task.out} for task in net.tasks if task.out}
    if len(writes) < 2 or len(tasks) > SHARED_OUTPUT_TASKS_MAX:
        return
    onward = _onward(net)
    reported: set[tuple[str, str, str]] = set()
    for split in net.tasks:
        branches = sorted(onward.get(split.id, ()))
        if split.split.kind != "and" or len(branches) < 2:
            continue
        reach = [_closure({branch}, onward) for branch in branches]
        for index, mine in enumerate(reach):
            for theirs in reach[index + 1 :]:
                for first in sorted((mine - theirs) & writes.keys()):
                    for second in sorted((theirs - mine) & writes.keys()):
                        for key in sorted(writes[first] & writes[second]):
                            reported.add((key, min(first, second), max(first, second)))
    for key, first, second in sorted(reported):
        message = f"{first!r} and {second!r} may run side by side and both write data.{key}"
        yield _warning(
            places.task(second, f"out.{key}"), "shared_output", message, "use two keys and combine them later"
        )


# ------------------------------------------------------------------------------------------------------- unsupported

_TASK_CONSTRUCTS: Final[tuple[tuple[str, Callable[[Task], bool]], ...]] = (
    ("workflow", lambda task: task.workflow is not None),
    ("allocation", lambda task: bool(task.allocation)),
)


def unsupported(spec: Spec) -> tuple[Problem, ...]:
    """The parts of `spec` that this version reads but does not execute."""
    found: list[Problem] = []
    for net in spec.nets:
        places = Places(f"nets.{net.name}" if net.name != ROOT else "")
        for task in net.tasks:
            for key, used in _TASK_CONSTRUCTS:
                if used(task):
                    message = f"{key} is not executed by this version"
                    found.append(Problem(places.task(task.id, key), "unsupported_construct", message))
    return tuple(found)
