"""One command's step: the case, what it is run by, and the events so far.

`emit` is the only way to change the case: it folds the event into the case and records it. Deciding reads what
emitting changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from knhk_workflow.core.apply import APPLY
from knhk_workflow.core.case import OPEN_ITEM_STATES, Activation, Case, Instance
from knhk_workflow.core.events import (
    DataUpdated,
    Event,
    IncidentRaised,
    IncidentResolved,
    TimerArmed,
    TimerDisarmed,
    TimerFired,
)
from knhk_workflow.model.net import CompiledNet, Model, TaskNode

_decode = msgspec.json.Decoder().decode


_NOTED = frozenset({DataUpdated, IncidentRaised, IncidentResolved, TimerArmed, TimerDisarmed, TimerFired})

ItemInNet = tuple[str, TaskNode, Activation, Instance]
"""A work item with the name of its net and its task; all of them outlive the activation in a step."""


class Step:
    """A step in the making. `now` is nanoseconds since the epoch and never earlier than the case's last event."""

    __slots__ = (
        "_scopes",
        "about",
        "case",
        "events",
        "incidents",
        "items",
        "model",
        "nets",
        "now",
        "paused",
        "queued",
        "ready",
        "timed",
    )

    def __init__(self, case: Case, model: Model, now: int) -> None:
        self.case = case
        self.model = model
        self.now = max(case.now, now)
        self.events: list[Event] = []
        self.ready: deque[tuple[int, str]] = deque()  # (net instance, task) whose inputs changed, oldest first
        self.queued: set[tuple[int, str]] = set()  # the same, to ask
        self.nets: set[int] = set()  # net instances that may have ended
        self.items: dict[tuple[int, int], ItemInNet] = {}  # work items that changed, by activation and instance
        self.incidents: tuple[int, ...] = ()  # incidents that were raised or resolved
        self.paused = bool(case.ready)  # an earlier step left a cascade; this one may take it up, or end it
        self.timed = False  # timers were armed, fired or disarmed
        self.about: Activation | None = None  # the one activation that an instance command is about
        self._scopes: dict[int, object] = {}

    def emit(self, event: Event) -> None:
        """Apply `event` to the case and record it."""
        case = self.case
        case.now = case.updated_at = self.now
        case.sequence += 1
        kind = type(event)
        APPLY[kind](case, event)
        self.events.append(event)
        if kind in _NOTED:
            self._note(event)

    def _note(self, event: Event) -> None:
        """Keep what the commit needs besides the event itself."""
        if isinstance(event, DataUpdated):
            self._scopes.pop(event.net, None)
        elif isinstance(event, IncidentRaised | IncidentResolved):
            self.incidents += (event.incident,)
        else:
            self.timed = True

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
        found = self._scopes.get(net)
        if found is None:
            found = self._scopes[net] = _decode(self.case.nets[net].data)
        return found

    def touch(self, net: int, conditions: Sequence[str]) -> None:
        """Tokens moved in `conditions`: look at their consumers again, ties by element id."""
        watchers = self.model.nets[self.case.nets[net].name].watchers
        queued, ready = self.queued, self.ready
        self.nets.add(net)
        if len(conditions) == 1:
            for node in watchers.get(conditions[0], ()):
                key = (net, node.id)
                if key not in queued:
                    queued.add(key)
                    ready.append(key)
            return
        tasks: list[tuple[int, str]] = []
        for condition in conditions:
            for node in watchers.get(condition, ()):
                key = (net, node.id)
                if key not in queued:
                    queued.add(key)
                    tasks.append(key)
        tasks.sort()
        ready.extend(tasks)

    def rest(self) -> None:
        """Forget what was queued: the case ended, or the cascade is cut short."""
        self.ready.clear()
        self.queued.clear()
        self.nets.clear()

    def again(self, net: int, task: str) -> None:
        """Look at one task again, after everything that is queued already."""
        key = (net, task)
        if key not in self.queued:
            self.queued.add(key)
            self.ready.append(key)
