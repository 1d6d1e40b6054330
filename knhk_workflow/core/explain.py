"""Why a case is where it is: for every task of every live net, in words and as data.

Read-only: explaining never changes a case and evaluates guards only to show their values. A task that is live is
explained by its work; one that is not by the first thing that keeps it: its join, a milestone, a lock.
"""

from __future__ import annotations

from collections.abc import Iterator

from knhk_workflow.core import compensation, explain_times, locks
from knhk_workflow.core.case import (
    DONE_STATES,
    LIVE_STATES,
    OPEN_ITEM_STATES,
    RETRYING,
    Activation,
    Case,
    Instance,
    item_ref,
)
from knhk_workflow.core.explain_joins import Look, Reason, listed, marked, round_of, sources, unsatisfied
from knhk_workflow.core.explanation import GuardReading, InstanceCount, Status, TaskExplanation, Wait
from knhk_workflow.core.joins import amount
from knhk_workflow.core.step import begin
from knhk_workflow.model.expression import EvaluationFailed, Expression, shown_values
from knhk_workflow.model.net import Model, TaskNode

ORDER = {"incident": 0, "started": 1, "offered": 2, "waiting": 3, "idle": 4}


def explain(case: Case, model: Model, now: int = 0) -> tuple[TaskExplanation, ...]:
    """All tasks of all live nets, those that something can be said about first. `now`: 0 is the case's last event."""
    found: list[TaskExplanation] = []
    if case.state in ("running", "suspended"):
        step = begin(case, model, now)
        for net in case.nets.values():
            look = Look(case, model, net, model.nets[net.name], step)
            found.extend(_task(look, node) for node in look.compiled.tasks.values())
    return tuple(sorted(found, key=lambda each: (ORDER[each.status], each.net_instance, each.task_id)))


def summary(case: Case, tasks: tuple[TaskExplanation, ...], now: int = 0) -> str:
    """The case in one sentence."""
    if case.state == "created":
        return "The case is created and has not been started."
    if case.state in ("completed", "cancelled", "failed"):
        return f"The case is {case.state}." if not case.reason else f"The case is {case.state}: {case.reason}."
    kept = sum(1 for signal in case.signals if not 0 < signal.expires <= now)
    counts = {status: sum(1 for task in tasks if task.status == status) for status in ORDER}
    parts = [
        text
        for count, text in (
            (case.open_items, f"{case.open_items} work item(s) are open"),
            (len(case.incidents), f"{len(case.incidents)} incident(s) need a person"),
            (counts["waiting"], f"{counts['waiting']} task(s) wait for tokens, signals or locks"),
            (kept, f"{kept} signal(s) are kept"),
        )
        if count
    ]
    state = "is suspended (results are recorded, nothing goes on until it is resumed)"
    head = f"The case {state}" if case.state == "suspended" else "The case is running"
    if compensation.ending(case.root):
        head += f", and is {case.root.outcome} when everything completed is undone"
    return f"{head}: {', '.join(parts)}." if parts else f"{head}."


def _task(look: Look, node: TaskNode) -> TaskExplanation:
    live = [look.case.activations[number] for number in look.net.active.get(node.id, ())]
    stopped = next((activation for activation in live if activation.incidents), None)
    if stopped is not None:
        return _incident(look, node, live, stopped)
    if not live:
        reason = _not_enabled(look, node)
        guards = tuple(_ways(look, reason.missing))
        return _said(look, node, live, reason, guards)
    sentence, status, waits = _live(look, node, live)
    over = round_of(look, node)
    if over is not None:
        sentence = f"{sentence} {over.sentence}"
    return _said(look, node, live, Reason(sentence, (), waits, (), status), tuple(_conditions(look, node, live)))


def _said(
    look: Look, node: TaskNode, live: list[Activation], reason: Reason, guards: tuple[GuardReading, ...]
) -> TaskExplanation:
    return TaskExplanation(
        look.net.number,
        look.net.name,
        node.id,
        reason.status,
        reason.sentence,
        node.join.kind,
        marked(look, node),
        reason.missing,
        reason.waits_for,
        guards,
        reason.paths,
        tuple(
            _item(look.case, activation, run)
            for activation in live
            for run in activation.instances.values()
            if run.state in OPEN_ITEM_STATES
        ),
        tuple(_count(activation, node) for activation in live) if node.many is not None else (),
        tuple(activation.number for activation in live),
    )


def _incident(look: Look, node: TaskNode, live: list[Activation], stopped: Activation) -> TaskExplanation:
    incident = look.case.incidents[stopped.incidents[0]]
    name = f"{incident.number}@{look.case.case_id}"
    sentence = f"{node.id}: {incident.message} (incident {incident.number}, {incident.kind})."
    waits: tuple[Wait, ...] = (Wait("incident", name),)
    if stopped.left:
        sentence += f" It has let go of {listed(stopped.left)} and takes it again before it goes on."
        lock = locks.blocked_by(look.case, look.net, node, stopped.inputs, stopped.left)
        waits += (_lock(look, lock),) if lock is not None else ()
    guards = tuple(_guards(look, node)) if incident.kind in ("guard_error", "no_branch") else ()
    return _said(look, node, live, Reason(sentence, (), waits, (), "incident"), guards)


# -- what is not live -------------------------------------------------------------------------------------------------


def _not_enabled(look: Look, node: TaskNode) -> Reason:
    trigger = node.task.trigger
    if look.net.outcome:
        sentence = f"{node.id} does not begin any more: this net has ended, and what was completed in it is undone."
        return Reason(sentence, (), (), (), "idle")
    if node.undoes:
        done = sum(1 for each in look.net.completions if each.undo == node.id)
        sentence = f"{node.id} undoes {listed(node.undoes)} when that becomes necessary ({done} completed so far)."
        return Reason(sentence, (), (), (), "idle")
    if not node.inputs and trigger is not None:
        sentence = f"{node.id} has no incoming flow: each signal {trigger.name!r} starts it."
        return Reason(sentence, (), (Wait("trigger", trigger.name),), (), "idle")
    reason = unsatisfied(look, node)
    if reason is not None:
        kept = len(look.case.kept(trigger.name, look.step.now)) if trigger is not None else 0
        if kept:
            return reason._replace(sentence=f"{reason.sentence} {_kept(kept)}.")
        return reason
    empty = tuple(place for place in node.task.reads if place not in look.net.marking)
    if empty:
        from_where = "; ".join(f"{place} gets its token from {sources(look.compiled, place)}" for place in empty)
        waits = tuple(Wait("milestone", place, f"{sources(look.compiled, place)} brings it") for place in empty)
        sentence = f"{node.id} waits for its milestone: no token in {listed(empty)}: {from_where}."
        return Reason(sentence, empty, waits)
    lock = locks.blocked_by(look.case, look.net, node, marked(look, node)) if node.automatic else None
    if lock is not None:
        wait = _lock(look, lock)
        return Reason(f"{node.id} waits for {lock}, {wait.detail}.", (), (wait,))
    if look.case.state == "suspended":
        sentence = f"{node.id} can start, and does so when the case is resumed."
        return Reason(sentence, (), (Wait("resume", look.case.case_id),))
    return Reason(f"{node.id} is about to start: the cascade before it is still going on.")


def _lock(look: Look, lock: str) -> Wait:
    at = " and ".join(locks.holders(look.case, look.model, lock)) or "what is about to leave it"
    return Wait("section", lock, f"held by {at}")


def _ways(look: Look, missing: tuple[str, ...]) -> Iterator[GuardReading]:
    """The guards on the flows that could bring what is missing, over the present data."""
    for place in missing:
        for source in look.compiled.producers.get(place, ()):
            for branch in source.branches:
                if branch.condition == place and branch.when is not None:
                    yield _reading(look, f"{source.id}->{branch.target}", branch.when)


# -- what is live -----------------------------------------------------------------------------------------------------


def _live(look: Look, node: TaskNode, live: list[Activation]) -> tuple[str, Status, tuple[Wait, ...]]:
    waiting = [each for each in live if node.awaits and not locks.begun(each, node) and not each.instances]
    if node.task.timer is not None:
        return explain_times.moment(look, node, live)
    if waiting and len(waiting) == len(live):
        sentence, status, waits = _signal(look, node, live)
    else:
        sentence, status, waits = _work_in_hand(look, node, live)
    if live[0].undoes is not None:
        more = f", {len(look.net.completions)} more to go" if look.net.completions else ", the last one"
        sentence = f"{sentence} It undoes {live[0].undoes.task}{more}."
    if node.times is None and node.task.retry is None:
        return sentence, status, waits
    more, timers = explain_times.limits(look, node, live)
    return f"{sentence} {more}".rstrip(), status, (*waits, *timers)


def _work_in_hand(look: Look, node: TaskNode, live: list[Activation]) -> tuple[str, Status, tuple[Wait, ...]]:
    waits = tuple(_work_of(live, look.case))
    begun = [each for each in live if locks.begun(each, node)]
    if node.many is not None or node.while_ is not None or node.until is not None:
        parts = [_several(look, node, each) for each in live]
        sentence = f"{node.id} {'; '.join(parts)}."
        status: Status = "started" if begun else "offered"
    elif begun:
        sentence, status = f"{node.id} has started: {_work(look.case, begun)}.", "started"
    else:
        roles = ", ".join(node.task.required_roles)
        sentence, status = f"{node.id} is offered to {roles or 'anybody'}; it starts when somebody takes it.", "offered"
    lock = None if begun else locks.blocked_by(look.case, look.net, node, live[0].inputs, live[0].left)
    if lock is not None:
        wait = _lock(look, lock)
        sentence = f"{node.id} is offered, and it cannot start: {lock} is {wait.detail}."
        return sentence, "waiting", (*waits, wait)
    return sentence, status, waits


def _signal(look: Look, node: TaskNode, live: list[Activation]) -> tuple[str, Status, tuple[Wait, ...]]:
    """A task that waits for its signal, or has got it and is kept by something else."""
    trigger = node.task.trigger
    assert trigger is not None
    got = [each for each in live if each.signalled]
    lock = locks.blocked_by(look.case, look.net, node, live[0].inputs) if node.carrier != "item" else None
    kept = len(look.case.kept(trigger.name, look.step.now))
    wait = Wait("trigger", trigger.name, f"{trigger.mode}, {kept} kept")
    if got and lock is not None:
        held = _lock(look, lock)
        return f"{node.id} has got its signal {trigger.name!r} and waits for {lock}, {held.detail}.", "waiting", (held,)
    if got:
        resume = Wait("resume", look.case.case_id)
        return (
            f"{node.id} has got its signal {trigger.name!r}; it goes on when the case is resumed.",
            "waiting",
            (resume,),
        )
    often = f" {len(live)} times" if len(live) > 1 else ""
    sentence = f"{node.id} waits{often} for the signal {trigger.name!r}"
    if trigger.mode == "transient":
        sentence += ", which is lost when it comes while nobody waits"
    if kept:
        why = f"while {lock} is {_lock(look, lock).detail}" if lock else "until the case is resumed"
        sentence += f"; {_kept(kept).lower()} {why}"
    return f"{sentence}.", "waiting", (wait,)


def _kept(count: int) -> str:
    return "A signal is kept for it" if count == 1 else f"{count} signals are kept for it"


def _several(look: Look, node: TaskNode, activation: Activation) -> str:
    """A task with instances or turns, in words."""
    runs = activation.instances.values()
    if node.many is None:
        turn = max(activation.instances, default=1)
        run = activation.instances.get(turn)
        work = _run(run, look.case) if run is not None else "its work is about to begin"
        return f"is in turn {turn} of its loop: {work}"
    count = _count(activation, node)
    undone = sum(1 for run in runs if run.child and look.case.nets[run.child].outcome)
    states = [(state, sum(1 for run in runs if run.state == state)) for state in ("started", "running", "offered")]
    states = [(state, number - undone if state == "running" else number) for state, number in states]
    states.append(("being undone", undone))
    open_ = listed(f"{number} {state}" for state, number in states if number)
    told = f"has {count.total} instances: {count.done} done, {count.open} open" + (f" ({open_})" if open_ else "")
    if count.released:
        again = "it can be entered again when the rest is done" if node.many.sync else "nothing waits for them"
        return f"{told}; the flow has gone on, and {again}"
    goes_on = f"{count.threshold} are done" if count.threshold else "all are done"
    if node.many.until is not None:
        now = _until(look, node.many.until, count)
        read = listed(f"{name} = {value}" for name, value in now.values.items())
        goes_on += f", or as soon as {now.expression} is true (now {now.result}, {read})"
    told += f"; the flow goes on when {goes_on}"
    if node.many.dynamic:
        told += ", more can be added" + _at_most(look, node) if count.accepts else ", closed to new ones"
    return told


def _at_most(look: Look, node: TaskNode) -> str:
    assert node.many is not None
    if node.many.most is None:
        return ""
    try:
        return f" (at most {amount(look.step, node.many.most, look.net)})"
    except EvaluationFailed:
        return ""


def _count(activation: Activation, node: TaskNode) -> InstanceCount:
    assert node.many is not None
    runs = activation.instances.values()
    return InstanceCount(
        activation.number,
        activation.count,
        sum(1 for run in runs if run.state in DONE_STATES),
        sum(1 for run in runs if run.state in LIVE_STATES),
        activation.threshold,
        activation.released,
        node.many.dynamic and not activation.closed and not (activation.released and node.many.sync),
    )


def _conditions(look: Look, node: TaskNode, live: list[Activation]) -> Iterator[GuardReading]:
    """The conditions of a loop or of instances, over the present data."""
    if node.while_ is not None:
        yield _reading(look, "while", node.while_)
    if node.until is not None:
        yield _reading(look, "until", node.until)
    if node.many is not None and node.many.until is not None:
        for activation in live:
            yield _until(look, node.many.until, _count(activation, node))


def _until(look: Look, condition: Expression, count: InstanceCount) -> GuardReading:
    counts = {"completed": count.done, "active": count.open, "total": count.total}
    return _reading(look, "until", condition, counts)


def _work_of(live: list[Activation], case: Case) -> Iterator[Wait]:
    for activation in live:
        for run in activation.instances.values():
            if run.child:
                doing = "being undone" if case.nets[run.child].outcome else "running"
                yield Wait("sub_net", str(run.child), f"sub-net {case.nets[run.child].name!r} is {doing}")
            elif run.state in OPEN_ITEM_STATES:
                yield Wait("work_item", _item(case, activation, run), _run(run, case))


def _item(case: Case, activation: Activation, run: Instance) -> str:
    return item_ref(activation, run).name(case.case_id)


def _work(case: Case, live: list[Activation]) -> str:
    runs = [run for activation in live for run in activation.instances.values()]
    if all(run.state in DONE_STATES for run in runs):
        return "its work is done and it goes on when the case is resumed"
    return "; ".join(_run(run, case) for run in runs)


def _run(run: Instance, case: Case) -> str:
    if run.child:
        child = case.nets[run.child]
        if child.outcome:
            return f"it is stopped, and what sub-net {child.name!r} completed is being undone"
        return f"sub-net {child.name!r} is running as net instance {run.child}"
    if run.state == RETRYING:
        return "its work has failed and is tried again"
    who = f" by {run.owner}" if run.owner else ""
    return f"its work item is {run.state}{who}"


def _guards(look: Look, node: TaskNode) -> Iterator[GuardReading]:
    for branch in node.branches:
        if branch.when is not None:
            yield _reading(look, f"{node.id}->{branch.target}", branch.when)


def _reading(look: Look, flow: str, condition: Expression, item: object = None) -> GuardReading:
    """A guard over the present data of the net, with what it reads."""
    try:
        result = "true" if condition.holds(look.data, item) else "false"
    except EvaluationFailed as failure:
        result = look.step.told(failure.message)
    return GuardReading(flow, condition.text, result, shown_values(condition, look.shown, item))
