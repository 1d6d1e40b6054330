"""One command's step: the case, what it is run by, and the events so far.

`emit` is how a rule changes the case: it folds the event into the case and records it. Deciding reads what emitting
changed.
"""

from __future__ import annotations

import msgspec

from knhk_workflow.core.apply import APPLY
from knhk_workflow.core.case import OPEN_ITEM_STATES, Activation, Case, Instance, NetInstance
from knhk_workflow.core.events import EventType, IncidentRaised, IncidentResolved, TimerArmed, TimerDisarmed, TimerFired
from knhk_workflow.model.net import CompiledNet, Model, TaskNode

_decode = msgspec.json.Decoder().decode

ItemInNet = tuple[str, TaskNode, Activation, Instance]
"""A work item with the name of its net and its task; all of them outlive the activation in a step."""


class Step(msgspec.Struct, eq=False, gc=False):
    """A step in the making. `now` is nanoseconds since the epoch and never earlier than the case's last event.

    A struct, because it is made for every command. `begin` makes one.
    """

    case: Case
    model: Model
    now: int
    paused: bool  # an earlier step left a cascade; this one may take it up, or end it
    _untroubled: int  # while this is the last incident, none changed
    _unarmed: int  # the same of timers
    events: list[EventType] = []
    ready: dict[tuple[int, str], None] = {}  # (net instance, task) whose inputs changed, oldest first
    nets: set[int] = set()  # net instances that may have ended, or have joins that are asked at rest
    items: dict[tuple[int, int], ItemInNet] = {}  # work items that changed, by activation and instance
    failing: str | None = None  # an incident ends the case, and what was completed is to be undone first
    closing: list[NetInstance] = []  # nets whose end was reached and is carried out, one after the other
    about: Activation | None = None  # the one activation that an instance command is about
    _scopes: dict[int, tuple[bytes, object]] = {}  # net instance: its data, encoded and decoded

    def emit(self, event: EventType) -> None:
        """Apply `event` to the case and record it."""
        case, events = self.case, self.events
        if not events:  # all events of a step are of one time
            case.now = case.updated_at = self.now
        case.sequence += 1
        APPLY[type(event)](case, event)
        events.append(event)

    @property
    def incidents(self) -> tuple[int, ...]:
        """Incidents that were raised or resolved so far, in order: their rows must follow."""
        if self.case.last_incident == self._untroubled:
            return ()
        return tuple(event.incident for event in self.events if isinstance(event, IncidentRaised | IncidentResolved))

    @property
    def timed(self) -> bool:
        """Whether timers were armed, fired or disarmed."""
        if self.case.last_timer == self._unarmed:
            return False
        return any(isinstance(event, TimerArmed | TimerFired | TimerDisarmed) for event in self.events)

    def compiled(self, net: int) -> CompiledNet:
        """The net that a net instance runs."""
        return self.model.nets[self.case.nets[net].name]

    def node(self, activation: Activation) -> TaskNode:
        """The task that an activation is of."""
        return self.compiled(activation.net).tasks[activation.task]

    def changed(self, activation: Activation, run: Instance) -> None:
        """A work item changed: its row in the work list must follow."""
        name = self.case.nets[activation.net].name
        self.items[activation.number, run.number] = (
            name,
            self.model.nets[name].tasks[activation.task],
            activation,
            run,
        )
        if run.timer and run.state not in OPEN_ITEM_STATES:
            self.disarm(run.timer)

    def disarm(self, number: int) -> None:
        """A timer is not needed any more."""
        timer = self.case.timers[number]
        place = timer.net, timer.task, timer.activation, timer.instance
        self.emit(TimerDisarmed(*place, number, timer.kind, timer.due))

    def untimed(self, activation: Activation) -> None:
        """An activation ends: none of its timers is needed any more."""
        for number in activation.timers:
            self.disarm(number)
        for _, run in sorted(activation.instances.items()):
            if run.timer:
                self.disarm(run.timer)

    def scope(self, net: int) -> object:
        """The data of a net instance, decoded for guards. Must not be changed by the reader."""
        data = self.case.nets[net].data
        found = self._scopes.get(net)
        if found is None or found[0] is not data:
            found = self._scopes[net] = data, _decode(data)
        return found[1]

    def told(self, message: str, about: object = None) -> str:
        """A message for people without the values that the workflow calls sensitive: those of the case's data, and of
        the JSON value `about`, which is not part of them yet."""
        veil = self.model.veil
        if not veil or not message:
            return message
        return veil.message(message, [msgspec.json.encode(about), *(net.data for net in self.case.nets.values())])

    def reported(self, data: bytes) -> bytes:
        """What is said about failed work, JSON, without such values."""
        veil = self.model.veil
        return veil.report(data, [net.data for net in self.case.nets.values()]) if veil else data

    def touch(self, net: int, conditions: tuple[str, ...] | list[str]) -> None:
        """Tokens moved in `conditions`: look at their consumers again, ties by element id."""
        moved = self.case.nets[net]
        compiled = self.model.nets[moved.name]
        watchers, ready = compiled.watchers, self.ready
        if not moved.active or compiled.asked:
            self.nets.add(net)
        if len(conditions) == 1:
            for node in watchers.get(conditions[0], ()):
                ready[net, node.id] = None
        else:
            for task in sorted({node.id for condition in conditions for node in watchers.get(condition, ())}):
                ready[net, task] = None

    def rest(self) -> None:
        """Forget what was queued: the case ended, or the cascade is cut short."""
        self.ready = {}
        self.nets.clear()

    def again(self, net: int, task: str) -> None:
        """Look at one task again, after everything that is queued already."""
        self.ready[net, task] = None


def begin(case: Case, model: Model, now: int) -> Step:
    """A step of `case` that has not changed anything yet."""
    return Step(
        case,
        model,
        max(now, case.now),
        bool(case.ready),
        -1 if case.incidents else case.last_incident,
        -1 if case.timers else case.last_timer,
    )
