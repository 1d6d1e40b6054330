"""How each event changes a case: the one door, live and in replay.

An applier only does what its event says; it never decides, reads no model and evaluates nothing. `APPLY` has an
applier for every event type and a test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from knhk_workflow.core import events as e
from knhk_workflow.core.case import (
    DONE_STATES,
    OPEN_ITEM_STATES,
    RETRYING,
    Activation,
    Case,
    Completion,
    Incident,
    Instance,
    Kept,
    Lock,
    NetInstance,
    Timer,
)
from knhk_workflow.core.commands import ENDED
from knhk_workflow.core.data import merge
from knhk_workflow.model.spec import ROOT, START


def fold(case: Case, event: e.Event) -> None:
    """Apply one event and count it."""
    case.sequence += 1
    APPLY[type(event)](case, event)


def replay(case: Case | None, now: int, recorded: Iterable[e.Event]) -> Case:
    """Fold the events of one commit record, in order, at the record's time. The first of a case creates it."""
    for event in recorded:
        if case is None:
            case = born(event, now)
        else:
            case.now = case.updated_at = max(now, case.now)
            fold(case, event)
    if case is None:
        raise ValueError("a case has no events")
    return case


def born(event: e.Event, now: int) -> Case:
    """The case that a CaseCreated makes."""
    if not isinstance(event, e.CaseCreated):
        raise ValueError(f"a history begins with case_created, not {type(event).__name__}")
    case = Case(
        tenant=event.tenant,
        case_id=event.case_id,
        spec_id=event.spec_id,
        version=event.version,
        digest=event.digest,
        salt=event.salt,
        business_key=event.business_key,
        sequence=1,
        created_at=now,
        updated_at=now,
        now=now,
        last_net=1,
    )
    case.nets[1] = NetInstance(number=1, name=ROOT, data=event.data)
    return case


def _case_created(case: Case, event: e.CaseCreated) -> None:
    raise ValueError(f"case {case.case_id!r} was created twice")


def _state_changed(case: Case, event: e.StateChanged) -> None:
    case.state = event.state
    case.reason = event.reason if event.state != "running" else ""
    if event.state in ENDED:
        case.ready = ()
        case.signals.clear()
        case.locks.clear()
    if event.before == "suspended":
        for activation in case.activations.values():
            for run in activation.instances.values():
                run.held = False


def _net_started(case: Case, event: e.NetStarted) -> None:
    net = case.nets.get(event.net)
    if net is None:
        net = case.nets[event.net] = NetInstance(
            number=event.net,
            name=event.name,
            parent=event.parent,
            activation=event.activation,
            instance=event.instance,
            depth=event.depth,
            data=event.data,
        )
        case.last_net = event.net
        activation = case.activations[event.activation]
        _turned(activation, event.instance)
        run = activation.instances.get(event.instance)
        if run is None:
            run = activation.instances[event.instance] = Instance(number=event.instance, offered_at=case.now)
        run.state = "running"
        run.child = event.net
        run.changed_at = case.now
    net.put((START,))


def _turned(activation: Activation, instance: int) -> None:
    """Only a loop has instances beyond the count: its turn before this one is done with, however many there were."""
    if instance > activation.count:
        activation.instances.pop(instance - 1, None)


def _net_ended(case: Case, event: e.NetCompleted | e.NetCancelled) -> None:
    net = case.nets[event.net]
    net.empty()
    net.completions = []
    net.outcome = net.detail = ""
    if event.net == 1:
        return
    del case.nets[event.net]
    activation = case.activations.get(net.activation)
    if activation is not None:
        run = activation.instances[net.instance]
        run.child = 0
        run.changed_at = case.now
        if type(event) is e.NetCompleted:
            run.state = "completed"
            run.output = net.data
        else:
            run.state = "terminated"


def _task_enabled(case: Case, event: e.TaskEnabled) -> None:
    net, task, number = case.nets[event.net], event.task, event.activation
    activation = Activation(number, event.net, task, event.inputs, case.sequence, event.started)
    case.activations[number] = activation
    case.last_activation = number
    if event.count != 1 or event.threshold or event.elements:
        activation.count = event.count
        activation.threshold = event.threshold
        activation.elements = list(event.elements)
    running = net.active.get(task)
    if running is None:
        net.active[task] = [number]
    else:
        running.append(number)
    if event.started:
        net.take(event.inputs)


def _task_started(case: Case, event: e.TaskStarted) -> None:
    net = case.nets[event.net]
    case.activations[event.activation].started = True
    net.take(event.consumed)


def _forget(case: Case, net: NetInstance, activation: int) -> None:
    task = case.activations.pop(activation).task
    running = net.active[task]
    if len(running) == 1:
        del net.active[task]
    else:
        running.remove(activation)


def _task_completed(case: Case, event: e.TaskCompleted) -> None:
    net = case.nets[event.net]
    _forget(case, net, event.activation)
    net.put(event.produced)
    if event.dead:
        _bury(net, event.dead)


def _bury(net: NetInstance, conditions: tuple[str, ...]) -> None:
    """Add one false token to each condition."""
    for condition in conditions:
        net.dead[condition] = net.dead.get(condition, 0) + 1


def _task_released(case: Case, event: e.TaskReleased) -> None:
    case.activations[event.activation].released = True
    net = case.nets[event.net]
    net.put(event.produced)
    _bury(net, event.dead)


def _tokens_removed(case: Case, event: e.TokensRemoved) -> None:
    net = case.nets[event.net]
    net.take(event.conditions)


def _instance_added(case: Case, event: e.InstanceAdded) -> None:
    activation = case.activations[event.activation]
    activation.count = event.instance
    if event.element:
        bare = event.instance - 1 - len(activation.elements)  # instances before it that were made from nothing
        activation.elements.extend([b""] * bare + [event.element])


def _instances_closed(case: Case, event: e.InstancesClosed) -> None:
    case.activations[event.activation].closed = True


def _join_moved(case: Case, event: e.JoinMoved) -> None:
    net = case.nets[event.net]
    net.take(event.absorbed)
    if event.seen:
        net.seen[event.task] = event.seen
    else:
        net.seen.pop(event.task, None)


def _branches_expected(case: Case, event: e.BranchesExpected) -> None:
    case.nets[event.net].expected.setdefault(event.task, []).append(event.inputs)


def _expectation_met(case: Case, event: e.ExpectationMet) -> None:
    expected = case.nets[event.net].expected
    del expected[event.task][0]
    if not expected[event.task]:
        del expected[event.task]


def _dead_path_moved(case: Case, event: e.DeadPathMoved) -> None:
    net = case.nets[event.net]
    net.take(event.taken)
    for condition in event.dead:
        left = net.dead[condition] - 1
        if left:
            net.dead[condition] = left
        else:
            del net.dead[condition]
    _bury(net, event.produced)


def _net_reset(case: Case, event: e.NetReset) -> None:
    net = case.nets[event.net]
    for task in event.tasks:
        net.seen.pop(task, None)
        net.expected.pop(task, None)


def _trigger_received(case: Case, event: e.TriggerReceived) -> None:
    case.last_trigger = event.trigger
    case.firings = 0
    if event.outcome == "kept":
        case.signals.append(Kept(event.trigger, event.name, event.data, event.expires))
    elif event.outcome == "taken":
        _signalled(case, event.activation, event.data)


def _trigger_taken(case: Case, event: e.TriggerTaken) -> None:
    taken = next(kept for kept in case.signals if kept.number == event.trigger)
    case.signals.remove(taken)
    _signalled(case, event.activation, taken.data)


def _trigger_expired(case: Case, event: e.TriggerExpired) -> None:
    case.signals = [kept for kept in case.signals if kept.number != event.trigger]


def _signalled(case: Case, activation: int, data: bytes) -> None:
    waiting = case.activations[activation]
    waiting.signalled = True
    waiting.signal = data


def _lock_taken(case: Case, event: e.LockTaken) -> None:
    lock = case.locks.get(event.lock)
    if lock is None:
        lock = case.locks[event.lock] = Lock()
    lock.net = event.net
    lock.activation = event.activation
    if event.again:
        case.activations[event.again].left.remove(event.lock)


def _lock_released(case: Case, event: e.LockReleased) -> None:
    for number in event.failed:
        case.activations[number].left.append(event.lock)
    del case.locks[event.lock]  # who waited is looked at again, and waits again when somebody was faster


def _lock_awaited(case: Case, event: e.LockAwaited) -> None:
    case.locks[event.lock].waiting.append((event.net, event.task))


def _timer_armed(case: Case, event: e.TimerArmed) -> None:
    case.last_timer = number = event.timer
    case.timers[number] = Timer(number, event.kind, event.net, event.task, event.activation, event.instance, event.due)
    activation = case.activations[event.activation]
    if not event.instance:
        activation.timers = (*activation.timers, number)
        return
    run = activation.instances[event.instance]
    run.timer = number
    if event.kind == "retry":
        run.state = RETRYING


def _timer_disarmed(case: Case, event: e.TimerDisarmed | e.TimerFired) -> None:
    del case.timers[event.timer]
    activation = case.activations[event.activation]
    if event.instance:
        run = activation.instances[event.instance]
        run.timer = 0
        if run.state == RETRYING:
            run.state = "failed"
    else:
        activation.timers = tuple(each for each in activation.timers if each != event.timer)


def _timer_fired(case: Case, event: e.TimerFired) -> None:
    _timer_disarmed(case, event)
    case.firings = 0  # time has passed: automatic firings count from zero again
    if event.kind == "timer":
        case.activations[event.activation].signalled = True


def _completion_remembered(case: Case, event: e.CompletionRemembered) -> None:
    case.nets[event.net].completions.append(
        Completion(event.task, event.activation, event.instance, event.undo, event.data)
    )


def _completions_forgotten(case: Case, event: e.CompletionsForgotten) -> None:
    net = case.nets[event.net]
    net.completions = []
    net.outcome = net.detail = ""


def _rollback_begun(case: Case, event: e.RollbackBegun) -> None:
    net = case.nets[event.net]
    net.empty()
    net.outcome = event.outcome
    net.detail = event.detail


def _compensation_begun(case: Case, event: e.CompensationBegun) -> None:
    case.activations[event.activation].undoes = _newest(case.nets[event.net])


def _newest(net: NetInstance) -> Completion:
    """The completion that is undone next; it is not remembered any more, so that nothing is undone twice."""
    return net.completions.pop()


def _task_cancelled(case: Case, event: e.TaskCancelled) -> None:
    _forget(case, case.nets[event.net], event.activation)


def _item_offered(case: Case, event: e.ItemOffered) -> None:
    activation, instance, now = case.activations[event.activation], event.instance, case.now
    if instance > activation.count:
        _turned(activation, instance)
    activation.instances[instance] = Instance(instance, "offered", event.attempt, "", event.data, b"", 0, now, now)
    case.open_items += 1


def _item_allocated(case: Case, event: e.ItemAllocated) -> None:
    run = case.activations[event.activation].instances[event.instance]
    run.state = "allocated"
    run.changed_at = case.now
    run.owner = event.owner


def _item_released(case: Case, event: e.ItemReleased) -> None:
    run = case.activations[event.activation].instances[event.instance]
    run.state = "offered"
    run.changed_at = case.now
    run.owner = ""


def _item_started(case: Case, event: e.ItemStarted) -> None:
    activation = case.activations[event.activation]
    run = activation.instances[event.instance]
    run.state = "started"
    run.changed_at = case.now
    if event.owner:
        run.owner = event.owner
    if event.lease:
        run.worker, run.lease = event.worker, event.lease
    if event.consumed or not activation.inputs:  # a task that a signal started has nothing to consume
        activation.started = True
        case.nets[event.net].take(event.consumed)


def _item_returned(case: Case, event: e.ItemReturned) -> None:
    run = case.activations[event.activation].instances[event.instance]
    run.state = "offered"
    run.attempt += 1
    run.owner = run.worker = ""
    run.lease = 0
    run.offered_at = run.changed_at = case.now


def _connector_called(case: Case, event: e.ConnectorCalled) -> None:
    run = case.activations[event.activation].instances[event.instance]
    run.state = "started"
    run.changed_at = case.now
    run.connector = event.connector


def _connector_begun(case: Case, event: e.ConnectorBegun) -> None:
    case.activations[event.activation].instances[event.instance].calling = True


def _connector_discarded(case: Case, event: e.ConnectorDiscarded) -> None:
    """It changed nothing."""


_ItemEnd = (
    e.ItemCompleted
    | e.ItemFailed
    | e.ItemSkipped
    | e.ItemWithdrawn
    | e.ItemTerminated
    | e.ItemForceCompleted
    | e.ConnectorCompleted
    | e.ConnectorFailed
)


def _over(case: Case, event: _ItemEnd, state: str) -> Instance:
    """The instance of an item that ends in `state`."""
    instances = case.activations[event.activation].instances
    run = instances.get(event.instance)
    if run is None:  # work that could not even be offered, settled by resolving its incident
        run = instances[event.instance] = Instance(event.instance, "failed")
    elif run.state in OPEN_ITEM_STATES:
        case.open_items -= 1
        if case.firings:
            case.firings = 0  # the outside has moved: automatic firings count from zero again
    run.state = state
    run.changed_at = case.now
    if case.state == "suspended":
        run.held = state in DONE_STATES
    return run


def _item_completed(case: Case, event: e.ItemCompleted | e.ConnectorCompleted) -> None:
    _over(case, event, "completed").output = event.output


def _item_ended(state: str) -> Callable[[Case, _ItemEnd], None]:
    """An applier for an item that ends without output."""

    def apply(case: Case, event: _ItemEnd) -> None:
        _over(case, event, state)

    return apply


def _item_gone(state: str) -> Callable[[Case, _ItemEnd], None]:
    """An applier for an item that the case takes back. Nobody outside did that: a loop may offer and withdraw for ever,
    and its firings count on."""

    def apply(case: Case, event: _ItemEnd) -> None:
        firings = case.firings
        _over(case, event, state)
        case.firings = firings

    return apply


def _data_updated(case: Case, event: e.DataUpdated) -> None:
    net = case.nets[event.net]
    net.data = event.patch if event.replace else merge(net.data, event.patch)


def _incident_raised(case: Case, event: e.IncidentRaised) -> None:
    case.incidents[event.incident] = Incident(
        event.incident,
        event.kind,
        event.net,
        event.message,
        event.task,
        event.activation,
        event.instance,
        case.now,
    )
    case.last_incident = event.incident
    if event.activation:
        case.activations[event.activation].incidents.append(event.incident)
    else:
        case.nets[event.net].incident = event.incident


def _incident_resolved(case: Case, event: e.IncidentResolved) -> None:
    incident = case.incidents.pop(event.incident)
    activation = case.activations.get(incident.activation)
    if activation is not None and event.incident in activation.incidents:
        activation.incidents.remove(event.incident)
    net = case.nets.get(incident.net)
    if net is not None and net.incident == event.incident:
        net.incident = 0


def _settle_paused(case: Case, event: e.SettlePaused) -> None:
    case.ready = event.ready
    case.firings = event.firings


def _settle_resumed(case: Case, event: e.SettleResumed) -> None:
    case.ready = ()


APPLY: Mapping[type[e.Event], Callable[..., None]] = {  # each applier takes (case, its own event type)
    e.CaseCreated: _case_created,
    e.StateChanged: _state_changed,
    e.NetStarted: _net_started,
    e.NetCompleted: _net_ended,
    e.NetCancelled: _net_ended,
    e.TaskEnabled: _task_enabled,
    e.TaskStarted: _task_started,
    e.TaskCompleted: _task_completed,
    e.TaskCancelled: _task_cancelled,
    e.ItemOffered: _item_offered,
    e.ItemAllocated: _item_allocated,
    e.ItemReleased: _item_released,
    e.ItemStarted: _item_started,
    e.ItemCompleted: _item_completed,
    e.ItemFailed: _item_ended("failed"),
    e.ItemSkipped: _item_ended("skipped"),
    e.ItemWithdrawn: _item_gone("withdrawn"),
    e.ItemTerminated: _item_gone("terminated"),
    e.DataUpdated: _data_updated,
    e.IncidentRaised: _incident_raised,
    e.IncidentResolved: _incident_resolved,
    e.SettlePaused: _settle_paused,
    e.SettleResumed: _settle_resumed,
    e.TokensRemoved: _tokens_removed,
    e.TaskReleased: _task_released,
    e.InstanceAdded: _instance_added,
    e.InstancesClosed: _instances_closed,
    e.ItemForceCompleted: _item_ended("forced"),
    e.JoinMoved: _join_moved,
    e.BranchesExpected: _branches_expected,
    e.ExpectationMet: _expectation_met,
    e.DeadPathMoved: _dead_path_moved,
    e.TriggerReceived: _trigger_received,
    e.TriggerTaken: _trigger_taken,
    e.LockTaken: _lock_taken,
    e.LockReleased: _lock_released,
    e.LockAwaited: _lock_awaited,
    e.NetReset: _net_reset,
    e.TimerArmed: _timer_armed,
    e.TimerFired: _timer_fired,
    e.TimerDisarmed: _timer_disarmed,
    e.TriggerExpired: _trigger_expired,
    e.CompletionRemembered: _completion_remembered,
    e.CompletionsForgotten: _completions_forgotten,
    e.RollbackBegun: _rollback_begun,
    e.CompensationBegun: _compensation_begun,
    e.ConnectorCalled: _connector_called,
    e.ConnectorBegun: _connector_begun,
    e.ConnectorCompleted: _item_completed,
    e.ConnectorFailed: _item_ended("failed"),
    e.ConnectorDiscarded: _connector_discarded,
    e.ItemReturned: _item_returned,
}
