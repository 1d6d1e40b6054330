"""Why a case is where it is: for every task of every live net, in words and as data.

Read-only: explaining never changes a case and evaluates guards only to show their values.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from knhk_workflow.core.case import OPEN_ITEM_STATES, Activation, Case, Instance, NetInstance
from knhk_workflow.model.expression import EvaluationFailed, shown_values
from knhk_workflow.model.net import CompiledNet, Model, TaskNode

Status = str  # waiting | offered | started | incident | idle


class GuardReading(msgspec.Struct, frozen=True):
    """One guard with the values that it read and what came out (`true`, `false`, or the error)."""

    flow: str
    expression: str
    result: str
    values: dict[str, str]  # what it read, as people write it


class TaskExplanation(msgspec.Struct, frozen=True):
    """Why one task of a live net is or is not enabled.

    `status`: offered (somebody may take it), started (work is going on), incident (a person is needed), waiting (some
    tokens arrived, others are missing), idle (nothing arrived yet).
    """

    net_instance: int
    net: str
    task_id: str
    status: Status
    sentence: str
    join: str
    arrived: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    guards: tuple[GuardReading, ...] = ()
    path: tuple[str, ...] = ()
    items: tuple[str, ...] = ()


def explain(case: Case, model: Model) -> tuple[TaskExplanation, ...]:
    """All tasks of all live nets, those that something can be said about first."""
    found: list[TaskExplanation] = []
    for net in case.nets.values():
        if case.state in ("running", "suspended"):
            compiled = model.nets[net.name]
            found.extend(_task(case, net, compiled, node) for node in compiled.tasks.values())
    return tuple(sorted(found, key=lambda each: (ORDER[each.status], each.net_instance, each.task_id)))


ORDER = {"incident": 0, "started": 1, "offered": 2, "waiting": 3, "idle": 4}


def summary(case: Case, tasks: tuple[TaskExplanation, ...]) -> str:
    """The case in one sentence."""
    if case.state == "created":
        return "The case is created and has not been started."
    if case.state in ("completed", "cancelled", "failed"):
        return f"The case is {case.state}." if not case.reason else f"The case is {case.state}: {case.reason}."
    counts = {status: sum(1 for task in tasks if task.status == status) for status in ORDER}
    parts = [
        text
        for count, text in (
            (case.open_items, f"{case.open_items} work item(s) are open"),
            (len(case.incidents), f"{len(case.incidents)} incident(s) need a person"),
            (counts["waiting"], f"{counts['waiting']} task(s) wait for tokens"),
        )
        if count
    ]
    state = "is suspended (results are recorded, nothing goes on until it is resumed)"
    head = f"The case {state}" if case.state == "suspended" else "The case is running"
    return f"{head}: {', '.join(parts)}." if parts else f"{head}."


def _task(case: Case, net: NetInstance, compiled: CompiledNet, node: TaskNode) -> TaskExplanation:
    marked = tuple(place for place in node.inputs if place in net.marking)
    missing = tuple(place for place in node.inputs if place not in net.marking)
    live = [case.activations[number] for number in net.active.get(node.id, ())]
    items = tuple(
        f"{activation.number}.{run.number}.{run.attempt}@{case.case_id}"
        for activation in live
        for run in activation.instances.values()
        if run.state in OPEN_ITEM_STATES
    )
    stopped = next((activation for activation in live if activation.incidents), None)
    if stopped is not None:
        incident = case.incidents[stopped.incidents[0]]
        return TaskExplanation(
            net.number,
            net.name,
            node.id,
            "incident",
            f"{node.id}: {incident.message} (incident {incident.number}, {incident.kind}).",
            node.join.kind,
            marked,
            (),
            (f"incident {incident.number}@{case.case_id}",),
            tuple(_guards(node, net)) if incident.kind in ("guard_error", "no_branch") else (),
            items=items,
        )
    if any(activation.started and not _only_offered(activation) for activation in live):
        status, sentence = "started", f"{node.id} has started: {_work(case, live)}."
        return TaskExplanation(
            net.number,
            net.name,
            node.id,
            status,
            sentence,
            node.join.kind,
            marked,
            (),
            _work_of(live, case),
            items=items,
        )
    if live:
        roles = ", ".join(node.task.required_roles)
        sentence = f"{node.id} is offered to {roles or 'anybody'}; it starts when somebody takes it."
        return TaskExplanation(
            net.number,
            net.name,
            node.id,
            "offered",
            sentence,
            node.join.kind,
            marked,
            (),
            _work_of(live, case),
            items=items,
        )
    if marked:
        sources = "; ".join(f"{place!r} gets its token from {_source(compiled, place)}" for place in missing)
        sentence = (
            f"{node.id} waits at its {node.join.kind}-join: {len(marked)} of {len(node.inputs)} branches arrived "
            f"({', '.join(marked)}), missing {', '.join(missing)}: {sources}."
        )
        waits = tuple(sorted({source for place in missing for source in _sources(compiled, place)}))
        return TaskExplanation(
            net.number, net.name, node.id, "waiting", sentence, node.join.kind, marked, missing, waits
        )
    needs = "all of" if node.join.kind == "and" else "one of"
    if not node.inputs:
        sentence = f"{node.id} has no incoming flow: nothing ever enables it."
    else:
        sentence = f"{node.id} is not enabled: no token in {needs} {', '.join(node.inputs)}."
    waits = tuple(sorted({source for place in missing for source in _sources(compiled, place)}))
    return TaskExplanation(net.number, net.name, node.id, "idle", sentence, node.join.kind, marked, missing, waits)


def _only_offered(activation: Activation) -> bool:
    """Its join has taken its tokens, but nobody has taken the work."""
    runs = activation.instances.values()
    return bool(runs) and all(run.state in ("offered", "allocated") for run in runs)


def _sources(compiled: CompiledNet, place: str) -> tuple[str, ...]:
    return tuple(node.id for node in compiled.producers.get(place, ()))


def _source(compiled: CompiledNet, place: str) -> str:
    names = _sources(compiled, place)
    return " or ".join(names) if names else "nobody"


def _work_of(live: list[Activation], case: Case) -> tuple[str, ...]:
    found: list[str] = []
    for activation in live:
        for run in activation.instances.values():
            if run.child:
                found.append(f"net instance {run.child}")
            elif run.state in OPEN_ITEM_STATES:
                found.append(f"work item {activation.number}.{run.number}.{run.attempt}@{case.case_id}")
    return tuple(found)


def _work(case: Case, live: list[Activation]) -> str:
    runs = [run for activation in live for run in activation.instances.values()]
    if all(run.state in ("completed", "skipped") for run in runs):
        return "its work is done and it goes on when the case is resumed"
    return "; ".join(_run(run, case) for run in runs)


def _run(run: Instance, case: Case) -> str:
    if run.child:
        child = case.nets[run.child]
        return f"sub-net {child.name!r} is running as net instance {run.child}"
    who = f" by {run.owner}" if run.owner else ""
    return f"its work item is {run.state}{who}"


def _guards(node: TaskNode, net: NetInstance) -> Iterator[GuardReading]:
    data = msgspec.json.decode(net.data)
    for branch in node.branches:
        if branch.when is None:
            continue
        try:
            result = "true" if branch.when.holds(data) else "false"
        except EvaluationFailed as failure:
            result = failure.message
        yield GuardReading(f"{node.id}->{branch.target}", branch.when.text, result, shown_values(branch.when, data))
